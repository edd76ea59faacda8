/** A server of several workers: what one worker promises, all of them keep together. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { request as send, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { signRequest } from '../../src/lib/sigv4.ts';
import { basic, WORKERS as REPEATED } from './server.ts';

const REGION = 'us-east-1';
const WORKERS = 3;

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

interface Running {
  readonly berth: Berth;
  readonly data: string;
  readonly logged: () => string;
  /** the threads that were started, by name */
  readonly threads: Map<string, Worker>;
  /** on a connection of its own: any worker may get it */
  ask(method: string, path: string, body?: string | Buffer, auth?: string): Promise<Answer>;
  signed(method: string, path: string, headers?: Record<string, string>, body?: string): Promise<Answer>;
  ecr(operation: string, input: object): Promise<Answer>;
  stop(): Promise<void>;
}

async function launch(flags: Record<string, string> = {}): Promise<Running> {
  const data = await mkdtemp(join(tmpdir(), 'berth-workers-'));
  const lines: string[] = [];
  const threads = new Map<string, Worker>();
  const note = (worker: Worker): void => void threads.set(worker.threadName ?? '', worker);
  process.on('worker', note);
  const config = readConfig({
    flags: { data, port: '0', workers: String(WORKERS), ...flags },
    env: {},
    platform: process.platform,
  });
  const berth = await start(config, {
    log: createLog(config.logLevel, { write: (line) => void lines.push(line) }),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  }).catch(async (error: unknown) => {
    process.off('worker', note);
    await rm(data, { recursive: true, force: true });
    throw error;
  });
  const key = berth.firstCredentials;
  assert.ok(key);
  const host = `127.0.0.1:${berth.port}`;
  const raw = async (
    method: string,
    path: string,
    headers: Record<string, string>,
    body?: string | Buffer,
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
  const signed: Running['signed'] = (method, path, headers = {}, body = '') =>
    raw(
      method,
      path,
      signRequest(
        { method, url: `http://${host}${path}`, headers, body },
        { accessKeyId: key.id, secretAccessKey: key.secret },
        { region: REGION, service: path.startsWith('/events') ? 'berth' : 'ecr', now: Date.now() },
      ),
      body,
    );
  return {
    berth,
    data,
    logged: () => lines.join(''),
    threads,
    ask: (method, path, body, auth) =>
      raw(
        method,
        path,
        {
          ...(auth === undefined ? {} : { Authorization: auth }),
          ...(body === undefined ? {} : { 'Content-Length': String(Buffer.byteLength(body)) }),
          ...(path.includes('/manifests/') ? { 'Content-Type': MANIFEST } : {}),
        },
        body,
      ),
    signed,
    ecr: (operation, input) =>
      signed(
        'POST',
        '/',
        {
          'Content-Type': 'application/x-amz-json-1.1',
          'X-Amz-Target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
        },
        JSON.stringify(input),
      ),
    async stop() {
      process.off('worker', note);
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

const MANIFEST = 'application/vnd.oci.image.manifest.v1+json';

function sha256(bytes: Buffer | string): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

async function token(server: Running): Promise<string> {
  const answer = await server.ecr('GetAuthorizationToken', {});
  const { authorizationData } = JSON.parse(answer.text) as {
    authorizationData: { authorizationToken: string }[];
  };
  const text = Buffer.from(authorizationData[0]?.authorizationToken ?? '', 'base64').toString();
  return basic(text.slice(text.indexOf(':') + 1));
}

/** Sum of the samples of a metric whose line matches. */
async function metric(server: Running, pattern: RegExp): Promise<number> {
  const { text } = await server.ask('GET', '/metrics');
  return text
    .split('\n')
    .filter((line) => pattern.test(line))
    .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}

async function until(what: () => Promise<boolean>): Promise<void> {
  while (!(await what())) await setImmediate();
}

void describe('workers', { timeout: 180_000 }, () => {
  let server: Running;
  let auth: string;
  let manifest: string;
  before(async () => {
    server = await launch();
    auth = await token(server);
  });
  after(() => server.stop());

  test('all of them answer on the one port, and any of them tells what all have counted', async () => {
    assert.equal(await metric(server, /^berth_workers /), WORKERS);
    const before = await metric(server, /^berth_requests_total\{door="oci"/);
    for (let i = 0; i < 60; i++) assert.equal((await server.ask('GET', '/v2/')).status, 401);
    for (let i = 0; i < 6; i++)
      assert.equal(await metric(server, /^berth_requests_total\{door="oci"/), before + 60);
    assert.equal(await metric(server, /^berth_requests_in_flight /), 1);
    const busy = await server.ask('GET', '/metrics');
    assert.equal(busy.text.match(/^berth_worker_busy_seconds_total\{/gm)?.length, WORKERS);
  });

  test('what was acknowledged is seen by every later request, whichever worker has it', async () => {
    for (let i = 0; i < 40; i++) {
      const repositoryName = `seen-${i}`;
      assert.equal((await server.ecr('CreateRepository', { repositoryName })).status, 200);
      const seen = await Promise.all(
        Array.from({ length: 6 }, () =>
          server.ecr('DescribeRepositories', { repositoryNames: [repositoryName] }),
        ),
      );
      for (const { status, text } of seen) assert.equal(status, 200, text);
      assert.equal((await server.ecr('DeleteRepository', { repositoryName })).status, 200);
      const gone = await Promise.all(
        Array.from({ length: 3 }, () =>
          server.ecr('DescribeRepositories', { repositoryNames: [repositoryName] }),
        ),
      );
      for (const { status } of gone) assert.equal(status, 400);
    }
  });

  test('an upload goes on with any of them, and its image is pulled from all', async () => {
    await server.ecr('CreateRepository', { repositoryName: 'app' });
    const bytes = randomBytes(300_000);
    const begun = await server.ask('POST', '/v2/app/blobs/uploads/', undefined, auth);
    assert.equal(begun.status, 202, begun.text);
    let location = begun.headers.location ?? '';
    for (let at = 0; at < bytes.length; at += 20_000) {
      const answer = await server.ask('PATCH', location, bytes.subarray(at, at + 20_000), auth);
      assert.equal(answer.status, 202, answer.text);
      assert.equal(answer.headers.range, `0-${Math.min(bytes.length, at + 20_000) - 1}`);
      location = answer.headers.location ?? '';
    }
    const digest = sha256(bytes);
    const closed = await server.ask('PUT', `${location}?digest=${digest}`, '', auth);
    assert.equal(closed.status, 201, closed.text);
    const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size: bytes.length };
    const config = { ...layer, mediaType: 'application/vnd.oci.image.config.v1+json' };
    manifest = JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST, config, layers: [layer] });
    const put = await server.ask('PUT', '/v2/app/manifests/v1', manifest, auth);
    assert.equal(put.status, 201, put.text);
    for (let i = 0; i < 12; i++) {
      assert.equal((await server.ask('GET', '/v2/app/manifests/v1', undefined, auth)).text, manifest);
      const blob = await server.ask('GET', `/v2/app/blobs/${digest}`, undefined, auth);
      assert.ok(Buffer.from(blob.text, 'latin1').equals(bytes));
    }
  });

  test('two requests that write to one upload at once: one writes, the other is refused', async () => {
    for (let i = 0; i < 10; i++) {
      const { headers } = await server.ask('POST', '/v2/app/blobs/uploads/', undefined, auth);
      const location = headers.location ?? '';
      const answers = await Promise.all(
        [1, 2, 3, 4].map(() => server.ask('PATCH', location, randomBytes(200_000), auth)),
      );
      const size = 200_000 * answers.filter(({ status }) => status === 202).length;
      for (const { status, text } of answers)
        assert.ok(status === 202 || status === 416 || status === 400, text);
      const status = await server.ask('GET', location, undefined, auth);
      assert.equal(status.headers.range, `0-${size - 1}`);
      await server.ask('DELETE', location, undefined, auth);
    }
  });

  test('who follows events hears of them at once, whichever worker it asked', async () => {
    const read = async (query: string): Promise<{ events: unknown[]; next: string }> => {
      const { status, text } = await server.signed('GET', `/events?${query}`);
      assert.equal(status, 200, text);
      return JSON.parse(text) as { events: unknown[]; next: string };
    };
    let { events, next } = await read('');
    while (events.length > 0) ({ events, next } = await read(`after=${next}`));
    // Readers look by themselves only once a second, for the events of other processes.
    const began = performance.now();
    for (let i = 0; i < 10; i++) {
      const followed = Array.from({ length: 8 }, () => read(`after=${next}&wait=20000`));
      const put = await server.ask('PUT', `/v2/app/manifests/t${i}`, manifest, auth);
      assert.equal(put.status, 201, put.text);
      const pages = await Promise.all(followed);
      for (const page of pages) assert.equal(page.events.length, 1);
      ({ next } = pages[0] ?? { next });
    }
    assert.ok(performance.now() - began < 6000);
  });

  test('a worker that dies is logged and started again, while the others go on', async () => {
    const victim = server.threads.get('worker-1');
    assert.ok(victim);
    await victim.terminate();
    await until(async () => {
      const { text } = await server.ask('GET', '/metrics').catch(() => ({ text: '' }));
      return (
        text.includes('berth_thread_restarts_total{thread="worker"} 1') &&
        text.includes(`berth_workers ${WORKERS}\n`)
      );
    });
    assert.match(server.logged(), /"worker":"worker-1".*a worker died and is started again/);
    assert.notEqual(server.threads.get('worker-1'), victim);
    for (let i = 0; i < 12; i++)
      assert.equal((await server.ask('GET', '/v2/app/manifests/v1', undefined, auth)).status, 200);
  });

  test('a writer that dies is started again: reads go on, writes are refused until then', async () => {
    const victim = server.threads.get('store-writer');
    assert.ok(victim);
    await victim.terminate();
    const reading = await Promise.all(
      Array.from({ length: 6 }, () => server.ask('GET', '/v2/app/manifests/v1', undefined, auth)),
    );
    for (const { status } of reading) assert.equal(status, 200);
    for (let i = 0; i < 12; i++)
      await until(async () => {
        const { status, text } = await server.ecr('CreateRepository', { repositoryName: `after-${i}` });
        assert.ok(status === 200 || status >= 500, text);
        return status === 200;
      });
    await until(async () => (await server.ask('GET', '/readyz')).status === 200);
    assert.match(server.logged(), /the metadata writer died and is started again/);
    assert.equal(await metric(server, /^berth_thread_restarts_total\{thread="writer"/), 1);
  });

  test('a port in use stops the start, although its owner shares it among its workers', async () => {
    for (const workers of ['1', '2'])
      await assert.rejects(launch({ port: String(server.berth.port), workers }), { code: 'EADDRINUSE' });
  });
});

test('a drain cuts no request on any worker, and nothing of the audit log is lost', async () => {
  const audit = await mkdtemp(join(tmpdir(), 'berth-workers-audit-'));
  const server = await launch({ 'audit-log': audit });
  const auth = await token(server);
  await server.ecr('CreateRepository', { repositoryName: 'app' });
  const begun = await Promise.all(
    Array.from({ length: 12 }, () => server.ask('POST', '/v2/app/blobs/uploads/', undefined, auth)),
  );
  const requests = begun.map(({ headers }) =>
    send({
      host: '127.0.0.1',
      port: server.berth.port,
      method: 'PATCH',
      path: headers.location,
      headers: { Authorization: auth, 'Content-Length': '2000', Expect: '100-continue' },
      agent: false,
    }),
  );
  // All have reached a worker, which waits for their bytes.
  await Promise.all(
    requests.map((request) => {
      request.flushHeaders();
      return once(request, 'continue');
    }),
  );
  for (const request of requests) request.write(randomBytes(1000));
  const answers = requests.map(async (request) => (await once(request, 'response')) as [IncomingMessage]);
  const stopped = server.stop();
  await until(() =>
    server.ask('GET', '/healthz').then(
      () => false,
      () => true,
    ),
  );
  for (const request of requests) request.end(randomBytes(1000));
  for (const [message] of await Promise.all(answers)) {
    assert.equal(message.statusCode, 202);
    message.resume();
  }
  await stopped;
  const records: { eventName: string; requestID: string }[] = [];
  for (const file of await readdir(audit))
    for (const line of (await readFile(join(audit, file), 'utf8')).trimEnd().split('\n'))
      records.push(JSON.parse(line) as (typeof records)[number]);
  await rm(audit, { recursive: true });
  const named = (name: string): number => records.filter(({ eventName }) => eventName === name).length;
  assert.equal(named('CreateRepository'), 1);
  assert.equal(named('InitiateLayerUpload'), 12);
  assert.equal(named('UploadLayerPart'), 12);
  assert.equal(new Set(records.map(({ requestID }) => requestID)).size, records.length);
});

/** Tables of requests and answers that must not notice how many workers there are. */
const TABLES = ['oci-auth', 'oci-blobs', 'oci-manifests', 'ecr'];

test('the tables of the data plane and of ECR hold on two workers', { timeout: 300_000 }, async () => {
  assert.equal(REPEATED, 1, 'these tables run themselves');
  const files = TABLES.map((name) => fileURLToPath(new URL(`./${name}.test.ts`, import.meta.url)));
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(process.execPath, ['--test', '--test-isolation=none', ...files], {
    env: { ...env, WIRE_WORKERS: '2' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [code] = (await once(child, 'close')) as [number];
  assert.equal(code, 0, output.slice(-20_000));
});
