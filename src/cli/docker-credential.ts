/**
 * Docker's credential helper protocol (docker/docker-credential-helpers), behind `docker-credential-berth`: a verb as
 * argument, a server URL on standard input, answers and error texts on standard output.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { CommanderError } from 'commander';
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { findSource } from './client.ts';
import { fingerprint, type TimedCredentials } from './credentials.ts';
import { findSetting, readPassword, readRegistryHost, stsOf } from './registry-login.ts';
import type { RegistryHost, RegistrySetting } from './registry-login.ts';
import { readStandardInput } from './standard-input.ts';

/** Docker looks for exactly this to go on without credentials. */
const NOT_FOUND = 'credentials not found in native keychain';
const INPUT_CHARACTERS_MAX = 65_536;
/** A password that ends within this time is asked for again. */
const RENEWAL_MS = 60 * 60_000;

interface Kept {
  readonly host: string;
  readonly password: string;
  readonly expiresAt: number;
}

/** @throws CommanderError with exit code 1 when the answer is an error, which is on standard output by then */
export async function dockerCredential(
  config: Pick<Config, 'data'>,
  surroundings: Surroundings,
  verb: string,
): Promise<void> {
  const { stdout } = surroundings;
  try {
    stdout.write(await answer(config, surroundings, verb));
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    stdout.write(`${error.message}\n`);
    throw new CommanderError(1, 'berth.docker-credential', error.message);
  }
}

async function answer(
  config: Pick<Config, 'data'>,
  surroundings: Surroundings,
  verb: string,
): Promise<string> {
  const readInput = async (): Promise<string> =>
    (await readStandardInput(surroundings, INPUT_CHARACTERS_MAX)).trim();
  switch (verb) {
    case 'get':
      return get(await readInput(), config, surroundings);
    case 'store':
      await readInput();
      throw new CommandError(
        'not stored: docker-credential-berth asks for passwords with your AWS credentials, no login is needed',
      );
    case 'erase':
      await erase(await readInput(), surroundings.env);
      return '';
    case 'list':
      return list(surroundings.env);
    case 'version':
      return 'docker-credential-berth (berth)\n';
    default:
      throw new CommandError('Usage: docker-credential-berth <get|store|erase|list|version>');
  }
}

async function get(
  serverUrl: string,
  config: Pick<Config, 'data'>,
  surroundings: Surroundings,
): Promise<string> {
  const host = readRegistryHost(serverUrl);
  const setting = host && (await findSetting(host, [], config, surroundings));
  if (host === undefined || setting === undefined) throw new CommandError(NOT_FOUND);
  let password;
  try {
    password = await findPassword(host, setting, config, surroundings);
  } catch (error) {
    // WHY: a helper for all registries (credsStore) must not keep anybody from Docker Hub when Berth is away.
    const isOurs = setting.isNamed || host.account !== undefined;
    if (!isOurs && error instanceof CommandError) throw new CommandError(NOT_FOUND);
    throw error;
  }
  if (password === undefined) throw new CommandError(NOT_FOUND);
  return `${JSON.stringify({ ServerURL: serverUrl, Username: 'AWS', Secret: password })}\n`;
}

async function findPassword(
  host: RegistryHost,
  setting: RegistrySetting,
  config: Pick<Config, 'data'>,
  { env }: Surroundings,
): Promise<string | undefined> {
  const source = await findSource(config.data, env, await stsOf(setting.target, config.data, env));
  const loaded: TimedCredentials | undefined =
    source.principal === undefined ? await source.load() : undefined;
  const principal = source.principal ?? loaded?.accessKeyId ?? '';
  const file = join(
    cacheDirectory(env),
    `${fingerprint(host.host, setting.target.endpoint, setting.target.region, principal)}.json`,
  );
  const kept = await readKept(file);
  if (kept !== undefined && kept.expiresAt - Date.now() > RENEWAL_MS) return kept.password;
  const found = await readPassword(host, setting, loaded ?? source);
  if (found === undefined) return undefined;
  if (source.isNewEachTime === true) return found.password;
  await keep(file, { host: host.host, password: found.password, expiresAt: found.expiresAt }, env);
  return found.password;
}

function cacheDirectory(env: NodeJS.ProcessEnv): string {
  const base = env['XDG_CACHE_HOME'] || join(env['HOME'] || homedir(), '.cache');
  return join(base, 'berth', 'docker-credential');
}

async function readKept(file: string): Promise<Kept | undefined> {
  try {
    const { host, password, expiresAt } = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
    if (typeof host !== 'string' || typeof password !== 'string' || typeof expiresAt !== 'number')
      return undefined;
    return { host, password, expiresAt };
  } catch {
    return undefined;
  }
}

/** WHY quietly: without a cache the helper is slower, not wrong. */
async function keep(file: string, value: Kept, env: NodeJS.ProcessEnv): Promise<void> {
  const part = `${file}.${process.pid}`;
  try {
    await mkdir(cacheDirectory(env), { recursive: true, mode: 0o700 });
    await writeFile(part, JSON.stringify(value), { mode: 0o600, flag: 'wx' });
    await rename(part, file);
    const now = Date.now();
    for (const { file: old, kept } of await readAllKept(env)) {
      if (kept.expiresAt <= now) await rm(old, { force: true });
    }
  } catch {
    await rm(part, { force: true }).catch(() => undefined);
  }
}

async function readAllKept(
  env: NodeJS.ProcessEnv,
): Promise<{ readonly file: string; readonly kept: Kept }[]> {
  const directory = cacheDirectory(env);
  const names = await readdir(directory).catch(() => []);
  const files = names.filter((name) => name.endsWith('.json')).map((name) => join(directory, name));
  const read = await Promise.all(files.map(async (file) => ({ file, kept: await readKept(file) })));
  return read.flatMap(({ file, kept }) => (kept === undefined ? [] : [{ file, kept }]));
}

/** What `docker logout` does: the password is asked for anew next time. */
async function erase(serverUrl: string, env: NodeJS.ProcessEnv): Promise<void> {
  const host = readRegistryHost(serverUrl)?.host;
  for (const entry of await readAllKept(env))
    if (entry.kept.host === host) await rm(entry.file, { force: true });
}

async function list(env: NodeJS.ProcessEnv): Promise<string> {
  const now = Date.now();
  const live = (await readAllKept(env)).filter(({ kept: { expiresAt } }) => expiresAt > now);
  return `${JSON.stringify(Object.fromEntries(live.map(({ kept: { host } }) => [host, 'AWS'])))}\n`;
}
