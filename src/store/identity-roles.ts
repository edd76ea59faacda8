/** Roles and the instance profiles that carry them. Messages: iam-sts.md §6.4, §6.7. */
import { Fault } from '../domain/faults.ts';
import {
  bumpIdentity,
  deleteTags,
  insertTags,
  mustFirst,
  noSuchNamed,
  protectedRole,
  quotaExceeded,
  requireAttachable,
  requireNamed,
  requireNameFree,
  requireNoPolicies,
  requireRoom,
} from './identity-owners.ts';
import type { TagRecord } from './identity-owners.ts';
import type { Reader, Tx } from './transaction.ts';

/** A role as stored, without its tags. Times in milliseconds since the epoch. */
export interface RoleRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  /** as written */
  readonly trustPolicy: string;
  /** as evaluated: users and roles by unique id */
  readonly trustPinned: string;
  readonly description: string | undefined;
  readonly maxSessionSeconds: number;
  readonly boundaryArn: string | undefined;
  /** service-linked roles: the service */
  readonly service: string | undefined;
  readonly createdAt: number;
  readonly lastUsed: { readonly at: number; readonly region: string } | undefined;
}

export interface InstanceProfileRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly roleId: string | undefined;
  readonly createdAt: number;
}

interface RoleReference {
  readonly account: string;
  readonly roleName: string;
}
interface ProfileReference {
  readonly account: string;
  readonly profileName: string;
}

interface RoleRow {
  id: string;
  account: string;
  name: string;
  path: string;
  trust_policy: string;
  trust_pinned: string;
  description: string | null;
  max_session_seconds: number;
  boundary_arn: string | null;
  service: string | null;
  created_at: number;
  last_used_at: number | null;
  last_used_region: string | null;
}

export function roleOf(row: RoleRow): RoleRecord {
  const { id, account, name, path, last_used_at: at, last_used_region: region } = row;
  return {
    id,
    account,
    name,
    path,
    trustPolicy: row.trust_policy,
    trustPinned: row.trust_pinned,
    description: row.description ?? undefined,
    maxSessionSeconds: row.max_session_seconds,
    boundaryArn: row.boundary_arn ?? undefined,
    service: row.service ?? undefined,
    createdAt: row.created_at,
    lastUsed: at === null || region === null ? undefined : { at, region },
  };
}

/** By exact name. */
export async function findRole(read: Reader, account: string, name: string): Promise<RoleRecord | undefined> {
  const row = await read
    .selectFrom('iam_role')
    .selectAll()
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .where('name', '=', name)
    .executeTakeFirst();
  return row === undefined ? undefined : roleOf(row);
}

export async function findRoleById(read: Reader, id: string): Promise<RoleRecord | undefined> {
  const row = await read.selectFrom('iam_role').selectAll().where('id', '=', id).executeTakeFirst();
  return row === undefined ? undefined : roleOf(row);
}

async function requireRole(tx: Tx, { account, roleName }: RoleReference): Promise<RoleRecord> {
  const role = await findRole(tx, account, roleName);
  if (role === undefined) throw noSuchNamed('role', roleName);
  return role;
}

/** @throws Fault EntityAlreadyExists (names are unique ignoring case), NoSuchEntity (boundary), LimitExceeded */
async function createRole(
  tx: Tx,
  input: {
    readonly role: RoleRecord;
    readonly tags: readonly TagRecord[];
    readonly boundaryManaged: boolean;
    readonly rolesMax: number;
    /** service-linked roles: the policy they are born with */
    readonly policyArn?: string | undefined;
  },
): Promise<void> {
  const { role, tags, boundaryManaged, rolesMax, policyArn } = input;
  const { id, account, name } = role;
  if (role.boundaryArn !== undefined) await requireAttachable(tx, account, role.boundaryArn, boundaryManaged);
  await requireNameFree(tx, 'role', account, name);
  await requireRoom(tx, 'role', account, rolesMax);
  await tx
    .insertInto('iam_role')
    .values({
      id,
      account,
      name,
      name_lower: name.toLowerCase(),
      path: role.path,
      trust_policy: role.trustPolicy,
      trust_pinned: role.trustPinned,
      description: role.description ?? null,
      max_session_seconds: role.maxSessionSeconds,
      boundary_arn: role.boundaryArn ?? null,
      service: role.service ?? null,
      created_at: role.createdAt,
      last_used_at: null,
      last_used_region: null,
    })
    .execute();
  await insertTags(tx, id, tags);
  if (policyArn !== undefined) {
    await tx
      .insertInto('iam_attachment')
      .values({ owner_id: id, policy_arn: policyArn, account, attached_at: role.createdAt })
      .execute();
  }
  await bumpIdentity(tx);
}

/** Changes what is given. @throws Fault NoSuchEntity, UnmodifiableEntity (all but the description of service-linked roles) */
async function updateRole(
  tx: Tx,
  input: RoleReference & {
    readonly description?: string | undefined;
    readonly maxSessionSeconds?: number | undefined;
    readonly trust?: { readonly policy: string; readonly pinned: string } | undefined;
  },
): Promise<void> {
  const { description, maxSessionSeconds, trust } = input;
  const role = await requireRole(tx, input);
  if (role.service !== undefined && (maxSessionSeconds !== undefined || trust !== undefined)) {
    throw protectedRole(role.name);
  }
  if (description === undefined && maxSessionSeconds === undefined && trust === undefined) return;
  await tx
    .updateTable('iam_role')
    .set({
      ...(description !== undefined && { description }),
      ...(maxSessionSeconds !== undefined && { max_session_seconds: maxSessionSeconds }),
      ...(trust !== undefined && { trust_policy: trust.policy, trust_pinned: trust.pinned }),
    })
    .where('id', '=', role.id)
    .execute();
  await bumpIdentity(tx);
}

async function removeRole(tx: Tx, role: RoleRecord): Promise<void> {
  await deleteTags(tx, role.id);
  await tx.deleteFrom('iam_role').where('id', '=', role.id).execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, UnmodifiableEntity, DeleteConflict while it is in a profile or has policies */
async function deleteRole(tx: Tx, input: RoleReference): Promise<void> {
  const role = await requireRole(tx, input);
  if (role.service !== undefined) throw protectedRole(role.name);
  const profile = await tx
    .selectFrom('iam_instance_profile')
    .select('id')
    .where('role_id', '=', role.id)
    .executeTakeFirst();
  if (profile !== undefined) throw mustFirst('remove roles from instance profile');
  await requireNoPolicies(tx, role.id);
  await removeRole(tx, role);
}

/** Deletes a service-linked role and notes the finished task under `taskId`. @throws Fault NoSuchEntity */
async function deleteServiceLinkedRole(
  tx: Tx,
  input: RoleReference & { readonly taskId: string; readonly now: number },
): Promise<void> {
  const role = await requireRole(tx, input);
  if (role.service === undefined) throw noSuchNamed('role', role.name);
  await tx.deleteFrom('iam_attachment').where('owner_id', '=', role.id).execute();
  await removeRole(tx, role);
  await tx
    .insertInto('iam_deletion_task')
    .values({ id: input.taskId, account: role.account, created_at: input.now })
    .execute();
}

/** Whether the account has a finished deletion under this id. */
export async function hasDeletionTask(read: Reader, account: string, id: string): Promise<boolean> {
  const row = await read
    .selectFrom('iam_deletion_task')
    .select('id')
    .where('id', '=', id)
    .where('account', '=', account)
    .executeTakeFirst();
  return row !== undefined;
}

const PROFILE_COLUMNS = ['id', 'account', 'name', 'path', 'role_id', 'created_at'] as const;

export function profileOf(row: {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly role_id: string | null;
  readonly created_at: number;
}): InstanceProfileRecord {
  const { id, account, name, path, role_id, created_at } = row;
  return { id, account, name, path, roleId: role_id ?? undefined, createdAt: created_at };
}

/** By exact name. */
export async function findInstanceProfile(
  read: Reader,
  account: string,
  name: string,
): Promise<InstanceProfileRecord | undefined> {
  const row = await read
    .selectFrom('iam_instance_profile')
    .select(PROFILE_COLUMNS)
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .where('name', '=', name)
    .executeTakeFirst();
  return row === undefined ? undefined : profileOf(row);
}

/** The profiles that carry a role, by name ignoring case. */
export async function listProfilesOf(read: Reader, roleId: string): Promise<InstanceProfileRecord[]> {
  const rows = await read
    .selectFrom('iam_instance_profile')
    .select(PROFILE_COLUMNS)
    .where('role_id', '=', roleId)
    .orderBy('name_lower')
    .execute();
  return rows.map(profileOf);
}

async function requireProfile(
  tx: Tx,
  { account, profileName }: ProfileReference,
): Promise<InstanceProfileRecord> {
  const profile = await findInstanceProfile(tx, account, profileName);
  if (profile === undefined) throw noSuchNamed('instance-profile', profileName);
  return profile;
}

/** @throws Fault EntityAlreadyExists, LimitExceeded */
async function createProfile(
  tx: Tx,
  input: {
    readonly profile: InstanceProfileRecord;
    readonly tags: readonly TagRecord[];
    readonly profilesMax: number;
  },
): Promise<void> {
  const { id, account, name, path, createdAt } = input.profile;
  await requireNameFree(tx, 'instance-profile', account, name);
  await requireRoom(tx, 'instance-profile', account, input.profilesMax);
  await tx
    .insertInto('iam_instance_profile')
    .values({ id, account, name, name_lower: name.toLowerCase(), path, role_id: null, created_at: createdAt })
    .execute();
  await insertTags(tx, id, input.tags);
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, DeleteConflict while it has a role */
async function deleteProfile(tx: Tx, input: ProfileReference): Promise<void> {
  const profile = await requireProfile(tx, input);
  if (profile.roleId !== undefined) throw mustFirst('remove roles from instance profile');
  await deleteTags(tx, profile.id);
  await tx.deleteFrom('iam_instance_profile').where('id', '=', profile.id).execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, LimitExceeded (one role a profile), UnmodifiableEntity */
async function addRole(tx: Tx, input: ProfileReference & RoleReference): Promise<void> {
  const profile = await requireProfile(tx, input);
  const role = await requireRole(tx, input);
  if (role.service !== undefined) throw protectedRole(role.name);
  if (profile.roleId !== undefined) throw quotaExceeded('InstanceSessionsPerInstanceProfile', 1);
  await tx
    .updateTable('iam_instance_profile')
    .set({ role_id: role.id })
    .where('id', '=', profile.id)
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, also when the role is not in the profile */
async function removeRoleFromProfile(tx: Tx, input: ProfileReference & RoleReference): Promise<void> {
  const profile = await requireProfile(tx, input);
  const id = await requireNamed(tx, { kind: 'role', account: input.account, name: input.roleName });
  if (profile.roleId !== id) {
    throw new Fault('NoSuchEntity', `Role ${input.roleName} in Instance Profile ${profile.name} not found.`);
  }
  await tx.updateTable('iam_instance_profile').set({ role_id: null }).where('id', '=', profile.id).execute();
  await bumpIdentity(tx);
}

export const roleTransactions = {
  'role.create': createRole,
  'role.update': updateRole,
  'role.delete': deleteRole,
  'role.deleteServiceLinked': deleteServiceLinkedRole,
  'instanceProfile.create': createProfile,
  'instanceProfile.delete': deleteProfile,
  'instanceProfile.addRole': addRole,
  'instanceProfile.removeRole': removeRoleFromProfile,
} as const;
