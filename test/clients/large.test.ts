/** A 5 GiB layer in bounded memory, and a shutdown that lets what is in flight end. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { statfs } from 'node:fs/promises';
import { get, request, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import {
  basic,
  createRepository,
  makePlace,
  readAdmin,
  readMemory,
  registryPassword,
  ROOT,
  startBerth,
  startDaemon,
  stopBerth,
  until,
  assertClean,
} from './harness.ts';
import { digestOf, seededBytes } from './image.ts';

const MIB = 1024 * 1024;
const LAYER_BYTES = 5 * 1024 * MIB;
const RSS_KIB_MAX = 200 * 1024;

const { bavail, bsize } = await statfs(tmpdir());
const roomless = bavail * bsize < 2 * LAYER_BYTES && `${tmpdir()} has no room for 10 GiB`;

describe('a 5 GiB layer', { skip: roomless }, () => {
  test('is pushed and pulled within 200 MiB of server memory', async () => {
    const place = await makePlace('large');
    const server = await startBerth({ data: join(place.directory, 'data'), asShipped: true });
    try {
      const admin = await readAdmin(server.data);
      await createRepository(server, admin, 'large');
      const authorization = basic(await registryPassword(server, admin));
      const started = await fetch(`${server.endpoint}/v2/large/blobs/uploads/`, {
        method: 'POST',
        headers: { authorization },
      });
      assert.equal(started.status, 202);
      const upload = new URL(started.headers.get('location') ?? '', server.endpoint);

      const { hash, answer } = await sendBlocks(upload, authorization);
      assert.equal(answer.statusCode, 202);
      assert.equal(answer.headers.range, `0-${LAYER_BYTES - 1}`);
      const digest = `sha256:${hash}`;
      const closing = new URL(answer.headers.location ?? '', server.endpoint);
      closing.searchParams.set('digest', digest);
      const put = await fetch(closing, { method: 'PUT', headers: { authorization } });
      assert.equal(put.status, 201, await put.text());
      const pushedKib = await readMemory(server.pid, 'VmHWM');
      assert.ok(pushedKib < RSS_KIB_MAX, `${pushedKib} KiB after the push`);

      assert.equal(await pullHash(`${server.endpoint}/v2/large/blobs/${digest}`, authorization), hash);
      const pulledKib = await readMemory(server.pid, 'VmHWM');
      assert.ok(pulledKib < RSS_KIB_MAX, `${pulledKib} KiB after the pull`);
      await stopBerth(server);
    } finally {
      await server.stop('SIGKILL');
      await place.remove();
    }
  });
});

/** Streams the layer as docker does, in one PATCH without a length: blocks of which each is different. */
async function sendBlocks(
  upload: URL,
  authorization: string,
): Promise<{ hash: string; answer: IncomingMessage }> {
  const hash = createHash('sha256');
  const sending = request(upload, { method: 'PATCH', headers: { authorization } });
  const answered = once(sending, 'response');
  for (let number = 0; number < LAYER_BYTES / MIB; number++) {
    // a block is sent while the next is made, so each has its own memory
    const block = Buffer.from(BLOCK);
    block.writeUInt32LE(number);
    hash.update(block);
    if (!sending.write(block)) await Promise.race([once(sending, 'drain'), answered]);
  }
  sending.end();
  const [answer] = (await answered) as [IncomingMessage];
  answer.resume();
  return { hash: hash.digest('hex'), answer };
}

const BLOCK = seededBytes('large', MIB);

async function pullHash(url: string, authorization: string): Promise<string> {
  const [answer] = (await once(get(url, { headers: { authorization } }), 'response')) as [IncomingMessage];
  assert.equal(answer.statusCode, 200);
  assert.equal(answer.headers['content-length'], String(LAYER_BYTES));
  const hash = createHash('sha256');
  for await (const chunk of answer) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

describe('shutdown', () => {
  for (const { what, signal, group } of [
    { what: 'SIGTERM', signal: 'SIGTERM', group: false },
    // WHY the group: a terminal sends Ctrl-C to everything in it, so npm, its shell and the launcher pass it on as well
    { what: 'Ctrl-C in the terminal of npm start', signal: 'SIGINT', group: true },
  ] as const) {
    test(`${what} lets an upload in flight end`, async () => {
      const place = await makePlace('drain');
      try {
        const data = join(place.directory, 'data');
        const command = group ? ['npm', 'start', '--'] : [process.execPath, 'src/main.ts', 'serve'];
        const flags = ['--port', '0', '--data', data];
        const server = startDaemon([...command, ...flags], place.environment, { cwd: ROOT, group });
        await until('ready', () => server.output().includes('"msg":"ready"') || server.hasExited());
        const endpoint = /"endpoint":"([^"]+)"/.exec(server.output())?.[1] ?? '';
        const admin = await readAdmin(data);
        await createRepository({ endpoint }, admin, 'drained');
        const authorization = basic(await registryPassword({ endpoint }, admin));

        const bytes = seededBytes('drain', 3 * MIB);
        const started = await fetch(`${endpoint}/v2/drained/blobs/uploads/`, {
          method: 'POST',
          headers: { authorization },
        });
        const upload = new URL(started.headers.get('location') ?? '', endpoint);
        upload.searchParams.set('digest', digestOf(bytes));
        const sending = request(upload, {
          method: 'PUT',
          headers: { authorization, 'content-length': bytes.length },
        });
        const answered = once(sending, 'response');
        sending.write(bytes.subarray(0, MIB));
        await once(sending, 'drain');

        const stopped = server.stop(signal);
        await until('draining', () => server.output().includes('"msg":"draining"'));
        await until('new connections are refused', async () => {
          return fetch(`${endpoint}/healthz`).then(
            () => false,
            () => true,
          );
        });
        sending.end(bytes.subarray(MIB));
        const [answer] = (await answered) as [IncomingMessage];
        answer.resume();
        assert.equal(answer.statusCode, 201);
        await stopped;
        assertClean(server);

        const again = await startBerth({ data });
        const head = await fetch(`${again.endpoint}/v2/drained/blobs/${digestOf(bytes)}`, {
          method: 'HEAD',
          headers: { authorization },
        });
        assert.equal(head.status, 200);
        await stopBerth(again);
      } finally {
        await place.remove();
      }
    });
  }
});
