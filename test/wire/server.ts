/**
 * The real server on a free port over a temporary data directory, and a client that shows answers as they are. Tests get
 * two principals, administrators of two accounts; what one may do in the other's registry is up to repository policies.
 */
import assert from 'node:assert/strict';
import { readdir, readlink, mkdtemp, rm } from 'node:fs/promises';
import { Agent, type IncomingHttpHeaders, request as send } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { randomUUID } from 'node:crypto';
import { createFileBlobStore } from '../../src/blobs/blobs.ts';
import { bootstrap, createIdentity, type Identity, type Principal } from '../../src/identity/identity.ts';
import { readConfig } from '../../src/config.ts';
import { isRegionName } from '../../src/domain/names.ts';
import { openKeyRing, type KeyRing } from '../../src/lib/keyring.ts';
import { createLog } from '../../src/lib/log.ts';
import { allocateBuckets } from '../../src/lib/rate-limits.ts';
import { createOciDoor } from '../../src/oci/oci.ts';
import { createRegistry, type Registry, type Repository } from '../../src/registry/registry.ts';
import { startServer } from '../../src/server.ts';
import { openSqliteStore, type SharedSqlite, type Store } from '../../src/store/store.ts';
import { startWorkers, type Workers } from '../../src/workers.ts';

export const ACCOUNT = '000000000000';
export const STRANGER = '111111111111';
export const REGION = 'us-east-1';

/** Threads that serve in the servers of the wire tests; workers.test.ts runs them again with more than one. */
export const WORKERS = Number(process.env['WIRE_WORKERS'] ?? '1');

export interface WireServer {
  readonly port: number;
  readonly store: Store;
  readonly registry: Registry;
  readonly identity: Identity;
  readonly directory: string;
  /** administrators of ACCOUNT and STRANGER, and Authorization headers that they may push and pull with */
  readonly admin: Principal;
  readonly stranger: Principal;
  readonly adminAuth: string;
  readonly strangerAuth: string;
  /** what doors reported as defects; `stop` fails when a test left any */
  readonly errors: unknown[];
  createRepository(name: string, values?: Partial<Repository>): Promise<Repository>;
  /** files in the blob store that no row accounts for, and file descriptors open on it */
  leftovers(): Promise<{ files: string[]; descriptors: string[] }>;
  request(request: WireRequest): Promise<WireAnswer>;
  /** drains, closes everything, checks that nothing was left open, removes the directory */
  stop(): Promise<void>;
}

export interface WireRequest {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
  /** the administrator's credential unless told; `null` for none */
  readonly auth?: string | null;
  /** send the body chunked, without a length */
  readonly chunked?: boolean;
}

export interface WireAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly bytes: Buffer;
}

export function basic(password: string, user = 'AWS'): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

export async function startWireServer(options: { readonly idleMs?: number } = {}): Promise<WireServer> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-wire-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  const store = await openSqliteStore({ file: join(directory, 'berth.db') });
  const blobs = await createFileBlobStore({ directory: join(directory, 'blobs'), keys });
  const registry = createRegistry({ store, blobs, ring: keys, clock: Date.now });
  const identity = createIdentity({ store, keys });
  const admin = await administrator(store, keys, identity, ACCOUNT);
  const stranger = await administrator(store, keys, identity, STRANGER);
  const auth = async (principal: Principal): Promise<string> =>
    basic((await identity.issueRegistryToken(principal, { region: REGION }, Date.now())).password);

  const errors: unknown[] = [];
  const onError = (error: unknown): void => void errors.push(error);
  const refuse = (): Promise<void> => Promise.reject(new Error('not under test'));
  const oci = createOciDoor({
    registry,
    identity,
    clock: Date.now,
    isRegion: isRegionName,
    onError,
    ...options,
  });
  // What these doors are told about idle clients is not a setting, so that a worker would not know it.
  const shares = WORKERS > 1 && options.idleMs === undefined;
  const workers = shares ? startBeside(directory, store.shared, errors) : undefined;
  const server = await startServer({
    share: shares ? 'first' : undefined,
    doors: { oci, aws: refuse, download: refuse, events: refuse, ready: refuse },
    host: '127.0.0.1',
    port: 0,
    onDone: () => undefined,
    onError,
  });
  await workers?.listen(server.port, undefined);
  // With workers a connection for each request, so that all of them get some.
  const agent = new Agent({ keepAlive: !shares });
  const adminAuth = await auth(admin);
  const strangerAuth = await auth(stranger);

  return {
    port: server.port,
    store,
    registry,
    identity,
    directory,
    admin,
    stranger,
    adminAuth,
    strangerAuth,
    errors,
    createRepository: (name, values) => createRepository(store, registry, name, values),
    leftovers: () => findLeftovers(store, join(directory, 'blobs')),
    request: (request) => exchange(server.port, agent, adminAuth, request),
    async stop() {
      agent.destroy();
      await Promise.all([server.drain(), workers?.stop()]);
      await registry.close();
      const left = await findLeftovers(store, join(directory, 'blobs'));
      await blobs.close();
      await store.close();
      await rm(directory, { recursive: true, force: true });
      assert.deepEqual({ ...left, errors }, { files: [], descriptors: [], errors: [] });
    },
  };
}

function startBeside(directory: string, shared: SharedSqlite | undefined, errors: unknown[]): Workers {
  assert.ok(shared);
  const { file, commits } = shared;
  const flags = { data: directory, 'audit-log': 'off', metrics: 'off' };
  const config = readConfig({ flags, env: {}, platform: process.platform });
  return startWorkers({
    count: WORKERS - 1,
    data: {
      config,
      logLevel: 'error',
      shared: { file, commits },
      poolMax: 2,
      buckets: allocateBuckets(),
      threads: WORKERS,
    },
    log: createLog('error', { write: (line) => void errors.push(line) }),
    observation: { audit: () => undefined, renderMetrics: () => Promise.resolve('') },
    shared,
    onCommit: () => undefined,
  });
}

async function administrator(
  store: Store,
  keys: KeyRing,
  identity: Identity,
  account: string,
): Promise<Principal> {
  const made = await bootstrap({ store, keys, account, now: Date.now() });
  assert.ok(made);
  const found = await identity.findKey(made.adminKey.id, undefined);
  assert.ok(typeof found === 'object');
  return found.caller;
}

async function createRepository(
  store: Store,
  registry: Registry,
  name: string,
  values: Partial<Repository> = {},
): Promise<Repository> {
  const address = { account: ACCOUNT, region: REGION, name };
  const { tags, ...row } = values;
  await store.transact('repository.create', {
    repository: {
      ...address,
      id: randomUUID(),
      createdAt: Date.now(),
      mutability: 'MUTABLE',
      exclusionFilters: [],
      scanOnPush: false,
      encryptionType: 'AES256',
      kmsKey: undefined,
      contentKey: 'default',
      policy: undefined,
      ...row,
    },
    tags: [...(tags ?? [])].map(([key, value]) => ({ key, value })),
    repositoriesMax: 1000,
  });
  const repository = await registry.findRepository({ ...address, ...row });
  assert.ok(repository);
  return repository;
}

async function findLeftovers(
  store: Store,
  blobs: string,
): Promise<{ files: string[]; descriptors: string[] }> {
  const known = new Set<string>();
  for (const table of ['blob', 'upload', 'garbage_trash'] as const) {
    for (const row of await store.read.selectFrom(table).select('storage_key').execute())
      known.add(row.storage_key);
  }
  const entries = await readdir(blobs, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => entry.name);
  const open = await Promise.all(
    (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')),
  );
  return {
    files: files.filter((file) => ![...known].some((key) => file.includes(key))),
    descriptors: open.filter((path) => path.startsWith(blobs)),
  };
}

function exchange(port: number, agent: Agent, adminAuth: string, it: WireRequest): Promise<WireAnswer> {
  const headers: Record<string, string> = { Host: `localhost:${port}`, ...it.headers };
  if (it.auth !== null) headers['Authorization'] = it.auth ?? adminAuth;
  if (it.chunked === true) headers['Transfer-Encoding'] = 'chunked';
  else if (it.body !== undefined) headers['Content-Length'] ??= String(Buffer.byteLength(it.body));
  return new Promise((resolve, reject) => {
    const request = send(
      { port, host: '127.0.0.1', agent, method: it.method ?? 'GET', path: it.path, headers, setHost: false },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            bytes: Buffer.concat(chunks),
          }),
        );
      },
    );
    request.on('error', reject);
    request.end(it.body);
  });
}

/** What an answer has to be. A header that is `undefined` must be absent; unnamed headers may be anything. */
export interface Expected {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string | RegExp | undefined>>;
  readonly text?: string;
  readonly bytes?: Uint8Array;
  readonly json?: unknown;
  /** code and message of the one OCI error */
  readonly error?: readonly [code: string, message: string | RegExp];
}

/** Sends a request and checks its answer, with what every answer of the data plane must have. */
export async function check(
  server: WireServer,
  request: WireRequest,
  expected: Expected,
): Promise<WireAnswer> {
  const answer = await server.request(request);
  const text = answer.bytes.toString();
  assert.equal(answer.status, expected.status, text);
  assert.equal(answer.headers['docker-distribution-api-version'], 'registry/2.0');
  assert.equal(answer.headers['transfer-encoding'], undefined);
  const bodiless = answer.status === 204 || answer.status === 304;
  if (bodiless) assert.equal(answer.headers['content-length'], undefined);
  else if (request.method !== 'HEAD')
    assert.equal(answer.headers['content-length'], String(answer.bytes.length));
  else assert.match(answer.headers['content-length'] ?? '', /^\d+$/);
  for (const [name, value] of Object.entries(expected.headers ?? {})) {
    const actual = answer.headers[name.toLowerCase()];
    if (value instanceof RegExp) assert.match(String(actual), value, name);
    else assert.equal(actual, value, name);
  }
  if (request.method === 'HEAD' || bodiless) assert.equal(answer.bytes.length, 0);
  else checkBody(answer, text, expected);
  return answer;
}

function checkBody(answer: WireAnswer, text: string, expected: Expected): void {
  if (expected.text !== undefined) assert.equal(text, expected.text);
  if (expected.bytes !== undefined) assert.ok(answer.bytes.equals(expected.bytes));
  if (expected.json !== undefined) assert.deepEqual(JSON.parse(text), expected.json);
  if (expected.error === undefined) return;
  assert.equal(answer.headers['content-type'], 'application/json');
  const { errors } = JSON.parse(text) as { errors: { code: string; message: string }[] };
  const [code, message] = expected.error;
  assert.equal(errors.length, 1);
  assert.equal(errors[0]?.code, code);
  if (message instanceof RegExp) assert.match(errors[0].message, message);
  else assert.equal(errors[0].message, message);
}
