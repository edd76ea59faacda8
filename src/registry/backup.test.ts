/** What a backup does when content is collected under its hands, and that it leaves out no table. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createFileBlobStore } from '../blobs/blobs.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { listTables, openSqliteStore } from '../store/store.ts';
import { blobRowOf, copyBlob } from './backup-copy.ts';
import { createBackup, createRegistry, type Repository, RESTORE_MARKER, restoreBackup } from './registry.ts';
import { digestOf, imageOf, indexOf, push, streamOf } from './testing.ts';

async function openData() {
  const place = await mkdtemp(join(tmpdir(), 'berth-backup-'));
  const data = join(place, 'data');
  const keys = await openKeyRing(join(place, 'keys'));
  const blobs = await createFileBlobStore({ directory: join(place, 'blobs'), keys });
  const file = join(place, 'berth.db');
  const store = await openSqliteStore({ file });
  const reader = await openSqliteStore({ file, readOnly: true });
  const time = { now: Date.UTC(2026, 0, 1) };
  const registry = createRegistry({
    store,
    blobs,
    ring: keys,
    clock: () => time.now,
    trashGraceMs: 0,
    sparseManifests: 'all',
  });
  const address = { account: '000000000000', region: 'us-east-1', name: 'app' };
  const row = {
    ...address,
    id: 'app',
    createdAt: time.now,
    mutability: 'MUTABLE' as const,
    exclusionFilters: [],
    scanOnPush: false,
    encryptionType: 'AES256' as const,
    kmsKey: undefined,
    contentKey: 'default',
    policy: undefined,
  };
  await store.transact('repository.create', { repository: row, tags: [], repositoriesMax: 10 });
  const repository = (await registry.findRepository(address)) as Repository;
  for (let count = 0; count < 8; count++) {
    for (const text of [`{"n":${count}}`, `layer ${count}`]) {
      const { id } = await registry.uploads.start(repository);
      await registry.uploads.append(repository, id, streamOf(text), {});
      await registry.uploads.finish(repository, id, [digestOf(text)], { api: false });
    }
    await registry.images.put(repository, push(imageOf(`{"n":${count}}`, [`layer ${count}`]), [`t${count}`]));
  }
  return {
    place,
    data,
    keys,
    blobs,
    store,
    reader,
    registry,
    repository,
    /** Deletes the image of a tag, and has its bytes collected. */
    collect: async (tag: string): Promise<void> => {
      await registry.images.batchDelete(repository, [{ imageTag: tag }]);
      time.now += 2 * 86_400_000;
      await registry.collectGarbage({ orphans: false });
    },
    backUp: (open: typeof blobs.open, onRetry: (reason: string) => void) =>
      createBackup({
        store: reader,
        blobs: { open },
        data: place,
        directory: join(place, 'backups'),
        withoutKeys: false,
        clock: () => time.now++,
        berthVersion: '0.0.0',
        onRetry,
      }),
    async [Symbol.asyncDispose]() {
      await reader.close();
      await registry.close();
      await blobs.close();
      await store.close();
      await rm(place, { recursive: true });
    },
  };
}

test('content collected after the snapshot makes it take a new one, and copies nothing twice', async () => {
  await using data = await openData();
  const opened: string[] = [];
  const reasons: string[] = [];
  let collected: Promise<void> | undefined;
  const report = await data.backUp(
    async (key, ...range) => {
      await (collected ??= data.collect('t7'));
      opened.push(key);
      return data.blobs.open(key, ...range);
    },
    (reason) => reasons.push(reason),
  );
  assert.equal(report.retries, 1);
  assert.match(reasons.join(), /^sha256:\w{64} was collected while the backup ran$/);
  assert.deepEqual([report.manifest.blobs.count, report.manifest.lost], [14, []]);
  const images = report.manifest.tables.find(({ name }) => name === 'image');
  assert.equal(images?.rows, 7);
  assert.equal(report.copied, 14);
  const again = opened.filter((key, index) => opened.indexOf(key) !== index);
  assert.deepEqual(again, []);
  assert.deepEqual(await readdir(join(data.place, 'backups', 'snapshots')), [report.manifest.id]);
});

test('every table is in a backup but those that are about bytes that are not', async () => {
  await using data = await openData();
  const tables = await listTables(data.store);
  for (const table of ['account', 'revision', 'image', 'tag', 'blob', 'event', 'job', 'iam_access_key'])
    assert.ok(tables.includes(table), table);
  for (const table of ['migration', 'upload', 'garbage_trash']) assert.ok(!tables.includes(table), table);
  assert.ok(tables.indexOf('repository') < tables.indexOf('repository_blob'));
  for (const table of ['image_child', 'image_child_absent', 'image_blob_absent'])
    assert.ok(tables.indexOf('image') < tables.indexOf(table), table);
});

test('a sparse index comes back, and what it waits for', async () => {
  await using data = await openData();
  const member = imageOf('{"n":1}', [], { annotations: { pushed: 'later' } });
  const index = indexOf([imageOf('{"n":0}', ['layer 0']), member]);
  await data.registry.images.put(data.repository, push(index, ['multi']));
  await data.backUp(data.blobs.open.bind(data.blobs), () => {});
  const target = join(data.place, 'restored');
  await restoreBackup({ directory: join(data.place, 'backups'), data: target, database: '' });
  const ring = await openKeyRing(join(target, 'keys'));
  const blobs = await createFileBlobStore({ directory: join(target, 'blobs'), keys: ring });
  const store = await openSqliteStore({ file: join(target, 'berth.db') });
  const { images, close } = createRegistry({ store, blobs, ring, clock: Date.now });
  const found = await images.find(data.repository, 'multi', { pull: false });
  assert.deepEqual(Buffer.from(found?.manifest ?? []), index);
  const imageDigest = digestOf(member);
  assert.equal(await images.find(data.repository, imageDigest, { pull: false }), undefined);
  await images.put(data.repository, push(member));
  const { failures } = await images.batchDelete(data.repository, [{ imageDigest }]);
  assert.equal(failures[0]?.failureCode, 'ImageReferencedByManifestList');
  await close();
  await store.close();
  await blobs.close();
});

test('a copy under a digest it does not have is refused and leaves nothing', async () => {
  await using data = await openData();
  const target = await createFileBlobStore({ directory: join(data.place, 'target'), keys: data.keys });
  const row = await data.store.read.selectFrom('blob').selectAll().limit(1).executeTakeFirstOrThrow();
  const blob = { ...blobRowOf(row), digest: digestOf('something else') };
  await assert.rejects(copyBlob(data.blobs, target, blob), { name: 'CopyUnreadableError', absent: false });
  assert.deepEqual(await Array.fromAsync(target.list()), []);
  assert.equal(await copyBlob(data.blobs, target, blobRowOf(row)), true);
  assert.equal(await copyBlob(data.blobs, target, blobRowOf(row)), false);
  await target.close();
});

test('a restore that was broken off, nobody knows which, is not taken for none', async () => {
  await using data = await openData();
  await data.backUp(data.blobs.open.bind(data.blobs), () => {});
  const target = join(data.place, 'restored');
  const marker = join(target, RESTORE_MARKER);
  const restore = () => restoreBackup({ directory: join(data.place, 'backups'), data: target, database: '' });
  for (const content of ['', '{"snap', '{}', '{"snapshot":7}']) {
    await mkdir(target, { recursive: true });
    await writeFile(marker, content);
    await assert.rejects(restore(), /a restore was broken off here, but which one .* does not say/);
    assert.deepEqual(await readdir(target), [RESTORE_MARKER]);
  }
  await rm(marker);
  await mkdir(marker);
  await assert.rejects(restore(), /does not say \(EISDIR/);
  await rm(marker, { recursive: true });
  assert.equal((await restore()).copies, 16);
});
