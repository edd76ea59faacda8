import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Agent, request as send, type IncomingMessage } from 'node:http';
import { connect, type Socket } from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { Exchange } from './http/http.ts';
import { startServer, type Doors, type RunningServer } from './server.ts';

/** A promise that a test settles from outside. */
interface Gate {
  readonly opened: Promise<void>;
  open(): void;
}

function gate(): Gate {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { opened: promise, open: resolve };
}

function named(name: string) {
  return async (exchange: Exchange): Promise<void> => exchange.send(200, {}, name);
}

const DOORS: Doors = {
  oci: named('oci'),
  aws: named('aws'),
  download: named('download'),
  events: named('events'),
  ready: () => Promise.resolve(),
};

interface Running {
  readonly server: RunningServer;
  readonly done: Exchange[];
  readonly errors: unknown[];
}

async function listen(doors: Partial<Doors> = {}): Promise<Running> {
  const done: Exchange[] = [];
  const errors: unknown[] = [];
  const server = await startServer({
    doors: { ...DOORS, ...doors },
    host: '127.0.0.1',
    port: 0,
    onDone: (exchange) => done.push(exchange),
    onError: (error) => errors.push(error),
  });
  return { server, done, errors };
}

interface Answer {
  readonly status: number | undefined;
  readonly body: string;
  readonly connection: string | undefined;
}

async function read(message: IncomingMessage): Promise<Answer> {
  let body = '';
  for await (const chunk of message) body += String(chunk);
  return { status: message.statusCode, body, connection: message.headers.connection };
}

async function ask(
  port: number,
  options: { method?: string; path: string; headers?: Record<string, string>; agent?: Agent; body?: string },
): Promise<Answer> {
  const { body, ...rest } = options;
  const request = send({ host: '127.0.0.1', port, agent: false, ...rest });
  request.end(body);
  const [message] = (await once(request, 'response')) as [IncomingMessage];
  return read(message);
}

/** Everything the server says on a connection until it closes it. */
async function converse(port: number, text: string): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  // A server that refuses early may reset what the client is still sending.
  socket.on('error', () => undefined);
  socket.write(text, 'latin1');
  return said(socket);
}

/** A connection the server has accepted, with the beginning of a request. */
async function connected(port: number, text: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  await once(socket, 'connect');
  if (text !== '') socket.write(text);
  // Connections are accepted in their order.
  await ask(port, { path: '/healthz' });
  return socket;
}

async function said(socket: Socket): Promise<string> {
  let heard = '';
  socket.setEncoding('latin1').on('data', (chunk: string) => (heard += chunk));
  await once(socket, 'close');
  return heard;
}

describe('choosing a door', () => {
  let running: Running;
  before(async () => {
    const metrics = named('metrics');
    running = await listen({ metrics });
  });
  after(() => running.server.drain());

  const UNKNOWN = 'Berth serves AWS APIs on POST /, and the registry on /v2/\n';
  const signed = { Authorization: 'AWS4-HMAC-SHA256 Credential=x' };
  const cases: [
    method: string,
    path: string,
    headers: Record<string, string>,
    status: number,
    body: string,
  ][] = [
    ['GET', '/v2', {}, 200, 'oci'],
    ['PUT', '/v2/a/b/manifests/c', {}, 200, 'oci'],
    ['GET', '/v2x', {}, 404, UNKNOWN],
    ['POST', '/', {}, 200, 'aws'],
    ['POST', '/anything', {}, 200, 'aws'],
    ['POST', '/healthz', {}, 200, 'aws'],
    ['GET', '/', signed, 200, 'aws'],
    ['GET', '/?Action=GetCallerIdentity', {}, 200, 'aws'],
    ['GET', '/?X-Amz-Algorithm=AWS4-HMAC-SHA256', {}, 200, 'aws'],
    ['GET', '/?NoAction=1', {}, 404, UNKNOWN],
    ['GET', '/blob-download/x', {}, 200, 'download'],
    ['GET', '/events?after=0', {}, 200, 'events'],
    ['GET', '/metrics', {}, 200, 'metrics'],
    ['GET', '/healthz', {}, 200, 'ok\n'],
    ['HEAD', '/healthz', {}, 200, ''],
    ['GET', '/readyz', {}, 200, 'ok\n'],
    ['GET', '/', {}, 404, UNKNOWN],
    ['DELETE', '/', {}, 404, UNKNOWN],
    ['OPTIONS', '/v3/', {}, 404, UNKNOWN],
  ];
  for (const [method, path, headers, status, body] of cases) {
    it(`${method} ${path}${headers === signed ? ', signed' : ''}`, async () => {
      const answer = await ask(running.server.port, { method, path, headers });
      assert.deepEqual([answer.status, answer.body], [status, body]);
    });
  }

  it('has no metrics unless there is a door for them', async () => {
    const { server } = await listen();
    assert.equal((await ask(server.port, { path: '/metrics' })).status, 404);
    await server.drain();
  });
});

describe('readiness and defects', () => {
  it('is not ready while writes cannot be taken', async () => {
    const { server } = await listen({ ready: () => Promise.reject(new Error('gone')) });
    const answer = await ask(server.port, { path: '/readyz' });
    assert.deepEqual(
      [answer.status, answer.body],
      [503, 'the database or the storage does not take writes\n'],
    );
    assert.equal((await ask(server.port, { path: '/healthz' })).status, 200);
    await server.drain();
  });

  it('answers 500 when a door throws, and goes on', async () => {
    const { server, errors, done } = await listen({ oci: () => Promise.reject(new Error('defect')) });
    const answer = await ask(server.port, { path: '/v2/' });
    assert.deepEqual([answer.status, answer.body], [500, 'Internal error\n']);
    assert.deepEqual(errors.map(String), ['Error: defect']);
    assert.equal((await ask(server.port, { path: '/healthz' })).status, 200);
    await server.drain();
    assert.equal(done[0]?.faultCode, 'ServerException');
  });
});

describe('bad heads', () => {
  let running: Running;
  before(async () => {
    running = await listen();
  });
  after(() => running.server.drain());

  const flood = Array.from({ length: 4000 }, (_, i) => `X-${i}: ${'y'.repeat(16)}\r\n`).join('');
  const cases: [name: string, text: string, status: string][] = [
    [
      'a flood of headers',
      `GET /healthz HTTP/1.1\r\nHost: x\r\n${flood}\r\n`,
      '431 Request Header Fields Too Large',
    ],
    [
      'one long header',
      `GET / HTTP/1.1\r\nX: ${'y'.repeat(100_000)}\r\n\r\n`,
      '431 Request Header Fields Too Large',
    ],
    ['a long target', `GET /${'y'.repeat(100_000)} HTTP/1.1\r\n\r\n`, '431 Request Header Fields Too Large'],
    ['no HTTP', 'hello\r\n\r\n', '400 Bad Request'],
    ['no host', 'GET /healthz HTTP/1.1\r\n\r\n', '400 Bad Request'],
    ['two hosts', 'GET /healthz HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n', '400 Bad Request'],
    ['a target of another host', 'GET http://y/healthz HTTP/1.1\r\nHost: x\r\n\r\n', '400 Bad Request'],
    ['a bad header name', 'GET / HTTP/1.1\r\nHost: x\r\nbad name: 1\r\n\r\n', '400 Bad Request'],
    [
      'two lengths',
      'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx',
      '400 Bad Request',
    ],
    [
      'a length and chunks',
      'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      '400 Bad Request',
    ],
  ];
  for (const [name, text, status] of cases) {
    it(`refuses ${name}`, async () => {
      const heard = await converse(running.server.port, text);
      assert.equal(heard.split('\r\n', 1)[0], `HTTP/1.1 ${status}`);
      assert.match(heard, /\r\nConnection: close\r\n/i);
    });
  }

  it('takes a target in absolute form', async () => {
    for (const [target = '', status] of [
      ['http://x/healthz', '200 OK'],
      ['HTTP://X/healthz?a=b', '200 OK'],
      ['http://x', '404 Not Found'],
      ['http://x?Action=GetUser', '200 OK'],
      ['ftp://x/healthz', '404 Not Found'],
    ]) {
      const heard = await converse(
        running.server.port,
        `GET ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
      );
      assert.equal(heard.split('\r\n', 1)[0], `HTTP/1.1 ${status}`, target);
    }
  });

  it('serves others all the while', async () => {
    assert.equal((await ask(running.server.port, { path: '/healthz' })).status, 200);
    assert.equal(
      running.done.every(({ path }) => path.length < 100),
      true,
    );
  });
});

describe('draining', () => {
  it('lets a request in flight end, and tells its client that the connection closes', async () => {
    const [arrived, release] = [gate(), gate()];
    const { server } = await listen({
      aws: async (exchange) => {
        arrived.open();
        await release.opened;
        exchange.send(200, {}, 'whole answer');
      },
    });
    const agent = new Agent({ keepAlive: true });
    const answer = ask(server.port, { method: 'POST', path: '/', agent });
    await arrived.opened;
    assert.equal(server.inFlight, 1);
    const drained = server.drain();
    release.open();
    assert.deepEqual(await answer, { status: 200, body: 'whole answer', connection: 'close' });
    await drained;
    assert.equal(server.inFlight, 0);
    agent.destroy();
  });

  it('cuts neither an upload nor a download under way', async () => {
    const [uploading, downloading, release] = [gate(), gate(), gate()];
    const { server, errors } = await listen({
      aws: async (exchange) => {
        let size = 0;
        for await (const chunk of exchange.request) {
          size += (chunk as Buffer).length;
          uploading.open();
        }
        exchange.send(200, {}, `${size} bytes`);
      },
      download: async ({ response }) => {
        response.writeHead(200, { 'Content-Length': '10' });
        response.write('first');
        downloading.open();
        await release.opened;
        response.end('final');
      },
    });
    const upload = send({ host: '127.0.0.1', port: server.port, method: 'POST', path: '/', agent: false });
    upload.setHeader('Content-Length', 2000);
    upload.write('x'.repeat(1000));
    const answered = once(upload, 'response') as Promise<[IncomingMessage]>;
    const download = ask(server.port, { path: '/blob-download/x' });
    await Promise.all([uploading.opened, downloading.opened]);
    const silent = await connected(server.port, '');

    let drained = false;
    const draining = server.drain().then(() => (drained = true));
    await assert.rejects(ask(server.port, { path: '/healthz' }), { code: 'ECONNREFUSED' });
    // Longer than a connection without a request may stay.
    await said(silent);
    assert.equal(drained, false);
    release.open();
    upload.end('x'.repeat(1000));
    assert.equal((await download).body, 'firstfinal');
    assert.equal((await read((await answered)[0])).body, '2000 bytes');
    await draining;
    assert.deepEqual(errors, []);
  });

  it('waits for no idle connection, be it kept alive, silent from the start or stuck in its head', async () => {
    const { server } = await listen();
    const agent = new Agent({ keepAlive: true });
    assert.equal((await ask(server.port, { path: '/healthz', agent })).connection, 'keep-alive');
    const silent = await connected(server.port, '');
    const stuck = await connected(server.port, 'GET /healthz HTTP/1.1\r\nHost: x');
    const closed = Promise.all([said(silent), said(stuck)]);
    await server.drain();
    await closed;
    agent.destroy();
  });

  it('is not ready any more, for those who can still ask', async () => {
    const { server } = await listen();
    const socket = await connected(server.port, 'GET /readyz HTTP/1.1\r\nHost: x\r\n');
    const heard = said(socket);
    const draining = server.drain();
    socket.write('\r\n');
    assert.match(await heard, /^HTTP\/1.1 503 [^]*\r\nConnection: close\r\n\r\nthe server is stopping\n$/);
    await draining;
  });
});

it('tells once when an answer is complete or its client is gone', async () => {
  const [arrived, ended] = [gate(), gate()];
  const { server, done } = await listen({
    oci: async ({ response }) => {
      response.writeHead(200, { 'Content-Length': '100' });
      response.write('x');
      arrived.open();
      await once(response, 'close');
      ended.open();
    },
  });
  await ask(server.port, { path: '/healthz' });
  const socket = connect(server.port, '127.0.0.1');
  socket.write('GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n');
  await arrived.opened;
  socket.destroy();
  await ended.opened;
  await server.drain();
  assert.deepEqual(
    done.map((exchange) => [exchange.door, exchange.path, exchange.response.writableFinished]),
    [
      ['probe', '/healthz', true],
      ['oci', '/v2/', false],
    ],
  );
});
