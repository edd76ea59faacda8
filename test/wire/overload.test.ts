/** More is asked of a server than it can do, and clients that abuse it: what each gets, and that the others are served. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { Agent, request as send, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ECRClient, DescribeRepositoriesCommand, ECRServiceException } from '@aws-sdk/client-ecr';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import type { Exchange } from '../../src/http/http.ts';
import { createLog } from '../../src/lib/log.ts';
import { signRequest } from '../../src/lib/sigv4.ts';
import { sendFault } from '../../src/oci/oci.ts';
import { refuseAws } from '../../src/protocol/protocol.ts';
import { startServer, type Doors, type RunningServer, type ServerLimits } from '../../src/server.ts';
import { basic, startWireServer } from './server.ts';

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

interface Asked {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: string;
}

async function ask(port: number, { body, ...rest }: Asked): Promise<Answer> {
  const request = send({ host: '127.0.0.1', port, agent: false, ...rest });
  request.end(body);
  const [message] = (await once(request, 'response')) as [IncomingMessage];
  let text = '';
  for await (const chunk of message) text += String(chunk);
  return { status: message.statusCode ?? 0, headers: message.headers, text };
}

/** A door whose requests stay under way until they are let go. */
interface Held {
  readonly door: (exchange: Exchange) => Promise<void>;
  /** resolves when so many are held */
  holds(count: number): Promise<void>;
  letGo(): void;
}

function hold(): Held {
  let held: (() => void)[] = [];
  let waiting: { count: number; resolve: () => void } | undefined;
  return {
    async door(exchange) {
      const { promise, resolve } = Promise.withResolvers<void>();
      held.push(resolve);
      if (waiting !== undefined && held.length >= waiting.count) waiting.resolve();
      await promise;
      exchange.send(200, {}, 'done');
    },
    holds(count) {
      if (held.length >= count) return Promise.resolve();
      return new Promise((resolve) => (waiting = { count, resolve }));
    },
    letGo() {
      const all = held;
      held = [];
      for (const resolve of all) resolve();
    },
  };
}

interface Listening {
  readonly server: RunningServer;
  readonly port: number;
  readonly shed: string[];
}

const refuse: Doors['refuse'] = (exchange, fault) =>
  exchange.door === 'oci' ? sendFault(exchange, fault) : refuseAws(exchange, fault, Date.now);

async function listen(doors: Partial<Doors>, limits: Partial<ServerLimits>): Promise<Listening> {
  const shed: string[] = [];
  const fine = async (exchange: Exchange): Promise<void> => exchange.send(200, {}, 'fine');
  const server = await startServer({
    doors: {
      oci: fine,
      aws: fine,
      download: fine,
      events: fine,
      ready: () => Promise.resolve(),
      refuse,
      ...doors,
    },
    host: '127.0.0.1',
    port: 0,
    limits,
    onShed: (reason) => shed.push(reason),
    onDone: () => undefined,
    onError: (error) => assert.ifError(error),
  });
  return { server, port: server.port, shed };
}

async function said(socket: Socket): Promise<string> {
  let heard = '';
  // What a server cuts may reach its client as a reset.
  socket.on('error', () => undefined);
  socket.setEncoding('latin1').on('data', (chunk: string) => (heard += chunk));
  await new Promise((resolve) => socket.once('close', resolve));
  return heard;
}

describe('more requests than may be under way', () => {
  const cases: [what: string, asked: Asked, contentType: string, body: RegExp][] = [
    [
      'registry',
      { path: '/v2/a/manifests/b' },
      'application/json',
      /^\{"errors":\[\{"code":"UNAVAILABLE","message":"The server is overloaded\. Try again later\."\}\]\}$/,
    ],
    [
      'ECR',
      {
        method: 'POST',
        path: '/',
        headers: { 'X-Amz-Target': 'AmazonEC2ContainerRegistry_V20150921.PutImage' },
        body: '{}',
      },
      'application/x-amz-json-1.1',
      /^\{"__type":"ServiceUnavailableException","message":"The server is overloaded\. Try again later\."\}$/,
    ],
    [
      'IAM',
      {
        method: 'POST',
        path: '/',
        headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
        body: 'Action=ListUsers&Version=2010-05-08',
      },
      'text/xml',
      /<Type>Receiver<\/Type><Code>ServiceUnavailable<\/Code><Message>The server is overloaded\. Try again later\.<\/Message>/,
    ],
    ['no door', { path: '/nothing' }, 'text/plain', /^The server is overloaded\. Try again later\.\n$/],
  ];
  for (const [what, asked, contentType, body] of cases) {
    test(`${what}: 503 with Retry-After, in its own words, and then served again`, async () => {
      const held = hold();
      const limits = { requestsInFlightMax: 2, queueMs: 30 };
      const { server, port, shed } = await listen({ oci: held.door }, limits);
      const busy = [1, 2].map(() => ask(port, { path: '/v2/' }));
      await held.holds(2);
      const refused = await ask(port, asked);
      assert.equal(refused.status, 503);
      assert.equal(refused.headers['retry-after'], '1');
      assert.equal(refused.headers['content-type'], contentType);
      assert.match(refused.text, body);
      assert.deepEqual(shed, ['queue_timeout']);
      // Transfers and probes have places of their own.
      assert.equal((await ask(port, { path: '/blob-download/x' })).text, 'fine');
      assert.equal((await ask(port, { path: '/healthz' })).status, 200);
      held.letGo();
      assert.deepEqual(
        (await Promise.all(busy)).map(({ text }) => text),
        ['done', 'done'],
      );
      assert.equal((await ask(port, { path: '/nothing' })).status, 404);
      await server.drain();
    });
  }

  test('who waits is served when a place is free; the queue has an end', async () => {
    const held = hold();
    const limits = { requestsInFlightMax: 1, queueMax: 2, queueMs: 60_000, calmMs: 60_000 };
    const { server, port, shed } = await listen({ oci: held.door }, limits);
    const first = ask(port, { path: '/v2/' });
    await held.holds(1);
    const second = ask(port, { path: '/v2/' });
    const third = ask(port, { path: '/v2/' });
    while (server.inFlight < 3) await ask(port, { path: '/healthz' });
    assert.equal((await ask(port, { path: '/v2/' })).status, 503);
    assert.deepEqual(shed, ['queue_full']);
    for (const each of [first, second, third]) {
      await held.holds(1);
      held.letGo();
      assert.equal((await each).text, 'done');
    }
    await server.drain();
  });

  test('transfers that stand still keep no small request out', async () => {
    const held = hold();
    const { server, port } = await listen({ download: held.door }, { transfersInFlightMax: 2, queueMs: 20 });
    const transfers = [1, 2].map(() => ask(port, { path: '/blob-download/x' }));
    await held.holds(2);
    assert.equal((await ask(port, { path: '/blob-download/x' })).status, 503);
    assert.equal((await ask(port, { path: '/v2/a/blobs/sha256:b' })).status, 503);
    assert.equal(
      (await ask(port, { method: 'PATCH', path: '/v2/a/blobs/uploads/b', body: 'x' })).status,
      503,
    );
    for (const path of ['/v2/', '/v2/a/manifests/b', '/events'])
      assert.equal((await ask(port, { path })).status, 200);
    held.letGo();
    await Promise.all(transfers);
    await server.drain();
  });

  test('a body that was announced is asked for when the request is admitted', async () => {
    const held = hold();
    const { server, port } = await listen({ oci: held.door }, { requestsInFlightMax: 1, queueMs: 20 });
    const first = ask(port, { path: '/v2/' });
    await held.holds(1);
    const head =
      'PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n';
    const socket = connect(port, '127.0.0.1');
    socket.write(head);
    const [answer] = (await once(socket, 'data')) as [Buffer];
    assert.match(answer.toString(), /^HTTP\/1\.1 503 Service Unavailable\r\n/);
    socket.destroy();
    held.letGo();
    await first;
    const welcome = connect(port, '127.0.0.1');
    welcome.write(head);
    const [interim] = (await once(welcome, 'data')) as [Buffer];
    assert.match(interim.toString(), /^HTTP\/1\.1 100 Continue\r\n/);
    welcome.destroy();
    await held.holds(1);
    held.letGo();
    await server.drain();
  });
});

describe('connections', () => {
  test('two thousand idle ones hinder nobody, and more than allowed make room, oldest first', async () => {
    const { server, port, shed } = await listen({}, { connectionsMax: 2000 });
    const idle: Socket[] = [];
    for (let i = 0; i < 1999; i += 1) {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined);
      idle.push(socket);
      if (i % 100 === 99) await once(socket, 'connect');
    }
    while (server.connections < 1999) await ask(port, { path: '/healthz' });
    assert.deepEqual(shed, []);
    const closed = once(idle[0] as Socket, 'close');
    const agent = new Agent({ keepAlive: true });
    for (let i = 0; i < 10; i += 1) assert.equal((await ask(port, { path: '/v2/' })).text, 'fine');
    const extra = [1, 2, 3].map(() => connect(port, '127.0.0.1'));
    await Promise.all(extra.map((socket) => once(socket, 'connect')));
    assert.equal((await ask(port, { path: '/v2/' })).text, 'fine');
    await closed;
    assert.deepEqual(new Set(shed), new Set(['idle_connection']));
    assert.ok(server.connections <= 2000);
    agent.destroy();
    for (const socket of [...idle, ...extra]) socket.destroy();
    await server.drain();
  });

  test('when all are busy the next is refused, and probes are still answered', async () => {
    const held = hold();
    const { server, port, shed } = await listen({ oci: held.door }, { connectionsMax: 16 });
    const busy = Array.from({ length: 16 }, () => ask(port, { path: '/v2/' }));
    await held.holds(16);
    const refused = await ask(port, { path: '/v2/' });
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.connection, 'close');
    assert.deepEqual(shed, ['connections']);
    assert.equal((await ask(port, { path: '/healthz' })).status, 200);
    held.letGo();
    await Promise.all(busy);
    await server.drain();
  });

  test('a pipelined flood ends its connection', async () => {
    const held = hold();
    const { server, port, shed } = await listen({ oci: held.door }, { pipelinedMax: 8 });
    const socket = connect(port, '127.0.0.1');
    const closed = said(socket);
    socket.write('GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(500));
    await closed;
    assert.equal(shed[0], 'pipelining');
    held.letGo();
    assert.equal((await ask(port, { path: '/nothing' })).status, 404);
    await server.drain();
  });

  test('heads have a size and a time', async () => {
    const { server, port } = await listen({}, { headersMs: 200 });
    const flood = connect(port, '127.0.0.1');
    flood.write(`GET /v2/ HTTP/1.1\r\nHost: x\r\n${'X-Flood: 0123456789\r\n'.repeat(1000)}\r\n`);
    assert.match(await said(flood), /^HTTP\/1\.1 431 Request Header Fields Too Large\r\n/);
    const slow = connect(port, '127.0.0.1');
    slow.write('GET /v2/ HTTP/1.1\r\nHo');
    assert.match(await said(slow), /^HTTP\/1\.1 408 Request Timeout\r\n/);
    await server.drain();
  });

  test('too many clients that send bodies byte by byte are cut; others are served meanwhile', async () => {
    const read = async (exchange: Exchange): Promise<void> => {
      exchange.request.resume();
      await new Promise((resolve) => exchange.request.once('close', resolve));
      exchange.send(200, {}, 'read');
    };
    const limits = { requestsInFlightMax: 4, slowRequestsMax: 2, queueMs: 5000 };
    const { server, port, shed } = await listen({ aws: read }, limits);
    const slow = Array.from({ length: 4 }, () => {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined);
      socket.write('POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx');
      return socket;
    });
    while (server.inFlight < 4) await ask(port, { path: '/healthz' });
    // Two of them go to the slow ones, two are cut: there is room again.
    assert.equal((await ask(port, { path: '/v2/' })).text, 'fine');
    while (shed.length < 2) await ask(port, { path: '/healthz' });
    assert.deepEqual(shed, ['slow', 'slow']);
    for (const socket of slow) socket.destroy();
    await server.drain();
  });
});

describe('the registry', () => {
  test('cuts clients that send or read below the minimum, and keeps nothing of them', async () => {
    const server = await startWireServer({ idleMs: 100 });
    await server.createRepository('slow');
    const begun = await server.request({ method: 'POST', path: '/v2/slow/blobs/uploads/' });
    const socket = connect(server.port, '127.0.0.1');
    const closed = said(socket);
    socket.write(
      `PATCH ${begun.headers.location} HTTP/1.1\r\nHost: x\r\nAuthorization: ${server.adminAuth}\r\n` +
        'Content-Length: 100000\r\n\r\n',
    );
    // One byte in each period, which only a rule against silence would let pass.
    const dripping = setInterval(() => socket.writable && socket.write('x'), 50);
    await closed;
    clearInterval(dripping);
    const manifest = connect(server.port, '127.0.0.1');
    const ended = said(manifest);
    manifest.write(
      `PUT /v2/slow/manifests/x HTTP/1.1\r\nHost: x\r\nAuthorization: ${server.adminAuth}\r\nContent-Length: 1000\r\n\r\n{`,
    );
    await ended;
    await server.request({ method: 'DELETE', path: String(begun.headers.location) });
    await server.stop();
  });
});

describe('rate limits and quotas', () => {
  const now = Date.now();
  let berth: Berth;
  let data: string;
  let key: { accessKeyId: string; secretAccessKey: string };
  before(async () => {
    data = await mkdtemp(join(tmpdir(), 'berth-overload-'));
    const limits = 'ecr:DescribeRepositories=1/3,ecr:ListImages=1/2,iam:*=1/2,berth:FollowEvents=1/2';
    berth = await start(
      readConfig({
        flags: { data, port: '0', 'rate-limits': limits, 'uploads-per-repository-max': '2' },
        env: {},
        platform: process.platform,
      }),
      {
        log: createLog('error', { write: () => undefined }),
        clock: () => now,
        tls: undefined,
        credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
      },
    );
    const made = berth.firstCredentials;
    assert.ok(made);
    key = { accessKeyId: made.id, secretAccessKey: made.secret };
  });
  after(async () => {
    await berth.stop();
    await rm(data, { recursive: true, force: true });
  });

  const signed = (service: string, headers: Record<string, string>, body: string): Promise<Answer> => {
    const url = `http://127.0.0.1:${berth.port}/`;
    const request = signRequest({ method: 'POST', url, headers, body }, key, {
      region: 'us-east-1',
      service,
      now,
    });
    return ask(berth.port, { method: 'POST', path: '/', headers: request, body });
  };
  const ecr = (operation: string, input: object): Promise<Answer> =>
    signed(
      'ecr',
      {
        'Content-Type': 'application/x-amz-json-1.1',
        'X-Amz-Target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
      },
      JSON.stringify(input),
    );

  test("ECR's own error, which SDKs know", async () => {
    for (let i = 0; i < 3; i += 1) assert.equal((await ecr('DescribeRepositories', {})).status, 200);
    const refused = await ecr('DescribeRepositories', {});
    assert.equal(refused.status, 400);
    assert.deepEqual(JSON.parse(refused.text), { __type: 'ThrottlingException', message: 'Rate exceeded' });
    const client = new ECRClient({
      endpoint: `http://127.0.0.1:${berth.port}`,
      region: 'us-east-1',
      credentials: key,
      maxAttempts: 2,
    });
    await assert.rejects(client.send(new DescribeRepositoriesCommand({})), (error) => {
      assert.ok(error instanceof ECRServiceException);
      // It was tried again: the SDK takes it for what it is.
      assert.deepEqual([error.name, error.$metadata.attempts], ['ThrottlingException', 2]);
      return true;
    });
    client.destroy();
  });

  test('IAM', async () => {
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    const list = (): Promise<Answer> => signed('iam', form, 'Action=ListUsers&Version=2010-05-08');
    for (let i = 0; i < 2; i += 1) assert.equal((await list()).status, 200);
    const refused = await list();
    assert.equal(refused.status, 400);
    assert.match(
      refused.text,
      /<Type>Sender<\/Type><Code>Throttling<\/Code><Message>Rate exceeded<\/Message>/,
    );
  });

  test('events', async () => {
    const path = '/events?after=0';
    const url = `http://127.0.0.1:${berth.port}${path}`;
    const options = { region: 'us-east-1', service: 'berth', now };
    const headers = signRequest({ method: 'GET', url, headers: {}, body: '' }, key, options);
    for (let i = 0; i < 2; i += 1) assert.equal((await ask(berth.port, { path, headers })).status, 200);
    const refused = await ask(berth.port, { path, headers });
    assert.equal(refused.status, 400);
    assert.deepEqual(JSON.parse(refused.text), { __type: 'ThrottlingException', message: 'Rate exceeded' });
  });

  test('uploads that nobody finishes', async () => {
    const repositoryName = 'unfinished';
    assert.equal((await ecr('CreateRepository', { repositoryName })).status, 200);
    const begun = await ecr('InitiateLayerUpload', { repositoryName });
    const { uploadId } = JSON.parse(begun.text) as { uploadId: string };
    assert.equal((await ecr('InitiateLayerUpload', { repositoryName })).status, 200);
    const message =
      "The repository with name 'unfinished' in registry with id '000000000000' already has the maximum allowed " +
      "number of unfinished layer uploads which is '2'";
    const refused = await ecr('InitiateLayerUpload', { repositoryName });
    assert.equal(refused.status, 400);
    assert.deepEqual(JSON.parse(refused.text), { __type: 'LimitExceededException', message });
    const { text } = await ecr('GetAuthorizationToken', {});
    const { authorizationData } = JSON.parse(text) as { authorizationData: [{ authorizationToken: string }] };
    const headers = { Authorization: `Basic ${authorizationData[0].authorizationToken}` };
    const begin = () => ask(berth.port, { method: 'POST', path: '/v2/unfinished/blobs/uploads/', headers });
    const denied = await begin();
    assert.equal(denied.status, 403);
    assert.equal(denied.text, JSON.stringify({ errors: [{ code: 'DENIED', message }] }));
    const path = `/v2/unfinished/blobs/uploads/${uploadId}`;
    assert.equal((await ask(berth.port, { method: 'DELETE', path, headers })).status, 204);
    assert.equal((await begin()).status, 202);
  });

  test('the registry', async () => {
    const { text } = await ecr('GetAuthorizationToken', {});
    const { authorizationData } = JSON.parse(text) as { authorizationData: [{ authorizationToken: string }] };
    const password = Buffer.from(authorizationData[0].authorizationToken, 'base64').toString().slice(4);
    const headers = { Authorization: basic(password) };
    const list = (): Promise<Answer> => ask(berth.port, { path: '/v2/absent/tags/list', headers });
    for (let i = 0; i < 2; i += 1) assert.equal((await list()).status, 404);
    const refused = await list();
    assert.equal(refused.status, 429);
    assert.equal(refused.headers['retry-after'], '1');
    assert.equal(refused.text, '{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}');
  });
});
