import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACCOUNT, type OpenTestRegistry, OTHER, REGION } from './testing.ts';

export function policiesTests(openTestRegistry: OpenTestRegistry): void {
  const statement = (more: object = {}) => ({
    Effect: 'Allow',
    Principal: '*',
    Action: 'ecr:BatchGetImage',
    ...more,
  });
  const text = (...statements: object[]) => JSON.stringify({ Version: '2012-10-17', Statement: statements });
  const at = (reason: string) =>
    `InvalidParameterException: Invalid parameter at 'PolicyText' failed to satisfy constraint: '${reason}'`;
  const app = { repositoryName: 'app' };

  test('set, get, replace and delete', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const none = `RepositoryPolicyNotFoundException: Repository policy does not exist for the repository with name 'app' in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('GetRepositoryPolicy', app), none);
    assert.equal(await t.fault('DeleteRepositoryPolicy', app), none);
    const policyText = [
      '{',
      '  "Version" : "2012-10-17",',
      '  "Statement" : [ {',
      '    "Effect" : "Allow",',
      '    "Principal" : "*",',
      '    "Action" : [ "ecr:BatchGetImage", "ecr:ListImages" ]',
      '  } ]',
      '}',
    ].join('\n');
    const answer = { registryId: ACCOUNT, repositoryName: 'app', policyText };
    const set = text(statement({ Action: ['ecr:BatchGetImage', 'ecr:ListImages'] }));
    assert.deepEqual(await t.call('SetRepositoryPolicy', { ...app, policyText: set }), answer);
    assert.deepEqual(await t.call('GetRepositoryPolicy', app), answer);
    await t.call('SetRepositoryPolicy', { ...app, policyText: text(statement()) });
    await t.call('SetRepositoryPolicy', { ...app, policyText });
    assert.deepEqual(await t.call('DeleteRepositoryPolicy', app), answer);
    assert.equal(await t.fault('GetRepositoryPolicy', app), none);
  });

  test('unknown repositories', async () => {
    await using t = await openTestRegistry();
    const missing = `RepositoryNotFoundException: The repository with name 'app' does not exist in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('GetRepositoryPolicy', app), missing);
    assert.equal(await t.fault('DeleteRepositoryPolicy', app), missing);
    assert.equal(await t.fault('SetRepositoryPolicy', { ...app, policyText: text(statement()) }), missing);
    assert.equal(
      await t.fault('SetRepositoryPolicy', { ...app, policyText: '' }),
      at('Invalid repository policy provided'),
    );
  });

  test('policies that are refused', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const invalid = [
      '',
      '{',
      '{}',
      text({ Effect: 'Allow', Action: 'ecr:*' }),
      text(statement({ Action: undefined })),
      text(statement({ Action: 's3:GetObject' })),
      text(statement({ Resource: 'arn:aws:ecr:eu-west-1:000000000000:repository/other' })),
    ];
    for (const policyText of invalid) {
      assert.equal(
        await t.fault('SetRepositoryPolicy', { ...app, policyText }),
        at('Invalid repository policy provided'),
      );
    }
    const arn = (rest: string) => ({ AWS: `arn:aws:iam::${rest}` });
    const absent = [
      { AWS: '222222222222' },
      arn('222222222222:root'),
      arn(`${ACCOUNT}:user/ghost`),
      arn(`${ACCOUNT}:user/path/admin`),
      arn(`${ACCOUNT}:user/Admin`),
      arn(`${ACCOUNT}:role/ghost`),
      { AWS: [ACCOUNT, '222222222222'] },
    ];
    for (const Principal of absent) {
      const policyText = text(statement({ Principal }));
      assert.equal(await t.fault('SetRepositoryPolicy', { ...app, policyText }), at('Principal not found'));
    }
  });

  test('policies that are accepted', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const own = `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/app`;
    const good = [
      statement({ Resource: '*' }),
      statement({ Resource: own }),
      statement({ Principal: { AWS: OTHER } }),
      statement({ Principal: { AWS: [`arn:aws:iam::${OTHER}:root`, t.admin.arn, t.other.arn] } }),
      statement({ Principal: { AWS: t.admin.principal.userId } }),
      statement({ Principal: { Service: 'codebuild.amazonaws.com' } }),
    ];
    for (const one of good) await t.call('SetRepositoryPolicy', { ...app, policyText: text(one) });
  });

  test('a policy that would lock its author out needs force', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const policyText = text({
      Effect: 'Deny',
      Principal: { AWS: t.admin.arn },
      Action: 'ecr:SetRepositoryPolicy',
    });
    const fault = await t.refusal('SetRepositoryPolicy', { ...app, policyText });
    assert.equal(fault.code, 'InvalidParameterException');
    assert.match(fault.message, /would prevent you from setting another policy in the future/);
    assert.equal((await t.refusal('GetRepositoryPolicy', app)).code, 'RepositoryPolicyNotFoundException');
    await t.call('SetRepositoryPolicy', { ...app, policyText, force: true });
    assert.match(
      await t.fault('SetRepositoryPolicy', { ...app, policyText: text(statement()), force: true }),
      /^AccessDeniedException: .* with an explicit deny in a resource-based policy$/,
    );
    await t.call('DeleteRepositoryPolicy', app);
  });

  test('another account needs the repository policy and its own', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const { digest } = await t.addImage('app', 'layer', 'v1');
    const there = { ...app, registryId: ACCOUNT };
    assert.match(
      await t.fault('ListImages', there, t.other),
      /no resource-based policy allows the ecr:ListImages action$/,
    );
    const policyText = text(
      statement({ Principal: { AWS: OTHER }, Action: ['ecr:ListImages', 'ecr:DescribeRepositories'] }),
    );
    await t.call('SetRepositoryPolicy', { ...app, policyText });
    assert.deepEqual(await t.call('ListImages', there, t.other), {
      imageIds: [{ imageDigest: digest, imageTag: 'v1' }],
    });
    const described = await t.call<{ repositories: { registryId: string }[] }>(
      'DescribeRepositories',
      { registryId: ACCOUNT, repositoryNames: ['app'] },
      t.other,
    );
    assert.equal(described.repositories[0]?.registryId, ACCOUNT);
    assert.match(
      await t.fault('DescribeRepositories', { registryId: ACCOUNT }, t.other),
      /^AccessDeniedException/,
    );
    assert.equal((await t.refusal('ListImages', app, t.other)).code, 'RepositoryNotFoundException');
    const weak = await t.addUser(
      'weak',
      [{ Effect: 'Allow', Action: 'ecr:DescribeImages', Resource: '*' }],
      OTHER,
    );
    assert.match(await t.fault('ListImages', there, weak), /because no identity-based policy allows/);
  });
}
