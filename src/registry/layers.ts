/** Content of a repository by digest. A blob is visible only through repositories that it was uploaded or mounted to. */
import { BlobNotFoundError, type BlobReader } from '../blobs/blobs.ts';
import { type Digest, isSha256, type RepositoryAddress } from '../domain/names.ts';
import { LIMITS } from '../lib/limits.ts';
import { keyFault } from './appending.ts';
import type { Layers, RegistryContext, Repository, StoredBlob } from './registry.ts';
import { retryBrokenReference } from './retry.ts';
import { prepareResolve } from '../store/store.ts';

/** Repositories offered as the source of a mount that names none. */
const HOLDERS_MAX = 20;

type FindRepository = (address: RepositoryAddress) => Promise<Repository | undefined>;

interface BlobRow {
  readonly storage_key: string;
  readonly size: number;
  readonly leased_until: number;
}

/** A blob that is asked for to be read. */
interface ReadRow extends BlobRow {
  /** 1 when images need it and all of them are archived: then it can be read no more than they (ecr-api.md §11) */
  readonly archived: number;
}

const IMAGE_OF = `select 1 from image_blob n
       join image i on i.repository_id = n.repository_id and i.digest = n.image_digest
       where n.repository_id = b.repository_id and n.blob_digest = b.digest`;

type FindBlob = (repositoryId: string, digest: string) => Promise<readonly BlobRow[]>;

export function createLayers(context: RegistryContext, findRepository: FindRepository): Layers {
  const { store, clock, blobLeaseMs, trashGraceMs } = context;
  const findBlob = store.prepare<BlobRow>(
    'select storage_key, size, leased_until from repository_blob where repository_id = ? and digest = ?',
    'keep',
  );
  // WHY case: it asks for archived images only when there is no other, of which one is found soon.
  const findToRead = store.prepare<ReadRow>(
    `select b.storage_key, b.size, b.leased_until,
       case when exists (${IMAGE_OF} and i.status is null) then 0
            when exists (${IMAGE_OF} and i.status is not null) then 1 else 0 end as archived
     from repository_blob b where b.repository_id = ? and b.digest = ?`,
    'keep',
  );
  const findReadable: FindBlob = async (repositoryId, digest) => {
    const rows = await findToRead(repositoryId, digest);
    return rows[0]?.archived === 1 ? [] : rows;
  };
  const resolve = prepareResolve(store, 'blob_alias');
  return {
    resolve: async (repository, digest) => (await resolve(repository.id, digest)) as Digest | undefined,
    stat: (repository, digest) => stat(context, findBlob, repository, digest),
    availability: (repository, digests) => availability(context, repository, digests),
    open: (repository, digest, start, end) => open(context, findReadable, repository, digest, start, end),
    mount: (target, source, digest) =>
      retryBrokenReference(() =>
        store.transact('blob.mount', {
          targetId: target.id,
          sourceId: source.id,
          digest,
          leasedUntil: clock() + blobLeaseMs,
          target: { name: target.name, account: target.account },
        }),
      ),
    holders: (target, digest) => holders(context, findRepository, target, digest),
    remove: (repository, digest) =>
      retryBrokenReference(() =>
        store.transact('blob.remove', {
          repositoryId: repository.id,
          digest,
          deleteAfter: clock() + trashGraceMs,
        }),
      ),
  };
}

/** INVARIANT: a blob that is said to be there stays for at least the lease less one step, so that a push may rely on it. */
async function stat(
  { store, clock, blobLeaseMs }: RegistryContext,
  findBlob: FindBlob,
  repository: Repository,
  digest: string,
): Promise<StoredBlob | undefined> {
  const [row] = await findBlob(repository.id, digest);
  if (row === undefined) return undefined;
  const leasedUntil = clock() + blobLeaseMs;
  if (leasedUntil - row.leased_until > Math.min(LIMITS.blobLeaseStepMs, blobLeaseMs / 2)) {
    const renewed = await store.transact('blob.renewLease', {
      repositoryId: repository.id,
      digest,
      leasedUntil,
    });
    // Collected since it was read.
    if (!renewed) return undefined;
  }
  return { digest: digest as Digest, size: row.size };
}

async function availability(
  { store }: RegistryContext,
  repository: Repository,
  digests: readonly string[],
): Promise<Map<string, { size: number; mediaType: string | undefined; referenced: boolean }>> {
  const found = new Map<string, { size: number; mediaType: string | undefined; referenced: boolean }>();
  if (digests.length === 0) return found;
  const rows = await store.read
    .selectFrom('repository_blob')
    .select((q) => [
      'repository_blob.digest',
      'repository_blob.size',
      q
        .selectFrom('image_blob as k')
        // WHY the table twice: `k` is answered by the index by content, which has no media type.
        .innerJoin('image_blob as o', (join) =>
          join
            .onRef('o.repository_id', '=', 'k.repository_id')
            .onRef('o.image_digest', '=', 'k.image_digest')
            .onRef('o.blob_digest', '=', 'k.blob_digest'),
        )
        .select('o.media_type')
        .whereRef('k.repository_id', '=', 'repository_blob.repository_id')
        .whereRef('k.blob_digest', '=', 'repository_blob.digest')
        .limit(1)
        .as('media_type'),
    ])
    .where('repository_blob.repository_id', '=', repository.id)
    .where('repository_blob.digest', 'in', digests)
    // Zero: its bytes are damaged (store/damage.ts).
    .where('repository_blob.leased_until', '>', 0)
    .execute();
  for (const { digest, size, media_type: mediaType } of rows) {
    found.set(digest, {
      size,
      mediaType: mediaType ?? undefined,
      referenced: mediaType !== null,
    });
  }
  return found;
}

async function open(
  { blobs }: RegistryContext,
  findBlob: FindBlob,
  repository: Repository,
  digest: string,
  start: number | undefined,
  end: number | undefined,
): Promise<BlobReader | undefined> {
  const [row] = await findBlob(repository.id, digest);
  if (row === undefined) return undefined;
  try {
    return await blobs.open(row.storage_key, start, end);
  } catch (error) {
    if (!(error instanceof BlobNotFoundError)) throw keyFault(error);
    // Unlinked and deleted since the row was read, and perhaps uploaded again; else bytes are missing, which must be loud.
    const [now] = await findBlob(repository.id, digest);
    if (now === undefined) return undefined;
    if (now.storage_key === row.storage_key) throw error;
    return await blobs.open(now.storage_key, start, end);
  }
}

async function holders(
  { store }: RegistryContext,
  findRepository: FindRepository,
  target: Repository,
  digest: string,
): Promise<Repository[]> {
  const copies = isSha256(digest)
    ? store.read
        .selectFrom('blob')
        .innerJoin('repository_blob', 'repository_blob.storage_key', 'blob.storage_key')
        .where('blob.digest', '=', digest)
    : store.read
        .selectFrom('blob_alias')
        .innerJoin('repository_blob', (join) =>
          join
            .onRef('repository_blob.repository_id', '=', 'blob_alias.repository_id')
            .onRef('repository_blob.digest', '=', 'blob_alias.digest'),
        )
        .innerJoin('blob', 'blob.storage_key', 'repository_blob.storage_key')
        .where('blob_alias.alias', '=', digest);
  const rows = await copies
    .innerJoin('repository', 'repository.id', 'repository_blob.repository_id')
    .select(['repository.account', 'repository.region', 'repository.name'])
    .where('blob.content_key', '=', target.contentKey)
    // WHY coalesce: as an expression it cannot tempt the planner to start from all repositories of the account.
    .where((q) => q(q.fn.coalesce('repository.account', q.val('')), '=', target.account))
    .where('repository.region', '=', target.region)
    .where('repository.id', '!=', target.id)
    .orderBy('repository_blob.repository_id')
    .limit(HOLDERS_MAX)
    .execute();
  const found = await Promise.all(rows.map(findRepository));
  return found.filter((repository) => repository !== undefined);
}
