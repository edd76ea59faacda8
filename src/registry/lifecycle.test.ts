import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { findPostgres, type Postgres, startPostgres } from '../../test/postgres.ts';
import { formatLifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import type { LifecycleServiceEvent, ServiceEvent } from '../lib/cloudtrail.ts';
import {
  findLifecyclePolicy,
  findPreview,
  openPostgresStore,
  openSqliteStore,
  pagePreview,
  type Store,
} from '../store/store.ts';
import { createLifecycleHandlers, type Repository } from './registry.ts';
import {
  digestOf,
  imageOf,
  indexOf,
  type OpenStore,
  openTestRegistry,
  push,
  type TestRegistry,
} from './testing.ts';

const run = promisify(execFile);
const DAY = 86_400_000;

const expireUntagged = policyOf(1, {
  tagStatus: 'untagged',
  countType: 'imageCountMoreThan',
  countNumber: 1,
});

function policyOf(rulePriority: number, selection: object, action: object = { type: 'expire' }): string {
  return format({ rules: [{ rulePriority, selection, action }] });
}

function format(policy: object): string {
  return formatLifecyclePolicy(parseLifecyclePolicy(JSON.stringify(policy)));
}

/** Runs the jobs of a kind that are due, over `store`. Returns when the one about this repository comes again. */
async function runJob(
  t: TestRegistry,
  kind: string,
  { id }: Repository,
  store: Store = t.store,
  report: (event: ServiceEvent) => void = () => {},
): Promise<number | undefined> {
  const handlers = createLifecycleHandlers({
    store,
    clock: () => t.time.now,
    flush: t.registry.flush,
    report,
  });
  const claim = { kind, now: t.time.now, leaseMs: 60_000, lease: 'test', limit: 100, attemptsMax: 3 };
  const again = new Map<string, number | undefined>();
  for (const job of (await t.store.transact('job.claim', claim)).claimed) {
    const result = await handlers[kind]?.run({ ...job, signal: new AbortController().signal });
    await t.store.transact('job.complete', { ...job, now: t.time.now, again: result?.again });
    again.set(job.key.split('/')[0] ?? '', result?.again);
  }
  assert.ok(again.has(id), `no ${kind} is due`);
  return again.get(id);
}

async function listImages(t: TestRegistry, { id }: Repository): Promise<Map<string, string>> {
  const rows = await t.store.read
    .selectFrom('image')
    .select(['digest', 'status'])
    .where('repository_id', '=', id)
    .execute();
  return new Map(rows.map(({ digest, status }) => [digest, status ?? 'ACTIVE']));
}

/** What happens to a repository in a scene: images, some of them indexes or referrers of earlier ones, then time. */
const steps = fc.array(
  fc.record({
    kind: fc.constantFrom('image', 'image', 'image', 'index', 'referrer'),
    of: fc.nat(),
    tags: fc.uniqueArray(fc.constantFrom('a1', 'a2', 'b1', 'b2', 'ab'), { maxLength: 2 }),
    days: fc.nat(3),
    then: fc.constantFrom('nothing', 'nothing', 'nothing', 'archive', 'restore', 'pull'),
  }),
  { minLength: 3, maxLength: 12 },
);
const tagList = fc.constantFrom(['a'], ['b'], ['a', 'b']);
const rules = fc
  .array(
    fc.record({
      tags: fc.option(tagList),
      extent: fc.oneof(
        fc.record({
          countType: fc.constant('imageCountMoreThan'),
          countNumber: fc.integer({ min: 1, max: 3 }),
        }),
        fc.record({
          countType: fc.constantFrom('sinceImagePushed', 'sinceImagePulled'),
          countUnit: fc.constant('days'),
          countNumber: fc.integer({ min: 1, max: 10 }),
        }),
      ),
      archive: fc.boolean(),
    }),
    { minLength: 1, maxLength: 3 },
  )
  .map((list) => {
    const seen = new Set<string>();
    const chosen = list.filter(({ tags }) => {
      const key = JSON.stringify(tags);
      return seen.has(key) ? false : seen.add(key);
    });
    // The rule for any image comes last.
    const sorted = [
      ...chosen.filter(({ tags }) => tags !== null),
      ...chosen.filter(({ tags }) => tags === null),
    ];
    return sorted.map(({ tags, extent, archive }, i) => ({
      rulePriority: i + 1,
      selection: {
        ...(tags === null ? { tagStatus: 'any' } : { tagStatus: 'tagged', tagPrefixList: tags }),
        ...extent,
      },
      action:
        archive || extent.countType === 'sinceImagePulled'
          ? { type: 'transition', targetStorageClass: 'archive' }
          : { type: 'expire' },
    }));
  });

function lifecycleTests(openStore: OpenStore): void {
  let t: TestRegistry;
  let names = 0;

  before(async () => {
    t = await openTestRegistry(openStore);
  });
  after(() => t.close());

  async function prepared(): Promise<Repository> {
    const repository = await t.createRepository(`repo-${++names}`);
    for (const text of ['{}', 'layer']) await t.upload(repository, text);
    return repository;
  }

  const numbered = (i: number, more: object = {}) =>
    imageOf('{}', ['layer'], { annotations: { i: `${i}` }, ...more });

  async function putPolicy(repository: Repository, policy: string): Promise<void> {
    await t.store.transact('lifecycle.put', { address: repository, policy, now: t.time.now });
  }

  async function archive(repository: Repository, imageDigest: string, target: 'ARCHIVE' | 'STANDARD') {
    const input = { repository, imageId: { imageDigest }, target, now: t.time.now };
    await t.store.transact('image.setStorageClass', input).catch((error: Error & { code?: string }) => {
      // An index is in the way, or the image is being restored.
      if (error.code !== 'ImageStorageClassUpdateNotSupportedException') throw error;
    });
  }

  test('a preview is what the runs then do', async () => {
    await fc.assert(
      fc.asyncProperty(steps, rules, async (scene, list) => {
        const repository = await prepared();
        const { id } = repository;
        const pushed: Uint8Array[] = [];
        for (const [i, { kind, of, tags, days, then }] of scene.entries()) {
          t.time.now += days * DAY + 1000;
          const earlier = pushed[of % Math.max(pushed.length, 1)];
          const subject = earlier && {
            subject: { mediaType: 'a/b', digest: digestOf(earlier), size: earlier.byteLength },
          };
          const manifest =
            kind === 'index' && earlier !== undefined
              ? indexOf([earlier], { annotations: { i: `${i}` } })
              : numbered(i, kind === 'referrer' ? subject : {});
          // Members that are archived are refused: then it is not pushed.
          await t.registry.images
            .put(repository, push(manifest, tags))
            .catch((error: Error & { code?: string }) => {
              if (error.code !== 'ReferencedImagesNotFoundException') throw error;
            });
          if ((await listImages(t, repository)).has(digestOf(manifest))) pushed.push(manifest);
          if (then === 'nothing' || earlier === undefined) continue;
          if (then === 'pull') await t.registry.images.find(repository, digestOf(earlier), { pull: true });
          else await archive(repository, digestOf(earlier), then === 'archive' ? 'ARCHIVE' : 'STANDARD');
        }
        t.time.now += 3 * DAY;
        const policy = format({ rules: list });
        const preview = `${id} preview`;
        await t.store.transact('lifecycle.startPreview', {
          address: repository,
          policy,
          preview,
          now: t.time.now,
        });
        await runJob(t, 'lifecycle.preview', repository);
        const found = await findPreview(t.store.read, id, t.time.now);
        assert.equal(found?.status, 'COMPLETE');
        const { images } = await pagePreview(
          t.store.read,
          { repositoryId: id, preview },
          { after: undefined, tagged: undefined, limit: 100 },
        );
        const wanted = await listImages(t, repository);
        for (const { digest, action } of images) {
          if (action === 'EXPIRE') wanted.delete(digest);
          else wanted.set(digest, 'ARCHIVED');
        }
        assert.equal(found.expiring + found.transitioning, images.length);
        await putPolicy(repository, policy);
        // Another comes right after one that made way for members of indexes.
        let again = await runJob(t, 'lifecycle', repository);
        while (again === t.time.now) again = await runJob(t, 'lifecycle', repository);
        assert.equal(again, t.time.now + 23 * 3_600_000);
        assert.deepEqual(await listImages(t, repository), wanted);
        assert.equal((await findLifecyclePolicy(t.store.read, id))?.evaluatedAt, t.time.now);
        await t.deleteRepository(repository);
      }),
      { numRuns: 25 },
    );
    await t.checkIntegrity();
  });

  /** The store, with something that happens right before the first transaction of a run on this repository. */
  function interrupted({ id }: Repository, happens: () => Promise<unknown>): Store {
    let waiting: typeof happens | undefined = happens;
    const transact = async (name: string, input: object) => {
      const here = name === 'lifecycle.apply' && 'repositoryId' in input && input.repositoryId === id;
      const now = here ? waiting : undefined;
      if (now !== undefined) {
        waiting = undefined;
        await now();
      }
      return await t.store.transact(name as never, input as never);
    };
    return { ...t.store, transact };
  }

  const surprises: Readonly<Record<string, (repository: Repository, digest: string) => Promise<unknown>>> = {
    'a tag is pushed': (repository) => t.registry.images.put(repository, push(numbered(0), ['late'])),
    'it is deleted and pushed again': async (repository, imageDigest) => {
      await t.registry.images.batchDelete(repository, [{ imageDigest }]);
      await t.registry.images.put(repository, push(numbered(0)));
    },
    'an index is pushed that needs it': (repository) =>
      t.registry.images.put(repository, push(indexOf([numbered(0)]), ['index'])),
    'it is archived': (repository, digest) => archive(repository, digest, 'ARCHIVE'),
    'the policy is deleted': (repository) => t.store.transact('lifecycle.delete', { address: repository }),
    'the policy is replaced': (repository) =>
      putPolicy(
        repository,
        policyOf(1, { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber: 9 }),
      ),
  };
  for (const [name, happens] of Object.entries(surprises)) {
    test(`between decision and deletion ${name}: it stays, with its signature`, async () => {
      const repository = await prepared();
      const image = numbered(0);
      const digest = digestOf(image);
      const subject = { subject: { mediaType: 'a/b', digest, size: image.byteLength } };
      await t.registry.images.put(repository, push(image));
      await t.registry.images.put(repository, push(numbered(1, subject)));
      await t.registry.images.put(repository, push(numbered(2)));
      await t.registry.images.put(repository, push(numbered(3)));
      await putPolicy(repository, expireUntagged);
      await runJob(
        t,
        'lifecycle',
        repository,
        interrupted(repository, () => happens(repository, digest)),
      );
      const left = await listImages(t, repository);
      assert.ok(left.has(digest));
      assert.ok(left.has(digestOf(numbered(1, subject))));
      // The other one that the rule marks goes, under the policy it was judged by.
      assert.equal(left.has(digestOf(numbered(2))), name.startsWith('the policy'));
      assert.ok(left.has(digestOf(numbered(3))));
      await t.checkIntegrity();
    });
  }

  test('a pull in the meantime counts where pulls count', async () => {
    const repository = await prepared();
    const digest = digestOf(numbered(0));
    await t.registry.images.put(repository, push(numbered(0), ['v1']));
    t.time.now += 3 * DAY;
    const unit = { countUnit: 'days', countNumber: 2, tagStatus: 'any' };
    await putPolicy(
      repository,
      policyOf(
        1,
        { ...unit, countType: 'sinceImagePulled' },
        { type: 'transition', targetStorageClass: 'archive' },
      ),
    );
    const pull = async () => {
      await t.registry.images.find(repository, 'v1', { pull: true });
      await t.registry.flush();
    };
    await runJob(t, 'lifecycle', repository, interrupted(repository, pull));
    assert.equal((await listImages(t, repository)).get(digest), 'ACTIVE');
    await putPolicy(repository, policyOf(1, { ...unit, countType: 'sinceImagePushed' }));
    await runJob(t, 'lifecycle', repository, interrupted(repository, pull));
    assert.equal((await listImages(t, repository)).size, 0);
  });

  test('an index and its members go in two runs, one right after the other', async () => {
    const repository = await prepared();
    const index = indexOf([numbered(1), numbered(2)]);
    for (const manifest of [numbered(1), numbered(2)])
      await t.registry.images.put(repository, push(manifest));
    await t.registry.images.put(repository, push(index));
    await t.registry.images.put(repository, push(numbered(3), ['keep']));
    t.time.now += 2 * DAY;
    const policy = policyOf(1, {
      tagStatus: 'untagged',
      countType: 'sinceImagePushed',
      countUnit: 'days',
      countNumber: 1,
    });
    const preview = { repositoryId: repository.id, preview: `${repository.id} members` };
    const start = { address: repository, policy, preview: preview.preview, now: t.time.now };
    await t.store.transact('lifecycle.startPreview', start);
    await runJob(t, 'lifecycle.preview', repository);
    const { images } = await pagePreview(t.store.read, preview, {
      after: undefined,
      tagged: undefined,
      limit: 9,
    });
    const all = [index, numbered(1), numbered(2)].map((manifest) => digestOf(manifest));
    assert.deepEqual(
      images.map(({ digest }) => digest),
      all,
    );
    await putPolicy(repository, policy);
    assert.equal(await runJob(t, 'lifecycle', repository), t.time.now);
    assert.deepEqual(
      [...(await listImages(t, repository)).keys()].sort(),
      [1, 2, 3].map((i) => digestOf(numbered(i))).sort(),
    );
    assert.equal(await runJob(t, 'lifecycle', repository), t.time.now + 23 * 3_600_000);
    assert.deepEqual([...(await listImages(t, repository)).keys()], [digestOf(numbered(3))]);
  });

  test('more referrers than one transaction takes', async () => {
    const repository = await prepared();
    const image = numbered(0);
    const subject = { subject: { mediaType: 'a/b', digest: digestOf(image), size: image.byteLength } };
    await t.registry.images.put(repository, push(image));
    for (let i = 1; i <= 120; i++) await t.registry.images.put(repository, push(numbered(i, subject)));
    await t.registry.images.put(repository, push(numbered(1000)));
    await putPolicy(repository, expireUntagged);
    await runJob(t, 'lifecycle', repository);
    assert.deepEqual([...(await listImages(t, repository)).keys()], [digestOf(numbered(1000))]);
    await t.checkIntegrity();
  });

  test('a referrer that an index needs waits for it', async () => {
    const repository = await prepared();
    const image = numbered(0);
    const signature = numbered(1, {
      subject: { mediaType: 'a/b', digest: digestOf(image), size: image.byteLength },
    });
    const index = indexOf([signature]);
    for (const manifest of [image, signature, index]) await t.registry.images.put(repository, push(manifest));
    await t.registry.images.batchDelete(repository, [{ imageDigest: digestOf(image) }]);
    t.time.now += DAY;
    assert.equal(await runJob(t, 'image.referrers', repository), t.time.now + 23 * 3_600_000);
    await t.registry.images.batchDelete(repository, [{ imageDigest: digestOf(index) }]);
    t.time.now += DAY;
    assert.equal(await runJob(t, 'image.referrers', repository), undefined);
    assert.equal((await listImages(t, repository)).size, 0);
  });

  test('a referrer that names its subject by a digest of another algorithm', async () => {
    const repository = await prepared();
    const image = numbered(0);
    const digest = digestOf(image, 'sha512');
    const signature = numbered(1, { subject: { mediaType: 'a/b', digest, size: image.byteLength } });
    await t.registry.images.put(repository, push(image, ['keep'], { digest }));
    await t.registry.images.put(repository, push(signature));
    await t.registry.images.put(repository, push(numbered(2)));
    await putPolicy(repository, expireUntagged);
    await runJob(t, 'lifecycle', repository);
    assert.equal((await listImages(t, repository)).size, 3);
    await t.registry.images.batchDelete(repository, [{ imageDigest: digestOf(image) }]);
    t.time.now += DAY;
    await runJob(t, 'image.referrers', repository);
    assert.deepEqual([...(await listImages(t, repository)).keys()], [digestOf(numbered(2))]);
  });

  /** What a job tells; the digests of its events. */
  async function told(
    kind: string,
    repository: Repository,
    store = t.store,
  ): Promise<[LifecycleServiceEvent['name'], acted: string[], failed: string[]][]> {
    const events: ServiceEvent[] = [];
    await runJob(t, kind, repository, store, (event) => {
      // Jobs of the repositories of other tests may be due as well.
      if (event.repositoryName === repository.name) events.push(event);
    });
    return events.map((event) => {
      assert.ok(event.name !== 'ImageActivationEvent');
      const digests = (images: readonly { readonly digest: string }[]) => images.map(({ digest }) => digest);
      return [event.name, digests(event.actions), digests(event.failures)];
    });
  }

  test('a run and a preview tell of each image, in parts, and a run that does nothing tells that', async () => {
    const repository = await prepared();
    const images = Array.from({ length: 24 }, (_, i) => numbered(i));
    const digests = images.map((image) => digestOf(image));
    const signature = numbered(99, {
      subject: { mediaType: 'a/b', digest: digests[1], size: images[1]?.byteLength },
    });
    for (const image of images) await t.registry.images.put(repository, push(image));
    await t.registry.images.put(repository, push(signature));
    await t.registry.images.put(repository, push(indexOf([numbered(0)]), ['index']));
    const [member = '', ...rest] = digests;
    const acted = [digestOf(signature), ...rest.slice(0, -1)];
    const start = { address: repository, policy: expireUntagged, preview: repository.id, now: t.time.now };
    await t.store.transact('lifecycle.startPreview', start);
    const parts = [acted.slice(0, 10), acted.slice(10, 20), acted.slice(20), []];
    const expected = (name: string) => parts.map((part) => [name, part, part.length === 0 ? [member] : []]);
    assert.deepEqual(await told('lifecycle.preview', repository), expected('DryRunEvent'));
    await putPolicy(repository, expireUntagged);
    assert.deepEqual(await told('lifecycle', repository), expected('PolicyExecutionEvent'));
    await t.registry.images.batchDelete(repository, [{ imageTag: 'index' }, { imageDigest: member }]);
    t.time.now += DAY;
    assert.deepEqual(await told('lifecycle', repository), [['PolicyExecutionEvent', [], []]]);
  });

  test('a long policy is told of once', async () => {
    const repository = await prepared();
    for (let i = 0; i < 12; i++) await t.registry.images.put(repository, push(numbered(i)));
    const rulesTold = async (description: string) => {
      const selection = { tagStatus: 'untagged', countType: 'imageCountMoreThan', countNumber: 1 };
      const rule = { rulePriority: 1, description, selection, action: { type: 'expire' } };
      const start = { address: repository, policy: format({ rules: [rule] }), preview: description };
      await t.store.transact('lifecycle.startPreview', { ...start, now: t.time.now });
      const counts: number[] = [];
      await runJob(t, 'lifecycle.preview', repository, t.store, (event) => {
        if (event.repositoryName !== repository.name) return;
        assert.ok(event.name === 'DryRunEvent');
        counts.push(event.policy.rules.length);
      });
      return counts;
    };
    assert.deepEqual(await rulesTold('short'), [1, 1]);
    assert.deepEqual(await rulesTold('x'.repeat(4096)), [1, 0]);
  });

  test('an image that was not acted on is not told of', async () => {
    const repository = await prepared();
    for (let i = 0; i < 3; i++) await t.registry.images.put(repository, push(numbered(i)));
    await putPolicy(repository, expireUntagged);
    const retag = () => t.registry.images.put(repository, push(numbered(0), ['late']));
    assert.deepEqual(await told('lifecycle', repository, interrupted(repository, retag)), [
      ['PolicyExecutionEvent', [digestOf(numbered(1))], []],
    ]);
    await t.registry.images.put(repository, push(numbered(5)));
    await putPolicy(repository, expireUntagged);
    const remove = () => t.store.transact('lifecycle.delete', { address: repository });
    assert.deepEqual(await told('lifecycle', repository, interrupted(repository, remove)), []);
  });

  test('a restore is told of once it is done', async () => {
    const repository = await prepared();
    const { account, region, name } = repository;
    const digest = digestOf(numbered(0));
    await t.registry.images.put(repository, push(numbered(0)));
    await archive(repository, digest, 'ARCHIVE');
    const events: ServiceEvent[] = [];
    const restore = async () => {
      await archive(repository, digest, 'STANDARD');
      t.time.now += DAY;
    };
    await restore();
    await runJob(t, 'image.activate', repository, t.store, (event) => {
      if (event.repositoryName === repository.name) events.push(event);
    });
    const resource = `arn:aws:ecr:${region}:${account}:repository/${name}`;
    assert.deepEqual(events, [
      { name: 'ImageActivationEvent', repositoryName: name, resource, region, digest },
    ]);
    // A push brought it back before.
    await archive(repository, digest, 'ARCHIVE');
    await restore();
    await t.registry.images.put(repository, push(numbered(0), ['v1']));
    await runJob(t, 'image.activate', repository, t.store, (event) => void events.push(event));
    assert.equal(events.length, 1);
  });

  test('a run that is told to stop stops, and acts on nothing more', async () => {
    const repository = await prepared();
    for (let i = 0; i < 3; i++) await t.registry.images.put(repository, push(numbered(i)));
    await putPolicy(repository, expireUntagged);
    const handlers = createLifecycleHandlers({
      store: t.store,
      clock: () => t.time.now,
      flush: t.registry.flush,
    });
    const job = { key: repository.id, payload: null, attempts: 1, signal: AbortSignal.abort() };
    await assert.rejects(async () => handlers['lifecycle']?.run(job), { name: 'AbortError' });
    assert.equal((await listImages(t, repository)).size, 3);
    await runJob(t, 'lifecycle', repository);
    assert.equal((await listImages(t, repository)).size, 1);
  });
}

describe('lifecycle on SQLite', () => {
  lifecycleTests((directory) => openSqliteStore({ file: join(directory, 'berth.db') }));
});

const programs = await findPostgres();
if (programs === undefined) {
  process.stdout.write('SKIPPED lifecycle on PostgreSQL: no initdb and pg_ctl found\n');
} else {
  describe('lifecycle on PostgreSQL', () => {
    let server: Postgres | undefined;
    before(async () => {
      server = await startPostgres(programs);
    });
    after(() => server?.stop());
    lifecycleTests(async () => {
      assert.ok(server !== undefined);
      const url = new URL(server.url);
      await run(join(programs, 'createdb'), [
        '-h',
        decodeURIComponent(url.host),
        '-U',
        url.username,
        'lifecycle',
      ]);
      return openPostgresStore({ url: server.url.replace(/[^/]*$/, 'lifecycle'), poolMax: 4 });
    });
  });
}
