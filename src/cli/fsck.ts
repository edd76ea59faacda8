import type { Config } from '../config.ts';
import { checkRegistry, type CheckReport, type Finding } from '../registry/registry.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { bytesText, createProgress, openKeptData } from './kept-data.ts';

/** Exit codes, after fsck(8): nothing wrong; only leftovers; damage; could not run. */
const WARNINGS = 1;
const DAMAGE = 2;
const NOT_RUN = 3;

/**
 * Verifies everything that is kept against everything else. Reads beside a running server; with `repair` on the embedded
 * database it owns the data directory meanwhile, and refuses while a server does.
 *
 * @throws CommandError with the exit codes above
 */
export async function fsck(
  config: Config,
  surroundings: Surroundings,
  { repair, json }: { readonly repair: boolean; readonly json: boolean },
): Promise<void> {
  const { stdout } = surroundings;
  const progress = createProgress(surroundings);
  const kept = await openKeptData(config, { readOnly: !repair, exitCode: NOT_RUN });
  let report: CheckReport;
  try {
    report = await checkRegistry({
      store: kept.store,
      blobs: kept.blobs,
      clock: Date.now,
      repair,
      trashGraceMs: config.trashGraceMs,
      onFinding: (finding) => {
        progress.clear();
        if (!json) stdout.write(findingText(finding, repair));
      },
      onProgress: ({ images, copies, bytes, files }) =>
        progress.show(() => `${images} images, ${copies} blobs (${bytesText(bytes)}), ${files} files`),
    });
  } catch (error) {
    throw new CommandError(`the check was broken off: ${(error as Error).message}`, NOT_RUN);
  } finally {
    progress.clear();
    await kept.close();
  }
  stdout.write(json ? `${JSON.stringify(report)}\n` : summaryText(report));
  if (report.result === 'damage') throw new CommandError(`${report.damage} damaged`, DAMAGE);
  if (report.result === 'warnings') throw new CommandError(`${report.warnings} warnings`, WARNINGS);
}

function findingText(
  { severity, code, text, neededBy, repair, repaired }: Finding,
  repairing: boolean,
): string {
  const lines = [`${severity}  ${code}  ${text}`];
  for (const { account, region, repository, digest, tags } of neededBy ?? []) {
    const named = tags.length === 0 ? 'untagged' : `tagged ${tags.join(', ')}`;
    lines.push(`        needed by ${account}/${region}/${repository}@${digest} (${named})`);
  }
  if (repaired) lines.push(`        ${repair}`);
  else if (repair !== undefined && !repairing) lines.push(`        with --repair: ${repair}`);
  return `${lines.join('\n')}\n`;
}

function summaryText({ result, counts }: CheckReport): string {
  const { copies, bytes, images, tags, uploads, files, trash } = counts;
  return (
    `checked ${images} images, ${tags} tags, ${copies} blobs (${bytesText(bytes)}), ${uploads} uploads, ${files} files, ` +
    `${trash} in the trash: ${result}\n`
  );
}
