/** What a newcomer types, as the README prints it, with the machine's own aws and docker. */
import assert from 'node:assert/strict';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startDocker, type Docker } from './docker.ts';
import {
  assertClean,
  makePlace,
  missing,
  missingDaemon,
  ok,
  ROOT,
  startDaemon,
  until,
  type Daemon,
  type Place,
} from './harness.ts';
import { smallestProgram } from './program.ts';

const skip = missing('aws', 'docker', 'npm') || missingDaemon('dockerd');

interface ImageDetail {
  readonly registryId: string;
  readonly repositoryName: string;
  readonly imageDigest: string;
  readonly imageTags: readonly string[];
  readonly imageSizeInBytes: number;
  readonly imagePushedAt: number | string;
  readonly imageManifestMediaType: string;
  readonly artifactMediaType: string;
}

describe('the walk', { skip }, () => {
  let place: Place;
  let docker: Docker;
  let server: Daemon;
  let registry = '';
  let pushed = '';

  /** A line typed into the newcomer's shell, whose environment `berth env` made. */
  const type = (line: string): Promise<string> => {
    const data = join(place.directory, 'data');
    const script = `set -eo pipefail\neval "$(npx berth env --data '${data}')"\n${line}\n`;
    return ok(['bash', '-c', script], { environment: docker.environment, cwd: ROOT });
  };

  const stop = async (): Promise<void> => {
    await server.stop('SIGINT');
    assertClean(server);
  };

  before(async () => {
    place = await makePlace('walk');
    docker = await startDocker(place);
  });

  after(async () => {
    if (!server.hasExited()) await server.stop();
    await docker.stop();
    await place.remove();
  });

  test('npm start prints a banner: endpoint, account, region, credentials, the next lines', async () => {
    const data = join(place.directory, 'data');
    server = startDaemon(['npm', 'start', '--', '--port', '0', '--data', data], place.environment, {
      group: true,
    });
    await until('the banner', () => /docker login/.test(server.output()) || server.hasExited());
    const banner = server.output();
    registry = /^ {2}registry +(localhost:\d+)$/m.exec(banner)?.[1] ?? '';
    assert.notEqual(registry, '', banner);
    const port = registry.split(':')[1];
    assert.match(banner, new RegExp(`^ {2}endpoint +http://localhost:${port}$`, 'm'));
    assert.match(banner, /^ {2}account +000000000000$/m);
    assert.match(banner, /^ {2}region +us-east-1$/m);
    assert.match(banner, /^ {2}access key id +AKIA[A-Z2-7]{16}$/m);
    assert.match(banner, /^ {2}secret access key +[A-Za-z0-9+/]{40}$/m);
    assert.match(banner, /eval "\$\(npx berth env/);
    assert.match(banner, /aws ecr get-login-password \| docker login --username AWS --password-stdin/);
  });

  test('aws sts get-caller-identity', async () => {
    const { UserId, ...identity } = JSON.parse(await type('aws sts get-caller-identity')) as Record<
      string,
      string
    >;
    assert.match(UserId ?? '', /^AIDA[A-Z2-7]{17}$/);
    assert.deepEqual(identity, { Account: '000000000000', Arn: 'arn:aws:iam::000000000000:user/admin' });
  });

  test('aws ecr create-repository', async () => {
    const answer = JSON.parse(await type('aws ecr create-repository --repository-name devops-ecr')) as {
      repository: Record<string, unknown>;
    };
    const { createdAt, ...repository } = answer.repository;
    const createdMs = typeof createdAt === 'number' ? createdAt * 1000 : Date.parse(String(createdAt));
    assert.ok(Math.abs(Date.now() - createdMs) < 60_000);
    assert.deepEqual(repository, {
      repositoryArn: 'arn:aws:ecr:us-east-1:000000000000:repository/devops-ecr',
      registryId: '000000000000',
      repositoryName: 'devops-ecr',
      repositoryUri: `${registry}/devops-ecr`,
      imageTagMutability: 'MUTABLE',
      imageScanningConfiguration: { scanOnPush: false },
      encryptionConfiguration: { encryptionType: 'AES256' },
    });
  });

  test('docker build', async () => {
    const context = join(place.directory, 'context');
    await mkdir(context);
    await writeFile(join(context, 'hello'), smallestProgram('hello from berth\n'));
    await chmod(join(context, 'hello'), 0o755);
    await writeFile(join(context, 'Dockerfile'), 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n');
    await type(`docker build -t devops-ecr:latest '${context}'`);
  });

  test('aws ecr get-login-password | docker login', async () => {
    const login = `aws ecr get-login-password | docker login --username AWS --password-stdin ${registry}`;
    assert.match(await type(login), /Login Succeeded/);
  });

  test('docker tag && docker push', async () => {
    const image = `${registry}/devops-ecr:latest`;
    const output = await type(`docker tag devops-ecr:latest ${image} && docker push ${image}`);
    pushed = /latest: digest: (sha256:[0-9a-f]{64}) size: \d+/.exec(output)?.[1] ?? '';
    assert.notEqual(pushed, '', output);
  });

  test('aws ecr describe-images', async () => {
    const answer = JSON.parse(await type('aws ecr describe-images --repository-name devops-ecr')) as {
      imageDetails: readonly ImageDetail[];
    };
    assert.equal(answer.imageDetails.length, 1);
    const [detail] = answer.imageDetails;
    assert.ok(detail);
    const { imageSizeInBytes, imagePushedAt, ...rest } = detail;
    const pushedMs = typeof imagePushedAt === 'number' ? imagePushedAt * 1000 : Date.parse(imagePushedAt);
    assert.ok(Math.abs(Date.now() - pushedMs) < 60_000);
    assert.ok(imageSizeInBytes > 100 && imageSizeInBytes < 10_000, String(imageSizeInBytes));
    assert.deepEqual(rest, {
      registryId: '000000000000',
      repositoryName: 'devops-ecr',
      imageDigest: pushed,
      imageTags: ['latest'],
      imageStatus: 'ACTIVE',
      imageManifestMediaType: 'application/vnd.docker.distribution.manifest.v2+json',
      artifactMediaType: 'application/vnd.docker.container.image.v1+json',
    });
  });

  test('docker rmi && docker pull && docker run', async () => {
    const image = `${registry}/devops-ecr:latest`;
    await type(`docker rmi ${image} devops-ecr:latest`);
    assert.equal((await type('docker images --quiet')).trim(), '');
    assert.match(await type(`docker pull ${image}`), new RegExp(`Digest: ${pushed}`));
    assert.equal(await type(`docker run --rm --network none ${image}`), 'hello from berth\n');
  });

  test('docker pulls by digest, and docker push says what is there already', async () => {
    assert.match(await type(`docker pull ${registry}/devops-ecr@${pushed}`), new RegExp(pushed));
    assert.match(await type(`docker push ${registry}/devops-ecr:latest`), /Layer already exists/);
  });

  test('docker mounts layers from another repository', async () => {
    await type('aws ecr create-repository --repository-name team/other');
    await type('aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED');
    const image = `${registry}/team/other:v1`;
    const output = await type(`docker tag ${registry}/devops-ecr:latest ${image} && docker push ${image}`);
    assert.match(output, /Mounted from devops-ecr/);
    assert.match(output, new RegExp(`v1: digest: ${pushed}`));
  });

  test('berth login logs docker in', async () => {
    await type(`docker logout ${registry}`);
    const data = join(place.directory, 'data');
    assert.match(await type(`npx berth login --client docker --data '${data}'`), /Login Succeeded/);
    await type(`docker pull ${registry}/team/other:v1`);
  });

  test('Ctrl-C ends the server, and a restart prints no secret and has everything', async () => {
    await stop();
    const data = join(place.directory, 'data');
    const port = registry.split(':')[1] ?? '';
    server = startDaemon(['npm', 'start', '--', '--port', port, '--data', data], place.environment, {
      group: true,
    });
    await until('the banner', () => /docker login/.test(server.output()) || server.hasExited());
    assert.doesNotMatch(server.output(), /secret access key|AKIA/);
    const image = `${registry}/devops-ecr:latest`;
    await type(`docker rmi -f $(docker images --quiet | sort -u)`);
    await type(`docker pull ${image}`);
    assert.equal(await type(`docker run --rm --network none ${image}`), 'hello from berth\n');
    await stop();
  });
});
