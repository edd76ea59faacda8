/**
 * Registries of any size in seconds: rows written in bulk by SQL, as no transaction of the product does. For measurements
 * and for tests of query plans only; the images have no content.
 */
import { DatabaseSync } from 'node:sqlite';
import { Client } from 'pg';

export interface Size {
  readonly repositories: number;
  /** all in the repository {@link BIG}, each with one tag */
  readonly images: number;
}

export const REGISTRY = { account: '000000000000', region: 'eu-west-1' };
/** id of the repository with the images */
export const BIG = 'big';
export const PUSHED_AT = Date.UTC(2026, 0, 1);

/** Digests in another order than the pushes, each once for numbers below 2^32. */
export function digestOf(i: number): string {
  const spread = (BigInt(i) * 2_654_435_761n) % 4_294_967_296n;
  return `sha256:${spread.toString(16).padStart(64, '0')}`;
}

export const repositoryOf = (i: number): string => `team-${pad(i % 1000, 4)}/app-${pad(i)}`;
export const tagOf = (i: number): string => `v${pad(i)}`;

function pad(i: number, digits = 8): string {
  return String(i).padStart(digits, '0');
}

interface Dialect {
  /** a table expression of the numbers from 0 as `i` */
  readonly numbers: (count: number) => string;
  readonly padded: (expression: string, digits: number) => string;
  readonly hex: (expression: string) => string;
  readonly bytes: string;
  /** what makes the rows known to the planner, and leaves nothing to do in the background */
  readonly settle: string;
}

const SQLITE: Dialect = {
  numbers: (count) =>
    `(with recursive n(i) as (select 0 union all select i + 1 from n where i < ${count - 1}) select i from n) as n`,
  padded: (expression, digits) => `printf('%0${digits}d', ${expression})`,
  hex: (expression) => `printf('%064x', ${expression})`,
  bytes: 'zeroblob(300)',
  settle: 'analyze',
};

const POSTGRES: Dialect = {
  numbers: (count) => `(select i::bigint from generate_series(0, ${count - 1}) as s(i)) as n`,
  padded: (expression, digits) => `lpad((${expression})::text, ${digits}, '0')`,
  hex: (expression) => `lpad(to_hex(${expression}), 64, '0')`,
  bytes: `decode(repeat('00', 300), 'hex')`,
  settle: 'vacuum (freeze, analyze)',
};

function statementsOf(
  { numbers, padded, hex, bytes, settle }: Dialect,
  { repositories, images }: Size,
): string[] {
  const columns =
    'id, account, region, name, created_at, mutability, scan_on_push, encryption_type, content_key';
  const { account, region } = REGISTRY;
  const rest = `${PUSHED_AT}, 'MUTABLE', 0, 'AES256', 'default'`;
  const digest = `'sha256:' || ${hex('(i * 2654435761) % 4294967296')}`;
  return [
    `insert into repository (${columns}) values ('${BIG}', '${account}', '${region}', '${BIG}', ${rest})`,
    `insert into repository (${columns})
     select 'r' || ${padded('i', 8)}, '${account}', '${region}',
       'team-' || ${padded('i % 1000', 4)} || '/app-' || ${padded('i', 8)}, ${rest}
     from ${numbers(repositories)}`,
    `insert into image (id, repository_id, digest, media_type, size, pushed_at, manifest)
     select 'i' || ${padded('i', 8)}, '${BIG}', ${digest}, 'application/vnd.oci.image.manifest.v1+json', 1000,
       ${PUSHED_AT} + i, ${bytes}
     from ${numbers(images)}`,
    `insert into tag (repository_id, name, image_digest, tagged_at)
     select '${BIG}', 'v' || ${padded('i', 8)}, ${digest}, ${PUSHED_AT} + i from ${numbers(images)}`,
    settle,
  ];
}

/** Fills a SQLite database that has the schema and that nobody has open. */
export function fillSqlite(file: string, size: Size): void {
  runSqlite(file, statementsOf(SQLITE, size));
}

/** Fills a PostgreSQL database that has the schema. */
export async function fillPostgres(url: string, size: Size): Promise<void> {
  await runPostgres(url, statementsOf(POSTGRES, size));
}

/** Blobs that an image of {@link fillGarbageSqlite} shares with no other. */
export const OWN_BLOBS = 2;
/** Images that have a layer in common. */
const SHARING = 100;

/** The key of a blob of image number `i`, as `storageKeys` spreads them over the folders of the blob store. */
export function storageKeyOf(i: number, own: number): string {
  return digestOf(i * OWN_BLOBS + own)
    .slice(-8)
    .padStart(32, '0');
}

/**
 * Images with content, all in {@link BIG}: each has blobs of its own, in number {@link OWN_BLOBS}, and one that it shares.
 * `blobs` counts the former. Leases are over, and nothing is up for review.
 */
function garbageStatements({ numbers, hex, padded, bytes, settle }: Dialect, blobs: number): string[] {
  const images = blobs / OWN_BLOBS;
  const spread = (i: string): string => hex(`(cast(${i} as bigint) * 2654435761) % 4294967296`);
  const digest = (i: string): string => `'sha256:' || ${spread(i)}`;
  // What is shared has digests that no number below 2^32 leads to.
  const shared = (i: string): string => `'sha256:f' || substr(${spread(i)}, 2)`;
  const key = (i: string): string => `substr(${spread(i)}, 33)`;
  const sharedKey = (i: string): string => `'f' || substr(${spread(i)}, 34)`;
  const { account, region } = REGISTRY;
  const blob = (digests: string, keys: string, count: number): string[] => [
    `insert into blob (storage_key, digest, content_key, size, created_at)
     select ${keys}, ${digests}, 'default', 5, ${PUSHED_AT} from ${numbers(count)}`,
    `insert into repository_blob (repository_id, digest, storage_key, size, leased_until)
     select '${BIG}', ${digests}, ${keys}, 5, ${PUSHED_AT} from ${numbers(count)}`,
  ];
  const use = (blobDigest: string): string =>
    `insert into image_blob (repository_id, image_digest, blob_digest, media_type)
     select '${BIG}', ${digest('i')}, ${blobDigest}, 'application/octet-stream' from ${numbers(images)}`;
  return [
    `insert into repository (id, account, region, name, created_at, mutability, scan_on_push, encryption_type, content_key)
     values ('${BIG}', '${account}', '${region}', '${BIG}', ${PUSHED_AT}, 'MUTABLE', 0, 'AES256', 'default')`,
    ...blob(digest('i'), key('i'), blobs),
    ...blob(shared('i'), sharedKey('i'), Math.ceil(images / SHARING)),
    `insert into image (id, repository_id, digest, media_type, size, pushed_at, manifest)
     select 'i' || ${padded('i', 8)}, '${BIG}', ${digest('i')}, 'application/vnd.oci.image.manifest.v1+json', 1000,
       ${PUSHED_AT} + i, ${bytes}
     from ${numbers(images)}`,
    ...Array.from({ length: OWN_BLOBS }, (_, own) => use(digest(`(i * ${OWN_BLOBS} + ${own})`))),
    use(shared(`(i / ${SHARING})`)),
    `insert into tag (repository_id, name, image_digest, tagged_at)
     select '${BIG}', 'v' || ${padded('i', 8)}, ${digest('i')}, ${PUSHED_AT} + i from ${numbers(images)}`,
    settle,
  ];
}

/** Fills a SQLite database that has the schema with `blobs` blobs in images. */
export function fillGarbageSqlite(file: string, blobs: number): void {
  runSqlite(file, garbageStatements({ ...SQLITE, settle: '' }, blobs));
}

/** Fills a PostgreSQL database that has the schema with `blobs` blobs in images. */
export async function fillGarbagePostgres(url: string, blobs: number): Promise<void> {
  await runPostgres(url, garbageStatements(POSTGRES, blobs));
}

function runSqlite(file: string, statements: readonly string[]): void {
  const database = new DatabaseSync(file);
  database.exec('pragma synchronous = off; pragma cache_size = -400000; pragma foreign_keys = off');
  for (const statement of statements) database.exec(statement);
  database.close();
}

async function runPostgres(url: string, statements: readonly string[]): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  for (const statement of statements) await client.query(statement);
  await client.end();
}
