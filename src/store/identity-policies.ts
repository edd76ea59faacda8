/** Writes to customer-managed policies: versions, default version. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import { bumpIdentity, deleteTags, insertTags, noSuchPolicy, quotaExceeded } from './identity-owners.ts';
import type { TagRecord } from './identity-owners.ts';
import type { Tx } from './transaction.ts';

/** A customer-managed policy as stored, without its documents and tags. */
export interface PolicyRecord {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly arn: string;
  readonly description: string | undefined;
  readonly defaultVersion: number;
  readonly createdAt: number;
  readonly updatedAt: number;
}

export interface PolicyVersionRecord {
  readonly version: number;
  readonly document: string;
  readonly createdAt: number;
}

export const POLICY_COLUMNS = [
  'id',
  'account',
  'name',
  'path',
  'arn',
  'description',
  'default_version',
  'created_at',
  'updated_at',
] as const;

export function policyOf(row: {
  readonly id: string;
  readonly account: string;
  readonly name: string;
  readonly path: string;
  readonly arn: string;
  readonly description: string | null;
  readonly default_version: number;
  readonly created_at: number;
  readonly updated_at: number;
}): PolicyRecord {
  const { id, account, name, path, arn, description } = row;
  return {
    id,
    account,
    name,
    path,
    arn,
    description: description ?? undefined,
    defaultVersion: row.default_version,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  };
}

export const noSuchVersion = (arn: string, versionId: string): Fault =>
  new Fault('NoSuchEntity', `Policy ${arn} version ${versionId} does not exist or is not attachable.`);

async function requirePolicy(tx: Tx, arn: string): Promise<PolicyRecord & { readonly nextVersion: number }> {
  const row = await tx
    .selectFrom('iam_policy')
    .select([...POLICY_COLUMNS, 'next_version'])
    .where('arn', '=', arn)
    .executeTakeFirst();
  if (row === undefined) throw noSuchPolicy(arn);
  return { ...policyOf(row), nextVersion: row.next_version };
}

async function requireVersion(tx: Tx, policy: PolicyRecord, version: number): Promise<void> {
  const row = await tx
    .selectFrom('iam_policy_version')
    .select('version')
    .where('policy_id', '=', policy.id)
    .where('version', '=', version)
    .executeTakeFirst();
  if (row === undefined) throw noSuchVersion(policy.arn, `v${version}`);
}

export interface CreatePolicyInput {
  readonly policy: PolicyRecord;
  readonly document: string;
  readonly tags: readonly TagRecord[];
  readonly policiesMax: number;
}

/** Names are unique in the account ignoring case, whatever the path. @throws Fault EntityAlreadyExists, LimitExceeded */
async function createPolicy(
  tx: Tx,
  { policy, document, tags, policiesMax }: CreatePolicyInput,
): Promise<void> {
  const { id, account, name } = policy;
  const taken = await tx
    .selectFrom('iam_policy')
    .select('id')
    .where('account', '=', account)
    .where('name_lower', '=', name.toLowerCase())
    .executeTakeFirst();
  if (taken !== undefined) {
    throw new Fault(
      'EntityAlreadyExists',
      `A policy called ${name} already exists. Duplicate names are not allowed.`,
    );
  }
  const { count } = await tx
    .selectFrom('iam_policy')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', account)
    .executeTakeFirstOrThrow();
  if (Number(count) >= policiesMax) throw quotaExceeded('PoliciesPerAccount', policiesMax);
  await tx
    .insertInto('iam_policy')
    .values({
      id,
      account,
      name,
      name_lower: name.toLowerCase(),
      path: policy.path,
      arn: policy.arn,
      description: policy.description ?? null,
      default_version: 1,
      next_version: 2,
      created_at: policy.createdAt,
      updated_at: policy.updatedAt,
    })
    .execute();
  await tx
    .insertInto('iam_policy_version')
    .values({ policy_id: id, version: 1, document, created_at: policy.createdAt })
    .execute();
  await insertTags(tx, id, tags);
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity, DeleteConflict while it is attached, a boundary, or has other versions */
async function deletePolicy(tx: Tx, { arn }: { readonly arn: string }): Promise<void> {
  const { id } = await requirePolicy(tx, arn);
  const attached = await tx
    .selectFrom('iam_attachment')
    .select('owner_id')
    .where('policy_arn', '=', arn)
    .executeTakeFirst();
  const bounding = async (table: 'iam_user' | 'iam_role') =>
    (await tx.selectFrom(table).select('id').where('boundary_arn', '=', arn).executeTakeFirst()) !==
    undefined;
  if (attached !== undefined || (await bounding('iam_user')) || (await bounding('iam_role'))) {
    throw new Fault('DeleteConflict', 'Cannot delete a policy attached to entities.');
  }
  if ((await countVersions(tx, id)) > 1) {
    throw new Fault(
      'DeleteConflict',
      `This policy has more than one version. Before you delete a policy, you must delete the policy's versions. ` +
        `The default version is deleted with the policy.`,
    );
  }
  await tx.deleteFrom('iam_policy_version').where('policy_id', '=', id).execute();
  await deleteTags(tx, id);
  await tx.deleteFrom('iam_policy').where('id', '=', id).execute();
  await bumpIdentity(tx);
}

async function countVersions(tx: Tx, policyId: string): Promise<number> {
  const { count } = await tx
    .selectFrom('iam_policy_version')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('policy_id', '=', policyId)
    .executeTakeFirstOrThrow();
  return Number(count);
}

/** Returns the number of the new version; numbers are never reused. @throws Fault NoSuchEntity, LimitExceeded */
async function createVersion(
  tx: Tx,
  input: {
    readonly arn: string;
    readonly document: string;
    readonly setDefault: boolean;
    readonly now: number;
    readonly versionsMax: number;
  },
): Promise<number> {
  const policy = await requirePolicy(tx, input.arn);
  if ((await countVersions(tx, policy.id)) >= input.versionsMax) {
    throw new Fault(
      'LimitExceeded',
      `A managed policy can have up to ${input.versionsMax} versions. Before you create a new version, you must delete ` +
        `an existing version.`,
    );
  }
  const version = policy.nextVersion;
  await tx
    .insertInto('iam_policy_version')
    .values({ policy_id: policy.id, version, document: input.document, created_at: input.now })
    .execute();
  await tx
    .updateTable('iam_policy')
    .set({
      next_version: version + 1,
      updated_at: input.now,
      ...(input.setDefault && { default_version: version }),
    })
    .where('id', '=', policy.id)
    .execute();
  await bumpIdentity(tx);
  return version;
}

/** @throws Fault NoSuchEntity, DeleteConflict for the default version */
async function deleteVersion(
  tx: Tx,
  input: { readonly arn: string; readonly version: number; readonly now: number },
): Promise<void> {
  const policy = await requirePolicy(tx, input.arn);
  await requireVersion(tx, policy, input.version);
  if (policy.defaultVersion === input.version) {
    throw new Fault('DeleteConflict', 'Cannot delete the default version of a policy.');
  }
  await tx
    .deleteFrom('iam_policy_version')
    .where('policy_id', '=', policy.id)
    .where('version', '=', input.version)
    .execute();
  await tx.updateTable('iam_policy').set({ updated_at: input.now }).where('id', '=', policy.id).execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity */
async function setDefaultVersion(
  tx: Tx,
  input: { readonly arn: string; readonly version: number; readonly now: number },
): Promise<void> {
  const policy = await requirePolicy(tx, input.arn);
  await requireVersion(tx, policy, input.version);
  await tx
    .updateTable('iam_policy')
    .set({ default_version: input.version, updated_at: input.now })
    .where('id', '=', policy.id)
    .execute();
  await bumpIdentity(tx);
}

export const policyTransactions = {
  'policy.create': createPolicy,
  'policy.delete': deletePolicy,
  'policy.createVersion': createVersion,
  'policy.deleteVersion': deleteVersion,
  'policy.setDefaultVersion': setDefaultVersion,
} as const;
