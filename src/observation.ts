/**
 * What can be seen of a running server: its log of requests, its metrics and its audit log. One place hears of every
 * answered request and sends it to all three.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { join } from 'node:path';
import { isLoopback, type Config } from './config.ts';
import { Fault } from './domain/faults.ts';
import type { Exchange } from './http/http.ts';
import { openAuditLog, type AuditLog } from './lib/audit.ts';
import { createRecorder, createServiceEventRecorder, type ServiceEvent } from './lib/cloudtrail.ts';
import type { Logger } from './lib/log.ts';
import { addCounts, Counter, Metrics, METRICS_TYPE, noCounts, type Counts } from './lib/metrics.ts';
import { throttle } from './lib/throttle.ts';
import type { GarbageReport } from './registry/registry.ts';
import { DOWNLOAD_PREFIX, type Door, type RunningServer } from './server.ts';
import { createTotals, prepareBacklogs, type Backlog, type Store, type TotalsReader } from './store/store.ts';

export interface Observation {
  /** Hears of every answer that is complete or whose connection is gone. */
  readonly onDone: (exchange: Exchange, durationMs: number) => void;
  /** Hears of what is not served, and why: the program's word. */
  readonly onShed: (reason: string) => void;
  /** Hears of defects. */
  readonly onError: (error: unknown, exchange: Exchange) => void;
  /** `/metrics`; `undefined` when it is switched off */
  readonly metricsDoor: Door | undefined;
  /** The same store, its transactions measured. */
  observeStore(store: Store): Store;
  /** Shows the state of what runs in the metrics. */
  watch(running: { readonly store: Store; readonly server: RunningServer }): void;
  /** A round of garbage collection ended; `undefined` when it failed. */
  garbageCollected(report: GarbageReport | undefined, durationMs: number): void;
  /** What this thread has counted since it began. */
  measure(): ThreadMeasures;
  /** Adds what other threads have counted to every scrape. On the main thread. */
  include(others: OtherThreads): void;
  /** A scrape's answer. On the main thread. */
  renderMetrics(): Promise<string>;
  /** Takes a line for the audit log. */
  audit(line: string): void;
  /** Hears of what was done without a call, for the audit log. */
  readonly onServiceEvent: (event: ServiceEvent) => void;
  /** Writes what waits. Before the store closes. */
  close(): Promise<void>;
}

/** Plain data. */
export interface ThreadMeasures {
  readonly counts: Counts;
  readonly inFlight: number;
  readonly connections: number;
  /** milliseconds the event loop was busy and waiting, since the thread began */
  readonly busyMs: number;
  readonly waitingMs: number;
}

export interface OtherThreads {
  /** threads that serve now, and last what those had counted that are gone */
  measure(): Promise<{ readonly serving: readonly ThreadMeasures[]; readonly gone: Counts }>;
  /** threads started again, by what they did */
  restarts(): { readonly worker: number; readonly writer: number };
}

/** What a thread beside the main one hands to it: there is one audit log, and one answer to a scrape. */
export interface MainObservation {
  audit(line: string): void;
  renderMetrics(): Promise<string>;
}

export interface ObservationOptions {
  readonly config: Config;
  readonly log: Logger;
  /** epoch milliseconds */
  readonly clock: () => number;
  /** on a thread beside the main one */
  readonly main?: MainObservation;
}

const LARGEST_REPOSITORIES = 20;
/** Time between log lines about overload. */
const SHED_LOG_MS = 10_000;
const TOTALS_AGE_MS = 300_000;
const LOGGED_PATH_CHARACTERS_MAX = 512;

/** Doors whose calls are audited. Probes and what no door serves are nobody's calls. */
const AUDITED: ReadonlySet<string> = new Set(['oci', 'aws', 'download', 'events']);

/** @throws when the audit log cannot be opened */
export async function openObservation(options: ObservationOptions): Promise<Observation> {
  const { config, log, clock, main } = options;
  const file = main === undefined ? await openAudit(config, log) : undefined;
  const audited = config.auditLog !== 'off';
  const audit = (line: string): void => (main === undefined ? file?.write(line) : main.audit(line));
  const render = createRecorder({ clock, account: config.account, region: config.region });
  const renderServiceEvent = createServiceEventRecorder({ clock });
  const counter = config.metrics ? new Counter() : undefined;
  const collected = new Map(
    ['rounds', 'rounds_failed', 'uploads_expired', 'blobs_unlinked', 'files_deleted', 'orphans_trashed'].map(
      (what) => [what, 0],
    ),
  );
  let collectedAt = 0;
  let collectionSeconds = 0;
  let totals: TotalsReader | undefined;
  let server: RunningServer | undefined;
  let others: OtherThreads | undefined;
  /** of the scrape under way */
  let threads: readonly ThreadMeasures[] = [];

  const measure = (): ThreadMeasures => {
    const { active, idle } = performance.eventLoopUtilization();
    return {
      counts: counter?.counts ?? noCounts(),
      inFlight: server?.inFlight ?? 0,
      connections: server?.connections ?? 0,
      busyMs: active,
      waitingMs: idle,
    };
  };
  const gather = async (): Promise<Counts> => {
    const more = await others?.measure();
    threads = [measure(), ...(more?.serving ?? [])];
    if (more === undefined) return counter?.counts ?? noCounts();
    const sum = noCounts();
    for (const { counts } of threads) addCounts(sum, counts);
    addCounts(sum, more.gone);
    return sum;
  };
  const metrics = counter === undefined || main !== undefined ? undefined : new Metrics(gather);
  if (metrics !== undefined && file !== undefined) exposeAudit(metrics, file);
  const renderMetrics = (): Promise<string> =>
    main?.renderMetrics() ?? metrics?.render() ?? Promise.resolve('');

  // WHY at intervals: a flood must not become one of log lines.
  const unserved = new Set<string>();
  const warnOfShedding = throttle(SHED_LOG_MS, () => {
    log.warn({ reasons: [...unserved] }, 'overload: requests or connections are refused');
    unserved.clear();
  });
  const add = (what: string, count: number): void =>
    void collected.set(what, (collected.get(what) ?? 0) + count);

  return {
    onDone(exchange, durationMs) {
      noteOutcome(exchange);
      counter?.requestDone(exchange, durationMs);
      if (audited && isAudited(exchange)) audit(render(exchange));
      logRequest(log, exchange, durationMs);
    },
    onServiceEvent(event) {
      if (audited) audit(renderServiceEvent(event));
    },
    onShed(reason) {
      counter?.shed(reason);
      unserved.add(reason);
      warnOfShedding();
    },
    onError(error, exchange) {
      const { requestId, method } = exchange;
      log.error({ err: error, requestId, method, path: loggedPath(exchange.path) }, 'defect');
    },
    metricsDoor: counter === undefined ? undefined : createMetricsDoor(renderMetrics, config),
    observeStore: (store) => (counter === undefined ? store : observeStore(store, counter)),
    watch(running) {
      ({ server } = running);
      if (metrics === undefined) return;
      const { store } = running;
      totals = createTotals({ store, largestMax: LARGEST_REPOSITORIES, ageMs: TOTALS_AGE_MS });
      exposeThreads(metrics, () => threads);
      exposeDatabase(metrics, store);
      exposeTotals(metrics, totals);
      exposeGarbage(metrics, prepareBacklogs(store), clock);
      metrics.counter({
        name: 'berth_gc_total',
        help: 'What garbage collection did: rounds, failed rounds, uploads expired, blobs unlinked, files deleted, orphans trashed.',
        read: () => [...collected].map(([what, value]) => ({ labels: { what }, value })),
      });
      metrics.gauge({
        name: 'berth_gc_last_round_timestamp_seconds',
        help: 'When the last round of garbage collection that succeeded ended.',
        read: () => (collectedAt === 0 ? [] : collectedAt / 1000),
      });
      metrics.counter({
        name: 'berth_gc_seconds_total',
        help: 'Time spent in rounds of garbage collection.',
        read: () => collectionSeconds,
      });
    },
    garbageCollected(report, durationMs) {
      collectionSeconds += durationMs / 1000;
      add(report === undefined ? 'rounds_failed' : 'rounds', 1);
      if (report === undefined) return;
      collectedAt = clock();
      add('uploads_expired', report.uploadsExpired);
      add('blobs_unlinked', report.blobsUnlinked);
      add('files_deleted', report.filesDeleted);
      add('orphans_trashed', report.orphansTrashed);
    },
    measure,
    include(its) {
      others = its;
      metrics?.counter({
        name: 'berth_thread_restarts_total',
        help: 'Threads that died and were started again.',
        read: () => Object.entries(its.restarts()).map(([thread, value]) => ({ labels: { thread }, value })),
      });
    },
    renderMetrics,
    audit,
    async close() {
      await totals?.stop();
      await file?.close();
    },
  };
}

async function openAudit(config: Config, log: Logger): Promise<AuditLog | undefined> {
  if (config.auditLog === 'off') return undefined;
  const directory = config.auditLog === '' ? join(config.data, 'audit') : config.auditLog;
  return openAuditLog({
    directory,
    fileBytesMax: config.auditFileBytesMax,
    filesMax: config.auditFilesMax,
    onError: (error) => log.error({ err: error, directory }, 'the audit log cannot be written'),
    onRecovered: (dropped) => log.error({ dropped, directory }, 'the audit log is written again'),
  });
}

/** The outcome of requests whose door said nothing: a client that left, a status without a fault. */
function noteOutcome(exchange: Exchange): void {
  const { response } = exchange;
  if (exchange.faultCode !== undefined) return;
  if (!response.writableFinished) {
    exchange.noteFault('ClientDisconnected', 'The connection ended before the answer was complete.');
  } else if (response.statusCode >= 400 && exchange.principal !== undefined) {
    exchange.noteFault(`HTTP${response.statusCode}`, '');
  }
}

/** A challenge is no call yet: who sends no credential is asked for one, and clients begin every pull that way. */
function isAudited({ door, principal, faultCode, continues }: Exchange): boolean {
  if (!AUDITED.has(door) || (continues && faultCode === undefined)) return false;
  if (principal !== undefined || door === 'download') return true;
  return (
    faultCode !== undefined &&
    faultCode !== 'ClientDisconnected' &&
    !faultCode.startsWith('MissingAuthenticationToken')
  );
}

/**
 * Server errors are warnings, changes and refusals are information; reads that succeed, challenges and probes are for
 * debugging only: there are thousands of them a second, and the audit log has them.
 */
function logRequest(log: Logger, exchange: Exchange, durationMs: number): void {
  const { method, response } = exchange;
  const status = response.statusCode;
  const read = method === 'GET' || method === 'HEAD';
  const dull = (read && status < 400 && exchange.faultCode === undefined) || status === 401;
  const level = status >= 500 ? 'warn' : dull ? 'debug' : 'info';
  if (!log.isLevelEnabled(level)) return;
  log[level]({
    requestId: exchange.requestId,
    method,
    path: loggedPath(exchange.path),
    status,
    complete: response.writableFinished,
    action: exchange.action,
    fault: exchange.faultCode,
    principal: exchange.principal?.caller.arn,
    sourceIp: exchange.sourceIp,
    ms: Math.round(durationMs * 10) / 10,
  });
}

/**
 * A path as logs may hold it. INVARIANT: no secret: a download URL carries the right to its layer, and a target in absolute
 * form may carry a password.
 */
export function loggedPath(path: string): string {
  if (path.startsWith(DOWNLOAD_PREFIX)) return `${DOWNLOAD_PREFIX}…`;
  return path.startsWith('/') ? path.slice(0, LOGGED_PATH_CHARACTERS_MAX) : '…';
}

/**
 * Metrics name repositories. Without a token only those see them who reach a loopback address themselves, not through a
 * proxy that speaks for somebody else.
 */
function createMetricsDoor(render: () => Promise<string>, config: Config): Door {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest();
  const wanted = hash(`Bearer ${config.metricsToken}`);
  const open = config.metricsToken === '' && isLoopback(config.host);
  const forwarded = ['forwarded', 'x-forwarded-for', 'via', 'x-real-ip'];
  return async (exchange) => {
    exchange.action = 'metrics';
    const admitted = open
      ? forwarded.every((name) => exchange.header(name) === undefined)
      : config.metricsToken !== '' && timingSafeEqual(hash(exchange.header('authorization') ?? ''), wanted);
    if (admitted) {
      exchange.send(200, { 'Content-Type': METRICS_TYPE }, await render());
    } else if (config.metricsToken === '') {
      exchange.send(403, { 'Content-Type': 'text/plain' }, 'Metrics need the setting metrics-token\n');
    } else {
      const headers = { 'Content-Type': 'text/plain', 'WWW-Authenticate': 'Bearer realm="metrics"' };
      exchange.send(401, headers, 'Not Authorized\n');
    }
  };
}

function observeStore(store: Store, counter: Counter): Store {
  return {
    engine: store.engine,
    read: store.read,
    prepare: (sql, keep) => store.prepare(sql, keep),
    newWriter: () => store.newWriter(),
    fateOf: (writer) => store.fateOf(writer),
    close: () => store.close(),
    transact: (name, input) => {
      const result = store.transact(name, input);
      void measureTransaction(counter, name, result);
      return result;
    },
  };
}

/** Refusals are what transactions are for; only what kept one from being decided is a failure. */
async function measureTransaction(counter: Counter, name: string, result: Promise<unknown>): Promise<void> {
  const started = performance.now();
  let failed = false;
  try {
    await result;
  } catch (error) {
    failed = !(error instanceof Fault) || error.code === 'ServiceUnavailableException';
  }
  counter.transactionDone(name, performance.now() - started, failed);
}

function exposeAudit(metrics: Metrics, audit: AuditLog): void {
  metrics.counter({
    name: 'berth_audit_records_total',
    help: 'Records of the audit log, written and dropped because it could not be written.',
    read: () => [
      { labels: { result: 'written' }, value: audit.written },
      { labels: { result: 'dropped' }, value: audit.dropped },
    ],
  });
}

function exposeThreads(metrics: Metrics, threads: () => readonly ThreadMeasures[]): void {
  const sum = (key: 'inFlight' | 'connections') => threads().reduce((total, it) => total + it[key], 0);
  metrics.gauge({
    name: 'berth_requests_in_flight',
    help: 'Requests begun and not answered to their end, this scrape included.',
    read: () => sum('inFlight'),
  });
  metrics.gauge({
    name: 'berth_connections',
    help: 'Open connections of clients.',
    read: () => sum('connections'),
  });
  metrics.gauge({
    name: 'berth_workers',
    help: 'Threads that serve requests.',
    read: () => threads().length,
  });
  const perWorker = (value: (thread: ThreadMeasures) => number) => () =>
    threads().map((it, i) => ({ labels: { worker: String(i) }, value: value(it) / 1000 }));
  metrics.counter({
    name: 'berth_worker_busy_seconds_total',
    help: 'Time the event loop of a serving thread was busy since it began.',
    read: perWorker(({ busyMs }) => busyMs),
  });
  metrics.counter({
    name: 'berth_worker_waiting_seconds_total',
    help: 'Time the event loop of a serving thread waited for something to do since it began.',
    read: perWorker(({ waitingMs }) => waitingMs),
  });
}

function exposeDatabase(metrics: Metrics, store: Store): void {
  metrics.gauge({
    name: 'berth_database_up',
    help: '1 when the database answers.',
    read: async () => {
      const up = await store.read
        .selectFrom('account')
        .select('id')
        .limit(1)
        .execute()
        .then(
          () => 1,
          () => 0,
        );
      return [{ labels: { engine: store.engine }, value: up }];
    },
  });
}

function exposeTotals(metrics: Metrics, totals: TotalsReader): void {
  const single = (
    name: string,
    help: string,
    key: 'repositories' | 'images' | 'tags' | 'blobs' | 'blobBytes' | 'uploads',
  ) => metrics.gauge({ name, help, read: async () => (await totals.read())?.[key] ?? [] });
  single('berth_repositories', 'Repositories; counted at most every five minutes.', 'repositories');
  single('berth_images', 'Images: manifests, with tags or without.', 'images');
  single('berth_tags', 'Tags of images.', 'tags');
  single('berth_blobs', 'Stored copies of content.', 'blobs');
  single('berth_blob_stored_bytes', 'Bytes of stored copies of content, before encryption.', 'blobBytes');
  single('berth_uploads_unfinished', 'Uploads begun and not finished, counted up to 10000.', 'uploads');
  metrics.gauge({
    name: 'berth_repository_bytes',
    help: `Bytes of the blobs of a repository, for the ${LARGEST_REPOSITORIES} largest.`,
    read: async () =>
      ((await totals.read())?.largest ?? []).map(({ account, region, name, bytes }) => ({
        labels: { account, region, repository: name },
        value: bytes,
      })),
  });
}

function exposeGarbage(
  metrics: Metrics,
  backlogs: (now: number) => Promise<{ review: Backlog; trash: Backlog }>,
  clock: () => number,
): void {
  const each = async (read: (backlog: Backlog, now: number) => number) => {
    const now = clock();
    const { review, trash } = await backlogs(now);
    return [
      { labels: { queue: 'review' }, value: read(review, now) },
      { labels: { queue: 'trash' }, value: read(trash, now) },
    ];
  };
  metrics.gauge({
    name: 'berth_gc_queue',
    help: 'Entries of the queues of garbage collection whose time has come, counted up to 10000.',
    read: () => each(({ due }) => due),
  });
  metrics.gauge({
    name: 'berth_gc_lag_seconds',
    help: 'How long the oldest of these entries has been due.',
    read: () =>
      each(({ oldestAt }, now) => (oldestAt === undefined ? 0 : Math.max(0, now - oldestAt) / 1000)),
  });
}
