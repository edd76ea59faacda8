/** Every diagnosis of `berth doctor`, each by breaking exactly that thing on a machine where all is well. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { createServer as createHttpsServer } from 'node:https';
import { createServer as createTcpServer } from 'node:net';
import { createAuthority, issueServerCertificate, type Issued } from '../lib/x509.ts';
import { readSubject } from './doctor-finding.ts';
import { bypasses } from './doctor-network.ts';
import { listen, openMachine, REGION, ACCOUNT, skewing, type TestMachine } from './test-machine.ts';

let machine: TestMachine;
before(async () => {
  machine = await openMachine();
});
after(() => machine[Symbol.asyncDispose]());

const DAY_MS = 86_400_000;
const refusing = (code: string) => () => Promise.reject(Object.assign(new Error(code), { code }));

test('on a machine where all is well nothing is found', async () => {
  await machine.logIn();
  const { code, wrong, report } = await machine.diagnose(`${machine.host}/app:1`);
  assert.deepEqual(wrong, []);
  assert.equal(code, 0);
  assert.deepEqual(
    report.findings.map(({ id }) => id),
    [
      'iam.credentials',
      'iam.identity',
      'iam.login',
      'iam.pull',
      'iam.push',
      'region.mismatch',
      'region.repository',
      'network.dns',
      'network.tcp',
      'network.registry',
      'network.clock',
      'network.proxy',
      'docker.token',
      'docker.insecure-registry',
    ],
  );
});

test('a name without an address', async () => {
  const reference = `registry.example:${machine.port}/app`;
  const { code, textOf } = await machine.diagnose(reference, { lookup: refusing('ENOTFOUND') });
  assert.equal(code, 2);
  assert.equal(
    textOf('network.dns'),
    'registry.example has no address (ENOTFOUND).\n' +
      'The name is misspelt, or the resolver of this machine does not know the zone it is in.\n' +
      'Check /etc/resolv.conf, or add the address to /etc/hosts: echo "<address> registry.example" >> /etc/hosts',
  );
  const local = await machine.diagnose(`${ACCOUNT}.dkr.ecr.${REGION}.localhost:${machine.port}/app`, {
    lookup: refusing('ENOTFOUND'),
  });
  assert.match(
    local.textOf('network.dns'),
    /echo "127\.0\.0\.1 000000000000\.dkr\.ecr\.us-east-1\.localhost" >>/,
  );
});

test('a port on which nothing listens', async () => {
  let port: number;
  {
    await using closed = await listen(createTcpServer());
    ({ port } = closed);
  }
  const { code, wrong, textOf } = await machine.diagnose(`localhost:${port}/app`);
  assert.equal(code, 2);
  assert.deepEqual(wrong, ['docker.no-login', 'network.tcp']);
  assert.match(
    textOf('network.tcp'),
    new RegExp(
      `^localhost port ${port} cannot be reached \\(ECONNREFUSED; 127\\.0\\.0\\.1\\)\\.\nThe machine is there and nothing`,
    ),
  );
});

test('something that is no registry, or says nothing', async () => {
  await using silent = await listen(createTcpServer((socket) => socket.destroy()));
  const hung = await machine.diagnose(`http://localhost:${silent.port}/app`);
  assert.ok(hung.wrong.includes('network.registry'), String(hung.wrong));
  assert.match(hung.textOf('network.registry'), /answers no request/);
});

test('TLS where there is none', async () => {
  const { wrong, textOf } = await machine.diagnose(`https://${machine.host}/app`);
  assert.deepEqual(wrong, ['network.tls']);
  assert.match(textOf('network.tls'), /does not speak TLS/);
});

async function withCertificate(
  { certificate, key }: Issued,
  env: NodeJS.ProcessEnv,
  clock: () => number = Date.now,
): Promise<Awaited<ReturnType<TestMachine['diagnose']>>> {
  const answer = {
    'docker-distribution-api-version': 'registry/2.0',
    'www-authenticate': 'Basic realm="https://registry.example/",service="ecr.amazonaws.com"',
  };
  const secure = createHttpsServer({ cert: certificate, key }, (_, response) => {
    response.writeHead(401, answer);
    response.end();
  });
  await using server = await listen(secure);
  return await machine.diagnose(`registry.example:${server.port}`, { env, clock });
}

function authority(now: number): Issued {
  const validity = { notBefore: now, notAfter: now + 3650 * DAY_MS };
  return createAuthority({ commonName: 'Test authority', permitted: ['example'], ...validity });
}

test('a certificate nobody signed, of another name, that has expired', async () => {
  const now = Date.now();
  const own = authority(now - 400 * DAY_MS);
  await machine.write('home/ca.pem', own.certificate);
  const trusting = { AWS_CA_BUNDLE: `${machine.home}/ca.pem` };
  const issue = (names: string[], from: number): Issued =>
    issueServerCertificate(own, {
      commonName: 'test',
      names,
      notBefore: from,
      notAfter: from + 90 * DAY_MS,
    });

  const unknown = await withCertificate(issue(['registry.example'], now), {});
  assert.deepEqual(unknown.wrong, ['docker.no-login', 'network.tls-chain']);
  assert.match(unknown.textOf('network.tls-chain'), /Nobody this machine trusts signed the certificate/);

  const other = await withCertificate(issue(['other.example'], now), trusting);
  assert.deepEqual(other.wrong, ['docker.authority', 'docker.no-login', 'network.tls-name']);
  assert.match(
    other.textOf('network.tls-name'),
    /not for registry\.example\.\nIt is for DNS:other\.example\./,
  );

  const expired = await withCertificate(issue(['registry.example'], now - 100 * DAY_MS), trusting);
  assert.deepEqual(expired.wrong, ['docker.authority', 'docker.no-login', 'network.tls-expiry']);
  assert.match(expired.textOf('network.tls-expiry'), /^The certificate expired on \d{4}-/);

  const soon = await withCertificate(issue(['registry.example'], now - 85 * DAY_MS), trusting);
  assert.match(soon.textOf('network.tls-expiry'), /^The certificate expires in \d days\./);

  const good = await withCertificate(issue(['registry.example'], now), trusting);
  assert.deepEqual(good.wrong, ['docker.authority', 'docker.no-login']);
  assert.match(good.textOf('docker.authority'), /certs\.d\/registry\.example:\d+\/ca\.crt/);
});

test('a clock that is wrong', async () => {
  await machine.logIn();
  for (const [skewMs, severity, words] of [
    [20 * 60_000, 'error', /^The clock of this machine is 20 minutes behind the server's\./],
    [-7 * 60_000, 'warning', /^The clock of this machine is 7 minutes ahead of the server's\./],
    [60_000, 'ok', /^The clocks differ by \d+ s\.$/],
  ] as const) {
    await using proxy = await listen(skewing(machine.port, skewMs));
    const { report, textOf } = await machine.diagnose(`localhost:${proxy.port}`);
    assert.equal(report.findings.find(({ id }) => id === 'network.clock')?.severity, severity);
    assert.match(textOf('network.clock'), words);
  }
});

test('a proxy between, in the environment and of the daemon', async () => {
  await machine.logIn();
  const reference = `registry.test:${machine.port}`;
  const proxy = { HTTP_PROXY: 'http://user:secret@proxy.example:3128', NO_PROXY: 'internal.example' };
  const through = await machine.diagnose(reference, { env: proxy });
  assert.ok(through.wrong.includes('network.proxy'));
  assert.match(
    through.textOf('network.proxy'),
    /go through the proxy http:\/\/proxy\.example:3128 \(set in the environment\)[\s\S]*export NO_PROXY="internal\.example,registry\.test"$/,
  );
  for (const NO_PROXY of ['*', '.test', 'registry.test', `registry.test:${machine.port}`]) {
    const past = await machine.diagnose(reference, { env: { ...proxy, NO_PROXY } });
    assert.ok(!past.wrong.includes('network.proxy'), NO_PROXY);
  }
  for (const HTTP_PROXY of ['user:secret@proxy.example:3128', 'http://user:se@secret/x@proxy.example:3128']) {
    const { report, textOf } = await machine.diagnose(reference, { env: { HTTP_PROXY } });
    assert.match(textOf('network.proxy'), /go through the proxy (http:\/\/)?proxy\.example:3128 /);
    assert.doesNotMatch(JSON.stringify(report), /secret/);
  }
  // What has no address is still of the scheme that it is written with.
  const unknown = await machine.diagnose('http://absent.invalid:80', { env: proxy });
  assert.ok(unknown.wrong.includes('network.proxy'));
  const address = await machine.diagnose(`127.0.0.1:${machine.port}`, { env: proxy });
  assert.ok(!address.wrong.includes('network.proxy'));
  await machine.write('etc-docker/daemon.json', { proxies: { 'http-proxy': 'http://proxy.example:3128' } });
  const daemon = await machine.diagnose(reference);
  assert.match(daemon.textOf('network.proxy'), /\(set in .*daemon\.json\)[\s\S]*restart docker\.$/);
  await machine.write('etc-docker/daemon.json', {});
});

test('references and NO_PROXY lists are read as docker and curl read them', () => {
  const subjects: readonly (readonly [string, unknown])[] = [
    ['localhost:7327/team/app:1', ['localhost', 7327, 'localhost:7327', undefined, 'team/app', '1']],
    ['https://Registry.Example', ['registry.example', 443, 'registry.example', 'https', undefined, 'latest']],
    ['http://registry.example/app', ['registry.example', 80, 'registry.example', 'http', 'app', 'latest']],
    ['[::1]:7327/app', ['::1', 7327, '[::1]:7327', undefined, 'app', 'latest']],
    [
      `registry.example/app@sha256:${'a'.repeat(64)}`,
      ['registry.example', 443, 'registry.example', undefined, 'app', 'latest'],
    ],
  ];
  for (const [text, expected] of subjects) {
    const it = readSubject(text);
    assert.deepEqual(it && [it.name, it.port, it.host, it.scheme, it.repository, it.tag], expected, text);
  }
  for (const text of ['', 'a b', 'ftp://x', '-x']) assert.equal(readSubject(text), undefined, text);
  const lists: readonly (readonly [string, string, boolean])[] = [
    ['example', 'registry.example', true],
    ['.example', 'registry.example', true],
    ['*.example', 'registry.example', true],
    ['ample', 'registry.example', false],
    ['registry.example:443', 'registry.example', true],
    ['registry.example:80', 'registry.example', false],
    ['a, 10.0.0.0/8', '10.1.2.3', true],
    ['10.0.0.0/8', '11.1.2.3', false],
    ['10.0.0.0/99', '10.1.2.3', false],
    ['', 'registry.example', false],
  ];
  for (const [list, name, expected] of lists)
    assert.equal(bypasses(list, name, 443), expected, `${list} ${name}`);
});
