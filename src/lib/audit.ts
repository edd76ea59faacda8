/** A log of lines in rotated files: appends wait in memory for a moment and are written together, beside the requests. */
import { mkdir, open, readdir, rm, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

export interface AuditLogOptions {
  readonly directory: string;
  /** a file this large is followed by the next */
  readonly fileBytesMax: number;
  /** files kept, the current one included */
  readonly filesMax: number;
  /** Hears once that lines cannot be written, and not again until {@link onRecovered}. */
  readonly onError: (error: unknown) => void;
  /** Hears that lines are written again, and how many were lost in between. */
  readonly onRecovered: (dropped: number) => void;
}

export interface AuditLog {
  /** Takes one line without its end; never waits and never throws. A line is dropped when too many wait already. */
  write(line: string): void;
  /** Lines taken and lines dropped since the start. */
  readonly written: number;
  readonly dropped: number;
  /** Resolves when everything taken so far is in the file, or cannot be written now. */
  flush(): Promise<void>;
  /** Flushes, and makes the file durable. */
  close(): Promise<void>;
}

const FLUSH_MS = 200;
/** Lines, and characters of them, that are written without waiting for more; and lines of one write. */
const BATCH_LINES = 512;
const BATCH_CHARACTERS = 1_048_576;
const WRITE_LINES_MAX = 4096;
/** Characters that may wait: what a full disk costs in memory. */
const WAITING_CHARACTERS_MAX = 16 * 1_048_576;
const FILE_NAME = /^audit-(\d{8,15})\.jsonl$/;

/**
 * Opens the newest file of the directory, `audit-00000001.jsonl` at first, and goes on where it ends. Files are made with
 * mode 0600. Several processes may share the directory: each appends whole lines and follows when another rotates.
 *
 * @throws when the directory or the file cannot be made
 */
export async function openAuditLog(options: AuditLogOptions): Promise<AuditLog> {
  await mkdir(options.directory, { recursive: true, mode: 0o700 });
  const numbers = await listFiles(options.directory);
  const number = numbers.at(-1) ?? 1;
  const handle = await openFile(options.directory, number);
  try {
    return new RotatedLog(options, { number, handle, rest: await endsTorn(handle) });
  } catch (error) {
    await handle.close();
    throw error;
  }
}

class RotatedLog implements AuditLog {
  written = 0;
  dropped = 0;
  readonly #options: AuditLogOptions;
  #number: number;
  #handle: FileHandle;
  #lines: string[] = [];
  #waiting = 0;
  /** bytes a write could not place; they come first, so that a line broken off by a full disk is completed */
  #rest: Buffer;
  #timer: NodeJS.Timeout | undefined;
  #pumping: Promise<void> | undefined;
  /** `dropped` when writing began to fail; undefined while it works */
  #failingSince: number | undefined;

  constructor(options: AuditLogOptions, file: { number: number; handle: FileHandle; rest: Buffer }) {
    this.#options = options;
    this.#number = file.number;
    this.#handle = file.handle;
    this.#rest = file.rest;
  }

  write(line: string): void {
    if (this.#waiting > WAITING_CHARACTERS_MAX) {
      this.dropped += 1;
      return;
    }
    this.written += 1;
    this.#waiting += line.length;
    const many = this.#lines.push(line) >= BATCH_LINES || this.#waiting >= BATCH_CHARACTERS;
    if (many && this.#failingSince === undefined) void this.#pump();
    else this.#schedule();
  }

  flush(): Promise<void> {
    return this.#pump();
  }

  async close(): Promise<void> {
    await this.#pump();
    clearTimeout(this.#timer);
    await this.#handle.datasync().catch(this.#options.onError);
    await this.#handle.close();
  }

  #schedule(): void {
    this.#timer ??= setTimeout(() => void this.#pump(), FLUSH_MS).unref();
  }

  #pump(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#pumping ??= this.#drain().finally(() => {
      this.#pumping = undefined;
    });
    return this.#pumping;
  }

  /** Writes until nothing waits; after a failure the rest waits for the next turn. */
  async #drain(): Promise<void> {
    try {
      while (this.#lines.length > 0 || this.#rest.length > 0) {
        if (this.#lines.length > 0 && this.#rest.length === 0) {
          const text = `${this.#lines.splice(0, WRITE_LINES_MAX).join('\n')}\n`;
          this.#waiting = Math.max(0, this.#lines.length === 0 ? 0 : this.#waiting - text.length);
          this.#rest = Buffer.from(text);
          await this.#rotateWhenFull(this.#rest.length);
        }
        const { bytesWritten } = await this.#handle.write(this.#rest);
        this.#rest = this.#rest.subarray(bytesWritten);
      }
      if (this.#failingSince === undefined) return;
      const lost = this.dropped - this.#failingSince;
      this.#failingSince = undefined;
      this.#options.onRecovered(lost);
    } catch (error) {
      if (this.#failingSince === undefined) this.#options.onError(error);
      this.#failingSince ??= this.dropped;
      this.#schedule();
    }
  }

  /** Goes on to a file that has room, also when the current one, or its directory, was removed. */
  async #rotateWhenFull(bytes: number): Promise<void> {
    const { directory, fileBytesMax, filesMax } = this.#options;
    for (;;) {
      const { size, nlink } = await this.#handle.stat();
      if (nlink > 0 && (size === 0 || size + bytes <= fileBytesMax)) return;
      if (nlink === 0) await mkdir(directory, { recursive: true, mode: 0o700 });
      const newest = (await listFiles(directory)).at(-1) ?? 0;
      const number = nlink === 0 && newest > this.#number ? newest : this.#number + 1;
      const next = await openFile(directory, number);
      const full = this.#handle;
      this.#handle = next;
      this.#number = number;
      await full.datasync();
      await full.close();
      for (const other of await listFiles(directory))
        if (other <= number - filesMax) await rm(join(directory, fileName(other)), { force: true });
    }
  }
}

function fileName(number: number): string {
  return `audit-${String(number).padStart(8, '0')}.jsonl`;
}

/** Numbers of the files there are, ascending. */
async function listFiles(directory: string): Promise<number[]> {
  const names = await readdir(directory);
  return names.flatMap((name) => Number(FILE_NAME.exec(name)?.[1] ?? []) || []).sort((a, b) => a - b);
}

function openFile(directory: string, number: number): Promise<FileHandle> {
  return open(join(directory, fileName(number)), 'a+', 0o600);
}

/** A line end to write first when a crash broke the last line off, so that only that line is lost. */
async function endsTorn(handle: FileHandle): Promise<Buffer> {
  const { size } = await handle.stat();
  if (size === 0) return Buffer.alloc(0);
  const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, size - 1);
  return Buffer.from(buffer[0] === 0x0a ? '' : '\n');
}
