import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { ecrModel } from '../model/service-model.ts';
import { kmsKeyOfAlias, kmsKeyOfId, MANAGED_ALIAS } from '../registry/registry.ts';
import { ACCOUNT, NOW, type OpenTestRegistry, OTHER, REGION } from './testing.ts';

export function repositoriesTests(openTestRegistry: OpenTestRegistry): void {
  const ARN = `arn:aws:ecr:${REGION}:${ACCOUNT}:repository`;
  const IN = `in the registry with id '${ACCOUNT}'`;

  test('the table has every operation of the model', async () => {
    await using t = await openTestRegistry();
    assert.deepEqual(Object.keys(t.table).sort(), Object.keys(ecrModel.operations).sort());
    assert.equal(Object.keys(t.table).length, 62);
    for (const entry of Object.values(t.table))
      if ('notBuilt' in entry) assert.match(entry.notBuilt, /not built/);
  });

  test('CreateRepository answers with the whole description and its defaults', async () => {
    await using t = await openTestRegistry();
    assert.deepEqual(await t.call('CreateRepository', { repositoryName: 'team/app' }), {
      repository: {
        repositoryArn: `${ARN}/team/app`,
        registryId: ACCOUNT,
        repositoryName: 'team/app',
        repositoryUri: 'localhost:7327/team/app',
        createdAt: new Date(NOW),
        imageTagMutability: 'MUTABLE',
        imageScanningConfiguration: { scanOnPush: false },
        encryptionConfiguration: { encryptionType: 'AES256' },
      },
    });
    assert.equal(
      await t.fault('CreateRepository', { repositoryName: 'team/app' }),
      `RepositoryAlreadyExistsException: The repository with name 'team/app' already exists ${IN}`,
    );
  });

  test('CreateRepository keeps what it is given', async () => {
    await using t = await openTestRegistry();
    const filters = [{ filterType: 'WILDCARD', filter: 'dev-*' }];
    const { repository } = await t.call<{ repository: Record<string, unknown> }>('CreateRepository', {
      repositoryName: 'app',
      registryId: ACCOUNT,
      imageTagMutability: 'IMMUTABLE_WITH_EXCLUSION',
      imageTagMutabilityExclusionFilters: filters,
      imageScanningConfiguration: { scanOnPush: true },
      tags: [{ Key: 'team', Value: '' }],
    });
    assert.equal(repository['imageTagMutability'], 'IMMUTABLE_WITH_EXCLUSION');
    assert.deepEqual(repository['imageTagMutabilityExclusionFilters'], filters);
    assert.deepEqual(repository['imageScanningConfiguration'], { scanOnPush: true });
    const described = await t.call('DescribeRepositories', { repositoryNames: ['app'] });
    assert.deepEqual(described, { repositories: [repository] });
    const tags = await t.call('ListTagsForResource', { resourceArn: `${ARN}/app` });
    assert.deepEqual(tags, { tags: [{ Key: 'team', Value: '' }] });
  });

  const filters = [{ filterType: 'WILDCARD', filter: '*' }];
  const at = (member: string, reason: string) =>
    `InvalidParameterException: Invalid parameter at '${member}' failed to satisfy constraint: '${reason}'`;
  const filterFault = (what: string, mode: string) =>
    at(
      'imageTagMutabilityExclusionFilters',
      `ImageTagMutabilityExclusionFilters ${what} when imageTagMutability is set to ${mode}`,
    );

  test('tag mutability: filters belong to the modes with exclusions', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const cases = [
      { mode: 'MUTABLE', given: filters, wanted: filterFault('are not allowed', 'MUTABLE') },
      { mode: 'IMMUTABLE', given: filters, wanted: filterFault('are not allowed', 'IMMUTABLE') },
      {
        mode: 'MUTABLE_WITH_EXCLUSION',
        given: undefined,
        wanted: filterFault("can't be null", 'MUTABLE_WITH_EXCLUSION'),
      },
      {
        mode: 'IMMUTABLE_WITH_EXCLUSION',
        given: undefined,
        wanted: filterFault("can't be null", 'IMMUTABLE_WITH_EXCLUSION'),
      },
    ];
    for (const { mode, given, wanted } of cases) {
      const input = { imageTagMutability: mode, imageTagMutabilityExclusionFilters: given };
      assert.equal(await t.fault('PutImageTagMutability', { repositoryName: 'app', ...input }), wanted);
      assert.equal(await t.fault('CreateRepository', { repositoryName: 'other', ...input }), wanted);
    }
    assert.equal(
      await t.fault('CreateRepository', {
        repositoryName: 'other',
        imageTagMutabilityExclusionFilters: filters,
      }),
      filterFault('are not allowed', 'MUTABLE'),
    );
  });

  test('PutImageTagMutability replaces mode and filters', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const put = (input: object) => t.call('PutImageTagMutability', { repositoryName: 'app', ...input });
    const answer = { registryId: ACCOUNT, repositoryName: 'app' };
    const exclusion = {
      imageTagMutability: 'MUTABLE_WITH_EXCLUSION',
      imageTagMutabilityExclusionFilters: filters,
    };
    assert.deepEqual(await put(exclusion), { ...answer, ...exclusion });
    assert.deepEqual(await put({ imageTagMutability: 'IMMUTABLE' }), {
      ...answer,
      imageTagMutability: 'IMMUTABLE',
    });
    const { repositories } = await t.call<{ repositories: object[] }>('DescribeRepositories', {});
    assert.ok(!('imageTagMutabilityExclusionFilters' in (repositories[0] ?? {})));
    assert.equal(
      await t.fault('PutImageTagMutability', { repositoryName: 'none', imageTagMutability: 'IMMUTABLE' }),
      `RepositoryNotFoundException: The repository with name 'none' does not exist ${IN}`,
    );
  });

  test('encryption: AES256, the own KMS key, keys by id, ARN and alias', async () => {
    await using t = await openTestRegistry();
    const scope = { account: ACCOUNT, region: REGION };
    const managed = kmsKeyOfAlias(scope, MANAGED_ALIAS);
    const named = kmsKeyOfAlias(scope, 'alias/team');
    const byId = kmsKeyOfId(scope, '1234abcd-12ab-34cd-56ef-1234567890ab');
    assert.match(
      managed.arn,
      /^arn:aws:kms:eu-west-1:000000000000:key\/[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
    );
    assert.equal(t.ring.has(managed.ringName), false);
    await t.ring.createKey(named.ringName);
    await t.ring.createKey(byId.ringName);
    const aliasArn = `arn:aws:kms:${REGION}:${ACCOUNT}:alias/team`;
    const cases = [
      [undefined, managed.arn],
      ['alias/aws/ecr', managed.arn],
      [managed.arn, managed.arn],
      ['alias/team', named.arn],
      [aliasArn, named.arn],
      [named.arn, named.arn],
      ['1234abcd-12ab-34cd-56ef-1234567890ab', byId.arn],
    ] as const;
    for (const [i, [kmsKey, wanted]] of cases.entries()) {
      const { repository } = await t.call<{ repository: Record<string, unknown> }>('CreateRepository', {
        repositoryName: `kms-${i}`,
        encryptionConfiguration: { encryptionType: 'KMS', kmsKey },
      });
      assert.deepEqual(repository['encryptionConfiguration'], { encryptionType: 'KMS', kmsKey: wanted });
    }
    assert.equal(t.ring.has(managed.ringName), true);
  });

  test('encryption: keys that are not there', async () => {
    await using t = await openTestRegistry();
    const create = (encryptionConfiguration: object) =>
      t.refusal('CreateRepository', { repositoryName: 'app', encryptionConfiguration });
    const unknown = kmsKeyOfId({ account: ACCOUNT, region: REGION }, 'nope').arn;
    const foreign = `arn:aws:kms:${REGION}:${OTHER}:key/1`;
    const cases = [
      ['nope', `Key '${unknown}' does not exist`],
      [unknown, `Key '${unknown}' does not exist`],
      [foreign, `Key '${foreign}' does not exist`],
      ['not a key', `Invalid keyId 'not a key'`],
    ] as const;
    for (const [kmsKey, message] of cases) {
      const fault = await create({ encryptionType: 'KMS', kmsKey });
      assert.deepEqual(
        { code: fault.code, message: fault.message, detail: fault.detail },
        { code: 'KmsException', message, detail: { kmsError: 'NotFoundException' } },
      );
    }
    const dsse = await create({ encryptionType: 'KMS_DSSE' });
    assert.equal(dsse.code, 'InvalidParameterException');
    assert.equal((await create({ encryptionType: 'AES256', kmsKey: 'x' })).code, 'InvalidParameterException');
    assert.deepEqual(await t.call('DescribeRepositories', {}), { repositories: [] });
  });

  test('the repository quota and its order of checks', async () => {
    await using t = await openTestRegistry({ repositoriesMax: 1 });
    await t.call('CreateRepository', { repositoryName: 'one' });
    assert.match(await t.fault('CreateRepository', { repositoryName: 'two' }), /^LimitExceededException: /);
    assert.match(
      await t.fault('CreateRepository', { repositoryName: 'one' }),
      /^RepositoryAlreadyExistsException: /,
    );
    assert.equal((await t.call<{ repositories: [] }>('DescribeRepositories', {})).repositories.length, 1);
    await t.call('CreateRepository', { repositoryName: 'two' }, t.other);
  });

  test('DescribeRepositories by name', async () => {
    await using t = await openTestRegistry();
    for (const repositoryName of ['b', 'a', 'c1']) await t.call('CreateRepository', { repositoryName });
    const describe = async (input: object) =>
      (
        await t.call<{ repositories: { repositoryName: string }[] }>('DescribeRepositories', { ...input })
      ).repositories.map(({ repositoryName }) => repositoryName);
    assert.deepEqual(await describe({ repositoryNames: ['c1', 'a', 'c1'] }), ['c1', 'a']);
    assert.deepEqual(await describe({}), ['a', 'b', 'c1']);
    assert.equal(
      await t.fault('DescribeRepositories', { repositoryNames: ['a', 'no', 'nor'] }),
      `RepositoryNotFoundException: The repository with name 'no' does not exist ${IN}`,
    );
    for (const member of ['nextToken', 'maxResults']) {
      assert.equal(
        await t.fault('DescribeRepositories', {
          repositoryNames: ['a'],
          [member]: member === 'maxResults' ? 1 : 'x',
        }),
        at(member, 'Member must not be specified together with repositoryNames'),
      );
    }
  });

  test('pages of DescribeRepositories concatenate to the list, whatever is created meanwhile', async () => {
    await using t = await openTestRegistry();
    const names = Array.from({ length: 12 }, (_, i) => `repo-${String(i).padStart(2, '0')}`);
    for (const repositoryName of names) await t.call('CreateRepository', { repositoryName });
    let made = 0;
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 13 }), fc.boolean(), async (maxResults, create) => {
        const found: string[] = [];
        let nextToken: string | undefined;
        do {
          const page: { repositories: { repositoryName: string }[]; nextToken?: string } = await t.call(
            'DescribeRepositories',
            { maxResults, nextToken },
          );
          assert.ok(page.repositories.length <= maxResults);
          found.push(...page.repositories.map(({ repositoryName }) => repositoryName));
          ({ nextToken } = page);
          if (create && made < 20) await t.call('CreateRepository', { repositoryName: `a-${made++}` });
        } while (nextToken !== undefined);
        assert.deepEqual(found, [...new Set(found)].sort());
        assert.deepEqual(
          found.filter((name) => name.startsWith('repo-')),
          names,
        );
      }),
      { numRuns: 20 },
    );
  });

  test('tokens are bound to their call and cannot be made up', async () => {
    await using t = await openTestRegistry();
    for (const repositoryName of ['aa', 'bb']) await t.call('CreateRepository', { repositoryName });
    const { nextToken } = await t.call<{ nextToken: string }>('DescribeRepositories', { maxResults: 1 });
    const bad = at('nextToken', 'Member must satisfy constraint: [Invalid token]');
    const other = t.other;
    assert.equal(await t.fault('DescribeRepositories', { nextToken }, other), bad);
    for (const forged of [
      '',
      'x',
      `${nextToken}A`,
      nextToken.slice(1),
      nextToken.toUpperCase(),
      'é'.repeat(40),
    ]) {
      assert.equal(await t.fault('DescribeRepositories', { nextToken: forged }), bad);
    }
    assert.equal(await t.fault('ListImages', { repositoryName: 'aa', nextToken }), bad);
  });

  test('DeleteRepository', async () => {
    await using t = await openTestRegistry();
    const { repository } = await t.call<{ repository: object }>('CreateRepository', {
      repositoryName: 'app',
      tags: [{ Key: 'a', Value: 'b' }],
    });
    const { digest } = await t.addImage('app', 'layer', 'v1');
    await t.call('InitiateLayerUpload', { repositoryName: 'app' });
    assert.equal(
      await t.fault('DeleteRepository', { repositoryName: 'app' }),
      `RepositoryNotEmptyException: The repository with name 'app' in registry with id '${ACCOUNT}' cannot be deleted because it still contains images`,
    );
    assert.deepEqual(await t.call('DeleteRepository', { repositoryName: 'app', force: true }), {
      repository,
    });
    assert.equal(
      await t.fault('DeleteRepository', { repositoryName: 'app' }),
      `RepositoryNotFoundException: The repository with name 'app' does not exist ${IN}`,
    );
    await t.call('CreateRepository', { repositoryName: 'app' });
    assert.equal(
      (await t.refusal('DescribeImages', { repositoryName: 'app', imageIds: [{ imageDigest: digest }] }))
        .code,
      'ImageNotFoundException',
    );
    assert.deepEqual(await t.call('ListTagsForResource', { resourceArn: `${ARN}/app` }), { tags: [] });
    await t.call('DeleteRepository', { repositoryName: 'app' });
  });

  test('what each operation asks to be allowed', async () => {
    await using t = await openTestRegistry();
    const context = { caller: t.admin.principal, region: REGION } as never;
    const access = (operation: string, input: object) => {
      const entry = t.table[operation];
      assert.ok(entry !== undefined && !('notBuilt' in entry));
      return entry.access(input as never, context);
    };
    const tags = [{ Key: 'Team', Value: 'x' }];
    assert.deepEqual(access('CreateRepository', { repositoryName: 'app', tags }), [
      {
        action: 'ecr:CreateRepository',
        resource: `${ARN}/app`,
        keys: new Map<string, unknown>([
          ['aws:requesttag/team', 'x'],
          ['aws:tagkeys', ['Team']],
        ]),
      },
    ]);
    assert.deepEqual(access('DescribeRepositories', {}), [
      { action: 'ecr:DescribeRepositories', resource: `${ARN}/*` },
    ]);
    assert.deepEqual(access('DescribeRepositories', { repositoryNames: ['aa', 'bb'], registryId: OTHER }), [
      { action: 'ecr:DescribeRepositories', resource: `arn:aws:ecr:${REGION}:${OTHER}:repository/aa` },
      { action: 'ecr:DescribeRepositories', resource: `arn:aws:ecr:${REGION}:${OTHER}:repository/bb` },
    ]);
    assert.deepEqual(access('GetAuthorizationToken', {}), [
      { action: 'ecr:GetAuthorizationToken', resource: '*' },
    ]);
    const named = [
      'DeleteRepository',
      'ListImages',
      'DescribeImages',
      'BatchGetImage',
      'BatchDeleteImage',
      'PutImage',
      'InitiateLayerUpload',
      'UploadLayerPart',
      'CompleteLayerUpload',
      'BatchCheckLayerAvailability',
      'GetDownloadUrlForLayer',
      'SetRepositoryPolicy',
      'GetRepositoryPolicy',
      'DeleteRepositoryPolicy',
      'PutImageTagMutability',
    ];
    for (const name of named) {
      assert.deepEqual(access(name, { repositoryName: 'app' }), [
        { action: `ecr:${name}`, resource: `${ARN}/app` },
      ]);
    }
  });

  test('a caller without permission does not learn whether a repository exists', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const nobody = await t.addUser('nobody', [
      { Effect: 'Allow', Action: 'ecr:CreateRepository', Resource: `${ARN}/mine/*` },
    ]);
    for (const repositoryName of ['app', 'none']) {
      assert.equal(
        await t.fault('ListImages', { repositoryName }, nobody),
        `AccessDeniedException: User: ${nobody.arn} is not authorized to perform: ecr:ListImages on resource: ` +
          `${ARN}/${repositoryName} because no identity-based policy allows the ecr:ListImages action`,
      );
    }
    assert.match(
      await t.fault('CreateRepository', { repositoryName: 'app2' }, nobody),
      /^AccessDeniedException/,
    );
    await t.call('CreateRepository', { repositoryName: 'mine/app' }, nobody);
    assert.match(
      await t.fault('CreateRepository', { repositoryName: 'app2', registryId: ACCOUNT }, t.other),
      /^AccessDeniedException/,
    );
  });

  test('GetAuthorizationToken', async () => {
    await using t = await openTestRegistry();
    const user = await t.addUser('puller', [
      { Effect: 'Allow', Action: 'ecr:GetAuthorizationToken', Resource: '*' },
    ]);
    const { authorizationData } = await t.call<{ authorizationData: Record<string, unknown>[] }>(
      'GetAuthorizationToken',
      { registryIds: [OTHER, ACCOUNT] },
      user,
    );
    assert.equal(authorizationData.length, 2);
    const [first] = authorizationData;
    assert.deepEqual(first?.['expiresAt'], new Date(NOW + 12 * 3_600_000));
    assert.equal(first?.['proxyEndpoint'], 'http://localhost:7327');
    const [name, password = ''] = Buffer.from(String(first?.['authorizationToken']), 'base64')
      .toString()
      .split(':');
    assert.equal(name, 'AWS');
    const opened = await t.identity.openRegistryToken(password, NOW);
    assert.equal(opened.principal.caller.arn, user.arn);
    assert.equal(opened.region, REGION);
    const none = await t.addUser('none', [{ Effect: 'Allow', Action: 'ecr:ListImages', Resource: '*' }]);
    assert.match(
      await t.fault('GetAuthorizationToken', {}, none),
      /on resource: \* because no identity-based policy/,
    );
  });
}
