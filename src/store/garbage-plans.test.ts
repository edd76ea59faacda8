/** What the collector's statements read, on both databases, among far more content than there is garbage. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, test } from 'node:test';
import { CompiledQuery } from 'kysely';
import { BIG, fillGarbagePostgres, fillGarbageSqlite } from '../../test/fill.ts';
import { findPostgres, startPostgres } from '../../test/postgres.ts';
import { selectDueReviews } from './garbage.ts';
import { openPostgresStore, openSqliteStore } from './store.ts';

const BLOBS = 20_000;
/** What a statement of one piece of content may read, as the planner thinks. */
const ROWS_MAX = 200;
const LIMIT = 8;

interface Plan {
  readonly 'Node Type': string;
  readonly 'Plan Rows': number;
  readonly Plans?: readonly Plan[];
}

/** What deletes an image's content, beside the reviews, with the checks of the rows that refer to what goes; and what pushes ask. */
const STATEMENTS = [
  `delete from repository_blob where repository_id = '${BIG}' and digest = 'x'`,
  `delete from blob where storage_key = 'x'`,
  `delete from image_blob where repository_id = '${BIG}' and image_digest = 'x'`,
  `delete from image_child where repository_id = '${BIG}' and parent_digest = 'x'`,
  `delete from image_child_absent where repository_id = '${BIG}' and parent_digest = 'x'`,
  `delete from image_blob_absent where repository_id = '${BIG}' and image_digest = 'x'`,
  `select image_digest from image_blob_absent where repository_id = '${BIG}' and blob_digest in ('x', 'y') limit 1`,
  `select parent_digest from image_child_absent where repository_id = '${BIG}' and child_digest = 'x' limit 1`,
  `delete from image where repository_id = '${BIG}' and digest = 'x'`,
  `delete from garbage_review where repository_id = '${BIG}' and digest = 'x'`,
  `select digest from repository_blob where storage_key = 'x' limit 1`,
  `select storage_key from garbage_trash where delete_after <= 5 order by delete_after, storage_key limit ${LIMIT}`,
];

describe('statements of the collector', () => {
  test('on SQLite each look-up is by the whole of a key', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'berth-plans-'));
    const file = join(directory, 'berth.db');
    try {
      const store = await openSqliteStore({ file });
      const { sql, parameters } = selectDueReviews(5, LIMIT).compile(store.read);
      await store.close();
      fillGarbageSqlite(file, BLOBS);
      const database = new DatabaseSync(file);
      try {
        for (const statement of [sql, ...STATEMENTS]) {
          const values = statement === sql ? (parameters as number[]) : [];
          const plan = database.prepare(`explain query plan ${statement}`).all(...values);
          const lines = plan.map(({ detail }) => String(detail));
          for (const line of lines.filter((it) =>
            /\b(image|image_blob|image_child|image_blob_absent|image_child_absent|tag|i|b|k)\b/.test(it),
          ))
            assert.doesNotMatch(line, /^SCAN|\(repository_id=\?\)$/, `${statement}: ${lines.join('; ')}`);
        }
      } finally {
        database.close();
      }
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  const bin = findPostgres();
  test('on PostgreSQL none reads much', async () => {
    const programs = await bin;
    if (programs === undefined) {
      process.stdout.write('SKIPPED plans of the collector on PostgreSQL: no initdb and pg_ctl found\n');
      return;
    }
    const server = await startPostgres(programs);
    const store = await openPostgresStore({ url: server.url, poolMax: 2 });
    try {
      await fillGarbagePostgres(server.url, BLOBS);
      const due = selectDueReviews(5, LIMIT).compile(store.read);
      for (const { sql, parameters } of [due, ...STATEMENTS.map((text) => CompiledQuery.raw(text))]) {
        const { rows } = await store.read.executeQuery<{ 'QUERY PLAN': { Plan: Plan }[] }>(
          CompiledQuery.raw(`explain (format json) ${sql}`, [...parameters]),
        );
        const flat = (plan: Plan): Plan[] => [plan, ...(plan.Plans ?? []).flatMap(flat)];
        const plans = rows[0]?.['QUERY PLAN'].flatMap(({ Plan: plan }) => flat(plan)) ?? [];
        assert.ok(plans.length > 0);
        for (const plan of plans)
          assert.ok(plan['Plan Rows'] <= ROWS_MAX, `${sql}: ${JSON.stringify(plans)}`);
      }
    } finally {
      await store.close();
      await server.stop();
    }
  });
});
