import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { LIMITS } from '../lib/limits.ts';
import { digestOf, imageOf, push, type OpenTestRegistry, type TestRegistry } from './testing.ts';

/** The tests of the registry's layers. */
export function layersTests(open: OpenTestRegistry): void {
  let t: TestRegistry;

  before(async () => {
    t = await open();
  });
  after(() => t.close());

  test('content is seen only through a repository that has it', async () => {
    const one = await t.createRepository('see-one');
    const two = await t.createRepository('see-two');
    const digest = await t.upload(one, 'hello');
    assert.deepEqual(await t.registry.layers.stat(one, digest), { digest, size: 5 });
    assert.equal(await t.registry.layers.stat(two, digest), undefined);
    assert.equal(await t.registry.layers.open(two, digest), undefined);
    const reader = await t.registry.layers.open(one, digest, 1, 3);
    assert.equal(reader?.size, 5);
    assert.equal((await reader?.bytes())?.toString(), 'el');
  });

  test('a look renews the lease, at most once an hour', async () => {
    const repository = await t.createRepository('lease');
    const digest = await t.upload(repository, 'leased');
    const lease = async (): Promise<number | undefined> => {
      const query = t.store.read.selectFrom('repository_blob').select('leased_until');
      return (await query.where('repository_id', '=', repository.id).executeTakeFirst())?.leased_until;
    };
    const start = t.time.now;
    assert.equal(await lease(), start + LIMITS.blobLeaseMs);
    t.time.now += LIMITS.blobLeaseStepMs;
    await t.registry.layers.stat(repository, digest);
    assert.equal(await lease(), start + LIMITS.blobLeaseMs);
    t.time.now += 1;
    await t.registry.layers.stat(repository, digest);
    assert.equal(await lease(), t.time.now + LIMITS.blobLeaseMs);
  });

  test('availability', async () => {
    const repository = await t.createRepository('available');
    const digests = [await t.upload(repository, '{}'), await t.upload(repository, 'loose')];
    await t.registry.images.put(repository, push(imageOf('{}', [])));
    assert.deepEqual(
      await t.registry.layers.availability(repository, [...digests, digestOf('none')]),
      new Map([
        [digests[0], { size: 2, mediaType: 'application/vnd.oci.image.config.v1+json', referenced: true }],
        [digests[1], { size: 5, mediaType: undefined, referenced: false }],
      ]),
    );
    assert.deepEqual(await t.registry.layers.availability(repository, []), new Map());
  });

  test('mounting', async () => {
    const source = await t.createRepository('mount-source');
    const target = await t.createRepository('mount-target');
    await t.keys.createKey('other-key');
    const otherKey = await t.createRepository('mount-key', {
      encryptionType: 'KMS',
      contentKey: 'other-key',
    });
    const digest = await t.upload(source, 'shared');
    const { layers } = t.registry;
    assert.equal(await layers.mount(target, source, digestOf('none')), false);
    assert.equal(await layers.mount(otherKey, source, digest), false);
    assert.deepEqual(
      (await layers.holders(target, digest)).map(({ name }) => name),
      ['mount-source'],
    );
    assert.deepEqual(await layers.holders(otherKey, digest), []);
    assert.equal(await layers.mount(target, source, digest), true);
    assert.equal(await layers.mount(target, source, digest), true);
    assert.deepEqual(await layers.stat(target, digest), { digest, size: 6 });
    // It outlives its source.
    await t.deleteRepository(source);
    t.time.now += LIMITS.trashGraceMs + 1;
    await t.registry.collectGarbage({ orphans: true });
    assert.equal((await (await layers.open(target, digest))?.bytes())?.toString(), 'shared');
    await assert.rejects(layers.mount(source, target, digest), { code: 'RepositoryNotFoundException' });
  });

  test('the same content under two keys is stored twice', async () => {
    await t.keys.createKey('second-key');
    const plain = await t.createRepository('twice-plain');
    const locked = await t.createRepository('twice-kms', { encryptionType: 'KMS', contentKey: 'second-key' });
    const digest = await t.upload(plain, 'in both');
    assert.equal(await t.upload(locked, 'in both'), digest);
    const copies = await t.store.read
      .selectFrom('blob')
      .select('content_key')
      .where('digest', '=', digest)
      .execute();
    assert.deepEqual(copies.map((row) => row.content_key).toSorted(), ['default', 'second-key']);
  });

  test('removing', async () => {
    const one = await t.createRepository('remove-one');
    const two = await t.createRepository('remove-two');
    const digest = await t.upload(one, '{}');
    await t.upload(two, '{}');
    await t.registry.images.put(one, push(imageOf('{}', []), ['v1']));
    const { layers } = t.registry;
    assert.equal(await layers.remove(one, digest), 'referenced');
    assert.equal(await layers.remove(two, digest), 'removed');
    assert.equal(await layers.remove(two, digest), 'absent');
    assert.equal(await layers.stat(two, digest), undefined);
    assert.deepEqual(await layers.stat(one, digest), { digest, size: 2 });
    await t.registry.images.batchDelete(one, [{ imageTag: 'v1' }]);
    assert.equal(await layers.remove(one, digest), 'removed');
    await t.checkIntegrity();
  });
}
