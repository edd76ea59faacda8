/** Opening what a server keeps, for the commands that read it beside the server. */
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { createFileBlobStore } from '../blobs/blobs.ts';
import type { Config } from '../config.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { openPostgresStore, openSqliteStore } from '../store/store.ts';
import { CommandError, type Surroundings } from './cli.ts';

/**
 * Opens database, blobs and keys of the data directory; makes none of them.
 *
 * @throws CommandError with `exitCode` when they are not there, or, to be written to, in use
 */
export async function openKeptData(config: Config, options: { readOnly: boolean; exitCode: number }) {
  const { data, database } = config;
  const file = join(data, 'berth.db');
  const needed = [join(data, 'keys', 'master.key'), join(data, 'blobs'), ...(database === '' ? [file] : [])];
  for (const path of needed) {
    await access(path).catch((error: unknown) => {
      throw new CommandError(`no data to read in ${data}: ${(error as Error).message}`, options.exitCode);
    });
  }
  try {
    const { readOnly } = options;
    const store = await (database === ''
      ? openSqliteStore({ file, readOnly })
      : openPostgresStore({ url: database }));
    const blobs = await createFileBlobStore({
      directory: join(data, 'blobs'),
      keys: await openKeyRing(join(data, 'keys')),
    });
    return {
      store,
      blobs,
      async close(): Promise<void> {
        await blobs.close();
        await store.close();
      },
    };
  } catch (error) {
    throw new CommandError((error as Error).message, options.exitCode);
  }
}

const SHOW_MS = 500;

/** Shows a line that changes in place, on a terminal; nothing elsewhere. */
export function createProgress({ stderr }: Pick<Surroundings, 'stderr'>): {
  show(text: () => string): void;
  clear(): void;
} {
  let shownAt = 0;
  return {
    show(text) {
      if (!stderr.isTTY || performance.now() - shownAt < SHOW_MS) return;
      shownAt = performance.now();
      stderr.write(`\r\u001b[K${text()}`);
    },
    clear() {
      if (stderr.isTTY && shownAt > 0) stderr.write('\r\u001b[K');
    },
  };
}

/** 1,234,567 bytes as `1.2 MB`. */
export function bytesText(bytes: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB', 'PB'] as const;
  const power = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return `${power === 0 ? bytes : (bytes / 1000 ** power).toFixed(1)} ${units[power] ?? ''}`;
}
