/**
 * Restoring a backup into an empty data directory, and into an empty PostgreSQL database when one is named: the rows are
 * the same for both engines, so this also moves a registry from one to the other.
 *
 * Nothing is written before the whole snapshot was read and verified. The embedded database gets its name as the last step;
 * a restore that was broken off is begun again by the same call, and keeps the copies it had made.
 */
import { createHash, randomBytes } from 'node:crypto';
import { access, link, mkdir, readdir, readFile, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { createFileBlobStore, type BlobStore } from '../blobs/blobs.ts';
import { openKeyRing, type KeyRing } from '../lib/keyring.ts';
import {
  listTables,
  openPostgresStore,
  openSqliteStore,
  type Row,
  SCHEMA_VERSION,
  type Store,
} from '../store/store.ts';
import { type BlobRow, blobRowOf, copyBlob } from './backup-copy.ts';
import {
  BackupError,
  type BackupManifest,
  blobsOf,
  isSealedBy,
  listSnapshots,
  readManifestOf,
  readRows,
  requireBackupDirectory,
  snapshotsOf,
  syncDirectory,
  verifyFiles,
  writeWhole,
} from './backup-format.ts';

export interface RestoreOptions {
  readonly directory: string;
  /** the newest unless told */
  readonly snapshot?: string | undefined;
  /** the data directory to make */
  readonly data: string;
  /** `postgres://…`, or empty for the embedded database */
  readonly database: string;
  readonly onProgress?: (progress: Readonly<RestoreProgress>) => void;
}

export interface RestoreProgress {
  step: 'verify' | 'copy' | 'load';
  copies: number;
  bytes: number;
  rows: number;
}

export interface RestoreReport {
  readonly manifest: BackupManifest;
  readonly copies: number;
  readonly rows: number;
}

/** Lies in the data directory from a restore's first write to its last: until then it must not be served. */
export const RESTORE_MARKER = 'restoring.json';
const DATABASE = 'berth.db';
const FILLING = /^restoring-[0-9a-f]+\.db(-wal|-shm)?$/;
/** What a restore makes, and what may lie in an empty directory: the audit log outlives what it is about. */
const OWN = new Set([
  RESTORE_MARKER,
  'keys',
  'blobs',
  'bootstrap',
  'tls',
  'audit',
  'berth.lock',
  'berth.pid',
  'lost+found',
]);
/** What a backup has beside metadata and blobs. */
const FILE_PATH = /^(keys|bootstrap|tls)\/[^./][^/]*$/;
const BATCH_ROWS = 500;
const BATCH_CHARACTERS = 1_048_576;

/**
 * Reads a snapshot through: every file against its manifest, every copy against its digest. `keys` is the directory of the key
 * ring when the backup was made without.
 *
 * @throws BackupError naming the first thing that is wrong
 */
export async function verifyBackup(
  options: Pick<RestoreOptions, 'directory' | 'snapshot' | 'onProgress'> & { readonly keys: string },
): Promise<{ readonly manifest: BackupManifest; readonly keyRing: KeyRing }> {
  const { directory } = options;
  await requireBackupDirectory(directory);
  const id = options.snapshot ?? (await listSnapshots(directory)).at(-1);
  if (id === undefined) throw new BackupError(`${directory} holds no complete snapshot`);
  const manifest = await readManifestOf(directory, id);
  if (manifest.schemaVersion !== SCHEMA_VERSION)
    throw new BackupError(
      `snapshot ${id} has schema version ${manifest.schemaVersion} and this Berth ${SCHEMA_VERSION}: ` +
        `restore it with Berth ${manifest.berthVersion}, then upgrade`,
    );
  // WHY: whoever can write to a backup with keys in it can seal a manifest, and must not reach other files by it.
  for (const { path } of manifest.files)
    if (!FILE_PATH.test(path))
      throw new BackupError(`snapshot ${id} names a file that no backup has: ${path}`);
  await verifyFiles(directory, manifest);
  const keyRing = await openKeys(options, manifest);
  if (!isSealedBy(manifest, keyRing))
    throw new BackupError(
      `the manifest of snapshot ${id} was not sealed with this key ring: other keys, or it was altered`,
    );
  const pool = await createFileBlobStore({ directory: blobsOf(directory), keys: keyRing });
  try {
    const progress: RestoreProgress = { step: 'verify', copies: 0, bytes: 0, rows: 0 };
    for await (const blob of copiesOf(directory, manifest)) {
      await verifyCopy(pool, blob);
      progress.copies += 1;
      progress.bytes += blob.size;
      options.onProgress?.(progress);
    }
    if (progress.copies !== manifest.blobs.count) throw new BackupError('the manifest counts other copies');
  } finally {
    await pool.close();
  }
  return { manifest, keyRing };
}

async function openKeys(
  { directory, keys }: { directory: string; keys: string },
  { id, keys: included }: BackupManifest,
): Promise<KeyRing> {
  const path = included === 'included' ? join(snapshotsOf(directory), id, 'keys') : keys;
  // WHY: opening a ring where there is none would make one.
  await access(join(path, 'master.key')).catch(() => {
    throw new BackupError(
      `snapshot ${id} was made without keys: put the key ring it belongs to into ${path} first`,
    );
  });
  return openKeyRing(path);
}

/** The copies that the snapshot has, by their rows. */
async function* copiesOf(directory: string, { id, lost }: BackupManifest): AsyncGenerator<BlobRow> {
  const absent = new Set(lost.map(({ storageKey }) => storageKey));
  for await (const row of readRows(join(snapshotsOf(directory), id, 'tables', 'blob.jsonl'))) {
    const blob = blobRowOf(row);
    if (!absent.has(blob.storageKey)) yield blob;
  }
}

async function verifyCopy(pool: BlobStore, { storageKey, digest, size }: BlobRow): Promise<void> {
  const hash = createHash('sha256');
  const sink = new Writable({
    write: (bytes: Buffer, _, done) => {
      hash.update(bytes);
      done();
    },
  });
  try {
    const reader = await pool.open(storageKey);
    await reader.sendTo(sink);
    if (reader.size === size && `sha256:${hash.digest('hex')}` === digest) return;
  } catch (error) {
    throw new BackupError(`${digest} in the backup cannot be read: ${(error as Error).message}`);
  }
  throw new BackupError(`what the backup has as ${digest} (${storageKey}) is something else`);
}

/**
 * Restores a snapshot. @throws BackupError when the backup is not whole, or the target not empty; then nothing was changed.
 */
export async function restoreBackup(options: RestoreOptions): Promise<RestoreReport> {
  const { directory, data, database } = options;
  await requireBackupDirectory(directory);
  const id = options.snapshot ?? (await listSnapshots(directory)).at(-1);
  await mkdir(data, { recursive: true, mode: 0o700 });
  await requireEmpty(data, id);
  const keys = join(data, 'keys');
  const { manifest } = await verifyBackup({ ...options, snapshot: id, keys });
  if (manifest.keys === 'included') await requireOwnKeys(directory, manifest, data);
  const filling = join(data, `restoring-${randomBytes(6).toString('hex')}.db`);
  // This also takes the data directory, so that no server starts in it.
  const local = database === '' ? await openSqliteStore({ file: filling }) : undefined;
  const store = local ?? (await openPostgresStore({ url: database }));
  try {
    await removeFillings(data, filling);
    const tables = await listTables(store);
    await requireTables(tables, manifest);
    const { occupied } = await store.transact('restore.begin', { tables });
    if (occupied !== undefined)
      throw new BackupError(`the database is not empty: table ${occupied} has rows. Name an empty one.`);
    await writeWhole(join(data, RESTORE_MARKER), `${JSON.stringify({ snapshot: manifest.id })}\n`);
    const copies = await restoreFiles(options, manifest);
    const rows = await loadTables(options, store, manifest, tables);
    for (const { storageKey } of manifest.lost) await store.transact('damage.setAside', { storageKey });
    await store.transact('restore.end', { engine: store.engine, counters: manifest.counters });
    await store.close();
    if (local !== undefined) await giveName(data, filling);
    await unlink(join(data, RESTORE_MARKER));
    await syncDirectory(data);
    return { manifest, copies, rows };
  } catch (error) {
    await store.close();
    if (local !== undefined) await removeFillings(data, undefined);
    throw error;
  }
}

async function requireEmpty(data: string, id: string | undefined): Promise<void> {
  const names = await readdir(data);
  const foreign = names.filter((name) => !OWN.has(name) && !FILLING.test(name));
  if (foreign.length > 0)
    throw new BackupError(`${data} is not empty: it has ${foreign.slice(0, 3).join(', ')}`);
  const begun = await readMarker(data);
  if (begun === undefined) {
    if (names.some((name) => name === 'blobs' || name === 'bootstrap'))
      throw new BackupError(`${data} is not empty: it has stored content`);
    return;
  }
  if (begun !== id)
    throw new BackupError(
      `a restore of snapshot ${begun} into ${data} was broken off: name that one, or empty the directory`,
    );
}

/** The snapshot whose restore was broken off here. @throws BackupError when that cannot be told: it must not pass for none */
async function readMarker(data: string): Promise<string | undefined> {
  const path = join(data, RESTORE_MARKER);
  try {
    const { snapshot } = JSON.parse(await readFile(path, 'utf8')) as { snapshot?: unknown };
    if (typeof snapshot === 'string') return snapshot;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw unreadable(path, (error as Error).message);
  }
  throw unreadable(path, 'it names no snapshot');
}

function unreadable(path: string, why: string): BackupError {
  return new BackupError(
    `a restore was broken off here, but which one ${path} does not say (${why}): empty the directory`,
  );
}

/** WHY: a key ring that lies there already may belong to other data; only the backup's own is passed over. */
async function requireOwnKeys(directory: string, { id, files }: BackupManifest, data: string): Promise<void> {
  for (const { path } of files) {
    const there = await readFile(join(data, path)).catch(() => undefined);
    if (there !== undefined && !there.equals(await readFile(join(snapshotsOf(directory), id, path))))
      throw new BackupError(`${join(data, path)} is there already and differs from the backup's`);
  }
}

async function requireTables(tables: readonly string[], manifest: BackupManifest): Promise<void> {
  const unknown = manifest.tables.filter(({ name }) => !tables.includes(name));
  if (unknown.length > 0)
    throw new BackupError(
      `the backup has tables this Berth does not know: ${unknown.map(({ name }) => name).join(', ')}`,
    );
}

async function removeFillings(data: string, but: string | undefined): Promise<void> {
  for (const name of await readdir(data))
    if (FILLING.test(name) && (but === undefined || !join(data, name).startsWith(but)))
      await rm(join(data, name), { force: true });
}

/** Keys, credentials and blobs. */
async function restoreFiles(options: RestoreOptions, manifest: BackupManifest): Promise<number> {
  const { directory, data, onProgress } = options;
  for (const { path } of manifest.files) {
    const [folder = ''] = path.split('/');
    await mkdir(join(data, folder), { recursive: true, mode: 0o700 });
    await writeWhole(join(data, path), await readFile(join(snapshotsOf(directory), manifest.id, path)));
  }
  const keys = await openKeyRing(join(data, 'keys'));
  const source = await createFileBlobStore({ directory: blobsOf(directory), keys });
  const target = await createFileBlobStore({ directory: join(data, 'blobs'), keys });
  const progress: RestoreProgress = { step: 'copy', copies: 0, bytes: 0, rows: 0 };
  try {
    for await (const blob of copiesOf(directory, manifest)) {
      await copyBlob(source, target, blob);
      progress.copies += 1;
      progress.bytes += blob.size;
      onProgress?.(progress);
    }
  } finally {
    await source.close();
    await target.close();
  }
  return progress.copies;
}

/** Rows in the order of the tables, a few MiB at a time. */
async function loadTables(
  { directory, onProgress }: RestoreOptions,
  store: Store,
  manifest: BackupManifest,
  tables: readonly string[],
): Promise<number> {
  const progress: RestoreProgress = { step: 'load', copies: 0, bytes: 0, rows: 0 };
  for (const table of tables) {
    const file = manifest.tables.find(({ name }) => name === table);
    if (file === undefined) continue;
    let rows: Row[] = [];
    let characters = 0;
    const load = async (): Promise<void> => {
      await store.transact('restore.load', { table, rows });
      progress.rows += rows.length;
      rows = [];
      characters = 0;
      onProgress?.(progress);
    };
    for await (const row of readRows(join(snapshotsOf(directory), manifest.id, file.path))) {
      rows.push(row);
      for (const value of Object.values(row))
        characters += value instanceof Uint8Array ? value.byteLength : String(value).length;
      if (rows.length >= BATCH_ROWS || characters >= BATCH_CHARACTERS) await load();
    }
    if (rows.length > 0) await load();
  }
  return progress.rows;
}

/** WHY a link: it refuses when a server has made a database of its own meanwhile, which renaming would replace. */
async function giveName(data: string, filling: string): Promise<void> {
  await link(filling, join(data, DATABASE)).catch((error: unknown) => {
    throw new BackupError(`cannot name the database: ${(error as Error).message}`);
  });
  await unlink(filling);
  await syncDirectory(data);
}
