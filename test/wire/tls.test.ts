/** The TLS listener as it runs: certificates of the private CA, reloading, versions, draining, `/ca.pem`. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { connect as connectPlain, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { connect, rootCertificates, type ConnectionOptions, type TLSSocket } from 'node:tls';
import {
  authorityFile,
  callEcr,
  callQuery,
  initTls,
  readAdmin,
  ROOT,
  startBerth,
  stopBerth,
  until,
  type BerthServer,
} from '../clients/harness.ts';

interface Seen {
  readonly status: number;
  readonly body: string;
  readonly fingerprint: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly localPort: number | undefined;
}

async function get(
  port: number,
  path: string,
  options: { agent?: Agent; host?: string; ca: string },
): Promise<Seen> {
  // a connection of its own unless told
  const { host = 'localhost', agent = false, ca } = options;
  const to = { host: 'localhost', servername: 'localhost', port };
  const sent = request({ ...to, path, headers: { host }, agent, ca });
  sent.end();
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  const socket = response.socket as TLSSocket;
  const fingerprint = socket.getPeerX509Certificate()?.fingerprint256 ?? '';
  const { localPort } = socket;
  let body = '';
  for await (const chunk of response) body += String(chunk);
  return {
    status: response.statusCode ?? 0,
    body,
    fingerprint,
    headers: response.headers,
    localPort,
  };
}

/** What the handshake comes to: the version, or the failure. */
async function shake(port: number, options: ConnectionOptions): Promise<string> {
  const socket = connect({ host: 'localhost', port, ...options });
  try {
    await once(socket, 'secureConnect');
    return socket.getProtocol() ?? '';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? '';
  } finally {
    socket.destroy();
  }
}

/** A command beside the server, with nothing of this environment; all it printed. */
function berth(...args: readonly string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(ROOT, 'src', 'main.ts'), ...args], {
    encoding: 'utf8',
    env: {
      PATH: process.env['PATH'] ?? '',
      NODE_COMPILE_CACHE: join(ROOT, 'node_modules', '.cache', 'node'),
    },
  });
  return { status, output: stdout + stderr };
}

describe('TLS', () => {
  let directory: string;
  let server: BerthServer;
  let ca: string;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-tls-'));
    server = await startBerth({
      data: join(directory, 'data'),
      tls: ['--aws-names', '--name', 'registry.example.com'],
      flags: ['--registry-host', '{account}.dkr.ecr.{region}.amazonaws.com'],
    });
    ca = await readFile(authorityFile(server.data), 'utf8');
  });
  after(async () => {
    if (!server.hasExited()) await server.stop();
    await rm(directory, { recursive: true });
  });

  test('1.2 and 1.3, nothing older', async () => {
    assert.equal(await shake(server.port, { ca }), 'TLSv1.3');
    assert.equal(await shake(server.port, { ca, maxVersion: 'TLSv1.2' }), 'TLSv1.2');
    const old = { ca, minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' } as const;
    assert.equal(await shake(server.port, old), 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
  });

  test('the names it was made for, and no others', async () => {
    for (const servername of [
      'localhost',
      'registry.example.com',
      '123456789012.dkr.ecr.us-east-1.amazonaws.com',
      'api.ecr.us-east-1.amazonaws.com',
      'ecr.us-east-1.amazonaws.com',
      'sts.us-east-1.amazonaws.com',
      'sts.amazonaws.com',
      'iam.amazonaws.com',
      '123456789012.dkr-ecr.us-east-1.on.aws',
    ]) {
      assert.equal(await shake(server.port, { ca, servername }), 'TLSv1.3', servername);
    }
    for (const servername of ['s3.amazonaws.com', 'api.ecr.eu-west-1.amazonaws.com', 'example.com']) {
      assert.equal(await shake(server.port, { ca, servername }), 'ERR_TLS_CERT_ALTNAME_INVALID', servername);
    }
    assert.equal(await shake(server.port, { ca: [...rootCertificates] }), 'SELF_SIGNED_CERT_IN_CHAIN');
  });

  test('/ca.pem is the certificate of the CA and never its key', async () => {
    const authority = await get(server.port, '/ca.pem', { ca });
    assert.equal(authority.status, 200);
    assert.equal(authority.body, ca);
    assert.equal(authority.headers['content-type'], 'application/x-pem-file');
    await appendFile(authorityFile(server.data), await readFile(join(server.data, 'tls', 'ca-key.pem')));
    assert.equal((await get(server.port, '/ca.pem', { ca })).body, ca);
    await writeFile(authorityFile(server.data), ca);
  });

  test('the challenge names the host that was asked, over https', async () => {
    for (const host of [
      `localhost:${server.port}`,
      '123456789012.dkr.ecr.us-east-1.amazonaws.com',
      '123456789012.dkr.ecr.us-east-1.example.com:8443',
    ]) {
      const { status, headers } = await get(server.port, '/v2/', { ca, host });
      assert.equal(status, 401);
      assert.equal(headers['www-authenticate'], `Basic realm="https://${host}/",service="ecr.amazonaws.com"`);
    }
  });

  test('an open connection survives a reload, new ones get the new certificate', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1, ca });
    const former = await get(server.port, '/healthz', { agent, ca });
    await initTls(server.data, ['--days', '90']);
    process.kill(server.pid, 'SIGHUP');
    let fresh = former;
    await until('new connections get the new certificate', async () => {
      fresh = await get(server.port, '/healthz', { ca });
      return fresh.fingerprint !== former.fingerprint;
    });
    const again = await get(server.port, '/healthz', { agent, ca });
    assert.equal(again.status, 200);
    assert.equal(again.localPort, former.localPort);
    assert.equal(again.fingerprint, former.fingerprint);
    // names of the former certificate are kept
    assert.equal(await shake(server.port, { ca, servername: 'registry.example.com' }), 'TLSv1.3');
    agent.destroy();
  });

  test('every worker takes the new certificate and shows the CA', async () => {
    const data = join(directory, 'workers');
    const workers = await startBerth({ data, tls: [], flags: ['--workers', '3'] });
    const own = await readFile(authorityFile(data), 'utf8');
    const seen = async (): Promise<Set<string>> => {
      const answers = Array.from({ length: 24 }, () => get(workers.port, '/ca.pem', { ca: own }));
      const found = await Promise.all(answers);
      assert.ok(found.every(({ status, body }) => status === 200 && body === own));
      return new Set(found.map(({ fingerprint }) => fingerprint));
    };
    const former = await seen();
    assert.equal(former.size, 1);
    await initTls(data);
    process.kill(workers.pid, 'SIGHUP');
    await until('all have the new one', async () => [...(await seen())].every((one) => !former.has(one)));
    await stopBerth(workers);
  });

  const unusable: readonly [what: string, spoil: (cert: string, key: string) => Promise<void>][] = [
    [
      'a key of another certificate',
      async (_cert, key) => copyFile(join(server.data, 'tls', 'ca-key.pem'), key),
    ],
    ['a key that is none', async (_cert, key) => writeFile(key, 'nothing')],
    ['an empty certificate', async (cert) => writeFile(cert, '')],
    ['a certificate that is not there', async (cert) => rm(cert)],
  ];
  for (const [what, spoil] of unusable) {
    test(`${what} is logged and changes nothing`, async () => {
      const { fingerprint } = await get(server.port, '/healthz', { ca });
      const [cert, key] = ['server.pem', 'server-key.pem'].map((name) => join(server.data, 'tls', name));
      assert.ok(cert !== undefined && key !== undefined);
      const kept = [await readFile(cert), await readFile(key)] as const;
      const complaints = (): number => server.output().split('the certificate was not reloaded').length - 1;
      const before = complaints();
      await spoil(cert, key);
      process.kill(server.pid, 'SIGHUP');
      await until('it is logged', () => complaints() > before);
      await writeFile(cert, kept[0]);
      await writeFile(key, kept[1]);
      assert.equal((await get(server.port, '/healthz', { ca })).fingerprint, fingerprint);
      assert.doesNotMatch(server.output(), /PRIVATE KEY/);
    });
  }

  test('a connection that never shakes hands holds up no drain', async () => {
    const silent: Socket = connectPlain(server.port, '127.0.0.1');
    await once(silent, 'connect');
    silent.on('error', () => undefined);
    const began = performance.now();
    assert.equal(await server.stop(), 0);
    assert.ok(performance.now() - began < 5000);
    silent.destroy();
  });
});

describe('names of registries', () => {
  const modes = [
    { template: undefined, host: (port: number) => `localhost:${port}`, tls: false },
    {
      template: '{account}.dkr.ecr.{region}.registry.example:{port}',
      host: (port: number) => `000000000000.dkr.ecr.us-east-1.registry.example:${port}`,
      tls: true,
    },
    {
      template: '{account}.dkr.ecr.{region}.amazonaws.com',
      host: () => '000000000000.dkr.ecr.us-east-1.amazonaws.com',
      tls: true,
    },
  ];
  for (const { template, host, tls } of modes) {
    test(template ?? 'by default', async () => {
      const directory = await mkdtemp(join(tmpdir(), 'berth-names-'));
      const flags = template === undefined ? [] : ['--registry-host', template];
      const server = await startBerth({ data: join(directory, 'data'), flags, ...(tls && { tls: flags }) });
      try {
        const scheme = tls ? 'https' : 'http';
        const admin = await readAdmin(server.data);
        assert.equal(server.registry, host(server.port));
        assert.equal(new URL(server.endpoint).protocol, `${scheme}:`);
        const created = await callEcr(server, admin, 'CreateRepository', { repositoryName: 'team/app' });
        const { repository } = JSON.parse(created.text) as { repository: { repositoryUri: string } };
        assert.equal(repository.repositoryUri, `${host(server.port)}/team/app`);
        const token = JSON.parse((await callEcr(server, admin, 'GetAuthorizationToken')).text) as {
          authorizationData: { proxyEndpoint: string }[];
        };
        assert.equal(token.authorizationData[0]?.proxyEndpoint, `${scheme}://${host(server.port)}`);
        assert.equal((await callQuery(server, admin, 'sts', { Action: 'GetCallerIdentity' })).status, 200);
        assert.equal((await fetch(`${server.endpoint}/ca.pem`)).status, tls ? 200 : 404);
        // the commands beside it trust the CA, and tell AWS tools to
        const { data } = server;
        const variables = JSON.parse(berth('env', '--json', '--data', data).output) as Record<string, string>;
        assert.equal(variables['AWS_CA_BUNDLE'], tls ? authorityFile(data) : undefined);
        const events = berth('events', '--data', data);
        assert.equal(events.status, 0, events.output);
      } finally {
        await stopBerth(server);
        await rm(directory, { recursive: true });
      }
    });
  }
});

describe('berth tls', () => {
  let data: string;
  before(async () => {
    data = await mkdtemp(join(tmpdir(), 'berth-tls-cli-'));
  });
  after(() => rm(data, { recursive: true }));

  interface Shown {
    readonly ca: { readonly sha256: string; readonly permitted: readonly string[] };
    readonly server: { readonly sha256: string; readonly names: readonly string[]; readonly expires: string };
  }
  const init = (...args: readonly string[]): Shown => {
    const { status, output } = berth('tls', 'init', '--json', '--data', data, ...args);
    assert.equal(status, 0, output);
    return JSON.parse(output) as Shown;
  };

  test('renews under the same CA, keeps names, and makes a new CA only when told', () => {
    assert.match(berth('tls', 'show', '--data', data).output, /make it with "berth tls init"/);
    assert.match(berth('serve', '--tls', '--data', data).output, /Run "berth tls init" first/);
    const first = init('--name', 'One.Example.com', '--name', '10.1.2.3', '--permit', 'later.example.com');
    for (const name of ['localhost', '127.0.0.1', '::1', 'one.example.com', '10.1.2.3'])
      assert.ok(first.server.names.includes(name), name);
    const second = init('--name', 'a.later.example.com', '--days', '10');
    assert.equal(second.ca.sha256, first.ca.sha256);
    assert.notEqual(second.server.sha256, first.server.sha256);
    assert.deepEqual(new Set(second.server.names), new Set([...first.server.names, 'a.later.example.com']));
    const tenDays = Date.parse(second.server.expires) - Date.now();
    assert.ok(tenDays > 9.9 * 86_400_000 && tenDays <= 10 * 86_400_000);
    assert.deepEqual(JSON.parse(berth('tls', 'show', '--json', '--data', data).output), second);
    const third = init('--new-ca');
    assert.notEqual(third.ca.sha256, first.ca.sha256);
    assert.ok(!third.server.names.includes('one.example.com'));
  });

  test('names that follow from the settings', () => {
    const { server } = init(
      '--new-ca',
      '--regions=us-east-1,cn-north-1',
      '--registry-host={account}.dkr.ecr.{region}.example.com:{port}',
      '--host=10.9.8.7',
    );
    for (const name of ['10.9.8.7', '*.dkr.ecr.us-east-1.example.com', '*.dkr.ecr.cn-north-1.example.com'])
      assert.ok(server.names.includes(name), name);
    assert.ok(!server.names.some((name) => name.endsWith('amazonaws.com')));
    const aws = init('--new-ca', '--regions=us-east-1,cn-north-1', '--aws-names').server.names;
    for (const name of [
      '*.dkr.ecr.cn-north-1.amazonaws.com.cn',
      '*.dkr.ecr.us-east-1.amazonaws.com',
      '*.dkr.ecr-fips.us-east-1.amazonaws.com',
      'ecr-fips.us-east-1.amazonaws.com',
      '*.dkr-ecr-fips.us-east-1.on.aws',
    ])
      assert.ok(aws.includes(name), name);
    // A CA from before there were FIPS names goes on without them.
    const regional = aws.filter((name) => name.includes('.us-east-1.') && !name.includes('fips'));
    const permitted = [...regional, 'sts.amazonaws.com', 'iam.amazonaws.com'];
    init('--new-ca', ...permitted.flatMap((name) => ['--permit', name.replace(/^\*\./, '')]));
    const renewed = init('--aws-names').server.names;
    assert.ok(renewed.includes('*.dkr.ecr.us-east-1.amazonaws.com'));
    assert.ok(!renewed.some((name) => name.includes('fips')));
  });

  const refusals: readonly [args: readonly string[], message: RegExp][] = [
    [['--name', 'a b'], /"a b" is neither a host name nor an address/],
    [['--name', 'x.example.org,DNS:evil'], /is neither a host name nor an address/],
    [['--name', 's3.amazonaws.com'], /the CA was made for other names than s3\.amazonaws\.com\./],
    [['--days', '0'], /--days is a number from 1 to 825/],
    [['--days', '9999'], /--days is a number from 1 to 825/],
  ];
  test('what is refused changes nothing', () => {
    const before = init('--new-ca');
    for (const [args, message] of refusals) {
      const { status, output } = berth('tls', 'init', '--data', data, ...args);
      assert.equal(status, 1, args.join(' '));
      assert.match(output, message);
    }
    assert.deepEqual(JSON.parse(berth('tls', 'show', '--json', '--data', data).output), before);
  });

  test('a CA whose key is kept elsewhere is not replaced', async () => {
    const before = init('--new-ca');
    await rm(join(data, 'tls', 'ca-key.pem'));
    const { status, output } = berth('tls', 'init', '--data', data);
    assert.equal(status, 1);
    assert.match(output, /the key of the CA is not there/);
    assert.deepEqual(JSON.parse(berth('tls', 'show', '--json', '--data', data).output), before);
  });
});
