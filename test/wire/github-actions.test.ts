/**
 * What a GitHub Actions job does, call by call, with the SDK that its actions bundle: `aws-actions/configure-aws-credentials`
 * (by OIDC, by access key, by role chaining) and `aws-actions/amazon-ecr-login`. The issuer stands in for
 * token.actions.githubusercontent.com, with its claims.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CreateRepositoryCommand, ECRClient, GetAuthorizationTokenCommand } from '@aws-sdk/client-ecr';
import {
  CreateAccessKeyCommand,
  CreateOpenIDConnectProviderCommand,
  CreateRoleCommand,
  CreateUserCommand,
  IAMClient,
  PutRolePolicyCommand,
  PutUserPolicyCommand,
} from '@aws-sdk/client-iam';
import {
  AssumeRoleCommand,
  AssumeRoleWithWebIdentityCommand,
  GetCallerIdentityCommand,
  STSClient,
  type AssumeRoleCommandInput,
  type Credentials,
} from '@aws-sdk/client-sts';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { startIssuer, type Issuer } from '../clients/issuer.ts';

const ACCOUNT = '000000000000';
const REGION = 'us-east-1';
const GITHUB = `arn:aws:iam::${ACCOUNT}:oidc-provider/token.actions.githubusercontent.com`;

interface Key {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

let data: string;
let issuer: Issuer;
let berth: Berth;
let admin: Key;

const options = (credentials?: Key) => ({
  endpoint: berth.endpoint,
  region: REGION,
  maxAttempts: 1,
  ...(credentials && { credentials }),
});
const document = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });
const keyOf = (given: Credentials | undefined): Key => ({
  accessKeyId: given?.AccessKeyId ?? '',
  secretAccessKey: given?.SecretAccessKey ?? '',
  sessionToken: given?.SessionToken ?? '',
});
const roleArn = (name: string): string => `arn:aws:iam::${ACCOUNT}:role/${name}`;

/** The claims of a job of octo-org/octo-repo. */
function jobToken(ref: string, audience = 'sts.amazonaws.com'): string {
  return issuer.token({
    aud: audience,
    sub: `repo:octo-org/octo-repo:ref:${ref}`,
    ref,
    ref_type: 'branch',
    repository: 'octo-org/octo-repo',
    repository_id: '74',
    repository_owner: 'octo-org',
    repository_owner_id: '65',
    repository_visibility: 'private',
    actor: 'octocat',
    actor_id: '12',
    workflow: 'deploy',
    workflow_ref: `octo-org/octo-repo/.github/workflows/deploy.yml@${ref}`,
    job_workflow_ref: `octo-org/octo-repo/.github/workflows/deploy.yml@${ref}`,
    event_name: 'push',
    runner_environment: 'github-hosted',
    run_id: '30433642',
    jti: 'f2f7f1f5',
  });
}

before(async () => {
  data = await mkdtemp(join(tmpdir(), 'berth-github-'));
  issuer = await startIssuer();
  const flags = { data, port: '0', 'issuer-hosts': issuer.host };
  berth = await start(readConfig({ flags, env: {}, platform: process.platform }), {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  admin = { accessKeyId: id, secretAccessKey: secret };
  const iam = new IAMClient(options(admin));
  await new ECRClient(options(admin)).send(new CreateRepositoryCommand({ repositoryName: 'octo/app' }));
  const { OpenIDConnectProviderArn: Federated } = await iam.send(
    new CreateOpenIDConnectProviderCommand({ Url: issuer.url, ClientIDList: ['sts.amazonaws.com'] }),
  );
  await iam.send(
    new CreateRoleCommand({
      RoleName: 'deploy',
      AssumeRolePolicyDocument: document({
        Effect: 'Allow',
        Principal: { Federated },
        Action: 'sts:AssumeRoleWithWebIdentity',
        Condition: {
          StringEquals: { [`${issuer.host}:aud`]: 'sts.amazonaws.com' },
          StringLike: { [`${issuer.host}:sub`]: 'repo:octo-org/octo-repo:ref:refs/heads/main' },
        },
      }),
    }),
  );
  await iam.send(
    new PutRolePolicyCommand({
      RoleName: 'deploy',
      PolicyName: 'push',
      PolicyDocument: document(
        { Effect: 'Allow', Action: 'ecr:*', Resource: '*' },
        { Effect: 'Allow', Action: ['sts:AssumeRole', 'sts:TagSession'], Resource: roleArn('release') },
      ),
    }),
  );
  await iam.send(
    new CreateRoleCommand({
      RoleName: 'release',
      AssumeRolePolicyDocument: document({
        Effect: 'Allow',
        Principal: { AWS: `arn:aws:iam::${ACCOUNT}:root` },
        Action: ['sts:AssumeRole', 'sts:TagSession'],
        Condition: { StringEquals: { 'sts:ExternalId': 'octo' } },
      }),
    }),
  );
  await iam.send(
    new PutRolePolicyCommand({
      RoleName: 'release',
      PolicyName: 'log-in-from-main',
      PolicyDocument: document({
        Effect: 'Allow',
        Action: 'ecr:GetAuthorizationToken',
        Resource: '*',
        Condition: { StringEquals: { 'aws:PrincipalTag/Branch': 'refs/heads/main' } },
      }),
    }),
  );
});

after(async () => {
  await berth.stop();
  await issuer.close();
  await rm(data, { recursive: true, force: true });
});

/** configure-aws-credentials by OIDC: no tags, one hour, then the identity is checked. */
async function configureByToken(token: string): Promise<Key> {
  const { Credentials: given } = await new STSClient(options()).send(
    new AssumeRoleWithWebIdentityCommand({
      RoleArn: roleArn('deploy'),
      RoleSessionName: 'GitHubActions',
      DurationSeconds: 3600,
      WebIdentityToken: token,
    }),
  );
  const key = keyOf(given);
  const identity = await new STSClient(options(key)).send(new GetCallerIdentityCommand({}));
  assert.equal(identity.Account, ACCOUNT);
  assert.equal(identity.Arn, `arn:aws:sts::${ACCOUNT}:assumed-role/deploy/GitHubActions`);
  return key;
}

/** amazon-ecr-login: user name, password and registry as the action takes them apart. */
async function ecrLogin(key: Key, registries: string) {
  const client = new ECRClient({
    ...options(key),
    customUserAgent: 'amazon-ecr-login-for-github-actions',
  });
  const request = registries === '' ? {} : { registryIds: registries.split(',') };
  const { authorizationData = [] } = await client.send(new GetAuthorizationTokenCommand(request));
  return authorizationData.map(({ authorizationToken = '', proxyEndpoint = '' }) => {
    const [user, password] = Buffer.from(authorizationToken, 'base64').toString('utf-8').split(':', 2);
    return { user, password: password ?? '', registry: proxyEndpoint.replace(/^https?:\/\//, '') };
  });
}

/** Pushes a blob as docker does after its login; the status of each step. */
async function push(password: string): Promise<number[]> {
  const headers = { authorization: `Basic ${Buffer.from(`AWS:${password}`).toString('base64')}` };
  const ping = await fetch(`${berth.endpoint}/v2/`, { headers });
  const begun = await fetch(`${berth.endpoint}/v2/octo/app/blobs/uploads/`, { method: 'POST', headers });
  if (begun.status !== 202) return [ping.status, begun.status];
  const blob = Buffer.from('{"octo":true}');
  const location = new URL(begun.headers.get('location') ?? '', berth.endpoint);
  location.searchParams.set('digest', `sha256:${createHash('sha256').update(blob).digest('hex')}`);
  const put = await fetch(location, { method: 'PUT', headers, body: blob });
  return [ping.status, begun.status, put.status];
}

test('a job of the branch logs in by its token and pushes', async () => {
  const key = await configureByToken(jobToken('refs/heads/main'));
  const [login, ...others] = await ecrLogin(key, '');
  assert.deepEqual(others, []);
  assert.equal(login?.user, 'AWS');
  assert.equal(login.registry, berth.registryHost);
  assert.deepEqual(await push(login.password), [200, 202, 201]);
  // several registries: a login for each, none by the name "registry"
  const several = await ecrLogin(key, `${ACCOUNT},111111111111`);
  assert.equal(several.length, 2);
});

test('a job of another branch, or a token for somebody else, gets nothing', async () => {
  await assert.rejects(configureByToken(jobToken('refs/heads/evil')), {
    name: 'AccessDenied',
    message: 'Not authorized to perform sts:AssumeRoleWithWebIdentity',
  });
  await assert.rejects(configureByToken(jobToken('refs/heads/main', 'https://github.com/octo-org')), {
    name: 'InvalidIdentityTokenException',
    message: 'Incorrect token audience',
  });
});

test('with an access key the action assumes the role with the tags of the run', async () => {
  const iam = new IAMClient(options(admin));
  await iam.send(new CreateUserCommand({ UserName: 'ci' }));
  await iam.send(
    new PutUserPolicyCommand({
      UserName: 'ci',
      PolicyName: 'release',
      PolicyDocument: document({
        Effect: 'Allow',
        Action: ['sts:AssumeRole', 'sts:TagSession'],
        Resource: roleArn('release'),
      }),
    }),
  );
  const { AccessKey } = await iam.send(new CreateAccessKeyCommand({ UserName: 'ci' }));
  const ci = { accessKeyId: AccessKey?.AccessKeyId ?? '', secretAccessKey: AccessKey?.SecretAccessKey ?? '' };
  const sts = new STSClient(options(ci));
  assert.equal((await sts.send(new GetCallerIdentityCommand({}))).Arn, `arn:aws:iam::${ACCOUNT}:user/ci`);
  const on = (branch: string): AssumeRoleCommandInput => ({
    RoleArn: roleArn('release'),
    RoleSessionName: 'GitHubActions',
    DurationSeconds: 3600,
    ExternalId: 'octo',
    Tags: [
      { Key: 'GitHub', Value: 'Actions' },
      { Key: 'Repository', Value: 'octo-org/octo-repo' },
      { Key: 'Workflow', Value: 'deploy' },
      { Key: 'Action', Value: '__aws-actions_configure-aws-credentials' },
      { Key: 'Actor', Value: 'octocat' },
      { Key: 'Commit', Value: 'ffac537e6cbbf934b08745a378932722df287a53' },
      { Key: 'Branch', Value: branch },
      { Key: 'EventName', Value: 'push' },
      { Key: 'RunId', Value: '30433642' },
      { Key: 'Job', Value: 'deploy' },
      { Key: 'TriggeringActor', Value: 'octocat' },
    ],
    TransitiveTagKeys: ['Repository'],
  });
  const main = await sts.send(new AssumeRoleCommand(on('refs/heads/main')));
  const [login] = await ecrLogin(keyOf(main.Credentials), '');
  // the role may log in, not push
  assert.deepEqual(await push(login?.password ?? ''), [200, 403]);
  const branch = await sts.send(new AssumeRoleCommand(on('refs/heads/topic')));
  await assert.rejects(ecrLogin(keyOf(branch.Credentials), ''), { name: 'AccessDeniedException' });
  const { ExternalId: _, ...without } = on('refs/heads/main');
  await assert.rejects(sts.send(new AssumeRoleCommand(without)), { name: 'AccessDenied' });
  // role-skip-session-tagging
  const { Tags: _tags, TransitiveTagKeys: _keys, ...untagged } = on('refs/heads/main');
  const skipped = await sts.send(new AssumeRoleCommand(untagged));
  await assert.rejects(ecrLogin(keyOf(skipped.Credentials), ''), { name: 'AccessDeniedException' });
});

test('role chaining: from the role of the token to another', async () => {
  const first = await configureByToken(jobToken('refs/heads/main'));
  const sts = new STSClient(options(first));
  const input = {
    RoleArn: roleArn('release'),
    RoleSessionName: 'GitHubActions',
    ExternalId: 'octo',
    Tags: [{ Key: 'Branch', Value: 'refs/heads/main' }],
  };
  const second = await sts.send(new AssumeRoleCommand({ ...input, DurationSeconds: 3600 }));
  const [login] = await ecrLogin(keyOf(second.Credentials), '');
  assert.equal(login?.user, 'AWS');
  await assert.rejects(sts.send(new AssumeRoleCommand({ ...input, DurationSeconds: 7200 })), {
    name: 'ValidationError',
    message:
      'The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.',
  });
});

test("a trust of GitHub's issuer that is for every repository is refused", async () => {
  const iam = new IAMClient(options(admin));
  const create = (RoleName: string, Condition?: object) =>
    iam.send(
      new CreateRoleCommand({
        RoleName,
        AssumeRolePolicyDocument: document({
          Effect: 'Allow',
          Principal: { Federated: GITHUB },
          Action: 'sts:AssumeRoleWithWebIdentity',
          ...(Condition && { Condition }),
        }),
      }),
    );
  const key = 'token.actions.githubusercontent.com';
  const message = `Trust policy with trusted principal ${GITHUB} must evaluate, using StringEquals, StringLike or StringEqualsIgnoreCase, ${key}:sub or ${key}:job_workflow_ref which is not scoped to all.`;
  const refused: (object | undefined)[] = [
    undefined,
    { StringEquals: { [`${key}:aud`]: 'sts.amazonaws.com' } },
    { StringLike: { [`${key}:sub`]: '*' } },
  ];
  for (const condition of refused) {
    await assert.rejects(create('unscoped', condition), {
      name: 'MalformedPolicyDocumentException',
      message,
    });
  }
  await create('scoped', { StringLike: { [`${key}:sub`]: 'repo:octo-org/octo-repo:*' } });
  await create('immutable', { StringLike: { [`${key}:sub`]: 'repo:octo-org@65/octo-repo@74:ref:*' } });
});

test('the audit log says whose token it was, whether it was let in or not', async () => {
  await configureByToken(jobToken('refs/heads/main'));
  await assert.rejects(configureByToken(jobToken('refs/heads/other')));
  const ofTokens = async (): Promise<Record<string, unknown>[]> =>
    (await readFile(join(data, 'audit', 'audit-00000001.jsonl'), 'utf8'))
      .split('\n')
      .filter((line) => line.includes('"eventName":"AssumeRoleWithWebIdentity"'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  let records: Record<string, unknown>[] = [];
  // The newest is written within 200 ms.
  while (!JSON.stringify(records).includes('refs/heads/other')) records = await ofTokens();
  const provider = `arn:aws:iam::${ACCOUNT}:oidc-provider/${issuer.host}`;
  const shown = records
    .slice(-2)
    .map(({ userIdentity, errorCode, resources }) => ({ userIdentity, errorCode, resources }));
  const of = (ref: string) => {
    const userName = `repo:octo-org/octo-repo:ref:${ref}`;
    const principalId = `${provider}:sts.amazonaws.com:${userName}`;
    return { type: 'WebIdentityUser', principalId, userName, identityProvider: provider };
  };
  const resources = [{ accountId: ACCOUNT, type: 'AWS::IAM::Role', ARN: roleArn('deploy') }];
  assert.deepEqual(shown, [
    { userIdentity: of('refs/heads/main'), errorCode: undefined, resources },
    { userIdentity: of('refs/heads/other'), errorCode: 'AccessDenied', resources },
  ]);
});
