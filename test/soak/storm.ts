/**
 * Pushes, pulls, attachments, moves of tags, mounts and deletions by eight clients over HTTP, against a server that collects
 * garbage every second with no grace and a lease of seconds. No client may see a failure, and at the end every image that was
 * acknowledged and not deleted is there, whole, and nothing else is.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { openPostgresStore, openSqliteStore, type Store } from '../../src/store/store.ts';
import {
  basic,
  makePlace,
  ok,
  readAdmin,
  registryPassword,
  ROOT,
  startBerth,
  until,
  type BerthServer,
} from '../clients/harness.ts';
import { connect, createRandom } from '../crash/client.ts';
import { findPostgres, startPostgres } from '../postgres.ts';
import {
  createWorld,
  ecr,
  EXPIRING,
  pull,
  REPOSITORIES,
  takeStep,
  type Client,
  type World,
} from './world.ts';

const CLIENTS = 8;
const SLACK_MS = 60_000;
const QUIET =
  '--gc-interval-ms 100 --blob-lease-ms 0 --trash-grace-ms 0 --upload-idle-ms 0 --orphan-age-ms 0'.split(' ');

export interface Soak {
  readonly events: number;
  readonly seed: number;
  readonly database: 'sqlite' | 'postgres';
  readonly workers: number;
  /** the time a push has between its first look and its manifest; shorter than half of that makes pushes begin again */
  readonly leaseMs: number;
  readonly onProgress?: (events: number, world: World) => void;
}

export interface SoakReport {
  readonly seconds: number;
  readonly world: World;
  /** images that were there at the end */
  readonly images: number;
  /** stored copies left for them */
  readonly blobs: number;
}

/** @throws Error on the first thing a client should not have seen */
export async function soak(options: Soak): Promise<SoakReport> {
  const place = await makePlace('soak');
  const programs = options.database === 'postgres' ? await findPostgres() : undefined;
  assert.ok(options.database === 'sqlite' || programs !== undefined, 'there is no PostgreSQL here');
  const postgres = programs === undefined ? undefined : await startPostgres(programs);
  const environment = {
    ...place.environment,
    ...(postgres === undefined ? {} : { BERTH_DATABASE: postgres.url }),
  };
  const data = join(place.directory, 'data');
  const start = (...flags: string[]): Promise<BerthServer> =>
    startBerth({ data, environment, flags: [...flags, '--log-level', 'warn'] });
  const running: BerthServer[] = [];
  try {
    const server = await start(...timesOf(options));
    running.push(server);
    const { world, seconds } = await storm(server, options);
    await end(server);

    // Nothing is waited for any more: what is left without a reason goes at once.
    const quiet = await start(...QUIET);
    running.push(quiet);
    const openStore = (): Promise<Store> =>
      postgres === undefined
        ? openSqliteStore({ file: join(data, 'berth.db'), readOnly: true })
        : openPostgresStore({ url: postgres.url, poolMax: 2 });
    const blobs = await runDry(openStore, join(data, 'blobs'));
    await ok([process.execPath, join(ROOT, 'src', 'main.ts'), 'fsck', '--data', data], { environment });
    const images = await pullEverything(quiet, world);
    await end(quiet);
    return { seconds, world, images, blobs };
  } finally {
    for (const server of running) if (!server.hasExited()) await server.stop('SIGKILL');
    await postgres?.stop();
    await place.remove();
  }
}

/** It ends by itself and had nothing to complain of. */
async function end(server: BerthServer): Promise<void> {
  assert.equal(await server.stop(), 0, server.output());
  // A job that met others too often comes again; that is what jobs are for.
  const complaints = server.output().match(/^.*"level":[456]0.*$/gm) ?? [];
  assert.deepEqual(
    complaints.filter((line) => !line.includes('"msg":"job failed"')),
    [],
  );
}

function timesOf({ leaseMs, workers }: Soak): string[] {
  const times = `--gc-interval-ms 1000 --blob-lease-ms ${leaseMs} --trash-grace-ms 0`;
  // WHY a minute: an upload that goes on must not expire, and a file younger than that may be one that just begins.
  const slack = `--upload-idle-ms ${SLACK_MS} --orphan-age-ms ${SLACK_MS}`;
  return `${times} ${slack} --workers ${workers}`.split(' ');
}

async function storm(server: BerthServer, options: Soak): Promise<{ world: World; seconds: number }> {
  const { events, seed, leaseMs, onProgress } = options;
  const admin = await readAdmin(server.data);
  const authorization = basic(await registryPassword(server, admin));
  await settle(server, admin);
  const world = createWorld(leaseMs);
  const clients = Array.from({ length: CLIENTS }, (_, i): Client => ({
    name: `c${i}`,
    world,
    server,
    admin,
    connection: connect(server.port, authorization),
    random: createRandom(seed * CLIENTS + i),
    own: new Set(),
    pushes: 0,
  }));
  const started = performance.now();
  let begun = 0;
  let failure: unknown;
  const work = async (client: Client): Promise<void> => {
    while (begun < events && failure === undefined) {
      const event = ++begun;
      try {
        await takeStep(client);
      } catch (error) {
        failure ??= new Error(
          `event ${event} of ${client.name}, seed ${seed}: ${String(error)}\n${server.output()}`,
          {
            cause: error,
          },
        );
      }
      if (event % 1000 === 0) onProgress?.(event, world);
    }
  };
  try {
    await Promise.all(clients.map(work));
    if (failure !== undefined) throw failure;
    await pullEverything(server, world);
  } finally {
    for (const { connection } of clients) connection.close();
  }
  return { world, seconds: (performance.now() - started) / 1000 };
}

async function settle(server: BerthServer, admin: Client['admin']): Promise<void> {
  await ecr({ server, admin }, 'PutAccountSetting', { name: 'BLOB_MOUNTING', value: 'ENABLED' });
  for (const repositoryName of [...REPOSITORIES, EXPIRING]) {
    const key = repositoryName.endsWith('kms') ? { encryptionConfiguration: { encryptionType: 'KMS' } } : {};
    await ecr({ server, admin }, 'CreateRepository', { repositoryName, ...key });
  }
}

/** Every image that was acknowledged and not deleted, by digest and by its tags; no other tag is there. */
async function pullEverything(server: BerthServer, world: World): Promise<number> {
  const authorization = basic(await registryPassword(server, await readAdmin(server.data)));
  const connection = connect(server.port, authorization);
  try {
    for (const stored of world.stored)
      for (const reference of [stored.piece.digest, ...stored.tags])
        await pull({ connection }, stored, reference);
    for (const repository of REPOSITORIES) {
      const answer = await connection.send('GET', `/v2/${repository}/tags/list`);
      const { tags } = JSON.parse(answer.bytes.toString()) as { tags: string[] | null };
      const known = [...world.stored].filter((stored) => stored.repository === repository);
      assert.deepEqual(tags ?? [], known.flatMap((stored) => [...stored.tags]).sort());
    }
  } finally {
    connection.close();
  }
  return [...world.stored].filter(({ state }) => state === 'there').length;
}

/** Waits until garbage is gone: then the copies that images need, their rows and the files are the same in number. */
async function runDry(openStore: () => Promise<Store>, directory: string): Promise<number> {
  const store = await openStore();
  const counts = async (): Promise<Record<string, number>> => {
    const count = async (table: 'upload' | 'garbage_review' | 'garbage_trash' | 'blob'): Promise<number> => {
      const query = store.read.selectFrom(table).select((q) => q.fn.countAll<number | string>().as('n'));
      return Number((await query.executeTakeFirstOrThrow()).n);
    };
    const needed = await store.read
      .selectFrom('image_blob')
      .innerJoin('repository_blob', (join) =>
        join
          .onRef('repository_blob.repository_id', '=', 'image_blob.repository_id')
          .onRef('repository_blob.digest', '=', 'image_blob.blob_digest'),
      )
      .select((q) => q.fn.count<number | string>('repository_blob.storage_key').distinct().as('n'))
      .executeTakeFirstOrThrow();
    const entries = await readdir(directory, { recursive: true, withFileTypes: true });
    return {
      uploads: await count('upload'),
      reviews: await count('garbage_review'),
      trash: await count('garbage_trash'),
      unneeded: (await count('blob')) - Number(needed.n),
      unknown: entries.filter((entry) => entry.isFile()).length - Number(needed.n),
    };
  };
  try {
    let left = await counts();
    await until(
      'only what images need is left',
      async () => {
        left = await counts();
        return Object.values(left).every((count) => count === 0);
      },
      60_000,
    ).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(left)}`));
    const { n } = await store.read
      .selectFrom('blob')
      .select((q) => q.fn.countAll<number | string>().as('n'))
      .executeTakeFirstOrThrow();
    return Number(n);
  } finally {
    await store.close();
  }
}
