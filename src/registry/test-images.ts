import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Fault } from '../domain/faults.ts';
import { OCI_IMAGE, OCI_INDEX } from '../domain/manifests.ts';
import type { Digest } from '../domain/names.ts';
import type { Images, Referrer, Repository } from './registry.ts';
import { digestOf, imageOf, indexOf, push, type OpenTestRegistry, type TestRegistry } from './testing.ts';

/** The tags an image is shown with, in their order. */
async function tagsOf(images: Images, repository: Repository, imageDigest: string): Promise<string[]> {
  const found = await images.batchGet(repository, [{ imageDigest }], { pull: false });
  return found.images.flatMap(({ imageId }) => imageId.imageTag ?? []);
}

/** The tests of the registry's images. */
export function imagesTests(open: OpenTestRegistry): void {
  let t: TestRegistry;
  let names = 0;

  before(async () => {
    t = await open();
  });
  after(() => t.close());

  /** A repository with the content that the manifests of these tests name. */
  async function prepared(row: Parameters<TestRegistry['createRepository']>[1] = {}): Promise<Repository> {
    names += 1;
    const repository = await t.createRepository(`repo-${names}`, row);
    for (const text of ['{}', '{"a":1}', '{"b":2}', 'layer one', 'layer two'])
      await t.upload(repository, text);
    return repository;
  }

  const imageA = imageOf('{"a":1}', ['layer one', 'layer two']);
  const imageB = imageOf('{"b":2}', ['layer one']);
  const digestA = digestOf(imageA);
  const digestB = digestOf(imageB);

  test('a pushed image is found by tag and digest, byte for byte', async () => {
    const repository = await prepared();
    const result = await t.registry.images.put(
      repository,
      push(imageA, ['v1', 'latest'], { digest: digestA }),
    );
    assert.deepEqual(result, { digest: digestA, mediaType: OCI_IMAGE, subjectDigest: undefined });
    for (const reference of ['v1', 'latest', digestA]) {
      const image = await t.registry.images.find(repository, reference, { pull: false });
      assert.deepEqual(image, {
        digest: digestA,
        mediaType: OCI_IMAGE,
        artifactType: 'application/vnd.oci.image.config.v1+json',
        subjectDigest: undefined,
        manifest: new Uint8Array(imageA),
        size: 7 + 9 + 9,
        pushedAt: t.time.now,
        lastPulledAt: undefined,
        namedDigest: digestA,
      });
    }
    assert.deepEqual(await tagsOf(t.registry.images, repository, digestA), ['v1', 'latest']);
    for (const reference of ['v2', digestB, 'sha256:nonsense', '']) {
      assert.equal(await t.registry.images.find(repository, reference, { pull: false }), undefined);
    }
  });

  test('a tag look-up is current in every process', async () => {
    const repository = await prepared();
    const other = t.another();
    await t.registry.images.put(repository, push(imageA, ['latest']));
    assert.equal((await other.images.find(repository, 'latest', { pull: false }))?.digest, digestA);
    await t.registry.images.put(repository, push(imageB, ['latest']));
    const found = await other.images.find(repository, 'latest', { pull: false });
    assert.equal(found?.digest, digestB);
    // The old one stays, untagged.
    assert.deepEqual(await tagsOf(other.images, repository, digestA), []);
    await t.registry.images.batchDelete(repository, [{ imageDigest: digestA }]);
    assert.equal(await other.images.find(repository, digestA, { pull: false }), undefined);
  });

  test('push times never tie', async () => {
    const repository = await prepared();
    await t.registry.images.put(repository, push(imageA));
    await t.registry.images.put(repository, push(imageB));
    const [a, b] = await Promise.all(
      [digestA, digestB].map((digest) => t.registry.images.find(repository, digest, { pull: false })),
    );
    assert.equal(a?.pushedAt, t.time.now);
    assert.equal(b?.pushedAt, t.time.now + 1);
  });

  const missing = imageOf('{"a":1}', ['layer one', 'never pushed', 'nor this']);
  const foreign = imageOf('{"a":1}', [], {
    layers: [
      {
        mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
        digest: digestOf('windows'),
        size: 7,
        urls: ['https://example.com/windows'],
      },
    ],
  });
  const wrongSize = imageOf('{"a":1}', [], {
    layers: [{ mediaType: 'a/b', digest: digestOf('layer one'), size: 8 }],
  });

  test('what a manifest names must be in this repository, in that size', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    await assert.rejects(
      images.put(repository, push(missing, ['x'])),
      new Fault(
        'LayersNotFoundException',
        `Layers with digests '[${digestOf('never pushed')}, ${digestOf('nor this')}]' required for pushing image into ` +
          `repository with name '${repository.name}' in the registry with id '000000000000' do not exist`,
      ),
    );
    await assert.rejects(images.put(repository, push(wrongSize)), { code: 'ManifestInvalid' });
    await images.put(repository, push(foreign));
    const index = indexOf([imageA, imageB]);
    await images.put(repository, push(imageA));
    await assert.rejects(
      images.put(repository, push(index)),
      new Fault(
        'ReferencedImagesNotFoundException',
        `Images with digests '[${digestB}]' required for pushing image into repository with name '${repository.name}' in ` +
          `the registry with id '000000000000' do not exist`,
      ),
    );
    const lying = Buffer.from(indexOf([imageA]).toString().replace(`${imageA.byteLength}`, '1'));
    await assert.rejects(images.put(repository, push(lying)), { code: 'ManifestInvalid' });
    await images.put(repository, push(imageB));
    assert.equal((await images.put(repository, push(index, ['multi']))).mediaType, OCI_INDEX);
    // The heaviest member.
    assert.equal((await images.find(repository, 'multi', { pull: false }))?.size, 25);
    const empty = await t.createRepository('empty');
    await assert.rejects(images.put(empty, push(imageA)), { code: 'LayersNotFoundException' });
    await t.checkIntegrity();
  });

  test('an index of layers, as BuildKit caches are', async () => {
    const repository = await prepared();
    const manifests = [{ mediaType: 'application/x', digest: digestOf('layer one'), size: 9 }];
    const cache = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }));
    await t.registry.images.put(repository, push(cache, ['cache'], { mediaType: OCI_INDEX }));
    assert.equal(await t.registry.layers.remove(repository, digestOf('layer one')), 'referenced');
  });

  test('a digest of other bytes', async () => {
    const repository = await prepared();
    await assert.rejects(
      t.registry.images.put(repository, push(imageA, [], { digest: digestB })),
      new Fault(
        'ImageDigestDoesNotMatchException',
        `The image with digest '${digestB}' in repository '${repository.name}' and registry ID '000000000000' does not ` +
          'match the image digest that Amazon ECR has calculated.',
      ),
    );
    await assert.rejects(
      t.registry.images.put(repository, push(imageA, [], { digest: `sha512:${'a'.repeat(128)}` })),
      { code: 'ImageDigestDoesNotMatchException' },
    );
  });

  test('the same image again', async () => {
    const repository = await prepared({ mutability: 'IMMUTABLE' });
    const { images } = t.registry;
    const refuse = { existing: 'refuse' } as const;
    const exists = (tag: string) =>
      new Fault(
        'ImageAlreadyExistsException',
        `Image with digest '${digestA}' and tag '${tag}' already exists in the repository with name '${repository.name}' in ` +
          "registry with id '000000000000'",
      );
    await images.put(repository, push(imageA, ['v1'], refuse));
    const first = await images.find(repository, 'v1', { pull: false });
    t.time.now += 5000;
    await assert.rejects(images.put(repository, push(imageA, ['v1'], refuse)), exists('v1'));
    await assert.rejects(images.put(repository, push(imageA, [], refuse)), exists('null'));
    // The OCI door: retries succeed, under a protected tag, too.
    await images.put(repository, push(imageA, ['v1']));
    await images.put(repository, push(imageA));
    // A new tag for it is always fine, and leaves the push time.
    await images.put(repository, push(imageA, ['v2'], refuse));
    const image = await images.find(repository, 'v2', { pull: false });
    assert.equal(image?.pushedAt, first?.pushedAt);
    assert.deepEqual(await tagsOf(images, repository, digestA), ['v1', 'v2']);
  });

  test('protected tags', async () => {
    const filters = [{ filterType: 'WILDCARD' as const, filter: 'dev-*' }];
    const cases = [
      ['IMMUTABLE', [], 'v1', 'repository'],
      ['IMMUTABLE_WITH_EXCLUSION', filters, 'v1', 'tag'],
      ['IMMUTABLE_WITH_EXCLUSION', filters, 'dev-1', undefined],
      ['MUTABLE_WITH_EXCLUSION', filters, 'dev-1', 'tag'],
      ['MUTABLE_WITH_EXCLUSION', filters, 'v1', undefined],
      ['MUTABLE', [], 'v1', undefined],
    ] as const;
    for (const [mutability, exclusionFilters, tag, refusal] of cases) {
      const repository = await prepared({ mutability, exclusionFilters });
      await t.registry.images.put(repository, push(imageA, [tag]));
      const moved = t.registry.images.put(repository, push(imageB, ['fresh', tag]));
      if (refusal === undefined) {
        await moved;
        assert.equal((await t.registry.images.find(repository, tag, { pull: false }))?.digest, digestB);
        continue;
      }
      await assert.rejects(
        moved,
        new Fault(
          'ImageTagAlreadyExistsException',
          `The image tag '${tag}' already exists in the '${repository.name}' repository and cannot be overwritten because ` +
            `the ${refusal} is immutable.`,
        ),
      );
      // All or none.
      assert.equal(await t.registry.images.find(repository, 'fresh', { pull: false }), undefined);
      assert.equal(await t.registry.images.find(repository, digestB, { pull: false }), undefined);
      // A deleted name is free again.
      await t.registry.images.batchDelete(repository, [{ imageTag: tag }]);
      await t.registry.images.put(repository, push(imageB, [tag]));
    }
  });

  test('mutability as it is now counts, not as the caller read it', async () => {
    const repository = await prepared();
    await t.registry.images.put(repository, push(imageA, ['v1']));
    await t.store.transact('repository.setTagMutability', {
      address: repository,
      mutability: 'IMMUTABLE',
      exclusionFilters: [],
    });
    await assert.rejects(t.registry.images.put(repository, push(imageB, ['v1'])), {
      code: 'ImageTagAlreadyExistsException',
    });
  });

  test('the 1001st tag', async () => {
    const repository = await prepared();
    const tags = Array.from({ length: 1000 }, (_, i) => `t${i}`);
    await t.registry.images.put(repository, push(imageA, tags));
    assert.deepEqual(await tagsOf(t.registry.images, repository, digestA), tags);
    await assert.rejects(
      t.registry.images.put(repository, push(imageA, ['one-more'])),
      new Fault(
        'LimitExceededException',
        `Adding tag 'one-more' to an image in the repository with name '${repository.name}' in registry with id ` +
          "'000000000000' exceeds the maximum allowed number of tags per image which is '1000'",
      ),
    );
    const pages: string[] = [];
    for (let last: string | undefined; ; last = pages.at(-1)) {
      const page = await t.registry.images.listTags(repository, last, 300);
      pages.push(...page);
      if (page.length < 300) break;
    }
    assert.deepEqual(pages, tags.toSorted());
  });

  test('the image quota', async () => {
    const repository = await prepared();
    await t.registry.images.put(repository, push(imageA));
    const input = {
      repository: { id: repository.id, name: repository.name, account: repository.account },
      digest: digestB,
      alias: undefined,
      mediaType: OCI_IMAGE,
      artifactType: undefined,
      subjectDigest: undefined,
      manifest: imageB,
      contentSize: 0,
      blobs: [],
      children: [],
      tags: [],
      existing: 'accept',
      now: t.time.now,
      nonce: 'a',
      tagsPerImageMax: 1000,
      imagesMax: 1,
    } as const;
    await assert.rejects(t.store.transact('image.put', input), { code: 'LimitExceededException' });
  });

  test('BatchGetImage', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    await images.put(repository, push(imageA, ['v1', 'v2']));
    await images.put(repository, push(imageB));
    const got = await images.batchGet(repository, [
      { imageDigest: digestA },
      { imageTag: 'v1' },
      { imageTag: 'v2', imageDigest: digestA },
      { imageDigest: digestB },
      { imageDigest: digestB },
      { imageTag: 'v3', imageDigest: digestA },
      { imageTag: 'v1', imageDigest: digestB },
      { imageTag: 'no such' },
      { imageDigest: 'nonsense' },
      {},
    ]);
    assert.deepEqual(
      got.images.map(({ imageId }) => imageId),
      [
        { imageDigest: digestA, imageTag: 'v1' },
        { imageDigest: digestA, imageTag: 'v2' },
        { imageDigest: digestB },
      ],
    );
    const bad = 'Invalid request parameters: ';
    assert.deepEqual(got.failures, [
      {
        imageId: { imageTag: 'v3', imageDigest: digestA },
        failureCode: 'ImageNotFound',
        failureReason: 'Requested image not found',
      },
      {
        imageId: { imageTag: 'v1', imageDigest: digestB },
        failureCode: 'ImageTagDoesNotMatchDigest',
        failureReason: `${bad}given tag does not map to the given digest`,
      },
      {
        imageId: { imageTag: 'no such' },
        failureCode: 'InvalidImageTag',
        failureReason: `${bad}image tag should satisfy the regex '[a-zA-Z0-9-_.]+'`,
      },
      {
        imageId: { imageDigest: 'nonsense' },
        failureCode: 'InvalidImageDigest',
        failureReason: `${bad}image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'`,
      },
      {
        imageId: {},
        failureCode: 'MissingDigestAndTag',
        failureReason: `${bad}both tag and digest cannot be null`,
      },
    ]);
  });

  test('BatchDeleteImage', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const index = indexOf([imageA]);
    const digest = digestOf(index);
    await images.put(repository, push(imageA, ['a1', 'a2']));
    await images.put(repository, push(imageB, ['b1', 'b2', 'b3']));
    await images.put(repository, push(index, ['multi']));
    const referenced = (imageId: object) => ({
      imageId,
      failureCode: 'ImageReferencedByManifestList',
      failureReason: `Requested image referenced by manifest list: [${digest}]`,
    });
    const notFound = (imageId: object) => ({
      imageId,
      failureCode: 'ImageNotFound',
      failureReason: 'Requested image not found',
    });
    assert.deepEqual(
      await images.batchDelete(repository, [
        { imageDigest: digestA },
        { imageTag: 'a1' },
        { imageTag: 'a1' },
        { imageTag: 'a2' },
        { imageTag: 'b1', imageDigest: digestA },
        { imageTag: 'b1', imageDigest: digestB },
        { imageTag: 'b9', imageDigest: digestB },
        { imageTag: 'b2' },
        {},
      ]),
      {
        imageIds: [
          { imageDigest: digestA, imageTag: 'a1' },
          { imageDigest: digestB, imageTag: 'b1' },
          { imageDigest: digestB, imageTag: 'b2' },
        ],
        failures: [
          referenced({ imageDigest: digestA }),
          referenced({ imageTag: 'a2' }),
          {
            imageId: { imageTag: 'b1', imageDigest: digestA },
            failureCode: 'ImageTagDoesNotMatchDigest',
            failureReason: 'Invalid request parameters: given tag does not map to the given digest',
          },
          notFound({ imageTag: 'b9', imageDigest: digestB }),
          {
            imageId: {},
            failureCode: 'MissingDigestAndTag',
            failureReason: 'Invalid request parameters: both tag and digest cannot be null',
          },
        ],
      },
    );
    // The last tag takes the image along; the index goes before its member in one request, and leaves it otherwise.
    assert.deepEqual(await images.batchDelete(repository, [{ imageTag: 'b3' }, { imageDigest: digest }]), {
      imageIds: [
        { imageDigest: digestB, imageTag: 'b3' },
        { imageDigest: digest, imageTag: 'multi' },
      ],
      failures: [],
    });
    assert.equal(await images.find(repository, digestB, { pull: false }), undefined);
    assert.deepEqual(await tagsOf(images, repository, digestA), ['a2']);
    await images.put(repository, push(index));
    assert.deepEqual(
      await images.batchDelete(repository, [{ imageDigest: digest }, { imageDigest: digestA }]),
      {
        imageIds: [{ imageDigest: digest }, { imageDigest: digestA, imageTag: 'a2' }],
        failures: [],
      },
    );
    assert.deepEqual(await images.listTags(repository, undefined, 10), []);
    await t.checkIntegrity();
  });

  test('of writers that race under a condition, one wins', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const other = t.another().images;
    const condition = (noneMatch: '*' | undefined, match: readonly string[] | undefined) => ({
      reference: 'v1',
      precondition: { match, noneMatch },
    });
    const race = async (work: readonly Promise<unknown>[]): Promise<number> => {
      const outcomes = await Promise.allSettled(work);
      const lost = outcomes.filter((outcome) => outcome.status === 'rejected');
      for (const { reason } of lost) assert.equal((reason as Fault).code, 'PreconditionFailed');
      assert.equal(outcomes.length - lost.length, 1);
      return outcomes.findIndex(({ status }) => status === 'fulfilled');
    };
    const put = (by: Images, image: Uint8Array, when: ReturnType<typeof condition>) =>
      by.put(repository, push(image, ['v1'], { condition: when }));
    const create = condition('*', undefined);
    const creators = [put(images, imageA, create), put(other, imageB, create)];
    const first = [digestA, digestB][await race(creators)] ?? '';
    assert.equal((await images.find(repository, 'v1', { pull: false }))?.digest, first);
    const later = imageOf('{}', ['layer two']);
    const replace = condition(undefined, [first]);
    const won = await race([
      put(images, later, replace),
      other.batchDelete(repository, [{ imageTag: 'v1' }], replace),
    ]);
    const left = await images.find(repository, 'v1', { pull: false });
    assert.equal(left?.digest, won === 0 ? digestOf(later) : undefined);
    await t.checkIntegrity();
  });

  test('a repository that is gone', async () => {
    const repository = await prepared();
    await t.registry.images.put(repository, push(imageA, ['v1']));
    await t.deleteRepository(repository);
    const gone = { code: 'RepositoryNotFoundException' };
    await assert.rejects(t.registry.images.put(repository, push(imageA)), gone);
    await assert.rejects(t.registry.images.batchDelete(repository, [{ imageTag: 'v1' }]), gone);
    assert.equal(await t.registry.images.find(repository, 'v1', { pull: false }), undefined);
  });

  test('pull times are batched and only move forward', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const stored = async (): Promise<number | null | undefined> => {
      const query = t.store.read.selectFrom('image').select('last_pulled_at');
      return (await query.where('repository_id', '=', repository.id).executeTakeFirst())?.last_pulled_at;
    };
    await images.put(repository, push(imageA, ['v1']));
    await images.find(repository, 'v1', { pull: true });
    const first = t.time.now;
    assert.equal((await images.find(repository, 'v1', { pull: false }))?.lastPulledAt, first);
    assert.equal(await stored(), null);
    await t.registry.flush();
    assert.equal(await stored(), first);
    t.time.now -= 1000;
    await images.batchGet(repository, [{ imageTag: 'v1' }]);
    await t.registry.flush();
    assert.equal(await stored(), first);
    t.time.now += 5000;
    await images.batchGet(repository, [{ imageTag: 'v1' }]);
    await t.another().flush();
    assert.equal(await stored(), first);
    await t.registry.close();
    assert.equal(await stored(), first + 4000);
  });

  test('referrers', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const subject = { mediaType: OCI_IMAGE, digest: digestA, size: imageA.byteLength };
    const referrer = (artifactType: string, n: number) =>
      imageOf('{}', [], { artifactType, subject, annotations: { n: String(n) } });
    const types = Array.from({ length: 40 }, (_, i) =>
      i % 2 === 0 ? 'application/sig' : 'application/sbom',
    );
    const manifests = types.map((type, n) => referrer(type, n));
    for (const manifest of manifests) {
      // The subject need not be there.
      assert.equal((await images.put(repository, push(manifest))).subjectDigest, digestA);
    }
    const digests = manifests.map((manifest) => digestOf(manifest));
    const list = async (
      of: string,
      artifactTypes: readonly string[] = [],
      after?: number,
    ): Promise<Referrer[]> =>
      await Array.fromAsync(images.referrers(repository, of as Digest, { artifactTypes, after }));
    const names = (found: readonly Referrer[]): string[] => found.map(({ digest }) => digest);
    const all = await list(digestA);
    assert.deepEqual(names(all), digests);
    assert.deepEqual(
      names(await list(digestA, ['application/sig'])),
      digests.filter((_, n) => n % 2 === 0),
    );
    assert.equal((await list(digestA, ['application/sig', 'application/sbom'])).length, 40);
    assert.deepEqual(await list(digestB), []);
    // A page begins anywhere, and one that was there all along is on exactly one page.
    for (const at of [0, 15, 16, 38]) {
      await images.batchDelete(repository, [{ imageDigest: digests[at] }]);
      assert.deepEqual(names(await list(digestA, [], all[at]?.pushedAt)), digests.slice(at + 1));
    }
  });
}
