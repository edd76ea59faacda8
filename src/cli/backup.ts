import { resolve } from 'node:path';
import type { Config } from '../config.ts';
import { createBackup, type BackupReport } from '../registry/registry.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { bytesText, createProgress, openKeptData } from './kept-data.ts';
import { packageVersion } from './version.ts';

/** The backup is complete but for content that was damaged before. */
const LOST = 2;

export interface BackupFlags {
  readonly directory: string;
  readonly keep: string | undefined;
  readonly withoutKeys: boolean;
  readonly json: boolean;
}

/**
 * Makes a backup, also beside a running server.
 *
 * @throws CommandError exit code 1 when there is no backup, 2 when it lacks content that could not be read
 */
export async function backup(config: Config, surroundings: Surroundings, flags: BackupFlags): Promise<void> {
  const { stdout, stderr } = surroundings;
  const { keep, withoutKeys, json } = flags;
  if (keep !== undefined && !/^\d{1,6}$/.test(keep)) throw new CommandError(`--keep ${keep} is not a count`);
  const progress = createProgress(surroundings);
  const kept = await openKeptData(config, { readOnly: true, exitCode: 1 });
  let report: BackupReport;
  try {
    report = await createBackup({
      store: kept.store,
      blobs: kept.blobs,
      data: config.data,
      directory: resolve(flags.directory),
      withoutKeys,
      keep: keep === undefined ? undefined : Number(keep),
      clock: Date.now,
      berthVersion: packageVersion(),
      onProgress: ({ copies, copied, bytesCopied }) =>
        progress.show(() => `${copies} blobs, ${copied} of them new (${bytesText(bytesCopied)})`),
      onRetry: (reason) => {
        progress.clear();
        stderr.write(`berth: ${reason}; taking a new snapshot\n`);
      },
    });
  } catch (error) {
    throw new CommandError(`no backup was made: ${(error as Error).message}`);
  } finally {
    progress.clear();
    await kept.close();
  }
  const { manifest, copied, bytesCopied, retries, removed } = report;
  const { id, blobs, lost } = manifest;
  if (json)
    stdout.write(`${JSON.stringify({ snapshot: id, blobs, copied, bytesCopied, retries, removed, lost })}\n`);
  else {
    for (const { digest, reason } of lost) stdout.write(`left out  ${digest}: ${reason}\n`);
    stdout.write(
      `snapshot ${id}: ${blobs.count} blobs (${bytesText(blobs.bytes)}), ${copied} of them new (${bytesText(bytesCopied)})` +
        `${withoutKeys ? '; without the keys: keep keys/ elsewhere' : ''}\n`,
    );
  }
  if (lost.length > 0) throw new CommandError(`${lost.length} blobs could not be read; see berth fsck`, LOST);
}
