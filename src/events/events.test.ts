import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { findPostgres, startPostgres, type Postgres } from '../../test/postgres.ts';
import type { EventRecord } from '../domain/events.ts';
import { createJobRunner, observeCommits, type JobRunner } from '../jobs/jobs.ts';
import type { Repository } from '../registry/registry.ts';
import {
  digestOf,
  indexOf,
  openTestRegistry,
  push,
  type OpenStore,
  type TestRegistry,
} from '../registry/testing.ts';
import { openPostgresStore, openSqliteStore, type Store } from '../store/store.ts';
import { createEvents, type Events, type EventsOptions } from './events.ts';
import { startReceiver, summary, type Receiver } from './test-receiver.ts';

const run = promisify(execFile);
const ACCOUNT = '000000000000';
const SECRET = 'a-secret-of-webhooks';
const HOUR_MS = 3_600_000;
const NEVER = new AbortController().signal;

/** Both ends: something that happens, and somebody who is told. */
interface Bench extends TestRegistry {
  receiver: Receiver;
  /** Resolves with the reasons when as many failed attempts were noted in all. */
  failed(count: number): Promise<readonly string[]>;
  /** starts publishing and delivering, as one process */
  run(options?: Partial<EventsOptions>): Promise<{ events: Events; stop: () => Promise<void> }>;
  pushTag(repository: Repository, tag: string): Promise<string>;
  all(account?: string): Promise<readonly EventRecord[]>;
}

async function openBench(openStore: OpenStore, options: { pullEvents?: boolean } = {}): Promise<Bench> {
  const running: { stop(): Promise<void> }[] = [];
  const wakers: (() => void)[] = [];
  const registry = await openTestRegistry(
    async (directory) =>
      observeCommits(await openStore(directory), () => {
        for (const wake of wakers) wake();
      }),
    options,
  );
  const receiver = await startReceiver();
  const reasons: string[] = [];
  let waiting: { count: number; resolve: (reasons: string[]) => void }[] = [];
  const log = {
    warn: ({ reason, err }: { reason?: string; err?: Error }) => {
      reasons.push(reason ?? err?.message ?? '');
      for (const { count, resolve } of waiting) if (reasons.length >= count) resolve(reasons);
      waiting = waiting.filter(({ count }) => count > reasons.length);
    },
    error: (fields: object) => assert.fail(JSON.stringify(fields)),
  } as unknown as NonNullable<EventsOptions['log']>;
  const { store, time } = registry;
  const clock = (): number => time.now;
  const create = (options: Partial<EventsOptions>): Events =>
    createEvents({
      store,
      clock,
      webhooks: [receiver.url],
      form: 'eventbridge',
      secret: SECRET,
      retentionMs: 168 * HOUR_MS,
      pollMs: 5,
      log,
      ...options,
    });
  return {
    ...registry,
    receiver,
    failed: (count) =>
      reasons.length >= count
        ? Promise.resolve(reasons)
        : new Promise((resolve) => waiting.push({ count, resolve })),
    async run(options = {}) {
      const events = create(options);
      const jobs: JobRunner = createJobRunner({
        store: options.store ?? store,
        clock,
        handlers: events.handlers,
        pollMs: 5,
        log,
      });
      events.start();
      await jobs.start();
      wakers.push(
        () => events.wake(),
        () => jobs.wake(),
      );
      const process = {
        events,
        async stop() {
          await events.stop();
          await jobs.stop();
        },
      };
      running.push(process);
      return process;
    },
    async pushTag(repository, tag) {
      const manifest = indexOf([], { annotations: { nonce: randomBytes(8).toString('hex') } });
      await registry.registry.images.put(repository, push(manifest, [tag]));
      return digestOf(manifest);
    },
    all: async (account = ACCOUNT) =>
      (await create({}).read(account, 0, { limit: 500, waitMs: 0, signal: NEVER })).events,
    async close() {
      for (const process of running) await process.stop();
      await receiver.close();
      await registry.close();
    },
  };
}

function told(events: readonly EventRecord[]): unknown[] {
  return events.map(({ detail }) => [detail['action-type'], detail['image-tag'], detail['image-digest']]);
}

function eventTests(openStore: OpenStore): void {
  let t: Bench;
  let app: Repository;
  beforeEach(async () => {
    t = await openBench(openStore);
    app = await t.createRepository('team/app');
  });
  afterEach(() => t.close());

  const deliveries = () =>
    t.store.read.selectFrom('event_delivery').select(['position', 'died_at']).execute();

  test('a push is told in the words of EventBridge', async () => {
    const digest = await t.pushTag(app, 'v1');
    const [event, ...others] = await t.all();
    assert.deepEqual(others, []);
    assert.match(event?.id ?? '', /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8000-[0-9a-f]{12}$/);
    assert.deepEqual(
      { ...event, id: '' },
      {
        version: '0',
        id: '',
        'detail-type': 'ECR Image Action',
        source: 'aws.ecr',
        account: ACCOUNT,
        time: '2026-01-01T00:00:00Z',
        region: 'us-east-1',
        resources: [],
        detail: {
          result: 'SUCCESS',
          'repository-name': 'team/app',
          'image-digest': digest,
          'action-type': 'PUSH',
          'image-tag': 'v1',
          'manifest-media-type': 'application/vnd.oci.image.index.v1+json',
        },
      },
    );
  });

  test('every change is told once, and nothing that did not happen', async () => {
    const { images } = t.registry;
    const manifest = indexOf([]);
    const digest = digestOf(manifest);
    await images.put(app, push(manifest, []));
    await images.put(app, push(manifest, ['a', 'b']));
    await images.put(app, push(manifest, ['b']));
    await images.put(app, push(manifest, ['b', 'c']));
    await assert.rejects(images.put(app, push(manifest, ['c'], { existing: 'refuse' })));
    const locked = await t.createRepository('locked', { mutability: 'IMMUTABLE' });
    const first = await t.pushTag(locked, 'v1');
    await assert.rejects(t.pushTag(locked, 'v1'), { code: 'ImageTagAlreadyExistsException' });
    await images.batchDelete(app, [{ imageTag: 'a' }, { imageTag: 'missing' }]);
    await images.batchDelete(app, [{ imageDigest: digest }]);
    assert.deepEqual(told(await t.all()), [
      ['PUSH', undefined, digest],
      ['PUSH', 'a', digest],
      ['PUSH', 'b', digest],
      ['PUSH', 'c', digest],
      ['PUSH', 'v1', first],
      ['DELETE', 'a', digest],
      ['DELETE', 'b', digest],
      ['DELETE', 'c', digest],
    ]);
  });

  test('pulls are told only when that is asked for, in batches', async () => {
    const asked = await openBench(openStore, { pullEvents: true });
    const repository = await asked.createRepository('team/app');
    const manifest = indexOf([]);
    const digest = digestOf(manifest);
    for (const [bench, target] of [
      [t, app],
      [asked, repository],
    ] as const) {
      const { images } = bench.registry;
      await images.put(target, push(manifest, ['v1']));
      await images.find(target, 'v1', { pull: true });
      await images.find(target, 'v1', { pull: true });
      await bench.registry.flush();
    }
    assert.deepEqual(told(await t.all()), [['PUSH', 'v1', digest]]);
    assert.deepEqual(told(await asked.all()), [
      ['PUSH', 'v1', digest],
      ['PULL', undefined, digest],
    ]);
    await asked.close();
  });

  test('deliveries are signed, and accepted ones forgotten', async () => {
    const { stop } = await t.run();
    await t.pushTag(app, 'v1');
    await t.receiver.until(1);
    await stop();
    assert.deepEqual(await deliveries(), []);
    const [{ path, headers, body } = assert.fail()] = t.receiver.received;
    const [event] = await t.all();
    assert.deepEqual(JSON.parse(body), event);
    assert.equal(path, '/hook?key=hidden');
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(headers['x-berth-event-id'], event?.id);
    assert.equal(headers['x-webhook-secret'], undefined);
    const [, time, signature] =
      /^t=(\d+),v1=([0-9a-f]{64})$/.exec(String(headers['x-berth-signature'])) ?? [];
    assert.equal(Number(time), t.time.now / 1000);
    assert.equal(signature, createHmac('sha256', SECRET).update(`${time}.${body}`).digest('hex'));
  });

  test('CloudEvents carry what Argo CD Image Updater reads', async () => {
    await t.run({ form: 'cloudevents' });
    const digest = await t.pushTag(app, 'v1');
    await t.receiver.until(1);
    const [{ headers, body } = assert.fail()] = t.receiver.received;
    assert.equal(headers['content-type'], 'application/cloudevents+json');
    assert.equal(headers['x-webhook-secret'], SECRET);
    assert.deepEqual(JSON.parse(body), {
      specversion: '1.0',
      id: headers['x-berth-event-id'],
      type: 'com.amazon.ecr.image.push',
      source: 'urn:aws:ecr:us-east-1:000000000000:repository/team/app',
      subject: 'team/app:v1',
      time: '2026-01-01T00:00:00Z',
      datacontenttype: 'application/json',
      data: {
        result: 'SUCCESS',
        repositoryName: 'team/app',
        imageDigest: digest,
        actionType: 'PUSH',
        imageTag: 'v1',
        manifestMediaType: 'application/vnd.oci.image.index.v1+json',
        registryId: ACCOUNT,
      },
    });
  });

  test('a refused event holds up its own repository only, and none is lost or out of order', async () => {
    const other = await t.createRepository('other');
    let failures = 3;
    t.receiver.behave = ({ body }) => (body.includes('"image-tag":"v2"') && failures-- > 0 ? 503 : 200);
    await t.run();
    for (const tag of ['v1', 'v2', 'v3']) await t.pushTag(app, tag);
    await t.pushTag(other, 'x1');
    for (let attempt = 1; attempt <= 3; attempt++) {
      await t.failed(attempt);
      t.time.now += HOUR_MS;
    }
    // WHY not by number: the clock's leap may outlast the lease of the other delivery, which is then made again.
    await t.receiver.until(1, ({ body }) => body.includes('"image-tag":"v3"'));
    const arrived = summary(t.receiver.received);
    assert.deepEqual(
      arrived.filter((line) => line.includes('team/app')),
      ['v1', 'v2', 'v2', 'v2', 'v2', 'v3'].map((tag) => `PUSH team/app:${tag}`),
    );
    assert.ok(arrived.indexOf('PUSH other:x1') < 4);
  });

  for (const [behaviour, reason] of [
    ['hang', 'no answer within 50 ms'],
    ['cut', 'cannot be reached: UND_ERR_SOCKET'],
    ['redirect', 'answered 302'],
    [404, 'answered 404'],
  ] as const) {
    test(`a receiver that answers with ${behaviour} is asked again`, async () => {
      let first = true;
      t.receiver.behave = () => {
        const now = first ? behaviour : 200;
        first = false;
        return now;
      };
      await t.run(behaviour === 'hang' ? { timeoutMs: 50 } : {});
      await t.pushTag(app, 'v1');
      assert.deepEqual(await t.failed(1), [reason]);
      t.time.now += 1000;
      await t.receiver.until(2);
      // A redirect is not followed: both requests came to the configured address.
      assert.deepEqual(
        t.receiver.received.map(({ path }) => path),
        ['/hook?key=hidden', '/hook?key=hidden'],
      );
    });
  }

  test('what was accepted but not noted is sent again', async () => {
    let crashes = 1;
    const forgetful: Store = {
      ...t.store,
      transact: (name, input) =>
        name === 'event.completeDeliveries' && crashes-- > 0
          ? Promise.reject(new Error('the process ended here'))
          : t.store.transact(name, input),
    };
    const { stop } = await t.run({ store: forgetful });
    await t.pushTag(app, 'v1');
    assert.deepEqual(await t.failed(1), ['the process ended here']);
    t.time.now += 1000;
    await t.receiver.until(2);
    await stop();
    assert.deepEqual(summary(t.receiver.received), ['PUSH team/app:v1', 'PUSH team/app:v1']);
    assert.deepEqual(await deliveries(), []);
  });

  test('what was not delivered when the process ended is delivered by the next', async () => {
    t.receiver.behave = () => 'hang';
    const first = await t.run({ timeoutMs: 50 });
    await t.pushTag(app, 'v1');
    await t.receiver.until(1);
    await first.stop();
    t.receiver.behave = () => 200;
    await t.pushTag(app, 'v2');
    t.time.now += HOUR_MS;
    await t.run();
    await t.receiver.until(3);
    assert.deepEqual(
      summary(t.receiver.received),
      ['v1', 'v1', 'v2'].map((tag) => `PUSH team/app:${tag}`),
    );
  });

  test('what is refused for good becomes a dead letter, lets the next pass, and can be replayed', async () => {
    t.receiver.behave = ({ body }) => (body.includes('"image-tag":"v1"') ? 400 : 200);
    const { events } = await t.run();
    await t.pushTag(app, 'v1');
    await t.pushTag(app, 'v2');
    for (let attempt = 1; attempt < 20; attempt++) {
      await t.failed(attempt);
      t.time.now += HOUR_MS;
    }
    await t.receiver.until(21);
    assert.equal(summary(t.receiver.received).at(-1), 'PUSH team/app:v2');
    const {
      deadLetters: [dead, ...others],
    } = await events.listDead(ACCOUNT);
    assert.deepEqual(others, []);
    assert.deepEqual(
      { ...dead, event: dead?.event.detail['image-tag'] },
      {
        event: 'v1',
        webhook: new URL(t.receiver.url).origin,
        attempts: 20,
        error: 'answered 400',
        diedAt: new Date(t.time.now).toISOString(),
      },
    );
    assert.deepEqual(await events.listDead('111111111111'), { deadLetters: [] });
    assert.equal(await events.replay('111111111111', undefined), 0);
    assert.equal(await events.replay(ACCOUNT, (await t.all())[1]?.id), 0);
    await assert.rejects(events.replay(ACCOUNT, 'nonsense'), { code: 'InvalidParameterException' });
    t.receiver.behave = () => 200;
    assert.equal(await events.replay(ACCOUNT, dead?.event.id), 1);
    await t.receiver.until(22);
    assert.equal(summary(t.receiver.received).at(-1), 'PUSH team/app:v1');
    assert.deepEqual(await events.listDead(ACCOUNT), { deadLetters: [] });
  });

  test('dead letters are listed to the last, page by page', async () => {
    t.receiver.behave = () => 500;
    const webhooks = [1, 2, 3].map((n) => `${t.receiver.url}&n=${n}`);
    const { events, stop } = await t.run({ webhooks });
    const tags = Array.from({ length: 167 }, (_, i) => `v${i}`);
    await t.registry.images.put(app, push(indexOf([]), tags));
    await t.failed(3);
    await stop();
    const owed = await t.store.read
      .selectFrom('event_delivery')
      .select(['sink', 'stream', 'position'])
      .execute();
    assert.equal(owed.length, 501);
    for (const target of owed)
      await t.store.transact('event.failDelivery', {
        ...target,
        now: t.time.now,
        error: 'x',
        retryAt: undefined,
      });
    const first = await events.listDead(ACCOUNT);
    const second = await events.listDead(ACCOUNT, first.next);
    assert.deepEqual([first.deadLetters.length, second.deadLetters.length, second.next], [500, 1, undefined]);
    const counts = Map.groupBy([...first.deadLetters, ...second.deadLetters], ({ event }) => event.id);
    assert.deepEqual([...new Set([...counts.values()].map((letters) => letters.length))], [3]);
    await assert.rejects(events.listDead(ACCOUNT, 'x'), { code: 'InvalidParameterException' });
  });

  test('an event that nobody took for a day is dead after its next attempt', async () => {
    t.receiver.behave = () => 500;
    const { events, stop } = await t.run();
    await t.pushTag(app, 'v1');
    await t.failed(1);
    t.time.now += 24 * HOUR_MS;
    await t.failed(2);
    await stop();
    assert.deepEqual(
      (await events.listDead(ACCOUNT)).deadLetters.map(({ attempts }) => attempts),
      [2],
    );
    assert.equal(await events.replay(ACCOUNT, undefined), 1);
  });

  test('events are kept for a time, those still owed longer', async () => {
    t.receiver.behave = ({ body }) => (body.includes('"image-tag":"v2"') ? 503 : 200);
    const { stop } = await t.run();
    await t.pushTag(app, 'v1');
    await t.receiver.until(1);
    await t.pushTag(app, 'v2');
    await t.receiver.until(2);
    await stop();
    t.time.now += 169 * HOUR_MS;
    await t.pushTag(app, 'v3');
    await t.all();
    const expire = (sinks: readonly string[]) =>
      t.store.transact('event.expire', { sinks, before: t.time.now - 168 * HOUR_MS, after: 0, limit: 100 });
    const [{ sink } = assert.fail()] = await t.store.read
      .selectFrom('event_delivery')
      .select('sink')
      .execute();
    assert.deepEqual(await expire([sink]), { expired: 1, next: undefined });
    assert.deepEqual(
      (await t.all()).map(({ detail }) => detail['image-tag']),
      ['v2', 'v3'],
    );
    // The webhook is no longer configured: nobody will take it.
    assert.deepEqual(await expire([]), { expired: 1, next: undefined });
    assert.deepEqual(await deliveries(), [{ position: 3, died_at: null }]);
    assert.deepEqual(
      (await t.all()).map(({ detail }) => detail['image-tag']),
      ['v3'],
    );
  });

  test('a reader goes on where it was, waits for more, and sees its own account only', async () => {
    const { events, stop } = await t.run({ webhooks: [] });
    const foreign = await t.createRepository('foreign', { account: '111111111111' });
    const read = (after: number, waitMs = 0, limit = 500) =>
      events.read(ACCOUNT, after, { limit, waitMs, signal: NEVER });
    await t.pushTag(app, 'v1');
    await t.pushTag(foreign, 'f1');
    await t.pushTag(app, 'v2');
    const first = await read(0, 0, 1);
    assert.deepEqual(
      first.events.map(({ detail }) => detail['image-tag']),
      ['v1'],
    );
    // The page after it holds only what another account did.
    assert.deepEqual(await read(first.next, 0, 1), { events: [], next: first.next + 1 });
    const rest = await read(first.next, HOUR_MS);
    assert.deepEqual(
      rest.events.map(({ detail }) => detail['image-tag']),
      ['v2'],
    );
    assert.equal(await events.find(ACCOUNT, rest.events[0]?.id), rest.next);
    assert.equal(await events.find(ACCOUNT, undefined), rest.next);
    const foreignId = (await t.all('111111111111'))[0]?.id ?? '';
    for (const id of [foreignId, 'x', '00000000-0000-8000-8000-ffffffffffff'])
      await assert.rejects(events.find(ACCOUNT, id), { code: 'InvalidParameterException' });
    const waiting = read(rest.next, HOUR_MS);
    await t.pushTag(app, 'v3');
    assert.deepEqual(
      (await waiting).events.map(({ detail }) => detail['image-tag']),
      ['v3'],
    );
    const last = read(rest.next + 1, HOUR_MS);
    await stop();
    assert.deepEqual(await last, { events: [], next: rest.next + 1 });
  });

  test('under concurrent pushes and publishers a reader misses nothing and each repository keeps its order', async () => {
    const repositories = await Promise.all(['r0', 'r1', 'r2'].map((name) => t.createRepository(name)));
    const runs = await Promise.all([1, 2].map(() => t.run({ webhooks: [] })));
    const pushed = Promise.all(
      repositories.map(async (repository) => {
        for (let i = 0; i < 20; i++) await t.pushTag(repository, `t${i}`);
      }),
    );
    const seen: string[] = [];
    let next = 0;
    while (seen.length < 60) {
      const page = await (runs[0] ?? assert.fail()).events.read(ACCOUNT, next, {
        limit: 7,
        waitMs: 1000,
        signal: NEVER,
      });
      ({ next } = page);
      for (const { detail } of page.events)
        seen.push(`${detail['repository-name'] as string} ${detail['image-tag'] as string}`);
    }
    await pushed;
    for (const { name } of repositories)
      assert.deepEqual(
        seen.filter((line) => line.startsWith(name)),
        Array.from({ length: 20 }, (_, i) => `${name} t${i}`),
      );
  });
}

describe('events on SQLite', () => {
  eventTests((directory) => openSqliteStore({ file: join(directory, 'berth.db') }));
});

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED events on PostgreSQL: no initdb and pg_ctl found\n');
else
  describe('events on PostgreSQL', () => {
    let server: Postgres;
    let databases = 0;
    before(async () => {
      server = await startPostgres(bin);
    });
    after(() => server.stop());
    eventTests(async () => {
      const url = new URL(server.url);
      const name = `events_${++databases}`;
      await run(join(bin, 'createdb'), ['-h', decodeURIComponent(url.host), '-U', url.username, name]);
      return openPostgresStore({ url: server.url.replace(/[^/]*$/, name), poolMax: 4 });
    });
  });
