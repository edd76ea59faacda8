/** OpenID Connect identity providers. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import { bumpIdentity, deleteTags, insertTags, noSuchProvider, quotaExceeded } from './identity-owners.ts';
import type { TagRecord } from './identity-owners.ts';
import type { Reader, Tx } from './transaction.ts';

export interface ProviderRecord {
  readonly id: string;
  readonly account: string;
  readonly arn: string;
  /** without `https://`, or with `http://` */
  readonly url: string;
  readonly clientIds: readonly string[];
  /** 40 hex digits each */
  readonly thumbprints: readonly string[];
  readonly createdAt: number;
}

interface ProviderReference {
  readonly arn: string;
}

export async function findProvider(read: Reader, arn: string): Promise<ProviderRecord | undefined> {
  const row = await read
    .selectFrom('iam_oidc_provider')
    .selectAll()
    .where('arn', '=', arn)
    .executeTakeFirst();
  return row === undefined
    ? undefined
    : {
        id: row.id,
        account: row.account,
        arn: row.arn,
        url: row.url,
        clientIds: JSON.parse(row.client_ids) as string[],
        thumbprints: JSON.parse(row.thumbprints) as string[],
        createdAt: row.created_at,
      };
}

/** ARNs of an account's providers, ordered. At most 100. */
export async function listProviders(read: Reader, account: string): Promise<string[]> {
  const rows = await read
    .selectFrom('iam_oidc_provider')
    .select('arn')
    .where('account', '=', account)
    .orderBy('arn')
    .execute();
  return rows.map(({ arn }) => arn);
}

async function requireProvider(tx: Tx, { arn }: ProviderReference): Promise<ProviderRecord> {
  const provider = await findProvider(tx, arn);
  if (provider === undefined) throw noSuchProvider(arn);
  return provider;
}

/** @throws Fault EntityAlreadyExists, LimitExceeded */
async function createProvider(
  tx: Tx,
  input: {
    readonly provider: ProviderRecord;
    readonly tags: readonly TagRecord[];
    readonly providersMax: number;
  },
): Promise<void> {
  const { id, account, arn, url, clientIds, thumbprints, createdAt } = input.provider;
  if ((await findProvider(tx, arn)) !== undefined) {
    const shown = url.startsWith('http://') ? url : `https://${url}`;
    throw new Fault('EntityAlreadyExists', `Provider with url ${shown} already exists.`);
  }
  if ((await listProviders(tx, account)).length >= input.providersMax) {
    throw quotaExceeded('OpenIdConnectProvidersPerAccount', input.providersMax);
  }
  await tx
    .insertInto('iam_oidc_provider')
    .values({
      id,
      account,
      arn,
      url,
      client_ids: JSON.stringify(clientIds),
      thumbprints: JSON.stringify(thumbprints),
      created_at: createdAt,
    })
    .execute();
  await insertTags(tx, id, input.tags);
  await bumpIdentity(tx);
}

/** Deleting what is not there is a success, as in AWS. */
async function deleteProvider(tx: Tx, input: ProviderReference): Promise<void> {
  const provider = await findProvider(tx, input.arn);
  if (provider === undefined) return;
  await deleteTags(tx, provider.id);
  await tx.deleteFrom('iam_oidc_provider').where('id', '=', provider.id).execute();
  await bumpIdentity(tx);
}

/** Adding a client id twice is a success. @throws Fault NoSuchEntity, LimitExceeded */
async function addClientId(
  tx: Tx,
  input: ProviderReference & { readonly clientId: string; readonly clientIdsMax: number },
): Promise<void> {
  const { id, clientIds } = await requireProvider(tx, input);
  if (clientIds.includes(input.clientId)) return;
  if (clientIds.length >= input.clientIdsMax) {
    throw quotaExceeded('ClientIdsPerOpenIdConnectProvider', input.clientIdsMax);
  }
  await setClientIds(tx, id, [...clientIds, input.clientId]);
}

/** Removing an absent client id is a success, as in AWS. @throws Fault NoSuchEntity */
async function removeClientId(
  tx: Tx,
  input: ProviderReference & { readonly clientId: string },
): Promise<void> {
  const { id, clientIds } = await requireProvider(tx, input);
  await setClientIds(
    tx,
    id,
    clientIds.filter((each) => each !== input.clientId),
  );
}

async function setClientIds(tx: Tx, id: string, clientIds: readonly string[]): Promise<void> {
  await tx
    .updateTable('iam_oidc_provider')
    .set({ client_ids: JSON.stringify(clientIds) })
    .where('id', '=', id)
    .execute();
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity */
async function setThumbprints(
  tx: Tx,
  input: ProviderReference & { readonly thumbprints: readonly string[] },
): Promise<void> {
  const { id } = await requireProvider(tx, input);
  await tx
    .updateTable('iam_oidc_provider')
    .set({ thumbprints: JSON.stringify(input.thumbprints) })
    .where('id', '=', id)
    .execute();
  await bumpIdentity(tx);
}

export const providerTransactions = {
  'provider.create': createProvider,
  'provider.delete': deleteProvider,
  'provider.addClientId': addClientId,
  'provider.removeClientId': removeClientId,
  'provider.setThumbprints': setThumbprints,
} as const;
