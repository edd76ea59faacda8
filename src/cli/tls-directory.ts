/** `tls/` in the data directory: the private CA and the server's certificate, for `berth tls` and what uses them. */
import { chmod, mkdir, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import type { Issued } from '../lib/x509.ts';
import type { TlsPair } from '../server.ts';
import { CommandError } from './cli.ts';

/** Whose certificate: a file of it and one of its key. */
export type Owner = 'ca' | 'server';

export function tlsFiles(data: string, owner: Owner): { readonly certificate: string; readonly key: string } {
  const directory = join(data, 'tls');
  return { certificate: join(directory, `${owner}.pem`), key: join(directory, `${owner}-key.pem`) };
}

/** What is there of a pair. @throws CommandError when a file is there and cannot be read */
export async function readIssued(
  data: string,
  owner: Owner,
): Promise<{ readonly certificate: string | undefined; readonly key: string | undefined }> {
  const files = tlsFiles(data, owner);
  return { certificate: await readOptional(files.certificate), key: await readOptional(files.key) };
}

/** Puts a pair in place. A crash leaves the old one, the new one, or a new key beside an old certificate. */
export async function writeIssued(data: string, owner: Owner, { certificate, key }: Issued): Promise<void> {
  const files = tlsFiles(data, owner);
  const directory = join(data, 'tls');
  await mkdir(directory, { recursive: true, mode: 0o700 });
  await chmod(directory, 0o700);
  await writeDurably(files.key, key, 0o600);
  await writeDurably(files.certificate, certificate, 0o644);
}

/**
 * The certificate and key to serve with, `undefined` for plain HTTP.
 *
 * @throws CommandError when they cannot be read
 */
export async function readServerTls(config: Config): Promise<TlsPair | undefined> {
  const own = tlsFiles(config.data, 'server');
  const cert = config.tls ? own.certificate : config.tlsCert;
  const key = config.tls ? own.key : config.tlsKey;
  if (cert === null || key === null) return undefined;
  try {
    return { cert: await readFile(cert), key: await readFile(key) };
  } catch (error) {
    const hint = config.tls ? ' Run "berth tls init" first.' : '';
    throw new CommandError(`cannot read the TLS files: ${(error as Error).message}.${hint}`);
  }
}

async function writeDurably(path: string, text: string, mode: number): Promise<void> {
  const file = await open(`${path}.new`, 'w', mode);
  try {
    await file.chmod(mode);
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new CommandError(`cannot read ${path}: ${(error as Error).message}`);
  }
}
