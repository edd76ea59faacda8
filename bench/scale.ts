// The cost of a page by where it lies: first, middle and last page of the listings of a large registry, on each database there is.
// Usage: node bin/run.js bench/scale.ts [repositories] [images] [rounds] [listing]
// Exits with 1 when the 99th percentile of a middle or last page is more than 1.5 times that of the first.
import { mkdtemp, rm } from 'node:fs/promises';
import { performance, PerformanceObserver } from 'node:perf_hooks';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  openPostgresStore,
  openSqliteStore,
  pageEntries,
  pageImages,
  pageRepositories,
  pageTags,
  tagsOfImages,
  type Reader,
  type Store,
} from '../src/store/store.ts';
import {
  BIG,
  digestOf,
  fillPostgres,
  fillSqlite,
  PUSHED_AT,
  REGISTRY,
  repositoryOf,
  tagOf,
} from '../test/fill.ts';
import { findPostgres, startPostgres } from '../test/postgres.ts';

const RATIO_MAX = 1.5;
const PAGE = 100;
const REPETITIONS = 5;

const [repositories = 100_000, images = 1_000_000, rounds = 1000] = process.argv.slice(2, 5).map(Number);
const only = process.argv[5];

/** A page of a listing that starts behind the entry number `i`, counted as the listing orders them; the first without. */
type Listing = (read: Reader, i: number | undefined) => Promise<unknown>;

/** Newest first: entry number `i` is the image pushed as number `images - 1 - i`. */
const imageAt = (i: number) => ({ pushedAt: PUSHED_AT + images - 1 - i, digest: digestOf(images - 1 - i) });
const names = Array.from({ length: repositories }, (_, i) => repositoryOf(i)).sort();

const LISTINGS: readonly (readonly [name: string, entries: number, listing: Listing])[] = [
  [
    'DescribeRepositories',
    repositories,
    (read, i) => pageRepositories(read, REGISTRY, i === undefined ? undefined : names[i], PAGE + 1),
  ],
  [
    'DescribeImages',
    images,
    async (read, i) => {
      const after = i === undefined ? undefined : imageAt(i);
      const page = await pageImages(read, BIG, { after, tagged: undefined, status: 'ACTIVE', limit: PAGE });
      const digests = page.images.map(({ digest }) => digest);
      return await tagsOfImages(read, BIG, digests);
    },
  ],
  [
    'ListImages',
    images,
    (read, i) =>
      pageEntries(read, BIG, i === undefined ? undefined : { ...imageAt(i), tag: undefined }, PAGE, 'ACTIVE'),
  ],
  [
    'tags/list',
    images,
    (read, i) => pageTags(read, BIG, i === undefined ? undefined : tagOf(i), PAGE, 'ACTIVE'),
  ],
];

function percentile(sorted: readonly number[], of: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * of))] ?? NaN;
}

interface Times {
  readonly median: number;
  readonly p99: number;
  /** pages left out, because a garbage collection fell into them */
  readonly collected: number;
}

/** How much of the measured time went into collections of this process' own garbage. */
const collections: { readonly start: number; readonly end: number }[] = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries())
    collections.push({ start: startTime, end: startTime + duration });
}).observe({ entryTypes: ['gc'] });

/**
 * The pages at each place, in turn, so that what else the machine does hits all alike. Of several repetitions the lowest
 * figures count: what other processes add is not the page's.
 */
async function measure(read: Reader, entries: number, listing: Listing): Promise<Times[]> {
  const runs: Times[][] = [];
  for (let i = 0; i < REPETITIONS; i++) runs.push(await measureOnce(read, entries, listing));
  return [0, 1, 2].map((place) => ({
    median: Math.min(...runs.map((run) => run[place]?.median ?? NaN)),
    p99: Math.min(...runs.map((run) => run[place]?.p99 ?? NaN)),
    collected: runs.reduce((sum, run) => sum + (run[place]?.collected ?? 0), 0),
  }));
}

/**
 * WHY pages that a garbage collection fell into are counted and left out: a page allocates what it allocates wherever it
 * lies, so collections come at a fixed number of pages, about one in a hundred, and hit the same of three places again and
 * again. The 99th percentile then tells which place was hit.
 */
async function measureOnce(read: Reader, entries: number, listing: Listing): Promise<Times[]> {
  const places = [undefined, Math.floor(entries / 2), entries - PAGE - 1];
  const spans = places.map((): { readonly start: number; readonly end: number }[] => []);
  for (let round = -20; round < rounds; round++) {
    // Every order of the places, one after the other.
    const order = ORDERS[(round + ORDERS.length * 20) % ORDERS.length] ?? [];
    for (const at of order) {
      const start = performance.now();
      await listing(read, places[at]);
      if (round >= 0) spans[at]?.push({ start, end: performance.now() });
    }
  }
  // The observer hears of collections in a later turn.
  await delay(20);
  return spans.map((list) => {
    const clean = list.filter(
      ({ start, end }) => !collections.some((it) => it.start < end && it.end > start),
    );
    const times = clean.map(({ start, end }) => end - start).sort((a, b) => a - b);
    return {
      median: percentile(times, 0.5),
      p99: percentile(times, 0.99),
      collected: list.length - clean.length,
    };
  });
}

const ORDERS = [
  [0, 1, 2],
  [1, 2, 0],
  [2, 0, 1],
  [0, 2, 1],
  [2, 1, 0],
  [1, 0, 2],
];

async function report(store: Store): Promise<boolean> {
  let good = true;
  for (const [name, entries, listing] of LISTINGS) {
    if (only !== undefined && name !== only) continue;
    collections.length = 0;
    const times = await measure(store.read, entries, listing);
    const worst = Math.max(...times.map(({ p99 }) => p99)) / (times[0]?.p99 ?? NaN);
    good &&= worst <= RATIO_MAX;
    const cells = times.map(({ median, p99 }) => `${median.toFixed(2)} / ${p99.toFixed(2)}`);
    const collected = times.map((place) => place.collected).join(', ');
    process.stdout.write(
      `| ${store.engine} | ${name} | ${cells.join(' | ')} | ${worst.toFixed(2)} | ${collected} |\n`,
    );
  }
  return good;
}

async function onSqlite(): Promise<boolean> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-scale-'));
  const file = join(directory, 'berth.db');
  try {
    await (await openSqliteStore({ file })).close();
    fillSqlite(file, { repositories, images });
    const store = await openSqliteStore({ file });
    try {
      return await report(store);
    } finally {
      await store.close();
    }
  } finally {
    await rm(directory, { recursive: true });
  }
}

async function onPostgres(bin: string): Promise<boolean> {
  const server = await startPostgres(bin);
  try {
    const store = await openPostgresStore({ url: server.url });
    try {
      await fillPostgres(server.url, { repositories, images });
      return await report(store);
    } finally {
      await store.close();
    }
  } finally {
    await server.stop();
  }
}

process.stdout.write(
  `${repositories} repositories, ${images} images, pages of ${PAGE}, ${rounds} rounds, lowest of ${REPETITIONS} repetitions; ` +
    'milliseconds, median / p99 of the pages that no garbage collection fell into (left out: first, middle, last)\n\n' +
    '| database | listing | first page | middle | last | worst p99 to first | left out |\n|---|---|---|---|---|---|---|\n',
);
const bin = await findPostgres();
const results = [await onSqlite(), ...(bin === undefined ? [] : [await onPostgres(bin)])];
if (bin === undefined) process.stdout.write('\nNo PostgreSQL: initdb and pg_ctl not found.\n');
if (results.includes(false)) process.exitCode = 1;
