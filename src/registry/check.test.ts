/** Damage made by hand to a real database and real files, and what the check says and does about it. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, open, readdir, rm, truncate, unlink, copyFile } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { findPostgres, type Postgres, startPostgres } from '../../test/postgres.ts';
import { createFileBlobStore } from '../blobs/blobs.ts';
import type { Digest } from '../domain/names.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { openPostgresStore, openSqliteStore, type Store } from '../store/store.ts';
import { checkRegistry, type CheckReport, createRegistry, type Repository } from './registry.ts';
import { digestOf, imageOf, indexOf, push, streamOf } from './testing.ts';

const GRACE_MS = 7_200_000;
const BIG = 'x'.repeat(3_000_000);

type OpenStore = (directory: string) => Promise<Store>;

async function openData(openStore: OpenStore) {
  const directory = await mkdtemp(join(tmpdir(), 'berth-check-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  const blobDirectory = join(directory, 'blobs');
  const openBlobs = () => createFileBlobStore({ directory: blobDirectory, keys });
  const time = { now: Date.UTC(2026, 0, 1) };
  let store = await openStore(directory);
  let blobs = await openBlobs();
  const open = () =>
    createRegistry({ store, blobs, ring: keys, clock: () => time.now, sparseManifests: 'all' });
  let registry = open();
  const createRepository = async (name: string): Promise<Repository> => {
    const address = { account: '000000000000', region: 'us-east-1', name };
    const repository = {
      ...address,
      id: `id-${name}`,
      createdAt: time.now,
      mutability: 'MUTABLE' as const,
      exclusionFilters: [],
      scanOnPush: false,
      encryptionType: 'AES256' as const,
      kmsKey: undefined,
      contentKey: 'default',
      policy: undefined,
    };
    await store.transact('repository.create', { repository, tags: [], repositoriesMax: 10 });
    const found = await registry.findRepository(address);
    assert.ok(found);
    return found;
  };
  return {
    directory,
    time,
    get store() {
      return store;
    },
    get registry() {
      return registry;
    },
    get blobs() {
      return blobs;
    },
    createRepository,
    upload: async (repository: Repository, text: string, digests = [digestOf(text)]): Promise<string> => {
      const { id } = await registry.uploads.start(repository);
      await registry.uploads.append(repository, id, streamOf(text), {});
      return (await registry.uploads.finish(repository, id, digests, { api: false })).digest;
    },
    fileOf: async (digest: string): Promise<string> => {
      const row = await store.read
        .selectFrom('blob')
        .select('storage_key')
        .where('digest', '=', digest)
        .executeTakeFirstOrThrow();
      const key = row.storage_key;
      return join(blobDirectory, key.slice(-1), key.slice(-2, -1), key);
    },
    files: async (): Promise<number> =>
      (await readdir(blobDirectory, { recursive: true, withFileTypes: true })).filter((file) => file.isFile())
        .length,
    /** with a blob store that remembers nothing */
    check: async (repair = false): Promise<CheckReport> => {
      const fresh = await openBlobs();
      try {
        return await checkRegistry({
          store,
          blobs: fresh,
          clock: () => time.now,
          repair,
          trashGraceMs: GRACE_MS,
        });
      } finally {
        await fresh.close();
      }
    },
    /** Writes to the database behind the store's back. */
    alter: async (statement: string): Promise<void> => {
      await registry.close();
      await store.close();
      const database = new DatabaseSync(join(directory, 'berth.db'), { enableForeignKeyConstraints: false });
      database.exec(statement);
      database.close();
      store = await openStore(directory);
      blobs = await openBlobs();
      registry = open();
    },
    async [Symbol.asyncDispose]() {
      await registry.close();
      await blobs.close();
      await store.close();
      await rm(directory, { recursive: true });
    },
  };
}

type Data = Awaited<ReturnType<typeof openData>>;

/** An image in two repositories, below a tagged index in one of them, whose other member is not here. */
async function fill(data: Data) {
  const app = await data.createRepository('team/app');
  const copy = await data.createRepository('team/copy');
  const sha512 = `sha512:${createHash('sha512').update(BIG).digest('hex')}`;
  for (const text of ['{}', 'layer']) await data.upload(app, text);
  await data.upload(app, BIG, [sha512]);
  const image = imageOf('{}', ['layer', BIG]);
  await data.registry.images.put(app, push(image, ['v1', 'latest']));
  await data.registry.images.put(app, push(indexOf([image, imageOf('{}', ['absent'])]), ['multi']));
  for (const text of ['{}', 'layer', BIG]) {
    assert.equal(await data.registry.layers.mount(copy, app, digestOf(text)), true);
  }
  await data.registry.images.put(copy, push(image, ['other']));
  return { app, copy, image, sha512 };
}

const codes = (report: CheckReport) =>
  report.findings.map(({ severity, code, repaired }) => `${severity} ${code}${repaired ? ' repaired' : ''}`);

async function flipBit(path: string, at: number): Promise<void> {
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ 4;
  await file.write(byte, 0, 1, at);
  await file.close();
}

const DAMAGES: readonly (readonly [name: string, code: string, damage: (path: string) => Promise<void>])[] = [
  ['a flipped bit in the middle', 'copy-damaged', (path) => flipBit(path, 1_500_000)],
  ['a flipped bit in the header', 'copy-damaged', (path) => flipBit(path, 20)],
  ['a file cut short', 'copy-damaged', (path) => truncate(path, 2_000_000)],
  ['a file that is gone', 'copy-absent', unlink],
];

function checkTests(openStore: OpenStore): void {
  test('what was pushed is clean', async () => {
    await using data = await openData(openStore);
    const { app } = await fill(data);
    await data.registry.uploads.start(app);
    const report = await data.check();
    assert.deepEqual(report, {
      result: 'clean',
      counts: { copies: 3, bytes: BIG.length + 7, images: 3, tags: 4, uploads: 1, files: 4, trash: 0 },
      findings: [],
      damage: 0,
      warnings: 0,
    });
  });

  for (const [name, code, damage] of DAMAGES) {
    test(`${name}: found, never served, named with who needs it, healed by a push`, async () => {
      await using data = await openData(openStore);
      const { app, copy, sha512 } = await fill(data);
      const digest = digestOf(BIG) as Digest;
      await damage(await data.fileOf(digest));
      const { layers } = data.registry;
      await assert.rejects(async () => (await layers.open(app, digest))?.bytes());

      const report = await data.check();
      assert.deepEqual([report.result, codes(report)], ['damage', [`damage ${code}`]]);
      const [finding] = report.findings;
      assert.equal(finding?.digest, digest);
      const needed = finding.neededBy?.map(({ account, region, repository, tags }) => [
        `${account}/${region}/${repository}`,
        tags.join(' '),
      ]);
      assert.deepEqual(needed?.sort(), [
        ['000000000000/us-east-1/team/app', 'latest v1'],
        ['000000000000/us-east-1/team/app', 'multi'],
        ['000000000000/us-east-1/team/copy', 'other'],
      ]);
      assert.ok(await layers.stat(app, digest), 'a check without repair changes nothing');

      assert.deepEqual(codes(await data.check(true)), [`damage ${code} repaired`]);
      assert.deepEqual(codes(await data.check(true)), [`damage ${code}`]);
      assert.equal(await layers.stat(app, digest), undefined);
      assert.equal(await layers.stat(copy, digest), undefined);
      assert.equal((await layers.availability(app, [digest])).size, 0);
      assert.equal(await layers.mount(copy, app, digest), false);
      // Nor does a sparse manifest wait for it: who pushes one is to push it again.
      await assert.rejects(data.registry.images.put(app, push(imageOf('{}', [BIG]))), {
        code: 'LayersNotFoundException',
      });
      assert.notEqual(await data.registry.images.find(app, 'multi', { pull: false }), undefined);

      await data.upload(copy, BIG);
      for (const repository of [app, copy]) {
        assert.deepEqual(await layers.stat(repository, digest), { digest, size: BIG.length });
        assert.equal((await layers.availability(repository, [digest])).get(digest)?.referenced, true);
        assert.equal((await (await layers.open(repository, digest))?.bytes())?.toString(), BIG);
      }
      assert.equal(await layers.resolve(app, sha512 as Digest), digest);
      await data.registry.collectGarbage({ orphans: false });
      const healed = await data.check();
      assert.deepEqual([healed.result, healed.counts.files, healed.counts.trash], ['clean', 3, 0]);
    });
  }

  test('bytes that come back are offered again', async () => {
    await using data = await openData(openStore);
    const { app } = await fill(data);
    const digest = digestOf('layer');
    const path = await data.fileOf(digest);
    await copyFile(path, join(data.directory, 'aside'));
    await unlink(path);
    assert.deepEqual(codes(await data.check(true)), ['damage copy-absent repaired']);
    await copyFile(join(data.directory, 'aside'), path);
    assert.deepEqual(codes(await data.check()), ['warning copy-recovered']);
    assert.deepEqual(codes(await data.check(true)), ['warning copy-recovered repaired']);
    assert.equal((await data.check()).result, 'clean');
    assert.ok(await data.registry.layers.stat(app, digest));
  });

  test('a stored file no row knows goes to the trash, and later', async () => {
    await using data = await openData(openStore);
    await fill(data);
    const key = '0123456789abcdef0123456789abcdef';
    await data.blobs.create(key, 'default');
    assert.deepEqual(codes(await data.check()), ['warning file-unknown']);
    assert.deepEqual(codes(await data.check(true)), ['warning file-unknown repaired']);
    const after = await data.check();
    assert.deepEqual([after.result, after.counts.trash], ['clean', 1]);
    await data.registry.collectGarbage({ orphans: false });
    assert.equal(await data.files(), 4);
    data.time.now += GRACE_MS;
    await data.registry.collectGarbage({ orphans: false });
    assert.equal(await data.files(), 3);
  });

  test('an upload without its file is ended, unless it is just starting', async () => {
    await using data = await openData(openStore);
    const { app } = await fill(data);
    const { id } = await data.registry.uploads.start(app);
    const row = await data.store.read
      .selectFrom('upload')
      .select('storage_key')
      .where('id', '=', id)
      .executeTakeFirst();
    await data.blobs.delete(row?.storage_key ?? '');
    assert.equal((await data.check()).result, 'clean');
    data.time.now += 60_000;
    assert.deepEqual(codes(await data.check()), ['warning upload-without-file']);
    assert.deepEqual(codes(await data.check(true)), ['warning upload-without-file repaired']);
    assert.equal((await data.check()).result, 'clean');
    await assert.rejects(data.registry.uploads.status(app, id), { code: 'UploadNotFoundException' });
  });
}

describe('check on SQLite', () => {
  const openStore: OpenStore = (directory) => openSqliteStore({ file: join(directory, 'berth.db') });
  checkTests(openStore);

  const ALTERATIONS: readonly (readonly [
    statement: string,
    found: readonly string[],
    repaired: readonly string[],
  ])[] = [
    [
      `update image set manifest = cast('{}' as blob) where media_type like '%manifest%'`,
      ['damage manifest-damaged', 'damage manifest-damaged'],
      ['damage manifest-damaged', 'damage manifest-damaged'],
    ],
    [
      `update image set size = size + 1, subject_digest = 'sha256:0', artifact_type = null where media_type like '%manifest%'`,
      ['damage image-wrong', 'damage image-wrong'],
      [],
    ],
    [
      `update tag set image_digest = 'sha256:0' where name = 'v1'`,
      ['damage foreign-key', 'damage tag-dangling'],
      ['damage foreign-key', 'damage tag-dangling'],
    ],
    [
      `delete from image_blob where blob_digest = '${digestOf('layer')}' and repository_id = 'id-team/app'`,
      ['damage reference-unrecorded'],
      ['damage reference-unrecorded'],
    ],
    [
      `insert into image_blob_absent select * from image_blob where blob_digest = '${digestOf('layer')}' limit 1`,
      ['damage awaited-present'],
      ['damage awaited-present'],
    ],
    ['delete from image_child_absent', ['damage reference-unrecorded'], ['damage reference-unrecorded']],
    [
      `insert into image_child_absent select repository_id, parent_digest, child_digest from image_child`,
      ['damage awaited-present'],
      ['damage awaited-present'],
    ],
    [
      `update repository_blob set size = 6 where digest = '${digestOf('layer')}' and repository_id = 'id-team/app'`,
      ['damage link-wrong'],
      ['damage link-wrong'],
    ],
    [
      `insert into garbage_trash (storage_key, delete_after) select storage_key, 0 from blob limit 1`,
      ['warning bound-in-trash'],
      [],
    ],
    [
      `delete from garbage_review;
       insert into repository_blob select 'id-team/copy', 'sha256:1', storage_key, size, 0 from blob where size = 5`,
      ['damage link-wrong', 'warning link-forgotten'],
      ['damage link-wrong'],
    ],
    [
      `insert into blob values ('00000000000000000000000000000000', '${digestOf('nobody')}', 'default', 6, 0)`,
      ['warning copy-unlinked', 'damage copy-absent'],
      [],
    ],
  ];
  for (const [statement, found, repaired] of ALTERATIONS) {
    test(`rows: ${statement.slice(0, 70).replace(/\s+/g, ' ')}`, async () => {
      await using data = await openData(openStore);
      await fill(data);
      await data.alter(statement);
      assert.deepEqual(codes(await data.check()), found);
      await data.check(true);
      assert.deepEqual(codes(await data.check()), repaired);
    });
  }

  test('reads beside the server that owns the data', async () => {
    await using data = await openData(openStore);
    await fill(data);
    const store = await openSqliteStore({ file: join(data.directory, 'berth.db'), readOnly: true });
    const report = await checkRegistry({
      store,
      blobs: data.blobs,
      clock: () => data.time.now,
      repair: false,
    });
    assert.equal(report.result, 'clean');
    await store.close();
  });
});

const programs = await findPostgres();
if (programs === undefined) {
  process.stdout.write('SKIPPED check on PostgreSQL: no initdb and pg_ctl found\n');
} else {
  describe('check on PostgreSQL', () => {
    let server: Postgres | undefined;
    let databases = 0;
    before(async () => {
      server = await startPostgres(programs);
    });
    after(() => server?.stop());
    checkTests(async () => {
      assert.ok(server !== undefined);
      const url = new URL(server.url);
      const name = `check_${++databases}`;
      const createdb = promisify(execFile)(join(programs, 'createdb'), [
        '-h',
        decodeURIComponent(url.host),
        '-U',
        url.username,
        name,
      ]);
      await createdb;
      return openPostgresStore({ url: server.url.replace(/[^/]*$/, name), poolMax: 4 });
    });
  });
}
