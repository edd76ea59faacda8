import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACCOUNT, NOW, type OpenTestRegistry, type TestRegistry, type User } from './testing.ts';

export function exclusionsTests(openTestRegistry: OpenTestRegistry): void {
  const role = (name: string) => `arn:aws:iam::${ACCOUNT}:role/${name}`;
  const register = (t: TestRegistry, principalArn: string) =>
    t.call('RegisterPullTimeUpdateExclusion', { principalArn });

  test('register, list, deregister', async () => {
    await using t = await openTestRegistry({ pullTimeExclusionsMax: 3 });
    const principalArn = role('scanner');
    assert.deepEqual(await register(t, principalArn), { principalArn, createdAt: new Date(NOW) });
    assert.equal(
      await t.fault('RegisterPullTimeUpdateExclusion', { principalArn }),
      `ExclusionAlreadyExistsException: A pull time update exclusion for the principal '${principalArn}' already exists in the registry with id '${ACCOUNT}'`,
    );
    await register(t, role('b'));
    await register(t, role('a'));
    assert.equal(
      await t.fault('RegisterPullTimeUpdateExclusion', { principalArn: role('c') }),
      `LimitExceededException: The registry with id '${ACCOUNT}' already has the maximum allowed number of pull time update exclusions which is '3'`,
    );
    const { pullTimeUpdateExclusions, nextToken } = await t.call('ListPullTimeUpdateExclusions', {
      maxResults: 2,
    });
    assert.deepEqual(pullTimeUpdateExclusions, [role('a'), role('b')]);
    assert.deepEqual(await t.call('ListPullTimeUpdateExclusions', { maxResults: 2, nextToken }), {
      pullTimeUpdateExclusions: [principalArn],
    });
    assert.deepEqual(await t.call('ListPullTimeUpdateExclusions', {}, t.other), {
      pullTimeUpdateExclusions: [],
    });
    assert.deepEqual(await t.call('DeregisterPullTimeUpdateExclusion', { principalArn }), { principalArn });
    assert.equal(
      await t.fault('DeregisterPullTimeUpdateExclusion', { principalArn }),
      `ExclusionNotFoundException: A pull time update exclusion for the principal '${principalArn}' does not exist in the registry with id '${ACCOUNT}'`,
    );
  });

  test('pulls of excluded principals leave lastRecordedPullTime alone', async () => {
    await using t = await openTestRegistry();
    const repositoryName = 'app';
    await t.call('CreateRepository', { repositoryName });
    await t.addImage(repositoryName, 'layer', 'v1');
    const scanner = await t.addUser('scanner', [{ Effect: 'Allow', Action: 'ecr:*', Resource: '*' }]);
    await register(t, scanner.arn);
    const pull = (as: User) =>
      t.call('BatchGetImage', { repositoryName, imageIds: [{ imageTag: 'v1' }] }, as);
    const pulledAt = async (): Promise<unknown> => {
      await t.registry.flush();
      const { imageDetails } = await t.call<{ imageDetails: { lastRecordedPullTime?: Date }[] }>(
        'DescribeImages',
        { repositoryName },
      );
      return imageDetails[0]?.lastRecordedPullTime;
    };
    await pull(scanner);
    assert.equal(await pulledAt(), undefined);
    await pull(t.admin);
    assert.deepEqual(await pulledAt(), new Date(NOW));
    t.now += 60_000;
    await pull(scanner);
    assert.deepEqual(await pulledAt(), new Date(NOW));
    await t.call('DeregisterPullTimeUpdateExclusion', { principalArn: scanner.arn });
    await pull(scanner);
    assert.deepEqual(await pulledAt(), new Date(NOW + 60_000));
  });
}
