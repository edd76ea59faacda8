// Throughput of the blob store alone: writes and reads one large blob, reads small ones, and runs many streams at once.
// Usage: node bin/run.js bench/blobs.ts [megabytes] [streams]
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable, type Writable } from 'node:stream';
import { createFileBlobStore, type BlobStore } from '../src/blobs/blobs.ts';
import { openKeyRing } from '../src/lib/keyring.ts';

const CHUNK = randomBytes(64 * 1024);
const SMALL_READS = 5000;
const MIB = 1 << 20;

/** A stream of `bytes` bytes in chunks as a socket gives them. */
function source(bytes: number): Readable {
  let left = bytes;
  return new Readable({
    highWaterMark: 64 * 1024,
    read() {
      const length = Math.min(left, CHUNK.length);
      left -= length;
      this.push(length === 0 ? null : Buffer.from(CHUNK.subarray(0, length)));
    },
  });
}

/** A process of its own that takes what is sent to it, so that its CPU time does not count. */
async function startDrain(): Promise<{ port: number; stop: () => void }> {
  const code = `const s = require('node:net').createServer((c) => c.on('error', () => {}).resume());
    s.listen(0, '127.0.0.1', () => console.log(s.address().port));`;
  const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = await once(child.stdout, 'data');
  return { port: Number(String(line)), stop: () => void child.kill() };
}

async function write(store: BlobStore, bytes: number): Promise<string> {
  const key = randomBytes(16).toString('hex');
  await store.create(key, 'default');
  const { size } = await store.append(key, 0, source(bytes), { maxBytes: bytes });
  await store.seal(key, size);
  return key;
}

async function read(store: BlobStore, key: string, sink: Writable): Promise<void> {
  const reader = await store.open(key);
  await reader.sendTo(sink);
}

async function connectDrain(): Promise<Writable> {
  const socket = connect(drain.port, '127.0.0.1');
  await once(socket, 'connect');
  return socket;
}

async function readOverNewConnection(store: BlobStore, key: string): Promise<void> {
  const socket = await connectDrain();
  await read(store, key, socket);
  socket.destroy();
}

async function measure<T>(what: string, bytes: number, times: number, run: () => Promise<T>): Promise<T> {
  const cpu = process.cpuUsage();
  const startedAt = performance.now();
  const result = await run();
  const seconds = (performance.now() - startedAt) / 1000;
  const used = process.cpuUsage(cpu);
  const cpuSeconds = (used.user + used.system) / 1e6;
  const perSecond =
    times > 1
      ? `, ${Math.round(times / seconds)}/s, ${Math.round((cpuSeconds / times) * 1e6)} us CPU each`
      : '';
  const rate = `${Math.round(bytes / 1e6 / seconds)} MB/s, ${((cpuSeconds / bytes) * 1e9).toFixed(2)} CPU s/GB`;
  process.stdout.write(
    `${what.padEnd(36)} ${rate}${perSecond}, rss ${Math.round(process.memoryUsage.rss() / MIB)} MiB\n`,
  );
  return result;
}

const bytes = Number(process.argv[2] ?? 512) * MIB;
const streams = Number(process.argv[3] ?? 0);
const drain = await startDrain();
const sink = await connectDrain();
const directory = await mkdtemp(join(tmpdir(), 'berth-bench-'));
try {
  const keys = await openKeyRing(join(directory, 'keys'));
  const store = await createFileBlobStore({ directory: join(directory, 'blobs'), keys });
  if (streams > 0) {
    const each = Math.ceil(bytes / streams);
    const blob = await write(store, each);
    await measure(`${streams} writes and ${streams} reads at once`, each * streams * 2, 1, () =>
      Promise.all(
        Array.from({ length: streams }, () => [
          write(store, each),
          readOverNewConnection(store, blob),
        ]).flat(),
      ),
    );
    process.stdout.write(`peak rss ${Math.round(process.resourceUsage().maxRSS / 1024)} MiB\n`);
  } else {
    for (let round = 0; round < 3; round += 1) {
      const key = await measure('write', bytes, 1, () => write(store, bytes));
      await measure('read', bytes, 1, () => read(store, key, sink));
      await store.delete(key);
    }
    for (const size of [2 * 1024, 64 * 1024]) {
      const key = await write(store, size);
      await measure(`read ${size / 1024} KiB`, SMALL_READS * size, SMALL_READS, async () => {
        for (let i = 0; i < SMALL_READS; i += 1) await read(store, key, sink);
      });
      await measure(`write ${size / 1024} KiB`, 500 * size, 500, async () => {
        for (let i = 0; i < 500; i += 1) await write(store, size);
      });
    }
  }
  await store.close();
} finally {
  sink.destroy();
  drain.stop();
  await rm(directory, { recursive: true, force: true });
}
