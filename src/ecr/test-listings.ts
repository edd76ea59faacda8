import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import {
  ACCOUNT,
  DOCKER_MANIFEST,
  NOW,
  OCI_MANIFEST,
  type OpenTestRegistry,
  sha256,
  type TestRegistry,
} from './testing.ts';

export function listingsTests(openTestRegistry: OpenTestRegistry): void {
  const app = { repositoryName: 'app' };
  const at = (member: string, reason: string) =>
    `InvalidParameterException: Invalid parameter at '${member}' failed to satisfy constraint: '${reason}'`;

  interface Id {
    readonly imageDigest: string;
    readonly imageTag?: string;
  }

  /** Images in time order: tags of each, an empty list for untagged ones. */
  async function open(images: readonly (readonly string[])[]): Promise<TestRegistry & { digests: string[] }> {
    const t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const digests: string[] = [];
    for (const [i, tags] of images.entries()) {
      t.now = NOW + i * 1000;
      const { digest, manifest } = await t.addImage('app', `layer ${i}`, tags[0]);
      for (const imageTag of tags.slice(1)) {
        t.now += 1;
        await t.call('PutImage', { ...app, imageManifest: manifest, imageTag });
      }
      digests.push(digest);
    }
    return Object.assign(t, { digests });
  }

  test('DescribeImages: members, and the newest push first', async () => {
    await using t = await open([[], ['z', 'b']]);
    const [untagged, tagged] = t.digests;
    const common = {
      registryId: ACCOUNT,
      repositoryName: 'app',
      imageSizeInBytes: 9,
      imageManifestMediaType: DOCKER_MANIFEST,
      artifactMediaType: 'application/vnd.docker.container.image.v1+json',
      imageStatus: 'ACTIVE',
    };
    const wanted = [
      { ...common, imageDigest: tagged, imageTags: ['z', 'b'], imagePushedAt: new Date(NOW + 1000) },
      { ...common, imageDigest: untagged, imagePushedAt: new Date(NOW) },
    ];
    assert.deepEqual(await t.call('DescribeImages', app), { imageDetails: wanted });
    const select = async (input: object) =>
      (await t.call<{ imageDetails: object[] }>('DescribeImages', { ...app, ...input })).imageDetails;
    assert.deepEqual(await select({ filter: { tagStatus: 'TAGGED' } }), [wanted[0]]);
    assert.deepEqual(await select({ filter: { tagStatus: 'UNTAGGED' } }), [wanted[1]]);
    assert.deepEqual(await select({ filter: { tagStatus: 'ANY', imageStatus: 'ANY' } }), wanted);
    assert.deepEqual(await select({ filter: { imageStatus: 'ACTIVE' } }), wanted);
    assert.deepEqual(await select({ filter: { imageStatus: 'ARCHIVED' } }), []);
    assert.deepEqual(await select({ filter: { imageStatus: 'ACTIVATING' } }), []);
    const ids = [
      { imageDigest: untagged },
      { imageTag: 'b' },
      { imageTag: 'z' },
      { imageDigest: tagged, imageTag: 'b' },
    ];
    assert.deepEqual(await select({ imageIds: ids }), [wanted[1], wanted[0]]);
    assert.deepEqual(await select({ imageIds: ids, filter: { tagStatus: 'TAGGED' } }), [wanted[0]]);
    assert.deepEqual(await select({ imageIds: ids, filter: { imageStatus: 'ARCHIVED' } }), []);
  });

  test('DescribeImages of an artifact with a subject', async () => {
    await using t = await open([['v1']]);
    const [subject = ''] = t.digests;
    const config = await t.addLayer('app', '{}');
    const imageManifest = JSON.stringify({
      schemaVersion: 2,
      artifactType: 'application/vnd.example.sbom',
      config: { mediaType: 'application/vnd.oci.empty.v1+json', size: 2, digest: config },
      layers: [],
      subject: { mediaType: DOCKER_MANIFEST, size: 1, digest: subject },
    });
    const put = { ...app, imageManifest, imageManifestMediaType: OCI_MANIFEST };
    await t.call('PutImage', put);
    const { imageDetails } = await t.call<{ imageDetails: Record<string, unknown>[] }>('DescribeImages', {
      ...app,
      imageIds: [{ imageDigest: sha256(imageManifest) }],
    });
    assert.equal(imageDetails[0]?.['artifactMediaType'], 'application/vnd.example.sbom');
    assert.equal(imageDetails[0]?.['subjectManifestDigest'], subject);
    assert.equal(imageDetails[0]?.['imageManifestMediaType'], OCI_MANIFEST);
  });

  test('DescribeImages refusals', async () => {
    await using t = await open([['a'], ['b']]);
    const [, second = ''] = t.digests;
    const absent = `sha256:${'0'.repeat(64)}`;
    const notFound = (digest: string, tag: string) =>
      `ImageNotFoundException: The image with imageId {imageDigest:'${digest}', imageTag:'${tag}'} does not exist within the ` +
      `repository with name 'app' in the registry with id '${ACCOUNT}'`;
    const cases: [object[], string][] = [
      [[{ imageTag: 'a' }, { imageTag: 'x' }], notFound('null', 'x')],
      [[{ imageDigest: absent }], notFound(absent, 'null')],
      [[{ imageDigest: second, imageTag: 'a' }], notFound(second, 'a')],
      [[{ imageDigest: second, imageTag: 'x' }], notFound(second, 'x')],
      [
        [{ imageDigest: 'bad' }],
        at('imageDigest', "must satisfy regular expression '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"),
      ],
      [[{}], at('imageIds', 'both tag and digest cannot be null')],
    ];
    for (const [imageIds, wanted] of cases)
      assert.equal(await t.fault('DescribeImages', { ...app, imageIds }), wanted);
    assert.equal(
      await t.fault('DescribeImages', { ...app, imageIds: [{ imageTag: 'a' }], maxResults: 1 }),
      at('maxResults', 'Member must not be specified together with imageIds'),
    );
    assert.match(await t.fault('DescribeImages', { repositoryName: 'none' }), /^RepositoryNotFoundException/);
    assert.match(await t.fault('ListImages', { repositoryName: 'none' }), /^RepositoryNotFoundException/);
  });

  test('ListImages has one entry for each tag and each untagged image', async () => {
    await using t = await open([[], ['z', 'b'], ['m']]);
    const [first = '', second = '', third = ''] = t.digests;
    const list = async (filter?: object) =>
      (await t.call<{ imageIds: Id[] }>('ListImages', { ...app, ...(filter && { filter }) })).imageIds;
    const [b, m, z] = [
      { imageDigest: second, imageTag: 'b' },
      { imageDigest: third, imageTag: 'm' },
      { imageDigest: second, imageTag: 'z' },
    ];
    assert.deepEqual(await list(), [m, b, z, { imageDigest: first }]);
    assert.deepEqual(await list({ tagStatus: 'ANY' }), [m, b, z, { imageDigest: first }]);
    assert.deepEqual(await list({ tagStatus: 'TAGGED' }), [b, m, z]);
    assert.deepEqual(await list({ tagStatus: 'UNTAGGED' }), [{ imageDigest: first }]);
    assert.deepEqual(await list({ imageStatus: 'ANY' }), [m, b, z, { imageDigest: first }]);
    assert.deepEqual(await list({ imageStatus: 'ARCHIVED' }), []);
  });

  /** All entries of a listing, page by page; `between` runs after each page. */
  async function collect(
    t: TestRegistry,
    operation: 'ListImages' | 'DescribeImages',
    input: object,
    between: () => Promise<unknown>,
  ): Promise<string[]> {
    const found: string[] = [];
    let nextToken: string | undefined;
    do {
      const page: { imageIds?: Id[]; imageDetails?: Id[]; nextToken?: string } = await t.call(operation, {
        ...app,
        ...input,
        nextToken,
      });
      const entries = page.imageIds ?? page.imageDetails ?? [];
      found.push(...entries.map(({ imageDigest, imageTag }) => `${imageDigest}${imageTag ?? ''}`));
      ({ nextToken } = page);
      await between();
    } while (nextToken !== undefined);
    return found;
  }

  test('pages concatenate to the list, whatever is pushed meanwhile', async () => {
    const images = Array.from({ length: 9 }, (_, i) =>
      Array.from({ length: i % 4 }, (_, j) => `t${(i * 7 + j * 5) % 9}-${i}`),
    );
    await using t = await open(images);
    // Pushes within one millisecond: ties of the order.
    for (let i = 0; i < 4; i++) await t.addImage('app', `tie ${i}`, i % 2 === 0 ? `tie${i}` : undefined);
    let pushed = 0;
    const push = async () => {
      t.now += 1000;
      if (pushed < 8)
        await t.addImage('app', `new ${pushed}`, pushed++ % 2 === 0 ? undefined : `new${pushed}`);
    };
    const arbitraryInput = fc.record({
      operation: fc.constantFrom('ListImages' as const, 'DescribeImages' as const),
      maxResults: fc.integer({ min: 1, max: 8 }),
      tagStatus: fc.constantFrom('ANY', 'TAGGED', 'UNTAGGED'),
      concurrent: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(arbitraryInput, async ({ operation, maxResults, tagStatus, concurrent }) => {
        const filter = { tagStatus };
        const idle = () => Promise.resolve();
        const before = await collect(t, operation, { filter, maxResults: 1000 }, idle);
        const found = await collect(t, operation, { filter, maxResults }, concurrent ? push : idle);
        assert.equal(new Set(found).size, found.length);
        if (concurrent)
          assert.deepEqual(
            found.filter((entry) => before.includes(entry)),
            before,
          );
        else assert.deepEqual(found, before);
      }),
      { numRuns: 30 },
    );
  });

  test('an image is not left out when its tags change between two pages', async () => {
    await using t = await open([['a', 'b', 'c'], []]);
    const [first = '', second = ''] = t.digests;
    const page = (nextToken?: string) =>
      t.call<{ imageIds: Id[]; nextToken?: string }>('ListImages', { ...app, maxResults: 2, nextToken });
    const { imageIds, nextToken } = await page();
    assert.deepEqual(imageIds, [{ imageDigest: second }, { imageDigest: first, imageTag: 'a' }]);
    await t.call('BatchDeleteImage', { ...app, imageIds: [{ imageTag: 'a' }, { imageTag: 'c' }] });
    assert.deepEqual(await page(nextToken), { imageIds: [{ imageDigest: first, imageTag: 'b' }] });
  });

  test('tokens are bound to the filter', async () => {
    await using t = await open([['a'], ['b']]);
    const { nextToken } = await t.call<{ nextToken: string }>('ListImages', { ...app, maxResults: 1 });
    const bad = at('nextToken', 'Member must satisfy constraint: [Invalid token]');
    assert.equal(await t.fault('ListImages', { ...app, nextToken, filter: { tagStatus: 'TAGGED' } }), bad);
    assert.equal(await t.fault('DescribeImages', { ...app, nextToken }), bad);
    await t.call('CreateRepository', { repositoryName: 'other' });
    assert.equal(await t.fault('ListImages', { repositoryName: 'other', nextToken }), bad);
  });
}
