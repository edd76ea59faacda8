/**
 * What a cluster does: the kubelet's credential provider as node and as pod, IRSA and Pod Identity by the unmodified AWS CLI,
 * pulls by containerd with the generated configuration.
 */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse, parseAllDocuments } from 'yaml';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  ACCOUNT,
  awsVariables,
  callQuery,
  createRepository,
  fails,
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
import { makeImage, writeLayout } from './image.ts';
import { podClaims, startIssuer, type Issuer } from './issuer.ts';

const MAIN = join(ROOT, 'src', 'main.ts');
const CLUSTER = 'prod';
const image = makeImage('kubernetes', [700, 60_000]);

let place: Place;
let issuer: Issuer;
let server: BerthServer;
let admin: Credentials;

const trust = (statement: object): string =>
  JSON.stringify({ Version: '2012-10-17', Statement: [{ Effect: 'Allow', ...statement }] });

async function iam(Action: string, input: Readonly<Record<string, string>>): Promise<void> {
  const { status, text } = await callQuery(server, admin, 'iam', { Action, ...input });
  assert.equal(status, 200, text);
}

async function createRole(RoleName: string, trusted: object): Promise<void> {
  await iam('CreateRole', { RoleName, AssumeRolePolicyDocument: trust(trusted) });
  const PolicyArn = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly';
  await iam('AttachRolePolicy', { RoleName, PolicyArn });
}

const roleArn = (name: string): string => `arn:aws:iam::${ACCOUNT}:role/${name}`;

/** Runs a command of Berth as a machine does that has nothing but these variables. */
function berth(args: readonly string[], variables: Environment, input = ''): Promise<Finished> {
  return run([process.execPath, MAIN, ...args], {
    environment: { ...place.environment, ...variables },
    input,
    timeoutMs: 60_000,
  });
}

before(async () => {
  place = await makePlace('kubernetes');
  issuer = await startIssuer();
  server = await startBerth({
    data: join(place.directory, 'data'),
    flags: ['--issuer-hosts', issuer.host],
  });
  admin = await readAdmin(server.data);
  await createRepository(server, admin, 'images');
  await writeLayout(join(place.directory, 'one'), 'v1', image);
  await iam('CreateOpenIDConnectProvider', {
    Url: issuer.url,
    'ClientIDList.member.1': 'sts.amazonaws.com',
    'ClientIDList.member.2': 'pods.eks.amazonaws.com',
    'Tags.member.1.Key': 'eks-cluster-name',
    'Tags.member.1.Value': CLUSTER,
  });
  await createRole('irsa', {
    Principal: { Federated: `arn:aws:iam::${ACCOUNT}:oidc-provider/${issuer.host}` },
    Action: 'sts:AssumeRoleWithWebIdentity',
    Condition: {
      StringEquals: {
        [`${issuer.host}:sub`]: 'system:serviceaccount:default:builder',
        [`${issuer.host}:aud`]: 'sts.amazonaws.com',
      },
    },
  });
  await createRole('pod', {
    Principal: { Service: 'pods.eks.amazonaws.com' },
    Action: ['sts:AssumeRole', 'sts:TagSession'],
    Condition: {
      StringEquals: {
        'aws:RequestTag/kubernetes-namespace': 'default',
        'aws:RequestTag/kubernetes-service-account': 'builder',
      },
      ArnEquals: { 'aws:SourceArn': `arn:aws:eks:${REGION}:${ACCOUNT}:cluster/${CLUSTER}` },
    },
  });
});

after(async () => {
  await stopBerth(server);
  await issuer.close();
  await place.remove();
});

interface Response {
  readonly apiVersion: string;
  readonly kind: string;
  readonly cacheKeyType: string;
  readonly cacheDuration: string;
  readonly auth: Readonly<Record<string, { readonly username: string; readonly password: string }>>;
}

const V1 = 'credentialprovider.kubelet.k8s.io/v1';

function provide(request: object, variables: Environment, ...args: readonly string[]): Promise<Finished> {
  const body = { apiVersion: V1, kind: 'CredentialProviderRequest', ...request };
  return berth(['credential-provider', ...args], variables, JSON.stringify(body));
}

function read({ code, stdout, stderr }: Finished): Response {
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as Response;
}

async function statusOf(password: string, path: string, method = 'GET'): Promise<number> {
  const authorization = `Basic ${Buffer.from(`AWS:${password}`).toString('base64')}`;
  return (await fetch(`${server.endpoint}${path}`, { method, headers: { authorization } })).status;
}

describe('the credential provider of the kubelet', () => {
  test('answers with the key of the node, for the registry of the server only', async () => {
    const variables = awsVariables(server, admin);
    const answer = read(await provide({ image: `${server.registry}/images:v1` }, variables));
    const { auth, cacheDuration, ...rest } = answer;
    assert.deepEqual(rest, { apiVersion: V1, kind: 'CredentialProviderResponse', cacheKeyType: 'Registry' });
    assert.deepEqual(Object.keys(auth), [server.registry]);
    assert.equal(auth[server.registry]?.username, 'AWS');
    assert.equal(await statusOf(auth[server.registry]?.password ?? '', '/v2/images/tags/list'), 200);
    // half of twelve hours
    const seconds = Number(/^(\d+)s$/.exec(cacheDuration)?.[1]);
    assert.ok(seconds > 21_500 && seconds <= 21_600, cacheDuration);
    for (const other of [
      'nginx',
      'library/nginx:1',
      'ghcr.io/a/b',
      `${ACCOUNT}.dkr.ecr.us-east-1.evil.test/x`,
    ]) {
      assert.deepEqual(read(await provide({ image: other }, variables)).auth, {}, other);
    }
  });

  test('a registry the operator names is answered by its own name', async () => {
    const host = `${ACCOUNT}.dkr.ecr.eu-west-1.example.test:8443`;
    const pattern = '*.dkr.ecr.*.example.test:8443';
    const variables = awsVariables(server, admin);
    const answer = read(await provide({ image: `${host}/images` }, variables, '--registry', pattern));
    assert.deepEqual(Object.keys(answer.auth), [host]);
    const elsewhere = await provide({ image: 'a.b.example.test/x' }, variables, '--registry', pattern);
    assert.deepEqual(read(elsewhere).auth, {});
  });

  test('nothing is asked of a host that nobody named', async () => {
    let asked = 0;
    const trap = createServer((_, response) => {
      asked += 1;
      response.end();
    });
    await new Promise<void>((resolve) => trap.listen(0, '127.0.0.1', resolve));
    try {
      const { port } = trap.address() as AddressInfo;
      const { AWS_ENDPOINT_URL: _, ...key } = awsVariables(server, admin);
      const elsewhere = ['--data', join(place.directory, 'nothing')];
      const token = issuer.token(podClaims('default', 'builder', 'sts.amazonaws.com'));
      const request = { image: `127.0.0.1:${port}/x`, serviceAccountToken: token };
      assert.deepEqual(read(await provide(request, key, ...elsewhere)).auth, {});
      assert.equal(asked, 0);
    } finally {
      trap.close();
    }
  });

  test("a pod pulls as its service account's role", async () => {
    const variables = { AWS_ENDPOINT_URL: server.endpoint, AWS_REGION: REGION };
    const request = (serviceAccount: string) => ({
      image: `${server.registry}/images`,
      serviceAccountToken: issuer.token(podClaims('default', serviceAccount, 'sts.amazonaws.com')),
      serviceAccountAnnotations: { 'eks.amazonaws.com/ecr-role-arn': roleArn('irsa') },
    });
    const { auth } = read(await provide(request('builder'), variables));
    const password = auth[server.registry]?.password ?? '';
    assert.equal(await statusOf(password, '/v2/images/manifests/none'), 404);
    assert.equal(await statusOf(password, '/v2/images/blobs/uploads/', 'POST'), 403);

    const stranger = request('stranger');
    const refused = await provide(stranger, variables);
    assert.deepEqual([refused.code, refused.stdout], [1, '']);
    assert.match(refused.stderr, /AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity/);
    assert.ok(!refused.stderr.includes(stranger.serviceAccountToken.slice(-40)));
    // not even a node that has a key of its own lends it to a pod with a token
    const roleless = await provide(
      { ...stranger, serviceAccountAnnotations: {} },
      awsVariables(server, admin),
    );
    assert.deepEqual([roleless.code, roleless.stdout], [1, '']);
    assert.match(roleless.stderr, /the service account names no role/);
  });

  test('broken requests are refused without repeating them', async () => {
    for (const input of ['', '{', 'secret-token', '[]', '{"kind":"Pod","image":"secret-token"}']) {
      const { code, stdout, stderr } = await berth(
        ['credential-provider'],
        awsVariables(server, admin),
        input,
      );
      assert.deepEqual([code, stdout], [1, ''], input);
      assert.ok(!stderr.includes('secret-token'), stderr);
    }
  });
});

describe('roles for pods by the AWS CLI', { skip: missing('aws', 'skopeo') }, () => {
  const tls = '--src-tls-verify=false';
  const skopeo = (environment: Environment, ...args: readonly string[]): Promise<Finished> =>
    run(['skopeo', '--insecure-policy', ...args], { environment });

  async function pulls(variables: Environment, arn: RegExp): Promise<void> {
    const environment = {
      ...place.environment,
      AWS_ENDPOINT_URL: server.endpoint,
      AWS_REGION: REGION,
      AWS_DEFAULT_REGION: REGION,
      REGISTRY_AUTH_FILE: join(place.directory, `auth-${Object.keys(variables)[0] ?? ''}.json`),
      ...variables,
    };
    const who = await ok(['aws', 'sts', 'get-caller-identity', '--output', 'json'], { environment });
    assert.match((JSON.parse(who) as { Arn: string }).Arn, arn);
    const password = await ok(['aws', 'ecr', 'get-login-password'], { environment });
    const login = [
      'skopeo',
      'login',
      '--tls-verify=false',
      '--username',
      'AWS',
      '--password-stdin',
      server.registry,
    ];
    await ok(login, { environment, input: password });
    const remote = `docker://${server.registry}/images:v1`;
    const pulled = await skopeo(environment, 'copy', tls, remote, `oci:${place.directory}/pulled:v1`);
    assert.equal(pulled.code, 0, pulled.stderr);
    const pushed = await skopeo(
      environment,
      'copy',
      '--dest-tls-verify=false',
      `oci:${place.directory}/one:v1`,
      remote,
    );
    assert.match(pushed.stderr, /403 \(Forbidden\)/);
  }

  before(async () => {
    const push = [
      'copy',
      '--dest-tls-verify=false',
      '--dest-creds',
      `AWS:${await registryPassword(server, admin)}`,
    ];
    const target = `docker://${server.registry}/images:v1`;
    const { code, stderr } = await skopeo(
      place.environment,
      ...push,
      `oci:${place.directory}/one:v1`,
      target,
    );
    assert.equal(code, 0, stderr);
  });

  test('IRSA: a projected token and a role in the environment', async () => {
    const file = join(place.directory, 'irsa-token');
    await writeFile(file, issuer.token(podClaims('default', 'builder', 'sts.amazonaws.com')));
    await pulls(
      { AWS_ROLE_ARN: roleArn('irsa'), AWS_WEB_IDENTITY_TOKEN_FILE: file },
      /:assumed-role\/irsa\/botocore-session-\d+$/,
    );
  });

  test('Pod Identity: the agent of the node', async () => {
    await iam('CreateUser', { UserName: 'node' });
    await iam('PutUserPolicy', {
      UserName: 'node',
      PolicyName: 'pods',
      PolicyDocument: trust({
        Action: 'iam:PassRole',
        Resource: roleArn('pod'),
        Condition: {
          StringEquals: { 'iam:PassedToService': 'pods.eks.amazonaws.com' },
          ArnEquals: { 'iam:AssociatedResourceArn': `arn:aws:eks:${REGION}:${ACCOUNT}:cluster/${CLUSTER}` },
        },
      }),
    });
    const key = await callQuery(server, admin, 'iam', { Action: 'CreateAccessKey', UserName: 'node' });
    const element = (name: string): string => new RegExp(`<${name}>([^<]+)<`).exec(key.text)?.[1] ?? '';
    const node = { accessKeyId: element('AccessKeyId'), secretAccessKey: element('SecretAccessKey') };
    const associations = join(place.directory, 'associations.json');
    const associate = (...names: readonly string[]): Promise<void> =>
      writeFile(
        associations,
        JSON.stringify({
          associations: names.map((serviceAccount) => ({
            namespace: 'default',
            serviceAccount,
            roleArn: roleArn('pod'),
          })),
        }),
      );
    await associate('builder', 'other');
    const listen = ['--listen', '127.0.0.1:0', '--json'];
    const agent = startDaemon(
      [
        process.execPath,
        MAIN,
        'pod-identity-agent',
        '--cluster',
        CLUSTER,
        '--associations',
        associations,
        ...listen,
      ],
      { ...place.environment, ...awsVariables(server, node) },
    );
    try {
      await until('the agent listens', () => agent.output().includes('"uri"') || agent.hasExited());
      const { uri } = JSON.parse(agent.output().split('\n')[0] ?? '') as { uri: string };
      const file = join(place.directory, 'pod-token');
      const token = issuer.token(podClaims('default', 'builder', 'pods.eks.amazonaws.com'));
      await writeFile(file, token);
      await pulls(
        { AWS_CONTAINER_CREDENTIALS_FULL_URI: uri, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: file },
        /:assumed-role\/pod\/eks-prod-builder-7d9f-[0-9a-f]{10}$/,
      );
      const ask = async (authorization: string | undefined): Promise<readonly [number, string]> => {
        const response = await fetch(uri, authorization === undefined ? {} : { headers: { authorization } });
        return [response.status, await response.text()];
      };
      const tokenOf = (
        serviceAccount: string,
        audience = 'pods.eks.amazonaws.com',
        extra: object = {},
      ): string => issuer.token({ ...podClaims('default', serviceAccount, audience), ...extra });
      assert.deepEqual(await ask(undefined), [400, 'Service account token cannot be empty']);
      assert.deepEqual(await ask('x.y'), [400, 'Service account token cannot be parsed']);
      const forged = `${token.slice(0, token.lastIndexOf('.'))}.${Buffer.alloc(256).toString('base64url')}`;
      const cases: readonly (readonly [string, number, RegExp])[] = [
        [forged, 400, /InvalidIdentityToken/],
        [tokenOf('builder', 'sts.amazonaws.com'), 400, /Incorrect token audience/],
        [tokenOf('builder', undefined, { 'kubernetes.io': {} }), 400, /not bound to a pod/],
        [
          tokenOf('builder', undefined, { exp: Math.floor(Date.now() / 1000) - 3600 }),
          400,
          /ExpiredIdentityToken/,
        ],
        // associated, but the role's trust policy wants another service account
        [tokenOf('other'), 400, /pods\.eks\.amazonaws\.com is not authorized to perform: sts:AssumeRole/],
        [tokenOf('nobody'), 404, /No association found for service account default\/nobody in cluster prod/],
      ];
      for (const [each, status, message] of cases) {
        const answer = await ask(each);
        assert.equal(answer[0], status, answer[1]);
        assert.match(answer[1], message);
      }
      // its permission is for tokens of this cluster: it cannot make up a pod
      const made = await callBerth(node, 'AssumeServiceRole', {
        roleArn: roleArn('pod'),
        serviceName: 'pods.eks.amazonaws.com',
        sessionName: 'made-up',
      });
      assert.match(made, /is not authorized to perform: iam:PassRole/);
      const elsewhere = { clusterName: 'dev', token, roleArn: roleArn('pod') };
      assert.match(await callBerth(node, 'AssumeRoleForPodIdentity', elsewhere), /iam:PassRole/);
      assert.match(
        await callBerth(admin, 'AssumeRoleForPodIdentity', elsewhere),
        /is not that of cluster dev/,
      );
      await associate('other');
      assert.equal((await ask(token))[0], 404);
    } finally {
      await agent.stop();
    }
    assert.ok(!agent.output().includes(node.secretAccessKey));
  });
});

async function callBerth(key: Credentials, operation: string, input: object): Promise<string> {
  const { createClient } = await import('../../src/cli/client.ts');
  const client = await createClient({ data: server.data }, { env: awsVariables(server, key) });
  return client.call('berth', operation, input).then(
    () => 'allowed',
    (error: unknown) => (error as Error).message,
  );
}

describe('generated configuration', () => {
  const out = (name: string): string => join(place.directory, 'generated', name);
  const generate = async (cluster: string, ...args: readonly string[]): Promise<void> => {
    const command = ['kubernetes', 'config', '--for', cluster, '--out', out(cluster), ...args];
    const { code, stderr } = await berth([...command, '--data', server.data], {});
    assert.equal(code, 0, stderr);
  };
  const yamlOf = async (path: string): Promise<Record<string, unknown>> =>
    parse(await readFile(path, 'utf8'), { strict: true }) as Record<string, unknown>;

  test('every YAML and JSON file is one, for every runtime', async () => {
    const registry = `${ACCOUNT}.dkr.ecr.eu-west-1.example.test`;
    const ca = join(place.directory, 'ca.pem');
    await writeFile(ca, '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n');
    for (const cluster of ['kind', 'k3s', 'containerd', 'kubelet', 'eks']) {
      await generate(cluster, '--registry', registry, '--ca', ca, '--pods');
    }
    const config = await yamlOf(join(out('kubelet'), 'credential-provider.yaml'));
    assert.deepEqual(config, {
      apiVersion: 'kubelet.config.k8s.io/v1',
      kind: 'CredentialProviderConfig',
      providers: [
        {
          name: 'berth-credential-provider',
          apiVersion: V1,
          matchImages: [registry],
          defaultCacheDuration: '1h',
          args: ['credential-provider', '--registry', registry],
          env: [
            { name: 'AWS_ENDPOINT_URL', value: `https://${registry}` },
            { name: 'AWS_REGION', value: 'eu-west-1' },
            { name: 'AWS_CA_BUNDLE', value: '/etc/berth/ca.crt' },
          ],
          tokenAttributes: {
            serviceAccountTokenAudience: 'sts.amazonaws.com',
            cacheType: 'ServiceAccount',
            requireServiceAccount: true,
            requiredServiceAccountAnnotationKeys: ['eks.amazonaws.com/ecr-role-arn'],
          },
        },
      ],
    });
    const kind = (await yamlOf(join(out('kind'), 'kind.yaml'))) as {
      nodes: { extraMounts: { containerPath: string }[]; kubeadmConfigPatches: string[] }[];
    };
    const [node] = kind.nodes;
    assert.deepEqual(
      node?.extraMounts.map(({ containerPath }) => containerPath),
      ['/etc/containerd/certs.d', '/etc/berth', '/opt/berth'],
    );
    assert.deepEqual(
      node.kubeadmConfigPatches.map((patch) => (parse(patch) as { kind: string }).kind),
      ['InitConfiguration', 'JoinConfiguration'],
    );
    assert.deepEqual(await yamlOf(join(out('k3s'), 'registries.yaml')), {
      mirrors: { [registry]: { endpoint: [`https://${registry}`] } },
      configs: { [registry]: { tls: { ca_file: '/etc/berth/ca.crt' } } },
    });
    for (const name of ['irsa.yaml', 'pod-identity.yaml']) {
      const documents = parseAllDocuments(await readFile(join(out('eks'), name), 'utf8'));
      assert.deepEqual(
        documents.flatMap((document) => document.errors),
        [],
      );
    }
    for (const name of ['irsa-trust.json', 'pod-identity-trust.json', 'pod-identity-associations.json']) {
      JSON.parse(await readFile(join(out('eks'), name), 'utf8'));
    }
  });

  test('a name with more in it than a name is refused', async () => {
    for (const registry of ['a"b', 'a b', '../x', "a'b", 'a\nb', 'host:port', 'a/b', '$(id)']) {
      const { code, stdout } = await berth(
        ['kubernetes', 'config', '--for', 'k3s', '--registry', registry],
        {},
      );
      assert.deepEqual([code, stdout], [1, ''], registry);
    }
  });

  test(
    'containerd pulls with the hosts file and what the provider gives',
    { skip: missingDaemon('containerd', 'ctr') },
    async () => {
      await generate('containerd');
      const hosts = await readFile(
        join(out('containerd'), 'certs.d', `127.0.0.1:${server.port}`, 'hosts.toml'),
        'utf8',
      ).catch(() => readFile(join(out('containerd'), 'certs.d', server.registry, 'hosts.toml'), 'utf8'));
      // WHY another name: that it resolves to the server is the file's doing only
      const name = 'registry.example.test';
      const directory = join(out('named'), name);
      await mkdir(directory, { recursive: true });
      await writeFile(join(directory, 'hosts.toml'), hosts);
      const push = [
        'copy',
        '--dest-tls-verify=false',
        '--dest-creds',
        `AWS:${await registryPassword(server, admin)}`,
      ];
      await ok(
        [
          'skopeo',
          '--insecure-policy',
          ...push,
          `oci:${place.directory}/one:v1`,
          `docker://${server.registry}/images:ctr`,
        ],
        { environment: place.environment },
      );
      const request = { image: `${name}/images:ctr` };
      const { auth } = read(await provide(request, awsVariables(server, admin), '--registry', name));
      const { containerd, address } = await startContainerd();
      try {
        const ctr = ['ctr', '--address', address, '--namespace', 'k8s.io'];
        const pull = ['images', 'pull', '--snapshotter', 'native', '--hosts-dir', out('named')];
        const environment = place.environment;
        const refused = await fails([...ctr, ...pull, `${name}/images:ctr`], { environment });
        assert.match(refused, /401|no basic auth|authorization/i);
        await ok([...ctr, ...pull, '--user', `AWS:${auth[name]?.password ?? ''}`, `${name}/images:ctr`], {
          environment,
        });
        assert.match(await ok([...ctr, 'images', 'ls'], { environment }), new RegExp(image.digest));
        await ok([...ctr, 'images', 'rm', '--sync', `${name}/images:ctr`], { environment });
      } finally {
        await containerd.stop();
      }
    },
  );

  test('the program that the kubelet runs', async () => {
    await generate('kubelet');
    const file = join(out('kubelet'), 'bin', 'berth-credential-provider');
    const text = await readFile(file, 'utf8');
    await writeFile(file, text.replaceAll('/opt/berth', ROOT.replace(/\/$/, '')));
    await chmod(file, 0o755);
    const { providers } = (await yamlOf(join(out('kubelet'), 'credential-provider.yaml'))) as {
      providers: [{ args: string[]; env: { name: string; value: string }[] }];
    };
    const [{ args, env }] = providers;
    const { AWS_ENDPOINT_URL: _, ...key } = awsVariables(server, admin);
    const registry = args.at(-1) ?? '';
    const variables = Object.fromEntries(env.map(({ name, value }) => [name, value]));
    const answer = read(
      await run([file, ...args], {
        environment: { ...place.environment, ...key, ...variables },
        input: JSON.stringify({
          apiVersion: V1,
          kind: 'CredentialProviderRequest',
          image: `${registry}/images`,
        }),
      }),
    );
    assert.equal(await statusOf(answer.auth[registry]?.password ?? '', '/v2/images/tags/list'), 200);
  });
});

async function startContainerd(): Promise<{ readonly containerd: Daemon; readonly address: string }> {
  const address = join(place.directory, 'containerd.sock');
  const config = join(place.directory, 'containerd.toml');
  await writeFile(
    config,
    `version = 2\nroot = "${place.directory}/root"\nstate = "${place.directory}/state"\n` +
      `disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", ` +
      `"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]\n` +
      `[grpc]\naddress = "${address}"\n`,
  );
  const containerd = startDaemon(['containerd', '--config', config], place.environment);
  await until('containerd answers', async () => {
    if (containerd.hasExited()) throw new Error(containerd.output());
    const { code } = await run(['ctr', '--address', address, 'version'], { environment: place.environment });
    return code === 0;
  });
  return { containerd, address };
}
