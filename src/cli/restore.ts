import { join, resolve } from 'node:path';
import type { Config } from '../config.ts';
import { restoreBackup, type RestoreProgress, verifyBackup } from '../registry/registry.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { bytesText, createProgress } from './kept-data.ts';

/** Restored, but for content that the backup says it lacks. */
const LOST = 2;

export interface RestoreFlags {
  readonly directory: string;
  readonly snapshot: string | undefined;
  readonly verify: boolean;
  readonly json: boolean;
}

/**
 * Restores a backup into an empty data directory (and an empty PostgreSQL database, when the settings name one), or only
 * verifies it.
 *
 * @throws CommandError exit code 1 when it did not, 2 when the backup lacks content that was damaged when it was made
 */
export async function restore(
  config: Config,
  surroundings: Surroundings,
  flags: RestoreFlags,
): Promise<void> {
  const { stdout } = surroundings;
  const progress = createProgress(surroundings);
  const { data, database } = config;
  const options = {
    directory: resolve(flags.directory),
    snapshot: flags.snapshot,
    onProgress: ({ step, copies, bytes, rows }: RestoreProgress) =>
      progress.show(() =>
        step === 'load' ? `${rows} rows` : `${step}: ${copies} blobs (${bytesText(bytes)})`,
      ),
  };
  const work = flags.verify
    ? verifyBackup({ ...options, keys: join(data, 'keys') })
    : restoreBackup({ ...options, data, database });
  const { manifest } = await work
    .catch((error: unknown) => {
      throw new CommandError(
        `${flags.verify ? 'not verified' : 'nothing was restored'}: ${(error as Error).message}`,
      );
    })
    .finally(() => progress.clear());
  const { id, blobs, lost, createdAt, berthVersion } = manifest;
  if (flags.json) stdout.write(`${JSON.stringify({ snapshot: id, createdAt, berthVersion, blobs, lost })}\n`);
  else {
    const done = flags.verify ? 'is whole' : `restored into ${data}`;
    stdout.write(
      `snapshot ${id} of ${createdAt} ${done}: ${blobs.count} blobs (${bytesText(blobs.bytes)})\n`,
    );
  }
  if (lost.length > 0)
    throw new CommandError(`the backup lacks ${lost.length} blobs that were damaged when it was made`, LOST);
}
