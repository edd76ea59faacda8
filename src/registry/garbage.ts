/**
 * One round of online garbage collection (registry-protocol.md §6.2). Decisions are made by transactions in store/garbage.ts;
 * here bytes follow rows, never the other way round, so a crash or a concurrent push at any point is harmless.
 */
import { knownStorageKeys } from '../store/store.ts';
import { retryBrokenReference } from './retry.ts';
import type { GarbageReport, RegistryContext } from './registry.ts';

/** Rows one transaction looks at: short enough not to hold up pushes behind it. */
const BATCH = 200;
/**
 * Reviews of one transaction. WHY few on PostgreSQL: what a serialisable transaction reads it locks, row by row at first and
 * whole tables from 32 places on, and then every push is in its way.
 */
const REVIEWS = { sqlite: BATCH, postgres: 8 } as const;
/** Stored files asked about at once. */
const ORPHAN_BATCH = 500;

/** Returns `Registry.collectGarbage`. Rounds may overlap, also between processes. */
export function createGarbageCollector(
  context: RegistryContext,
): (options: { readonly orphans: boolean; readonly signal?: AbortSignal }) => Promise<GarbageReport> {
  return async ({ orphans, signal }) => {
    const ended = (): boolean => signal?.aborted === true;
    const uploadsExpired = await expireUploads(context, ended);
    const blobsUnlinked = await reviewContent(context, ended);
    const orphansTrashed = orphans && !ended() ? await trashOrphans(context, ended) : 0;
    const filesDeleted = await emptyTrash(context, ended);
    return { uploadsExpired, blobsUnlinked, filesDeleted, orphansTrashed };
  };
}

/** Whether the round is to end early, at a point from which the next one goes on. */
type Ended = () => boolean;

async function expireUploads({ store, clock, uploadIdleMs }: RegistryContext, ended: Ended): Promise<number> {
  let total = 0;
  while (!ended()) {
    const input = { now: clock(), idleMs: uploadIdleMs, limit: BATCH };
    const { expired } = await store.transact('expireUploads', input);
    total += expired;
    if (expired < BATCH) break;
  }
  return total;
}

async function reviewContent({ store, clock, trashGraceMs }: RegistryContext, ended: Ended): Promise<number> {
  const now = clock();
  const limit = REVIEWS[store.engine];
  let total = 0;
  while (!ended()) {
    const { reviewed, unlinked } = await retryBrokenReference(() =>
      store.transact('reviewGarbage', { now, limit, trashGraceMs }),
    );
    total += unlinked;
    if (reviewed < limit) break;
  }
  return total;
}

/** A file that cannot be deleted keeps no other from it: it is tried again later, and the round fails in the end. */
async function emptyTrash({ store, blobs, clock }: RegistryContext, ended: Ended): Promise<number> {
  const now = clock();
  let total = 0;
  let failure: { readonly error: unknown } | undefined;
  while (!ended()) {
    const taken = await store.transact('takeTrash', { now, limit: BATCH });
    const storageKeys: string[] = [];
    // INVARIANT: bytes first, then the trash row: it is the only thing that still knows them.
    for (const key of taken) {
      if (ended()) break;
      try {
        await blobs.delete(key);
        storageKeys.push(key);
      } catch (error) {
        failure ??= { error };
      }
    }
    if (storageKeys.length > 0) await store.transact('forgetTrash', { storageKeys });
    total += storageKeys.length;
    if (taken.length < BATCH) break;
  }
  if (failure !== undefined) throw failure.error;
  return total;
}

/** Files no row knows, left by a crash between the two; young ones may belong to an upload that is just starting. */
async function trashOrphans(
  { store, blobs, clock, orphanAgeMs }: RegistryContext,
  ended: Ended,
): Promise<number> {
  const bornBefore = clock() - orphanAgeMs;
  let total = 0;
  let batch: string[] = [];
  const judge = async (): Promise<void> => {
    const known = await knownStorageKeys(store.read, batch);
    const storageKeys = batch.filter((key) => !known.has(key));
    batch = [];
    if (storageKeys.length === 0) return;
    total += (await store.transact('trashStorageKeys', { storageKeys, deleteAfter: clock() })).trashed;
  };
  for await (const { key, modifiedAt } of blobs.list()) {
    if (ended()) break;
    if (modifiedAt > bornBefore) continue;
    batch.push(key);
    if (batch.length >= ORPHAN_BATCH) await judge();
  }
  if (batch.length > 0) await judge();
  return total;
}
