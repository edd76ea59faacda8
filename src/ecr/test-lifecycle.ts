import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLifecycleHandlers } from '../registry/registry.ts';
import { ACCOUNT, NOW, type OpenTestRegistry, type TestRegistry } from './testing.ts';

export function lifecycleTests(openTestRegistry: OpenTestRegistry): void {
  const DAY = 86_400_000;
  const app = { repositoryName: 'app' };
  const answer = { registryId: ACCOUNT, ...app };
  const at = (reason: string) =>
    `InvalidParameterException: Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: 'Lifecycle policy validation failure: ${reason}`;

  /** Does the jobs that are due, and what they ask for, until nothing is. Returns their kinds in order. */
  async function runJobs(t: TestRegistry): Promise<string[]> {
    const handlers = createLifecycleHandlers({ store: t.store, clock: () => t.now, flush: t.registry.flush });
    const done: string[] = [];
    for (let before = -1; before < done.length;) {
      before = done.length;
      for (const [kind, handler] of Object.entries(handlers)) {
        const claim = { kind, now: t.now, leaseMs: 1000, lease: 'test', limit: 10, attemptsMax: 3 };
        for (const job of (await t.store.transact('job.claim', claim)).claimed) {
          const result = await handler.run({ ...job, signal: new AbortController().signal });
          await t.store.transact('job.complete', { ...job, now: t.now, again: result?.again });
          done.push(kind);
        }
      }
    }
    return done;
  }

  const rule = (rulePriority: number, selection: object, action: object = { type: 'expire' }) => ({
    rulePriority,
    selection,
    action,
  });
  const keep = (countNumber: number, more: object = { tagStatus: 'any' }) => ({
    ...more,
    countType: 'imageCountMoreThan',
    countNumber,
  });
  const archive = { type: 'transition', targetStorageClass: 'archive' };
  const policy = (...rules: object[]) => JSON.stringify({ rules });

  test('put, get, replace and delete', async () => {
    await using t = await openTestRegistry();
    const missing = `RepositoryNotFoundException: The repository with name 'app' does not exist in the registry with id '${ACCOUNT}'`;
    const lifecyclePolicyText = policy(rule(1, keep(3)));
    for (const [operation, input] of [
      ['PutLifecyclePolicy', { lifecyclePolicyText }],
      ['GetLifecyclePolicy', {}],
      ['DeleteLifecyclePolicy', {}],
      ['StartLifecyclePolicyPreview', { lifecyclePolicyText }],
      ['StartLifecyclePolicyPreview', {}],
      ['GetLifecyclePolicyPreview', {}],
    ] as const)
      assert.equal(await t.fault(operation, { ...app, ...input }), missing, operation);

    await t.call('CreateRepository', app);
    const none = `LifecyclePolicyNotFoundException: Lifecycle policy does not exist for the repository with name 'app' in the registry with id '${ACCOUNT}'`;
    for (const operation of ['GetLifecyclePolicy', 'DeleteLifecyclePolicy', 'StartLifecyclePolicyPreview'])
      assert.equal(await t.fault(operation, app), none, operation);

    const untidy = `{ "rules": [
    { "action": { "type": "expire" }, "rulePriority": 2, "selection": { "countNumber": 3, "tagStatus": "any", "countType": "imageCountMoreThan" } },
    { "rulePriority": 1, "description": "x", "action": { "type": "expire" },
      "selection": { "countUnit": "days", "countNumber": 1, "countType": "sinceImagePushed", "tagStatus": "untagged" } } ] }`;
    const tidy =
      '{"rules":[{"rulePriority":1,"description":"x","selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":1},"action":{"type":"expire"}},' +
      '{"rulePriority":2,"selection":{"tagStatus":"any","countType":"imageCountMoreThan","countNumber":3},"action":{"type":"expire"}}]}';
    const put = await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText: untidy });
    assert.deepEqual(put, { ...answer, lifecyclePolicyText: tidy });
    const never = { ...answer, lifecyclePolicyText: tidy, lastEvaluatedAt: new Date(0) };
    assert.deepEqual(await t.call('GetLifecyclePolicy', app), never);
    assert.deepEqual(await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText: tidy }), put);

    assert.deepEqual(await runJobs(t), ['lifecycle']);
    const evaluated = { ...never, lastEvaluatedAt: new Date(NOW) };
    assert.deepEqual(await t.call('GetLifecyclePolicy', app), evaluated);
    await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText });
    assert.deepEqual(await t.call('GetLifecyclePolicy', app), { ...never, lifecyclePolicyText });
    await runJobs(t);
    assert.deepEqual(await t.call('DeleteLifecyclePolicy', app), { ...evaluated, lifecyclePolicyText });
    assert.equal(await t.fault('GetLifecyclePolicy', app), none);
    // The job of the day after finds nothing to do and is gone.
    t.now += 2 * DAY;
    assert.deepEqual(await runJobs(t), ['lifecycle']);
    t.now += 2 * DAY;
    assert.deepEqual(await runJobs(t), []);
    await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText });
    await t.call('DeleteRepository', app);
    assert.deepEqual(await runJobs(t), ['lifecycle']);
  });

  test('policies that are refused', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const cases: readonly (readonly [text: string, tail: string])[] = [
      ['{', "Could not map policyString into LifecyclePolicy.'"],
      ['{}', `object has missing required properties (["rules"])'`],
      [
        policy(rule(0, keep(1))),
        'numeric instance is lower than the required minimum (minimum: 1, found: 0)',
      ],
      [
        policy(rule(1, keep(1)), rule(2, keep(1, { tagStatus: 'untagged' }))),
        "Rule for tagStatus=ANY must have the lowest priority per storage class.'",
      ],
    ];
    for (const [lifecyclePolicyText, tail] of cases) {
      for (const operation of ['PutLifecyclePolicy', 'StartLifecyclePolicyPreview'])
        assert.equal(await t.fault(operation, { ...app, lifecyclePolicyText }), at(tail));
    }
  });

  test('a preview: status, pages, filters, ids, summary, age', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const digests: string[] = [];
    for (let i = 0; i < 6; i++) {
      t.now += 1000;
      digests.push((await t.addImage('app', `layer ${i}`, i % 2 === 0 ? `v${i}` : undefined)).digest);
    }
    const none = `LifecyclePolicyPreviewNotFoundException: Lifecycle policy preview does not exist for the repository with name 'app' in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('GetLifecyclePolicyPreview', app), none);
    const text = ` ${policy(
      rule(1, keep(1, { tagStatus: 'tagged', tagPrefixList: ['v'] }), archive),
      rule(2, keep(2)),
    )}`;
    const started = await t.call('StartLifecyclePolicyPreview', { ...app, lifecyclePolicyText: text });
    const about = { ...answer, lifecyclePolicyText: text };
    assert.deepEqual(started, { ...about, status: 'IN_PROGRESS' });
    const empty = { ...about, previewResults: [] };
    assert.deepEqual(await t.call('GetLifecyclePolicyPreview', app), { ...empty, status: 'IN_PROGRESS' });
    assert.equal(
      await t.fault('StartLifecyclePolicyPreview', { ...app, lifecyclePolicyText: text }),
      `LifecyclePolicyPreviewInProgressException: Lifecycle policy preview is in progress for the repository with name 'app' in the registry with id '${ACCOUNT}'`,
    );
    assert.deepEqual(await runJobs(t), ['lifecycle.preview']);

    // v4 is the newest tagged one; rule 2 counts all six and keeps the two newest, of which it owns only the last.
    const result = (i: number) => ({
      ...(i % 2 === 0 && { imageTags: [`v${i}`] }),
      imageDigest: digests[i],
      imagePushedAt: new Date(NOW + (i + 1) * 1000),
      action: i % 2 === 0 ? { type: 'TRANSITION', targetStorageClass: 'ARCHIVE' } : { type: 'EXPIRE' },
      appliedRulePriority: i % 2 === 0 ? 1 : 2,
      storageClass: 'STANDARD',
    });
    const summary = {
      expiringImageTotalCount: 2,
      transitioningImageTotalCounts: [{ targetStorageClass: 'ARCHIVE', imageTotalCount: 2 }],
    };
    const complete = { ...about, status: 'COMPLETE', summary };
    const all = { ...complete, previewResults: [0, 1, 2, 3].map(result) };
    assert.deepEqual(await t.call('GetLifecyclePolicyPreview', app), all);
    const get = (more: object) =>
      t.call<{ previewResults: object[]; nextToken?: string }>('GetLifecyclePolicyPreview', {
        ...app,
        ...more,
      });
    const paged: object[] = [];
    let nextToken: string | undefined;
    do {
      const page = await get({ maxResults: 3, ...(nextToken !== undefined && { nextToken }) });
      paged.push(page.previewResults);
      ({ nextToken } = page);
    } while (nextToken !== undefined);
    assert.deepEqual(paged, [[0, 1, 2].map(result), [result(3)]]);
    assert.deepEqual((await get({ filter: { tagStatus: 'TAGGED' } })).previewResults, [result(0), result(2)]);
    assert.deepEqual((await get({ filter: { tagStatus: 'UNTAGGED' } })).previewResults, [
      result(1),
      result(3),
    ]);
    const ids = [
      { imageDigest: digests[3] },
      { imageTag: 'v0' },
      { imageDigest: digests[0] },
      { imageTag: 'v4' },
      { imageTag: 'none' },
      { imageDigest: digests[1], imageTag: 'v0' },
    ];
    assert.deepEqual((await get({ imageIds: ids })).previewResults, [result(0), result(3)]);
    assert.deepEqual((await get({ imageIds: ids, filter: { tagStatus: 'UNTAGGED' } })).previewResults, [
      result(3),
    ]);
    for (const [input, member] of [
      [{ imageIds: ids, maxResults: 1 }, 'maxResults'],
      [{ imageIds: ids, nextToken: 'x' }, 'nextToken'],
      [{ imageIds: [{}] }, 'imageIds'],
      [{ nextToken: 'x' }, 'nextToken'],
    ] as const) {
      const { code, message } = await t.refusal('GetLifecyclePolicyPreview', { ...app, ...input });
      assert.equal(code, 'InvalidParameterException');
      assert.ok(message.startsWith(`Invalid parameter at '${member}' failed`), message);
    }
    // Nothing happened to the images.
    assert.equal((await t.call<{ imageIds: object[] }>('ListImages', app)).imageIds.length, 6);

    t.now += DAY + 1;
    assert.deepEqual(await t.call('GetLifecyclePolicyPreview', app), { ...empty, status: 'EXPIRED' });
    t.now += 1000;
    await runJobs(t);
    const left = await t.store.read.selectFrom('lifecycle_preview_image').select('place').execute();
    assert.deepEqual(left, []);
    assert.deepEqual(await t.call('GetLifecyclePolicyPreview', app), { ...empty, status: 'EXPIRED' });

    // A preview of the repository's own policy; one that nobody ends has failed after a while and may be begun again.
    await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText: policy(rule(1, keep(100))) });
    const own = await t.call('StartLifecyclePolicyPreview', app);
    assert.equal(own['lifecyclePolicyText'], policy(rule(1, keep(100))));
    t.now += 2 * 3_600_000;
    assert.equal((await t.call('GetLifecyclePolicyPreview', app))['status'], 'FAILED');
    await t.call('StartLifecyclePolicyPreview', app);
    await runJobs(t);
    assert.deepEqual(await t.call('GetLifecyclePolicyPreview', app), {
      ...answer,
      lifecyclePolicyText: policy(rule(1, keep(100))),
      status: 'COMPLETE',
      previewResults: [],
      summary: { expiringImageTotalCount: 0 },
    });
  });

  test('a policy takes effect, and again a day later', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const old = await t.addImage('app', 'old', 'old');
    t.now += 1000;
    const young = await t.addImage('app', 'young', 'young');
    const lifecyclePolicyText = policy(
      rule(1, { tagStatus: 'any', countType: 'sinceImagePushed', countUnit: 'days', countNumber: 1 }),
    );
    await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText });
    assert.deepEqual(await runJobs(t), ['lifecycle']);
    const tags = async () =>
      (await t.call<{ imageIds: { imageTag: string }[] }>('ListImages', app)).imageIds.map(
        ({ imageTag }) => imageTag,
      );
    assert.deepEqual(await tags(), ['young', 'old']);
    t.now += 23 * 3_600_000;
    assert.deepEqual(await runJobs(t), ['lifecycle']);
    assert.deepEqual(await tags(), ['young', 'old']);
    t.now = NOW + DAY + 500;
    await t.call('PutLifecyclePolicy', { ...app, lifecyclePolicyText });
    await runJobs(t);
    assert.deepEqual(await tags(), ['young']);
    t.now += 23 * 3_600_000;
    await runJobs(t);
    assert.deepEqual(await tags(), []);
    const events = await t.store.read.selectFrom('event').select('record').orderBy('id').execute();
    const deleted = events
      .map(({ record }) => (JSON.parse(record) as { detail: Record<string, string> }).detail)
      .filter((detail) => detail['action-type'] === 'DELETE');
    assert.deepEqual(
      deleted.map((detail) => [detail['image-digest'], detail['image-tag'], detail['result']]),
      [
        [old.digest, 'old', 'SUCCESS'],
        [young.digest, 'young', 'SUCCESS'],
      ],
    );
  });
}
