import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { PassThrough, Readable } from 'node:stream';
import * as fc from 'fast-check';
import { Fault, uploadNotFound } from '../domain/faults.ts';
import type { Repository } from './registry.ts';
import { digestOf, streamOf, type OpenTestRegistry, type TestRegistry } from './testing.ts';

/** The tests of the registry's uploads. */
export function uploadsTests(open: OpenTestRegistry): void {
  let t: TestRegistry;
  let repository: Repository;

  before(async () => {
    t = await open();
    repository = await t.createRepository('team/app');
  });
  after(() => t.close());

  function notFound(id: string): Fault {
    return uploadNotFound(id, 'team/app', '000000000000');
  }

  async function read(digest: string): Promise<string> {
    const reader = await t.registry.layers.open(repository, digest);
    assert.ok(reader !== undefined);
    return (await reader.bytes()).toString();
  }

  test('an upload in parts becomes a blob', async () => {
    const { uploads } = t.registry;
    const { id, size } = await uploads.start(repository);
    assert.match(id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.equal(size, 0);
    assert.deepEqual(await uploads.append(repository, id, streamOf('hel'), { offset: 0, length: 3 }), {
      id,
      size: 3,
    });
    assert.deepEqual(await uploads.append(repository, id, streamOf('lo'), { offset: 3 }), { id, size: 5 });
    assert.deepEqual(await uploads.status(repository, id), { id, size: 5 });
    const digest = digestOf('hello');
    assert.deepEqual(await uploads.finish(repository, id, [digest], { api: false }), { digest, size: 5 });
    assert.equal(await read(digest), 'hello');
    await assert.rejects(uploads.status(repository, id), notFound(id));
  });

  test('a blob of no bytes', async () => {
    const { id } = await t.registry.uploads.start(repository);
    const stored = await t.registry.uploads.finish(repository, id, [digestOf('')], { api: false });
    assert.deepEqual(stored, { digest: digestOf(''), size: 0 });
    assert.equal(await read(stored.digest), '');
  });

  test('an append in the wrong place says where to go on', async () => {
    const { uploads } = t.registry;
    const { id } = await uploads.start(repository);
    await uploads.append(repository, id, streamOf('12345'), {});
    await assert.rejects(
      uploads.append(repository, id, streamOf('x'), { offset: 7 }),
      new Fault('InvalidLayerPartException', 'First byte of the layer part is 7 instead of 5', {
        lastValidByteReceived: 4,
      }),
    );
    assert.deepEqual(await uploads.append(repository, id, streamOf('6'), { offset: 5 }), { id, size: 6 });
  });

  const lengths: readonly [name: string, length: number, message: string][] = [
    ['fewer bytes than announced', 6, 'Received 5 bytes instead of 6'],
    ['more bytes than announced', 4, 'Received more than 4 bytes'],
  ];
  for (const [name, length, message] of lengths) {
    test(`${name} are rolled back`, async () => {
      const { uploads } = t.registry;
      const { id } = await uploads.start(repository);
      await uploads.append(repository, id, streamOf('abc'), {});
      await assert.rejects(
        uploads.append(repository, id, streamOf('12345'), { length }),
        new Fault('SizeInvalid', message),
      );
      assert.deepEqual(await uploads.status(repository, id), { id, size: 3 });
      await uploads.append(repository, id, streamOf('def'), { offset: 3 });
      await uploads.finish(repository, id, [digestOf('abcdef')], { api: false });
      assert.equal(await read(digestOf('abcdef')), 'abcdef');
    });
  }

  test('an aborted append leaves what was committed, and the upload goes on', async () => {
    const { uploads } = t.registry;
    const { id } = await uploads.start(repository);
    await uploads.append(repository, id, streamOf('abc'), {});
    const broken = Readable.from(
      (function* () {
        yield Buffer.alloc(3_000_000, 'x');
        throw new Error('the client hung up');
      })(),
    );
    await assert.rejects(uploads.append(repository, id, broken, {}), /hung up/);
    const abort = new AbortController();
    const endless = new PassThrough();
    endless.write('xyz');
    const aborted = uploads.append(repository, id, endless, { signal: abort.signal });
    abort.abort(new Error('too slow'));
    await assert.rejects(aborted, /too slow/);
    endless.destroy();
    assert.deepEqual(await uploads.status(repository, id), { id, size: 3 });
    // Another process goes on.
    const other = t.another();
    await other.uploads.append(repository, id, streamOf('def!'), { offset: 3 });
    await other.uploads.finish(repository, id, [digestOf('abcdef!')], { api: false });
    assert.equal(await read(digestOf('abcdef!')), 'abcdef!');
  });

  test('of two writers one wins, in whatever process', async () => {
    const { id } = await t.registry.uploads.start(repository);
    const slow = new PassThrough();
    const first = t.registry.uploads.append(repository, id, slow, {});
    slow.write('abc');
    // The claim is made in order of the calls: the second comes after it.
    for (const registry of [t.registry, t.another()]) {
      await assert.rejects(
        registry.uploads.append(repository, id, streamOf('xyz'), {}),
        new Fault('InvalidLayerPartException', 'Another request is writing to the upload', {
          lastValidByteReceived: -1,
        }),
      );
      await assert.rejects(registry.uploads.finish(repository, id, [digestOf('')], { api: false }), {
        code: 'InvalidLayerPartException',
      });
    }
    slow.end('def');
    assert.deepEqual(await first, { id, size: 6 });
    await t.registry.uploads.finish(repository, id, [digestOf('abcdef')], { api: false });
  });

  async function claimAs(writer: string, id: string): Promise<void> {
    const upload = {
      id,
      repositoryId: repository.id,
      repositoryName: repository.name,
      account: '000000000000',
    };
    const now = t.time.now;
    const claim = { upload, writer, now, writerUntil: now + 60_000, partsMax: 1 };
    await t.store.transact('upload.claim', { ...claim, offset: undefined, partLength: undefined });
  }

  test('the claim of a process that died counts no more', async () => {
    const { id } = await t.registry.uploads.start(repository);
    await t.registry.uploads.append(repository, id, streamOf('a'), {});
    // No owner has the number zero.
    await claimAs('0.dead', id);
    assert.deepEqual(await t.registry.uploads.append(repository, id, streamOf('b'), {}), { id, size: 2 });
    await claimAs('0.dead again', id);
    await t.registry.uploads.finish(repository, id, [digestOf('ab')], { api: false });
    await t.checkIntegrity();
  });

  test('the claim of a writer that is silent runs out', async () => {
    const { id } = await t.registry.uploads.start(repository);
    await claimAs(t.store.newWriter(), id);
    await assert.rejects(t.registry.uploads.append(repository, id, streamOf('x'), {}), {
      code: 'InvalidLayerPartException',
    });
    t.time.now += 60_000;
    assert.deepEqual(await t.registry.uploads.append(repository, id, streamOf('x'), {}), { id, size: 1 });
  });

  test('a claim that could not be given up, the database being away, is given up when it is back', async () => {
    const { id } = await t.registry.uploads.start(repository);
    let failures = 0;
    const away: typeof t.store.transact = (name, input) => {
      if (name !== 'upload.hold' || failures === 2) return t.store.transact(name, input);
      failures += 1;
      return Promise.reject(new Fault('ServiceUnavailableException', 'away'));
    };
    const registry = t.another({ store: { ...t.store, transact: away } });
    const broken = Readable.from(
      (function* () {
        yield Buffer.from('a');
        throw new Error('the client left');
      })(),
    );
    await assert.rejects(registry.uploads.append(repository, id, broken, {}));
    const busy = { code: 'InvalidLayerPartException' };
    await assert.rejects(t.registry.uploads.append(repository, id, streamOf('x'), {}), busy);
    const goOn = () => t.registry.uploads.append(repository, id, streamOf('x'), {}).catch(() => undefined);
    let done = await goOn();
    while (done === undefined) done = await goOn();
    assert.deepEqual(done, { id, size: 1 });
    assert.equal(failures, 2);
    await registry.close();
  });

  test('another digest destroys the upload', async () => {
    const cases = [
      [false, new Fault('DigestInvalid', 'provided digest did not match uploaded content')],
      [
        true,
        new Fault(
          'InvalidLayerException',
          'None of the provided layer digests match the calculated layer digest',
        ),
      ],
    ] as const;
    for (const [api, fault] of cases) {
      const { id } = await t.registry.uploads.start(repository);
      await t.registry.uploads.append(repository, id, streamOf('abc'), {});
      await assert.rejects(t.registry.uploads.finish(repository, id, [digestOf('abd')], { api }), fault);
      await assert.rejects(t.registry.uploads.status(repository, id), notFound(id));
      await assert.rejects(t.registry.uploads.append(repository, id, streamOf('x'), {}), notFound(id));
    }
  });

  test('a digest that cannot be verified leaves the upload as it is', async () => {
    const { id } = await t.registry.uploads.start(repository);
    for (const digest of ['sha512:abc', 'sha256:abc', 'blake3:00']) {
      await assert.rejects(t.registry.uploads.finish(repository, id, [digest], { api: false }), {
        code: 'DigestInvalid',
      });
    }
    assert.deepEqual(await t.registry.uploads.status(repository, id), { id, size: 0 });
  });

  test('closing again after a lost answer', async () => {
    const { id } = await t.registry.uploads.start(repository);
    await t.registry.uploads.append(repository, id, streamOf('once'), {});
    const stored = await t.registry.uploads.finish(repository, id, [digestOf('once')], { api: false });
    const again = await t.another().uploads.finish(repository, id, [digestOf('once')], { api: false });
    assert.deepEqual(again, stored);
    await assert.rejects(
      t.registry.uploads.finish(repository, id, [digestOf('twice')], { api: false }),
      notFound(id),
    );
    await assert.rejects(t.registry.uploads.cancel(repository, id), notFound(id));
    assert.equal(await read(stored.digest), 'once');
  });

  test('the same digest from twenty uploads at once', async () => {
    const target = await t.createRepository('crowd');
    const second = await t.createRepository('crowd-two');
    await t.registry.collectGarbage({ orphans: false });
    const before = await t.files();
    const bytes = Buffer.alloc(100_000, 'base image');
    const repositories = Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? target : second));
    const digests = await Promise.all(repositories.map((one) => t.upload(one, bytes)));
    assert.deepEqual(new Set(digests), new Set([digestOf(bytes)]));
    await t.registry.collectGarbage({ orphans: false });
    assert.equal((await t.files()) - before, 1);
    await t.checkIntegrity();
  });

  test('an upload belongs to its repository', async () => {
    const other = await t.createRepository('other');
    const { id } = await t.registry.uploads.start(repository);
    const fault = uploadNotFound(id, 'other', '000000000000');
    await assert.rejects(t.registry.uploads.status(other, id), fault);
    await assert.rejects(t.registry.uploads.append(other, id, streamOf('x'), {}), fault);
    await assert.rejects(t.registry.uploads.finish(other, id, [digestOf('')], { api: false }), fault);
    await assert.rejects(t.registry.uploads.cancel(other, id), fault);
    await t.registry.uploads.cancel(repository, id);
    await assert.rejects(t.registry.uploads.status(repository, id), notFound(id));
  });

  test('a repository that is gone', async () => {
    const gone = await t.createRepository('gone');
    const { id } = await t.registry.uploads.start(gone);
    await t.deleteRepository(gone);
    await assert.rejects(t.registry.uploads.start(gone), { code: 'RepositoryNotFoundException' });
    await assert.rejects(t.registry.uploads.append(gone, id, streamOf('x'), {}), {
      code: 'UploadNotFoundException',
    });
  });

  test('a content key that is missing is a KmsException and leaves nothing', async () => {
    const locked = await t.createRepository('locked', { encryptionType: 'KMS', contentKey: 'nobody-has-it' });
    await assert.rejects(t.registry.uploads.start(locked), { code: 'KmsException' });
    const rows = await t.store.read
      .selectFrom('upload')
      .select('id')
      .where('repository_id', '=', locked.id)
      .execute();
    assert.deepEqual(rows, []);
  });

  test('the rules of the ECR API', async () => {
    const { uploads } = t.registry;
    const api = { api: true };
    const part = (text: string | Uint8Array, offset: number) => ({
      source: streamOf(text),
      options: { offset, length: text.length, part: true },
    });
    const send = (id: string, { source, options }: ReturnType<typeof part>) =>
      uploads.append(repository, id, source, options);

    const empty = await uploads.start(repository);
    await assert.rejects(uploads.finish(repository, empty.id, [digestOf('')], api), {
      code: 'EmptyUploadException',
    });

    const small = await uploads.start(repository);
    await send(small.id, part('abc', 0));
    await send(small.id, part('def', 3));
    await assert.rejects(
      uploads.finish(repository, small.id, [digestOf('abcdef')], api),
      new Fault('LayerPartTooSmallException', 'All layer parts except the last part should be at least 5MB'),
    );

    const large = Buffer.alloc(5 * 1_048_576, 'l');
    const { id } = await uploads.start(repository);
    await send(id, part(large, 0));
    assert.deepEqual(await send(id, part('end', large.length)), { id, size: large.length + 3 });
    // The newest part once more, after a lost answer.
    assert.deepEqual(await send(id, part('end', large.length)), { id, size: large.length + 3 });
    await assert.rejects(send(id, part('en', large.length)), { code: 'InvalidLayerPartException' });
    const digest = digestOf(Buffer.concat([large, Buffer.from('end')]));
    const stored = { digest, size: large.length + 3 };
    assert.deepEqual(await uploads.finish(repository, id, ['tarsum+sha256:00', digest], api), stored);

    const known = await uploads.start(repository);
    await send(known.id, part(Buffer.concat([large, Buffer.from('end')]), 0));
    await assert.rejects(
      uploads.finish(repository, known.id, [digest], api),
      new Fault(
        'LayerAlreadyExistsException',
        `The layer with digest '${digest}' already exists in the repository with name 'team/app' in registry with id '000000000000'`,
      ),
    );
    await assert.rejects(uploads.status(repository, known.id), notFound(known.id));
  });

  test('a repository has so many unfinished uploads; those that end make room', async () => {
    const { uploads } = t.another({ uploadsPerRepositoryMax: 3 });
    const full = await t.createRepository('team/full');
    const ids = [];
    for (let i = 0; i < 3; i += 1) ids.push((await uploads.start(full)).id);
    const [first = '', second = ''] = ids;
    const refusal = new Fault(
      'LimitExceededException',
      "The repository with name 'team/full' in registry with id '000000000000' already has the maximum allowed " +
        "number of unfinished layer uploads which is '3'",
    );
    const files = await t.files();
    await assert.rejects(uploads.start(full), refusal);
    assert.equal(await t.files(), files);
    await uploads.append(full, first, streamOf('x'), {});
    // Another repository has its own, and one that is finished keeps its row for a while.
    await uploads.start(await t.createRepository('team/other'));
    await uploads.finish(full, first, [digestOf('x')], { api: false });
    await uploads.start(full);
    await assert.rejects(uploads.start(full), refusal);
    await uploads.cancel(full, second);
    await uploads.start(full);
    await assert.rejects(uploads.start(full), refusal);
  });

  test('uploads that begin at the same time are all counted', async () => {
    const { uploads } = t.another({ uploadsPerRepositoryMax: 20 });
    const repository = await t.createRepository('team/at-once');
    const begun = await Promise.allSettled(Array.from({ length: 40 }, () => uploads.start(repository)));
    assert.equal(begun.filter(({ status }) => status === 'fulfilled').length, 20);
  });

  test('any split of bytes gives the same blob', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ maxLength: 300 }),
        fc.array(fc.nat(300), { maxLength: 4 }),
        async (bytes, cuts) => {
          const edges = [0, ...cuts.map((cut) => Math.min(cut, bytes.length)), bytes.length].sort(
            (a, b) => a - b,
          );
          const { id } = await t.registry.uploads.start(repository);
          for (let i = 1; i < edges.length; i++) {
            const piece = bytes.subarray(edges[i - 1], edges[i]);
            await t.registry.uploads.append(repository, id, streamOf(piece), { length: piece.length });
          }
          const digest = digestOf(bytes);
          const stored = await t.registry.uploads.finish(repository, id, [digest], { api: false });
          assert.deepEqual(stored, { digest, size: bytes.length });
          const reader = await t.registry.layers.open(repository, digest);
          assert.deepEqual(new Uint8Array((await reader?.bytes()) ?? []), bytes);
        },
      ),
      { numRuns: 25 },
    );
  });
}
