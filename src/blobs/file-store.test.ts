import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { describe, it } from 'node:test';
import {
  assertContent,
  chunked,
  Collector,
  describeBlobStore,
  newKey,
  sha256,
  stored,
} from '../../test/conformance/blobs.ts';
import { KeyUnavailableError, openKeyRing } from '../lib/keyring.ts';
import { BlobCorruptError, BlobNotFoundError, createFileBlobStore, type BlobStore } from './blobs.ts';

const MIB = 1 << 20;
const FRAMES_AT = 1024;
const STORED_FRAME_BYTES = MIB + 32;
const MAX = { maxBytes: 1 << 30 };

describeBlobStore('files', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-blobs-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  await keys.createKey('other');
  return {
    open: () => createFileBlobStore({ directory: join(directory, 'blobs'), keys }),
    remove: () => rm(directory, { recursive: true }),
  };
});

interface Place {
  readonly directory: string;
  readonly store: BlobStore;
  /** Another store over the same files, as after a restart. */
  reopen(): Promise<BlobStore>;
  path(key: string): string;
}

async function withPlace(run: (place: Place) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-blobs-'));
  const opened: BlobStore[] = [];
  const reopen = async (): Promise<BlobStore> => {
    const keys = await openKeyRing(join(directory, 'keys'));
    const store = await createFileBlobStore({ directory: join(directory, 'blobs'), keys });
    opened.push(store);
    return store;
  };
  try {
    const path = (key: string): string => join(directory, 'blobs', key.slice(-1), key.slice(-2, -1), key);
    await run({ directory, store: await reopen(), reopen, path });
  } finally {
    for (const store of opened) await store.close();
    await rm(directory, { recursive: true });
  }
}

async function flip(path: string, at: number, bit = 1): Promise<void> {
  const bytes = await readFile(path);
  bytes[at] = (bytes[at] ?? 0) ^ bit;
  await writeFile(path, bytes);
}

describe('blob files: probe', () => {
  it('leaves nothing, and says what is in the way', async () => {
    await withPlace(async ({ store, path }) => {
      const key = await stored(store, randomBytes(100));
      const directory = dirname(dirname(dirname(path(key))));
      const before = await readdir(directory, { recursive: true });
      await store.probe();
      assert.deepEqual(await readdir(directory, { recursive: true }), before);
      await mkdir(join(directory, '.probe'));
      await assert.rejects(store.probe(), { code: 'EISDIR' });
      assert.deepEqual(
        (await Array.fromAsync(store.list())).map((one) => one.key),
        [key],
      );
    });
  });
});

describe('blob files: damage', () => {
  it('an upload whose header a loss of power took is gone while nothing of it was acknowledged', async () => {
    for (const left of [0, 100, 1023]) {
      await withPlace(async ({ store, reopen, path }) => {
        const key = newKey();
        await store.create(key, 'default');
        await truncate(path(key), left);
        const restarted = await reopen();
        const append = (offset: number) =>
          restarted.append(key, offset, Readable.from([Buffer.from('more')]), MAX);
        await assert.rejects(append(0), BlobNotFoundError);
        await assert.rejects(append(4), BlobCorruptError);
      });
    }
  });

  const large = randomBytes(2 * MIB + 5000);
  const regions: { what: string; at: number }[] = [
    { what: 'magic', at: 0 },
    { what: 'version', at: 8 },
    { what: 'name length', at: 9 },
    { what: 'content key name', at: 17 },
    { what: 'wrapped data key', at: 170 },
    { what: 'header padding', at: 400 },
    { what: 'header checksum', at: 511 },
    { what: 'seal version', at: 512 },
    { what: 'seal nonce', at: 515 },
    { what: 'sealed size', at: 528 },
    { what: 'seal tag', at: 540 },
    { what: 'seal padding', at: 1023 },
    { what: 'frame length', at: FRAMES_AT + 3 },
    { what: 'frame nonce', at: FRAMES_AT + 5 },
    { what: 'ciphertext', at: FRAMES_AT + 100 },
  ];
  const blobs = [
    { what: 'small', bytes: large.subarray(0, 5000), tagAt: FRAMES_AT + 16 + 5000 },
    { what: 'large', bytes: large, tagAt: FRAMES_AT + 16 + MIB },
  ];
  for (const { what, bytes, tagAt } of blobs) {
    for (const region of [...regions, { what: 'tag', at: tagAt }]) {
      it(`detects one flipped bit in the ${region.what} of a ${what} blob before serving anything`, async () => {
        await withPlace(async ({ store, path }) => {
          const key = await stored(store, bytes);
          await flip(path(key), region.at);
          await assert.rejects(store.open(key), BlobCorruptError);
          await flip(path(key), region.at);
          await assertContent(store, key, bytes);
        });
      });
    }

    it(`detects a ${what} blob cut short or made longer`, async () => {
      await withPlace(async ({ store, path }) => {
        const key = await stored(store, bytes);
        const whole = await readFile(path(key));
        for (const length of [whole.length - 1, whole.length - 16, FRAMES_AT, 600, 0]) {
          await truncate(path(key), length);
          await assert.rejects(store.open(key), BlobCorruptError);
        }
        await writeFile(path(key), Buffer.concat([whole, Buffer.alloc(1)]));
        await assert.rejects(store.open(key), BlobCorruptError);
      });
    });
  }

  it('detects damage in a later frame, having served only what precedes it', async () => {
    await withPlace(async ({ store, path }) => {
      const key = await stored(store, large);
      await flip(path(key), FRAMES_AT + STORED_FRAME_BYTES + 5000);
      const sink = new Collector();
      await assert.rejects((await store.open(key)).sendTo(sink), BlobCorruptError);
      assert.ok(sink.bytes().equals(large.subarray(0, MIB)));
      await assert.rejects(store.open(key, MIB + 10, MIB + 20), BlobCorruptError);
      const reader = await store.open(key, 2 * MIB);
      assert.ok((await reader.bytes()).equals(large.subarray(2 * MIB)));
    });
  });

  it('detects two frames that changed places', async () => {
    await withPlace(async ({ store, path }) => {
      const key = await stored(store, large);
      const file = await readFile(path(key));
      const first = Buffer.from(file.subarray(FRAMES_AT, FRAMES_AT + STORED_FRAME_BYTES));
      file.copyWithin(FRAMES_AT, FRAMES_AT + STORED_FRAME_BYTES, FRAMES_AT + 2 * STORED_FRAME_BYTES);
      first.copy(file, FRAMES_AT + STORED_FRAME_BYTES);
      await writeFile(path(key), file);
      await assert.rejects(store.open(key), BlobCorruptError);
      await assert.rejects(store.open(key, MIB), BlobCorruptError);
    });
  });

  it('detects two files that changed places', async () => {
    await withPlace(async ({ store, path }) => {
      const one = await stored(store, large.subarray(0, 3000));
      const other = await stored(store, large.subarray(3000, 6000));
      await rename(path(one), `${path(one)}.x`);
      await rename(path(other), path(one));
      await rename(`${path(one)}.x`, path(other));
      await assert.rejects(store.open(one), BlobCorruptError);
      await assert.rejects(store.open(other), BlobCorruptError);
    });
  });

  it('detects damage in committed bytes when an upload goes on elsewhere', async () => {
    await withPlace(async ({ store, reopen, path }) => {
      const key = newKey();
      await store.create(key, 'default');
      await store.append(key, 0, chunked(large), MAX);
      await flip(path(key), FRAMES_AT + 100);
      const restarted = await reopen();
      await assert.rejects(restarted.append(key, large.length, chunked(large), MAX), BlobCorruptError);
      await assert.rejects(restarted.seal(key, large.length), BlobCorruptError);
    });
  });
});

describe('blob files: keys', () => {
  it('cannot be read without the content key', async () => {
    await withPlace(async ({ directory, store }) => {
      const keys = await openKeyRing(join(directory, 'keys'));
      await keys.createKey('tenant-1');
      const key = newKey();
      await store.create(key, 'tenant-1');
      await store.append(key, 0, chunked(randomBytes(100)), MAX);
      await store.seal(key, 100);
      await (await store.open(key)).close();
      await rm(join(directory, 'keys', 'content-tenant-1.key'));
      const without = await createFileBlobStore({
        directory: join(directory, 'blobs'),
        keys: await openKeyRing(join(directory, 'keys')),
      });
      await assert.rejects(without.open(key), KeyUnavailableError);
      await without.close();
    });
  });

  it('holds no plaintext and repeats no ciphertext', async () => {
    await withPlace(async ({ store, path }) => {
      const bytes = Buffer.alloc(3000, 'plaintext ');
      const one = await readFile(path(await stored(store, bytes)));
      const other = await readFile(path(await stored(store, bytes)));
      assert.equal(one.includes('plaintext'), false);
      assert.notDeepEqual(one.subarray(FRAMES_AT), other.subarray(FRAMES_AT));
    });
  });

  it('is readable by the owner only', async () => {
    await withPlace(async ({ directory, store, path }) => {
      const key = await stored(store, randomBytes(10));
      assert.equal((await stat(path(key))).mode & 0o777, 0o600);
      for (const parent of [
        'blobs',
        join('blobs', key.slice(-1)),
        join('blobs', key.slice(-1), key.slice(-2, -1)),
      ]) {
        assert.equal((await stat(join(directory, parent))).mode & 0o777, 0o700);
      }
    });
  });
});

describe('blob files: crashes', () => {
  it('keeps committed bytes whatever the file holds behind them', async () => {
    await withPlace(async ({ store, reopen, path }) => {
      const bytes = randomBytes(MIB + 70_000);
      for (const committed of [0, 10, MIB, MIB + 10]) {
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(bytes.subarray(0, committed)), MAX);
        const position = (await stat(path(key))).size;
        await store.append(key, committed, chunked(randomBytes(MIB + 1)), MAX);
        const longest = (await stat(path(key))).size;
        for (const cut of [longest - 1, position + MIB, position + 17, position + 1, position]) {
          await truncate(path(key), cut);
          const restarted = await reopen();
          const appended = await restarted.append(key, committed, Readable.from([]), MAX);
          assert.deepEqual(appended, { size: committed, sha256: sha256(bytes.subarray(0, committed)) });
          await writeFile(path(key), randomBytes(longest - position), { flag: 'a' });
        }
        const restarted = await reopen();
        await restarted.append(key, committed, chunked(bytes.subarray(committed)), MAX);
        await restarted.seal(key, bytes.length);
        await assertContent(store, key, bytes);
      }
    });
  });

  it('keeps committed bytes in any copy taken while an append runs', async () => {
    await withPlace(async ({ directory, store }) => {
      const bytes = randomBytes(6 * MIB + 123);
      const key = newKey();
      await store.create(key, 'default');
      let committed = 0;
      for (const end of [700_000, 2 * MIB, 2 * MIB + 1, 6 * MIB, bytes.length]) {
        const append = store.append(key, committed, chunked(bytes.subarray(committed, end), 20_000), MAX);
        const copy = join(directory, `copy-${end}`);
        await cp(join(directory, 'blobs'), copy, { recursive: true });
        const keys = await openKeyRing(join(directory, 'keys'));
        const copied = await createFileBlobStore({ directory: copy, keys });
        const rest = await copied.append(key, committed, chunked(bytes.subarray(committed)), MAX);
        assert.equal(rest.sha256, sha256(bytes));
        await copied.seal(key, bytes.length);
        await assertContent(copied, key, bytes);
        await copied.close();
        committed = (await append).size;
      }
    });
  });

  it('keeps every append that succeeded when the process is killed', async () => {
    await withPlace(async ({ directory, reopen }) => {
      const key = newKey();
      const child = spawn(process.execPath, ['--input-type=module', '-e', APPENDING], {
        env: { ...process.env, DIRECTORY: directory, KEY: key, ROOT: new URL('../', import.meta.url).href },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let output = '';
      child.stdout.on('data', (chunk: Buffer) => {
        output += String(chunk);
        if (output.split('\n').length > 20) child.kill('SIGKILL');
      });
      await once(child, 'close');
      const lines = output.split('\n').slice(0, -1);
      const [size, digest] = (lines.at(-1) ?? '').split(' ');
      const store = await reopen();
      const resumed = await store.append(key, Number(size), Readable.from([Buffer.from('end')]), MAX);
      await store.seal(key, resumed.size);
      const content = await (await store.open(key)).bytes();
      assert.equal(sha256(content.subarray(0, Number(size))), digest);
      assert.equal(sha256(content), resumed.sha256);
    });
  });

  it('replaces a half-written evened file, and deletes it with the upload', async () => {
    await withPlace(async ({ store, path }) => {
      const bytes = randomBytes(3000);
      for (const finish of [true, false]) {
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(bytes.subarray(0, 10)), MAX);
        await store.append(key, 10, chunked(bytes.subarray(10)), MAX);
        await writeFile(`${path(key)}.evened`, randomBytes(10_000));
        if (finish) {
          await store.seal(key, bytes.length);
          await assertContent(store, key, bytes);
        }
        await store.delete(key);
        assert.deepEqual(await readdir(join(path(key), '..')), []);
      }
    });
  });
});

describe('blob files: descriptors', { skip: process.platform !== 'linux' }, () => {
  it('are closed after every outcome', async () => {
    await withPlace(async ({ directory, store, path }) => {
      const key = await stored(store, randomBytes(4 * MIB));
      const damaged = await stored(store, randomBytes(3 * MIB));
      await flip(path(damaged), FRAMES_AT + STORED_FRAME_BYTES + 100);
      const server = createServer();
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const address = server.address();
      assert.ok(address !== null && typeof address === 'object');
      const client = connect(address.port, '127.0.0.1').pause();
      const [served] = (await once(server, 'connection')) as [Socket];
      const sending = assert.rejects((await store.open(key)).sendTo(served));
      client.destroy();
      await sending;
      server.close();

      const closed = new Collector(true);
      const stopped = assert.rejects((await store.open(key)).sendTo(closed));
      await closed.arrived();
      closed.destroy();
      await stopped;
      await assert.rejects((await store.open(damaged)).bytes(), BlobCorruptError);
      await (await store.open(key)).close();
      await assert.rejects(store.open(newKey()), BlobNotFoundError);
      await assert.rejects(store.open(key, 5, 4), RangeError);
      await assert.rejects(store.append(key, 5, chunked(randomBytes(10)), MAX));
      assert.deepEqual(openUnder(directory), []);
    });
  });

  it('serve a network connection exactly, though memory is freed behind it', async () => {
    await withPlace(async ({ store }) => {
      const bytes = randomBytes(5 * MIB + 5);
      const key = await stored(store, bytes);
      const server = createServer((socket) => {
        void (async () => {
          const reader = await store.open(key, 3);
          await reader.sendTo(socket);
          socket.end();
        })();
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const address = server.address();
      assert.ok(address !== null && typeof address === 'object');
      const received: Buffer[] = await connect(address.port, '127.0.0.1').toArray();
      assert.ok(Buffer.concat(received).equals(bytes.subarray(3)));
      server.close();
    });
  });
});

/** Appends to one upload for ever, writing size and digest of what is committed. */
const APPENDING = `
  const { createFileBlobStore } = await import(process.env.ROOT + 'blobs/blobs.ts');
  const { openKeyRing } = await import(process.env.ROOT + 'lib/keyring.ts');
  const { randomBytes } = await import('node:crypto');
  const { Readable } = await import('node:stream');
  const keys = await openKeyRing(process.env.DIRECTORY + '/keys');
  const store = await createFileBlobStore({ directory: process.env.DIRECTORY + '/blobs', keys });
  await store.create(process.env.KEY, 'default');
  for (let size = 0; ; ) {
    const chunks = Array.from({ length: 5 }, () => randomBytes(1 + Math.floor(Math.random() * 90_000)));
    const appended = await store.append(process.env.KEY, size, Readable.from(chunks), { maxBytes: 1e9 });
    size = appended.size;
    process.stdout.write(size + ' ' + appended.sha256 + '\\n');
  }`;

function openUnder(directory: string): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return target.startsWith(directory) ? [target] : [];
    } catch {
      return []; // the descriptor of this very listing
    }
  });
}
