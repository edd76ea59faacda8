/**
 * The endpoint that ECS gives the containers of a task: credentials of the task role, and task metadata version 4
 * (iam-sts.md §7.2; error bodies as the ECS agent's `handlers/v2` and `handlers/v4` write them).
 */
import { timingSafeEqual } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import type { Handler } from './listen.ts';
import type { createRoleCredentials } from './role-credentials.ts';

export interface TaskMetadata {
  /** The task role, under an id nobody guesses. */
  readonly role:
    | {
        readonly arn: string;
        readonly id: string;
        /** What `Authorization` has to be, when it has to be anything. */
        readonly authorization: string | undefined;
        readonly credentials: ReturnType<typeof createRoleCredentials>;
      }
    | undefined;
  /** Metadata of a container by its id in the path; `undefined` when there is none. */
  readonly container: (id: string) => Promise<object | undefined>;
  readonly task: () => Promise<object>;
}

export function createTaskMetadata({ role, container, task }: TaskMetadata): Handler {
  return async (request, response) => {
    const target = request.url ?? '/';
    // WHY the slashes: two at the beginning would be read as a host
    const url = new URL(`http://task/${target.replace(/^\/+/, '')}`);
    if (request.method !== 'GET') {
      response.setHeader('allow', 'GET');
      return fail(response, 405, 'MethodNotAllowed', 'Only GET is answered here');
    }
    const given = credentialsId(url);
    if (given !== undefined) return sendCredentials(response, given, role, request.headers.authorization);
    const [, id = '', rest] = /^\/v4\/([^/]+)(\/task)?\/?$/.exec(url.pathname) ?? [];
    const found = id === '' ? undefined : await container(id);
    if (found === undefined) return fail(response, 404, 'NotFound', 'Unable to find what the path names');
    return send(response, 200, rest === undefined ? found : await task());
  };
}

function credentialsId(url: URL): { readonly prefix: string; readonly id: string } | undefined {
  if (url.pathname === '/v1/credentials') {
    return { prefix: 'CredentialsV1Request: ', id: url.searchParams.get('id') ?? '' };
  }
  const id = /^\/v2\/credentials(?:\/([^/]*))?$/.exec(url.pathname);
  return id === null ? undefined : { prefix: 'CredentialsV2Request: ', id: id[1] ?? '' };
}

async function sendCredentials(
  response: ServerResponse,
  { prefix, id }: { readonly prefix: string; readonly id: string },
  role: TaskMetadata['role'],
  authorization: string | undefined,
): Promise<void> {
  if (id === '') return fail(response, 400, 'NoIdInRequest', `${prefix}No Credential ID in the request`);
  if (role === undefined || !isSame(id, role.id)) {
    return fail(response, 400, 'InvalidIdInRequest', `${prefix}Credentials not found`);
  }
  if (role.authorization !== undefined && !isSame(authorization ?? '', role.authorization)) {
    return fail(response, 401, 'Unauthorized', `${prefix}Authorization token is missing or wrong`);
  }
  const held = await role.credentials.read();
  if (held.kind !== 'granted') {
    return fail(response, 503, 'CredentialsUninitialized', `${prefix}Credentials uninitialized for ID`);
  }
  return send(response, 200, {
    RoleArn: role.arn,
    AccessKeyId: held.credentials.accessKeyId,
    SecretAccessKey: held.credentials.secretAccessKey,
    Token: held.credentials.sessionToken,
    Expiration: new Date(held.credentials.expiresAt).toISOString().replace(/\.\d+Z$/, 'Z'),
  });
}

function isSame(given: string, expected: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}

function fail(response: ServerResponse, status: number, code: string, message: string): void {
  send(response, status, { code, message, HTTPErrorCode: status });
}

function send(response: ServerResponse, status: number, value: object): void {
  const text = JSON.stringify(value);
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
    connection: 'close',
  });
  response.end(text);
}
