/**
 * The composition root: settings → adapters → what serves (serving.ts), on one thread or several, and what runs once beside it. Used by `berth serve` and by wire
 * tests, which therefore test the server as it runs.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { speaksTls, type Config } from './config.ts';
import { bootstrap, generateCredentials, type Credentials } from './identity/identity.ts';
import { createJobRunner, observeCommits } from './jobs/jobs.ts';
import { openKeyRing, type KeyRing } from './lib/keyring.ts';
import { LIMITS } from './lib/limits.ts';
import type { Logger, LogLevel } from './lib/log.ts';
import { noCounts } from './lib/metrics.ts';
import { allocateBuckets } from './lib/rate-limits.ts';
import { openObservation, type Observation } from './observation.ts';
import {
  createLifecycleHandlers,
  RESTORE_MARKER,
  type GarbageReport,
  type Registry,
} from './registry/registry.ts';
import { SHARES_PORTS, type TlsPair } from './server.ts';
import { createServing, openGuardrails, type Serving } from './serving.ts';
import {
  isRestoring,
  openPostgresStore,
  openSqliteStore,
  type SharedSqlite,
  type Store,
} from './store/store.ts';
import type { WorkerData } from './worker.ts';
import { startWorkers, type Workers } from './workers.ts';

/** Connections of one process to PostgreSQL. */
const POSTGRES_POOL_MAX = 16;

export interface Surroundings {
  readonly log: Logger;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly tls: TlsPair | undefined;
  /** Where first-start credentials are written before they become valid, and taken back from when they did not. */
  readonly credentialsFile: { write(key: Credentials): Promise<void>; remove(): Promise<void> };
}

export interface Berth {
  /** what AWS_ENDPOINT_URL is to be */
  readonly endpoint: string;
  /** what image names of the default account and region start with */
  readonly registryHost: string;
  readonly port: number;
  /** the key of `admin`, the one time it is made */
  readonly firstCredentials: Credentials | undefined;
  readonly registry: Registry;
  /** New connections get this certificate, open ones go on. @throws Error, changing nothing, when it cannot be used */
  reloadTls(pair: TlsPair): void;
  /** Lets requests in flight end, then writes what is batched and closes everything. */
  stop(): Promise<void>;
}

/** Starts everything and resolves when the server listens. */
export async function start(config: Config, surroundings: Surroundings): Promise<Berth> {
  const { clock, log } = surroundings;
  if (existsSync(join(config.data, RESTORE_MARKER))) {
    throw new Error(`a restore into ${config.data} did not end: run "berth restore" again to finish it`);
  }
  const guardrails = openGuardrails(config);
  const ring = await openKeyRing(join(config.data, 'keys'));
  const threads = countThreads(config, log);
  const buckets = allocateBuckets();
  const committed: (() => void)[] = [];
  const observation = await openObservation({ config, log, clock });
  let writersLost = 0;
  const opened = await openStore(config, threads, (cause) => {
    writersLost += 1;
    log.error({ err: cause }, 'the metadata writer died and is started again');
  }).catch(async (error: unknown) => {
    await observation.close();
    throw error;
  });
  let workers: Workers | undefined;
  const wake = (): void => {
    for (const each of committed) each();
  };
  const store = observation.observeStore(
    observeCommits(opened, () => {
      wake();
      workers?.committed();
    }),
  );
  try {
    if (await isRestoring(store.read))
      throw new Error('a restore into the database did not end: run "berth restore" again to finish it');
    const firstCredentials = await openAccount(config, store, ring, surroundings);
    if (threads > 1) {
      const { shared } = opened;
      const data: WorkerData = {
        config,
        logLevel: log.level as LogLevel,
        shared: shared && { file: shared.file, commits: shared.commits },
        poolMax: poolShare(threads),
        buckets,
        threads,
      };
      workers = startWorkers({ count: threads - 1, data, log, observation, shared, onCommit: wake });
    }
    observation.include({
      measure: async () => (await workers?.measure()) ?? { serving: [], gone: noCounts() },
      restarts: () => ({ worker: workers?.restarts ?? 0, writer: writersLost }),
    });
    const options = {
      config,
      log,
      clock,
      store,
      ring,
      observation,
      guardrails,
      buckets,
      threads,
      publishes: true,
    };
    const serving = await createServing(options);
    const { registry, events, uri } = serving;
    const flush = async (): Promise<void> => {
      await Promise.all([registry.flush(), workers?.flush()]);
    };
    const jobs = createJobRunner({
      store,
      clock,
      log,
      handlers: {
        ...events.handlers,
        ...createLifecycleHandlers({ store, clock, flush, report: observation.onServiceEvent }),
      },
    });
    const { port: wanted } = config;
    const { tls } = surroundings;
    const share = workers === undefined ? undefined : 'first';
    const server = await serving.listen({ port: wanted, share, tls });
    const { port } = server;
    await workers?.listen(port, tls).catch(async (error: unknown) => {
      await server.drain();
      throw error;
    });
    committed.push(
      () => events.wake(),
      () => jobs.wake(),
    );
    events.start();
    await jobs.start();
    const maintenance = runMaintenance(config, { log, serving, observation });
    const { host, endpoint } = uri(config.account, config.region);
    return {
      endpoint: config.registryHost === 'localhost:{port}' ? endpoint : endpointOf(config, port),
      registryHost: host,
      port,
      firstCredentials,
      registry,
      reloadTls(pair) {
        server.reloadTls(pair);
        workers?.reloadTls(pair);
      },
      async stop() {
        await events.stop();
        await Promise.all([server.drain(), workers?.stop()]);
        await maintenance.stop();
        await jobs.stop();
        await serving.close();
        await observation.close();
        await store.close();
      },
    };
  } catch (error) {
    await workers?.stop();
    await observation.close();
    await store.close();
    throw error;
  }
}

/** Threads that serve: as set, where the system can spread connections over them. */
function countThreads({ workers }: Config, log: Logger): number {
  if (workers === 1 || SHARES_PORTS.has(process.platform)) return workers;
  log.warn({ workers, platform: process.platform }, 'this system does not share ports: one worker serves');
  return 1;
}

/** Connections to PostgreSQL of each of `threads`; two at least, one for reads and one for writes. */
function poolShare(threads: number): number {
  return Math.max(2, Math.ceil(POSTGRES_POOL_MAX / threads));
}

async function openStore(
  config: Config,
  threads: number,
  onWriterLost: (cause: unknown) => void,
): Promise<Store & { readonly shared?: SharedSqlite | undefined }> {
  return config.database === ''
    ? openSqliteStore({ file: join(config.data, 'berth.db'), onWriterLost })
    : openPostgresStore({ url: config.database, poolMax: poolShare(threads) });
}

/**
 * Makes account and administrator at the first start. The key is written down before it becomes valid: a crash in
 * between loses nothing, the next start writes another.
 */
async function openAccount(
  config: Config,
  store: Store,
  keys: KeyRing,
  { clock, credentialsFile }: Surroundings,
): Promise<Credentials | undefined> {
  const { account } = config;
  const known = await store.read.selectFrom('account').select('id').where('id', '=', account).execute();
  const adminKey = generateCredentials(account);
  if (known.length === 0) await credentialsFile.write(adminKey);
  const rootKey =
    config.rootAccessKeyId === ''
      ? undefined
      : { id: config.rootAccessKeyId, secret: config.rootSecretAccessKey };
  const made = await bootstrap({ store, keys, account, now: clock(), adminKey, rootKey });
  // WHY: another replica may have made the account in the meantime; then the key just written is nobody's.
  if (known.length === 0 && made === undefined) await credentialsFile.remove();
  return made?.adminKey;
}

function endpointOf(config: Config, port: number): string {
  // WHY: the address that stands for all of them is none to connect to, and in no certificate
  const name = ['0.0.0.0', '::'].includes(config.host) ? 'localhost' : config.host;
  const host = name.includes(':') ? `[${name}]` : name;
  return `${speaksTls(config) ? 'https' : 'http'}://${host}:${port}`;
}

/** Rounds of garbage collection and of writing what is batched, one after another, until stopped. */
function runMaintenance(
  config: Config,
  { log, serving, observation }: { log: Logger; serving: Serving; observation: Observation },
): { stop(): Promise<void> } {
  const stopping = new AbortController();
  let orphansAt = 0;
  const round = async (): Promise<void> => {
    await serving.flush();
    const orphans = performance.now() >= orphansAt;
    // WHY: looking for orphans lists the whole blob store, so it is done once per age an orphan must have.
    if (orphans) orphansAt = performance.now() + Math.min(config.orphanAgeMs, LIMITS.orphanAgeMs);
    const began = performance.now();
    const collected = (report?: GarbageReport): void =>
      observation.garbageCollected(report, performance.now() - began);
    const report = await serving.registry
      .collectGarbage({ orphans, signal: stopping.signal })
      .catch((error: unknown) => {
        collected();
        throw error;
      });
    collected(report);
    if (Object.values(report).some((count) => count > 0)) log.info(report, 'garbage collected');
  };
  const loop = async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      await round().catch((error: unknown) => log.error({ err: error }, 'maintenance failed'));
      await delay(config.gcIntervalMs, undefined, { signal: stopping.signal }).catch(() => {});
    }
  };
  const running = loop();
  return {
    async stop() {
      stopping.abort();
      await running;
    },
  };
}
