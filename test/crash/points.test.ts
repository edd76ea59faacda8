/**
 * kill -9 before or after every step: every write, sync and change of a directory entry, and every commit. What was not
 * synced is lost then, all of it or a part, as when the power fails, and the next life of the server must have kept its word.
 *
 * CRASHES is the number of crashes over both databases, with those of first-start.test.ts and crash.test.ts; CRASH_SEED what
 * chance hangs from.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  basic,
  makePlace,
  readAdmin,
  registryPassword,
  ROOT,
  run as runProgram,
  startBerth,
  until,
  type BerthServer,
  type Environment,
  type Place,
} from '../clients/harness.ts';
import { findPostgres, startPostgres } from '../postgres.ts';
import { connect, createRandom, Gone } from './client.ts';
import { layFaults, missingCompiler, type FaultLayer } from './faults.ts';
import { losePower, type Loss } from './power.ts';
import { createWorld, ecr, LEASE_MS, live, settle, verify, type Life, type World } from './world.ts';

const CRASHES = Number(process.env['CRASHES'] ?? 1000);
const SEED = Number(process.env['CRASH_SEED'] ?? 20_261_124);
/** Each database; a crash takes a second or two, on a busy machine more. */
const TIMEOUT_MS = Math.max(1_800_000, CRASHES * 3000);
/** Later than any grace: what a deleted repository had keeps the default one of two hours. */
const LATER_MS = 3 * 3_600_000;
/** Of so many crashes one is in the start of the server. */
const START_EVERY = 10;
const EVERYTHING_EVERY = 25;
const FSCK_EVERY = 100;

const TIMES = (
  `--gc-interval-ms 60 --blob-lease-ms ${LEASE_MS} --trash-grace-ms 200 ` +
  '--upload-idle-ms 60000 --orphan-age-ms 20000 --log-level warn'
).split(' ');
/** What is left without a reason goes at once. */
const QUIET = (
  '--gc-interval-ms 50 --blob-lease-ms 0 --trash-grace-ms 0 ' +
  '--upload-idle-ms 0 --orphan-age-ms 0 --log-level warn'
).split(' ');

interface Series {
  readonly data: string;
  readonly environment: Environment;
  readonly layer: FaultLayer;
  readonly random: () => number;
  readonly world: World;
  crashes: number;
  /** changes that were taken back */
  lost: number;
}

type LifeOf = (server: BerthServer, aheadMs?: number) => Life;

const postgres = await findPostgres();
const skip = missingCompiler || (postgres === undefined && 'not installed: postgresql');
const places: Place[] = [];

// WHY at once: each has a server that waits for it, and the machine has two cores.
describe('crash points', { skip, concurrency: true }, () => {
  let database: Awaited<ReturnType<typeof startPostgres>>;
  before(async () => {
    database = await startPostgres(postgres ?? '');
  });
  after(async () => {
    await database.stop();
    for (const place of places) await place.remove();
  });

  test('SQLite', { timeout: TIMEOUT_MS }, async () => {
    await crashEverywhere('sqlite', {}, Math.ceil(CRASHES * 0.44));
  });
  test('PostgreSQL', { timeout: TIMEOUT_MS }, async () => {
    await crashEverywhere('postgres', { BERTH_DATABASE: database.url }, Math.ceil(CRASHES * 0.44));
  });
});

async function openSeries(name: string, extra: Environment): Promise<Series> {
  const place = await makePlace(`points-${name}`);
  places.push(place);
  const data = join(place.directory, 'data');
  const layer = await layFaults(data);
  const environment = { ...place.environment, ...layer.environment, ...extra };
  return {
    data,
    environment,
    layer,
    random: createRandom(SEED),
    world: createWorld(),
    crashes: 0,
    lost: 0,
  };
}

function start(
  { data, environment }: Series,
  flags: readonly string[] = TIMES,
  aheadMs = 0,
): Promise<BerthServer> {
  return startBerth({ data, environment, flags, aheadMs });
}

async function crashEverywhere(name: string, extra: Environment, crashes: number): Promise<void> {
  const series = await openSeries(name, extra);
  const { layer, world } = series;
  const first = await start(series);
  const admin = await readAdmin(series.data);
  const authorization = basic(await registryPassword(first, admin));
  const lifeOf: LifeOf = (server, aheadMs = 0) => ({
    server,
    admin,
    world,
    aheadMs,
    connection: connect(server.port, authorization),
  });
  try {
    const life = lifeOf(first);
    await settle(life);
    layer.arm(undefined);
    await live(life);
    life.connection.close();
    assert.equal(await first.stop(), 0, first.output());
  } finally {
    await first.stop('SIGKILL');
  }
  // the first life and its orderly end, which nothing disturbed, say how many steps there are
  const steps = layer.steps();
  assert.ok(steps > 100, `only ${steps} steps: the layer sees too little`);
  losePower(series.data, layer.area, 'nothing', series.random);

  let starts = 0;
  for (let number = 0; series.crashes < crashes; number++) {
    assert.ok(number < crashes * 2 + 20, `${series.crashes} crashes in ${number} lives`);
    if (number % START_EVERY === START_EVERY - 1) await dieAtStart(series, ++starts);
    else await liveAndDie(series, lifeOf, 1 + Math.floor(((number * steps) / crashes) % steps), number);
  }
  await collect(series, lifeOf);
  await layer.remove();
  process.stderr.write(
    `${name}: ${series.crashes} crashes over ${steps} steps, ${series.lost} changes taken back\n`,
  );
}

function lose(series: Series): void {
  const { data, layer, random } = series;
  series.crashes += 1;
  const losses: readonly Loss[] = ['everything', 'something', 'everything', 'something', 'nothing'];
  const loss = losses[series.crashes % losses.length] ?? 'everything';
  series.lost += losePower(data, layer.area, loss, random);
}

/** Comes back, keeps its word, works, and dies before or after a step. */
async function liveAndDie(series: Series, lifeOf: LifeOf, step: number, number: number): Promise<void> {
  const { layer, world, environment, data } = series;
  layer.arm(undefined);
  const server = await start(series);
  const life = lifeOf(server);
  const where = `crash ${series.crashes}, step ${step} of life ${world.life}`;
  try {
    await verify(life, number % EVERYTHING_EVERY === 0);
    if (number % FSCK_EVERY === FSCK_EVERY / 2) await checkFiles(data, environment);
    world.life += 1;
    layer.arm(step, number % 2 === 0 ? 'before' : 'after');
    await live(life);
    // it came to its end alive; its orderly end has steps too
    await server.stop();
  } catch (error) {
    if (!(error instanceof Gone)) {
      throw new Error(`${where}: ${String(error)}\n${server.output()}`, { cause: error });
    }
  } finally {
    life.connection.close();
    // what failed before its step
    if (layer.steps() < step) await server.stop('SIGKILL');
  }
  const code = await server.exited;
  assert.doesNotMatch(server.output(), /"level":[56]0/, where);
  if (code === 'SIGKILL') lose(series);
  else assert.equal(code, 0, `${where}:\n${server.output()}`);
}

/** Dies while it starts, or at its orderly end when its start has fewer steps. */
async function dieAtStart(series: Series, step: number): Promise<void> {
  const { layer } = series;
  layer.arm(step, step % 2 === 0 ? 'before' : 'after');
  const server = await start(series).catch((error: unknown) => {
    assert.match(String(error), /ended with SIGKILL/);
  });
  // WHY it stays armed: garbage is collected from the first moment on, so the step may be anywhere after a start
  const code = server === undefined ? 'SIGKILL' : await server.stop();
  if (code !== 'SIGKILL') return assert.equal(code, 0, server?.output() ?? '');
  assert.ok(layer.steps() >= step, `${layer.steps()} steps, killed at ${step}\n${server?.output()}`);
  lose(series);
}

async function checkFiles(data: string, environment: Environment): Promise<void> {
  const { LD_PRELOAD: _, ...plain } = environment;
  const command = [process.execPath, join(ROOT, 'src', 'main.ts'), 'fsck', '--data', data, '--json'];
  const { code, stdout, stderr } = await runProgram(command, { environment: plain });
  assert.ok(code === 0 || code === 1, `fsck: ${code}\n${stdout}${stderr}`);
}

/** Much later, with nothing to wait for: only what images need is left, and it is whole. */
async function collect(series: Series, lifeOf: LifeOf): Promise<void> {
  const { data, layer, environment } = series;
  layer.arm(undefined);
  const server = await start(series, QUIET, LATER_MS);
  const life = lifeOf(server, LATER_MS);
  try {
    // no lease is left
    for (const blob of life.world.blobs.values()) blob.storedAt = undefined;
    await verify(life, true);
    await checkFiles(data, environment);
    const needed = await listContent(life);
    let files: string[] = [];
    await until(
      'only files that images refer to are left',
      async () => {
        const entries = await readdir(join(data, 'blobs'), { recursive: true, withFileTypes: true });
        files = entries.filter((entry) => entry.isFile()).map((entry) => entry.name);
        return files.length <= needed;
      },
      60_000,
    ).catch((error: unknown) =>
      assert.fail(`${String(error)}: ${files.length} for ${needed}: ${files.sort().join(' ')}`),
    );
    assert.equal(files.length, needed);
    await verify(life, true);
    assert.equal(await server.stop(), 0);
  } finally {
    life.connection.close();
    await server.stop('SIGKILL');
  }
}

/** The number of different blobs all images have, by key: content is shared only under the same one. */
async function listContent(life: Life): Promise<number> {
  const { repositories } = (await ecr(life, 'DescribeRepositories', {})) as {
    repositories: { repositoryName: string; encryptionConfiguration: { encryptionType: string } }[];
  };
  const content = new Set<string>();
  for (const { repositoryName, encryptionConfiguration } of repositories) {
    const { imageIds } = (await ecr(life, 'ListImages', { repositoryName, maxResults: 1000 })) as {
      imageIds: { imageDigest: string }[];
    };
    for (const { imageDigest } of imageIds) {
      const path = `/v2/${repositoryName}/manifests/${imageDigest}`;
      const answer = await life.connection.send('GET', path);
      assert.equal(answer.status, 200, path);
      const manifest = JSON.parse(answer.bytes.toString()) as {
        config?: { digest: string };
        layers?: { digest: string }[];
      };
      for (const part of [manifest.config, ...(manifest.layers ?? [])])
        if (part !== undefined) content.add(`${encryptionConfiguration.encryptionType} ${part.digest}`);
    }
  }
  return content.size;
}
