import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import { Fault } from '../domain/faults.ts';
import { isAccountId } from '../domain/names.ts';
import { createAccount } from '../identity/identity.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { listAccounts, openPostgresStore, openSqliteStore, type Store } from '../store/store.ts';
import { CommandError, type Surroundings } from './cli.ts';

const ALIAS = /^(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/;

/**
 * Runs with the database itself, not by a request: whoever can read the data directory owns the server. With SQLite that
 * needs the server stopped (one writer); with PostgreSQL it works beside running ones.
 */
async function withStore<T>(
  config: Config,
  readOnly: boolean,
  use: (store: Store) => Promise<T>,
): Promise<T> {
  let store: Store;
  try {
    store =
      config.database === ''
        ? await openSqliteStore({ file: join(config.data, 'berth.db'), readOnly })
        : await openPostgresStore({ url: config.database, poolMax: 1 });
  } catch (error) {
    const hint = config.database === '' && !readOnly ? ' Stop the server first, then start it again.' : '';
    throw new CommandError(`${(error as Error).message}${hint}`);
  }
  try {
    return await use(store);
  } catch (error) {
    throw error instanceof Fault ? new CommandError(error.message) : error;
  } finally {
    await store.close();
  }
}

export interface CreateOptions {
  readonly id: string | undefined;
  readonly alias: string | undefined;
  readonly json: boolean;
}

/** Makes an account with a user `admin` and prints its key, once. */
export async function createAccountCommand(
  config: Config,
  { stdout }: Surroundings,
  { id, alias, json }: CreateOptions,
): Promise<void> {
  if (id !== undefined && !isAccountId(id)) throw new CommandError(`${id} is not twelve digits`);
  if (alias !== undefined && !ALIAS.test(alias)) {
    throw new CommandError(`${alias} is no alias: 3 to 63 of a-z, 0-9 and single hyphens inside`);
  }
  const account = id ?? String(randomInt(100_000_000_000, 1_000_000_000_000));
  const keys = await openKeyRing(join(config.data, 'keys'));
  const { adminKey } = await withStore(config, false, async (store) => {
    const made = await createAccount({ store, keys, account, now: Date.now() });
    if (alias !== undefined) await store.transact('alias.set', { account, alias });
    return made;
  });
  if (json) {
    const { id: accessKeyId, secret: secretAccessKey } = adminKey;
    stdout.write(`${JSON.stringify({ account, alias, accessKeyId, secretAccessKey })}\n`);
    return;
  }
  stdout.write(
    `Account ${account}: user admin with AdministratorAccess. The secret is shown once.\n\n` +
      `[${alias ?? account}]\naws_access_key_id = ${adminKey.id}\naws_secret_access_key = ${adminKey.secret}\n`,
  );
}

/** Prints every account with its alias and when it was made. */
export async function listAccountsCommand(
  config: Config,
  { stdout }: Surroundings,
  json: boolean,
): Promise<void> {
  const accounts = await withStore(config, true, async (store) => await listAccounts(store.read));
  if (json) {
    const shown = accounts.map(({ id, alias, createdAt }) => ({
      id,
      alias,
      created: new Date(createdAt).toISOString(),
    }));
    stdout.write(`${JSON.stringify(shown)}\n`);
    return;
  }
  for (const { id, alias, createdAt } of accounts) {
    stdout.write(`${id}  ${new Date(createdAt).toISOString().slice(0, 10)}  ${alias ?? ''}`.trimEnd() + '\n');
  }
}
