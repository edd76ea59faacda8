/** What every store must do, whichever database is under it. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import * as fc from 'fast-check';
import { sql } from 'kysely';
import { Fault } from '../../src/domain/faults.ts';
import { isForeignKeyViolation, isUniqueViolation } from '../../src/store/store.ts';
import { SCHEMA_VERSION } from '../../src/store/migrations.ts';
import type { StoreOf } from '../../src/store/store.ts';
import { garbageTests } from './store-garbage.ts';
import { account, content, image, NOW, repository, tag, upload } from './store-rows.ts';
import type { TRANSACTIONS } from './transactions.ts';
import type { Row, Table } from './transactions.ts';

export type TestStore = StoreOf<typeof TRANSACTIONS>;

/** One database: `open` opens it for the first time and again; `dispose` removes it once every store on it is closed. */
export interface Database {
  open(): Promise<TestStore>;
  dispose(): Promise<void>;
}

export function storeConformance(name: string, create: () => Promise<Database>): void {
  describe(`store conformance: ${name}`, () => {
    let database: Database;
    let store: TestStore;
    before(async () => {
      database = await create();
      store = await database.open();
    });
    after(async () => {
      await store?.close();
      await database?.dispose();
    });
    beforeEach(() => store.transact('clear', null));

    const insert = (...rows: [Table, Row][]): Promise<unknown> => store.transact('insertRows', { rows });
    const accountIds = async (): Promise<string[]> =>
      (await store.read.selectFrom('account').select('id').orderBy('id').execute()).map((row) => row.id);

    transactionTests(() => ({ store, insert, accountIds }));
    valueTests(() => ({ store, insert, accountIds }));
    garbageTests(() => ({ store, insert, accountIds }));

    test('opening a database again migrates nothing and keeps the rows', async () => {
      await insert(account('111111111111'));
      await store.close();
      store = await database.open();
      assert.deepEqual(await accountIds(), ['111111111111']);
      const { rows } = await sql`select number from migration`.execute(store.read);
      assert.deepEqual(
        rows,
        Array.from({ length: SCHEMA_VERSION }, (_, i) => ({ number: i + 1 })),
      );
    });

    test('a writer is running as long as its store is open, whoever asks', async () => {
      const writer = store.newWriter();
      assert.notEqual(store.newWriter(), writer);
      await insert(account('111111111111'));
      assert.equal(await store.fateOf(writer), 'running');
      await store.close();
      store = await database.open();
      // PostgreSQL ends its processes after their connections.
      while ((await store.fateOf(writer)) === 'running');
      assert.equal(await store.fateOf(writer), store.engine === 'sqlite' ? 'dead' : 'lost');
      assert.equal(await store.fateOf(store.newWriter()), 'running');
    });

    test('closing waits for writes in flight and refuses later ones', async () => {
      const ids = Array.from({ length: 30 }, (_, i) => `c${10 + i}`);
      const writes = ids.map((id) => insert(account(id)));
      const closed = store.close();
      await assert.rejects(insert(account('late')), { code: 'ServiceUnavailableException' });
      await Promise.all([closed, ...writes]);
      store = await database.open();
      assert.deepEqual(await accountIds(), ids);
    });

    test('a database of newer code is refused', async () => {
      const record = (number: number) => insert(['migration' as Table, { number }]);
      await record(999);
      await store.close();
      await assert.rejects(
        database.open(),
        new RegExp(`schema version 999, newer than the ${SCHEMA_VERSION} this Berth knows`),
      );
    });
  });
}

export interface Context {
  store: TestStore;
  insert(...rows: [Table, Row][]): Promise<unknown>;
  accountIds(): Promise<string[]>;
}

function transactionTests(context: () => Context): void {
  test('a transaction that throws leaves nothing, and its fault arrives as it was', async () => {
    const { store, accountIds } = context();
    const detail = { lastValidByteReceived: 41, names: ['a', 'b'] };
    const failing = store.transact('insertThenRefuse', {
      id: 'x',
      code: 'InvalidLayerPartException',
      message: 'no',
      detail,
    });
    const error = await failing.then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    assert(error instanceof Fault);
    assert.deepEqual([error.code, error.message, error.detail], ['InvalidLayerPartException', 'no', detail]);
    assert.deepEqual(await accountIds(), []);
  });

  test('one that fails among many takes none with it', async () => {
    const { store, accountIds } = context();
    const ids = Array.from({ length: 20 }, (_, i) => String(i).padStart(2, '0'));
    const results = await Promise.allSettled(
      ids.map((id, i): Promise<unknown> =>
        i % 2 === 0
          ? store.transact('insertRows', { rows: [account(id)] })
          : store.transact('insertThenRefuse', { id, code: 'LimitExceeded', message: id }),
      ),
    );
    assert.deepEqual(
      results.map((result) => result.status),
      ids.map((_, i) => (i % 2 === 0 ? 'fulfilled' : 'rejected')),
    );
    assert.deepEqual(
      await accountIds(),
      ids.filter((_, i) => i % 2 === 0),
    );
  });

  test('a write is seen by every read after it resolved', async () => {
    const { store, insert } = context();
    const find = store.prepare<{ created_at: number }>('select created_at from account where id = ?');
    for (let i = 0; i < 50; i++) {
      await insert(account(`a${i}`, i));
      assert.deepEqual(await find(`a${i}`), [{ created_at: i }]);
      const row = await store.read
        .selectFrom('account')
        .selectAll()
        .where('id', '=', `a${i}`)
        .executeTakeFirst();
      assert.deepEqual(row, { id: `a${i}`, created_at: i });
    }
  });

  test('200 concurrent transactions on one counter all count, exactly once', async () => {
    const { store } = context();
    const values = await Promise.all(
      Array.from({ length: 200 }, () => store.transact('increment', { subject: 's' })),
    );
    assert.deepEqual(
      values.sort((a, b) => a - b),
      Array.from({ length: 200 }, (_, i) => i + 1),
    );
    const row = await store.read.selectFrom('revision').selectAll().executeTakeFirstOrThrow();
    assert.deepEqual(row, { subject: 's', value: 200 });
  });

  test('decisions over several rows are serialisable: the last account always stays', async () => {
    const { store, insert, accountIds } = context();
    const ids = ['a', 'b', 'c', 'd', 'e', 'f'];
    await insert(...ids.map((id) => account(id)));
    const results = await Promise.allSettled(ids.map((id) => store.transact('removeUnlessLast', { id })));
    assert.equal(results.filter((result) => result.status === 'rejected').length, 1);
    assert.equal((await accountIds()).length, 1);
  });

  test('broken constraints are told apart', async () => {
    const { store, insert } = context();
    await insert(account('a'), repository('r1', 'app'));
    const failure = async (action: Promise<unknown>): Promise<[boolean, boolean]> => {
      const error = await action.then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      return [isUniqueViolation(error), isForeignKeyViolation(error)];
    };
    assert.deepEqual(await failure(insert(account('a'))), [true, false]);
    assert.deepEqual(await failure(insert(repository('r2', 'app'))), [true, false]);
    assert.deepEqual(await failure(insert(tag('r1', 'latest', 'sha256:0'))), [false, true]);
    const refused = store.transact('insertThenRefuse', { id: 'b', code: 'LimitExceeded', message: '' });
    assert.deepEqual(await failure(refused), [false, false]);
    assert.deepEqual(await failure(insert(['account', { id: 'c', created_at: null }])), [false, false]);
  });

  test('what is referred to cannot be removed; what belongs goes along', async () => {
    const { store, insert } = context();
    await insert(
      ...content('r1', 'd1', 'k1', NOW),
      image('r1', 'm1'),
      ['image_blob', { repository_id: 'r1', image_digest: 'm1', blob_digest: 'd1', media_type: 't' }],
      tag('r1', 'latest', 'm1'),
      image('r1', 'm2'),
      ['image_child', { repository_id: 'r1', parent_digest: 'm2', child_digest: 'm1' }],
      ['image_blob_absent', { repository_id: 'r1', image_digest: 'm2', blob_digest: 'd2', media_type: 't' }],
      ['image_child_absent', { repository_id: 'r1', parent_digest: 'm2', child_digest: 'm3' }],
      upload('u1', 'k9'),
      ['repository_tag', { repository_id: 'r1', key: 'k', value: 'v' }],
    );
    const refused: [Table, string, string][] = [
      ['repository', 'id', 'r1'],
      ['blob', 'storage_key', 'k1'],
      ['repository_blob', 'digest', 'd1'],
      ['image', 'digest', 'm1'],
      ['image', 'digest', 'm2'],
    ];
    for (const [table, column, value] of refused)
      await assert.rejects(
        store.transact('deleteRows', { table, column, value }),
        isForeignKeyViolation,
        `${table} ${value}`,
      );
    for (const table of ['image_child', 'tag', 'image_blob', 'image', 'repository_blob'] as const)
      await store.transact('deleteRows', { table, column: 'repository_id', value: 'r1' });
    await store.transact('deleteRows', { table: 'repository', column: 'id', value: 'r1' });
    assert.deepEqual(await store.read.selectFrom('upload').selectAll().execute(), []);
    assert.deepEqual(await store.read.selectFrom('repository_tag').selectAll().execute(), []);
    for (const table of ['image_blob_absent', 'image_child_absent'] as const)
      assert.deepEqual(await store.read.selectFrom(table).selectAll().execute(), [], table);
  });

  test('the reader cannot write', async () => {
    const { store, accountIds } = context();
    await assert.rejects(
      store.read.insertInto('account').values({ id: 'a', created_at: 1 }).execute(),
      /read-?only/,
    );
    assert.deepEqual(await accountIds(), []);
  });

  test('a name that is no transaction is refused', async () => {
    const { store } = context();
    await assert.rejects(
      store.transact('toString' as never, null as never),
      /there is no transaction toString/,
    );
  });
}

function valueTests(context: () => Context): void {
  test('bytes and 64-bit sizes come back as they went in', async () => {
    const { store, insert } = context();
    const manifest = new Uint8Array(4 * 1_048_576).map((_, i) => (i * 31) & 0xff);
    await insert(repository('r1', 'app'), image('r1', 'm1', { manifest, size: 2 ** 40 }));
    await insert(image('r1', 'm2', { size: Number.MAX_SAFE_INTEGER - 2 ** 40, manifest: new Uint8Array(0) }));
    const row = await store.read
      .selectFrom('image')
      .select(['manifest', 'size', 'artifact_type'])
      .where('digest', '=', 'm1')
      .executeTakeFirstOrThrow();
    assert.equal(Buffer.compare(row.manifest, manifest), 0);
    assert.deepEqual([row.size, row.artifact_type], [2 ** 40, null]);
    const totals = await store.read
      .selectFrom('image')
      .select((select) => [
        select.fn.sum<number>('size').as('sum'),
        select.fn.max('size').as('max'),
        select.fn.countAll<number>().as('count'),
        select('digest', '=', 'm1').as('found'),
      ])
      .groupBy('digest')
      .orderBy('digest')
      .execute();
    assert.deepEqual(totals, [
      { sum: 2 ** 40, max: 2 ** 40, count: 1, found: 1 },
      { sum: Number.MAX_SAFE_INTEGER - 2 ** 40, max: Number.MAX_SAFE_INTEGER - 2 ** 40, count: 1, found: 0 },
    ] as never);
    const find = store.prepare<{ manifest: Uint8Array }>(
      "select manifest from image where digest = ? and digest <> '?'",
    );
    assert.equal((await find('m2'))[0]?.manifest.length, 0);
  });

  test('a value of the wrong type is refused', async () => {
    const { insert } = context();
    await assert.rejects(insert(['account', { id: 'a', created_at: 'yesterday' }]));
  });

  test('text orders by its bytes, whatever the locale', async () => {
    const { store, accountIds } = context();
    const ids = fc.uniqueArray(
      fc.string({ unit: 'binary', maxLength: 6 }).filter((text) => !text.includes('\0')),
      { maxLength: 30 },
    );
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(['b', 'B', 'a-b', 'ab', 'a_b', 'a/b', 'ä', 'z', '\u{1f600}', '\uffee']),
        ids,
        async (fixed, more) => {
          await store.transact('clear', null);
          const all = [...new Set([...fixed, ...more])];
          await store.transact('insertRows', { rows: all.map((id) => account(id)) });
          assert.deepEqual(
            await accountIds(),
            all.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
          );
        },
      ),
      { numRuns: 15 },
    );
  });

  test('keyset pages concatenate to the listing', async () => {
    const { store, insert } = context();
    const images = Array.from({ length: 60 }, (_, i) => ({
      digest: `d${(i * 37) % 60}`,
      pushed_at: NOW + (i % 7),
    }));
    await insert(repository('r1', 'app'), ...images.map((row) => image('r1', row.digest, row)));
    const expected = images
      .sort((a, b) => b.pushed_at - a.pushed_at || (a.digest < b.digest ? -1 : 1))
      .map((row) => row.digest);
    for (const size of [1, 7, 59, 60, 61]) {
      const pages: string[] = [];
      let last: { pushed_at: number; digest: string } | undefined;
      do {
        const page = await imagePage(store, last, size);
        pages.push(...page.map((row) => row.digest));
        last = page.length < size ? undefined : page.at(-1);
      } while (last !== undefined);
      assert.deepEqual(pages, expected, `pages of ${size}`);
    }
  });
}

function imagePage(store: TestStore, last: { pushed_at: number; digest: string } | undefined, size: number) {
  let query = store.read
    .selectFrom('image')
    .select(['pushed_at', 'digest'])
    .where('repository_id', '=', 'r1');
  if (last !== undefined)
    query = query.where((where) =>
      where.or([
        where('pushed_at', '<', last.pushed_at),
        where.and([where('pushed_at', '=', last.pushed_at), where('digest', '>', last.digest)]),
      ]),
    );
  return query.orderBy('pushed_at', 'desc').orderBy('digest').limit(size).execute();
}
