/** What real clients do when they are over a rate limit: docs/operations/limits.md says the same in words. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { DescribeRepositoriesCommand, ECRClient, ECRServiceException } from '@aws-sdk/client-ecr';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { startDocker } from './docker.ts';
import {
  awsVariables,
  createRepository,
  fails,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  REGION,
  registryPassword,
  startBerth,
  stopBerth,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { makeImage, tarOf, writeLayout } from './image.ts';
import { findPython } from './python.ts';

const python = findPython();
const REPOSITORIES = ['images', 'one', 'two', 'three'];

interface Throttled {
  readonly place: Place;
  readonly server: BerthServer;
  readonly admin: Credentials;
  readonly environment: Environment;
  /** the AWS SDK's client, to be destroyed */
  connect(maxAttempts: number): ECRClient;
  /** requests of an action that were over its limit so far */
  refused(action: string): Promise<number>;
  stop(): Promise<void>;
}

/** `stopped`: the server's clock stands still, so what is used up stays so. */
async function start(name: string, limits: string, stopped = false): Promise<Throttled> {
  const place = await makePlace(name);
  const { PATH = '', HOME = '' } = place.environment;
  const clock = encodeURIComponent('const now = Date.now(); Date.now = () => now');
  const server = await startBerth({
    data: join(place.directory, 'data'),
    flags: ['--rate-limits', limits],
    environment: { PATH, HOME, ...(stopped && { NODE_OPTIONS: `--import=data:text/javascript,${clock}` }) },
  });
  const admin = await readAdmin(server.data);
  for (const repository of REPOSITORIES) await createRepository(server, admin, repository);
  return {
    place,
    server,
    admin,
    environment: { ...place.environment, ...awsVariables(server, admin), AWS_RETRY_MODE: 'standard' },
    connect(maxAttempts) {
      const { accessKeyId, secretAccessKey } = admin;
      const credentials = { accessKeyId, secretAccessKey };
      return new ECRClient({ endpoint: server.endpoint, region: REGION, credentials, maxAttempts });
    },
    async refused(action) {
      const text = await (await fetch(`${server.endpoint}/metrics`)).text();
      const count = new RegExp(
        `^berth_requests_total\\{.*action="${action}",result="ThrottlingException"\\} (\\d+)$`,
        'm',
      );
      return Number(count.exec(text)?.[1] ?? 0);
    },
    async stop() {
      await stopBerth(server);
      await place.remove();
    },
  };
}

const BOTO3 = `
import boto3, json, sys
from botocore.config import Config
from botocore.exceptions import ClientError
ecr = boto3.client('ecr', config=Config(retries={'total_max_attempts': int(sys.argv[1]), 'mode': 'standard'}))
seen = {'names': [], 'retries': 0}
try:
    for page in ecr.get_paginator('describe_repositories').paginate(PaginationConfig={'PageSize': 1}):
        seen['names'] += [it['repositoryName'] for it in page['repositories']]
        seen['retries'] += page['ResponseMetadata']['RetryAttempts']
except ClientError as error:
    seen['error'] = [type(error).__name__, error.response['Error']['Code'], error.response['Error']['Message']]
print(json.dumps(seen))
`;

describe('over the rate limit for a moment', () => {
  let it: Throttled;
  before(async () => {
    it = await start(
      'throttled',
      'ecr:DescribeRepositories=2/1,ecr:InitiateLayerUpload=1/1,ecr:BatchGetImage=1/1',
    );
  });
  after(() => it.stop());

  test('the AWS SDK tries again and succeeds', async () => {
    const ecr = it.connect(10);
    const calls = Array.from({ length: 3 }, () => ecr.send(new DescribeRepositoriesCommand({})));
    const attempts = (await Promise.all(calls)).map(({ repositories, $metadata }) => {
      assert.equal(repositories?.length, REPOSITORIES.length);
      return $metadata.attempts ?? 0;
    });
    assert.ok(Math.max(...attempts) > 1, String(attempts));
    ecr.destroy();
  });

  test(
    'boto3 does so in the middle of its pages',
    { skip: python === undefined && 'not installed: boto3' },
    async () => {
      const { environment } = it;
      const seen = JSON.parse(await ok([python ?? '', '-c', BOTO3, '10'], { environment })) as {
        names: string[];
        retries: number;
      };
      assert.deepEqual(seen.names.toSorted(), REPOSITORIES.toSorted());
      assert.ok(seen.retries > 0);
    },
  );

  test('and the AWS CLI', { skip: missing('aws') }, async () => {
    const before = await it.refused('ecr:DescribeRepositories');
    const list = [
      'aws',
      'ecr',
      'describe-repositories',
      '--page-size',
      '1',
      '--query',
      'repositories[].repositoryName',
    ];
    const names = await ok(list, { environment: { ...it.environment, AWS_MAX_ATTEMPTS: '10' } });
    assert.deepEqual((JSON.parse(names) as string[]).toSorted(), REPOSITORIES.toSorted());
    assert.ok((await it.refused('ecr:DescribeRepositories')) > before);
  });

  test(
    'skopeo waits as long as Retry-After says, to begin uploads and to read manifests',
    { skip: missing('skopeo') },
    async () => {
      const { environment } = it.place;
      const layout = join(it.place.directory, 'image');
      await writeLayout(layout, 'v1', makeImage('throttled', [1000, 2000]));
      const remote = `docker://${it.server.registry}/images:v1`;
      const login = ['skopeo', 'login', '--tls-verify=false', '--username', 'AWS', '--password-stdin'];
      const input = await registryPassword(it.server, it.admin);
      await ok([...login, it.server.registry], { environment, input });
      const copy = [
        'skopeo',
        '--insecure-policy',
        'copy',
        '--src-tls-verify=false',
        '--dest-tls-verify=false',
      ];
      await ok([...copy, `oci:${layout}:v1`, remote], { environment });
      assert.ok((await it.refused('ecr:InitiateLayerUpload')) > 0);
      for (const name of ['first', 'second'])
        await ok([...copy, remote, `oci:${layout}-${name}:v1`], { environment });
      assert.ok((await it.refused('ecr:BatchGetImage')) > 0);
    },
  );
});

describe('over the rate limit for good', () => {
  let it: Throttled;
  let remote: string;
  let layout: string;
  const copy = ['skopeo', '--insecure-policy', 'copy', '--src-tls-verify=false', '--dest-tls-verify=false'];
  before(async () => {
    const limits = 'ecr:DescribeRepositories=1/1,ecr:PutImage=1/1,ecr:BatchGetImage=1/1';
    it = await start('over', limits, true);
    layout = join(it.place.directory, 'image');
    await writeLayout(layout, 'v1', makeImage('over', [1000, 2000]));
    remote = `docker://${it.server.registry}/images`;
    const { environment } = it.place;
    const login = ['skopeo', 'login', '--tls-verify=false', '--username', 'AWS', '--password-stdin'];
    if (missing('skopeo') !== false) return;
    await ok([...login, it.server.registry], {
      environment,
      input: await registryPassword(it.server, it.admin),
    });
    // These use up what there is.
    await ok([...copy, `oci:${layout}:v1`, `${remote}:v1`], { environment });
    await ok([...copy, `${remote}:v1`, `oci:${layout}-back:v1`], { environment });
  });
  after(() => it.stop());

  test('the AWS SDK and boto3 without retries have ThrottlingException', async () => {
    const ecr = it.connect(1);
    await ecr.send(new DescribeRepositoriesCommand({}));
    await assert.rejects(ecr.send(new DescribeRepositoriesCommand({})), (error) => {
      assert.ok(error instanceof ECRServiceException);
      assert.deepEqual(
        [error.name, error.message, error.$metadata.attempts],
        ['ThrottlingException', 'Rate exceeded', 1],
      );
      return true;
    });
    ecr.destroy();
    if (python === undefined) return;
    const seen = JSON.parse(await ok([python, '-c', BOTO3, '1'], { environment: it.environment })) as object;
    const error = ['ClientError', 'ThrottlingException', 'Rate exceeded'];
    assert.deepEqual(seen, { names: [], retries: 0, error });
  });

  test('the AWS CLI says so', { skip: missing('aws') }, async () => {
    const said = await fails(['aws', 'ecr', 'describe-repositories'], { environment: it.environment });
    assert.match(
      said,
      /An error occurred \(ThrottlingException\) when calling the DescribeRepositories operation.*: Rate exceeded/,
    );
  });

  test('skopeo asks five times for a manifest and puts one once', { skip: missing('skopeo') }, async () => {
    const { environment } = it.place;
    const reads = await it.refused('ecr:BatchGetImage');
    const pull = await fails([...copy, `${remote}:v1`, `oci:${layout}-none:v1`], { environment });
    assert.match(pull, /reading manifest v1 in \S+: toomanyrequests: Rate exceeded/);
    assert.equal((await it.refused('ecr:BatchGetImage')) - reads, 5);
    const push = await fails([...copy, `oci:${layout}:v1`, `${remote}:v2`], { environment });
    assert.match(push, /uploading manifest v2 to \S+: toomanyrequests: Rate exceeded/);
    assert.equal(await it.refused('ecr:PutImage'), 1);
  });

  test(
    'docker gives up at once',
    { skip: missing('skopeo') || missingDaemon('dockerd', 'docker') },
    async () => {
      const docker = await startDocker(it.place);
      const { environment } = docker;
      const { registry } = it.server;
      const login = ['docker', 'login', '--username', 'AWS', '--password-stdin', registry];
      await ok(login, { environment, input: await registryPassword(it.server, it.admin) });
      const reads = await it.refused('ecr:BatchGetImage');
      const pull = await fails(['docker', 'pull', `${registry}/images:v1`], { environment });
      assert.equal(pull, 'Error response from daemon: toomanyrequests: Rate exceeded\n');
      assert.ok((await it.refused('ecr:BatchGetImage')) - reads <= 2);
      const archive = join(it.place.directory, 'file.tar');
      await writeFile(archive, Buffer.concat([tarOf('hello', Buffer.from('hello')), Buffer.alloc(1024)]));
      await ok(['docker', 'import', archive, `${registry}/images:docker`], { environment });
      const puts = await it.refused('ecr:PutImage');
      const push = await fails(['docker', 'push', `${registry}/images:docker`], { environment });
      assert.match(push, /: Pushed\n[^]*toomanyrequests: Rate exceeded\n$/);
      assert.equal((await it.refused('ecr:PutImage')) - puts, 1);
      await docker.stop();
    },
  );
});
