/** Where an image reference leads, step by step, and who may pull what is there. */
import { Fault } from '../domain/faults.ts';
import {
  isAccountId,
  parseDigest,
  parseImageTag,
  parseRepositoryName,
  repositoryArn,
  type RepositoryAddress,
} from '../domain/names.ts';
import type * as berth from '../model/berth-types.ts';
import { compilePolicy, principalsNamed } from '../policy/policy.ts';
import type { Operation, OperationContext } from '../protocol/protocol.ts';
import {
  digestsOfTags,
  imagesByDigest,
  pageRoles,
  pageUsers,
  prepareFindRepository,
} from '../store/store.ts';
import type { NamedPage, RoleRecord, Store, StoredRepository, UserRecord } from '../store/store.ts';
import { roleArn, rootArn, userArn } from './arns.ts';
import { ownSideOf, recordDecision } from './explain-decisions.ts';
import { foreignSubject, roleSubject, userSubject } from './explain-subjects.ts';
import type { Identity, Principal, Subject } from './identity.ts';

export interface ImageServices {
  readonly store: Store;
  readonly identity: Identity;
  /**
   * The registry a host names by its form; undefined when the name says nothing and the token's decides.
   *
   * @throws Fault RegistryNotResolved
   */
  scopeOfHost(host: string): { readonly account: string; readonly region: string } | undefined;
}

type Context = OperationContext<Principal>;

interface Reference {
  readonly host: string;
  readonly name: string;
  readonly tag: string | undefined;
  readonly digest: string | undefined;
}

/** An image reference that leads somewhere, or why it does not. */
type Resolution =
  | { readonly resolved: false; readonly host?: string; readonly reason: string }
  | {
      readonly resolved: true;
      readonly reference: Reference;
      readonly address: RepositoryAddress;
      readonly scopeFrom: 'host' | 'caller';
    };

/** What a pull asks, in its order. */
const PULL_ACTIONS = ['ecr:GetAuthorizationToken', 'ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'];
const PAGE_SIZE = 50;
/** Principals a repository policy names; more than its size allows to matter. */
const EXTERNAL_MAX = 100;

export function explainImage(
  services: ImageServices,
): Operation<Principal, berth.ExplainImageRequest, berth.ExplainImageResponse> {
  const findRepository = prepareFindRepository(services.store);
  return {
    access({ imageUri }, context) {
      const found = resolve(services, imageUri, context);
      // In another account's registry only one's own principals are explained.
      const own = found.resolved && found.address.account === context.caller.account;
      return [{ action: 'berth:ExplainImage', resource: own ? repositoryArn(found.address) : '*' }];
    },
    async run(input, context) {
      const { imageUri } = input;
      const found = resolve(services, imageUri, context);
      if (!found.resolved) return { imageUri, principals: [], externalPrincipals: [], ...found };
      const { address, reference, scopeFrom } = found;
      const answer = {
        imageUri,
        host: reference.host,
        resolved: true,
        account: address.account,
        region: address.region,
        scopeFrom,
        repositoryName: address.name,
        repositoryArn: repositoryArn(address),
        ...(await pagePullers(services, address, input, context)),
      };
      if (address.account !== context.caller.account) {
        const reason = `The registry is another account's. What it holds is theirs to see.`;
        return { ...answer, reason, externalPrincipals: [] };
      }
      const repository = await findRepository(address);
      return {
        ...answer,
        ...(await describeImage(services.store, repository, reference)),
        externalPrincipals:
          input.nextToken === undefined
            ? await listExternal(services, address, repository?.policy, context)
            : [],
      };
    },
  };
}

/** `host[:port]/name[:tag][@digest]`; what follows docker's rules and is not ECR's is said in words. */
function resolve(services: ImageServices, imageUri: string, { caller, region }: Context): Resolution {
  const slash = imageUri.indexOf('/');
  const host = imageUri.slice(0, Math.max(slash, 0));
  if (!/[.:]/.test(host) && host !== 'localhost') {
    const reason = `"${imageUri}" begins with no registry host, so docker takes it for Docker Hub's.`;
    return { resolved: false, reason };
  }
  const [, name = '', tag, digest] =
    /^([^:@]+)(?::([^@]*))?(?:@(.*))?$/.exec(imageUri.slice(slash + 1)) ?? [];
  if (parseRepositoryName(name) === undefined) {
    return { resolved: false, host, reason: `"${name}" is no repository name.` };
  }
  if (tag !== undefined && parseImageTag(tag) === undefined) {
    return { resolved: false, host, reason: `"${tag}" is no tag.` };
  }
  if (digest !== undefined && parseDigest(digest) === undefined) {
    return { resolved: false, host, reason: `"${digest}" is no digest.` };
  }
  const reference = { host, name, tag, digest };
  try {
    const scope = services.scopeOfHost(host);
    return scope === undefined
      ? {
          resolved: true,
          reference,
          scopeFrom: 'caller',
          address: { account: caller.account, region, name },
        }
      : { resolved: true, reference, scopeFrom: 'host', address: { ...scope, name } };
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'RegistryNotResolved') throw error;
    return { resolved: false, host, reason: whyUnresolved(host) };
  }
}

function whyUnresolved(host: string): string {
  const [, account, region] = /^([^.]*)\.dkr[.-]ecr(?:-fips)?\.([^.:]+)/.exec(host) ?? [];
  if (account === undefined || region === undefined) {
    return `${host} is not of the form {account}.dkr.ecr.{region}.{domain}.`;
  }
  return isAccountId(account)
    ? `${host} names the region ${region}, which this server does not serve.`
    : `${host} begins with "${account}", which is no account: twelve digits.`;
}

async function describeImage(
  store: Store,
  repository: StoredRepository | undefined,
  { tag, digest }: Reference,
): Promise<
  Pick<berth.ExplainImageResponse, 'repositoryExists' | 'imageTag' | 'imageDigest' | 'imageExists'>
> {
  if (repository === undefined) return { repositoryExists: false };
  // As docker: a digest decides, the tag beside it is decoration; with neither it is latest.
  const name = digest === undefined ? (tag ?? 'latest') : tag;
  const wanted = digest ?? (await digestsOfTags(store.read, repository.id, [name ?? ''])).get(name ?? '');
  const images = wanted === undefined ? undefined : await imagesByDigest(store.read, repository.id, [wanted]);
  return {
    repositoryExists: true,
    ...(name !== undefined && { imageTag: name }),
    ...(wanted !== undefined && { imageDigest: wanted }),
    imageExists: images !== undefined && images.size > 0,
  };
}

/** Users, then roles of the caller's account, by name. */
async function pagePullers(
  services: ImageServices,
  address: RepositoryAddress,
  { maxResults = PAGE_SIZE, nextToken }: berth.ExplainImageRequest,
  context: Context,
): Promise<Pick<berth.ExplainImageResponse, 'principals' | 'nextToken'>> {
  const { read } = services.store;
  const { account } = context.caller;
  const [, kind = 'user', last] = /^(user|role):(.+)$/.exec(nextToken ?? '') ?? [];
  if (nextToken !== undefined && last === undefined) {
    throw new Fault('ValidationException', 'The nextToken is not one of this operation.');
  }
  const pageOf = (after: string | undefined, limit: number): NamedPage => ({ last: after, limit });
  const users = kind === 'user' ? await pageUsers(read, account, pageOf(last, maxResults + 1)) : [];
  const left = maxResults + 1 - users.length;
  const roles =
    left > 0 ? await pageRoles(read, account, pageOf(kind === 'role' ? last : undefined, left)) : [];
  const all: readonly (readonly ['user', UserRecord] | readonly ['role', RoleRecord])[] = [
    ...users.map((user) => ['user', user] as const),
    ...roles.map((role) => ['role', role] as const),
  ];
  const page = all.slice(0, maxResults);
  const principals: berth.PullAccess[] = [];
  for (const [type, record] of page) {
    const subject =
      type === 'user'
        ? await userSubject(services.store, record)
        : await roleSubject(services.store, record, context.now);
    const arn = type === 'user' ? userArn(record) : roleArn(record);
    principals.push(await judgePull(services, { arn, subject, actions: PULL_ACTIONS }, address, context));
  }
  const end = all.length > maxResults ? page.at(-1) : undefined;
  return { principals, ...(end && { nextToken: `${end[0]}:${end[1].name.toLowerCase()}` }) };
}

/** The first action of a pull that is refused, or what allows the last. */
async function judgePull(
  { identity }: ImageServices,
  {
    arn,
    subject,
    actions,
    foreign = false,
  }: {
    readonly arn: string;
    readonly subject: Subject;
    readonly actions: readonly string[];
    readonly foreign?: boolean;
  },
  address: RepositoryAddress,
  context: Context,
): Promise<berth.PullAccess> {
  const viewer = context.caller.account;
  let access: berth.PullAccess = { principal: arn, mayPull: false, policyType: '' };
  for (const action of actions) {
    const resource = action === 'ecr:GetAuthorizationToken' ? '*' : repositoryArn(address);
    const { request, decision } = await identity.judge(subject, { action, resource }, context);
    const recorded = recordDecision(request, decision);
    const record = foreign ? ownSideOf(recorded) : recorded;
    const side = ['resource', 'resource-control'].includes(record.policyType) ? address.account : viewer;
    access = {
      principal: arn,
      mayPull: record.allowed,
      policyType: record.policyName === 'registry policy' ? 'registry' : record.policyType,
      ...(side === viewer && {
        ...(record.policyName !== undefined && { policyName: record.policyName }),
        ...(record.policyArn !== undefined && { policyArn: record.policyArn }),
        ...(record.statementSid !== undefined && { statementSid: record.statementSid }),
      }),
      ...(!record.allowed && { refusedAction: action }),
    };
    if (!record.allowed) break;
  }
  return access;
}

/** Whom the repository's policy names outside its account; whether their own account lets them is not known here. */
async function listExternal(
  services: ImageServices,
  address: RepositoryAddress,
  policy: string | undefined,
  context: Context,
): Promise<berth.PullAccess[]> {
  if (policy === undefined) return [];
  const named = new Map<string, string>();
  for (const { type, value, form, account } of principalsNamed(compilePolicy(policy))) {
    if (type !== 'AWS' || named.size >= EXTERNAL_MAX) continue;
    // Everybody: shown as somebody of an account that is not there.
    if (form === 'wildcard') named.set('*', 'anyone');
    else if (account !== undefined && account !== address.account) named.set(value, account);
  }
  const accesses: berth.PullAccess[] = [];
  for (const [value, account] of named) {
    const arn = value === '*' ? '*' : /^[0-9]{12}$/.test(value) ? rootArn(account) : value;
    const subject = foreignSubject(arn, account);
    const puller = { arn: value, subject, actions: PULL_ACTIONS.slice(1), foreign: true };
    accesses.push(await judgePull(services, puller, address, context));
  }
  return accesses;
}
