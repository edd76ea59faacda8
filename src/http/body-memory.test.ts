import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { afterEach, describe, it } from 'node:test';
import { Fault } from '../domain/faults.ts';
import { readBody } from './body.ts';
import { BodyMemory, type BodyMemoryOptions } from './body-memory.ts';
import { Exchange } from './exchange.ts';

const KIB = 1024;
const OPTIONS: Omit<BodyMemoryOptions, 'clock'> = {
  bytesMax: 100 * KIB,
  freeBytes: 10 * KIB,
  waitMs: 60_000,
  receiveMs: 600_000,
};

interface Bench {
  readonly memory: BodyMemory;
  /** Begins a request with a body of so many bytes, of which `sent` are sent. */
  send(bytes: number | 'chunked', sent?: number): Socket;
  /** Waits until so many bodies were asked for. */
  asked(count: number): Promise<void>;
}

const servers: Server[] = [];
function closeServers(): void {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
}

async function listen(options: Partial<BodyMemoryOptions> = {}): Promise<Bench> {
  const memory = new BodyMemory({ ...OPTIONS, clock: () => performance.now(), ...options });
  const asked = { count: 0, wake: (): void => undefined };
  const serve = async (exchange: Exchange): Promise<void> => {
    asked.count += 1;
    const reading = readBody(exchange, 1024 * KIB);
    asked.wake();
    const text = await reading.then(
      (body) => `read ${body.length}`,
      (error: unknown) => (error instanceof Fault ? error.code : String(error)),
    );
    exchange.send(200, { Connection: 'close' }, text);
  };
  const server = createServer((request, response) => {
    request.on('error', () => undefined);
    const limits = { keepBytesMax: 0, bytesMax: 0, ms: 1 };
    void serve(
      new Exchange(request, response, { requestId: 'x', secure: false, bodies: memory, drainLimits: limits }),
    );
  });
  servers.push(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    memory,
    send(bytes, sent = bytes === 'chunked' ? 0 : bytes) {
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => undefined);
      const length = bytes === 'chunked' ? 'Transfer-Encoding: chunked' : `Content-Length: ${bytes}`;
      socket.write(`PUT / HTTP/1.1\r\nHost: x\r\n${length}\r\n\r\n`);
      socket.write(Buffer.alloc(sent, 'x'));
      return socket;
    },
    async asked(count) {
      while (asked.count < count) await new Promise<void>((resolve) => (asked.wake = resolve));
    },
  };
}

async function answerOf(socket: Socket): Promise<string> {
  let text = '';
  socket.setEncoding('latin1').on('data', (chunk: string) => (text += chunk));
  if (!socket.closed) await once(socket, 'close');
  return text.split('\r\n\r\n')[1] ?? '';
}

describe('memory of bodies', () => {
  afterEach(closeServers);

  it('what finds no room waits unread, first come first served, and small bodies do not wait', async () => {
    const { memory, send, asked } = await listen();
    const first = send(60 * KIB, 1);
    await asked(1);
    assert.equal(memory.held, 60 * KIB);
    const second = send(70 * KIB);
    await asked(2);
    const third = send(20 * KIB);
    await asked(3);
    assert.equal(memory.held, 60 * KIB);
    assert.equal(await answerOf(send(10 * KIB)), `read ${10 * KIB}`);
    first.write(Buffer.alloc(60 * KIB - 1));
    const answers = await Promise.all([first, second, third].map(answerOf));
    assert.deepEqual(
      answers,
      [60, 70, 20].map((size) => `read ${size * KIB}`),
    );
    assert.equal(memory.held, 0);
  });

  it('a body without a length takes what it may have, at most everything', async () => {
    const { memory, send, asked } = await listen();
    const chunked = send('chunked');
    await asked(1);
    assert.equal(memory.held, 100 * KIB);
    chunked.write('3\r\nabc\r\n0\r\n\r\n');
    assert.equal(await answerOf(chunked), 'read 3');
    assert.equal(memory.held, 0);
  });

  it('is refused when there is none in time', async () => {
    const { memory, send, asked } = await listen({ waitMs: 200 });
    const first = send(80 * KIB, 1);
    await asked(1);
    assert.equal(await answerOf(send(30 * KIB)), 'ServiceUnavailableException');
    // The one that was refused holds up nobody.
    assert.equal(await answerOf(send(20 * KIB)), `read ${20 * KIB}`);
    first.destroy();
    await once(first, 'close');
    assert.equal(await answerOf(send(100 * KIB)), `read ${100 * KIB}`);
    assert.equal(memory.held, 0);
  });

  it('who leaves while waiting gives way', async () => {
    const { memory, send, asked } = await listen();
    const first = send(50 * KIB, 1);
    await asked(1);
    const second = send(90 * KIB, 1);
    await asked(2);
    const third = send(40 * KIB);
    await asked(3);
    second.destroy();
    assert.equal(await answerOf(third), `read ${40 * KIB}`);
    first.write(Buffer.alloc(50 * KIB - 1));
    assert.equal(await answerOf(first), `read ${50 * KIB}`);
    assert.equal(memory.held, 0);
  });

  it('who sends slowly keeps the room while nobody wants it, and is cut when somebody does', async () => {
    const { memory, send, asked } = await listen({ receiveMs: 1000 });
    const slow = send(80 * KIB, 1);
    await asked(1);
    const cut = answerOf(slow);
    assert.equal(await answerOf(send(20 * KIB)), `read ${20 * KIB}`);
    assert.equal(memory.held, 80 * KIB);
    assert.equal(await answerOf(send(60 * KIB)), `read ${60 * KIB}`);
    assert.equal(await cut, '');
    assert.equal(memory.held, 0);
  });
});
