import { randomUUID } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { kmsKeyOfAlias, kmsKeyOfId, MANAGED_ALIAS } from '../registry/registry.ts';
import { CommandError, type Surroundings } from './cli.ts';

type KeyConfig = Pick<Config, 'data' | 'account' | 'region'>;

const ALIAS = /^alias\/[a-zA-Z0-9/_-]{1,250}$/;
const KEY_FILE = /^content-kms_([0-9]{12})_([a-z0-9-]+)_(.+)\.key$/;

/**
 * Makes a key for repositories with KMS encryption and prints its ARN; that of an alias which has one already is printed again.
 *
 * WHY on the files: a key is a file of the key ring, which a running server finds by itself. Whoever may write there owns it.
 */
export async function createKeyCommand(
  { data, account, region }: KeyConfig,
  { stdout }: Surroundings,
  alias: string | undefined,
): Promise<void> {
  if (alias !== undefined && !ALIAS.test(alias))
    throw new CommandError(`${alias} is no alias: alias/ and up to 250 of a-z, A-Z, 0-9, /, _ and -`);
  if (alias?.startsWith('alias/aws/') && alias !== MANAGED_ALIAS)
    throw new CommandError(`${alias} is no alias: alias/aws/ is kept for the server's own keys`);
  const scope = { account, region };
  const key = alias === undefined ? kmsKeyOfId(scope, randomUUID()) : kmsKeyOfAlias(scope, alias);
  const ring = await openKeyRing(join(data, 'keys'));
  await ring.createKey(key.ringName);
  stdout.write(`${key.arn}\n`);
}

/** Prints the ARNs of all keys, of every account and region. */
export async function listKeysCommand({ data }: KeyConfig, { stdout }: Surroundings): Promise<void> {
  const files = await readdir(join(data, 'keys')).catch((error: unknown) => {
    throw new CommandError(`cannot read the keys: ${(error as Error).message}`);
  });
  for (const file of files.toSorted()) {
    const [, account = '', region = '', id] = KEY_FILE.exec(file) ?? [];
    if (id !== undefined) stdout.write(`${kmsKeyOfId({ account, region }, id).arn}\n`);
  }
}
