import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, it } from 'node:test';
import { Fault, type FaultCode, FAULTS } from '../domain/faults.ts';
import { Exchange } from '../http/http.ts';
import { sendFailure } from './errors.ts';

let server: Server;
let failure: unknown;
const reported: unknown[] = [];

before(async () => {
  server = createServer((request, response) => {
    const exchange = new Exchange(request, response, { requestId: 'id', secure: false });
    sendFailure(exchange, failure, (error) => reported.push(error));
  });
  server.listen(0);
  await once(server, 'listening');
});
after(() => {
  server.closeAllConnections();
  server.close();
});

async function answerTo(error: unknown): Promise<{ status: number; headers: Headers; body: unknown }> {
  failure = error;
  const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v2/`);
  return { status: answer.status, headers: answer.headers, body: await answer.json() };
}

it('every fault of the catalogue has an answer in the form of the specification', async () => {
  for (const code of Object.keys(FAULTS) as FaultCode[]) {
    const { status, headers, body } = await answerTo(new Fault(code, 'the message'));
    const { errors } = body as { errors: { code: string; message: string }[] };
    assert.equal(status, FAULTS[code].oci[1], code);
    assert.ok(status >= 400);
    assert.equal(errors.length, 1);
    assert.equal(errors[0]?.code, FAULTS[code].oci[0]);
    assert.match(errors[0].code, /^[A-Z_]+$/);
    assert.notEqual(errors[0].message, '');
    assert.equal(headers.get('content-type'), 'application/json');
    assert.equal(headers.get('retry-after'), status === 429 || status === 503 ? '1' : null);
  }
});

it('what ECR and distribution say stays what they say', async () => {
  const sentences: [code: FaultCode, message: string][] = [
    ['ImageNotFoundException', 'Requested image not found'],
    ['LayerNotFound', 'blob unknown to registry'],
    ['UploadNotFoundException', 'blob upload unknown to registry'],
    ['InvalidRegistryToken', 'Your Authorization Token is invalid.'],
    ['ExpiredRegistryToken', 'Your authorization token has expired. Reauthenticate and try again.'],
    ['ThrottlingException', 'Rate exceeded'],
    ['AccessDeniedException', 'the message'],
  ];
  for (const [code, message] of sentences) {
    const { body } = await answerTo(new Fault(code, 'the message'));
    assert.equal((body as { errors: { message: string }[] }).errors[0]?.message, message);
  }
});

it('the members of a fault are its detail', async () => {
  const { body } = await answerTo(
    new Fault('InvalidLayerPartException', 'text', { lastValidByteReceived: 9 }),
  );
  assert.deepEqual(body, {
    errors: [{ code: 'BLOB_UPLOAD_INVALID', message: 'text', detail: { lastValidByteReceived: 9 } }],
  });
});

it('a defect is reported and shows nothing of itself', async () => {
  reported.length = 0;
  const defect = new TypeError('secret inside');
  const { status, body } = await answerTo(defect);
  assert.equal(status, 500);
  assert.deepEqual(body, { errors: [{ code: 'UNKNOWN', message: 'unknown error' }] });
  assert.deepEqual(reported, [defect]);
});
