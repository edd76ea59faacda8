/**
 * Session tokens: a session is in its token, sealed, so that any process with the key ring can verify one without a table
 * (docs/adr/0007-sessions.md). What the session may do is looked up at every use.
 */
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import type { KeyRing } from '../lib/keyring.ts';
import { accessKeyId, secretAccessKey } from '../lib/ids.ts';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from '../lib/seal.ts';
import type { TagRecord } from '../store/store.ts';

/** Temporary credentials and what they stand for. Times in milliseconds since the epoch. */
export interface Session {
  /** opaque, unique */
  readonly id: string;
  /** `ASIA…` */
  readonly accessKeyId: string;
  /** in the clear: never logged, only returned by the operation that makes the session */
  readonly secret: string;
  /** `user` and `root`: GetSessionToken */
  readonly kind: 'role' | 'user' | 'root' | 'federated-user';
  readonly account: string;
  /** unique id of the role or user; the account for root */
  readonly ownerId: string;
  /** session name, or name of the federated user; empty for `user` and `root` */
  readonly name: string;
  readonly issuedAt: number;
  readonly expiresAt: number;
  /** the access key without which the session ends: that of the user or root who asked; undefined for roles */
  readonly parentKeyId?: string | undefined;
  /** absent: no session policy was passed, which for a federated user means that nothing is allowed */
  readonly policies?: { readonly inline?: string | undefined; readonly arns: readonly string[] } | undefined;
  readonly tags: readonly TagRecord[];
  /** keys among `tags` that are handed on when the session assumes a role */
  readonly transitiveKeys: readonly string[];
  readonly sourceIdentity?: string | undefined;
  /** ARN of the identity provider, for web identities */
  readonly provider?: string | undefined;
}

const PURPOSE = 'session token';
/** Longest token there can be: a header has at most 16 KiB, and this is far above what the limits on policies and tags allow. */
const TOKEN_CHARACTERS_MAX = 12_000;
const SESSION_BYTES_MAX = 65_536;

/** A new session: id, keys and times filled in. */
export function newSession(
  what: Omit<Session, 'id' | 'accessKeyId' | 'secret' | 'issuedAt' | 'expiresAt'>,
  now: number,
  seconds: number,
): Session {
  // Whole seconds, as Expiration is answered: a session ends when its caller was told so.
  const issuedAt = Math.floor(now / 1000) * 1000;
  return {
    // WHY: a secret's alphabet has / and +, an id none; 40 random characters are unique in either.
    id: secretAccessKey().replace(/[/+]/g, '0'),
    accessKeyId: accessKeyId('ASIA', what.account),
    secret: secretAccessKey(),
    issuedAt,
    expiresAt: issuedAt + seconds * 1000,
    ...what,
  };
}

/** Standard base64 only: tokens travel in headers, query strings, environments and INI files. */
export function sealSession(keys: KeyRing, session: Session): string {
  const bytes = deflateRawSync(Buffer.from(JSON.stringify(session)));
  return seal(keys.derive(PURPOSE), PURPOSE, bytes).toString('base64');
}

/** The session in a token; undefined when this key ring did not seal it. Says nothing about expiry. */
export function unsealSession(keys: KeyRing, token: string): Session | undefined {
  if (token.length > TOKEN_CHARACTERS_MAX) return undefined;
  const sealed = Buffer.from(token, 'base64');
  // WHY: decoding forgives stray characters and unused bits; a token has exactly one spelling.
  if (sealed.length <= SEAL_OVERHEAD_BYTES || sealed.toString('base64') !== token) return undefined;
  try {
    const bytes = unseal(keys.derive(PURPOSE), PURPOSE, sealed);
    return JSON.parse(inflateRawSync(bytes, { maxOutputLength: SESSION_BYTES_MAX }).toString()) as Session;
  } catch (error) {
    if (error instanceof SealError) return undefined;
    throw error;
  }
}
