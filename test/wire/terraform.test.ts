/**
 * What Terraform's `aws` provider sends for each `aws_ecr_*` resource and data source, and what it relies on in the
 * answers. The provider itself cannot be downloaded where these tests run, so its call sequences are replayed with the
 * AWS SDK: create, read after create, read again, update, delete, read after delete, delete again. They were read from
 * the provider's source; OpenTofu and Pulumi's bridged provider send the same. Whatever a configuration could not hold
 * between two plans (a policy that comes back different, a missing nested block) would show there as an endless diff.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type DescribeImagesCommandInput,
  type ECR,
  type ImageDetail,
  type ImageIdentifier,
  paginateDescribeImages,
  paginateDescribeRepositories,
  paginateDescribeRepositoryCreationTemplates,
  paginateListImages,
  type RepositoryCreationTemplate,
} from '@aws-sdk/client-ecr';

import {
  ACCOUNT,
  REGION,
  repositoryName,
  app,
  roleArn,
  open,
  findRepository,
  isGone,
  waitRepositoryDeleted,
  readTags,
  equivalent,
  sortedRules,
  pushImages,
} from './terraform-provider.ts';

test('start-up: caller identity, the user of the key, roles', async () => {
  await using server = await open();
  const { sts, iam } = server;
  for (const _ of ['validate', 'account']) {
    const { Account, Arn = '' } = await sts.getCallerIdentity({});
    assert.equal(Account, ACCOUNT);
    assert.match(Arn, new RegExp(`^arn:aws:iam::${ACCOUNT}:user/admin$`));
  }
  // with skip_credentials_validation the account is taken from the user, else from a role
  const { User } = await iam.getUser({});
  assert.equal(User?.Arn?.split(':')[4], ACCOUNT);
  const { Roles, IsTruncated } = await iam.listRoles({ MaxItems: 1 });
  assert.deepEqual([Roles, IsTruncated], [[], false]);
  const assume = { Effect: 'Allow', Principal: { AWS: ACCOUNT }, Action: 'sts:AssumeRole' };
  const AssumeRolePolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement: [assume] });
  for (const RoleName of ['one', 'two']) await iam.createRole({ RoleName, AssumeRolePolicyDocument });
  const first = await iam.listRoles({ MaxItems: 1 });
  assert.deepEqual([first.Roles?.[0]?.Arn, first.IsTruncated], [roleArn('one'), true]);
});

test('aws_ecr_repository: defaults, read twice, update, delete, gone', async () => {
  await using server = await open();
  const { ecr, berth } = server;
  const { repository } = await ecr.createRepository({ ...app, imageTagMutability: 'MUTABLE' });
  const read = await findRepository(ecr);
  assert.deepEqual(read, repository);
  assert.deepEqual(await findRepository(ecr), read);
  const { createdAt, ...rest } = read;
  assert.ok(createdAt instanceof Date);
  // the nested blocks have to be there although nothing asked for them, else every plan differs
  assert.deepEqual(rest, {
    repositoryArn: `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${repositoryName}`,
    registryId: ACCOUNT,
    repositoryName,
    repositoryUri: `localhost:${berth.port}/${repositoryName}`,
    imageTagMutability: 'MUTABLE',
    imageScanningConfiguration: { scanOnPush: false },
    encryptionConfiguration: { encryptionType: 'AES256' },
  });
  assert.deepEqual(await readTags(ecr, read.repositoryArn), {});

  await ecr.putImageTagMutability({ ...app, imageTagMutability: 'IMMUTABLE' });
  assert.deepEqual(await findRepository(ecr), { ...read, imageTagMutability: 'IMMUTABLE' });

  await ecr.deleteRepository({ ...app, force: false });
  await waitRepositoryDeleted(ecr, repositoryName);
  const gone = {
    name: 'RepositoryNotFoundException',
    message: `The repository with name '${repositoryName}' does not exist in the registry with id '${ACCOUNT}'`,
  };
  await assert.rejects(findRepository(ecr), gone);
  await assert.rejects(ecr.deleteRepository(app), gone);
  await assert.rejects(ecr.listTagsForResource({ resourceArn: read.repositoryArn }), gone);
});

test('aws_ecr_repository: every argument at creation comes back as it was given', async () => {
  await using server = await open();
  const { ecr } = server;
  const exclusions = [
    { filterType: 'WILDCARD' as const, filter: 'latest*' },
    { filterType: 'WILDCARD' as const, filter: 'dev-*' },
  ];
  const given = {
    imageTagMutability: 'IMMUTABLE_WITH_EXCLUSION' as const,
    imageTagMutabilityExclusionFilters: exclusions,
    imageScanningConfiguration: { scanOnPush: true },
  };
  await ecr.createRepository({
    ...app,
    ...given,
    encryptionConfiguration: { encryptionType: 'KMS' },
    tags: [
      { Key: 'team', Value: 'blue' },
      { Key: 'Name', Value: '' },
    ],
  });
  const read = await findRepository(ecr);
  assert.deepEqual({ ...read, ...given }, read);
  // the key was AWS's to choose: the attribute is computed, but has to be the same at every read
  assert.equal(read.encryptionConfiguration?.encryptionType, 'KMS');
  assert.match(read.encryptionConfiguration?.kmsKey ?? '', /^arn:aws:kms:us-east-1:000000000000:key\//);
  assert.deepEqual(await findRepository(ecr), read);
  assert.deepEqual(await readTags(ecr, read.repositoryArn), { team: 'blue', Name: '' });

  // tags are changed by removing what is no longer configured, then setting what is new or different
  const resourceArn = read.repositoryArn;
  await ecr.untagResource({ resourceArn, tagKeys: ['Name'] });
  await ecr.tagResource({ resourceArn, tags: [{ Key: 'team', Value: 'green' }] });
  assert.deepEqual(await readTags(ecr, resourceArn), { team: 'green' });

  await ecr.putImageTagMutability({
    ...app,
    imageTagMutability: 'MUTABLE_WITH_EXCLUSION',
    imageTagMutabilityExclusionFilters: exclusions.slice(1),
  });
  const changed = await findRepository(ecr);
  assert.equal(changed.imageTagMutability, 'MUTABLE_WITH_EXCLUSION');
  assert.deepEqual(changed.imageTagMutabilityExclusionFilters, exclusions.slice(1));
  await ecr.putImageTagMutability({ ...app, imageTagMutability: 'MUTABLE' });
  assert.equal((await findRepository(ecr)).imageTagMutabilityExclusionFilters, undefined);
});

test('aws_ecr_repository: force_delete, an existing name, a region of its own', async () => {
  await using server = await open();
  const { ecr } = server;
  await ecr.createRepository(app);
  await assert.rejects(ecr.createRepository(app), isGone('RepositoryAlreadyExistsException'));
  await pushImages(ecr, ['v1']);
  // the code that makes the provider say "consider using force_delete"
  await assert.rejects(ecr.deleteRepository({ ...app, force: false }), isGone('RepositoryNotEmptyException'));
  await findRepository(ecr);

  const elsewhere = server.ecrIn('eu-central-1');
  try {
    await assert.rejects(findRepository(elsewhere), isGone('RepositoryNotFoundException'));
    const { repository } = await elsewhere.createRepository(app);
    assert.equal(
      repository?.repositoryArn,
      `arn:aws:ecr:eu-central-1:${ACCOUNT}:repository/${repositoryName}`,
    );
    await ecr.deleteRepository({ ...app, force: true });
    await waitRepositoryDeleted(ecr, repositoryName);
    assert.deepEqual(await findRepository(elsewhere), repository);
  } finally {
    elsewhere.destroy();
  }
  // destroyed and made again under the same name, it is empty
  await ecr.createRepository(app);
  assert.deepEqual((await ecr.listImages(app)).imageIds, []);
});

test('aws_ecr_repository_policy', async () => {
  await using server = await open();
  const { ecr, iam } = server;
  const absent = isGone('RepositoryPolicyNotFoundException');
  await assert.rejects(ecr.getRepositoryPolicy(app), isGone('RepositoryNotFoundException'));
  await ecr.createRepository(app);
  await assert.rejects(ecr.getRepositoryPolicy(app), absent);

  const policyFor = (AWS: unknown, Action: unknown = ['ecr:BatchGetImage']) =>
    JSON.stringify({
      Version: '2008-10-17',
      Statement: [{ Sid: 'pull', Effect: 'Allow', Principal: { AWS }, Action }],
    });
  // A role made in the same apply exists at once here, so the provider never has to try again until it does.
  await assert.rejects(ecr.setRepositoryPolicy({ ...app, policyText: policyFor(roleArn('puller')) }), {
    name: 'InvalidParameterException',
    message: "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Principal not found'",
  });
  const AssumeRolePolicyDocument = JSON.stringify({
    Version: '2012-10-17',
    Statement: [{ Effect: 'Allow', Principal: { AWS: ACCOUNT }, Action: 'sts:AssumeRole' }],
  });
  await iam.createRole({ RoleName: 'puller', AssumeRolePolicyDocument });

  const texts = [
    policyFor(roleArn('puller')),
    policyFor('*', 'ecr:*'),
    policyFor(ACCOUNT, ['ecr:GetDownloadUrlForLayer', 'ecr:BatchGetImage']),
    policyFor([roleArn('puller'), `arn:aws:iam::${ACCOUNT}:root`]),
  ];
  for (const policyText of texts) {
    const put = await ecr.setRepositoryPolicy({ ...app, policyText, force: false });
    assert.deepEqual([put.repositoryName, put.registryId], [repositoryName, ACCOUNT]);
    const read = await ecr.getRepositoryPolicy(app);
    assert.deepEqual([read.repositoryName, read.registryId], [repositoryName, ACCOUNT]);
    assert.deepEqual(equivalent(read.policyText), equivalent(policyText));
    assert.equal((await ecr.getRepositoryPolicy(app)).policyText, read.policyText);
  }
  await ecr.deleteRepositoryPolicy(app);
  await assert.rejects(ecr.getRepositoryPolicy(app), absent);
  await assert.rejects(ecr.deleteRepositoryPolicy(app), absent);
  await ecr.deleteRepository(app);
  await assert.rejects(ecr.deleteRepositoryPolicy(app), isGone('RepositoryNotFoundException'));
});

test('aws_ecr_lifecycle_policy', async () => {
  await using server = await open();
  const { ecr } = server;
  const absent = isGone('LifecyclePolicyNotFoundException');
  await assert.rejects(ecr.getLifecyclePolicy(app), isGone('RepositoryNotFoundException'));
  await ecr.createRepository(app);
  await assert.rejects(ecr.getLifecyclePolicy(app), absent);

  const untagged = {
    rulePriority: 1,
    description: 'Expire images older than 14 days',
    selection: { tagStatus: 'untagged', countType: 'sinceImagePushed', countUnit: 'days', countNumber: 14 },
    action: { type: 'expire' },
  };
  const prefixes = {
    rulePriority: 2,
    description: 'Keep last 30 images',
    selection: {
      tagStatus: 'tagged',
      tagPrefixList: ['v', 'prod', 'beta'],
      countType: 'imageCountMoreThan',
      countNumber: 30,
    },
    action: { type: 'expire' },
  };
  const patterns = {
    ...prefixes,
    rulePriority: 3,
    selection: {
      tagStatus: 'tagged',
      tagPatternList: ['*-rc*', 'a*'],
      countType: 'imageCountMoreThan',
      countNumber: 3,
    },
  };
  for (const rules of [[untagged], [prefixes, untagged], [patterns, prefixes, untagged]]) {
    // the configuration is indented text, as a heredoc or jsonencode() makes it
    const lifecyclePolicyText = JSON.stringify({ rules }, null, 4);
    await ecr.putLifecyclePolicy({ ...app, lifecyclePolicyText });
    const read = await ecr.getLifecyclePolicy(app);
    assert.deepEqual([read.repositoryName, read.registryId], [repositoryName, ACCOUNT]);
    assert.deepEqual(sortedRules(read.lifecyclePolicyText), sortedRules(lifecyclePolicyText));
    assert.equal((await ecr.getLifecyclePolicy(app)).lifecyclePolicyText, read.lifecyclePolicyText);
  }
  await ecr.deleteLifecyclePolicy(app);
  await assert.rejects(ecr.getLifecyclePolicy(app), absent);
  await assert.rejects(ecr.deleteLifecyclePolicy(app), absent);
});

test('aws_ecr_registry_policy', async () => {
  await using server = await open();
  const { ecr } = server;
  const absent = isGone('RegistryPolicyNotFoundException');
  await assert.rejects(ecr.getRegistryPolicy({}), absent);
  const policyOf = (Action: readonly string[]) =>
    JSON.stringify({
      Version: '2012-10-17',
      Statement: [
        {
          Sid: 'replicate',
          Effect: 'Allow',
          Principal: { AWS: `arn:aws:iam::${ACCOUNT}:root` },
          Action,
          Resource: [`arn:aws:ecr:${REGION}:${ACCOUNT}:repository/*`],
        },
      ],
    });
  for (const actions of [['ecr:ReplicateImage'], ['ecr:ReplicateImage', 'ecr:CreateRepository']]) {
    const policyText = policyOf(actions);
    const put = await ecr.putRegistryPolicy({ policyText });
    // the id of the resource
    assert.equal(put.registryId, ACCOUNT);
    const read = await ecr.getRegistryPolicy({});
    assert.equal(read.registryId, ACCOUNT);
    assert.deepEqual(equivalent(read.policyText), equivalent(policyText));
    assert.deepEqual((await ecr.getRegistryPolicy({})).policyText, read.policyText);
  }
  await ecr.deleteRegistryPolicy({});
  await assert.rejects(ecr.getRegistryPolicy({}), absent);
  await assert.rejects(ecr.deleteRegistryPolicy({}), absent);
});

test('aws_ecr_account_setting', async () => {
  await using server = await open();
  const { ecr } = server;
  const settings = [
    ['REGISTRY_POLICY_SCOPE', ['V1', 'V2', 'V1']],
    ['BLOB_MOUNTING', ['ENABLED', 'DISABLED']],
  ] as const;
  for (const [name, values] of settings) {
    for (const value of values) {
      assert.deepEqual(pick(await ecr.putAccountSetting({ name, value })), { name, value });
      assert.deepEqual(pick(await ecr.getAccountSetting({ name })), { name, value });
      assert.deepEqual(pick(await ecr.getAccountSetting({ name })), { name, value });
    }
  }
  // destroying the resource calls nothing: the setting stays as it is
});

const pick = ({ name, value }: { name?: string | undefined; value?: string | undefined }) => ({
  name,
  value,
});

test('aws_ecr_repository_creation_template, resource and data source', async () => {
  await using server = await open();
  const { ecr } = server;
  const prefix = 'team';
  const absent = isGone('TemplateNotFoundException');
  // A list without it is how the provider learns that it is gone: this read has no error of its own for that.
  const find = async (): Promise<RepositoryCreationTemplate | undefined> => {
    const found: RepositoryCreationTemplate[] = [];
    const pages = paginateDescribeRepositoryCreationTemplates({ client: ecr }, { prefixes: [prefix] });
    for await (const page of pages) {
      assert.equal(page.registryId, ACCOUNT);
      found.push(...(page.repositoryCreationTemplates ?? []));
    }
    assert.ok(found.length <= 1);
    return found[0];
  };
  assert.equal(await find(), undefined);

  const repositoryPolicy = JSON.stringify({
    Version: '2012-10-17',
    Statement: [{ Effect: 'Allow', Principal: '*', Action: ['ecr:BatchGetImage'] }],
  });
  const selection = {
    tagStatus: 'untagged',
    countType: 'sinceImagePushed',
    countUnit: 'days',
    countNumber: 14,
  };
  const lifecyclePolicy = JSON.stringify({
    rules: [{ rulePriority: 1, selection, action: { type: 'expire' } }],
  });
  const given = {
    description: 'of a team',
    appliedFor: ['CREATE_ON_PUSH' as const],
    imageTagMutability: 'IMMUTABLE' as const,
    encryptionConfiguration: { encryptionType: 'AES256' as const },
    resourceTags: [{ Key: 'team', Value: 'blue' }],
  };
  await ecr.createRepositoryCreationTemplate({ prefix, ...given, repositoryPolicy, lifecyclePolicy });
  const read = (await find()) ?? assert.fail();
  assert.deepEqual({ ...read, prefix, ...given }, read);
  assert.deepEqual(equivalent(read.repositoryPolicy), equivalent(repositoryPolicy));
  assert.deepEqual(sortedRules(read.lifecyclePolicy), sortedRules(lifecyclePolicy));
  assert.deepEqual(await find(), read);
  await assert.rejects(
    ecr.createRepositoryCreationTemplate({ prefix, ...given }),
    isGone('TemplateAlreadyExistsException'),
  );

  // an update sends what changed: what is emptied is sent empty
  await ecr.updateRepositoryCreationTemplate({
    prefix,
    description: '',
    repositoryPolicy: '',
    lifecyclePolicy: '',
    resourceTags: [],
    appliedFor: ['CREATE_ON_PUSH', 'REPLICATION', 'PULL_THROUGH_CACHE'],
  });
  const changed = (await find()) ?? assert.fail();
  assert.deepEqual(
    [changed.description ?? '', changed.repositoryPolicy ?? '', changed.lifecyclePolicy ?? ''],
    ['', '', ''],
  );
  assert.deepEqual(changed.resourceTags ?? [], []);
  assert.deepEqual([...(changed.appliedFor ?? [])].sort(), [
    'CREATE_ON_PUSH',
    'PULL_THROUGH_CACHE',
    'REPLICATION',
  ]);
  assert.equal(changed.imageTagMutability, 'IMMUTABLE');

  await ecr.deleteRepositoryCreationTemplate({ prefix });
  assert.equal(await find(), undefined);
  await assert.rejects(ecr.deleteRepositoryCreationTemplate({ prefix }), absent);
});

test('aws_ecr_pull_time_update_exclusion', async () => {
  await using server = await open();
  const { ecr } = server;
  const list = async (): Promise<string[]> => {
    const found: string[] = [];
    let nextToken: string | undefined;
    do {
      const page = await ecr.listPullTimeUpdateExclusions({ maxResults: 1, nextToken });
      found.push(...(page.pullTimeUpdateExclusions ?? []));
      ({ nextToken } = page);
    } while (nextToken !== undefined);
    return found;
  };
  assert.deepEqual(await list(), []);
  const [scanner, mirror] = [roleArn('scanner'), roleArn('mirror')];
  for (const principalArn of [scanner, mirror]) {
    const made = await ecr.registerPullTimeUpdateExclusion({ principalArn });
    assert.equal(made.principalArn, principalArn);
  }
  assert.deepEqual((await list()).sort(), [mirror, scanner]);
  await assert.rejects(
    ecr.registerPullTimeUpdateExclusion({ principalArn: mirror }),
    isGone('ExclusionAlreadyExistsException'),
  );
  await ecr.deregisterPullTimeUpdateExclusion({ principalArn: mirror });
  assert.deepEqual(await list(), [scanner]);
  await assert.rejects(
    ecr.deregisterPullTimeUpdateExclusion({ principalArn: mirror }),
    isGone('ExclusionNotFoundException'),
  );
});

test('data sources aws_ecr_repository and aws_ecr_repositories, and the list resources', async () => {
  await using server = await open();
  const { ecr } = server;
  const all = async (): Promise<(string | undefined)[]> => {
    const names: (string | undefined)[] = [];
    for await (const page of paginateDescribeRepositories({ client: ecr }, {}))
      names.push(...(page.repositories ?? []).map((one) => one.repositoryName));
    return names;
  };
  assert.deepEqual(await all(), []);
  // more than one page of the default size
  const names = Array.from({ length: 205 }, (_, i) => `many/${String(i).padStart(3, '0')}`);
  for (const name of names) await ecr.createRepository({ repositoryName: name });
  assert.deepEqual(await all(), names);

  await ecr.createRepository({ ...app, tags: [{ Key: 'team', Value: 'blue' }] });
  const read = await findRepository(ecr);
  const named = await ecr.describeRepositories({
    repositoryNames: [repositoryName],
    registryId: read.registryId,
  });
  assert.deepEqual(named.repositories, [read]);
  assert.deepEqual(await readTags(ecr, read.repositoryArn), { team: 'blue' });
  // the attribute most_recent_image_tags of a repository without images
  assert.deepEqual((await describeImages(ecr)).length, 0);
});

async function describeImages(
  ecr: ECR,
  input: Partial<DescribeImagesCommandInput> = {},
): Promise<ImageDetail[]> {
  const details: ImageDetail[] = [];
  for await (const page of paginateDescribeImages({ client: ecr }, { ...app, ...input }))
    details.push(...(page.imageDetails ?? []));
  return details;
}

test('data sources aws_ecr_image and aws_ecr_images', async () => {
  await using server = await open();
  const { ecr } = server;
  await ecr.createRepository(app);
  await assert.rejects(
    describeImages(ecr, { imageIds: [{ imageTag: 'v1' }] }),
    isGone('ImageNotFoundException'),
  );
  const digests = await pushImages(ecr, ['v1', 'v2', 'v3']);
  const [one, ...more] = await describeImages(ecr, { imageIds: [{ imageTag: 'v2' }] });
  assert.equal(more.length, 0);
  assert.equal(one?.imageDigest, digests[1]);
  assert.deepEqual([one?.registryId, one?.repositoryName], [ACCOUNT, repositoryName]);
  assert.deepEqual(one?.imageTags, ['v2']);
  assert.equal(one?.imageSizeInBytes, 2);
  // old revisions of the provider dereference it
  assert.ok(one?.imagePushedAt instanceof Date);
  const byDigest = await describeImages(ecr, { imageIds: [{ imageDigest: digests[1] }] });
  assert.deepEqual(byDigest, [one]);
  // both together, as a configuration may give them
  const both = { imageTag: 'v2', imageDigest: digests[1] };
  assert.deepEqual(await describeImages(ecr, { imageIds: [both] }), [one]);

  // most_recent picks by the time of the push
  const details = await describeImages(ecr);
  assert.deepEqual(details.map(({ imageDigest }) => imageDigest).sort(), [...digests].sort());
  const pushed = details.map(({ imagePushedAt }) => imagePushedAt?.getTime() ?? assert.fail());
  const latest = details.find(({ imagePushedAt }) => imagePushedAt?.getTime() === Math.max(...pushed));
  assert.ok(latest?.imageTags?.length === 1);

  const ids: ImageIdentifier[] = [];
  for await (const page of paginateListImages({ client: ecr, pageSize: 2 }, app))
    ids.push(...(page.imageIds ?? []));
  const expected = ['v1', 'v2', 'v3'].map((imageTag, i) => ({ imageTag, imageDigest: digests[i] }));
  const tagOf = ({ imageTag = '' }: ImageIdentifier) => imageTag;
  const byTag = (a: ImageIdentifier, b: ImageIdentifier) => tagOf(a).localeCompare(tagOf(b));
  assert.deepEqual(ids.sort(byTag), expected.sort(byTag));
});

test('data source and ephemeral resource aws_ecr_authorization_token', async () => {
  await using server = await open();
  const { ecr, berth } = server;
  const before = Date.now();
  const { authorizationData: [data] = [] } = await ecr.getAuthorizationToken({});
  const parts = Buffer.from(data?.authorizationToken ?? '', 'base64')
    .toString()
    .split(':');
  assert.equal(parts.length, 2);
  assert.equal(parts[0], 'AWS');
  assert.ok((data?.expiresAt?.getTime() ?? 0) > before + 11 * 3_600_000);
  assert.equal(data?.proxyEndpoint, `http://localhost:${berth.port}`);
});

test('resources whose operations are not built are refused with the reason', async () => {
  await using server = await open();
  const { ecr } = server;
  await ecr.createRepository(app);
  const replication = /Replication is not built/;
  const cache = /Pull-through caches are not built/;
  const scanning = /Image scanning is not built/;
  const signing = /Managed signing is not built/;
  const ecrRepositoryPrefix = 'quay';
  const signingProfileArn = `arn:aws:signer:${REGION}:${ACCOUNT}:/signing-profiles/release`;
  const cases: readonly (readonly [resource: string, call: () => Promise<unknown>, reason: RegExp])[] = [
    [
      'aws_ecr_replication_configuration',
      () => ecr.putReplicationConfiguration({ replicationConfiguration: { rules: [] } }),
      replication,
    ],
    [
      'aws_ecr_pull_through_cache_rule',
      () => ecr.createPullThroughCacheRule({ ecrRepositoryPrefix, upstreamRegistryUrl: 'quay.io' }),
      cache,
    ],
    [
      'data aws_ecr_pull_through_cache_rule',
      () => ecr.describePullThroughCacheRules({ ecrRepositoryPrefixes: [ecrRepositoryPrefix] }),
      cache,
    ],
    [
      'aws_ecr_registry_scanning_configuration',
      () => ecr.putRegistryScanningConfiguration({ scanType: 'BASIC', rules: [] }),
      scanning,
    ],
    ['… its read', () => ecr.getRegistryScanningConfiguration({}), scanning],
    [
      'aws_ecr_repository, scan_on_push changed',
      () => ecr.putImageScanningConfiguration({ ...app, imageScanningConfiguration: { scanOnPush: true } }),
      scanning,
    ],
    [
      'aws_ecr_account_setting BASIC_SCAN_TYPE_VERSION',
      () => ecr.putAccountSetting({ name: 'BASIC_SCAN_TYPE_VERSION', value: 'AWS_NATIVE' }),
      scanning,
    ],
    [
      'aws_ecr_signing_configuration',
      () => ecr.putSigningConfiguration({ signingConfiguration: { rules: [{ signingProfileArn }] } }),
      signing,
    ],
    ['… its read', () => ecr.getSigningConfiguration({}), signing],
  ];
  for (const [resource, call, reason] of cases) {
    await assert.rejects(
      call(),
      (error: Error & { $metadata?: { httpStatusCode?: number; attempts?: number } }) => {
        assert.equal(error.name, 'OperationNotBuilt', `${resource}: ${error.message}`);
        assert.match(error.message, reason, resource);
        assert.equal(error.$metadata?.httpStatusCode, 501, resource);
        return true;
      },
    );
  }
  // aws_ecr_replication_configuration reads this one, and finds nothing configured
  const registry = await ecr.describeRegistry({});
  assert.deepEqual([registry.registryId, registry.replicationConfiguration], [ACCOUNT, { rules: [] }]);
});
