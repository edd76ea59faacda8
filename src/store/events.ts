/**
 * The outbox: an event is a row written by the transaction that made it happen, so it exists exactly when the change does.
 * Publishing puts committed events in an order and notes which webhooks are owed them; a reader that follows positions
 * misses none.
 *
 * WHY positions beside ids: with several writers a lower id may be committed after a higher one. Positions are given to
 * committed rows only, by transactions of which one at a time wins.
 */
import { sql } from 'kysely';
import { eventId, recordOf, type EventRecord, type NewEvent } from '../domain/events.ts';
import { enqueueJob } from './jobs.ts';
import { chunks } from './repository-blobs.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** Kind of the jobs that deliver; their payload is a {@link DeliveryTarget}. */
export const DELIVERY_JOB = 'event.deliver';

/** The row of `revision` that counts positions. */
const POSITION = 'event position';

/** Texts of failures are cut here. */
const ERROR_CHARACTERS_MAX = 500;

/** Writes an event, to be called last inside the transaction that makes it true. */
export async function recordEvent(tx: Tx, event: NewEvent): Promise<void> {
  await recordEvents(tx, [event]);
}

/** Writes events in this order. */
export async function recordEvents(tx: Tx, events: readonly NewEvent[]): Promise<void> {
  for (const part of chunks(events)) {
    await tx
      .insertInto('event')
      .values(
        part.map((event) => ({
          account: event.account,
          region: event.region,
          repository: event.repository,
          record: JSON.stringify(recordOf(event)),
          created_at: event.at,
          position: null,
        })),
      )
      .execute();
  }
}

/** A repository's events on their way to one webhook. */
export interface DeliveryTarget {
  readonly sink: string;
  readonly stream: string;
}

/** Whether something waits to be published. Prepare once, keep the function. */
export const UNPUBLISHED_SQL = 'select id from event where position is null limit 1';

/**
 * Gives at most `limit` committed events their positions, oldest first, and has them delivered to `sinks`. Returns how
 * many there were.
 */
async function publishEvents(
  tx: Tx,
  { sinks, now, limit }: { readonly sinks: readonly string[]; readonly now: number; readonly limit: number },
): Promise<number> {
  const last = await newestPosition(tx);
  const { rows } = await sql<{
    id: number;
    account: string;
    region: string;
    repository: string;
    position: number;
  }>`update event set position = waiting.place from (
      select id as waiting_id, row_number() over (order by id) + cast(${last} as bigint) as place
      from (select id from event where position is null order by id limit ${limit}) as oldest
    ) as waiting where id = waiting.waiting_id
    returning id, account, region, repository, position`.execute(tx);
  if (rows.length === 0) return 0;
  await tx
    .insertInto('revision')
    .values({ subject: POSITION, value: last + rows.length })
    .onConflict((conflict) => conflict.column('subject').doUpdateSet({ value: last + rows.length }))
    .execute();
  const streams = new Set<string>();
  const deliveries = rows.flatMap(({ id, account, region, repository, position }) => {
    const stream = `${account}/${region}/${repository}`;
    streams.add(stream);
    return sinks.map((sink) => ({
      sink,
      stream,
      position,
      event_id: id,
      retry_at: now,
      attempts: 0,
      error: null,
      died_at: null,
    }));
  });
  for (const part of chunks(deliveries)) await tx.insertInto('event_delivery').values(part).execute();
  for (const sink of sinks) for (const stream of streams) await enqueueDelivery(tx, { sink, stream }, now);
  return rows.length;
}

async function enqueueDelivery(tx: Tx, { sink, stream }: DeliveryTarget, runAt: number): Promise<void> {
  await enqueueJob(tx, { kind: DELIVERY_JOB, key: `${sink}/${stream}`, runAt, payload: { sink, stream } });
}

/** A published event. */
export interface PublishedEvent {
  readonly position: number;
  readonly account: string;
  readonly record: EventRecord;
}

interface EventRow {
  readonly id: number;
  readonly created_at: number;
  readonly record: string;
}

function readRecord({ id, created_at: createdAt, record }: EventRow): EventRecord {
  const { version, ...rest } = JSON.parse(record) as Omit<EventRecord, 'id'>;
  return { version, id: eventId(createdAt, id), ...rest };
}

/** Events after a position, of all accounts, in order. */
export async function readEvents(read: Reader, after: number, limit: number): Promise<PublishedEvent[]> {
  const rows = await read
    .selectFrom('event')
    .select(['id', 'account', 'created_at', 'record', 'position'])
    .where('position', '>', after)
    .orderBy('position')
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    position: row.position ?? 0,
    account: row.account,
    record: readRecord(row),
  }));
}

/** The newest position given out, 0 when there is none. Its event may be gone; the counter never goes back. */
export async function newestPosition(read: Reader): Promise<number> {
  const row = await read
    .selectFrom('revision')
    .select('value')
    .where('subject', '=', POSITION)
    .executeTakeFirst();
  return row?.value ?? 0;
}

/** The position of an event of an account; `undefined` when it is unknown, not published or no longer kept. */
export async function positionOf(read: Reader, account: string, number: number): Promise<number | undefined> {
  const row = await read
    .selectFrom('event')
    .select('position')
    .where('id', '=', number)
    .where('account', '=', account)
    .executeTakeFirst();
  return row?.position ?? undefined;
}

/** An event owed to a webhook. */
export interface PendingDelivery {
  readonly position: number;
  readonly attempts: number;
  readonly retryAt: number;
  readonly createdAt: number;
  readonly record: EventRecord;
}

/** What a webhook is owed of a stream, oldest first, without the dead letters. */
export async function readDeliveries(
  read: Reader,
  { sink, stream }: DeliveryTarget,
  limit: number,
): Promise<PendingDelivery[]> {
  const rows = await read
    .selectFrom('event_delivery as d')
    .innerJoin('event as e', 'e.id', 'd.event_id')
    .select(['d.position', 'd.attempts', 'd.retry_at', 'e.id', 'e.created_at', 'e.record'])
    .where('d.sink', '=', sink)
    .where('d.stream', '=', stream)
    .where('d.died_at', 'is', null)
    .orderBy('d.position')
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    position: row.position,
    attempts: row.attempts,
    retryAt: row.retry_at,
    createdAt: row.created_at,
    record: readRecord(row),
  }));
}

/** Forgets what was accepted. */
async function completeDeliveries(
  tx: Tx,
  { sink, stream, positions }: DeliveryTarget & { readonly positions: readonly number[] },
): Promise<void> {
  await tx
    .deleteFrom('event_delivery')
    .where('sink', '=', sink)
    .where('stream', '=', stream)
    .where('position', 'in', positions)
    .execute();
}

/** Notes a failed attempt; without `retryAt` the event becomes a dead letter of this webhook. */
async function failDelivery(
  tx: Tx,
  input: DeliveryTarget & {
    readonly position: number;
    readonly now: number;
    readonly error: string;
    readonly retryAt: number | undefined;
  },
): Promise<void> {
  await tx
    .updateTable('event_delivery')
    .set((q) => ({
      attempts: q('attempts', '+', 1),
      error: input.error.slice(0, ERROR_CHARACTERS_MAX),
      ...(input.retryAt === undefined ? { died_at: input.now } : { retry_at: input.retryAt }),
    }))
    .where('sink', '=', input.sink)
    .where('stream', '=', input.stream)
    .where('position', '=', input.position)
    .execute();
}

/** The place of a dead letter in the order of events. */
export interface DeadPosition {
  readonly position: number;
  readonly sink: string;
}

export interface DeadEvent extends DeadPosition {
  readonly attempts: number;
  readonly error: string | undefined;
  readonly diedAt: number;
  readonly record: EventRecord;
}

/** Dead letters of an account after a place, oldest first. */
export async function listDeadEvents(
  read: Reader,
  account: string,
  after: DeadPosition | undefined,
  limit: number,
): Promise<DeadEvent[]> {
  let query = read
    .selectFrom('event_delivery as d')
    .innerJoin('event as e', 'e.id', 'd.event_id')
    .select([
      'd.sink',
      'd.position',
      'd.attempts',
      'd.error',
      'd.died_at',
      'e.id',
      'e.created_at',
      'e.record',
    ])
    .where('d.died_at', 'is not', null)
    .where('e.account', '=', account)
    .orderBy('d.position')
    .orderBy('d.sink')
    .limit(limit);
  if (after !== undefined) {
    const { position, sink } = after;
    query = query.where((q) =>
      q.or([q('d.position', '>', position), q.and([q('d.position', '=', position), q('d.sink', '>', sink)])]),
    );
  }
  return (await query.execute()).map((row) => ({
    position: row.position,
    sink: row.sink,
    attempts: row.attempts,
    error: row.error ?? undefined,
    diedAt: row.died_at ?? 0,
    record: readRecord(row),
  }));
}

/** Has dead letters of an account delivered again, one event by its number or all. Returns how many, at most `limit`. */
async function replayEvents(
  tx: Tx,
  input: {
    readonly account: string;
    readonly number: number | undefined;
    readonly now: number;
    readonly limit: number;
  },
): Promise<number> {
  let query = tx
    .selectFrom('event_delivery as d')
    .innerJoin('event as e', 'e.id', 'd.event_id')
    .select(['d.sink', 'd.stream', 'd.position'])
    .where('d.died_at', 'is not', null)
    .where('e.account', '=', input.account)
    .orderBy('d.position')
    .limit(input.limit);
  if (input.number !== undefined) query = query.where('e.id', '=', input.number);
  const rows = await query.execute();
  for (const { sink, stream, position } of rows) {
    await tx
      .updateTable('event_delivery')
      .set({ died_at: null, attempts: 0, retry_at: input.now })
      .where('sink', '=', sink)
      .where('stream', '=', stream)
      .where('position', '=', position)
      .execute();
    await enqueueDelivery(tx, { sink, stream }, input.now);
  }
  return rows.length;
}

/**
 * Removes events of before `before` with their dead letters, except what a configured webhook is still owed. Looks at
 * `limit` rows after the number `after`; `next` goes on from there, `undefined` when there is no more.
 */
async function expireEvents(
  tx: Tx,
  input: {
    readonly sinks: readonly string[];
    readonly before: number;
    readonly after: number;
    readonly limit: number;
  },
): Promise<{ expired: number; next: number | undefined }> {
  const rows = await tx
    .selectFrom('event')
    .select(['id', 'created_at', 'position'])
    .where('id', '>', input.after)
    .orderBy('id')
    .limit(input.limit)
    .execute();
  const old = rows
    .filter((row) => row.created_at < input.before && row.position !== null)
    .map(({ id }) => id);
  const owed = new Set<number>();
  if (input.sinks.length > 0 && old.length > 0) {
    const pending = await tx
      .selectFrom('event_delivery')
      .select('event_id')
      .where('event_id', 'in', old)
      .where('sink', 'in', input.sinks)
      .where('died_at', 'is', null)
      .execute();
    for (const { event_id: id } of pending) owed.add(id);
  }
  const ids = old.filter((id) => !owed.has(id));
  if (ids.length > 0) {
    await tx.deleteFrom('event_delivery').where('event_id', 'in', ids).execute();
    await tx.deleteFrom('event').where('id', 'in', ids).execute();
  }
  const last = rows.at(-1);
  const more = rows.length === input.limit && last !== undefined && last.created_at < input.before;
  return { expired: ids.length, next: more ? last.id : undefined };
}

export const eventTransactions = {
  'event.publish': publishEvents,
  'event.completeDeliveries': completeDeliveries,
  'event.failDelivery': failDelivery,
  'event.replay': replayEvents,
  'event.expire': expireEvents,
} as const satisfies Record<string, Transaction<never, unknown>>;
