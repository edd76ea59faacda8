import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createPublicKey, X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, test } from 'node:test';
import fc from 'fast-check';
import {
  createAuthority,
  isPermitted,
  issueServerCertificate,
  normalizeName,
  permittedNames,
  type Issued,
} from './x509.ts';

const NOW = Date.UTC(2026, 10, 24, 12);
const DAY_MS = 86_400_000;
const VALIDITY = { notBefore: NOW, notAfter: NOW + 397 * DAY_MS };
const PERMITTED = ['localhost', 'ecr.example.com', '127.0.0.0/8', '::1', '10.1.2.3', 'fd00::/8'];
const NAMES = ['localhost', '*.dkr.ecr.example.com', '127.0.0.1', '::1', '10.1.2.3', 'fd00::1:2'];

function authority(): Issued {
  return createAuthority({
    commonName: 'Test CA',
    notBefore: NOW,
    notAfter: Date.UTC(2051, 0, 1),
    permitted: PERMITTED,
  });
}

const server = (root: Issued, names: readonly string[]): Issued =>
  issueServerCertificate(root, { ...VALIDITY, commonName: 'Test server', names });

describe('certificates of a private authority', () => {
  const root = authority();
  const issued = server(root, NAMES);
  const rootRead = new X509Certificate(root.certificate);
  const read = new X509Certificate(issued.certificate);

  it('are what was asked for, as Node.js reads them', () => {
    assert.equal(
      read.subjectAltName,
      [
        'DNS:localhost',
        'DNS:*.dkr.ecr.example.com',
        'IP Address:127.0.0.1',
        'IP Address:0:0:0:0:0:0:0:1',
        'IP Address:10.1.2.3',
        'IP Address:FD00:0:0:0:0:0:1:2',
      ].join(', '),
    );
    assert.deepEqual(
      [read.validFromDate.getTime(), read.validToDate.getTime()],
      [VALIDITY.notBefore, VALIDITY.notAfter],
    );
    assert.deepEqual(read.keyUsage, ['1.3.6.1.5.5.7.3.1']);
    assert.equal(read.ca, false);
    assert.ok(read.checkIssued(rootRead) && read.verify(rootRead.publicKey));
    assert.ok(rootRead.ca && rootRead.verify(rootRead.publicKey));
    assert.equal(rootRead.validToDate.getTime(), Date.UTC(2051, 0, 1));
    assert.equal(rootRead.subject, 'O=Berth\nCN=Test CA');
  });

  it('have keys of their own', () => {
    assert.ok(read.publicKey.equals(createPublicKey(issued.key)));
    assert.ok(!read.publicKey.equals(rootRead.publicKey));
    assert.notEqual(read.serialNumber, new X509Certificate(server(root, NAMES).certificate).serialNumber);
  });

  it('tell what the authority is limited to', () => {
    assert.deepEqual(permittedNames(root.certificate), PERMITTED);
    assert.deepEqual(permittedNames(issued.certificate), []);
  });

  it("are not made with a key that is not the authority's", () => {
    assert.throws(() => server({ ...root, key: issued.key }, NAMES), /not the one of the certificate/);
  });
});

/** openssl's word, which knows what Node.js does not check */
function verify(root: Issued, issued: Issued, host: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'berth-x509-'));
  try {
    writeFileSync(join(directory, 'ca.pem'), root.certificate);
    writeFileSync(join(directory, 'server.pem'), issued.certificate);
    const args = [
      'verify',
      '-x509_strict',
      '-check_ss_sig',
      '-purpose',
      'sslserver',
      '-attime',
      String(NOW / 1000 + 1),
    ];
    const name = [/^[\d.]+$|:/.test(host) ? '-verify_ip' : '-verify_hostname', host];
    const { stdout, stderr } = spawnSync(
      'openssl',
      [...args, ...name, '-CAfile', join(directory, 'ca.pem'), join(directory, 'server.pem')],
      { encoding: 'utf8' },
    );
    return stdout + stderr;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const noOpenssl = spawnSync('openssl', ['version']).status === 0 ? false : 'not installed: openssl';

describe('openssl, strictly', { skip: noOpenssl }, () => {
  const root = authority();
  const cases: readonly [what: string, names: readonly string[], host: string, verdict: RegExp][] = [
    ['a name', NAMES, 'localhost', /server\.pem: OK/],
    ['a wildcard', NAMES, '123456789012.dkr.ecr.example.com', /server\.pem: OK/],
    ['an address', NAMES, '127.0.0.1', /server\.pem: OK/],
    ['an IPv6 address', NAMES, 'fd00::1:2', /server\.pem: OK/],
    ['a name it does not have', NAMES, 'ecr.example.com', /hostname mismatch/],
    ['two labels for one wildcard', NAMES, 'a.b.dkr.ecr.example.com', /hostname mismatch/],
    [
      'a name the authority may not give',
      ['s3.amazonaws.com'],
      's3.amazonaws.com',
      /permitted subtree violation/,
    ],
    ['an address the authority may not give', ['10.1.2.4'], '10.1.2.4', /permitted subtree violation/],
    ['another authority', NAMES, 'localhost', /unable to get local issuer certificate|signature failure/],
  ];
  for (const [what, names, host, verdict] of cases) {
    test(what, () => {
      const trusted = what === 'another authority' ? authority() : root;
      assert.match(verify(trusted, server(root, names), host), verdict);
    });
  }
  test('any number of names and any time up to 2050 and after', () => {
    const some = fc.record({
      count: fc.integer({ min: 1, max: 300 }),
      notAfter: fc
        .integer({ min: NOW / 1000 + 3600, max: Date.UTC(2090, 0) / 1000 })
        .map((second) => second * 1000),
    });
    fc.assert(
      fc.property(some, ({ count, notAfter }) => {
        const names = Array.from({ length: count }, (_, i) => `n${i}.ecr.example.com`);
        const issued = issueServerCertificate(root, { notBefore: NOW, notAfter, commonName: 'x', names });
        assert.match(verify(root, issued, `n${count - 1}.ecr.example.com`), /server\.pem: OK/);
        assert.equal(new X509Certificate(issued.certificate).validToDate.getTime(), notAfter);
      }),
      { numRuns: 12 },
    );
  });
});

const NAME_FORMS: Readonly<Record<string, string | undefined>> = {
  LocalHost: 'localhost',
  'registry.example.com.': 'registry.example.com',
  '*.dkr.ecr.eu-west-1.example.com': '*.dkr.ecr.eu-west-1.example.com',
  '10.0.0.1': '10.0.0.1',
  '[::1]': '::1',
  '0:0:0:0:0:0:0:1': '::1',
  'FD00::0:1': 'fd00::1',
  '': undefined,
  '*': undefined,
  '*.': undefined,
  'a.*.b': undefined,
  '10.0.0': undefined,
  '10.0.0.256': undefined,
  'a b': undefined,
  'a,DNS:b': undefined,
  'a\nb': undefined,
  'a..b': undefined,
  '-a.b': undefined,
  'häfen.example': undefined,
  'localhost:7327': undefined,
  [`${'a'.repeat(64)}.b`]: undefined,
};

test('names in the form of certificates', () => {
  for (const [text, name] of Object.entries(NAME_FORMS)) assert.equal(normalizeName(text), name, text);
});

test('what an authority may issue for', () => {
  const verdicts: Readonly<Record<string, boolean>> = {
    localhost: true,
    'x.localhost': true,
    notlocalhost: false,
    'ecr.example.com': true,
    '*.ecr.example.com': true,
    '*.example.com': false,
    'myecr.example.com': false,
    '127.9.9.9': true,
    '128.0.0.1': false,
    '10.1.2.3': true,
    '::1': true,
    'fdff::': true,
    'fe00::': false,
  };
  for (const [name, verdict] of Object.entries(verdicts)) {
    assert.equal(isPermitted(name, PERMITTED), verdict, name);
  }
});
