import type { KeyRing } from '../lib/keyring.ts';
import { accessKeyId, secretAccessKey, uniqueId } from '../lib/ids.ts';
import type { Store } from '../store/store.ts';
import { ADMINISTRATOR_ACCESS } from './managed-policies.ts';
import { sealSecret } from './secrets.ts';

export interface Credentials {
  readonly id: string;
  readonly secret: string;
}

export interface BootstrapOptions {
  readonly store: Store;
  readonly keys: KeyRing;
  /** twelve digits */
  readonly account: string;
  readonly now: number;
  /**
   * The key `admin` gets on the first start; a random one otherwise. To lose nothing in a crash between the commit and
   * the hand-over, make it, write it down, then pass it.
   */
  readonly adminKey?: Credentials | undefined;
  /** The root credentials of the account: from now on exactly these, or none. */
  readonly rootKey?: Credentials | undefined;
}

export const ADMIN_USER = 'admin';

/**
 * Makes the account with an IAM user `admin` that has AdministratorAccess and an access key, unless it exists; brings the
 * root credentials in line. One transaction: it happens whole or not at all, and once however many processes start.
 * Returns the new key the one time it is made.
 *
 * @throws Fault InvalidInput when the root key's id belongs to somebody else
 */
export async function bootstrap(options: BootstrapOptions): Promise<{ adminKey: Credentials } | undefined> {
  const { store, keys, account, now, rootKey } = options;
  const adminKey = options.adminKey ?? generateCredentials(account);
  const sealed = ({ id, secret }: Credentials) => ({ id, secret: sealSecret(keys, id, secret) });
  const { created } = await store.transact('account.bootstrap', {
    account,
    now,
    admin: {
      id: uniqueId('AIDA'),
      name: ADMIN_USER,
      policyArn: ADMINISTRATOR_ACCESS,
      key: sealed(adminKey),
    },
    rootKey: rootKey === undefined ? undefined : sealed(rootKey),
  });
  return created ? { adminKey } : undefined;
}

/**
 * Makes a further account with an IAM user `admin` that has AdministratorAccess, and returns that user's key, the only time.
 *
 * @throws Fault EntityAlreadyExists
 */
export async function createAccount(
  options: Omit<BootstrapOptions, 'rootKey'>,
): Promise<{ adminKey: Credentials }> {
  const { store, keys, account, now } = options;
  const adminKey = options.adminKey ?? generateCredentials(account);
  await store.transact('account.create', {
    account,
    now,
    admin: {
      id: uniqueId('AIDA'),
      name: ADMIN_USER,
      policyArn: ADMINISTRATOR_ACCESS,
      key: { id: adminKey.id, secret: sealSecret(keys, adminKey.id, adminKey.secret) },
    },
  });
  return { adminKey };
}

/** A random key of the shape AWS makes, for `adminKey`. */
export function generateCredentials(account: string): Credentials {
  return { id: accessKeyId('AKIA', account), secret: secretAccessKey() };
}
