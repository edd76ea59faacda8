/**
 * A backup directory, version 1 (docs/operations/backup.md):
 *
 *     berth-backup.json                 what the directory is
 *     blobs/x/y/<storage key>           stored copies, encrypted under the same content keys; shared by all snapshots
 *     snapshots/<id>/manifest.json      what the snapshot consists of; a snapshot without it does not exist
 *     snapshots/<id>/tables/<t>.jsonl   a row of metadata a line, sealed secrets still sealed
 *     snapshots/<id>/keys/, bootstrap/, tls/   key ring, first administrator's credentials, certificates: unless left out
 *
 * Names that begin with a dot are unfinished.
 */
import { createHash, createHmac, type KeyObject } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, readdir, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import type { KeyRing } from '../lib/keyring.ts';
import type { Counters, Row, Value } from '../store/store.ts';

/** The backup cannot be made or used; the message says why, to the operator. */
export class BackupError extends Error {
  override readonly name = 'BackupError';
}

export interface BackupFile {
  /** below the snapshot, with `/` */
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** A stored copy that could not be read when the backup was made, and is not in it. */
export interface LostCopy {
  readonly storageKey: string;
  readonly digest: string;
  readonly reason: string;
}

export interface BackupManifest {
  readonly format: 'berth-backup';
  readonly version: 1;
  readonly id: string;
  /** ISO 8601, of the snapshot */
  readonly createdAt: string;
  readonly berthVersion: string;
  readonly engine: 'sqlite' | 'postgres';
  readonly schemaVersion: number;
  readonly tables: readonly (BackupFile & { readonly name: string; readonly rows: number })[];
  readonly counters: Counters;
  readonly blobs: { readonly count: number; readonly bytes: number };
  readonly lost: readonly LostCopy[];
  readonly keys: 'included' | 'left out';
  readonly files: readonly BackupFile[];
  /** HMAC-SHA-256 (hex) of all of the above under a key of the key ring */
  readonly seal: string;
}

const VERSION = 1;
const IDENTITY = 'berth-backup.json';
export const MANIFEST = 'manifest.json';
const SNAPSHOT_ID = /^\d{8}T\d{9}Z$/;

export const blobsOf = (directory: string): string => join(directory, 'blobs');
export const snapshotsOf = (directory: string): string => join(directory, 'snapshots');

/** The name of a snapshot taken at `now`: ids sort by time. */
export function snapshotId(now: number): string {
  return new Date(now).toISOString().replace(/[-:.]/g, '');
}

/** Complete snapshots, oldest first. */
export async function listSnapshots(directory: string): Promise<string[]> {
  const names = await readdir(snapshotsOf(directory)).catch(emptyIfMissing);
  return names.filter((name) => SNAPSHOT_ID.test(name)).sort();
}

function emptyIfMissing(error: NodeJS.ErrnoException): string[] {
  if (error.code === 'ENOENT') return [];
  throw error;
}

/** Makes the directory of backups, or makes sure that it is one. @throws BackupError */
export async function openBackupDirectory(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  if ((await readdir(directory)).length > 0) return requireBackupDirectory(directory);
  const identity = `${JSON.stringify({ format: 'berth-backup', version: VERSION })}\n`;
  await writeWhole(join(directory, IDENTITY), identity);
}

/** @throws BackupError unless the directory holds backups of this version */
export async function requireBackupDirectory(directory: string): Promise<void> {
  let identity: { format?: unknown; version?: unknown };
  try {
    identity = JSON.parse(await readFile(join(directory, IDENTITY), 'utf8')) as typeof identity;
  } catch {
    throw new BackupError(`${directory} is not a directory of backups (it has no ${IDENTITY})`);
  }
  if (identity.format !== 'berth-backup' || identity.version !== VERSION)
    throw new BackupError(
      `${directory} holds backups of version ${String(identity.version)}; this Berth reads ${VERSION}`,
    );
}

/** @throws BackupError when there is no such snapshot, or its manifest cannot be read */
export async function readManifestOf(directory: string, id: string): Promise<BackupManifest> {
  const path = join(snapshotsOf(directory), id, MANIFEST);
  let manifest: BackupManifest;
  try {
    manifest = JSON.parse(await readFile(path, 'utf8')) as BackupManifest;
  } catch (error) {
    throw new BackupError(`cannot read ${path}: ${(error as Error).message}`);
  }
  if (manifest.format !== 'berth-backup' || manifest.version !== VERSION || manifest.id !== id)
    throw new BackupError(`${path} is not the manifest of snapshot ${id}`);
  return manifest;
}

/** Binds a manifest to the key ring of the data it is about. */
export function sealManifest(manifest: Omit<BackupManifest, 'seal'>, keys: KeyRing): BackupManifest {
  return { ...manifest, seal: sealOf(manifest, keys.derive('backup manifest')) };
}

export function isSealedBy({ seal, ...manifest }: BackupManifest, keys: KeyRing): boolean {
  return seal === sealOf(manifest, keys.derive('backup manifest'));
}

function sealOf(manifest: Omit<BackupManifest, 'seal'>, key: KeyObject): string {
  return createHmac('sha256', key).update(JSON.stringify(manifest)).digest('hex');
}

/** Compares every file of a snapshot but the blobs with its manifest. @throws BackupError */
export async function verifyFiles(directory: string, { id, tables, files }: BackupManifest): Promise<void> {
  for (const { path, bytes, sha256 } of [...tables, ...files]) {
    const found = await hashFile(join(snapshotsOf(directory), id, path)).catch((error: unknown) => {
      throw new BackupError(`cannot read ${path} of snapshot ${id}: ${(error as Error).message}`);
    });
    if (found.bytes !== bytes || found.sha256 !== sha256)
      throw new BackupError(`${path} of snapshot ${id} is not what was written`);
  }
}

export async function hashFile(path: string): Promise<Omit<BackupFile, 'path'>> {
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { bytes, sha256: hash.digest('hex') };
}

/** Writes rows as lines, durably. */
export async function writeRows(
  path: string,
  batches: AsyncIterable<readonly Row[]>,
): Promise<Omit<BackupFile, 'path'> & { rows: number }> {
  const hash = createHash('sha256');
  let bytes = 0;
  let rows = 0;
  const file = await open(path, 'wx', 0o600);
  try {
    for await (const batch of batches) {
      const text = Buffer.from(batch.map((row) => `${JSON.stringify(row, encodeBytes)}\n`).join(''));
      hash.update(text);
      bytes += text.length;
      rows += batch.length;
      await file.writeFile(text);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return { rows, bytes, sha256: hash.digest('hex') };
}

/** WHY from the holder: JSON.stringify asks a Buffer for its own JSON before the replacer sees it. */
function encodeBytes(this: Readonly<Record<string, unknown>>, key: string, value: unknown): unknown {
  const held = this[key];
  return held instanceof Uint8Array
    ? { base64: Buffer.from(held.buffer, held.byteOffset, held.byteLength).toString('base64') }
    : value;
}

/** Rows of a file that {@link writeRows} wrote. */
export async function* readRows(path: string): AsyncGenerator<Row> {
  const lines = createInterface({ input: createReadStream(path), crlfDelay: Infinity });
  for await (const line of lines) {
    if (line === '') continue;
    const row = JSON.parse(line) as Record<string, Value | { readonly base64: string }>;
    yield Object.fromEntries(Object.entries(row).map(([name, value]) => [name, decodeBytes(value)]));
  }
}

function decodeBytes(value: Value | { readonly base64: string }): Value {
  return value !== null && typeof value === 'object' && 'base64' in value
    ? new Uint8Array(Buffer.from(value.base64, 'base64'))
    : value;
}

/** Writes a file whole and durably, readable to its owner only. */
export async function writeWhole(path: string, content: string | Uint8Array): Promise<void> {
  const temporary = `${path}.new`;
  await withFile(temporary, 'w', async (file) => {
    await file.writeFile(content);
    await file.sync();
  });
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

export async function syncDirectory(path: string): Promise<void> {
  await withFile(path, 'r', (file) => file.sync());
}

async function withFile(
  path: string,
  flags: string,
  work: (file: FileHandle) => Promise<void>,
): Promise<void> {
  const file = await open(path, flags, 0o600);
  try {
    await work(file);
  } finally {
    await file.close();
  }
}
