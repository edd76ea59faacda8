/**
 * Every constraint of the ECR model, broken alone and sent to the whole server: each built operation answers AWS's message. The
 * parser's own table is src/protocol/constraints.test.ts.
 */
import assert from 'node:assert/strict';
import { Agent, request as httpRequest } from 'node:http';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { start, type Berth } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { notBuiltOperations } from '../../src/ecr/not-built.ts';
import { createLog } from '../../src/lib/log.ts';
import { signRequest } from '../../src/lib/sigv4.ts';
import { ecrModel } from '../../src/model/service-model.ts';
import { casesOf, messageOf } from '../constraint-cases.ts';

const REFUSED = notBuiltOperations();
const BUILT = Object.entries(ecrModel.operations).filter(([name]) => !Object.hasOwn(REFUSED, name));

interface Answer {
  readonly status: number;
  readonly requestId: string | undefined;
  readonly body: { readonly __type?: string; readonly message?: string };
}

describe('constraints of the model, on the wire', () => {
  let data: string;
  let berth: Berth;
  let generated = 0;
  const agent = new Agent({ keepAlive: true });
  before(async () => {
    data = await mkdtemp(join(tmpdir(), 'berth-wire-constraints-'));
    berth = await start(readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform }), {
      log: createLog('silent'),
      clock: Date.now,
      tls: undefined,
      credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
    });
  });
  after(async () => {
    agent.destroy();
    await berth.stop();
    await rm(data, { recursive: true, force: true });
  });

  async function call(operation: string, input: unknown): Promise<Answer> {
    const { id = '', secret = '' } = berth.firstCredentials ?? {};
    const url = `${berth.endpoint}/`;
    const body = JSON.stringify(input);
    const headers = signRequest(
      {
        method: 'POST',
        url,
        headers: {
          'content-type': 'application/x-amz-json-1.1',
          'x-amz-target': `${ecrModel.metadata.targetPrefix}.${operation}`,
        },
        body,
      },
      { accessKeyId: id, secretAccessKey: secret },
      { region: 'us-east-1', service: 'ecr', now: Date.now() },
    );
    return new Promise((resolve, reject) => {
      const request = httpRequest(url, { method: 'POST', headers, agent }, (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => {
          const requestId = response.headers['x-amzn-requestid'];
          resolve({
            status: response.statusCode ?? 0,
            requestId: typeof requestId === 'string' ? requestId : undefined,
            body: JSON.parse(Buffer.concat(chunks).toString()) as Answer['body'],
          });
        });
      });
      request.on('error', reject);
      request.end(body);
    });
  }

  for (const [name, { input }] of BUILT) {
    void test(name, async () => {
      assert.ok(input !== undefined);
      for (const broken of casesOf(ecrModel, input)) {
        const { status, requestId, body } = await call(name, broken.input);
        const expected = { __type: 'InvalidParameterException', message: messageOf(broken) };
        assert.deepEqual({ status, body }, { status: 400, body: expected }, broken.path);
        assert.match(requestId ?? '', /^[0-9a-f-]{36}$/);
        generated++;
      }
    });
  }

  void test('the generated cases are not fewer than they were', () => {
    assert.equal(BUILT.length, 41);
    assert.ok(generated >= 200, `${generated}`);
  });
});
