/**
 * kill -9 at random moments of concurrent pushes and deletes, then a restart on the same data. What got a 201 pulls back
 * byte for byte, nothing half-written is visible, and collection leaves exactly the files that images refer to.
 *
 * The moments come from a seed: CRASH_SEED and the number of crashes CRASHES repeat a run (as far as timing allows).
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { findPostgres, startPostgres } from '../postgres.ts';
import {
  basic,
  callEcr,
  createRepository,
  makePlace,
  readAdmin,
  registryPassword,
  startBerth,
  until,
  type BerthServer,
  type Environment,
} from '../clients/harness.ts';
import {
  connect,
  createMemory,
  createRandom,
  Gone,
  pull,
  pullBlob,
  REPOSITORY_NAME,
  V2,
  work,
  type Connection,
  type Memory,
} from './client.ts';

/** A part of CRASHES (points.test.ts): at random moments, under concurrent clients. */
const CRASHES = Math.ceil(Number(process.env['CRASHES'] ?? 1000) * 0.045);
const SEED = Number(process.env['CRASH_SEED'] ?? 20_261_124);
const WORKERS = 4;
/** A life ends after a random number of answers. */
const ANSWERS_MAX = 150;
const LIFE_MS_MAX = 10_000;
/** Every so many restarts everything is checked; in between, some. */
const FULL_CHECK_EVERY = 30;
const LANES = 8;

/** Collection runs all the time, with short leases, so that kills meet it. */
const BUSY = {
  'gc-interval-ms': 100,
  'upload-idle-ms': 5000,
  'blob-lease-ms': 4000,
  'trash-grace-ms': 500,
  'orphan-age-ms': 10_000,
};
const HOUR_MS = 3_600_000;
/** What is left without a reason goes at once. */
const QUIET = {
  'gc-interval-ms': 50,
  'upload-idle-ms': 0,
  'blob-lease-ms': 0,
  'trash-grace-ms': 0,
  'orphan-age-ms': 0,
};

interface Run {
  readonly data: string;
  readonly environment: Environment;
  readonly memory: Memory;
  readonly random: () => number;
}

function start(
  { data, environment }: Run,
  times: Readonly<Record<string, number>>,
  aheadMs = 0,
): Promise<BerthServer> {
  const flags = Object.entries(times).flatMap(([name, value]) => [`--${name}`, String(value)]);
  return startBerth({ data, environment, aheadMs, flags: [...flags, '--log-level', 'warn'] });
}

const postgres = await findPostgres();

describe('kill -9', () => {
  test(`SQLite: ${CRASHES} crashes`, async () => {
    await crashAndCheck('sqlite', CRASHES, {});
  });

  test(
    `PostgreSQL: ${Math.ceil(CRASHES / 3)} crashes`,
    {
      skip: postgres === undefined && 'not installed: postgresql',
    },
    async () => {
      const database = await startPostgres(postgres ?? '');
      try {
        await crashAndCheck('postgres', Math.ceil(CRASHES / 3), { BERTH_DATABASE: database.url });
      } finally {
        await database.stop();
      }
    },
  );
});

async function crashAndCheck(name: string, crashes: number, extra: Environment): Promise<void> {
  const place = await makePlace(`crash-${name}`);
  // WHY a compile cache: it halves the time to start, which is most of the time this takes
  const cache = join(place.directory, 'compile-cache');
  const run: Run = {
    data: join(place.directory, 'data'),
    environment: { ...place.environment, NODE_COMPILE_CACHE: cache, ...extra },
    memory: createMemory(),
    random: createRandom(SEED),
  };
  try {
    const first = await start(run, BUSY);
    const admin = await readAdmin(run.data);
    await createRepository(first, admin, REPOSITORY_NAME);
    const authorization = basic(await registryPassword(first, admin));
    await first.stop();

    for (let crash = 1; crash <= crashes; crash++) await liveAndDie(run, authorization, crash);
    const { promised, refusals } = run.memory;
    assert.ok(promised.size >= crashes / 4, `only ${promised.size} pushes got through, ${refusals} did not`);

    await collect(run, admin, authorization);
  } finally {
    await place.remove();
  }
}

/** One life of the server: some checks of what earlier lives promised, pushes, and a kill in the middle of them. */
async function liveAndDie(run: Run, authorization: string, crash: number): Promise<void> {
  const { memory, random } = run;
  const server = await start(run, BUSY);
  const connection = connect(server.port, authorization);
  try {
    if (crash % FULL_CHECK_EVERY === 0) await checkAll(connection, memory);
    else await checkSome(connection, memory, random);
    const lives = Array.from({ length: WORKERS }, (_, i) =>
      work(connection, memory, `w${i} ${crash}`, createRandom(SEED + crash * WORKERS + i)),
    );
    const outcomes = Promise.allSettled(lives);
    // WHY answers, not only milliseconds: a slow machine must get as far in a life as a fast one
    await connection.answers(1 + Math.floor(random() * ANSWERS_MAX), LIFE_MS_MAX);
    await delay(random() * 10);
    await server.stop('SIGKILL');
    for (const outcome of await outcomes) {
      if (outcome.status === 'rejected' && !(outcome.reason instanceof Gone)) throw outcome.reason;
    }
    assert.doesNotMatch(server.output(), /"level":[56]0/);
  } finally {
    connection.close();
    await server.stop('SIGKILL');
  }
}

async function checkSome(connection: Connection, memory: Memory, random: () => number): Promise<void> {
  const digests = [...memory.promised.keys()];
  const recent = digests.slice(-3);
  const chosen = digests[Math.floor(random() * digests.length)];
  for (const digest of chosen === undefined ? recent : [...recent, chosen])
    await pull(connection, memory, digest);
}

/** Everything promised is there; everything that is there is whole. */
async function checkAll(connection: Connection, memory: Memory): Promise<void> {
  await inLanes(memory.promised.keys(), (digest) => pull(connection, memory, digest));
  const listed = await connection.send('GET', `${V2}/tags/list`);
  assert.equal(listed.status, 200);
  const { tags } = JSON.parse(listed.bytes.toString()) as { tags: string[] | null };
  const present = new Set(tags);
  for (const [tag, possible] of memory.tags) {
    const answer = await connection.send('HEAD', `${V2}/manifests/${tag}`);
    const digest = answer.status === 200 ? String(answer.headers['docker-content-digest']) : undefined;
    assert.equal(digest !== undefined, present.has(tag), `tags/list and the tag ${tag} differ`);
    assert.ok(
      possible.has(digest),
      `${tag} is ${digest}, but may only be one of ${[...possible].join(', ')}`,
    );
    if (digest !== undefined) await pull(connection, memory, digest);
    // what it is now is what it stays until the next push
    memory.tags.set(tag, new Set([digest]));
  }
  await inLanes(memory.sent.keys(), async (digest) => {
    const { status } = await connection.send('HEAD', `${V2}/blobs/${digest}`);
    if (status === 200) await pullBlob(connection, memory, digest);
    else assert.equal(status, 404);
  });
}

/** Several at a time, each value once. */
async function inLanes(values: Iterable<string>, act: (value: string) => Promise<unknown>): Promise<void> {
  const rest = values[Symbol.iterator]();
  const lane = async (): Promise<void> => {
    for (let next = rest.next(); next.done !== true; next = rest.next()) await act(next.value);
  };
  await Promise.all(Array.from({ length: LANES }, lane));
}

async function collect(run: Run, admin: Credentials, authorization: string): Promise<void> {
  const { memory } = run;
  // what processes that died had taken in hand is free again later: an hour later all of it
  const server = await start(run, QUIET, HOUR_MS);
  const connection = connect(server.port, authorization);
  try {
    await inLanes(memory.promised.keys(), (digest) => pull(connection, memory, digest));
    const referred = new Set<string>();
    await inLanes(await listImages(server, admin), async (digest) => {
      for (const blob of await pull(connection, memory, digest)) referred.add(blob);
    });
    const blobs = join(run.data, 'blobs');
    let files: string[] = [];
    await until(
      'only files that images refer to are left',
      async () => {
        const entries = await readdir(blobs, { recursive: true, withFileTypes: true });
        files = entries.filter((entry) => entry.isFile()).map(({ name }) => name);
        return files.length <= referred.size;
      },
      60_000,
    ).catch((error: unknown) => {
      assert.fail(`${String(error)}: ${files.length} files for ${referred.size} blobs`);
    });
    assert.equal(files.length, referred.size);
    await inLanes(memory.promised.keys(), (digest) => pull(connection, memory, digest));
  } finally {
    connection.close();
  }
  assert.equal(await server.stop(), 0);
}

/** The digests of all images, by the ECR API. */
async function listImages(server: BerthServer, admin: Credentials): Promise<Set<string>> {
  const digests = new Set<string>();
  let nextToken: string | undefined;
  do {
    const input = { repositoryName: REPOSITORY_NAME, maxResults: 1000, nextToken };
    const { status, text } = await callEcr(server, admin, 'ListImages', input, Date.now() + HOUR_MS);
    assert.equal(status, 200, text);
    const page = JSON.parse(text) as { imageIds: { imageDigest: string }[]; nextToken?: string };
    for (const { imageDigest } of page.imageIds) digests.add(imageDigest);
    nextToken = page.nextToken;
  } while (nextToken !== undefined);
  return digests;
}
