import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { PassThrough, Readable, Writable } from 'node:stream';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import {
  BlobExistsError,
  BlobNotFoundError,
  BlobSealedError,
  ByteLimitError,
  UploadBusyError,
  UploadOffsetError,
  type BlobStore,
} from '../../src/blobs/blobs.ts';
import { KeyUnavailableError } from '../../src/lib/keyring.ts';

/** One place where blobs are kept, which can be opened as often as wanted, as by several processes or after a restart. */
export interface BlobPlace {
  /** A store over this place; the suite closes it. */
  open(): Promise<BlobStore>;
  /** Removes the place. */
  remove(): Promise<void>;
}

const MIB = 1 << 20;
const MAX = { maxBytes: 1 << 30 };

/** What every {@link BlobStore} must do. `makePlace` gives a new, empty place; key rings have the content key `other` besides `default`. */
export function describeBlobStore(name: string, makePlace: () => Promise<BlobPlace>): void {
  /** Runs with a store on a place of its own, and fails when `run` leaves blobs behind that it did not delete. */
  async function withStore(run: (store: BlobStore, place: BlobPlace) => Promise<void>): Promise<void> {
    const place = await makePlace();
    try {
      const store = await place.open();
      try {
        await run(store, place);
        assert.deepEqual(await keysOf(store), [], 'leftovers');
      } finally {
        await store.close();
      }
    } finally {
      await place.remove();
    }
  }

  describe(`blob store: ${name}`, () => {
    it('gives back the same bytes and digest however they are split into appends', async () => {
      await withStore(async (store, place) => {
        const content = randomBytes(3 * MIB + 12345);
        const sizes = fc.oneof(
          fc.integer({ min: 0, max: content.length }),
          fc.constantFrom(0, 1, MIB, 2 * MIB),
        );
        await fc.assert(
          fc.asyncProperty(
            sizes,
            fc.array(sizes, { maxLength: 5 }),
            fc.nat(5),
            async (size, cuts, reopenAt) => {
              const bytes = content.subarray(0, size);
              const key = newKey();
              await store.create(key, 'default');
              const ends = [...cuts.filter((cut) => cut < size), size].toSorted((a, b) => a - b);
              let current = store;
              let offset = 0;
              for (const [index, end] of ends.entries()) {
                if (index === reopenAt) current = await place.open();
                const appended = await current.append(key, offset, chunked(bytes.subarray(offset, end)), MAX);
                assert.deepEqual(appended, { size: end, sha256: sha256(bytes.subarray(0, end)) });
                offset = end;
              }
              await current.seal(key, size);
              assert.equal(await store.size(key), size);
              await assertContent(store, key, bytes);
              await store.delete(key);
              if (current !== store) await current.close();
            },
          ),
          { numRuns: 25 },
        );
      });
    });

    it('reads any range', async () => {
      await withStore(async (store) => {
        const bytes = randomBytes(2 * MIB + 777);
        const large = await stored(store, bytes);
        const small = await stored(store, bytes.subarray(0, 1000));
        const position = fc.oneof(
          fc.integer({ min: 0, max: bytes.length }),
          fc.constantFrom(0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, bytes.length),
        );
        await fc.assert(
          fc.asyncProperty(position, position, fc.boolean(), async (a, b, isSmall) => {
            const size = isSmall ? 1000 : bytes.length;
            const start = Math.min(a, b, size);
            const end = Math.min(Math.max(a, b), size);
            const key = isSmall ? small : large;
            const reader = await store.open(key, start, end);
            assert.equal(reader.size, size);
            const sink = new Collector();
            await reader.sendTo(sink);
            assert.equal(sink.writableEnded, false);
            assert.ok(sink.bytes().equals(bytes.subarray(start, end)));
            const again = await store.open(key, start, end);
            assert.ok((await again.bytes()).equals(bytes.subarray(start, end)));
          }),
          { numRuns: 40 },
        );
        for (const [start, end] of [
          [-1, 5],
          [5, 4],
          [0, bytes.length + 1],
          [bytes.length + 1, undefined],
          [0.5, 1],
          [Number.NaN, 1],
        ] as const) {
          await assert.rejects(store.open(large, start, end), RangeError);
        }
        await store.delete(large);
        await store.delete(small);
      });
    });

    it('keeps what comes in many streams at once, some of which break off', async () => {
      await withStore(async (store) => {
        const content = randomBytes(3 * MIB);
        const streams = Array.from({ length: 24 }, async (_, i) => {
          const bytes = content.subarray(i, 2 * MIB + 400_000 + i * 1001);
          const key = newKey();
          await store.create(key, 'default');
          const half = MIB + 300_000 - i * 1009;
          await store.append(key, 0, chunked(bytes.subarray(0, half)), MAX);
          const chunks = chunked(bytes.subarray(half));
          if (i % 3 === 0)
            await assert.rejects(store.append(key, half, chunks, { maxBytes: MIB }), ByteLimitError);
          await store.append(key, half, chunked(bytes.subarray(half), 40_000), MAX);
          await store.seal(key, bytes.length);
          await assertContent(store, key, bytes);
          await store.delete(key);
        });
        await Promise.all(streams);
      });
    });

    it('keeps an empty blob', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await store.create(key, 'other');
        const appended = await store.append(key, 0, Readable.from([]), { maxBytes: 0 });
        assert.deepEqual(appended, { size: 0, sha256: sha256(Buffer.alloc(0)) });
        await store.seal(key, 0);
        assert.equal(await store.size(key), 0);
        await assertContent(store, key, Buffer.alloc(0));
        await store.delete(key);
        const bare = newKey();
        await store.create(bare, 'default');
        await store.seal(bare, 0);
        await assertContent(store, bare, Buffer.alloc(0));
        await store.delete(bare);
      });
    });

    it('gathers many tiny chunks and many tiny appends', async () => {
      await withStore(async (store) => {
        const bytes = randomBytes(300_000);
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(bytes.subarray(0, 200_000), 7), MAX);
        for (let offset = 200_000; offset < bytes.length; offset += 4000) {
          await store.append(key, offset, chunked(bytes.subarray(offset, offset + 4000), 1000), MAX);
        }
        await store.seal(key, bytes.length);
        await assertContent(store, key, bytes);
        await store.delete(key);
      });
    });

    const failures: {
      what: string;
      feed: (bytes: Buffer) => { source: Readable; maxBytes?: number; signal?: AbortSignal };
      error: object | (new (...args: never[]) => Error);
    }[] = [
      {
        what: 'the source fails',
        feed: (bytes) => ({ source: failing(bytes, new Error('connection lost')) }),
        error: { message: 'connection lost' },
      },
      {
        what: 'the source had failed before',
        feed: () => {
          const source = new PassThrough();
          source.destroy(new Error('gone before'));
          return { source };
        },
        error: { message: 'gone before' },
      },
      {
        what: 'the source closes before its end',
        feed: (bytes) => ({ source: failing(bytes, undefined) }),
        error: { code: 'ERR_STREAM_PREMATURE_CLOSE' },
      },
      {
        what: 'more bytes arrive than allowed',
        feed: (bytes) => ({ source: chunked(bytes), maxBytes: bytes.length - 1 }),
        error: ByteLimitError,
      },
      {
        what: 'the signal aborts',
        feed: (bytes) => {
          const controller = new AbortController();
          const source = new PassThrough();
          source.write(bytes, () => setImmediate(() => controller.abort()));
          return { source, signal: controller.signal };
        },
        error: { name: 'AbortError' },
      },
      {
        what: 'the signal had aborted before',
        feed: (bytes) => ({ source: chunked(bytes), signal: AbortSignal.abort() }),
        error: { name: 'AbortError' },
      },
    ];
    for (const { what, feed, error } of failures) {
      it(`keeps the committed bytes when ${what}, and goes on from them`, async () => {
        await withStore(async (store, place) => {
          const bytes = randomBytes(MIB + 5000);
          for (const committed of [0, 3000, MIB]) {
            const key = newKey();
            await store.create(key, 'default');
            await store.append(key, 0, chunked(bytes.subarray(0, committed)), MAX);
            const { source, ...options } = feed(randomBytes(MIB + 200_000));
            await assert.rejects(
              store.append(key, committed, source, { ...MAX, ...options }),
              error as Error,
            );
            const next = committed === MIB ? await place.open() : store;
            const appended = await next.append(key, committed, chunked(bytes.subarray(committed)), MAX);
            assert.deepEqual(appended, { size: bytes.length, sha256: sha256(bytes) });
            await next.seal(key, bytes.length);
            await assertContent(store, key, bytes);
            await store.delete(key);
            if (next !== store) await next.close();
            source.destroy();
          }
        });
      });
    }

    it('takes exactly the bytes allowed', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await store.create(key, 'default');
        assert.equal(
          (await store.append(key, 0, chunked(randomBytes(70_000)), { maxBytes: 70_000 })).size,
          70_000,
        );
        await store.delete(key);
      });
    });

    it('goes on from the size before the last append, when its caller could not record the last', async () => {
      await withStore(async (store, place) => {
        const bytes = randomBytes(500_000);
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(bytes.subarray(0, 100_000)), MAX);
        await store.append(key, 100_000, chunked(randomBytes(200_000)), MAX);
        const restarted = await place.open();
        await restarted.append(key, 100_000, chunked(randomBytes(50_000)), MAX);
        await restarted.close();
        const appended = await store.append(key, 100_000, chunked(bytes.subarray(100_000)), MAX);
        assert.equal(appended.sha256, sha256(bytes));
        await store.seal(key, bytes.length);
        await assertContent(store, key, bytes);
        await store.delete(key);
      });
    });

    it('drops what another process appended in vain, also when it was more', async () => {
      await withStore(async (store, place) => {
        const bytes = randomBytes(300);
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(bytes.subarray(0, 100)), MAX);
        const other = await place.open();
        await other.append(key, 100, chunked(randomBytes(MIB)), MAX);
        await store.append(key, 100, chunked(bytes.subarray(100)), MAX);
        await other.append(key, 300, chunked(randomBytes(MIB)), MAX);
        await store.seal(key, 300);
        await assertContent(other, key, bytes);
        await assert.rejects(other.append(key, 300, chunked(bytes), MAX), BlobSealedError);
        await other.close();
        const aligned = newKey();
        await store.create(aligned, 'default');
        const again = await place.open();
        await again.append(aligned, 0, chunked(bytes), MAX);
        await store.seal(aligned, 0);
        await assert.rejects(again.append(aligned, 300, chunked(bytes), MAX), BlobSealedError);
        await assertContent(store, aligned, Buffer.alloc(0));
        await again.close();
        await store.delete(key);
        await store.delete(aligned);
      });
    });

    it('refuses an offset and a final size that were never committed', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await store.create(key, 'default');
        await store.append(key, 0, chunked(randomBytes(1000)), MAX);
        for (const offset of [1001, 999, 1, -1, 0.5, Number.NaN]) {
          await assert.rejects(store.append(key, offset, chunked(randomBytes(10)), MAX), UploadOffsetError);
          await assert.rejects(store.seal(key, offset), UploadOffsetError);
        }
        assert.equal((await store.append(key, 1000, chunked(randomBytes(10)), MAX)).size, 1010);
        await store.delete(key);
      });
    });

    it('refuses a second writer', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await store.create(key, 'default');
        const source = new PassThrough();
        const running = store.append(key, 0, source, MAX);
        await assert.rejects(store.append(key, 0, chunked(randomBytes(10)), MAX), UploadBusyError);
        await assert.rejects(store.seal(key, 0), UploadBusyError);
        source.end('done');
        assert.equal((await running).size, 4);
        await store.delete(key);
      });
    });

    it('seals once; again with the same size does nothing', async () => {
      await withStore(async (store, place) => {
        const bytes = randomBytes(1000);
        const key = await stored(store, bytes);
        await store.seal(key, bytes.length);
        const other = await place.open();
        await other.seal(key, bytes.length);
        await other.close();
        await assert.rejects(store.seal(key, 10), BlobSealedError);
        await assert.rejects(store.append(key, bytes.length, chunked(bytes), MAX), BlobSealedError);
        await assertContent(store, key, bytes);
        await store.delete(key);
      });
    });

    it('shows nothing of unfinished uploads, and nothing where there is nothing', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await assert.rejects(store.open(key), BlobNotFoundError);
        await assert.rejects(store.append(key, 0, chunked(randomBytes(1)), MAX), BlobNotFoundError);
        await assert.rejects(store.seal(key, 0), BlobNotFoundError);
        assert.equal(await store.size(key), undefined);
        await store.create(key, 'default');
        await store.append(key, 0, chunked(randomBytes(100)), MAX);
        await assert.rejects(store.open(key), BlobNotFoundError);
        assert.equal(await store.size(key), undefined);
        await store.delete(key);
        await store.delete(key);
        await assert.rejects(store.open(key), BlobNotFoundError);
      });
    });

    it('refuses taken keys, malformed keys and unknown content keys', async () => {
      await withStore(async (store) => {
        const key = newKey();
        await store.create(key, 'default');
        await assert.rejects(store.create(key, 'default'), BlobExistsError);
        await store.delete(key);
        for (const bad of [
          '',
          'abc',
          '../../../../etc/passwd0',
          `${newKey()}/00`,
          newKey().toUpperCase().replace(/\d/g, 'A'),
          'a'.repeat(65),
        ]) {
          await assert.rejects(store.create(bad, 'default'), RangeError);
          await assert.rejects(store.open(bad), RangeError);
          await assert.rejects(store.delete(bad), RangeError);
        }
        await assert.rejects(store.create(key, 'missing'), KeyUnavailableError);
      });
    });

    it('deletes under an append, which then fails, and under a reader, which reads on', async () => {
      await withStore(async (store) => {
        const upload = newKey();
        await store.create(upload, 'default');
        const source = new PassThrough();
        source.write(randomBytes(1000));
        const running = assert.rejects(store.append(upload, 0, source, MAX), BlobNotFoundError);
        await store.delete(upload);
        await running;
        const bytes = randomBytes(2 * MIB);
        const key = await stored(store, bytes);
        const reader = await store.open(key);
        await store.delete(key);
        assert.ok((await reader.bytes()).equals(bytes));
      });
    });

    it('lists what is there, finished or not', async () => {
      await withStore(async (store) => {
        const keys = await Promise.all([stored(store, randomBytes(10)), stored(store, randomBytes(20))]);
        const unfinished = newKey();
        await store.create(unfinished, 'default');
        keys.push(unfinished);
        assert.deepEqual(await keysOf(store), keys.toSorted());
        for await (const { modifiedAt } of store.list()) {
          assert.ok(Number.isInteger(modifiedAt) && Math.abs(Date.now() - modifiedAt) < 3_600_000);
        }
        for (const key of keys) await store.delete(key);
      });
    });

    it('waits for a sink that is slow, and stops when it closes, fails or the signal aborts', async () => {
      await withStore(async (store) => {
        const bytes = randomBytes(4 * MIB);
        for (const content of [bytes, bytes.subarray(0, 5000)]) {
          const key = await stored(store, content);
          const slow = new Collector(true);
          const sending = (await store.open(key)).sendTo(slow);
          let taken = 0;
          while (taken < content.length) {
            await slow.arrived();
            taken = slow.length;
            slow.proceed();
          }
          await sending;
          assert.ok(slow.bytes().equals(content));

          const closing = new Collector(true);
          const closed = assert.rejects((await store.open(key)).sendTo(closing), {
            code: 'ERR_STREAM_PREMATURE_CLOSE',
          });
          await closing.arrived();
          closing.destroy();
          await closed;

          const failed = new Collector(true);
          const failure = assert.rejects((await store.open(key)).sendTo(failed), { message: 'sink broke' });
          await failed.arrived();
          failed.destroy(new Error('sink broke'));
          await failure;

          const controller = new AbortController();
          const stalled = new Collector(true);
          const aborted = assert.rejects((await store.open(key)).sendTo(stalled, controller.signal), {
            name: 'AbortError',
          });
          await stalled.arrived();
          controller.abort();
          await aborted;
          stalled.destroy();
          await assert.rejects((await store.open(key)).sendTo(stalled), {
            code: 'ERR_STREAM_PREMATURE_CLOSE',
          });

          const unread = await store.open(key);
          await unread.close();
          await unread.close();
          await assert.rejects(unread.bytes());
          await store.delete(key);
        }
      });
    });

    it('serves many streams at once', async () => {
      await withStore(async (store) => {
        const content = randomBytes(2 * MIB + 99);
        const keys = await Promise.all(Array.from({ length: 24 }, () => stored(store, content)));
        const stalled = await Promise.all(
          keys.map(async (key) => {
            const sink = new Collector(true);
            const sending = (await store.open(key)).sendTo(sink);
            await sink.arrived();
            return { sink, sending };
          }),
        );
        // Stalled clients hold nothing that others need.
        await Promise.all(keys.map((key) => assertContent(store, key, content)));
        await Promise.all(
          stalled.map(async ({ sink, sending }) => {
            const ended = assert.rejects(sending);
            sink.destroy();
            await ended;
          }),
        );
        await Promise.all(keys.map((key) => store.delete(key)));
      });
    });

    it('stops running appends when it closes, and refuses everything afterwards', async () => {
      await withStore(async (store, place) => {
        const key = newKey();
        const closing = await place.open();
        await closing.create(key, 'default');
        const running = assert.rejects(closing.append(key, 0, new PassThrough(), MAX), { message: /closed/ });
        await closing.close();
        await running;
        await assert.rejects(closing.open(key), { message: /closed/ });
        await assert.rejects(closing.create(newKey(), 'default'), { message: /closed/ });
        await store.delete(key);
      });
    });
  });
}

/** A new storage key. */
export function newKey(): string {
  return randomBytes(16).toString('hex');
}

/** A stream of these bytes in chunks of `chunkBytes`. */
export function chunked(bytes: Buffer, chunkBytes = 64 * 1024): Readable {
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += chunkBytes) chunks.push(bytes.subarray(at, at + chunkBytes));
  return Readable.from(chunks);
}

/** Stores and seals a blob. */
export async function stored(store: BlobStore, bytes: Buffer): Promise<string> {
  const key = newKey();
  await store.create(key, 'default');
  const { size } = await store.append(key, 0, chunked(bytes), MAX);
  await store.seal(key, size);
  return key;
}

/** Reads a blob in full and compares it. */
export async function assertContent(store: BlobStore, key: string, bytes: Buffer): Promise<void> {
  const reader = await store.open(key);
  assert.equal(reader.size, bytes.length);
  const sink = new Collector();
  await reader.sendTo(sink);
  assert.ok(sink.bytes().equals(bytes), 'another content');
}

/** SHA-256 in hexadecimal. */
export function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function keysOf(store: BlobStore): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of store.list()) keys.push(key);
  return keys.toSorted();
}

/** Gives all the bytes, then breaks off: with the error, or without one. */
function failing(bytes: Buffer, error: Error | undefined): Readable {
  const chunks = chunked(bytes);
  const source = new PassThrough();
  chunks.pipe(source, { end: false });
  chunks.on('end', () => setImmediate(() => source.destroy(error)));
  return source;
}

/** Keeps what is written to it; a stalling one takes each chunk only when told to proceed. */
export class Collector extends Writable {
  readonly #chunks: Buffer[] = [];
  readonly #stalls: boolean;
  #waiting: (() => void) | undefined;
  #arrival = Promise.withResolvers<void>();
  length = 0;

  constructor(stalls = false) {
    super();
    this.#stalls = stalls;
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.#chunks.push(chunk);
    this.length += chunk.length;
    if (!this.#stalls) return done();
    this.#waiting = done;
    this.#arrival.resolve();
  }

  /** Resolves when a chunk is waiting to be taken. */
  arrived(): Promise<void> {
    return this.#arrival.promise;
  }

  /** Takes the waiting chunk. */
  proceed(): void {
    this.#arrival = Promise.withResolvers();
    this.#waiting?.();
  }

  bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }
}
