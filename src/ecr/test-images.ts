import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ACCOUNT,
  DOCKER_MANIFEST,
  OCI_INDEX,
  OCI_MANIFEST,
  type OpenTestRegistry,
  sha256,
} from './testing.ts';

export function imagesTests(openTestRegistry: OpenTestRegistry): void {
  const app = { repositoryName: 'app' };
  const WHERE = `repository with name 'app' in registry with id '${ACCOUNT}'`;
  const WHERE_THE = `repository with name 'app' in the registry with id '${ACCOUNT}'`;
  const absent = `sha256:${'0'.repeat(64)}`;
  const at = (member: string, reason: string) =>
    `InvalidParameterException: Invalid parameter at '${member}' failed to satisfy constraint: '${reason}'`;

  async function openWithApp() {
    const t = await openTestRegistry();
    await t.call('CreateRepository', app);
    return t;
  }

  test('PutImage answers with the manifest it was given', async () => {
    await using t = await openWithApp();
    const { digest, manifest } = await t.addImage('app', 'layer');
    const again = { ...app, imageManifest: manifest, imageTag: 'v1' };
    assert.deepEqual(await t.call('PutImage', again), {
      image: {
        registryId: ACCOUNT,
        repositoryName: 'app',
        imageId: { imageDigest: digest, imageTag: 'v1' },
        imageManifest: manifest,
        imageManifestMediaType: DOCKER_MANIFEST,
      },
    });
    assert.equal(
      await t.fault('PutImage', again),
      `ImageAlreadyExistsException: Image with digest '${digest}' and tag 'v1' already exists in the ${WHERE}`,
    );
    assert.equal(
      (await t.refusal('PutImage', { ...app, imageManifest: manifest })).code,
      'ImageAlreadyExistsException',
    );
    const { image } = await t.call<{ image: { imageId: object } }>('PutImage', {
      ...app,
      imageManifest: `${manifest}\n`,
      imageDigest: sha256(`${manifest}\n`),
    });
    assert.deepEqual(image.imageId, { imageDigest: sha256(`${manifest}\n`) });
  });

  test('PutImage refusals', async () => {
    await using t = await openWithApp();
    const config = await t.addLayer('app', '{}');
    const parsed = {
      schemaVersion: 2,
      mediaType: DOCKER_MANIFEST,
      config: { mediaType: 'application/vnd.docker.container.image.v1+json', size: 2, digest: config },
      layers: [{ mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip', size: 1, digest: absent }],
    };
    const missing = JSON.stringify(parsed);
    const index = JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_INDEX,
      manifests: [{ mediaType: OCI_MANIFEST, size: 1, digest: absent }],
    });
    const wrongSize = JSON.stringify({ ...parsed, layers: [], config: { ...parsed.config, size: 3 } });
    const { mediaType: _, ...untyped } = parsed;
    const cases: [object, string | RegExp][] = [
      [{ imageManifest: '{' }, at('ImageManifest', 'Invalid JSON syntax')],
      [{ imageManifest: JSON.stringify(untyped) }, /^InvalidParameterException: /],
      [{ imageManifest: missing, imageManifestMediaType: OCI_MANIFEST }, /^InvalidParameterException: /],
      [{ imageManifest: missing, imageDigest: absent }, /^ImageDigestDoesNotMatchException: /],
      [{ imageManifest: wrongSize }, /^InvalidParameterException: Invalid parameter at 'ImageManifest' /],
      [
        { imageManifest: missing, imageTag: '-bad' },
        at('imageTag', "must satisfy regular expression '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"),
      ],
      [
        { imageManifest: missing },
        `LayersNotFoundException: Layers with digests '[${absent}]' required for pushing image into ${WHERE_THE} do not exist`,
      ],
      [
        { imageManifest: index },
        `ReferencedImagesNotFoundException: Images with digests '[${absent}]' required for pushing image into ${WHERE_THE} do not exist`,
      ],
    ];
    for (const [input, wanted] of cases) {
      const fault = await t.fault('PutImage', { ...app, ...input });
      if (typeof wanted === 'string') assert.equal(fault, wanted);
      else assert.match(fault, wanted);
    }
    assert.deepEqual(await t.call('ListImages', app), { imageIds: [] });
  });

  test('tags move or not, by mode', async () => {
    await using t = await openWithApp();
    const one = await t.addImage('app', 'one', 'latest');
    const two = await t.addImage('app', 'two', 'v2');
    const set = (imageTagMutability: string, filter?: string) =>
      t.call('PutImageTagMutability', {
        ...app,
        imageTagMutability,
        ...(filter && { imageTagMutabilityExclusionFilters: [{ filterType: 'WILDCARD', filter }] }),
      });
    const move = (imageManifest: string) => ({ ...app, imageManifest, imageTag: 'latest' });
    const immutable = (what: string) =>
      `ImageTagAlreadyExistsException: The image tag 'latest' already exists in the 'app' repository and cannot be overwritten because the ${what} is immutable.`;
    await set('IMMUTABLE');
    assert.equal(await t.fault('PutImage', move(two.manifest)), immutable('repository'));
    await set('IMMUTABLE_WITH_EXCLUSION', 'v*');
    assert.equal(await t.fault('PutImage', move(two.manifest)), immutable('tag'));
    await set('MUTABLE_WITH_EXCLUSION', 'late*');
    assert.equal(await t.fault('PutImage', move(two.manifest)), immutable('tag'));
    await set('IMMUTABLE_WITH_EXCLUSION', 'l*t');
    await t.call('PutImage', move(two.manifest));
    await set('MUTABLE_WITH_EXCLUSION', 'v*');
    await t.call('PutImage', move(one.manifest));
    await set('MUTABLE');
    await t.call('PutImage', move(two.manifest));
    const { images } = await t.call<{ images: { imageId: object }[] }>('BatchGetImage', {
      ...app,
      imageIds: [{ imageTag: 'latest' }],
    });
    assert.deepEqual(images[0]?.imageId, { imageDigest: two.digest, imageTag: 'latest' });
  });

  test('BatchGetImage', async () => {
    await using t = await openWithApp();
    const one = await t.addImage('app', 'one', 'a');
    await t.call('PutImage', { ...app, imageManifest: one.manifest, imageTag: 'b' });
    const two = await t.addImage('app', 'two');
    const entry = (image: { digest: string; manifest: string }, imageTag?: string) => ({
      registryId: ACCOUNT,
      repositoryName: 'app',
      imageId: { imageDigest: image.digest, ...(imageTag && { imageTag }) },
      imageManifest: image.manifest,
      imageManifestMediaType: DOCKER_MANIFEST,
    });
    const get = (...imageIds: object[]) => t.call('BatchGetImage', { ...app, imageIds });
    const failure = (imageId: object, failureCode: string, failureReason: string) => ({
      imageId,
      failureCode,
      failureReason,
    });
    assert.deepEqual(await get({ imageTag: 'b' }, { imageTag: 'b' }), {
      images: [entry(one, 'b')],
      failures: [],
    });
    assert.deepEqual(await get({ imageDigest: one.digest }), {
      images: [entry(one, 'a'), entry(one, 'b')],
      failures: [],
    });
    assert.deepEqual(await get({ imageDigest: two.digest }), { images: [entry(two)], failures: [] });
    assert.deepEqual(
      await get({ imageTag: 'x' }, {}, { imageDigest: 'bad' }, { imageDigest: two.digest, imageTag: 'a' }),
      {
        images: [],
        failures: [
          failure({ imageTag: 'x' }, 'ImageNotFound', 'Requested image not found'),
          failure(
            {},
            'MissingDigestAndTag',
            'Invalid request parameters: both tag and digest cannot be null',
          ),
          failure(
            { imageDigest: 'bad' },
            'InvalidImageDigest',
            "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'",
          ),
          failure(
            { imageDigest: two.digest, imageTag: 'a' },
            'ImageTagDoesNotMatchDigest',
            'Invalid request parameters: given tag does not map to the given digest',
          ),
        ],
      },
    );
    assert.equal(
      (await t.refusal('BatchGetImage', { repositoryName: 'none', imageIds: [{}] })).code,
      'RepositoryNotFoundException',
    );
  });

  test('BatchGetImage answers no more than fits in memory', async () => {
    await using t = await openWithApp();
    const { manifest } = await t.addImage('app', 'one');
    const large = manifest.replace('{', `{"annotations":{"a":"${'x'.repeat(4_000_000)}"},`);
    for (let i = 0; i < 9; i++) await t.call('PutImage', { ...app, imageManifest: large, imageTag: `t${i}` });
    const imageIds = [{ imageDigest: sha256(large) }];
    assert.equal(
      await t.fault('BatchGetImage', { ...app, imageIds }),
      'LimitExceededException: The manifests of the requested images, one for each tag, exceed the maximum allowed size of an ' +
        "answer which is '33554432' bytes. Request fewer images at once, or name them by tag.",
    );
    await t.call('BatchDeleteImage', { ...app, imageIds: [{ imageTag: 't8' }] });
    const { images } = await t.call<{ images: object[] }>('BatchGetImage', { ...app, imageIds });
    assert.equal(images.length, 8);
  });

  test('BatchGetImage is a pull', async () => {
    await using t = await openWithApp();
    const { digest } = await t.addImage('app', 'one', 'a');
    const describe = async () => {
      await t.registry.flush();
      const { imageDetails } = await t.call<{ imageDetails: Record<string, unknown>[] }>(
        'DescribeImages',
        app,
      );
      return imageDetails[0];
    };
    assert.ok(!('lastRecordedPullTime' in ((await describe()) ?? {})));
    t.now += 60_000;
    await t.call('BatchGetImage', { ...app, imageIds: [{ imageDigest: digest }] });
    assert.deepEqual((await describe())?.['lastRecordedPullTime'], new Date(t.now));
  });

  test('BatchDeleteImage', async () => {
    await using t = await openWithApp();
    const one = await t.addImage('app', 'one', 'a');
    await t.call('PutImage', { ...app, imageManifest: one.manifest, imageTag: 'b' });
    await t.call('PutImage', { ...app, imageManifest: one.manifest, imageTag: 'c' });
    const two = await t.addImage('app', 'two');
    const remove = (...imageIds: object[]) => t.call('BatchDeleteImage', { ...app, imageIds });
    assert.deepEqual(
      await remove({ imageTag: 'a' }, { imageTag: 'a' }, { imageDigest: one.digest, imageTag: 'b' }),
      {
        imageIds: [
          { imageDigest: one.digest, imageTag: 'a' },
          { imageDigest: one.digest, imageTag: 'b' },
        ],
        failures: [],
      },
    );
    assert.deepEqual(await remove({ imageDigest: two.digest }, { imageTag: 'c' }, {}), {
      imageIds: [{ imageDigest: two.digest }, { imageDigest: one.digest, imageTag: 'c' }],
      failures: [
        {
          imageId: {},
          failureCode: 'MissingDigestAndTag',
          failureReason: 'Invalid request parameters: both tag and digest cannot be null',
        },
      ],
    });
    assert.deepEqual(await t.call('ListImages', app), { imageIds: [] });
  });

  test('an index keeps its members', async () => {
    await using t = await openWithApp();
    const member = await t.addImage('app', 'one', 'a');
    const index = JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_INDEX,
      manifests: [
        { mediaType: DOCKER_MANIFEST, size: Buffer.byteLength(member.manifest), digest: member.digest },
      ],
    });
    await t.call('PutImage', { ...app, imageManifest: index, imageTag: 'all' });
    const { failures } = await t.call<{ failures: object[] }>('BatchDeleteImage', {
      ...app,
      imageIds: [{ imageDigest: member.digest }],
    });
    assert.deepEqual(failures, [
      {
        imageId: { imageDigest: member.digest },
        failureCode: 'ImageReferencedByManifestList',
        failureReason: `Requested image referenced by manifest list: [${sha256(index)}]`,
      },
    ]);
    const { imageDetails } = await t.call<{ imageDetails: Record<string, unknown>[] }>('DescribeImages', {
      ...app,
      imageIds: [{ imageTag: 'all' }],
    });
    assert.equal(imageDetails[0]?.['imageSizeInBytes'], member.size);
    assert.ok(!('artifactMediaType' in (imageDetails[0] ?? {})));
  });
}
