/**
 * The composition root: settings → adapters → services → doors → a listening server. Used by `berth serve` and by wire
 * tests, which therefore test the server as it runs.
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createFileBlobStore } from './blobs/blobs.ts';
import { ConfigError, readGuardrailsFile, speaksTls, type Config } from './config.ts';
import { isRegionName } from './domain/names.ts';
import { createDownloads, createEcrOperations, type RegistryUri } from './ecr/ecr.ts';
import { createEvents, createEventsDoor } from './events/events.ts';
import {
  berthOperations,
  bootstrap,
  compileGuardrails,
  createIdentity,
  createIssuerFetch,
  generateCredentials,
  GuardrailError,
  iamOperations,
  stsOperations,
  type Credentials,
  type Guardrails,
  type Principal,
} from './identity/identity.ts';
import { createJobRunner, observeCommits } from './jobs/jobs.ts';
import { openKeyRing, type KeyRing } from './lib/keyring.ts';
import { LIMITS } from './lib/limits.ts';
import type { Logger } from './lib/log.ts';
import { openObservation, type Observation } from './observation.ts';
import { createOciDoor } from './oci/oci.ts';
import { createAwsDoor, createVerifier } from './protocol/protocol.ts';
import {
  createLifecycleHandlers,
  createRegistry,
  RESTORE_MARKER,
  type GarbageReport,
  type Registry,
} from './registry/registry.ts';
import { startServer, type Doors, type TlsPair } from './server.ts';
import { openPostgresStore, openSqliteStore, type Store } from './store/store.ts';

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
  const committed: (() => void)[] = [];
  const observation = await openObservation({ config, log, clock });
  const opened = await openStore(config).catch(async (error: unknown) => {
    await observation.close();
    throw error;
  });
  const store = observation.observeStore(
    observeCommits(opened, () => {
      for (const wake of committed) wake();
    }),
  );
  try {
    const firstCredentials = await openAccount(config, store, ring, surroundings);
    const blobs = await createFileBlobStore({ directory: join(config.data, 'blobs'), keys: ring });
    const identity = createIdentity({
      store,
      keys: ring,
      guardrails,
      organizationId: config.organizationId || undefined,
    });
    const { repositoriesMax, imagesPerRepositoryMax } = config;
    const registry = createRegistry({
      store,
      blobs,
      ring,
      clock,
      repositoriesMax,
      imagesPerRepositoryMax,
      pullEvents: config.pullEvents,
      ...timesOf(config),
    });
    const events = createEvents({
      store,
      clock,
      log,
      webhooks: config.webhooks,
      form: config.webhookForm,
      secret: config.webhookSecret,
      retentionMs: config.eventRetentionMs,
    });
    const jobs = createJobRunner({
      store,
      clock,
      log,
      handlers: { ...events.handlers, ...createLifecycleHandlers({ store, clock, flush: registry.flush }) },
    });
    committed.push(
      () => events.wake(),
      () => jobs.wake(),
    );
    const listening = { port: config.port };
    const downloads = createDownloads({ registry, key: ring.derive('layer downloads'), clock });
    const uri = createRegistryUri(config, listening);
    const { onError } = observation;
    const acceptsRegion = acceptedRegions(config);
    const verify = createVerifier({ keys: identity, clock, acceptsRegion, onKeyUse: identity.recordKeyUse });
    const doors: Doors = {
      oci: createOciDoor({ registry, identity, clock, isRegion: acceptsRegion, onError }),
      download: downloads.serve,
      aws: createAwsDoor<Principal>({
        ecr: createEcrOperations({
          store,
          registry,
          identity,
          ring,
          downloads,
          uri,
          limits: { repositoriesMax },
        }),
        iam: iamOperations({ store, keys: ring, identity, guardrails }),
        sts: stsOperations({
          store,
          keys: ring,
          identity,
          fetchIssuer: createIssuerFetch(config.issuerHosts),
        }),
        berth: berthOperations({ store, keys: ring, identity }),
        verify,
        authorize: (context, checks) => identity.authorize(context.caller, checks, context),
        describeCaller: (principal) => principal,
        anonymous: { caller: anonymousOf(config), region: config.region },
        clock,
        onError,
      }),
      events: createEventsDoor<Principal>({
        events,
        verify,
        authorize: (caller, checks, facts) => identity.authorize(caller, checks, facts),
        describeCaller: (principal) => principal,
        onError,
      }),
      metrics: observation.metricsDoor,
      authority: () => readAuthority(join(config.data, 'tls', 'ca.pem')),
      ready: async () => {
        await store.read.selectFrom('account').select('id').limit(1).execute();
      },
    };
    const server = await startServer({
      doors,
      host: config.host,
      port: config.port,
      tls: surroundings.tls,
      onDone: observation.onDone,
      onError,
    });
    listening.port = server.port;
    observation.watch({ store, server });
    events.start();
    await jobs.start();
    const maintenance = runMaintenance(config, { log, registry, identity, observation });
    const { host, endpoint } = uri(config.account, config.region);
    return {
      endpoint: config.registryHost === 'localhost:{port}' ? endpoint : endpointOf(config, server.port),
      registryHost: host,
      port: server.port,
      firstCredentials,
      registry,
      reloadTls: (pair) => server.reloadTls(pair),
      async stop() {
        await events.stop();
        await server.drain();
        await maintenance.stop();
        await jobs.stop();
        await registry.close();
        await identity.flush();
        await blobs.close();
        await observation.close();
        await store.close();
      },
    };
  } catch (error) {
    await observation.close();
    await store.close();
    throw error;
  }
}

/** The certificates in the file, and nothing else that may be in it; `undefined` when there are none. */
async function readAuthority(path: string): Promise<string | undefined> {
  const text = await readFile(path, 'utf8').catch(() => '');
  const certificates = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
  return certificates === null ? undefined : `${certificates.join('\n')}\n`;
}

function openStore(config: Config): Promise<Store> {
  return config.database === ''
    ? openSqliteStore({ file: join(config.data, 'berth.db') })
    : openPostgresStore({ url: config.database });
}

/** @throws ConfigError naming the file */
function openGuardrails({ guardrails: path }: Config): Guardrails {
  try {
    return compileGuardrails(path === null ? undefined : readGuardrailsFile(path));
  } catch (error) {
    if (!(error instanceof GuardrailError)) throw error;
    throw new ConfigError(`${path} (guardrails): ${error.message}`);
  }
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

function timesOf(config: Config) {
  const { uploadIdleMs, blobLeaseMs, trashGraceMs, orphanAgeMs } = config;
  return { uploadIdleMs, blobLeaseMs, trashGraceMs, orphanAgeMs };
}

function acceptedRegions(config: Config): (region: string) => boolean {
  if (config.regions.length === 0) return isRegionName;
  const names = new Set(config.regions);
  return (region) => names.has(region);
}

/** The one template behind `repositoryUri` and `proxyEndpoint`. `listening.port` is the real one once it is known. */
function createRegistryUri(
  config: Config,
  listening: { readonly port: number },
): (account: string, region: string) => RegistryUri {
  const scheme = speaksTls(config) ? 'https' : 'http';
  return (account, region) => {
    const host = config.registryHost
      .replaceAll('{account}', account)
      .replaceAll('{region}', region)
      .replaceAll('{port}', String(listening.port));
    return { host, endpoint: `${scheme}://${host}` };
  };
}

function endpointOf(config: Config, port: number): string {
  // WHY: the address that stands for all of them is none to connect to, and in no certificate
  const name = ['0.0.0.0', '::'].includes(config.host) ? 'localhost' : config.host;
  const host = name.includes(':') ? `[${name}]` : name;
  return `${speaksTls(config) ? 'https' : 'http'}://${host}:${port}`;
}

/** Who asks in the STS operations that take unsigned requests. No policy names it, so nothing is allowed to it. */
function anonymousOf(config: Config): Principal {
  return {
    caller: { kind: 'anonymous', account: 'anonymous', arn: 'anonymous', id: 'anonymous' },
    account: config.account,
    accessKeyId: '',
    userName: undefined,
    userId: undefined,
  };
}

interface Flushed {
  flush(): Promise<void>;
}

/** Rounds of garbage collection and of writing what is batched, one after another, until stopped. */
function runMaintenance(
  config: Config,
  {
    log,
    registry,
    identity,
    observation,
  }: { log: Logger; registry: Registry; identity: Flushed; observation: Observation },
): { stop(): Promise<void> } {
  const stopping = new AbortController();
  let orphansAt = 0;
  const round = async (): Promise<void> => {
    await registry.flush();
    await identity.flush();
    const orphans = performance.now() >= orphansAt;
    // WHY: looking for orphans lists the whole blob store, so it is done once per age an orphan must have.
    if (orphans) orphansAt = performance.now() + Math.min(config.orphanAgeMs, LIMITS.orphanAgeMs);
    const began = performance.now();
    const collected = (report?: GarbageReport): void =>
      observation.garbageCollected(report, performance.now() - began);
    const report = await registry.collectGarbage({ orphans }).catch((error: unknown) => {
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
