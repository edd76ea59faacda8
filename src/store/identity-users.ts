/** Users, groups and who is in which. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import {
  bumpIdentity,
  deleteTags,
  insertTags,
  mustFirst,
  noSuchUser,
  quotaExceeded,
  requireAttachable,
  requireNamed,
  requireNameFree,
  requireNoPolicies,
  requireRoom,
} from './identity-owners.ts';
import type { TagRecord } from './identity-owners.ts';
import type { Reader, Tx } from './transaction.ts';

/** A user as stored, without its tags. Times in milliseconds since the epoch. */
export interface UserRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly boundaryArn: string | undefined;
  readonly createdAt: number;
}

export interface GroupRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly createdAt: number;
}

/** Names a user of an account, by its exact name. */
export interface UserReference {
  readonly account: string;
  readonly userName: string;
}

interface GroupReference {
  readonly account: string;
  readonly groupName: string;
}

export const USER_COLUMNS = ['id', 'account', 'name', 'path', 'boundary_arn', 'created_at'] as const;
export const GROUP_COLUMNS = ['id', 'account', 'name', 'path', 'created_at'] as const;

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

export function groupOf(row: {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly created_at: number;
}): GroupRecord {
  const { id, account, name, path, created_at } = row;
  return { id, account, name, path, createdAt: created_at };
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

export interface CreateUserInput {
  readonly user: UserRecord;
  readonly tags: readonly TagRecord[];
  readonly boundaryManaged: boolean;
  readonly usersMax: number;
}

/** @throws Fault EntityAlreadyExists (names are unique ignoring case), NoSuchEntity (boundary), LimitExceeded */
async function createUser(tx: Tx, { user, tags, boundaryManaged, usersMax }: CreateUserInput): Promise<void> {
  const { account, name, boundaryArn } = user;
  if (boundaryArn !== undefined) await requireAttachable(tx, account, boundaryArn, boundaryManaged);
  await requireNameFree(tx, 'user', account, name);
  await requireRoom(tx, 'user', account, usersMax);
  await insertUser(tx, user);
  await insertTags(tx, user.id, tags);
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

/** Renames or moves; the id stays. @throws Fault NoSuchEntity, EntityAlreadyExists */
async function updateUser(
  tx: Tx,
  input: UserReference & { readonly newName: string | undefined; readonly newPath: string | undefined },
): Promise<void> {
  const user = await requireUser(tx, input);
  const name = input.newName ?? user.name;
  await requireNameFree(tx, 'user', user.account, name, user.id);
  await tx
    .updateTable('iam_user')
    .set({ name, name_lower: name.toLowerCase(), path: input.newPath ?? user.path })
    .where('id', '=', user.id)
    .execute();
  await bumpIdentity(tx);
}

async function hasRow(
  tx: Tx,
  table: 'iam_access_key' | 'iam_login_profile' | 'iam_group_member',
  userId: string,
): Promise<boolean> {
  const row = await tx
    .selectFrom(table)
    .select('user_id')
    .where('user_id', '=', userId)
    .limit(1)
    .executeTakeFirst();
  return row !== undefined;
}

/** @throws Fault NoSuchEntity, DeleteConflict while anything but tags hangs on the user */
async function deleteUser(tx: Tx, input: UserReference): Promise<void> {
  const { id } = await requireUser(tx, input);
  await requireNoPolicies(tx, id);
  if (await hasRow(tx, 'iam_access_key', id)) throw mustFirst('delete access keys');
  if (await hasRow(tx, 'iam_login_profile', id)) throw mustFirst('delete login profile');
  if (await hasRow(tx, 'iam_group_member', id)) throw mustFirst('remove users from group');
  await deleteTags(tx, id);
  await tx.deleteFrom('iam_user').where('id', '=', id).execute();
  await bumpIdentity(tx);
}

/** @throws Fault EntityAlreadyExists, LimitExceeded */
async function createGroup(
  tx: Tx,
  { group, groupsMax }: { readonly group: GroupRecord; readonly groupsMax: number },
): Promise<void> {
  const { id, account, name, path, createdAt } = group;
  await requireNameFree(tx, 'group', account, name);
  await requireRoom(tx, 'group', account, groupsMax);
  await tx
    .insertInto('iam_group')
    .values({ id, account, name, name_lower: name.toLowerCase(), path, created_at: createdAt })
    .execute();
  await bumpIdentity(tx);
}

/** Renames or moves; the id stays. @throws Fault NoSuchEntity, EntityAlreadyExists */
async function updateGroup(
  tx: Tx,
  input: GroupReference & { readonly newName: string | undefined; readonly newPath: string | undefined },
): Promise<void> {
  const id = await requireNamed(tx, { kind: 'group', account: input.account, name: input.groupName });
  const name = input.newName ?? input.groupName;
  await requireNameFree(tx, 'group', input.account, name, id);
  await tx
    .updateTable('iam_group')
    .set({ name, name_lower: name.toLowerCase(), ...(input.newPath && { path: input.newPath }) })
    .where('id', '=', id)
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, DeleteConflict while it has members or policies */
async function deleteGroup(tx: Tx, { account, groupName }: GroupReference): Promise<void> {
  const id = await requireNamed(tx, { kind: 'group', account, name: groupName });
  const member = await tx
    .selectFrom('iam_group_member')
    .select('user_id')
    .where('group_id', '=', id)
    .limit(1)
    .executeTakeFirst();
  if (member !== undefined) throw mustFirst('remove users from group');
  await requireNoPolicies(tx, id);
  await tx.deleteFrom('iam_group').where('id', '=', id).execute();
  await bumpIdentity(tx);
}

/** Adding twice is a success. @throws Fault NoSuchEntity, LimitExceeded */
async function addMember(
  tx: Tx,
  input: GroupReference & UserReference & { readonly now: number; readonly groupsMax: number },
): Promise<void> {
  const groupId = await requireNamed(tx, { kind: 'group', account: input.account, name: input.groupName });
  const user = await requireUser(tx, input);
  const inserted = await tx
    .insertInto('iam_group_member')
    .values({ group_id: groupId, user_id: user.id, added_at: input.now })
    .onConflict((on) => on.columns(['group_id', 'user_id']).doNothing())
    .returning('user_id')
    .executeTakeFirst();
  if (inserted === undefined) return;
  const { count } = await tx
    .selectFrom('iam_group_member')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('user_id', '=', user.id)
    .executeTakeFirstOrThrow();
  if (Number(count) > input.groupsMax) throw quotaExceeded('GroupsPerUser', input.groupsMax);
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, also when the user is no member */
async function removeMember(tx: Tx, input: GroupReference & UserReference): Promise<void> {
  const groupId = await requireNamed(tx, { kind: 'group', account: input.account, name: input.groupName });
  const user = await requireUser(tx, input);
  const removed = await tx
    .deleteFrom('iam_group_member')
    .where('group_id', '=', groupId)
    .where('user_id', '=', user.id)
    .returning('user_id')
    .executeTakeFirst();
  if (removed === undefined) {
    throw new Fault('NoSuchEntity', `User ${user.name} is not in group ${input.groupName}.`);
  }
  await bumpIdentity(tx);
}

export async function findGroup(
  read: Reader,
  account: string,
  name: string,
): Promise<GroupRecord | undefined> {
  const row = await read
    .selectFrom('iam_group')
    .select(GROUP_COLUMNS)
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .where('name', '=', name)
    .executeTakeFirst();
  return row === undefined ? undefined : groupOf(row);
}

/** The groups of a user by name ignoring case. At most 10. */
export async function listGroupsOf(read: Reader, userId: string): Promise<GroupRecord[]> {
  const rows = await read
    .selectFrom('iam_group_member as m')
    .innerJoin('iam_group as g', 'g.id', 'm.group_id')
    .select(['g.id', 'g.account', 'g.name', 'g.path', 'g.created_at'])
    .where('m.user_id', '=', userId)
    .orderBy('g.name_lower')
    .execute();
  return rows.map(groupOf);
}

/** Members of a group by name ignoring case, after the name `last`. */
export async function pageMembers(
  read: Reader,
  groupId: string,
  last: string | undefined,
  limit: number,
): Promise<UserRecord[]> {
  let query = read
    .selectFrom('iam_group_member as m')
    .innerJoin('iam_user as u', 'u.id', 'm.user_id')
    .select(['u.id', 'u.account', 'u.name', 'u.path', 'u.boundary_arn', 'u.created_at'])
    .where('m.group_id', '=', groupId)
    .orderBy('u.name_lower')
    .limit(limit);
  if (last !== undefined) query = query.where('u.name_lower', '>', last.toLowerCase());
  return (await query.execute()).map(userOf);
}

export const userTransactions = {
  'user.create': createUser,
  'user.update': updateUser,
  'user.delete': deleteUser,
  'group.create': createGroup,
  'group.update': updateGroup,
  'group.delete': deleteGroup,
  'group.addMember': addMember,
  'group.removeMember': removeMember,
} as const;
