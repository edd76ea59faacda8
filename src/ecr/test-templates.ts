import assert from 'node:assert/strict';
import { test } from 'node:test';
import { kmsKeyOfAlias, MANAGED_ALIAS } from '../registry/registry.ts';
import { ACCOUNT, NOW, type OpenTestRegistry, OTHER, REGION, type TestRegistry } from './testing.ts';

export function templatesTests(openTestRegistry: OpenTestRegistry): void {
  type Template = Record<string, unknown>;
  const role = `arn:aws:iam::${ACCOUNT}:role/templates`;
  const at = (member: string, reason: string) =>
    `InvalidParameterException: Invalid parameter at '${member}' failed to satisfy constraint: '${reason}'`;
  const policy = (more: object = {}) =>
    JSON.stringify({
      Version: '2012-10-17',
      Statement: [{ Effect: 'Allow', Principal: '*', Action: 'ecr:BatchGetImage', ...more }],
    });
  const lifecycle = JSON.stringify({
    rules: [
      {
        rulePriority: 1,
        selection: { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber: 3 },
        action: { type: 'expire' },
      },
    ],
  });
  const plain = { appliedFor: ['CREATE_ON_PUSH'] };

  async function create(t: TestRegistry, prefix: string, more: Template = {}): Promise<Template> {
    const answer = await t.call<{ registryId: string; repositoryCreationTemplate: Template }>(
      'CreateRepositoryCreationTemplate',
      { prefix, ...plain, ...more },
    );
    assert.equal(answer.registryId, ACCOUNT);
    return answer.repositoryCreationTemplate;
  }

  async function prefixes(t: TestRegistry, input: Template = {}): Promise<unknown[]> {
    const { repositoryCreationTemplates: found } = await t.call<{ repositoryCreationTemplates: Template[] }>(
      'DescribeRepositoryCreationTemplates',
      input,
    );
    return found.map(({ prefix }) => prefix);
  }

  /** What a push into a repository that is not there makes, if anything. */
  async function push(t: TestRegistry, name: string) {
    const address = { account: ACCOUNT, region: REGION, name };
    const template = await t.registry.templates.match(address, 'CREATE_ON_PUSH');
    return template && (await t.registry.templates.create(address, template));
  }

  test('create, describe, update, delete', async () => {
    await using t = await openTestRegistry();
    const bare = {
      prefix: 'team',
      encryptionConfiguration: { encryptionType: 'AES256' },
      resourceTags: [],
      imageTagMutability: 'MUTABLE',
      appliedFor: ['CREATE_ON_PUSH'],
      createdAt: new Date(NOW),
      updatedAt: new Date(NOW),
    };
    assert.deepEqual(await create(t, 'team'), bare);
    const whole = {
      description: 'of the whole registry',
      encryptionConfiguration: { encryptionType: 'KMS' },
      resourceTags: [{ Key: 'made', Value: 'by push' }],
      imageTagMutability: 'IMMUTABLE_WITH_EXCLUSION',
      imageTagMutabilityExclusionFilters: [{ filterType: 'WILDCARD', filter: 'latest*' }],
      customRoleArn: role,
    };
    const made = await create(t, 'ROOT', {
      ...whole,
      repositoryPolicy: policy(),
      lifecyclePolicy: lifecycle,
    });
    assert.deepEqual({ ...made, ...whole }, made);
    assert.match(String(made['repositoryPolicy']), /^\{\n {2}"Version" : "2012-10-17",/);
    assert.match(String(made['lifecyclePolicy']), /"rulePriority"/);

    t.now += 1000;
    const cleared = {
      description: '',
      repositoryPolicy: '',
      lifecyclePolicy: '',
      customRoleArn: '',
      resourceTags: [],
    };
    const { repositoryCreationTemplate: updated } = await t.call<{ repositoryCreationTemplate: Template }>(
      'UpdateRepositoryCreationTemplate',
      {
        prefix: 'ROOT',
        ...cleared,
        imageTagMutability: 'IMMUTABLE',
        appliedFor: ['REPLICATION', 'REPLICATION'],
      },
    );
    assert.deepEqual(updated, {
      prefix: 'ROOT',
      description: '',
      encryptionConfiguration: { encryptionType: 'KMS' },
      resourceTags: [],
      imageTagMutability: 'IMMUTABLE',
      appliedFor: ['REPLICATION'],
      createdAt: new Date(NOW),
      updatedAt: new Date(NOW + 1000),
    });
    await t.call('UpdateRepositoryCreationTemplate', { prefix: 'team', description: 'of the team' });
    const { repositoryCreationTemplates } = await t.call<{ repositoryCreationTemplates: Template[] }>(
      'DescribeRepositoryCreationTemplates',
      { prefixes: ['team', 'none'] },
    );
    assert.deepEqual(repositoryCreationTemplates, [
      { ...bare, description: 'of the team', updatedAt: new Date(NOW + 1000) },
    ]);
    const gone = await t.call<{ repositoryCreationTemplate: Template }>('DeleteRepositoryCreationTemplate', {
      prefix: 'team/',
    });
    assert.equal(gone.repositoryCreationTemplate['prefix'], 'team');
    assert.deepEqual(await prefixes(t), ['ROOT']);
    assert.deepEqual(await t.call('DescribeRepositoryCreationTemplates', {}, t.other), {
      registryId: OTHER,
      repositoryCreationTemplates: [],
    });
  });

  test('what is refused', async () => {
    await using t = await openTestRegistry({ creationTemplatesMax: 2 });
    await create(t, 'team');
    const missing = `TemplateNotFoundException: The repository creation template with prefix 'none' does not exist in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('UpdateRepositoryCreationTemplate', { prefix: 'none' }), missing);
    assert.equal(await t.fault('DeleteRepositoryCreationTemplate', { prefix: 'none' }), missing);
    const cases: [more: Template, fault: string][] = [
      [
        { prefix: 'team/' },
        `TemplateAlreadyExistsException: The repository creation template with prefix 'team/' already exists in the registry with id '${ACCOUNT}'`,
      ],
      [{ repositoryPolicy: '{}' }, at('PolicyText', 'Invalid repository policy provided')],
      [
        { repositoryPolicy: policy({ Principal: { AWS: '222222222222' } }) },
        at('PolicyText', 'Principal not found'),
      ],
      [
        { repositoryPolicy: policy({ Resource: `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/team/app` }) },
        at('PolicyText', 'Invalid repository policy provided'),
      ],
      [
        { encryptionConfiguration: { encryptionType: 'AES256', kmsKey: 'arn:aws:kms:x:1:key/a' } },
        at('encryptionConfiguration', 'kmsKey is not allowed when encryptionType is set to AES256'),
      ],
      [
        { imageTagMutability: 'MUTABLE_WITH_EXCLUSION' },
        at(
          'imageTagMutabilityExclusionFilters',
          "ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set to MUTABLE_WITH_EXCLUSION",
        ),
      ],
      [{ customRoleArn: 'role' }, at('customRoleArn', 'Invalid ARN')],
      [
        { customRoleArn: `arn:aws:iam::${OTHER}:role/templates` },
        `AccessDeniedException: User: ${t.admin.arn} is not authorized to perform: iam:PassRole on resource: arn:aws:iam::${OTHER}:role/templates because no resource-based policy allows the iam:PassRole action`,
      ],
      [
        { resourceTags: [{ Key: 'aws:x', Value: '' }] },
        'InvalidTagParameterException: An invalid parameter has been specified. Tag keys that start with aws: are reserved for system use.',
      ],
    ];
    for (const [more, fault] of cases)
      assert.equal(
        await t.fault('CreateRepositoryCreationTemplate', { prefix: 'new', ...plain, ...more }),
        fault,
      );
    assert.match(
      await t.fault('CreateRepositoryCreationTemplate', { prefix: 'new', ...plain, lifecyclePolicy: '{}' }),
      /^InvalidParameterException: .*Lifecycle policy validation failure/,
    );
    await create(t, 'two');
    assert.equal(
      await t.fault('CreateRepositoryCreationTemplate', { prefix: 'three', ...plain }),
      `LimitExceededException: The registry with id '${ACCOUNT}' already has the maximum allowed number of repository creation templates which is '2'`,
    );
  });

  test('the author of a template needs the rights it will use', async () => {
    await using t = await openTestRegistry();
    const allow = (Action: string, Resource = '*') => ({ Effect: 'Allow', Action, Resource });
    const author = await t.addUser('author', [
      allow('ecr:CreateRepositoryCreationTemplate'),
      allow('ecr:SetRepositoryPolicy', `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/team/*`),
    ]);
    const attempt = (more: Template) =>
      t.fault('CreateRepositoryCreationTemplate', { ...plain, ...more }, author);
    assert.match(
      await attempt({ prefix: 'ROOT', customRoleArn: role }),
      /iam:PassRole on resource: arn.*role\/templates/,
    );
    assert.match(
      await attempt({ prefix: 'ROOT', repositoryPolicy: policy() }),
      /ecr:SetRepositoryPolicy on resource: .*:repository\/\* because/,
    );
    assert.match(
      await attempt({ prefix: 'team', lifecyclePolicy: lifecycle }),
      /ecr:PutLifecyclePolicy on resource: .*:repository\/team\/\* because/,
    );
    const input = { prefix: 'team', ...plain, repositoryPolicy: policy() };
    await t.call('CreateRepositoryCreationTemplate', input, author);
  });

  test('pages', async () => {
    await using t = await openTestRegistry();
    const all = ['ROOT', 'a', 'a/b', 'b', 'c/'];
    for (const prefix of all) await create(t, prefix);
    const found: unknown[] = [];
    let nextToken: unknown;
    do {
      const input = { maxResults: 2, ...(nextToken !== undefined && { nextToken }) };
      const page = await t.call<{ repositoryCreationTemplates: Template[]; nextToken?: string }>(
        'DescribeRepositoryCreationTemplates',
        input,
      );
      found.push(...page.repositoryCreationTemplates.map(({ prefix }) => prefix));
      ({ nextToken } = page);
    } while (nextToken !== undefined);
    assert.deepEqual(found, all);
    assert.equal(
      await t.fault('DescribeRepositoryCreationTemplates', { prefixes: ['a'], maxResults: 2 }),
      at('maxResults', 'Member must not be specified together with prefixes'),
    );
    const prefixes = Array.from({ length: 70_000 }, (_, i) => `x${i}`);
    const many = await t.call<{ repositoryCreationTemplates: Template[] }>(
      'DescribeRepositoryCreationTemplates',
      { prefixes: [...prefixes, 'b', 'c'] },
    );
    assert.deepEqual(
      many.repositoryCreationTemplates.map(({ prefix }) => prefix),
      ['b', 'c/'],
    );
  });

  test('the longest prefix for the scenario makes a repository', async () => {
    await using t = await openTestRegistry();
    assert.equal(await push(t, 'a/b/c'), undefined);
    const immutable = { imageTagMutability: 'IMMUTABLE' };
    await create(t, 'a', immutable);
    await create(t, 'a/b/', { ...immutable, appliedFor: ['PULL_THROUGH_CACHE'] });
    const made = async (name: string) => (await push(t, name))?.mutability;
    assert.equal(await made('a/b/c'), 'IMMUTABLE');
    for (const name of ['a', 'ab/c', 'b/a/c', 'root']) assert.equal(await made(name), undefined, name);
    await create(t, 'ROOT');
    for (const name of ['aa', 'ab/c', 'b/a/c', 'root']) assert.equal(await made(name), 'MUTABLE', name);
    assert.equal(await made('a/d'), 'IMMUTABLE');
    assert.equal(
      await t.registry.findRepository({ account: OTHER, region: REGION, name: 'root' }),
      undefined,
    );
  });

  test('a repository gets all that its template sets, and keeps it', async () => {
    await using t = await openTestRegistry();
    await create(t, 'team', {
      encryptionConfiguration: { encryptionType: 'KMS' },
      resourceTags: [{ Key: 'made', Value: 'by push' }],
      imageTagMutability: 'MUTABLE_WITH_EXCLUSION',
      imageTagMutabilityExclusionFilters: [{ filterType: 'WILDCARD', filter: 'v*' }],
      repositoryPolicy: policy(),
      lifecyclePolicy: lifecycle,
      customRoleArn: role,
    });
    await push(t, 'team/app');
    const { repositories } = await t.call<{ repositories: Template[] }>('DescribeRepositories', {});
    const [repository] = repositories;
    assert.deepEqual(repository?.['encryptionConfiguration'], {
      encryptionType: 'KMS',
      kmsKey: kmsKeyOfAlias({ account: ACCOUNT, region: REGION }, MANAGED_ALIAS).arn,
    });
    assert.equal(repository['imageTagMutability'], 'MUTABLE_WITH_EXCLUSION');
    assert.deepEqual(repository['imageTagMutabilityExclusionFilters'], [
      { filterType: 'WILDCARD', filter: 'v*' },
    ]);
    const app = { repositoryName: 'team/app' };
    const { tags } = await t.call<{ tags: unknown }>('ListTagsForResource', {
      resourceArn: repository['repositoryArn'],
    });
    assert.deepEqual(tags, [{ Key: 'made', Value: 'by push' }]);
    assert.match(String((await t.call<Template>('GetRepositoryPolicy', app))['policyText']), /BatchGetImage/);
    const { lifecyclePolicyText } = await t.call<Template>('GetLifecyclePolicy', app);
    assert.match(String(lifecyclePolicyText), /imageCountMoreThan/);
    await t.call('DeleteRepositoryCreationTemplate', { prefix: 'team' });
    assert.match(String((await t.call<Template>('GetRepositoryPolicy', app))['policyText']), /BatchGetImage/);
  });

  test('pushes side by side make one repository, and the quota holds', async () => {
    await using t = await openTestRegistry({ repositoriesMax: 1 });
    await create(t, 'ROOT');
    const made = await Promise.all(Array.from({ length: 8 }, () => push(t, 'app')));
    assert.equal(new Set(made.map((repository) => repository?.id)).size, 1);
    await assert.rejects(push(t, 'other'), { code: 'LimitExceededException' });
  });
}
