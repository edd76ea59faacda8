/**
 * A machine as on AWS: the host names of AWS, the metadata address, and no setting but the region. Credential helper,
 * docker and an ECS task work word for word.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startDocker, type Docker } from './docker.ts';
import {
  authorityFile,
  initTls,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  ROOT,
  startBerth,
  startDaemon,
  stopBerth,
  until,
  type BerthServer,
  type Daemon,
  type Environment,
  type Place,
} from './harness.ts';
import { NAMESPACE_ADDRESS, startNamespace, TRUST_STORE, type Namespace } from './namespace.ts';
import { smallestProgram } from './program.ts';

const ACCOUNT = '123456789012';
const REGISTRY = `${ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com`;
const INSTANCE = 'i-0fedcba9876543210';
const MAIN = join(ROOT, 'src', 'main.ts');
const SYSTEM = ['bin', 'usr', 'lib', 'lib64'];

/** The server listens on an address that its certificate does not have. */
const endpoint = { AWS_ENDPOINT_URL: 'https://api.ecr.us-east-1.amazonaws.com' };

const skip =
  missing('aws', 'curl', 'docker', 'docker-credential-ecr-login', 'ip', 'unshare', 'nsenter') ||
  missingDaemon('dockerd');

describe('a machine with the names of AWS', { skip }, () => {
  let place: Place;
  let namespace: Namespace | undefined;
  let server: BerthServer;
  let imds: Daemon;
  let docker: Docker;
  /** no endpoint, no key */
  let machine: Environment;
  let admin: Environment;
  const at = (path: string): string => join(place.directory, path);
  const inside = (...command: readonly string[]): string[] => [...(namespace?.inside ?? []), ...command];
  const type = (line: string, environment = machine): Promise<string> =>
    ok(inside('bash', '-c', `set -o pipefail; ${line}`), { environment });

  before(async () => {
    place = await makePlace('machine-names');
    const data = at('data');
    await initTls(data, ['--aws-names', '--regions', 'us-east-1']);
    const services = ['api.ecr.us-east-1', 'sts.us-east-1', 'sts', 'iam'].map(
      (name) => `${name}.amazonaws.com`,
    );
    namespace = await startNamespace(place, {
      names: [REGISTRY, ...services],
      authority: authorityFile(data),
    });
    const names = [`--account=${ACCOUNT}`, '--registry-host={account}.dkr.ecr.{region}.amazonaws.com'];
    server = await startBerth({
      data,
      inside: namespace.inside,
      flags: ['--tls', `--host=${NAMESPACE_ADDRESS}`, '--port=443', ...names],
    });
    docker = await startDocker(place, namespace.inside);
    const { AWS_EC2_METADATA_DISABLED: _, ...environment } = docker.environment;
    // WHY: the kit's aws knows the endpoint of a server; here the name alone has to do
    machine = {
      ...environment,
      PATH: process.env['PATH'] ?? '',
      AWS_CA_BUNDLE: TRUST_STORE,
      AWS_DEFAULT_REGION: 'us-east-1',
      AWS_REGION: 'us-east-1',
    };
    const key = await readAdmin(data);
    admin = {
      ...machine,
      AWS_ACCESS_KEY_ID: key.accessKeyId,
      AWS_SECRET_ACCESS_KEY: key.secretAccessKey,
      DOCKER_CONFIG: at('admin'),
    };
    await type('ip address add 169.254.169.254/32 dev lo && ip address add 169.254.170.2/32 dev lo');
    for (const [role, service] of [
      ['machine', 'ec2'],
      ['execution', 'ecs-tasks'],
      ['task', 'ecs-tasks'],
    ] as const) {
      const statement = {
        Effect: 'Allow',
        Principal: { Service: `${service}.amazonaws.com` },
        Action: 'sts:AssumeRole',
      };
      const trust = JSON.stringify({ Version: '2012-10-17', Statement: [statement] });
      await type(`aws iam create-role --role-name ${role} --assume-role-policy-document '${trust}'`, admin);
    }
    for (const role of ['machine', 'execution']) {
      const policy = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly';
      await type(`aws iam attach-role-policy --role-name ${role} --policy-arn ${policy}`, admin);
    }
    await mkdir(at('context'));
    await writeFile(at('context/hello'), smallestProgram('hello from the machine\n'), { mode: 0o755 });
    await writeFile(at('context/Dockerfile'), 'FROM scratch\nCOPY hello /hello\nCMD ["/hello"]\n');
    await type('aws ecr create-repository --repository-name web', admin);
    await type(`docker build -t ${REGISTRY}/web:v1 '${at('context')}'`, admin);
    await type(
      `aws ecr get-login-password | docker login --username AWS --password-stdin ${REGISTRY}`,
      admin,
    );
    await type(`docker push ${REGISTRY}/web:v1 && docker rmi ${REGISTRY}/web:v1`, admin);
    imds = startDaemon(
      inside(
        process.execPath,
        MAIN,
        'imds',
        '--data',
        data,
        '--role',
        'machine',
        '--instance-id',
        INSTANCE,
        '--listen',
        '169.254.169.254:80',
      ),
      { ...place.environment, ...endpoint },
    );
    await until('the metadata service', () => {
      assert.ok(!imds.hasExited(), imds.output());
      return imds.output().includes('Clients find it by themselves');
    });
  });

  after(async () => {
    const code = await imds.stop();
    await docker.stop();
    await stopBerth(server);
    await namespace?.stop();
    await place.remove();
    assert.equal(code, 0, imds.output());
  });

  test('the AWS CLI is the instance', async () => {
    const caller = JSON.parse(await type('aws sts get-caller-identity')) as { Arn: string };
    assert.equal(caller.Arn, `arn:aws:sts::${ACCOUNT}:assumed-role/machine/${INSTANCE}`);
  });

  test('docker pulls through docker-credential-ecr-login with the credentials of the instance', async () => {
    await mkdir(machine['DOCKER_CONFIG'] ?? '', { recursive: true });
    await writeFile(
      join(machine['DOCKER_CONFIG'] ?? '', 'config.json'),
      JSON.stringify({ credHelpers: { [REGISTRY]: 'ecr-login' } }),
    );
    await type(`docker pull ${REGISTRY}/web:v1`);
    assert.match(await type(`docker inspect --format '{{.RepoTags}}' ${REGISTRY}/web:v1`), /web:v1/);
    await type(`docker rmi ${REGISTRY}/web:v1`);
  });

  test('an ECS task finds its role at 169.254.170.2', async () => {
    await mkdir(at('shared'));
    const script = [
      'echo "$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" >/shared/uri',
      'curl -fsS "http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"; echo',
      'touch /shared/ready',
      'until [ -e /shared/done ]; do sleep 0.1; done; printf unfinished',
    ].join('\n');
    const definition = {
      family: 'web',
      networkMode: 'host',
      taskRoleArn: `arn:aws:iam::${ACCOUNT}:role/task`,
      executionRoleArn: `arn:aws:iam::${ACCOUNT}:role/execution`,
      volumes: [
        ...SYSTEM.map((name) => ({ name, host: { sourcePath: `/${name}` } })),
        { name: 'shared', host: { sourcePath: at('shared') } },
      ],
      containerDefinitions: [
        {
          name: 'web',
          image: `${REGISTRY}/web:v1`,
          entryPoint: ['/bin/sh', '-c'],
          command: [script],
          mountPoints: [
            ...SYSTEM.map((name) => ({ sourceVolume: name, containerPath: `/${name}`, readOnly: true })),
            { sourceVolume: 'shared', containerPath: '/shared' },
          ],
        },
      ],
    };
    await writeFile(at('task.json'), JSON.stringify({ taskDefinition: definition }));
    const task = startDaemon(
      inside(process.execPath, MAIN, 'run-task', at('task.json'), '--data', server.data),
      { ...docker.environment, ...endpoint },
    );
    await until('the task asked', async () => {
      assert.ok(!task.hasExited(), task.output());
      return await readFile(at('shared/ready')).then(
        () => true,
        () => false,
      );
    });
    const uri = (await readFile(at('shared/uri'), 'utf8')).trim();
    assert.match(uri, /^\/v2\/credentials\/[0-9a-f-]{36}$/);
    const asTask = { ...machine, AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: uri };
    const caller = JSON.parse(await type('aws sts get-caller-identity', asTask)) as { Arn: string };
    assert.match(caller.Arn, new RegExp(`^arn:aws:sts::${ACCOUNT}:assumed-role/task/[0-9a-f]{32}$`));
    await writeFile(at('shared/done'), '');
    assert.equal(await task.exited, 0, task.output());
    await until(
      'its output came, also what no line ends',
      () =>
        task.output().includes(`web | {"RoleArn":"arn:aws:iam::${ACCOUNT}:role/task",`) &&
        task.output().includes('web | unfinished\n'),
    );
  });
});
