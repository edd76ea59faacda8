/**
 * Background work on the images of a repository: runs of its lifecycle policy and previews of one (ecr-api.md §12), restores
 * of archived images (§11), and referrers that follow their subject (§9.3). All of it is jobs, so any process may do it, and a
 * run that is broken off is begun again.
 */
import { setImmediate as yieldToOthers } from 'node:timers/promises';
import { ImageColumns } from '../domain/lifecycle-columns.ts';
import {
  evaluateLifecycleInSteps,
  type LifecycleAction,
  type LifecycleEvaluation,
} from '../domain/lifecycle-evaluation.ts';
import { type LifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import { repositoryArn } from '../domain/names.ts';
import type { JobHandler, JobResult, JobRun } from '../jobs/jobs.ts';
import type { LifecycleServiceEvent, ServiceEvent } from '../lib/cloudtrail.ts';
import { LIMITS } from '../lib/limits.ts';
import {
  ACTIVATION_JOB,
  type AppliedLifecycle,
  findLifecyclePolicy,
  findPlace,
  findPreview,
  type ImagePosition,
  LIFECYCLE_JOB,
  pageLifecycleImages,
  type PlannedAction,
  type PlannedGroup,
  PREVIEW_JOB,
  REFERRERS_JOB,
  type Store,
} from '../store/store.ts';
import { createLifecycleReport, type LifecycleReport, type ReportedImage } from './lifecycle-report.ts';
import { retryBrokenReference } from './retry.ts';

/** Images read at once: a few milliseconds. */
const PAGE = 500;
/** Images acted on in one transaction, which other writers wait for. */
const BATCH = 50;
/** Results of a preview written in one transaction. */
const PREVIEW_BATCH = 500;
/** A run that acts for this long decides anew. */
const RUN_MS = 60_000;
/** A preview that failed this often has failed. */
const PREVIEW_ATTEMPTS_MAX = 3;

export interface LifecycleOptions {
  readonly store: Store;
  /** epoch milliseconds */
  readonly clock: () => number;
  /** writes the pull times this process still holds back, which a run must know */
  flush(): Promise<void>;
  /**
   * Hears of what jobs did, after it is committed; at least once, in parts. The images of a part are ten at most, so that no run
   * is held in memory for this.
   */
  readonly report?: (event: ServiceEvent) => void;
}

/** The handlers of the jobs, by kind. */
export function createLifecycleHandlers(options: LifecycleOptions): Readonly<Record<string, JobHandler>> {
  return {
    // WHY never given up: an expiry that stopped for good would fill the disk unnoticed.
    [LIFECYCLE_JOB]: { run: (job) => runPolicy(options, job), attemptsMax: Number.MAX_SAFE_INTEGER },
    [PREVIEW_JOB]: { run: (job) => runPreview(options, job) },
    [ACTIVATION_JOB]: { run: (job) => activate(options, job), concurrency: 4 },
    [REFERRERS_JOB]: { run: (job) => followSubject(options, job) },
  };
}

/** Asked for when a policy is put; comes again every day as long as there is one. */
async function runPolicy(options: LifecycleOptions, { key, signal }: JobRun): Promise<JobResult> {
  const { store, clock } = options;
  const stored = await findLifecyclePolicy(store.read, key);
  if (stored === undefined) return;
  const { policy } = stored;
  const report = await openReport(options, 'PolicyExecutionEvent', key, stored);
  const evaluation = await evaluateRepository(options, key, policy, signal);
  const started = clock();
  for (const groups of batchesOf(planGroups(evaluation, parseLifecyclePolicy(policy)))) {
    signal.throwIfAborted();
    const applied = await retryBrokenReference(() =>
      store.transact('lifecycle.apply', { repositoryId: key, policy, groups, now: clock() }),
    );
    // Whoever changed the policy asked for a run of the new one.
    if (!applied.current) return { again: clock() };
    report?.add(whatWasDone(evaluation, groups, applied));
    // WHY: what was decided a while ago may not hold any more, e.g. when newer images were deleted meanwhile.
    if (clock() - started > RUN_MS) return { again: clock() };
  }
  await report?.end(evaluation.blocked, signal);
  await store.transact('lifecycle.finish', { repositoryId: key, policy, now: clock() });
  return { again: evaluation.unfinished ? clock() : clock() + LIMITS.lifecycleEveryMs };
}

/** For what the jobs on a repository do; `undefined` when nobody wants to hear of it, or the repository is gone. */
async function openReport(
  { store, report }: LifecycleOptions,
  name: LifecycleServiceEvent['name'],
  repositoryId: string,
  { policy, evaluatedAt }: { readonly policy: string; readonly evaluatedAt: number | undefined },
): Promise<LifecycleReport | undefined> {
  if (report === undefined) return undefined;
  const repository = await findPlace(store.read, repositoryId);
  if (repository === undefined) return undefined;
  return createLifecycleReport(report, { name, repository, policy, evaluatedAt });
}

/** The images of the groups that were acted on, and those that refused to go. */
function* whatWasDone(
  { placeOf, imageAt }: LifecycleEvaluation,
  groups: readonly RuledGroup[],
  { acted, failures }: AppliedLifecycle,
): Generator<ReportedImage> {
  const done = new Set(acted);
  const failed = new Map(failures.map((failure) => [failure.imageId.imageDigest, failure]));
  for (const group of groups) {
    for (const { digest } of group.ends ? [...group.referrers, group] : group.referrers) {
      const place = placeOf(digest);
      const failure = failed.get(digest);
      if (place === undefined || (failure === undefined && !done.has(digest))) continue;
      const { tags, pushedAt } = imageAt(place);
      yield { digest, tags, pushedAt, rulePriority: group.rulePriority, failure };
    }
  }
}

/**
 * Reads all images of a repository without their manifests and evaluates a policy that was parsed once, making way for other work
 * all along. What a run, a preview and an explanation have in common. Images of `done` are taken as if that had been done.
 */
export async function evaluateRepository(
  { store, clock, flush }: LifecycleOptions,
  repositoryId: string,
  policy: string,
  signal: AbortSignal,
  done: ReadonlyMap<string, LifecycleAction['action']> = new Map(),
): Promise<LifecycleEvaluation> {
  await flush();
  const now = clock();
  const images = new ImageColumns();
  let after: ImagePosition | undefined;
  do {
    const page = await pageLifecycleImages(store.read, repositoryId, after, PAGE);
    for (const image of page.images) {
      const action = done.get(image.digest);
      if (action === undefined) images.add(image);
      else if (action === 'TRANSITION') images.add({ ...image, status: 'ARCHIVED', lastArchivedAt: now });
    }
    after = page.next;
    await yieldToOthers();
    signal.throwIfAborted();
  } while (after !== undefined);
  const steps = evaluateLifecycleInSteps(parseLifecyclePolicy(policy), images, now);
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
    await yieldToOthers();
    signal.throwIfAborted();
  }
}

/** A group with the rule that acts on its image, and so on the referrers of that. */
interface RuledGroup extends PlannedGroup {
  readonly rulePriority: number;
}

/**
 * The actions with what must still be true of each image. INVARIANT: a referrer is in the group of the image it goes with,
 * before it, so that an image that stays keeps its referrers.
 */
function* planGroups(
  { actions, placeOf, imageAt }: LifecycleEvaluation,
  { rules }: LifecyclePolicy,
): Generator<RuledGroup> {
  const countsPulls = new Set(
    rules
      .filter(({ selection }) => selection.countType === 'sinceImagePulled')
      .map(({ rulePriority }) => rulePriority),
  );
  let referrers: PlannedAction[] = [];
  for (const { digest, action, rulePriority, follows } of actions) {
    const place = placeOf(digest);
    if (place === undefined) continue;
    const image = imageAt(place);
    const { status, pushedAt } = image;
    const planned = { digest, action, status, pushedAt };
    if (follows !== undefined) {
      referrers.push(planned);
      continue;
    }
    const group = {
      ...planned,
      rulePriority,
      tags: image.tags,
      archivedAt: image.lastArchivedAt,
      activatedAt: image.lastActivatedAt,
      pulls: countsPulls.has(rulePriority) ? { lastAt: image.lastPulledAt } : undefined,
    };
    for (; referrers.length >= BATCH; referrers = referrers.slice(BATCH))
      yield { ...group, referrers: referrers.slice(0, BATCH), ends: false };
    yield { ...group, referrers, ends: true };
    referrers = [];
  }
}

function* batchesOf(groups: Iterable<RuledGroup>): Generator<RuledGroup[]> {
  let batch: RuledGroup[] = [];
  let size = 0;
  for (const group of groups) {
    if (size > 0 && size + group.referrers.length + 1 > BATCH) {
      yield batch;
      batch = [];
      size = 0;
    }
    batch.push(group);
    size += group.referrers.length + 1;
  }
  if (batch.length > 0) yield batch;
}

/** Computes the newest preview of a repository; comes again when its results are old, to remove them. */
async function runPreview(options: LifecycleOptions, job: JobRun): Promise<JobResult> {
  const { store, clock } = options;
  const found = await findPreview(store.read, job.key, clock());
  if (found === undefined) return;
  const name = { repositoryId: job.key, preview: found.preview };
  const counts = { expiring: found.expiring, transitioning: found.transitioning };
  if (found.status === 'IN_PROGRESS') {
    try {
      await computePreview(options, name, found.policy, job.signal);
    } catch (error) {
      if (job.signal.aborted || job.attempts < PREVIEW_ATTEMPTS_MAX) throw error;
      await store.transact('lifecycle.endPreview', { ...name, status: 'FAILED', now: clock(), ...counts });
    }
    return { again: clock() + LIMITS.previewKeepMs + 1 };
  }
  if (found.status === 'COMPLETE') return { again: (found.completedAt ?? 0) + LIMITS.previewKeepMs + 1 };
  if (found.status === 'EXPIRED') {
    await store.transact('lifecycle.endPreview', { ...name, status: 'EXPIRED', now: clock(), ...counts });
  }
  await clearPreviews(store, job.key);
}

async function computePreview(
  options: LifecycleOptions,
  name: { readonly repositoryId: string; readonly preview: string },
  policy: string,
  signal: AbortSignal,
): Promise<void> {
  const { store, clock } = options;
  // What earlier previews left, and a run of this one that was broken off.
  await clearPreviews(store, name.repositoryId);
  const dryRun = { policy, evaluatedAt: undefined };
  const report = await openReport(options, 'DryRunEvent', name.repositoryId, dryRun);
  let place = 0;
  let expiring = 0;
  // WHY again and again: a run that makes way for members of indexes is followed by another at once.
  const done = new Map<string, LifecycleAction['action']>();
  let evaluation: LifecycleEvaluation;
  do {
    evaluation = await evaluateRepository(options, name.repositoryId, policy, signal, done);
    for (const batch of slicesOf(evaluation.actions, PREVIEW_BATCH)) {
      signal.throwIfAborted();
      if (!(await store.transact('lifecycle.addPreviewImages', { ...name, place, actions: batch }))) return;
      place += batch.length;
      expiring += batch.filter(({ action }) => action === 'EXPIRE').length;
      report?.add(batch);
      if (evaluation.unfinished) for (const { digest, action } of batch) done.set(digest, action);
    }
  } while (evaluation.unfinished);
  await report?.end(evaluation.blocked, signal);
  const counts = { expiring, transitioning: place - expiring };
  await store.transact('lifecycle.endPreview', { ...name, status: 'COMPLETE', now: clock(), ...counts });
}

function* slicesOf<T>(entries: Iterable<T>, size: number): Generator<T[]> {
  let slice: T[] = [];
  for (const entry of entries) {
    slice.push(entry);
    if (slice.length < size) continue;
    yield slice;
    slice = [];
  }
  if (slice.length > 0) yield slice;
}

async function clearPreviews(store: Store, repositoryId: string): Promise<void> {
  let cleared: number;
  do {
    cleared = await store.transact('lifecycle.clearPreviews', { repositoryId, limit: PREVIEW_BATCH });
  } while (cleared === PREVIEW_BATCH);
}

async function activate({ store, clock, report }: LifecycleOptions, { payload }: JobRun): Promise<void> {
  const image = payload as { repositoryId: string; digest: string };
  const repository = await store.transact('image.activate', { ...image, now: clock() });
  if (repository === undefined) return;
  report?.({
    name: 'ImageActivationEvent',
    repositoryName: repository.name,
    resource: repositoryArn(repository),
    region: repository.region,
    digest: image.digest,
  });
}

/** Comes again every day while an index needs a referrer. */
async function followSubject({ store, clock }: LifecycleOptions, job: JobRun): Promise<JobResult> {
  const subject = job.payload as { repositoryId: string; digest: string; name: string };
  let blocked = 0;
  let after: string | undefined = '';
  while (after !== undefined) {
    job.signal.throwIfAborted();
    const input = { ...subject, now: clock(), after, limit: BATCH };
    const followed: { readonly blocked: number; readonly next: string | undefined } =
      await retryBrokenReference(() => store.transact('lifecycle.followSubject', input));
    blocked += followed.blocked;
    after = followed.next;
  }
  return blocked === 0 ? undefined : { again: clock() + LIMITS.lifecycleEveryMs };
}
