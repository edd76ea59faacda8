/**
 * Background work: a durable queue in the metadata database and its runner. Jobs are asked for inside the transactions
 * that make them necessary (`enqueueJob` of store/jobs.ts, or the transaction `job.enqueue`) and run at least once: a
 * process that dies in mid-run leaves a lease that runs out, or is cut short by whoever sees that its holder is gone. While a lease
 * is alive no other runner runs the job.
 */
import { LIMITS } from '../lib/limits.ts';
import type { Logger } from '../lib/log.ts';
import { listLeases } from '../store/store.ts';
import type { ClaimedJob, JobPayload, Lease, Store } from '../store/store.ts';
import { Bell } from './bell.ts';

export { Bell } from './bell.ts';
export type { JobPayload } from '../store/store.ts';

export interface JobRun {
  readonly key: string;
  readonly payload: JobPayload;
  /** 1 the first time, more after failures and crashes */
  readonly attempts: number;
  /** aborted when the runner stops or the lease was lost: end soon, at a point from which the job can go on later */
  readonly signal: AbortSignal;
}

/** `again`: when the job is to run once more, epoch milliseconds. */
export type JobResult = { readonly again: number } | void;

export interface JobHandler {
  /** Does the work. What it throws is a failure: the job is tried again later. Must bear being run twice. */
  run(job: JobRun): Promise<JobResult>;
  /** jobs of this kind that this process runs at once; 1 unless told */
  readonly concurrency?: number;
  /** attempts after which a job is given up; recurring jobs wait for their next turn instead */
  readonly attemptsMax?: number;
  /** the kind recurs: one job, run every so many milliseconds, also across restarts */
  readonly everyMs?: number;
}

export interface JobRunnerOptions {
  readonly store: Store;
  /** epoch milliseconds */
  readonly clock: () => number;
  /** by kind */
  readonly handlers: Readonly<Record<string, JobHandler>>;
  readonly log?: Pick<Logger, 'warn' | 'error'>;
  /** how often to look for jobs that other processes asked for */
  readonly pollMs?: number;
  readonly leaseMs?: number;
}

export interface JobRunner {
  /** Puts down the recurring jobs and begins to run what is due. */
  start(): Promise<void>;
  /** Looks for due jobs now: to be called when something was asked for in this process. */
  wake(): void;
  /** Begins nothing more, tells running handlers and waits for them. */
  stop(): Promise<void>;
}

/** Looks that ringing may cause are this far apart. */
const LOOK_PAUSE_MS = 20;
/** A lease is renewed when this part of it is over. */
const RENEWALS_PER_LEASE = 12;
/**
 * A holder without a connection to the database is gone when its lease was not renewed for so many renewals. WHY not at once: one
 * that lives and only lost its connections has one again when it renews.
 */
const RENEWALS_MISSED = 1.5;

/** The wait before the next attempt: doubles with each, up to a cap. */
export function backoffMs(attempts: number, firstMs: number, capMs: number): number {
  return Math.min(capMs, firstMs * 2 ** Math.min(attempts - 1, 40));
}

/** The pause before a job is taken over. WHY one at all from the second time on: it may be what ends its processes. */
function pauseMs(attempts: number): number {
  return attempts <= 1 ? 0 : backoffMs(attempts - 1, LIMITS.jobRetryMs, LIMITS.jobRetryMsMax);
}

export function createJobRunner(options: JobRunnerOptions): JobRunner {
  const { store, clock, log, pollMs = LIMITS.jobPollMs, leaseMs = LIMITS.jobLeaseMs } = options;
  const kinds = Object.entries(options.handlers);
  const bell = new Bell(LOOK_PAUSE_MS);
  const stopping = new AbortController();
  const running = new Map<string, Set<Promise<void>>>(kinds.map(([kind]) => [kind, new Set()]));
  const findDue = prepareFindDue(
    store,
    kinds.map(([kind]) => kind),
  );
  let loop: Promise<void> = Promise.resolve();
  let leasesReadAt = Number.NEGATIVE_INFINITY;

  /** Takes their leases from holders that are gone; at most once a poll, since each takes a query or more. */
  async function cutLeases(): Promise<void> {
    if (performance.now() - leasesReadAt < pollMs) return;
    leasesReadAt = performance.now();
    const now = clock();
    const names = kinds.map(([kind]) => kind);
    const cuts: (Lease & { was: number })[] = [];
    for (const lease of await listLeases(store.read, names, now, now + leaseMs)) {
      const until = Math.min(lease.until, now + pauseMs(lease.attempts));
      if (until < lease.until && (await isGone(lease, now))) cuts.push({ ...lease, was: lease.until, until });
    }
    if (cuts.length > 0) await store.transact('job.cut', { leases: cuts });
  }

  async function isGone({ lease, until }: Lease, now: number): Promise<boolean> {
    const fate = await store.fateOf(lease);
    const renewedAt = until - leaseMs;
    return (
      fate === 'dead' ||
      (fate === 'lost' && now - renewedAt >= (RENEWALS_MISSED * leaseMs) / RENEWALS_PER_LEASE)
    );
  }

  /** Begins what is due and there is room for. Returns when to look again. */
  async function look(): Promise<number> {
    await cutLeases();
    const due = await findDue();
    let next = Number.POSITIVE_INFINITY;
    let taken = 0;
    for (const [i, [kind, handler]] of kinds.entries()) {
      const dueAt = due[i] ?? Number.POSITIVE_INFINITY;
      const active = running.get(kind) as Set<Promise<void>>;
      const room = (handler.concurrency ?? 1) - active.size;
      // WHY no time for a kind without room: the end of a run rings the bell.
      if (room <= 0 || stopping.signal.aborted) continue;
      if (dueAt > clock()) next = Math.min(next, dueAt);
      else taken += await claim(kind, handler, room, active);
    }
    return taken > 0 ? clock() : next;
  }

  async function claim(
    kind: string,
    handler: JobHandler,
    room: number,
    active: Set<Promise<void>>,
  ): Promise<number> {
    const { attemptsMax = LIMITS.jobAttemptsMax } = handler;
    const input = { kind, now: clock(), leaseMs, lease: store.newWriter(), limit: room, attemptsMax };
    const { claimed, died } = await store.transact('job.claim', input);
    for (const key of died) log?.error({ kind, key }, 'job given up: its runs did not come to an end');
    for (const job of claimed) {
      const run: Promise<void> = perform(job, handler)
        .catch((error: unknown) => log?.error({ err: error, kind, key: job.key }, 'job could not be ended'))
        .finally(() => {
          active.delete(run);
          bell.ring();
        });
      active.add(run);
    }
    return claimed.length + died.length;
  }

  async function perform(job: ClaimedJob, handler: JobHandler): Promise<void> {
    const { kind, key, lease } = job;
    const held = { kind, key, lease };
    const lost = new AbortController();
    const renewal = setInterval(() => {
      store
        .transact('job.renew', { ...held, until: clock() + leaseMs })
        .then((renewed) => void (renewed || lost.abort()))
        // A lease that could not be renewed runs out; the next renewal may succeed before that.
        .catch((error: unknown) => log?.warn({ err: error, kind, key }, 'lease not renewed'));
    }, leaseMs / RENEWALS_PER_LEASE);
    try {
      const signal = AbortSignal.any([stopping.signal, lost.signal]);
      const result = await handler.run({ key, payload: job.payload, attempts: job.attempts, signal });
      await store.transact('job.complete', { ...held, now: clock(), again: result?.again });
    } catch (error) {
      // A run broken off by stopping is no failure.
      if (stopping.signal.aborted)
        await store.transact('job.complete', { ...held, now: clock(), again: clock() });
      else await fail(job, handler, error);
    } finally {
      clearInterval(renewal);
    }
  }

  async function fail(job: ClaimedJob, handler: JobHandler, error: unknown): Promise<void> {
    const { kind, key, lease, attempts } = job;
    const { attemptsMax = LIMITS.jobAttemptsMax } = handler;
    const now = clock();
    const retryAt =
      attempts >= attemptsMax
        ? undefined
        : now + backoffMs(attempts, LIMITS.jobRetryMs, LIMITS.jobRetryMsMax);
    const text = error instanceof Error ? error.message : String(error);
    const outcome = await store.transact('job.fail', { kind, key, lease, now, error: text, retryAt });
    if (outcome !== false && outcome.died) log?.error({ err: error, kind, key, attempts }, 'job given up');
    else log?.warn({ err: error, kind, key, attempts }, 'job failed');
  }

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      const next = await look().catch((error: unknown) => {
        log?.error({ err: error }, 'looking for jobs failed');
        return Number.POSITIVE_INFINITY;
      });
      await bell.wait(Math.min(pollMs, Math.max(0, next - clock())), stopping.signal);
    }
  }

  return {
    async start() {
      const schedules = kinds.flatMap(([kind, { everyMs }]) =>
        everyMs === undefined ? [] : [{ kind, key: '', everyMs }],
      );
      if (schedules.length > 0) await store.transact('job.schedule', { schedules, now: clock() });
      loop = run();
    },
    wake: () => bell.ring(),
    async stop() {
      stopping.abort();
      await loop;
      await Promise.all([...running.values()].flatMap((active) => [...active]));
    },
  };
}

/** When the first job of each kind is due, in one query: a step into the index for each. */
function prepareFindDue(store: Store, kinds: readonly string[]): () => Promise<(number | null)[]> {
  if (kinds.length === 0) return async () => [];
  const columns = kinds.map((_, i) => `(select min(due_at) from job where kind = ?) as k${i}`);
  const query = store.prepare<Record<string, number | null>>(`select ${columns.join(', ')}`);
  return async () => {
    const [row] = await query(...kinds);
    return kinds.map((_, i) => row?.[`k${i}`] ?? null);
  };
}

/**
 * The same store, which also calls `onCommit` after every transaction of this process: what wakes runners at once, so that
 * their polling only has to find the work of other processes.
 */
export function observeCommits(store: Store, onCommit: () => void): Store {
  return {
    ...store,
    transact: (name, input) => {
      const done = store.transact(name, input);
      done.then(onCommit, () => undefined);
      return done;
    },
  };
}
