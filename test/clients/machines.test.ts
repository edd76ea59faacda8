/** Machines that pull with roles: an EC2 instance in a network namespace with nothing but its metadata service. */
import assert from 'node:assert/strict';
import { readlinkSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  ACCOUNT,
  awsVariables,
  assertClean,
  fails,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  REGION,
  ROOT,
  startDaemon,
  until,
  type Daemon,
  type Environment,
  type Place,
} from './harness.ts';
import { makeImage, writeLayout } from './image.ts';

const skip = missing('aws', 'skopeo', 'curl', 'ip', 'unshare') || missingDaemon('nsenter');

const MAIN = join(ROOT, 'src', 'main.ts');
const INSTANCE = 'i-0123456789abcdef0';
const ENDPOINT = 'http://localhost:7327';
const CREDENTIALS = 'http://169.254.169.254/latest/meta-data/iam/security-credentials/machine';

const policy = (...statements: object[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: statements });

interface RoleSet {
  readonly Code: string;
  readonly AccessKeyId: string;
  readonly SecretAccessKey: string;
  readonly Token: string;
  readonly Expiration: string;
}

describe('an EC2 instance', { skip }, () => {
  let place: Place;
  let holder: Daemon;
  let server: Daemon;
  let imds: Daemon;
  let machine: Environment;
  let admin: Environment;
  const image = makeImage('machines', [20_000, 90_000]);
  const at = (path: string): string => join(place.directory, path);

  /** The command in the machine's network, which is nothing but its loopback. */
  const inside = (...command: readonly string[]): readonly string[] => [
    'nsenter',
    `--net=/proc/${holder.pid}/ns/net`,
    '--',
    ...command,
  ];
  const onMachine = (...command: readonly string[]): Promise<string> =>
    ok(inside(...command), { environment: machine });
  const asAdmin = (...command: readonly string[]): Promise<string> =>
    ok(inside('aws', ...command), { environment: admin });
  const whoAmI = async (): Promise<string> =>
    (JSON.parse(await onMachine('aws', 'sts', 'get-caller-identity')) as { Arn: string }).Arn;
  /** What the service says about the role, as version 2. */
  const roleSet = async (): Promise<RoleSet> => {
    const ttl = 'X-aws-ec2-metadata-token-ttl-seconds: 60';
    const token = await onMachine(
      'curl',
      '-fsS',
      '-X',
      'PUT',
      '-H',
      ttl,
      'http://169.254.169.254/latest/api/token',
    );
    return JSON.parse(
      await onMachine('curl', '-fsS', '-H', `X-aws-ec2-metadata-token: ${token}`, CREDENTIALS),
    ) as RoleSet;
  };

  /** Its clock is ahead by as many milliseconds as the file says. */
  const startImds = async (...flags: readonly string[]): Promise<Daemon> => {
    await writeFile(at('ahead'), '0');
    const shift =
      `import { readFileSync } from 'node:fs'; const now = Date.now;` +
      `Date.now = () => now() + Number(readFileSync(${JSON.stringify(at('ahead'))}, 'utf8'));`;
    const daemon = startDaemon(
      inside(
        process.execPath,
        '--import',
        `data:text/javascript,${encodeURIComponent(shift)}`,
        MAIN,
        'imds',
        '--data',
        at('data'),
        '--role',
        'machine',
        '--instance-id',
        INSTANCE,
        '--listen',
        '169.254.169.254:80',
        '--duration',
        '900',
        ...flags,
      ),
      place.environment,
    );
    await until('the metadata service', () => {
      assert.ok(!daemon.hasExited(), daemon.output());
      return daemon.output().includes('Clients find it by themselves');
    });
    return daemon;
  };

  before(async () => {
    place = await makePlace('machines');
    holder = startDaemon(['unshare', '--net', 'sleep', 'infinity'], place.environment);
    const own = readlinkSync('/proc/self/ns/net');
    await until('the namespace', () => readlinkSync(`/proc/${holder.pid}/ns/net`) !== own);
    const { AWS_EC2_METADATA_DISABLED: _, ...environment } = place.environment;
    machine = {
      ...environment,
      AWS_ENDPOINT_URL: ENDPOINT,
      AWS_REGION: REGION,
      AWS_DEFAULT_REGION: REGION,
    };
    await onMachine('ip', 'link', 'set', 'lo', 'up');
    await onMachine('ip', 'address', 'add', '169.254.169.254/32', 'dev', 'lo');
    server = startDaemon(
      inside(process.execPath, MAIN, 'serve', '--port', '7327', '--data', at('data'), '--json'),
      place.environment,
    );
    await until('the server', () => server.output().includes('"endpoint"') || server.hasExited());
    admin = { ...machine, ...awsVariables({ endpoint: ENDPOINT }, await readAdmin(at('data'))) };

    await asAdmin('ecr', 'create-repository', '--repository-name', 'images');
    const push = { environment: admin, input: await asAdmin('ecr', 'get-login-password') };
    const login = [
      'skopeo',
      'login',
      '--tls-verify=false',
      '--username',
      'AWS',
      '--password-stdin',
      'localhost:7327',
    ];
    await ok(inside(...login), push);
    await writeLayout(at('layout'), 'v1', image);
    await ok(
      inside(
        'skopeo',
        '--insecure-policy',
        'copy',
        '--dest-tls-verify=false',
        `oci:${at('layout')}:v1`,
        'docker://localhost:7327/images:v1',
      ),
      push,
    );
    await ok(inside('skopeo', 'logout', 'localhost:7327'), push);

    const trust = {
      Effect: 'Allow',
      Principal: { Service: 'ec2.amazonaws.com' },
      Action: 'sts:AssumeRole',
      Condition: {
        ArnEquals: { 'aws:SourceArn': `arn:aws:ec2:${REGION}:${ACCOUNT}:instance/${INSTANCE}` },
      },
    };
    await asAdmin(
      'iam',
      'create-role',
      '--role-name',
      'machine',
      '--assume-role-policy-document',
      policy(trust),
    );
    const readOnly = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
    await asAdmin('iam', 'attach-role-policy', '--role-name', 'machine', '--policy-arn', readOnly);
    imds = await startImds();
  });

  after(async () => {
    if (!imds.hasExited()) assert.equal(await imds.stop(), 0);
    await server.stop();
    assertClean(server);
    await holder.stop('SIGKILL');
    await place.remove();
  });

  test('has no key, and is the role', async () => {
    assert.deepEqual(
      Object.keys(machine).filter(
        (name) => /KEY|TOKEN|PROFILE|CREDENTIALS/.test(name) && name.startsWith('AWS'),
      ),
      [],
    );
    assert.equal(await whoAmI(), `arn:aws:sts::${ACCOUNT}:assumed-role/machine/${INSTANCE}`);
  });

  test('logs in and pulls; may not push', async () => {
    const input = await onMachine('aws', 'ecr', 'get-login-password');
    const login = [
      'skopeo',
      'login',
      '--tls-verify=false',
      '--username',
      'AWS',
      '--password-stdin',
      'localhost:7327',
    ];
    await ok(inside(...login), { environment: machine, input });
    const copy = ['skopeo', '--insecure-policy', 'copy'];
    await onMachine(
      ...copy,
      '--src-tls-verify=false',
      'docker://localhost:7327/images:v1',
      `oci:${at('back')}:v1`,
    );
    const denied = await fails(
      inside(
        ...copy,
        '--dest-tls-verify=false',
        `oci:${at('layout')}:v1`,
        'docker://localhost:7327/images:v2',
      ),
      { environment: machine },
    );
    assert.match(denied, /ecr:InitiateLayerUpload|ecr:PutImage|denied/);
  });

  test('goes on when its credentials are renewed, and the old ones stay good to their end', async () => {
    const old = await roleSet();
    assert.equal((await roleSet()).AccessKeyId, old.AccessKeyId);
    await writeFile(at('ahead'), String(480_000));
    const renewed = await roleSet();
    assert.equal(renewed.Code, 'Success');
    assert.notEqual(renewed.AccessKeyId, old.AccessKeyId);
    assert.equal(await whoAmI(), `arn:aws:sts::${ACCOUNT}:assumed-role/machine/${INSTANCE}`);
    const kept = {
      ...machine,
      AWS_ACCESS_KEY_ID: old.AccessKeyId,
      AWS_SECRET_ACCESS_KEY: old.SecretAccessKey,
      AWS_SESSION_TOKEN: old.Token,
    };
    await ok(inside('aws', 'ecr', 'get-login-password'), { environment: kept });
    assert.equal((await onMachine('curl', '-fsS', CREDENTIALS)).includes(renewed.AccessKeyId), true);
  });

  test('version 1 can be switched off', async () => {
    assert.equal(await imds.stop(), 0);
    imds = await startImds('--no-v1');
    const status = ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code}'];
    assert.equal(await onMachine(...status, CREDENTIALS), '401');
    assert.equal(await whoAmI(), `arn:aws:sts::${ACCOUNT}:assumed-role/machine/${INSTANCE}`);
  });

  test('a role that is deleted ends with the next request', async () => {
    const readOnly = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
    await onMachine('aws', 'ecr', 'get-login-password');
    await asAdmin('iam', 'detach-role-policy', '--role-name', 'machine', '--policy-arn', readOnly);
    assert.match(
      await fails(inside('aws', 'ecr', 'get-login-password'), { environment: machine }),
      /AccessDeniedException.*ecr:GetAuthorizationToken/,
    );
    await asAdmin('iam', 'delete-role', '--role-name', 'machine');
    assert.match(
      await fails(inside('aws', 'sts', 'get-caller-identity'), { environment: machine }),
      /InvalidClientTokenId/,
    );
    await writeFile(at('ahead'), String(480_000));
    assert.equal((await roleSet()).Code, 'AssumeRoleUnauthorizedAccess');
    assert.match(
      await fails(inside('aws', 'sts', 'get-caller-identity'), { environment: machine }),
      /Unable to locate credentials/,
    );
    assert.match(imds.output(), /ec2\.amazonaws\.com is not authorized to perform: sts:AssumeRole/);
  });

  test('the service is not offered to other machines by mistake', async () => {
    const start = (...flags: string[]) =>
      inside(process.execPath, MAIN, 'imds', '--data', at('data'), '--role', 'machine', ...flags);
    const options = { environment: place.environment };
    assert.match(await fails(start('--listen', '0.0.0.0:1338'), options), /--allow-remote/);
    assert.match(
      await fails(start('--listen', 'localhost:1338'), options),
      /is not an IP address with a port/,
    );
    assert.match(await fails(start('--listen', '169.254.169.254:80'), options), /EADDRINUSE/);
    assert.match(await fails(start('--hop-limit', '0'), options), /is not 1 to 64/);
    assert.match(await fails(start('--duration', '60'), options), /900 to 43200/);
  });
});
