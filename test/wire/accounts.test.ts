/** `berth account`, beside a running server and without one. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { GetCallerIdentityCommand, STSClient } from '@aws-sdk/client-sts';
import { createMain, type Surroundings } from '../../src/cli/cli.ts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';

let data = '';
before(async () => {
  data = await mkdtemp(join(tmpdir(), 'berth-accounts-'));
});
after(() => rm(data, { recursive: true, force: true }));

async function berth(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = '';
  let err = '';
  const surroundings = {
    env: {},
    platform: process.platform,
    stdout: { write: (text: string) => (out += text) },
    stderr: { write: (text: string) => (err += text) },
  };
  const main = createMain(surroundings as unknown as Surroundings);
  const code = await main.run(['node', 'berth', ...argv, '--data', data]);
  return { code, out, err };
}

function serve() {
  return start(readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform }), {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
}

test('accounts are made while the server is stopped, and listed at any time', async () => {
  let server = await serve();
  const refused = await berth('account', 'create');
  assert.equal(refused.code, 1);
  assert.match(refused.err, /Stop the server first/);
  assert.match((await berth('account', 'list')).out, /^000000000000 {2}\d{4}-\d\d-\d\d\n$/);
  await server.stop();

  const made = await berth('account', 'create', '--id', '210987654321', '--alias', 'team-b', '--json');
  assert.equal(made.code, 0, made.err);
  const { account, accessKeyId, secretAccessKey } = JSON.parse(made.out) as Record<string, string>;
  assert.equal(account, '210987654321');
  const twice = await berth('account', 'create', '--id', '210987654321');
  assert.deepEqual([twice.code, twice.err], [1, 'berth: The account 210987654321 already exists.\n']);
  for (const bad of [
    ['--id', '12'],
    ['--alias', 'Team B'],
  ]) {
    assert.equal((await berth('account', 'create', ...bad)).code, 1);
  }
  const random = await berth('account', 'create');
  assert.match(
    random.out,
    /^Account \d{12}: user admin .* shown once\.\n\n\[\d{12}\]\naws_access_key_id = AKIA/,
  );
  const listed = JSON.parse((await berth('account', 'list', '--json')).out) as {
    id: string;
    alias?: string;
  }[];
  assert.equal(listed.length, 3);
  assert.equal(listed.find(({ id }) => id === '210987654321')?.alias, 'team-b');

  server = await serve();
  try {
    const client = new STSClient({
      endpoint: server.endpoint,
      region: 'us-east-1',
      credentials: { accessKeyId: accessKeyId ?? '', secretAccessKey: secretAccessKey ?? '' },
    });
    const { Arn } = await client.send(new GetCallerIdentityCommand({}));
    assert.equal(Arn, 'arn:aws:iam::210987654321:user/admin');
  } finally {
    await server.stop();
  }
});
