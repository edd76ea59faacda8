import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, it } from 'node:test';
import { Client } from 'pg';
import { findPostgres, startPostgres, type Postgres } from '../../test/postgres.ts';
import { createTotals, openPostgresStore, openSqliteStore, prepareBacklogs, type Store } from './store.ts';

/** More than two pages of everything; the first repository has half of the content, so that it spans pages. */
const SEED = `
  insert into repository (id, account, region, name, created_at, mutability, scan_on_push, encryption_type, content_key)
    with recursive n(i) as (select 0 union all select i + 1 from n where i < 29)
    select 'r' || (100 + i), '000000000000', 'us-east-1', 'app' || i, 0, 'MUTABLE', 0, 'AES256', 'default' from n;
  insert into blob (storage_key, digest, content_key, size, created_at)
    with recursive n(i) as (select 0 union all select i + 1 from n where i < 4999)
    select 'k' || (10000 + i), 'sha256:' || (10000 + i), 'default', i, 0 from n;
  insert into repository_blob (repository_id, digest, storage_key, size, leased_until)
    select case when size < 2500 then 'r100' else 'r' || (101 + size % 29) end, digest, storage_key, size, 0 from blob;
  insert into image (id, repository_id, digest, media_type, manifest, size, pushed_at)
    select 'i' || storage_key, repository_id, digest, 'application/json', cast('{}' as BYTES), 2, 0
    from repository_blob where size < 4100;
  insert into tag (repository_id, name, image_digest, tagged_at)
    select repository_id, 'v1' || digest, digest, 0 from image;
  insert into garbage_review (repository_id, digest, review_after)
    with recursive n(i) as (select 0 union all select i + 1 from n where i < 11999)
    select 'r1', 'sha256:' || i, 1000 + i from n;
  insert into garbage_trash (storage_key, delete_after) values ('x', 5000), ('y', 7000);
  insert into upload (id, repository_id, storage_key, content_key, size, sha256, created_at, updated_at, completed_digest) values
    ('u1', 'r100', 'a', 'default', 0, '', 0, 0, null), ('u2', 'r100', 'b', 'default', 0, '', 0, 0, 'sha256:1');`;

function measuresOf(open: () => Promise<Store>): void {
  let store: Store;
  before(async () => {
    store = await open();
  });
  after(() => store.close());

  it('counts everything, page by page', async () => {
    const totals = createTotals({ store, largestMax: 3, ageMs: 60_000 });
    let read = await totals.read();
    while (read === undefined) read = await totals.read();
    const sizes = Array.from({ length: 5000 }, (_, size) => size);
    const sum = (some: readonly number[]): number => some.reduce((a, b) => a + b, 0);
    const { largest, ...counts } = read;
    assert.deepEqual(counts, {
      repositories: 30,
      images: 4100,
      tags: 4100,
      blobs: 5000,
      blobBytes: sum(sizes),
      uploads: 1,
    });
    const byRepository = new Map([['app0', sum(sizes.slice(0, 2500))]]);
    for (const size of sizes.slice(2500)) {
      const name = `app${1 + (size % 29)}`;
      byRepository.set(name, (byRepository.get(name) ?? 0) + size);
    }
    const expected = [...byRepository].sort(([, a], [, b]) => b - a).slice(0, 3);
    assert.deepEqual(
      largest.map(({ name, bytes }) => [name, bytes]),
      expected,
    );
    assert.equal(await totals.read(), read);
    await totals.stop();
  });

  it('gives up a count under way', async () => {
    const totals = createTotals({ store, largestMax: 3, ageMs: 0 });
    const reading = totals.read();
    await totals.stop();
    assert.equal(await reading, undefined);
    assert.equal(await totals.read(), undefined);
  });

  const looks: [now: number, review: object, trash: object][] = [
    [999, { due: 0, oldestAt: 1000 }, { due: 0, oldestAt: 5000 }],
    [1001, { due: 2, oldestAt: 1000 }, { due: 0, oldestAt: 5000 }],
    [6000, { due: 5001, oldestAt: 1000 }, { due: 1, oldestAt: 5000 }],
    [99_999, { due: 10_000, oldestAt: 1000 }, { due: 2, oldestAt: 5000 }],
  ];
  for (const [now, review, trash] of looks) {
    it(`counts what is due at ${now}`, async () => {
      assert.deepEqual(await prepareBacklogs(store)(now), { review, trash });
    });
  }
}

describe('measures on SQLite', () => {
  let directory: string;
  after(() => rm(directory, { recursive: true }));
  measuresOf(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-measures-'));
    const file = join(directory, 'berth.db');
    await (await openSqliteStore({ file })).close();
    const database = new DatabaseSync(file);
    database.exec(SEED.replace('BYTES', 'blob'));
    database.close();
    return openSqliteStore({ file });
  });
});

const bin = await findPostgres();
if (bin !== undefined) {
  describe('measures on PostgreSQL', () => {
    let server: Postgres;
    after(() => server.stop());
    measuresOf(async () => {
      server = await startPostgres(bin);
      const store = await openPostgresStore({ url: server.url });
      const client = new Client({ connectionString: server.url });
      await client.connect();
      await client.query(SEED.replace('BYTES', 'bytea'));
      await client.end();
      return store;
    });
  });
}
