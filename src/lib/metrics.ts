/**
 * Metrics for Prometheus. Counting is on the path of every request and therefore plain numbers (a tenth of a microsecond);
 * they become prom-client's when somebody asks. INVARIANT: label values come from the program (doors, actions, fault codes,
 * transaction names), never from a client, so the number of series has a bound.
 */
import { collectDefaultMetrics, Registry, type Metric } from 'prom-client';

/** An answered request: what is counted of it. `Exchange` is one. */
export interface MeasuredRequest {
  readonly door: string;
  readonly action: string | undefined;
  readonly faultCode: string | undefined;
  readonly response: { readonly statusCode: number };
  readonly blobBytesIn: number;
  readonly blobBytesOut: number;
}

export interface Sample {
  /** when it is not the metric's own: of the parts of a histogram */
  readonly metricName?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Measure {
  readonly name: string;
  readonly help: string;
  /** read at a scrape; what it throws leaves the metric out of that scrape */
  readonly read: () => number | readonly Sample[] | Promise<number | readonly Sample[]>;
}

/** Upper bounds in seconds. */
const REQUEST_BOUNDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600];
const TRANSACTION_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10];

const STATUS_CLASSES = ['0xx', '1xx', '2xx', '3xx', '4xx', '5xx'];

/** Durations of one kind of thing, by upper bound; one more count for those above the last. */
interface Durations {
  readonly counts: number[];
  seconds: number;
}

/** One door's requests of one action. */
interface Requests {
  readonly labels: { readonly door: string; readonly action: string };
  readonly results: Map<string, number>;
  readonly durations: Durations;
}

interface Transactions {
  readonly durations: Durations;
  failures: number;
}

/** What one thread has counted: plain data that can be sent to another. */
export interface Counts {
  readonly doors: Map<string, Map<string, Requests>>;
  readonly transactions: Map<string, Transactions>;
  /** requests and connections not served, by reason */
  readonly shed: Map<string, number>;
  blobBytesIn: number;
  blobBytesOut: number;
}

export function noCounts(): Counts {
  return { doors: new Map(), transactions: new Map(), shed: new Map(), blobBytesIn: 0, blobBytesOut: 0 };
}

/** Adds `more` to `sum`. */
export function addCounts(sum: Counts, more: Counts): void {
  for (const actions of more.doors.values())
    for (const { labels, results, durations } of actions.values()) {
      const into = requestsOf(sum, labels.door, labels.action);
      for (const [result, count] of results)
        into.results.set(result, (into.results.get(result) ?? 0) + count);
      addDurations(into.durations, durations);
    }
  for (const [name, { durations, failures }] of more.transactions) {
    const into = transactionsOf(sum, name);
    addDurations(into.durations, durations);
    into.failures += failures;
  }
  for (const [reason, count] of more.shed) sum.shed.set(reason, (sum.shed.get(reason) ?? 0) + count);
  sum.blobBytesIn += more.blobBytesIn;
  sum.blobBytesOut += more.blobBytesOut;
}

function noDurations(bounds: readonly number[]): Durations {
  return { counts: Array.from({ length: bounds.length + 1 }, () => 0), seconds: 0 };
}

function addDuration(durations: Durations, bounds: readonly number[], seconds: number): void {
  let at = 0;
  while (at < bounds.length && seconds > (bounds[at] ?? 0)) at += 1;
  durations.counts[at] = (durations.counts[at] ?? 0) + 1;
  durations.seconds += seconds;
}

function addDurations(sum: Durations, more: Durations): void {
  for (const [at, count] of more.counts.entries()) sum.counts[at] = (sum.counts[at] ?? 0) + count;
  sum.seconds += more.seconds;
}

function requestsOf(counts: Counts, door: string, action: string): Requests {
  let actions = counts.doors.get(door);
  if (actions === undefined) {
    actions = new Map();
    counts.doors.set(door, actions);
  }
  let requests = actions.get(action);
  if (requests === undefined) {
    requests = { labels: { door, action }, results: new Map(), durations: noDurations(REQUEST_BOUNDS) };
    actions.set(action, requests);
  }
  return requests;
}

function transactionsOf(counts: Counts, name: string): Transactions {
  let transactions = counts.transactions.get(name);
  if (transactions === undefined) {
    transactions = { durations: noDurations(TRANSACTION_BOUNDS), failures: 0 };
    counts.transactions.set(name, transactions);
  }
  return transactions;
}

/** Counts requests and transactions on the thread that serves them. */
export class Counter {
  readonly counts: Counts = noCounts();

  requestDone(request: MeasuredRequest, durationMs: number): void {
    const { counts } = this;
    const requests = requestsOf(counts, request.door, request.action ?? 'none');
    const result =
      request.faultCode ?? STATUS_CLASSES[Math.trunc(request.response.statusCode / 100)] ?? '5xx';
    requests.results.set(result, (requests.results.get(result) ?? 0) + 1);
    addDuration(requests.durations, REQUEST_BOUNDS, durationMs / 1000);
    counts.blobBytesIn += request.blobBytesIn;
    counts.blobBytesOut += request.blobBytesOut;
  }

  /** `reason` is the program's word for it. */
  shed(reason: string): void {
    const { shed } = this.counts;
    shed.set(reason, (shed.get(reason) ?? 0) + 1);
  }

  transactionDone(name: string, durationMs: number, failed: boolean): void {
    const transactions = transactionsOf(this.counts, name);
    addDuration(transactions.durations, TRANSACTION_BOUNDS, durationMs / 1000);
    if (failed) transactions.failures += 1;
  }
}

export const METRICS_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

export class Metrics {
  readonly #registry = new Registry();
  readonly #gather: () => Promise<Counts>;
  /** what the scrape under way shows */
  #shown = noCounts();
  #rendering: Promise<string> | undefined;

  /**
   * Also counts what concerns the whole process: CPU, memory, file descriptors, event loop, V8's collector. `gather` is
   * asked at every scrape for what all threads have counted.
   */
  constructor(gather: () => Promise<Counts>) {
    this.#gather = gather;
    collectDefaultMetrics({ register: this.#registry, eventLoopMonitoringPrecision: 20 });
    this.#exposeRequests();
    this.#exposeTransactions();
    this.counter({
      name: 'berth_shed_total',
      help: 'Requests and connections refused or cut to protect the server, by reason.',
      read: () => [...this.#shown.shed].map(([reason, value]) => ({ labels: { reason }, value })),
    });
    this.counter({
      name: 'berth_blob_bytes_total',
      help: 'Bytes of blobs received in uploads and sent whole in downloads.',
      read: () => [
        { labels: { direction: 'in' }, value: this.#shown.blobBytesIn },
        { labels: { direction: 'out' }, value: this.#shown.blobBytesOut },
      ],
    });
  }

  /** A value that is read at every scrape. */
  gauge({ name, help, read }: Measure): void {
    this.#expose(name, help, 'gauge', () => samplesOf(read));
  }

  /** A count kept elsewhere that only grows; read at every scrape. */
  counter({ name, help, read }: Measure): void {
    this.#expose(name, help, 'counter', () => samplesOf(read));
  }

  /** Everything in Prometheus' text format. Those who ask at the same time get the same answer. */
  render(): Promise<string> {
    this.#rendering ??= this.#scrape().finally(() => {
      this.#rendering = undefined;
    });
    return this.#rendering;
  }

  async #scrape(): Promise<string> {
    this.#shown = await this.#gather();
    return await this.#registry.metrics();
  }

  #allRequests(): Requests[] {
    return [...this.#shown.doors.values()].flatMap((actions) => [...actions.values()]);
  }

  #exposeRequests(): void {
    this.counter({
      name: 'berth_requests_total',
      help: 'Requests answered, by door, action and result (a status class, or the code of the fault).',
      read: () =>
        this.#allRequests().flatMap(({ labels, results }) =>
          [...results].map(([result, value]) => ({ labels: { ...labels, result }, value })),
        ),
    });
    this.#histogram(
      'berth_request_duration_seconds',
      'Time from the head of a request to the end of its answer.',
      REQUEST_BOUNDS,
      () => this.#allRequests(),
    );
  }

  #exposeTransactions(): void {
    const labelled = () =>
      [...this.#shown.transactions].map(([transaction, it]) => ({ labels: { transaction }, ...it }));
    this.#histogram(
      'berth_transaction_duration_seconds',
      'Time until a transaction was durable, waiting for its turn included.',
      TRANSACTION_BOUNDS,
      labelled,
    );
    this.counter({
      name: 'berth_transaction_failures_total',
      help: 'Transactions that ended for another reason than a refusal by their rules.',
      read: () => labelled().map(({ labels, failures }) => ({ labels, value: failures })),
    });
  }

  #histogram(
    name: string,
    help: string,
    bounds: readonly number[],
    read: () => readonly {
      readonly labels: Readonly<Record<string, string>>;
      readonly durations: Durations;
    }[],
  ): void {
    this.#expose(name, help, 'histogram', async () =>
      read().flatMap(({ labels, durations }) => {
        let count = 0;
        const buckets = durations.counts.map((each, at) => {
          count += each;
          const le = bounds[at] === undefined ? '+Inf' : String(bounds[at]);
          return { metricName: `${name}_bucket`, labels: { le, ...labels }, value: count };
        });
        return [
          ...buckets,
          { metricName: `${name}_sum`, labels, value: durations.seconds },
          { metricName: `${name}_count`, labels, value: count },
        ];
      }),
    );
  }

  /** WHY not prom-client's own classes: an observation of its histogram costs 0.7 µs, and a reset gauge without labels says 0. */
  #expose(name: string, help: string, type: string, read: () => Promise<readonly Sample[]>): void {
    // The registry asks a metric for nothing but these members.
    const get = async () => ({ name, help, type, values: await read(), aggregator: 'sum' });
    this.#registry.registerMetric({ name, get } as unknown as Metric);
  }
}

async function samplesOf(read: Measure['read']): Promise<readonly Sample[]> {
  try {
    const value = await read();
    return typeof value === 'number' ? [{ value }] : value;
  } catch {
    return [];
  }
}
