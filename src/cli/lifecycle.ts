/** `berth lifecycle explain`: what a lifecycle policy does to each image of a repository, and why. */
import { readFile } from 'node:fs/promises';
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { createClient } from './client.ts';

export interface LifecycleExplainFlags {
  /** a file to read the policy from instead of the repository's */
  readonly policy: string | undefined;
  /** tags and digests to explain; all images when there are none */
  readonly images: readonly string[];
  /** account whose registry it is */
  readonly registryId: string | undefined;
  readonly json: boolean;
}

/** As on the wire: times are epoch seconds. */
interface Verdict {
  readonly imageDigest: string;
  readonly imageTags?: readonly string[];
  readonly imagePushedAt: number;
  readonly imageStatus: string;
  readonly verdict: 'EXPIRE' | 'TRANSITION' | 'KEEP';
  readonly reason: string;
  readonly rules: readonly {
    readonly rulePriority: number;
    readonly selects: boolean;
    readonly marks: boolean;
    readonly owns: boolean;
    readonly reason: string;
    readonly dueAfter?: number;
  }[];
}

interface Page {
  readonly evaluatedAt: number;
  readonly images: readonly Verdict[];
  readonly failures: readonly {
    readonly imageId: { readonly imageDigest?: string; readonly imageTag?: string };
    readonly failureReason: string;
  }[];
  readonly summary: { readonly expiring: number; readonly transitioning: number; readonly kept: number };
  readonly nextToken?: string;
}

const PAGE = 1000;
/** Image ids of one request. */
const IDS_MAX = 100;

/**
 * Prints the verdict on each image, youngest first, with what each rule says about it; `--json` prints one JSON object a line.
 *
 * @throws CommandError with exit code 1 when an image that was asked for is not there
 */
export async function explainLifecycle(
  config: Config,
  surroundings: Surroundings,
  repositoryName: string,
  flags: LifecycleExplainFlags,
): Promise<void> {
  const lifecyclePolicyText = flags.policy === undefined ? undefined : await readPolicy(flags.policy);
  if (flags.images.length > IDS_MAX) throw new CommandError(`at most ${IDS_MAX} images at once`);
  const client = await createClient(config, surroundings);
  const { stdout } = surroundings;
  const ask = (more: object): Promise<Page> =>
    client.call<Page>('berth', 'ExplainLifecycle', {
      repositoryName,
      ...(flags.registryId !== undefined && { registryId: flags.registryId }),
      ...(lifecyclePolicyText !== undefined && { lifecyclePolicyText }),
      ...more,
    });
  const print = (page: Page): void => {
    for (const image of page.images)
      stdout.write(flags.json ? `${JSON.stringify(image)}\n` : describe(image, page.evaluatedAt));
  };
  if (flags.images.length > 0) {
    const page = await ask({ imageIds: flags.images.map(imageIdOf) });
    print(page);
    const [missing] = page.failures;
    if (missing === undefined) return;
    const { imageDigest, imageTag } = missing.imageId;
    throw new CommandError(`${imageTag ?? imageDigest ?? ''}: ${missing.failureReason}`);
  }
  let page = await ask({ maxResults: PAGE });
  print(page);
  while (page.nextToken !== undefined) {
    page = await ask({ maxResults: PAGE, nextToken: page.nextToken });
    print(page);
  }
  const { expiring, transitioning, kept } = page.summary;
  if (!flags.json) stdout.write(`${expiring} expire, ${transitioning} archived, ${kept} kept\n`);
}

async function readPolicy(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
}

function imageIdOf(reference: string): object {
  return reference.includes(':') ? { imageDigest: reference } : { imageTag: reference };
}

function describe(image: Verdict, evaluatedAt: number): string {
  const tags = image.imageTags === undefined ? 'untagged' : image.imageTags.join(', ');
  const head = `${image.verdict} ${image.imageDigest} (${tags}), pushed ${utc(image.imagePushedAt)}`;
  const lines = [head, `  ${image.reason}`];
  for (const rule of image.rules) {
    const mark = rule.owns ? ' (owner)' : '';
    lines.push(`  rule ${rule.rulePriority}${mark}: ${rule.reason}${dueOf(rule, evaluatedAt)}`);
  }
  return `${lines.map(printable).join('\n')}\n`;
}

function dueOf({ owns, marks, dueAfter }: Verdict['rules'][number], evaluatedAt: number): string {
  return owns && !marks && dueAfter !== undefined && dueAfter > evaluatedAt
    ? ` Due after ${utc(dueAfter)}.`
    : '';
}

function utc(seconds: number): string {
  return new Date(seconds * 1000).toISOString();
}

/** WHY: a pattern of a policy may hold anything, also what a terminal obeys. */
function printable(line: string): string {
  return line.replaceAll(/\p{Cc}/gu, '?');
}
