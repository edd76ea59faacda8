import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { CompiledQuery } from 'kysely';
import { pageEntries, pageImages, pageTags, selectEntries, selectImages, selectTags } from './listings.ts';
import { connect, queryBuilder } from './sqlite.ts';
import { pageRepositories, selectRepositories } from './repositories.ts';
import { openSqliteStore, type Reader } from './store.ts';

const NOW = Date.UTC(2026, 10, 24);
const REGISTRY = { account: '000000000000', region: 'eu-west-1' };
const digestOf = (i: number) => `sha256:${i.toString(16).padStart(64, '0')}`;

/** A database with a repository `big` of `images` images, every tenth of them tagged. */
async function open(images: number) {
  const directory = await mkdtemp(join(tmpdir(), 'berth-listings-'));
  const file = join(directory, 'berth.db');
  // Made and closed for the schema; the rows then come in bulk, which no transaction of the store does.
  await (await openSqliteStore({ file })).close();
  const read = queryBuilder(connect(file, false));
  await read.transaction().execute(async (tx) => {
    const repository = {
      ...REGISTRY,
      created_at: NOW,
      mutability: 'MUTABLE',
      scan_on_push: 0,
      encryption_type: 'AES256',
      content_key: 'default',
    } as const;
    for (const name of ['app', 'big', 'zoo'])
      await tx
        .insertInto('repository')
        .values({ ...repository, id: name, name })
        .execute();
    for (let i = 0; i < images; i++) {
      await tx
        .insertInto('image')
        .values({
          id: `${i}`,
          repository_id: 'big',
          digest: digestOf(i),
          media_type: 'x',
          manifest: new Uint8Array(1),
          size: 1,
          pushed_at: NOW + Math.floor(i / 3),
        })
        .execute();
      if (i % 10 === 0) {
        await tx
          .insertInto('tag')
          .values({ repository_id: 'big', name: `t${i}`, image_digest: digestOf(i), tagged_at: NOW })
          .execute();
      }
    }
  });
  return {
    read,
    async [Symbol.asyncDispose]() {
      await read.destroy();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function planOf(read: Reader, query: { compile(): CompiledQuery }): Promise<string[]> {
  const { sql, parameters } = query.compile();
  const { rows } = await read.executeQuery<{ detail: string }>(
    CompiledQuery.raw(`explain query plan ${sql}`, [...parameters]),
  );
  return rows.map(({ detail }) => detail);
}

test('every page is a range of an index', async () => {
  await using database = await open(30);
  const { read } = database;
  const image = { pushedAt: NOW, digest: digestOf(7) };
  const [first, later] = [undefined, image].map((after) => ({ after, tagged: undefined, limit: 10 }));
  const queries = {
    repositories: selectRepositories(read, REGISTRY, undefined, 10),
    repositoriesAfter: selectRepositories(read, REGISTRY, 'app', 10),
    images: selectImages(read, 'big', first ?? assert.fail()),
    imagesAfter: selectImages(read, 'big', later ?? assert.fail()),
    untagged: selectImages(
      read,
      'big',
      { after: image, tagged: false, limit: 10 },
      { ...image, pushedAt: 0 },
    ),
    active: selectImages(read, 'big', { after: image, tagged: undefined, status: 'ACTIVE', limit: 10 }),
    archived: selectImages(read, 'big', { after: image, tagged: undefined, status: 'ARCHIVED', limit: 10 }),
    entries: selectEntries(read, 'big', undefined, 10),
    entriesArchived: selectEntries(read, 'big', { ...image, tag: 'x' }, 10, 'ARCHIVED'),
    entriesAfter: selectEntries(read, 'big', { ...image, tag: 'x' }, 10),
    tags: selectTags(read, 'big', undefined, 10),
    tagsAfter: selectTags(read, 'big', 't1', 10),
  };
  for (const [name, query] of Object.entries(queries)) {
    const plan = await planOf(read, query);
    assert.ok(
      plan.every((step) => !step.startsWith('SCAN')),
      `${name}: ${plan.join('; ')}`,
    );
    // Sorting the tags of one image is fine, sorting the rows of a page is not.
    const sorts = plan.filter((step) => step.includes('TEMP B-TREE'));
    assert.ok(
      sorts.every((step) => step.includes('LAST TERM')),
      `${name}: ${plan.join('; ')}`,
    );
    if (name.endsWith('After'))
      assert.match(plan[0] ?? '', /(pushed_at|name)[<>]\?/, `${name}: ${plan.join('; ')}`);
  }
});

test('a filter that selects little ends its pages early, and loses nothing', async () => {
  await using database = await open(12_003);
  const { read } = database;
  for (const tagged of [true, false]) {
    const found: string[] = [];
    let pages = 0;
    let after: { pushedAt: number; digest: string } | undefined;
    do {
      const page = await pageImages(read, 'big', { after, tagged, limit: 1000 });
      found.push(...page.images.map(({ digest }) => digest));
      after = page.next;
      pages++;
    } while (after !== undefined);
    const wanted = Array.from({ length: 12_003 }, (_, i) => i).filter((i) => (i % 10 === 0) === tagged);
    assert.deepEqual([...found].sort(), wanted.map(digestOf));
    assert.equal(pages, tagged ? 3 : 11);
  }
});

test('pages by status: short ones where most images are of another, and nothing lost', async () => {
  await using database = await open(12_003);
  const { read } = database;
  // Active are only the first and the last hundred.
  await read
    .updateTable('image')
    .set({ status: 'ARCHIVED' })
    .where('pushed_at', '>', NOW + 32)
    .where('pushed_at', '<', NOW + 3968)
    .execute();
  const all = Array.from({ length: 12_003 }, (_, i) => i);
  const isActive = (i: number) => Math.floor(i / 3) <= 32 || Math.floor(i / 3) >= 3968;
  for (const status of ['ACTIVE', 'ARCHIVED', undefined] as const) {
    const wanted = all.filter((i) => status === undefined || isActive(i) === (status === 'ACTIVE'));
    const images: string[] = [];
    let pages = 0;
    let after: { pushedAt: number; digest: string } | undefined;
    do {
      const page = await pageImages(read, 'big', { after, tagged: undefined, status, limit: 1000 });
      images.push(...page.images.map(({ digest }) => digest));
      after = page.next;
      pages++;
    } while (after !== undefined);
    assert.deepEqual([...images].sort(), wanted.map(digestOf));
    assert.equal(pages, status === 'ACTIVE' ? 3 : Math.ceil(wanted.length / 1000));
    const entries: string[] = [];
    let position: { pushedAt: number; digest: string; tag: string | undefined } | undefined;
    do {
      const page = await pageEntries(read, 'big', position, 1000, status);
      entries.push(...page.entries.map(({ digest }) => digest));
      position = page.next;
    } while (position !== undefined);
    assert.deepEqual(entries, images);
    const tags: string[] = [];
    let last: string | undefined;
    do {
      const page = await pageTags(read, 'big', last, 50, status);
      tags.push(...page.tags.map(({ name }) => name));
      last = page.next;
    } while (last !== undefined);
    assert.deepEqual(
      tags,
      wanted
        .filter((i) => i % 10 === 0)
        .map((i) => `t${i}`)
        .sort(),
    );
  }
});

test('ties of the time of a push are broken by the digest, in pages of any size', async () => {
  await using database = await open(20);
  const all = (await pageEntries(database.read, 'big', undefined, 100)).entries;
  assert.equal(all.length, 20);
  for (const limit of [1, 2, 3, 7, 20]) {
    const found = [];
    let after: (typeof all)[number] | undefined;
    do {
      const page = await pageEntries(database.read, 'big', after, limit);
      found.push(...page.entries);
      after = page.next;
    } while (after !== undefined);
    assert.deepEqual(found, all);
  }
});

test('repositories of other registries are not listed', async () => {
  await using database = await open(0);
  const names = async (registry: { account: string; region: string }, last?: string) =>
    (await pageRepositories(database.read, registry, last, 2)).map(({ name }) => name);
  assert.deepEqual(await names(REGISTRY), ['app', 'big']);
  assert.deepEqual(await names(REGISTRY, 'big'), ['zoo']);
  assert.deepEqual(await names({ ...REGISTRY, region: 'us-east-1' }), []);
  assert.deepEqual(await names({ ...REGISTRY, account: '111111111111' }), []);
});
