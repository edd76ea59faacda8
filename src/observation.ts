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
import { createRecorder } from './lib/cloudtrail.ts';
import type { Logger } from './lib/log.ts';
import { Metrics } from './lib/metrics.ts';
import type { GarbageReport } from './registry/registry.ts';
import { DOWNLOAD_PREFIX, type Door, type RunningServer } from './server.ts';
import { createTotals, prepareBacklogs, type Backlog, type Store, type TotalsReader } from './store/store.ts';

export interface Observation {
  /** Hears of every answer that is complete or whose connection is gone. */
  readonly onDone: (exchange: Exchange, durationMs: number) => void;
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
  /** Writes what waits. Before the store closes. */
  close(): Promise<void>;
}

export interface ObservationOptions {
  readonly config: Config;
  readonly log: Logger;
  /** epoch milliseconds */
  readonly clock: () => number;
}

const LARGEST_REPOSITORIES = 20;
const TOTALS_AGE_MS = 300_000;
const LOGGED_PATH_CHARACTERS_MAX = 512;

/** Doors whose calls are audited. Probes and what no door serves are nobody's calls. */
const AUDITED: ReadonlySet<string> = new Set(['oci', 'aws', 'download', 'events']);

/** @throws when the audit log cannot be opened */
export async function openObservation({ config, log, clock }: ObservationOptions): Promise<Observation> {
  const audit = await openAudit(config, log);
  const render = createRecorder({ clock, account: config.account, region: config.region });
  const metrics = config.metrics ? new Metrics() : undefined;
  const collected = new Map<string, number>();
  let collectedAt = 0;
  let collectionSeconds = 0;
  let totals: TotalsReader | undefined;
  if (metrics !== undefined && audit !== undefined) exposeAudit(metrics, audit);

  const add = (what: string, count: number): void =>
    void collected.set(what, (collected.get(what) ?? 0) + count);

  return {
    onDone(exchange, durationMs) {
      noteOutcome(exchange);
      metrics?.requestDone(exchange, durationMs);
      if (audit !== undefined && isAudited(exchange)) audit.write(render(exchange));
      logRequest(log, exchange, durationMs);
    },
    onError(error, exchange) {
      const { requestId, method } = exchange;
      log.error({ err: error, requestId, method, path: loggedPath(exchange.path) }, 'defect');
    },
    metricsDoor: metrics === undefined ? undefined : createMetricsDoor(metrics, config),
    observeStore: (store) => (metrics === undefined ? store : observeStore(store, metrics)),
    watch({ store, server }) {
      if (metrics === undefined) return;
      totals = createTotals({ store, largestMax: LARGEST_REPOSITORIES, ageMs: TOTALS_AGE_MS });
      exposeServer(metrics, server);
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
    async close() {
      await totals?.stop();
      await audit?.close();
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
function isAudited({ door, principal, faultCode }: Exchange): boolean {
  if (!AUDITED.has(door)) return false;
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
function createMetricsDoor(metrics: Metrics, config: Config): Door {
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
      exchange.send(200, { 'Content-Type': metrics.contentType }, await metrics.render());
    } else if (config.metricsToken === '') {
      exchange.send(403, { 'Content-Type': 'text/plain' }, 'Metrics need the setting metrics-token\n');
    } else {
      const headers = { 'Content-Type': 'text/plain', 'WWW-Authenticate': 'Bearer realm="metrics"' };
      exchange.send(401, headers, 'Not Authorized\n');
    }
  };
}

function observeStore(store: Store, metrics: Metrics): Store {
  return {
    engine: store.engine,
    read: store.read,
    prepare: (sql) => store.prepare(sql),
    close: () => store.close(),
    transact: (name, input) => {
      const result = store.transact(name, input);
      void measureTransaction(metrics, name, result);
      return result;
    },
  };
}

/** Refusals are what transactions are for; only what kept one from being decided is a failure. */
async function measureTransaction(metrics: Metrics, name: string, result: Promise<unknown>): Promise<void> {
  const started = performance.now();
  let failed = false;
  try {
    await result;
  } catch (error) {
    failed = !(error instanceof Fault) || error.code === 'ServiceUnavailableException';
  }
  metrics.transactionDone(name, performance.now() - started, failed);
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

function exposeServer(metrics: Metrics, server: RunningServer): void {
  metrics.gauge({
    name: 'berth_requests_in_flight',
    help: 'Requests begun and not answered to their end, this scrape included.',
    read: () => server.inFlight,
  });
  metrics.gauge({
    name: 'berth_connections',
    help: 'Open connections of clients.',
    read: () => server.connections,
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
