/** Decisions: the request's facts, the principal's policies and the resource's own side, put to the pure evaluator. */
import { Fault } from '../domain/faults.ts';
import { parseRepositoryArn } from '../domain/names.ts';
import { denialMessage, evaluate } from '../policy/policy.ts';
import type { AccessRequest, Caller, Decision, NamedPolicy } from '../policy/policy.ts';
import type { AccessCheck } from '../protocol/protocol.ts';
import {
  findAccessKey,
  findGroup,
  findInstanceProfile,
  findPolicy,
  findProvider,
  findRole,
  findUser,
  listTags,
  prepareFindRepository,
} from '../store/store.ts';
import type { Store, UserRecord } from '../store/store.ts';
import type { Denials } from './denials.ts';
import {
  groupArn,
  instanceProfileArn,
  readNamedArn,
  readPolicyArn,
  roleArn,
  rootArn,
  userArn,
} from './arns.ts';
import type { NamedArn } from './arns.ts';
import type { Guardrails } from './guardrails.ts';
import type { Identity, Principal, RequestFacts, ResourceSide, Subject } from './identity.ts';
import type { LoadedPrincipal, Principals } from './principals.ts';
import { registryPolicyFor, type RegistryRules } from './registries.ts';

/** The resource of a check with all that is stored about it. */
interface Resource extends ResourceSide {
  readonly arn: string;
  /** IAM users and roles: their permissions boundary */
  readonly boundaryArn?: string | undefined;
}

/** What is allowed and denied to whoever asks, and the condition keys that tell who it is. */
type Grants = Omit<Subject, 'caller'>;

const NO_TAGS: ReadonlyMap<string, string> = new Map();
const ACCESS_KEY_ARN = /^arn:aws:iam::([0-9]{12}):access-key\/([A-Za-z0-9_]+)$/;
/** What these make is not there yet; of the same name there may be something else, under another path. */
const CREATIONS: ReadonlySet<string> = new Set(
  ['User', 'Group', 'Role', 'Policy', 'InstanceProfile', 'OpenIDConnectProvider', 'ServiceLinkedRole'].map(
    (kind) => `iam:Create${kind}`,
  ),
);
/** Services whose resources resource control policies protect. */
const RESOURCE_CONTROLLED = /^(?:ecr|sts):/;

export function createAuthorizer({
  store,
  principals,
  guardrails,
  registryRules,
  organizationId,
  denials,
}: {
  readonly store: Store;
  readonly principals: Principals;
  readonly guardrails: Guardrails;
  readonly registryRules: (registry: { account: string; region: string }) => Promise<RegistryRules>;
  readonly organizationId: string | undefined;
  readonly denials: Pick<Denials, 'note'>;
}): Pick<Identity, 'decide' | 'decideFor' | 'authorize' | 'authorizeFor' | 'judge'> {
  const findRepository = prepareFindRepository(store);

  async function loadedOf(principal: Principal): Promise<LoadedPrincipal> {
    const loaded =
      principals.loaded(principal) ??
      (principal.session === undefined
        ? await principals.find(principal.accessKeyId)
        : await principals.findSession(principal.session));
    if (loaded === undefined) throw unknownClient();
    return loaded;
  }

  /** Something stored in IAM with its tags. */
  async function stored(
    arn: string,
    { account, id, boundaryArn }: Pick<UserRecord, 'account' | 'id'> & { boundaryArn?: string | undefined },
  ): Promise<Resource> {
    const tags = await listTags(store.read, id);
    return {
      arn,
      account,
      policy: undefined,
      tags: new Map(tags.map(({ key, value }) => [key, value])),
      boundaryArn,
    };
  }

  async function readNamed(
    type: NamedArn['type'],
    account: string,
    name: string,
  ): Promise<Resource | undefined> {
    const { read } = store;
    switch (type) {
      case 'user': {
        const user = await findUser(read, account, name);
        return user && (await stored(userArn(user), user));
      }
      case 'role': {
        const role = await findRole(read, account, name);
        return role && (await stored(roleArn(role), role));
      }
      case 'group': {
        const group = await findGroup(read, account, name);
        return group && (await stored(groupArn(group), group));
      }
      default: {
        const profile = await findInstanceProfile(read, account, name);
        return profile && (await stored(instanceProfileArn(profile), profile));
      }
    }
  }

  /**
   * What is stored about a resource. IAM checks name a user by `user/{name}` (so groups, roles and instance profiles) and
   * a key by `access-key/{id}`: the path and the key's owner are looked up here; what does not exist is judged as it was
   * named, so nothing is revealed.
   */
  async function readResource(caller: string, { action, resource: arn }: AccessCheck): Promise<Resource> {
    const plain = (account: string): Resource => ({ arn, account, policy: undefined, tags: NO_TAGS });
    if (arn === '*') return plain(caller);
    const address = parseRepositoryArn(arn);
    if (address !== undefined) {
      const repository = await findRepository(address);
      return repository === undefined
        ? plain(address.account)
        : { arn, account: address.account, policy: repository.policy, tags: repository.tags };
    }
    if (!arn.startsWith('arn:aws:iam:') || CREATIONS.has(action)) {
      return plain(arn.split(':')[4] || caller);
    }
    const named = readNamedArn(arn);
    if (named !== undefined) {
      const found = await readNamed(named.type, named.account, named.name);
      // INVARIANT: what is named with its path has its tags and boundary too; under another path it is somebody else's name.
      return found !== undefined && (named.path === '/' || found.arn === arn) ? found : plain(named.account);
    }
    const [, keyAccount, keyId] = ACCESS_KEY_ARN.exec(arn) ?? [];
    if (keyAccount !== undefined && keyId !== undefined) {
      const key = await findAccessKey(store.read, keyId);
      if (key?.account !== keyAccount)
        return { ...plain(keyAccount), arn: `arn:aws:iam::${keyAccount}:user/*` };
      return key.user === undefined
        ? { ...plain(keyAccount), arn: rootArn(keyAccount) }
        : await stored(userArn(key.user), key.user);
    }
    const provider = arn.includes(':oidc-provider/') ? await findProvider(store.read, arn) : undefined;
    if (provider !== undefined) return await stored(arn, provider);
    const policy = readPolicyArn(arn);
    // AWS's own policies: everybody may be allowed to look, only AWS can change them.
    if (policy?.account === 'aws') return plain(/^iam:(Get|List)/.test(action) ? caller : 'aws');
    const customer = policy && (await findPolicy(store.read, arn));
    return customer === undefined ? plain(arn.split(':')[4] || caller) : await stored(arn, customer);
  }

  /** Policies attached to the resource: the repository's own, and that of its registry (ecr-api.md §14.2). */
  async function attachedPolicies(
    { kind, account }: Principal['caller'],
    action: string,
    region: string,
    resource: Resource,
  ): Promise<NamedPolicy[]> {
    const attached: NamedPolicy[] = [];
    if (resource.policy !== undefined) {
      const name = resource.trust === true ? 'trust policy' : 'repository policy';
      attached.push({ policy: principals.compile(resource.policy), name });
    }
    if (!action.startsWith('ecr:')) return attached;
    const rules = await registryRules({
      account: resource.account,
      region: resource.arn === '*' ? region : (resource.arn.split(':', 4)[3] ?? region),
    });
    const ownRoot = kind === 'root' && account === resource.account;
    const policy = registryPolicyFor(rules, action, ownRoot);
    if (policy !== undefined) attached.push({ policy, name: 'registry policy' });
    return attached;
  }

  async function judge(
    caller: Caller,
    grants: Grants,
    check: AccessCheck,
    facts: RequestFacts,
    side: ResourceSide | undefined,
  ): Promise<{ request: AccessRequest; decision: Decision }> {
    const resource: Resource =
      side === undefined ? await readResource(caller.account, check) : { ...side, arn: check.resource };
    const request: AccessRequest = {
      caller,
      action: check.action,
      resource: resource.arn,
      resourceAccount: resource.account,
      context: whenAsked(() => contextOf(grants, check, facts, resource, organizationId)),
      ...(side?.trust === true && { trustPolicy: true }),
    };
    const attached = await attachedPolicies(caller, check.action, facts.region, resource);
    const decision = evaluate(request, {
      identity: grants.identityPolicies,
      boundary: grants.boundary,
      session: grants.sessionPolicies,
      resource: attached.length === 0 ? undefined : attached,
      serviceControl: guardrails.serviceControl(caller.account),
      resourceControl: RESOURCE_CONTROLLED.test(check.action)
        ? guardrails.resourceControl(resource.account)
        : undefined,
    });
    return { request, decision };
  }

  /** @throws Fault AccessDeniedException, noted under the request id */
  function refuse(
    { request, decision }: { readonly request: AccessRequest; readonly decision: Decision },
    { requestId, now, sourceIp, region }: RequestFacts,
    message: string,
  ): never {
    denials.note({ requestId, at: now, sourceIp, region, request, decision, message });
    throw new Fault('AccessDeniedException', message);
  }

  return {
    judge: (subject, check, facts, side) => judge(subject.caller, subject, check, facts, side),
    async decide(principal, check, facts, side) {
      const loaded = await loadedOf(principal);
      return (await judge(loaded.principal.caller, loaded, check, facts, side)).decision;
    },
    async decideFor(subject, check, facts, side) {
      return (await judge(subject.caller, subject, check, facts, side)).decision;
    },
    async authorize(principal, checks, facts, side) {
      const loaded = await loadedOf(principal);
      for (const check of checks) {
        refuseLimitedSession(principal, check);
        const judged = await judge(loaded.principal.caller, loaded, check, facts, side);
        const { request, decision } = judged;
        if (decision.allowed) continue;
        const shown = check.shownAs === undefined ? request : { ...request, resource: check.shownAs };
        // WHY: AWS withholds the reason where a trust policy decides, but names an explicit deny.
        const reason =
          side?.trust === true && decision.reason.outcome !== 'explicit-deny' ? 'withheld' : 'given';
        refuse(judged, facts, denialMessage(shown, decision, reason));
      }
    },
    async authorizeFor(subject, checks, facts, side, sentence) {
      for (const check of checks) {
        const judged = await judge(subject.caller, subject, check, facts, side);
        if (!judged.decision.allowed) refuse(judged, facts, sentence(check));
      }
    },
  };
}

function unknownClient(): Fault {
  return new Fault('UnrecognizedClientException', 'The security token included in the request is invalid.');
}

/**
 * What sessions of users cannot do, whatever their policies say (iam-sts.md §5.6): nothing of IAM, and of STS only
 * GetCallerIdentity and, for GetSessionToken's, AssumeRole.
 */
function refuseLimitedSession({ session, caller }: Principal, { action, resource }: AccessCheck): void {
  if (session === undefined || session.kind === 'role') return;
  if (action.startsWith('iam:')) throw unknownClient();
  const mayAssume =
    session.kind !== 'federated-user' && /^sts:(AssumeRole|TagSession|SetSource)/.test(action);
  if (!action.startsWith('sts:') || mayAssume) return;
  throw new Fault(
    'AccessDeniedException',
    `User: ${caller.arn} is not authorized to perform: ${action} on resource: ${resource}`,
  );
}

/** WHY: most decisions ask for no condition key, and gathering them costs more than such a decision. */
function whenAsked(gather: () => ReadonlyMap<string, string | readonly string[]>): AccessRequest['context'] {
  let gathered: ReadonlyMap<string, string | readonly string[]> | undefined;
  return { get: (key) => (gathered ??= gather()).get(key) };
}

/** Condition keys of one request, lower-cased (iam-sts.md §3.9). */
function contextOf(
  grants: Grants,
  check: AccessCheck,
  facts: RequestFacts,
  resource: Resource,
  organizationId: string | undefined,
): ReadonlyMap<string, string | readonly string[]> {
  const context = new Map<string, string | readonly string[]>(grants.conditionKeys);
  const service = check.action.slice(0, check.action.indexOf(':'));
  context.set('aws:sourceip', facts.sourceIp);
  context.set('aws:securetransport', String(facts.secure));
  context.set('aws:requestedregion', service === 'iam' ? 'us-east-1' : facts.region);
  context.set('aws:currenttime', `${new Date(facts.now).toISOString().slice(0, 19)}Z`);
  context.set('aws:epochtime', String(Math.floor(facts.now / 1000)));
  context.set('aws:resourceaccount', resource.account);
  if (organizationId !== undefined) {
    context.set('aws:principalorgid', organizationId);
    context.set('aws:resourceorgid', organizationId);
  }
  if (facts.userAgent !== undefined) context.set('aws:useragent', facts.userAgent);
  for (const [key, value] of resource.tags) {
    const lower = key.toLowerCase();
    context.set(`aws:resourcetag/${lower}`, value);
    // A role is IAM's, also when STS asks for it.
    context.set(`${resource.trust === true ? 'iam' : service}:resourcetag/${lower}`, value);
  }
  if (resource.boundaryArn !== undefined) context.set('iam:permissionsboundary', resource.boundaryArn);
  for (const [key, value] of check.keys ?? []) context.set(key, value);
  return context;
}
