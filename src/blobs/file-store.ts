import { createHash, type Hash, type KeyObject } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, opendir, rename, stat, unlink } from 'node:fs/promises';
import { dirname, join, resolve as resolvePath } from 'node:path';
import type { Readable } from 'node:stream';
import type { KeyRing } from '../lib/keyring.ts';
import type { BlobReader, BlobStore } from './blobs.ts';
import {
  closeFile,
  fileBytes,
  hasCode,
  openFile,
  readAt,
  syncData,
  syncDirectory,
  truncateFile,
  writeAt,
} from './disk.ts';
import {
  BlobCorruptError,
  BlobExistsError,
  BlobNotFoundError,
  BlobSealedError,
  UploadBusyError,
  UploadOffsetError,
} from './errors.ts';
import {
  FRAME_BYTES,
  FRAME_OVERHEAD_BYTES,
  FrameCodec,
  FRAMES_AT,
  isUnsealed,
  type Header,
  newHeader,
  newSeal,
  readHeader,
  SEAL_AT,
  sealedFileBytes,
} from './format.ts';
import { FileBlobReader, MemoryBlobReader, scanFrames } from './frame-reader.ts';
import { FrameWriter, type WrittenEnd } from './frame-writer.ts';
import { BufferPool, release, SharedLimits } from './limits.ts';
import { pump } from './pump.ts';

const KEY = /^[0-9a-f][0-9a-f-]{13,61}[0-9a-f]{2}$/;
const EVENED_SUFFIX = '.evened';
/** Not a key, so `list` passes it over; one name, so a crash leaves one at most. */
const PROBE_FILE = '.probe';
const PROBE_BYTES = 64 * 1024;
const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o700;
/** Blobs up to this size are read whole by the first read. */
const SMALL_BYTES = 64 * 1024;
const FIRST_READ_BYTES = FRAMES_AT + SMALL_BYTES + FRAME_OVERHEAD_BYTES + 1;
/** Unfinished uploads whose hash state is kept; others are read again when they go on. */
const UPLOADS_REMEMBERED_MAX = 1024;

/** The committed state of an unfinished upload. */
interface Upload extends WrittenEnd {
  readonly dataKey: KeyObject;
  /** Of bytes 0 up to `offset`. */
  readonly hash: Hash;
  /** Whether a frame other than the last is not full, so that sealing must even them out. */
  readonly ragged: boolean;
  /** Whether the file may hold something behind `position`. */
  readonly dirty: boolean;
  /** Whether the directory entry is known to be durable. */
  readonly entered: boolean;
}

interface Operation {
  readonly cancel: AbortController;
  readonly done: Promise<void>;
}

/**
 * Blobs as encrypted files (format in `format.ts`) in `directory`, spread over two levels of subdirectories by the end of the key.
 * Makes the directory when it is missing. Files are 0600, directories 0700.
 */
export async function createFileBlobStore(options: {
  directory: string;
  keys: KeyRing;
  /** threads of this process that have a store on the directory, 1 unless told: they share the memory streams may use */
  threads?: number;
}): Promise<BlobStore> {
  const directory = resolvePath(options.directory);
  await mkdir(directory, { recursive: true, mode: DIRECTORY_MODE });
  await syncDirectory(dirname(directory));
  return new FileBlobStore(directory, options.keys, new SharedLimits(options.threads));
}

class FileBlobStore implements BlobStore {
  readonly #directory: string;
  readonly #keys: KeyRing;
  readonly #limits: SharedLimits;
  readonly #firstReads = new BufferPool(FIRST_READ_BYTES, 32);
  readonly #uploads = new Map<string, Upload>();
  readonly #operations = new Map<string, Operation>();
  readonly #durableDirectories = new Set<string>();
  #closed = false;

  constructor(directory: string, keys: KeyRing, limits: SharedLimits) {
    this.#directory = directory;
    this.#keys = keys;
    this.#limits = limits;
  }

  async create(key: string, contentKeyName: string): Promise<void> {
    const path = this.#path(key);
    const { dataKey, bytes } = newHeader(key, contentKeyName, this.#keys);
    const fd = await this.#openNew(path, key);
    try {
      await writeAt(fd, [bytes], 0);
    } catch (error) {
      // WHY passed over: the first error is what went wrong, and whoever chose the key sees to it that nothing stays.
      await removeFile(path).catch(() => {});
      throw error;
    } finally {
      await closeFile(fd);
    }
    const start = { offset: 0, position: FRAMES_AT, hash: createHash('sha256') };
    this.#remember(key, { ...start, dataKey, ragged: false, dirty: false, entered: false });
  }

  async append(
    key: string,
    offset: number,
    source: Readable,
    options: { maxBytes: number; signal?: AbortSignal | undefined },
  ): Promise<{ size: number; sha256: string }> {
    // WHY: nobody else listens before the pump does; the pump finds the error on the stream.
    source.on('error', () => {});
    const path = this.#path(key);
    return await this.#alone(key, async (cancelled) => {
      const fd = await openExisting(path, constants.O_RDWR, key);
      try {
        const upload = await this.#uploadAt(fd, key, offset).catch((error: unknown) => {
          // WHY: an upload becomes durable with its first bytes; a loss of power before may leave a name without its header.
          throw offset === 0 && error instanceof BlobCorruptError ? new BlobNotFoundError(key) : error;
        });
        const signals = options.signal === undefined ? [cancelled] : [cancelled, options.signal];
        const next = await this.#extend(fd, key, upload, (writer) =>
          pump(source, writer, { maxBytes: options.maxBytes, signals }),
        );
        const entered = this.#enter(path, upload);
        await Promise.all([this.#limits.flushes.run(() => syncData(fd)), entered]);
        cancelled.throwIfAborted();
        this.#remember(key, { ...next, entered: true });
        return { size: next.offset, sha256: next.hash.copy().digest('hex') };
      } finally {
        await closeFile(fd);
      }
    });
  }

  async seal(key: string, size: number): Promise<void> {
    const path = this.#path(key);
    await this.#alone(key, async () => {
      const fd = await openExisting(path, constants.O_RDWR, key);
      try {
        if ((await isSealed(fd)) && (await this.#header(fd, key)).size === size) {
          // A process may have died between writing the seal and flushing it, or flushing it failed. WHY written again: after
          // a failed flush the kernel takes the page for clean, and flushing once more would do nothing.
          const seal = Buffer.alloc(FRAMES_AT - SEAL_AT);
          await readAt(fd, seal, seal.length, SEAL_AT);
          await writeAt(fd, [seal], SEAL_AT);
          await Promise.all([this.#limits.flushes.run(() => syncData(fd)), this.#enter(path, undefined)]);
          return;
        }
        const upload = await this.#uploadAt(fd, key, size);
        if (upload.ragged) {
          await this.#evenOut(fd, path, key, upload);
        } else {
          // Even when not known to be dirty: another process may have appended in vain.
          await truncateFile(fd, upload.position);
          await writeAt(fd, [newSeal(key, upload.dataKey, size)], SEAL_AT);
          await Promise.all([this.#limits.flushes.run(() => syncData(fd)), this.#enter(path, upload)]);
        }
        this.#uploads.delete(key);
      } finally {
        await closeFile(fd);
      }
    });
  }

  async open(key: string, start = 0, endExclusive?: number): Promise<BlobReader> {
    const path = this.#path(key);
    const small = this.#limits.smallBlobs.get(key);
    if (small !== undefined) {
      this.#keys.contentKey(small.contentKeyName); // what its key is taken from must not be read on
      const { length } = small.plaintext;
      return new MemoryBlobReader(
        length,
        small.plaintext.subarray(start, rangeEnd(length, start, endExclusive)),
      );
    }
    const fd = await openExisting(path, constants.O_RDONLY, key);
    try {
      return await this.#read(fd, key, start, endExclusive);
    } catch (error) {
      await closeFile(fd);
      throw error;
    }
  }

  async size(key: string): Promise<number | undefined> {
    try {
      const fd = await openExisting(this.#path(key), constants.O_RDONLY, key);
      try {
        return (await this.#header(fd, key)).size;
      } finally {
        await closeFile(fd);
      }
    } catch (error) {
      if (error instanceof BlobNotFoundError) return undefined;
      throw error;
    }
  }

  async delete(key: string): Promise<void> {
    const path = this.#path(key);
    for (
      let running = this.#operations.get(key);
      running !== undefined;
      running = this.#operations.get(key)
    ) {
      running.cancel.abort(new BlobNotFoundError(key));
      await running.done;
    }
    this.#uploads.delete(key);
    this.#limits.smallBlobs.delete(key);
    // In this order: a file that `list` does not show must not outlive the one that it shows.
    await removeFile(path + EVENED_SUFFIX);
    await removeFile(path);
  }

  async *list(): AsyncIterable<{ key: string; modifiedAt: number }> {
    this.#checkOpen();
    for await (const outer of await opendir(this.#directory)) {
      if (!outer.isDirectory()) continue;
      for await (const inner of await opendir(join(this.#directory, outer.name))) {
        if (!inner.isDirectory()) continue;
        const directory = join(this.#directory, outer.name, inner.name);
        for await (const file of await opendir(directory)) {
          if (!KEY.test(file.name)) continue;
          const modifiedAt = await modificationTime(join(directory, file.name));
          if (modifiedAt !== undefined) yield { key: file.name, modifiedAt };
        }
      }
    }
  }

  async probe(): Promise<void> {
    this.#checkOpen();
    const path = join(this.#directory, PROBE_FILE);
    const fd = await openFile(path, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, FILE_MODE);
    try {
      await writeAt(fd, [Buffer.alloc(PROBE_BYTES, 1)], 0);
      await syncData(fd);
    } finally {
      await closeFile(fd);
      await removeFile(path);
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const { cancel } of this.#operations.values()) cancel.abort(new Error('the blob store is closed'));
    await Promise.all(Array.from(this.#operations.values(), (operation) => operation.done));
    this.#uploads.clear();
  }

  // -- uploads ----------------------------------------------------------------------------------------------------------------

  /** Runs the one operation that may write to this key. Its signal aborts when the key is deleted or the store closed. */
  async #alone<T>(key: string, task: (cancelled: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#operations.has(key)) throw new UploadBusyError(key);
    const cancel = new AbortController();
    const { promise: done, resolve } = Promise.withResolvers<void>();
    this.#operations.set(key, { cancel, done });
    try {
      return await task(cancel.signal);
    } finally {
      this.#operations.delete(key);
      resolve();
    }
  }

  /** The upload at this committed size: as remembered, or read again from the file. @throws {UploadOffsetError} {BlobSealedError} */
  async #uploadAt(fd: number, key: string, offset: number): Promise<Upload> {
    if (!Number.isSafeInteger(offset) || offset < 0) throw new UploadOffsetError(key, offset);
    const known = this.#uploads.get(key);
    // What is remembered may be out of date when another process has sealed the upload.
    if (known?.offset === offset && !(await isSealed(fd))) return known;
    const { dataKey, size } = await this.#header(fd, key);
    if (size !== undefined) throw new BlobSealedError(key);
    const hash = createHash('sha256');
    let position = FRAMES_AT;
    let ragged = false;
    for await (const frame of scanFrames(fd, key, new FrameCodec(key, dataKey), offset, this.#limits)) {
      for (const piece of frame.pieces) {
        hash.update(piece);
        release(piece);
      }
      ragged ||= frame.offset % FRAME_BYTES !== 0;
      position = frame.end;
    }
    return { offset, position, dataKey, hash, ragged, dirty: true, entered: false };
  }

  /**
   * Writes what `feed` gives behind the committed bytes. INVARIANT: nothing before `upload.position` is written, so whatever happens
   * the upload stays as it was; what a failure leaves behind it is cut off here or by the next append.
   */
  async #extend(
    fd: number,
    key: string,
    upload: Upload,
    feed: (writer: FrameWriter) => Promise<void>,
  ): Promise<Omit<Upload, 'entered'>> {
    if (upload.dirty) await truncateFile(fd, upload.position);
    const hash = upload.hash.copy();
    const writer = new FrameWriter(fd, new FrameCodec(key, upload.dataKey), upload, this.#limits, hash);
    this.#remember(key, { ...upload, dirty: true });
    try {
      await feed(writer);
      const end = await writer.end();
      const ragged = upload.ragged || (end.offset > upload.offset && upload.offset % FRAME_BYTES !== 0);
      return { ...end, dataKey: upload.dataKey, hash, ragged, dirty: false };
    } catch (error) {
      await writer.abandon();
      throw error;
    }
  }

  /** Seals a ragged upload by writing it anew in full frames beside the old file, which stays whole until it is replaced. */
  async #evenOut(fd: number, path: string, key: string, upload: Upload): Promise<void> {
    const codec = new FrameCodec(key, upload.dataKey);
    const evenedPath = path + EVENED_SUFFIX;
    const evened = await openFile(
      evenedPath,
      constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC,
      FILE_MODE,
    );
    try {
      const header = Buffer.alloc(SEAL_AT);
      await readAt(fd, header, SEAL_AT, 0);
      await writeAt(evened, [header, newSeal(key, upload.dataKey, upload.offset)], 0);
      const writer = new FrameWriter(evened, codec, { offset: 0, position: FRAMES_AT }, this.#limits);
      try {
        for await (const frame of scanFrames(fd, key, codec, upload.offset, this.#limits)) {
          for (const piece of frame.pieces) {
            writer.write(piece);
            release(piece);
          }
          await writer.room();
        }
        await writer.end();
      } catch (error) {
        await writer.abandon();
        throw error;
      }
      await this.#limits.flushes.run(() => syncData(evened));
      await rename(evenedPath, path);
    } catch (error) {
      // WHY passed over: the first error is what went wrong, and `delete` removes it with the upload.
      await removeFile(evenedPath).catch(() => {});
      throw error;
    } finally {
      await closeFile(evened);
    }
    await this.#enter(path, undefined);
  }

  #remember(key: string, upload: Upload): void {
    this.#uploads.delete(key);
    this.#uploads.set(key, upload);
    if (this.#uploads.size <= UPLOADS_REMEMBERED_MAX) return;
    for (const oldest of this.#uploads.keys()) return void this.#uploads.delete(oldest);
  }

  // -- reading ----------------------------------------------------------------------------------------------------------------

  async #read(fd: number, key: string, start: number, endExclusive: number | undefined): Promise<BlobReader> {
    const buffer = await this.#firstReads.take();
    try {
      const read = await readAt(fd, buffer, FIRST_READ_BYTES, 0);
      const { dataKey, contentKeyName, size } = readHeader(
        key,
        buffer.subarray(0, Math.min(read, FRAMES_AT)),
        this.#keys,
      );
      if (size === undefined) throw new BlobNotFoundError(key);
      const end = rangeEnd(size, start, endExclusive);
      const fileSize = size <= SMALL_BYTES ? read : await fileBytes(fd);
      if (fileSize !== sealedFileBytes(size))
        throw new BlobCorruptError(key, 'the file has another length than its seal says');
      const codec = new FrameCodec(key, dataKey);
      if (size > SMALL_BYTES) {
        return await FileBlobReader.open({ fd, key, codec, size, limits: this.#limits }, start, end);
      }
      const pieces = size === 0 ? [] : codec.open(0, buffer.subarray(FRAMES_AT, fileSize), size);
      const plaintext = pieces[0] ?? Buffer.alloc(0);
      await closeFile(fd);
      this.#limits.smallBlobs.set(key, contentKeyName, plaintext);
      return new MemoryBlobReader(size, plaintext.subarray(start, end));
    } finally {
      this.#firstReads.give(buffer);
    }
  }

  async #header(fd: number, key: string): Promise<Header> {
    const bytes = Buffer.allocUnsafe(FRAMES_AT);
    const read = await readAt(fd, bytes, FRAMES_AT, 0);
    return readHeader(key, bytes.subarray(0, read), this.#keys);
  }

  // -- files ------------------------------------------------------------------------------------------------------------------

  // WHY: the end of the key, because the beginning of a time-ordered UUID is the same for months.
  #path(key: string): string {
    this.#checkOpen();
    if (!KEY.test(key))
      throw new RangeError('a storage key has 16 to 64 characters of lower-case hexadecimal and hyphens');
    return join(this.#directory, key.slice(-1), key.slice(-2, -1), key);
  }

  #checkOpen(): void {
    if (this.#closed) throw new Error('the blob store is closed');
  }

  async #openNew(path: string, key: string): Promise<number> {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    try {
      return await openFile(path, flags, FILE_MODE);
    } catch (error) {
      if (hasCode(error, 'EEXIST')) throw new BlobExistsError(key);
      if (!hasCode(error, 'ENOENT')) throw error;
    }
    await mkdir(dirname(path), { recursive: true, mode: DIRECTORY_MODE });
    return await this.#openNew(path, key);
  }

  /** Makes the directory entries that lead to this file durable. */
  async #enter(path: string, upload: Upload | undefined): Promise<void> {
    if (upload?.entered === true) return;
    const inner = dirname(path);
    const unsure = this.#durableDirectories.has(inner) ? [inner] : [inner, dirname(inner), this.#directory];
    await Promise.all(unsure.map((directory) => this.#limits.flushes.run(() => syncDirectory(directory))));
    this.#durableDirectories.add(inner);
  }
}

/** Whether a seal, intact or not, has been written. */
async function isSealed(fd: number): Promise<boolean> {
  const bytes = Buffer.alloc(FRAMES_AT - SEAL_AT);
  await readAt(fd, bytes, bytes.length, SEAL_AT);
  return !isUnsealed(bytes);
}

/** The end of a range within a blob. @throws {RangeError} */
function rangeEnd(size: number, start: number, endExclusive: number | undefined): number {
  const end = endExclusive ?? size;
  if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || start > end || end > size) {
    throw new RangeError(`bytes ${start} to ${end} of a blob of ${size}`);
  }
  return end;
}

async function openExisting(path: string, flags: number, key: string): Promise<number> {
  try {
    return await openFile(path, flags);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) throw new BlobNotFoundError(key);
    throw error;
  }
}

async function removeFile(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw error;
  }
}

async function modificationTime(path: string): Promise<number | undefined> {
  try {
    return Math.floor((await stat(path)).mtimeMs);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}
