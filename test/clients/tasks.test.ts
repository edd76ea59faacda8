/** ECS task definitions run by `berth run-task` on a Docker daemon, pulled with the execution role, acting as the task role. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { startDocker, type Docker } from './docker.ts';
import {
  ACCOUNT,
  callQuery,
  createRepository,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  REGION,
  registryPassword,
  ROOT,
  run,
  startBerth,
  startDaemon,
  stopBerth,
  until,
  type BerthServer,
  type Daemon,
  type Environment,
  type Finished,
  type Place,
} from './harness.ts';
import { smallestProgram } from './program.ts';

const skip = missing('aws', 'docker', 'curl') || missingDaemon('dockerd');

const MAIN = join(ROOT, 'src', 'main.ts');
const SOURCE = `arn:aws:ecs:${REGION}:${ACCOUNT}:*`;

const policy = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });

/** The image has no shell; containers see the machine's. */
const SYSTEM = ['bin', 'usr', 'lib', 'lib64'];

describe('an ECS task', { skip }, () => {
  let place: Place;
  let docker: Docker;
  let server: BerthServer;
  let admin: Credentials;
  let image = '';
  let count = 0;
  const at = (path: string): string => join(place.directory, path);

  const iam = async (input: Readonly<Record<string, string>>): Promise<void> => {
    const { status, text } = await callQuery(server, admin, 'iam', input);
    assert.equal(status, 200, text);
  };
  /** A role that trusts ECS, as AWS's documentation writes the trust, and may do these actions. */
  const createRole = async (name: string, actions: readonly string[]): Promise<void> => {
    const trust = policy({
      Effect: 'Allow',
      Principal: { Service: 'ecs-tasks.amazonaws.com' },
      Action: 'sts:AssumeRole',
      Condition: {
        ArnLike: { 'aws:SourceArn': SOURCE },
        StringEquals: { 'aws:SourceAccount': ACCOUNT },
      },
    });
    await iam({ Action: 'CreateRole', RoleName: name, AssumeRolePolicyDocument: trust });
    const document = policy({ Effect: 'Allow', Action: actions, Resource: '*' });
    await iam({ Action: 'PutRolePolicy', RoleName: name, PolicyName: 'all', PolicyDocument: document });
  };

  const container = (script: string, values: object = {}): object => ({
    name: 'web',
    image,
    entryPoint: ['/bin/sh', '-c'],
    command: [script],
    mountPoints: [
      ...SYSTEM.map((name) => ({ sourceVolume: name, containerPath: `/${name}`, readOnly: true })),
      { sourceVolume: 'shared', containerPath: '/shared' },
    ],
    ...values,
  });
  const write = async (values: object): Promise<string> => {
    const file = at(`task-${(count += 1)}.json`);
    const volumes = [
      ...SYSTEM.map((name) => ({ name, host: { sourcePath: `/${name}` } })),
      { name: 'shared', host: { sourcePath: at('shared') } },
    ];
    const executionRoleArn = `arn:aws:iam::${ACCOUNT}:role/execution`;
    const definition = { family: 'web', executionRoleArn, networkMode: 'host', volumes, ...values };
    await writeFile(file, JSON.stringify(definition));
    return file;
  };
  const command = (file: string, ...flags: readonly string[]): readonly string[] => [
    process.execPath,
    MAIN,
    'run-task',
    file,
    '--data',
    server.data,
    ...flags,
  ];
  const runTask = async (values: object, ...flags: readonly string[]): Promise<Finished> =>
    await run(command(await write(values), ...flags), { environment: docker.environment });
  const leftovers = async (): Promise<string> =>
    (await ok(['docker', 'ps', '--all', '--quiet'], { environment: docker.environment })) +
    (await ok(['docker', 'volume', 'ls', '--quiet'], { environment: docker.environment }));

  before(async () => {
    place = await makePlace('tasks');
    await mkdir(at('shared'));
    docker = await startDocker(place);
    server = await startBerth({ data: at('data') });
    admin = await readAdmin(server.data);
    await createRepository(server, admin, 'web');
    image = `${server.registry}/web:v1`;
    const { environment } = docker;
    const context = at('context');
    await mkdir(context);
    await writeFile(join(context, 'hello'), smallestProgram('hello from the image\n'), { mode: 0o755 });
    await writeFile(join(context, 'Dockerfile'), 'FROM scratch\nCOPY hello /hello\nCMD ["/hello"]\n');
    await ok(['docker', 'build', '--tag', image, context], { environment });
    const login = ['docker', 'login', '--username', 'AWS', '--password-stdin', server.registry];
    await ok(login, { environment, input: await registryPassword(server, admin) });
    await ok(['docker', 'push', image], { environment });
    await ok(['docker', 'logout', server.registry], { environment });
    await ok(['docker', 'rmi', image], { environment });
    await createRole('execution', [
      'ecr:GetAuthorizationToken',
      'ecr:BatchGetImage',
      'ecr:GetDownloadUrlForLayer',
      'ecr:BatchCheckLayerAvailability',
    ]);
    await createRole('task', ['ecr:DescribeRepositories']);
    await createRole('useless', ['ecr:DescribeRepositories']);
  });

  after(async () => {
    await docker.stop();
    await unmount(place.directory);
    await stopBerth(server);
    await place.remove();
  });

  test('the image is pulled with the execution role, runs, and is cleared away', async () => {
    const { code, stdout, stderr } = await runTask({
      networkMode: 'none',
      containerDefinitions: [{ name: 'web', image, cpu: 128, memory: 64 }],
    });
    assert.equal(code, 0, stderr);
    assert.equal(stdout, 'web | hello from the image\n');
    assert.equal(stderr, `web: pulling ${image}\nweb: running\nweb: exited with 0\n`);
    assert.equal(await leftovers(), '');
    const configuration = await readFile(join(place.directory, 'home', '.docker', 'config.json'), 'utf8');
    assert.doesNotMatch(configuration, /"auth"/, 'no login is left behind');
  });

  test('who may not pull does not run, although the image is there from before', async () => {
    const containerDefinitions = [{ name: 'web', image }];
    const cases: readonly (readonly [object, RegExp])[] = [
      [
        { executionRoleArn: 'useless' },
        /is not authorized to perform: ecr:GetAuthorizationToken on resource: \*/,
      ],
      [{ executionRoleArn: null }, /images of this registry are pulled with executionRoleArn/],
      [
        { executionRoleArn: 'absent' },
        /execution role arn:aws:iam::000000000000:role\/absent cannot be taken: AccessDeniedException/,
      ],
      [{ taskRoleArn: 'absent' }, /task role arn:aws:iam::000000000000:role\/absent cannot be taken/],
      [{ networkMode: 'awsvpc' }, /choose with --network bridge or --network host/],
      [{ networkMode: 'bridge', taskRoleArn: 'task' }, /ip address add 169\.254\.170\.2\/32 dev lo/],
    ];
    for (const [values, expected] of cases) {
      const { code, stdout, stderr } = await runTask({ containerDefinitions, ...values });
      assert.deepEqual([code, stdout], [1, ''], stderr);
      assert.match(stderr, expected);
    }
    assert.equal(await leftovers(), '');
  });

  test('the task acts with the task role, in the container and by the AWS CLI', async () => {
    const script = [
      'echo "$AWS_CONTAINER_CREDENTIALS_FULL_URI $AWS_CONTAINER_AUTHORIZATION_TOKEN" >/shared/endpoint',
      'curl -fsS -H "Authorization: $AWS_CONTAINER_AUTHORIZATION_TOKEN" "$AWS_CONTAINER_CREDENTIALS_FULL_URI" >/shared/credentials',
      'curl -fsS "$ECS_CONTAINER_METADATA_URI_V4" >/shared/container',
      'curl -fsS "$ECS_CONTAINER_METADATA_URI_V4/task" >/shared/task',
      'touch /shared/ready',
      'until [ -e /shared/done ]; do sleep 0.1; done',
      'echo bye >&2; exit 7',
    ].join('\n');
    const file = await write({
      taskRoleArn: `arn:aws:iam::${ACCOUNT}:role/task`,
      containerDefinitions: [container(script)],
    });
    const task = startDaemon(command(file, '--json'), docker.environment);
    const shared = async (name: string): Promise<string> => await readFile(at(`shared/${name}`), 'utf8');
    await until('the task asked', async () => {
      assert.ok(!task.hasExited(), task.output());
      return await shared('ready').then(
        () => true,
        () => false,
      );
    });

    const described = JSON.parse(await shared('task')) as { TaskARN: string; Containers: { Name: string }[] };
    const id = described.TaskARN.split('/').at(-1) ?? '';
    assert.equal(described.TaskARN, `arn:aws:ecs:${REGION}:${ACCOUNT}:task/default/${id}`);
    assert.match(id, /^[0-9a-f]{32}$/);
    assert.deepEqual(
      described.Containers.map(({ Name }) => Name),
      ['web'],
    );
    const own = JSON.parse(await shared('container')) as { Image: string; KnownStatus: string };
    assert.deepEqual([own.Image, own.KnownStatus], [image, 'RUNNING']);
    const credentials = JSON.parse(await shared('credentials')) as Record<string, string>;
    assert.equal(credentials['RoleArn'], `arn:aws:iam::${ACCOUNT}:role/task`);

    const [uri = '', token = ''] = (await shared('endpoint')).trim().split(' ');
    const asTask: Environment = {
      ...place.environment,
      AWS_ENDPOINT_URL: server.endpoint,
      AWS_DEFAULT_REGION: REGION,
      AWS_REGION: REGION,
      AWS_CONTAINER_CREDENTIALS_FULL_URI: uri,
      AWS_CONTAINER_AUTHORIZATION_TOKEN: token,
    };
    const caller = JSON.parse(await ok(['aws', 'sts', 'get-caller-identity'], { environment: asTask })) as {
      Arn: string;
    };
    assert.equal(caller.Arn, `arn:aws:sts::${ACCOUNT}:assumed-role/task/${id}`);
    await ok(['aws', 'ecr', 'describe-repositories'], { environment: asTask });
    const { code, stderr } = await run(['aws', 'ecr', 'get-login-password'], { environment: asTask });
    assert.notEqual(code, 0, 'the task does not have the execution role');
    assert.match(stderr, /AccessDeniedException/);
    const wrong = { ...asTask, AWS_CONTAINER_AUTHORIZATION_TOKEN: 'wrong' };
    assert.notEqual((await run(['aws', 'sts', 'get-caller-identity'], { environment: wrong })).code, 0);

    await writeFile(at('shared/done'), '');
    assert.equal(await task.exited, 7);
    const events = linesOf(task);
    assert.deepEqual(events.at(-1), {
      type: 'task',
      taskArn: described.TaskARN,
      stopCode: 'EssentialContainerExited',
      stoppedReason: 'Essential container in task exited: web with 7',
      exitCode: 7,
      containers: [{ name: 'web', exitCode: 7 }],
    });
    assert.ok(
      events.some(
        (it) => JSON.stringify(it) === '{"type":"log","container":"web","stream":"stderr","line":"bye"}',
      ),
      task.output(),
    );
    assert.equal(await leftovers(), '');
  });

  test('dependsOn, health, volumes of the task, and the end of the others', async () => {
    const own = { sourceVolume: 'own', containerPath: '/own' };
    const system = SYSTEM.map((name) => ({ sourceVolume: name, containerPath: `/${name}`, readOnly: true }));
    const mounts = { mountPoints: [...system, own] };
    const after = (containerName: string, condition: string) => ({ containerName, condition });
    const { code, stdout, stderr } = await runTask({
      volumes: [...SYSTEM.map((name) => ({ name, host: { sourcePath: `/${name}` } })), { name: 'own' }],
      containerDefinitions: [
        container('cat /own/prepared; echo "as $(id -u) in $(pwd), $GREETING"; ulimit -n; exit 3', {
          ...mounts,
          dependsOn: [after('prepare', 'SUCCESS'), after('service', 'HEALTHY')],
          environment: [{ name: 'GREETING', value: 'a=b c' }],
          user: '65534',
          workingDirectory: '/own',
          ulimits: [{ name: 'nofile', softLimit: 77, hardLimit: 99 }],
        }),
        container('trap "echo told; exit 0" TERM; touch /own/healthy; while :; do sleep 0.1; done', {
          ...mounts,
          name: 'service',
          dependsOn: [after('prepare', 'COMPLETE')],
          healthCheck: { command: ['CMD-SHELL', 'test -e /own/healthy'], interval: 5, retries: 2 },
          stopTimeout: 20,
        }),
        container('echo prepared >/own/prepared', { ...mounts, name: 'prepare', essential: false }),
      ],
    });
    assert.equal(code, 3, stderr);
    assert.equal(stdout, 'web | prepared\nweb | as 65534 in /own, a=b c\nweb | 77\nservice | told\n');
    assert.match(
      stderr,
      /prepare: running\nprepare: exited with 0\nservice: running\nweb: running\nweb: exited with 3\nservice: exited with 0\nberth: EssentialContainerExited: Essential container in task exited: web with 3\n$/,
    );
    assert.equal(await leftovers(), '');
  });

  test('a dependency that fails keeps the task from starting', async () => {
    const { code, stdout, stderr } = await runTask({
      containerDefinitions: [
        container('echo never', { dependsOn: [{ containerName: 'prepare', condition: 'SUCCESS' }] }),
        container('exit 4', { name: 'prepare', essential: false }),
      ],
    });
    assert.deepEqual([code, stdout], [1, ''], stderr);
    assert.match(stderr, /TaskFailedToStart: prepare had to succeed and exited with 4\n$/);
    assert.equal(await leftovers(), '');
  });

  test('Ctrl-C stops the containers', async () => {
    const script = 'trap "echo told; exit 9" TERM; echo up; while :; do sleep 0.1; done';
    const file = await write({ containerDefinitions: [container(script)] });
    const task = startDaemon(command(file), docker.environment);
    await until('the container is up', () => {
      assert.ok(!task.hasExited(), task.output());
      return task.output().includes('web | up\n');
    });
    assert.equal(await task.stop('SIGINT'), 130);
    assert.match(task.output(), /web \| told\n/);
    assert.match(task.output(), /UserInitiated/);
    assert.equal(await leftovers(), '');
  });
});

/** dockerd leaves the machine's network namespace mounted, when a container was in it. */
async function unmount(directory: string): Promise<void> {
  const mounts = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '');
  for (const path of mounts.filter((it) => it.startsWith(`${directory}/`))) {
    await ok(['umount', path], { environment: { PATH: process.env['PATH'] ?? '' } });
  }
}

function linesOf(task: Daemon): object[] {
  return task
    .output()
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as object);
}
