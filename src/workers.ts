/** The threads that serve beside the main one: started, kept going, asked for what only they know, and stopped. */
import { setTimeout as delay } from 'node:timers/promises';
import { Worker, type MessagePort } from 'node:worker_threads';
import { addCounts, noCounts } from './lib/metrics.ts';
import { writeLine, type Logger } from './lib/log.ts';
import { throttle } from './lib/throttle.ts';
import type { Observation, ThreadMeasures } from './observation.ts';
import type { TlsPair } from './server.ts';
import type { SharedSqlite } from './store/store.ts';
import { COMMITTED_PAUSE_MS, type FromWorker, type ToWorker, type WorkerData } from './worker.ts';

export interface WorkersOptions {
  /** how many, the main thread not counted */
  readonly count: number;
  readonly data: WorkerData;
  readonly log: Logger;
  readonly observation: Pick<Observation, 'audit' | 'renderMetrics'>;
  /** absent with PostgreSQL */
  readonly shared: SharedSqlite | undefined;
  /** Hears that a worker has committed something. */
  readonly onCommit: () => void;
}

export interface Workers {
  /** threads that died and were started again */
  readonly restarts: number;
  /** Resolves when all of them answer on the port. @throws when one cannot */
  listen(port: number, tls: TlsPair | undefined): Promise<void>;
  /** Tells them that something was committed: at most every {@link COMMITTED_PAUSE_MS}. */
  committed(): void;
  reloadTls(tls: TlsPair): void;
  measure: Parameters<Observation['include']>[0]['measure'];
  /** Makes them write what they have batched. */
  flush(): Promise<void>;
  /** Each lets its requests in flight end, writes what is batched and closes what it has. */
  stop(): Promise<void>;
}

/** The pause before a thread is started again: doubling, unless it lived long. */
const RESTART_MS = 100;
const RESTART_MS_MAX = 30_000;
const LIVED_LONG_MS = 60_000;
/** How long a scrape waits for a thread that is busy; what it said last counts then. */
const MEASURE_MS = 1000;

/** Begins to start the threads, which serve once they are told to listen. */
export function startWorkers(options: WorkersOptions): Workers {
  const { count, log } = options;
  const stopping = new AbortController();
  const threads = new Set<Thread>();
  const gone = noCounts();
  let restarts = 0;
  let listening: { port: number; tls: TlsPair | undefined } | undefined;

  const committedBy = (from: Thread | undefined): void => {
    if (from !== undefined) options.onCommit();
    for (const other of threads) if (other !== from) other.send({ kind: 'committed' });
  };
  const launch = (name: string, pauseMs = RESTART_MS): Thread => {
    const thread = new Thread(name, options, committedBy);
    threads.add(thread);
    void replace(thread, name, pauseMs);
    return thread;
  };
  /** Starts another thread when this one has ended. */
  const replace = async (thread: Thread, name: string, pauseMs: number): Promise<void> => {
    const began = performance.now();
    const cause = await thread.ended;
    threads.delete(thread);
    if (thread.measures !== undefined) addCounts(gone, thread.measures.counts);
    if (stopping.signal.aborted || listening === undefined) return;
    log.error({ err: cause, worker: name }, 'a worker died and is started again');
    restarts += 1;
    const pause = performance.now() - began > LIVED_LONG_MS ? RESTART_MS : pauseMs;
    await delay(pause, undefined, { signal: stopping.signal }).catch(() => {});
    if (stopping.signal.aborted) return;
    const next = launch(name, Math.min(RESTART_MS_MAX, pause * 2));
    // What keeps it from listening ends it, and is logged then.
    await next.listen(listening.port, listening.tls).catch(() => {});
  };
  const first = Array.from({ length: count }, (_, i) => launch(`worker-${i + 1}`));

  return {
    get restarts() {
      return restarts;
    },
    async listen(port, tls) {
      await Promise.all(first.map((thread) => thread.listen(port, tls)));
      listening = { port, tls };
    },
    committed: throttle(COMMITTED_PAUSE_MS, () => committedBy(undefined)),
    reloadTls(tls) {
      if (listening !== undefined) listening.tls = tls;
      for (const thread of threads) thread.send({ kind: 'tls', tls });
    },
    async measure() {
      const serving = await Promise.all([...threads].map((thread) => thread.measure()));
      return { serving: serving.filter((it) => it !== undefined), gone };
    },
    async flush() {
      await Promise.all([...threads].map((thread) => thread.ask('flush')));
    },
    async stop() {
      stopping.abort();
      await Promise.all([...threads].map((thread) => thread.stop()));
    },
  };
}

class Thread {
  /** resolves with the cause when the thread has ended, however that came about */
  readonly ended: Promise<unknown>;
  /** what it said last */
  measures: ThreadMeasures | undefined;
  readonly #worker: Worker;
  readonly #options: WorkersOptions;
  readonly #onCommit: (from: Thread) => void;
  readonly #asked = new Map<number, (value: ThreadMeasures | undefined) => void>();
  readonly #said = new Map<'ready' | 'listening' | 'stopped', PromiseWithResolvers<void>>();
  #nextId = 0;

  constructor(name: string, options: WorkersOptions, onCommit: (from: Thread) => void) {
    this.#options = options;
    this.#onCommit = onCommit;
    this.#worker = new Worker(new URL('./worker.ts', import.meta.url), { workerData: options.data, name });
    for (const kind of ['ready', 'listening', 'stopped'] as const) {
      const said = Promise.withResolvers<void>();
      said.promise.catch(() => {});
      this.#said.set(kind, said);
    }
    let cause: unknown;
    this.#worker.on('error', (error) => (cause = error));
    this.#worker.on('message', (message: FromWorker) => this.#receive(message));
    this.ended = new Promise((resolve) => {
      this.#worker.once('exit', (code) => {
        cause ??= new Error(`${name} ended with code ${code}`);
        for (const { reject } of this.#said.values()) reject(cause);
        for (const answer of this.#asked.values()) answer(undefined);
        resolve(cause);
      });
    });
  }

  send(message: ToWorker, transfer: MessagePort[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  /** @throws when the thread ends before it listens */
  async listen(port: number, tls: TlsPair | undefined): Promise<void> {
    await this.#said.get('ready')?.promise;
    this.send({ kind: 'listen', port, tls });
    await this.#said.get('listening')?.promise;
  }

  /** Also resolves when the thread ends instead. */
  async stop(): Promise<void> {
    const ready = this.#said.get('ready')?.promise ?? Promise.resolve();
    await ready.then(() => this.send({ kind: 'stop' })).catch(() => {});
    await this.#said.get('stopped')?.promise.catch((error: unknown) => {
      this.#options.log.error({ err: error }, 'a worker died while it stopped');
    });
    await this.#worker.terminate();
  }

  /** `undefined` when the thread ends before it answers. */
  ask(what: 'measures' | 'flush'): Promise<ThreadMeasures | undefined> {
    return new Promise((resolve) => {
      const id = this.#nextId++;
      this.#asked.set(id, resolve);
      this.send({ kind: 'ask', id, what });
    });
  }

  async measure(): Promise<ThreadMeasures | undefined> {
    const late = new AbortController();
    const timeout = delay(MEASURE_MS, undefined, { signal: late.signal }).catch(() => {});
    const measures = await Promise.race([this.ask('measures'), timeout]);
    late.abort();
    this.measures = measures ?? this.measures;
    return this.measures;
  }

  #receive(message: FromWorker): void {
    switch (message.kind) {
      case 'lines': {
        const { log, observation } = this.#options;
        for (const line of message.logged) writeLine(log, line);
        for (const line of message.audited) observation.audit(line);
        return;
      }
      case 'committed':
        return this.#onCommit(this);
      case 'answer':
        this.#asked.get(message.id)?.(message.value);
        return void this.#asked.delete(message.id);
      case 'ask':
        return void this.#answer(message.id, message.what);
      default:
        return this.#said.get(message.kind)?.resolve();
    }
  }

  async #answer(id: number, what: 'writer' | 'metrics'): Promise<void> {
    const { shared, observation } = this.#options;
    if (what === 'metrics') {
      const value = await observation.renderMetrics();
      return this.send({ kind: 'answer', id, value });
    }
    // It fails only when the writer is closing for good: then nobody waits for it any more.
    const port = await shared?.connect().catch(() => undefined);
    if (port !== undefined) this.send({ kind: 'answer', id, value: port }, [port]);
  }
}
