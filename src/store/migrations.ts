/** The tables as SQL for both databases, and the runner that brings a database up to them. Forward only. */
import { sql } from 'kysely';
import type { Kysely } from 'kysely';
import { FIRST_MIGRATIONS } from './first-migrations.ts';
import { WORDS } from './migration-words.ts';
import type { Engine, Migration, Words } from './migration-words.ts';
import type { Schema } from './schema.ts';
import type { Tx } from './transaction.ts';

/** One entry a version; an entry that was released is never edited. */
const MIGRATIONS: readonly Migration[] = [
  ...FIRST_MIGRATIONS,
  describeTags,
  createDenials,
  orderTrash,
  () => [INDEX_UNFINISHED],
  createAbsentReferences,
  () => ['drop index upload_unfinished', COVER_UNFINISHED],
];

/**
 * Tells SQLite how tags are spread. WHY: knowing nothing, it checks at the deletion of an image that no tag needs it by walking
 * all tags of the repository, 40 ms at 200,000 tags; the walk by the index by image takes microseconds. PostgreSQL looks itself.
 */
function describeTags(words: Words): readonly string[] {
  if (words !== WORDS.sqlite) return [];
  return [
    // Makes the table of statistics if there is none.
    'analyze tag',
    `delete from sqlite_stat1 where tbl = 'tag'`,
    `insert into sqlite_stat1 (tbl, idx, stat) values
      ('tag', 'tag', '1000000 10000 1'),
      ('tag', 'tag_image_digest', '1000000 10000 2 1')`,
    'analyze sqlite_schema',
  ];
}

function createDenials({ text, int, wide }: Words): readonly string[] {
  return [
    `create table denial (
      request_id ${text} not null primary key,
      at ${int} not null,
      account ${text} not null,
      resource_account ${text} not null,
      principal ${text} not null,
      owner ${text} not null,
      action ${text} not null,
      content ${text} not null)${wide}`,
    `create index denial_at on denial (at)`,
    `create index denial_account on denial (account, at)`,
  ];
}

/**
 * What came into the trash in one round is due at the same time. WHY on PostgreSQL only: there the index by time has no keys,
 * so that every batch would read all that is due; SQLite's has them.
 */
function orderTrash(words: Words): readonly string[] {
  if (words !== WORDS.postgres) return [];
  return [
    'drop index garbage_trash_due',
    'create index garbage_trash_due on garbage_trash (delete_after, storage_key)',
  ];
}

/** Beside `image_child` and `image_blob`, whose foreign keys stay: losing what is here is still a failed transaction. */
function createAbsentReferences({ text, keyed }: Words): readonly string[] {
  const absent = (table: string, from: string, to: string, more = ''): readonly string[] => [
    `create table ${table} (
      repository_id ${text} not null,
      ${from} ${text} not null,
      ${to} ${text} not null,${more}
      primary key (repository_id, ${from}, ${to}),
      constraint ${table}_${from} foreign key (repository_id, ${from})
        references image (repository_id, digest) on delete cascade)${keyed}`,
    `create index ${table}_${to} on ${table} (repository_id, ${to})`,
  ];
  return [
    ...absent('image_child_absent', 'parent_digest', 'child_digest'),
    ...absent('image_blob_absent', 'image_digest', 'blob_digest', `media_type ${text} not null,`),
  ];
}

/** For counting them. WHY again with a second column, always null: without it SQLite looks at every row, for six times as long. */
const INDEX_UNFINISHED =
  'create index upload_unfinished on upload (repository_id) where completed_digest is null';
const COVER_UNFINISHED = INDEX_UNFINISHED.replace('repository_id', '$&, completed_digest');

/** The number of the newest migration this code knows. */
export const SCHEMA_VERSION = MIGRATIONS.length;

/** Serialises migrations of several processes on PostgreSQL; the number only has to be the same in all of them. */
const ADVISORY_LOCK = 7_327_001;

/**
 * Brings the database up to {@link SCHEMA_VERSION}, one transaction a migration; a no-op when it is there. Throws when the
 * database was written by newer code.
 */
export async function migrate(database: Kysely<Schema>, engine: Engine): Promise<void> {
  while (await database.transaction().execute((tx) => migrateOnce(tx, engine)));
}

/** Applies the next migration and says whether there was one. */
async function migrateOnce(tx: Tx, engine: Engine): Promise<boolean> {
  if (engine === 'postgres') {
    await sql`set local statement_timeout = 0`.execute(tx);
    await sql`select pg_advisory_xact_lock(${sql.lit(ADVISORY_LOCK)})`.execute(tx);
  }
  await sql`create table if not exists migration (number integer primary key)`.execute(tx);
  const version = await readVersion(tx);
  const migration = MIGRATIONS[version];
  if (migration === undefined) return false;
  for (const statement of migration(WORDS[engine])) await sql.raw(statement).execute(tx);
  await sql`insert into migration (number) values (${version + 1})`.execute(tx);
  return true;
}

/** Throws unless the database is exactly as this code needs it: what a reader that must not migrate asks. */
export async function requireCurrent(database: Kysely<Schema>): Promise<void> {
  const version = await readVersion(database);
  if (version < SCHEMA_VERSION)
    throw new Error(
      `the database has schema version ${version} and this Berth needs ${SCHEMA_VERSION}; start the server once to upgrade it`,
    );
}

async function readVersion(database: Kysely<Schema>): Promise<number> {
  const { rows } = await sql<{
    version: number | null;
  }>`select max(number) as version from migration`.execute(database);
  const version = rows[0]?.version ?? 0;
  if (version > SCHEMA_VERSION)
    throw new Error(
      `the database has schema version ${version}, newer than the ${SCHEMA_VERSION} this Berth knows; use a newer Berth`,
    );
  return version;
}
