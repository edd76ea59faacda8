/** What IAM and the doors refuse, as people see it in aws and docker, and in the exact answers behind. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { sealToken } from '../../src/identity/registry-token.ts';
import { openKeyRing } from '../../src/lib/keyring.ts';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { startDocker, type Docker } from './docker.ts';
import {
  ACCOUNT,
  answerOf,
  awsVariables,
  basic,
  callEcr,
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
  startBerth,
  stopBerth,
  type Answer,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { makeImage, writeLayout } from './image.ts';

const REPOSITORY = 'devops-ecr';
const REPOSITORY_ARN = `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${REPOSITORY}`;
const PULL = ['ecr:BatchCheckLayerAvailability', 'ecr:GetDownloadUrlForLayer', 'ecr:BatchGetImage'] as const;

interface Statement {
  readonly Effect: 'Allow' | 'Deny';
  readonly Action: string | readonly string[];
  readonly Resource: string;
}

const policyOf = (...Statement: readonly Statement[]): string =>
  JSON.stringify({ Version: '2012-10-17', Statement });
const LOGIN: Statement = { Effect: 'Allow', Action: 'ecr:GetAuthorizationToken', Resource: '*' };

const skip = missing('aws', 'docker', 'skopeo') || missingDaemon('dockerd');

describe('refusals', { skip }, () => {
  let place: Place;
  let docker: Docker;
  let server: BerthServer;
  let admin: Credentials;
  let adminAws: Environment;

  interface User {
    readonly name: string;
    readonly key: Credentials;
    /** for aws, and for a docker of their own logins */
    readonly environment: Environment;
  }

  const aws = (...args: readonly string[]): Promise<string> =>
    ok(['aws', ...args], { environment: adminAws });

  async function makeUser(name: string, policy: string | undefined): Promise<User> {
    await aws('iam', 'create-user', '--user-name', name);
    if (policy !== undefined) await putPolicy(name, policy);
    const made = JSON.parse(await aws('iam', 'create-access-key', '--user-name', name)) as {
      AccessKey: { AccessKeyId: string; SecretAccessKey: string };
    };
    const key = {
      accessKeyId: made.AccessKey.AccessKeyId,
      secretAccessKey: made.AccessKey.SecretAccessKey,
    };
    const config = join(place.directory, `docker-${name}`);
    await mkdir(config);
    return {
      name,
      key,
      environment: { ...docker.environment, ...awsVariables(server, key), DOCKER_CONFIG: config },
    };
  }

  const putPolicy = (user: string, document: string): Promise<string> =>
    aws(
      'iam',
      'put-user-policy',
      '--user-name',
      user,
      '--policy-name',
      'inline',
      '--policy-document',
      document,
    );

  const login = (environment: Environment): Promise<string> =>
    ok(
      [
        'bash',
        '-c',
        `set -o pipefail; aws ecr get-login-password | docker login --username AWS --password-stdin ${server.registry}`,
      ],
      { environment },
    );

  const imageName = (): string => `${server.registry}/${REPOSITORY}:latest`;

  const getV2 = async (
    path: string,
    authorization?: string,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answer> =>
    answerOf(
      await fetch(`http://${server.registry}/v2/${path}`, {
        headers: authorization === undefined ? headers : { ...headers, authorization },
      }),
    );

  before(async () => {
    place = await makePlace('refusals');
    docker = await startDocker(place);
    server = await startBerth({ data: join(place.directory, 'data') });
    admin = await readAdmin(server.data);
    adminAws = { ...docker.environment, ...awsVariables(server, admin) };
    await createRepository(server, admin, REPOSITORY);
    const layout = join(place.directory, 'layout');
    await writeLayout(layout, 'latest', makeImage('refusals', [2000, 3000]));
    const password = await registryPassword(server, admin);
    await ok(
      [
        'skopeo',
        'copy',
        '--insecure-policy',
        '--dest-tls-verify=false',
        '--dest-creds',
        `AWS:${password}`,
        `oci:${layout}:latest`,
        `docker://${imageName()}`,
      ],
      { environment: place.environment },
    );
  });

  after(async () => {
    await docker.stop();
    await stopBerth(server);
    await place.remove();
  });

  test('a user without ecr:GetAuthorizationToken cannot log in', async () => {
    const user = await makeUser('nobody', undefined);
    const output = await fails(['aws', 'ecr', 'get-login-password'], { environment: user.environment });
    assert.match(
      output,
      /An error occurred \(AccessDeniedException\) when calling the GetAuthorizationToken operation: User: arn:aws:iam::000000000000:user\/nobody is not authorized to perform: ecr:GetAuthorizationToken on resource: \* because no identity-based policy allows the ecr:GetAuthorizationToken action\n/,
    );
  });

  test('a user with the pull actions pulls, and may not push', async () => {
    const user = await makeUser(
      'puller',
      policyOf(LOGIN, { Effect: 'Allow', Action: PULL, Resource: REPOSITORY_ARN }),
    );
    const { environment } = user;
    assert.match(await login(environment), /Login Succeeded/);
    await ok(['docker', 'pull', imageName()], { environment });
    await ok(['docker', 'tag', imageName(), `${server.registry}/${REPOSITORY}:mine`], { environment });
    // WHY another repository of the same image would be refused too; a new layer makes docker start an upload
    const context = join(place.directory, 'layered');
    await mkdir(context);
    await writeLayoutDockerfile(context);
    await ok(['docker', 'build', '-t', `${server.registry}/${REPOSITORY}:new`, context], { environment });
    const output = await fails(['docker', 'push', `${server.registry}/${REPOSITORY}:new`], { environment });
    assert.match(
      output,
      new RegExp(
        `^denied: User: arn:aws:iam::${ACCOUNT}:user/puller is not authorized to perform: ` +
          `ecr:InitiateLayerUpload on resource: ${REPOSITORY_ARN} ` +
          'because no identity-based policy allows the ecr:InitiateLayerUpload action$',
        'm',
      ),
    );
    const tags = await getV2(`${REPOSITORY}/tags/list`, basic(await registryPassword(server, admin)));
    assert.deepEqual(JSON.parse(tags.text), { name: REPOSITORY, tags: ['latest'] });
  });

  async function writeLayoutDockerfile(context: string): Promise<void> {
    await writeFile(join(context, 'file'), `new ${Date.now()}`);
    await writeFile(join(context, 'Dockerfile'), `FROM ${imageName()}\nCOPY file /file\n`);
  }

  test('an explicit Deny beats Allow, and says so', async () => {
    const user = await makeUser(
      'denied',
      policyOf(
        { Effect: 'Allow', Action: 'ecr:*', Resource: '*' },
        { Effect: 'Deny', Action: 'ecr:BatchGetImage', Resource: REPOSITORY_ARN },
      ),
    );
    const { environment } = user;
    await login(environment);
    const sentence =
      `User: arn:aws:iam::${ACCOUNT}:user/denied is not authorized to perform: ecr:BatchGetImage ` +
      `on resource: ${REPOSITORY_ARN} with an explicit deny in an identity-based policy`;
    assert.ok((await fails(['docker', 'pull', imageName()], { environment })).includes(sentence));
    const ids = ['--repository-name', REPOSITORY, '--image-ids', 'imageTag=latest'];
    const output = await fails(['aws', 'ecr', 'batch-get-image', ...ids], { environment });
    assert.ok(
      output.includes(`(AccessDeniedException) when calling the BatchGetImage operation: ${sentence}`),
    );
  });

  test('attaching and detaching a policy changes the next request, with the login that is there', async () => {
    const user = await makeUser('changing', policyOf(LOGIN));
    const { environment } = user;
    await login(environment);
    const manifest = (): Promise<Answer> => getV2(`${REPOSITORY}/manifests/latest`, auth);
    const auth = basic(await registryPassword(server, user.key));
    const arn = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
    const attachment = ['--user-name', user.name, '--policy-arn', arn];
    const described = ['aws', 'ecr', 'describe-images', '--repository-name', REPOSITORY];

    assert.equal((await manifest()).status, 403);
    assert.match(
      await fails(['docker', 'pull', imageName()], { environment }),
      /is not authorized to perform/,
    );
    assert.match(await fails(described, { environment }), /\(AccessDeniedException\)/);

    await aws('iam', 'attach-user-policy', ...attachment);
    assert.equal((await manifest()).status, 200);
    await ok(['docker', 'pull', imageName()], { environment });
    await ok(described, { environment });

    await aws('iam', 'detach-user-policy', ...attachment);
    const refused = await manifest();
    assert.equal(refused.status, 403);
    assert.deepEqual(JSON.parse(refused.text), {
      errors: [
        {
          code: 'DENIED',
          message:
            `User: arn:aws:iam::${ACCOUNT}:user/changing is not authorized to perform: ecr:BatchGetImage ` +
            `on resource: ${REPOSITORY_ARN} because no identity-based policy allows the ecr:BatchGetImage action`,
        },
      ],
    });
    assert.match(await fails(described, { environment }), /\(AccessDeniedException\)/);
  });

  test('a repository policy allows and denies on both planes', async () => {
    const user = await makeUser('guest', policyOf(LOGIN));
    const auth = basic(await registryPassword(server, user.key));
    const statement = (Effect: string): string =>
      JSON.stringify({
        Version: '2012-10-17',
        Statement: [
          { Effect, Principal: { AWS: `arn:aws:iam::${ACCOUNT}:user/guest` }, Action: 'ecr:BatchGetImage' },
        ],
      });
    const set = (effect: string): Promise<string> =>
      aws(
        'ecr',
        'set-repository-policy',
        '--repository-name',
        REPOSITORY,
        '--policy-text',
        statement(effect),
      );
    await set('Allow');
    assert.equal((await getV2(`${REPOSITORY}/manifests/latest`, auth)).status, 200);
    await putPolicy('guest', policyOf({ Effect: 'Allow', Action: 'ecr:*', Resource: '*' }));
    await set('Deny');
    const refused = await getV2(`${REPOSITORY}/manifests/latest`, auth);
    assert.equal(refused.status, 403);
    assert.match(refused.text, /with an explicit deny in a resource-based policy/);
    const ids = { repositoryName: REPOSITORY, imageIds: [{ imageTag: 'latest' }] };
    const answer = await callEcr(server, user.key, 'BatchGetImage', ids);
    assert.match(answer.text, /with an explicit deny in a resource-based policy/);
    await aws('ecr', 'delete-repository-policy', '--repository-name', REPOSITORY);
    assert.equal((await getV2(`${REPOSITORY}/manifests/latest`, auth)).status, 200);
  });

  test('a key that is made inactive stops the login that was made with it', async () => {
    const user = await makeUser('leaver', policyOf({ Effect: 'Allow', Action: 'ecr:*', Resource: '*' }));
    const auth = basic(await registryPassword(server, user.key));
    assert.equal((await getV2('', auth)).status, 200);
    await aws(
      'iam',
      'update-access-key',
      '--user-name',
      user.name,
      '--access-key-id',
      user.key.accessKeyId,
      '--status',
      'Inactive',
    );
    assert.notEqual((await getV2('', auth)).status, 200);
    assert.match(
      await fails(['aws', 'ecr', 'get-login-password'], { environment: user.environment }),
      /\(UnrecognizedClientException\)/,
    );
  });

  const WRONG: readonly {
    readonly what: string;
    readonly key: (right: Credentials) => Credentials;
    readonly ecr: string;
    readonly sts: string;
  }[] = [
    {
      what: 'a wrong secret',
      key: (right) => ({ ...right, secretAccessKey: 'x'.repeat(40) }),
      ecr: '(InvalidSignatureException) when calling the DescribeRepositories operation: The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.',
      sts: '(SignatureDoesNotMatch) when calling the GetCallerIdentity operation: The request signature we calculated does not match the signature you provided.',
    },
    {
      what: 'an unknown key',
      key: (right) => ({ ...right, accessKeyId: 'AKIAQAAAAAAAZZZZZZZZ' }),
      ecr: '(UnrecognizedClientException) when calling the DescribeRepositories operation: The security token included in the request is invalid.',
      sts: '(InvalidClientTokenId) when calling the GetCallerIdentity operation: The security token included in the request is invalid.',
    },
  ];
  for (const { what, key, ecr, sts } of WRONG) {
    test(`${what} gets the service's own error`, async () => {
      const environment = { ...place.environment, ...awsVariables(server, key(admin)) };
      assert.ok((await fails(['aws', 'ecr', 'describe-repositories'], { environment })).includes(ecr));
      assert.ok((await fails(['aws', 'sts', 'get-caller-identity'], { environment })).includes(sts));
    });
  }

  test('a skewed clock gets the service’s own error', async () => {
    for (const hours of [-1, 1]) {
      const now = Date.now() + hours * 3_600_000;
      const ecr = await callEcr(server, admin, 'DescribeRepositories', {}, now);
      assert.equal(ecr.status, 400);
      const { __type, message } = JSON.parse(ecr.text) as { __type: string; message: string };
      assert.equal(__type.split('#').at(-1), 'InvalidSignatureException');
      const expected =
        hours < 0
          ? /^Signature expired: \d{8}T\d{6}Z is now earlier than \d{8}T\d{6}Z \(\d{8}T\d{6}Z - 15 min\.\)$/
          : /^Signature not yet current: \d{8}T\d{6}Z is still later than \d{8}T\d{6}Z \(\d{8}T\d{6}Z \+ 15 min\.\)$/;
      assert.match(message, expected);
      const sts = await callQuery(server, admin, 'sts', { Action: 'GetCallerIdentity' }, now);
      assert.equal(sts.status, 403);
      assert.match(sts.text, /<Code>SignatureDoesNotMatch<\/Code>/);
    }
  });

  test('a missing Authorization gets the service’s own error', async () => {
    const headers = {
      'content-type': 'application/x-amz-json-1.1',
      'x-amz-target': 'AmazonEC2ContainerRegistry_V20150921.DescribeRepositories',
    };
    const ecr = await answerOf(await fetch(server.endpoint, { method: 'POST', headers, body: '{}' }));
    assert.equal(ecr.status, 400);
    assert.deepEqual(JSON.parse(ecr.text), {
      __type: 'MissingAuthenticationTokenException',
      message: 'Missing Authentication Token',
    });
    const form = { 'content-type': 'application/x-www-form-urlencoded' };
    const body = 'Action=GetCallerIdentity&Version=2011-06-15';
    const sts = await answerOf(await fetch(server.endpoint, { method: 'POST', headers: form, body }));
    assert.equal(sts.status, 403);
    assert.match(sts.text, /<Code>MissingAuthenticationToken<\/Code>/);
    const v2 = await getV2('');
    assert.equal(v2.status, 401);
    assert.equal(v2.text, 'Not Authorized\n');
    assert.equal(
      v2.headers.get('www-authenticate'),
      `Basic realm="http://${server.registry}/",service="ecr.amazonaws.com"`,
    );
  });

  test('expired, forged and foreign registry tokens get ECR’s own errors, from docker too', async () => {
    const keys = await openKeyRing(join(server.data, 'keys'));
    const other = await openKeyRing(join(place.directory, 'other-keys'));
    const content = {
      account: ACCOUNT,
      region: REGION,
      holder: { kind: 'key', id: admin.accessKeyId } as const,
    };
    const now = Date.now();
    const good = sealToken(keys, { ...content, expiresAt: now + 3_600_000 });
    assert.equal((await getV2('', basic(good))).status, 200);
    const flipped = good.slice(0, -4) + (good.endsWith('AAAA') ? 'BBBB' : 'AAAA');
    const invalid = 'Your Authorization Token is invalid.';
    const config = join(place.directory, 'docker-expired');
    await mkdir(config);
    const cases = [
      {
        password: sealToken(keys, { ...content, expiresAt: now - 1000 }),
        status: 403,
        message: 'Your authorization token has expired. Reauthenticate and try again.',
      },
      { password: flipped, status: 400, message: invalid },
      {
        password: sealToken(other, { ...content, expiresAt: now + 3_600_000 }),
        status: 400,
        message: invalid,
      },
      { password: admin.secretAccessKey, status: 400, message: invalid },
    ];
    for (const { password, status, message } of cases) {
      const answer = await getV2('', basic(password));
      assert.equal(answer.status, status, answer.text);
      assert.deepEqual(JSON.parse(answer.text), { errors: [{ code: 'DENIED', message }] });
      const login = ['docker', 'login', '--username', 'AWS', '--password-stdin', server.registry];
      const refusal = await fails(login, { environment: docker.environment, input: password });
      assert.match(refusal, new RegExp(`failed with status: ${status} `));
      // a login from before it expired
      const auths = { [server.registry]: { auth: Buffer.from(`AWS:${password}`).toString('base64') } };
      await writeFile(join(config, 'config.json'), JSON.stringify({ auths }));
      const environment = { ...docker.environment, DOCKER_CONFIG: config };
      assert.ok((await fails(['docker', 'pull', imageName()], { environment })).includes(message));
    }
  });
});
