// The stored form of a blob, version 1.
//
//   0     header, 512 bytes: magic, version, content key name, data key wrapped by that content key, CRC-32 at the end
//   512   seal, 512 bytes: zeros until the blob is sealed, then the authenticated size, padded with zeros
//   1024  frames, each: plaintext length (u32), nonce (12), ciphertext, tag (16)
//
// A sealed blob has frames of exactly 1 MiB of plaintext, the last one shorter, so a position follows from arithmetic. While it is
// unfinished every append begins a frame of its own, so that committed frames are never written again; sealing evens them out.
//
// INVARIANT: a data key serves one blob; each frame written takes a fresh random nonce. Frames are authenticated with the storage
// key and their plaintext offset, the wrapped data key with the storage key and the content key name, the seal with the storage key.
import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  randomBytes,
  type CipherGCM,
  type KeyObject,
} from 'node:crypto';
import { crc32 } from 'node:zlib';
import type { KeyRing } from '../lib/keyring.ts';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from '../lib/seal.ts';
import { BlobCorruptError } from './errors.ts';

const MAGIC = Buffer.from('BRTHBLOB');
const VERSION = 1;
const HEADER_BYTES = 512;
const NAME_AT = 16;
const WRAPPED_AT = 144;
const DATA_KEY_BYTES = 32;
const WRAPPED_BYTES = DATA_KEY_BYTES + SEAL_OVERHEAD_BYTES;
const CRC_AT = HEADER_BYTES - 4;
const SEAL_RECORD_BYTES = 8 + SEAL_OVERHEAD_BYTES;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const ZEROS = Buffer.alloc(HEADER_BYTES);

/** Where the frames begin: the header and the seal come first. */
export const FRAMES_AT = 1024;
/** Where the seal is written. */
export const SEAL_AT = HEADER_BYTES;
/** Plaintext bytes in a full frame. */
export const FRAME_BYTES = 1 << 20;
/**
 * Plaintext of a frame comes in pieces of at most so many bytes. WHY: a megabyte at a time is memory that the allocator maps anew
 * from the kernel, whose fresh pages cost twice the decryption (docs/performance.md).
 */
export const PIECE_BYTES = 1 << 18;
/** Bytes before the ciphertext of a frame: length and nonce. */
export const FRAME_PREFIX_BYTES = 4 + NONCE_BYTES;
/** Bytes a frame takes beyond its plaintext. */
export const FRAME_OVERHEAD_BYTES = FRAME_PREFIX_BYTES + TAG_BYTES;

/** What header and seal say; `size` is undefined while the blob is unfinished. */
export interface Header {
  readonly dataKey: KeyObject;
  readonly contentKeyName: string;
  readonly size: number | undefined;
}

/** Bytes of the file of a sealed blob of `size` bytes. */
export function sealedFileBytes(size: number): number {
  return FRAMES_AT + size + Math.ceil(size / FRAME_BYTES) * FRAME_OVERHEAD_BYTES;
}

/** Header and empty seal of a new blob, with its new data key. @throws {KeyUnavailableError} */
export function newHeader(
  key: string,
  contentKeyName: string,
  keys: KeyRing,
): { dataKey: KeyObject; bytes: Buffer } {
  const contentKey = keys.contentKey(contentKeyName);
  const secret = randomBytes(DATA_KEY_BYTES);
  const bytes = Buffer.alloc(FRAMES_AT);
  MAGIC.copy(bytes);
  bytes[8] = VERSION;
  bytes[9] = bytes.write(contentKeyName, NAME_AT, 'latin1');
  seal(contentKey, wrapPurpose(key, contentKeyName), secret).copy(bytes, WRAPPED_AT);
  bytes.writeUInt32BE(crc32(bytes.subarray(0, CRC_AT)), CRC_AT);
  return { dataKey: createSecretKey(secret), bytes };
}

/**
 * Reads header and seal.
 *
 * @throws {BlobCorruptError} {KeyUnavailableError}
 */
export function readHeader(key: string, bytes: Buffer, keys: KeyRing): Header {
  if (bytes.length < FRAMES_AT) throw new BlobCorruptError(key, 'the header is cut');
  if (
    !bytes.subarray(0, MAGIC.length).equals(MAGIC) ||
    crc32(bytes.subarray(0, CRC_AT)) !== bytes.readUInt32BE(CRC_AT)
  ) {
    throw new BlobCorruptError(key, 'the header');
  }
  if (bytes[8] !== VERSION)
    throw new BlobCorruptError(key, `stored in version ${bytes[8]}, this server reads ${VERSION}`);
  const name = bytes.toString('latin1', NAME_AT, NAME_AT + (bytes[9] ?? 0));
  const wrapped = bytes.subarray(WRAPPED_AT, WRAPPED_AT + WRAPPED_BYTES);
  const dataKey = createSecretKey(
    unsealPart(key, keys.contentKey(name), wrapPurpose(key, name), wrapped, 'the data key'),
  );
  return { dataKey, contentKeyName: name, size: readSeal(key, dataKey, bytes.subarray(SEAL_AT, FRAMES_AT)) };
}

/** The bytes to write at {@link SEAL_AT}. */
export function newSeal(key: string, dataKey: KeyObject, size: number): Buffer {
  const record = Buffer.alloc(8);
  record.writeBigUInt64BE(BigInt(size));
  const bytes = Buffer.alloc(FRAMES_AT - SEAL_AT);
  seal(dataKey, sealPurpose(key), record).copy(bytes);
  return bytes;
}

/** Whether these bytes of the file, from {@link SEAL_AT} to {@link FRAMES_AT}, are those of an unfinished upload. */
export function isUnsealed(bytes: Buffer): boolean {
  return bytes.equals(ZEROS);
}

function readSeal(key: string, dataKey: KeyObject, bytes: Buffer): number | undefined {
  if (isUnsealed(bytes)) return undefined;
  if (!bytes.subarray(SEAL_RECORD_BYTES).equals(ZEROS.subarray(SEAL_RECORD_BYTES)))
    throw new BlobCorruptError(key, 'the seal');
  const record = unsealPart(key, dataKey, sealPurpose(key), bytes.subarray(0, SEAL_RECORD_BYTES), 'the seal');
  return Number(record.readBigUInt64BE());
}

function unsealPart(key: string, under: KeyObject, purpose: string, sealed: Buffer, what: string): Buffer {
  try {
    return unseal(under, purpose, sealed);
  } catch (error) {
    if (error instanceof SealError) throw new BlobCorruptError(key, what);
    throw error;
  }
}

function wrapPurpose(key: string, contentKeyName: string): string {
  return `blob data key v${VERSION} ${contentKeyName} ${key}`;
}

function sealPurpose(key: string): string {
  return `blob size v${VERSION} ${key}`;
}

/** Seals and opens the frames of one blob. */
export class FrameCodec {
  readonly #dataKey: KeyObject;
  readonly #additionalData: Buffer;
  readonly #offsetAt: number;
  readonly #key: string;

  constructor(key: string, dataKey: KeyObject) {
    this.#key = key;
    this.#dataKey = dataKey;
    this.#additionalData = Buffer.from(`blob frame v${VERSION} ${key} 12345678`);
    this.#offsetAt = this.#additionalData.length - 8;
  }

  /** Starts the frame whose plaintext begins at `offset`, under a fresh nonce. */
  start(offset: number): { nonce: Buffer; cipher: CipherGCM } {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', this.#dataKey, nonce, { authTagLength: TAG_BYTES });
    cipher.setAAD(this.#additionalDataAt(offset));
    return { nonce, cipher };
  }

  /** What stands before the ciphertext of a finished frame. */
  prefix(nonce: Buffer, length: number): Buffer {
    const prefix = Buffer.allocUnsafe(FRAME_PREFIX_BYTES);
    prefix.writeUInt32BE(length);
    nonce.copy(prefix, 4);
    return prefix;
  }

  /**
   * Authenticates and decrypts a whole stored frame (prefix to tag) of `length` plaintext bytes, which come in pieces.
   *
   * @throws {BlobCorruptError}
   */
  open(offset: number, stored: Buffer, length: number): Buffer[] {
    const end = FRAME_PREFIX_BYTES + length;
    if (stored.length !== end + TAG_BYTES || stored.readUInt32BE(0) !== length) throw this.#corrupt(offset);
    const nonce = stored.subarray(4, FRAME_PREFIX_BYTES);
    const decipher = createDecipheriv('aes-256-gcm', this.#dataKey, nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(this.#additionalDataAt(offset));
    decipher.setAuthTag(stored.subarray(end));
    const pieces: Buffer[] = [];
    for (let at = FRAME_PREFIX_BYTES; at < end; at += PIECE_BYTES)
      pieces.push(decipher.update(stored.subarray(at, Math.min(at + PIECE_BYTES, end))));
    try {
      decipher.final();
    } catch {
      throw this.#corrupt(offset);
    }
    return pieces;
  }

  #corrupt(offset: number): BlobCorruptError {
    return new BlobCorruptError(this.#key, `the frame at byte ${offset}`);
  }

  // The ciphers read it at once, so one buffer serves them all.
  #additionalDataAt(offset: number): Buffer {
    this.#additionalData.writeBigUInt64BE(BigInt(offset), this.#offsetAt);
    return this.#additionalData;
  }
}
