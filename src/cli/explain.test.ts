/** `berth explain` as it is typed: words, JSON, exit codes. What the server answers is tested in test/wire/explain.test.ts. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import {
  CreateAccessKeyCommand,
  CreateRoleCommand,
  CreateUserCommand,
  IAMClient,
  PutUserPolicyCommand,
} from '@aws-sdk/client-iam';
import { createMain, type Surroundings } from './cli.ts';
import { CallError } from './client.ts';
import { passwordOf } from './explain.ts';
import { ACCOUNT, openMachine, REGION, type TestMachine } from './test-machine.ts';

let machine: TestMachine;
before(async () => {
  machine = await openMachine();
});
after(() => machine[Symbol.asyncDispose]());

interface Run {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function run(
  argv: readonly string[],
  more: { env?: NodeJS.ProcessEnv; stdin?: string } = {},
): Promise<Run> {
  let out = '';
  let err = '';
  const surroundings = {
    env: { ...machine.env, ...more.env },
    platform: process.platform,
    stdout: { write: (text: string) => void (out += text) },
    stderr: { write: (text: string) => void (err += text) },
    stdin: Readable.from([more.stdin ?? '']),
  } as unknown as Surroundings;
  const code = await createMain(surroundings).run(['node', 'berth', ...argv]);
  return { code, out, err };
}

const repository = (name: string): string => `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${name}`;

/** A user without any permission, refused something. */
async function refusedUser(name: string): Promise<{ requestId: string; env: NodeJS.ProcessEnv }> {
  const { AWS_ACCESS_KEY_ID: accessKeyId = '', AWS_SECRET_ACCESS_KEY: secretAccessKey = '' } = machine.env;
  const credentials = { accessKeyId, secretAccessKey };
  const iam = new IAMClient({ endpoint: machine.endpoint, region: REGION, credentials });
  await iam.send(new CreateUserCommand({ UserName: name }));
  const { AccessKey: key } = await iam.send(new CreateAccessKeyCommand({ UserName: name }));
  const env = { AWS_ACCESS_KEY_ID: key?.AccessKeyId, AWS_SECRET_ACCESS_KEY: key?.SecretAccessKey };
  const client = await machine.clientOf(env);
  try {
    await client.call('ecr', 'DeleteRepository', { repositoryName: 'app' });
  } catch (error) {
    assert.ok(error instanceof CallError);
    return { requestId: error.requestId ?? '', env };
  }
  throw new assert.AssertionError({ message: 'it was allowed' });
}

test('a question that cannot be read is no denial, and no warning of doctor', async () => {
  const wrong = [
    ['explain', 'nope'],
    ['explain', 'access', 'only-this'],
    ['explain', 'image', 'a', '--nope'],
    ['doctor', '--nope'],
    ['doctor', '--config', '/absent/berth.yaml'],
  ];
  for (const argv of wrong) assert.equal((await run(argv)).code, 2, argv.join(' '));
  assert.equal((await run(['explain', '--help'])).code, 0);
  assert.equal((await run(['imds'])).code, 1);
});

test('deny: by request id, or the newest', async () => {
  const { requestId, env } = await refusedUser('dora');
  const arn = `arn:aws:iam::${ACCOUNT}:user/dora`;
  const { code, out } = await run(['explain', 'deny', requestId]);
  assert.equal(code, 1);
  assert.equal(
    out.replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/, 'TIME'),
    `Denied: ${arn} may not ecr:DeleteRepository on ${repository('app')}
        TIME UTC, from 127.0.0.1, region ${REGION}, request ${requestId}
        User: ${arn} is not authorized to perform: ecr:DeleteRepository on resource: ${repository('app')} because no identity-based policy allows the ecr:DeleteRepository action

Why: No identity policy allows it.

What would allow it:
  1. Add to an identity policy of ${arn}:
     {"Effect":"Allow","Action":"ecr:DeleteRepository","Resource":"${repository('app')}"}
`,
  );
  const last = await run(['explain', 'deny', '--last', '--principal', arn, '--json']);
  assert.equal(last.code, 1);
  assert.equal((JSON.parse(last.out) as { requestId: string }).requestId, requestId);
  const mine = await run(['explain', 'deny', requestId], { env });
  assert.equal(mine.code, 2);
  assert.match(mine.err, /^berth: AccessDeniedException: [\s\S]*\nExplanations are for who may ask/);
  const neither = await run(['explain', 'deny']);
  assert.deepEqual([neither.code, neither.err], [2, 'berth: name a request id, or say --last\n']);
  assert.equal((await run(['explain', 'deny', 'absent'])).code, 2);
});

test('access: allowed or denied, with a context', async () => {
  const admin = `arn:aws:iam::${ACCOUNT}:user/admin`;
  const allowed = await run(['explain', 'access', admin, 'ecr:PutImage', repository('app')]);
  assert.equal(allowed.code, 0);
  assert.equal(
    allowed.out,
    `Allowed: ${admin} may ecr:PutImage on ${repository('app')}

Why: Statement 1 of the identity policy AdministratorAccess (arn:aws:iam::aws:policy/AdministratorAccess) allows it.

Policies considered:
  identity policy AdministratorAccess (arn:aws:iam::aws:policy/AdministratorAccess) allows
    1. Allow applies
`,
  );
  const policyText = JSON.stringify({
    Version: '2012-10-17',
    Statement: [
      {
        Sid: 'Office',
        Effect: 'Deny',
        Principal: '*',
        Action: 'ecr:PutImage',
        Condition: { NotIpAddress: { 'aws:SourceIp': '10.0.0.0/8' } },
      },
    ],
  });
  await machine.admin.call('ecr', 'CreateRepository', { repositoryName: 'office' });
  await machine.admin.call('ecr', 'SetRepositoryPolicy', { repositoryName: 'office', policyText });
  const question = ['explain', 'access', admin, 'ecr:PutImage', repository('office')];
  const denied = await run(question);
  assert.equal(denied.code, 1);
  assert.match(
    denied.out,
    /Why: Statement "Office" of the repository policy denies it\.\n     Its condition is met: NotIpAddress aws:SourceIp "10\.0\.0\.0\/8" \(the request has "127\.0\.0\.1"\)\n/,
  );
  assert.match(
    denied.out,
    /  1\. Narrow statement "Office" of the repository policy in account 000000000000, so that it no longer covers this request\.\n$/,
  );
  assert.equal((await run([...question, '--context', 'aws:SourceIp=10.1.2.3'])).code, 0);
  assert.equal((await run([...question, '--context', 'nothing'])).code, 2);
});

test('access: a policy has its name, and what only AWS can change is not to be changed', async () => {
  const { AWS_ACCESS_KEY_ID: accessKeyId = '', AWS_SECRET_ACCESS_KEY: secretAccessKey = '' } = machine.env;
  const iam = new IAMClient({
    endpoint: machine.endpoint,
    region: REGION,
    credentials: { accessKeyId, secretAccessKey },
  });
  const UserName = 'iris';
  const readOnly = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
  await iam.send(new CreateUserCommand({ UserName, PermissionsBoundary: readOnly }));
  const statement = { Effect: 'Allow', Action: 'ecr:*', Resource: '*' };
  const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement: statement });
  await iam.send(new PutUserPolicyCommand({ UserName, PolicyName: 'identity', PolicyDocument }));
  const { out } = await run([
    'explain',
    'access',
    `arn:aws:iam::${ACCOUNT}:user/iris`,
    'ecr:PutImage',
    repository('app'),
  ]);
  assert.match(out, /\n  identity policy identity allows\n/);
  assert.ok(
    out.endsWith(`
What would allow it:
  1. Use a policy of your own instead of the permissions boundary AmazonEC2ContainerRegistryReadOnly (${readOnly}), which only AWS can change; it needs
     {"Effect":"Allow","Action":"ecr:PutImage","Resource":"${repository('app')}"}
`),
    out,
  );
});

test('access: becoming a role is judged by its trust policy too', async () => {
  const { AWS_ACCESS_KEY_ID: accessKeyId = '', AWS_SECRET_ACCESS_KEY: secretAccessKey = '' } = machine.env;
  const credentials = { accessKeyId, secretAccessKey };
  const iam = new IAMClient({ endpoint: machine.endpoint, region: REGION, credentials });
  const trusting = (Principal: object): string =>
    JSON.stringify({
      Version: '2012-10-17',
      Statement: [{ Effect: 'Allow', Principal, Action: 'sts:AssumeRole' }],
    });
  const make = async (RoleName: string, principal: object) => {
    const AssumeRolePolicyDocument = trusting(principal);
    await iam.send(new CreateRoleCommand({ RoleName, Path: '/x/', AssumeRolePolicyDocument }));
  };
  await make('people', { AWS: ACCOUNT });
  await make('machines', { Service: 'ec2.amazonaws.com' });
  const admin = `arn:aws:iam::${ACCOUNT}:user/admin`;
  const ask = async (action: string, role: string, principal = admin) =>
    await run(['explain', 'access', principal, action, `arn:aws:iam::${ACCOUNT}:role/${role}`]);
  assert.equal((await ask('sts:AssumeRole', 'x/people')).code, 0);
  const refused = await ask('sts:AssumeRole', 'x/machines');
  assert.equal(refused.code, 1);
  assert.match(refused.out, /\nWhy: No trust policy of the role allows it\.\n/);
  for (const [action, role, principal] of [
    ['sts:TagSession', 'x/people', admin],
    ['sts:AssumeRole', 'x/absent', admin],
    ['sts:AssumeRole', 'people', admin],
    ['sts:AssumeRole', 'x/people', `arn:aws:iam::${ACCOUNT}:root`],
  ] as const) {
    assert.equal((await ask(action, role, principal)).code, 1, `${action} ${role} ${principal}`);
  }
});

test('image: where it leads and who may pull', async () => {
  const host = `${ACCOUNT}.dkr.ecr.${REGION}.example.com`;
  const { code, out } = await run(['explain', 'image', `${host}/app:1`]);
  assert.equal(code, 1);
  assert.match(
    out,
    new RegExp(
      `^${host}/app:1\n  host        ${host}\n  registry    account ${ACCOUNT}, region ${REGION} \\(the host name says so\\)\n  repository  app\n  image       tag 1: does not exist there\n\nWho may pull \\(of account ${ACCOUNT}\\):\n  yes  arn:aws:iam::${ACCOUNT}:user/admin  by identity policy AdministratorAccess `,
    ),
  );
  const nowhere = await run(['explain', 'image', 'app:1']);
  assert.deepEqual(
    [nowhere.code, nowhere.out],
    [1, 'app:1 leads nowhere: "app:1" begins with no registry host, so docker takes it for Docker Hub\'s.\n'],
  );
});

test('token: in every form people have it, also from standard input', async () => {
  const auth = await machine.logIn();
  const password = Buffer.from(auth, 'base64').toString().slice(4);
  for (const form of [password, `AWS:${password}`, auth, `Basic ${auth}`, ` ${auth}\n`]) {
    assert.equal(passwordOf(form), password);
  }
  const { code, out } = await run(['explain', 'token', '-'], { stdin: `${password}\n` });
  assert.equal(code, 0);
  assert.match(out, /^The token is good\.\n  registry   account 000000000000, region us-east-1\n/);
  assert.match(out, /\n  yes  ecr:PutImage  by identity policy AdministratorAccess /);
  assert.ok(!out.includes(password));
  assert.equal((await run(['explain', 'token', 'eyabc'])).code, 1);
  assert.equal((await run(['explain', 'token', '-'], { stdin: '' })).code, 2);
});

test('berth imds does not start with a role that it does not get', async () => {
  const { code, err } = await run(['imds', '--role', 'absent', '--listen', '127.0.0.1:0']);
  assert.equal(code, 1);
  assert.equal(
    err,
    `berth: AccessDeniedException: ec2.amazonaws.com is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::${ACCOUNT}:role/absent\n`,
  );
});
