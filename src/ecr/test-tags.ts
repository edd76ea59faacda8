import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACCOUNT, type OpenTestRegistry, OTHER, REGION } from './testing.ts';

export function tagsTests(openTestRegistry: OpenTestRegistry): void {
  const arnOf = (name: string, account = ACCOUNT) => `arn:aws:ecr:${REGION}:${account}:repository/${name}`;
  const tag = (Key: string, Value = '') => ({ Key, Value });

  test('tags are added, overwritten and removed', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app', tags: [tag('a', '1'), tag('b', '2')] });
    const resourceArn = arnOf('app');
    const list = async () => (await t.call<{ tags: object[] }>('ListTagsForResource', { resourceArn })).tags;
    assert.deepEqual(
      await t.call('TagResource', { resourceArn, tags: [tag('b', '3'), tag('A'), tag('équipe x')] }),
      {},
    );
    assert.deepEqual(
      (await list()).sort((x, y) => (JSON.stringify(x) < JSON.stringify(y) ? -1 : 1)),
      [tag('A'), tag('a', '1'), tag('b', '3'), tag('équipe x')],
    );
    assert.deepEqual(
      await t.call('UntagResource', { resourceArn, tagKeys: ['a', 'absent', 'A', 'équipe x'] }),
      {},
    );
    assert.deepEqual(await list(), [tag('b', '3')]);
    await t.call('UntagResource', { resourceArn, tagKeys: [] });
    await t.call('TagResource', { resourceArn, tags: [] });
    assert.deepEqual(await list(), [tag('b', '3')]);
  });

  test('ARNs', async () => {
    await using t = await openTestRegistry();
    const invalid =
      "InvalidParameterException: Invalid parameter at 'resourceArn' failed to satisfy constraint: 'Invalid ARN'";
    const bad = [
      'x',
      'arn:aws:ecr:eu-west-1:000000000000:app',
      'arn:aws:s3:eu-west-1:000000000000:repository/app',
      'arn:aws:ecr:us-east-1:000000000000:repository/app',
      'arn:aws:ecr:eu-west-1:000000000000:repository/UP',
    ];
    for (const resourceArn of bad) {
      assert.equal(await t.fault('ListTagsForResource', { resourceArn }), invalid);
      assert.equal(await t.fault('TagResource', { resourceArn, tags: [] }), invalid);
      assert.equal(await t.fault('UntagResource', { resourceArn, tagKeys: [] }), invalid);
    }
    const resourceArn = arnOf('none');
    const missing = `RepositoryNotFoundException: The repository with name 'none' does not exist in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('ListTagsForResource', { resourceArn }), missing);
    assert.equal(await t.fault('TagResource', { resourceArn, tags: [tag('a')] }), missing);
    assert.equal(await t.fault('UntagResource', { resourceArn, tagKeys: ['a'] }), missing);
    assert.match(
      await t.fault('ListTagsForResource', { resourceArn: arnOf('app', OTHER) }),
      /^AccessDeniedException/,
    );
  });

  test('tags that are refused', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const bad = [
      [tag('')],
      [tag('k'.repeat(129))],
      [tag('k', 'v'.repeat(257))],
      [tag('aws:x')],
      [tag('AWS:x')],
      [tag('a'), tag('a')],
      [tag('semi;colon')],
      [tag('k', 'a*b')],
    ];
    for (const tags of bad) {
      const on = await t.fault('TagResource', { resourceArn: arnOf('app'), tags });
      assert.match(on, /^InvalidTagParameterException: An invalid parameter has been specified\. /);
      assert.equal(await t.fault('CreateRepository', { repositoryName: 'other', tags }), on);
    }
  });

  test('letters of any script are characters, also those of two units', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const resourceArn = arnOf('app');
    const tags = [tag('𝒜'.repeat(128), '𠮷'.repeat(256)), tag('ключ', 'ไทย 値')];
    await t.call('TagResource', { resourceArn, tags: tags.slice(0, 1) });
    for (const bad of [tag('𝒜'.repeat(129)), tag('k', '𠮷'.repeat(257))])
      assert.match(
        await t.fault('TagResource', { resourceArn, tags: [bad] }),
        /^InvalidTagParameterException/,
      );
    const listed = await t.call<{ tags: object[] }>('ListTagsForResource', { resourceArn });
    assert.deepEqual(listed.tags, tags.slice(0, 1));
    await t.call('TagResource', { resourceArn, tags: tags.slice(1) });
  });

  test('a request may name any number of keys', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app', tags: [tag('a'), tag('k7')] });
    const tagKeys = Array.from({ length: 70_000 }, (_, i) => `k${i}`);
    await t.call('UntagResource', { resourceArn: arnOf('app'), tagKeys });
    const { tags } = await t.call<{ tags: object[] }>('ListTagsForResource', { resourceArn: arnOf('app') });
    assert.deepEqual(tags, [tag('a')]);
  });

  test('the quota counts what is there, not what is sent', async () => {
    await using t = await openTestRegistry({ resourceTagsMax: 3 });
    const tooMany = `TooManyTagsException: The list of tags on the repository is over the limit. The maximum number of tags that can be applied to a repository is 3.`;
    const four = ['a', 'b', 'c', 'd'].map((key) => tag(key));
    assert.equal(await t.fault('CreateRepository', { repositoryName: 'app', tags: four }), tooMany);
    await t.call('CreateRepository', { repositoryName: 'app', tags: four.slice(0, 3) });
    const resourceArn = arnOf('app');
    await t.call('TagResource', { resourceArn, tags: [tag('a', 'new')] });
    assert.equal(await t.fault('TagResource', { resourceArn, tags: [tag('d')] }), tooMany);
    const { tags } = await t.call<{ tags: object[] }>('ListTagsForResource', { resourceArn });
    assert.equal(tags.length, 3);
  });

  test('tags decide in policies, on the request and on the repository', async () => {
    await using t = await openTestRegistry();
    const user = await t.addUser('dev', [
      {
        Effect: 'Allow',
        Action: 'ecr:CreateRepository',
        Resource: '*',
        Condition: {
          StringEquals: { 'aws:RequestTag/team': 'blue' },
          'ForAllValues:StringEquals': { 'aws:TagKeys': ['team'] },
        },
      },
      {
        Effect: 'Allow',
        Action: 'ecr:ListImages',
        Resource: '*',
        Condition: { StringEquals: { 'ecr:ResourceTag/team': 'blue' } },
      },
    ]);
    const create = (repositoryName: string, tags?: object[]) => ({ repositoryName, ...(tags && { tags }) });
    assert.match(await t.fault('CreateRepository', create('app'), user), /^AccessDeniedException/);
    assert.match(
      await t.fault('CreateRepository', create('app', [tag('team', 'red')]), user),
      /^AccessDenied/,
    );
    assert.match(
      await t.fault('CreateRepository', create('app', [tag('team', 'blue'), tag('x')]), user),
      /^AccessDeniedException/,
    );
    await t.call('CreateRepository', create('app', [tag('team', 'blue')]), user);
    assert.deepEqual(await t.call('ListImages', { repositoryName: 'app' }, user), { imageIds: [] });
    await t.call('TagResource', { resourceArn: arnOf('app'), tags: [tag('team', 'red')] });
    assert.match(await t.fault('ListImages', { repositoryName: 'app' }, user), /^AccessDeniedException/);
  });
}
