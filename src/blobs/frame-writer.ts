import type { CipherGCM, Hash } from 'node:crypto';
import { syncData, writeAt } from './disk.ts';
import {
  FRAME_BYTES,
  FRAME_OVERHEAD_BYTES,
  FRAME_PREFIX_BYTES,
  PIECE_BYTES,
  type FrameCodec,
} from './format.ts';
import { release, type SharedLimits } from './limits.ts';

const WRITES_IN_FLIGHT_MAX = 4;
const FLUSH_EVERY_BYTES = 64 * FRAME_BYTES;
const STAGE_BYTES = 64 * 1024;
/** Smaller chunks (TLS records, chunked requests) are gathered first: a cipher call and an I/O vector each would cost more than a copy. */
const DIRECT_BYTES_MIN = 32 * 1024;

/** Where the written frames end: in the plaintext and in the file. */
export interface WrittenEnd {
  readonly offset: number;
  readonly position: number;
}

/**
 * Encrypts a byte stream into frames and writes them behind one another, a few at a time, each in one piece unless many streams
 * are written at once. The caller stops feeding it while `congested`. Ends with `end` or `abandon`; only then may the file be
 * closed.
 */
export class FrameWriter {
  /** Called once, as soon as a write has failed; `end` rejects with the same error. */
  onFailure: (error: Error) => void = () => {};

  readonly #fd: number;
  readonly #codec: FrameCodec;
  readonly #limits: SharedLimits;
  readonly #hash: Hash | undefined;
  #offset: number;
  #position: number;

  #frame: { nonce: Buffer; cipher: CipherGCM } | undefined;
  /** ciphertext of the frame that is not on its way to the file yet */
  #parts: Buffer[] = [];
  #partBytes = 0;
  #filled = 0;
  #stage: Buffer | undefined;
  #staged = 0;

  readonly #writes = new Set<Promise<void>>();
  #flush: Promise<void> | undefined;
  #unflushedBytes = 0;
  #error: Error | undefined;
  #settled = false;

  /** Starts a frame at the plaintext offset and file position of `from`. `hash`, when given, sees the plaintext. */
  constructor(fd: number, codec: FrameCodec, from: WrittenEnd, limits: SharedLimits, hash?: Hash) {
    this.#fd = fd;
    this.#codec = codec;
    this.#limits = limits;
    this.#hash = hash;
    this.#offset = from.offset;
    this.#position = from.position;
    limits.streams += 1;
  }

  /** Whether enough is under way, of this stream or of all together. */
  get congested(): boolean {
    if (this.#error !== undefined) return false;
    return this.#writes.size >= WRITES_IN_FLIGHT_MAX || this.#limits.writing.full;
  }

  /** How many bytes it should be fed before others have their turn (limits.ts). */
  get turnBytesMax(): number {
    return this.#limits.turnBytesMax;
  }

  /** Takes a chunk; does not keep it. */
  write(chunk: Uint8Array): void {
    if (chunk.length >= DIRECT_BYTES_MIN) {
      this.#encryptStage();
      this.#encrypt(chunk);
      return;
    }
    this.#stage ??= Buffer.allocUnsafeSlow(STAGE_BYTES);
    for (let from = 0; from < chunk.length;) {
      const length = Math.min(chunk.length - from, STAGE_BYTES - this.#staged);
      this.#stage.set(chunk.subarray(from, from + length), this.#staged);
      this.#staged += length;
      from += length;
      if (this.#staged === STAGE_BYTES) this.#encryptStage();
    }
  }

  /** Resolves when the writer is not congested. */
  async room(): Promise<void> {
    while (this.congested) await this.#limits.writing.next();
  }

  /** Writes the last frame and waits for all; the bytes are written, not yet durable. Rejects with the first failure. */
  async end(): Promise<WrittenEnd> {
    this.#encryptStage();
    if (this.#filled > 0) this.#finishFrame();
    await this.#settle();
    if (this.#error !== undefined) throw this.#error;
    return { offset: this.#offset, position: this.#position };
  }

  /** Drops what is not under way and waits for the rest. Never rejects. */
  async abandon(): Promise<void> {
    this.#parts = [];
    await this.#settle();
  }

  async #settle(): Promise<void> {
    while (this.#writes.size > 0) await Promise.all(this.#writes);
    await this.#flush;
    if (!this.#settled) this.#limits.streams -= 1;
    this.#settled = true;
  }

  #encryptStage(): void {
    if (this.#staged === 0 || this.#stage === undefined) return;
    const staged = this.#stage.subarray(0, this.#staged);
    this.#staged = 0;
    this.#encrypt(staged);
  }

  #encrypt(bytes: Uint8Array): void {
    this.#hash?.update(bytes);
    for (let from = 0; from < bytes.length;) {
      this.#frame ??= this.#codec.start(this.#offset);
      const length = Math.min(bytes.length - from, FRAME_BYTES - this.#filled);
      const part = this.#frame.cipher.update(bytes.subarray(from, from + length));
      this.#parts.push(part);
      this.#partBytes += part.length;
      this.#filled += length;
      from += length;
      if (this.#filled === FRAME_BYTES) this.#finishFrame();
      else if (this.#partBytes >= PIECE_BYTES && this.#limits.crowded) this.#writeParts();
    }
  }

  #writeParts(): void {
    this.#write(this.#parts, this.#partsAt);
    this.#parts = [];
    this.#partBytes = 0;
  }

  #finishFrame(): void {
    if (this.#frame === undefined) return;
    const { nonce, cipher } = this.#frame;
    cipher.final();
    const tag = cipher.getAuthTag();
    const prefix = this.#codec.prefix(nonce, this.#filled);
    if (this.#partBytes === this.#filled) this.#write([prefix, ...this.#parts, tag], this.#position);
    else {
      this.#write([prefix], this.#position);
      this.#write([...this.#parts, tag], this.#partsAt);
    }
    this.#offset += this.#filled;
    this.#position += this.#filled + FRAME_OVERHEAD_BYTES;
    this.#frame = undefined;
    this.#parts = [];
    this.#partBytes = 0;
    this.#filled = 0;
  }

  /** Where the parts belong: behind those of their frame that were written before. */
  get #partsAt(): number {
    return this.#position + FRAME_PREFIX_BYTES + this.#filled - this.#partBytes;
  }

  #write(buffers: readonly Buffer[], position: number): void {
    const bytes = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
    const write = this.#writeBuffers(buffers, bytes, position).finally(() => {
      this.#writes.delete(write);
      this.#limits.writing.ended(bytes);
    });
    this.#writes.add(write);
  }

  async #writeBuffers(buffers: readonly Buffer[], bytes: number, position: number): Promise<void> {
    this.#limits.writing.started(bytes);
    try {
      await writeAt(this.#fd, buffers, position);
      for (const buffer of buffers) release(buffer);
      this.#unflushedBytes += bytes;
      this.#flushInBackground();
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  // Flushing on the way bounds the dirty pages, so the flush at the end is short.
  #flushInBackground(): void {
    if (this.#unflushedBytes < FLUSH_EVERY_BYTES || this.#flush !== undefined) return;
    this.#unflushedBytes = 0;
    this.#flush = this.#limits.flushes
      .run(() => syncData(this.#fd))
      .catch((error: unknown) => this.#fail(error as Error))
      .finally(() => {
        this.#flush = undefined;
      });
  }

  #fail(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.onFailure(error);
  }
}
