/**
 * What users, groups and roles have in common: inline policies, attachments, tags, a permissions boundary, names that are
 * unique ignoring case. Messages: iam-sts.md §6.4.
 */
import { Fault } from '../domain/faults.ts';
import { policySizeOf } from '../policy/policy.ts';
import type { Reader, Tx } from './transaction.ts';

export type OwnerKind = 'user' | 'group' | 'role';

/** Names a user, group or role of an account, by its exact name. */
export interface OwnerReference {
  readonly kind: OwnerKind;
  readonly account: string;
  readonly name: string;
}

/** What can be tagged: by name in an account, or by ARN. */
export type TaggedReference =
  | { readonly kind: 'user' | 'role' | 'instance-profile'; readonly account: string; readonly name: string }
  | { readonly kind: 'policy' | 'oidc-provider'; readonly arn: string };

export interface TagRecord {
  readonly key: string;
  readonly value: string;
}

const NAMED_TABLES = {
  user: 'iam_user',
  group: 'iam_group',
  role: 'iam_role',
  'instance-profile': 'iam_instance_profile',
} as const;
type NamedKind = keyof typeof NAMED_TABLES;

const QUOTAS = {
  user: 'UsersPerAccount',
  group: 'GroupsPerAccount',
  role: 'RolesPerAccount',
  'instance-profile': 'InstanceProfilesPerAccount',
} as const;
const WORDS = { user: 'User', group: 'Group', role: 'Role', 'instance-profile': 'Instance Profile' } as const;

/** A user, group, role or instance profile that is not there. */
export function noSuchNamed(kind: NamedKind, name: string): Fault {
  return new Fault(
    'NoSuchEntity',
    kind === 'instance-profile'
      ? `Instance Profile ${name} cannot be found.`
      : `The ${kind} with name ${name} cannot be found.`,
  );
}

export const noSuchUser = (name: string): Fault => noSuchNamed('user', name);
export const noSuchInlinePolicy = (kind: OwnerKind, name: string): Fault =>
  new Fault('NoSuchEntity', `The ${kind} policy with name ${name} cannot be found.`);
export const noSuchPolicy = (arn: string): Fault => new Fault('NoSuchEntity', `Policy ${arn} was not found.`);
export const noSuchProvider = (arn: string): Fault =>
  new Fault('NoSuchEntity', `OpenIDConnect Provider not found for arn ${arn}`);
export const policyNotAttachable = (arn: string): Fault =>
  new Fault('NoSuchEntity', `Policy ${arn} does not exist or is not attachable.`);
export const quotaExceeded = (quota: string, max: number): Fault =>
  new Fault('LimitExceeded', `Cannot exceed quota for ${quota}: ${max}`);
export const mustFirst = (what: string): Fault =>
  new Fault('DeleteConflict', `Cannot delete entity, must ${what} first.`);
export const protectedRole = (name: string): Fault =>
  new Fault(
    'UnmodifiableEntity',
    `Cannot perform the operation on the protected role '${name}' - this role is only modifiable by AWS`,
  );
const tooManyTags = (): Fault =>
  new Fault('LimitExceeded', 'The number of tags has reached the maximum limit.');

/** INVARIANT: every write that can change what a principal is or may do calls this, so that caches know. */
export async function bumpIdentity(tx: Tx): Promise<void> {
  await tx
    .insertInto('revision')
    .values({ subject: 'identity', value: 1 })
    .onConflict((on) => on.column('subject').doUpdateSet((q) => ({ value: q('revision.value', '+', 1) })))
    .execute();
}

/** The id under an exact name. @throws Fault NoSuchEntity */
export async function requireNamed(
  tx: Reader,
  { kind, account, name }: { readonly kind: NamedKind; readonly account: string; readonly name: string },
): Promise<string> {
  const row = await tx
    .selectFrom(NAMED_TABLES[kind])
    .select('id')
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .where('name', '=', name)
    .executeTakeFirst();
  if (row === undefined) throw noSuchNamed(kind, name);
  return row.id;
}

/** As {@link requireNamed}. @throws Fault UnmodifiableEntity for service-linked roles */
async function requireModifiable(tx: Tx, owner: Parameters<typeof requireNamed>[1]): Promise<string> {
  const id = await requireNamed(tx, owner);
  if (owner.kind !== 'role') return id;
  const role = await tx.selectFrom('iam_role').select('service').where('id', '=', id).executeTakeFirst();
  if (role?.service != null) throw protectedRole(owner.name);
  return id;
}

/** Names are unique ignoring case, whatever the path. @throws Fault EntityAlreadyExists */
export async function requireNameFree(
  tx: Tx,
  kind: NamedKind,
  account: string,
  name: string,
  except?: string,
): Promise<void> {
  const taken = await tx
    .selectFrom(NAMED_TABLES[kind])
    .select('id')
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .executeTakeFirst();
  if (taken === undefined || taken.id === except) return;
  const what = kind === 'instance-profile' ? `${WORDS[kind]} ${name}` : `${WORDS[kind]} with name ${name}`;
  throw new Fault('EntityAlreadyExists', `${what} already exists.`);
}

/** @throws Fault LimitExceeded when the account has `max` of the kind already */
export async function requireRoom(tx: Tx, kind: NamedKind, account: string, max: number): Promise<void> {
  if ((await countNamed(tx, kind, account)) >= max) throw quotaExceeded(QUOTAS[kind], max);
}

export async function countNamed(read: Reader, kind: NamedKind, account: string): Promise<number> {
  const { count } = await read
    .selectFrom(NAMED_TABLES[kind])
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', account)
    .executeTakeFirstOrThrow();
  return Number(count);
}

/** Rows that hang on an owner. */
export async function countOwned(
  tx: Reader,
  table: 'iam_inline_policy' | 'iam_attachment' | 'iam_tag',
  ownerId: string,
): Promise<number> {
  const { count } = await tx
    .selectFrom(table)
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('owner_id', '=', ownerId)
    .executeTakeFirstOrThrow();
  return Number(count);
}

/** The first two things AWS wants gone before a user, group or role. @throws Fault DeleteConflict */
export async function requireNoPolicies(tx: Tx, ownerId: string): Promise<void> {
  if ((await countOwned(tx, 'iam_inline_policy', ownerId)) > 0) throw mustFirst('delete policies');
  if ((await countOwned(tx, 'iam_attachment', ownerId)) > 0) throw mustFirst('detach all policies');
}

/** Refuses an ARN that is neither AWS-managed (`managed`, data in the code) nor a policy of the account. */
export async function requireAttachable(
  tx: Tx,
  account: string,
  policyArn: string,
  managed: boolean,
): Promise<void> {
  if (managed) return;
  const policy = await tx
    .selectFrom('iam_policy')
    .select('id')
    .where('arn', '=', policyArn)
    .where('account', '=', account)
    .executeTakeFirst();
  if (policy === undefined) throw policyNotAttachable(policyArn);
}

/** Overwrites silently. The quota is over all inline policies of the owner. @throws Fault NoSuchEntity, LimitExceeded */
async function putInlinePolicy(
  tx: Tx,
  input: {
    readonly owner: OwnerReference;
    readonly policyName: string;
    readonly document: string;
    readonly charactersMax: number;
  },
): Promise<void> {
  const { owner, policyName, document, charactersMax } = input;
  const id = await requireModifiable(tx, owner);
  const others = await tx
    .selectFrom('iam_inline_policy')
    .select('document')
    .where('owner_id', '=', id)
    .where('name', '!=', policyName)
    .execute();
  const size = others.reduce((sum, other) => sum + policySizeOf(other.document), policySizeOf(document));
  if (size > charactersMax) {
    throw new Fault(
      'LimitExceeded',
      `Maximum policy size of ${charactersMax} bytes exceeded for ${owner.kind} ${owner.name}`,
    );
  }
  await tx
    .insertInto('iam_inline_policy')
    .values({ owner_id: id, name: policyName, document })
    .onConflict((on) => on.columns(['owner_id', 'name']).doUpdateSet({ document }))
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity */
async function deleteInlinePolicy(
  tx: Tx,
  { owner, policyName }: { readonly owner: OwnerReference; readonly policyName: string },
): Promise<void> {
  const id = await requireModifiable(tx, owner);
  const deleted = await tx
    .deleteFrom('iam_inline_policy')
    .where('owner_id', '=', id)
    .where('name', '=', policyName)
    .returning('name')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchInlinePolicy(owner.kind, policyName);
  await bumpIdentity(tx);
}

const ATTACHED_QUOTAS = {
  user: 'PoliciesPerUser',
  group: 'PoliciesPerGroup',
  role: 'PoliciesPerRole',
} as const;

/** Attaching twice is a success. @throws Fault NoSuchEntity, LimitExceeded */
async function attachPolicy(
  tx: Tx,
  input: {
    readonly owner: OwnerReference;
    readonly policyArn: string;
    readonly managed: boolean;
    readonly now: number;
    readonly attachedMax: number;
  },
): Promise<void> {
  const { owner, policyArn, managed, now, attachedMax } = input;
  const id = await requireModifiable(tx, owner);
  await requireAttachable(tx, owner.account, policyArn, managed);
  const inserted = await tx
    .insertInto('iam_attachment')
    .values({ owner_id: id, policy_arn: policyArn, account: owner.account, attached_at: now })
    .onConflict((on) => on.columns(['owner_id', 'policy_arn']).doNothing())
    .returning('policy_arn')
    .executeTakeFirst();
  if (inserted === undefined) return;
  if ((await countOwned(tx, 'iam_attachment', id)) > attachedMax) {
    throw quotaExceeded(ATTACHED_QUOTAS[owner.kind], attachedMax);
  }
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, also when the policy is not attached */
async function detachPolicy(
  tx: Tx,
  { owner, policyArn }: { readonly owner: OwnerReference; readonly policyArn: string },
): Promise<void> {
  const id = await requireModifiable(tx, owner);
  const deleted = await tx
    .deleteFrom('iam_attachment')
    .where('owner_id', '=', id)
    .where('policy_arn', '=', policyArn)
    .returning('policy_arn')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchPolicy(policyArn);
  await bumpIdentity(tx);
}

/** `policyArn` undefined takes the boundary away. @throws Fault NoSuchEntity */
async function setBoundary(
  tx: Tx,
  input: {
    readonly owner: OwnerReference & { readonly kind: 'user' | 'role' };
    readonly policyArn: string | undefined;
    readonly managed: boolean;
  },
): Promise<void> {
  const { owner, policyArn, managed } = input;
  const id = await requireModifiable(tx, owner);
  if (policyArn !== undefined) await requireAttachable(tx, owner.account, policyArn, managed);
  await tx
    .updateTable(NAMED_TABLES[owner.kind])
    .set({ boundary_arn: policyArn ?? null })
    .where('id', '=', id)
    .execute();
  await bumpIdentity(tx);
}

async function requireTagged(tx: Tx, subject: TaggedReference): Promise<string> {
  if (!('arn' in subject)) return await requireModifiable(tx, subject);
  const { kind, arn } = subject;
  const row = await tx
    .selectFrom(kind === 'policy' ? 'iam_policy' : 'iam_oidc_provider')
    .select('id')
    .where('arn', '=', arn)
    .executeTakeFirst();
  if (row === undefined) throw kind === 'policy' ? noSuchPolicy(arn) : noSuchProvider(arn);
  return row.id;
}

/** For what is being made: the first tags of `ownerId`. */
export async function insertTags(tx: Tx, ownerId: string, tags: readonly TagRecord[]): Promise<void> {
  if (tags.length === 0) return;
  await tx
    .insertInto('iam_tag')
    .values(tags.map(({ key, value }) => ({ owner_id: ownerId, key_lower: key.toLowerCase(), key, value })))
    .onConflict((on) =>
      on
        .columns(['owner_id', 'key_lower'])
        .doUpdateSet((q) => ({ key: q.ref('excluded.key'), value: q.ref('excluded.value') })),
    )
    .execute();
}

export async function deleteTags(tx: Tx, ownerId: string): Promise<void> {
  await tx.deleteFrom('iam_tag').where('owner_id', '=', ownerId).execute();
}

/** Adds tags; a key that differs only in case is replaced. @throws Fault NoSuchEntity, LimitExceeded */
async function tag(
  tx: Tx,
  input: {
    readonly subject: TaggedReference;
    readonly tags: readonly TagRecord[];
    readonly tagsMax: number;
  },
): Promise<void> {
  const id = await requireTagged(tx, input.subject);
  if (input.tags.length === 0) return;
  await insertTags(tx, id, input.tags);
  if ((await countOwned(tx, 'iam_tag', id)) > input.tagsMax) throw tooManyTags();
  await bumpIdentity(tx);
}

/** Absent keys are fine. @throws Fault NoSuchEntity */
async function untag(
  tx: Tx,
  input: { readonly subject: TaggedReference; readonly keys: readonly string[] },
): Promise<void> {
  const id = await requireTagged(tx, input.subject);
  if (input.keys.length === 0) return;
  const keys = input.keys.map((key) => key.toLowerCase());
  await tx.deleteFrom('iam_tag').where('owner_id', '=', id).where('key_lower', 'in', keys).execute();
  await bumpIdentity(tx);
}

/** Ordered by key, ignoring case. At most 50. */
export async function listTags(read: Reader, ownerId: string): Promise<TagRecord[]> {
  return await read
    .selectFrom('iam_tag')
    .select(['key', 'value'])
    .where('owner_id', '=', ownerId)
    .orderBy('key_lower')
    .execute();
}

export async function findInlinePolicy(
  read: Reader,
  ownerId: string,
  name: string,
): Promise<string | undefined> {
  const row = await read
    .selectFrom('iam_inline_policy')
    .select('document')
    .where('owner_id', '=', ownerId)
    .where('name', '=', name)
    .executeTakeFirst();
  return row?.document;
}

/** All inline policies by name. Together at most 10,240 characters. */
export async function listInlinePolicies(
  read: Reader,
  ownerId: string,
): Promise<{ name: string; document: string }[]> {
  return await read
    .selectFrom('iam_inline_policy')
    .select(['name', 'document'])
    .where('owner_id', '=', ownerId)
    .orderBy('name')
    .execute();
}

/** Names of inline policies after `last`, at most `limit`. */
export async function pageInlinePolicies(
  read: Reader,
  ownerId: string,
  last: string | undefined,
  limit: number,
): Promise<string[]> {
  let query = read
    .selectFrom('iam_inline_policy')
    .select('name')
    .where('owner_id', '=', ownerId)
    .orderBy('name')
    .limit(limit);
  if (last !== undefined) query = query.where('name', '>', last);
  return (await query.execute()).map(({ name }) => name);
}

/** ARNs of the policies attached to an owner, ordered. At most some tens. */
export async function listAttachments(read: Reader, ownerId: string): Promise<string[]> {
  const rows = await read
    .selectFrom('iam_attachment')
    .select('policy_arn')
    .where('owner_id', '=', ownerId)
    .orderBy('policy_arn')
    .execute();
  return rows.map((row) => row.policy_arn);
}

export const ownerTransactions = {
  'owner.putPolicy': putInlinePolicy,
  'owner.deletePolicy': deleteInlinePolicy,
  'owner.attachPolicy': attachPolicy,
  'owner.detachPolicy': detachPolicy,
  'owner.setBoundary': setBoundary,
  'iam.tag': tag,
  'iam.untag': untag,
} as const;
