/** "Why was I denied?" on the whole server: what is answered, to whom, and what another account never learns. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  CreateAccessKeyCommand,
  CreatePolicyCommand,
  CreateRoleCommand,
  CreateUserCommand,
  IAMClient,
  PutRolePolicyCommand,
  PutUserPermissionsBoundaryCommand,
  PutUserPolicyCommand,
  UpdateAccessKeyCommand,
} from '@aws-sdk/client-iam';
import { CallError, createClient, type Client } from '../../src/cli/client.ts';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createAccount } from '../../src/identity/identity.ts';
import { openKeyRing } from '../../src/lib/keyring.ts';
import { createLog } from '../../src/lib/log.ts';
import type * as berth from '../../src/model/berth-types.ts';
import { openSqliteStore } from '../../src/store/store.ts';

const ACCOUNT = '000000000000';
const STRANGER = '111111111111';
const REGION = 'us-east-1';
const userArn = (name: string, account = ACCOUNT): string => `arn:aws:iam::${account}:user/${name}`;
const repositoryArn = (name: string): string => `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${name}`;
const allow = (Action: string | string[], Resource: string = '*', more: object = {}) => ({
  Effect: 'Allow',
  Action,
  Resource,
  ...more,
});
const document = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });

interface Key {
  readonly id: string;
  readonly secret: string;
}

async function open() {
  const data = await mkdtemp(join(tmpdir(), 'berth-explain-'));
  const config = readConfig({
    flags: { data, port: '0', 'audit-log': join(data, 'audit') },
    env: {},
    platform: process.platform,
  });
  const launch = (): Promise<Berth> =>
    start(config, {
      log: createLog('error'),
      clock: Date.now,
      tls: undefined,
      credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
    });
  const first = await launch();
  const adminKey = first.firstCredentials ?? { id: '', secret: '' };
  await first.stop();
  const store = await openSqliteStore({ file: join(data, 'berth.db') });
  const keys = await openKeyRing(join(data, 'keys'));
  const { adminKey: strangerKey } = await createAccount({ store, keys, account: STRANGER, now: Date.now() });
  await store.close();
  let running = await launch();
  const clientOf = ({ id, secret }: Key): Promise<Client> =>
    createClient(config, {
      env: {
        AWS_ENDPOINT_URL: running.endpoint,
        AWS_REGION: REGION,
        AWS_ACCESS_KEY_ID: id,
        AWS_SECRET_ACCESS_KEY: secret,
      },
    });
  const iam = (): IAMClient =>
    new IAMClient({
      endpoint: running.endpoint,
      region: REGION,
      credentials: { accessKeyId: adminKey.id, secretAccessKey: adminKey.secret },
      maxAttempts: 1,
    });
  return {
    data,
    port: () => running.port,
    admin: () => clientOf(adminKey),
    stranger: () => clientOf(strangerKey),
    clientOf,
    iam,
    async createUser(name: string, ...statements: object[]): Promise<Key> {
      await iam().send(new CreateUserCommand({ UserName: name }));
      if (statements.length > 0) {
        const policy = { UserName: name, PolicyName: 'rights', PolicyDocument: document(...statements) };
        await iam().send(new PutUserPolicyCommand(policy));
      }
      const { AccessKey: key } = await iam().send(new CreateAccessKeyCommand({ UserName: name }));
      return { id: key?.AccessKeyId ?? '', secret: key?.SecretAccessKey ?? '' };
    },
    async restart(): Promise<void> {
      await running.stop();
      running = await launch();
    },
    async [Symbol.asyncDispose]() {
      await running.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

/** The refusal of a call. */
async function refused(promise: Promise<unknown>): Promise<CallError> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof CallError, String(error));
    return error;
  }
  throw new assert.AssertionError({ message: 'nothing was refused' });
}

const explainDenial = (client: Client, input: berth.ExplainDenialRequest) =>
  client.call<Omit<berth.ExplainDenialResponse, 'time'> & { time: number }>('berth', 'ExplainDenial', input);
const explainAccess = (client: Client, input: berth.ExplainAccessRequest) =>
  client.call<berth.ExplainAccessResponse>('berth', 'ExplainAccess', input);
const explainImage = (client: Client, input: berth.ExplainImageRequest) =>
  client.call<berth.ExplainImageResponse>('berth', 'ExplainImage', input);
const explainToken = (client: Client, password: string) =>
  client.call<Omit<berth.ExplainTokenResponse, 'issuedAt' | 'expiresAt'> & { expiresAt?: number }>(
    'berth',
    'ExplainToken',
    { password },
  );

async function passwordOf(client: Client): Promise<string> {
  const { authorizationData } = await client.call<{ authorizationData: [{ authorizationToken: string }] }>(
    'ecr',
    'GetAuthorizationToken',
    {},
  );
  return Buffer.from(authorizationData[0].authorizationToken, 'base64').toString().replace(/^AWS:/, '');
}

test('a denial is explained by its request id, also after a restart', async () => {
  await using server = await open();
  const reader = await server.createUser(
    'reader',
    allow('ecr:DescribeImages'),
    allow('ecr:DeleteRepository', repositoryArn('other')),
    allow('ecr:DeleteRepository', '*', { Condition: { StringEquals: { 'aws:PrincipalTag/team': 'a' } } }),
  );
  const denial = await refused(
    (await server.clientOf(reader)).call('ecr', 'DeleteRepository', { repositoryName: 'app' }),
  );
  const { requestId = '' } = denial;
  await server.restart();
  const { time, sourceIp, ...answer } = await explainDenial(await server.admin(), { requestId });
  assert.ok(Math.abs(time - Date.now() / 1000) < 60);
  assert.equal(sourceIp, '127.0.0.1');
  assert.deepEqual(answer, {
    requestId,
    region: REGION,
    principalArn: userArn('reader'),
    action: 'ecr:DeleteRepository',
    resourceArn: repositoryArn('app'),
    message: denial.message.replace(/^AccessDeniedException: /, ''),
    explanation: {
      allowed: false,
      decision: 'implicitDeny',
      decidedBy: { policyType: 'identity' },
      conditions: [],
      policies: [
        {
          policyType: 'identity',
          name: 'rights',
          outcome: 'neutral',
          statements: [
            { index: 0, effect: 'Allow', matched: false, mismatchedElement: 'Action' },
            { index: 1, effect: 'Allow', matched: false, mismatchedElement: 'Resource' },
            {
              index: 2,
              effect: 'Allow',
              matched: false,
              mismatchedElement: 'Condition',
              condition: { operator: 'StringEquals', key: 'aws:PrincipalTag/team', expected: ['a'] },
            },
          ],
          statementsOmitted: 0,
        },
      ],
      withheldAccounts: [],
      changes: [
        {
          kind: 'add-statement',
          account: ACCOUNT,
          policyType: 'identity',
          statement: JSON.stringify(allow('ecr:DeleteRepository', repositoryArn('app'))),
          nearest: {
            policyName: 'rights',
            statementIndex: 2,
            mismatchedElement: 'Condition',
            condition: { operator: 'StringEquals', key: 'aws:PrincipalTag/team', expected: ['a'] },
          },
        },
      ],
    },
  });
});

test('denials of /v2/ carry a request id too, and the newest is found without it', async () => {
  await using server = await open();
  const admin = await server.admin();
  await admin.call('ecr', 'CreateRepository', { repositoryName: 'app' });
  const policyText = document({ Sid: 'NoPull', Effect: 'Deny', Principal: '*', Action: 'ecr:BatchGetImage' });
  await admin.call('ecr', 'SetRepositoryPolicy', { repositoryName: 'app', policyText });
  const puller = await server.createUser('puller', allow(['ecr:*']));
  const password = await passwordOf(await server.clientOf(puller));
  const answer = await fetch(`http://127.0.0.1:${server.port()}/v2/app/manifests/latest`, {
    headers: { authorization: `Basic ${Buffer.from(`AWS:${password}`).toString('base64')}` },
  });
  assert.equal(answer.status, 403);
  const requestId = answer.headers.get('x-amzn-requestid') ?? '';
  const found = await explainDenial(admin, { principalArn: userArn('puller') });
  assert.equal(found.requestId, requestId);
  assert.equal(found.action, 'ecr:BatchGetImage');
  assert.deepEqual(found.explanation.decidedBy, {
    policyType: 'resource',
    policyName: 'repository policy',
    statementIndex: 0,
    statementSid: 'NoPull',
  });
  assert.deepEqual(found.explanation.changes, [
    {
      kind: 'narrow-deny',
      account: ACCOUNT,
      policyType: 'resource',
      policyName: 'repository policy',
      statementIndex: 0,
      statementSid: 'NoPull',
    },
  ]);
  assert.deepEqual(
    (await explainDenial(admin, {})).requestId,
    requestId,
    'denied explanations do not count as the newest denial',
  );
});

test('who may not ask is refused, and denials of other accounts look as if they were none', async () => {
  await using server = await open();
  const nobody = await server.clientOf(await server.createUser('nobody'));
  const { requestId = '' } = await refused(nobody.call('ecr', 'DescribeRepositories', {}));
  const operations: readonly (readonly [operation: string, input: object, resource: string])[] = [
    ['ExplainDenial', { requestId }, '*'],
    [
      'ExplainAccess',
      { principalArn: userArn('nobody'), action: 'ecr:PutImage', resourceArn: '*' },
      userArn('nobody'),
    ],
    ['ExplainImage', { imageUri: 'localhost:7327/app:1' }, repositoryArn('app')],
    ['ExplainToken', { password: 'x' }, '*'],
  ];
  for (const [operation, input, resource] of operations) {
    const { message } = await refused(nobody.call('berth', operation, input));
    assert.equal(
      message,
      `AccessDeniedException: User: ${userArn('nobody')} is not authorized to perform: berth:${operation} on resource: ${resource} because no identity-based policy allows the berth:${operation} action`,
    );
  }
  const stranger = await server.stranger();
  const absent = (id: string): string =>
    `NoSuchEntity: No denial with request id ${id} is known. Denials by policy are kept for a day.`;
  assert.equal((await refused(explainDenial(stranger, { requestId }))).message, absent(requestId));
  assert.equal((await refused(explainDenial(stranger, { requestId: 'never' }))).message, absent('never'));
  assert.equal((await refused(explainDenial(stranger, {}))).message, 'NoSuchEntity: No denial is known.');
  for (const name of ['nobody', 'absent']) {
    const input = { principalArn: userArn(name), action: 'ecr:PutImage', resourceArn: '*' };
    assert.equal(
      (await refused(explainAccess(stranger, input))).message,
      `AccessDeniedException: User: ${userArn('admin', STRANGER)} is not authorized to perform: berth:ExplainAccess on resource: ${userArn(name)} because no resource-based policy allows the berth:ExplainAccess action`,
    );
  }
  assert.equal(
    (await explainToken(stranger, await passwordOf(await server.admin()))).reason,
    (await explainToken(stranger, 'eynothing')).reason,
  );
});

test('of a decision of two accounts each sees its own side', async () => {
  await using server = await open();
  const admin = await server.admin();
  const stranger = await server.stranger();
  await admin.call('ecr', 'CreateRepository', { repositoryName: 'app' });
  const policyText = document({
    Sid: 'Partner',
    Effect: 'Allow',
    Principal: { AWS: STRANGER },
    Action: 'ecr:ListImages',
    Condition: { StringEquals: { 'aws:UserAgent': 'secret-agent' } },
  });
  await admin.call('ecr', 'SetRepositoryPolicy', { repositoryName: 'app', policyText });
  const { requestId = '' } = await refused(
    stranger.call('ecr', 'ListImages', { registryId: ACCOUNT, repositoryName: 'app' }),
  );
  const theirs = await explainDenial(stranger, { requestId });
  assert.deepEqual(theirs.explanation, {
    allowed: false,
    decision: 'implicitDeny',
    decidedBy: { policyType: 'resource' },
    conditions: [],
    policies: [
      {
        policyType: 'identity',
        name: 'AdministratorAccess',
        arn: 'arn:aws:iam::aws:policy/AdministratorAccess',
        outcome: 'allow',
        statements: [{ index: 0, effect: 'Allow', matched: true }],
        statementsOmitted: 0,
      },
    ],
    withheldAccounts: [ACCOUNT],
    changes: [
      {
        kind: 'add-statement',
        account: ACCOUNT,
        policyType: 'resource',
        statement: JSON.stringify({
          Effect: 'Allow',
          Principal: { AWS: userArn('admin', STRANGER) },
          Action: 'ecr:ListImages',
        }),
      },
    ],
  });
  assert.ok(!JSON.stringify(theirs).includes('secret-agent'));
  const ours = await explainDenial(admin, { requestId });
  assert.equal(ours.sourceIp, undefined);
  assert.deepEqual(ours.explanation.withheldAccounts, [STRANGER]);
  assert.deepEqual(
    ours.explanation.policies.map(({ policyType, name }) => [policyType, name]),
    [['resource', 'repository policy']],
  );
  assert.equal(ours.explanation.changes[0]?.nearest?.condition?.key, 'aws:UserAgent');
});

test('access of users and roles is explained by the engine that decides', async () => {
  await using server = await open();
  const admin = await server.admin();
  const iam = server.iam();
  await server.createUser('bounded', allow('ecr:*'));
  const { Policy: boundary } = await iam.send(
    new CreatePolicyCommand({
      PolicyName: 'edge',
      PolicyDocument: document(allow('ecr:GetAuthorizationToken')),
    }),
  );
  await iam.send(
    new PutUserPermissionsBoundaryCommand({ UserName: 'bounded', PermissionsBoundary: boundary?.Arn }),
  );
  const trust = document({
    Effect: 'Allow',
    Principal: { Service: 'ec2.amazonaws.com' },
    Action: 'sts:AssumeRole',
  });
  await iam.send(new CreateRoleCommand({ RoleName: 'node', AssumeRolePolicyDocument: trust }));
  const policy = document(
    allow('ecr:BatchGetImage', repositoryArn('team/*'), {
      Condition: { IpAddress: { 'aws:SourceIp': '10.0.0.0/8' } },
    }),
  );
  await iam.send(new PutRolePolicyCommand({ RoleName: 'node', PolicyName: 'pull', PolicyDocument: policy }));
  const role = `arn:aws:iam::${ACCOUNT}:role/node`;
  const asked = { action: 'ecr:BatchGetImage', resourceArn: repositoryArn('team/app') };
  const context = { 'aws:SourceIp': ['10.1.2.3'] };
  const cases: readonly (readonly [
    input: berth.ExplainAccessRequest,
    decision: string,
    by: string,
    changes: string,
  ])[] = [
    [{ principalArn: userArn('admin'), ...asked }, 'allowed', 'identity', ''],
    [
      { principalArn: userArn('bounded'), ...asked },
      'implicitDeny',
      'boundary',
      'add-statement:boundary:edge',
    ],
    [{ principalArn: role, ...asked }, 'implicitDeny', 'identity', 'add-statement:identity:'],
    [{ principalArn: role, ...asked, context }, 'allowed', 'identity', ''],
    [
      { principalArn: `arn:aws:sts::${ACCOUNT}:assumed-role/node/i-1`, ...asked, context },
      'allowed',
      'identity',
      '',
    ],
    [{ principalArn: `arn:aws:iam::${ACCOUNT}:root`, ...asked }, 'allowed', 'root', ''],
    [
      { principalArn: userArn('x', STRANGER), ...asked },
      'implicitDeny',
      'resource',
      'add-statement:resource:',
    ],
  ];
  for (const [input, decision, by, changes] of cases) {
    const { explanation } = await explainAccess(admin, input);
    const said = [
      explanation.decision,
      explanation.decidedBy.policyType,
      explanation.changes
        .map(({ kind, policyType, policyName = '' }) => `${kind}:${policyType}:${policyName}`)
        .join(),
    ];
    assert.deepEqual(said, [decision, by, changes], JSON.stringify(input));
  }
  const absent = { ...asked, principalArn: userArn('absent') };
  assert.equal(
    (await refused(explainAccess(admin, absent))).message,
    'NoSuchEntity: The user with name absent cannot be found.',
  );
  for (const action of ['ecr:BatchGetImages', 's3:GetObject']) {
    const slip = { ...asked, principalArn: userArn('admin'), action };
    assert.equal(
      (await refused(explainAccess(admin, slip))).message,
      `ValidationException: ${action} is no action of ecr, iam, sts or berth.`,
    );
  }
  const lower = { ...asked, principalArn: userArn('admin'), action: 'ecr:batchgetimage' };
  assert.equal((await explainAccess(admin, lower)).action, 'ecr:BatchGetImage');
  const group = { ...asked, principalArn: `arn:aws:iam::${ACCOUNT}:group/all` };
  assert.equal(
    (await refused(explainAccess(admin, group))).message,
    `ValidationException: ${group.principalArn} is no user, role, session of a role or root of an account.`,
  );
});

test('an image reference is followed to who may pull it', async () => {
  await using server = await open();
  const admin = await server.admin();
  const stranger = await server.stranger();
  await admin.call('ecr', 'CreateRepository', { repositoryName: 'app' });
  const pull = ['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'];
  const policyText = document({
    Sid: 'Partner',
    Effect: 'Allow',
    Principal: { AWS: STRANGER },
    Action: pull,
  });
  await admin.call('ecr', 'SetRepositoryPolicy', { repositoryName: 'app', policyText });
  await server.createUser('half', allow(['ecr:GetAuthorizationToken', 'ecr:BatchGetImage']));
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [],
  });
  const { image } = await admin.call<{ image: { imageId: { imageDigest: string } } }>('ecr', 'PutImage', {
    repositoryName: 'app',
    imageManifest: manifest,
    imageTag: '1',
  });
  const { imageDigest } = image.imageId;
  const host = `${ACCOUNT}.dkr.ecr.${REGION}.example.com`;
  const imageUri = `${host}/app:1`;
  const seen = await explainImage(admin, { imageUri });
  assert.deepEqual(seen, {
    imageUri,
    host,
    resolved: true,
    account: ACCOUNT,
    region: REGION,
    scopeFrom: 'host',
    repositoryName: 'app',
    repositoryArn: repositoryArn('app'),
    repositoryExists: true,
    imageTag: '1',
    imageDigest,
    imageExists: true,
    principals: [
      {
        principal: userArn('admin'),
        mayPull: true,
        policyType: 'identity',
        policyName: 'AdministratorAccess',
        policyArn: 'arn:aws:iam::aws:policy/AdministratorAccess',
      },
      {
        principal: userArn('half'),
        mayPull: false,
        policyType: 'identity',
        refusedAction: 'ecr:GetDownloadUrlForLayer',
      },
    ],
    externalPrincipals: [
      {
        principal: STRANGER,
        mayPull: true,
        policyType: 'resource',
        policyName: 'repository policy',
        statementSid: 'Partner',
      },
    ],
  });
  const first = await explainImage(admin, { imageUri, maxResults: 1 });
  assert.deepEqual(first.principals, seen.principals.slice(0, 1));
  const second = await explainImage(admin, { imageUri, maxResults: 1, nextToken: first.nextToken });
  assert.deepEqual(second.principals, seen.principals.slice(1));
  assert.equal(second.nextToken, undefined);

  const theirs = await explainImage(stranger, { imageUri });
  assert.deepEqual(theirs, {
    imageUri,
    host,
    resolved: true,
    reason: "The registry is another account's. What it holds is theirs to see.",
    account: ACCOUNT,
    region: REGION,
    scopeFrom: 'host',
    repositoryName: 'app',
    repositoryArn: repositoryArn('app'),
    principals: [
      {
        principal: userArn('admin', STRANGER),
        mayPull: true,
        policyType: 'identity',
        policyName: 'AdministratorAccess',
        policyArn: 'arn:aws:iam::aws:policy/AdministratorAccess',
      },
    ],
    externalPrincipals: [],
  });
  const unresolved: readonly (readonly [uri: string, reason: string])[] = [
    ['app:1', '"app:1" begins with no registry host, so docker takes it for Docker Hub\'s.'],
    [
      `1.dkr.ecr.us-east-1.x.y/app`,
      '1.dkr.ecr.us-east-1.x.y begins with "1", which is no account: twelve digits.',
    ],
    [`${host}/App`, '"App" is no repository name.'],
    [`${host}/app:-`, '"-" is no tag.'],
    [`${host}/app@sha256:1`, '"sha256:1" is no digest.'],
  ];
  for (const [uri, reason] of unresolved) {
    const answer = await explainImage(admin, { imageUri: uri });
    assert.deepEqual([answer.resolved, answer.reason], [false, reason], uri);
  }
  const absent = await explainImage(admin, { imageUri: 'localhost:7327/other' });
  assert.deepEqual(
    [absent.scopeFrom, absent.account, absent.repositoryExists, absent.imageExists],
    ['caller', ACCOUNT, false, undefined],
  );
});

test('a token says whose it is, and ends with its key; the audit log never holds it', async () => {
  await using server = await open();
  const admin = await server.admin();
  const key = await server.createUser(
    'ci',
    allow('ecr:GetAuthorizationToken'),
    allow(['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer']),
  );
  const password = await passwordOf(await server.clientOf(key));
  const { expiresAt = 0, actions, ...answer } = await explainToken(admin, password);
  assert.ok(Math.abs(expiresAt - Date.now() / 1000 - 12 * 3600) < 60);
  const { issuedAt, ...stable } = answer as typeof answer & { issuedAt: number };
  assert.equal(issuedAt, expiresAt - 12 * 3600);
  assert.deepEqual(stable, {
    state: 'active',
    account: ACCOUNT,
    region: REGION,
    principalArn: userArn('ci'),
    accessKeyId: key.id,
  });
  assert.deepEqual(
    actions.filter(({ allowed }) => allowed).map(({ action }) => action),
    ['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'],
  );
  await server
    .iam()
    .send(new UpdateAccessKeyCommand({ UserName: 'ci', AccessKeyId: key.id, Status: 'Inactive' }));
  const revoked = await explainToken(admin, password);
  assert.deepEqual(
    [revoked.state, revoked.reason],
    ['revoked', `The access key ${key.id} it was made with is Inactive.`],
  );
  assert.equal((await explainToken(admin, `${password}x`)).state, 'unknown');
  await server.restart();
  const files = await readdir(join(server.data, 'audit'));
  const texts = await Promise.all(files.map((file) => readFile(join(server.data, 'audit', file), 'utf8')));
  assert.match(texts.join(''), /"eventName":"ExplainToken"/);
  assert.ok(!texts.join('').includes(password));
});
