/**
 * Metadata as rows in and out, the same for both engines: `berth backup` reads every table in one snapshot, `berth restore`
 * writes them into an empty database. Which tables there are and in what order is asked of the database, so that a table
 * added later is not forgotten.
 */
import { sql } from 'kysely';
import { SCHEMA_VERSION } from './migrations.ts';
import type { Schema } from './schema.ts';
import type { Store } from './store.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

export { SCHEMA_VERSION } from './migrations.ts';

export type Value = string | number | null | Uint8Array;
export type Row = Readonly<Record<string, Value>>;
/** The newest number given to rows of a table whose numbers are never reused. */
export type Counters = Readonly<Record<string, number>>;

/**
 * Left out: `migration` belongs to the database, not to its content; bytes of unfinished uploads and of trash are not in
 * a backup, so their rows would be about nothing.
 */
const LEFT_OUT = new Set(['migration', 'upload', 'garbage_trash']);
/** Subject in `revision` of a database that is being filled. */
const RESTORING = 'restoring';
/** A fetch of rows grows and shrinks to stay between these. */
const FETCH_BYTES_LOW = 1_048_576;
const FETCH_BYTES_HIGH = 8 * FETCH_BYTES_LOW;
const FETCH_ROWS_MAX = 1000;

/** Tables with content, each after those that it refers to. */
export async function listTables({ read, engine }: Pick<Store, 'read' | 'engine'>): Promise<string[]> {
  const names =
    engine === 'sqlite'
      ? sql<{
          name: string;
        }>`select name from sqlite_master where type = 'table' and name not like 'sqlite\\_%' escape '\\'`
      : sql<{ name: string }>`select tablename as name from pg_tables where schemaname = current_schema()`;
  const references =
    engine === 'sqlite'
      ? sql<{ child: string; parent: string }>`select m.name as child, f."table" as parent
          from sqlite_master m, pragma_foreign_key_list(m.name) f where m.type = 'table'`
      : sql<{
          child: string;
          parent: string;
        }>`select c.relname as child, p.relname as parent from pg_constraint k
          join pg_class c on c.oid = k.conrelid join pg_class p on p.oid = k.confrelid where k.contype = 'f'`;
  const left = new Set((await names.execute(read)).rows.map((row) => row.name).sort());
  const { rows } = await references.execute(read);
  const ordered: string[] = [];
  while (left.size > 0) {
    const next = [...left].find(
      (name) => !rows.some(({ child, parent }) => child === name && parent !== name && left.has(parent)),
    );
    if (next === undefined) throw new Error(`tables refer to each other: ${[...left].join(', ')}`);
    left.delete(next);
    if (!LEFT_OUT.has(next)) ordered.push(next);
  }
  return ordered;
}

/** Takes the batches of one table, in order. */
export type TakeTable = (table: string, batches: AsyncIterable<readonly Row[]>) => Promise<void>;

/**
 * Hands out every table in one snapshot of a store that was opened for reading only. Memory is bounded by a few MiB and the
 * widest row.
 */
export async function exportTables(
  store: Pick<Store, 'read' | 'engine'>,
  take: TakeTable,
): Promise<{ schemaVersion: number; counters: Counters }> {
  const tables = await listTables(store);
  const begin = store.read.transaction();
  const snapshot =
    store.engine === 'sqlite' ? begin : begin.setIsolationLevel('repeatable read').setAccessMode('read only');
  return await snapshot.execute(async (tx) => {
    const marks = await tx.selectFrom('revision').select('value').where('subject', '=', RESTORING).execute();
    if (marks.length > 0)
      throw new Error('the database is being restored, or a restore of it was broken off');
    for (const table of tables) {
      await take(table, store.engine === 'sqlite' ? streamTable(tx, table) : fetchTable(tx, table));
    }
    return { schemaVersion: SCHEMA_VERSION, counters: await readCounters(tx, store.engine) };
  });
}

async function* streamTable(tx: Reader, table: string): AsyncGenerator<readonly Row[]> {
  let batch: Row[] = [];
  let bytes = 0;
  for await (const row of tx
    .selectFrom(table as keyof Schema)
    .selectAll()
    .stream()) {
    batch.push(row);
    bytes += bytesOf(row);
    if (bytes < FETCH_BYTES_LOW) continue;
    yield batch;
    batch = [];
    bytes = 0;
  }
  if (batch.length > 0) yield batch;
}

async function* fetchTable(tx: Reader, table: string): AsyncGenerator<readonly Row[]> {
  await sql`declare backup_rows no scroll cursor for select * from ${sql.table(table)}`.execute(tx);
  for (let limit = 16; ;) {
    const { rows } = await sql<Row>`fetch ${sql.lit(limit)} from backup_rows`.execute(tx);
    if (rows.length === 0) break;
    yield rows;
    const bytes = rows.reduce((sum, row) => sum + bytesOf(row), 0);
    if (bytes < FETCH_BYTES_LOW) limit = Math.min(FETCH_ROWS_MAX, limit * 2);
    else if (bytes > FETCH_BYTES_HIGH) limit = Math.max(1, limit >> 2);
  }
  await sql`close backup_rows`.execute(tx);
}

function bytesOf(row: Row): number {
  let bytes = 0;
  for (const value of Object.values(row))
    bytes += typeof value === 'string' ? value.length : value instanceof Uint8Array ? value.byteLength : 8;
  return bytes;
}

async function readCounters(tx: Reader, engine: Store['engine']): Promise<Counters> {
  const query =
    engine === 'sqlite'
      ? sql<{ name: string; value: number }>`select name, seq as value from sqlite_sequence`
      : sql<{
          name: string;
          value: number;
        }>`select c.relname as name, s.last_value as value from pg_sequences s
          join pg_class q on q.relname = s.sequencename and q.relnamespace = s.schemaname::regnamespace
          join pg_depend d on d.objid = q.oid and d.deptype = 'i' join pg_class c on c.oid = d.refobjid
          where s.schemaname = current_schema() and s.last_value is not null`;
  const { rows } = await query.execute(tx);
  return Object.fromEntries(rows.map(({ name, value }) => [name, value]));
}

/** Whether a restore began to fill the database and has not ended. */
export async function isRestoring(read: Reader): Promise<boolean> {
  const rows = await read.selectFrom('revision').select('value').where('subject', '=', RESTORING).execute();
  return rows.length > 0;
}

/**
 * Makes the database ready to be filled. Content that a broken-off restore left is removed; other content is not: then
 * `occupied` names a table that has some.
 */
async function beginRestore(
  tx: Tx,
  { tables }: { readonly tables: readonly string[] },
): Promise<{ readonly occupied: string | undefined }> {
  const marked = await tx.selectFrom('revision').select('value').where('subject', '=', RESTORING).execute();
  for (const table of tables.toReversed()) {
    if (marked.length > 0) await sql`delete from ${sql.table(table)}`.execute(tx);
    else {
      const { rows } = await sql`select 1 from ${sql.table(table)} limit 1`.execute(tx);
      if (rows.length > 0) return { occupied: table };
    }
  }
  await tx.insertInto('revision').values({ subject: RESTORING, value: 1 }).execute();
  return { occupied: undefined };
}

/** Adds rows to a table; those it refers to were added before. */
async function loadRows(
  tx: Tx,
  { table, rows }: { readonly table: string; readonly rows: readonly Row[] },
): Promise<void> {
  if (rows.length === 0) return;
  await tx
    .insertInto(table as 'revision')
    .values(rows as never)
    .execute();
}

/** The database is filled: from now on it is an ordinary one. */
async function endRestore(
  tx: Tx,
  { engine, counters }: { readonly engine: Store['engine']; readonly counters: Counters },
): Promise<void> {
  for (const [table, value] of Object.entries(counters)) {
    if (engine === 'sqlite') {
      await sql`delete from sqlite_sequence where name = ${table}`.execute(tx);
      await sql`insert into sqlite_sequence (name, seq) values (${table}, ${value})`.execute(tx);
    } else await sql`select setval(pg_get_serial_sequence(${table}, 'id'), ${value})`.execute(tx);
  }
  await tx.deleteFrom('revision').where('subject', '=', RESTORING).execute();
}

export const backupTransactions = {
  'restore.begin': beginRestore,
  'restore.load': loadRows,
  'restore.end': endRestore,
} as const satisfies Record<string, Transaction<never, unknown>>;
