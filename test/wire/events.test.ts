/** Events over the wire: signed, authorised, resumable; and the command that reads them. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createMain, type Surroundings } from '../../src/cli/cli.ts';
import { writeCredentials, writeServerRecord } from '../../src/cli/data-directory.ts';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { signRequest } from '../../src/lib/sigv4.ts';
import { startReceiver, summary, type Receiver } from '../../src/events/test-receiver.ts';

const MAIN = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
const REGION = 'us-east-1';

interface Key {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown>;
}

void describe('events over the wire', () => {
  let directory: string;
  let receiver: Receiver;
  let berth: Berth;
  let admin: Key;
  let pushes = 0;

  const launch = async (): Promise<void> => {
    const flags = { data: directory, port: '0', webhooks: receiver.url };
    const config = readConfig({ flags, env: {}, platform: 'linux' });
    berth = await start(config, {
      log: createLog('silent'),
      clock: Date.now,
      tls: undefined,
      credentialsFile: {
        write: ({ id, secret }) => writeCredentials(directory, { accessKeyId: id, secretAccessKey: secret }),
        remove: () => Promise.resolve(),
      },
    });
    const key = berth.firstCredentials;
    if (key !== undefined) admin = { accessKeyId: key.id, secretAccessKey: key.secret };
    const { endpoint } = berth;
    await writeServerRecord(directory, {
      endpoint,
      account: '000000000000',
      region: REGION,
      pid: process.pid,
    });
  };
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-events-'));
    receiver = await startReceiver();
    await launch();
    await ecr('CreateRepository', { repositoryName: 'app' });
  });
  after(async () => {
    await berth.stop();
    await receiver.close();
    await rm(directory, { recursive: true });
  });

  const call = async (
    method: string,
    path: string,
    options: { key?: Key | null; service?: string; headers?: Record<string, string>; body?: string } = {},
  ): Promise<Answer> => {
    const { key = admin, service = 'berth', headers = {}, body = '' } = options;
    const url = `${berth.endpoint}${path}`;
    const signed =
      key === null
        ? headers
        : signRequest({ method, url, headers, body }, key, { region: REGION, service, now: Date.now() });
    const response = await fetch(url, { method, headers: signed, ...(body !== '' && { body }) });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  const ecr = async (operation: string, input: object): Promise<void> => {
    const headers = {
      'content-type': 'application/x-amz-json-1.1',
      'x-amz-target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
    };
    const answer = await call('POST', '/', { service: 'ecr', headers, body: JSON.stringify(input) });
    assert.equal(answer.status, 200, JSON.stringify(answer.body));
  };
  const iam = async (form: Record<string, string>): Promise<string> => {
    const url = `${berth.endpoint}/`;
    const body = new URLSearchParams({ Version: '2010-05-08', ...form }).toString();
    const request = {
      method: 'POST',
      url,
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body,
    };
    const headers = signRequest(request, admin, { region: REGION, service: 'iam', now: Date.now() });
    const response = await fetch(url, { method: 'POST', headers, body });
    assert.equal(response.status, 200);
    return await response.text();
  };
  const push = (imageTag: string): Promise<void> =>
    ecr('PutImage', {
      repositoryName: 'app',
      imageTag,
      imageManifestMediaType: 'application/vnd.oci.image.index.v1+json',
      imageManifest: JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.index.v1+json',
        manifests: [],
        annotations: { push: String(pushes++) },
      }),
    });
  const tagsOf = (events: unknown): (string | undefined)[] =>
    (events as { detail: Record<string, string> }[]).map(({ detail }) => detail['image-tag']);
  /** Runs `berth events` and returns what it printed. */
  const command = (...args: string[]) => commandIn({}, '--data', directory, ...args);
  const commandIn = async (
    env: Record<string, string>,
    ...args: string[]
  ): Promise<{ code: number; out: Record<string, unknown>[]; err: string }> => {
    const printed = { out: '', err: '' };
    const sink = (name: 'out' | 'err') => ({
      write: (chunk: string) => void (printed[name] += chunk),
      on: () => undefined,
    });
    const surroundings = { env, platform: 'linux', stdout: sink('out'), stderr: sink('err') };
    const main = createMain(surroundings as unknown as Surroundings);
    const code = await main.run(['node', 'berth', 'events', ...args]);
    const lines = printed.out.split('\n').filter((line) => line !== '');
    return { code, out: lines.map((line) => JSON.parse(line) as Record<string, unknown>), err: printed.err };
  };

  void test('a push is delivered, listed, and waited for', async () => {
    await push('v1');
    await receiver.until(1);
    assert.deepEqual(summary(receiver.received), ['PUSH app:v1']);
    const listed = await call('GET', '/events?after=0');
    assert.equal(listed.status, 200);
    assert.deepEqual(tagsOf(listed.body['events']), ['v1']);
    const waiting = call('GET', `/events?after=${String(listed.body['next'])}&wait=20000`);
    await push('v2');
    assert.deepEqual(tagsOf((await waiting).body['events']), ['v2']);
  });

  const refusals: [name: string, path: string, options: object, status: number, code: string][] = [
    ['unsigned', '/events', { key: null }, 400, 'MissingAuthenticationTokenException'],
    ['signed for another service', '/events', { service: 'ecr' }, 400, 'InvalidSignatureException'],
    ['an unknown path', '/events/none', {}, 400, 'UnknownOperationException'],
    ['a bad position', '/events?after=x', {}, 400, 'InvalidParameterException'],
    ['too long a wait', '/events?wait=20001', {}, 400, 'InvalidParameterException'],
    [
      'an unknown event',
      '/events?from=00000000-0000-8000-8000-ffffffffffff',
      {},
      400,
      'InvalidParameterException',
    ],
  ];
  for (const [name, path, options, status, code] of refusals)
    void test(`refuses ${name}`, async () => {
      const answer = await call('GET', path, options);
      assert.deepEqual([answer.status, answer.body['__type']], [status, code]);
    });

  void test('asks IAM, action by action', async () => {
    await iam({ Action: 'CreateUser', UserName: 'reader' });
    const made = await iam({ Action: 'CreateAccessKey', UserName: 'reader' });
    const key = {
      accessKeyId: /<AccessKeyId>(.*?)</.exec(made)?.[1] ?? '',
      secretAccessKey: /<SecretAccessKey>(.*?)</.exec(made)?.[1] ?? '',
    };
    const denied = await call('GET', '/events', { key });
    assert.equal(denied.body['__type'], 'AccessDeniedException');
    assert.match(String(denied.body['message']), /berth:FollowEvents on resource: \*/);
    const statement = { Effect: 'Allow', Action: 'berth:FollowEvents', Resource: '*' };
    await iam({
      Action: 'PutUserPolicy',
      UserName: 'reader',
      PolicyName: 'p',
      PolicyDocument: JSON.stringify({ Version: '2012-10-17', Statement: [statement] }),
    });
    assert.equal((await call('GET', '/events', { key })).status, 200);
    assert.equal((await call('GET', '/events/dead', { key })).body['__type'], 'AccessDeniedException');
    assert.equal((await call('POST', '/events/replay', { key })).body['__type'], 'AccessDeniedException');
  });

  void test('berth events prints what is kept, from an event on, and says what it cannot', async () => {
    const all = await command();
    assert.deepEqual(tagsOf(all.out), ['v1', 'v2']);
    assert.deepEqual(tagsOf((await command('--from', String(all.out[0]?.['id']))).out), ['v2']);
    assert.deepEqual((await command('--dead')).out, []);
    assert.deepEqual((await command('--replay', 'all')).out, [{ replayed: 0 }]);
    const wrong = await command('--from', 'nonsense');
    assert.equal(wrong.code, 1);
    assert.match(wrong.err, /^berth: Invalid parameter at 'from'/);
  });

  void test('berth events asks a server elsewhere as any AWS client does', async () => {
    const elsewhere = join(directory, 'nothing-here');
    const env = {
      AWS_ENDPOINT_URL: berth.endpoint,
      AWS_ACCESS_KEY_ID: admin.accessKeyId,
      AWS_SECRET_ACCESS_KEY: admin.secretAccessKey,
      AWS_REGION: REGION,
    };
    assert.deepEqual(tagsOf((await commandIn(env, '--data', elsewhere)).out), ['v1', 'v2']);
    const wrong = await commandIn({ ...env, AWS_SECRET_ACCESS_KEY: 'wrong' }, '--data', elsewhere);
    assert.equal(wrong.code, 1);
    assert.match(wrong.err, /^berth: The request signature we calculated does not match/);
    const alone = await commandIn({}, '--data', elsewhere);
    assert.deepEqual([alone.code, alone.out], [1, []]);
  });

  void test('berth events ends in peace when its reader has enough', async () => {
    const child = spawn(process.execPath, [MAIN, 'events', '--data', directory], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env['PATH'] },
    });
    child.stdout.destroy();
    const complaints = text(child.stderr);
    const [code] = (await once(child, 'close')) as [number | null];
    assert.deepEqual([code, await complaints], [0, '']);
  });

  void test('berth events --follow goes on through a restart and misses nothing', async () => {
    const first = (await command()).out[0];
    const child = spawn(
      process.execPath,
      [MAIN, 'events', '--data', directory, '--follow', '--from', String(first?.['id'])],
      { stdio: ['ignore', 'pipe', 'inherit'], env: { PATH: process.env['PATH'] } },
    );
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const next = async (): Promise<string | undefined> =>
      tagsOf([JSON.parse(String((await lines.next()).value))])[0];
    try {
      assert.equal(await next(), 'v2');
      await push('v3');
      assert.equal(await next(), 'v3');
      await berth.stop();
      await launch();
      await push('v4');
      await push('v5');
      assert.equal(await next(), 'v4');
      assert.equal(await next(), 'v5');
    } finally {
      child.kill();
    }
    await receiver.until(5);
    assert.deepEqual(
      summary(receiver.received),
      ['v1', 'v2', 'v3', 'v4', 'v5'].map((tag) => `PUSH app:${tag}`),
    );
  });

  void test('berth events --follow knows where to go on before it waits', async () => {
    const asked: string[] = [];
    const crashing = createServer(({ url = '' }, response) => {
      asked.push(url);
      if (asked.length === 1) response.end(JSON.stringify({ events: [], next: 7 }));
      else response.destroy();
      if (asked.length === 3) child.kill();
    });
    crashing.listen(0, '127.0.0.1');
    await once(crashing, 'listening');
    const env = {
      PATH: process.env['PATH'],
      AWS_ENDPOINT_URL: `http://127.0.0.1:${(crashing.address() as AddressInfo).port}`,
      AWS_ACCESS_KEY_ID: admin.accessKeyId,
      AWS_SECRET_ACCESS_KEY: admin.secretAccessKey,
    };
    const child = spawn(process.execPath, [MAIN, 'events', '--data', directory, '--follow'], {
      env,
      stdio: 'inherit',
    });
    await once(child, 'close');
    crashing.close();
    assert.deepEqual(asked, ['/events?wait=0', '/events?wait=20000&after=7', '/events?wait=20000&after=7']);
  });

  void test('one principal leaves room for other followers', async () => {
    const listed = await call('GET', '/events?after=0');
    const path = `/events?after=${String(listed.body['next'])}&wait=20000`;
    const polls = Array.from({ length: 65 }, () => call('GET', path));
    const refused = await Promise.any(
      polls.map(async (poll) => ((await poll).status === 400 ? poll : Promise.reject(new Error('served')))),
    );
    assert.deepEqual(refused.body, { __type: 'ThrottlingException', message: 'Rate exceeded' });
    // Who does not wait takes no place.
    assert.equal((await call('GET', '/events?after=0')).status, 200);
    await push('for-all');
    const answers = await Promise.all(polls);
    assert.equal(answers.filter(({ body }) => tagsOf(body['events'] ?? [])[0] === 'for-all').length, 64);
    const again = await call('GET', path);
    assert.deepEqual(tagsOf(again.body['events']), ['for-all']);
  });
});
