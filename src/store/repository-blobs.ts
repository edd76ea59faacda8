/**
 * The content a repository can see: linking, leases and unlinking. INVARIANT: a storage key is named by a `blob` row, by
 * an unfinished `upload` row or by a `garbage_trash` row, and by one of them only; bytes go only after the last.
 */
import { sql } from 'kysely';
import { repositoryNotFound } from '../domain/faults.ts';
import { addAliases } from './aliases.ts';
import { setAsideSql } from './damage.ts';
import { unlinkContent } from './garbage.ts';
import { admitBlob } from './sparse-manifests.ts';
import type { Transaction, Tx } from './transaction.ts';

/** Entries of one statement: far below the 32,766 variables of SQLite. */
export const STATEMENT_ROWS_MAX = 500;

export function* chunks<T>(items: readonly T[]): Iterable<readonly T[]> {
  for (let at = 0; at < items.length; at += STATEMENT_ROWS_MAX)
    yield items.slice(at, at + STATEMENT_ROWS_MAX);
}

/** Puts bytes no row names any more on the list of what the collector deletes after `deleteAfter`. */
export async function trash(tx: Tx, storageKey: string, deleteAfter: number): Promise<void> {
  await tx
    .insertInto('garbage_trash')
    .values({ storage_key: storageKey, delete_after: deleteAfter })
    .onConflict((conflict) => conflict.column('storage_key').doNothing())
    .execute();
}

/** Has the collector look at the content (again) at `reviewAfter`. */
async function review(
  tx: Tx,
  content: { readonly repositoryId: string; readonly digest: string },
  reviewAfter: number,
): Promise<void> {
  await tx
    .insertInto('garbage_review')
    .values({ repository_id: content.repositoryId, digest: content.digest, review_after: reviewAfter })
    .onConflict((conflict) =>
      conflict.columns(['repository_id', 'digest']).doUpdateSet({ review_after: reviewAfter }),
    )
    .execute();
}

/**
 * Links stored content into a repository, or renews the lease of the link there is. `aliases` are its digests of other
 * algorithms.
 */
export async function link(
  tx: Tx,
  content: {
    readonly repositoryId: string;
    readonly digest: string;
    readonly storageKey: string;
    readonly size: number;
  },
  leasedUntil: number,
  aliases: readonly string[],
): Promise<void> {
  await tx
    .insertInto('repository_blob')
    .values({
      repository_id: content.repositoryId,
      digest: content.digest,
      storage_key: content.storageKey,
      size: content.size,
      leased_until: leasedUntil,
    })
    .onConflict((conflict) =>
      conflict.columns(['repository_id', 'digest']).doUpdateSet({ leased_until: leasedUntil }),
    )
    .execute();
  await review(tx, content, leasedUntil);
  await addAliases(tx, 'blob_alias', content, aliases);
  await admitBlob(tx, content, [content.digest, ...aliases]);
}

export interface RenewLeaseInput {
  readonly repositoryId: string;
  readonly digest: string;
  readonly leasedUntil: number;
}

/**
 * False when the repository does not see the blob (any more), or its bytes are damaged (damage.ts). A lease never gets
 * shorter. The review that is due at its old end finds the new one and is put off.
 */
async function renewLease(tx: Tx, input: RenewLeaseInput): Promise<boolean> {
  const renewed = await tx
    .updateTable('repository_blob')
    .set((q) => ({
      leased_until: q
        .case()
        .when('leased_until', '<', input.leasedUntil)
        .then(input.leasedUntil)
        .else(q.ref('leased_until'))
        .end(),
    }))
    .where('repository_id', '=', input.repositoryId)
    .where('digest', '=', input.digest)
    .where((where) => where.not(setAsideSql('repository_blob')))
    .returning('leased_until')
    .executeTakeFirst();
  return renewed !== undefined;
}

export interface MountBlobInput {
  readonly targetId: string;
  readonly sourceId: string;
  /** sha256; its aliases come along */
  readonly digest: string;
  readonly leasedUntil: number;
  /** for the text of RepositoryNotFoundException */
  readonly target: { readonly name: string; readonly account: string };
}

/**
 * Links a blob of one repository into another with the same content key. False when there is none to link.
 *
 * @throws Fault RepositoryNotFoundException (the target)
 */
async function mountBlob(tx: Tx, input: MountBlobInput): Promise<boolean> {
  const target = await tx
    .selectFrom('repository')
    .select('content_key')
    .where('id', '=', input.targetId)
    .executeTakeFirst();
  if (target === undefined) throw repositoryNotFound(input.target.name, input.target.account);
  const blob = await tx
    .selectFrom('repository_blob')
    .innerJoin('blob', 'blob.storage_key', 'repository_blob.storage_key')
    .select(['blob.storage_key', 'blob.size', 'blob.content_key'])
    .where('repository_blob.repository_id', '=', input.sourceId)
    .where('repository_blob.digest', '=', input.digest)
    .executeTakeFirst();
  if (blob === undefined || blob.content_key !== target.content_key) return false;
  const content = { repositoryId: input.targetId, digest: input.digest };
  const aliases = await tx
    .selectFrom('blob_alias')
    .select('alias')
    .where('repository_id', '=', input.sourceId)
    .where('digest', '=', input.digest)
    .execute();
  await link(
    tx,
    { ...content, storageKey: blob.storage_key, size: blob.size },
    input.leasedUntil,
    aliases.map(({ alias }) => alias),
  );
  return true;
}

export interface RemoveBlobInput {
  readonly repositoryId: string;
  readonly digest: string;
  readonly deleteAfter: number;
}

/** Unlinks a blob no image of the repository needs; its bytes go when no other repository has it. */
async function removeBlob(tx: Tx, input: RemoveBlobInput): Promise<'removed' | 'absent' | 'referenced'> {
  const blob = await tx
    .selectFrom('repository_blob')
    .select('storage_key')
    .where('repository_id', '=', input.repositoryId)
    .where('digest', '=', input.digest)
    .executeTakeFirst();
  if (blob === undefined) return 'absent';
  const needed = await tx
    .selectFrom('image_blob')
    .select('image_digest')
    .where('repository_id', '=', input.repositoryId)
    .where('blob_digest', '=', input.digest)
    .limit(1)
    .executeTakeFirst();
  if (needed !== undefined) return 'referenced';
  await tx
    .deleteFrom('garbage_review')
    .where('repository_id', '=', input.repositoryId)
    .where('digest', '=', input.digest)
    .execute();
  await unlinkContent(tx, { ...input, storageKey: blob.storage_key });
  return 'removed';
}

/**
 * Unlinks all content of a repository that has no images any more; what no other repository has goes to the trash.
 * Works by set, so its memory does not grow with the repository. For the deletion of a repository.
 */
export async function unlinkBlobsOfRepository(
  tx: Tx,
  repositoryId: string,
  deleteAfter: number,
): Promise<void> {
  await tx
    .insertInto('garbage_trash')
    .columns(['storage_key', 'delete_after'])
    .expression(
      tx
        .selectFrom('repository_blob as own')
        .select(['own.storage_key', sql<number>`cast(${deleteAfter} as bigint)`.as('delete_after')])
        .where('own.repository_id', '=', repositoryId)
        .where((q) =>
          q.not(
            q.exists(
              q
                .selectFrom('repository_blob as other')
                .select('other.repository_id')
                .whereRef('other.storage_key', '=', 'own.storage_key')
                .where('other.repository_id', '!=', repositoryId),
            ),
          ),
        ),
    )
    .onConflict((conflict) => conflict.column('storage_key').doNothing())
    .execute();
  await tx.deleteFrom('repository_blob').where('repository_id', '=', repositoryId).execute();
  // INVARIANT: what is in the trash has no blob row; so exactly the rows just orphaned match.
  await tx
    .deleteFrom('blob')
    .where('storage_key', 'in', (q) =>
      q.selectFrom('garbage_trash').select('storage_key').where('delete_after', '=', deleteAfter),
    )
    .execute();
  await tx.deleteFrom('garbage_review').where('repository_id', '=', repositoryId).execute();
}

export const repositoryBlobTransactions = {
  'blob.renewLease': renewLease,
  'blob.mount': mountBlob,
  'blob.remove': removeBlob,
} as const satisfies Record<string, Transaction<never, unknown>>;
