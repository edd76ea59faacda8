import type { Readable, Writable } from 'node:stream';

export {
  BlobCorruptError,
  BlobExistsError,
  BlobNotFoundError,
  BlobSealedError,
  ByteLimitError,
  UploadBusyError,
  UploadOffsetError,
} from './errors.ts';
export { createFileBlobStore } from './file-store.ts';

/**
 * Bytes under opaque storage keys, encrypted at rest. A key is 16 to 64 characters of lower-case hexadecimal and `-` (a UUID will
 * do), chosen by the caller, never derived from content and never used twice; any method throws RangeError for another one.
 *
 * Life of a blob: `create`, any number of `append`s, `seal`, then reads, then `delete`. An unfinished one may be deleted too. The
 * caller keeps the committed size: a process may die at any point and any process may go on from the size the last successful
 * `append` returned, or from the one before it, when the caller could not record the last.
 *
 * INVARIANT: one process at a time appends to or seals a key. Inside a process the store refuses a second one; between processes
 * the caller must see to it (a lease on the upload).
 */
export interface BlobStore {
  /**
   * Begins an upload whose data key is wrapped by the named content key. It survives the death of the process; it becomes durable
   * with the first `append` or `seal`.
   *
   * @throws {BlobExistsError} when the key is taken.
   * @throws {KeyUnavailableError} when the key ring has no such content key.
   */
  create(key: string, contentKeyName: string): Promise<void>;

  /**
   * Appends a byte stream at `offset`, the committed size; what an aborted append left beyond it is dropped. Holds the source back
   * to keep memory bounded. On success the bytes are durable; returns the new size and the SHA-256 (hex) of all bytes so far. After
   * a failure the first `offset` bytes are as they were. The source is left paused, not destroyed, when the failure is not its own.
   *
   * @throws the source's error, or ERR_STREAM_PREMATURE_CLOSE when it closes before its end; the signal's reason (AbortError).
   * @throws {ByteLimitError} when more than `maxBytes` arrive. @throws {UploadOffsetError} when `offset` was never a committed size.
   * @throws {UploadBusyError} {BlobNotFoundError} {BlobSealedError} {BlobCorruptError} {KeyUnavailableError}
   */
  append(
    key: string,
    offset: number,
    source: Readable,
    options: { maxBytes: number; signal?: AbortSignal | undefined },
  ): Promise<{ size: number; sha256: string }>;

  /**
   * Ends the upload at its committed size, durably; from then on it can be read. Sealing again with the same size does nothing.
   *
   * @throws {UploadOffsetError} when the upload has not that size. @throws {BlobSealedError} when it was sealed with another.
   * @throws {UploadBusyError} {BlobNotFoundError} {BlobCorruptError} {KeyUnavailableError}
   */
  seal(key: string, size: number): Promise<void>;

  /**
   * Opens bytes `start` up to `endExclusive` (default: all) of a sealed blob. The first of them are read and authenticated before it
   * resolves, so that a missing or damaged blob fails before any header is sent.
   *
   * @throws {BlobNotFoundError} also for unfinished uploads. @throws {RangeError} for a range outside the blob.
   * @throws {BlobCorruptError} {KeyUnavailableError}
   */
  open(key: string, start?: number, endExclusive?: number): Promise<BlobReader>;

  /** Size in bytes of a sealed blob; undefined when there is none, or it is unfinished. */
  size(key: string): Promise<number | undefined>;

  /** Removes a blob or an unfinished upload, stopping an append to it. Removing nothing is fine. Open readers read on. */
  delete(key: string): Promise<void>;

  /** Every stored key, finished or not, in no order; `modifiedAt` in milliseconds since the epoch. For finding leftovers. */
  list(): AsyncIterable<{ key: string; modifiedAt: number }>;

  /** Resolves when bytes can be written durably now: writes some, and removes them. @throws what the file system says */
  probe(): Promise<void>;

  /** Stops running appends and waits for them. Afterwards everything rejects; open readers read on. */
  close(): Promise<void>;
}

/** An opened range. One of `sendTo`, `bytes` or `close` must be called, once; the first two release everything when they settle. */
export interface BlobReader {
  /** Bytes in the whole blob, whatever the range. */
  readonly size: number;

  /**
   * Writes exactly the range and waits until the sink has taken it; does not end the sink. Only authenticated bytes are written.
   *
   * @throws the sink's error, or ERR_STREAM_PREMATURE_CLOSE when it closes; the signal's reason; BlobCorruptError, after which the
   * sink has received less than the range and the caller must cut the connection.
   */
  sendTo(sink: Writable, signal?: AbortSignal): Promise<void>;

  /** The range in memory; for small ones. */
  bytes(): Promise<Buffer>;

  /** Releases the reader unread. Does nothing after `sendTo`, `bytes` or another `close`. */
  close(): Promise<void>;
}
