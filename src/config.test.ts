import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { ConfigError, defaultDataDirectory, readConfig, SETTINGS, type ConfigSources } from './config.ts';

const directory = mkdtempSync(join(tmpdir(), 'berth-config-'));
after(() => rmSync(directory, { recursive: true }));

function read(sources: Partial<ConfigSources> = {}) {
  return readConfig({ flags: {}, env: { XDG_DATA_HOME: directory }, platform: 'linux', ...sources });
}

function yaml(text: string): string {
  const file = join(directory, `${Math.abs(text.length * 7919)}.yaml`);
  writeFileSync(file, text);
  return file;
}

describe('readConfig', () => {
  it('has defaults for everything', () => {
    const config = read();
    assert.equal(config.port, 7327);
    assert.equal(config.host, '127.0.0.1');
    assert.equal(config.account, '000000000000');
    assert.equal(config.region, 'us-east-1');
    assert.equal(config.data, join(directory, 'berth'));
    assert.deepEqual(config.regions, []);
    assert.ok(Object.isFrozen(config));
  });

  it('prefers flags over environment over file over defaults', () => {
    const file = yaml('port: 1111\nregion: eu-west-1\nlog-level: debug\n');
    const env = { XDG_DATA_HOME: directory, BERTH_PORT: '2222', BERTH_REGION: 'eu-west-2' };
    const config = read({ file, env, flags: { port: '3333' } });
    assert.deepEqual([config.port, config.region, config.logLevel], [3333, 'eu-west-2', 'debug']);
  });

  it('reads secrets from files', () => {
    const file = join(directory, 'secret');
    writeFileSync(file, 'a-very-secret-value-indeed\n');
    const env = { BERTH_ROOT_ACCESS_KEY_ID: 'AKIAROOTROOTROOTROOT', BERTH_ROOT_SECRET_ACCESS_KEY_FILE: file };
    assert.equal(read({ env }).rootSecretAccessKey, 'a-very-secret-value-indeed');
  });

  const refusals: [name: string, sources: Partial<ConfigSources>, message: RegExp][] = [
    ['unknown variable', { env: { BERTH_PROT: '1' } }, /^Unknown setting BERTH_PROT \(environment\)$/],
    ['unknown key in the file', { file: yaml('prot: 1\n') }, /^Unknown setting prot \(/],
    ['a list in the file', { file: yaml('regions: [a, b]\n') }, /^Bad value for regions \(/],
    ['a file that is no mapping', { file: yaml('- a\n- b\n- c\n') }, /must hold settings/],
    ['a file that is not YAML', { file: yaml('a: [unclosed\n') }, /is not YAML/],
    ['a missing file', { file: join(directory, 'none.yaml') }, /^Cannot read .*none\.yaml/],
    ['a bad port', { flags: { port: '70000' } }, /^Bad value "70000" for port \(--port\)/],
    ['a bad account', { env: { BERTH_ACCOUNT: '12' } }, /^Bad value "12" for account \(BERTH_ACCOUNT\)/],
    [
      'a webhook that is no address',
      { flags: { webhooks: 'https://a.example,ftp://b.example' } },
      /^Bad value .* for webhooks/,
    ],
    [
      'a webhook with a password',
      { flags: { webhooks: 'https://u:p@a.example/' } },
      /^Bad value .* for webhooks/,
    ],
    ['a bad region', { flags: { region: 'EU_1' } }, /^Bad value "EU_1" for region/],
    ['plain HTTP in public', { flags: { host: '0.0.0.0' } }, /is not loopback/],
    ['half of TLS', { flags: { 'tls-cert': 'x.pem' } }, /^tls-cert and tls-key go together/],
    ['half of the root key', { env: { BERTH_ROOT_ACCESS_KEY_ID: 'AKIAROOTROOTROOTROOT' } }, /go together/],
    ['a default region outside the list', { flags: { regions: 'eu-west-1' } }, /is not among regions/],
  ];
  for (const [name, sources, message] of refusals) {
    it(`refuses ${name}`, () => {
      assert.throws(
        () => read(sources),
        (error) => error instanceof ConfigError && message.test(error.message),
      );
    });
  }

  it('never repeats a secret in an error', () => {
    assert.throws(
      () => read({ env: { BERTH_ROOT_SECRET_ACCESS_KEY: 'tooshort' } }),
      (error) => {
        return error instanceof ConfigError && !error.message.includes('tooshort');
      },
    );
  });

  it('allows a public address with insecure-http or TLS', () => {
    assert.equal(read({ flags: { host: '0.0.0.0', 'insecure-http': 'true' } }).host, '0.0.0.0');
    assert.equal(read({ flags: { host: '::', 'tls-cert': 'a', 'tls-key': 'b' } }).host, '::');
  });

  it('knows the data directory of each platform', () => {
    assert.match(defaultDataDirectory({}, 'linux'), /\.local\/share\/berth$/);
    assert.match(defaultDataDirectory({}, 'darwin'), /Library\/Application Support\/berth$/);
    assert.match(defaultDataDirectory({ LOCALAPPDATA: '/l' }, 'win32'), /^\/l\/berth$/);
  });

  it('documents every setting', () => {
    for (const setting of Object.values(SETTINGS)) assert.ok(setting.help.length > 5);
  });
});
