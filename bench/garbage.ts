// What garbage costs by the size of the store: the same 10,000 images are deleted and collected among 100,000 and among
// 1,000,000 blobs. Every image has a configuration and a layer of its own and a layer of a hundred images. The blobs that are
// to go have files; the others are rows only, which nothing here opens. Orphans are not looked for (that lists all files).
// Usage: node bin/run.js bench/garbage.ts [sqlite|postgres] [blobs,blobs,...] [deleted images]
// Exits with 1 when the CPU time at the largest size is more than 1.5 times that at the smallest.
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from 'pg';
import { createFileBlobStore } from '../src/blobs/blobs.ts';
import { openKeyRing } from '../src/lib/keyring.ts';
import { createRegistry, type Registry, type Repository } from '../src/registry/registry.ts';
import { openPostgresStore, openSqliteStore, type Store } from '../src/store/store.ts';
import {
  BIG,
  digestOf,
  fillGarbagePostgres,
  fillGarbageSqlite,
  OWN_BLOBS,
  REGISTRY,
  storageKeyOf,
} from '../test/fill.ts';
import { findPostgres, startPostgres } from '../test/postgres.ts';

const RATIO_MAX = 1.5;
/** ids of one BatchDeleteImage */
const DELETED_AT_ONCE = 100;
const engines = process.argv[2] === undefined ? ['sqlite', 'postgres'] : [process.argv[2]];
const sizes = (process.argv[3] ?? '100000,1000000').split(',').map(Number);
const deleted = Number(process.argv[4] ?? 10_000);

interface Cost {
  readonly seconds: number;
  /** of this process with all its threads, and of the database's, where that is another */
  readonly cpuSeconds: number;
  /** rows and index entries the database read, where it counts them */
  readonly read: number | undefined;
}

interface Meter {
  cpuMs(): Promise<number>;
  rowsRead(): Promise<number | undefined>;
}

async function measure<T>(meter: Meter, work: () => Promise<T>): Promise<readonly [T, Cost]> {
  const before = [await meter.cpuMs(), (await meter.rowsRead()) ?? 0] as const;
  const started = performance.now();
  const result = await work();
  const seconds = (performance.now() - started) / 1000;
  const cpuSeconds = ((await meter.cpuMs()) - before[0]) / 1000;
  const rows = await meter.rowsRead();
  return [result, { seconds, cpuSeconds, read: rows === undefined ? undefined : rows - before[1] }];
}

/** The deleted images are spread evenly over all, as their digests and their pushes are. */
async function deleteImages(registry: Registry, repository: Repository, images: number): Promise<void> {
  const step = images / deleted;
  for (let at = 0; at < deleted; at += DELETED_AT_ONCE) {
    const ids = Array.from({ length: Math.min(DELETED_AT_ONCE, deleted - at) }, (_, i) => ({
      imageDigest: digestOf(Math.floor((at + i) * step)),
    }));
    const { failures } = await registry.images.batchDelete(repository, ids);
    if (failures.length > 0) throw new Error(JSON.stringify(failures[0]));
  }
}

async function writeFiles(directory: string, images: number): Promise<void> {
  const step = images / deleted;
  const known = new Set<string>();
  for (let i = 0; i < deleted; i++) {
    for (let own = 0; own < OWN_BLOBS; own++) {
      const key = storageKeyOf(Math.floor(i * step), own);
      const folder = join(directory, key.slice(-1), key.slice(-2, -1));
      if (!known.has(folder)) await mkdir(folder, { recursive: true });
      known.add(folder);
      await writeFile(join(folder, key), 'bytes');
    }
  }
}

async function run(store: Store, directory: string, meter: Meter, blobs: number): Promise<number> {
  const images = blobs / OWN_BLOBS;
  const ring = await openKeyRing(join(directory, 'keys'));
  const files = await createFileBlobStore({ directory: join(directory, 'blobs'), keys: ring });
  await writeFiles(join(directory, 'blobs'), images);
  let now = Date.now();
  const registry = createRegistry({ store, blobs: files, ring, clock: () => now });
  try {
    const repository = await registry.findRepository({ ...REGISTRY, name: BIG });
    if (repository === undefined) throw new Error('the filled database has no repository');
    const [, deletion] = await measure(meter, () => deleteImages(registry, repository, images));
    const [first, review] = await measure(meter, () => registry.collectGarbage({ orphans: false }));
    now += 24 * 3_600_000;
    const [last, emptying] = await measure(meter, () => registry.collectGarbage({ orphans: false }));
    const left = await readdir(join(directory, 'blobs'), { recursive: true, withFileTypes: true });
    const gone = deleted * OWN_BLOBS;
    if (first.blobsUnlinked !== gone || last.filesDeleted !== gone || left.some((it) => it.isFile()))
      throw new Error(`not all was collected: ${JSON.stringify([first, last])}`);
    const cells = [deletion, review, emptying].map(
      ({ seconds, cpuSeconds, read }) =>
        `${seconds.toFixed(1)} s, ${cpuSeconds.toFixed(1)} s CPU${read === undefined ? '' : `, ${(read / deleted).toFixed(1)} rows`}`,
    );
    process.stdout.write(`| ${store.engine} | ${blobs.toLocaleString('en')} | ${cells.join(' | ')} |\n`);
    return deletion.cpuSeconds + review.cpuSeconds + emptying.cpuSeconds;
  } finally {
    await registry.close();
    await files.close();
  }
}

function ownCpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

async function onSqlite(blobs: number, directory: string): Promise<number> {
  const file = join(directory, 'berth.db');
  await (await openSqliteStore({ file })).close();
  fillGarbageSqlite(file, blobs);
  const store = await openSqliteStore({ file });
  const meter = { cpuMs: () => Promise.resolve(ownCpuMs()), rowsRead: () => Promise.resolve(undefined) };
  try {
    return await run(store, directory, meter, blobs);
  } finally {
    await store.close();
  }
}

async function onPostgres(blobs: number, directory: string): Promise<number> {
  const bin = await findPostgres();
  if (bin === undefined) throw new Error('no PostgreSQL: initdb and pg_ctl not found');
  const server = await startPostgres(bin);
  try {
    await (await openPostgresStore({ url: server.url })).close();
    await fillGarbagePostgres(server.url, blobs);
    const store = await openPostgresStore({ url: server.url });
    const client = new Client({ connectionString: server.url });
    await client.connect();
    const meter: Meter = {
      cpuMs: () => Promise.resolve(ownCpuMs()),
      async rowsRead() {
        // Connections tell what they did when they have been idle for a while.
        await new Promise((resolve) => setTimeout(resolve, 1500));
        const { rows } = await client.query<{ n: string }>(
          'select sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) as n from pg_stat_user_tables',
        );
        return Number(rows[0]?.n);
      },
    };
    try {
      return await run(store, directory, meter, blobs);
    } finally {
      await client.end();
      await store.close();
    }
  } finally {
    await server.stop();
  }
}

process.stdout.write(
  `${deleted} images deleted and collected, ${deleted * OWN_BLOBS} blobs; rows are those read for each image\n\n` +
    '| database | blobs | delete the images | collect: rows | collect: files |\n|---|---|---|---|---|\n',
);
for (const engine of engines) {
  const costs: number[] = [];
  for (const blobs of sizes) {
    const directory = await mkdtemp(join(tmpdir(), 'berth-garbage-'));
    try {
      costs.push(await (engine === 'sqlite' ? onSqlite : onPostgres)(blobs, directory));
    } finally {
      await rm(directory, { recursive: true });
    }
  }
  if ((costs.at(-1) ?? 0) > RATIO_MAX * (costs[0] ?? 0)) process.exitCode = 1;
}
