/**
 * Registry tokens: who asked (the access key), for which account and region, until when. Sealed, so that any process
 * with the key ring can open one without a table; what the key may do is looked up at every use.
 */
import { Fault } from '../domain/faults.ts';
import { isAccountId, isRegionName } from '../domain/names.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from '../lib/seal.ts';

export interface TokenContent {
  readonly account: string;
  readonly region: string;
  readonly accessKeyId: string;
  readonly expiresAt: number;
}

const PURPOSE = 'registry token';
const VERSION = 1;
/** WHY: Terraform's provider takes a password that starts with `ey` for what it is (registry-protocol.md §1.4). */
const PREFIX = 'ey';
const PASSWORD_CHARACTERS_MAX = 300;
const ACCESS_KEY_ID = /^\w{1,128}$/;
/** version, account, expiry, length of the region */
const FIXED_BYTES = 1 + 6 + 6 + 1;

/** At most 300 characters of `A-Za-z0-9_-`. */
export function sealToken(keys: KeyRing, content: TokenContent): string {
  const { account, region, accessKeyId, expiresAt } = content;
  if (!isAccountId(account) || !isRegionName(region) || !ACCESS_KEY_ID.test(accessKeyId)) {
    throw new RangeError('a registry token cannot hold these names');
  }
  const bytes = Buffer.alloc(FIXED_BYTES + region.length + accessKeyId.length);
  bytes.writeUInt8(VERSION, 0);
  bytes.writeUIntBE(Number(account), 1, 6);
  bytes.writeUIntBE(expiresAt, 7, 6);
  bytes.writeUInt8(region.length, 13);
  bytes.write(region + accessKeyId, FIXED_BYTES, 'latin1');
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
  if (bytes.length < FIXED_BYTES || bytes.readUInt8(0) !== VERSION) throw invalidToken();
  const names = bytes.toString('latin1', FIXED_BYTES);
  const regionLength = bytes.readUInt8(13);
  return {
    account: String(bytes.readUIntBE(1, 6)).padStart(12, '0'),
    expiresAt: bytes.readUIntBE(7, 6),
    region: names.slice(0, regionLength),
    accessKeyId: names.slice(regionLength),
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
