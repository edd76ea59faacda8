/** IAM and STS by the AWS SDKs over HTTP on the whole server, and their sessions on both doors. */
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, sign } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  CreateRepositoryCommand,
  ECRClient,
  GetAuthorizationTokenCommand,
  ListImagesCommand,
  SetRepositoryPolicyCommand,
} from '@aws-sdk/client-ecr';
import {
  AttachGroupPolicyCommand,
  AddUserToGroupCommand,
  CreateAccessKeyCommand,
  CreateGroupCommand,
  CreateOpenIDConnectProviderCommand,
  CreateRoleCommand,
  CreateUserCommand,
  DeleteRoleCommand,
  DeleteRolePolicyCommand,
  GenerateCredentialReportCommand,
  GetAccountAuthorizationDetailsCommand,
  GetAccountSummaryCommand,
  GetCredentialReportCommand,
  GetRoleCommand,
  IAMClient,
  PutRolePolicyCommand,
  SimulatePrincipalPolicyCommand,
} from '@aws-sdk/client-iam';
import {
  AssumeRoleCommand,
  AssumeRoleWithWebIdentityCommand,
  GetCallerIdentityCommand,
  GetSessionTokenCommand,
  STSClient,
} from '@aws-sdk/client-sts';
import type { Credentials } from '@aws-sdk/client-sts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';

const ACCOUNT = '000000000000';
const REGION = 'us-east-1';

interface Key {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

async function open(flags: Readonly<Record<string, string>> = {}) {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-sts-'));
  let now = Date.now();
  const berth = await start(
    readConfig({ flags: { data, port: '0', ...flags }, env: {}, platform: process.platform }),
    {
      log: createLog('error'),
      clock: () => now,
      tls: undefined,
      credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
    },
  );
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const admin: Key = { accessKeyId: id, secretAccessKey: secret };
  const options = (credentials: Key) => ({
    endpoint: berth.endpoint,
    region: REGION,
    credentials,
    maxAttempts: 1,
    systemClockOffset: now - Date.now(),
  });
  return {
    berth,
    admin,
    iam: (key: Key = admin) => new IAMClient(options(key)),
    sts: (key: Key = admin) => new STSClient(options(key)),
    ecr: (key: Key = admin) => new ECRClient(options(key)),
    /** Lets `ms` pass on the server and for clients made later. */
    pass(ms: number) {
      now += ms;
    },
    /** The status of a registry request with the password GetAuthorizationToken gave. */
    async registry(authorization: string, path: string, method = 'GET') {
      const headers = { authorization: `Basic ${authorization}` };
      const response = await fetch(`${berth.endpoint}${path}`, { method, headers });
      return { status: response.status, text: await response.text() };
    },
    async [Symbol.asyncDispose]() {
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

function keyOf(credentials: Credentials | undefined): Key {
  assert.ok(credentials?.AccessKeyId && credentials.SecretAccessKey && credentials.SessionToken);
  return {
    accessKeyId: credentials.AccessKeyId,
    secretAccessKey: credentials.SecretAccessKey,
    sessionToken: credentials.SessionToken,
  };
}

async function tokenOf(client: ECRClient): Promise<string> {
  const { authorizationData } = await client.send(new GetAuthorizationTokenCommand({}));
  const token = authorizationData?.[0]?.authorizationToken ?? '';
  assert.ok(Buffer.from(token, 'base64').toString().length <= 4 + 300);
  return token;
}

const document = (...statements: object[]) =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });
const allow = (Action: string | string[], Resource = '*') => ({ Effect: 'Allow', Action, Resource });
const trust = (Principal: object, Action: string | string[] = 'sts:AssumeRole', Condition?: object) =>
  document({ Effect: 'Allow', Principal, Action, ...(Condition && { Condition }) });

test('a role pulls through both doors, and stops at once', async () => {
  await using server = await open();
  const iam = server.iam();
  await server.ecr().send(new CreateRepositoryCommand({ repositoryName: 'team/app' }));
  const { Role } = await iam.send(
    new CreateRoleCommand({
      RoleName: 'puller',
      AssumeRolePolicyDocument: trust({ AWS: `arn:aws:iam::${ACCOUNT}:root` }),
    }),
  );
  await iam.send(
    new PutRolePolicyCommand({
      RoleName: 'puller',
      PolicyName: 'pull',
      PolicyDocument: document(allow(['ecr:GetAuthorizationToken', 'ecr:ListImages', 'ecr:BatchGetImage'])),
    }),
  );
  const answer = await server
    .sts()
    .send(new AssumeRoleCommand({ RoleArn: Role?.Arn, RoleSessionName: 'build-7' }));
  const key = keyOf(answer.Credentials);
  const arn = `arn:aws:sts::${ACCOUNT}:assumed-role/puller/build-7`;
  const identity = await server.sts(key).send(new GetCallerIdentityCommand({}));
  assert.deepEqual(
    [identity.Account, identity.Arn, identity.UserId],
    [ACCOUNT, arn, `${Role?.RoleId}:build-7`],
  );

  const ecr = server.ecr(key);
  const { imageIds } = await ecr.send(new ListImagesCommand({ repositoryName: 'team/app' }));
  assert.deepEqual(imageIds, []);
  await assert.rejects(ecr.send(new CreateRepositoryCommand({ repositoryName: 'other' })), {
    name: 'AccessDeniedException',
    message: `User: ${arn} is not authorized to perform: ecr:CreateRepository on resource: arn:aws:ecr:${REGION}:${ACCOUNT}:repository/other because no identity-based policy allows the ecr:CreateRepository action`,
  });
  const token = await tokenOf(ecr);
  assert.equal((await server.registry(token, '/v2/')).status, 200);
  assert.equal((await server.registry(token, '/v2/team/app/tags/list')).status, 200);
  const push = await server.registry(token, '/v2/team/app/blobs/uploads/', 'POST');
  assert.equal(push.status, 403);
  assert.match(
    push.text,
    /assumed-role\/puller\/build-7 is not authorized to perform: ecr:InitiateLayerUpload/,
  );
  const used = await iam.send(new GetRoleCommand({ RoleName: 'puller' }));
  assert.equal(used.Role?.RoleLastUsed?.Region, REGION);

  // The session ends, the registry token goes on for its twelve hours.
  server.pass(3_600_000);
  await assert.rejects(server.ecr(key).send(new ListImagesCommand({ repositoryName: 'team/app' })), {
    name: 'ExpiredTokenException',
    message: 'The security token included in the request is expired',
  });
  await assert.rejects(server.sts(key).send(new GetCallerIdentityCommand({})), { name: 'ExpiredToken' });
  assert.equal((await server.registry(token, '/v2/team/app/tags/list')).status, 200);
  const later = server.iam();
  await later.send(new DeleteRolePolicyCommand({ RoleName: 'puller', PolicyName: 'pull' }));
  assert.equal((await server.registry(token, '/v2/team/app/tags/list')).status, 403);
  await later.send(new DeleteRoleCommand({ RoleName: 'puller' }));
  assert.deepEqual(await server.registry(token, '/v2/team/app/tags/list'), {
    status: 400,
    text: '{"errors":[{"code":"DENIED","message":"Your Authorization Token is invalid."}]}',
  });
});

test('session credentials without their token, or with another, are unknown', async () => {
  await using server = await open();
  const first = keyOf((await server.sts().send(new GetSessionTokenCommand({}))).Credentials);
  const second = keyOf((await server.sts().send(new GetSessionTokenCommand({}))).Credentials);
  const { accessKeyId, secretAccessKey } = first;
  await server.ecr(first).send(new GetAuthorizationTokenCommand({}));
  const cases: [Key, string][] = [
    [{ accessKeyId, secretAccessKey }, 'The security token included in the request is invalid.'],
    [
      { ...first, sessionToken: second.sessionToken ?? '' },
      'The security token included in the request is invalid',
    ],
    [
      { ...server.admin, sessionToken: first.sessionToken ?? '' },
      'The security token included in the request is invalid',
    ],
  ];
  for (const [key, message] of cases) {
    await assert.rejects(server.ecr(key).send(new GetAuthorizationTokenCommand({})), {
      name: 'UnrecognizedClientException',
      message,
    });
    await assert.rejects(server.sts(key).send(new GetCallerIdentityCommand({})), {
      name: 'InvalidClientTokenId',
      message,
    });
  }
  const { secretAccessKey: _, ...rest } = first;
  await assert.rejects(
    server.ecr({ ...rest, secretAccessKey: 'x'.repeat(40) }).send(new GetAuthorizationTokenCommand({})),
    {
      name: 'InvalidSignatureException',
    },
  );
});

test('a workload exchanges its token, unsigned, and pushes', async () => {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'ES256', use: 'sig' };
  let base = '';
  const issuer = createServer((request, response) => {
    const discovery = { issuer: base, jwks_uri: `${base}/keys` };
    response.end(JSON.stringify(request.url === '/keys' ? { keys: [jwk] } : discovery));
  });
  await new Promise<void>((resolve) => issuer.listen(0, '127.0.0.1', resolve));
  const { port } = issuer.address() as AddressInfo;
  base = `http://127.0.0.1:${port}`;
  try {
    await using server = await open({ 'issuer-hosts': `127.0.0.1:${port}` });
    const iam = server.iam();
    const { OpenIDConnectProviderArn: Federated } = await iam.send(
      new CreateOpenIDConnectProviderCommand({ Url: base, ClientIDList: ['sts.amazonaws.com'] }),
    );
    const { Role } = await iam.send(
      new CreateRoleCommand({
        RoleName: 'pusher',
        AssumeRolePolicyDocument: trust({ Federated }, 'sts:AssumeRoleWithWebIdentity', {
          StringLike: { [`127.0.0.1:${port}:sub`]: 'system:serviceaccount:build:*' },
        }),
      }),
    );
    await iam.send(
      new PutRolePolicyCommand({
        RoleName: 'pusher',
        PolicyName: 'push',
        PolicyDocument: document(allow('ecr:*')),
      }),
    );
    const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const tokenFor = (sub: string) => {
      const iat = Math.floor(Date.now() / 1000);
      const claims = { iss: base, sub, aud: ['sts.amazonaws.com'], iat, exp: iat + 600 };
      const signed = `${encode({ alg: 'ES256', kid: 'k1' })}.${encode(claims)}`;
      const signature = sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
      return `${signed}.${signature.toString('base64url')}`;
    };
    const anonymous = new STSClient({ endpoint: server.berth.endpoint, region: REGION, maxAttempts: 1 });
    const assume = (sub: string) =>
      anonymous.send(
        new AssumeRoleWithWebIdentityCommand({
          RoleArn: Role?.Arn,
          RoleSessionName: 'pod',
          WebIdentityToken: tokenFor(sub),
        }),
      );
    await assert.rejects(assume('system:serviceaccount:evil:x'), {
      name: 'AccessDenied',
      message: 'Not authorized to perform sts:AssumeRoleWithWebIdentity',
    });
    const { Credentials: credentials, Provider } = await assume('system:serviceaccount:build:pusher');
    assert.equal(Provider, Federated);
    const ecr = server.ecr(keyOf(credentials));
    await ecr.send(new CreateRepositoryCommand({ repositoryName: 'team/app' }));
    const token = await tokenOf(ecr);
    const blob = Buffer.from('{}');
    const digest = `sha256:${createHash('sha256').update(blob).digest('hex')}`;
    const headers = { authorization: `Basic ${token}` };
    const begun = await fetch(`${server.berth.endpoint}/v2/team/app/blobs/uploads/`, {
      method: 'POST',
      headers,
    });
    assert.equal(begun.status, 202);
    const location = new URL(begun.headers.get('location') ?? '', server.berth.endpoint);
    location.searchParams.set('digest', digest);
    const put = await fetch(location, { method: 'PUT', headers, body: blob });
    assert.equal(put.status, 201);
  } finally {
    await new Promise((resolve) => issuer.close(resolve));
  }
});

test('groups, reports and simulation by the SDK', async () => {
  await using server = await open();
  const iam = server.iam();
  await iam.send(new CreateUserCommand({ UserName: 'ann' }));
  const { AccessKey } = await iam.send(new CreateAccessKeyCommand({ UserName: 'ann' }));
  const ann: Key = {
    accessKeyId: AccessKey?.AccessKeyId ?? '',
    secretAccessKey: AccessKey?.SecretAccessKey ?? '',
  };
  await assert.rejects(tokenOf(server.ecr(ann)), { name: 'AccessDeniedException' });
  await iam.send(new CreateGroupCommand({ GroupName: 'pullers' }));
  const PolicyArn = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
  await iam.send(new AttachGroupPolicyCommand({ GroupName: 'pullers', PolicyArn }));
  await iam.send(new AddUserToGroupCommand({ GroupName: 'pullers', UserName: 'ann' }));
  await tokenOf(server.ecr(ann));

  const simulated = await iam.send(
    new SimulatePrincipalPolicyCommand({
      PolicySourceArn: `arn:aws:iam::${ACCOUNT}:user/ann`,
      ActionNames: ['ecr:GetAuthorizationToken', 'ecr:PutImage'],
    }),
  );
  assert.deepEqual(
    simulated.EvaluationResults?.map((each) => [each.EvalActionName, each.EvalDecision]),
    [
      ['ecr:GetAuthorizationToken', 'allowed'],
      ['ecr:PutImage', 'implicitDeny'],
    ],
  );
  const { SummaryMap } = await iam.send(new GetAccountSummaryCommand({}));
  assert.deepEqual([SummaryMap?.Users, SummaryMap?.Groups], [2, 1]);
  const details = await iam.send(new GetAccountAuthorizationDetailsCommand({}));
  assert.deepEqual(
    details.UserDetailList?.map((user) => [user.UserName, user.GroupList]),
    [
      ['admin', []],
      ['ann', ['pullers']],
    ],
  );
  await iam.send(new GenerateCredentialReportCommand({}));
  const { Content, ReportFormat } = await iam.send(new GetCredentialReportCommand({}));
  assert.equal(ReportFormat, 'text/csv');
  assert.equal(
    Buffer.from(Content ?? [])
      .toString()
      .split('\n').length,
    4,
  );
});

test('guardrails bind the account they are attached to, and repository policies may name roles', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-guardrails-'));
  try {
    const file = join(directory, 'guardrails.yaml');
    await writeFile(
      file,
      `"${ACCOUNT}":\n  service-control:\n    - name: no-deletion\n      document:\n        Statement: [{Effect: Deny, Action: "ecr:SetRepositoryPolicy", Resource: "arn:aws:ecr:*:*:repository/locked"}]\n`,
    );
    await using server = await open({ guardrails: file });
    const ecr = server.ecr();
    const { Role } = await server.iam().send(
      new CreateRoleCommand({
        RoleName: 'reader',
        AssumeRolePolicyDocument: trust({ Service: 'ec2.amazonaws.com' }),
      }),
    );
    for (const repositoryName of ['open', 'locked'])
      await ecr.send(new CreateRepositoryCommand({ repositoryName }));
    const policyFor = (AWS: string | undefined) =>
      document({ Effect: 'Allow', Principal: { AWS }, Action: 'ecr:BatchGetImage' });
    await ecr.send(
      new SetRepositoryPolicyCommand({ repositoryName: 'open', policyText: policyFor(Role?.Arn) }),
    );
    await assert.rejects(
      ecr.send(
        new SetRepositoryPolicyCommand({ repositoryName: 'open', policyText: policyFor(`${Role?.Arn}x`) }),
      ),
      { name: 'InvalidParameterException' },
    );
    await assert.rejects(
      ecr.send(
        new SetRepositoryPolicyCommand({ repositoryName: 'locked', policyText: policyFor(Role?.Arn) }),
      ),
      {
        name: 'AccessDeniedException',
        message:
          /with an explicit deny in a service control policy: arn:aws:organizations::000000000000:policy\/o-berth\/service_control_policy\/no-deletion$/,
      },
    );
    await writeFile(file, 'production: {}');
    await assert.rejects(open({ guardrails: file }), {
      name: 'ConfigError',
      message: `${file} (guardrails): "production" is not an account: twelve digits in quotes, or "*"`,
    });
  } finally {
    await rm(directory, { recursive: true });
  }
});
