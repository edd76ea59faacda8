/**
 * The database's part of online garbage collection (registry-protocol.md §6.2). Content of a repository lives while an
 * image refers to it or its lease runs; a stored copy lives while any repository has it. What dies goes to the trash,
 * and its bytes are deleted only after a grace. A crash at any point leaves bytes too many, never too few.
 */
import { type RawBuilder, sql } from 'kysely';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** Keys named in one statement. */
const KEYS_MAX = 500;
/** Trash that was taken is handed out again after this long unless it was forgotten: whoever took it may have died. */
const TRASH_RETRY_MS = 10 * 60_000;

export interface ReviewedGarbage {
  /** reviews looked at; fewer than the limit means that no more are due */
  reviewed: number;
  /** links of repositories removed */
  unlinked: number;
  /** stored copies moved to the trash */
  trashed: number;
  /** reviews put off to the end of a lease */
  postponed: number;
}

interface Review {
  repository_id: string;
  digest: string;
  storage_key: string | null;
  leased_until: number | null;
  referenced: number;
}

/**
 * Decides up to `limit` reviews that are due at `now`. A review of content that an image refers to is dropped: removing the
 * image asks for another.
 */
async function reviewGarbage(
  tx: Tx,
  { now, limit, trashGraceMs }: { now: number; limit: number; trashGraceMs: number },
): Promise<ReviewedGarbage> {
  const result: ReviewedGarbage = { reviewed: 0, unlinked: 0, trashed: 0, postponed: 0 };
  const { rows } = await selectDueReviews(now, limit).execute(tx);
  for (const review of rows) {
    const {
      repository_id: repositoryId,
      digest,
      storage_key: storageKey,
      leased_until: leasedUntil,
    } = review;
    result.reviewed++;
    if (storageKey !== null && leasedUntil !== null && review.referenced === 0) {
      if (leasedUntil > now) {
        await tx
          .updateTable('garbage_review')
          .set({ review_after: leasedUntil })
          .where('repository_id', '=', repositoryId)
          .where('digest', '=', digest)
          .execute();
        result.postponed++;
        continue;
      }
      result.unlinked++;
      if (await unlinkContent(tx, { repositoryId, digest, storageKey, deleteAfter: now + trashGraceMs }))
        result.trashed++;
    }
    await tx
      .deleteFrom('garbage_review')
      .where('repository_id', '=', repositoryId)
      .where('digest', '=', digest)
      .execute();
  }
  return result;
}

/**
 * The reviews that are due, oldest first, with what decides them. Exported for the test of its plan. WHY scalar subqueries
 * with a limit: of a join or of `exists` PostgreSQL may read the whole other table, as it knows little of this one's size.
 */
export function selectDueReviews(now: number, limit: number): RawBuilder<Review> {
  return sql<Review>`
    select r.repository_id, r.digest,
      (select b.storage_key from repository_blob b
        where b.repository_id = r.repository_id and b.digest = r.digest limit 1) as storage_key,
      (select b.leased_until from repository_blob b
        where b.repository_id = r.repository_id and b.digest = r.digest limit 1) as leased_until,
      coalesce((select 1 from image_blob i
        where i.repository_id = r.repository_id and i.blob_digest = r.digest limit 1), 0) as referenced
    from (
      select repository_id, digest, review_after from garbage_review
      where review_after <= ${now} order by review_after limit ${limit}
    ) r
    order by r.review_after`;
}

/**
 * Takes content from a repository, and moves the stored copy to the trash when no other repository has it; says whether
 * it did. The caller has made sure that no image refers to it, or the foreign key fails the transaction.
 */
export async function unlinkContent(
  tx: Tx,
  content: { repositoryId: string; digest: string; storageKey: string; deleteAfter: number },
): Promise<boolean> {
  const { repositoryId, digest, storageKey, deleteAfter } = content;
  await tx
    .deleteFrom('repository_blob')
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .execute();
  const other = await tx
    .selectFrom('repository_blob')
    .select('digest')
    .where('storage_key', '=', storageKey)
    .limit(1)
    .executeTakeFirst();
  if (other !== undefined) return false;
  await tx.deleteFrom('blob').where('storage_key', '=', storageKey).execute();
  return (await trash(tx, [storageKey], deleteAfter)) > 0;
}

/**
 * Hands out up to `limit` storage keys whose grace is over at `now`, oldest first, for their bytes to be deleted and
 * then `forgetTrash`. Keys that are not forgotten come again later.
 */
async function takeTrash(tx: Tx, { now, limit }: { now: number; limit: number }): Promise<string[]> {
  const due = await tx
    .selectFrom('garbage_trash')
    .select('storage_key')
    .where('delete_after', '<=', now)
    .orderBy('delete_after')
    .orderBy('storage_key')
    .limit(limit)
    .execute();
  const keys = due.map((row) => row.storage_key);
  for (const chunk of chunks(keys))
    await tx
      .updateTable('garbage_trash')
      .set({ delete_after: now + TRASH_RETRY_MS })
      .where('storage_key', 'in', chunk)
      .execute();
  return keys;
}

/** The bytes of these keys are gone. */
async function forgetTrash(tx: Tx, { storageKeys }: { storageKeys: readonly string[] }): Promise<void> {
  for (const chunk of chunks(storageKeys))
    await tx.deleteFrom('garbage_trash').where('storage_key', 'in', chunk).execute();
}

/** For stored bytes that nothing will bind: copies that lost a race, and files unknown to the database. */
async function trashStorageKeys(
  tx: Tx,
  { storageKeys, deleteAfter }: { storageKeys: readonly string[]; deleteAfter: number },
): Promise<{ trashed: number }> {
  return { trashed: await trash(tx, storageKeys, deleteAfter) };
}

/** INVARIANT: a key that a blob row binds is never in the trash. Storage keys are never reused, so it stays so. */
async function trash(tx: Tx, storageKeys: readonly string[], deleteAfter: number): Promise<number> {
  let trashed = 0;
  for (const chunk of chunks(storageKeys)) {
    const bound = await tx
      .selectFrom('blob')
      .select('storage_key')
      .where('storage_key', 'in', chunk)
      .execute();
    const kept = new Set(bound.map((row) => row.storage_key));
    const rows = chunk
      .filter((key) => !kept.has(key))
      .map((key) => ({ storage_key: key, delete_after: deleteAfter }));
    if (rows.length === 0) continue;
    const inserted = await tx
      .insertInto('garbage_trash')
      .values(rows)
      .onConflict((conflict) => conflict.column('storage_key').doNothing())
      .executeTakeFirst();
    trashed += Number(inserted.numInsertedOrUpdatedRows);
  }
  return trashed;
}

/**
 * Removes up to `limit` uploads that nobody has continued for `idleMs` and nobody is appending to; their bytes are due for
 * deletion at once. Finished ones only lose their row: their bytes belong to a blob, or are in the trash already.
 */
async function expireUploads(
  tx: Tx,
  { now, idleMs, limit }: { now: number; idleMs: number; limit: number },
): Promise<{ expired: number; trashed: number }> {
  const idle = await tx
    .selectFrom('upload')
    .select(['id', 'storage_key', 'completed_digest'])
    .where('updated_at', '<=', now - idleMs)
    .where((where) => where.or([where('writer_until', 'is', null), where('writer_until', '<=', now)]))
    .orderBy('updated_at')
    .limit(limit)
    .execute();
  for (const chunk of chunks(idle.map((row) => row.id)))
    await tx.deleteFrom('upload').where('id', 'in', chunk).execute();
  const unfinished = idle.filter((row) => row.completed_digest === null).map((row) => row.storage_key);
  return { expired: idle.length, trashed: await trash(tx, unfinished, now) };
}

/** Which of these storage keys a row knows: a blob, an upload or the trash. Stored bytes under any other key are orphans. */
export async function knownStorageKeys(reader: Reader, storageKeys: readonly string[]): Promise<Set<string>> {
  const known = new Set<string>();
  for (const chunk of chunks(storageKeys))
    for (const table of ['upload', 'blob', 'garbage_trash'] as const) {
      // WHY this order: it is the order in which a key moves, so one that moves meanwhile is not missed.
      const rows = await reader
        .selectFrom(table)
        .select('storage_key')
        .where('storage_key', 'in', chunk)
        .execute();
      for (const row of rows) known.add(row.storage_key);
    }
  return known;
}

function* chunks<T>(items: readonly T[]): Generator<readonly T[]> {
  for (let start = 0; start < items.length; start += KEYS_MAX) yield items.slice(start, start + KEYS_MAX);
}

/**
 * Changes nothing and yet has to be written durably, like any other transaction: whoever has its answer knows that writes
 * work. WHY this table: nothing refers to its rows, and this one is gone before anybody could see it.
 */
async function probeWrites(tx: Tx, { name }: { name: string }): Promise<void> {
  await tx
    .insertInto('garbage_trash')
    .values({ storage_key: name, delete_after: Number.MAX_SAFE_INTEGER })
    .execute();
  await tx.deleteFrom('garbage_trash').where('storage_key', '=', name).execute();
}

export const garbageTransactions = {
  probeWrites,
  reviewGarbage,
  takeTrash,
  forgetTrash,
  trashStorageKeys,
  expireUploads,
} as const satisfies Record<string, Transaction<never, unknown>>;
