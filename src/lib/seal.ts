import { createCipheriv, createDecipheriv, randomBytes, type KeyObject } from 'node:crypto';

const VERSION = 1;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** Bytes that {@link seal} adds to a plaintext: version, nonce and tag. */
export const SEAL_OVERHEAD_BYTES = 1 + NONCE_BYTES + TAG_BYTES;

/** The sealed bytes are damaged, or were sealed with another key or for another purpose. Which one cannot be told. */
export class SealError extends Error {
  override readonly name = 'SealError';
}

/**
 * Encrypts and authenticates a short secret (an access-key secret, a registry token, a data key) with AES-256-GCM under a fresh
 * random nonce. `purpose` is authenticated with it: what was sealed for one purpose does not open for another.
 *
 * Layout: version (1 byte, 1), nonce (12), ciphertext, tag (16).
 */
export function seal(key: KeyObject, purpose: string, plaintext: Uint8Array): Buffer {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(additionalData(purpose));
  const ciphertext = cipher.update(plaintext);
  cipher.final();
  return Buffer.concat([Buffer.of(VERSION), nonce, ciphertext, cipher.getAuthTag()]);
}

/**
 * Opens what {@link seal} made.
 *
 * @throws {SealError} when a single bit of `sealed` has changed, or the key or the purpose is another one.
 */
export function unseal(key: KeyObject, purpose: string, sealed: Uint8Array): Buffer {
  if (sealed.length < SEAL_OVERHEAD_BYTES || sealed[0] !== VERSION) throw new SealError('not a sealed value');
  const tagAt = sealed.length - TAG_BYTES;
  const nonce = sealed.subarray(1, 1 + NONCE_BYTES);
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: TAG_BYTES });
  decipher.setAAD(additionalData(purpose));
  decipher.setAuthTag(sealed.subarray(tagAt));
  const plaintext = decipher.update(sealed.subarray(1 + NONCE_BYTES, tagAt));
  try {
    decipher.final();
  } catch {
    throw new SealError('the sealed value does not open');
  }
  return plaintext;
}

function additionalData(purpose: string): Buffer {
  return Buffer.from(`berth seal v${VERSION}\0${purpose}`);
}
