/** `berth key`: keys for repositories with KMS encryption, made beside a running server. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  CreateRepositoryCommand,
  ECRClient,
  InitiateLayerUploadCommand,
  KmsException,
} from '@aws-sdk/client-ecr';
import { createMain, type Surroundings } from '../../src/cli/cli.ts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';

const ARN = /^arn:aws:kms:us-east-1:000000000000:key\/[0-9a-f-]{36}$/;

test('keys are made, listed, and named by repositories', async () => {
  const data = await mkdtemp(join(tmpdir(), 'berth-keys-'));
  const berth = async (...argv: string[]): Promise<{ code: number; out: string; err: string }> => {
    const printed = { out: '', err: '' };
    const sink = (name: 'out' | 'err') => ({ write: (text: string) => (printed[name] += text) });
    const surroundings = { env: {}, platform: 'linux', stdout: sink('out'), stderr: sink('err') };
    const main = createMain(surroundings as unknown as Surroundings);
    const code = await main.run(['node', 'berth', 'key', ...argv, '--data', data]);
    return { code, out: printed.out.trimEnd(), err: printed.err };
  };
  const none = await berth('list');
  assert.equal(none.code, 1);
  assert.match(none.err, /^berth: cannot read the keys: /);
  const server = await start(readConfig({ flags: { data, port: '0' }, env: {}, platform: 'linux' }), {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  try {
    const { id = '', secret = '' } = server.firstCredentials ?? {};
    const client = new ECRClient({
      endpoint: server.endpoint,
      region: 'us-east-1',
      credentials: { accessKeyId: id, secretAccessKey: secret },
    });
    const create = async (repositoryName: string, kmsKey?: string): Promise<string | undefined> => {
      const encryptionConfiguration = { encryptionType: 'KMS', ...(kmsKey && { kmsKey }) } as const;
      const { repository } = await client.send(
        new CreateRepositoryCommand({ repositoryName, encryptionConfiguration }),
      );
      return repository?.encryptionConfiguration?.kmsKey;
    };
    assert.equal((await berth('list')).out, '');
    const one = (await berth('create')).out;
    const team = (await berth('create', '--alias', 'alias/team')).out;
    assert.match(one, ARN);
    assert.match(team, ARN);
    assert.equal((await berth('create', '--alias', 'alias/team')).out, team);
    const elsewhere = (await berth('create', '--account', '111111111111', '--region', 'eu-west-1')).out;
    assert.match(elsewhere, /^arn:aws:kms:eu-west-1:111111111111:key\//);
    assert.deepEqual((await berth('list')).out.split('\n').toSorted(), [one, team, elsewhere].toSorted());
    assert.equal(await create('by-arn', one), one);
    assert.equal(await create('by-id', one.split('/')[1]), one);
    assert.equal(await create('by-alias', 'alias/team'), team);
    await client.send(new InitiateLayerUploadCommand({ repositoryName: 'by-arn' }));
    for (const unknown of [elsewhere, 'alias/nobody'])
      await assert.rejects(create('no', unknown), KmsException);
    for (const alias of ['team', 'alias/', 'alias/a b', 'alias/aws/s3']) {
      const refused = await berth('create', '--alias', alias);
      assert.deepEqual([refused.code, refused.err.startsWith(`berth: ${alias} is no alias`)], [1, true]);
    }
    client.destroy();
  } finally {
    await server.stop();
    await rm(data, { recursive: true });
  }
});
