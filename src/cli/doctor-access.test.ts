/** Diagnoses of `berth doctor` about credentials, regions and docker's configuration, each by breaking exactly that thing. */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import {
  CreateAccessKeyCommand,
  CreateUserCommand,
  IAMClient,
  PutUserPolicyCommand,
  UpdateAccessKeyCommand,
} from '@aws-sdk/client-iam';
import { createIdentity } from '../identity/identity.ts';
import { openKeyRing } from '../lib/keyring.ts';
import { openSqliteStore } from '../store/store.ts';
import { diagnoseDocker, probeDocker } from './doctor-docker.ts';
import { readSubject } from './doctor-finding.ts';
import { diagnoseIam } from './doctor-iam.ts';
import { ACCOUNT, listen, openMachine, REGION, type TestMachine } from './test-machine.ts';

let machine: TestMachine;
let iam: IAMClient;
before(async () => {
  machine = await openMachine();
  const { AWS_ACCESS_KEY_ID: accessKeyId = '', AWS_SECRET_ACCESS_KEY: secretAccessKey = '' } = machine.env;
  iam = new IAMClient({
    endpoint: machine.endpoint,
    region: REGION,
    credentials: { accessKeyId, secretAccessKey },
    maxAttempts: 1,
  });
});
after(() => machine[Symbol.asyncDispose]());
/** The environment of a user who may do what the statements say. */
async function createUser(name: string, ...statements: object[]): Promise<NodeJS.ProcessEnv> {
  await iam.send(new CreateUserCommand({ UserName: name }));
  if (statements.length > 0) {
    const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement: statements });
    await iam.send(new PutUserPolicyCommand({ UserName: name, PolicyName: 'rights', PolicyDocument }));
  }
  const { AccessKey: key } = await iam.send(new CreateAccessKeyCommand({ UserName: name }));
  return { AWS_ACCESS_KEY_ID: key?.AccessKeyId, AWS_SECRET_ACCESS_KEY: key?.SecretAccessKey };
}

const allow = (Action: string | string[], Resource = '*') => ({ Effect: 'Allow', Action, Resource });
const LOGIN = allow('ecr:GetAuthorizationToken');
const EXPLAIN = allow('berth:Explain*');
const LOOK = allow('ecr:DescribeRepositories');

describe('doctor finds out about', () => {
  beforeEach(async () => {
    await machine.logIn();
  });

  test('no credentials', async () => {
    const env = {
      AWS_ACCESS_KEY_ID: undefined,
      AWS_SECRET_ACCESS_KEY: undefined,
      AWS_EC2_METADATA_DISABLED: 'true',
    };
    const { code, wrong, textOf } = await machine.diagnose(machine.host, { env });
    assert.deepEqual([code, wrong], [2, ['iam.credentials']]);
    assert.match(
      textOf('iam.credentials'),
      /^This machine has no AWS credentials\.[\s\S]*eval "\$\(berth env\)"/,
    );
  });

  test('a key that is unknown, inactive, or has another secret', async () => {
    const off = await createUser('off', LOGIN);
    const { AWS_ACCESS_KEY_ID: AccessKeyId } = off;
    await iam.send(new UpdateAccessKeyCommand({ UserName: 'off', AccessKeyId, Status: 'Inactive' }));
    const cases: readonly (readonly [NodeJS.ProcessEnv, RegExp])[] = [
      [{ AWS_ACCESS_KEY_ID: 'AKIAIOSFODNN7EXAMPLE' }, /^The server does not know the access key\./],
      [off, /^The server does not know the access key\. [\s\S]*it is inactive or deleted/],
      [{ AWS_SECRET_ACCESS_KEY: 'x'.repeat(40) }, /^The secret key does not belong to the access key/],
    ];
    for (const [env, words] of cases) {
      const { code, wrong, textOf } = await machine.diagnose(machine.host, { env });
      assert.deepEqual([code, wrong], [2, ['iam.identity']]);
      assert.match(textOf('iam.identity'), words);
      assert.ok(!textOf('iam.identity').includes('x'.repeat(40)));
    }
  });

  test('a server that does not answer, and none that is named', async () => {
    let port: number;
    {
      await using closed = await listen(createTcpServer());
      ({ port } = closed);
    }
    const env = { AWS_ENDPOINT_URL: `http://127.0.0.1:${port}` };
    const silent = await machine.diagnose(machine.host, { env });
    assert.deepEqual(silent.wrong, ['iam.endpoint']);
    const unset = await machine.diagnose(machine.host, { env: { AWS_ENDPOINT_URL: undefined } });
    assert.deepEqual(unset.wrong, ['iam.endpoint-unset']);
    assert.match(
      unset.textOf('iam.endpoint-unset'),
      new RegExp(`export AWS_ENDPOINT_URL=http://${machine.host}$`),
    );
  });

  test('who may not log in, pull or push, and which statement is missing', async () => {
    const resource = `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/app`;
    const shut = await machine.diagnose(`${machine.host}/app`, {
      env: await createUser(
        'shut',
        allow(['ecr:Batch*', 'ecr:Get*DownloadUrl*', 'ecr:Describe*', 'ecr:*Layer*', 'ecr:PutImage']),
        EXPLAIN,
      ),
    });
    assert.deepEqual(shut.wrong, ['iam.login']);
    assert.match(
      shut.textOf('iam.login'),
      /^They may not log in to the registry\.\nUser: .*user\/shut is not authorized to perform: ecr:GetAuthorizationToken on resource: \* because no identity-based policy allows the ecr:GetAuthorizationToken action\n[\s\S]*berth explain deny [\w-]+$/,
    );

    const half = await machine.diagnose(`${machine.host}/app`, {
      env: await createUser('half', LOGIN, LOOK, EXPLAIN, allow('ecr:BatchGetImage')),
    });
    assert.deepEqual(half.wrong, ['iam.pull', 'iam.push']);
    assert.equal(
      half.textOf('iam.pull'),
      'They may not pull from app: ecr:GetDownloadUrlForLayer.\nNo identity policy allows it.\n' +
        `Allow it where the explanation says:\n{"Effect":"Allow","Action":"ecr:GetDownloadUrlForLayer","Resource":"${resource}"}`,
    );

    const puller = await machine.diagnose(`${machine.host}/app`, {
      env: await createUser(
        'puller',
        LOGIN,
        LOOK,
        EXPLAIN,
        allow(['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer']),
      ),
    });
    assert.deepEqual([puller.code, puller.wrong], [1, ['iam.push']]);
  });

  test('what they may do is tried where they may not ask', async () => {
    const subject = `${machine.host}/app`;
    const resource = `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/app`;
    const dumb = await machine.diagnose(subject, { env: await createUser('dumb', LOGIN, LOOK) });
    assert.deepEqual([dumb.code, dumb.wrong], [2, ['iam.pull', 'iam.push']]);
    assert.equal(
      dumb.textOf('iam.pull'),
      'They may not pull from app: ecr:BatchGetImage, ecr:GetDownloadUrlForLayer.\n' +
        `User: arn:aws:iam::${ACCOUNT}:user/dumb is not authorized to perform: ecr:BatchGetImage on resource: ${resource} because no identity-based policy allows the ecr:BatchGetImage action\n` +
        `Allow it where the explanation says:\n{"Effect":"Allow","Action":["ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"],"Resource":"${resource}"}`,
    );
    const pull = allow(['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer']);
    const node = await machine.diagnose(subject, { env: await createUser('node', LOGIN, LOOK, pull) });
    assert.deepEqual([node.code, node.wrong], [1, ['iam.push']]);
    const push = allow(['ecr:*Layer*', 'ecr:PutImage']);
    const env = await createUser('builder', LOGIN, LOOK, pull, push);
    const builder = await machine.diagnose(subject, { env });
    assert.deepEqual([builder.code, builder.wrong], [0, []]);
    assert.match(builder.textOf('iam.push'), /^They may push to app, if they may ecr:InitiateLayerUpload/);
    const denied = { Effect: 'Deny', Action: 'ecr:GetDownloadUrlForLayer', Resource: '*' };
    const barred = await machine.diagnose(subject, {
      env: await createUser('barred', LOGIN, LOOK, pull, push, denied),
    });
    assert.deepEqual([barred.code, barred.wrong], [2, ['iam.pull']]);
    assert.match(
      barred.textOf('iam.pull'),
      /with an explicit deny in an identity-based policy\nNarrow the statement that denies it\.$/,
    );
    // A busy or broken server says nothing about access.
    const busy = diagnoseIam(readSubject(subject) ?? assert.fail(), {
      endpoint: machine.endpoint,
      region: REGION,
      identity: { account: ACCOUNT, arn: `arn:aws:iam::${ACCOUNT}:user/dumb` },
      actionsRefused: { code: 'ThrottlingException', message: 'Rate exceeded', requestId: undefined },
      repositories: [],
    });
    assert.deepEqual(
      busy.filter(({ severity }) => severity !== 'ok').map(({ id, why }) => [id, why]),
      [['iam.access', 'Rate exceeded']],
    );
  });

  test('host, region, account and repository that do not fit together', async () => {
    const at = (account: string, region: string): string =>
      `${account}.dkr.ecr.${region}.example:${machine.port}`;
    const about = async (reference: string, env: NodeJS.ProcessEnv = {}) => {
      const found = await machine.diagnose(reference, { env });
      return { ...found, wrong: found.wrong.filter((id) => id.startsWith('region.')) };
    };
    assert.deepEqual((await about(`${at(ACCOUNT, REGION)}/app`)).wrong, []);

    const region = await about(at(ACCOUNT, 'eu-west-1'));
    assert.deepEqual(region.wrong, ['region.mismatch']);
    assert.match(
      region.textOf('region.mismatch'),
      /^The host names the region eu-west-1, and this machine is set to us-east-1\.\nA login made in us-east-1 is refused in eu-west-1\.\nexport AWS_REGION=eu-west-1\n/,
    );

    const account = await about(at('111111111111', REGION));
    assert.deepEqual(account.wrong, ['region.account']);

    const form = await about(`1.dkr.ecr.${REGION}.example:${machine.port}`);
    assert.deepEqual(form.wrong, ['region.host']);

    const elsewhere = await about(`${machine.host}/app`, { AWS_REGION: 'eu-west-1' });
    assert.deepEqual(elsewhere.wrong, ['region.repository']);
    assert.match(
      elsewhere.textOf('region.repository'),
      /^app does not exist in eu-west-1, but in us-east-1\./,
    );

    const absent = await about(`${machine.host}/none`);
    assert.deepEqual(absent.wrong, ['region.repository']);
    assert.match(
      absent.textOf('region.repository'),
      /aws ecr create-repository --region us-east-1 --repository-name none$/,
    );
  });

  test('a configuration of docker that is broken', async () => {
    await machine.write('home/.docker/config.json', '{"auths": {"secret');
    const { code, wrong, textOf } = await machine.diagnose(machine.host);
    assert.deepEqual([code, wrong], [2, ['docker.config', 'docker.no-login']]);
    assert.match(textOf('docker.config'), /cannot be used: it is no JSON\./);
    assert.ok(!textOf('docker.config').includes('secret'));
    await machine.write('etc-docker/daemon.json', '{');
    assert.match(
      (await machine.diagnose(machine.host)).textOf('docker.daemon-config'),
      /dockerd does not start/,
    );
    await rm(join(machine.dockerDirectory, 'daemon.json'));
  });

  test('a credential helper that is missing, shadowed, or under a key that nobody looks up', async () => {
    const { host } = machine;
    const auth = await machine.logIn();
    const config = 'home/.docker/config.json';
    await machine.write(config, { credHelpers: { [host]: 'berth' } });
    const missing = await machine.diagnose(host);
    assert.deepEqual(missing.wrong, ['docker.helper-missing']);
    assert.match(
      missing.textOf('docker.helper-missing'),
      /^The credential helper docker-credential-berth is not on PATH\./,
    );
    await machine.write(config, { credsStore: 'berth' });
    assert.deepEqual((await machine.diagnose(host)).wrong, ['docker.helper-missing']);

    await machine.write('bin/docker-credential-berth', '#!/bin/sh\n');
    assert.deepEqual((await machine.diagnose(host)).wrong, []);

    await machine.write(config, { auths: { [host]: { auth } }, credHelpers: { [host]: 'berth' } });
    assert.deepEqual((await machine.diagnose(host)).wrong, ['docker.stale-login']);

    await machine.write(config, { credHelpers: { [`http://${host}`]: 'berth' } });
    assert.deepEqual((await machine.diagnose(host)).wrong, ['docker.key', 'docker.no-login']);

    await machine.write(config, { auths: { [`https://${host}/v1/`]: { auth } } });
    assert.deepEqual((await machine.diagnose(host)).wrong, ['docker.key']);
  });

  test('no login, or one for another port', async () => {
    await machine.logIn(machine.admin, 'localhost:1');
    const { code, wrong, textOf } = await machine.diagnose(machine.host);
    assert.deepEqual([code, wrong], [1, ['docker.no-login']]);
    assert.match(
      textOf('docker.no-login'),
      /There is one for localhost:1, and logins are for exactly one host and port\./,
    );
  });

  /** A token as it was issued hours ago. */
  async function oldToken(hours: number): Promise<string> {
    const store = await openSqliteStore({ file: join(machine.data, 'berth.db'), readOnly: true });
    try {
      const keys = await openKeyRing(join(machine.data, 'keys'));
      const identity = createIdentity({ store, keys });
      const found = await identity.findKey(machine.env['AWS_ACCESS_KEY_ID'] ?? '', undefined);
      assert.ok(typeof found === 'object');
      const issued = Date.now() - hours * 3_600_000;
      return (await identity.issueRegistryToken(found.caller, { region: REGION }, issued)).password;
    } finally {
      await store.close();
    }
  }

  test("a kept login that has expired, was revoked, or is another server's", async () => {
    const keep = (password: string) =>
      machine.write('home/.docker/config.json', {
        auths: { [machine.host]: { auth: Buffer.from(`AWS:${password}`).toString('base64') } },
      });
    await keep(await oldToken(5));
    const good = await machine.diagnose(machine.host);
    assert.deepEqual(good.wrong, []);
    assert.match(
      good.textOf('docker.token'),
      /^The kept login is .*user\/admin's, 5\.0 hours old and good for 7\.0 hours more\.$/,
    );

    await keep(await oldToken(14));
    const expired = await machine.diagnose(machine.host);
    assert.deepEqual(expired.wrong, ['docker.token']);
    assert.match(
      expired.textOf('docker.token'),
      /^The kept login for localhost:\d+ expired 2\.0 hours ago\./,
    );

    const env = await createUser('gone', LOGIN);
    await machine.logIn(await machine.clientOf(env));
    const { AWS_ACCESS_KEY_ID: AccessKeyId } = env;
    await iam.send(new UpdateAccessKeyCommand({ UserName: 'gone', AccessKeyId, Status: 'Inactive' }));
    const revoked = await machine.diagnose(machine.host);
    assert.match(
      revoked.textOf('docker.token'),
      /does not work any more\.\nThe access key AKIA\w+ it was made with is Inactive\./,
    );

    await keep(`ey${'A'.repeat(100)}`);
    assert.match((await machine.diagnose(machine.host)).textOf('docker.token'), /is no token of this server/);
  });

  test('a registry without TLS under a name that is not this machine', async () => {
    const host = `registry.example:${machine.port}`;
    await machine.logIn(machine.admin, host);
    const near = await machine.diagnose(host);
    assert.deepEqual([near.code, near.wrong], [1, ['docker.insecure-registry']]);
    await machine.write('etc-docker/daemon.json', { 'insecure-registries': [host] });
    assert.deepEqual((await machine.diagnose(host)).wrong, []);
    await machine.write('etc-docker/daemon.json', {});

    const subject = readSubject('registry.example/app');
    assert.ok(subject);
    const docker = await probeDocker(subject, {
      env: {},
      home: machine.home,
      dockerDirectory: machine.dockerDirectory,
    });
    const far = { addresses: ['192.0.2.1'], scheme: 'http' } as const;
    const found = diagnoseDocker(subject, docker, far, Date.now()).find((it) => it.severity === 'error');
    assert.equal(found?.id, 'docker.insecure-registry');
    assert.match(found?.fix ?? '', /"insecure-registries": \["registry\.example"\]/);
  });
});
