import { randomBytes, randomInt } from 'node:crypto';

/** Identifiers of AWS's shapes (iam-sts.md §5.3). All are random and never reused. */

const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
const SECRET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+';

function pick(alphabet: string, length: number): string {
  let text = '';
  for (let i = 0; i < length; i++) text += alphabet[randomInt(alphabet.length)];
  return text;
}

/** A unique id of IAM: 21 characters, e.g. `AIDA…` for users and `ANPA…` for managed policies. */
export function uniqueId(prefix: 'AIDA' | 'AROA' | 'AGPA' | 'AIPA' | 'ANPA'): string {
  return prefix + pick(BASE32, 17);
}

/**
 * An access key id: 20 characters that carry the account number as AWS's do (first bit 1, then 40 bits of account,
 * base32), so that `GetAccessKeyInfo` and third-party decoders answer rightly.
 */
export function accessKeyId(prefix: 'AKIA' | 'ASIA', account: string): string {
  let bits = (1n << 44n) | (BigInt(account) << 4n) | BigInt(randomInt(16));
  let carrier = '';
  for (let i = 0; i < 9; i++) {
    carrier = BASE32[Number(bits & 31n)] + carrier;
    bits >>= 5n;
  }
  return prefix + carrier + pick(BASE32, 7);
}

/** The account number inside an access key id; `undefined` when the id does not carry one. */
export function accountOfAccessKey(id: string): string | undefined {
  let bits = 0n;
  for (const letter of id.slice(4, 13)) {
    const value = BASE32.indexOf(letter);
    if (value === -1) return undefined;
    bits = (bits << 5n) | BigInt(value);
  }
  if (id.length < 13 || bits >> 44n !== 1n) return undefined;
  const account = (bits >> 4n) & ((1n << 40n) - 1n);
  return account > 999_999_999_999n ? undefined : account.toString().padStart(12, '0');
}

/** A secret access key: 40 characters of `A-Za-z0-9/+`. */
export function secretAccessKey(): string {
  return pick(SECRET, 40);
}

/** An opaque key for stored bytes or rows: 32 lower-case hex digits, time-ordered so that new rows stay together. */
export function storageKey(now: number): string {
  return now.toString(16).padStart(12, '0') + randomBytes(10).toString('hex');
}
