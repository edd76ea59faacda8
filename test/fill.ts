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
  const database = new DatabaseSync(file);
  database.exec('pragma synchronous = off; pragma cache_size = -400000');
  for (const statement of statementsOf(SQLITE, size)) database.exec(statement);
  database.close();
}

/** Fills a PostgreSQL database that has the schema. */
export async function fillPostgres(url: string, size: Size): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  for (const statement of statementsOf(POSTGRES, size)) await client.query(statement);
  await client.end();
}
