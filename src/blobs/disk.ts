// Promises over node:fs descriptors. WHY: not FileHandle, which costs several times as much per call for small blobs.
import fs from 'node:fs';
import { promisify } from 'node:util';

/** Opens a file; the descriptor is the caller's to close. */
export const openFile: (path: string, flags: number, mode?: number) => Promise<number> = promisify(fs.open);
export const closeFile: (fd: number) => Promise<void> = promisify(fs.close);
export const syncData: (fd: number) => Promise<void> = promisify(fs.fdatasync);
export const truncateFile: (fd: number, bytes: number) => Promise<void> = promisify(fs.ftruncate);

/** Length of an open file in bytes. */
export function fileBytes(fd: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.fstat(fd, (error, stats) => (error === null ? resolve(stats.size) : reject(error)));
  });
}

/** Reads up to `length` bytes at `position`; fewer only at the end of the file. */
export async function readAt(
  fd: number,
  buffer: Buffer,
  length: number,
  position: number,
  at = 0,
): Promise<number> {
  let done = 0;
  while (done < length) {
    const read = await readOnce(fd, buffer, at + done, length - done, position + done);
    if (read === 0) break;
    done += read;
  }
  return done;
}

function readOnce(fd: number, buffer: Buffer, at: number, length: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.read(fd, buffer, at, length, position, (error, read) =>
      error === null ? resolve(read) : reject(error),
    );
  });
}

/** Writes all the buffers one after the other from `position`. */
export async function writeAt(fd: number, buffers: readonly Buffer[], position: number): Promise<void> {
  let rest = buffers;
  let at = position;
  while (rest.length > 0) {
    const written = await writeOnce(fd, rest, at);
    at += written;
    rest = after(rest, written);
  }
}

function writeOnce(fd: number, buffers: readonly Buffer[], position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.writev(fd, buffers, position, (error, written) => (error === null ? resolve(written) : reject(error)));
  });
}

function after(buffers: readonly Buffer[], written: number): readonly Buffer[] {
  let skip = written;
  for (const [index, buffer] of buffers.entries()) {
    if (skip < buffer.length) return [buffer.subarray(skip), ...buffers.slice(index + 1)];
    skip -= buffer.length;
  }
  return [];
}

/** Makes the entries of a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const fd = await openFile(path, fs.constants.O_RDONLY);
  try {
    await new Promise<void>((resolve, reject) => {
      fs.fsync(fd, (error) => (error === null ? resolve() : reject(error)));
    });
  } finally {
    await closeFile(fd);
  }
}

/** Whether an error came from the operating system with this code (`ENOENT`). */
export function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
