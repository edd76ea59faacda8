/** What garbage collection must do in every store: the database's part of it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { knownStorageKeys } from '../../src/store/store.ts';
import { blob, content, image, link, NOW, repository, upload } from './store-rows.ts';
import type { Context } from './store.ts';
import type { Row, Table } from './transactions.ts';

const GRACE_MS = 7_200_000;
const NOTHING = { reviewed: 0, unlinked: 0, trashed: 0, postponed: 0 };

interface GarbageCase {
  name: string;
  rows: [Table, Row][];
  result: Partial<typeof NOTHING>;
  /** what is left, as `repository digest`, storage keys, and `[key, time]` */
  linked: string[];
  blobs: string[];
  reviews: number[];
  trash: [string, number][];
}

const REVIEW: [Table, Row] = ['garbage_review', { repository_id: 'r1', digest: 'd1', review_after: NOW }];
const REFERENCE: [Table, Row][] = [
  image('r1', 'm1'),
  ['image_blob', { repository_id: 'r1', image_digest: 'm1', blob_digest: 'd1', media_type: 't' }],
];

const GARBAGE_CASES: readonly GarbageCase[] = [
  {
    name: 'content under lease is looked at again when the lease ends',
    rows: [...content('r1', 'd1', 'k1', NOW + 1), REVIEW],
    result: { reviewed: 1, postponed: 1 },
    linked: ['r1 d1'],
    blobs: ['k1'],
    reviews: [NOW + 1],
    trash: [],
  },
  {
    name: 'content nobody refers to goes when its lease is over',
    rows: [...content('r1', 'd1', 'k1', NOW), REVIEW],
    result: { reviewed: 1, unlinked: 1, trashed: 1 },
    linked: [],
    blobs: [],
    reviews: [],
    trash: [['k1', NOW + GRACE_MS]],
  },
  {
    name: 'content an image refers to stays, lease or not',
    rows: [...content('r1', 'd1', 'k1', 0), ...REFERENCE, REVIEW],
    result: { reviewed: 1 },
    linked: ['r1 d1'],
    blobs: ['k1'],
    reviews: [],
    trash: [],
  },
  {
    name: 'a stored copy another repository has stays',
    rows: [...content('r1', 'd1', 'k1', 0), repository('r2', 'other'), link('r2', 'd1', 'k1', 0), REVIEW],
    result: { reviewed: 1, unlinked: 1 },
    linked: ['r2 d1'],
    blobs: ['k1'],
    reviews: [],
    trash: [],
  },
  {
    name: 'the same content under another key is another copy',
    rows: [
      ...content('r1', 'd1', 'k1', 0),
      repository('r2', 'other'),
      blob('d1', 'k2', 'other-key'),
      link('r2', 'd1', 'k2', 0),
      REVIEW,
    ],
    result: { reviewed: 1, unlinked: 1, trashed: 1 },
    linked: ['r2 d1'],
    blobs: ['k2'],
    reviews: [],
    trash: [['k1', NOW + GRACE_MS]],
  },
  {
    name: 'a reference in another repository does not hold the link in this one',
    rows: [
      ...content('r1', 'd1', 'k1', 0),
      ...REFERENCE,
      repository('r2', 'other'),
      link('r2', 'd1', 'k1', 0),
      ['garbage_review', { repository_id: 'r2', digest: 'd1', review_after: NOW }],
    ],
    result: { reviewed: 1, unlinked: 1 },
    linked: ['r1 d1'],
    blobs: ['k1'],
    reviews: [],
    trash: [],
  },
  {
    name: 'a review of content that is gone is dropped',
    rows: [REVIEW],
    result: { reviewed: 1 },
    linked: [],
    blobs: [],
    reviews: [],
    trash: [],
  },
  {
    name: 'a review that is not due waits',
    rows: [
      ...content('r1', 'd1', 'k1', 0),
      ['garbage_review', { repository_id: 'r1', digest: 'd1', review_after: NOW + 1 }],
    ],
    result: {},
    linked: ['r1 d1'],
    blobs: ['k1'],
    reviews: [NOW + 1],
    trash: [],
  },
];

export function garbageTests(context: () => Context): void {
  const review = (limit = 100, now = NOW) =>
    context().store.transact('reviewGarbage', { now, limit, trashGraceMs: GRACE_MS });
  const trashRows = async (): Promise<[string, number][]> => {
    const rows = await context()
      .store.read.selectFrom('garbage_trash')
      .selectAll()
      .orderBy('storage_key')
      .execute();
    return rows.map((row) => [row.storage_key, row.delete_after]);
  };

  for (const example of GARBAGE_CASES)
    test(`garbage: ${example.name}`, async () => {
      const { store, insert } = context();
      await insert(...example.rows);
      assert.deepEqual(await review(), { ...NOTHING, ...example.result });
      const links = await store.read
        .selectFrom('repository_blob')
        .selectAll()
        .orderBy('repository_id')
        .execute();
      const blobs = await store.read
        .selectFrom('blob')
        .select('storage_key')
        .orderBy('storage_key')
        .execute();
      const reviews = await store.read.selectFrom('garbage_review').select('review_after').execute();
      assert.deepEqual(
        links.map((row) => `${row.repository_id} ${row.digest}`),
        example.linked,
      );
      assert.deepEqual(
        blobs.map((row) => row.storage_key),
        example.blobs,
      );
      assert.deepEqual(
        reviews.map((row) => row.review_after),
        example.reviews,
      );
      assert.deepEqual(await trashRows(), example.trash);
    });

  test('garbage: a call looks at no more than its limit, oldest first', async () => {
    const { store, insert } = context();
    const due = (digest: string, ageMs: number): [Table, Row] => [
      'garbage_review',
      { repository_id: 'r1', digest, review_after: NOW - ageMs },
    ];
    await insert(due('new', 1), due('old', 3), due('middle', 2));
    assert.equal((await review(2)).reviewed, 2);
    const left = await store.read.selectFrom('garbage_review').select('digest').execute();
    assert.deepEqual(left, [{ digest: 'new' }]);
    assert.equal((await review(2)).reviewed, 1);
    assert.equal((await review(2)).reviewed, 0);
  });

  test('garbage: content uploaded again while the old copy is in the trash is a new copy', async () => {
    const { store, insert } = context();
    await insert(...content('r1', 'd1', 'k1', 0), REVIEW);
    await review();
    await insert(blob('d1', 'k2'), link('r1', 'd1', 'k2', NOW + 5), REVIEW);
    assert.deepEqual(await store.transact('takeTrash', { now: NOW + GRACE_MS, limit: 10 }), ['k1']);
    assert.equal((await review()).postponed, 1);
    const links = await store.read.selectFrom('repository_blob').select('storage_key').execute();
    assert.deepEqual(links, [{ storage_key: 'k2' }]);
  });

  test('garbage: trash is handed out after its grace, oldest first, and again unless forgotten', async () => {
    const { store } = context();
    const take = (now: number, limit = 10) => store.transact('takeTrash', { now, limit });
    await store.transact('trashStorageKeys', { storageKeys: ['b', 'a'], deleteAfter: NOW + 10 });
    assert.deepEqual(
      await store.transact('trashStorageKeys', { storageKeys: ['b', 'c'], deleteAfter: NOW + 5 }),
      { trashed: 1 },
    );
    assert.deepEqual(await take(NOW + 4), []);
    assert.deepEqual(await take(NOW + 10, 2), ['c', 'a']);
    assert.deepEqual(await take(NOW + 10), ['b']);
    assert.deepEqual(await take(NOW + 10), []);
    await store.transact('forgetTrash', { storageKeys: ['a', 'c', 'unknown'] });
    assert.deepEqual(await take(NOW + 10 + 600_000), ['b']);
    await store.transact('forgetTrash', { storageKeys: ['b'] });
    assert.deepEqual(await trashRows(), []);
  });

  test('garbage: a key that a blob binds never gets into the trash', async () => {
    const { store, insert } = context();
    await insert(...content('r1', 'd1', 'k1', 0));
    const trashed = await store.transact('trashStorageKeys', { storageKeys: ['k1', 'k2'], deleteAfter: NOW });
    assert.deepEqual(trashed, { trashed: 1 });
    assert.deepEqual(await trashRows(), [['k2', NOW]]);
  });

  test('garbage: uploads that nobody continues expire, and their bytes with them', async () => {
    const { store, insert } = context();
    const idle = { updated_at: NOW - 1000 };
    await insert(
      ...content('r1', 'd1', 'k-done', 0),
      upload('idle', 'k-idle', idle),
      upload('fresh', 'k-fresh', { updated_at: NOW - 999 }),
      upload('written', 'k-written', { ...idle, writer: 'w', writer_until: NOW + 1 }),
      upload('abandoned', 'k-abandoned', { ...idle, writer: 'w', writer_until: NOW }),
      upload('done', 'k-done', { ...idle, completed_digest: 'd1' }),
    );
    const expire = (limit: number) => store.transact('expireUploads', { now: NOW, idleMs: 1000, limit });
    assert.deepEqual(await expire(10), { expired: 3, trashed: 2 });
    assert.deepEqual(await expire(10), { expired: 0, trashed: 0 });
    const left = await store.read.selectFrom('upload').select('id').orderBy('id').execute();
    assert.deepEqual(left, [{ id: 'fresh' }, { id: 'written' }]);
    assert.deepEqual(await trashRows(), [
      ['k-abandoned', NOW],
      ['k-idle', NOW],
    ]);
  });

  test('uploads: those of the repository that are not finished count against its quota', async () => {
    const { store, insert } = context();
    await insert(
      ...content('r1', 'd1', 'k-done', 0),
      repository('r2', 'r2'),
      upload('u1', 'k-u1'),
      upload('u2', 'k-u2', { writer: 'w', writer_until: NOW + 1 }),
      upload('done', 'k-done', { completed_digest: 'd1' }),
      upload('other', 'k-other', { repository_id: 'r2' }),
    );
    const begin = (id: string, uploadsMax: number | undefined) =>
      store.transact('upload.start', {
        upload: { id, repositoryId: 'r1', repositoryName: 'r1', account: '111111111111' },
        storageKey: `k-${id}`,
        sha256: '',
        now: NOW,
        uploadsMax,
      });
    await assert.rejects(begin('u3', 2), { code: 'LimitExceededException' });
    assert.deepEqual(await begin('u3', 3), { contentKey: 'default', uploads: 3 });
    assert.deepEqual(await begin('u4', undefined), { contentKey: 'default', uploads: undefined });
    await assert.rejects(begin('u5', 4), { code: 'LimitExceededException' });
  });

  test('garbage: keys that any row knows are not orphans', async () => {
    const { store, insert } = context();
    await insert(...content('r1', 'd1', 'k1', 0), upload('u1', 'k2'));
    await store.transact('trashStorageKeys', { storageKeys: ['k3'], deleteAfter: NOW });
    const orphans = Array.from({ length: 1200 }, (_, i) => `orphan${i}`);
    const known = await knownStorageKeys(store.read, ['k1', ...orphans, 'k2', 'k3']);
    assert.deepEqual([...known].sort(), ['k1', 'k2', 'k3']);
    assert.equal((await knownStorageKeys(store.read, [])).size, 0);
  });
}
