import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { OCI_IMAGE, OCI_INDEX } from '../domain/manifests.ts';
import type { Digest } from '../domain/names.ts';
import type { Repository } from './registry.ts';
import { digestOf, push, streamOf, type OpenTestRegistry, type TestRegistry } from './testing.ts';

const sha512 = (bytes: Uint8Array | string): Digest => digestOf(bytes, 'sha512') as Digest;

/** The tests of digests of other algorithms than sha256. */
export function aliasesTests(open: OpenTestRegistry): void {
  let t: TestRegistry;
  let repository: Repository;

  before(async () => {
    t = await open();
    repository = await t.createRepository('alias');
  });
  after(async () => {
    await t.checkIntegrity();
    await t.close();
  });

  async function upload(target: Repository, text: string): Promise<void> {
    const { id } = await t.registry.uploads.start(target);
    await t.registry.uploads.append(target, id, streamOf(text), {});
    const stored = await t.registry.uploads.finish(target, id, [sha512(text)], { api: false });
    assert.deepEqual(stored, { digest: digestOf(text), size: text.length });
    // Said again.
    assert.deepEqual(await t.registry.uploads.finish(target, id, [sha512(text)], { api: false }), stored);
  }

  const descriptor = (mediaType: string, bytes: Uint8Array | string, digest = sha512(bytes)) => ({
    mediaType,
    digest,
    size: Buffer.byteLength(bytes),
  });
  const imageOf = (more: object = {}): Buffer =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: OCI_IMAGE,
        config: descriptor('application/vnd.oci.empty.v1+json', '{}'),
        layers: [
          descriptor('application/octet-stream', 'layer'),
          descriptor('application/octet-stream', 'layer', digestOf('layer') as Digest),
          { ...descriptor('application/vnd.oci.image.layer.nondistributable.v1.tar', 'elsewhere') },
        ],
        ...more,
      }),
    );

  test('content stored by sha512 is known by both digests, content stored by sha256 by one', async () => {
    const { layers } = t.registry;
    await upload(repository, 'both');
    await t.upload(repository, 'one');
    assert.equal(await layers.resolve(repository, sha512('both')), digestOf('both'));
    assert.deepEqual(await layers.stat(repository, digestOf('both')), { digest: digestOf('both'), size: 4 });
    assert.equal(await layers.resolve(repository, sha512('one')), undefined);
    assert.equal(await layers.resolve(repository, digestOf('none') as Digest), digestOf('none'));
    await upload(repository, 'one');
    assert.equal(await layers.resolve(repository, sha512('one')), digestOf('one'));
  });

  test('a wrong sha512 destroys the upload', async () => {
    const { uploads } = t.registry;
    for (const digests of [[sha512('other')], [digestOf('text'), sha512('other')]]) {
      const { id } = await uploads.start(repository);
      await uploads.append(repository, id, streamOf('text'), {});
      await assert.rejects(uploads.finish(repository, id, digests, { api: false }), {
        code: 'DigestInvalid',
      });
      await assert.rejects(uploads.status(repository, id), { code: 'UploadNotFoundException' });
    }
  });

  test('the ECR API knows sha256 only', async () => {
    const { uploads } = t.registry;
    const { id } = await uploads.start(repository);
    await uploads.append(repository, id, streamOf('api'), { part: true, length: 3 });
    await assert.rejects(uploads.finish(repository, id, [sha512('api')], { api: true }), {
      code: 'DigestInvalid',
    });
    await assert.rejects(
      t.registry.images.put(
        repository,
        push(imageOf(), [], { digest: sha512(imageOf()), existing: 'refuse' }),
      ),
      { code: 'ImageDigestDoesNotMatchException' },
    );
  });

  test('a mount takes the aliases along; they end with the content', async () => {
    const target = await t.createRepository('alias-target');
    const { layers } = t.registry;
    await upload(repository, 'mounted');
    assert.deepEqual(
      (await layers.holders(target, sha512('mounted'))).map(({ name }) => name),
      ['alias'],
    );
    assert.equal(await layers.mount(target, repository, digestOf('mounted')), true);
    assert.equal(await layers.resolve(target, sha512('mounted')), digestOf('mounted'));
    assert.equal(await layers.remove(target, digestOf('mounted')), 'removed');
    assert.equal(await layers.resolve(target, sha512('mounted')), undefined);
    assert.equal(await layers.resolve(repository, sha512('mounted')), digestOf('mounted'));
    await t.deleteRepository(target);
  });

  test('manifests name content by sha512, and are named so', async () => {
    const { images } = t.registry;
    const own = await t.createRepository('alias-images');
    const image = imageOf();
    await t.upload(own, '{}');
    await upload(own, 'layer');
    await assert.rejects(images.put(own, push(image, [], { digest: sha512(image) })), {
      code: 'LayersNotFoundException',
      message: new RegExp(`'\\[${sha512('{}')}\\]'`),
    });
    await upload(own, '{}');
    await assert.rejects(images.put(own, push(image, [], { digest: sha512('{}') })), {
      code: 'ImageDigestDoesNotMatchException',
    });
    const put = await images.put(own, push(image, ['a', 'b'], { digest: sha512(image) }));
    assert.equal(put.digest, digestOf(image));
    const named = async (reference: string) =>
      (await images.find(own, reference, { pull: false }))?.namedDigest;
    assert.equal(await named('a'), sha512(image));
    assert.equal(await named(sha512(image)), sha512(image));
    assert.equal(await named(digestOf(image)), digestOf(image));
    // A tag shows the digest it was set by last.
    await images.put(own, push(image, ['a']));
    assert.equal(await named('a'), digestOf(image));
    assert.equal(await named('b'), sha512(image));
    assert.equal((await images.find(own, 'b', { pull: false }))?.digest, digestOf(image));

    const index = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: OCI_INDEX,
        manifests: [descriptor(OCI_IMAGE, image), descriptor(OCI_IMAGE, image, digestOf(image) as Digest)],
        subject: descriptor(OCI_IMAGE, 'nowhere'),
      }),
    );
    const listed = await images.put(own, push(index, ['list'], { digest: sha512(index) }));
    assert.equal(listed.subjectDigest, sha512('nowhere'));
    const referrers = async (subject: Digest) =>
      (await Array.fromAsync(images.referrers(own, subject, { artifactTypes: [], after: undefined }))).map(
        ({ digest }) => digest,
      );
    assert.deepEqual(await referrers(sha512('nowhere')), [sha512(index)]);
    assert.deepEqual(await referrers(digestOf('nowhere') as Digest), []);

    // The layers are held by the image, the image by the index, whatever they are called.
    assert.equal(await t.registry.layers.remove(own, digestOf('layer')), 'referenced');
    const ids = [{ imageDigest: digestOf(image) }];
    assert.equal(
      (await images.batchDelete(own, ids)).failures[0]?.failureCode,
      'ImageReferencedByManifestList',
    );
    await images.batchDelete(own, [{ imageTag: 'list' }, ...ids]);
    assert.equal(await images.resolve(own, sha512(image)), undefined);
    await t.deleteRepository(own);
  });

  test('the collector takes the aliases with the content', async () => {
    const own = await t.createRepository('alias-garbage');
    await upload(own, 'garbage');
    t.time.now += 48 * 3_600_000;
    await t.registry.collectGarbage({ orphans: false });
    assert.equal(await t.registry.layers.resolve(own, sha512('garbage')), undefined);
  });
}
