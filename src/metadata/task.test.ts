import assert from 'node:assert/strict';
import { test } from 'node:test';
import { listenHttp } from './listen.ts';
import { createTaskMetadata } from './task.ts';
import { ask, fakeRole } from './test-machine.ts';

const ID = '2a4f1c1e-8d31-4f3a-9d2c-0f6f1f2b3c4d';
const ARN = 'arn:aws:iam::000000000000:role/task';

async function open(authorization: string | undefined) {
  const role = fakeRole();
  const errors: unknown[] = [];
  const handler = createTaskMetadata({
    role: { arn: ARN, id: ID, authorization, credentials: role.credentials },
    container: (id) => Promise.resolve(id === 'c1' ? { Name: 'web' } : undefined),
    task: () => Promise.resolve({ Family: 'web' }),
  });
  const at = await listenHttp({ host: '127.0.0.1', port: 0 }, handler, (error) => errors.push(error));
  return {
    role,
    request: (method: string, path: string, headers: Readonly<Record<string, string>> = {}) =>
      ask(at, method, path, headers),
    async [Symbol.asyncDispose]() {
      await at.close();
      assert.deepEqual(errors, []);
    },
  };
}

test('credentials by relative URI', async () => {
  await using service = await open(undefined);
  for (const path of [`/v2/credentials/${ID}`, `/v1/credentials?id=${ID}`]) {
    const { status, headers, text } = await service.request('GET', path);
    assert.deepEqual([status, headers['content-type']], [200, 'application/json']);
    assert.equal(
      text,
      `{"RoleArn":"${ARN}","AccessKeyId":"ASIA1","SecretAccessKey":"secret 1","Token":"token 1","Expiration":"2026-11-24T09:00:00Z"}`,
    );
  }
});

test('paths and methods', async () => {
  await using service = await open(undefined);
  const error = (code: string, message: string, HTTPErrorCode: number): object => ({
    code,
    message,
    HTTPErrorCode,
  });
  const noId = (v: number): object =>
    error('NoIdInRequest', `CredentialsV${v}Request: No Credential ID in the request`, 400);
  const unknown = (v: number): object =>
    error('InvalidIdInRequest', `CredentialsV${v}Request: Credentials not found`, 400);
  const absent = error('NotFound', 'Unable to find what the path names', 404);
  const method = error('MethodNotAllowed', 'Only GET is answered here', 405);
  const cases: readonly (readonly [string, string, number, object])[] = [
    ['GET', '/v2/credentials', 400, noId(2)],
    ['GET', '/v2/credentials/', 400, noId(2)],
    ['GET', '/v1/credentials', 400, noId(1)],
    ['GET', `/v2/credentials/${ID}0`, 400, unknown(2)],
    ['GET', '/v2/credentials/x', 400, unknown(2)],
    ['GET', '/v1/credentials?id=x', 400, unknown(1)],
    ['GET', `/v2/credentials/${ID}/x`, 404, absent],
    ['GET', '/', 404, absent],
    ['GET', '//', 404, absent],
    ['GET', '/v4/', 404, absent],
    ['GET', '/v4/c2', 404, absent],
    ['GET', '/v4/c2/task', 404, absent],
    ['GET', '/v4/c1/stats', 404, absent],
    ['GET', '/v4/c1', 200, { Name: 'web' }],
    ['GET', '/v4/c1/task', 200, { Family: 'web' }],
    ['PUT', `/v2/credentials/${ID}`, 405, method],
    ['POST', '/', 405, method],
  ];
  for (const [verb, path, status, body] of cases) {
    const answer = await service.request(verb, path);
    assert.deepEqual([answer.status, JSON.parse(answer.text)], [status, body], `${verb} ${path}`);
  }
});

test('credentials by full URI want the authorization token', async () => {
  await using service = await open('secret token');
  for (const wrong of [undefined, '', 'secret tokeN', 'secret token2', 'Bearer secret token']) {
    const headers = wrong === undefined ? {} : { Authorization: wrong };
    const { status, text } = await service.request('GET', `/v2/credentials/${ID}`, headers);
    assert.equal(status, 401, String(wrong));
    assert.equal((JSON.parse(text) as { code: string }).code, 'Unauthorized');
  }
  const right = await service.request('GET', `/v2/credentials/${ID}`, { Authorization: 'secret token' });
  assert.equal(right.status, 200);
  assert.equal(service.role.calls, 1, 'nobody unauthorised reaches the role');
});

test('a role that is refused or cannot be asked for', async () => {
  await using service = await open(undefined);
  service.role.next = () => ({ kind: 'refused', reason: 'no' });
  const refused = await service.request('GET', `/v2/credentials/${ID}`);
  assert.deepEqual(
    [refused.status, JSON.parse(refused.text)],
    [
      503,
      {
        code: 'CredentialsUninitialized',
        message: 'CredentialsV2Request: Credentials uninitialized for ID',
        HTTPErrorCode: 503,
      },
    ],
  );
  service.role.next = () => 'nobody answers';
  service.role.now += 2000;
  assert.equal((await service.request('GET', `/v2/credentials/${ID}`)).status, 503);
});
