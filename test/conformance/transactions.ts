/** Transactions that exist for the store's own tests, beside the product's. Loaded by the writer thread as well. */
import { sql } from 'kysely';
import { Fault } from '../../src/domain/faults.ts';
import type { FaultCode, FaultDetail } from '../../src/domain/faults.ts';
import type { Schema, Transaction, Tx } from '../../src/store/store.ts';
import { TRANSACTIONS as PRODUCT } from '../../src/store/transactions.ts';

export type Table = keyof Schema;
export type Row = Record<string, string | number | null | Uint8Array>;

/** From parents to children. */
const TABLES: readonly Table[] = [
  'account',
  'revision',
  'iam_user',
  'repository',
  'blob',
  'repository_blob',
  'image',
  'image_blob',
  'image_child',
  'image_blob_absent',
  'image_child_absent',
  'tag',
  'upload',
  'garbage_review',
  'garbage_trash',
];

async function insertRows(tx: Tx, { rows }: { rows: readonly (readonly [Table, Row])[] }): Promise<number> {
  for (const [table, row] of rows) await tx.insertInto(table).values(row).execute();
  return rows.length;
}

async function deleteRows(
  tx: Tx,
  { table, column, value }: { table: Table; column: string; value: string },
): Promise<void> {
  await sql`delete from ${sql.table(table)} where ${sql.ref(column)} = ${value}`.execute(tx);
}

async function clear(tx: Tx, _input: null): Promise<void> {
  for (const table of TABLES.toReversed()) await sql`delete from ${sql.table(table)}`.execute(tx);
}

/** Inserts an account and then refuses, so that nothing of it may stay. */
async function insertThenRefuse(
  tx: Tx,
  input: { id: string; code: FaultCode; message: string; detail?: FaultDetail },
): Promise<void> {
  await tx.insertInto('account').values({ id: input.id, created_at: 1 }).execute();
  throw new Fault(input.code, input.message, input.detail);
}

/** Reads a counter and writes one more: loses counts unless transactions are serialisable. */
async function increment(tx: Tx, { subject }: { subject: string }): Promise<number> {
  const row = await tx
    .selectFrom('revision')
    .select('value')
    .where('subject', '=', subject)
    .executeTakeFirst();
  if (row === undefined) {
    await tx.insertInto('revision').values({ subject, value: 1 }).execute();
    return 1;
  }
  await tx
    .updateTable('revision')
    .set({ value: row.value + 1 })
    .where('subject', '=', subject)
    .execute();
  return row.value + 1;
}

/** A decision over several rows (write skew): takes one of the accounts only while another one stays. */
async function removeUnlessLast(tx: Tx, { id }: { id: string }): Promise<void> {
  const { count } = await tx
    .selectFrom('account')
    .select((select) => select.fn.countAll<number>().as('count'))
    .executeTakeFirstOrThrow();
  if (count < 2) throw new Fault('DeleteConflict', 'the last one stays');
  await tx.deleteFrom('account').where('id', '=', id).execute();
}

/** Ends the thread it runs on. */
async function crash(): Promise<never> {
  return process.exit(9);
}

/** No more pages: the next growth finds the disk full. */
async function fillDisk(tx: Tx, _input: null): Promise<void> {
  await sql`pragma max_page_count = 1`.execute(tx);
}

/** Something that cannot leave the thread. */
async function answerFunction(): Promise<unknown> {
  return () => 1;
}

export const TRANSACTIONS = {
  ...PRODUCT,
  insertRows,
  deleteRows,
  clear,
  insertThenRefuse,
  increment,
  removeUnlessLast,
  crash,
  fillDisk,
  answerFunction,
} as const satisfies Record<string, Transaction<never, unknown>>;
