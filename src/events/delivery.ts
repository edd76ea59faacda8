/** The job that delivers: what one webhook is owed of one repository's events, in order, until one is not accepted. */
import { backoffMs, type JobHandler, type JobPayload, type JobRun } from '../jobs/jobs.ts';
import { LIMITS } from '../lib/limits.ts';
import type { Logger } from '../lib/log.ts';
import { readDeliveries, type DeliveryTarget, type PendingDelivery, type Store } from '../store/store.ts';
import { postEvent, type Webhook, type WebhookOptions } from './webhooks.ts';

export interface DeliveryOptions extends WebhookOptions {
  readonly store: Store;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly webhooks: readonly Webhook[];
  readonly log?: Pick<Logger, 'warn'> | undefined;
}

/** Events read at once, and at most sent again after a crash. */
const BATCH = 20;
/** Batches until it is another stream's turn. */
const TURNS_MAX = 10;
/** Streams delivered at once by one process. */
const CONCURRENCY = 8;
/** A webhook that only another version of the configuration knows: its events wait for that one, or until they expire. */
const UNKNOWN_SINK_MS = 600_000;

export function createDeliveryHandler(options: DeliveryOptions): JobHandler {
  const webhooks = new Map(options.webhooks.map((webhook) => [webhook.sink, webhook]));
  return {
    concurrency: CONCURRENCY,
    async run(job) {
      const target = readTarget(job.payload);
      const webhook = webhooks.get(target.sink);
      if (webhook !== undefined) return await deliver(options, webhook, target, job);
      const [waiting] = await readDeliveries(options.store.read, target, 1);
      return waiting === undefined ? undefined : { again: options.clock() + UNKNOWN_SINK_MS };
    },
  };
}

function readTarget(payload: JobPayload): DeliveryTarget {
  const { sink, stream } = payload as unknown as DeliveryTarget;
  return { sink, stream };
}

async function deliver(
  options: DeliveryOptions,
  webhook: Webhook,
  target: DeliveryTarget,
  { signal }: JobRun,
): Promise<{ again: number } | undefined> {
  for (let turn = 0; turn < TURNS_MAX; turn++) {
    const batch = await readDeliveries(options.store.read, target, BATCH);
    if (batch.length === 0) return undefined;
    const again = await deliverBatch(options, webhook, target, batch, signal);
    if (again !== undefined) return { again };
  }
  return { again: options.clock() };
}

/** Returns when to go on; `undefined` for at once. */
async function deliverBatch(
  options: DeliveryOptions,
  webhook: Webhook,
  target: DeliveryTarget,
  batch: readonly PendingDelivery[],
  signal: AbortSignal,
): Promise<number | undefined> {
  const { store, clock } = options;
  const accepted: number[] = [];
  // INVARIANT: an event is forgotten only after its acceptance; a crash before that sends the batch again, in order.
  const forget = async (): Promise<void> => {
    if (accepted.length > 0)
      await store.transact('event.completeDeliveries', { ...target, positions: accepted });
  };
  for (const delivery of batch) {
    // WHY not in mid-request: what the receiver may have accepted would be sent again at every restart.
    if (signal.aborted || delivery.retryAt > clock()) {
      await forget();
      return signal.aborted ? clock() : delivery.retryAt;
    }
    try {
      await postEvent(webhook, delivery.record, { ...options, now: clock() });
      accepted.push(delivery.position);
    } catch (error) {
      await forget();
      return await noteFailure(options, target, delivery, (error as Error).message);
    }
  }
  await forget();
  return undefined;
}

async function noteFailure(
  { store, clock, log }: DeliveryOptions,
  target: DeliveryTarget,
  { position, attempts, createdAt, record }: PendingDelivery,
  error: string,
): Promise<number | undefined> {
  const now = clock();
  const made = attempts + 1;
  const dead = made >= LIMITS.webhookAttemptsMax || now - createdAt >= LIMITS.webhookAgeMs;
  const retryAt = dead ? undefined : now + backoffMs(made, LIMITS.jobRetryMs, LIMITS.jobRetryMsMax);
  await store.transact('event.failDelivery', { ...target, position, now, error, retryAt });
  log?.warn(
    { event: record.id, ...target, attempts: made, reason: error },
    dead ? 'event not delivered' : 'webhook failed',
  );
  return retryAt;
}
