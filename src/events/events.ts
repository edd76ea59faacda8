/**
 * Events on their way out: published in order, delivered to webhooks by jobs, read by those who follow them. They are
 * written elsewhere, by the transactions that make them true (`recordEvent` of store/events.ts).
 */
import { eventNumber, type EventRecord } from '../domain/events.ts';
import { Fault, invalidParameter } from '../domain/faults.ts';
import { Bell, type JobHandler } from '../jobs/jobs.ts';
import { LIMITS } from '../lib/limits.ts';
import type { Logger } from '../lib/log.ts';
import {
  DELIVERY_JOB,
  listDeadEvents,
  newestPosition,
  positionOf,
  readEvents,
  UNPUBLISHED_SQL,
  type DeadPosition,
  type Store,
} from '../store/store.ts';
import { createDeliveryHandler } from './delivery.ts';
import { webhookOf, type WebhookForm } from './webhooks.ts';

export { createEventsDoor, EVENTS_PATH, type EventsDoorOptions } from './door.ts';
export { signatureHeader, type WebhookForm } from './webhooks.ts';

export interface EventsOptions {
  readonly store: Store;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly webhooks: readonly string[];
  readonly form: WebhookForm;
  /** empty for unsigned deliveries */
  readonly secret: string;
  readonly retentionMs: number;
  readonly log?: Pick<Logger, 'warn' | 'error'>;
  /** how often to look for events that other processes wrote */
  readonly pollMs?: number;
  readonly timeoutMs?: number;
  /**
   * Whether to look for unpublished events all the time; true unless told. Otherwise only while somebody follows: another
   * thread of this process does it.
   */
  readonly publishes?: boolean;
}

/** Where a reader goes on. */
export interface EventPage {
  readonly events: readonly EventRecord[];
  /** position to read after */
  readonly next: number;
}

export interface DeadLetter {
  readonly event: EventRecord;
  /** scheme and host of the webhook, or its stand-in when it is no longer configured; the rest of a URL may be secret */
  readonly webhook: string;
  readonly attempts: number;
  readonly error: string | undefined;
  readonly diedAt: string;
}

export interface DeadLetterPage {
  readonly deadLetters: readonly DeadLetter[];
  /** absent on the last page */
  readonly next?: string;
}

export interface Events {
  /** for the job runner: delivery and expiry */
  readonly handlers: Readonly<Record<string, JobHandler>>;
  start(): void;
  /** Looks for new events now: to be called when this process may have written some. */
  wake(): void;
  /** Answers those who wait, and publishes no more. */
  stop(): Promise<void>;
  /**
   * Events of an account after a position. When there are none, waits up to `waitMs` for some; a page may be empty and
   * `next` still be further on.
   */
  read(
    account: string,
    after: number,
    options: { readonly limit: number; readonly waitMs: number; readonly signal: AbortSignal },
  ): Promise<EventPage>;
  /** The position of an event by its id; of `undefined` that of the newest event. @throws Fault InvalidParameterException */
  find(account: string, id: string | undefined): Promise<number>;
  /** A page of the dead letters of an account, oldest first; `after` is the `next` of the page before. @throws Fault InvalidParameterException */
  listDead(account: string, after?: string): Promise<DeadLetterPage>;
  /** Delivers one event again, or all dead letters of the account. Returns how many deliveries. @throws Fault InvalidParameterException */
  replay(account: string, id: string | undefined): Promise<number>;
}

/** Events that get their positions in one transaction. */
const PUBLISH_BATCH = 500;
/** Looks that commits of this process may cause are this far apart. */
const LOOK_PAUSE_MS = 20;
const EXPIRY_MS = 3_600_000;
const EXPIRY_BATCH = 500;
const DEAD_PAGE = 500;
const REPLAY_BATCH = 500;

export function createEvents(options: EventsOptions): Events {
  const { store, clock, log, pollMs = LIMITS.jobPollMs, timeoutMs = LIMITS.webhookTimeoutMs } = options;
  const { publishes = true } = options;
  const webhooks = options.webhooks.map(webhookOf);
  const sinks = webhooks.map(({ sink }) => sink);
  const findUnpublished = store.prepare<{ id: number }>(UNPUBLISHED_SQL);
  const stopping = new AbortController();
  const bell = new Bell(LOOK_PAUSE_MS);
  const followers = new Set<Bell>();
  let loop: Promise<void> = Promise.resolve();
  let told: number | undefined;

  async function publish(): Promise<void> {
    if ((await findUnpublished()).length === 0) return;
    const input = { sinks, now: clock(), limit: PUBLISH_BATCH };
    while ((await store.transact('event.publish', input)) === PUBLISH_BATCH);
  }

  /** Wakes those who follow when there is something new for them, whoever published it. */
  async function tell(): Promise<void> {
    if (followers.size === 0) return;
    const newest = await newestPosition(store.read);
    if (newest === told) return;
    told = newest;
    for (const follower of followers) follower.ring();
  }

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      if (publishes || followers.size > 0)
        await publish()
          .then(tell)
          .catch((error: unknown) => log?.error({ err: error }, 'events not published'));
      await bell.wait(pollMs, stopping.signal);
    }
  }

  async function read(account: string, after: number, limit: number): Promise<EventPage> {
    const found = await readEvents(store.read, after, limit);
    return {
      events: found.filter((event) => event.account === account).map(({ record }) => record),
      next: found.at(-1)?.position ?? after,
    };
  }

  return {
    handlers: {
      [DELIVERY_JOB]: createDeliveryHandler({ ...options, webhooks, timeoutMs }),
      'event.expire': { everyMs: EXPIRY_MS, run: ({ signal }) => expire(options, sinks, signal) },
    },
    start() {
      loop = run();
    },
    wake() {
      // WHY: nobody waits for an event that has no webhook and no follower, so the next poll is soon enough.
      if ((publishes && sinks.length > 0) || followers.size > 0) bell.ring();
    },
    async stop() {
      stopping.abort();
      await loop;
    },
    async read(account, after, { limit, waitMs, signal }) {
      const until = performance.now() + waitMs;
      const ended = AbortSignal.any([signal, stopping.signal]);
      const follower = new Bell();
      followers.add(follower);
      try {
        // What was committed before the question belongs into the answer.
        await publish();
        await tell();
        let page = await read(account, after, limit);
        while (page.events.length === 0 && !ended.aborted && performance.now() < until) {
          // WHY in turns: another process may have published.
          if (page.next === after) await follower.wait(Math.min(pollMs, until - performance.now()), ended);
          after = page.next;
          page = await read(account, after, limit);
        }
        return page;
      } finally {
        followers.delete(follower);
      }
    },
    async find(account, id) {
      if (id === undefined) return await newestPosition(store.read);
      const number = eventNumber(id);
      if (number === undefined) throw invalidParameter('from', 'Must be the id of an event');
      const position = await positionOf(store.read, account, number);
      if (position !== undefined) return position;
      throw new Fault(
        'InvalidParameterException',
        `There is no event '${id}' of account ${account}, or it is no longer kept`,
      );
    },
    async listDead(account, after) {
      const origins = new Map(webhooks.map(({ sink, url }) => [sink, new URL(url).origin]));
      const found = await listDeadEvents(store.read, account, deadPosition(after), DEAD_PAGE + 1);
      const page = found.slice(0, DEAD_PAGE);
      const last = page.at(-1);
      return {
        deadLetters: page.map((dead) => ({
          event: dead.record,
          webhook: origins.get(dead.sink) ?? dead.sink,
          attempts: dead.attempts,
          error: dead.error,
          diedAt: new Date(dead.diedAt).toISOString(),
        })),
        ...(found.length > DEAD_PAGE && last !== undefined && { next: `${last.position}.${last.sink}` }),
      };
    },
    async replay(account, id) {
      const number = id === undefined ? undefined : eventNumber(id);
      if (id !== undefined && number === undefined)
        throw invalidParameter('id', 'Must be the id of an event');
      let total = 0;
      for (;;) {
        const input = { account, number, now: clock(), limit: REPLAY_BATCH };
        const replayed = await store.transact('event.replay', input);
        total += replayed;
        if (replayed < REPLAY_BATCH) return total;
      }
    },
  };
}

function deadPosition(after: string | undefined): DeadPosition | undefined {
  if (after === undefined) return undefined;
  const [, position, sink] = /^(\d{1,15})\.([0-9a-f]{16})$/.exec(after) ?? [];
  if (position === undefined || sink === undefined)
    throw invalidParameter('after', 'Must be the next of another page');
  return { position: Number(position), sink };
}

async function expire(
  { store, clock, retentionMs }: EventsOptions,
  sinks: readonly string[],
  signal: AbortSignal,
): Promise<{ again: number } | undefined> {
  const before = clock() - retentionMs;
  let after: number | undefined = 0;
  while (after !== undefined) {
    if (signal.aborted) return { again: clock() };
    const batch: { readonly next: number | undefined } = await store.transact('event.expire', {
      sinks,
      before,
      after,
      limit: EXPIRY_BATCH,
    });
    after = batch.next;
  }
  return undefined;
}
