/** What a running server leaves in its data directory for the commands beside it. */
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { CommandError } from './cli.ts';

export interface AccessKey {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

/** `server.json`: where the server that owns the directory listens. Present while it runs. */
export interface ServerRecord {
  readonly endpoint: string;
  readonly account: string;
  readonly region: string;
  readonly pid: number;
}

const CREDENTIALS = join('bootstrap', 'credentials');
const SERVER = 'server.json';

/** Makes the data directory, and its name durable: what is synced in a directory that is lost is lost. */
export async function makeDataDirectory(path: string): Promise<void> {
  const data = resolve(path);
  const first = await mkdir(data, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  for (let made = data; ; made = dirname(made)) {
    // WHY passed over: a directory that may not be read can still be one to make others in
    await syncDirectory(dirname(made)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EACCES') throw error;
    });
    if (made === resolve(first)) return;
  }
}

/** Writes `bootstrap/credentials` in AWS's profile format, durably, readable by the owner only. */
export async function writeCredentials(data: string, key: AccessKey): Promise<void> {
  await mkdir(join(data, 'bootstrap'), { recursive: true, mode: 0o700 });
  await chmod(join(data, 'bootstrap'), 0o700);
  await syncDirectory(data);
  const profile = `[default]\naws_access_key_id = ${key.accessKeyId}\naws_secret_access_key = ${key.secretAccessKey}\n`;
  await writeWhole(join(data, CREDENTIALS), profile);
}

export async function removeCredentials(data: string): Promise<void> {
  await rm(join(data, CREDENTIALS), { force: true });
}

export async function readCredentials(data: string): Promise<AccessKey | undefined> {
  const text = await readOptional(join(data, CREDENTIALS));
  const accessKeyId = /^aws_access_key_id\s*=\s*(\S+)$/m.exec(text ?? '')?.[1];
  const secretAccessKey = /^aws_secret_access_key\s*=\s*(\S+)$/m.exec(text ?? '')?.[1];
  return accessKeyId === undefined || secretAccessKey === undefined
    ? undefined
    : { accessKeyId, secretAccessKey };
}

export async function writeServerRecord(data: string, record: ServerRecord): Promise<void> {
  await writeWhole(join(data, SERVER), `${JSON.stringify(record)}\n`);
}

export async function removeServerRecord(data: string): Promise<void> {
  await rm(join(data, SERVER), { force: true });
}

/** @throws CommandError when no server has this data directory open */
export async function readServerRecord(data: string): Promise<ServerRecord> {
  const text = await readOptional(join(data, SERVER));
  if (text === undefined) {
    throw new CommandError(
      `no server runs on ${data}. Start one with "npm start", or name its directory with --data.`,
    );
  }
  return JSON.parse(text) as ServerRecord;
}

async function writeWhole(path: string, text: string): Promise<void> {
  // WHY a name of its own: several servers may have one directory
  const temporary = `${path}.${randomBytes(6).toString('hex')}`;
  const file = await open(temporary, 'wx', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new CommandError(`cannot read ${path}: ${(error as Error).message}`);
  }
}
