import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LIMITS } from '../lib/limits.ts';
import type { RegistryOptions } from './registry.ts';
import {
  digestOf,
  imageOf,
  indexOf,
  push,
  streamOf,
  type OpenTestRegistry,
  type TestRegistry,
} from './testing.ts';

/** The tests of the registry's garbage. */
export function garbageTests(open: OpenTestRegistry): void {
  /** Runs `work` on a registry of its own, and checks that nothing dangles afterwards. */
  function registryTest(
    name: string,
    options: Partial<RegistryOptions>,
    work: (t: TestRegistry) => Promise<void>,
  ): void {
    test(name, async () => {
      const t = await open(options);
      try {
        await work(t);
        await t.checkIntegrity();
      } finally {
        await t.close();
      }
    });
  }

  const NOTHING = { uploadsExpired: 0, blobsUnlinked: 0, filesDeleted: 0, orphansTrashed: 0 };
  const image = imageOf('{}', ['layer']);

  registryTest('looked at, collected, pushed: the look keeps the content', {}, async (t) => {
    const repository = await t.createRepository('app');
    await t.upload(repository, '{}');
    await t.upload(repository, 'layer');
    // The lease of the upload is nearly over when a client looks, and over when the collector comes.
    t.time.now += LIMITS.blobLeaseMs - 1;
    for (const text of ['{}', 'layer']) {
      assert.deepEqual(await t.registry.layers.stat(repository, digestOf(text)), {
        digest: digestOf(text),
        size: text.length,
      });
    }
    t.time.now += LIMITS.blobLeaseMs / 2;
    // The rows of the two finished uploads go, the content stays.
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), { ...NOTHING, uploadsExpired: 2 });
    await t.registry.images.put(repository, push(image, ['v1']));
    t.time.now += 10 * LIMITS.blobLeaseMs;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), NOTHING);
    assert.equal(
      (await (await t.registry.layers.open(repository, digestOf('layer')))?.bytes())?.toString(),
      'layer',
    );
  });

  registryTest('content nobody asked for again goes, and its bytes after the grace', {}, async (t) => {
    const repository = await t.createRepository('app');
    const digest = await t.upload(repository, 'layer');
    t.time.now += LIMITS.blobLeaseMs;
    const first = await t.registry.collectGarbage({ orphans: true });
    assert.deepEqual(first, { ...NOTHING, uploadsExpired: 1, blobsUnlinked: 1 });
    assert.equal(await t.registry.layers.stat(repository, digest), undefined);
    await assert.rejects(t.registry.images.put(repository, push(image)), { code: 'LayersNotFoundException' });
    assert.equal(await t.files(), 1);
    t.time.now += LIMITS.trashGraceMs;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), { ...NOTHING, filesDeleted: 1 });
    assert.equal(await t.files(), 0);
  });

  registryTest('uploaded again while the old copy waits in the trash', {}, async (t) => {
    const repository = await t.createRepository('app');
    const digest = await t.upload(repository, 'layer');
    t.time.now += LIMITS.blobLeaseMs;
    await t.registry.collectGarbage({ orphans: false });
    await t.upload(repository, 'layer');
    assert.equal(await t.files(), 2);
    t.time.now += LIMITS.trashGraceMs;
    assert.equal((await t.registry.collectGarbage({ orphans: true })).filesDeleted, 1);
    assert.equal((await (await t.registry.layers.open(repository, digest))?.bytes())?.toString(), 'layer');
  });

  registryTest('uploaded again while the bytes of the old copy are being deleted', {}, async (t) => {
    const repository = await t.createRepository('app');
    const digest = await t.upload(repository, 'layer');
    t.time.now += LIMITS.blobLeaseMs + LIMITS.trashGraceMs;
    const deleting = t.another({
      trashGraceMs: 0,
      blobs: Object.create(t.blobs, {
        delete: {
          value: async (key: string) => {
            await t.upload(repository, 'layer');
            await t.blobs.delete(key);
          },
        },
      }) as typeof t.blobs,
    });
    assert.deepEqual(await deleting.collectGarbage({ orphans: false }), {
      ...NOTHING,
      uploadsExpired: 1,
      blobsUnlinked: 1,
      filesDeleted: 1,
    });
    assert.equal(await t.files(), 1);
    assert.equal((await (await t.registry.layers.open(repository, digest))?.bytes())?.toString(), 'layer');
    await deleting.close();
  });

  registryTest('a file that cannot be deleted keeps no other from it', { trashGraceMs: 0 }, async (t) => {
    const repository = await t.createRepository('app');
    for (const text of ['one', 'two', 'three', 'four']) await t.upload(repository, text);
    const keys = (await t.store.read.selectFrom('blob').select('storage_key').execute()).map(
      (row) => row.storage_key,
    );
    const bad = keys.toSorted()[1];
    t.time.now += LIMITS.blobLeaseMs;
    const sick = t.another({
      blobs: Object.create(t.blobs, {
        delete: {
          value: async (key: string) => {
            if (key === bad) throw Object.assign(new Error('EIO: i/o error, unlink'), { code: 'EIO' });
            await t.blobs.delete(key);
          },
        },
      }) as typeof t.blobs,
    });
    await assert.rejects(sick.collectGarbage({ orphans: false }), { code: 'EIO' });
    assert.equal(await t.files(), 1);
    await sick.close();
    const left = await t.store.read.selectFrom('garbage_trash').select('storage_key').execute();
    assert.deepEqual(left, [{ storage_key: bad }]);
    t.time.now += 3_600_000;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: false }), { ...NOTHING, filesDeleted: 1 });
  });

  registryTest('a round that is to end leaves the rest to the next', { trashGraceMs: 0 }, async (t) => {
    const repository = await t.createRepository('app');
    for (const text of ['one', 'two']) await t.upload(repository, text);
    t.time.now += LIMITS.blobLeaseMs;
    const stopping = new AbortController();
    const interrupted = t.another({
      blobs: Object.create(t.blobs, {
        delete: {
          value: async (key: string) => {
            stopping.abort();
            await t.blobs.delete(key);
          },
        },
      }) as typeof t.blobs,
    });
    const { signal } = stopping;
    assert.equal((await interrupted.collectGarbage({ orphans: false, signal })).filesDeleted, 1);
    assert.deepEqual(await interrupted.collectGarbage({ orphans: true, signal }), NOTHING);
    await interrupted.close();
    t.time.now += 3_600_000;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: false }), { ...NOTHING, filesDeleted: 1 });
  });

  registryTest('a download that has begun goes on to its end', { trashGraceMs: 0 }, async (t) => {
    const repository = await t.createRepository('app');
    const bytes = Buffer.alloc(3_000_000, 'layer ');
    const digest = await t.upload(repository, bytes);
    const reader = await t.registry.layers.open(repository, digest);
    t.time.now += LIMITS.blobLeaseMs;
    assert.equal((await t.registry.collectGarbage({ orphans: false })).filesDeleted, 1);
    assert.equal(await t.registry.layers.open(repository, digest), undefined);
    assert.ok((await reader?.bytes())?.equals(bytes));
  });

  registryTest('nothing is left after everything was deleted and collected', {}, async (t) => {
    const one = await t.createRepository('one');
    const two = await t.createRepository('two');
    const index = indexOf([image]);
    for (const repository of [one, two]) {
      for (const text of ['{}', 'layer', 'loose']) await t.upload(repository, text);
      await t.registry.images.put(repository, push(image));
      await t.registry.images.put(repository, push(index, ['v1']));
    }
    const open = await t.registry.uploads.start(one);
    await t.registry.uploads.append(one, open.id, streamOf('half'), {});
    const other = await t.registry.uploads.start(two);
    await t.registry.uploads.append(two, other.id, streamOf('half'), {});
    await t.deleteRepository(one);
    await t.checkIntegrity();
    await t.registry.images.batchDelete(two, [{ imageTag: 'v1' }, { imageDigest: digestOf(image) }]);
    t.time.now += LIMITS.blobLeaseMs + LIMITS.trashGraceMs;
    await t.registry.collectGarbage({ orphans: true });
    t.time.now += LIMITS.trashGraceMs;
    await t.registry.collectGarbage({ orphans: true });
    assert.equal(await t.files(), 0);
    for (const table of [
      'blob',
      'repository_blob',
      'upload',
      'garbage_review',
      'garbage_trash',
      'image',
    ] as const) {
      const { count } = await t.store.read
        .selectFrom(table)
        .select((q) => q.fn.countAll<number>().as('count'))
        .executeTakeFirstOrThrow();
      assert.equal(count, 0, table);
    }
  });

  registryTest('abandoned uploads expire; those being written do not', {}, async (t) => {
    const repository = await t.createRepository('app');
    const idle = await t.registry.uploads.start(repository);
    await t.registry.uploads.append(repository, idle.id, streamOf('half'), {});
    t.time.now += LIMITS.uploadIdleMs - 1;
    const fresh = await t.registry.uploads.start(repository);
    t.time.now += 1;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), {
      ...NOTHING,
      uploadsExpired: 1,
      filesDeleted: 1,
    });
    await assert.rejects(t.registry.uploads.status(repository, idle.id), { code: 'UploadNotFoundException' });
    assert.deepEqual(await t.registry.uploads.status(repository, fresh.id), { id: fresh.id, size: 0 });
  });

  registryTest('files no row knows are trashed once they are old', { orphanAgeMs: 1000 }, async (t) => {
    // Files have the time of the machine.
    t.time.now = Date.now();
    const repository = await t.createRepository('app');
    const { id } = await t.registry.uploads.start(repository);
    await t.registry.uploads.append(repository, id, streamOf('known'), {});
    await t.upload(repository, 'layer');
    await t.blobs.create('0123456789abcdef0123456789abcdef', 'default');
    t.time.now = Date.now() - 60_000;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), NOTHING);
    t.time.now = Date.now() + 60_000;
    assert.deepEqual(await t.registry.collectGarbage({ orphans: false }), NOTHING);
    await t.registry.uploads.append(repository, id, streamOf('!'), {});
    assert.deepEqual(await t.registry.collectGarbage({ orphans: true }), {
      ...NOTHING,
      filesDeleted: 1,
      orphansTrashed: 1,
    });
    await t.registry.uploads.finish(repository, id, [digestOf('known!')], { api: false });
  });

  registryTest(
    'shared layers pushed to one repository while another is deleted',
    { trashGraceMs: 0 },
    async (t) => {
      for (let round = 0; round < 5; round++) {
        const dying = await t.createRepository(`dying-${round}`);
        const living = await t.createRepository(`living-${round}`);
        for (const text of ['{}', 'layer']) await t.upload(dying, text);
        await t.registry.images.put(dying, push(image, ['v1']));
        const pushed = (async () => {
          for (const text of ['{}', 'layer']) {
            const mounted = await t.registry.layers.mount(living, dying, digestOf(text)).catch(() => false);
            if (!mounted) await t.upload(living, text);
          }
          await t.registry.images.put(living, push(image, ['v1']));
        })();
        await Promise.all([
          pushed,
          t.deleteRepository(dying),
          t.registry.collectGarbage({ orphans: true }),
          t.registry.collectGarbage({ orphans: true }),
        ]);
        await t.registry.collectGarbage({ orphans: true });
        await t.checkIntegrity();
        assert.equal((await t.registry.images.find(living, 'v1', { pull: false }))?.digest, digestOf(image));
      }
    },
  );

  /** Pushes as clients do: look, upload what is missing, put the manifest, and again when something was missing then. */
  async function pushImage(t: TestRegistry, name: string, texts: readonly string[]): Promise<void> {
    const repository = await t.createRepository(name);
    const [config = '', ...layers] = texts;
    for (let attempt = 0; ; attempt++) {
      for (const text of texts) {
        if ((await t.registry.layers.stat(repository, digestOf(text))) === undefined)
          await t.upload(repository, text);
      }
      try {
        await t.registry.images.put(repository, push(imageOf(config, layers), ['v1']));
        return;
      } catch (error) {
        if ((error as { code?: string }).code !== 'LayersNotFoundException' || attempt > 50) throw error;
      }
    }
  }

  registryTest('much garbage goes although others never stop writing', {}, async (t) => {
    const old = await t.createRepository('old');
    const texts = Array.from({ length: 60 }, (_, i) => `old ${i}`);
    for (let at = 0; at < texts.length; at += 8)
      await Promise.all(texts.slice(at, at + 8).map((text) => t.upload(old, text)));
    t.time.now += LIMITS.blobLeaseMs;
    const collected = new AbortController();
    const write = async (writer: number): Promise<void> => {
      for (let i = 0; !collected.signal.aborted; i++)
        await pushImage(t, `app-${writer}-${i}`, ['{}', 'base', `own ${writer} ${i}`]);
    };
    const writing = Promise.all(Array.from({ length: 8 }, (_, writer) => write(writer)));
    try {
      assert.equal((await t.registry.collectGarbage({ orphans: false })).blobsUnlinked, texts.length);
    } finally {
      collected.abort();
      await writing;
    }
  });

  for (const [name, pushes, options] of [
    ['without leases and grace', 100, { blobLeaseMs: 0, trashGraceMs: 0 }],
    ['with leases', 16, { trashGraceMs: 0 }],
  ] as const) {
    registryTest(`the collector runs during pushes of one base image, ${name}`, options, async (t) => {
      const texts = ['{}', 'base one', 'base two', 'base three'];
      const pushed = new AbortController();
      const collecting = (async () => {
        while (!pushed.signal.aborted) await t.registry.collectGarbage({ orphans: true });
      })();
      try {
        await Promise.all(
          Array.from({ length: pushes }, (_, i) => pushImage(t, `app-${i}`, [...texts, `own ${i}`])),
        );
      } finally {
        pushed.abort();
        await collecting;
      }
      await t.checkIntegrity();
      await t.registry.collectGarbage({ orphans: true });
      // Each own layer, and one copy of the base.
      assert.equal(await t.files(), pushes + texts.length);
    });
  }
}
