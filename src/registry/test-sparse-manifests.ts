import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { formatLifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import { imageNotFoundFailure } from '../domain/image-ids.ts';
import { OCI_IMAGE, OCI_INDEX } from '../domain/manifests.ts';
import type { Digest } from '../domain/names.ts';
import { pageLifecycleImages } from '../store/store.ts';
import type { Repository } from './registry.ts';
import {
  digestOf,
  imageOf,
  indexOf,
  push,
  streamOf,
  type OpenTestRegistry,
  type TestRegistry,
} from './testing.ts';

const sha512 = (bytes: Uint8Array): Digest => digestOf(bytes, 'sha512') as Digest;

/** An image of its own for each number, of 2 + 5 bytes. */
const imageNumber = (n: number): Uint8Array => imageOf('{}', ['layer'], { annotations: { n: `${n}` } });

/** The tests of manifests that name what is partly not here. */
export function sparseManifestsTests(open: OpenTestRegistry): void {
  let t: TestRegistry;
  let names = 0;

  before(async () => {
    t = await open({ sparseManifests: 'indexes' });
  });
  after(() => t.close());

  async function prepared(): Promise<Repository> {
    names += 1;
    const repository = await t.createRepository(`sparse-${names}`);
    for (const text of ['{}', 'layer']) await t.upload(repository, text);
    return repository;
  }

  const here = imageNumber(1);
  const late = imageNumber(2);
  const index = indexOf([here, late]);
  const kept = (manifest: Uint8Array, ...parents: Uint8Array[]) => ({
    imageId: { imageDigest: digestOf(manifest) },
    failureCode: 'ImageReferencedByManifestList',
    failureReason: `Requested image referenced by manifest list: [${parents
      .map((parent) => digestOf(parent))
      .sort()
      .join(', ')}]`,
  });
  const remove = (repository: Repository, ...manifests: Uint8Array[]) =>
    t.registry.images.batchDelete(
      repository,
      manifests.map((manifest) => ({ imageDigest: digestOf(manifest) })),
    );

  test('an index is taken without its members, and served as it is; they are not found', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    await images.put(repository, push(here));
    const refusing = t.another({ sparseManifests: 'refuse' });
    await assert.rejects(refusing.images.put(repository, push(index, ['multi'])), {
      code: 'ReferencedImagesNotFoundException',
      message: new RegExp(`'\\[${digestOf(late)}\\]'`),
    });
    // Here it is as in a registry that was told nothing; layers are required as ever.
    await assert.rejects(images.put(repository, push(imageOf('{}', ['no such']))), {
      code: 'LayersNotFoundException',
    });
    await images.put(repository, push(index, ['multi']));
    const found = await images.find(repository, 'multi', { pull: false });
    assert.deepEqual([found?.digest, found?.mediaType], [digestOf(index), OCI_INDEX]);
    assert.deepEqual(Buffer.from(found?.manifest ?? []), index);
    // The heaviest of the members that are here.
    assert.equal(found?.size, 7);
    assert.equal(await images.find(repository, digestOf(late), { pull: false }), undefined);
    const imageId = { imageDigest: digestOf(late) };
    assert.deepEqual(await images.batchGet(repository, [imageId]), {
      images: [],
      failures: [imageNotFoundFailure(imageId)],
    });
    assert.deepEqual(await remove(repository, here), { imageIds: [], failures: [kept(here, index)] });
    const lying = Buffer.from(index.toString().replace(`"size":${here.byteLength}`, '"size":1'));
    await assert.rejects(images.put(repository, push(lying)), { code: 'ManifestInvalid' });
    await t.checkIntegrity();
  });

  for (const [how, tags] of [
    ['by digest', []],
    ['by tag', ['late']],
  ] as const) {
    test(`a member that comes later, ${how}, is protected from then on, until the last index goes`, async () => {
      const repository = await prepared();
      const { images } = t.registry;
      const other = indexOf([late], { annotations: { of: 'its own' } });
      const outer = indexOf([index]);
      for (const manifest of [outer, index, other]) await images.put(repository, push(manifest));
      assert.equal((await images.find(repository, digestOf(outer), { pull: false }))?.size, 0);
      await images.put(repository, push(late, tags));
      assert.deepEqual((await remove(repository, late)).failures, [kept(late, index, other)]);
      if (tags.length > 0) {
        assert.deepEqual((await images.batchDelete(repository, [{ imageTag: 'late' }])).failures, [
          { ...kept(late, index, other), imageId: { imageTag: 'late' } },
        ]);
      }
      assert.deepEqual((await remove(repository, index)).failures, [kept(index, outer)]);
      await t.checkIntegrity();
      // Its content outlives every lease.
      t.time.now += 100 * 86_400_000;
      await t.registry.collectGarbage({ orphans: true });
      assert.ok((await t.registry.layers.open(repository, digestOf('layer'))) !== undefined);
      assert.deepEqual((await remove(repository, outer, index)).failures, []);
      assert.deepEqual((await remove(repository, late)).failures, [kept(late, other)]);
      assert.deepEqual((await remove(repository, other, late)).failures, []);
      await t.deleteRepository(repository);
    });
  }

  test('what deletes an index, or its repository, ends its waiting', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    await images.put(repository, push(index));
    await remove(repository, index);
    await images.put(repository, push(late));
    assert.deepEqual((await remove(repository, late)).failures, []);
    await images.put(repository, push(index));
    await t.deleteRepository(repository);
    const left = await t.store.read
      .selectFrom('image_child_absent')
      .select('child_digest')
      .where('repository_id', '=', repository.id)
      .execute();
    assert.deepEqual(left, []);
  });

  test('a member that is not what the index said is taken: the index may not keep a digest away', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const lying = Buffer.from(indexOf([late]).toString().replace(`"size":${late.byteLength}`, '"size":1'));
    await images.put(repository, push(lying));
    await images.put(repository, push(late));
    assert.deepEqual((await remove(repository, late)).failures, [kept(late, lying)]);
  });

  test('a member named by sha512 joins when it is pushed by it', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const descriptor = { mediaType: OCI_IMAGE, digest: sha512(late), size: late.byteLength };
    const manifests = [descriptor, { ...descriptor, digest: digestOf(late) }];
    const byBoth = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests }));
    const bySha512 = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [descriptor] }),
    );
    await images.put(repository, push(bySha512));
    await images.put(repository, push(byBoth));
    await images.put(repository, push(late));
    assert.deepEqual((await remove(repository, late)).failures, [kept(late, byBoth)]);
    // Nobody knew until now that it is the same image.
    await images.put(repository, push(late, [], { digest: sha512(late) }));
    assert.deepEqual((await remove(repository, late)).failures, [kept(late, byBoth, bySha512)]);
    await t.checkIntegrity();
  });

  test('an archived member is a member', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    await images.put(repository, push(here));
    const imageId = { imageDigest: digestOf(here) };
    const archive = { repository, imageId, target: 'ARCHIVE', now: t.time.now } as const;
    await t.store.transact('image.setStorageClass', archive);
    await assert.rejects(
      t.another({ sparseManifests: 'refuse' }).images.put(repository, push(indexOf([here]))),
      { code: 'ReferencedImagesNotFoundException' },
    );
    await images.put(repository, push(index));
    assert.equal(await images.find(repository, digestOf(here), { pull: false }), undefined);
    assert.deepEqual((await remove(repository, here)).failures, [kept(here, index)]);
    await images.put(repository, push(here));
    assert.ok((await images.find(repository, digestOf(here), { pull: false })) !== undefined);
    await t.checkIntegrity();
  });

  test('an image is taken without its layers, which are its content once they come', async () => {
    const repository = await prepared();
    const { images, layers } = t.registry;
    const layer = digestOf('late layer') as Digest;
    const image = imageOf('{}', ['layer', 'late layer']);
    await assert.rejects(images.put(repository, push(image)), {
      code: 'LayersNotFoundException',
      message: new RegExp(`'\\[${layer}\\]'`),
    });
    const all = t.another({ sparseManifests: 'all' });
    await all.images.put(repository, push(image, ['v1']));
    assert.equal((await images.find(repository, 'v1', { pull: false }))?.size, 17);
    assert.equal(await layers.open(repository, layer), undefined);
    const other = imageOf('{}', ['layer'], { annotations: { its: 'own' } });
    const lying = Buffer.from(other.toString().replace('"size":5', '"size":4'));
    await assert.rejects(all.images.put(repository, push(lying)), { code: 'ManifestInvalid' });
    assert.equal(await t.upload(repository, 'late layer'), layer);
    assert.equal(await layers.remove(repository, layer), 'referenced');
    t.time.now += 100 * 86_400_000;
    await t.registry.collectGarbage({ orphans: true });
    assert.equal((await (await layers.open(repository, layer))?.bytes())?.toString(), 'late layer');
    await t.checkIntegrity();
    await remove(repository, image);
    assert.equal(await layers.remove(repository, layer), 'removed');
  });

  test('a mount brings what is waited for, under its other names as well', async () => {
    const source = await prepared();
    const repository = await prepared();
    const { layers, uploads } = t.registry;
    const digest = digestOf('named twice') as Digest;
    const other = digestOf('named twice', 'sha512') as Digest;
    const { id } = await uploads.start(source);
    await uploads.append(source, id, streamOf('named twice'), {});
    await uploads.finish(source, id, [digest, other], { api: false });
    const mediaType = 'application/vnd.oci.image.layer.v1.tar';
    const named = [digest, other].map((name) => ({ mediaType, digest: name, size: 11 }));
    const all = t.another({ sparseManifests: 'all' });
    await all.images.put(repository, push(imageOf('{}', [], { layers: named })));
    assert.equal(await layers.mount(repository, source, digest), true);
    assert.equal(await layers.remove(repository, digest), 'referenced');
    await t.checkIntegrity();
  });

  test('a lifecycle run leaves a member that came later alone', async () => {
    const repository = await prepared();
    const { images } = t.registry;
    const { id: repositoryId, account, region, name } = repository;
    const selection = { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber: 1 };
    const rules = [{ rulePriority: 1, selection, action: { type: 'expire' } }];
    const policy = formatLifecyclePolicy(parseLifecyclePolicy(JSON.stringify({ rules })));
    const address = { account, region, name };
    await t.store.transact('lifecycle.put', { address, policy, now: t.time.now });
    await images.put(repository, push(index));
    const children = async () =>
      (await pageLifecycleImages(t.store.read, repositoryId, undefined, 10)).images.map((it) => it.children);
    assert.deepEqual(await children(), [undefined]);
    await images.put(repository, push(late));
    assert.deepEqual(await children(), [undefined, [digestOf(late)]]);
    const pushedAt = (await images.find(repository, digestOf(late), { pull: false }))?.pushedAt ?? 0;
    const group = {
      digest: digestOf(late),
      action: 'EXPIRE',
      status: 'ACTIVE',
      pushedAt,
      tags: [],
      archivedAt: undefined,
      activatedAt: undefined,
      pulls: undefined,
      referrers: [],
      ends: true,
    } as const;
    const applied = await t.store.transact('lifecycle.apply', {
      repositoryId,
      policy,
      groups: [group],
      now: t.time.now,
    });
    assert.deepEqual([applied.current, applied.expired, applied.changed], [true, 0, 1]);
  });

  test('in any order, also at once, a manifest has what is here of what it names and waits for the rest', async () => {
    const { images } = t.another({ sparseManifests: 'all' });
    const some = fc.subarray([0, 1, 2], { minLength: 1 });
    const kind = fc.constantFrom('layers', 'images', 'index');
    const step = fc.record({ parts: some, kind, removed: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 6 }),
        fc.boolean(),
        async (steps, atOnce) => {
          const repository = await t.createRepository(`sparse-${(names += 1)}`);
          const act = async ({ parts, kind, removed }: (typeof steps)[number]): Promise<void> => {
            const layers = parts.map((n) => `layer ${n}`);
            const single = layers.map((layer) => imageOf(layer, [layer]));
            const manifests = kind === 'index' ? [indexOf(single)] : single;
            if (kind !== 'layers' && removed) await remove(repository, ...manifests);
            else if (kind !== 'layers') for (const one of manifests) await images.put(repository, push(one));
            else if (!removed) for (const layer of layers) await t.upload(repository, layer);
            else for (const layer of layers) await t.registry.layers.remove(repository, digestOf(layer));
          };
          if (atOnce) await Promise.all(steps.map(act));
          else for (const one of steps) await act(one);
          await checkEdges(repository);
          await t.deleteRepository(repository);
        },
      ),
      { numRuns: 40 },
    );
    await t.checkIntegrity();
  });

  /** What the rows say of every manifest is what it says itself. */
  async function checkEdges({ id }: Repository): Promise<void> {
    const { read } = t.store;
    const images = await read.selectFrom('image').selectAll().where('repository_id', '=', id).execute();
    const blobs = await read
      .selectFrom('repository_blob')
      .select('digest')
      .where('repository_id', '=', id)
      .execute();
    const present = new Set([...images, ...blobs].map(({ digest }) => digest));
    const wanted = images.flatMap(({ digest, manifest }) => {
      type Named = Readonly<Record<'manifests' | 'layers', { digest: string }[] | undefined>>;
      const { manifests = [], layers = [] } = JSON.parse(Buffer.from(manifest).toString()) as Named;
      return [...manifests, ...layers].map(
        (named) => `${present.has(named.digest)} ${digest} ${named.digest}`,
      );
    });
    const found: string[] = [];
    for (const table of ['image_child', 'image_child_absent'] as const) {
      const rows = await read.selectFrom(table).selectAll().where('repository_id', '=', id).execute();
      for (const row of rows)
        found.push(`${table === 'image_child'} ${row.parent_digest} ${row.child_digest}`);
    }
    for (const table of ['image_blob', 'image_blob_absent'] as const) {
      const rows = await read.selectFrom(table).selectAll().where('repository_id', '=', id).execute();
      for (const row of rows) found.push(`${table === 'image_blob'} ${row.image_digest} ${row.blob_digest}`);
    }
    assert.deepEqual(found.sort(), wanted.sort());
  }
}
