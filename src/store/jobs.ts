/**
 * Background work as rows (tech.md §4). A job is asked for inside the transaction that makes it necessary, so it exists
 * exactly when that committed. One row for each (kind, key): asking again for what waits changes nothing but the payload
 * and, if that is earlier, the time; asking for what runs makes it run once more afterwards.
 *
 * INVARIANT: a row with a lease belongs to the runner that holds the lease until `due_at`; ending a run under a lease that
 * is no longer in force changes nothing.
 */
import { sql } from 'kysely';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** Plain data that survives JSON. */
export type JobPayload =
  | string
  | number
  | boolean
  | null
  | readonly JobPayload[]
  | { readonly [name: string]: JobPayload };

export interface NewJob {
  readonly kind: string;
  /** what makes it one piece of work among its kind, e.g. the id of a repository */
  readonly key: string;
  /** not before, epoch milliseconds */
  readonly runAt: number;
  readonly payload?: JobPayload;
}

/** Texts of failures are cut here. */
const ERROR_CHARACTERS_MAX = 500;

/**
 * Asks for a job, to be called inside any transaction. A job that waits for another try after a failure keeps its time; a
 * dead one starts anew.
 */
export async function enqueueJob(tx: Tx, job: NewJob): Promise<void> {
  const wanted = sql.ref<number>('excluded.run_at');
  const earlier = sql<number>`case when job.run_at is null or job.run_at > ${wanted} then ${wanted} else job.run_at end`;
  const isDead = sql`job.died_at is not null`;
  const isLeased = sql`job.lease is not null`;
  const isRetried = sql`job.attempts > 0`;
  await tx
    .insertInto('job')
    .values({ ...rowOf(job), every_ms: null })
    .onConflict((conflict) =>
      conflict.columns(['kind', 'key']).doUpdateSet((q) => ({
        payload: q.ref('excluded.payload'),
        run_at: sql<number>`case when ${isDead} then ${wanted} when ${isLeased} then ${earlier}
          when ${isRetried} then job.run_at else ${earlier} end`,
        due_at: sql<number>`case when ${isDead} then ${wanted} when ${isLeased} or ${isRetried} then job.due_at
          else ${earlier} end`,
        attempts: sql<number>`case when ${isDead} then 0 else job.attempts end`,
        died_at: null,
      })),
    )
    .execute();
}

function rowOf({ kind, key, runAt, payload = null }: NewJob) {
  return {
    kind,
    key,
    payload: JSON.stringify(payload),
    run_at: runAt,
    due_at: runAt,
    lease: null,
    attempts: 0,
    error: null,
    died_at: null,
  };
}

export interface Schedule {
  readonly kind: string;
  readonly key: string;
  readonly everyMs: number;
  readonly payload?: JobPayload;
}

/**
 * Makes jobs that recur, each `everyMs` after the end of its last run: however long nobody ran it, it runs once. First at
 * `now`; one there already keeps its time unless the new interval is shorter.
 */
async function scheduleJobs(
  tx: Tx,
  { schedules, now }: { readonly schedules: readonly Schedule[]; readonly now: number },
): Promise<void> {
  for (const { everyMs, ...job } of schedules) {
    const atMost = (column: 'run_at' | 'due_at') =>
      sql<number>`case when job.lease is null and (job.${sql.ref(column)} is null or job.${sql.ref(column)} > ${now + everyMs})
        then cast(${now + everyMs} as bigint) else job.${sql.ref(column)} end`;
    await tx
      .insertInto('job')
      .values({ ...rowOf({ ...job, runAt: now }), every_ms: everyMs })
      .onConflict((conflict) =>
        conflict.columns(['kind', 'key']).doUpdateSet((q) => ({
          payload: q.ref('excluded.payload'),
          every_ms: q.ref('excluded.every_ms'),
          run_at: atMost('run_at'),
          due_at: atMost('due_at'),
          died_at: null,
        })),
      )
      .execute();
  }
}

/** Removes a job that is not running; one that runs ends and is gone then, recurring or not. */
async function removeJob(
  tx: Tx,
  { kind, key }: { readonly kind: string; readonly key: string },
): Promise<void> {
  await tx
    .deleteFrom('job')
    .where('kind', '=', kind)
    .where('key', '=', key)
    .where('lease', 'is', null)
    .execute();
  await tx
    .updateTable('job')
    .set({ run_at: null, every_ms: null })
    .where('kind', '=', kind)
    .where('key', '=', key)
    .execute();
}

export interface ClaimInput {
  readonly kind: string;
  readonly now: number;
  readonly leaseMs: number;
  /** unique to this claim */
  readonly lease: string;
  readonly limit: number;
  /** a job begun as often as this without an end to any run is given up */
  readonly attemptsMax: number;
}

export interface ClaimedJob {
  readonly kind: string;
  readonly key: string;
  readonly payload: JobPayload;
  readonly lease: string;
  /** 1 the first time */
  readonly attempts: number;
}

/** Takes due jobs of a kind, longest due first. A lease that ran out is no obstacle: its runner is taken for dead. */
async function claimJobs(tx: Tx, input: ClaimInput): Promise<{ claimed: ClaimedJob[]; died: string[] }> {
  const { kind, now, lease } = input;
  const rows = await tx
    .selectFrom('job')
    .select(['key', 'payload', 'attempts', 'every_ms'])
    .where('kind', '=', kind)
    .where('due_at', '<=', now)
    .orderBy('due_at')
    .limit(input.limit)
    .execute();
  const claimed: ClaimedJob[] = [];
  const died: string[] = [];
  for (const { key, payload, attempts, every_ms: everyMs } of rows) {
    // WHY: what never came to an end ended its process, and would end this one too.
    const dead = attempts >= input.attemptsMax && everyMs === null;
    const change = dead
      ? { lease: null, due_at: null, died_at: now, error: 'its runs did not come to an end' }
      : { lease, run_at: null, due_at: now + input.leaseMs, attempts: attempts + 1 };
    await tx.updateTable('job').set(change).where('kind', '=', kind).where('key', '=', key).execute();
    if (dead) died.push(key);
    else
      claimed.push({ kind, key, payload: JSON.parse(payload) as JobPayload, lease, attempts: attempts + 1 });
  }
  return { claimed, died };
}

export interface HeldJob {
  readonly kind: string;
  readonly key: string;
  readonly lease: string;
}

async function findHeld(tx: Tx, { kind, key, lease }: HeldJob) {
  return await tx
    .selectFrom('job')
    .select(['run_at', 'every_ms'])
    .where('kind', '=', kind)
    .where('key', '=', key)
    .where('lease', '=', lease)
    .executeTakeFirst();
}

export interface Lease extends HeldJob {
  /** its end, epoch milliseconds */
  readonly until: number;
  readonly attempts: number;
}

/** The leases of these kinds that end after `after` and no later than `until`. */
export async function listLeases(
  read: Reader,
  kinds: readonly string[],
  after: number,
  until: number,
): Promise<Lease[]> {
  if (kinds.length === 0) return [];
  const rows = await read
    .selectFrom('job')
    .select(['kind', 'key', 'lease', 'due_at', 'attempts'])
    .where('kind', 'in', kinds)
    .where('due_at', '>', after)
    .where('due_at', '<=', until)
    .where('lease', 'is not', null)
    .execute();
  return rows.map(({ lease, due_at: dueAt, ...row }) => ({ ...row, lease: lease ?? '', until: dueAt ?? 0 }));
}

/** Lets leases end earlier, whose holders are gone. One that was renewed, given up or taken meanwhile stays as it is. */
async function cutLeases(
  tx: Tx,
  { leases }: { readonly leases: readonly (HeldJob & { readonly was: number; readonly until: number })[] },
): Promise<void> {
  for (const { kind, key, lease, was, until } of leases)
    await tx
      .updateTable('job')
      .set({ due_at: until })
      .where('kind', '=', kind)
      .where('key', '=', key)
      .where('lease', '=', lease)
      .where('due_at', '=', was)
      .execute();
}

/** Prolongs a lease. False when it is no longer in force. */
async function renewJob(tx: Tx, input: HeldJob & { readonly until: number }): Promise<boolean> {
  if ((await findHeld(tx, input)) === undefined) return false;
  await tx
    .updateTable('job')
    .set({ due_at: input.until })
    .where('kind', '=', input.kind)
    .where('key', '=', input.key)
    .execute();
  return true;
}

/**
 * Ends a run that succeeded: the job is gone, or waits for when it was asked for meanwhile, for `again`, or for its next
 * turn, whichever is earliest. False when the lease is no longer in force.
 */
async function completeJob(
  tx: Tx,
  input: HeldJob & { readonly now: number; readonly again: number | undefined },
): Promise<boolean> {
  const held = await findHeld(tx, input);
  if (held === undefined) return false;
  const turns = [held.run_at, input.again, held.every_ms === null ? null : input.now + held.every_ms].filter(
    (turn) => turn !== null && turn !== undefined,
  );
  const { kind, key } = input;
  if (turns.length === 0) {
    await tx.deleteFrom('job').where('kind', '=', kind).where('key', '=', key).execute();
    return true;
  }
  const next = Math.min(...turns);
  await tx
    .updateTable('job')
    .set({ lease: null, run_at: next, due_at: next, attempts: 0, error: null })
    .where('kind', '=', kind)
    .where('key', '=', key)
    .execute();
  return true;
}

/**
 * Ends a run that failed. The job waits until `retryAt`; with `retryAt` undefined it is dead, unless it was asked for
 * meanwhile or recurs: then its next turn is a new beginning. False when the lease is no longer in force.
 */
async function failJob(
  tx: Tx,
  input: HeldJob & { readonly now: number; readonly error: string; readonly retryAt: number | undefined },
): Promise<{ died: boolean } | false> {
  const held = await findHeld(tx, input);
  if (held === undefined) return false;
  const { kind, key, now, retryAt } = input;
  const turn = held.run_at ?? (held.every_ms === null ? undefined : now + held.every_ms);
  const next = retryAt ?? turn;
  await tx
    .updateTable('job')
    .set({
      lease: null,
      run_at: next ?? now,
      due_at: next ?? null,
      error: input.error.slice(0, ERROR_CHARACTERS_MAX),
      ...(retryAt === undefined && (next === undefined ? { died_at: now } : { attempts: 0 })),
    })
    .where('kind', '=', kind)
    .where('key', '=', key)
    .execute();
  return { died: next === undefined };
}

export interface DeadJob {
  readonly kind: string;
  readonly key: string;
  readonly attempts: number;
  readonly error: string | undefined;
  readonly diedAt: number;
}

/** Jobs given up, newest first. `enqueueJob` (`job.enqueue`) gives one another life. */
export async function listDeadJobs(read: Reader, limit: number): Promise<DeadJob[]> {
  const rows = await read
    .selectFrom('job')
    .select(['kind', 'key', 'attempts', 'error', 'died_at'])
    .where('died_at', 'is not', null)
    .orderBy('died_at', 'desc')
    .orderBy('kind')
    .orderBy('key')
    .limit(limit)
    .execute();
  return rows.map(({ died_at: diedAt, error, ...row }) => ({
    ...row,
    error: error ?? undefined,
    diedAt: diedAt ?? 0,
  }));
}

export const jobTransactions = {
  'job.enqueue': enqueueJob,
  'job.schedule': scheduleJobs,
  'job.remove': removeJob,
  'job.claim': claimJobs,
  'job.renew': renewJob,
  'job.cut': cutLeases,
  'job.complete': completeJob,
  'job.fail': failJob,
} as const satisfies Record<string, Transaction<never, unknown>>;
