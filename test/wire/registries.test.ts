/** Registries over HTTP on the whole server: settings and templates by the AWS SDK, and policies that decide on both planes. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  BatchGetImageCommand,
  BatchDeleteImageCommand,
  CreateRepositoryCommand,
  CreateRepositoryCreationTemplateCommand,
  DeleteRegistryPolicyCommand,
  DeleteRepositoryCreationTemplateCommand,
  DeleteRepositoryPolicyCommand,
  DeregisterPullTimeUpdateExclusionCommand,
  DescribeImagesCommand,
  DescribeRegistryCommand,
  DescribeRepositoriesCommand,
  DescribeRepositoryCreationTemplatesCommand,
  ECRClient,
  ExclusionAlreadyExistsException,
  ExclusionNotFoundException,
  GetAccountSettingCommand,
  GetAuthorizationTokenCommand,
  GetRegistryPolicyCommand,
  InitiateLayerUploadCommand,
  ListImageReferrersCommand,
  ListTagsForResourceCommand,
  ListPullTimeUpdateExclusionsCommand,
  paginateDescribeRepositoryCreationTemplates,
  PutAccountSettingCommand,
  PutRegistryPolicyCommand,
  RegisterPullTimeUpdateExclusionCommand,
  RegistryPolicyNotFoundException,
  SetRepositoryPolicyCommand,
  TagResourceCommand,
  TemplateAlreadyExistsException,
  TemplateNotFoundException,
  UntagResourceCommand,
  UpdateImageStorageClassCommand,
  UpdateRepositoryCreationTemplateCommand,
  UploadLayerPartCommand,
} from '@aws-sdk/client-ecr';
import {
  CreateAccessKeyCommand,
  CreateRoleCommand,
  CreateUserCommand,
  IAMClient,
  PutRolePolicyCommand,
  PutUserPolicyCommand,
  UpdateAssumeRolePolicyCommand,
  TagUserCommand,
} from '@aws-sdk/client-iam';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { bootstrap } from '../../src/identity/identity.ts';
import { openKeyRing } from '../../src/lib/keyring.ts';
import { createLog } from '../../src/lib/log.ts';
import { openSqliteStore } from '../../src/store/store.ts';

const ACCOUNT = '000000000000';
const OTHER = '111111111111';
const ORGANIZATION = 'o-exampleorgid';
const region = 'us-east-1';
const sha256 = (content: string): string => `sha256:${createHash('sha256').update(content).digest('hex')}`;
const MANIFEST = JSON.stringify({
  schemaVersion: 2,
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  config: { mediaType: 'application/vnd.oci.image.config.v1+json', size: 2, digest: sha256('{}') },
  layers: [],
});

interface Key {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

async function open(settings: Readonly<Record<string, string>> = {}) {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-registries-'));
  const flags = { data, port: '0', 'organization-id': ORGANIZATION, ...settings };
  const surroundings = {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  };
  // Accounts are made before the server owns the data.
  const store = await openSqliteStore({ file: join(data, 'berth.db') });
  const keys = await openKeyRing(join(data, 'keys'));
  const made: Key[] = [];
  for (const account of [ACCOUNT, OTHER]) {
    const { adminKey } = (await bootstrap({ store, keys, account, now: Date.now() })) ?? assert.fail();
    made.push({ accessKeyId: adminKey.id, secretAccessKey: adminKey.secret });
  }
  await store.close();
  const berth = await start(readConfig({ flags, env: {}, platform: process.platform }), surroundings);
  const { endpoint } = berth;
  const clientOf = (credentials: Key) => new ECRClient({ endpoint, region, credentials, maxAttempts: 1 });
  const [own = assert.fail(), theirs = assert.fail()] = made;
  const iam = new IAMClient({ endpoint, region, credentials: own, maxAttempts: 1 });
  return {
    berth,
    iam,
    client: clientOf(own),
    other: clientOf(theirs),
    /** A user of the first account, with one policy and tags. */
    async addUser(UserName: string, statements: readonly object[], tags: Record<string, string> = {}) {
      await iam.send(new CreateUserCommand({ UserName }));
      const Tags = Object.entries(tags).map(([Key, Value]) => ({ Key, Value }));
      if (Tags.length > 0) await iam.send(new TagUserCommand({ UserName, Tags }));
      const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement: statements });
      await iam.send(new PutUserPolicyCommand({ UserName, PolicyName: 'inline', PolicyDocument }));
      const { AccessKey } = await iam.send(new CreateAccessKeyCommand({ UserName }));
      const { AccessKeyId: accessKeyId = '', SecretAccessKey: secretAccessKey = '' } = AccessKey ?? {};
      return clientOf({ accessKeyId, secretAccessKey });
    },
    async v2(client: ECRClient, method: string, path: string, body?: string) {
      const { authorizationData } = await client.send(new GetAuthorizationTokenCommand({}));
      const authorization = `Basic ${authorizationData?.[0]?.authorizationToken}`;
      // The registry of the first account, whoever asks.
      const host = `${ACCOUNT}.dkr.ecr.${region}.amazonaws.com`;
      const answer = await fetch(`${endpoint}/v2/${path}${path.includes('?') ? '&' : '?'}ns=${host}`, {
        method,
        // Bytes, so that no type is announced: the registry reads that of a manifest from the manifest.
        ...(body !== undefined && { body: Buffer.from(body) }),
        headers: { authorization },
      });
      return { status: answer.status, text: await answer.text() };
    },
    async [Symbol.asyncDispose]() {
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

const text = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });
const allow = (Action: string | readonly string[], more: object = {}) => ({
  Effect: 'Allow',
  Principal: '*',
  Action,
  Resource: '*',
  ...more,
});
const everything = { Effect: 'Allow', Action: '*', Resource: '*' };

test('settings, policy, exclusions and description of a registry', async () => {
  await using server = await open();
  const { client } = server;
  const described = await client.send(new DescribeRegistryCommand({}));
  assert.deepEqual([described.registryId, described.replicationConfiguration], [ACCOUNT, { rules: [] }]);
  const name = 'BLOB_MOUNTING';
  assert.equal((await client.send(new GetAccountSettingCommand({ name }))).value, 'DISABLED');
  const set = await client.send(new PutAccountSettingCommand({ name, value: 'ENABLED' }));
  assert.deepEqual([set.name, set.value], [name, 'ENABLED']);
  await assert.rejects(client.send(new PutAccountSettingCommand({ name, value: 'ON' })), {
    name: 'InvalidParameterException',
    message:
      "Invalid parameter at 'value' failed to satisfy constraint: 'Member must satisfy enum value set: [ENABLED, DISABLED]'",
  });
  await assert.rejects(client.send(new GetRegistryPolicyCommand({})), RegistryPolicyNotFoundException);
  const put = await client.send(new PutRegistryPolicyCommand({ policyText: text(allow('ecr:ListImages')) }));
  assert.equal((await client.send(new GetRegistryPolicyCommand({}))).policyText, put.policyText);
  assert.equal((await client.send(new DeleteRegistryPolicyCommand({}))).registryId, ACCOUNT);

  const principalArn = `arn:aws:iam::${ACCOUNT}:role/scanner`;
  const { createdAt } = await client.send(new RegisterPullTimeUpdateExclusionCommand({ principalArn }));
  assert.ok(createdAt instanceof Date);
  await assert.rejects(
    client.send(new RegisterPullTimeUpdateExclusionCommand({ principalArn })),
    ExclusionAlreadyExistsException,
  );
  await assert.rejects(
    client.send(new RegisterPullTimeUpdateExclusionCommand({ principalArn: 'arn:aws:iam::1:role/*' })),
    { name: 'InvalidParameterException', message: /^Invalid parameter at 'principalArn'/ },
  );
  const listed = await client.send(new ListPullTimeUpdateExclusionsCommand({}));
  assert.deepEqual(listed.pullTimeUpdateExclusions, [principalArn]);
  await client.send(new DeregisterPullTimeUpdateExclusionCommand({ principalArn }));
  await assert.rejects(
    client.send(new DeregisterPullTimeUpdateExclusionCommand({ principalArn })),
    ExclusionNotFoundException,
  );
});

test('templates, and a push into a repository that is not there', async () => {
  await using server = await open();
  const { client, v2 } = server;
  const missing = await v2(client, 'POST', 'team/app/blobs/uploads/');
  assert.equal(missing.status, 404);
  assert.match(missing.text, /NAME_UNKNOWN.*The repository with name 'team\/app' does not exist/);

  const input = { prefix: 'team', appliedFor: ['CREATE_ON_PUSH' as const] };
  const template = { ...input, imageTagMutability: 'IMMUTABLE' as const };
  const made = await client.send(new CreateRepositoryCreationTemplateCommand(template));
  assert.equal(made.registryId, ACCOUNT);
  assert.ok(made.repositoryCreationTemplate?.createdAt instanceof Date);
  await assert.rejects(
    client.send(new CreateRepositoryCreationTemplateCommand(input)),
    TemplateAlreadyExistsException,
  );
  await assert.rejects(
    client.send(new UpdateRepositoryCreationTemplateCommand({ prefix: 'none' })),
    TemplateNotFoundException,
  );
  const description = 'of the team';
  await client.send(new UpdateRepositoryCreationTemplateCommand({ prefix: 'team', description }));
  await client.send(new CreateRepositoryCreationTemplateCommand({ ...input, prefix: 'ROOT' }));
  await client.send(new DeleteRepositoryCreationTemplateCommand({ prefix: 'ROOT' }));
  const listed = [];
  for await (const page of paginateDescribeRepositoryCreationTemplates({ client, pageSize: 1 }, {}))
    listed.push(...(page.repositoryCreationTemplates ?? []).map(({ prefix }) => prefix));
  assert.deepEqual(listed, ['team']);
  const found = await client.send(new DescribeRepositoryCreationTemplatesCommand({ prefixes: ['team'] }));
  assert.equal(found.repositoryCreationTemplates?.[0]?.description, description);

  // Reading creates nothing; nor does a push by who may not create.
  for (const path of ['team/app/manifests/v1', 'team/app/tags/list'])
    assert.equal((await v2(client, 'GET', path)).status, 404);
  const login = { Effect: 'Allow', Action: 'ecr:GetAuthorizationToken', Resource: '*' };
  const pushing = [
    'ecr:InitiateLayerUpload',
    'ecr:UploadLayerPart',
    'ecr:CompleteLayerUpload',
    'ecr:PutImage',
  ];
  const rights = (Action: readonly string[]) => [login, { Effect: 'Allow', Action, Resource: '*' }];
  const pusher = await server.addUser('pusher', rights(pushing));
  const denied = await v2(pusher, 'POST', 'team/app/blobs/uploads/');
  assert.equal(denied.status, 403);
  assert.match(
    denied.text,
    /not authorized to perform: ecr:CreateRepository on resource: .*:repository\/team\/app/,
  );
  assert.deepEqual((await client.send(new DescribeRepositoriesCommand({}))).repositories, []);

  const creator = await server.addUser(
    'creator',
    rights([...pushing, 'ecr:CreateRepository', 'ecr:BatchGetImage']),
  );
  const blob = await v2(creator, 'POST', `team/app/blobs/uploads/?digest=${sha256('{}')}`, '{}');
  assert.equal(blob.status, 201, blob.text);
  assert.equal((await v2(creator, 'PUT', 'team/app/manifests/v1', MANIFEST)).status, 201);
  assert.equal((await v2(creator, 'GET', 'team/app/manifests/v1')).text, MANIFEST);
  const { repositories } = await client.send(new DescribeRepositoriesCommand({}));
  assert.deepEqual(
    repositories?.map((one) => [one.repositoryName, one.imageTagMutability]),
    [['team/app', 'IMMUTABLE']],
  );
  // A manifest may be the first to come.
  const index = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [],
  });
  assert.equal((await v2(creator, 'PUT', 'team/index/manifests/v1', index)).status, 201);
  assert.equal((await v2(creator, 'POST', 'elsewhere/app/blobs/uploads/')).status, 404);

  const subject = { repositoryName: 'team/app', subjectId: { imageDigest: sha256(MANIFEST) } };
  assert.deepEqual((await client.send(new ListImageReferrersCommand(subject))).referrers, []);
  const { imageDetails } = await client.send(new DescribeImagesCommand({ repositoryName: 'team/app' }));
  assert.equal(imageDetails?.length, 1);
});

test('the role of a template must trust ECR and be allowed what the template sets', async () => {
  await using server = await open();
  const { client, iam, v2 } = server;
  const role = `arn:aws:iam::${ACCOUNT}:role/templates`;
  const refused = async (expected: RegExp): Promise<void> => {
    const { status, text: answer } = await v2(client, 'POST', 'team/app/blobs/uploads/');
    assert.equal(status, 403, answer);
    assert.match(answer, expected);
    assert.deepEqual((await client.send(new DescribeRepositoriesCommand({}))).repositories, []);
  };
  const template = {
    prefix: 'team',
    appliedFor: ['CREATE_ON_PUSH' as const],
    resourceTags: [{ Key: 'stage', Value: 'dev' }],
    repositoryPolicy: text({ Effect: 'Allow', Principal: '*', Action: 'ecr:BatchGetImage' }),
  };
  await client.send(new CreateRepositoryCreationTemplateCommand(template));
  await refused(/sets KMS encryption or resource tags, and has no customRoleArn of a role to do so/);
  await client.send(new UpdateRepositoryCreationTemplateCommand({ prefix: 'team', customRoleArn: role }));
  const distrust =
    /ecr\.amazonaws\.com is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::000000000000:role\/templates/;
  await refused(distrust);
  const trust = (Service: string, more: object = {}) =>
    text({ Effect: 'Allow', Principal: { Service }, Action: 'sts:AssumeRole', ...more });
  const RoleName = 'templates';
  await iam.send(new CreateRoleCommand({ RoleName, AssumeRolePolicyDocument: trust('ec2.amazonaws.com') }));
  await refused(distrust);
  const confused = { Condition: { StringEquals: { 'aws:SourceAccount': OTHER } } };
  for (const PolicyDocument of [trust('ecr.amazonaws.com', confused), trust('ecr.amazonaws.com')]) {
    await refused(distrust);
    await iam.send(new UpdateAssumeRolePolicyCommand({ RoleName, PolicyDocument }));
  }
  const session = `arn:aws:sts::${ACCOUNT}:assumed-role/templates/ECRTemplate`;
  const may = async (...statements: object[]): Promise<void> => {
    const PolicyDocument = text(...statements.map((one) => ({ Effect: 'Allow', Resource: '*', ...one })));
    await iam.send(new PutRolePolicyCommand({ RoleName, PolicyName: 'rights', PolicyDocument }));
  };
  const lacks = (action: string): RegExp =>
    new RegExp(
      `User: ${session} is not authorized to perform: ecr:${action} on resource: \\S+:repository/team/app because no identity-based policy allows the ecr:${action} action`,
    );
  await refused(lacks('CreateRepository'));
  await may({ Action: 'ecr:CreateRepository' });
  await refused(lacks('TagResource'));
  const prod = { StringEquals: { 'aws:RequestTag/stage': 'prod' } };
  await may({ Action: 'ecr:CreateRepository' }, { Action: 'ecr:TagResource', Condition: prod });
  await refused(lacks('TagResource'));
  const dev = { StringEquals: { 'aws:RequestTag/stage': 'dev' } };
  await may({ Action: ['ecr:CreateRepository', 'ecr:TagResource'], Condition: dev });
  await refused(lacks('SetRepositoryPolicy'));
  await may({ Action: ['ecr:CreateRepository', 'ecr:TagResource', 'ecr:SetRepositoryPolicy'] });
  assert.equal((await v2(client, 'POST', 'team/app/blobs/uploads/')).status, 202);
  const { repositories = [] } = await client.send(new DescribeRepositoriesCommand({}));
  const resourceArn = repositories[0]?.repositoryArn;
  const { tags } = await client.send(new ListTagsForResourceCommand({ resourceArn }));
  assert.deepEqual(tags, template.resourceTags);
});

/** One line: policies of repository and registry, tags of the repository, who pulls, and whether it may. */
interface Case {
  readonly name: string;
  readonly repository?: readonly object[];
  readonly registry?: readonly object[];
  readonly tags?: Readonly<Record<string, string>>;
  readonly as: 'other' | 'blue';
  readonly end: 'allowed' | RegExp;
}

const SILENT = /no resource-based policy allows the ecr:BatchGetImage action/;
const EXPLICIT = /with an explicit deny in a resource-based policy/;
const pull = allow('ecr:BatchGetImage', { Resource: undefined });
const when = (operator: string, key: string, value: unknown) => ({
  Condition: { [operator]: { [key]: value } },
});
const deny = (more: object = {}) => allow('ecr:*', { Effect: 'Deny', ...more });

const CASES: readonly Case[] = [
  { name: 'another account, nothing said', as: 'other', end: SILENT },
  { name: 'granted by the repository', repository: [pull], as: 'other', end: 'allowed' },
  { name: 'granted by the registry', registry: [allow('ecr:BatchGetImage')], as: 'other', end: 'allowed' },
  {
    name: 'granted by the repository, denied by the registry',
    repository: [pull],
    registry: [deny({ Action: 'ecr:BatchGetImage' })],
    as: 'other',
    end: EXPLICIT,
  },
  {
    name: 'granted by the registry, denied by the repository',
    repository: [{ ...pull, Effect: 'Deny' }],
    registry: [allow('ecr:*')],
    as: 'other',
    end: EXPLICIT,
  },
  {
    name: 'granted to the organisation',
    repository: [{ ...pull, ...when('StringEquals', 'aws:PrincipalOrgID', ORGANIZATION) }],
    as: 'other',
    end: 'allowed',
  },
  {
    name: 'granted to another organisation',
    repository: [{ ...pull, ...when('StringEquals', 'aws:PrincipalOrgID', 'o-anotherorgid') }],
    as: 'other',
    end: SILENT,
  },
  {
    name: 'granted by address',
    repository: [{ ...pull, ...when('IpAddress', 'aws:SourceIp', '127.0.0.0/8') }],
    as: 'other',
    end: 'allowed',
  },
  {
    name: 'granted to another address',
    repository: [{ ...pull, ...when('IpAddress', 'aws:SourceIp', '192.0.2.0/24') }],
    as: 'other',
    end: SILENT,
  },
  { name: 'own account, nothing said', as: 'blue', end: 'allowed' },
  {
    name: 'own account, denied unless the tag of the principal is that of the repository',
    registry: [
      deny({
        Action: 'ecr:BatchGetImage',
        ...when('StringNotEquals', 'aws:PrincipalTag/team', '${ecr:ResourceTag/team}'),
      }),
    ],
    tags: { team: 'red' },
    as: 'blue',
    end: EXPLICIT,
  },
  {
    name: 'own account, the tag of the principal is that of the repository',
    registry: [
      deny({
        Action: 'ecr:BatchGetImage',
        ...when('StringNotEquals', 'aws:PrincipalTag/team', '${ecr:ResourceTag/team}'),
      }),
    ],
    tags: { team: 'blue' },
    as: 'blue',
    end: 'allowed',
  },
  {
    name: 'granted to another account by the tag of the repository',
    registry: [allow('ecr:BatchGetImage', when('StringEquals', 'aws:ResourceTag/public', 'yes'))],
    tags: { public: 'yes' },
    as: 'other',
    end: 'allowed',
  },
];

test('policies of repository and registry decide alike on both planes', async () => {
  await using server = await open();
  const { client, v2 } = server;
  const repositoryName = 'app';
  const { repository } = await client.send(new CreateRepositoryCommand({ repositoryName }));
  const resourceArn = repository?.repositoryArn;
  await v2(client, 'POST', `app/blobs/uploads/?digest=${sha256('{}')}`, '{}');
  assert.equal((await v2(client, 'PUT', 'app/manifests/v1', MANIFEST)).status, 201);
  const clients = {
    other: server.other,
    blue: await server.addUser('blue', [everything], { team: 'blue' }),
  };
  for (const { name, repository: own = [], registry = [], tags = {}, as, end } of CASES) {
    if (own.length > 0)
      await client.send(new SetRepositoryPolicyCommand({ repositoryName, policyText: text(...own) }));
    if (registry.length > 0)
      await client.send(new PutRegistryPolicyCommand({ policyText: text(...registry) }));
    const list = Object.entries(tags).map(([Key, Value]) => ({ Key, Value }));
    if (list.length > 0) await client.send(new TagResourceCommand({ resourceArn, tags: list }));

    const get = new BatchGetImageCommand({
      registryId: ACCOUNT,
      repositoryName,
      imageIds: [{ imageTag: 'v1' }],
    });
    const answer = await v2(clients[as], 'GET', 'app/manifests/v1');
    if (end === 'allowed') {
      assert.deepEqual(answer, { status: 200, text: MANIFEST }, name);
      assert.equal((await clients[as].send(get)).images?.length, 1, name);
    } else {
      assert.equal(answer.status, 403, name);
      assert.match(answer.text, end, name);
      await assert.rejects(clients[as].send(get), { name: 'AccessDeniedException', message: end }, name);
    }

    if (own.length > 0) await client.send(new DeleteRepositoryPolicyCommand({ repositoryName }));
    if (registry.length > 0) await client.send(new DeleteRegistryPolicyCommand({}));
    if (list.length > 0)
      await client.send(new UntagResourceCommand({ resourceArn, tagKeys: Object.keys(tags) }));
  }
});

test('another account pushes by the repository policy, and not past the registry policy', async () => {
  await using server = await open();
  const { client, other, v2 } = server;
  const repositoryName = 'app';
  await client.send(new CreateRepositoryCommand({ repositoryName }));
  const post = () => v2(other, 'POST', `app/blobs/uploads/?digest=${sha256('{}')}`, '{}');
  const put = () => v2(other, 'PUT', 'app/manifests/v1', MANIFEST);
  const push = async () => [(await post()).status, (await put()).status];
  assert.deepEqual(await push(), [403, 403]);
  const Action = [
    'ecr:InitiateLayerUpload',
    'ecr:UploadLayerPart',
    'ecr:CompleteLayerUpload',
    'ecr:PutImage',
  ];
  const policyText = text(allow(Action, { Principal: { AWS: OTHER }, Resource: undefined }));
  await client.send(new SetRepositoryPolicyCommand({ repositoryName, policyText }));
  assert.deepEqual(await push(), [201, 201]);
  const denied = text(allow('ecr:PutImage', { Effect: 'Deny', Principal: { AWS: OTHER } }));
  await client.send(new PutRegistryPolicyCommand({ policyText: denied }));
  assert.deepEqual(await push(), [201, 403]);
  assert.match((await put()).text, EXPLICIT);
  // In scope V1 the registry policy is about replication and caches only.
  const scope = { name: 'REGISTRY_POLICY_SCOPE', value: 'V1' };
  await client.send(new PutAccountSettingCommand(scope));
  assert.deepEqual(await push(), [201, 201]);
});

test('tags of a request and of a repository as conditions of the control plane', async () => {
  await using server = await open();
  const { client } = server;
  const maker = await server.addUser('maker', [
    {
      Effect: 'Allow',
      Action: 'ecr:CreateRepository',
      Resource: '*',
      ...when('StringEquals', 'aws:RequestTag/team', 'blue'),
    },
    {
      Effect: 'Allow',
      Action: 'ecr:TagResource',
      Resource: '*',
      Condition: {
        StringEquals: { 'ecr:ResourceTag/team': 'blue' },
        'ForAllValues:StringEquals': { 'aws:TagKeys': ['stage'] },
      },
    },
  ]);
  const create = (repositoryName: string, Value: string) =>
    maker.send(new CreateRepositoryCommand({ repositoryName, tags: [{ Key: 'team', Value }] }));
  const denied = { name: 'AccessDeniedException' };
  await assert.rejects(create('app', 'red'), denied);
  await assert.rejects(maker.send(new CreateRepositoryCommand({ repositoryName: 'app' })), denied);
  const { repository } = await create('app', 'blue');
  const red = await client.send(
    new CreateRepositoryCommand({ repositoryName: 'red', tags: [{ Key: 'team', Value: 'red' }] }),
  );
  const tag = (resourceArn: string | undefined, Key: string) =>
    maker.send(new TagResourceCommand({ resourceArn, tags: [{ Key, Value: 'x' }] }));
  await tag(repository?.repositoryArn, 'stage');
  await assert.rejects(tag(repository?.repositoryArn, 'team'), denied);
  await assert.rejects(tag(red.repository?.repositoryArn, 'stage'), denied);
});

test('quotas are settings', async () => {
  await using server = await open({
    'repositories-max': '1',
    'images-per-repository-max': '1',
    'tags-per-image-max': '2',
    'creation-templates-max': '1',
    'pull-time-exclusions-max': '1',
    'layer-bytes-max': '4',
    'layer-parts-max': '1',
  });
  const { client, v2 } = server;
  await client.send(new CreateRepositoryCommand({ repositoryName: 'app' }));
  await assert.rejects(client.send(new CreateRepositoryCommand({ repositoryName: 'two' })), {
    name: 'LimitExceededException',
    message: `The registry with id '${ACCOUNT}' already has the maximum allowed number of repositories which is '1'`,
  });
  await v2(client, 'POST', `app/blobs/uploads/?digest=${sha256('{}')}`, '{}');
  assert.equal((await v2(client, 'PUT', 'app/manifests/v1', MANIFEST)).status, 201);
  assert.equal((await v2(client, 'PUT', 'app/manifests/v2', MANIFEST)).status, 201);
  const third = await v2(client, 'PUT', 'app/manifests/v3', MANIFEST);
  assert.equal(third.status, 403);
  assert.match(third.text, /exceeds the maximum allowed number of tags per image which is '2'/);
  const app = { repositoryName: 'app' };
  const { uploadId } = await client.send(new InitiateLayerUploadCommand(app));
  const part = (partFirstByte: number, bytes: string) =>
    client.send(
      new UploadLayerPartCommand({
        ...app,
        uploadId,
        partFirstByte,
        partLastByte: partFirstByte + bytes.length - 1,
        layerPartBlob: Buffer.from(bytes),
      }),
    );
  await assert.rejects(part(0, 'large'), {
    name: 'LimitExceededException',
    message: "The layer exceeds the maximum allowed size which is '4' bytes",
  });
  assert.equal(
    (await v2(client, 'POST', `app/blobs/uploads/?digest=${sha256('large')}`, 'large')).status,
    413,
  );
  await part(0, 'a');
  await assert.rejects(part(1, 'b'), {
    name: 'LimitExceededException',
    message: "The layer exceeds the maximum allowed number of parts which is '1'",
  });
  const [template, more] = ['a', 'b'].map(
    (prefix) => new CreateRepositoryCreationTemplateCommand({ prefix, appliedFor: ['REPLICATION'] }),
  );
  await client.send(template ?? assert.fail());
  await assert.rejects(client.send(more ?? assert.fail()), { name: 'LimitExceededException' });
  const [one, two] = ['a', 'b'].map(
    (name) =>
      new RegisterPullTimeUpdateExclusionCommand({ principalArn: `arn:aws:iam::${ACCOUNT}:role/${name}` }),
  );
  await client.send(one ?? assert.fail());
  await assert.rejects(client.send(two ?? assert.fail()), { name: 'LimitExceededException' });
  const other = MANIFEST.replace('"layers"', '"annotations":{},"layers"');
  const refused = async (manifest: string, tag: string): Promise<void> => {
    const answer = await v2(client, 'PUT', `app/manifests/${tag}`, manifest);
    assert.equal(answer.status, 403);
    assert.match(answer.text, /already has the maximum allowed number of images which is '1'/);
  };
  await refused(other, 'v3');
  // An archived image is not counted, until a push or a call restores it.
  const imageId = { imageDigest: sha256(MANIFEST) };
  const move = (targetStorageClass: 'ARCHIVE' | 'STANDARD') =>
    client.send(new UpdateImageStorageClassCommand({ ...app, imageId, targetStorageClass }));
  await move('ARCHIVE');
  assert.equal((await v2(client, 'PUT', 'app/manifests/v3', other)).status, 201);
  await refused(MANIFEST, 'v1');
  await client.send(new BatchDeleteImageCommand({ ...app, imageIds: [{ imageTag: 'v3' }] }));
  await move('STANDARD');
  await refused(other, 'v3');
});
