import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { afterEach, describe, it } from 'node:test';
import { Exchange } from './exchange.ts';
import { readBody } from './body.ts';
import { watchReceiving, watchSending } from './watch.ts';

const servers: Server[] = [];

async function listen(
  handler: (exchange: Exchange) => unknown,
  drainLimits = { keepBytesMax: 1000, bytesMax: 2000, ms: 10_000 },
): Promise<{ server: Server; port: number }> {
  const server = createServer((request, response) => {
    void handler(new Exchange(request, response, { requestId: 'r', secure: false, drainLimits }));
  });
  servers.push(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { server, port: (server.address() as AddressInfo).port };
}

function closeServers(): void {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
}

/** Sends raw text and collects what comes back until `until` matches, or until the server closes when it is undefined. */
async function talk(socket: Socket, text: string, until?: RegExp): Promise<string> {
  socket.setEncoding('latin1');
  socket.write(text);
  let received = '';
  return new Promise((resolve, reject) => {
    socket.on('data', (chunk: string) => {
      received += chunk;
      if (until?.test(received) === true) resolve(received);
    });
    socket.on('close', () => resolve(received));
    socket.on('error', reject);
  });
}

describe('an answer', () => {
  afterEach(closeServers);

  it('has an exact length and keeps headers given as a list', async () => {
    const { port } = await listen((exchange) => exchange.send(200, ['X-One', '1'], 'naïve'));
    const answer = await talk(connect(port), 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    assert.match(answer, /^HTTP\/1\.1 200 OK\r\nX-One: 1\r\nContent-Length: 6\r\n/);
    assert.ok(answer.endsWith(Buffer.from('naïve').toString('latin1')));
  });

  it('to HEAD measures the body and leaves it out', async () => {
    const { port } = await listen((exchange) => exchange.send(200, {}, 'four'));
    const answer = await talk(connect(port), 'HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    assert.match(answer, /Content-Length: 4\r\n/);
    assert.ok(answer.endsWith('\r\n\r\n'));
  });

  it('of 204 has no length', async () => {
    const { port } = await listen((exchange) => exchange.send(204, []));
    const answer = await talk(connect(port), 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    assert.doesNotMatch(answer, /content-length|transfer-encoding/i);
  });

  it('before a short body arrives leaves the connection usable', async () => {
    const { port } = await listen((exchange) => exchange.send(403, [], exchange.path));
    const socket = connect(port);
    const first = await talk(socket, 'PUT /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n', /\/1$/);
    assert.doesNotMatch(first, /Connection: close/);
    const second = await talk(socket, 'helloGET /2 HTTP/1.1\r\nHost: x\r\n\r\n', /\/2$/);
    assert.match(second, /^HTTP\/1\.1 403 /);
    socket.destroy();
  });

  it('before a long body announces the end and reads some of it away', async () => {
    const { port } = await listen((exchange) => exchange.send(403, ['X-A', 'b'], 'no'));
    const socket = connect(port);
    const answer = await talk(socket, 'PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n', /no$/);
    assert.match(answer, /Connection: close\r\n/);
    assert.match(answer, /Content-Length: 2\r\n/);
    const closed = once(socket, 'close');
    socket.on('error', () => undefined).write('x'.repeat(5000));
    await closed;
  });

  it('before a chunked body ends with it when it is short', async () => {
    const { port } = await listen((exchange) => exchange.send(403, {}, 'no'));
    const socket = connect(port);
    const answer = await talk(
      socket,
      'PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n',
      /no$/,
    );
    assert.match(answer, /Connection: close\r\n/);
    const ended = once(socket, 'end');
    socket.write('3\r\nabc\r\n0\r\n\r\n');
    await ended;
  });

  it('does not wait for ever for a body that never comes', async () => {
    const { port } = await listen((exchange) => exchange.send(403, [], 'no'), {
      keepBytesMax: 1000,
      bytesMax: 2000,
      ms: 50,
    });
    const socket = connect(port);
    const closed = once(socket, 'close');
    await talk(socket, 'PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc', /no$/);
    await closed;
  });
});

describe('a body', () => {
  afterEach(closeServers);

  it('that stops arriving is cut, and its reader told', async () => {
    const outcome = Promise.withResolvers<unknown>();
    const { port } = await listen(async (exchange) => {
      const unwatch = watchReceiving(exchange.request, 50);
      await readBody(exchange, 100).then(outcome.resolve, outcome.reject);
      unwatch();
    });
    const socket = connect(port);
    const closed = once(socket, 'close');
    socket.write('PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc');
    await assert.rejects(outcome.promise, { code: 'SerializationException' });
    await closed;
  });

  it('whose client left before it was read is an error, not a wait', async () => {
    const outcome = Promise.withResolvers<unknown>();
    const { port } = await listen(async (exchange) => {
      await new Promise((resolve) => exchange.request.on('close', resolve));
      await readBody(exchange, 100).then(outcome.resolve, outcome.reject);
    });
    const socket = connect(port);
    socket.write('PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc', () => socket.destroy());
    await assert.rejects(outcome.promise, { code: 'SerializationException' });
  });

  it('over the limit is refused by announcement and by arrival', async () => {
    const { port } = await listen(async (exchange) => {
      const error = await readBody(exchange, 4).then(
        () => undefined,
        (reason: unknown) => reason as { code: string },
      );
      exchange.send(413, [], error?.code ?? 'none');
    });
    for (const body of [
      'Content-Length: 5\r\n\r\nhello',
      'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    ]) {
      const answer = await talk(connect(port), `PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${body}`);
      assert.match(answer, /RequestEntityTooLargeException$/);
    }
  });
});

describe('a client', () => {
  afterEach(closeServers);

  it('that reads nothing of its answer is cut', async () => {
    const gone = Promise.withResolvers<void>();
    const { port } = await listen((exchange) => {
      const { response } = exchange;
      watchSending(response, 50);
      response.on('close', gone.resolve);
      const piece = Buffer.alloc(1_048_576);
      const more = (): void => {
        while (!response.destroyed && response.write(piece));
      };
      response.on('drain', more);
      more();
    });
    const socket = connect(port);
    socket.pause();
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    await gone.promise;
    socket.destroy();
  });
});
