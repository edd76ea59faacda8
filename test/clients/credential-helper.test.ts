/** `docker-credential-berth`: Docker's helper protocol by itself, then docker and podman that push and pull without a login. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
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
  ROOT,
  run,
  startBerth,
  stopBerth,
  type BerthServer,
  type Environment,
  type Finished,
  type Place,
} from './harness.ts';
import { startDocker } from './docker.ts';
import { podClaims, startIssuer, type Issuer } from './issuer.ts';
import { makeImage, tarOf, writeLayout } from './image.ts';
import { smallestProgram } from './program.ts';

const NOT_FOUND = 'credentials not found in native keychain\n';

let place: Place;
let issuer: Issuer;
let server: BerthServer;
let admin: Credentials;
let environment: Environment;

const cache = (): string => join(place.environment['HOME'] ?? '', '.cache', 'berth', 'docker-credential');

function helper(verb: string, input = '', variables: Environment = environment): Promise<Finished> {
  return run(['docker-credential-berth', verb], { environment: variables, input, timeoutMs: 60_000 });
}

async function secretOf(finished: Finished): Promise<string> {
  assert.equal(finished.code, 0, finished.stdout + finished.stderr);
  const { ServerURL, Username, Secret } = JSON.parse(finished.stdout) as Record<string, string>;
  assert.equal(Username, 'AWS');
  assert.ok(ServerURL !== undefined && Secret !== undefined);
  return Secret;
}

before(async () => {
  place = await makePlace('helper');
  issuer = await startIssuer();
  server = await startBerth({
    data: join(place.directory, 'data'),
    flags: ['--issuer-hosts', issuer.host],
  });
  admin = await readAdmin(server.data);
  await createRepository(server, admin, 'images');
  await symlink(
    join(ROOT, 'bin', 'docker-credential-berth.js'),
    join(place.directory, 'bin', 'docker-credential-berth'),
  );
  environment = { ...place.environment, ...awsVariables(server, admin) };
  const config = JSON.stringify({ credHelpers: { [server.registry]: 'berth' } });
  const home = place.environment['HOME'] ?? '';
  await mkdir(join(home, '.docker'), { recursive: true });
  await writeFile(join(home, '.docker', 'config.json'), config);
  await writeFile(join(home, 'auth.json'), config);
});

after(async () => {
  await stopBerth(server);
  await issuer.close();
  await place.remove();
});

test('get answers for the server and keeps the password, readable by the owner only', async () => {
  const first = await secretOf(await helper('get', server.registry));
  const [file = '', ...others] = await readdir(cache());
  assert.deepEqual(others, []);
  assert.equal((await stat(cache())).mode & 0o777, 0o700);
  assert.equal((await stat(join(cache(), file))).mode & 0o777, 0o600);
  assert.equal(await secretOf(await helper('get', `https://${server.registry}/v2/`)), first);
  assert.deepEqual(JSON.parse((await helper('list')).stdout), { [server.registry]: 'AWS' });
  const authorization = `Basic ${Buffer.from(`AWS:${first}`).toString('base64')}`;
  assert.equal((await fetch(`${server.endpoint}/v2/`, { headers: { authorization } })).status, 200);
});

test('another principal never gets the password of the first', async () => {
  const mine = await secretOf(await helper('get', server.registry));
  await callQuery(server, admin, 'iam', { Action: 'CreateUser', UserName: 'nobody' });
  const { text } = await callQuery(server, admin, 'iam', { Action: 'CreateAccessKey', UserName: 'nobody' });
  const element = (name: string): string => new RegExp(`<${name}>([^<]+)<`).exec(text)?.[1] ?? '';
  const key = { accessKeyId: element('AccessKeyId'), secretAccessKey: element('SecretAccessKey') };
  const refused = await helper('get', server.registry, { ...environment, ...awsVariables(server, key) });
  assert.equal(refused.code, 1);
  assert.match(
    refused.stdout,
    /^AccessDeniedException: User: .*user\/nobody is not authorized to perform: ecr:GetAuthorizationToken/,
  );
  assert.ok(!refused.stdout.includes(mine) && !refused.stdout.includes(key.secretAccessKey));
});

test('a password that is about to end, or a damaged one, is asked for again', async () => {
  const [file = ''] = await readdir(cache());
  const path = join(cache(), file);
  const kept = JSON.parse(await readFile(path, 'utf8')) as { password: string };
  for (const text of ['{', JSON.stringify({ ...kept, password: 'old', expiresAt: Date.now() + 60_000 })]) {
    await writeFile(path, text);
    assert.notEqual(await secretOf(await helper('get', server.registry)), 'old');
    assert.notEqual(await readFile(path, 'utf8'), text);
  }
});

test('other registries are none of its business', async () => {
  const hosts = [
    'https://index.docker.io/v1/',
    'ghcr.io',
    '000000000000.dkr.ecr.us-east-1.amazonaws.com',
    `${server.registry}.evil.test`,
    'not a host',
  ];
  for (const host of hosts) {
    const { code, stdout } = await helper('get', host);
    assert.deepEqual([code, stdout], [1, NOT_FOUND], host);
  }
  const { AWS_ENDPOINT_URL: _, ...unset } = environment;
  const nowhere = { ...unset, BERTH_DATA: join(place.directory, 'nothing') };
  assert.deepEqual((await helper('get', server.registry, nowhere)).stdout, NOT_FOUND);
});

test('store refuses and repeats no secret, erase forgets', async () => {
  await secretOf(await helper('get', server.registry));
  const login = JSON.stringify({ ServerURL: server.registry, Username: 'AWS', Secret: 'very-secret' });
  const stored = await helper('store', login);
  assert.equal(stored.code, 1);
  assert.match(stored.stdout, /^not stored: /);
  assert.ok(!`${stored.stdout}${stored.stderr}`.includes('very-secret'));
  assert.equal((await helper('erase', server.registry)).code, 0);
  assert.deepEqual(await readdir(cache()), []);
  assert.equal((await helper('nonsense')).code, 1);
});

test('a pod with a web identity gets a password, and nothing is kept', async () => {
  const iam = async (Action: string, input: Environment): Promise<void> => {
    const { status, text } = await callQuery(server, admin, 'iam', { Action, ...input });
    assert.equal(status, 200, text);
  };
  await iam('CreateOpenIDConnectProvider', { Url: issuer.url, 'ClientIDList.member.1': 'sts.amazonaws.com' });
  const trusted = {
    Effect: 'Allow',
    Principal: { Federated: `arn:aws:iam::${ACCOUNT}:oidc-provider/${issuer.host}` },
    Action: 'sts:AssumeRoleWithWebIdentity',
  };
  await iam('CreateRole', {
    RoleName: 'pod',
    AssumeRolePolicyDocument: JSON.stringify({ Version: '2012-10-17', Statement: [trusted] }),
  });
  const PolicyArn = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly';
  await iam('AttachRolePolicy', { RoleName: 'pod', PolicyArn });
  const file = join(place.directory, 'token');
  await writeFile(file, issuer.token(podClaims('default', 'builder', 'sts.amazonaws.com')));
  const { AWS_ACCESS_KEY_ID: _, AWS_SECRET_ACCESS_KEY: _secret, ...keyless } = environment;
  const pod = {
    ...keyless,
    AWS_ROLE_ARN: `arn:aws:iam::${ACCOUNT}:role/pod`,
    AWS_WEB_IDENTITY_TOKEN_FILE: file,
  };
  await secretOf(await helper('get', server.registry, pod));
  assert.deepEqual(await readdir(cache()), []);
});

test('docker pushes and pulls without a login', { skip: missingDaemon('dockerd', 'docker') }, async () => {
  const docker = await startDocker(place);
  try {
    const variables: Environment = { ...docker.environment, ...awsVariables(server, admin) };
    const options = { environment: variables };
    const archive = join(place.directory, 'program.tar');
    await writeFile(archive, tarOf('hello', smallestProgram('hello\n')));
    const image = `${server.registry}/images:docker`;
    await ok(['docker', 'import', archive, image], options);
    await ok(['docker', 'push', image], options);
    await ok(['docker', 'rmi', image], options);
    await ok(['docker', 'pull', image], options);
    const { AWS_ACCESS_KEY_ID: _, ...rest } = variables;
    const keyless = { ...rest, BERTH_DATA: join(place.directory, 'none') };
    await ok(['docker', 'rmi', image], options);
    assert.match(
      await fails(['docker', 'pull', image], { environment: keyless }),
      /no basic auth credentials|no credentials|unauthorized/i,
    );
  } finally {
    await docker.stop();
  }
});

test('podman and skopeo do so too', { skip: missing('podman', 'skopeo') }, async () => {
  const image = makeImage('helper', [500, 40_000]);
  await writeLayout(join(place.directory, 'one'), 'v1', image);
  const remote = `docker://${server.registry}/images:skopeo`;
  const skopeo = ['skopeo', '--insecure-policy', 'copy'];
  await ok([...skopeo, '--dest-tls-verify=false', `oci:${place.directory}/one:v1`, remote], { environment });
  const store = ['root', 'runroot', 'tmpdir'].map(
    (name) => `--${name}=${join(place.directory, `podman-${name}`)}`,
  );
  const podman = ['podman', ...store, '--storage-driver=vfs', '--events-backend=none'];
  const name = `${server.registry}/images:skopeo`;
  await ok([...podman, 'pull', '--tls-verify=false', name], { environment });
  await ok([...podman, 'push', '--tls-verify=false', name], { environment });
  await rm(cache(), { recursive: true, force: true });
});
