import type { Writable } from 'node:stream';
import { closeFile, readAt } from './disk.ts';
import type { BlobReader } from './blobs.ts';
import { BlobCorruptError, UploadOffsetError } from './errors.ts';
import { FRAME_BYTES, FRAME_OVERHEAD_BYTES, FRAMES_AT, type FrameCodec } from './format.ts';
import { release, type SharedLimits } from './limits.ts';
import { SinkWriter } from './sink-writer.ts';

/** A frame found by {@link scanFrames}: its plaintext, in pieces, and where it lies. */
export interface ScannedFrame {
  readonly offset: number;
  readonly pieces: readonly Buffer[];
  /** File position behind it. */
  readonly end: number;
}

/**
 * Reads the frames of an unfinished upload one after the other up to plaintext byte `size`, authenticating each.
 *
 * @throws {UploadOffsetError} when no frame ends at `size`. @throws {BlobCorruptError}
 */
export async function* scanFrames(
  fd: number,
  key: string,
  codec: FrameCodec,
  size: number,
  limits: SharedLimits,
): AsyncGenerator<ScannedFrame> {
  const buffer = await limits.scans.take();
  try {
    let offset = 0;
    let position = FRAMES_AT;
    let at = 0;
    let filled = 0;
    while (offset < size) {
      let frame = wholeFrame(buffer.subarray(at, filled));
      if (frame === undefined) {
        buffer.copyWithin(0, at, filled);
        filled -= at;
        at = 0;
        filled += await readAt(fd, buffer, buffer.length - filled, position + filled, filled);
        frame = wholeFrame(buffer.subarray(0, filled));
      }
      if (frame === undefined) throw new UploadOffsetError(key, size);
      const length = frame.length - FRAME_OVERHEAD_BYTES;
      if (offset + length > size) throw new UploadOffsetError(key, size);
      const pieces = codec.open(offset, frame, length);
      at += frame.length;
      position += frame.length;
      yield { offset, pieces, end: position };
      offset += length;
    }
  } finally {
    limits.scans.give(buffer);
  }
}

/** The frame at the start of the buffer, or undefined when it is not there in full (or its length makes no sense). */
function wholeFrame(buffer: Buffer): Buffer | undefined {
  if (buffer.length < FRAME_OVERHEAD_BYTES) return undefined;
  const length = buffer.readUInt32BE(0);
  if (length === 0 || length > FRAME_BYTES || buffer.length < length + FRAME_OVERHEAD_BYTES) return undefined;
  return buffer.subarray(0, length + FRAME_OVERHEAD_BYTES);
}

/** What {@link FileBlobReader} reads from. It owns the descriptor and closes it. */
export interface ReadFrom {
  readonly fd: number;
  readonly key: string;
  readonly codec: FrameCodec;
  readonly size: number;
  readonly limits: SharedLimits;
}

/** Smaller frames need no place among those being sent. */
const PLACED_BYTES_MIN = 131_072;

/** Reads a range of a sealed blob frame by frame, one frame ahead of the sink when buffers allow. */
export class FileBlobReader implements BlobReader {
  readonly size: number;
  readonly #from: ReadFrom;
  readonly #start: number;
  readonly #end: number;
  #first: readonly Buffer[] | undefined = [];
  #used = false;
  #fd: number | undefined;
  /** gives the place of the frame in hand back */
  #give: (() => void) | undefined;

  private constructor(from: ReadFrom, start: number, end: number) {
    this.#from = from;
    this.#fd = from.fd;
    this.size = from.size;
    this.#start = start;
    this.#end = end;
  }

  /** Reads the first frame of the range. When this rejects the descriptor is still the caller's. @throws {BlobCorruptError} */
  static async open(from: ReadFrom, start: number, end: number): Promise<FileBlobReader> {
    const reader = new FileBlobReader(from, start, end);
    if (start < end) reader.#first = await reader.#next(start, undefined);
    return reader;
  }

  async sendTo(sink: Writable, signal?: AbortSignal): Promise<void> {
    await this.#consume(async (first) => {
      const writer = new SinkWriter(sink, signal);
      try {
        let pieces = first;
        let at = this.#start;
        while (pieces.length > 0) {
          at += bytesOf(pieces);
          const ahead = at < this.#end ? this.#readAhead(at) : undefined;
          try {
            for (const piece of pieces) {
              await writer.write(piece);
              if (writer.copies) release(piece);
            }
            this.#give?.();
          } catch (error) {
            await this.#discard(ahead);
            throw error;
          }
          if (at >= this.#end) break;
          pieces = await this.#next(at, ahead);
        }
      } finally {
        writer.detach();
      }
    });
  }

  async bytes(): Promise<Buffer> {
    return await this.#consume(async (first) => {
      const all = [...first];
      let at = this.#start + bytesOf(first);
      while (at < this.#end) {
        const pieces = await this.#next(at, undefined);
        all.push(...pieces);
        at += bytesOf(pieces);
      }
      return Buffer.concat(all);
    });
  }

  async close(): Promise<void> {
    this.#used = true;
    this.#first = undefined;
    this.#give?.();
    const fd = this.#fd;
    this.#fd = undefined;
    if (fd !== undefined) await closeFile(fd);
  }

  async #consume<T>(read: (first: readonly Buffer[]) => Promise<T>): Promise<T> {
    const first = this.#first;
    if (this.#used || first === undefined) throw usedReader();
    this.#used = true;
    this.#first = undefined;
    const fd = this.#fd;
    try {
      return await read(first);
    } finally {
      this.#give?.();
      this.#fd = undefined;
      if (fd !== undefined) await closeFile(fd);
    }
  }

  /** The authenticated bytes of the range from `at` to the end of their frame, in pieces. */
  async #next(at: number, ahead: Ahead | undefined): Promise<readonly Buffer[]> {
    const { codec, limits } = this.#from;
    const offset = at - (at % FRAME_BYTES);
    const length = Math.min(FRAME_BYTES, this.size - offset);
    this.#give?.();
    this.#give = length < PLACED_BYTES_MIN ? undefined : await limits.sending.take();
    const pool = ahead === undefined ? limits.frames : limits.framesAhead;
    const buffer = ahead === undefined ? await pool.take() : ahead.buffer;
    try {
      await (ahead?.done ?? this.#readFrame(buffer, offset, length));
      const pieces = codec.open(offset, buffer.subarray(0, length + FRAME_OVERHEAD_BYTES), length);
      return cut(pieces, at - offset, Math.min(this.#end - offset, length));
    } finally {
      pool.give(buffer);
    }
  }

  #readAhead(at: number): Ahead | undefined {
    const buffer = this.#from.limits.framesAhead.tryTake();
    if (buffer === undefined) return undefined;
    const done = this.#readFrame(buffer, at, Math.min(FRAME_BYTES, this.size - at));
    done.catch(() => {}); // whoever takes the frame sees the error
    return { buffer, done };
  }

  async #discard(ahead: Ahead | undefined): Promise<void> {
    if (ahead === undefined) return;
    await ahead.done.catch(() => {});
    this.#from.limits.framesAhead.give(ahead.buffer);
  }

  async #readFrame(buffer: Buffer, offset: number, length: number): Promise<void> {
    if (this.#fd === undefined) throw new Error('this reader has been closed');
    const position = FRAMES_AT + (offset / FRAME_BYTES) * (FRAME_BYTES + FRAME_OVERHEAD_BYTES);
    const wanted = length + FRAME_OVERHEAD_BYTES;
    const read = await readAt(this.#fd, buffer, wanted, position);
    if (read < wanted) throw new BlobCorruptError(this.#from.key, `it ends before byte ${offset + length}`);
  }
}

/** Reads a range that is in memory already. */
export class MemoryBlobReader implements BlobReader {
  readonly size: number;
  #range: Buffer | undefined;

  /** `size` is that of the whole blob. */
  constructor(size: number, range: Buffer) {
    this.size = size;
    this.#range = range;
  }

  async sendTo(sink: Writable, signal?: AbortSignal): Promise<void> {
    const range = this.#take();
    const writer = new SinkWriter(sink, signal);
    try {
      if (range.length > 0) await writer.write(range);
    } finally {
      writer.detach();
    }
  }

  async bytes(): Promise<Buffer> {
    return Buffer.from(this.#take());
  }

  async close(): Promise<void> {
    this.#range = undefined;
  }

  #take(): Buffer {
    const range = this.#range;
    if (range === undefined) throw usedReader();
    this.#range = undefined;
    return range;
  }
}

function bytesOf(pieces: readonly Buffer[]): number {
  return pieces.reduce((bytes, piece) => bytes + piece.length, 0);
}

/** What of the pieces lies in a range of them. */
function cut(pieces: readonly Buffer[], start: number, end: number): readonly Buffer[] {
  let at = 0;
  const inside = pieces.map((piece) => {
    const from = at;
    at += piece.length;
    return start <= from && at <= end
      ? piece
      : piece.subarray(Math.max(0, start - from), Math.max(0, end - from));
  });
  return inside.filter((piece) => piece.length > 0);
}

function usedReader(): Error {
  return new Error('this reader has been used or closed');
}

interface Ahead {
  readonly buffer: Buffer;
  readonly done: Promise<void>;
}
