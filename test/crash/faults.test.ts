/**
 * Disks that fill up, fail or become read-only, and a database that goes away, under a server that goes on running: its
 * clients are told to come again, nothing is acknowledged that is not durable, and once the fault is gone all works again.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, afterEach, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  basic,
  callEcr,
  makePlace,
  readAdmin,
  registryPassword,
  startBerth,
  until,
  type BerthServer,
  type Environment,
  type Place,
} from '../clients/harness.ts';
import { digestOf, makeImage, OCI_MANIFEST, seededBytes, type Image } from '../clients/image.ts';
import { findPostgres, startPostgres, type Postgres } from '../postgres.ts';
import { connect, type Answer, type Connection } from './client.ts';
import { layFaults, missingCompiler, type FaultLayer, type FaultRule } from './faults.ts';
import { losePower } from './power.ts';

const REPOSITORY = 'faults/images';
const V2 = `/v2/${REPOSITORY}`;
const EVERYTHING = ['open', 'write', 'sync', 'truncate', 'entry'] as const;

interface Running {
  readonly place: Place;
  readonly data: string;
  readonly environment: Environment;
  readonly layer: FaultLayer;
  server: BerthServer;
  connection: Connection;
  readonly admin: Credentials;
  readonly authorization: string;
}

async function open(name: string, extra: Environment = {}): Promise<Running> {
  const place = await makePlace(`faults-${name}`);
  const data = join(place.directory, 'data');
  const layer = await layFaults(data);
  const environment = { ...place.environment, ...layer.environment, ...extra };
  const server = await startBerth({ data, environment, flags: ['--log-level', 'warn'] });
  const admin = await readAdmin(data);
  const authorization = basic(await registryPassword(server, admin));
  const { status, text } = await callEcr(server, admin, 'CreateRepository', { repositoryName: REPOSITORY });
  assert.equal(status, 200, text);
  const connection = connect(server.port, authorization);
  return { place, data, environment, layer, server, connection, admin, authorization };
}

async function close({ place, layer, server, connection }: Running): Promise<void> {
  connection.close();
  await server.stop('SIGKILL');
  await layer.remove();
  await place.remove();
}

async function restart(running: Running): Promise<void> {
  running.connection.close();
  const { data, environment } = running;
  running.server = await startBerth({ data, environment, flags: ['--log-level', 'warn'] });
  running.connection = connect(running.server.port, running.authorization);
}

/** Sends what may be refused, but then in the way of a registry. */
async function ask(
  { connection }: Running,
  outcomes: number[],
  ...[method, path, body]: Parameters<Connection['send']>
): Promise<Answer> {
  const answer = await connection.send(method, path, body);
  outcomes.push(answer.status);
  if (answer.status >= 500) {
    const text = answer.bytes.toString();
    assert.equal(answer.status, 503, `${method} ${path}: ${text}`);
    assert.equal(answer.headers['retry-after'], '1');
    const { errors } = JSON.parse(text) as { errors: { code: string; message: string }[] };
    assert.equal(errors[0]?.code, 'UNAVAILABLE');
    assert.match(errors[0].message, /^The (storage of the registry|metadata database|metadata writer) /);
    assert.doesNotMatch(text, /\/tmp\//);
  }
  return answer;
}

/** A push in three forms. What was acknowledged of it. */
async function push(running: Running, image: Image, outcomes: number[]): Promise<Set<string>> {
  const stored = new Set<string>();
  const [layer] = image.layers;
  assert.ok(layer !== undefined);
  const { bytes, digest } = layer;
  const begun = await ask(running, outcomes, 'POST', `${V2}/blobs/uploads/`);
  let { location } = begun.headers;
  const cut = Math.floor(bytes.length / 3);
  for (const part of [bytes.subarray(0, cut), bytes.subarray(cut)]) {
    if (location === undefined) break;
    ({ location } = (await ask(running, outcomes, 'PATCH', location, { bytes: part })).headers);
  }
  if (location !== undefined) {
    const closed = await ask(running, outcomes, 'PUT', `${location}?digest=${digest}`);
    if (closed.status === 201) stored.add(digest);
  }
  const path = `${V2}/blobs/uploads/?digest=${image.config.digest}`;
  if ((await ask(running, outcomes, 'POST', path, { bytes: image.config.bytes })).status === 201)
    stored.add(image.config.digest);
  if (stored.size < 2) return stored;
  const body = { bytes: image.bytes, type: OCI_MANIFEST };
  const put = await ask(running, outcomes, 'PUT', `${V2}/manifests/${image.digest}`, body);
  if (put.status === 201) stored.add(image.digest);
  return stored;
}

/** Reads what was acknowledged: all of it is there, whole. */
async function pull({ connection }: Running, image: Image, stored: ReadonlySet<string>): Promise<void> {
  for (const piece of [image, image.config, ...image.layers]) {
    if (!stored.has(piece.digest)) continue;
    const kind = piece === image ? 'manifests' : 'blobs';
    const answer = await connection.send('GET', `${V2}/${kind}/${piece.digest}`);
    assert.equal(answer.status, 200, `${kind}/${piece.digest}: ${answer.bytes.toString()}`);
    assert.ok(answer.bytes.equals(piece.bytes));
  }
}

const whole = ({ digest, config, layers }: Image): Set<string> =>
  new Set([digest, config.digest, ...layers.map((layer) => layer.digest)]);

interface Case {
  readonly what: string;
  readonly rules: readonly FaultRule[];
  /** Whether the ECR API must refuse as well: it writes metadata only. */
  readonly metadata: boolean;
}

const CASES: readonly Case[] = [
  {
    what: 'no space for blobs',
    rules: [{ operations: ['write'], error: 'ENOSPC', path: '/blobs/' }],
    metadata: false,
  },
  {
    what: 'blobs cannot be written',
    rules: [{ operations: ['write'], error: 'EIO', path: '/blobs/' }],
    metadata: false,
  },
  {
    what: 'blobs cannot be synced',
    rules: [{ operations: ['sync'], error: 'EIO', path: '/blobs/' }],
    metadata: false,
  },
  {
    what: 'no space for names of blobs',
    rules: [{ operations: ['entry'], error: 'ENOSPC', path: '/blobs/' }],
    metadata: false,
  },
  {
    what: 'uploads cannot be renamed',
    rules: [{ operations: ['entry'], error: 'EIO', path: '/blobs/' }],
    metadata: false,
  },
  {
    what: 'no space for the log of the database',
    rules: [{ operations: ['write', 'truncate'], error: 'ENOSPC', path: 'berth.db-wal' }],
    metadata: true,
  },
  {
    what: 'the log of the database cannot be written',
    rules: [{ operations: ['write'], error: 'EIO', path: 'berth.db-wal' }],
    metadata: true,
  },
  {
    what: 'the log of the database cannot be synced',
    rules: [{ operations: ['sync'], error: 'EIO', path: 'berth.db-wal' }],
    metadata: true,
  },
  {
    what: 'everything became read-only',
    rules: [{ operations: EVERYTHING, error: 'EROFS' }],
    metadata: true,
  },
  {
    what: 'everything is full',
    rules: [{ operations: ['write', 'entry'], error: 'ENOSPC' }],
    metadata: true,
  },
];

describe('faults of the disk', { skip: missingCompiler }, () => {
  let running: Running;
  const good = makeImage('good', [30_000]);
  before(async () => {
    running = await open('disk');
    const outcomes: number[] = [];
    assert.deepEqual(await push(running, good, outcomes), whole(good), outcomes.join());
  });
  after(() => close(running));
  afterEach(() => running.layer.impose());

  for (const [number, { what, rules, metadata }] of CASES.entries()) {
    test(what, async () => {
      const { layer, server, admin } = running;
      const image = makeImage(`faulty ${number}`, [40_000]);
      // begun before the fault, and goes on after it
      const bytes = seededBytes(what, 50_000);
      const half = bytes.subarray(0, 20_000);
      const begun = await running.connection.send('POST', `${V2}/blobs/uploads/`);
      const first = await running.connection.send('PATCH', begun.headers.location ?? '', { bytes: half });
      assert.equal(first.status, 202);
      const location = String(first.headers.location);

      layer.impose(...rules);
      const outcomes: number[] = [];
      const rest = { bytes: bytes.subarray(half.length) };
      const patched = await ask(running, outcomes, 'PATCH', location, rest);
      const stored = await push(running, image, outcomes);
      assert.ok(outcomes.includes(503), outcomes.join());
      assert.ok(layer.hits(0) > 0);
      await pull(running, good, whole(good));
      const ready = await running.connection.send('GET', '/readyz');
      assert.equal(ready.status, 503, 'it passes for ready');
      const input = { repositoryName: `faults/made-${number}` };
      const made = await callEcr(server, admin, 'CreateRepository', input).catch((error: unknown) =>
        assert.fail(`${String(error)}: ${server.output()}`),
      );
      assert.equal(made.status, metadata ? 503 : 200, made.text);
      if (metadata) assert.match(made.text, /"__type":"(.*#)?ServiceUnavailableException"/);

      layer.impose();
      if (number === CASES.length - 1)
        await until('it is ready again', async () => {
          return (await running.connection.send('GET', '/readyz')).status === 200;
        });
      await until('it takes writes again', async () => {
        const probe = await running.connection.send('POST', `${V2}/blobs/uploads/`);
        return probe.status === 202;
      });
      await pull(running, image, stored);
      const again: number[] = [];
      assert.deepEqual(await push(running, image, again), whole(image), again.join());
      await pull(running, image, whole(image));
      if (patched.status !== 202)
        assert.equal((await running.connection.send('PATCH', location, rest)).status, 202);
      const closed = await running.connection.send('PUT', `${location}?digest=${digestOf(bytes)}`);
      assert.equal(closed.status, 201, closed.bytes.toString());
      assert.doesNotMatch(server.output(), /"msg":"defect"/);
      assert.ok(!server.hasExited());
    });
  }

  test('an answer under faults is kept when the power fails', async () => {
    const { data, layer } = running;
    layer.impose({ operations: ['sync'], error: 'EIO', path: '/blobs/', times: 5 });
    const kept: [Image, Set<string>][] = [];
    for (let number = 0; number < 8; number++) {
      const image = makeImage(`power ${number}`, [20_000]);
      kept.push([image, await push(running, image, [])]);
    }
    await running.server.stop('SIGKILL');
    layer.impose();
    losePower(data, layer.area, 'everything', () => 0);
    await restart(running);
    assert.ok(kept.some(([, stored]) => stored.size === 3));
    for (const [image, stored] of kept) await pull(running, image, stored);
  });

  test('a start on a read-only directory says so', async () => {
    const { data, environment, layer } = running;
    running.connection.close();
    await running.server.stop();
    layer.impose({ operations: EVERYTHING, error: 'EROFS' });
    const message = await startBerth({ data, environment }).then(
      () => assert.fail('it started'),
      (error: unknown) => String(error),
    );
    layer.impose();
    assert.match(message, /the server ended with 1:/);
    assert.match(message, /EROFS|read-?only/i);
    assert.doesNotMatch(message, /\n\s+at /);
    await restart(running);
    await pull(running, good, whole(good));
  });

  test('a manifest whose row the disk has changed is not served', async () => {
    const { data } = running;
    running.connection.close();
    assert.equal(await running.server.stop(), 0);
    flipManifest(join(data, 'berth.db'), good.digest);
    await restart(running);
    const answer = await running.connection.send('GET', `${V2}/manifests/${good.digest}`);
    assert.equal(answer.status, 500);
    assert.doesNotMatch(answer.bytes.toString(), /schemaVersion/);
    const body = { repositoryName: REPOSITORY, imageIds: [{ imageDigest: good.digest }] };
    const got = await callEcr(running.server, running.admin, 'BatchGetImage', body);
    assert.equal(got.status, 500);
    await until('the log says why', () => running.server.output().includes('is damaged in the database'));
    flipManifest(join(data, 'berth.db'), good.digest);
    await pull(running, good, whole(good));
  });
});

function flipManifest(file: string, digest: string): void {
  const database = new DatabaseSync(file, { timeout: 5000 });
  const row = database.prepare('select manifest from image where digest = ?').get(digest);
  const bytes = Buffer.from(row?.['manifest'] as Uint8Array);
  bytes[10] = (bytes[10] ?? 0) ^ 1;
  database.prepare('update image set manifest = ? where digest = ?').run(bytes, digest);
  database.close();
}

const programs = await findPostgres();

describe(
  'faults of PostgreSQL',
  { skip: missingCompiler || (programs === undefined && 'not installed: postgresql') },
  () => {
    let database: Postgres;
    let running: Running;
    before(async () => {
      database = await startPostgres(programs ?? '');
      running = await open('postgres', { BERTH_DATABASE: database.url });
    });
    after(async () => {
      await close(running);
      await database.stop();
    });

    test('it restarts while a chunked upload runs', async () => {
      const { connection } = running;
      const good = makeImage('good', [30_000]);
      assert.deepEqual(await push(running, good, []), whole(good));
      const bytes = seededBytes('through a restart', 3_000_000);
      const cuts = [0, 1_000_000, 2_000_000, 3_000_000];
      const begun = await connection.send('POST', `${V2}/blobs/uploads/`);
      const location = begun.headers.location ?? '';
      const first = await connection.send('PATCH', location, { bytes: bytes.subarray(0, cuts[1]) });
      assert.equal(first.status, 202);

      // the second chunk is on its way when the database goes
      const slow = sendSlowly(running, location, bytes.subarray(cuts[1], cuts[2]));
      await slow.halfSent;
      await database.halt();
      const outcomes: number[] = [];
      await ask(running, outcomes, 'POST', `${V2}/blobs/uploads/`);
      await ask(running, outcomes, 'GET', `${V2}/manifests/${good.digest}`);
      const { status, text } = await callEcr(running.server, running.admin, 'DescribeRepositories', {});
      assert.equal(status, 503, text);
      assert.deepEqual(outcomes, [503, 503]);
      slow.finish();
      const second = await slow.answered;
      assert.equal(second.status, 503, second.text);
      assert.equal(second.retryAfter, '1');
      await database.resume();

      const size = async (): Promise<number> => {
        const { headers } = await connection.send('GET', location);
        return Number(/^0-(\d+)$/.exec(String(headers.range))?.[1]) + 1;
      };
      await until(
        'the database is back',
        async () => (await connection.send('GET', location)).status === 204,
      );
      const from = await size();
      assert.equal(from, cuts[1]);
      await until(
        'the upload is free again',
        async () => {
          const again = await connection.send('PATCH', location, { bytes: bytes.subarray(from) });
          return again.status === 202;
        },
        // Far sooner than the claim of the broken-off chunk would run out.
        20_000,
      );
      const closed = await connection.send('PUT', `${location}?digest=${digestOf(bytes)}`);
      assert.equal(closed.status, 201, closed.bytes.toString());
      await pull(running, good, whole(good));
      const image = makeImage('after', [30_000]);
      assert.deepEqual(await push(running, image, []), whole(image));
      assert.doesNotMatch(running.server.output(), /"msg":"defect"/);
    });

    test('two servers on one database and one directory push, delete and collect at once', async () => {
      const { data, environment } = running;
      const times = '--gc-interval-ms 20 --blob-lease-ms 5000 --trash-grace-ms 100 --log-level warn'.split(
        ' ',
      );
      const starting = [0, 1].map(() => startBerth({ data, environment, flags: times }));
      const started = await Promise.allSettled(starting);
      const servers = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
      const connections = servers.map(({ port }) => connect(port, running.authorization));
      try {
        await Promise.all(starting);
        const kept = (
          await Promise.all(
            [0, 1, 2, 3].map(async (worker) => {
              const mine: Image[] = [];
              for (let number = 0; number < 8; number++) {
                // every worker changes servers all the time, and two push the same
                const image = makeImage(`both ${worker % 2} ${number}`, [12_000]);
                const at = (step: number): Running => {
                  const connection = connections[(worker + number + step) % 2];
                  assert.ok(connection !== undefined);
                  return { ...running, connection };
                };
                assert.deepEqual(await push(at(0), image, []), whole(image));
                if (worker < 2 && number % 2 === 0) mine.push(image);
                await pull(at(1), image, whole(image));
              }
              return mine;
            }),
          )
        ).flat();
        const [a, b] = connections;
        assert.ok(a !== undefined && b !== undefined);
        for (const worker of [0, 1])
          for (let number = 1; number < 8; number += 2) {
            const { digest } = makeImage(`both ${worker} ${number}`, [12_000]);
            const answer: Answer = await (number % 4 === 1 ? a : b).send(
              'DELETE',
              `${V2}/manifests/${digest}`,
            );
            assert.equal(answer.status, 202);
          }
        const blobs = async (): Promise<number> => {
          const entries = await readdir(join(data, 'blobs'), { recursive: true, withFileTypes: true });
          return entries.filter((entry) => entry.isFile()).length;
        };
        const before = await blobs();
        await until('one of them has collected', async () => (await blobs()) < before, 60_000);
        for (const [number, image] of kept.entries())
          await pull({ ...running, connection: number % 2 === 0 ? a : b }, image, whole(image));
        for (const server of servers) {
          assert.equal(await server.stop(), 0);
          assert.doesNotMatch(server.output(), /"level":[56]0/);
        }
      } finally {
        for (const connection of connections) connection.close();
        for (const server of servers) await server.stop('SIGKILL');
      }
    });
  },
);

interface SlowAnswer {
  readonly status: number;
  readonly retryAfter: string | undefined;
  readonly text: string;
}

/** A PATCH whose second half waits to be asked for. */
function sendSlowly(
  { server, authorization }: Running,
  path: string,
  bytes: Buffer,
): { halfSent: Promise<void>; finish(): void; answered: Promise<SlowAnswer> } {
  const headers = {
    authorization,
    'content-length': bytes.length,
    'content-type': 'application/octet-stream',
  };
  const sending = request({ host: '127.0.0.1', port: server.port, method: 'PATCH', path, headers });
  const half = Math.floor(bytes.length / 2);
  const answered = new Promise<SlowAnswer>((resolve, reject) => {
    sending.on('error', reject);
    sending.on('response', (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (part: string) => void (text += part));
      answer.on('end', () =>
        resolve({ status: answer.statusCode ?? 0, retryAfter: answer.headers['retry-after'], text }),
      );
    });
  });
  const halfSent = new Promise<void>(
    (resolve) => void sending.write(bytes.subarray(0, half), () => resolve()),
  );
  return { halfSent, finish: () => void sending.end(bytes.subarray(half)), answered };
}
