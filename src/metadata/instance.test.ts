import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createInstanceMetadata, type InstanceMetadataOptions } from './instance.ts';
import { isMachineLocal, listenHttp, readListenAddress } from './listen.ts';
import { ask, fakeRole, NOW, type RawAnswer } from './test-machine.ts';

const FACTS = {
  account: '000000000000',
  region: 'eu-west-1',
  availabilityZone: 'eu-west-1a',
  instanceId: 'i-0123456789abcdef0',
  instanceType: 'berth.host',
  imageId: 'ami-00000000000000000',
  hostname: 'node-1',
  privateIp: '10.0.0.7',
  mac: '02:00:00:00:00:07',
  architecture: 'x64',
  roleName: 'machine',
  pendingAt: NOW - 60_000,
};
const TTL = 'X-aws-ec2-metadata-token-ttl-seconds';
const TOKEN = 'X-aws-ec2-metadata-token';

async function open(options: Partial<InstanceMetadataOptions> = {}) {
  const role = fakeRole();
  const errors: unknown[] = [];
  const handler = createInstanceMetadata({
    facts: FACTS,
    credentials: role.credentials,
    v1: true,
    hopLimit: 1,
    ownAddresses: () => ['127.0.0.1'],
    clock: () => role.now,
    ...options,
  });
  const at = await listenHttp({ host: '127.0.0.1', port: 0 }, handler, (error) => errors.push(error));
  return {
    role,
    request: (method: string, path: string, headers: Readonly<Record<string, string>> = {}) =>
      ask(at, method, path, headers),
    token: async (seconds = 60) =>
      (await ask(at, 'PUT', '/latest/api/token', { [TTL]: String(seconds) })).text,
    async [Symbol.asyncDispose]() {
      await at.close();
      assert.deepEqual(errors, []);
    },
  };
}

const page = (status: number, reason: string): string => `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>${status} - ${reason}</title>
 </head>
 <body>
  <h1>${status} - ${reason}</h1>
 </body>
</html>
`;

function assertRefused({ status, headers, text }: RawAnswer, expected: number, reason: string): void {
  assert.equal(status, expected, text);
  assert.equal(headers['content-type'], 'text/html');
  assert.equal(text, page(expected, reason));
}

test('token requests', async () => {
  await using service = await open();
  const cases: readonly (readonly [string, Readonly<Record<string, string>>, number, string])[] = [
    ['PUT', {}, 400, 'Bad Request'],
    ['PUT', { [TTL]: '0' }, 400, 'Bad Request'],
    ['PUT', { [TTL]: '-1' }, 400, 'Bad Request'],
    ['PUT', { [TTL]: '21601' }, 400, 'Bad Request'],
    ['PUT', { [TTL]: '1e3' }, 400, 'Bad Request'],
    ['PUT', { [TTL]: '60, 60' }, 400, 'Bad Request'],
    ['PUT', { [TTL]: '60', 'X-Forwarded-For': '10.0.0.1' }, 403, 'Forbidden'],
    ['PUT', { [TTL]: '60', 'x-forwarded-for': '' }, 403, 'Forbidden'],
    ['PUT', { [TTL]: '60', Host: 'rebound.example' }, 403, 'Forbidden'],
    ['GET', { [TTL]: '60' }, 405, 'Method Not Allowed'],
    ['POST', { [TTL]: '60' }, 405, 'Method Not Allowed'],
  ];
  for (const [method, headers, status, reason] of cases) {
    const answer = await service.request(method, '/latest/api/token', headers);
    assertRefused(answer, status, reason);
    assert.equal(answer.headers.allow, status === 405 ? 'OPTIONS, PUT' : undefined);
  }
  for (const seconds of ['1', '21600']) {
    const { status, headers, text } = await service.request('PUT', '/latest/api/token', { [TTL]: seconds });
    assert.deepEqual([status, headers['content-type'], headers['server']], [200, 'text/plain', 'EC2ws']);
    assert.equal(headers[TTL.toLowerCase()], seconds);
    assert.match(text, /^[\w-]{54}$/);
  }
});

test('tokens expire, are bound to the service, and replace version 1 when that is off', async () => {
  await using service = await open({ v1: false });
  await using other = await open();
  const path = '/latest/meta-data/instance-id';
  const token = await service.token(60);
  const foreign = await other.token(60);
  const get = async (value?: string): Promise<number> =>
    (await service.request('GET', path, value === undefined ? {} : { [TOKEN]: value })).status;
  assert.equal(await get(token), 200);
  const last = token.endsWith('A') ? 'B' : 'A';
  for (const wrong of [
    undefined,
    '',
    'x',
    foreign,
    `${token}=`,
    `${token}A`,
    token.slice(0, -1) + last,
    `A${token}`,
  ]) {
    assert.equal(await get(wrong), 401, String(wrong));
  }
  assertRefused(await service.request('GET', path), 401, 'Unauthorized');
  service.role.now = NOW + 59_999;
  assert.equal(await get(token), 200);
  service.role.now = NOW + 60_000;
  assert.equal(await get(token), 401);
  // a wrong token is wrong even where none is needed
  assert.equal((await other.request('GET', path, { [TOKEN]: token })).status, 401);
  assert.equal((await other.request('GET', path)).text, FACTS.instanceId);
});

test('with a hop limit of 1 only addresses of the machine get a token', async () => {
  await using near = await open({ hopLimit: 1, ownAddresses: () => ['10.0.0.7'] });
  await using far = await open({ hopLimit: 2, ownAddresses: () => ['10.0.0.7'] });
  await assert.rejects(near.token(), /socket hang up|ECONNRESET/);
  assert.equal((await far.token()).length, 54);
});

test('what is told, path by path', async () => {
  await using service = await open();
  const texts: Readonly<Record<string, string | RegExp>> = {
    '/': /^1\.0\n2007-01-19\n[\d\n-]*\n2021-07-15\n[\d\n-]*\nlatest$/,
    '/latest': 'dynamic/\nmeta-data/',
    '/latest/': 'dynamic/\nmeta-data/',
    '/2021-07-15/meta-data/instance-id': FACTS.instanceId,
    '/latest/meta-data/':
      'ami-id\nami-launch-index\nhostname\niam/\ninstance-action\ninstance-id\ninstance-life-cycle\ninstance-type\nlocal-hostname\nlocal-ipv4\nmac\nnetwork/\nplacement/\nservices/',
    '/latest/meta-data/iam/': 'info\nsecurity-credentials/',
    '/latest/meta-data/iam/security-credentials': 'machine',
    '/latest/meta-data/iam/security-credentials/': 'machine',
    '/latest/meta-data/instance-id?x=1': FACTS.instanceId,
    '/latest/meta-data/placement/': 'availability-zone\nregion',
    '/latest/meta-data/placement/region': 'eu-west-1',
    '/latest/meta-data/placement/availability-zone': 'eu-west-1a',
    '/latest/meta-data/local-ipv4': '10.0.0.7',
    '/latest/meta-data/hostname': 'node-1',
    '/latest/meta-data/mac': FACTS.mac,
    '/latest/meta-data/network/interfaces/macs/': `${FACTS.mac}/`,
    [`/latest/meta-data/network/interfaces/macs/${FACTS.mac}/owner-id`]: FACTS.account,
    '/latest/meta-data/services/domain': 'amazonaws.com',
    '/latest/meta-data/services/partition': 'aws',
    '/latest/meta-data/ami-id': FACTS.imageId,
    '/latest/meta-data/instance-type': 'berth.host',
    '/latest/dynamic/instance-identity/': 'document',
  };
  for (const [path, expected] of Object.entries(texts)) {
    const { status, headers, text } = await service.request('GET', path);
    assert.equal(status, 200, path);
    assert.equal(headers['content-type'], 'text/plain');
    if (typeof expected === 'string') assert.equal(text, expected, path);
    else assert.match(text, expected);
  }
  const absent = [
    '/latest/user-data',
    '/latest/meta-data/instance-id/',
    '/latest/meta-data/instance-id/x',
    '/latest/meta-data//instance-id',
    '/latest/meta-data/tags/instance',
    '/latest/meta-data/constructor',
    '/latest/meta-data/__proto__/',
    '/latest/meta-data/iam/security-credentials/other',
    '/latest/meta-data/iam/security-credentials-extended/',
    '/latest/dynamic/instance-identity/pkcs7',
    '/latest/dynamic/instance-identity/signature',
    '/2021-07-16/meta-data/',
    '/latest/../latest/meta-data/',
    '//latest',
  ];
  for (const path of absent) assertRefused(await service.request('GET', path), 404, 'Not Found');
});

test('the role is found however a client escapes its name', async () => {
  const roleName = 'node+a=b,c@d';
  await using service = await open({ facts: { ...FACTS, roleName } });
  const directory = '/latest/meta-data/iam/security-credentials/';
  for (const name of [roleName, encodeURIComponent(roleName), 'node%2Ba=b,c@d']) {
    assert.equal((await service.request('GET', directory + name)).status, 200, name);
  }
  for (const name of ['node%2', '%2e%2e', 'node%2Ba=b,c@d%2F', '%00']) {
    assertRefused(await service.request('GET', directory + name), 404, 'Not Found');
  }
});

test('methods and hosts', async () => {
  await using service = await open();
  const path = '/latest/meta-data/instance-id';
  const head = await service.request('HEAD', path);
  assert.deepEqual([head.status, head.text, head.headers['content-length']], [200, '', '19']);
  for (const method of ['PUT', 'POST', 'DELETE']) {
    const answer = await service.request(method, path);
    assertRefused(answer, 405, 'Method Not Allowed');
    assert.equal(answer.headers.allow, 'OPTIONS, GET, HEAD');
  }
  const hosts: Readonly<Record<string, number>> = {
    '169.254.169.254': 200,
    '127.0.0.1:1338': 200,
    '[fd00:ec2::254]': 200,
    'localhost:1338': 200,
    'instance-data.ec2.internal': 200,
    'attacker.example': 403,
    '169.254.169.254.attacker.example': 403,
    'localhost.attacker.example:1338': 403,
    'user@127.0.0.1': 403,
  };
  for (const [host, status] of Object.entries(hosts)) {
    assert.equal((await service.request('GET', path, { Host: host })).status, status, host);
  }
});

test('credentials, the profile and the identity document', async () => {
  await using service = await open();
  const json = async (path: string): Promise<unknown> =>
    JSON.parse((await service.request('GET', `/latest/${path}`)).text);
  const credentials = 'meta-data/iam/security-credentials/machine';
  assert.deepEqual(await json(credentials), {
    Code: 'Success',
    LastUpdated: '2026-11-24T08:00:00Z',
    Type: 'AWS-HMAC',
    AccessKeyId: 'ASIA1',
    SecretAccessKey: 'secret 1',
    Token: 'token 1',
    Expiration: '2026-11-24T09:00:00Z',
  });
  assert.deepEqual(await json('meta-data/iam/info'), {
    Code: 'Success',
    LastUpdated: '2026-11-24T08:00:00Z',
    InstanceProfileArn: 'arn:aws:iam::000000000000:instance-profile/machine',
    InstanceProfileId: 'AIPAQB6HYDTQ5ZT36P3DA',
  });
  const document = (await service.request('GET', '/latest/dynamic/instance-identity/document')).text;
  assert.deepEqual(Object.entries(JSON.parse(document) as object), [
    ['accountId', '000000000000'],
    ['architecture', 'x86_64'],
    ['availabilityZone', 'eu-west-1a'],
    ['billingProducts', null],
    ['devpayProductCodes', null],
    ['marketplaceProductCodes', null],
    ['imageId', FACTS.imageId],
    ['instanceId', FACTS.instanceId],
    ['instanceType', 'berth.host'],
    ['kernelId', null],
    ['pendingTime', '2026-11-24T07:59:00Z'],
    ['privateIp', '10.0.0.7'],
    ['ramdiskId', null],
    ['region', 'eu-west-1'],
    ['version', '2017-09-30'],
  ]);
});

test('a role that is refused, and a server that does not answer', async () => {
  await using service = await open();
  service.role.next = () => ({ kind: 'refused', reason: 'AccessDeniedException: secret reasons' });
  for (const path of ['iam/info', 'iam/security-credentials/machine']) {
    const { status, text } = await service.request('GET', `/latest/meta-data/${path}`);
    assert.equal(status, 200);
    assert.deepEqual(JSON.parse(text), {
      Code: 'AssumeRoleUnauthorizedAccess',
      Message:
        'EC2 cannot assume the role machine. Please see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.',
      LastUpdated: '2026-11-24T08:00:00Z',
    });
  }
  service.role.next = () => 'nobody answers';
  service.role.now += 2000;
  const answer = await service.request('GET', '/latest/meta-data/iam/security-credentials/machine');
  assertRefused(answer, 503, 'Service Unavailable');
});

test('addresses to listen on', () => {
  const local = ['127.0.0.1', '127.9.9.9', '169.254.169.254', '::1', 'fe80::1', 'fd00:ec2::254'];
  const remote = [
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '170.254.1.1',
    'fd00:ec3::1',
    'localhost',
    '::ffff:10.0.0.1',
    '',
  ];
  assert.deepEqual([...local, ...remote].filter(isMachineLocal), local);
  const addresses: Readonly<Record<string, unknown>> = {
    '127.0.0.1:1338': { host: '127.0.0.1', port: 1338 },
    '[fd00:ec2::254]:80': { host: 'fd00:ec2::254', port: 80 },
    'fd00:ec2::254:80': undefined,
    '127.0.0.1': undefined,
    '127.0.0.1:65536': undefined,
    'localhost:80': undefined,
    '[127.0.0.1]:80': undefined,
  };
  for (const [text, expected] of Object.entries(addresses)) {
    assert.deepEqual(readListenAddress(text), expected, text);
  }
});
