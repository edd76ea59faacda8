/** Console passwords: hashed with scrypt, judged by the account's password policy. */
import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import type * as iam from '../model/iam-types.ts';

/** About 50 ms and 32 MiB a hash on a 2020s core. */
const COST = { N: 32_768, r: 8, p: 1 } as const;
const SALT_BYTES = 16;
const HASH_BYTES = 32;

interface Cost {
  readonly N: number;
  readonly r: number;
  readonly p: number;
}

function derive(password: string, salt: Buffer, bytes: number, { N, r, p }: Cost): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    scrypt(password.normalize('NFC'), salt, bytes, { N, r, p, maxmem: 256 * N * r }, (error, key) =>
      error === null ? resolve(key) : reject(error),
    );
  });
}

/** `scrypt$N$r$p$salt$hash`, the last two in base64. */
export async function hashPassword(password: string): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const hash = await derive(password, salt, HASH_BYTES, COST);
  const { N, r, p } = COST;
  return ['scrypt', N, r, p, salt.toString('base64'), hash.toString('base64')].join('$');
}

/** Whether a password is the one that was hashed; without a hash it takes as long and is false. */
export async function verifyPassword(password: string, hashed: string | undefined): Promise<boolean> {
  const [, N, r, p, salt = '', hash = ''] = hashed?.split('$') ?? [];
  const cost = hashed === undefined ? COST : { N: Number(N), r: Number(r), p: Number(p) };
  const expected = hashed === undefined ? Buffer.alloc(HASH_BYTES) : Buffer.from(hash, 'base64');
  const actual = await derive(password, Buffer.from(salt, 'base64'), expected.length, cost);
  return timingSafeEqual(actual, expected) && hashed !== undefined;
}

/** A password policy with AWS's defaults for what was left out. */
export interface PasswordPolicy {
  readonly minimumLength: number;
  readonly symbols: boolean;
  readonly numbers: boolean;
  readonly uppercase: boolean;
  readonly lowercase: boolean;
  readonly usersMayChange: boolean;
  /** days; undefined: passwords do not expire */
  readonly maxAgeDays: number | undefined;
  /** how many older passwords may not be used again */
  readonly remember: number;
  readonly hardExpiry: boolean;
}

export function readPasswordPolicy(input: iam.UpdateAccountPasswordPolicyRequest): PasswordPolicy {
  return {
    minimumLength: input.MinimumPasswordLength ?? 6,
    symbols: input.RequireSymbols ?? false,
    numbers: input.RequireNumbers ?? false,
    uppercase: input.RequireUppercaseCharacters ?? false,
    lowercase: input.RequireLowercaseCharacters ?? false,
    usersMayChange: input.AllowUsersToChangePassword ?? false,
    maxAgeDays: input.MaxPasswordAge,
    remember: input.PasswordReusePrevention ?? 0,
    hardExpiry: input.HardExpiry ?? false,
  };
}

export function showPasswordPolicy(policy: PasswordPolicy): iam.PasswordPolicy {
  return {
    MinimumPasswordLength: policy.minimumLength,
    RequireSymbols: policy.symbols,
    RequireNumbers: policy.numbers,
    RequireUppercaseCharacters: policy.uppercase,
    RequireLowercaseCharacters: policy.lowercase,
    AllowUsersToChangePassword: policy.usersMayChange,
    ExpirePasswords: policy.maxAgeDays !== undefined,
    ...(policy.maxAgeDays !== undefined && {
      MaxPasswordAge: policy.maxAgeDays,
      HardExpiry: policy.hardExpiry,
    }),
    ...(policy.remember > 0 && { PasswordReusePrevention: policy.remember }),
  };
}

const KINDS = [
  ['uppercase', /[A-Z]/, 'uppercase letter'],
  ['lowercase', /[a-z]/, 'lowercase letter'],
  ['numbers', /[0-9]/, 'number'],
  ['symbols', /[!@#$%^&*()_+\-=[\]{}|']/, 'symbol'],
] as const;

/**
 * Why a password is not good enough; undefined if it is. Without a policy AWS's own applies: eight characters of three
 * kinds, and not the user's name.
 */
export function passwordProblem(
  password: string,
  policy: PasswordPolicy | undefined,
  userName: string,
): string | undefined {
  const least = policy?.minimumLength ?? 8;
  if (password.length < least) return `Password should have a minimum length of ${least}`;
  if (policy === undefined) {
    if (password.toLowerCase() === userName.toLowerCase()) return 'Password should not be the user name';
    const kinds = KINDS.filter(([, pattern]) => pattern.test(password)).length;
    if (kinds >= 3) return undefined;
    return 'Password should have at least three of: uppercase letters, lowercase letters, numbers, symbols';
  }
  const missing = KINDS.find(([kind, pattern]) => policy[kind] && !pattern.test(password));
  return missing && `Password should have at least one ${missing[2]}`;
}
