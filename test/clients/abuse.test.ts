/** Clients that mean harm or are broken, against the server as it ships: what they get, what they cost, and that others are served. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  basic,
  callEcr,
  createRepository,
  makePlace,
  readAdmin,
  readMemory,
  registryPassword,
  startBerth,
  stopBerth,
  until,
  type BerthServer,
  type Place,
} from './harness.ts';
import { digestOf, seededBytes } from './image.ts';

const MIB = 1_048_576;
const BLOB_BYTES = 32 * MIB;
const RSS_KIB_MAX = 300 * 1024;
/** Bodies may have 64 MiB on top, and what was freed is not given back to the system at once. */
const FLOODED_KIB_MAX = 512 * 1024;

/** The periods in which clients have to move half a KiB per second are a twelfth of what they are. */
const HURRIED =
  'const set = globalThis.setInterval; globalThis.setInterval = (f, ms, ...rest) => set(f, ms === 60000 ? 5000 : ms, ...rest)';

let place: Place;
let server: BerthServer;
let admin: Credentials;
let authorization: string;
const blob = seededBytes('abuse', BLOB_BYTES);
const blobPath = `/v2/abused/blobs/${digestOf(blob)}`;

function open(): Socket {
  const socket = connect(server.port, '127.0.0.1');
  // What the server cuts may arrive as a reset.
  socket.on('error', () => undefined);
  return socket;
}

function head(method: string, path: string, ...headers: readonly string[]): string {
  return [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...headers, '', ''].join('\r\n');
}

/** All that a connection says until it ends. */
async function heard(socket: Socket): Promise<string> {
  let text = '';
  socket.setEncoding('latin1').on('data', (chunk: string) => (text += chunk));
  // WHY not `once`: a reset after the answer is no failure.
  await new Promise((resolve) => socket.once('close', resolve));
  return text;
}

async function gauge(name: string): Promise<number> {
  const text = await (await fetch(`${server.endpoint}/metrics`)).text();
  return Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1]);
}

/** One request of each kind, on a connection of its own. */
async function isServed(): Promise<void> {
  const headers = { authorization, connection: 'close' };
  for (const path of ['/v2/abused/tags/list', '/healthz'])
    assert.equal((await fetch(`${server.endpoint}${path}`, { headers })).status, 200);
  const { status } = await callEcr(server, admin, 'DescribeRepositories');
  assert.equal(status, 200);
}

/** Sends a body of so many bytes, or without end in chunks, until there is an answer. */
async function flood(request: string, bytes: number | undefined): Promise<string> {
  const socket = open();
  const answer = heard(socket);
  socket.write(request);
  const piece = 'x'.repeat(65_536);
  const chunk = bytes === undefined ? `10000\r\n${piece}\r\n` : piece;
  let left = bytes ?? Number.POSITIVE_INFINITY;
  const pump = (): void => {
    while (left > 0 && socket.writable) {
      left -= piece.length;
      if (!socket.write(chunk)) return;
    }
  };
  socket.on('drain', pump);
  socket.once('data', () => (left = 0));
  pump();
  return answer;
}

interface Flood {
  readonly what: string;
  readonly connections: number;
  readonly request: () => readonly string[];
  /** absent: chunks without end */
  readonly bytes?: number;
  readonly status: number;
  readonly contentType: string;
  readonly body: string | RegExp;
}

const JSON_TYPE = 'application/x-amz-json-1.1';
const target = (operation: string): string =>
  `X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.${operation}`;
/** The claim of a signature by a key that exists: what it takes for a large body to be read. */
function claimed(service: string, ...signed: readonly string[]): readonly string[] {
  const time = new Date().toISOString().replaceAll(/[-:]|\.\d+/g, '');
  const credential = `${admin.accessKeyId}/${time.slice(0, 8)}/us-east-1/${service}/aws4_request`;
  const names = ['host', 'x-amz-date', ...signed].join(';');
  return [
    `X-Amz-Date: ${time}`,
    `Authorization: AWS4-HMAC-SHA256 Credential=${credential}, SignedHeaders=${names}, Signature=${'0'.repeat(64)}`,
  ];
}

const FLOODS: readonly Flood[] = [
  {
    what: 'manifests without end',
    connections: 64,
    request: () => ['PUT', '/v2/abused/manifests/x', `Authorization: ${authorization}`],
    status: 413,
    contentType: 'application/json',
    body: '{"errors":[{"code":"MANIFEST_INVALID","message":"The manifest is larger than 4194304 bytes."}]}',
  },
  {
    what: 'calls of the ECR API without end',
    connections: 64,
    request: () => [
      'POST',
      '/',
      `Content-Type: ${JSON_TYPE}`,
      target('PutImage'),
      ...claimed('ecr', 'x-amz-target'),
    ],
    status: 413,
    contentType: JSON_TYPE,
    body: '{"__type":"RequestEntityTooLargeException","message":"Request body is larger than 8388608 bytes."}',
  },
  {
    what: 'forms without end',
    connections: 128,
    request: () => ['POST', '/', 'Content-Type: application/x-www-form-urlencoded', ...claimed('iam')],
    status: 413,
    contentType: 'text/xml',
    body: /<Error><Type>Sender<\/Type><Code>RequestEntityTooLarge<\/Code><Message>Request body is larger than 1048576 bytes\.<\/Message><\/Error>/,
  },
  {
    what: 'parts of layers with signatures that do not match',
    connections: 32,
    request: () => [
      'POST',
      '/',
      'Connection: close',
      `Content-Type: ${JSON_TYPE}`,
      target('UploadLayerPart'),
      ...claimed('ecr', 'x-amz-target'),
    ],
    bytes: 24 * MIB,
    status: 400,
    contentType: JSON_TYPE,
    body: /^\{"__type":"InvalidSignatureException","message":"The request signature we calculated does not match/,
  },
  {
    what: 'unsigned calls without end',
    connections: 64,
    request: () => ['POST', '/', `Content-Type: ${JSON_TYPE}`, target('UploadLayerPart')],
    status: 400,
    contentType: JSON_TYPE,
    body: '{"__type":"MissingAuthenticationTokenException","message":"Missing Authentication Token"}',
  },
];

async function connectMany(count: number, begin: (socket: Socket, i: number) => void): Promise<Socket[]> {
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i += 1) {
    const socket = open();
    sockets.push(socket);
    begin(socket, i);
    if (i % 100 === 99) await once(socket, 'connect');
  }
  return sockets;
}

/** A server with a repository and a blob, for as long as the tests of a suite run. */
function serve(options: string): void {
  before(async () => {
    place = await makePlace('abuse');
    const { PATH = '', HOME = '' } = place.environment;
    const environment = { PATH, HOME, NODE_OPTIONS: options };
    server = await startBerth({ data: `${place.directory}/data`, asShipped: true, environment });
    admin = await readAdmin(server.data);
    await createRepository(server, admin, 'abused');
    authorization = basic(await registryPassword(server, admin));
    const put = await fetch(`${server.endpoint}/v2/abused/blobs/uploads/?digest=${digestOf(blob)}`, {
      method: 'POST',
      headers: { authorization },
      body: blob,
    });
    assert.equal(put.status, 201);
  });
  after(async () => {
    await stopBerth(server);
    await place.remove();
  });
}

describe('clients that read slowly', () => {
  serve(`--import=data:text/javascript,${encodeURIComponent(HURRIED)}`);

  test('slow readers of a blob are cut, their memory is there again, and others are served meanwhile', async () => {
    const readers = 64;
    const wave = async (): Promise<number> => {
      const sockets = Array.from({ length: readers }, () => {
        const socket = open();
        socket.write(head('GET', blobPath, `Authorization: ${authorization}`));
        return socket;
      });
      for (const socket of sockets) {
        if (socket.bytesRead === 0) await once(socket, 'readable');
      }
      assert.equal(await gauge('berth_requests_in_flight'), readers + 1);
      let served = 0;
      await until('they are cut', async () => {
        await isServed();
        served += 1;
        return (await gauge('berth_requests_in_flight')) === 1;
      });
      assert.ok(served > 1);
      for (const socket of sockets) {
        const ended = once(socket, 'close');
        socket.resume();
        await ended;
        assert.ok(socket.bytesRead < BLOB_BYTES);
      }
      return readMemory(server.pid, 'VmHWM');
    };
    const first = await wave();
    assert.ok(first < RSS_KIB_MAX, `${first} KiB`);
    // What the first ones held is used again: they would add as much again.
    const second = await wave();
    assert.ok(second - first < 32 * 1024, `${first} KiB, then ${second} KiB`);
  });
});

describe('clients that abuse a server', () => {
  serve('');

  for (const { what, connections, request, bytes, status, contentType, body } of FLOODS) {
    test(`${connections} ${what} at once are refused in bounded memory`, async () => {
      const [method = '', path = '', ...headers] = request();
      const length = bytes === undefined ? 'Transfer-Encoding: chunked' : `Content-Length: ${bytes}`;
      const sent = head(method, path, length, ...headers);
      const answers = await Promise.all(Array.from({ length: connections }, () => flood(sent, bytes)));
      for (const answer of answers) {
        const [top = '', text = ''] = answer.split('\r\n\r\n');
        assert.match(top, new RegExp(`^HTTP/1\\.1 ${status} `));
        assert.ok(top.includes(`\r\nContent-Type: ${contentType}\r\n`), top);
        if (typeof body === 'string') assert.equal(text, body);
        else assert.match(text, body);
      }
      await isServed();
      const peak = await readMemory(server.pid, 'VmHWM');
      assert.ok(peak < FLOODED_KIB_MAX, `${peak} KiB`);
    });
  }

  test('3,000 heads that come byte by byte and 500 too large ones hinder nobody', async () => {
    const text = head('GET', '/v2/', `Authorization: ${authorization}`);
    const slow = await connectMany(3000, (socket) => socket.write('G'));
    const large = await connectMany(500, (socket) =>
      socket.write(`GET /v2/ HTTP/1.1\r\nHost: x\r\n${'X-Flood: 0123456789\r\n'.repeat(2000)}\r\n`),
    );
    for (const answer of await Promise.all(large.map(heard)))
      assert.equal(
        answer,
        'HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n',
      );
    for (let at = 1; at < 40; at += 1) {
      for (const socket of slow) socket.write(text[at] ?? '');
      if (at % 10 === 0) await isServed();
    }
    assert.ok((await gauge('berth_connections')) > 3000);
    const peak = await readMemory(server.pid, 'VmHWM');
    assert.ok(peak < FLOODED_KIB_MAX, `${peak} KiB`);
    // They were slow, not wrong.
    while (slow.length > 0) {
      const some = slow.splice(0, 50);
      const answers = some.map((socket) => once(socket, 'data'));
      for (const socket of some) socket.write(text.slice(40));
      for (const [answer] of await Promise.all(answers))
        assert.match(String(answer), /^HTTP\/1\.1 200 OK\r\n/);
      for (const socket of some) socket.destroy();
    }
  });

  test('5,000 idle connections: the oldest make room, and new clients are served', async () => {
    const idle = await connectMany(5000, (socket) => socket.resume());
    for (let i = 0; i < 5; i += 1) await isServed();
    assert.ok((await gauge('berth_connections')) <= 4096);
    assert.ok(idle.filter((socket) => socket.closed).length >= 900);
    assert.equal(idle.at(-1)?.closed, false);
    const peak = await readMemory(server.pid, 'VmHWM');
    assert.ok(peak < FLOODED_KIB_MAX, `${peak} KiB`);
    for (const socket of idle) socket.destroy();
    await until('they are gone', async () => (await gauge('berth_connections')) < 10);
  });
});
