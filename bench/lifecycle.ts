/**
 * Lifecycle runs over one large repository: how long a preview and a run take, how long they hold up everything else on the
 * thread, and how much memory they need. Results are in docs/performance.md.
 *
 *   node bin/run.js [--expose-gc] bench/lifecycle.ts [images] [sqlite|postgres]
 */
import { createHash, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { createLifecycleHandlers } from '../src/registry/registry.ts';
import { findPreview, openPostgresStore, openSqliteStore, type Store } from '../src/store/store.ts';
import { findPostgres, startPostgres } from '../test/postgres.ts';

const IMAGES = Number(process.argv[2] ?? 100_000);
const ENGINE = process.argv[3] ?? 'sqlite';
/** Writers of one repository stand in each other's way on PostgreSQL. */
const RIVALS = ENGINE === 'sqlite' ? 64 : 1;
const repository = { id: randomUUID(), account: '000000000000', region: 'us-east-1', name: 'team/app' };

/** Every image has two tags, `v<number>` and one of 60 branches. */
async function pushImages(store: Store): Promise<void> {
  await store.transact('repository.create', {
    repository: {
      ...repository,
      createdAt: Date.now(),
      mutability: 'MUTABLE',
      exclusionFilters: [],
      scanOnPush: false,
      encryptionType: 'AES256',
      kmsKey: undefined,
      contentKey: 'default',
      policy: undefined,
    },
    tags: [],
    repositoriesMax: 10,
  });
  let next = 0;
  const push = async (): Promise<void> => {
    for (let i = next++; i < IMAGES; i = next++) {
      const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, config: 'x'.repeat(900), i }));
      await store.transact('image.put', {
        repository,
        digest: `sha256:${createHash('sha256').update(manifest).digest('hex')}`,
        alias: undefined,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        artifactType: undefined,
        subjectDigest: undefined,
        manifest: new Uint8Array(manifest),
        contentSize: 0,
        blobs: [],
        children: [],
        tags: [`v${i}`, `x-branch${i % 60}-${i}`],
        existing: 'accept',
        now: Date.now(),
        nonce: randomUUID().replaceAll('-', ''),
        tagsPerImageMax: 1000,
        imagesMax: undefined,
      });
    }
  };
  await Promise.all(Array.from({ length: RIVALS }, push));
}

/** 49 rules keep 100 images of a branch each, the last one keeps 1000 of all. */
function policy(): string {
  const limit = (pattern: string | undefined, countNumber: number, rulePriority: number) => ({
    rulePriority,
    selection: {
      ...(pattern === undefined ? { tagStatus: 'any' } : { tagStatus: 'tagged', tagPatternList: [pattern] }),
      countType: 'imageCountMoreThan',
      countNumber,
    },
    action: { type: 'expire' },
  });
  const branches = Array.from({ length: 49 }, (_, i) => limit(`*-branch${i}-*`, 100, i + 1));
  return JSON.stringify({ rules: [...branches, limit(undefined, 1000, 50)] });
}

/**
 * Resident memory in MiB: that of the process, and the pages of files it has mapped. The latter are SQLite's database, in the
 * mapping of each of its two connections; the kernel takes them back when it needs them.
 */
function resident(): { readonly own: number; readonly mapped: number } {
  const status = readFileSync('/proc/self/status', 'utf8');
  const mib = (name: string): number =>
    Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1] ?? Number.NaN) / 1024;
  return { own: mib('RssAnon'), mapped: mib('RssFile') };
}

async function measure<T>(name: string, work: () => Promise<T>): Promise<T> {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const peak = { own: 0, mapped: 0 };
  const sampling = setInterval(() => {
    const { own, mapped } = resident();
    peak.own = Math.max(peak.own, own);
    peak.mapped = Math.max(peak.mapped, mapped);
  }, 20);
  const started = performance.now();
  const cpu = process.cpuUsage();
  const result = await work();
  const { user, system } = process.cpuUsage(cpu);
  const seconds = (performance.now() - started) / 1000;
  clearInterval(sampling);
  delay.disable();
  process.stdout.write(
    `${name}: ${seconds.toFixed(1)} s, CPU ${((user + system) / 1e6).toFixed(1)} s, event loop p99 ` +
      `${(delay.percentile(99) / 1e6).toFixed(1)} ms, longest ${(delay.max / 1e6).toFixed(0)} ms, memory at most ${peak.own.toFixed(0)} MiB ` +
      `and ${peak.mapped.toFixed(0)} MiB of mapped files\n`,
  );
  return result;
}

/** Runs the job of a kind until it is done for today. Returns how often. */
async function runJob(store: Store, kind: string): Promise<number> {
  const handlers = createLifecycleHandlers({ store, clock: Date.now, flush: () => Promise.resolve() });
  for (let runs = 1; ; runs++) {
    const job = { key: repository.id, payload: null, attempts: 1, signal: new AbortController().signal };
    const result = await handlers[kind]?.run(job);
    if (result === undefined || result.again > Date.now() + 60_000) return runs;
  }
}

async function bench(store: Store): Promise<void> {
  const { read } = store;
  await measure(`${IMAGES} pushes`, () => pushImages(store));
  globalThis.gc?.();
  const { own, mapped } = resident();
  process.stdout.write(`before: ${own.toFixed(0)} MiB and ${mapped.toFixed(0)} MiB of mapped files\n`);
  const now = Date.now();
  await store.transact('lifecycle.startPreview', {
    address: repository,
    policy: policy(),
    preview: randomUUID(),
    now,
  });
  await measure('preview', () => runJob(store, 'lifecycle.preview'));
  const preview = await findPreview(read, repository.id, now);
  process.stdout.write(`preview: ${preview?.status}, ${preview?.expiring} images would expire\n`);
  await store.transact('lifecycle.put', { address: repository, policy: policy(), now });
  const runs = await measure('run', () => runJob(store, 'lifecycle'));
  const { left } = await read
    .selectFrom('image')
    .select((q) => q.fn.countAll<number | string>().as('left'))
    .executeTakeFirstOrThrow();
  process.stdout.write(`run: in ${runs} rounds, ${left} images left\n`);
  await measure('run with nothing to expire', () => runJob(store, 'lifecycle'));
}

const directory = await mkdtemp(join(tmpdir(), 'berth-bench-'));
const programs = ENGINE === 'postgres' ? await findPostgres() : undefined;
const server = programs === undefined ? undefined : await startPostgres(programs);
const store =
  server === undefined
    ? await openSqliteStore({ file: join(directory, 'berth.db') })
    : await openPostgresStore({ url: server.url });
try {
  await bench(store);
} finally {
  await store.close();
  await server?.stop();
  await rm(directory, { recursive: true });
}
