/**
 * What an account set for its registry in one region: the registry policy, account settings, and the principals whose
 * pulls are not recorded. A registry without a row has the defaults (ecr-api.md §14, §20).
 */
import { Fault } from '../domain/faults.ts';
import { bumpIdentity } from './identity-owners.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

export interface RegistryAddress {
  readonly account: string;
  readonly region: string;
}

export type PolicyScope = 'V1' | 'V2';

export interface RegistryRecord {
  /** the registry policy as formatted for return */
  readonly policy: string | undefined;
  readonly policyScope: PolicyScope;
  readonly blobMounting: boolean;
}

/** A registry nobody has set anything for. WHY V2: it is what registries made since December 2024 have. */
export const DEFAULT_REGISTRY: RegistryRecord = {
  policy: undefined,
  policyScope: 'V2',
  blobMounting: false,
};

export async function findRegistry(
  read: Reader,
  { account, region }: RegistryAddress,
): Promise<RegistryRecord> {
  const row = await read
    .selectFrom('registry')
    .select(['policy', 'policy_scope', 'blob_mounting'])
    .where('account', '=', account)
    .where('region', '=', region)
    .executeTakeFirst();
  if (row === undefined) return DEFAULT_REGISTRY;
  return {
    policy: row.policy ?? undefined,
    policyScope: row.policy_scope ?? DEFAULT_REGISTRY.policyScope,
    blobMounting: row.blob_mounting === 1,
  };
}

/** ARNs of the principals whose pulls are not recorded, in byte order, after `last`. */
export async function pageExclusions(
  read: Reader,
  { account, region }: RegistryAddress,
  last: string | undefined,
  limit: number,
): Promise<string[]> {
  let query = read
    .selectFrom('pull_time_exclusion')
    .select('principal_arn')
    .where('account', '=', account)
    .where('region', '=', region)
    .orderBy('principal_arn')
    .limit(limit);
  if (last !== undefined) query = query.where('principal_arn', '>', last);
  return (await query.execute()).map((row) => row.principal_arn);
}

export function registryPolicyNotFound(account: string): Fault {
  return new Fault(
    'RegistryPolicyNotFoundException',
    `Registry policy does not exist in the registry with id '${account}'`,
  );
}

/**
 * Writes members of the row, making it when there is none. INVARIANT: every write of this file moves the identity revision:
 * decisions remember registries under it (identity/registries.ts).
 */
async function update(
  tx: Tx,
  { account, region }: RegistryAddress,
  values: { policy?: string | null; policy_scope?: PolicyScope; blob_mounting?: number },
): Promise<void> {
  await tx
    .insertInto('registry')
    .values({ account, region, ...values })
    .onConflict((on) => on.columns(['account', 'region']).doUpdateSet(values))
    .execute();
  await bumpIdentity(tx);
}

async function setPolicy(
  tx: Tx,
  input: { readonly registry: RegistryAddress; readonly policy: string },
): Promise<void> {
  await update(tx, input.registry, { policy: input.policy });
}

/** Returns the removed text. @throws Fault RegistryPolicyNotFoundException */
async function deletePolicy(tx: Tx, input: { readonly registry: RegistryAddress }): Promise<string> {
  const { policy } = await findRegistry(tx, input.registry);
  if (policy === undefined) throw registryPolicyNotFound(input.registry.account);
  await update(tx, input.registry, { policy: null });
  return policy;
}

async function configure(
  tx: Tx,
  input: {
    readonly registry: RegistryAddress;
    readonly policyScope?: PolicyScope | undefined;
    readonly blobMounting?: boolean | undefined;
  },
): Promise<void> {
  const { policyScope, blobMounting } = input;
  await update(tx, input.registry, {
    ...(policyScope !== undefined && { policy_scope: policyScope }),
    ...(blobMounting !== undefined && { blob_mounting: blobMounting ? 1 : 0 }),
  });
}

/** @throws Fault ExclusionAlreadyExistsException, LimitExceededException */
async function addExclusion(
  tx: Tx,
  input: {
    readonly registry: RegistryAddress;
    readonly principalArn: string;
    readonly now: number;
    readonly exclusionsMax: number;
  },
): Promise<void> {
  const { registry, principalArn, exclusionsMax } = input;
  const present = await pageExclusions(tx, registry, undefined, exclusionsMax);
  if (present.includes(principalArn)) {
    throw new Fault(
      'ExclusionAlreadyExistsException',
      `A pull time update exclusion for the principal '${principalArn}' already exists in the registry with id '${registry.account}'`,
    );
  }
  if (present.length >= exclusionsMax) {
    throw new Fault(
      'LimitExceededException',
      `The registry with id '${registry.account}' already has the maximum allowed number of pull time update exclusions which is '${exclusionsMax}'`,
    );
  }
  const { account, region } = registry;
  await tx
    .insertInto('pull_time_exclusion')
    .values({ account, region, principal_arn: principalArn, created_at: input.now })
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault ExclusionNotFoundException */
async function removeExclusion(
  tx: Tx,
  input: { readonly registry: RegistryAddress; readonly principalArn: string },
): Promise<void> {
  const { registry, principalArn } = input;
  const removed = await tx
    .deleteFrom('pull_time_exclusion')
    .where('account', '=', registry.account)
    .where('region', '=', registry.region)
    .where('principal_arn', '=', principalArn)
    .executeTakeFirst();
  if (Number(removed.numDeletedRows) === 0) {
    throw new Fault(
      'ExclusionNotFoundException',
      `A pull time update exclusion for the principal '${principalArn}' does not exist in the registry with id '${registry.account}'`,
    );
  }
  await bumpIdentity(tx);
}

export const registryTransactions = {
  'registry.setPolicy': setPolicy,
  'registry.deletePolicy': deletePolicy,
  'registry.configure': configure,
  'registry.addExclusion': addExclusion,
  'registry.removeExclusion': removeExclusion,
} as const satisfies Record<string, Transaction<never, unknown>>;
