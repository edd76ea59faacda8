import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { after, before, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Fault } from '../domain/faults.ts';
import type { Store } from '../store/store.ts';
import type { Registry, Repository } from './registry.ts';
import { digestOf, streamOf, type OpenTestRegistry, type TestRegistry } from './testing.ts';

const MISMATCH = new Fault('DigestInvalid', 'provided digest did not match uploaded content');

/** The tests of how uploads end. */
export function closingTests(open: OpenTestRegistry): void {
  let t: TestRegistry;
  let repository: Repository;

  before(async () => {
    t = await open();
    repository = await t.createRepository('team/closing');
  });
  after(async () => {
    await t.checkIntegrity();
    await t.close();
  });

  const close = (registry: Registry, id: string, text: string, digest = digestOf(text), offset?: number) =>
    registry.uploads.finish(repository, id, [digest], {
      api: false,
      tail: { source: streamOf(text), offset, length: text.length },
    });

  async function read(digest: string): Promise<string | undefined> {
    const reader = await t.registry.layers.open(repository, digest);
    return (await reader?.bytes())?.toString();
  }

  /** A registry whose store fails the named transactions once each, before or after they happened. */
  function failing(when: 'before' | 'after', ...names: string[]): Registry {
    const left = new Set(names);
    const fault = new Fault('ServiceUnavailableException', 'the database is away');
    const store: Store = {
      ...t.store,
      transact: (name, input) => {
        if (!left.delete(name)) return t.store.transact(name, input);
        return when === 'before'
          ? Promise.reject(fault)
          : t.store.transact(name, input).then(() => Promise.reject(fault));
      },
    };
    return t.another({ store });
  }

  test('bytes that come with the closing are appended', async () => {
    const { uploads } = t.registry;
    const { id } = await uploads.start(repository);
    await uploads.append(repository, id, streamOf('one '), {});
    const tail = { source: streamOf('two'), offset: 4, length: 3 };
    const digest = digestOf('one two');
    assert.deepEqual(await uploads.finish(repository, id, [digest], { api: false, tail }), {
      digest,
      size: 7,
    });
    assert.equal(await read(digest), 'one two');
  });

  const failures: [name: string, when: 'before' | 'after', transaction: string][] = [
    ['before the bytes came', 'before', 'upload.claim'],
    ['after the bytes were sealed', 'before', 'upload.complete'],
    ['after it had happened', 'after', 'upload.complete'],
  ];
  for (const [name, when, transaction] of failures) {
    test(`a closing with bytes that failed ${name} can be sent again whole`, async () => {
      for (const there of ['', 'there ']) {
        const text = `${transaction} ${when} ${there}`;
        const digest = digestOf(there + text);
        const { id } = await t.registry.uploads.start(repository);
        if (there !== '') await t.registry.uploads.append(repository, id, streamOf(there), {});
        await assert.rejects(close(failing(when, transaction), id, text, digest, there.length), {
          code: 'ServiceUnavailableException',
        });
        const stored = { digest, size: there.length + text.length };
        assert.deepEqual(await close(t.registry, id, text, digest, there.length), stored);
        assert.deepEqual(await close(t.registry, id, text, digest), stored);
        assert.equal(await read(digest), there + text);
      }
    });
  }

  test('a closing that was broken off, or had the wrong length, appended nothing', async () => {
    const { uploads } = t.registry;
    const { id } = await uploads.start(repository);
    const broken = new PassThrough();
    const digest = digestOf('whole');
    const first = uploads.finish(repository, id, [digest], { api: false, tail: { source: broken } });
    broken.write('wh');
    broken.destroy(new Error('hung up'));
    await assert.rejects(first, /hung up/);
    const short = { api: false, tail: { source: streamOf('whol'), length: 5 } };
    await assert.rejects(uploads.finish(repository, id, [digest], short), { code: 'SizeInvalid' });
    assert.deepEqual(await uploads.status(repository, id), { id, size: 0 });
    await close(t.registry, id, 'whole');
    assert.equal(await read(digest), 'whole');
  });

  test('what was sealed is not bound to another digest, nor appended to', async () => {
    const { id } = await t.registry.uploads.start(repository);
    await assert.rejects(close(failing('before', 'upload.complete'), id, 'sealed'), {
      code: 'ServiceUnavailableException',
    });
    await assert.rejects(t.registry.uploads.append(repository, id, streamOf('more'), {}), {
      code: 'UploadNotFoundException',
    });
    await assert.rejects(close(t.registry, id, 'other'), MISMATCH);
    await assert.rejects(t.registry.uploads.status(repository, id), { code: 'UploadNotFoundException' });
  });

  test('an upload of a writer that died ends in a copy, and leaves nothing', async () => {
    await t.registry.collectGarbage({ orphans: false });
    const before = await t.files();
    const { id } = await t.registry.uploads.start(repository);
    await t.registry.uploads.append(repository, id, streamOf('by the first, '), {});
    const claim = {
      upload: { id, repositoryId: repository.id, repositoryName: repository.name, account: '000000000000' },
      writer: t.store.newWriter(),
      now: t.time.now,
      writerUntil: t.time.now + 60_000,
      offset: undefined,
      partLength: undefined,
      partsMax: 1,
    };
    await t.store.transact('upload.claim', claim);
    t.time.now += 60_000;
    const text = 'by the first, by the second';
    await close(t.registry, id, 'by the second', digestOf(text, 'sha512'));
    assert.equal(await read(digestOf(text)), text);
    await t.registry.collectGarbage({ orphans: false });
    assert.equal((await t.files()) - before, 1);
    await t.checkIntegrity();
  });

  /** Waits until a writer holds the upload. */
  async function claimed(id: string): Promise<void> {
    const query = t.store.read.selectFrom('upload').select('writer').where('id', '=', id);
    for (let looks = 0; looks < 5000; looks++) {
      if ((await query.executeTakeFirst())?.writer !== null) return;
      await setImmediate();
    }
    assert.fail('nobody claimed the upload');
  }

  test('a writer that was taken for dead cannot change what is bound', async () => {
    for (const when of ['before the closing', 'after the closing'] as const) {
      const stalled = t.another({ blobs: await t.anotherBlobs() });
      const { id } = await t.registry.uploads.start(repository);
      const slow = new PassThrough();
      const late = stalled.uploads.append(repository, id, slow, {});
      const lateEnds = assert.rejects(late, { code: /InvalidLayerPart|UploadNotFound/ });
      slow.write('a');
      await claimed(id);
      t.time.now += 60_000;
      const text = `right bytes ${when}`;
      await t.registry.uploads.append(repository, id, streamOf(text), {});
      if (when === 'before the closing') {
        slow.end('wrong bytes');
        await lateEnds;
        await assert.rejects(
          t.registry.uploads.finish(repository, id, [digestOf(text)], { api: false }),
          MISMATCH,
        );
        assert.equal(await read(digestOf(text)), undefined);
      } else {
        await t.registry.uploads.finish(repository, id, [digestOf(text)], { api: false });
        slow.end('wrong bytes');
        await lateEnds;
        assert.equal(await read(digestOf(text)), text);
        await t.checkIntegrity();
      }
    }
  });
}
