/** Clients that break off, stall, lie about lengths or answer nothing: real sockets, and nothing may stay behind. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { basic, check, startWireServer, type WireServer } from './server.ts';

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
const MIB = 1_048_576;

let server: WireServer;
before(async () => {
  server = await startWireServer({ idleMs: 150 });
  await server.createRepository('app');
});
after(() => server.stop());

function open(): Socket {
  const socket = connect(server.port, '127.0.0.1');
  socket.on('error', () => undefined);
  return socket;
}

function head(method: string, path: string, ...headers: string[]): string {
  const lines = [
    `${method} ${path} HTTP/1.1`,
    'Host: localhost',
    `Authorization: ${server.adminAuth}`,
    ...headers,
  ];
  return `${lines.join('\r\n')}\r\n\r\n`;
}

/** WHY not `once`: it rejects on the reset that may come first. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.closed) resolve();
    else socket.on('close', () => resolve());
  });
}

/** Everything a socket says until `until` matches or it closes. */
function listen(socket: Socket, until: RegExp): Promise<string> {
  let text = '';
  return new Promise((resolve) => {
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (until.test(text)) resolve(text);
    });
    socket.on('close', () => resolve(text));
  });
}

async function startUpload(): Promise<string> {
  const answer = await check(server, { method: 'POST', path: '/v2/app/blobs/uploads/' }, { status: 202 });
  return String(answer.headers.location);
}

/** Waits until the upload takes bytes again, at its committed size, and appends `text`. */
async function appendWhenFree(location: string, text: string): Promise<string> {
  for (;;) {
    const answer = await server.request({ method: 'PATCH', path: location, body: text });
    if (answer.status === 202) return String(answer.headers.range);
    assert.equal(answer.status, 416, answer.bytes.toString());
  }
}

async function openUploads(): Promise<number> {
  const rows = await server.store.read
    .selectFrom('upload')
    .select('id')
    .where('completed_digest', 'is', null)
    .execute();
  return rows.length;
}

describe('an upload whose client', () => {
  const breaks: [what: string, request: (location: string) => string][] = [
    [
      'breaks off a PATCH of known length',
      (location) => head('PATCH', location, 'Content-Length: 100000') + 'x'.repeat(5000),
    ],
    [
      'breaks off a streamed PATCH',
      (location) => `${head('PATCH', location, 'Transfer-Encoding: chunked')}1388\r\n${'x'.repeat(5000)}\r\n`,
    ],
    [
      'breaks off a PUT',
      (location) =>
        head('PUT', `${location}?digest=sha256:${'a'.repeat(64)}`, 'Content-Length: 100000') +
        'x'.repeat(5000),
    ],
    [
      'sends broken chunks',
      (location) => `${head('PATCH', location, 'Transfer-Encoding: chunked')}5\r\nhelloworld\r\nzz\r\n`,
    ],
  ];
  for (const [what, request] of breaks) {
    it(`${what} keeps its committed bytes`, async () => {
      const location = await startUpload();
      await check(server, { method: 'PATCH', path: location, body: 'abc' }, { status: 202 });
      const socket = open();
      await new Promise<void>((resolve) => socket.write(request(location), () => resolve()));
      socket.end();
      await closed(socket.resume());
      assert.equal(await appendWhenFree(location, 'def'), '0-5');
      const bytes = Buffer.from('abcdef');
      await check(server, { method: 'PUT', path: `${location}?digest=${sha256(bytes)}` }, { status: 201 });
      await check(server, { path: `/v2/app/blobs/${sha256(bytes)}` }, { status: 200, bytes });
    });
  }

  it('stops sending is cut off, and can go on', async () => {
    const location = await startUpload();
    const socket = open();
    socket.write(head('PATCH', location, 'Content-Length: 100000') + 'x'.repeat(5000));
    await closed(socket.resume());
    assert.equal(await appendWhenFree(location, 'abc'), '0-2');
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('trickles is cut off', async () => {
    const location = await startUpload();
    const socket = open();
    socket.write(head('PATCH', location, 'Content-Length: 100000'));
    const timer = setInterval(() => socket.write('x'), 20);
    await closed(socket.resume());
    clearInterval(timer);
    assert.equal(await appendWhenFree(location, 'abc'), '0-2');
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('is not alone is told where the upload is', async () => {
    const location = await startUpload();
    const socket = open();
    socket.write(`${head('PATCH', location, 'Content-Length: 100000')}${'x'.repeat(50_000)}`);
    const writers = server.store.read.selectFrom('upload').select('id').where('writer', 'is not', null);
    while ((await writers.execute()).length === 0) await new Promise((resolve) => setImmediate(resolve));
    let left = 50_000;
    // It stays alive: the others wait a while for it to be gone.
    const timer = setInterval(() => {
      socket.write('x'.repeat(100));
      left -= 100;
    }, 20);
    await Promise.all(
      [location, `${location}?digest=sha256:${'a'.repeat(64)}`].map((path) =>
        check(
          server,
          { method: path === location ? 'PATCH' : 'PUT', path, body: 'y' },
          { status: 416, headers: { Location: location, Range: '0-0' }, error: ['BLOB_UPLOAD_INVALID', /./] },
        ),
      ),
    );
    const answer = listen(socket, /\r\n\r\n/);
    clearInterval(timer);
    socket.write('x'.repeat(left));
    assert.match(await answer, /^HTTP\/1\.1 202 [^]*Range: 0-99999\r\n/);
    socket.destroy();
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('lost its connection goes on at once on the next', async () => {
    const bytes = randomBytes(300_000);
    const whole = `digest=${sha256(bytes)}`;
    for (const [method, query, status] of [
      ['PATCH', '', 202],
      ['PUT', `?${whole}`, 201],
    ] as const) {
      const location = await startUpload();
      await check(
        server,
        { method: 'PATCH', path: location, body: bytes.subarray(0, 1000) },
        { status: 202 },
      );
      const path = `${location}${query}`;
      const socket = open();
      const part = bytes.subarray(1000, 200_000);
      socket.write(head(method, path, `Content-Length: ${bytes.length - 1000}`));
      await new Promise<void>((resolve) => socket.write(part, () => resolve()));
      socket.destroy();
      const body = bytes.subarray(1000);
      const headers = { 'Content-Range': `1000-${bytes.length - 1}` };
      await check(server, { method, path, body, headers }, { status });
      if (method === 'PATCH')
        await check(server, { method: 'PUT', path: `${location}?${whole}` }, { status: 201 });
    }
  });

  it('streams to it while another request does is told where the upload is then', async () => {
    const location = await startUpload();
    const socket = open();
    socket.write(`${head('PATCH', location, 'Content-Length: 1000')}${'x'.repeat(500)}`);
    const writers = server.store.read.selectFrom('upload').select('id').where('writer', 'is not', null);
    while ((await writers.execute()).length === 0) await new Promise((resolve) => setImmediate(resolve));
    const refused = check(
      server,
      { method: 'PATCH', path: location, body: 'y', chunked: true },
      { status: 416, headers: { Location: location } },
    );
    const answer = listen(socket, /\r\n\r\n/);
    socket.write('x'.repeat(500));
    assert.match(await answer, /^HTTP\/1\.1 202 [^]*Range: 0-999\r\n/);
    socket.destroy();
    await refused;
    await check(server, { path: location }, { status: 204, headers: { Range: '0-999' } });
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('closes it several times at once gets the same answer each time', async () => {
    const bytes = randomBytes(100_000);
    const location = await startUpload();
    const path = `${location}?digest=${sha256(bytes)}`;
    const answers = await Promise.all(
      [1, 2, 3].map(() => server.request({ method: 'PUT', path, body: bytes })),
    );
    assert.deepEqual(
      answers.map(({ status }) => status),
      [201, 201, 201],
    );
  });

  it('breaks off one made in one request leaves nothing', async () => {
    const before = await openUploads();
    const socket = open();
    const path = `/v2/app/blobs/uploads/?digest=sha256:${'a'.repeat(64)}`;
    socket.write(head('POST', path, 'Content-Length: 100000') + 'x'.repeat(5000));
    while ((await openUploads()) === before) await new Promise((resolve) => setImmediate(resolve));
    socket.destroy();
    while ((await openUploads()) !== before) await new Promise((resolve) => setImmediate(resolve));
  });
});

describe('a manifest whose client', () => {
  for (const [what, stall] of [
    ['breaks off', false],
    ['stops sending', true],
  ] as const) {
    it(`${what} is not stored`, async () => {
      const socket = open();
      socket.write(head('PUT', '/v2/app/manifests/cut', 'Content-Length: 1000') + '{"schemaVersion":2');
      if (!stall) socket.end();
      await closed(socket.resume());
      await check(server, { path: '/v2/app/manifests/cut' }, { status: 404 });
    });
  }
});

describe('a blob whose client', () => {
  const bytes = randomBytes(24 * MIB);
  const path = `/v2/app/blobs/${sha256(bytes)}`;
  before(() =>
    check(
      server,
      { method: 'POST', path: `/v2/app/blobs/uploads/?digest=${sha256(bytes)}`, body: bytes },
      { status: 201 },
    ),
  );

  async function settled(): Promise<void> {
    while ((await server.leftovers()).descriptors.length > 0)
      await new Promise((resolve) => setImmediate(resolve));
  }

  it('hangs up in the middle costs nothing after that', async () => {
    const socket = open();
    socket.write(head('GET', path));
    await once(socket, 'data');
    socket.destroy();
    await settled();
  });

  it('stops reading is cut off', async () => {
    const socket = open();
    socket.write(head('GET', path));
    await once(socket, 'data');
    socket.pause();
    await settled();
    let left = 0;
    socket.on('data', (chunk: Buffer) => (left += chunk.length));
    await closed(socket.resume());
    assert.ok(left < bytes.length);
  });

  it('reads in turns gets all of it', async () => {
    // A server of its own, with patience: this process is both sides, and slow on a busy machine.
    const patient = await startWireServer();
    await patient.createRepository('app');
    const upload = `/v2/app/blobs/uploads/?digest=${sha256(bytes)}`;
    await check(patient, { method: 'POST', path: upload, body: bytes }, { status: 201 });
    const answers = await Promise.all(Array.from({ length: 4 }, () => patient.request({ path })));
    for (const answer of answers) assert.ok(answer.bytes.equals(bytes));
    await patient.stop();
  });
});

describe('an early answer', () => {
  const long = `Content-Length: ${64 * MIB}`;
  const bad = basic('not-a-token');
  const cases: [what: string, request: () => string, status: number][] = [
    [
      'to a body nobody may send',
      () => head('PUT', '/v2/app/manifests/x', long).replace(server.adminAuth, 'Basic x'),
      401,
    ],
    [
      'to a bad token',
      () => head('PATCH', '/v2/app/blobs/uploads/x', long).replace(server.adminAuth, bad),
      400,
    ],
    ['to an unknown repository', () => head('PUT', '/v2/absent/manifests/x', long), 404],
    ['to an unknown upload', () => head('PATCH', '/v2/app/blobs/uploads/x', long), 404],
    ['to a manifest too large', () => head('PUT', '/v2/app/manifests/x', long), 413],
    ['to a missing digest', () => head('PUT', '/v2/app/blobs/uploads/x', long), 404],
  ];
  for (const [what, request, status] of cases) {
    it(`${what} reaches a client that is still sending`, async () => {
      const socket = open();
      const answer = listen(socket, /\r\n\r\n.+/s);
      socket.write(request());
      const piece = Buffer.alloc(65_536);
      const pump = (): void => {
        while (socket.writable && socket.write(piece));
      };
      socket.on('drain', pump);
      pump();
      const text = await answer;
      assert.match(text, new RegExp(`^HTTP/1\\.1 ${status} `));
      assert.match(text, /\r\nConnection: close\r\n/);
      socket.end();
      await closed(socket);
    });
  }

  it('to a small body leaves the connection for the next request', async () => {
    const socket = open();
    const answers = listen(socket, /HTTP\/1\.1 404[^]*HTTP\/1\.1 200/);
    socket.write(head('PUT', '/v2/absent/manifests/x', 'Content-Length: 5') + 'hello' + head('GET', '/v2/'));
    assert.match(await answers, /^HTTP\/1\.1 404 [^]*HTTP\/1\.1 200 /);
    socket.destroy();
  });

  it('follows Expect: 100-continue', async () => {
    const location = await startUpload();
    const socket = open();
    const first = listen(socket, /100 Continue/);
    socket.write(head('PATCH', location, 'Content-Length: 3', 'Expect: 100-continue'));
    await first;
    const second = listen(socket, /202 Accepted/);
    socket.write('abc');
    assert.match(await second, /Range: 0-2/);
    socket.destroy();
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });
});
