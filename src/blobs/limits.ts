import { FRAME_BYTES, FRAME_OVERHEAD_BYTES } from './format.ts';

/** Buffers of one size, reused; `take` waits while `limit` of them are out. */
export class BufferPool {
  readonly #bytes: number;
  readonly #limit: number;
  readonly #free: Buffer[] = [];
  readonly #waiting: ((buffer: Buffer) => void)[] = [];
  #out = 0;

  constructor(bytes: number, limit: number) {
    this.#bytes = bytes;
    this.#limit = limit;
  }

  /** A buffer, or undefined when all are out. Its content is left over from others. */
  tryTake(): Buffer | undefined {
    if (this.#out >= this.#limit) return undefined;
    this.#out += 1;
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#bytes);
  }

  /** A buffer as soon as one is back; first come, first served. */
  take(): Promise<Buffer> {
    const buffer = this.tryTake();
    if (buffer !== undefined) return Promise.resolve(buffer);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Returns a buffer that nobody reads or writes any more. */
  give(buffer: Buffer): void {
    const next = this.#waiting.shift();
    if (next !== undefined) return next(buffer);
    this.#out -= 1;
    this.#free.push(buffer);
  }
}

/** Below this giving memory back early gains nothing. */
const RELEASE_BYTES_MIN = 16 * 1024;

/**
 * Frees the memory of a buffer now instead of at the next garbage collection; it is empty afterwards. WHY: the ciphers return new
 * memory at each call. Left to the collector, hundreds of megabytes pile up, and fresh pages cost a third of the decryption.
 *
 * INVARIANT: only for what a cipher returned, and when nobody else holds it.
 */
export function release(buffer: Buffer): void {
  const memory = buffer.buffer;
  if (buffer.length < RELEASE_BYTES_MIN || buffer.length < memory.byteLength) return; // small, or a view of Node's shared pool
  if (memory instanceof ArrayBuffer) memory.transfer(0);
}

/** Plaintext of small sealed blobs, the most recently used ones up to a number of bytes. They never change. */
export class SmallBlobCache {
  readonly #bytesMax: number;
  readonly #entries = new Map<string, { contentKeyName: string; plaintext: Buffer }>();
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** The entry, which becomes the most recently used. */
  get(key: string): { contentKeyName: string; plaintext: Buffer } | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    return entry;
  }

  /** Keeps a blob, dropping the least recently used ones to make room. */
  set(key: string, contentKeyName: string, plaintext: Buffer): void {
    this.delete(key);
    this.#entries.set(key, { contentKeyName, plaintext });
    this.#bytes += plaintext.length;
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes <= this.#bytesMax) break;
      this.delete(oldest);
    }
  }

  /** Forgets a blob. */
  delete(key: string): void {
    const entry = this.#entries.get(key);
    if (entry !== undefined) this.#bytes -= entry.plaintext.length;
    this.#entries.delete(key);
  }
}

/** Runs at most `limit` tasks at the same time, the others in order. */
export class Gate {
  readonly #limit: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  async run<T>(task: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#limit) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running += 1;
    try {
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running -= 1;
      else next();
    }
  }
}

/**
 * Lets at most `limit` holders have a place at the same time, first come, first served. A place is lost after `holdMs`: who
 * is slow does not hold up others, however many are.
 */
export class Places {
  readonly #limit: number;
  readonly #holdMs: number;
  readonly #waiting: ((give: () => void) => void)[] = [];
  #taken = 0;

  constructor(limit: number, holdMs: number) {
    this.#limit = limit;
    this.#holdMs = holdMs;
  }

  /** Resolves with what gives the place back; calling it late or again does nothing. */
  take(): Promise<() => void> {
    if (this.#taken < this.#limit) {
      this.#taken += 1;
      return Promise.resolve(this.#place());
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #place(): () => void {
    let given = false;
    const give = (): void => {
      if (given) return;
      given = true;
      clearTimeout(timer);
      const next = this.#waiting.shift();
      if (next === undefined) this.#taken -= 1;
      else next(this.#place());
    };
    const timer = setTimeout(give, this.#holdMs);
    timer.unref();
    return give;
  }
}

/** Counts the bytes of writes under way. */
export class InFlight {
  readonly #bytesMax: number;
  #bytes = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Whether no other write should begin. */
  get full(): boolean {
    return this.#bytes >= this.#bytesMax;
  }

  /** Resolves when a write has ended and it is this one's turn to look again. */
  next(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  started(bytes: number): void {
    this.#bytes += bytes;
  }

  ended(bytes: number): void {
    this.#bytes -= bytes;
    // WHY not all: each that goes on may bring a frame, and together they would be far beyond the bound. Two, because one
    // may have a client that sends nothing; when no write is left to end, there is nobody else to wake the others.
    const count = this.#bytes === 0 ? this.#waiting.length : 2;
    for (const resolve of this.#waiting.splice(0, count)) resolve();
  }
}

/**
 * The streams being written let others have their turn after so many bytes together, each after not less than the second number.
 * WHY: from a fast client the event loop would read 2 MiB in one go, milliseconds in which nobody else is answered.
 */
const TURN_BYTES = 1 << 19;
const TURN_BYTES_MIN = 1 << 17;

/** A client that takes longer for a frame is slow: 2 MiB/s. */
const SENDING_MS = 500;

/** What the streams of one store share, so that many of them stay within bounds together. */
export class SharedLimits {
  /** Streams being written (frame-writer.ts). */
  streams = 0;
  readonly #streamsFew: number;
  /** Encrypted frames on their way to the disk. */
  readonly writing: InFlight;
  /** Frames being read and decrypted: held briefly, never while a client stalls. */
  readonly frames: BufferPool;
  /** For reading uploads again: held as long as that takes, so apart from `frames` as well. */
  readonly scans: BufferPool;
  /** Frames read ahead of a client. INVARIANT: apart from `frames`, so that stalled clients cannot hold up others. */
  readonly framesAhead: BufferPool;
  /** Decrypted frames on their way to clients who take them: those who do not are bounded by the transfers under way. */
  readonly sending: Places;
  /** WHY: a flush holds one of libuv's four threads, for long on slow disks; one stays free for reads. */
  readonly flushes = new Gate(3);
  /** Image configurations and other small blobs, which every pull reads. */
  readonly smallBlobs: SmallBlobCache;

  /** `threads` of this process have a store each: the memory is divided among them. */
  constructor(threads = 1) {
    const share = (whole: number, least: number): number => Math.max(least, Math.ceil(whole / threads));
    const frame = FRAME_BYTES + FRAME_OVERHEAD_BYTES;
    this.writing = new InFlight(share(16, 4) * FRAME_BYTES);
    this.frames = new BufferPool(frame, share(8, 3));
    this.scans = new BufferPool(frame, share(4, 2));
    this.framesAhead = new BufferPool(frame, share(8, 2));
    this.sending = new Places(share(16, 4), SENDING_MS);
    this.smallBlobs = new SmallBlobCache(share(16, 2) << 20);
    this.#streamsFew = share(16, 4);
  }

  /** Whether so many streams are being written that their unfinished frames would be more than the frames under way. */
  get crowded(): boolean {
    return this.streams > this.#streamsFew;
  }

  /** How many bytes a stream takes before others have their turn. */
  get turnBytesMax(): number {
    return Math.max(TURN_BYTES_MIN, TURN_BYTES / this.streams);
  }
}
