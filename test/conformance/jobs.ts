/** What the queue and its runner do, whichever database is under them. */
import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import {
  backoffMs,
  createJobRunner,
  observeCommits,
  type JobHandler,
  type JobRun,
  type JobRunner,
} from '../../src/jobs/jobs.ts';
import { listDeadJobs, type Store, type StoreOf } from '../../src/store/store.ts';
import type { TRANSACTIONS } from './job-transactions.ts';

export type JobStore = StoreOf<typeof TRANSACTIONS>;

export interface JobDatabase {
  readonly store: JobStore;
  /** the name of a writer whose process has ended, and its database knows it */
  nameGone(): Promise<string>;
  dispose(): Promise<void>;
}

const START = 1_800_000_000_000;
const LEASE_MS = 60_000;
const CLAIM = { kind: 'work', leaseMs: LEASE_MS, limit: 10, attemptsMax: 3 };

/** A promise and its settling, to tell a test that a handler got somewhere. */
function signal<T = void>() {
  return Promise.withResolvers<T>();
}

export function jobsConformance(name: string, create: () => Promise<JobDatabase>) {
  describe(`jobs conformance: ${name}`, () => {
    let database: JobDatabase;
    let store: Store;
    let now = START;
    const runners: JobRunner[] = [];
    before(async () => {
      database = await create();
      // WHY: the test's transactions are the product's and two more.
      store = database.store;
    });
    after(() => database.dispose());
    beforeEach(async () => {
      now = START;
      await database.store.transact('clearJobs', null);
    });
    afterEach(async () => {
      for (const runner of runners.splice(0)) await runner.stop();
    });

    const enqueue = (key: string, more: { runAt?: number; payload?: string } = {}) =>
      store.transact('job.enqueue', { kind: 'work', key, runAt: now, ...more });
    const claim = (lease: string) => store.transact('job.claim', { ...CLAIM, lease, now });
    const held = (key: string, lease: string) => ({ kind: 'work', key, lease });
    const rows = () =>
      store.read
        .selectFrom('job')
        .select(['key', 'payload', 'run_at', 'due_at', 'lease', 'attempts'])
        .orderBy('key')
        .execute();
    const start = async (handler: JobHandler | JobHandler['run'], pollMs = 5): Promise<JobRunner> => {
      const handlers = { work: typeof handler === 'function' ? { run: handler } : handler };
      const runner = createJobRunner({ store, clock: () => now, handlers, pollMs, leaseMs: LEASE_MS });
      runners.push(runner);
      await runner.start();
      return runner;
    };

    test('a job exists exactly when the transaction that asked for it committed', async () => {
      const job = (key: string) => ({ kind: 'work', key, runAt: now });
      await assert.rejects(database.store.transact('enqueueOrRefuse', { job: job('a'), refuse: true }));
      await database.store.transact('enqueueOrRefuse', { job: job('b'), refuse: false });
      assert.deepEqual(
        (await rows()).map(({ key }) => key),
        ['b'],
      );
    });

    test('asking again for what waits keeps one row, the newer payload and the earlier time', async () => {
      await enqueue('a', { runAt: now + 10, payload: 'old' });
      await enqueue('a', { runAt: now + 5, payload: 'newer' });
      await enqueue('a', { runAt: now + 20, payload: 'newest' });
      assert.deepEqual(await rows(), [
        { key: 'a', payload: '"newest"', run_at: now + 5, due_at: now + 5, lease: null, attempts: 0 },
      ]);
    });

    test('claims what is due, longest due first, and nothing twice', async () => {
      await enqueue('later', { runAt: now + 1 });
      await enqueue('b', { runAt: now });
      await enqueue('a', { runAt: now - 5, payload: 'p' });
      const { claimed } = await claim('l1');
      assert.deepEqual(claimed, [
        { kind: 'work', key: 'a', payload: 'p', lease: 'l1', attempts: 1 },
        { kind: 'work', key: 'b', payload: null, lease: 'l1', attempts: 1 },
      ]);
      assert.deepEqual(await claim('l2'), { claimed: [], died: [] });
    });

    test('many claimants at once never get the same job', async () => {
      await Promise.all(Array.from({ length: 20 }, (_, i) => enqueue(`k${i}`)));
      const claims = await Promise.all(
        Array.from({ length: 10 }, (_, i) =>
          store.transact('job.claim', { ...CLAIM, limit: 3, lease: `l${i}`, now }),
        ),
      );
      const keys = claims.flatMap(({ claimed }) => claimed.map(({ key }) => key));
      assert.equal(new Set(keys).size, keys.length);
      assert.equal(keys.length, 20);
    });

    test('a lease that ran out is no obstacle, and its holder can end nothing any more', async () => {
      await enqueue('a');
      await claim('dead');
      now += LEASE_MS - 1;
      assert.deepEqual((await claim('early')).claimed, []);
      now += 1;
      assert.deepEqual(
        (await claim('next')).claimed.map(({ attempts }) => attempts),
        [2],
      );
      assert.equal(await store.transact('job.renew', { ...held('a', 'dead'), until: now + 1 }), false);
      assert.equal(
        await store.transact('job.complete', { ...held('a', 'dead'), now, again: undefined }),
        false,
      );
      const failure = { ...held('a', 'dead'), now, error: 'x', retryAt: now };
      assert.equal(await store.transact('job.fail', failure), false);
      assert.equal(
        await store.transact('job.complete', { ...held('a', 'next'), now, again: undefined }),
        true,
      );
      assert.deepEqual(await rows(), []);
    });

    test('a renewed lease holds longer', async () => {
      await enqueue('a');
      await claim('l1');
      now += LEASE_MS - 1;
      assert.equal(await store.transact('job.renew', { ...held('a', 'l1'), until: now + LEASE_MS }), true);
      now += LEASE_MS - 1;
      assert.deepEqual((await claim('l2')).claimed, []);
    });

    test('asked for while it runs, it runs once more, with the new payload', async () => {
      await enqueue('a', { payload: 'first' });
      await claim('l1');
      await enqueue('a', { runAt: now + 50, payload: 'second' });
      await enqueue('a', { runAt: now + 90, payload: 'third' });
      assert.deepEqual((await claim('l2')).claimed, []);
      await store.transact('job.complete', { ...held('a', 'l1'), now, again: undefined });
      assert.deepEqual(await rows(), [
        { key: 'a', payload: '"third"', run_at: now + 50, due_at: now + 50, lease: null, attempts: 0 },
      ]);
    });

    test('waits after a failure, whoever asks again, and is dead in the end until somebody asks anew', async () => {
      await enqueue('a');
      await claim('l1');
      await store.transact('job.fail', { ...held('a', 'l1'), now, error: 'broken', retryAt: now + 1000 });
      await enqueue('a', { payload: 'again' });
      assert.deepEqual((await claim('l2')).claimed, []);
      now += 1000;
      assert.deepEqual((await claim('l3')).claimed, [
        { kind: 'work', key: 'a', payload: 'again', lease: 'l3', attempts: 2 },
      ]);
      const last = { ...held('a', 'l3'), now, error: 'still broken', retryAt: undefined };
      assert.deepEqual(await store.transact('job.fail', last), { died: true });
      assert.deepEqual(await listDeadJobs(store.read, 10), [
        { kind: 'work', key: 'a', attempts: 2, error: 'still broken', diedAt: now },
      ]);
      now += 1_000_000;
      assert.deepEqual((await claim('l4')).claimed, []);
      await enqueue('a');
      assert.deepEqual(await listDeadJobs(store.read, 10), []);
      assert.deepEqual(
        (await claim('l5')).claimed.map(({ attempts }) => attempts),
        [1],
      );
    });

    test('a job whose every run ends its process is given up', async () => {
      await enqueue('a');
      for (let i = 1; i <= 3; i++) {
        assert.equal((await claim(`l${i}`)).claimed.length, 1);
        now += LEASE_MS;
      }
      assert.deepEqual(await claim('l4'), { claimed: [], died: ['a'] });
      assert.equal((await listDeadJobs(store.read, 10)).length, 1);
    });

    test('a recurring job is one row across restarts, and missed turns do not pile up', async () => {
      const schedules = [{ kind: 'work', key: '', everyMs: 1000 }];
      const schedule = () => store.transact('job.schedule', { schedules, now });
      await schedule();
      await schedule();
      assert.equal((await claim('l1')).claimed.length, 1);
      await store.transact('job.complete', { ...held('', 'l1'), now, again: undefined });
      now += 10_500;
      await schedule();
      assert.equal((await claim('l2')).claimed.length, 1);
      await store.transact('job.complete', { ...held('', 'l2'), now, again: undefined });
      assert.deepEqual(
        (await rows()).map(({ due_at }) => due_at),
        [now + 1000],
      );
      now += 1000;
      await claim('l3');
      const outcome = await store.transact('job.fail', {
        ...held('', 'l3'),
        now,
        error: 'x',
        retryAt: undefined,
      });
      assert.deepEqual(outcome, { died: false });
      assert.deepEqual(
        (await rows()).map(({ due_at, attempts }) => [due_at, attempts]),
        [[now + 1000, 0]],
      );
    });

    test('a removed job is gone, also when it runs', async () => {
      await enqueue('a');
      await enqueue('b');
      await store.transact('job.claim', { ...CLAIM, limit: 1, lease: 'l1', now });
      const [running] = (await rows()).filter(({ lease }) => lease !== null);
      for (const key of ['a', 'b']) await store.transact('job.remove', { kind: 'work', key });
      assert.equal((await rows()).length, 1);
      await store.transact('job.complete', { ...held(running?.key ?? '', 'l1'), now, again: undefined });
      assert.deepEqual(await rows(), []);
    });

    test('the runner runs what is due and what is asked for later, woken by the commit', async () => {
      const ran: [string, unknown][] = [];
      let reached = signal();
      // Long polls: only waking can be as fast as the test expects.
      const runner = await start(async ({ key, payload }) => {
        ran.push([key, payload]);
        reached.resolve();
      }, 600_000);
      const woken = observeCommits(store, () => runner.wake());
      await woken.transact('job.enqueue', { kind: 'work', key: 'a', runAt: now, payload: { x: [1] } });
      await reached.promise;
      reached = signal();
      await woken.transact('job.enqueue', { kind: 'work', key: 'b', runAt: now });
      await reached.promise;
      await runner.stop();
      assert.deepEqual(ran, [
        ['a', { x: [1] }],
        ['b', null],
      ]);
      assert.deepEqual(await rows(), []);
    });

    test('the runner tries again what failed, and what nobody ended, after its lease', async () => {
      await enqueue('a');
      await claim(store.newWriter());
      const done = signal<number>();
      const begun = signal();
      await start(async ({ attempts }) => {
        if (attempts === 2) {
          begun.resolve();
          throw new Error('once');
        }
        done.resolve(attempts);
      });
      now += LEASE_MS;
      await begun.promise;
      now += 2 * backoffMs(2, 1000, 10_000);
      // The failure may be written after the clock moved; then its time is further on.
      const clock = setInterval(() => (now += 10_000), 5);
      assert.equal(await done.promise, 3);
      clearInterval(clock);
    });

    test('the job of a process that is gone is taken over at once, and not as often as it can die', async () => {
      await enqueue('a');
      await enqueue('b');
      const gone = await database.nameGone();
      await store.transact('job.claim', { ...CLAIM, limit: 1, lease: gone, now });
      await store.transact('job.claim', { ...CLAIM, limit: 1, lease: store.newWriter(), now });
      const [left] = (await rows()).filter(({ lease }) => lease === gone);
      const ran = signal<readonly [string, number]>();
      const again = signal<readonly [string, number]>();
      if (store.engine === 'postgres') now += LEASE_MS / 8;
      let runner = await start(async ({ key, attempts }) => ran.resolve([key, attempts]));
      assert.deepEqual(await ran.promise, [left?.key, 2]);
      await runner.stop();
      assert.equal((await rows()).length, 1);

      // The other one's holder lives. From the second death on there is a pause.
      const other = { kind: 'work', key: (await rows())[0]?.key ?? '' };
      now = START + LEASE_MS;
      await store.transact('job.claim', { ...CLAIM, lease: await database.nameGone(), now });
      if (store.engine === 'postgres') now += LEASE_MS / 8;
      const cutAt = now;
      runner = await start(async ({ key, attempts }) => again.resolve([key, attempts]));
      while ((await rows())[0]?.due_at !== cutAt + 1000);
      now += 1000;
      assert.deepEqual(await again.promise, [other.key, 3]);
    });

    test('a lease that is renewed while its holder is taken for gone stays whole', async () => {
      await enqueue('a');
      await claim('l1');
      const was = now + LEASE_MS;
      const [until, later] = [now, was + 1];
      await store.transact('job.renew', { ...held('a', 'l1'), until: later });
      await store.transact('job.cut', { leases: [{ ...held('a', 'l1'), was, until }] });
      assert.deepEqual((await rows())[0]?.due_at, later);
      await store.transact('job.cut', { leases: [{ ...held('a', 'other'), was: later, until }] });
      assert.deepEqual((await rows())[0]?.due_at, later);
      await store.transact('job.cut', { leases: [{ ...held('a', 'l1'), was: later, until }] });
      assert.deepEqual((await claim('l2')).claimed.length, 1);
    });

    test('two runners never run one job at the same time', async () => {
      let active = 0;
      let most = 0;
      let runs = 0;
      const done = signal();
      const run = async (): Promise<{ again: number }> => {
        most = Math.max(most, ++active);
        await store.read.selectFrom('job').select('key').execute();
        active--;
        if (++runs === 20) done.resolve();
        return { again: now };
      };
      await enqueue('a');
      await start(run, 1);
      await start(run, 1);
      await done.promise;
      assert.equal(most, 1);
    });

    test('no more of a kind run at once than it allows', async () => {
      let active = 0;
      let most = 0;
      let left = 12;
      const done = signal();
      await Promise.all(Array.from({ length: left }, (_, i) => enqueue(`k${i}`)));
      await start({
        concurrency: 3,
        run: async () => {
          most = Math.max(most, ++active);
          await store.read.selectFrom('job').select('key').execute();
          await new Promise((resolve) => setImmediate(resolve));
          active--;
          if (--left === 0) done.resolve();
        },
      });
      await done.promise;
      assert.equal(most, 3);
    });

    test('stopping tells running handlers, waits for them, and what broke off runs again', async () => {
      await enqueue('a');
      const begun = signal<JobRun>();
      let ended = false;
      const runner = await start(async (job) => {
        begun.resolve(job);
        await new Promise((resolve) => job.signal.addEventListener('abort', resolve));
        ended = true;
        throw new Error('broken off');
      });
      await begun.promise;
      await runner.stop();
      assert.ok(ended);
      assert.deepEqual(await rows(), [
        { key: 'a', payload: 'null', run_at: now, due_at: now, lease: null, attempts: 0 },
      ]);
    });
  });
}
