/** Two accounts on one server: what account B may do in A's registry is what A's repository policy says, at every request. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdir, readFile } from 'node:fs/promises';
import { createServer, request as send, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  ACCOUNT,
  awsVariables,
  fails,
  makePlace,
  missing,
  ok,
  readAdmin,
  REGION,
  ROOT,
  startBerth,
  stopBerth,
  until,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { makeImage, writeLayout } from './image.ts';

const OTHER = '444455556666';
const PULL = ['ecr:BatchCheckLayerAvailability', 'ecr:GetDownloadUrlForLayer', 'ecr:BatchGetImage'];

/** A's registry by its own name, as ECR names it. */
const REGISTRY = `${ACCOUNT}.dkr.ecr.${REGION}.example.test`;

/** A forward proxy that takes every name to the server: skopeo reaches a registry by a name that no resolver knows. */
async function startProxy(port: number): Promise<Server> {
  const proxy = createServer((incoming, answer) => {
    const { pathname, search } = new URL(incoming.url ?? '/');
    const { method = 'GET', headers } = incoming;
    const outgoing = send(
      { host: '127.0.0.1', port, path: pathname + search, method, headers },
      (response) => {
        answer.writeHead(response.statusCode ?? 502, response.rawHeaders);
        response.pipe(answer);
      },
    );
    outgoing.on('error', () => answer.destroy());
    incoming.pipe(outgoing);
  });
  // No tunnels: clients fall back to plain HTTP.
  proxy.on('connect', (_, socket) =>
    socket.end('HTTP/1.1 405 Method Not Allowed\r\nConnection: close\r\n\r\n'),
  );
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
  return proxy;
}

/** AWS's words when the resource's side says nothing. */
const denial = (action: string, repository: string): string =>
  `User: arn:aws:iam::${OTHER}:user/admin is not authorized to perform: ecr:${action} on resource: ` +
  `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${repository} because no resource-based policy allows the ecr:${action} action`;

describe('two accounts', { skip: missing('aws', 'skopeo') }, () => {
  const image = makeImage('two accounts', [10, 70_000]);
  let place: Place;
  let server: BerthServer;
  let proxy: Server;
  let a: Person;
  let b: Person;

  interface Person {
    readonly aws: (...args: readonly string[]) => Promise<string>;
    readonly awsFails: (...args: readonly string[]) => Promise<string>;
    readonly environment: Environment;
    readonly authFile: string;
  }

  /** An administrator with aws and, for skopeo, a login in A's registry. */
  async function enter(name: string, key: Credentials): Promise<Person> {
    const awsEnvironment = { ...place.environment, ...awsVariables(server, key) };
    const aws = (...args: readonly string[]) => ok(['aws', ...args], { environment: awsEnvironment });
    const environment = {
      ...place.environment,
      HTTP_PROXY: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
      HTTPS_PROXY: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    };
    const authFile = join(place.directory, `${name}.json`);
    const password = await aws('ecr', 'get-login-password');
    const login = ['skopeo', 'login', '--tls-verify=false', '--authfile', authFile, '--username', 'AWS'];
    await ok([...login, '--password-stdin', REGISTRY], { environment, input: password });
    const awsFails = (...args: readonly string[]) => fails(['aws', ...args], { environment: awsEnvironment });
    return { aws, awsFails, environment, authFile };
  }

  const copy = (from: string, to: string, { authFile }: Person): readonly string[] => {
    const tls = ['--src-tls-verify=false', '--dest-tls-verify=false'];
    return ['skopeo', '--insecure-policy', 'copy', ...tls, '--authfile', authFile, from, to];
  };
  const remote = (repository: string, tag = 'v1'): string => `docker://${REGISTRY}/${repository}:${tag}`;
  const local = (name: string): string => `oci:${join(place.directory, name)}:v1`;
  const pull = (person: Person, repository: string, to: string): Promise<string> =>
    ok(copy(remote(repository), local(to), person), { environment: person.environment });
  const pullFails = (person: Person, repository: string): Promise<string> =>
    fails(copy(remote(repository), local('refused'), person), { environment: person.environment });

  before(async () => {
    place = await makePlace('two-accounts');
    const data = join(place.directory, 'data');
    await mkdir(data);
    // The first start makes account A; others are made while the server is stopped.
    const first = await startBerth({ data });
    await until('the server is up', () => first.output().includes('"msg":"ready"'));
    await stopBerth(first);
    const create = [process.execPath, join(ROOT, 'src', 'main.ts'), 'account', 'create', '--id', OTHER];
    const made = JSON.parse(
      await ok([...create, '--json', '--data', data], { environment: place.environment }),
    ) as Credentials;
    server = await startBerth({ data });
    proxy = await startProxy(server.port);
    a = await enter('a', await readAdmin(data));
    b = await enter('b', made);
    await writeLayout(join(place.directory, 'image'), 'v1', image);
    for (const repository of ['shared', 'private']) {
      await a.aws('ecr', 'create-repository', '--repository-name', repository);
      await ok(copy(local('image'), remote(repository), a), { environment: a.environment });
    }
  });

  after(async () => {
    proxy.close();
    proxy.closeAllConnections();
    await stopBerth(server);
    await place.remove();
  });

  const ecrOfA = ['--registry-id', ACCOUNT, '--repository-name', 'shared'] as const;
  const latest = ['--image-ids', 'imageTag=v1'] as const;

  test('each is itself', async () => {
    for (const [person, account] of [
      [a, ACCOUNT],
      [b, OTHER],
    ] as const) {
      const arn = await person.aws('sts', 'get-caller-identity', '--query', 'Arn', '--output', 'text');
      assert.equal(arn.trim(), `arn:aws:iam::${account}:user/admin`);
    }
  });

  test('without a policy B, administrator though it is, gets nothing of A', async () => {
    assert.ok((await pullFails(b, 'shared')).includes(denial('BatchGetImage', 'shared')));
    const said = await b.awsFails('ecr', 'batch-get-image', ...ecrOfA, ...latest);
    assert.ok(said.includes('(AccessDeniedException)'), said);
    assert.ok(said.includes(denial('BatchGetImage', 'shared')), said);
  });

  test('the policy of the repository lets B pull, and nothing else', async () => {
    const Statement = {
      Sid: 'Pull',
      Effect: 'Allow',
      Principal: { AWS: `arn:aws:iam::${OTHER}:root` },
      Action: PULL,
    };
    const text = JSON.stringify({ Version: '2012-10-17', Statement });
    await a.aws('ecr', 'set-repository-policy', '--repository-name', 'shared', '--policy-text', text);

    await pull(b, 'shared', 'pulled');
    const index = JSON.parse(await readFile(join(place.directory, 'pulled', 'index.json'), 'utf8')) as {
      manifests: { digest: string }[];
    };
    assert.equal(index.manifests[0]?.digest, image.digest);
    const got = JSON.parse(await b.aws('ecr', 'batch-get-image', ...ecrOfA, ...latest)) as {
      images: { registryId: string; imageId: { imageDigest: string } }[];
    };
    assert.deepEqual(
      got.images.map((each) => [each.registryId, each.imageId.imageDigest]),
      [[ACCOUNT, image.digest]],
    );
  });

  test('B cannot push, not even what is there already', async () => {
    await writeLayout(join(place.directory, 'new'), 'v1', makeImage('of account B', [5000]));
    const push = await fails(copy(local('new'), remote('shared', 'v2'), b), { environment: b.environment });
    assert.ok(push.includes(denial('InitiateLayerUpload', 'shared')), push);
    const again = await fails(copy(local('image'), remote('shared', 'v2'), b), {
      environment: b.environment,
    });
    assert.ok(again.includes(denial('PutImage', 'shared')), again);
    const said = await b.awsFails('ecr', 'batch-delete-image', ...ecrOfA, ...latest);
    assert.ok(said.includes(denial('BatchDeleteImage', 'shared')), said);
    const tags = await a.aws(
      'ecr',
      'list-images',
      '--repository-name',
      'shared',
      '--query',
      'imageIds[].imageTag',
      '--output',
      'text',
    );
    assert.equal(tags.trim(), 'v1');
  });

  test('B cannot pull from another repository, nor widen its own way in', async () => {
    assert.ok((await pullFails(b, 'private')).includes(denial('BatchGetImage', 'private')));
    const said = await b.awsFails('ecr', 'set-repository-policy', ...ecrOfA, '--policy-text', '{}');
    assert.ok(said.includes(denial('SetRepositoryPolicy', 'shared')), said);
    const absent = await pullFails(b, 'absent');
    assert.ok(absent.includes(denial('BatchGetImage', 'absent')), absent);
  });

  test('B loses access the moment the policy goes, with the same login', async () => {
    await pull(b, 'shared', 'last');
    await a.aws('ecr', 'delete-repository-policy', '--repository-name', 'shared');
    assert.ok((await pullFails(b, 'shared')).includes(denial('BatchGetImage', 'shared')));
    const said = await b.awsFails('ecr', 'batch-get-image', ...ecrOfA, ...latest);
    assert.ok(said.includes(denial('BatchGetImage', 'shared')), said);
    await pull(a, 'shared', 'owner');
  });
});
