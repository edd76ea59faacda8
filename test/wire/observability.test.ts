/** What an operator sees of the whole server: metrics, the log and the audit log; and that no secret is in any of them. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { Agent, request as send, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { FAULTS } from '../../src/domain/faults.ts';
import { createLog } from '../../src/lib/log.ts';
import { presignUrl, signRequest, type Credentials } from '../../src/lib/sigv4.ts';

const REGION = 'us-east-1';
const ACCOUNT = '000000000000';

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

interface Observed {
  readonly berth: Berth;
  readonly admin: Credentials;
  /** everything logged so far */
  readonly logged: () => string;
  ask(path: string, options?: AskOptions): Promise<Answer>;
  /** a signed call */
  call(operation: string, input: object, key?: Credentials): Promise<Answer>;
  form(service: 'iam' | 'sts', parameters: Record<string, string>): Promise<Answer>;
  /** stops the server; the records of its audit log */
  stop(): Promise<Record<string, unknown>[]>;
}

interface AskOptions {
  readonly method?: string;
  readonly headers?: Record<string, string>;
  readonly body?: string | Buffer;
}

const cleaning: (() => Promise<void>)[] = [];
after(async () => {
  for (const clean of cleaning) await clean();
});

async function observe(
  flags: Record<string, string> = {},
  env: Record<string, string> = {},
): Promise<Observed> {
  const data = await mkdtemp(join(tmpdir(), 'berth-observability-'));
  cleaning.push(() => rm(data, { recursive: true, force: true }));
  const lines: string[] = [];
  const config = readConfig({
    flags: { data, port: '0', 'log-level': 'debug', ...flags },
    env,
    platform: process.platform,
  });
  const berth = await start(config, {
    log: createLog(config.logLevel, { write: (line) => void lines.push(line) }),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  assert.ok(berth.firstCredentials);
  const { id, secret } = berth.firstCredentials;
  const admin: Credentials = { accessKeyId: id, secretAccessKey: secret };
  const url = `http://127.0.0.1:${berth.port}/`;

  const ask = async (
    path: string,
    { method = 'GET', headers = {}, body }: AskOptions = {},
  ): Promise<Answer> => {
    const request = send({ host: '127.0.0.1', port: berth.port, path, method, headers, agent: false });
    request.end(body);
    const [message] = (await once(request, 'response')) as [IncomingMessage];
    const chunks: Buffer[] = [];
    for await (const chunk of message) chunks.push(chunk as Buffer);
    return {
      status: message.statusCode ?? 0,
      headers: message.headers,
      text: Buffer.concat(chunks).toString('latin1'),
    };
  };
  const signed = (service: string, headers: Record<string, string>, body: string, key: Credentials) => {
    const options = { region: REGION, service, now: Date.now() };
    return ask('/', {
      method: 'POST',
      headers: signRequest({ method: 'POST', url, headers, body }, key, options),
      body,
    });
  };
  return {
    berth,
    admin,
    logged: () => lines.join(''),
    ask,
    call: (operation, input, key = admin) =>
      signed(
        'ecr',
        {
          'Content-Type': 'application/x-amz-json-1.1',
          'X-Amz-Target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
        },
        JSON.stringify(input),
        key,
      ),
    form: (service, parameters) =>
      signed(
        service,
        { 'Content-Type': 'application/x-www-form-urlencoded' },
        new URLSearchParams({
          Version: service === 'iam' ? '2010-05-08' : '2011-06-15',
          ...parameters,
        }).toString(),
        admin,
      ),
    async stop() {
      await berth.stop();
      return readRecords(join(data, 'audit'));
    },
  };
}

async function readRecords(directory: string): Promise<Record<string, unknown>[]> {
  const files = (await readdir(directory)).sort();
  const texts = await Promise.all(files.map((file) => readFile(join(directory, file), 'utf8')));
  return texts
    .join('')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

function basic(password: string): Record<string, string> {
  return { Authorization: `Basic ${Buffer.from(`AWS:${password}`).toString('base64')}` };
}

async function passwordOf(server: Observed): Promise<string> {
  const answer = await server.call('GetAuthorizationToken', {});
  const { authorizationData } = JSON.parse(answer.text) as {
    authorizationData: { authorizationToken: string }[];
  };
  const token = authorizationData[0]?.authorizationToken ?? '';
  return Buffer.from(token, 'base64').toString().slice('AWS:'.length);
}

function digestOf(bytes: string | Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

/** Pushes an image of one layer as a client does; returns the layer's digest. */
async function push(
  server: Observed,
  auth: Record<string, string>,
  name: string,
  layer: Buffer,
): Promise<string> {
  for (const body of [layer, Buffer.from('{}')]) {
    const begun = await server.ask(`/v2/${name}/blobs/uploads/`, { method: 'POST', headers: auth });
    const location = String(begun.headers.location);
    const ended = await server.ask(`${location}?digest=${digestOf(body)}`, {
      method: 'PUT',
      headers: auth,
      body,
    });
    assert.equal(ended.status, 201, ended.text);
  }
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: digestOf('{}'), size: 2 },
    layers: [
      { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: digestOf(layer), size: layer.length },
    ],
  });
  const put = await server.ask(`/v2/${name}/manifests/v1`, {
    method: 'PUT',
    headers: { ...auth, 'Content-Type': 'application/vnd.oci.image.manifest.v1+json' },
    body: manifest,
  });
  assert.equal(put.status, 201, put.text);
  return digestOf(layer);
}

describe('a push, a pull and refusals', () => {
  let server: Observed;
  let metrics: string;
  let records: Record<string, unknown>[];
  let layer: string;
  before(async () => {
    server = await observe();
    assert.equal((await server.call('CreateRepository', { repositoryName: 'team/app' })).status, 200);
    const auth = basic(await passwordOf(server));
    assert.equal((await server.ask('/v2/')).status, 401);
    assert.equal((await server.ask('/v2/', { headers: auth })).status, 200);
    layer = await push(server, auth, 'team/app', Buffer.from('x'.repeat(1000)));
    assert.equal((await server.ask('/v2/team/app/manifests/v1', { headers: auth })).status, 200);
    assert.equal((await server.ask(`/v2/team/app/blobs/${layer}`, { headers: auth })).text.length, 1000);
    assert.equal((await server.ask('/v2/team/app/manifests/v2', { headers: auth })).status, 404);
    for (const path of ['/v2/', '/v2/team/app/manifests/v1', '/v2/_catalog', '/v2/team/app/nothing'])
      assert.equal((await server.ask(path, { headers: basic('stolen') })).status, 400);
    const refused = await server.call('DescribeRepositories', { repositoryNames: ['absent'] });
    assert.equal(refused.status, 400);
    assert.equal((await server.form('iam', { Action: 'CreateUser', UserName: 'bob' })).status, 200);
    assert.equal((await server.form('sts', { Action: 'GetCallerIdentity' })).status, 200);
    assert.equal((await server.ask('/healthz')).status, 200);
    assert.equal((await server.ask('/nothing')).status, 404);
    metrics = (await server.ask('/metrics')).text;
    records = await server.stop();
  });

  const shown: [name: string, line: RegExp][] = [
    [
      'requests by action',
      /^berth_requests_total\{door="aws",action="ecr:CreateRepository",result="2xx"\} 1$/m,
    ],
    [
      'refusals by code',
      /^berth_requests_total\{door="oci",action="ecr:BatchGetImage",result="ImageNotFoundException"\} 1$/m,
    ],
    ['challenges', /^berth_requests_total\{door="oci",action="none",result="4xx"\} 1$/m],
    ['what no door serves', /^berth_requests_total\{door="none",action="none",result="4xx"\} 1$/m],
    ['latencies', /^berth_request_duration_seconds_count\{door="oci",action="ecr:PutImage"\} 1$/m],
    ['bytes received', /^berth_blob_bytes_total\{direction="in"\} 1002$/m],
    ['bytes sent', /^berth_blob_bytes_total\{direction="out"\} 1000$/m],
    ['requests in flight', /^berth_requests_in_flight 1$/m],
    ['connections', /^berth_connections [1-9]/m],
    ['the database', /^berth_database_up\{engine="sqlite"\} 1$/m],
    ['transactions', /^berth_transaction_duration_seconds_count\{transaction="repository\.create"\} 1$/m],
    ['repositories', /^berth_repositories 1$/m],
    ['images', /^berth_images 1$/m],
    ['tags', /^berth_tags 1$/m],
    ['stored content', /^berth_blobs 2$/m],
    ['stored bytes', /^berth_blob_stored_bytes 1002$/m],
    ['unfinished uploads', /^berth_uploads_unfinished 0$/m],
    [
      'the largest repositories',
      /^berth_repository_bytes\{account="000000000000",region="us-east-1",repository="team\/app"\} 1002$/m,
    ],
    ['queues of garbage collection', /^berth_gc_queue\{queue="trash"\} 0$/m],
    ['lag of garbage collection', /^berth_gc_lag_seconds\{queue="review"\} 0$/m],
    ['rounds of garbage collection', /^berth_gc_total\{what="rounds"\} 1$/m],
    ['failed rounds before there is one', /^berth_gc_total\{what="rounds_failed"\} 0$/m],
    ['audit records', /^berth_audit_records_total\{result="dropped"\} 0$/m],
    ['the event loop', /^nodejs_eventloop_lag_p99_seconds /m],
    ['the process', /^process_resident_memory_bytes /m],
  ];
  for (const [name, line] of shown) it(`metrics show ${name}`, () => assert.match(metrics, line));

  it("the operator's page has every metric, and the dashboard and the alerts no other", async () => {
    const page = (name: string) =>
      readFile(new URL(`../../docs/operations/${name}`, import.meta.url), 'utf8');
    const named = (text: string) =>
      new Set([...text.matchAll(/\bberth_\w+/g)].map(([name]) => name.replace(/_(bucket|sum|count)$/, '')));
    const exposed = [...metrics.matchAll(/^# TYPE (berth_\w+)/gm)].map(([, name]) => name ?? '').sort();
    assert.deepEqual([...named(await page('metrics.md'))].sort(), exposed);
    for (const name of ['grafana.json', 'prometheus.yml']) {
      assert.deepEqual(
        [...named(await page(name))].filter((each) => !exposed.includes(each)),
        [],
      );
    }
  });

  it('the alert about failures knows them by all their names', async () => {
    const alerts = await readFile(new URL('../../docs/operations/prometheus.yml', import.meta.url), 'utf8');
    const [, pattern = ''] = /berth_requests_total\{result=~"([^"]+)"\}/.exec(alerts) ?? [];
    const failures = Object.entries(FAULTS).flatMap(([code, { aws, query }]) =>
      aws >= 500 && code !== 'OperationNotBuilt' ? [code, query[0]] : [],
    );
    assert.deepEqual(
      failures.length > 3 ? failures.filter((it) => !new RegExp(`^(${pattern})$`).test(it)) : ['none'],
      [],
    );
  });

  it('the audit log has every call, in order, and no challenge or probe', () => {
    assert.deepEqual(
      records.map(({ eventSource, eventName, errorCode }) =>
        [String(eventSource).split('.')[0], eventName, errorCode ?? ''].join(' ').trim(),
      ),
      [
        'ecr CreateRepository',
        'ecr GetAuthorizationToken',
        'ecr VerifyAuthorizationToken',
        'ecr InitiateLayerUpload',
        'ecr CompleteLayerUpload',
        'ecr InitiateLayerUpload',
        'ecr CompleteLayerUpload',
        'ecr PutImage',
        'ecr BatchGetImage',
        'ecr GetDownloadUrlForLayer',
        'ecr BatchGetImage ImageNotFoundException',
        'ecr VerifyAuthorizationToken InvalidRegistryToken',
        'ecr BatchGetImage InvalidRegistryToken',
        'ecr DescribeRepositories InvalidRegistryToken',
        'ecr UnknownOperation InvalidRegistryToken',
        'ecr DescribeRepositories RepositoryNotFoundException',
        'iam CreateUser',
        'sts GetCallerIdentity',
      ],
    );
  });

  it('says who did what to which repository', () => {
    const put = records.find(({ eventName }) => eventName === 'PutImage');
    assert.ok(put);
    const { userIdentity, requestParameters, resources, readOnly, sourceIPAddress } = put;
    const { imageManifest, ...parameters } = requestParameters as Record<string, string>;
    const { config } = JSON.parse(imageManifest ?? '') as { config: { digest: string } };
    assert.equal(config.digest, digestOf('{}'));
    const imageManifestMediaType = 'application/vnd.oci.image.manifest.v1+json';
    assert.deepEqual(put['responseElements'], {
      image: {
        registryId: ACCOUNT,
        repositoryName: 'team/app',
        imageId: { imageDigest: digestOf(imageManifest ?? ''), imageTag: 'v1' },
        imageManifestMediaType,
      },
    });
    const { principalId, ...identity } = userIdentity as Record<string, string>;
    assert.match(principalId ?? '', /^AIDA/);
    assert.deepEqual(
      { identity, parameters, resources, readOnly, sourceIPAddress },
      {
        identity: {
          type: 'IAMUser',
          arn: `arn:aws:iam::${ACCOUNT}:user/admin`,
          accountId: ACCOUNT,
          accessKeyId: server.admin.accessKeyId,
          userName: 'admin',
        },
        parameters: {
          registryId: ACCOUNT,
          repositoryName: 'team/app',
          imageTag: 'v1',
          imageManifestMediaType,
        },
        resources: [
          {
            accountId: ACCOUNT,
            type: 'AWS::ECR::Repository',
            ARN: `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/team/app`,
          },
        ],
        readOnly: false,
        sourceIPAddress: '127.0.0.1',
      },
    );
    const stolen = records.filter(({ errorCode }) => errorCode === 'InvalidRegistryToken');
    assert.deepEqual(
      stolen.map(({ requestParameters: asked }) => asked),
      [null, { repositoryName: 'team/app', imageIds: [{ imageTag: 'v1' }] }, null, null],
    );
    const answered = (name: string): unknown =>
      records.find(({ eventName }) => eventName === name)?.['responseElements'];
    const team = { registryId: ACCOUNT, repositoryName: 'team/app' };
    assert.deepEqual(answered('CompleteLayerUpload'), { ...team, layerDigest: layer });
    for (const name of ['BatchGetImage', 'GetAuthorizationToken', 'CreateUser'])
      assert.equal(answered(name), null);
    const { repository } = answered('CreateRepository') as { repository: { repositoryName: string } };
    assert.equal(repository.repositoryName, 'team/app');
    const denied = records.find(({ errorCode }) => errorCode === 'RepositoryNotFoundException');
    assert.match(String(denied?.['errorMessage']), /'absent' does not exist/);
    const ids = records.map(({ requestID }) => requestID);
    assert.equal(new Set(ids).size, ids.length);
  });

  it('logs have the request ids of answers, changes as information and reads for debugging', () => {
    const lines = server
      .logged()
      .split('\n')
      .flatMap((line) => (line === '' ? [] : [JSON.parse(line) as Record<string, unknown>]));
    const level = (action: string) => lines.find((line) => line['action'] === action)?.['level'];
    assert.deepEqual([level('ecr:PutImage'), level('ecr:GetDownloadUrlForLayer')], [30, 20]);
    const ids = new Set(lines.map(({ requestId }) => requestId));
    for (const { requestID } of records) assert.ok(ids.has(requestID));
  });
});

it('who follows events has a record of each connection, and of each refusal', async () => {
  const server = await observe();
  const { port } = server.berth;
  const follow = async (agent: Agent, query: string): Promise<number | undefined> => {
    const path = `/events?${query}`;
    const url = `http://127.0.0.1:${port}${path}`;
    const options = { region: REGION, service: 'berth', now: Date.now() };
    const headers = signRequest({ method: 'GET', url, headers: {}, body: '' }, server.admin, options);
    const request = send({ host: '127.0.0.1', port, path, headers, agent });
    request.end();
    const [message] = (await once(request, 'response')) as [IncomingMessage];
    message.resume();
    await once(message, 'end');
    return message.statusCode;
  };
  const connections = [1, 2].map(() => new Agent({ keepAlive: true, maxSockets: 1 }));
  for (const agent of connections) {
    for (const query of ['after=0', 'after=1&wait=1', 'after=2&wait=1', 'after=x', 'after=3'])
      assert.equal(await follow(agent, query), query === 'after=x' ? 400 : 200);
  }
  for (const agent of connections) agent.destroy();
  const records = await server.stop();
  assert.deepEqual(
    records.map(({ eventName, errorCode }) => [eventName, errorCode]),
    connections.flatMap(() => [
      ['FollowEvents', undefined],
      ['FollowEvents', 'InvalidParameterException'],
    ]),
  );
});

it('no secret of any request is in the log or the audit log', async () => {
  const server = await observe();
  const secrets = new Map<string, string>();
  /** A text nobody else writes. */
  const secret = (name: string): string => {
    const text = `s3cr3t${randomBytes(12).toString('hex')}`;
    secrets.set(name, text);
    return text;
  };
  const { admin } = server;
  secrets.set('secret access key', admin.secretAccessKey);
  const password = await passwordOf(server);
  secrets.set('registry password', password);
  const auth = basic(password);
  secrets.set('basic credential', auth['Authorization']?.slice('Basic '.length) ?? '');
  await server.call('CreateRepository', { repositoryName: 'team/app' });
  const layerDigest = await push(server, auth, 'team/app', Buffer.from('layer'));

  const answer = await server.call('GetDownloadUrlForLayer', { repositoryName: 'team/app', layerDigest });
  const { downloadUrl } = JSON.parse(answer.text) as { downloadUrl: string };
  const path = new URL(downloadUrl).pathname;
  secrets.set('download capability', path.slice('/blob-download/'.length));
  secrets.set('download signature', path.split('.').at(-1) ?? '');
  assert.equal((await server.ask(path)).text, 'layer');
  assert.equal((await server.ask(path, { method: 'DELETE' })).status, 405);
  await server.ask(`/blob-download/${secret('forged capability')}.${secret('forged signature')}`);

  const now = Date.now();
  const url = `http://127.0.0.1:${server.berth.port}/?Action=GetCallerIdentity&Version=2011-06-15`;
  const presigned = presignUrl({ method: 'GET', url }, admin, {
    region: REGION,
    service: 'sts',
    now,
    expiresS: 60,
  });
  secrets.set('presigned signature', new URL(presigned).searchParams.get('X-Amz-Signature') ?? '');
  assert.equal((await server.ask(presigned.slice(presigned.indexOf('/?')))).status, 200);

  const key = { ...admin, sessionToken: secret('session token') };
  await server.call('DescribeRepositories', {}, key);
  await server.call('DescribeRepositories', {}, { ...admin, secretAccessKey: secret('wrong key') });
  await server.form('sts', {
    Action: 'AssumeRoleWithWebIdentity',
    WebIdentityToken: secret('web identity token'),
  });
  await server.form('iam', { Action: 'CreateLoginProfile', UserName: 'admin', Password: secret('password') });
  await server.form('iam', { Action: 'CreateAccessKey', UserName: 'admin' });
  const queries = [
    `X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=${secret('query signature')}`,
    `X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Security-Token=${secret('query token')}&X-Amz-Credential=x`,
    `Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Security-Token=${secret('token without signature')}`,
  ];
  for (const query of queries) {
    for (const target of ['/', '/v2/', '/v2/team/app/manifests/v1', '/metrics', '/healthz', '/nothing'])
      await server.ask(`${target}?${query}`, { headers: auth });
  }
  const authorizations = [
    `Bearer ${secret('bearer token')}`,
    `Basic ${secret('basic of another user')}`,
    `AWS4-HMAC-SHA256 ${secret('malformed header')}`,
    `AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261124/us-east-1/ecr/aws4_request, SignedHeaders=host, Signature=${secret('signature')}`,
    `AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE, Signature=${secret('signature without date')}`,
    basic(secret('wrong password'))['Authorization'] ?? '',
  ];
  for (const Authorization of authorizations) {
    const headers = {
      Authorization,
      Cookie: secret(`cookie beside ${Authorization.slice(0, 8)}`),
      'X-Amz-Security-Token': secret(`token beside ${Authorization}`),
    };
    await server.ask('/', { method: 'POST', headers, body: secret('body') });
    await server.ask('/', {
      method: 'POST',
      headers: { ...headers, 'X-Amz-Target': 'AmazonEC2ContainerRegistry_V20150921.PutImage' },
      body: `{"repositoryName":"x","password":"${secret('json body')}"}`,
    });
    await server.ask('/v2/team/app/blobs/uploads/', { method: 'POST', headers });
    await server.ask('/metrics', { headers });
  }
  // A target in absolute form, as to a proxy, with a password in it.
  const socket = connect(server.berth.port, '127.0.0.1');
  socket.write(
    `GET http://AWS:${secret('password in the target')}@x/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
  );
  await once(socket.resume(), 'close');

  const records = await server.stop();
  const logged = server.logged();
  const audited = records.map((record) => JSON.stringify(record)).join('\n');
  assert.ok(records.length > 40 && logged.includes('/blob-download/…'));
  for (const [name, text] of secrets) {
    assert.ok(text.length >= 20, name);
    assert.ok(!logged.includes(text), `${name} is in the log`);
    assert.ok(!audited.includes(text), `${name} is in the audit log`);
  }
});

describe('who may read metrics', () => {
  const cases: [
    name: string,
    flags: Record<string, string>,
    env: Record<string, string>,
    headers: Record<string, string>,
    status: number,
  ][] = [
    ['anybody on loopback', {}, {}, {}, 200],
    ['not through a proxy', {}, {}, { 'X-Forwarded-For': '192.0.2.1' }, 403],
    ['nobody on other addresses', { host: '0.0.0.0', 'insecure-http': 'true' }, {}, {}, 403],
    ['nobody without the token there is', {}, { BERTH_METRICS_TOKEN: 'a-token-for-metrics' }, {}, 401],
    [
      'nobody with another token',
      {},
      { BERTH_METRICS_TOKEN: 'a-token-for-metrics' },
      { Authorization: 'Bearer a-token-for-metric' },
      401,
    ],
    [
      'who has the token, anywhere',
      { host: '0.0.0.0', 'insecure-http': 'true' },
      { BERTH_METRICS_TOKEN: 'a-token-for-metrics' },
      { Authorization: 'Bearer a-token-for-metrics' },
      200,
    ],
    ['nobody when they are off', { metrics: 'off' }, {}, {}, 404],
  ];
  for (const [name, flags, env, headers, status] of cases) {
    it(name, async () => {
      const server = await observe({ 'audit-log': 'off', ...flags }, env);
      const answer = await server.ask('/metrics', { headers });
      assert.equal(answer.status, status);
      if (status === 200)
        assert.equal(answer.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8');
      await server.berth.stop();
    });
  }
});

it('keeps no audit log when it is off, and puts it where it is told', async () => {
  const elsewhere = await mkdtemp(join(tmpdir(), 'berth-audit-elsewhere-'));
  cleaning.push(() => rm(elsewhere, { recursive: true }));
  for (const [directory, count] of [
    ['off', 0],
    [elsewhere, 1],
  ] as const) {
    const server = await observe({ 'audit-log': directory });
    await server.call('DescribeRepositories', {});
    await server.berth.stop();
    assert.equal((await readdir(elsewhere)).length, count);
  }
  assert.equal((await readRecords(elsewhere)).length, 1);
});

it('does not start when the audit log cannot be written', async () => {
  await assert.rejects(observe({ 'audit-log': '/dev/null' }), { code: 'EEXIST' });
});
