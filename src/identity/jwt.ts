/**
 * Signed JSON Web Tokens, as far as identity providers use them: RS256, RS384, RS512, ES256, ES384, ES512. `none` and the
 * HMAC family do not exist here, and an algorithm only ever meets a key of its own kind.
 */
import { createPublicKey, verify } from 'node:crypto';
import type { JsonWebKeyInput, KeyObject } from 'node:crypto';

export interface Jwt {
  readonly algorithm: Algorithm;
  readonly keyId: string | undefined;
  readonly claims: Readonly<Record<string, unknown>>;
  /** what is signed */
  readonly signed: Buffer;
  readonly signature: Buffer;
}

/** A public key of an issuer, ready to use. */
export interface IssuerKey {
  readonly keyId: string | undefined;
  readonly algorithms: ReadonlySet<Algorithm>;
  readonly key: KeyObject;
}

type Algorithm = keyof typeof ALGORITHMS;

/** Hash, kind of key and, for elliptic curves, the curve. */
const ALGORITHMS = {
  RS256: ['sha256', 'RSA', undefined],
  RS384: ['sha384', 'RSA', undefined],
  RS512: ['sha512', 'RSA', undefined],
  ES256: ['sha256', 'EC', 'P-256'],
  ES384: ['sha384', 'EC', 'P-384'],
  ES512: ['sha512', 'EC', 'P-521'],
} as const;

const RSA_BITS_MIN = 2048;

/** Takes a token apart; undefined for what is no signed token with an algorithm above. Nothing is verified. */
export function parseJwt(token: string): Jwt | undefined {
  const parts = token.split('.');
  const [header, claims, signature] = parts.map(decode);
  if (parts.length !== 3 || header === undefined || claims === undefined || signature === undefined) {
    return undefined;
  }
  const head = readObject(header);
  const body = readObject(claims);
  if (head === undefined || body === undefined) return undefined;
  const { alg, kid, crit } = head;
  if (typeof alg !== 'string' || !isAlgorithm(alg)) return undefined;
  // An extension that must be understood and is not.
  if (crit !== undefined || (kid !== undefined && typeof kid !== 'string')) return undefined;
  return {
    algorithm: alg,
    keyId: kid,
    claims: body,
    signed: Buffer.from(token.slice(0, token.lastIndexOf('.')), 'latin1'),
    signature,
  };
}

const isAlgorithm = (name: string): name is Algorithm => Object.hasOwn(ALGORITHMS, name);

/** Base64url without padding, exactly one spelling. */
function decode(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.toString('base64url') === text && text !== '' ? bytes : undefined;
}

function readObject(bytes: Buffer): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}

/** A key of a JWK set; undefined for keys that cannot verify a token (other kinds, other uses, too short). */
export function readIssuerKey(jwk: unknown): IssuerKey | undefined {
  if (typeof jwk !== 'object' || jwk === null) return undefined;
  const { kty, crv, use, alg, kid, key_ops: operations, n, e, x, y } = jwk as Record<string, unknown>;
  if (use !== undefined && use !== 'sig') return undefined;
  if (Array.isArray(operations) && !operations.includes('verify')) return undefined;
  const algorithms = (Object.keys(ALGORITHMS) as Algorithm[]).filter((name) => {
    const [, kind, curve] = ALGORITHMS[name];
    return kind === kty && (curve === undefined || curve === crv) && (alg === undefined || alg === name);
  });
  if (algorithms.length === 0) return undefined;
  // WHY: only the public members, so that a private key published by mistake is not read as one.
  const material = kty === 'RSA' ? { kty, n, e } : { kty, crv, x, y };
  try {
    const key = createPublicKey({ key: material as JsonWebKeyInput['key'], format: 'jwk' });
    if (kty === 'RSA' && (key.asymmetricKeyDetails?.modulusLength ?? 0) < RSA_BITS_MIN) return undefined;
    return { keyId: typeof kid === 'string' ? kid : undefined, algorithms: new Set(algorithms), key };
  } catch {
    return undefined;
  }
}

/** The key a token names; a set with a single key may be used by tokens that name none. */
export function keyFor(jwt: Jwt, keys: readonly IssuerKey[]): IssuerKey | undefined {
  if (jwt.keyId !== undefined) {
    return keys.find(({ keyId, algorithms }) => keyId === jwt.keyId && algorithms.has(jwt.algorithm));
  }
  const [only] = keys;
  return keys.length === 1 && only?.algorithms.has(jwt.algorithm) === true ? only : undefined;
}

/** INVARIANT: the key is of the kind the algorithm wants; {@link keyFor} sees to it and this checks it again. */
export function isSignedBy(jwt: Jwt, { key, algorithms }: IssuerKey): boolean {
  if (!algorithms.has(jwt.algorithm)) return false;
  const [hash] = ALGORITHMS[jwt.algorithm];
  return verify(hash, jwt.signed, { key, dsaEncoding: 'ieee-p1363' }, jwt.signature);
}
