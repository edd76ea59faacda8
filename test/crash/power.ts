/**
 * Loss of power: what a dead process had written and not synced is taken back, all of it or a part, as a disk may.
 *
 * A file keeps what it had at its last sync; of what came later, blocks of 512 or 4096 bytes stay or not, each for itself.
 * A directory keeps its entries of its last sync; of later changes a beginning stays, in order (journals keep it).
 */
import assert from 'node:assert/strict';
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';

/** As in fault-layer.c. */
const TYPE = {
  write: 1,
  sync: 2,
  syncDirectory: 3,
  create: 4,
  rename: 5,
  unlink: 6,
  mkdir: 7,
  rmdir: 8,
  lost: 9,
} as const;
const RECORD_BYTES = 48;

interface Record {
  readonly type: number;
  readonly inode: bigint;
  readonly offset: number;
  /** of a write: how many bytes it changed */
  readonly changed: number;
  /** size of the file before */
  readonly size: number;
  readonly path: string;
  /** of a link and of a rename: the other path */
  readonly other: string;
  /** in `saved/`: what lost its name */
  readonly saved: string | undefined;
  /** what was there before */
  readonly bytes: Buffer;
}

export type Loss = 'nothing' | 'everything' | 'something';

/** Takes back what was not synced below `root`, forgets the records, and says how many changes were taken back. */
export function losePower(root: string, area: string, loss: Loss, random: () => number): number {
  const records = loss === 'nothing' ? [] : readRecords(join(area, 'log'));
  const keep = loss === 'everything' ? () => 0 : random;
  const saved = join(area, 'saved');
  const lost = loseContent(records, [root, saved], keep) + loseEntries(records, saved, keep);
  // shared memory does not outlive the machine
  if (loss !== 'nothing') rmSync(join(root, 'berth.db-shm'), { force: true });
  forget(area);
  return lost;
}

/**
 * Takes back every change below `root` that is recorded, synced or not, and forgets the records. Throws when something is not
 * as the records say: then a change is not recorded.
 */
export function takeBack(root: string, area: string): void {
  const syncs: readonly number[] = [TYPE.sync, TYPE.syncDirectory, TYPE.lost];
  const records = readRecords(join(area, 'log')).filter(({ type }) => !syncs.includes(type));
  const saved = join(area, 'saved');
  loseContent(records, [root, saved], () => 0);
  for (const record of records.toReversed()) {
    requireAsLeft(record);
    undo(record, saved);
  }
  forget(area);
}

/** What a change made is there, and in a new file or directory nothing is left. */
function requireAsLeft({ type, path, other }: Record): void {
  if (type === TYPE.create && other === '') assert.equal(statSync(path).size, 0, path);
  else if (type === TYPE.create) assert.equal(statSync(path).ino, statSync(other).ino, path);
  else if (type === TYPE.rename) assert.ok(existsSync(other), other);
  else if (type === TYPE.mkdir) assert.deepEqual(readdirSync(path), [], path);
  else if (type === TYPE.unlink || type === TYPE.rmdir) assert.ok(!existsSync(path), path);
}

function forget(area: string): void {
  writeFileSync(join(area, 'log'), '');
  for (const name of readdirSync(join(area, 'saved'))) rmSync(join(area, 'saved', name));
}

function readRecords(file: string): Record[] {
  const bytes = existsSync(file) ? readFileSync(file) : Buffer.alloc(0);
  const records: Record[] = [];
  for (let at = 0; at + RECORD_BYTES <= bytes.length;) {
    const pathLength = bytes.readUInt32LE(at + 4);
    const otherLength = bytes.readUInt32LE(at + 8);
    const saved = bytes.readUInt32LE(at + 12);
    const inode = bytes.readBigUInt64LE(at + 16);
    const length = Number(bytes.readBigUInt64LE(at + 32));
    const pathAt = at + RECORD_BYTES;
    const otherAt = pathAt + pathLength;
    const bytesAt = otherAt + otherLength;
    records.push({
      type: bytes.readUInt32LE(at),
      inode,
      changed: saved,
      offset: Number(bytes.readBigUInt64LE(at + 24)),
      size: Number(bytes.readBigUInt64LE(at + 40)),
      path: bytes.toString('utf8', pathAt, otherAt),
      other: bytes.toString('utf8', otherAt, bytesAt),
      saved: saved === 0 ? undefined : `${inode}-${saved}`,
      bytes: bytes.subarray(bytesAt, bytesAt + length),
    });
    at = bytesAt + length;
  }
  return records;
}

/** The content of files. `keep` near 1 keeps much, 0 nothing. */
function loseContent(records: readonly Record[], directories: readonly string[], keep: () => number): number {
  const unsynced = new Map<bigint, Record[]>();
  // what a sync failed on: lost unless it is written again and synced, however often the file is synced afterwards
  const doomed = new Set<Record>();
  for (const record of records) {
    const pending = unsynced.get(record.inode) ?? [];
    if (record.type === TYPE.lost) for (const write of pending) doomed.add(write);
    else if (record.type === TYPE.sync) {
      const synced = pending.filter((write) => !doomed.has(write));
      const left = pending.filter((write) => doomed.has(write) && !synced.some((one) => covers(one, write)));
      if (left.length === 0) unsynced.delete(record.inode);
      else unsynced.set(record.inode, left);
    } else if (record.type === TYPE.write) {
      pending.push(record);
      unsynced.set(record.inode, pending);
    }
  }
  if (unsynced.size === 0) return 0;
  const places = placesOf(directories);
  let lost = 0;
  for (const [inode, writes] of unsynced) {
    const path = places.get(inode);
    // without a name it is lost in any case
    if (path === undefined) continue;
    const written = readFileSync(path);
    writeFileSync(path, mix(before(written, writes), written, keep));
    lost += writes.length;
  }
  return lost;
}

function covers(later: Record, earlier: Record): boolean {
  return later.offset <= earlier.offset && later.offset + later.changed >= earlier.offset + earlier.changed;
}

/** The content as it was before these writes. */
function before(written: Buffer, writes: readonly Record[]): Buffer {
  const longest = Math.max(written.length, ...writes.map(({ size }) => size));
  const bytes = Buffer.alloc(longest);
  written.copy(bytes);
  let size = written.length;
  for (const write of writes.toReversed()) {
    ({ size } = write);
    write.bytes.copy(bytes, write.offset);
  }
  return bytes.subarray(0, size);
}

function mix(old: Buffer, written: Buffer, keep: () => number): Buffer {
  const share = keep();
  if (share === 0) return old;
  const block = keep() < 0.5 ? 512 : 4096;
  const size = keep() < share ? written.length : old.length;
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += block) {
    const from = keep() < share ? written : old;
    // a hole where the file ended
    if (at < from.length) from.copy(bytes, at, at, Math.min(at + block, size));
  }
  return bytes;
}

function placesOf(directories: readonly string[]): Map<bigint, string> {
  const places = new Map<bigint, string>();
  for (const directory of directories)
    for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name);
      places.set(statSync(path, { bigint: true }).ino, path);
    }
  return places;
}

/** The names of files. */
function loseEntries(records: readonly Record[], saved: string, keep: () => number): number {
  const unsynced = new Map<string, Record[]>();
  for (const record of records) {
    if (record.type === TYPE.syncDirectory) unsynced.delete(record.path);
    else if (record.type >= TYPE.create && record.type <= TYPE.rmdir) {
      const directory = dirname(record.path);
      const list = unsynced.get(directory) ?? [];
      list.push(record);
      unsynced.set(directory, list);
    }
  }
  const lost = new Set<Record>();
  for (const list of unsynced.values())
    for (const record of list.slice(Math.ceil(list.length * keep()))) lost.add(record);
  for (const record of records.toReversed()) if (lost.has(record)) undo(record, saved);
  return lost.size;
}

function undo({ type, path, other, saved }: Record, directory: string): void {
  const restore = (to: string): void => {
    if (saved !== undefined && existsSync(dirname(to))) linkSync(join(directory, saved), to);
  };
  if (type === TYPE.create) rmSync(path, { force: true });
  else if (type === TYPE.mkdir) rmSync(path, { recursive: true, force: true });
  else if (type === TYPE.rmdir) mkdirSync(path, { recursive: true });
  else if (type === TYPE.unlink) restore(path);
  else if (type === TYPE.rename) {
    if (existsSync(other)) renameSync(other, path);
    restore(other);
  }
}
