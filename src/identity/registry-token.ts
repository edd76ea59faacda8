/**
 * Registry tokens: who asked (an access key, or a session by its id), for which account and region, until when. Sealed, so
 * that any process with the key ring can open one; what the holder may do is looked up at every use. A session does not fit
 * into the length clients bear, so it is kept in a row and named here (docs/adr/0007-sessions.md).
 */
import { Fault } from '../domain/faults.ts';
import { isAccountId, isRegionName } from '../domain/names.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from '../lib/seal.ts';

export interface TokenContent {
  readonly account: string;
  readonly region: string;
  readonly holder: { readonly kind: 'key' | 'session'; readonly id: string };
  readonly expiresAt: number;
}

const PURPOSE = 'registry token';
/** The first byte says what kind of holder the last bytes name. */
const VERSIONS = { key: 1, session: 2 } as const;
/** WHY: Terraform's provider takes a password that starts with `ey` for what it is (registry-protocol.md §1.4). */
const PREFIX = 'ey';
const PASSWORD_CHARACTERS_MAX = 300;
const HOLDER_ID = /^\w{1,128}$/;
/** version, account, expiry, length of the region */
const FIXED_BYTES = 1 + 6 + 6 + 1;

/** At most 300 characters of `A-Za-z0-9_-`. */
export function sealToken(keys: KeyRing, content: TokenContent): string {
  const { account, region, holder, expiresAt } = content;
  if (!isAccountId(account) || !isRegionName(region) || !HOLDER_ID.test(holder.id)) {
    throw new RangeError('a registry token cannot hold these names');
  }
  const bytes = Buffer.alloc(FIXED_BYTES + region.length + holder.id.length);
  bytes.writeUInt8(VERSIONS[holder.kind], 0);
  bytes.writeUIntBE(Number(account), 1, 6);
  bytes.writeUIntBE(expiresAt, 7, 6);
  bytes.writeUInt8(region.length, 13);
  bytes.write(region + holder.id, FIXED_BYTES, 'latin1');
  return PREFIX + seal(keys.derive(PURPOSE), PURPOSE, bytes).toString('base64url');
}

/** Says nothing about expiry. @throws Fault InvalidRegistryToken */
export function unsealToken(keys: KeyRing, password: string): TokenContent {
  if (!password.startsWith(PREFIX) || password.length > PASSWORD_CHARACTERS_MAX) throw invalidToken();
  const text = password.slice(PREFIX.length);
  const sealed = Buffer.from(text, 'base64url');
  // WHY: decoding forgives stray characters and unused bits; a token has exactly one spelling.
  if (sealed.toString('base64url') !== text || sealed.length <= SEAL_OVERHEAD_BYTES) throw invalidToken();
  let bytes: Buffer;
  try {
    bytes = unseal(keys.derive(PURPOSE), PURPOSE, sealed);
  } catch (error) {
    if (error instanceof SealError) throw invalidToken();
    throw error;
  }
  if (bytes.length < FIXED_BYTES) throw invalidToken();
  const kind = (['key', 'session'] as const).find((each) => VERSIONS[each] === bytes.readUInt8(0));
  if (kind === undefined) throw invalidToken();
  const names = bytes.toString('latin1', FIXED_BYTES);
  const regionLength = bytes.readUInt8(13);
  return {
    account: String(bytes.readUIntBE(1, 6)).padStart(12, '0'),
    expiresAt: bytes.readUIntBE(7, 6),
    region: names.slice(0, regionLength),
    holder: { kind, id: names.slice(regionLength) },
  };
}

export function invalidToken(): Fault {
  return new Fault('InvalidRegistryToken', 'Your Authorization Token is invalid.');
}

/** WHY: SOCI matches this sentence byte for byte and then authenticates again. */
export function expiredToken(): Fault {
  return new Fault(
    'ExpiredRegistryToken',
    'Your authorization token has expired. Reauthenticate and try again.',
  );
}
