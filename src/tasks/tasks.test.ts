import assert from 'node:assert/strict';
import { test } from 'node:test';
import { containerSettings } from './container-settings.ts';
import { readTaskDefinition, TaskDefinitionError } from './definition.ts';
import { createLineReader } from './engine.ts';
import { isSameRegistry, registryHostOf, splitReference } from './image-name.ts';

const WEB = { name: 'web', image: 'localhost:7327/web:v1' };
const read = (values: object) =>
  readTaskDefinition(JSON.stringify({ family: 'web', containerDefinitions: [WEB], ...values }));
const withWeb = (values: object) => read({ containerDefinitions: [{ ...WEB, ...values }] });

test('what cannot be honoured is refused by name', () => {
  const one = { name: 'a', image: 'x', essential: false };
  const cases: readonly (readonly [object, string])[] = [
    [{ family: undefined }, 'family is missing'],
    [{ family: 'a b' }, 'family is no name: letters, digits, _ and -'],
    [{ containerDefinitions: [] }, 'containerDefinitions has no container'],
    [{ containerDefinitions: [one] }, 'no container is essential'],
    [{ containerDefinitions: [WEB, WEB] }, 'two containers have one name'],
    [{ networkMode: 'nat' }, 'networkMode is nat, which is not supported here: bridge, host, none, awsvpc'],
    [{ pidMode: 'host' }, 'pidMode is not supported here'],
    [{ colour: 'red' }, 'colour is not supported here'],
    [
      { volumes: [{ name: 'a', efsVolumeConfiguration: { fileSystemId: 'fs-1' } }] },
      'volumes[0].efsVolumeConfiguration is not supported here',
    ],
    [
      { volumes: [{ name: 'a', host: { sourcePath: 'etc' } }] },
      'volumes[0].host.sourcePath does not begin with /',
    ],
    [
      { volumes: [{ name: 'a', host: { sourcePath: '/a:b' } }] },
      'volumes[0].host.sourcePath contains a colon',
    ],
  ];
  const containerCases: readonly (readonly [object, string])[] = [
    [{ name: '' }, 'name is missing'],
    [{ image: '--privileged' }, 'image is no name of an image'],
    [{ secrets: [{ name: 'A', valueFrom: 'arn:aws:ssm:x' }] }, 'secrets is not supported here'],
    [{ essential: 'yes' }, 'essential is not true or false'],
    [{ command: 'ls' }, 'command is not a list'],
    [{ command: [1] }, 'command[0] is not a string'],
    [{ memory: 1 }, 'memory is not a whole number from 4 on'],
    [{ environment: [{ name: 'A=B', value: '' }] }, 'environment[0].name is no name of a variable'],
    [
      { portMappings: [{ containerPortRange: '1-9', containerPort: 1 }] },
      'portMappings[0].containerPortRange is not supported here',
    ],
    [
      { mountPoints: [{ sourceVolume: 'a', containerPath: '/a:ro' }] },
      'mountPoints[0].containerPath does not begin with /, or contains a colon',
    ],
    [{ healthCheck: { command: ['ls'] } }, 'healthCheck.command does not begin with CMD or CMD-SHELL'],
    [
      { logConfiguration: { logDriver: 'splunk' } },
      'logConfiguration.logDriver is splunk, which is not supported here: awslogs, json-file, local, none',
    ],
    [
      { linuxParameters: { devices: [{ hostPath: '/dev/sda' }] } },
      'linuxParameters.devices is not supported here',
    ],
  ];
  const together: readonly (readonly [object, string])[] = [
    [{ mountPoints: [{ sourceVolume: 'a', containerPath: '/a' }] }, 'web mounts a, which is no volume'],
    [
      { dependsOn: [{ containerName: 'db', condition: 'START' }] },
      'dependsOn of web names db, which is no container',
    ],
    [{ dependsOn: [{ containerName: 'web', condition: 'START' }] }, 'dependsOn goes in a circle: web → web'],
  ];
  const refusalOf = (run: () => unknown): string => {
    try {
      run();
    } catch (error) {
      assert.ok(error instanceof TaskDefinitionError, String(error));
      return error.message;
    }
    return 'accepted';
  };
  for (const [values, expected] of cases)
    assert.equal(
      refusalOf(() => read(values)),
      expected,
    );
  for (const [values, expected] of containerCases) {
    assert.equal(
      refusalOf(() => withWeb(values)),
      `containerDefinitions[0].${expected}`,
    );
  }
  for (const [values, expected] of together)
    assert.equal(
      refusalOf(() => withWeb(values)),
      expected,
    );
  assert.match(
    refusalOf(() => readTaskDefinition('{')),
    /^no JSON: /,
  );
  assert.match(
    refusalOf(() => readTaskDefinition('null')),
    / is not an object$/,
  );
});

test('what describe-task-definition prints is read, with what AWS added', () => {
  const taskDefinition = {
    taskDefinitionArn: 'arn:aws:ecs:us-east-1:000000000000:task-definition/web:7',
    family: 'web',
    revision: 7,
    status: 'ACTIVE',
    requiresAttributes: [{ name: 'x' }],
    compatibilities: ['EC2'],
    placementConstraints: [],
    cpu: '1 vCPU',
    memory: '2 GB',
    containerDefinitions: [{ ...WEB, systemControls: [], secrets: [], volumesFrom: [], cpu: 0 }],
  };
  const { revision, cpu, memoryMiB, networkMode, containers } = readTaskDefinition(
    JSON.stringify({ taskDefinition }),
  );
  assert.deepEqual([revision, cpu, memoryMiB, networkMode], [7, 1024, 2048, 'bridge']);
  assert.deepEqual(
    containers.map(({ essential, stopTimeoutSeconds }) => [essential, stopTimeoutSeconds]),
    [[true, 30]],
  );
});

test('a container in the words of the engine', () => {
  const task = read({
    cpu: '512',
    memory: '256',
    containerDefinitions: [
      {
        ...WEB,
        cpu: 1,
        environment: [
          { name: 'AWS_REGION', value: 'own' },
          { name: 'URI', value: 'forged' },
        ],
        portMappings: [
          { containerPort: 80, hostPort: 8080 },
          { containerPort: 53, protocol: 'udp' },
        ],
      },
    ],
  });
  const [container] = task.containers;
  assert.ok(container);
  const place = {
    sources: new Map<string, string>(),
    environment: { AWS_REGION: 'us-east-1' },
    endpoints: { URI: 'true' },
    labels: {},
  };
  const made = containerSettings(task, container, { ...place, network: 'bridge' }) as {
    Env: string[];
    HostConfig: Record<string, unknown>;
  };
  assert.deepEqual(made.Env, ['AWS_REGION=own', 'URI=true']);
  const { PortBindings, Memory, NanoCpus, CpuShares, NetworkMode } = made.HostConfig;
  assert.deepEqual(PortBindings, { '80/tcp': [{ HostPort: '8080' }], '53/udp': [{ HostPort: '' }] });
  assert.deepEqual([Memory, NanoCpus, CpuShares, NetworkMode], [268_435_456, 500_000_000, 2, 'bridge']);
  const onHost = containerSettings(task, container, { ...place, network: 'host' }) as typeof made;
  assert.equal(onHost.HostConfig['PortBindings'], undefined);
});

test('names of images', () => {
  const cases: readonly (readonly [string, string, string, string])[] = [
    ['busybox', 'docker.io', 'busybox', 'latest'],
    ['library/busybox:1', 'docker.io', 'library/busybox', '1'],
    ['localhost/web', 'localhost', 'localhost/web', 'latest'],
    ['localhost:7327/web', 'localhost:7327', 'localhost:7327/web', 'latest'],
    ['R.example/a/b:v1', 'r.example', 'R.example/a/b', 'v1'],
    ['r.example:1/a:v1@sha256:00', 'r.example:1', 'r.example:1/a', 'sha256:00'],
  ];
  for (const [image, host, name, reference] of cases) {
    assert.equal(registryHostOf(image), host);
    assert.deepEqual(splitReference(image), { name, reference });
  }
});

test('the token goes to its own registry only', () => {
  const own = 'https://000000000000.dkr.ecr.us-east-1.registry.example';
  const cases: readonly (readonly [string, string, boolean])[] = [
    ['localhost:7327', 'http://localhost:7327', true],
    ['127.0.0.1:7327', 'http://localhost:7327', true],
    ['localhost:7328', 'http://localhost:7327', false],
    ['docker.io', 'http://localhost:7327', false],
    ['000000000000.dkr.ecr.us-east-1.registry.example', own, true],
    ['000000000000.dkr.ecr.us-east-1.registry.example:443', own, true],
    ['111111111111.dkr.ecr.eu-west-1.registry.example', own, true],
    ['111111111111.dkr.ecr.eu-west-1.evil.example', own, false],
    ['000000000000.dkr.ecr.us-east-1.registry.example.evil.example', own, false],
    ['000000000000.dkr.ecr.us-east-1.registry.example:444', own, false],
    ['000000000000.dkr.ecr.us-east-1.amazonaws.com', 'http://localhost:7327', false],
  ];
  for (const [host, endpoint, expected] of cases)
    assert.equal(isSameRegistry(host, endpoint), expected, host);
});

test('bytes of a log become lines, however they are cut', () => {
  const text = 'one\n\nzwölf\nlast';
  const bytes = Buffer.from(text);
  for (let at = 0; at <= bytes.length; at++) {
    const lines: string[] = [];
    const reader = createLineReader((line) => lines.push(line));
    reader.push(bytes.subarray(0, at));
    reader.push(bytes.subarray(at));
    reader.end();
    assert.deepEqual(lines, ['one', '', 'zwölf', 'last']);
  }
  const pieces: number[] = [];
  const reader = createLineReader((line) => pieces.push(line.length));
  reader.push(Buffer.alloc(140_000, 'a'));
  reader.end();
  assert.deepEqual(pieces, [65_536, 65_536, 8928]);
});
