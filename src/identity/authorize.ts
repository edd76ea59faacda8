/** Decisions: the request's facts, the principal's policies and the resource's own side, put to the pure evaluator. */
import { Fault } from '../domain/faults.ts';
import { parseRepositoryArn } from '../domain/names.ts';
import { denialMessage, evaluate } from '../policy/policy.ts';
import type { AccessRequest, Decision, NamedPolicy } from '../policy/policy.ts';
import type { AccessCheck } from '../protocol/protocol.ts';
import {
  findAccessKey,
  findPolicy,
  findUser,
  listPolicyTags,
  listUserTags,
  prepareFindRepository,
} from '../store/store.ts';
import type { Store, UserRecord } from '../store/store.ts';
import { readPolicyArn, rootArn, userArn } from './arns.ts';
import type { Identity, Principal, RequestFacts, ResourceSide } from './identity.ts';
import type { LoadedPrincipal, Principals } from './principals.ts';
import { registryPolicyFor, type RegistryRules } from './registries.ts';

/** The resource of a check with all that is stored about it. */
interface Resource extends ResourceSide {
  readonly arn: string;
  /** IAM users: their permissions boundary */
  readonly boundaryArn?: string | undefined;
}

const NO_TAGS: ReadonlyMap<string, string> = new Map();
const USER_ARN = /^arn:aws:iam::([0-9]{12}):user\/([^/*?]+)$/;
const ACCESS_KEY_ARN = /^arn:aws:iam::([0-9]{12}):access-key\/([A-Za-z0-9_]+)$/;

export function createAuthorizer({
  store,
  principals,
  registryRules,
  organizationId,
}: {
  readonly store: Store;
  readonly principals: Principals;
  readonly registryRules: (registry: { account: string; region: string }) => Promise<RegistryRules>;
  readonly organizationId: string | undefined;
}): Pick<Identity, 'decide' | 'authorize'> {
  const findRepository = prepareFindRepository(store);

  async function loadedOf(principal: Principal): Promise<LoadedPrincipal> {
    const loaded = principals.loaded(principal) ?? (await principals.find(principal.accessKeyId));
    if (loaded === undefined) {
      throw new Fault(
        'UnrecognizedClientException',
        'The security token included in the request is invalid.',
      );
    }
    return loaded;
  }

  async function readUser(user: UserRecord): Promise<Resource> {
    const tags = await listUserTags(store.read, user.id);
    return {
      arn: userArn(user),
      account: user.account,
      policy: undefined,
      tags: new Map(tags.map(({ key, value }) => [key, value])),
      boundaryArn: user.boundaryArn,
    };
  }

  /**
   * What is stored about a resource. IAM checks name a user by `user/{name}` and a key by `access-key/{id}`: the user's
   * path and the key's owner are looked up here; what does not exist is judged as it was named, so nothing is revealed.
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
    if (!arn.startsWith('arn:aws:iam:')) return plain(arn.split(':')[4] || caller);
    const [, userAccount, userName] = USER_ARN.exec(arn) ?? [];
    if (userAccount !== undefined && userName !== undefined && action !== 'iam:CreateUser') {
      const user = await findUser(store.read, userAccount, userName);
      return user === undefined ? plain(userAccount) : await readUser(user);
    }
    const [, keyAccount, keyId] = ACCESS_KEY_ARN.exec(arn) ?? [];
    if (keyAccount !== undefined && keyId !== undefined) {
      const key = await findAccessKey(store.read, keyId);
      if (key?.account !== keyAccount)
        return { ...plain(keyAccount), arn: `arn:aws:iam::${keyAccount}:user/*` };
      return key.user === undefined
        ? { ...plain(keyAccount), arn: rootArn(keyAccount) }
        : await readUser(key.user);
    }
    return await readPolicySide(arn, action, plain, caller);
  }

  async function readPolicySide(
    arn: string,
    action: string,
    plain: (account: string) => Resource,
    caller: string,
  ): Promise<Resource> {
    const named = readPolicyArn(arn);
    if (named === undefined) return plain(arn.split(':')[4] || caller);
    // AWS's own policies: everybody may be allowed to look, only AWS can change them.
    if (named.account === 'aws') return plain(/^iam:(Get|List)/.test(action) ? caller : 'aws');
    const policy = await findPolicy(store.read, arn);
    if (policy === undefined || action === 'iam:CreatePolicy') return plain(named.account);
    const tags = await listPolicyTags(store.read, policy.id);
    return { ...plain(named.account), tags: new Map(tags.map(({ key, value }) => [key, value])) };
  }

  /** Policies attached to the resource: the repository's own, and that of its registry (ecr-api.md §14.2). */
  async function attachedPolicies(
    { kind, account }: Principal['caller'],
    action: string,
    region: string,
    resource: Resource,
  ): Promise<NamedPolicy[]> {
    const attached: NamedPolicy[] = [];
    if (resource.policy !== undefined)
      attached.push({ policy: principals.compile(resource.policy), name: 'repository policy' });
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
    principal: Principal,
    check: AccessCheck,
    facts: RequestFacts,
    side: ResourceSide | undefined,
  ): Promise<{ request: AccessRequest; decision: Decision }> {
    const loaded = await loadedOf(principal);
    const resource: Resource =
      side === undefined ? await readResource(principal.account, check) : { ...side, arn: check.resource };
    const request: AccessRequest = {
      caller: loaded.principal.caller,
      action: check.action,
      resource: resource.arn,
      resourceAccount: resource.account,
      context: contextOf(loaded, check, facts, resource, organizationId),
    };
    const attached = await attachedPolicies(request.caller, check.action, facts.region, resource);
    const decision = evaluate(request, {
      identity: loaded.identityPolicies,
      boundary: loaded.boundary,
      resource: attached.length === 0 ? undefined : attached,
    });
    return { request, decision };
  }

  return {
    async decide(principal, check, facts, side) {
      return (await judge(principal, check, facts, side)).decision;
    },
    async authorize(principal, checks, facts, side) {
      for (const check of checks) {
        const { request, decision } = await judge(principal, check, facts, side);
        if (decision.allowed) continue;
        const shown = check.shownAs === undefined ? request : { ...request, resource: check.shownAs };
        throw new Fault('AccessDeniedException', denialMessage(shown, decision));
      }
    },
  };
}

/** Condition keys of one request, lower-cased (iam-sts.md §3.9). */
function contextOf(
  loaded: LoadedPrincipal,
  check: AccessCheck,
  facts: RequestFacts,
  resource: Resource,
  organizationId: string | undefined,
): ReadonlyMap<string, string | readonly string[]> {
  const context = new Map<string, string | readonly string[]>(loaded.conditionKeys);
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
    context.set(`${service}:resourcetag/${lower}`, value);
  }
  if (resource.boundaryArn !== undefined) context.set('iam:permissionsboundary', resource.boundaryArn);
  for (const [key, value] of check.keys ?? []) context.set(key, value);
  return context;
}
