import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { TRANSACTIONS } from '../../test/conformance/job-transactions.ts';
import { jobsConformance } from '../../test/conformance/jobs.ts';
import { findPostgres, startPostgres, type Postgres } from '../../test/postgres.ts';
import { openPostgres } from '../store/postgres.ts';
import { openSqlite } from '../store/sqlite.ts';
import { backoffMs, Bell } from './jobs.ts';

const REGISTRY = new URL('../../test/conformance/job-transactions.ts', import.meta.url);

jobsConformance('sqlite', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-jobs-'));
  const store = await openSqlite<typeof TRANSACTIONS>({ file: join(directory, 'berth.db') }, REGISTRY);
  return {
    store,
    nameGone: async () => {
      const file = join(await mkdtemp(join(directory, 'other-')), 'berth.db');
      const other = await openSqlite<typeof TRANSACTIONS>({ file }, REGISTRY);
      const name = other.newWriter();
      await other.close();
      return name;
    },
    dispose: async () => {
      await store.close();
      await rm(directory, { recursive: true });
    },
  };
});

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED jobs on PostgreSQL: no initdb and pg_ctl found\n');
else
  describe('jobs on PostgreSQL', () => {
    let server: Postgres;
    before(async () => {
      server = await startPostgres(bin);
    });
    after(() => server.stop());
    jobsConformance('postgres', async () => {
      const store = await openPostgres({ url: server.url }, TRANSACTIONS);
      const nameGone = async () => {
        const other = await openPostgres({ url: server.url }, TRANSACTIONS);
        const name = other.newWriter();
        await other.close();
        while ((await store.fateOf(name)) === 'running');
        return name;
      };
      return { store, nameGone, dispose: () => store.close() };
    });
  });

test('the wait between attempts doubles up to its cap', () => {
  assert.deepEqual(
    [1, 2, 3, 4, 5, 100].map((attempts) => backoffMs(attempts, 1000, 9000)),
    [1000, 2000, 4000, 8000, 9000, 9000],
  );
});

describe('Bell', () => {
  const never = new AbortController().signal;
  const HOUR_MS = 3_600_000;

  test('a ring ends the wait there is, and the next one when there is none', async () => {
    const bell = new Bell();
    const waiting = bell.wait(HOUR_MS, never);
    bell.ring();
    await waiting;
    bell.ring();
    bell.ring();
    await bell.wait(HOUR_MS, never);
  });

  test('rings wake at most once a pause, and none is lost', async () => {
    const bell = new Bell(20);
    bell.ring();
    await bell.wait(HOUR_MS, never);
    const since = performance.now();
    bell.ring();
    await bell.wait(HOUR_MS, never);
    assert.ok(performance.now() - since >= 15);
  });

  test('a signal ends a wait', async () => {
    const stopping = new AbortController();
    const waiting = new Bell(HOUR_MS).wait(HOUR_MS, stopping.signal);
    stopping.abort();
    await waiting;
  });
});
