import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { findContainer, findInstance, findMachineSource } from './credentials.ts';
import { matchesHost, readImageHost, readRegistryHost } from './registry-login.ts';

const EXPIRATION = '2030-01-02T03:04:05Z';
const GIVEN = { AccessKeyId: 'ASIA1', SecretAccessKey: 'secret', Token: 'token', Expiration: EXPIRATION };
const LOADED = {
  accessKeyId: 'ASIA1',
  secretAccessKey: 'secret',
  sessionToken: 'token',
  expiresAt: Date.parse(EXPIRATION),
};
const NO_STS = { endpoint: 'http://127.0.0.1:1', ca: undefined };

type Answer = readonly [status: number, body: string];

async function serve(answer: (path: string, headers: IncomingHttpHeaders, method: string) => Answer) {
  const server = createServer((request, response) => {
    const [status, body] = answer(request.url ?? '', request.headers, request.method ?? '');
    response.writeHead(status).end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

test('the container endpoint is asked with the token of the file, which wins over the variable', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-credentials-'));
  try {
    const file = join(directory, 'token');
    await writeFile(file, 'from-file\n');
    const seen: (string | undefined)[] = [];
    await using server = await serve((_, { authorization }) => {
      seen.push(authorization);
      return [200, JSON.stringify(GIVEN)];
    });
    const env = {
      AWS_CONTAINER_CREDENTIALS_FULL_URI: `${server.url}/v1/credentials`,
      AWS_CONTAINER_AUTHORIZATION_TOKEN: 'from-variable',
    };
    assert.deepEqual(await findContainer(env)?.load(), LOADED);
    const both = { ...env, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: file };
    assert.deepEqual(await findContainer(both)?.load(), LOADED);
    assert.deepEqual(seen, ['from-variable', 'from-file']);
    const broken = findContainer({ ...env, AWS_CONTAINER_AUTHORIZATION_TOKEN: 'a\r\nx-evil: 1' });
    await assert.rejects(broken?.load() ?? Promise.resolve(), /line break/);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('a token goes in the clear to this machine and the addresses of AWS only', () => {
  const refused = [
    'http://evil.test/x',
    'http://127.0.0.1.evil.test/',
    'http://169.254.170.4/',
    'http://localhost.evil.test/',
    'http://[fd00:ec2::24]/',
    'http://localhost@evil.test/',
    'ftp://localhost/',
    'no address',
  ];
  for (const uri of refused) {
    assert.throws(() => findContainer({ AWS_CONTAINER_CREDENTIALS_FULL_URI: uri }), /has to be https/, uri);
  }
  assert.throws(() => findContainer({ AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: '@evil.test/' }), /has to be/);
  const accepted = [
    'https://vault.test/x',
    'http://localhost:1/x',
    'http://127.9.9.9/x',
    'http://169.254.170.2/x',
    'http://169.254.170.23/v1/credentials',
    'http://[fd00:ec2::23]/v1/credentials',
    'http://[::1]:8/x',
  ];
  for (const uri of accepted) {
    assert.ok(findContainer({ AWS_CONTAINER_CREDENTIALS_FULL_URI: uri }) !== undefined, uri);
  }
  assert.equal(findContainer({}), undefined);
});

test('the role of the machine is read with a token of the metadata service', async () => {
  let role = 'node';
  let document: object = GIVEN;
  await using server = await serve((path, headers, method) => {
    if (path === '/latest/api/token') {
      const isAsked = headers['x-aws-ec2-metadata-token-ttl-seconds'] === '21600';
      return method === 'PUT' && isAsked ? [200, 'imds-token'] : [400, ''];
    }
    if (headers['x-aws-ec2-metadata-token'] !== 'imds-token') return [401, ''];
    const base = '/latest/meta-data/iam/security-credentials/';
    if (path === base) return role === '' ? [404, ''] : [200, role];
    return path === `${base}node` ? [200, JSON.stringify(document)] : [404, ''];
  });
  const env = { AWS_EC2_METADATA_SERVICE_ENDPOINT: `${server.url}/`, HOME: '/nonexistent' };
  const source = await findMachineSource(env, NO_STS);
  assert.equal(source?.from, `the role node of this machine (${server.url})`);
  assert.deepEqual(await source.load(), LOADED);
  document = { Code: 'AssumeRoleUnauthorizedAccess', Message: 'no' };
  await assert.rejects(source.load(), {
    message: `${server.url} gives no credentials: AssumeRoleUnauthorizedAccess: no`,
  });
  role = '';
  assert.equal(await findInstance(env), undefined);
  assert.equal(await findInstance({ ...env, AWS_EC2_METADATA_DISABLED: 'true' }), undefined);
});

test('the environment comes before everything, incomplete keys are none', async () => {
  const env = {
    AWS_ACCESS_KEY_ID: 'AKIA1',
    AWS_SECRET_ACCESS_KEY: 'secret',
    AWS_CONTAINER_CREDENTIALS_FULL_URI: 'http://127.0.0.1:1/',
    HOME: '/nonexistent',
    AWS_EC2_METADATA_DISABLED: 'true',
  };
  assert.equal((await findMachineSource(env, NO_STS))?.from, 'the environment');
  const { AWS_SECRET_ACCESS_KEY: _, ...incomplete } = env;
  assert.equal(
    (await findMachineSource(incomplete, NO_STS))?.from,
    'the container endpoint http://127.0.0.1:1',
  );
});

test('hosts of server URLs and images', () => {
  const hosts: readonly (readonly [string, object | undefined])[] = [
    ['https://Registry.Example.test:8443/v2/', { host: 'registry.example.test:8443' }],
    [
      '012345678901.dkr.ecr.eu-west-1.amazonaws.com',
      { host: '012345678901.dkr.ecr.eu-west-1.amazonaws.com', account: '012345678901', region: 'eu-west-1' },
    ],
    [
      '012345678901.dkr-ecr.eu-west-1.on.aws',
      { host: '012345678901.dkr-ecr.eu-west-1.on.aws', account: '012345678901', region: 'eu-west-1' },
    ],
    ['user@host', undefined],
    ['a b', undefined],
    ['', undefined],
  ];
  for (const [text, expected] of hosts) assert.deepEqual(readRegistryHost(text), expected, text);
  assert.equal(readImageHost('nginx')?.host, 'docker.io');
  assert.equal(readImageHost('library/nginx:1.2')?.host, 'docker.io');
  assert.equal(readImageHost('localhost/x')?.host, 'localhost');
  assert.equal(readImageHost('localhost:5000/x@sha256:1')?.host, 'localhost:5000');
});

test("patterns match as the kubelet's matchImages do", () => {
  const cases: readonly (readonly [pattern: string, host: string, matches: boolean])[] = [
    ['*.dkr.ecr.*.example.test', '1.dkr.ecr.eu.example.test', true],
    ['*.dkr.ecr.*.example.test', '1.dkr.ecr.eu.west.example.test', false],
    ['*.example.test', 'example.test', false],
    ['*.example.test', 'a.example.test:8443', false],
    ['*.example.test:8443', 'a.example.test:8443', true],
    ['reg*.example.test/path', 'reg1.example.test', true],
    ['a.example.test', 'axexample.test', false],
    ['a.example.test', 'a.example.testx', false],
    ['(.*).x', 'aa.x', false],
    ['*', 'localhost', true],
  ];
  for (const [pattern, host, expected] of cases) {
    assert.equal(matchesHost(pattern, host), expected, `${pattern} ${host}`);
  }
});
