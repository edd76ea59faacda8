/**
 * AWS's own host names: in a network namespace where they are Berth's and whose trust store has its CA, commands that
 * know nothing of Berth work word for word.
 */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { startDocker, type Docker } from './docker.ts';
import {
  authorityFile,
  fails,
  initTls,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  startBerth,
  stopBerth,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { NAMESPACE_ADDRESS, startNamespace, TRUST_STORE, type Namespace } from './namespace.ts';
import { smallestProgram } from './program.ts';

const REGISTRY = '123456789012.dkr.ecr.us-east-1.amazonaws.com';
const OTHER_REGION = '123456789012.dkr.ecr.eu-west-1.amazonaws.com';
const OTHER_ACCOUNT = '999999999999.dkr.ecr.us-east-1.amazonaws.com';
/** a name that the certificate does not have */
const UNCERTIFIED = 'registry.example.org';
const NO_ACCOUNT = '12345.dkr.ecr.us-east-1.amazonaws.com';
const SERVICES = [
  'api.ecr.us-east-1.amazonaws.com',
  'ecr.us-east-1.amazonaws.com',
  'api.ecr.eu-west-1.amazonaws.com',
  'sts.us-east-1.amazonaws.com',
  'sts.amazonaws.com',
  'iam.amazonaws.com',
];

const skip =
  missing('aws', 'curl', 'docker', 'docker-credential-ecr-login', 'ip', 'unshare', 'nsenter') ||
  missingDaemon('dockerd');

describe('the names of AWS', { skip }, () => {
  let place: Place;
  let namespace: Namespace | undefined;
  let server: BerthServer;
  let docker: Docker;
  let environment: Environment;

  /** a line as it is typed in a shell inside, with logins in a directory of their own */
  const type = (line: string, logins = 'logins'): Promise<string> =>
    ok(command(line), { environment: { ...environment, DOCKER_CONFIG: join(place.directory, logins) } });
  const typeWrong = (line: string, logins = 'logins'): Promise<string> =>
    fails(command(line), { environment: { ...environment, DOCKER_CONFIG: join(place.directory, logins) } });
  const command = (line: string): string[] => [
    ...(namespace?.inside ?? []),
    'bash',
    '-c',
    `set -o pipefail; ${line}`,
  ];

  before(async () => {
    place = await makePlace('names');
    const data = join(place.directory, 'data');
    await initTls(data, ['--aws-names', '--regions', 'us-east-1,eu-west-1']);
    namespace = await startNamespace(place, {
      names: [REGISTRY, OTHER_REGION, OTHER_ACCOUNT, NO_ACCOUNT, UNCERTIFIED, ...SERVICES],
      authority: authorityFile(data),
    });
    const { inside } = namespace;
    const names = ['--account=123456789012', '--registry-host={account}.dkr.ecr.{region}.amazonaws.com'];
    server = await startBerth({
      data,
      inside,
      flags: ['--tls', `--host=${NAMESPACE_ADDRESS}`, '--port=443', ...names],
    });
    docker = await startDocker(place, inside);
    const admin = await readAdmin(data);
    environment = {
      ...docker.environment,
      // WHY: the kit's aws knows the endpoint of a server; here the name alone has to do
      PATH: process.env['PATH'] ?? '',
      AWS_CA_BUNDLE: TRUST_STORE,
      AWS_ACCESS_KEY_ID: admin.accessKeyId,
      AWS_SECRET_ACCESS_KEY: admin.secretAccessKey,
    };
    const context = join(place.directory, 'context');
    await mkdir(context);
    await writeFile(join(context, 'hello'), smallestProgram('hello from Berth\n'), { mode: 0o755 });
    await writeFile(join(context, 'Dockerfile'), 'FROM scratch\nCOPY hello /hello\nCMD ["/hello"]\n');
  });
  after(async () => {
    await docker.stop();
    await stopBerth(server);
    await namespace?.stop();
    await place.remove();
  });

  test('the endpoints of ECR, STS and IAM answer to their names', async () => {
    const identity = JSON.parse(await type('aws sts get-caller-identity --region us-east-1')) as {
      Arn: string;
    };
    assert.equal(identity.Arn, 'arn:aws:iam::123456789012:user/admin');
    const users = JSON.parse(await type('aws iam list-users --region us-east-1')) as { Users: unknown[] };
    assert.equal(users.Users.length, 1);
    const created = JSON.parse(
      await type('aws ecr create-repository --region us-east-1 --repository-name devops-ecr'),
    ) as { repository: { repositoryUri: string } };
    assert.equal(created.repository.repositoryUri, `${REGISTRY}/devops-ecr`);
    // another region is another registry
    assert.deepEqual(JSON.parse(await type('aws ecr describe-repositories --region eu-west-1')), {
      repositories: [],
    });
  });

  test('login, tag, push and pull as AWS documents them', async () => {
    assert.match(
      await type(
        'aws ecr get-login-password --region us-east-1 | docker login --username AWS --password-stdin 123456789012.dkr.ecr.us-east-1.amazonaws.com',
      ),
      /Login Succeeded/,
    );
    await type(`docker build -t devops-ecr:latest '${join(place.directory, 'context')}'`);
    const image = (await type("docker inspect --format '{{.Id}}' devops-ecr:latest")).trim();
    await type('docker tag devops-ecr:latest 123456789012.dkr.ecr.us-east-1.amazonaws.com/devops-ecr:latest');
    await type('docker push 123456789012.dkr.ecr.us-east-1.amazonaws.com/devops-ecr:latest');
    await type('docker rmi devops-ecr:latest 123456789012.dkr.ecr.us-east-1.amazonaws.com/devops-ecr:latest');
    await type('docker pull 123456789012.dkr.ecr.us-east-1.amazonaws.com/devops-ecr:latest');
    const pulled = await type(`docker inspect --format '{{.Id}}' ${REGISTRY}/devops-ecr:latest`);
    assert.equal(pulled.trim(), image);
  });

  test('docker-credential-ecr-login logs docker in by itself', async () => {
    const logins = join(place.directory, 'helper');
    await mkdir(logins);
    await writeFile(
      join(logins, 'config.json'),
      JSON.stringify({ credHelpers: { [REGISTRY]: 'ecr-login' } }),
    );
    await type(`docker tag ${REGISTRY}/devops-ecr:latest ${REGISTRY}/devops-ecr:helped`, 'helper');
    await type(`docker push ${REGISTRY}/devops-ecr:helped`, 'helper');
    await type(`docker rmi ${REGISTRY}/devops-ecr:helped`, 'helper');
    await type(`docker pull ${REGISTRY}/devops-ecr:helped`, 'helper');
    const asked = await type(`echo ${REGISTRY} | docker-credential-ecr-login get`, 'helper');
    const { Username, ServerURL } = JSON.parse(asked) as { Username: string; ServerURL: string };
    assert.equal(Username, 'AWS');
    assert.equal(ServerURL, REGISTRY);
    // and without it nobody is let in
    assert.match(
      await typeWrong(`docker pull ${REGISTRY}/devops-ecr:helped`, 'nobody'),
      /no basic auth credentials/,
    );
  });

  test('another region, another account and no account get ECR’s refusals', async () => {
    const password = (await type('aws ecr get-login-password --region us-east-1')).trim();
    const login = (host: string): string =>
      `docker login --username AWS --password-stdin ${host} <<<'${password}'`;
    assert.match(await typeWrong(login(OTHER_REGION)), /403 Forbidden/);
    assert.match(await typeWrong(login(NO_ACCOUNT)), /403 Forbidden/);
    assert.match(await type(login(OTHER_ACCOUNT)), /Login Succeeded/);
    assert.match(
      await typeWrong(`docker pull ${OTHER_ACCOUNT}/devops-ecr:latest`),
      /User: arn:aws:iam::123456789012:user\/admin is not authorized to perform: ecr:BatchGetImage on resource: arn:aws:ecr:us-east-1:999999999999:repository\/devops-ecr/,
    );
    const ask = (host: string): Promise<string> =>
      type(`curl -s -K - https://${host}/v2/devops-ecr/tags/list <<<'user = "AWS:${password}"'`);
    assert.deepEqual(JSON.parse(await ask(OTHER_REGION)), {
      errors: [
        {
          code: 'DENIED',
          message:
            'Your authorization token was issued for region us-east-1 and cannot be used in region eu-west-1.',
        },
      ],
    });
    assert.deepEqual(JSON.parse(await ask(NO_ACCOUNT)), {
      errors: [{ code: 'DENIED', message: `Could not resolve registry id from host ${NO_ACCOUNT}` }],
    });
  });

  test('certificates are verified: no CA or no such name, no connection', async () => {
    assert.match(await type(`curl -s -o /dev/null -w '%{http_code}' https://${REGISTRY}/v2/`), /^401$/);
    const without = `curl -s -S --cacert '${place.directory}/none.pem' https://${REGISTRY}/v2/`;
    await writeFile(join(place.directory, 'none.pem'), '');
    assert.match(await typeWrong(without), /certificate/);
    assert.match(
      await typeWrong(`docker pull ${UNCERTIFIED}/devops-ecr:latest`),
      /certificate is valid for .*, not registry\.example\.org/,
    );
  });
});
