import assert from 'node:assert/strict';
import { createSecretKey, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, request, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { FrameCodec, FRAMES_AT } from './format.ts';
import { FrameWriter } from './frame-writer.ts';
import { SharedLimits } from './limits.ts';
import { pump } from './pump.ts';

const MIB = 1_048_576;

/** Counts the bytes that come in one turn of the event loop. */
class Counting extends FrameWriter {
  mostInTurn = 0;
  bytes = 0;
  #inTurn = 0;

  override write(chunk: Uint8Array): void {
    if (this.#inTurn === 0) setImmediate(() => (this.#inTurn = 0));
    this.#inTurn += chunk.length;
    this.bytes += chunk.length;
    this.mostInTurn = Math.max(this.mostInTurn, this.#inTurn);
    super.write(chunk);
  }
}

test('a fast client gives others their turn', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-pump-'));
  const fd = openSync(join(directory, 'blob'), 'w');
  const codec = new FrameCodec('key', createSecretKey(randomBytes(32)));
  const writer = new Counting(fd, codec, { offset: 0, position: FRAMES_AT }, new SharedLimits());
  const server = createServer().listen(0, '127.0.0.1');
  try {
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const sent = request({ port, method: 'PUT', host: '127.0.0.1' });
    sent.on('error', () => undefined).end(Buffer.alloc(16 * MIB));
    const [source] = (await once(server, 'request')) as [IncomingMessage];
    await pump(source, writer, { maxBytes: 16 * MIB, signals: [] });
    await writer.end();
    sent.destroy();

    assert.equal(writer.bytes, 16 * MIB);
    // what has been read already comes on top
    assert.ok(writer.mostInTurn <= MIB, `${writer.mostInTurn} bytes in one turn`);
  } finally {
    server.close();
    server.closeAllConnections();
    closeSync(fd);
    await rm(directory, { recursive: true });
  }
});
