import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLifecycleHandlers } from '../registry/registry.ts';
import { ACCOUNT, NOW, OCI_INDEX, OCI_MANIFEST, type OpenTestRegistry, sha256 } from './testing.ts';
import type { TestRegistry } from './testing.ts';

export function storageClassTests(openTestRegistry: OpenTestRegistry): void {
  const app = { repositoryName: 'app' };
  const update = (imageId: object, targetStorageClass: string) => ({ ...app, imageId, targetStorageClass });
  type Ids = { imageIds: { imageDigest: string; imageTag?: string }[]; nextToken?: string };
  type Details = { imageDetails: Record<string, unknown>[]; nextToken?: string };

  /** Ends the restores that are due. */
  async function activate(t: TestRegistry): Promise<number> {
    const handlers = createLifecycleHandlers({ store: t.store, clock: () => t.now, flush: t.registry.flush });
    const claim = { now: t.now, leaseMs: 1000, lease: 'test', limit: 10, attemptsMax: 3 };
    const { claimed } = await t.store.transact('job.claim', { ...claim, kind: 'image.activate' });
    for (const job of claimed) {
      await handlers['image.activate']?.run({ ...job, signal: new AbortController().signal });
      await t.store.transact('job.complete', { ...job, now: t.now, again: undefined });
    }
    return claimed.length;
  }

  async function statusOf(t: TestRegistry, digest: string): Promise<unknown[]> {
    const input = { ...app, imageIds: [{ imageDigest: digest }] };
    const [detail] = (await t.call<Details>('DescribeImages', input)).imageDetails;
    const time = (at: unknown) => (at instanceof Date ? at.getTime() - NOW : undefined);
    return [detail?.['imageStatus'], time(detail?.['lastArchivedAt']), time(detail?.['lastActivatedAt'])];
  }

  test('an image is archived and restored', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const image = await t.addImage('app', 'layer', 'v1');
    const { digest } = image;
    const answer = (imageStatus: string, imageId: object = { imageDigest: digest }) => ({
      registryId: ACCOUNT,
      ...app,
      imageId,
      imageStatus,
    });
    const both = { imageDigest: digest, imageTag: 'v1' };
    assert.deepEqual(
      await t.call('UpdateImageStorageClass', update({ imageTag: 'v1' }, 'STANDARD')),
      answer('ACTIVE', both),
    );
    assert.deepEqual(await statusOf(t, digest), ['ACTIVE', undefined, undefined]);
    t.now += 1000;
    assert.deepEqual(
      await t.call('UpdateImageStorageClass', update({ imageTag: 'v1' }, 'ARCHIVE')),
      answer('ARCHIVED', both),
    );
    assert.deepEqual(await statusOf(t, digest), ['ARCHIVED', 1000, undefined]);
    t.now += 1000;
    const byDigest = update({ imageDigest: digest }, 'ARCHIVE');
    assert.deepEqual(await t.call('UpdateImageStorageClass', byDigest), answer('ARCHIVED'));
    assert.deepEqual(await statusOf(t, digest), ['ARCHIVED', 1000, undefined]);

    // Nobody can pull it.
    const repository = (await t.registry.findRepository({
      account: ACCOUNT,
      region: 'eu-west-1',
      name: 'app',
    })) as never;
    for (const reference of ['v1', digest])
      assert.equal(await t.registry.images.find(repository, reference, { pull: true }), undefined);
    assert.deepEqual(await t.registry.images.listTags(repository, undefined, 10), []);
    assert.deepEqual(await t.call('BatchGetImage', { ...app, imageIds: [{ imageTag: 'v1' }] }), {
      images: [],
      failures: [
        {
          imageId: { imageTag: 'v1' },
          failureCode: 'ImageNotFound',
          failureReason: 'Requested image not found',
        },
      ],
    });
    const { layers } = await t.call<{ layers: { layerAvailability: string }[] }>(
      'BatchCheckLayerAvailability',
      {
        ...app,
        layerDigests: [image.layer, sha256('none')],
      },
    );
    assert.deepEqual(
      layers.map(({ layerAvailability }) => layerAvailability),
      ['ARCHIVED', 'UNAVAILABLE'],
    );
    const download = { ...app, layerDigest: image.layer };
    assert.equal((await t.refusal('GetDownloadUrlForLayer', download)).code, 'LayerInaccessibleException');

    t.now += 1000;
    const restore = update({ imageDigest: digest }, 'STANDARD');
    assert.deepEqual(await t.call('UpdateImageStorageClass', restore), answer('ACTIVATING'));
    assert.deepEqual(await t.call('UpdateImageStorageClass', restore), answer('ACTIVATING'));
    assert.equal(
      await t.fault('UpdateImageStorageClass', byDigest),
      `ImageStorageClassUpdateNotSupportedException: The image '${digest}' is being restored`,
    );
    assert.equal(await t.registry.images.find(repository, 'v1', { pull: true }), undefined);
    assert.equal(await activate(t), 0);
    t.now += 20 * 60_000;
    assert.equal(await activate(t), 1);
    assert.deepEqual(await statusOf(t, digest), ['ACTIVE', 1000, t.now - NOW]);
    assert.equal((await t.registry.images.find(repository, 'v1', { pull: true }))?.digest, digest);
    await t.call('GetDownloadUrlForLayer', download);

    const events = await t.store.read.selectFrom('event').select('record').orderBy('id').execute();
    const details = events.map(({ record }) => JSON.parse(record) as Record<string, Record<string, string>>);
    assert.deepEqual(
      details.map(({ detail }) => [
        detail?.['action-type'],
        detail?.['target-storage-class'],
        detail?.['last-activated-at'],
      ]),
      [
        ['PUSH', undefined, undefined],
        ['UPDATE_STORAGE_CLASS', 'ARCHIVE', undefined],
        ['UPDATE_STORAGE_CLASS', 'STANDARD', '2026-11-24T12:20:03Z'],
      ],
    );
  });

  test('what is not there', async () => {
    await using t = await openTestRegistry();
    const input = update({ imageTag: 'v1' }, 'ARCHIVE');
    assert.equal((await t.refusal('UpdateImageStorageClass', input)).code, 'RepositoryNotFoundException');
    await t.call('CreateRepository', app);
    const { digest } = await t.addImage('app', 'layer', 'v1');
    for (const [imageId, shown] of [
      [{ imageTag: 'v2' }, `{imageDigest:'null', imageTag:'v2'}`],
      [{ imageDigest: sha256('x') }, `{imageDigest:'${sha256('x')}', imageTag:'null'}`],
      [{ imageDigest: sha256('x'), imageTag: 'v1' }, `{imageDigest:'${sha256('x')}', imageTag:'v1'}`],
      [{ imageDigest: digest, imageTag: 'v2' }, `{imageDigest:'${digest}', imageTag:'v2'}`],
    ] as const)
      assert.equal(
        await t.fault('UpdateImageStorageClass', update(imageId, 'ARCHIVE')),
        `ImageNotFoundException: The image with imageId ${shown} does not exist within the repository with name 'app' in the registry with id '${ACCOUNT}'`,
      );
    for (const imageId of [{}, { imageDigest: 'nonsense' }])
      assert.equal(
        (await t.refusal('UpdateImageStorageClass', update(imageId, 'ARCHIVE'))).code,
        'InvalidParameterException',
      );
  });

  test('a push restores at once', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const { digest, manifest } = await t.addImage('app', 'layer', 'v1');
    const archived = [{ imageDigest: digest }, 'ARCHIVE'] as const;
    for (const tag of [{ imageTag: 'v1' }, { imageTag: 'v2' }, {}]) {
      t.now += 1000;
      await t.call('UpdateImageStorageClass', update(...archived));
      const at = t.now - NOW;
      t.now += 1000;
      await t.call('PutImage', { ...app, imageManifest: manifest, ...tag });
      assert.deepEqual(await statusOf(t, digest), ['ACTIVE', at, at + 1000]);
    }
    // While it is being restored, too; the job that was to do it finds it done.
    await t.call('UpdateImageStorageClass', update(...archived));
    await t.call('UpdateImageStorageClass', update({ imageDigest: digest }, 'STANDARD'));
    await t.call('PutImage', { ...app, imageManifest: manifest, imageTag: 'v1' });
    const status = await statusOf(t, digest);
    t.now += 20 * 60_000;
    assert.equal(await activate(t), 1);
    assert.deepEqual(await statusOf(t, digest), status);
    const again = { ...app, imageManifest: manifest, imageTag: 'v1' };
    assert.equal((await t.refusal('PutImage', again)).code, 'ImageAlreadyExistsException');
  });

  test('members of an index', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const child = await t.addImage('app', 'layer');
    const imageManifest = JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_INDEX,
      manifests: [
        {
          mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
          digest: child.digest,
          size: child.manifest.length,
        },
      ],
    });
    const index = sha256(imageManifest);
    await t.call('PutImage', { ...app, imageManifest, imageTag: 'multi' });
    assert.equal(
      await t.fault('UpdateImageStorageClass', update({ imageDigest: child.digest }, 'ARCHIVE')),
      `ImageStorageClassUpdateNotSupportedException: The image '${child.digest}' is referenced by manifest list: [${index}], which must be archived or deleted first`,
    );
    await t.call('UpdateImageStorageClass', update({ imageTag: 'multi' }, 'ARCHIVE'));
    assert.equal((await statusOf(t, child.digest))[0], 'ACTIVE');
    await t.call('UpdateImageStorageClass', update({ imageDigest: child.digest }, 'ARCHIVE'));
    assert.equal((await statusOf(t, child.digest))[0], 'ARCHIVED');
    // A new index cannot rest on what nobody can pull.
    const other = JSON.stringify({ ...JSON.parse(imageManifest), annotations: { a: 'b' } });
    assert.equal(
      (await t.refusal('PutImage', { ...app, imageManifest: other })).code,
      'ReferencedImagesNotFoundException',
    );
    await t.call('PutImage', { ...app, imageManifest: child.manifest });
    await t.call('PutImage', { ...app, imageManifest: other });
    const deleted = await t.call('BatchDeleteImage', { ...app, imageIds: [{ imageTag: 'multi' }] });
    assert.deepEqual(deleted, { imageIds: [{ imageDigest: index, imageTag: 'multi' }], failures: [] });
  });

  test('listings show the active images unless asked', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const digests: string[] = [];
    for (let i = 0; i < 12; i++) {
      t.now += 1000;
      digests.unshift((await t.addImage('app', `layer ${i}`, i % 2 === 0 ? `v${i}` : undefined)).digest);
    }
    // Every third is archived, one of these is being restored.
    for (const [i, imageDigest] of digests.entries())
      if (i % 3 === 0) await t.call('UpdateImageStorageClass', update({ imageDigest }, 'ARCHIVE'));
    await t.call('UpdateImageStorageClass', update({ imageDigest: digests[6] }, 'STANDARD'));
    const statuses = digests.map((_, i) => (i === 6 ? 'ACTIVATING' : i % 3 === 0 ? 'ARCHIVED' : 'ACTIVE'));
    const isTagged = (i: number) => i % 2 === 1;
    for (const imageStatus of [undefined, 'ACTIVE', 'ARCHIVED', 'ACTIVATING', 'ANY']) {
      for (const tagStatus of [undefined, 'TAGGED', 'UNTAGGED', 'ANY']) {
        const filter = {
          ...(imageStatus !== undefined && { imageStatus }),
          ...(tagStatus !== undefined && { tagStatus }),
        };
        const wanted = digests.filter(
          (_, i) =>
            (imageStatus === 'ANY' || statuses[i] === (imageStatus ?? 'ACTIVE')) &&
            (tagStatus === undefined || tagStatus === 'ANY' || isTagged(i) === (tagStatus === 'TAGGED')),
        );
        const listed: string[] = [];
        const described: unknown[] = [];
        let token: { nextToken?: string } = {};
        do {
          const page = await t.call<Ids>('ListImages', { ...app, filter, maxResults: 2, ...token });
          listed.push(...page.imageIds.map(({ imageDigest }) => imageDigest));
          token = page.nextToken === undefined ? {} : { nextToken: page.nextToken };
        } while (token.nextToken !== undefined);
        do {
          const page = await t.call<Details>('DescribeImages', { ...app, filter, maxResults: 2, ...token });
          described.push(...page.imageDetails.map(({ imageDigest }) => imageDigest));
          token = page.nextToken === undefined ? {} : { nextToken: page.nextToken };
        } while (token.nextToken !== undefined);
        const name = `${imageStatus} ${tagStatus}`;
        assert.deepEqual([...listed].sort(), [...wanted].sort(), name);
        assert.deepEqual(described, wanted, name);
      }
    }
    const ids = [{ imageDigest: digests[0] }, { imageDigest: digests[1] }];
    const named = async (filter?: object) =>
      (
        await t.call<Details>('DescribeImages', { ...app, imageIds: ids, ...(filter && { filter }) })
      ).imageDetails.map(({ imageDigest }) => imageDigest);
    assert.deepEqual(await named(), [digests[0], digests[1]]);
    assert.deepEqual(await named({ imageStatus: 'ACTIVE' }), [digests[1]]);
    assert.deepEqual(await named({ imageStatus: 'ARCHIVED' }), [digests[0]]);
    assert.deepEqual(await named({ imageStatus: 'ANY' }), [digests[0], digests[1]]);
  });

  test('referrers are hidden with their archive and follow their subject', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const subject = await t.addImage('app', 'layer', 'v1');
    const config = await t.addLayer('app', '{}');
    const sign = async (digest: string, note: string): Promise<string> => {
      const imageManifest = JSON.stringify({
        schemaVersion: 2,
        mediaType: OCI_MANIFEST,
        artifactType: 'text/sbom',
        config: { mediaType: 'application/vnd.oci.empty.v1+json', size: 2, digest: config },
        layers: [],
        subject: {
          mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
          digest,
          size: subject.manifest.length,
        },
        annotations: { note },
      });
      await t.call('PutImage', { ...app, imageManifest });
      return sha256(imageManifest);
    };
    const signature = await sign(subject.digest, 'one');
    const dangling = await sign(sha256('never pushed'), 'two');
    await t.call('UpdateImageStorageClass', update({ imageTag: 'v1' }, 'ARCHIVE'));
    const handlers = createLifecycleHandlers({ store: t.store, clock: () => t.now, flush: t.registry.flush });
    const follow = async (): Promise<number> => {
      const claim = { now: t.now, leaseMs: 1000, lease: 'test', limit: 10, attemptsMax: 3 };
      const { claimed } = await t.store.transact('job.claim', { ...claim, kind: 'image.referrers' });
      for (const job of claimed) {
        const result = await handlers['image.referrers']?.run({
          ...job,
          signal: new AbortController().signal,
        });
        await t.store.transact('job.complete', { ...job, now: t.now, again: result?.again });
      }
      return claimed.length;
    };
    assert.equal(await follow(), 0);
    assert.equal((await statusOf(t, signature))[0], 'ACTIVE');
    t.now += 24 * 3_600_000;
    assert.equal(await follow(), 1);
    assert.equal((await statusOf(t, signature))[0], 'ARCHIVED');
    const events = await t.store.read.selectFrom('event').select('record').orderBy('id', 'desc').execute();
    const last = JSON.parse(events[0]?.record ?? '') as {
      'detail-type': string;
      detail: Record<string, string>;
    };
    assert.equal(last['detail-type'], 'ECR Referrer Action');
    assert.equal(last.detail['image-digest'], signature);
    assert.equal(last.detail['artifact-media-type'], 'text/sbom');

    // Deleted and pushed again in time: the signature stays.
    const remove = { ...app, imageIds: [{ imageDigest: subject.digest }] };
    await t.call('BatchDeleteImage', remove);
    t.now += 60_000;
    await t.call('PutImage', { ...app, imageManifest: subject.manifest, imageTag: 'v1' });
    t.now += 24 * 3_600_000;
    assert.equal(await follow(), 1);
    assert.equal((await statusOf(t, signature))[0], 'ARCHIVED');
    await t.call('BatchDeleteImage', remove);
    t.now += 24 * 3_600_000;
    assert.equal(await follow(), 1);
    assert.deepEqual((await t.call<Ids>('ListImages', { ...app, filter: { imageStatus: 'ANY' } })).imageIds, [
      { imageDigest: dangling },
    ]);
    t.now += 240 * 3_600_000;
    assert.equal(await follow(), 0);
  });
}
