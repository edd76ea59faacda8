/** Accounts, users, access keys and policies: the look-ups of authentication and the pages of the IAM listings. */
import { sql } from 'kysely';
import { POLICY_COLUMNS, policyOf, policyTransactions } from './identity-policies.ts';
import type { PolicyRecord, PolicyVersionRecord } from './identity-policies.ts';
import { keyTransactions } from './identity-keys.ts';
import type { AccessKeyRecord } from './identity-keys.ts';
import { USER_COLUMNS, userOf, userTransactions } from './identity-users.ts';
import type { TagRecord, UserRecord } from './identity-users.ts';
import type { Store } from './store.ts';
import type { Reader, Transaction } from './transaction.ts';

export { noSuchPolicy, noSuchVersion } from './identity-policies.ts';
export type { PolicyRecord, PolicyVersionRecord } from './identity-policies.ts';
export { noSuchAccessKey } from './identity-keys.ts';
export type { AccessKeyRecord, KeyUse } from './identity-keys.ts';
export { noSuchUser, noSuchUserPolicy, policyNotAttachable, quotaExceeded } from './identity-users.ts';
export type { TagRecord, UserRecord } from './identity-users.ts';

export const identityTransactions = {
  ...userTransactions,
  ...keyTransactions,
  ...policyTransactions,
} as const satisfies Record<string, Transaction<never, unknown>>;

/** The counter that every identity write moves: the one read that tells whether cached principals are current. */
export function prepareIdentityRevision(store: Pick<Store, 'prepare'>): () => Promise<number> {
  const query = store.prepare<{ value: number }>(`select value from revision where subject = 'identity'`);
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
  const user =
    key.user_id === null
      ? undefined
      : await read
          .selectFrom('iam_user')
          .select(USER_COLUMNS)
          .where('id', '=', key.user_id)
          .executeTakeFirst();
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
    user: user === undefined ? undefined : userOf(user),
  };
}

/** What a user is granted, as text. AWS-managed policies have no document here: theirs is data in the code. */
export interface StoredGrants {
  readonly tags: readonly TagRecord[];
  readonly inline: readonly { readonly name: string; readonly document: string }[];
  readonly attached: readonly { readonly arn: string; readonly document: string | undefined }[];
  readonly boundary: { readonly arn: string; readonly document: string | undefined } | undefined;
}

export async function readGrants(read: Reader, user: UserRecord): Promise<StoredGrants> {
  const inline = await read
    .selectFrom('iam_user_policy')
    .select(['name', 'document'])
    .where('user_id', '=', user.id)
    .orderBy('name')
    .execute();
  const arns = await listAttachments(read, user.id);
  const documents = await defaultDocuments(
    read,
    user.boundaryArn === undefined ? arns : [...arns, user.boundaryArn],
  );
  return {
    tags: await listUserTags(read, user.id),
    inline,
    attached: arns.map((arn) => ({ arn, document: documents.get(arn) })),
    boundary:
      user.boundaryArn === undefined
        ? undefined
        : { arn: user.boundaryArn, document: documents.get(user.boundaryArn) },
  };
}

async function defaultDocuments(read: Reader, arns: readonly string[]): Promise<Map<string, string>> {
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

export async function findAccountCreation(read: Reader, account: string): Promise<number | undefined> {
  const row = await read
    .selectFrom('account')
    .select('created_at')
    .where('id', '=', account)
    .executeTakeFirst();
  return row?.created_at;
}

/** Ordered by key, ignoring case. At most 50. */
export async function listUserTags(read: Reader, userId: string): Promise<TagRecord[]> {
  return await read
    .selectFrom('iam_user_tag')
    .select(['key', 'value'])
    .where('user_id', '=', userId)
    .orderBy('key_lower')
    .execute();
}

/** A page of users by name ignoring case, after the name `last`; only paths that start with `pathPrefix`. */
export async function pageUsers(
  read: Reader,
  account: string,
  page: {
    readonly pathPrefix: string | undefined;
    readonly last: string | undefined;
    readonly limit: number;
    /** only users that this policy is attached to or bounds */
    readonly policy?: { readonly arn: string; readonly attached: boolean; readonly boundary: boolean };
  },
): Promise<UserRecord[]> {
  const { pathPrefix, last, limit, policy } = page;
  let query = read
    .selectFrom('iam_user')
    .select(USER_COLUMNS)
    .where('account', '=', account)
    .orderBy('name_lower')
    .limit(limit);
  if (last !== undefined) query = query.where('name_lower', '>', last.toLowerCase());
  if (pathPrefix !== undefined && pathPrefix !== '/') {
    query = query.where(sql<boolean>`substr(path, 1, ${pathPrefix.length}) = ${pathPrefix}`);
  }
  if (policy !== undefined) {
    query = query.where((q) => {
      const attached = q.exists(
        q
          .selectFrom('iam_user_attachment as a')
          .select('a.user_id')
          .whereRef('a.user_id', '=', 'iam_user.id')
          .where('a.policy_arn', '=', policy.arn),
      );
      const bounds = q('boundary_arn', '=', policy.arn);
      return policy.attached && policy.boundary
        ? q.or([attached, bounds])
        : policy.attached
          ? attached
          : bounds;
    });
  }
  return (await query.execute()).map(userOf);
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

export async function findUserPolicy(
  read: Reader,
  userId: string,
  name: string,
): Promise<string | undefined> {
  const row = await read
    .selectFrom('iam_user_policy')
    .select('document')
    .where('user_id', '=', userId)
    .where('name', '=', name)
    .executeTakeFirst();
  return row?.document;
}

/** Names of inline policies after `last`, at most `limit`. */
export async function pageUserPolicies(
  read: Reader,
  userId: string,
  last: string | undefined,
  limit: number,
): Promise<string[]> {
  let query = read
    .selectFrom('iam_user_policy')
    .select('name')
    .where('user_id', '=', userId)
    .orderBy('name')
    .limit(limit);
  if (last !== undefined) query = query.where('name', '>', last);
  return (await query.execute()).map(({ name }) => name);
}

/** ARNs of the policies attached to a user, ordered. At most 10. */
export async function listAttachments(read: Reader, userId: string): Promise<string[]> {
  const rows = await read
    .selectFrom('iam_user_attachment')
    .select('policy_arn')
    .where('user_id', '=', userId)
    .orderBy('policy_arn')
    .execute();
  return rows.map((row) => row.policy_arn);
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

/** Ordered by key, ignoring case. At most 50. */
export async function listPolicyTags(read: Reader, policyId: string): Promise<TagRecord[]> {
  return await read
    .selectFrom('iam_policy_tag')
    .select(['key', 'value'])
    .where('policy_id', '=', policyId)
    .orderBy('key_lower')
    .execute();
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

/** Uses by users of the account, by ARN; of one policy when `arn` is given. Unused policies are not in the map. */
export async function countPolicyUses(
  read: Reader,
  account: string,
  arn?: string,
): Promise<Map<string, PolicyUses>> {
  let attachments = read
    .selectFrom('iam_user_attachment as a')
    .innerJoin('iam_user as u', 'u.id', 'a.user_id')
    .select((q) => ['a.policy_arn as arn', q.fn.countAll<number | string>().as('count')])
    .where('u.account', '=', account)
    .groupBy('a.policy_arn');
  if (arn !== undefined) attachments = attachments.where('a.policy_arn', '=', arn);
  let boundaries = read
    .selectFrom('iam_user')
    .select((q) => ['boundary_arn as arn', q.fn.countAll<number | string>().as('count')])
    .where('account', '=', account)
    .where('boundary_arn', 'is not', null)
    .groupBy('boundary_arn');
  if (arn !== undefined) boundaries = boundaries.where('boundary_arn', '=', arn);
  const uses = new Map<string, PolicyUses>();
  for (const row of await attachments.execute()) {
    uses.set(row.arn, { attached: Number(row.count), boundary: 0 });
  }
  for (const row of await boundaries.execute()) {
    if (row.arn === null) continue;
    uses.set(row.arn, { attached: uses.get(row.arn)?.attached ?? 0, boundary: Number(row.count) });
  }
  return uses;
}
