import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { sql } from 'kysely';
import { storeConformance } from '../../test/conformance/store.ts';
import { TRANSACTIONS } from '../../test/conformance/transactions.ts';
import { findPostgres, startPostgres } from '../../test/postgres.ts';
import type { Postgres } from '../../test/postgres.ts';
import { openPostgres } from './postgres.ts';
import type { StoreOf, Tx } from './store.ts';

const UNAVAILABLE = { code: 'ServiceUnavailableException' };

/** Counts its runs in its input, and loses its connection in the first `breaks` of them. */
async function breakConnection(tx: Tx, input: { id: string; breaks: number; runs: number }): Promise<number> {
  input.runs++;
  await tx.insertInto('account').values({ id: input.id, created_at: input.runs }).execute();
  if (input.runs <= input.breaks) await sql`select pg_terminate_backend(pg_backend_pid())`.execute(tx);
  return input.runs;
}

/** From now on, committing an account loses the connection before the server answers. */
async function breakCommits(tx: Tx, _input: null): Promise<void> {
  await sql`create function break_commit() returns trigger language plpgsql as
    $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$`.execute(tx);
  await sql`create constraint trigger break_commit after insert on account deferrable initially deferred
    for each row execute function break_commit()`.execute(tx);
}

async function repairCommits(tx: Tx, _input: null): Promise<void> {
  await sql`drop function break_commit cascade`.execute(tx);
}

/** Goes on after a statement failed, which PostgreSQL turns into a rollback. */
async function swallowFailure(tx: Tx, { id }: { id: string }): Promise<string> {
  await tx.insertInto('account').values({ id, created_at: 1 }).execute();
  await tx
    .insertInto('account')
    .values({ id, created_at: 2 })
    .execute()
    .catch(() => undefined);
  return 'done';
}

/** An increment that takes long: whoever writes meanwhile makes it fail. */
async function incrementSlowly(tx: Tx, { subject }: { subject: string }): Promise<number> {
  const { value } = await tx
    .selectFrom('revision')
    .select('value')
    .where('subject', '=', subject)
    .executeTakeFirstOrThrow();
  await sql`select pg_sleep(0.05)`.execute(tx);
  await tx
    .updateTable('revision')
    .set({ value: value + 1 })
    .where('subject', '=', subject)
    .execute();
  return value + 1;
}

const REGISTRY = {
  ...TRANSACTIONS,
  incrementSlowly,
  breakConnection,
  breakCommits,
  repairCommits,
  swallowFailure,
} as const;

function specificTests(server: () => Postgres): void {
  let store: StoreOf<typeof REGISTRY>;
  before(async () => {
    // Two replicas on an empty database at once: one migrates, the other waits for it.
    const [first, second] = await Promise.all(
      [1, 2].map(() => openPostgres({ url: server().url, poolMax: 4 }, REGISTRY)),
    );
    assert(first && second);
    await second.close();
    store = first;
  });
  after(() => store.close());
  beforeEach(() => store.transact('clear', null));
  const accounts = () => store.read.selectFrom('account').selectAll().execute();

  test('a transaction whose connection broke before its commit runs again', async () => {
    const input = { id: 'a', breaks: 2, runs: 0 };
    assert.equal(await store.transact('breakConnection', input), 3);
    assert.deepEqual(await accounts(), [{ id: 'a', created_at: 3 }]);
  });

  test('but not for ever', async () => {
    const input = { id: 'a', breaks: 100, runs: 0 };
    await assert.rejects(store.transact('breakConnection', input), UNAVAILABLE);
    assert.equal(input.runs, 3);
    assert.deepEqual(await accounts(), []);
  });

  test('a transaction whose connection broke during its commit does not run again', async () => {
    await store.transact('breakCommits', null);
    const input = { id: 'a', breaks: 0, runs: 0 };
    await assert.rejects(store.transact('breakConnection', input), UNAVAILABLE);
    assert.equal(input.runs, 1);
    await store.transact('repairCommits', null);
  });

  test('a transaction that others keep getting in the way of gets its turn', async () => {
    await store.transact('increment', { subject: 's' });
    const done = new AbortController();
    let count = 1;
    const others = Array.from({ length: 4 }, async () => {
      for (; !done.signal.aborted; count += 1) await store.transact('increment', { subject: 's' });
    });
    const slow = await store.transact('incrementSlowly', { subject: 's' }).finally(() => done.abort());
    await Promise.all(others);
    assert.ok(slow > 1 && slow <= count + 1, `${slow} of ${count}`);
    assert.equal(await store.transact('increment', { subject: 's' }), count + 2);
  });

  test('a transaction that goes on after a failed statement fails', async () => {
    await assert.rejects(store.transact('swallowFailure', { id: 'a' }), /went on after a statement/);
    assert.deepEqual(await accounts(), []);
  });

  test('a text that PostgreSQL cannot keep is the fault of who sent it', async () => {
    const code = { code: 'InvalidParameterException' };
    await assert.rejects(store.prepare('select id from account where id = ?')('a\0'), code);
    await assert.rejects(
      store.read.selectFrom('account').select('id').where('id', '=', '\0').execute(),
      code,
    );
    await assert.rejects(store.transact('breakConnection', { id: '\0', breaks: 0, runs: 0 }), code);
  });

  test('the writers of another replica are running until it has no connection, idle or not', async () => {
    const replica = await openPostgres({ url: server().url, poolMax: 2 }, REGISTRY);
    const [mine, its] = [store.newWriter(), replica.newWriter()];
    await replica.transact('increment', { subject: 'r' });
    await store.transact('increment', { subject: 's' });
    assert.deepEqual([await store.fateOf(its), await replica.fateOf(mine)], ['running', 'running']);
    assert.equal(await store.fateOf('a name of older code'), 'running');
    await replica.close();
    // The server ends its processes after their connections.
    while ((await store.fateOf(its)) !== 'lost');
    assert.equal(await store.fateOf(mine), 'running');
  });

  test('a server that is away is a fault, and found again when it is back', async () => {
    const find = store.prepare('select id from account where id = ?');
    await find('a');
    await server().halt();
    await assert.rejects(accounts(), UNAVAILABLE);
    await assert.rejects(find('a'), UNAVAILABLE);
    await assert.rejects(store.transact('increment', { subject: 's' }), UNAVAILABLE);
    await assert.rejects(openPostgres({ url: server().url }, REGISTRY), UNAVAILABLE);
    await server().resume();
    assert.equal(await store.transact('increment', { subject: 's' }), 1);
    assert.deepEqual(await accounts(), []);
    assert.deepEqual(await find('a'), []);
  });
}

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED store on PostgreSQL: no initdb and pg_ctl found\n');
else
  describe('store on PostgreSQL', () => {
    let server: Postgres;
    before(async () => {
      server = await startPostgres(bin);
    });
    after(() => server.stop());
    describe('PostgreSQL only', () => specificTests(() => server));
    storeConformance('postgres', async () => ({
      open: () => openPostgres({ url: server.url }, TRANSACTIONS),
      dispose: async () => {},
    }));
  });
