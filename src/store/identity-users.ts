/** Writes to users, their tags, boundary, inline policies and attachments. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import { policySizeOf } from '../policy/policy.ts';
import type { Tx } from './transaction.ts';

/** A user as stored, without its tags. Times in milliseconds since the epoch. */
export interface UserRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly boundaryArn: string | undefined;
  readonly createdAt: number;
}

export interface TagRecord {
  readonly key: string;
  readonly value: string;
}

/** Names a user of an account, by its exact name. */
export interface UserReference {
  readonly account: string;
  readonly userName: string;
}

export const USER_COLUMNS = ['id', 'account', 'name', 'path', 'boundary_arn', 'created_at'] as const;

export function userOf(row: {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly boundary_arn: string | null;
  readonly created_at: number;
}): UserRecord {
  const { id, account, name, path, boundary_arn, created_at } = row;
  return { id, account, name, path, boundaryArn: boundary_arn ?? undefined, createdAt: created_at };
}

export const noSuchUser = (name: string): Fault =>
  new Fault('NoSuchEntity', `The user with name ${name} cannot be found.`);
export const noSuchUserPolicy = (name: string): Fault =>
  new Fault('NoSuchEntity', `The user policy with name ${name} cannot be found.`);
export const policyNotAttachable = (arn: string): Fault =>
  new Fault('NoSuchEntity', `Policy ${arn} does not exist or is not attachable.`);
export const quotaExceeded = (quota: string, max: number): Fault =>
  new Fault('LimitExceeded', `Cannot exceed quota for ${quota}: ${max}`);
const conflict = (what: string): Fault =>
  new Fault('DeleteConflict', `Cannot delete entity, must ${what} first.`);

/** INVARIANT: every write that can change what a principal is or may do calls this, so that caches know. */
export async function bumpIdentity(tx: Tx): Promise<void> {
  await tx
    .insertInto('revision')
    .values({ subject: 'identity', value: 1 })
    .onConflict((on) => on.column('subject').doUpdateSet((q) => ({ value: q('revision.value', '+', 1) })))
    .execute();
}

export async function requireUser(tx: Tx, { account, userName }: UserReference): Promise<UserRecord> {
  const row = await tx
    .selectFrom('iam_user')
    .select(USER_COLUMNS)
    .where('account', '=', account)
    .where('name_lower', '=', userName.toLowerCase())
    .where('name', '=', userName)
    .executeTakeFirst();
  if (row === undefined) throw noSuchUser(userName);
  return userOf(row);
}

export async function countOf(
  tx: Tx,
  table: 'iam_access_key' | 'iam_user_attachment' | 'iam_user_tag' | 'iam_user_policy',
  userId: string,
): Promise<number> {
  const { count } = await tx
    .selectFrom(table)
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('user_id', '=', userId)
    .executeTakeFirstOrThrow();
  return Number(count);
}

/** Refuses an ARN that is neither AWS-managed (`managed`, data in the code) nor a policy of the account. */
async function requireAttachable(
  tx: Tx,
  {
    account,
    policyArn,
    managed,
  }: { readonly account: string; readonly policyArn: string; readonly managed: boolean },
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

export interface CreateUserInput {
  readonly user: UserRecord;
  readonly tags: readonly TagRecord[];
  readonly boundaryManaged: boolean;
  readonly usersMax: number;
}

/** @throws Fault EntityAlreadyExists (names are unique ignoring case), NoSuchEntity (boundary), LimitExceeded */
async function createUser(tx: Tx, { user, tags, boundaryManaged, usersMax }: CreateUserInput): Promise<void> {
  const { account, name, boundaryArn } = user;
  if (boundaryArn !== undefined) {
    await requireAttachable(tx, { account, policyArn: boundaryArn, managed: boundaryManaged });
  }
  await requireNameFree(tx, account, name, undefined);
  const { count } = await tx
    .selectFrom('iam_user')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', account)
    .executeTakeFirstOrThrow();
  if (Number(count) >= usersMax) throw quotaExceeded('UsersPerAccount', usersMax);
  await insertUser(tx, user);
  if (tags.length > 0) {
    await tx
      .insertInto('iam_user_tag')
      .values(tags.map(({ key, value }) => ({ user_id: user.id, key_lower: key.toLowerCase(), key, value })))
      .execute();
  }
  await bumpIdentity(tx);
}

export async function insertUser(tx: Tx, user: UserRecord): Promise<void> {
  await tx
    .insertInto('iam_user')
    .values({
      id: user.id,
      account: user.account,
      name: user.name,
      name_lower: user.name.toLowerCase(),
      path: user.path,
      boundary_arn: user.boundaryArn ?? null,
      created_at: user.createdAt,
    })
    .execute();
}

async function requireNameFree(
  tx: Tx,
  account: string,
  name: string,
  except: string | undefined,
): Promise<void> {
  const taken = await tx
    .selectFrom('iam_user')
    .select('id')
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .executeTakeFirst();
  if (taken !== undefined && taken.id !== except) {
    throw new Fault('EntityAlreadyExists', `User with name ${name} already exists.`);
  }
}

/** Renames or moves; the id stays. @throws Fault NoSuchEntity, EntityAlreadyExists */
async function updateUser(
  tx: Tx,
  input: UserReference & { readonly newName: string | undefined; readonly newPath: string | undefined },
): Promise<void> {
  const user = await requireUser(tx, input);
  const name = input.newName ?? user.name;
  await requireNameFree(tx, user.account, name, user.id);
  await tx
    .updateTable('iam_user')
    .set({ name, name_lower: name.toLowerCase(), path: input.newPath ?? user.path })
    .where('id', '=', user.id)
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, DeleteConflict while anything but tags hangs on the user */
async function deleteUser(tx: Tx, input: UserReference): Promise<void> {
  const { id } = await requireUser(tx, input);
  if ((await countOf(tx, 'iam_user_policy', id)) > 0) throw conflict('delete policies');
  if ((await countOf(tx, 'iam_user_attachment', id)) > 0) throw conflict('detach all policies');
  if ((await countOf(tx, 'iam_access_key', id)) > 0) throw conflict('delete access keys');
  await tx.deleteFrom('iam_user_tag').where('user_id', '=', id).execute();
  await tx.deleteFrom('iam_user').where('id', '=', id).execute();
  await bumpIdentity(tx);
}

/** Adds tags; a key that differs only in case is replaced. @throws Fault NoSuchEntity, LimitExceeded */
async function tagUser(
  tx: Tx,
  input: UserReference & { readonly tags: readonly TagRecord[]; readonly tagsMax: number },
): Promise<void> {
  const { id } = await requireUser(tx, input);
  if (input.tags.length === 0) return;
  await tx
    .insertInto('iam_user_tag')
    .values(input.tags.map(({ key, value }) => ({ user_id: id, key_lower: key.toLowerCase(), key, value })))
    .onConflict((on) =>
      on
        .columns(['user_id', 'key_lower'])
        .doUpdateSet((q) => ({ key: q.ref('excluded.key'), value: q.ref('excluded.value') })),
    )
    .execute();
  if ((await countOf(tx, 'iam_user_tag', id)) > input.tagsMax) throw tooManyTags();
  await bumpIdentity(tx);
}

export const tooManyTags = (): Fault =>
  new Fault('LimitExceeded', 'The number of tags has reached the maximum limit.');

/** Absent keys are fine. @throws Fault NoSuchEntity */
async function untagUser(tx: Tx, input: UserReference & { readonly keys: readonly string[] }): Promise<void> {
  const { id } = await requireUser(tx, input);
  if (input.keys.length === 0) return;
  const keys = input.keys.map((key) => key.toLowerCase());
  await tx.deleteFrom('iam_user_tag').where('user_id', '=', id).where('key_lower', 'in', keys).execute();
  await bumpIdentity(tx);
}

/** `policyArn` undefined takes the boundary away. @throws Fault NoSuchEntity */
async function setBoundary(
  tx: Tx,
  input: UserReference & { readonly policyArn: string | undefined; readonly managed: boolean },
): Promise<void> {
  const { id, account } = await requireUser(tx, input);
  const { policyArn, managed } = input;
  if (policyArn !== undefined) await requireAttachable(tx, { account, policyArn, managed });
  await tx
    .updateTable('iam_user')
    .set({ boundary_arn: policyArn ?? null })
    .where('id', '=', id)
    .execute();
  await bumpIdentity(tx);
}

/** Overwrites silently. The quota is over all inline policies of the user. @throws Fault NoSuchEntity, LimitExceeded */
async function putUserPolicy(
  tx: Tx,
  input: UserReference & { readonly name: string; readonly document: string; readonly charactersMax: number },
): Promise<void> {
  const user = await requireUser(tx, input);
  const others = await tx
    .selectFrom('iam_user_policy')
    .select('document')
    .where('user_id', '=', user.id)
    .where('name', '!=', input.name)
    .execute();
  const size = others.reduce(
    (sum, { document }) => sum + policySizeOf(document),
    policySizeOf(input.document),
  );
  if (size > input.charactersMax) {
    throw new Fault(
      'LimitExceeded',
      `Maximum policy size of ${input.charactersMax} bytes exceeded for user ${user.name}`,
    );
  }
  await tx
    .insertInto('iam_user_policy')
    .values({ user_id: user.id, name: input.name, document: input.document })
    .onConflict((on) => on.columns(['user_id', 'name']).doUpdateSet({ document: input.document }))
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity */
async function deleteUserPolicy(tx: Tx, input: UserReference & { readonly name: string }): Promise<void> {
  const user = await requireUser(tx, input);
  const deleted = await tx
    .deleteFrom('iam_user_policy')
    .where('user_id', '=', user.id)
    .where('name', '=', input.name)
    .returning('name')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchUserPolicy(input.name);
  await bumpIdentity(tx);
}

/** Attaching twice is a success. @throws Fault NoSuchEntity, LimitExceeded */
async function attachUserPolicy(
  tx: Tx,
  input: UserReference & {
    readonly policyArn: string;
    readonly managed: boolean;
    readonly now: number;
    readonly attachedMax: number;
  },
): Promise<void> {
  const user = await requireUser(tx, input);
  await requireAttachable(tx, input);
  const inserted = await tx
    .insertInto('iam_user_attachment')
    .values({ user_id: user.id, policy_arn: input.policyArn, attached_at: input.now })
    .onConflict((on) => on.columns(['user_id', 'policy_arn']).doNothing())
    .returning('policy_arn')
    .executeTakeFirst();
  if (inserted === undefined) return;
  if ((await countOf(tx, 'iam_user_attachment', user.id)) > input.attachedMax) {
    throw quotaExceeded('PoliciesPerUser', input.attachedMax);
  }
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, also when the policy is not attached */
async function detachUserPolicy(
  tx: Tx,
  input: UserReference & { readonly policyArn: string },
): Promise<void> {
  const user = await requireUser(tx, input);
  const deleted = await tx
    .deleteFrom('iam_user_attachment')
    .where('user_id', '=', user.id)
    .where('policy_arn', '=', input.policyArn)
    .returning('policy_arn')
    .executeTakeFirst();
  if (deleted === undefined) throw new Fault('NoSuchEntity', `Policy ${input.policyArn} was not found.`);
  await bumpIdentity(tx);
}

export const userTransactions = {
  'user.create': createUser,
  'user.update': updateUser,
  'user.delete': deleteUser,
  'user.tag': tagUser,
  'user.untag': untagUser,
  'user.setBoundary': setBoundary,
  'user.putPolicy': putUserPolicy,
  'user.deletePolicy': deleteUserPolicy,
  'user.attachPolicy': attachUserPolicy,
  'user.detachPolicy': detachUserPolicy,
} as const;
