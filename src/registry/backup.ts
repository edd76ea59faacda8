/**
 * Backups, taken beside running servers.
 *
 * Order: first the metadata in one snapshot, then the bytes it refers to. Stored copies are immutable and outlive the
 * removal of their rows by the grace of the trash, so nearly always all that the snapshot names is still there; when
 * something is not, because it was deleted and collected since, the snapshot is dropped and a new one taken. The other
 * order would miss what is pushed meanwhile. A restore gives the state of the snapshot.
 */
import { mkdir, readdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { createFileBlobStore, type BlobStore } from '../blobs/blobs.ts';
import { openKeyRing, type KeyRing } from '../lib/keyring.ts';
import { exportTables, isBound, isSetAside, type Store } from '../store/store.ts';
import { blobRowOf, CopyUnreadableError, copyBlob } from './backup-copy.ts';
import {
  BackupError,
  type BackupFile,
  type BackupManifest,
  blobsOf,
  hashFile,
  listSnapshots,
  type LostCopy,
  MANIFEST,
  openBackupDirectory,
  readRows,
  sealManifest,
  snapshotId,
  snapshotsOf,
  syncDirectory,
  writeRows,
  writeWhole,
} from './backup-format.ts';

export interface BackupOptions {
  /** opened for reading only */
  readonly store: Store;
  readonly blobs: Pick<BlobStore, 'open'>;
  /** the data directory: its `keys/`, `bootstrap/credentials` and `tls/` go along */
  readonly data: string;
  readonly directory: string;
  readonly withoutKeys: boolean;
  /** older snapshots that are kept beside the new one; all unless told */
  readonly keep?: number | undefined;
  readonly clock: () => number;
  readonly berthVersion: string;
  readonly onProgress?: (progress: Readonly<BackupProgress>) => void;
  /** a snapshot had to be dropped: why */
  readonly onRetry?: (reason: string) => void;
}

export interface BackupProgress {
  copies: number;
  /** copied this time, and their bytes; the others were in the directory already */
  copied: number;
  bytesCopied: number;
}

export interface BackupReport extends BackupProgress {
  readonly manifest: BackupManifest;
  /** snapshots that were dropped because what they named was collected */
  readonly retries: number;
  /** older snapshots removed */
  readonly removed: readonly string[];
}

const ROUNDS_MAX = 5;
const COPIES_AT_ONCE = 4;
/** What of the data directory goes along beside metadata and blobs. */
const SECRETS = { keys: /^[^.].*\.key$/, bootstrap: /^credentials$/, tls: /^[^.].*\.pem$/ } as const;

/** What a snapshot names is gone, and so is the row that named it. */
class SnapshotOutdated extends Error {}

/**
 * Makes one backup. It is complete when the snapshot's directory has its name, and until then does not count.
 *
 * @throws BackupError when the directory is not one of backups, or the content changes faster than it can be copied
 */
export async function createBackup(options: BackupOptions): Promise<BackupReport> {
  const { directory } = options;
  await openBackupDirectory(directory);
  await mkdir(snapshotsOf(directory), { recursive: true, mode: 0o700 });
  const unlock = await lock(directory);
  try {
    return await backUp(options);
  } finally {
    await unlock();
  }
}

async function backUp(options: BackupOptions): Promise<BackupReport> {
  const { directory, data, clock } = options;
  await removeUnfinished(directory);
  const keys = await openKeyRing(join(data, 'keys'));
  const pool = await createFileBlobStore({ directory: blobsOf(directory), keys });
  const progress: BackupProgress = { copies: 0, copied: 0, bytesCopied: 0 };
  try {
    for (let round = 1; ; round++) {
      const id = snapshotId(clock());
      const unfinished = join(snapshotsOf(directory), `.${id}`);
      try {
        const manifest = await takeSnapshot(options, { id, unfinished, keys, pool, progress });
        await rename(unfinished, join(snapshotsOf(directory), id));
        await syncDirectory(snapshotsOf(directory));
        const removed = options.keep === undefined ? [] : await prune(directory, options.keep + 1, pool);
        return { ...progress, manifest, retries: round - 1, removed };
      } catch (error) {
        await rm(unfinished, { recursive: true, force: true });
        if (!(error instanceof SnapshotOutdated)) throw error;
        if (round === ROUNDS_MAX)
          throw new BackupError(
            `content was deleted faster than it could be copied, ${ROUNDS_MAX} times: ${error.message}. ` +
              'Raise trash-grace-ms above the time a backup takes; what was copied is kept for the next try.',
          );
        options.onRetry?.(error.message);
      }
    }
  } finally {
    await pool.close();
  }
}

/**
 * One backup at a time writes to a directory. A lock whose process is gone is taken over, on the same machine.
 *
 * @throws BackupError naming the process that has it
 */
async function lock(directory: string): Promise<() => Promise<void>> {
  const path = join(directory, 'lock');
  const owner = `${process.pid} on ${hostname()}`;
  for (;;) {
    try {
      await writeFile(path, owner, { flag: 'wx', mode: 0o600 });
      return () => unlink(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const held = await readFile(path, 'utf8');
    const [pid, host] = held.split(' on ');
    if (host !== hostname() || isAlive(Number(pid)))
      throw new BackupError(`process ${held} backs up into ${directory}; if it does not, remove ${path}`);
    await rm(path, { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

async function removeUnfinished(directory: string): Promise<void> {
  for (const name of await readdir(snapshotsOf(directory)))
    if (name.startsWith('.')) await rm(join(snapshotsOf(directory), name), { recursive: true, force: true });
}

interface Round {
  readonly id: string;
  readonly unfinished: string;
  readonly keys: KeyRing;
  readonly pool: BlobStore;
  readonly progress: BackupProgress;
}

async function takeSnapshot(options: BackupOptions, round: Round): Promise<BackupManifest> {
  const { store, data, clock, withoutKeys } = options;
  const { id, unfinished, keys } = round;
  await mkdir(join(unfinished, 'tables'), { recursive: true, mode: 0o700 });
  const createdAt = new Date(clock()).toISOString();
  const tables: BackupManifest['tables'][number][] = [];
  const { schemaVersion, counters } = await exportTables(store, async (name, batches) => {
    const path = `tables/${name}.jsonl`;
    tables.push({ name, path, ...(await writeRows(join(unfinished, path), batches)) });
  });
  await syncDirectory(join(unfinished, 'tables'));
  // WHY after the metadata: a key is durable before a row names it, so none that a row names is missing.
  const files = withoutKeys ? [] : await copySecrets(data, unfinished);
  const { count, bytes, lost } = await copyBlobs(options, round);
  const manifest = sealManifest(
    {
      format: 'berth-backup',
      version: 1,
      id,
      createdAt,
      berthVersion: options.berthVersion,
      engine: store.engine,
      schemaVersion,
      tables,
      counters,
      blobs: { count, bytes },
      lost,
      keys: withoutKeys ? 'left out' : 'included',
      files,
    },
    keys,
  );
  await writeWhole(join(unfinished, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
  return manifest;
}

async function copySecrets(data: string, unfinished: string): Promise<BackupFile[]> {
  const files: BackupFile[] = [];
  for (const [folder, wanted] of Object.entries(SECRETS)) {
    const names = await readdir(join(data, folder)).catch(() => []);
    await mkdir(join(unfinished, folder), { mode: 0o700 });
    for (const name of names.filter((file) => wanted.test(file)).sort()) {
      const path = `${folder}/${name}`;
      await writeWhole(join(unfinished, path), await readFile(join(data, path)));
      files.push({ path, ...(await hashFile(join(unfinished, path))) });
    }
    await syncDirectory(join(unfinished, folder));
  }
  return files;
}

async function copyBlobs(
  options: BackupOptions,
  { unfinished, pool, progress }: Round,
): Promise<{ count: number; bytes: number; lost: LostCopy[] }> {
  const { store, blobs, onProgress } = options;
  const totals = { count: 0, bytes: 0, lost: [] as LostCopy[] };
  progress.copies = 0;
  // WHY one iterator: each of the copiers takes the next row when it is done with one.
  const rows = readRows(join(unfinished, 'tables', 'blob.jsonl'));
  let outdated: unknown;
  const work = async (): Promise<void> => {
    for (;;) {
      const next = outdated === undefined ? await rows.next() : undefined;
      if (next === undefined || next.done === true) return;
      const blob = blobRowOf(next.value);
      progress.copies += 1;
      try {
        const copied = !isSetAside(blob.contentKey) && (await copyBlob(blobs, pool, blob));
        if (copied) {
          progress.copied += 1;
          progress.bytesCopied += blob.size;
        }
        if (isSetAside(blob.contentKey)) totals.lost.push(lostCopy(blob, 'found damaged by fsck before'));
        else {
          totals.count += 1;
          totals.bytes += blob.size;
        }
      } catch (error) {
        if (!(error instanceof CopyUnreadableError)) {
          outdated = error;
          throw error;
        }
        if (!(await isBound(store.read, blob.storageKey))) {
          outdated = new SnapshotOutdated(`${blob.digest} was collected while the backup ran`);
          throw outdated;
        }
        totals.lost.push(lostCopy(blob, error.message));
      }
      onProgress?.(progress);
    }
  };
  const done = await Promise.allSettled(Array.from({ length: COPIES_AT_ONCE }, work));
  await rows.return(undefined);
  for (const result of done) if (result.status === 'rejected') throw result.reason;
  return totals;
}

function lostCopy({ storageKey, digest }: { storageKey: string; digest: string }, reason: string): LostCopy {
  return { storageKey, digest, reason };
}

/** Removes all but the newest `count` snapshots, and the copies that no other needs. */
async function prune(directory: string, count: number, pool: BlobStore): Promise<string[]> {
  const snapshots = await listSnapshots(directory);
  const kept = snapshots.slice(-count);
  const removed = snapshots.slice(0, -count);
  if (removed.length === 0) return [];
  for (const id of removed) {
    // INVARIANT: a snapshot under its name is whole.
    const leaving = join(snapshotsOf(directory), `.${id}`);
    await rename(join(snapshotsOf(directory), id), leaving);
    await syncDirectory(snapshotsOf(directory));
    await rm(leaving, { recursive: true });
  }
  const needed = new Set<string>();
  for (const id of kept)
    for await (const row of readRows(join(snapshotsOf(directory), id, 'tables', 'blob.jsonl')))
      needed.add(String(row['storage_key']));
  for await (const { key } of pool.list()) if (!needed.has(key)) await pool.delete(key);
  return removed;
}
