/**
 * A thread that serves requests beside the main one, on the same port. It reads the database itself and sends its
 * transactions to the one writer; its log, its audit records and its part of the metrics go to the main thread.
 */
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import type { Config } from './config.ts';
import { observeCommits } from './jobs/jobs.ts';
import { openKeyRing } from './lib/keyring.ts';
import { createLog, type LogLevel } from './lib/log.ts';
import { throttle } from './lib/throttle.ts';
import { openObservation, type ThreadMeasures } from './observation.ts';
import type { RunningServer, TlsPair } from './server.ts';
import { createServing, openGuardrails } from './serving.ts';
import { joinSqliteStore, openPostgresStore, type SharedSqlite, type Store } from './store/store.ts';

/** What a worker begins with: plain data and shared memory. */
export interface WorkerData {
  readonly config: Config;
  readonly logLevel: LogLevel;
  /** absent with PostgreSQL */
  readonly shared: Pick<SharedSqlite, 'file' | 'commits'> | undefined;
  /** connections to PostgreSQL */
  readonly poolMax: number;
  /** what all threads have used of the rate limits */
  readonly buckets: SharedArrayBuffer;
  /** threads that serve, the main one included */
  readonly threads: number;
}

export type ToWorker =
  | { readonly kind: 'listen'; readonly port: number; readonly tls: TlsPair | undefined }
  | { readonly kind: 'tls'; readonly tls: TlsPair }
  /** another thread has committed something */
  | { readonly kind: 'committed' }
  | { readonly kind: 'ask'; readonly id: number; readonly what: 'measures' | 'flush' }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'stop' };

export type FromWorker =
  | { readonly kind: 'ready' | 'listening' | 'stopped' }
  | { readonly kind: 'committed' }
  | { readonly kind: 'lines'; readonly logged: readonly string[]; readonly audited: readonly string[] }
  | { readonly kind: 'ask'; readonly id: number; readonly what: 'writer' | 'metrics' }
  | { readonly kind: 'answer'; readonly id: number; readonly value: ThreadMeasures | undefined };

/** Commits are made known to other threads at most this often. */
export const COMMITTED_PAUSE_MS = 20;

if (parentPort !== null) await work(parentPort, workerData as WorkerData);

async function work(main: MessagePort, data: WorkerData): Promise<void> {
  const { config, threads } = data;
  const tell = (message: FromWorker): void => main.postMessage(message, []);
  const asked = new Map<number, (value: unknown) => void>();
  const ask = (what: 'writer' | 'metrics'): Promise<unknown> =>
    new Promise((resolve) => {
      const id = nextId++;
      asked.set(id, resolve);
      tell({ kind: 'ask', id, what });
    });
  let nextId = 0;

  const lines = collectLines(tell);
  const log = createLog(data.logLevel, { write: lines.log });
  const clock = Date.now;
  const observation = await openObservation({
    config,
    log,
    clock,
    main: { audit: lines.audit, renderMetrics: () => ask('metrics') as Promise<string> },
  });
  // WHY before the store: it asks for its channel to the writer.
  let handle: (message: ToWorker) => void = () => {};
  main.on('message', (message: ToWorker) => {
    if (message.kind !== 'answer') return handle(message);
    asked.get(message.id)?.(message.value);
    asked.delete(message.id);
  });
  const opened = await openStore(data, () => ask('writer') as Promise<MessagePort>);
  const announce = throttle(COMMITTED_PAUSE_MS, () => tell({ kind: 'committed' }));
  const store = observation.observeStore(
    observeCommits(opened, () => {
      announce();
      serving.events.wake();
    }),
  );
  const serving = await createServing({
    config,
    log,
    clock,
    store,
    ring: await openKeyRing(join(config.data, 'keys')),
    observation,
    guardrails: openGuardrails(config),
    buckets: data.buckets,
    threads,
    publishes: false,
  });
  serving.events.start();
  let server: RunningServer | undefined;

  const flush = (): Promise<void> =>
    serving.flush().catch((error: unknown) => log.error({ err: error }, 'batched writes failed'));
  const flushing = setInterval(() => void flush(), Math.min(config.gcIntervalMs, 2 ** 31 - 1));
  const stop = async (): Promise<void> => {
    clearInterval(flushing);
    await serving.events.stop();
    await server?.drain();
    await serving.close();
    await observation.close();
    await store.close();
    lines.flush();
    tell({ kind: 'stopped' });
    main.close();
  };

  const listen = async ({ port, tls }: ToWorker & { kind: 'listen' }): Promise<void> => {
    server = await serving.listen({ port, share: 'further', tls: tls && pairOf(tls) });
    tell({ kind: 'listening' });
  };
  handle = (message) => {
    if (message.kind === 'committed') serving.events.wake();
    else if (message.kind === 'ask') {
      const { id, what } = message;
      if (what === 'measures') tell({ kind: 'answer', id, value: observation.measure() });
      else void flush().then(() => tell({ kind: 'answer', id, value: undefined }));
    } else if (message.kind === 'tls') {
      // It was tried on the main thread: what fails here is a defect, and a new thread starts with it.
      server?.reloadTls(pairOf(message.tls));
    } else if (message.kind === 'listen') {
      void listen(message);
    } else if (message.kind === 'stop') void stop();
  };
  tell({ kind: 'ready' });
}

function openStore(
  { config, shared, poolMax }: WorkerData,
  connect: () => Promise<MessagePort>,
): Promise<Store> {
  return shared === undefined
    ? openPostgresStore({ url: config.database, poolMax })
    : joinSqliteStore({ ...shared, connect });
}

/** Buffers arrive from other threads as plain byte arrays. */
function pairOf({ cert, key }: TlsPair): TlsPair {
  return { cert: Buffer.from(cert), key: Buffer.from(key) };
}

/** Lines for the main thread: those of one turn of the event loop go together. */
function collectLines(tell: (message: FromWorker) => void): {
  log(line: string): void;
  audit(line: string): void;
  flush(): void;
} {
  let logged: string[] = [];
  let audited: string[] = [];
  const flush = (): void => {
    if (logged.length === 0 && audited.length === 0) return;
    tell({ kind: 'lines', logged, audited });
    [logged, audited] = [[], []];
  };
  const add = (to: () => string[]) => (line: string) => {
    if (logged.length === 0 && audited.length === 0) setImmediate(flush);
    to().push(line);
  };
  return { log: add(() => logged), audit: add(() => audited), flush };
}
