/**
 * Everything that answers requests: services and doors over a store, and the listener. Each thread that serves has its
 * own (workers.ts); what must happen once per process is compose.ts's.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createFileBlobStore } from './blobs/blobs.ts';
import { ConfigError, readGuardrailsFile, speaksTls, type Config } from './config.ts';
import { isRegionName } from './domain/names.ts';
import { createDownloads, createEcrOperations, createExplainLifecycle, type RegistryUri } from './ecr/ecr.ts';
import { createEvents, createEventsDoor, type Events } from './events/events.ts';
import {
  berthOperations,
  compileGuardrails,
  createIdentity,
  createIssuerFetch,
  createIssuers,
  GuardrailError,
  iamOperations,
  stsOperations,
  type Guardrails,
  type Principal,
} from './identity/identity.ts';
import { Fault } from './domain/faults.ts';
import type { KeyRing } from './lib/keyring.ts';
import type { Logger } from './lib/log.ts';
import { RateLimiter } from './lib/rate-limits.ts';
import type { Observation } from './observation.ts';
import { createOciDoor, scopeOfHost, sendFault } from './oci/oci.ts';
import { createAwsDoor, createVerifier, refuseAws } from './protocol/protocol.ts';
import { createRegistry, type Registry } from './registry/registry.ts';
import {
  SERVER_LIMITS,
  startServer,
  type Doors,
  type RunningServer,
  type ServerLimits,
  type ServerOptions,
  type TlsPair,
} from './server.ts';
import type { Store } from './store/store.ts';

export interface ServingOptions {
  readonly config: Config;
  readonly log: Logger;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly store: Store;
  readonly ring: KeyRing;
  readonly observation: Observation;
  readonly guardrails: Guardrails;
  /** what all threads have used of the rate limits */
  readonly buckets: SharedArrayBuffer;
  /** threads of this process that serve */
  readonly threads: number;
  /** whether this is the thread that publishes events all the time */
  readonly publishes: boolean;
}

export interface Serving {
  readonly registry: Registry;
  readonly events: Events;
  readonly uri: (account: string, region: string) => RegistryUri;
  /** Answers requests from here on. @throws when the port cannot be had */
  listen(options: {
    readonly port: number;
    readonly share: ServerOptions['share'];
    readonly tls: TlsPair | undefined;
  }): Promise<RunningServer>;
  /** Writes what is batched: pull times, uses of keys. */
  flush(): Promise<void>;
  /** Writes what is batched and closes the blob store, after the listener was drained. The store stays the caller's. */
  close(): Promise<void>;
}

/** How long the database may take to say that it works. */
const READY_MS = 5000;

export async function createServing(options: ServingOptions): Promise<Serving> {
  const { config, log, clock, store, ring, observation, guardrails, buckets, threads, publishes } = options;
  const blobs = await createFileBlobStore({ directory: join(config.data, 'blobs'), keys: ring, threads });
  const identity = createIdentity({
    store,
    keys: ring,
    guardrails,
    organizationId: config.organizationId || undefined,
  });
  const { repositoriesMax, creationTemplatesMax, pullTimeExclusionsMax } = config;
  const { imagesPerRepositoryMax, tagsPerImageMax, layerBytesMax, layerPartsMax } = config;
  const registry = createRegistry({
    store,
    blobs,
    ring,
    clock,
    repositoriesMax,
    imagesPerRepositoryMax,
    uploadsPerRepositoryMax: config.uploadsPerRepositoryMax,
    tagsPerImageMax,
    layerBytesMax,
    layerPartsMax,
    sparseManifests: config.sparseManifests,
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
    publishes,
  });
  const listening = { port: config.port };
  const downloads = createDownloads({ registry, key: ring.derive('layer downloads'), clock });
  const uri = createRegistryUri(config, listening);
  const { onError } = observation;
  const throttle = createThrottle(config, buckets, clock);
  const throttleOne =
    throttle && ((caller: Principal, action: string, region: string) => throttle(caller, [action], region));
  const acceptsRegion = acceptedRegions(config);
  const verify = createVerifier({ keys: identity, clock, acceptsRegion, onKeyUse: identity.recordKeyUse });
  const issuers = createIssuers(createIssuerFetch(config.issuerHosts));
  const doors: Doors = {
    oci: createOciDoor({ registry, identity, clock, isRegion: acceptsRegion, throttle, onError }),
    download: downloads.serve,
    aws: createAwsDoor<Principal>({
      ecr: createEcrOperations({
        store,
        registry,
        identity,
        ring,
        downloads,
        uri,
        limits: { repositoriesMax, creationTemplatesMax, pullTimeExclusionsMax },
      }),
      iam: iamOperations({ store, keys: ring, identity, guardrails }),
      sts: stsOperations({
        store,
        keys: ring,
        identity,
        issuers,
      }),
      berth: {
        ...berthOperations({
          store,
          keys: ring,
          identity,
          issuers,
          scopeOfHost: (host) => scopeOfHost(host, acceptsRegion),
        }),
        ...createExplainLifecycle({ store, registry, ring }),
      },
      verify,
      authorize: (context, checks) => identity.authorize(context.caller, checks, context),
      throttle: throttleOne,
      describeCaller: (principal) => principal,
      anonymous: { caller: anonymousOf(config), region: config.region },
      clock,
      onError,
    }),
    events: createEventsDoor<Principal>({
      events,
      verify,
      authorize: (caller, checks, facts) => identity.authorize(caller, checks, facts),
      throttle: throttleOne,
      describeCaller: (principal) => principal,
      onError,
    }),
    refuse: (exchange, fault) =>
      exchange.door === 'oci' ? sendFault(exchange, fault) : refuseAws(exchange, fault, clock),
    metrics: observation.metricsDoor,
    authority: () => readAuthority(join(config.data, 'tls', 'ca.pem')),
    ready: () => checkReady(store, registry),
  };
  const flush = async (): Promise<void> => {
    await registry.flush();
    await identity.flush();
  };
  return {
    registry,
    events,
    uri,
    async listen({ port, share, tls }) {
      const { onDone, onShed } = observation;
      const limits = limitsOf(config, threads);
      const { host } = config;
      const server = await startServer({ doors, host, port, share, tls, limits, onDone, onShed, onError });
      listening.port = server.port;
      observation.watch({ store, server });
      return server;
    },
    flush,
    async close() {
      await registry.close();
      await identity.flush();
      await blobs.close();
    },
  };
}

/** @throws unless the database can be read, transactions can be run, and what is written can be made durable */
async function checkReady(store: Store, registry: Registry): Promise<void> {
  const late = new AbortController();
  const works = async (): Promise<void> => {
    await store.read.selectFrom('account').select('id').limit(1).execute();
    await store.transact('store.probe', {});
    await registry.ready();
  };
  const timeout = delay(READY_MS, undefined, { signal: late.signal }).then(() => {
    throw new Error('the database does not answer');
  });
  await Promise.race([works(), timeout]).finally(() => {
    timeout.catch(() => {});
    late.abort();
  });
}

/** The certificates in the file, and nothing else that may be in it; `undefined` when there are none. */
async function readAuthority(path: string): Promise<string | undefined> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  });
  const certificates = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
  return certificates === null ? undefined : `${certificates.join('\n')}\n`;
}

/** @throws ConfigError naming the file */
export function openGuardrails({ guardrails: path, organizationId }: Config): Guardrails {
  try {
    return compileGuardrails(
      path === null ? undefined : readGuardrailsFile(path),
      organizationId || undefined,
    );
  } catch (error) {
    if (!(error instanceof GuardrailError)) throw error;
    throw new ConfigError(`${path} (guardrails): ${error.message}`);
  }
}

/** Counts requests of principals; `undefined` without limits. */
function createThrottle(
  { rateLimits }: Config,
  buckets: SharedArrayBuffer,
  clock: () => number,
): ((principal: Principal, actions: readonly string[], region: string) => void) | undefined {
  if (rateLimits.length === 0) return undefined;
  const limiter = new RateLimiter(rateLimits, buckets, clock);
  return ({ caller }, actions, region) => {
    // Who signs nothing is no principal; all of them would share one bucket, which anybody could empty.
    if (caller.kind === 'anonymous') return;
    // WHY the role's: whoever may assume a role could have as many sessions, and so as many buckets, as they like.
    const who = `${caller.account} ${region} ${caller.roleId ?? caller.id}`;
    if (!actions.every((action) => limiter.take(who, action)))
      throw new Fault('ThrottlingException', 'Rate exceeded');
  };
}

/** The listener's part of the limits of the process; the system spreads connections evenly over the threads. */
function limitsOf(config: Config, threads: number): Partial<ServerLimits> {
  const share = (whole: number): number => Math.ceil(whole / threads);
  return {
    connectionsMax: share(config.connectionsMax),
    requestsInFlightMax: share(config.requestsInFlightMax),
    transfersInFlightMax: share(config.transfersInFlightMax),
    bodyBytesMax: share(SERVER_LIMITS.bodyBytesMax),
  };
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
