/** A server with tiny operation tables behind the real doors, for the tests of this folder. */
import { createServer, request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Fault } from '../domain/faults.ts';
import { Exchange } from '../http/http.ts';
import { signRequest, type Credentials } from '../lib/sigv4.ts';
import { berthModel, ecrModel, iamModel, stsModel, type ServiceModel } from '../model/service-model.ts';
import {
  createAwsDoor,
  createVerifier,
  type AccessCheck,
  type Operation,
  type OperationContext,
  type OperationTable,
  type Structure,
} from './protocol.ts';

export const KEY: Credentials = { accessKeyId: 'AKIDEXAMPLE000000000', secretAccessKey: 'secret' };
export const SESSION: Credentials = {
  accessKeyId: 'ASIDEXAMPLE000000000',
  secretAccessKey: 'session secret',
  sessionToken: 'good+token/==',
};
export const REQUEST_ID = '84b47cd7-fc7b-442f-b75b-309b93d2b2ee';

export type TestOperations = Readonly<Record<string, Partial<Operation<string, never>>>>;

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export interface TestRequest {
  readonly method?: string;
  readonly path?: string;
  readonly headers?: Readonly<Record<string, string | readonly string[]>>;
  readonly body?: string | Buffer;
}

export interface Endpoint extends AsyncDisposable {
  readonly url: string;
  readonly host: string;
  readonly errors: unknown[];
  readonly checks: AccessCheck[];
  readonly contexts: OperationContext<string>[];
  send(request: TestRequest): Promise<Answer>;
  /** A signed AWS JSON call. */
  callEcr(operation: string, body: string | Buffer, headers?: Record<string, string>): Promise<Answer>;
  /** A signed form. */
  callQuery(service: 'iam' | 'sts', body: string, headers?: Record<string, string>): Promise<Answer>;
}

function tableOf(model: ServiceModel, operations: TestOperations): OperationTable<string> {
  const table: Record<string, OperationTable<string>[string]> = {};
  for (const name of Object.keys(model.operations)) table[name] = { notBuilt: 'not part of this test' };
  for (const [name, operation] of Object.entries(operations)) {
    table[name] = {
      access: () => [],
      run: () => Promise.resolve(undefined),
      ...operation,
    };
  }
  return table;
}

export interface EndpointOptions {
  readonly ecr?: TestOperations;
  readonly iam?: TestOperations;
  readonly sts?: TestOperations;
  readonly berth?: TestOperations;
  readonly now?: number;
}

/** Answers what `run` returns for any input, as the table entries of the tests want it. */
export function answering(output: Structure | undefined): Partial<Operation<string, never>> {
  return { run: () => Promise.resolve(output) };
}

export async function openEndpoint(options: EndpointOptions = {}): Promise<Endpoint> {
  const errors: unknown[] = [];
  const checks: AccessCheck[] = [];
  const contexts: OperationContext<string>[] = [];
  const clock = (): number => options.now ?? Date.now();
  const verify = createVerifier<string>({
    clock,
    acceptsRegion: (region) => region === 'eu-west-1',
    keys: {
      findKey: (id, token) => {
        if (id === KEY.accessKeyId) {
          return Promise.resolve(
            token === undefined ? { secret: KEY.secretAccessKey, caller: 'admin' } : 'invalid-token',
          );
        }
        if (id !== SESSION.accessKeyId || token === undefined) return Promise.resolve(undefined);
        if (token === 'old') return Promise.resolve('expired');
        if (token !== SESSION.sessionToken) return Promise.resolve('invalid-token');
        return Promise.resolve({ secret: SESSION.secretAccessKey, caller: 'session' });
      },
    },
  });
  const door = createAwsDoor<string>({
    verify,
    clock,
    authorize: (context, wanted) => {
      contexts.push(context);
      checks.push(...wanted);
      const refused = wanted.find((check) => check.resource === 'forbidden');
      if (refused === undefined) return Promise.resolve();
      return Promise.reject(
        new Fault('AccessDeniedException', `User: x is not authorized to perform: ${refused.action}`),
      );
    },
    onError: (error) => errors.push(error),
    describeCaller: (arn) => ({
      caller: { kind: 'user', account: '123456789012', arn, id: 'AIDEXAMPLE' },
      accessKeyId: KEY.accessKeyId,
      userName: 'tester',
    }),
    anonymous: { caller: 'nobody', region: 'eu-west-1' },
    ecr: tableOf(ecrModel, options.ecr ?? {}),
    iam: tableOf(iamModel, options.iam ?? {}),
    sts: tableOf(stsModel, options.sts ?? {}),
    berth: tableOf(berthModel, options.berth ?? {}),
  });
  const server = createServer((request, response) => {
    void door(new Exchange(request, response, { requestId: REQUEST_ID, secure: false }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const host = `127.0.0.1:${port}`;
  const url = `http://${host}`;

  const send = (given: TestRequest): Promise<Answer> =>
    new Promise((resolve, reject) => {
      const { method = 'POST', path = '/', headers = {}, body = '' } = given;
      const outgoing = httpRequest(
        {
          host: '127.0.0.1',
          port,
          method,
          path,
          headers: { ...headers } as Record<string, string>,
          agent: false,
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('end', () =>
            resolve({
              status: response.statusCode ?? 0,
              headers: response.headers,
              body: Buffer.concat(chunks).toString(),
            }),
          );
          response.on('error', reject);
        },
      );
      outgoing.on('error', reject);
      outgoing.end(body);
    });

  const call = (service: string, headers: Record<string, string>, body: string | Buffer): Promise<Answer> => {
    const signed = signRequest({ method: 'POST', url: `${url}/`, headers, body }, KEY, {
      region: 'eu-west-1',
      service,
      now: clock(),
    });
    return send({ headers: signed, body });
  };

  return {
    url,
    host,
    errors,
    checks,
    contexts,
    send,
    callEcr: (operation, body, headers = {}) =>
      call(
        'ecr',
        {
          'content-type': 'application/x-amz-json-1.1',
          'x-amz-target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
          ...headers,
        },
        body,
      ),
    callQuery: (service, body, headers = {}) =>
      call(service, { 'content-type': 'application/x-www-form-urlencoded; charset=utf-8', ...headers }, body),
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
