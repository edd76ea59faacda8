/**
 * What a run of a lifecycle policy, or a preview of one, tells of itself: service events of at most ten images, as ECR splits
 * them (ecr-api.md §12.4, §25.2). Nothing of a run is kept beyond the images of one event.
 */
import { hash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { BlockedLifecycleAction } from '../domain/lifecycle-evaluation.ts';
import { parseLifecyclePolicy } from '../domain/lifecycle.ts';
import { repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import type { LifecycleServiceEvent, ServiceEvent, ServiceEventImage } from '../lib/cloudtrail.ts';

const EVENT_IMAGES_MAX = 10;
/** Events after which whoever writes them down may catch up. */
const BURST_EVENTS = 10;
/** Rules longer than this are in the first event only. */
const REPEATED_CHARACTERS_MAX = 4096;
/** Indexes that a failure names. */
const INDEXES_NAMED_MAX = 10;

/** An image that was acted on, or was not because of a failure. */
export interface ReportedImage extends ServiceEventImage {
  readonly failure?: { readonly failureCode: string; readonly failureReason: string } | undefined;
}

export interface LifecycleReport {
  /** Tells of images at once. */
  add(images: Iterable<ReportedImage>): void;
  /**
   * Tells of the images that indexes keep from being acted on. When there are none and there was nothing else to tell, that the
   * policy was evaluated. @throws the signal's reason
   */
  end(blocked: Iterable<BlockedLifecycleAction>, signal: AbortSignal): Promise<void>;
}

export function createLifecycleReport(
  report: (event: ServiceEvent) => void,
  about: {
    readonly name: LifecycleServiceEvent['name'];
    readonly repository: RepositoryAddress & { readonly id: string };
    readonly policy: string;
    readonly evaluatedAt: number | undefined;
  },
): LifecycleReport {
  const { name, repository, evaluatedAt } = about;
  const policy = {
    id: policyId(repository.id, about.policy),
    evaluatedAt,
    rules: parseLifecyclePolicy(about.policy).rules,
  };
  // WHY: ten thousand events with 30 KiB of policy each, which one preview could cause, would push everything else out of the log.
  const repeated = about.policy.length > REPEATED_CHARACTERS_MAX ? { ...policy, rules: [] } : policy;
  const subject = {
    name,
    repositoryName: repository.name,
    resource: repositoryArn(repository),
    region: repository.region,
  };
  let told = 0;
  const tell = (images: readonly ReportedImage[]): void => {
    report({
      ...subject,
      policy: told++ === 0 ? policy : repeated,
      actions: images.filter(({ failure }) => failure === undefined),
      failures: images.flatMap(({ failure, ...image }) => (failure ? [{ ...image, ...failure }] : [])),
    });
  };
  return {
    add(images) {
      for (const part of partsOf(images)) tell(part);
    },
    async end(blocked, signal) {
      for (const part of partsOf(blocked)) {
        tell(part.map(failureOf));
        if (told % BURST_EVENTS === 0) await delay(1);
        signal.throwIfAborted();
      }
      if (told === 0) tell([]);
    },
  };
}

function failureOf(action: BlockedLifecycleAction): ReportedImage {
  const { digest, tags, pushedAt, rulePriority, failureCode, indexes } = action;
  const named = indexes.slice(0, INDEXES_NAMED_MAX).join(', ');
  const failureReason = `Requested image referenced by manifest list: [${named}]`;
  return { digest, tags, pushedAt, rulePriority, failure: { failureCode, failureReason } };
}

/** A name for what was put, the same in every run: a version 8 UUID. */
function policyId(repositoryId: string, policy: string): string {
  const hex = hash('sha256', `${repositoryId}\n${policy}`);
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    `a${hex.slice(17, 20)}`,
    hex.slice(20, 32),
  ].join('-');
}

function* partsOf<T>(entries: Iterable<T>): Generator<T[]> {
  let part: T[] = [];
  for (const entry of entries) {
    part.push(entry);
    if (part.length < EVENT_IMAGES_MAX) continue;
    yield part;
    part = [];
  }
  if (part.length > 0) yield part;
}
