/** The part of {@link checkRegistry} that starts from what is stored: files no row knows, and uploads that have none. */
import { knownStorageKeys, isPending, pagePendingUploads, type PendingUpload } from '../store/store.ts';
import type { CheckContext } from './check.ts';

const BATCH = 500;
/** Files named as unknown in one run; the next run finds the rest. */
const ORPHANS_MAX = 100_000;
/** An upload this young may still be making its file. */
const SETTLE_MS = 60_000;

export async function checkFiles(context: CheckContext): Promise<void> {
  // WHY all in memory: there are as many as clients push at a time, and what the files do not account for must be known.
  const withoutFile = await pendingUploads(context);
  context.counts.uploads = withoutFile.size;
  const suspects = await findUnknown(context, withoutFile);
  if (suspects.size > 0) await reportOrphans(context, await stillThere(context, suspects));
  await reportUploads(context, withoutFile);
}

async function pendingUploads({ store }: CheckContext): Promise<Map<string, PendingUpload>> {
  const uploads = new Map<string, PendingUpload>();
  for (let after = ''; ;) {
    const page = await pagePendingUploads(store.read, after, BATCH);
    for (const upload of page) uploads.set(upload.storageKey, upload);
    const last = page.at(-1);
    if (last === undefined || page.length < BATCH) return uploads;
    after = last.id;
  }
}

/** Lists the files; returns those no row knows, and takes from `withoutFile` what has one. */
async function findUnknown(
  { store, blobs, counts, progress }: CheckContext,
  withoutFile: Map<string, PendingUpload>,
): Promise<Set<string>> {
  const suspects = new Set<string>();
  let batch: string[] = [];
  const judge = async (): Promise<void> => {
    const known = await knownStorageKeys(store.read, batch);
    for (const key of batch) if (!known.has(key) && suspects.size < ORPHANS_MAX) suspects.add(key);
    counts.files += batch.length;
    batch = [];
    progress();
  };
  for await (const { key } of blobs.list()) {
    withoutFile.delete(key);
    batch.push(key);
    if (batch.length >= BATCH) await judge();
  }
  if (batch.length > 0) await judge();
  return suspects;
}

/**
 * Which of them still have a file. INVARIANT: a row knows a key before there is a file, and until after there is none; so
 * a file that was there before its key was looked for and is there after is nobody's.
 */
async function stillThere({ blobs }: CheckContext, suspects: ReadonlySet<string>): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of blobs.list()) if (suspects.has(key)) found.push(key);
  return found;
}

async function reportOrphans(context: CheckContext, orphans: readonly string[]): Promise<void> {
  const { store, clock, trashGraceMs } = context;
  for (let at = 0; at < orphans.length; at += BATCH) {
    const storageKeys = orphans.slice(at, at + BATCH);
    const trash = async (): Promise<boolean> => {
      await store.transact('trashStorageKeys', { storageKeys, deleteAfter: clock() + trashGraceMs });
      return true;
    };
    for (const [index, storageKey] of storageKeys.entries()) {
      await context.report(
        {
          severity: 'warning',
          code: 'file-unknown',
          text: `no row knows the stored file ${storageKey}`,
          storageKey,
          repair: 'moved to the trash',
        },
        // The first takes the whole batch along.
        index === 0 ? trash : () => Promise.resolve(true),
      );
    }
  }
}

async function reportUploads(
  context: CheckContext,
  withoutFile: ReadonlyMap<string, PendingUpload>,
): Promise<void> {
  const { store, clock } = context;
  for (const { id, repositoryId, storageKey, createdAt } of withoutFile.values()) {
    if (createdAt > clock() - SETTLE_MS || !(await isPending(store.read, id))) continue;
    const upload = { id, repositoryId, repositoryName: '', account: '' };
    await context.report(
      {
        severity: 'warning',
        code: 'upload-without-file',
        text: `the unfinished upload ${id} has no stored file`,
        storageKey,
        repair: 'ended',
      },
      () => store.transact('upload.destroy', { upload, now: clock() }),
    );
  }
}
