/** The tables as SQL for both databases, and the runner that brings a database up to them. Forward only. */
import { sql } from 'kysely';
import type { Kysely } from 'kysely';
import type { Schema } from './schema.ts';
import type { Tx } from './transaction.ts';

export type Engine = 'sqlite' | 'postgres';

/**
 * Words that differ.
 *
 * WHY `text`: PostgreSQL must order and compare by bytes as SQLite does, whatever the locale of the database.
 * WHY `keyed`: rows that are mostly their key live in the key's own tree in SQLite. Wide rows (manifests) must not:
 * they would spill to overflow pages in the tree every look-up walks. Strict tables refuse a wrong type as PostgreSQL does.
 */
const WORDS = {
  sqlite: { text: 'text', int: 'integer', bytes: 'blob', keyed: ' strict, without rowid', wide: ' strict' },
  postgres: { text: 'text collate "C"', int: 'bigint', bytes: 'bytea', keyed: '', wide: '' },
} as const;

type Words = (typeof WORDS)[Engine];

/** One entry a version; an entry that was released is never edited. */
const MIGRATIONS: readonly ((words: Words) => readonly string[])[] = [createTables];

function createTables({ text, int, bytes, keyed, wide }: Words): readonly string[] {
  return [
    `create table account (id ${text} primary key, created_at ${int} not null)${keyed}`,
    `create table revision (subject ${text} primary key, value ${int} not null)${keyed}`,

    `create table iam_user (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      boundary_arn ${text},
      created_at ${int} not null,
      constraint iam_user_name unique (account, name_lower))${keyed}`,
    `create index iam_user_boundary on iam_user (boundary_arn) where boundary_arn is not null`,
    `create table iam_user_tag (
      user_id ${text} not null references iam_user on delete restrict,
      key_lower ${text} not null,
      key ${text} not null,
      value ${text} not null,
      primary key (user_id, key_lower))${keyed}`,
    `create table iam_access_key (
      id ${text} primary key,
      account ${text} not null,
      user_id ${text} references iam_user on delete restrict,
      secret ${bytes} not null,
      status ${text} not null,
      created_at ${int} not null,
      last_used_at ${int},
      last_used_service ${text},
      last_used_region ${text})${keyed}`,
    `create index iam_access_key_user on iam_access_key (user_id)`,
    `create table iam_policy (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      arn ${text} not null,
      description ${text},
      default_version ${int} not null,
      next_version ${int} not null,
      created_at ${int} not null,
      updated_at ${int} not null,
      constraint iam_policy_name unique (account, name_lower),
      constraint iam_policy_arn unique (arn))${keyed}`,
    `create table iam_policy_tag (
      policy_id ${text} not null references iam_policy on delete restrict,
      key_lower ${text} not null,
      key ${text} not null,
      value ${text} not null,
      primary key (policy_id, key_lower))${keyed}`,
    `create table iam_policy_version (
      policy_id ${text} not null references iam_policy on delete restrict,
      version ${int} not null,
      document ${text} not null,
      created_at ${int} not null,
      primary key (policy_id, version))${wide}`,
    `create table iam_user_policy (
      user_id ${text} not null references iam_user on delete restrict,
      name ${text} not null,
      document ${text} not null,
      primary key (user_id, name))${wide}`,
    `create table iam_user_attachment (
      user_id ${text} not null references iam_user on delete restrict,
      policy_arn ${text} not null,
      attached_at ${int} not null,
      primary key (user_id, policy_arn))${keyed}`,
    `create index iam_user_attachment_policy on iam_user_attachment (policy_arn)`,

    `create table repository (
      id ${text} not null primary key,
      account ${text} not null,
      region ${text} not null,
      name ${text} not null,
      created_at ${int} not null,
      mutability ${text} not null,
      exclusion_filters ${text},
      scan_on_push ${int} not null,
      encryption_type ${text} not null,
      kms_key ${text},
      content_key ${text} not null,
      policy ${text},
      constraint repository_name unique (account, region, name))${wide}`,
    `create table repository_tag (
      repository_id ${text} not null references repository on delete cascade,
      key ${text} not null,
      value ${text} not null,
      primary key (repository_id, key))${keyed}`,

    `create table blob (
      storage_key ${text} primary key,
      digest ${text} not null,
      content_key ${text} not null,
      size ${int} not null,
      created_at ${int} not null,
      constraint blob_content unique (digest, content_key))${keyed}`,
    `create table repository_blob (
      repository_id ${text} not null references repository on delete restrict,
      digest ${text} not null,
      storage_key ${text} not null references blob on delete restrict,
      size ${int} not null,
      leased_until ${int} not null,
      primary key (repository_id, digest))${keyed}`,
    `create index repository_blob_storage on repository_blob (storage_key)`,

    // WHY: the manifest comes last, so that reading the other columns of a row does not walk its overflow pages.
    `create table image (
      id ${text} not null primary key,
      repository_id ${text} not null references repository on delete restrict,
      digest ${text} not null,
      media_type ${text} not null,
      artifact_type ${text},
      subject_digest ${text},
      size ${int} not null,
      pushed_at ${int} not null,
      last_pulled_at ${int},
      manifest ${bytes} not null,
      constraint image_digest unique (repository_id, digest))${wide}`,
    `create index image_pushed on image (repository_id, pushed_at desc, digest)`,
    `create index image_subject on image (repository_id, subject_digest) where subject_digest is not null`,
    `create table image_blob (
      repository_id ${text} not null,
      image_digest ${text} not null,
      blob_digest ${text} not null,
      media_type ${text} not null,
      primary key (repository_id, image_digest, blob_digest),
      constraint image_blob_image foreign key (repository_id, image_digest)
        references image (repository_id, digest) on delete restrict,
      constraint image_blob_blob foreign key (repository_id, blob_digest)
        references repository_blob (repository_id, digest) on delete restrict)${keyed}`,
    `create index image_blob_blob_digest on image_blob (repository_id, blob_digest)`,
    `create table image_child (
      repository_id ${text} not null,
      parent_digest ${text} not null,
      child_digest ${text} not null,
      primary key (repository_id, parent_digest, child_digest),
      constraint image_child_parent foreign key (repository_id, parent_digest)
        references image (repository_id, digest) on delete restrict,
      constraint image_child_child foreign key (repository_id, child_digest)
        references image (repository_id, digest) on delete restrict)${keyed}`,
    `create index image_child_child_digest on image_child (repository_id, child_digest)`,
    `create table tag (
      repository_id ${text} not null,
      name ${text} not null,
      image_digest ${text} not null,
      tagged_at ${int} not null,
      primary key (repository_id, name),
      constraint tag_image foreign key (repository_id, image_digest)
        references image (repository_id, digest) on delete restrict)${keyed}`,
    `create index tag_image_digest on tag (repository_id, image_digest)`,

    `create table upload (
      id ${text} primary key,
      repository_id ${text} not null references repository on delete cascade,
      storage_key ${text} not null,
      content_key ${text} not null,
      size ${int} not null,
      sha256 ${text} not null,
      parts ${int} not null default 0,
      last_part_size ${int} not null default 0,
      small_part ${int} not null default 0,
      writer ${text},
      writer_until ${int},
      created_at ${int} not null,
      updated_at ${int} not null,
      completed_digest ${text},
      constraint upload_storage unique (storage_key))${keyed}`,
    `create index upload_repository on upload (repository_id)`,
    `create index upload_updated on upload (updated_at)`,

    `create table garbage_review (
      repository_id ${text} not null,
      digest ${text} not null,
      review_after ${int} not null,
      primary key (repository_id, digest))${keyed}`,
    `create index garbage_review_due on garbage_review (review_after)`,
    `create table garbage_trash (
      storage_key ${text} primary key,
      delete_after ${int} not null)${keyed}`,
    `create index garbage_trash_due on garbage_trash (delete_after)`,
  ];
}

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
