/** Berth's own AssumeServiceRole on the whole server: `iam:PassRole` of the caller and the role's trust decide together. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  CreateAccessKeyCommand,
  CreateRoleCommand,
  CreateUserCommand,
  IAMClient,
  PutRolePolicyCommand,
  PutUserPolicyCommand,
} from '@aws-sdk/client-iam';
import { CallError, createClient, type Client } from '../../src/cli/client.ts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import type { AssumeServiceRoleRequest } from '../../src/model/berth-types.ts';

const ACCOUNT = '000000000000';
const arnOf = (name: string, account = ACCOUNT): string => `arn:aws:iam::${account}:role/${name}`;
const document = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });

interface Answer {
  readonly credentials: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken: string;
    readonly expiration: number;
  };
  readonly assumedRoleArn: string;
  readonly roleArn: string;
}

async function open() {
  const data = await mkdtemp(join(tmpdir(), 'berth-service-roles-'));
  const config = readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform });
  const berth = await start(config, {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const iam = new IAMClient({
    endpoint: berth.endpoint,
    region: 'us-east-1',
    credentials: { accessKeyId: id, secretAccessKey: secret },
    maxAttempts: 1,
  });
  const clientOf = (key: { accessKeyId: string; secretAccessKey: string; sessionToken?: string }) =>
    createClient(config, {
      env: {
        AWS_ENDPOINT_URL: berth.endpoint,
        AWS_REGION: 'us-east-1',
        AWS_ACCESS_KEY_ID: key.accessKeyId,
        AWS_SECRET_ACCESS_KEY: key.secretAccessKey,
        ...(key.sessionToken !== undefined && { AWS_SESSION_TOKEN: key.sessionToken }),
      },
    });
  return {
    iam,
    clientOf,
    admin: await clientOf({ accessKeyId: id, secretAccessKey: secret }),
    async createRole(name: string, statement: object, Path = '/'): Promise<void> {
      const trust = document({ Effect: 'Allow', Action: ['sts:AssumeRole', 'sts:TagSession'], ...statement });
      await iam.send(new CreateRoleCommand({ RoleName: name, Path, AssumeRolePolicyDocument: trust }));
    },
    /** A user who may do what the statement says. */
    async createUser(name: string, statement: object): Promise<Client> {
      await iam.send(new CreateUserCommand({ UserName: name }));
      const policy = { UserName: name, PolicyName: 'all', PolicyDocument: document(statement) };
      await iam.send(new PutUserPolicyCommand(policy));
      const { AccessKey: key } = await iam.send(new CreateAccessKeyCommand({ UserName: name }));
      return await clientOf({
        accessKeyId: key?.AccessKeyId ?? '',
        secretAccessKey: key?.SecretAccessKey ?? '',
      });
    },
    async [Symbol.asyncDispose]() {
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

function assume(client: Client, input: Partial<AssumeServiceRoleRequest>): Promise<Answer> {
  const request = {
    roleArn: arnOf('machine'),
    serviceName: 'ec2.amazonaws.com',
    sessionName: 'i-0123456789abcdef0',
    ...input,
  };
  return client.call<Answer>('berth', 'AssumeServiceRole', request);
}

async function refusal(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof CallError, String(error));
    return error.message;
  }
  return 'allowed';
}

test('a service takes a role that it is passed and that trusts it', async () => {
  await using server = await open();
  await server.createRole('machine', { Principal: { Service: 'ec2.amazonaws.com' } });
  await server.iam.send(
    new PutRolePolicyCommand({
      RoleName: 'machine',
      PolicyName: 'pull',
      PolicyDocument: document({ Effect: 'Allow', Action: 'ecr:GetAuthorizationToken', Resource: '*' }),
    }),
  );
  const answer = await assume(server.admin, { durationSeconds: 900 });
  assert.equal(answer.assumedRoleArn, `arn:aws:sts::${ACCOUNT}:assumed-role/machine/i-0123456789abcdef0`);
  assert.equal(answer.roleArn, arnOf('machine'));
  const left = answer.credentials.expiration * 1000 - Date.now();
  assert.ok(left > 890_000 && left <= 900_000, String(left));

  const machine = await server.clientOf(answer.credentials);
  assert.equal((await machine.whoAmI()).arn, answer.assumedRoleArn);
  await machine.call('ecr', 'GetAuthorizationToken', {});
  assert.match(
    await refusal(machine.call('ecr', 'DescribeRepositories', {})),
    /^AccessDeniedException: User: arn:aws:sts::000000000000:assumed-role\/machine\/i-0123456789abcdef0 is not authorized to perform: ecr:DescribeRepositories on resource: .* because no identity-based policy allows the ecr:DescribeRepositories action$/,
  );
});

test('a role under a path is taken by its name or its ARN, and judged by its ARN', async () => {
  await using server = await open();
  await server.createRole('deep', { Principal: { Service: 'ec2.amazonaws.com' } }, '/ops/');
  const passer = await server.createUser('ops-passer', {
    Effect: 'Allow',
    Action: 'iam:PassRole',
    Resource: arnOf('ops/*'),
  });
  const other = await server.createUser('root-passer', {
    Effect: 'Allow',
    Action: 'iam:PassRole',
    Resource: arnOf('deep'),
  });
  for (const roleArn of [arnOf('deep'), arnOf('ops/deep')]) {
    const answer = await assume(passer, { roleArn });
    assert.equal(answer.roleArn, arnOf('ops/deep'));
    assert.equal(answer.assumedRoleArn, `arn:aws:sts::${ACCOUNT}:assumed-role/deep/i-0123456789abcdef0`);
    assert.match(await refusal(assume(other, { roleArn })), /not authorized to perform: iam:PassRole/);
  }
  assert.match(
    await refusal(assume(server.admin, { roleArn: arnOf('dev/deep') })),
    /^AccessDeniedException: ec2\.amazonaws\.com is not authorized/,
  );
});

test('who may not pass the role, or is not trusted, is refused', async () => {
  await using server = await open();
  await server.createRole('machine', { Principal: { Service: 'ec2.amazonaws.com' } });
  await server.createRole('task', {
    Principal: { Service: 'ecs-tasks.amazonaws.com' },
    Condition: { ArnLike: { 'aws:SourceArn': `arn:aws:ecs:us-east-1:${ACCOUNT}:*` } },
  });
  await server.createRole('foreign', {
    Principal: { Service: 'ec2.amazonaws.com' },
    Condition: { StringEquals: { 'aws:SourceAccount': '111111111111' } },
  });
  await server.createRole('people', { Principal: { AWS: `arn:aws:iam::${ACCOUNT}:root` } });
  const passer = await server.createUser('passer', {
    Effect: 'Allow',
    Action: 'iam:PassRole',
    Resource: '*',
    Condition: { StringEquals: { 'iam:PassedToService': 'ec2.amazonaws.com' } },
  });
  const nobody = await server.createUser('nobody', { Effect: 'Allow', Action: 'ecr:*', Resource: '*' });
  const notTrusted = (service: string, role: string): string =>
    `AccessDeniedException: ${service} is not authorized to perform: sts:AssumeRole on resource: ${arnOf(role)}`;
  const notPassed = (user: string, role: string): string =>
    `AccessDeniedException: User: arn:aws:iam::${ACCOUNT}:user/${user} is not authorized to perform: iam:PassRole on resource: ${arnOf(role)} because no identity-based policy allows the iam:PassRole action`;
  const ecs = { serviceName: 'ecs-tasks.amazonaws.com', roleArn: arnOf('task') } as const;
  const cases: readonly (readonly [Client, Partial<AssumeServiceRoleRequest>, string])[] = [
    [passer, {}, 'allowed'],
    [nobody, {}, notPassed('nobody', 'machine')],
    [passer, ecs, notPassed('passer', 'task')],
    [server.admin, ecs, notTrusted('ecs-tasks.amazonaws.com', 'task')],
    [server.admin, { ...ecs, sourceArn: `arn:aws:ecs:us-east-1:${ACCOUNT}:task/1` }, 'allowed'],
    [server.admin, { roleArn: arnOf('task') }, notTrusted('ec2.amazonaws.com', 'task')],
    [server.admin, { roleArn: arnOf('foreign') }, notTrusted('ec2.amazonaws.com', 'foreign')],
    [server.admin, { roleArn: arnOf('people') }, notTrusted('ec2.amazonaws.com', 'people')],
    [server.admin, { roleArn: arnOf('absent') }, notTrusted('ec2.amazonaws.com', 'absent')],
    [
      server.admin,
      { roleArn: arnOf('machine'), durationSeconds: 7200 },
      'ValidationError: The requested DurationSeconds exceeds the MaxSessionDuration set for this role.',
    ],
  ];
  for (const [client, input, expected] of cases) {
    assert.equal(await refusal(assume(client, input)), expected, JSON.stringify(input));
  }
  const cross = await refusal(assume(server.admin, { roleArn: arnOf('machine', '111111111111') }));
  assert.match(cross, /^AccessDeniedException: /);
});
