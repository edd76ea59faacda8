import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import type { ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import type { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { sql } from 'kysely';
import { storeConformance } from '../../test/conformance/store.ts';
import type { TRANSACTIONS } from '../../test/conformance/transactions.ts';
import { joinSqlite, openSqlite } from './sqlite.ts';
import type { OwnedSqliteStore } from './sqlite.ts';

const REGISTRY = new URL('../../test/conformance/transactions.ts', import.meta.url);
const CHILD = fileURLToPath(new URL('../../test/conformance/sqlite-child.ts', import.meta.url));
const UNAVAILABLE = { code: 'ServiceUnavailableException' };

type TestStore = OwnedSqliteStore<typeof TRANSACTIONS>;

function open(file: string, readOnly = false): Promise<TestStore> {
  return openSqlite({ file, readOnly }, REGISTRY);
}

storeConformance('sqlite', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-store-'));
  return { open: () => open(join(directory, 'berth.db')), dispose: () => rm(directory, { recursive: true }) };
});

describe('store on SQLite', () => {
  let directory: string;
  let file: string;
  const opened: TestStore[] = [];
  const openHere = async (readOnly = false): Promise<TestStore> => {
    const store = await open(file, readOnly);
    opened.push(store);
    return store;
  };
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-store-'));
    file = join(directory, 'berth.db');
  });
  afterEach(async () => {
    for (const store of opened.splice(0)) await store.close();
    await rm(directory, { recursive: true });
  });

  test('many transactions share one commit', async () => {
    const store = await openHere();
    await Promise.all(Array.from({ length: 1000 }, (_, i) => insert(store, `a${i}`)));
    assert(store.commits >= 1 && store.commits <= 20, `${store.commits} commits`);
    assert.equal((await ids(store)).length, 1000);
  });

  test('the files are for their owner only', async () => {
    const store = await openHere();
    await insert(store, 'a');
    for (const name of ['berth.db', 'berth.db-wal', 'berth.db-shm', 'berth.lock', 'berth.pid'])
      assert.equal((await stat(join(directory, name))).mode & 0o777, 0o600, name);
  });

  test('a data directory has one owner at a time', async () => {
    const store = await openHere();
    await assert.rejects(
      open(file),
      new RegExp(`${directory} is in use by another Berth process \\(pid ${process.pid}\\)`),
    );
    await store.close();
    await openHere();
  });

  test('what was acknowledged survives kill -9, which also ends the ownership', async () => {
    const child = spawn(process.execPath, [CHILD, file], { stdio: ['ignore', 'pipe', 'inherit'] });
    const acknowledged = await killAfter(child, 500, () =>
      assert.rejects(open(file), new RegExp(`in use by another Berth process \\(pid ${child.pid}\\)`)),
    );
    const store = await openHere();
    const found = new Set(await ids(store));
    assert.deepEqual(
      acknowledged.filter((id) => !found.has(id)),
      [],
    );
    const { rows } = await sql`pragma integrity_check`.execute(store.read);
    assert.deepEqual(rows, [{ integrity_check: 'ok' }]);
  });

  test('when the writer thread dies, what is in flight is refused, reads go on and later writes work', async () => {
    const lost: unknown[] = [];
    const store = await openSqlite<typeof TRANSACTIONS>(
      { file, onWriterLost: (e) => lost.push(e) },
      REGISTRY,
    );
    opened.push(store);
    await insert(store, 'a');
    const results = await Promise.allSettled([store.transact('crash', null as never), insert(store, 'b')]);
    for (const result of [...results, ...(await Promise.allSettled([insert(store, 'c')]))]) {
      assert(result.status === 'rejected');
      assert.equal(result.reason.code, UNAVAILABLE.code);
    }
    assert.deepEqual(await ids(store), ['a']);
    await untilWritten(store, 'd');
    assert.deepEqual(await ids(store), ['a', 'd']);
    assert.equal(lost.length, 1);
    await store.close();
    assert.deepEqual(await ids(await openHere()), ['a', 'd']);
  });

  test('a store that joined sees at once what was acknowledged elsewhere, and is served by the next writer', async () => {
    const store = await openHere();
    assert(store.shared !== undefined);
    const joined = await joinSqlite<typeof TRANSACTIONS>(store.shared);
    assert.equal(await store.fateOf(joined.newWriter()), 'running');
    for (let i = 0; i < 200; i++) {
      // Both hold a snapshot that the other's commit makes old.
      const [writer, reader] = i % 2 === 0 ? [store, joined] : [joined, store];
      assert.equal((await ids(reader)).length, i);
      await writer.transact('insertRows', { rows: [['account', { id: `${i}`, created_at: 1 }]] });
      assert.equal((await ids(reader)).length, i + 1);
    }
    const lost = await Promise.allSettled([
      store.transact('crash', null as never),
      joined.transact('insertRows', { rows: [['account', { id: 'lost', created_at: 1 }]] }),
    ]);
    for (const it of lost) assert(it.status === 'rejected' && it.reason.code === UNAVAILABLE.code);
    await untilWritten(joined, 'after');
    assert.equal((await ids(store)).length, 201);
    await joined.close();
  });

  test('an answer that is kept ends with the next commit, on every thread', async () => {
    const store = await openHere();
    const sql = 'select id from account where created_at = ? order by id';
    const kept = store.prepare<{ id: string }>(sql, 'keep');
    const rows = async (createdAt: number) => (await kept(createdAt)).map(({ id }) => id);
    assert.deepEqual(await rows(1), []);
    for (const id of ['a', 'b', 'c']) {
      await insert(store, id);
      const first = await kept(1);
      assert.equal(first.at(-1)?.id, id);
      assert.equal(await kept(1), first);
      assert.deepEqual(await rows(2), []);
    }
    // One more question than is kept.
    for (let i = 0; i < 1001; i++) assert.deepEqual(await rows(i + 2), []);
    assert.deepEqual(await rows(1), ['a', 'b', 'c']);
  });

  test('a full disk refuses what does not fit and keeps the rest', async () => {
    const store = await openHere();
    await insert(store, 'a');
    await store.transact('fillDisk', null);
    await assert.rejects(insert(store, 'x'.repeat(100_000)), UNAVAILABLE);
    await insert(store, 'b');
    assert.deepEqual(await ids(store), ['a', 'b']);
  });

  test('what is not plain data fails its own caller only', async () => {
    const store = await openHere();
    const [output, input, other] = await Promise.allSettled([
      store.transact('answerFunction', null as never),
      store.transact('clear', (() => 1) as never),
      insert(store, 'a'),
    ]);
    assert.deepEqual([output.status, input.status, other.status], ['rejected', 'rejected', 'fulfilled']);
    await insert(store, 'b');
  });

  test('a read-only store reads beside the owner and without one', async () => {
    await assert.rejects(open(file, true));
    const owner = await openHere();
    const reader = await openHere(true);
    await insert(owner, 'a');
    assert.deepEqual(await ids(reader), ['a']);
    await assert.rejects(insert(reader, 'b'), UNAVAILABLE);
    await reader.close();
    await owner.close();
    assert.deepEqual(await ids(await openHere(true)), ['a']);
  });

  test('a snapshot held open neither sees later writes nor holds them up', async () => {
    const store = await openHere();
    await insert(store, 'a');
    const reader = new DatabaseSync(file, { readOnly: true });
    const count = () => reader.prepare('select count(*) as n from account').get()?.['n'];
    reader.exec('begin');
    assert.equal(count(), 1);
    // More than the log holds before it is copied into the database.
    for (let i = 0; i < 100; i++) await insert(store, `${i}`.padEnd(100_000, 'x'));
    assert.equal(count(), 1);
    assert.equal((await ids(store)).length, 101);
    reader.exec('commit');
    assert.equal(count(), 101);
    reader.close();
  });
});

function insert(store: TestStore, id: string): Promise<unknown> {
  return store.transact('insertRows', { rows: [['account', { id, created_at: 1 }]] });
}

/** Writes again and again while the writer is being started. */
async function untilWritten(store: Pick<TestStore, 'transact'>, id: string): Promise<void> {
  for (;;) {
    const row = store.transact('insertRows', { rows: [['account', { id, created_at: 1 }]] });
    const done = await row.then(
      () => true,
      (error: unknown) => {
        assert.equal((error as { code?: string }).code, UNAVAILABLE.code);
        return false;
      },
    );
    if (done) return;
    await setImmediate();
  }
}

async function ids(store: Pick<TestStore, 'read'>): Promise<string[]> {
  return (await store.read.selectFrom('account').select('id').orderBy('id').execute()).map((row) => row.id);
}

/** Lets the child print `count` lines, does `meanwhile`, kills it, and returns all it printed. */
async function killAfter(
  child: ChildProcessByStdio<null, Readable, null>,
  count: number,
  meanwhile: () => Promise<void>,
): Promise<string[]> {
  const exited = once(child, 'exit');
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    lines.push(line);
    if (lines.length === count) {
      await meanwhile();
      child.kill('SIGKILL');
    }
  }
  await exited;
  assert(lines.length >= count, `the child printed ${lines.length} lines`);
  return lines;
}
