/** What metrics want to know of a database. Everything here is bounded, and never holds up a request for long. */
import { setImmediate as turn, setTimeout as delay } from 'node:timers/promises';
import type { PreparedQuery, Store } from './store.ts';

export interface Backlog {
  /** entries whose time has come, counted up to {@link BACKLOG_MAX} */
  readonly due: number;
  /** when the oldest entry's time comes or came, epoch milliseconds; `undefined` when there is none */
  readonly oldestAt: number | undefined;
}

/** Where counting stops. */
export const BACKLOG_MAX = 10_000;

/** Prepares looks at the garbage collector's queues; by index, whatever their length. */
export function prepareBacklogs(store: Store): (now: number) => Promise<{ review: Backlog; trash: Backlog }> {
  const look = (table: string, column: string): ((now: number) => Promise<Backlog>) => {
    const count = store.prepare<{ due: number }>(
      `select count(*) as due from (select 1 as one from ${table} where ${column} <= ? limit ${BACKLOG_MAX}) as overdue`,
    );
    const first = store.prepare<{ oldest: number | null }>(`select min(${column}) as oldest from ${table}`);
    return async (now) => {
      const [[counted], [found]] = await Promise.all([count(now), first()]);
      const oldest = found?.oldest ?? null;
      return { due: counted?.due ?? 0, oldestAt: oldest === null ? undefined : oldest };
    };
  };
  const review = look('garbage_review', 'review_after');
  const trash = look('garbage_trash', 'delete_after');
  return async (now) => {
    const [a, b] = await Promise.all([review(now), trash(now)]);
    return { review: a, trash: b };
  };
}

export interface RepositorySize {
  readonly account: string;
  readonly region: string;
  readonly name: string;
  /** bytes of the blobs it can see, each once */
  readonly bytes: number;
}

export interface Totals {
  readonly repositories: number;
  readonly images: number;
  readonly tags: number;
  /** stored copies of content and their bytes before encryption */
  readonly blobs: number;
  readonly blobBytes: number;
  /** unfinished, up to {@link BACKLOG_MAX} */
  readonly uploads: number;
  /** the largest repositories, largest first */
  readonly largest: readonly RepositorySize[];
}

export interface TotalsReader {
  /** The newest totals; `undefined` while the first count runs longer than a moment. */
  read(): Promise<Totals | undefined>;
  /** Gives up a count under way. */
  stop(): Promise<void>;
}

export interface TotalsOptions {
  readonly store: Store;
  /** how many repositories are named */
  readonly largestMax: number;
  /** least age at which totals are counted again, in milliseconds */
  readonly ageMs: number;
}

const PAGE_ROWS = 2000;
/** How long a reader waits for a count under way before it takes the one before. */
const PATIENCE_MS = 250;
/** A count may take at most this share of the time. */
const TIME_SHARE = 0.01;

/**
 * Counts everything, page by page with turns for others between the pages, when somebody reads and the totals are old.
 * WHY not one query: on SQLite it would hold up every request for as long as a walk through a million rows takes.
 */
export function createTotals(options: TotalsOptions): TotalsReader {
  const count = prepareCount(options);
  const stopping = new AbortController();
  let totals: Totals | undefined;
  let nextAt = Number.NEGATIVE_INFINITY;
  let counting: Promise<void> | undefined;

  const refresh = async (): Promise<void> => {
    const started = performance.now();
    try {
      totals = (await count(stopping.signal)) ?? totals;
    } finally {
      const now = performance.now();
      nextAt = now + Math.max(options.ageMs, (now - started) / TIME_SHARE);
      counting = undefined;
    }
  };

  return {
    async read() {
      if (counting === undefined && performance.now() >= nextAt && !stopping.signal.aborted)
        counting = refresh();
      if (counting !== undefined) {
        const patience = new AbortController();
        const waited = delay(PATIENCE_MS, undefined, { signal: patience.signal }).catch(() => {});
        await Promise.race([counting, waited]).finally(() => patience.abort());
      }
      return totals;
    },
    async stop() {
      stopping.abort();
      await counting?.catch(() => {});
    },
  };
}

interface GroupRow {
  readonly id: string;
  readonly last: string;
  readonly rows: number;
  readonly bytes: number;
}

function prepareCount({
  store,
  largestMax,
}: TotalsOptions): (signal: AbortSignal) => Promise<Totals | undefined> {
  const blobPage = store.prepare<{ last: string | null; rows: number; bytes: number }>(
    `select max(storage_key) as last, count(*) as rows, cast(coalesce(sum(size), 0) as bigint) as bytes from
      (select storage_key, size from blob where storage_key > ? order by storage_key limit ${PAGE_ROWS}) as page`,
  );
  const repositories = store.prepare<{ rows: number }>('select count(*) as rows from repository');
  const uploads = store.prepare<{ rows: number }>(
    `select count(*) as rows from (select completed_digest from upload limit ${BACKLOG_MAX}) as page
      where completed_digest is null`,
  );
  /** Pages through a table keyed by repository and one more column, a group for each repository of a page. */
  const grouped = (table: string, key: string, size: string): PreparedQuery<GroupRow> =>
    store.prepare<GroupRow>(
      `select repository_id as id, max(${key}) as last, count(*) as rows, cast(sum(size) as bigint) as bytes from
        (select repository_id, ${key}, ${size} as size from ${table} where (repository_id, ${key}) > (?, ?)
          order by repository_id, ${key} limit ${PAGE_ROWS}) as page
        group by repository_id order by repository_id`,
    );
  const content = grouped('repository_blob', 'digest', 'size');
  const images = grouped('image', 'digest', '0');
  const tags = grouped('tag', 'name', '0');

  return async (signal) => {
    const stored = { blobs: 0, bytes: 0 };
    for (let after: string | null = ''; after !== null;) {
      const [page]: readonly { last: string | null; rows: number; bytes: number }[] = await blobPage(after);
      stored.blobs += page?.rows ?? 0;
      stored.bytes += page?.bytes ?? 0;
      after = page?.last ?? null;
      if (signal.aborted) return undefined;
      await turn();
    }
    const largest = new Largest(largestMax);
    await walk(content, signal, (id, row) => largest.add(id, row.bytes));
    const imageCount = await walk(images, signal);
    const tagCount = await walk(tags, signal);
    const [[repositoryRow], [uploadRow]] = await Promise.all([repositories(), uploads()]);
    if (signal.aborted) return undefined;
    return {
      repositories: repositoryRow?.rows ?? 0,
      images: imageCount,
      tags: tagCount,
      blobs: stored.blobs,
      blobBytes: stored.bytes,
      uploads: uploadRow?.rows ?? 0,
      largest: await nameRepositories(store, largest.list()),
    };
  };
}

async function walk(
  page: PreparedQuery<GroupRow>,
  signal: AbortSignal,
  onGroup?: (id: string, row: GroupRow) => void,
): Promise<number> {
  let total = 0;
  let after: GroupRow | undefined;
  do {
    const rows: readonly GroupRow[] = await page(after?.id ?? '', after?.last ?? '');
    for (const row of rows) {
      total += row.rows;
      onGroup?.(row.id, row);
    }
    after = rows.at(-1);
    if (signal.aborted) return total;
    await turn();
  } while (after !== undefined);
  return total;
}

/** The repositories with most bytes. Bytes of one repository arrive together, maybe in several parts. */
class Largest {
  readonly #max: number;
  #kept: { id: string; bytes: number }[] = [];
  #current: { id: string; bytes: number } | undefined;

  constructor(max: number) {
    this.#max = max;
  }

  add(id: string, bytes: number): void {
    if (this.#current?.id === id) {
      this.#current.bytes += bytes;
      return;
    }
    this.#settle();
    this.#current = { id, bytes };
  }

  list(): readonly { readonly id: string; readonly bytes: number }[] {
    this.#settle();
    this.#current = undefined;
    return this.#kept;
  }

  #settle(): void {
    const current = this.#current;
    if (current === undefined) return;
    if (this.#kept.length >= this.#max && current.bytes <= (this.#kept.at(-1)?.bytes ?? 0)) return;
    const kept = [...this.#kept, current].sort((a, b) => b.bytes - a.bytes);
    this.#kept = kept.slice(0, this.#max);
  }
}

async function nameRepositories(
  store: Store,
  sizes: readonly { readonly id: string; readonly bytes: number }[],
): Promise<RepositorySize[]> {
  if (sizes.length === 0) return [];
  const rows = await store.read
    .selectFrom('repository')
    .select(['id', 'account', 'region', 'name'])
    .where(
      'id',
      'in',
      sizes.map(({ id }) => id),
    )
    .execute();
  const byId = new Map(rows.map((row) => [row.id, row]));
  return sizes.flatMap(({ id, bytes }) => {
    const row = byId.get(id);
    return row === undefined ? [] : { account: row.account, region: row.region, name: row.name, bytes };
  });
}
