import { createSecretKey, hkdfSync, randomBytes, type KeyObject } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { link, mkdir, open, readdir, readFile, unlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from './seal.ts';

const KEY_BYTES = 32;
const MASTER_FILE = 'master.key';
const CONTENT_FILE = /^content-([A-Za-z0-9_-]{1,128})\.key$/;
const CONTENT_KEY_NAME = /^[A-Za-z0-9_-]{1,128}$/;
const DEFAULT_CONTENT_KEY = 'default';

/** The key is not in the ring (never made, lost or taken away): what it encrypts cannot be read. */
export class KeyUnavailableError extends Error {
  override readonly name = 'KeyUnavailableError';
  readonly keyName: string;
  constructor(keyName: string) {
    super(`the key '${keyName}' is not available`);
    this.keyName = keyName;
  }
}

/** A key file is damaged. Nothing is replaced: a new key in its place would make everything under the old one unreadable. */
export class KeyFileError extends Error {
  override readonly name = 'KeyFileError';
}

/** The secrets of one data directory. Everything encrypted at rest hangs from `master`. */
export interface KeyRing {
  /** 256-bit AES key; seals secrets, see `seal.ts`. */
  readonly master: KeyObject;
  /** A 256-bit key for one purpose, derived from the master key (HKDF-SHA-256); the same purpose always gives the same key. */
  derive(purpose: string): KeyObject;
  /**
   * The key that wraps the data keys of blobs. `default` always exists.
   *
   * @throws {KeyUnavailableError} when there is none of that name, also for names that could not exist.
   * @throws {KeyFileError} when its file is damaged.
   */
  contentKey(name: string): KeyObject;
  /** Whether `contentKey(name)` would return a key. */
  has(name: string): boolean;
  /**
   * Makes a random content key and returns once it is durable; does nothing when it exists.
   *
   * @throws {RangeError} unless the name matches `[A-Za-z0-9_-]{1,128}`.
   */
  createKey(name: string): Promise<void>;
}

/**
 * Opens the key directory, making it (0700) and the master key (0600) when they are missing. Several processes may do so at the
 * same time and get the same key.
 *
 * @throws {KeyFileError} when a key file has the wrong length or does not open under the master key.
 */
export async function openKeyRing(directory: string): Promise<KeyRing> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  await syncDirectory(dirname(resolve(directory)));
  const masterPath = join(directory, MASTER_FILE);
  const found = await readIfPresent(masterPath);
  if (found === undefined) await writeOnce(directory, MASTER_FILE, randomBytes(KEY_BYTES));
  const bytes = found ?? (await readFile(masterPath));
  if (bytes.length !== KEY_BYTES) {
    throw new KeyFileError(`${masterPath} holds ${bytes.length} bytes, a master key has ${KEY_BYTES}`);
  }
  const ring = new DirectoryKeyRing(directory, createSecretKey(bytes));
  for (const file of await readdir(directory)) {
    const name = CONTENT_FILE.exec(file)?.[1];
    if (name !== undefined) ring.contentKey(name);
  }
  return ring;
}

class DirectoryKeyRing implements KeyRing {
  readonly master: KeyObject;
  readonly #directory: string;
  readonly #derived = new Map<string, KeyObject>();
  readonly #content = new Map<string, KeyObject>();

  constructor(directory: string, master: KeyObject) {
    this.#directory = directory;
    this.master = master;
    this.#content.set(DEFAULT_CONTENT_KEY, this.derive('blob content key default'));
  }

  derive(purpose: string): KeyObject {
    return this.#derived.getOrInsertComputed(purpose, () =>
      createSecretKey(Buffer.from(hkdfSync('sha256', this.master, 'berth key ring v1', purpose, KEY_BYTES))),
    );
  }

  contentKey(name: string): KeyObject {
    const key = this.#content.get(name) ?? this.#load(name);
    if (key === undefined) throw new KeyUnavailableError(name);
    return key;
  }

  has(name: string): boolean {
    return this.#content.has(name) || this.#load(name) !== undefined;
  }

  async createKey(name: string): Promise<void> {
    if (!CONTENT_KEY_NAME.test(name)) throw new RangeError(`'${name}' cannot name a key`);
    if (this.has(name)) return;
    const sealed = seal(this.#wrapping(), contentPurpose(name), randomBytes(KEY_BYTES));
    await writeOnce(this.#directory, `content-${name}.key`, sealed);
    this.contentKey(name);
  }

  #wrapping(): KeyObject {
    return this.derive('key ring content keys');
  }

  // WHY: synchronous, because it happens once per key and process: another process of this server may have made the key meanwhile.
  #load(name: string): KeyObject | undefined {
    if (!CONTENT_KEY_NAME.test(name)) return undefined;
    const path = join(this.#directory, `content-${name}.key`);
    let sealed: Buffer;
    try {
      sealed = readFileSync(path);
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
    if (sealed.length !== KEY_BYTES + SEAL_OVERHEAD_BYTES) {
      throw new KeyFileError(
        `${path} holds ${sealed.length} bytes, a key has ${KEY_BYTES + SEAL_OVERHEAD_BYTES}`,
      );
    }
    try {
      const key = createSecretKey(unseal(this.#wrapping(), contentPurpose(name), sealed));
      this.#content.set(name, key);
      return key;
    } catch (error) {
      if (error instanceof SealError) throw new KeyFileError(`${path} does not open under this master key`);
      throw error;
    }
  }
}

function contentPurpose(name: string): string {
  return `content key ${name}`;
}

/** Writes a new file durably and whole, or leaves the one that is there: linking refuses to replace, unlike renaming. */
async function writeOnce(directory: string, file: string, bytes: Uint8Array): Promise<void> {
  const temporary = join(directory, `.${file}.${randomBytes(6).toString('hex')}`);
  const handle = await open(temporary, 'wx', 0o600);
  try {
    await handle.writeFile(bytes);
    await handle.sync();
  } finally {
    await handle.close();
  }
  try {
    await link(temporary, join(directory, file));
  } catch (error) {
    if (!hasCode(error, 'EEXIST')) throw error;
  } finally {
    await unlink(temporary);
  }
  await syncDirectory(directory);
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function readIfPresent(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  return hasCode(error, 'ENOENT');
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
