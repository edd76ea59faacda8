/** Repositories: look-ups for both doors, pages of the listing, and every write to the row, its policy and its tags. */
import type { RepositoryAddress } from '../domain/names.ts';
import { Fault, repositoryNotFound, repositoryPolicyNotFound } from '../domain/faults.ts';
import { deleteImagesOfRepository, unlinkBlobsOfRepository } from './images.ts';
import type { Schema } from './schema.ts';
import type { Store } from './store.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';
import { deleteUploadsOfRepository } from './uploads.ts';

type Mutability = Schema['repository']['mutability'];
type EncryptionType = Schema['repository']['encryption_type'];

export interface ExclusionFilter {
  readonly filterType: 'WILDCARD';
  readonly filter: string;
}

/** A repository as stored, without its resource tags. Times in milliseconds since the epoch. */
export interface RepositoryRecord extends RepositoryAddress {
  readonly id: string;
  readonly createdAt: number;
  readonly mutability: Mutability;
  /** empty in the plain modes */
  readonly exclusionFilters: readonly ExclusionFilter[];
  readonly scanOnPush: boolean;
  readonly encryptionType: EncryptionType;
  /** full key ARN, KMS only */
  readonly kmsKey: string | undefined;
  /** name in the key ring */
  readonly contentKey: string;
  /** as formatted for return */
  readonly policy: string | undefined;
}

/** A repository with its resource tags: all that authorisation needs. */
export interface StoredRepository extends RepositoryRecord {
  readonly tags: ReadonlyMap<string, string>;
}

interface RepositoryRow {
  readonly id: string;
  readonly account: string;
  readonly region: string;
  readonly name: string;
  readonly created_at: number;
  readonly mutability: Mutability;
  readonly exclusion_filters: string | null;
  readonly scan_on_push: number;
  readonly encryption_type: EncryptionType;
  readonly kms_key: string | null;
  readonly content_key: string;
  readonly policy: string | null;
}

const COLUMNS = [
  'id',
  'account',
  'region',
  'name',
  'created_at',
  'mutability',
  'exclusion_filters',
  'scan_on_push',
  'encryption_type',
  'kms_key',
  'content_key',
  'policy',
] as const;

function recordOf(row: RepositoryRow): RepositoryRecord {
  return {
    id: row.id,
    account: row.account,
    region: row.region,
    name: row.name,
    createdAt: row.created_at,
    mutability: row.mutability,
    exclusionFilters:
      row.exclusion_filters === null ? [] : (JSON.parse(row.exclusion_filters) as ExclusionFilter[]),
    scanOnPush: row.scan_on_push !== 0,
    encryptionType: row.encryption_type,
    kmsKey: row.kms_key ?? undefined,
    contentKey: row.content_key,
    policy: row.policy ?? undefined,
  };
}

interface TaggedRow extends RepositoryRow {
  readonly tag_key: string | null;
  readonly tag_value: string | null;
}

/**
 * The look-up every request of both doors makes: one prepared query, always current. Prepare once, keep the function.
 * It resolves to `undefined` when there is no such repository.
 */
export function prepareFindRepository(
  store: Pick<Store, 'prepare'>,
): (address: RepositoryAddress) => Promise<StoredRepository | undefined> {
  const query = store.prepare<TaggedRow>(
    `select ${COLUMNS.map((column) => `r.${column}`).join(', ')}, t.key as tag_key, t.value as tag_value
     from repository r left join repository_tag t on t.repository_id = r.id
     where r.account = ? and r.region = ? and r.name = ?`,
    'keep',
  );
  return async ({ account, region, name }) => {
    const rows = await query(account, region, name);
    const [first] = rows;
    if (first === undefined) return undefined;
    const tags = new Map<string, string>();
    for (const row of rows) if (row.tag_key !== null) tags.set(row.tag_key, row.tag_value ?? '');
    return { ...recordOf(first), tags };
  };
}

/** The page query of the listing: by name, after `last`. Exported for the test of its plan. */
export function selectRepositories(
  read: Reader,
  registry: { readonly account: string; readonly region: string },
  last: string | undefined,
  limit: number,
) {
  let query = read
    .selectFrom('repository')
    .select(COLUMNS)
    .where('account', '=', registry.account)
    .where('region', '=', registry.region)
    .orderBy('name')
    .limit(limit);
  if (last !== undefined) query = query.where('name', '>', last);
  return query;
}

/** Repositories of a registry by name, after the name `last`, at most `limit`. */
export async function pageRepositories(
  read: Reader,
  registry: { readonly account: string; readonly region: string },
  last: string | undefined,
  limit: number,
): Promise<RepositoryRecord[]> {
  return (await selectRepositories(read, registry, last, limit).execute()).map(recordOf);
}

async function requireRow(tx: Tx, address: RepositoryAddress): Promise<RepositoryRecord> {
  const row = await tx
    .selectFrom('repository')
    .select(COLUMNS)
    .where('account', '=', address.account)
    .where('region', '=', address.region)
    .where('name', '=', address.name)
    .executeTakeFirst();
  if (row === undefined) throw repositoryNotFound(address.name, address.account);
  return recordOf(row);
}

export interface CreateRepositoryInput {
  readonly repository: RepositoryRecord;
  readonly tags: readonly { readonly key: string; readonly value: string }[];
  readonly repositoriesMax: number;
}

/** @throws Fault RepositoryAlreadyExistsException, LimitExceededException */
export async function createRepository(
  tx: Tx,
  { repository, tags, repositoriesMax }: CreateRepositoryInput,
): Promise<void> {
  const { count } = await tx
    .selectFrom('repository')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('account', '=', repository.account)
    .where('region', '=', repository.region)
    .executeTakeFirstOrThrow();
  const inserted = await tx
    .insertInto('repository')
    .values({
      id: repository.id,
      account: repository.account,
      region: repository.region,
      name: repository.name,
      created_at: repository.createdAt,
      mutability: repository.mutability,
      exclusion_filters: filtersText(repository.exclusionFilters),
      scan_on_push: repository.scanOnPush ? 1 : 0,
      encryption_type: repository.encryptionType,
      kms_key: repository.kmsKey ?? null,
      content_key: repository.contentKey,
      policy: repository.policy ?? null,
    })
    .onConflict((conflict) => conflict.columns(['account', 'region', 'name']).doNothing())
    .returning('id')
    .executeTakeFirst();
  if (inserted === undefined) {
    throw new Fault(
      'RepositoryAlreadyExistsException',
      `The repository with name '${repository.name}' already exists in the registry with id '${repository.account}'`,
    );
  }
  if (Number(count) >= repositoriesMax) {
    throw new Fault(
      'LimitExceededException',
      `The registry with id '${repository.account}' already has the maximum allowed number of repositories which is '${repositoriesMax}'`,
    );
  }
  if (tags.length > 0) {
    await tx
      .insertInto('repository_tag')
      .values(tags.map(({ key, value }) => ({ repository_id: repository.id, key, value })))
      .execute();
  }
}

function filtersText(filters: readonly ExclusionFilter[]): string | null {
  return filters.length === 0 ? null : JSON.stringify(filters);
}

/** Replaces mode and filters. @throws Fault RepositoryNotFoundException */
async function setTagMutability(
  tx: Tx,
  input: {
    readonly address: RepositoryAddress;
    readonly mutability: Mutability;
    readonly exclusionFilters: readonly ExclusionFilter[];
  },
): Promise<void> {
  const { id } = await requireRow(tx, input.address);
  await tx
    .updateTable('repository')
    .set({ mutability: input.mutability, exclusion_filters: filtersText(input.exclusionFilters) })
    .where('id', '=', id)
    .execute();
}

/** @throws Fault RepositoryNotFoundException */
async function setRepositoryPolicy(
  tx: Tx,
  input: { readonly address: RepositoryAddress; readonly policy: string },
): Promise<void> {
  const { id } = await requireRow(tx, input.address);
  await tx.updateTable('repository').set({ policy: input.policy }).where('id', '=', id).execute();
}

/** Returns the removed text. @throws Fault RepositoryNotFoundException, RepositoryPolicyNotFoundException */
async function deleteRepositoryPolicy(
  tx: Tx,
  input: { readonly address: RepositoryAddress },
): Promise<string> {
  const { id, policy, name, account } = await requireRow(tx, input.address);
  if (policy === undefined) throw repositoryPolicyNotFound(name, account);
  await tx.updateTable('repository').set({ policy: null }).where('id', '=', id).execute();
  return policy;
}

/** Adds tags, overwriting equal keys. @throws Fault RepositoryNotFoundException, TooManyTagsException */
async function tagRepository(
  tx: Tx,
  input: {
    readonly address: RepositoryAddress;
    readonly tags: readonly { readonly key: string; readonly value: string }[];
    readonly tagsMax: number;
  },
): Promise<void> {
  const { id } = await requireRow(tx, input.address);
  if (input.tags.length === 0) return;
  await tx
    .insertInto('repository_tag')
    .values(input.tags.map(({ key, value }) => ({ repository_id: id, key, value })))
    .onConflict((conflict) =>
      conflict.columns(['repository_id', 'key']).doUpdateSet((q) => ({ value: q.ref('excluded.value') })),
    )
    .execute();
  const { count } = await tx
    .selectFrom('repository_tag')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('repository_id', '=', id)
    .executeTakeFirstOrThrow();
  if (Number(count) > input.tagsMax) throw tooManyTags(input.tagsMax);
}

export function tooManyTags(tagsMax: number): Fault {
  return new Fault(
    'TooManyTagsException',
    `The list of tags on the repository is over the limit. The maximum number of tags that can be applied to a repository is ${tagsMax}.`,
  );
}

/** Removes tags; absent keys are fine. @throws Fault RepositoryNotFoundException */
async function untagRepository(
  tx: Tx,
  input: { readonly address: RepositoryAddress; readonly keys: readonly string[] },
): Promise<void> {
  const { id } = await requireRow(tx, input.address);
  // WHY those that are there: the API sets no limit to the keys of a request, a database does.
  const present = await tx
    .selectFrom('repository_tag')
    .select('key')
    .where('repository_id', '=', id)
    .execute();
  const unwanted = new Set(input.keys);
  for (const { key } of present.filter((tag) => unwanted.has(tag.key)))
    await tx.deleteFrom('repository_tag').where('repository_id', '=', id).where('key', '=', key).execute();
}

/**
 * Removes the repository with all it has: policy, tags, unfinished uploads, and with `force` its images; content that is
 * not used elsewhere is trashed. Returns what it was.
 *
 * @throws Fault RepositoryNotFoundException, RepositoryNotEmptyException
 */
async function deleteRepository(
  tx: Tx,
  input: {
    readonly address: RepositoryAddress;
    readonly force: boolean;
    readonly now: number;
    /** when bytes that only this repository had may go */
    readonly deleteAfter: number;
  },
): Promise<RepositoryRecord> {
  const repository = await requireRow(tx, input.address);
  const { id, name, account } = repository;
  if (!input.force) {
    const image = await tx
      .selectFrom('image')
      .select('id')
      .where('repository_id', '=', id)
      .limit(1)
      .executeTakeFirst();
    if (image !== undefined) {
      throw new Fault(
        'RepositoryNotEmptyException',
        `The repository with name '${name}' in registry with id '${account}' cannot be deleted because it still contains images`,
      );
    }
  }
  await deleteImagesOfRepository(tx, id, input.now);
  await deleteUploadsOfRepository(tx, id, input.now);
  await unlinkBlobsOfRepository(tx, id, input.deleteAfter);
  await tx.deleteFrom('repository').where('id', '=', id).execute();
  return repository;
}

export const repositoryTransactions = {
  'repository.create': createRepository,
  'repository.delete': deleteRepository,
  'repository.setTagMutability': setTagMutability,
  'repository.setPolicy': setRepositoryPolicy,
  'repository.deletePolicy': deleteRepositoryPolicy,
  'repository.tag': tagRepository,
  'repository.untag': untagRepository,
} as const satisfies Record<string, Transaction<never, unknown>>;
