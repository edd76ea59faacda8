/** Accounts and their principals: the look-ups of authentication and the pages of the IAM listings. */
import { sql } from 'kysely';
import { accountTransactions } from './identity-accounts.ts';
import { keyTransactions } from './identity-keys.ts';
import type { AccessKeyRecord } from './identity-keys.ts';
import { listAttachments, listInlinePolicies, listTags, ownerTransactions } from './identity-owners.ts';
import type { OwnerKind, TagRecord } from './identity-owners.ts';
import { POLICY_COLUMNS, policyOf, policyTransactions } from './identity-policies.ts';
import type { PolicyRecord, PolicyVersionRecord } from './identity-policies.ts';
import { providerTransactions } from './identity-providers.ts';
import { profileOf, roleOf, roleTransactions } from './identity-roles.ts';
import type { InstanceProfileRecord, RoleRecord } from './identity-roles.ts';
import { groupOf, listGroupsOf, USER_COLUMNS, userOf, userTransactions } from './identity-users.ts';
import type { GroupRecord, UserRecord } from './identity-users.ts';
import type { Store } from './store.ts';
import type { Reader, Transaction } from './transaction.ts';

export {
  findAccountCreation,
  findAlias,
  findCredentialReport,
  findLoginProfile,
  findPasswordPolicy,
  findSessionToken,
  listAccounts,
  noSuchLoginProfile,
  noSuchPasswordPolicy,
} from './identity-accounts.ts';
export type { AccountRecord, LoginProfileRecord } from './identity-accounts.ts';
export { noSuchVersion } from './identity-policies.ts';
export type { PolicyRecord, PolicyVersionRecord } from './identity-policies.ts';
export { noSuchAccessKey } from './identity-keys.ts';
export type { AccessKeyRecord, KeyUse } from './identity-keys.ts';
export {
  countNamed,
  findInlinePolicy,
  listAttachments,
  listInlinePolicies,
  listTags,
  noSuchInlinePolicy,
  noSuchNamed,
  noSuchPolicy,
  noSuchProvider,
  noSuchUser,
  pageInlinePolicies,
  policyNotAttachable,
  quotaExceeded,
} from './identity-owners.ts';
export type { OwnerKind, OwnerReference, TaggedReference, TagRecord } from './identity-owners.ts';
export { findProvider, listProviders } from './identity-providers.ts';
export type { ProviderRecord } from './identity-providers.ts';
export {
  findInstanceProfile,
  findRole,
  findRoleById,
  hasDeletionTask,
  listProfilesOf,
} from './identity-roles.ts';
export type { InstanceProfileRecord, RoleRecord } from './identity-roles.ts';
export { findGroup, listGroupsOf, pageMembers } from './identity-users.ts';
export type { GroupRecord, UserRecord } from './identity-users.ts';

export const identityTransactions = {
  ...userTransactions,
  ...ownerTransactions,
  ...roleTransactions,
  ...providerTransactions,
  ...accountTransactions,
  ...keyTransactions,
  ...policyTransactions,
} as const satisfies Record<string, Transaction<never, unknown>>;

/** The counter that every identity write moves: the one read that tells whether cached principals are current. */
export function prepareIdentityRevision(store: Pick<Store, 'prepare'>): () => Promise<number> {
  const query = store.prepare<{ value: number }>(
    `select value from revision where subject = 'identity'`,
    'keep',
  );
  return async () => (await query())[0]?.value ?? 0;
}

/** An access key with its owner. `secret` is sealed. */
export interface StoredAccessKey extends AccessKeyRecord {
  readonly account: string;
  readonly secret: Uint8Array;
  readonly lastUsed: { readonly at: number; readonly service: string; readonly region: string } | undefined;
  /** undefined: root credentials */
  readonly user: UserRecord | undefined;
}

/** The key under an id, whatever its status. */
export async function findAccessKey(read: Reader, id: string): Promise<StoredAccessKey | undefined> {
  const key = await read.selectFrom('iam_access_key').selectAll().where('id', '=', id).executeTakeFirst();
  if (key === undefined) return undefined;
  const user = key.user_id === null ? undefined : await findUserById(read, key.user_id);
  // The user went between the two reads, and its keys with it.
  if (key.user_id !== null && user === undefined) return undefined;
  const { last_used_at: at, last_used_service: service, last_used_region: region } = key;
  return {
    id: key.id,
    account: key.account,
    secret: key.secret,
    status: key.status,
    createdAt: key.created_at,
    lastUsed: at === null || service === null || region === null ? undefined : { at, service, region },
    user,
  };
}

/** A policy as text. AWS-managed ones have no document here: theirs is data in the code. */
export interface GrantedPolicy {
  readonly kind: 'inline' | 'managed';
  readonly name: string;
  readonly arn: string | undefined;
  readonly document: string | undefined;
  /** of whom it is: the principal itself or one of its groups */
  readonly owner: { readonly kind: OwnerKind; readonly name: string };
}

/** What a user, group or role is granted, and what bounds it. */
export interface StoredGrants {
  readonly tags: readonly TagRecord[];
  readonly policies: readonly GrantedPolicy[];
  readonly boundary: { readonly arn: string; readonly document: string | undefined } | undefined;
}

/** The grants of a user include those of its groups. */
export async function readGrants(
  read: Reader,
  kind: OwnerKind,
  owner: { readonly id: string; readonly name: string; readonly boundaryArn?: string | undefined },
): Promise<StoredGrants> {
  const { boundaryArn } = owner;
  const owners: { kind: OwnerKind; id: string; name: string }[] = [{ kind, ...owner }];
  if (kind === 'user') {
    for (const group of await listGroupsOf(read, owner.id)) owners.push({ kind: 'group', ...group });
  }
  const policies: GrantedPolicy[] = [];
  for (const each of owners) {
    const of = { kind: each.kind, name: each.name };
    for (const { name, document } of await listInlinePolicies(read, each.id)) {
      policies.push({ kind: 'inline', name, arn: undefined, document, owner: of });
    }
    for (const arn of await listAttachments(read, each.id)) {
      const name = arn.slice(arn.lastIndexOf('/') + 1);
      policies.push({ kind: 'managed', name, arn, document: undefined, owner: of });
    }
  }
  const arns = policies.flatMap(({ arn }) => arn ?? []);
  const documents = await readDefaultDocuments(
    read,
    boundaryArn === undefined ? arns : [...arns, boundaryArn],
  );
  return {
    tags: await listTags(read, owner.id),
    policies: policies.map((policy) =>
      policy.arn === undefined ? policy : { ...policy, document: documents.get(policy.arn) },
    ),
    boundary:
      boundaryArn === undefined ? undefined : { arn: boundaryArn, document: documents.get(boundaryArn) },
  };
}

/** Documents of the default versions of customer-managed policies, by ARN. */
export async function readDefaultDocuments(
  read: Reader,
  arns: readonly string[],
): Promise<Map<string, string>> {
  if (arns.length === 0) return new Map();
  const rows = await read
    .selectFrom('iam_policy as p')
    .innerJoin('iam_policy_version as v', (join) =>
      join.onRef('v.policy_id', '=', 'p.id').onRef('v.version', '=', 'p.default_version'),
    )
    .select(['p.arn', 'v.document'])
    .where('p.arn', 'in', arns)
    .execute();
  return new Map(rows.map(({ arn, document }) => [arn, document]));
}

/** By exact name: IAM names are unique ignoring case, yet found only as written. */
export async function findUser(read: Reader, account: string, name: string): Promise<UserRecord | undefined> {
  const row = await read
    .selectFrom('iam_user')
    .select(USER_COLUMNS)
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .where('name', '=', name)
    .executeTakeFirst();
  return row === undefined ? undefined : userOf(row);
}

export async function findUserById(read: Reader, id: string): Promise<UserRecord | undefined> {
  const row = await read.selectFrom('iam_user').select(USER_COLUMNS).where('id', '=', id).executeTakeFirst();
  return row === undefined ? undefined : userOf(row);
}

/** A page of a listing: names after `last`, ignoring case; only paths that start with `pathPrefix`. */
export interface NamedPage {
  readonly pathPrefix?: string | undefined;
  readonly last: string | undefined;
  readonly limit: number;
  /** only those that this policy is attached to, or bounds */
  readonly policy?: { readonly arn: string; readonly attached: boolean; readonly boundary: boolean };
}

/**
 * The page of one table. WHY the cast: the tables share the columns used here, and Kysely cannot say "any of these
 * tables"; what comes out is the rows of the table that was asked for.
 */
async function pageRows(
  read: Reader,
  table: 'iam_user' | 'iam_group' | 'iam_role' | 'iam_instance_profile',
  account: string,
  { pathPrefix, last, limit, policy }: NamedPage,
): Promise<unknown[]> {
  let query = read
    .selectFrom(table as 'iam_user')
    .selectAll()
    .where('account', '=', account)
    .orderBy('name_lower')
    .limit(limit);
  if (last !== undefined) query = query.where('name_lower', '>', last.toLowerCase());
  if (pathPrefix !== undefined && pathPrefix !== '/') {
    query = query.where(sql<boolean>`substr(path, 1, ${pathPrefix.length}) = ${pathPrefix}`);
  }
  if (policy !== undefined) {
    const boundary = policy.boundary && table !== 'iam_group';
    query = query.where((q) => {
      const attached = q(
        'id',
        'in',
        q.selectFrom('iam_attachment').select('owner_id').where('policy_arn', '=', policy.arn),
      );
      const bounds = q('boundary_arn', '=', policy.arn);
      if (policy.attached) return boundary ? q.or([attached, bounds]) : attached;
      return boundary ? bounds : q.lit(false);
    });
  }
  return await query.execute();
}

export async function pageUsers(read: Reader, account: string, page: NamedPage): Promise<UserRecord[]> {
  const rows = await pageRows(read, 'iam_user', account, page);
  return (rows as Parameters<typeof userOf>[0][]).map(userOf);
}

export async function pageGroups(read: Reader, account: string, page: NamedPage): Promise<GroupRecord[]> {
  const rows = await pageRows(read, 'iam_group', account, page);
  return (rows as Parameters<typeof groupOf>[0][]).map(groupOf);
}

export async function pageRoles(read: Reader, account: string, page: NamedPage): Promise<RoleRecord[]> {
  const rows = await pageRows(read, 'iam_role', account, page);
  return (rows as Parameters<typeof roleOf>[0][]).map(roleOf);
}

export async function pageInstanceProfiles(
  read: Reader,
  account: string,
  page: NamedPage,
): Promise<InstanceProfileRecord[]> {
  const rows = await pageRows(read, 'iam_instance_profile', account, page);
  return (rows as Parameters<typeof profileOf>[0][]).map(profileOf);
}

/** The keys of a user, oldest first. */
export async function listAccessKeys(read: Reader, userId: string): Promise<AccessKeyRecord[]> {
  const rows = await read
    .selectFrom('iam_access_key')
    .select(['id', 'status', 'created_at'])
    .where('user_id', '=', userId)
    .orderBy('created_at')
    .orderBy('id')
    .execute();
  return rows.map(({ id, status, created_at }) => ({ id, status, createdAt: created_at }));
}

/** The root credentials of an account. */
export async function listRootKeys(read: Reader, account: string): Promise<AccessKeyRecord[]> {
  const rows = await read
    .selectFrom('iam_access_key')
    .select(['id', 'status', 'created_at'])
    .where('account', '=', account)
    .where('user_id', 'is', null)
    .orderBy('id')
    .execute();
  return rows.map(({ id, status, created_at }) => ({ id, status, createdAt: created_at }));
}

export async function findPolicy(read: Reader, arn: string): Promise<PolicyRecord | undefined> {
  const row = await read
    .selectFrom('iam_policy')
    .select(POLICY_COLUMNS)
    .where('arn', '=', arn)
    .executeTakeFirst();
  return row === undefined ? undefined : policyOf(row);
}

/** All customer-managed policies of an account by name ignoring case: at most 1,500 rows without documents. */
export async function listPolicies(read: Reader, account: string): Promise<PolicyRecord[]> {
  const rows = await read
    .selectFrom('iam_policy')
    .select(POLICY_COLUMNS)
    .where('account', '=', account)
    .orderBy('name_lower')
    .execute();
  return rows.map(policyOf);
}

/** Newest first. At most 5. */
export async function listPolicyVersions(read: Reader, policyId: string): Promise<PolicyVersionRecord[]> {
  const rows = await read
    .selectFrom('iam_policy_version')
    .select(['version', 'document', 'created_at'])
    .where('policy_id', '=', policyId)
    .orderBy('version', 'desc')
    .execute();
  return rows.map(({ version, document, created_at }) => ({ version, document, createdAt: created_at }));
}

/** How often policies are attached and used as a boundary. */
export interface PolicyUses {
  readonly attached: number;
  readonly boundary: number;
}

/** Uses inside the account, by ARN; of one policy when `arn` is given. Unused policies are not in the map. */
export async function countPolicyUses(
  read: Reader,
  account: string,
  arn?: string,
): Promise<Map<string, PolicyUses>> {
  const uses = new Map<string, PolicyUses>();
  let attachments = read
    .selectFrom('iam_attachment')
    .select((q) => ['policy_arn as arn', q.fn.countAll<number | string>().as('count')])
    .where('account', '=', account)
    .groupBy('policy_arn');
  if (arn !== undefined) attachments = attachments.where('policy_arn', '=', arn);
  for (const row of await attachments.execute()) {
    uses.set(row.arn, { attached: Number(row.count), boundary: 0 });
  }
  for (const table of ['iam_user', 'iam_role'] as const) {
    let boundaries = read
      .selectFrom(table)
      .select((q) => ['boundary_arn as arn', q.fn.countAll<number | string>().as('count')])
      .where('account', '=', account)
      .where('boundary_arn', 'is not', null)
      .groupBy('boundary_arn');
    if (arn !== undefined) boundaries = boundaries.where('boundary_arn', '=', arn);
    for (const row of await boundaries.execute()) {
      if (row.arn === null) continue;
      const { attached = 0, boundary = 0 } = uses.get(row.arn) ?? {};
      uses.set(row.arn, { attached, boundary: boundary + Number(row.count) });
    }
  }
  return uses;
}

/** Counters of GetAccountSummary that are counted in the database. */
export async function countAccount(
  read: Reader,
  account: string,
): Promise<{ policies: number; policyVersions: number; providers: number; rootKeys: number }> {
  const policies = await read
    .selectFrom('iam_policy')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', account)
    .executeTakeFirstOrThrow();
  const versions = await read
    .selectFrom('iam_policy_version as v')
    .innerJoin('iam_policy as p', 'p.id', 'v.policy_id')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('p.account', '=', account)
    .executeTakeFirstOrThrow();
  const providers = await read
    .selectFrom('iam_oidc_provider')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', account)
    .executeTakeFirstOrThrow();
  return {
    policies: Number(policies.count),
    policyVersions: Number(versions.count),
    providers: Number(providers.count),
    rootKeys: (await listRootKeys(read, account)).length,
  };
}
