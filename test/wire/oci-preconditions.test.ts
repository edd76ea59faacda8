/** Preconditions of writes to manifests and blobs (RFC 9110 §13.1) on `/v2/`: If-Match and If-None-Match of PUT and DELETE. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, beforeEach, describe, it } from 'node:test';
import { check, startWireServer, type WireServer } from './server.ts';

const OCI = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const digestOf = (bytes: Uint8Array, algorithm = 'sha256'): string =>
  `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
const CONFIG = Buffer.from('{}');
const config = { mediaType: 'application/vnd.oci.empty.v1+json', digest: digestOf(CONFIG), size: 2 };
const manifestOf = (n: number): Buffer =>
  Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: OCI, config, layers: [], annotations: { n: `${n}` } }),
  );
const [A, B, C] = [manifestOf(1), manifestOf(2), manifestOf(3)];
const tagOf = (bytes: Uint8Array): string => `"${digestOf(bytes)}"`;

let server: WireServer;
let name = '';
let repositories = 0;

before(async () => {
  server = await startWireServer();
});
after(() => server.stop());

/** A repository with image A under the tag `v1`. */
async function prepare(): Promise<void> {
  name = `preconditions/${++repositories}`;
  await server.createRepository(name);
  await check(
    server,
    { method: 'POST', path: `/v2/${name}/blobs/uploads/?digest=${digestOf(CONFIG)}`, body: CONFIG },
    { status: 201 },
  );
  await put('v1', A, {}, 201);
}

type Headers = Readonly<Record<string, string>>;

async function put(reference: string, body: Buffer, headers: Headers, status: number): Promise<void> {
  const path = `/v2/${name}/manifests/${reference}`;
  const type = body.includes(INDEX) ? INDEX : OCI;
  await check(
    server,
    { method: 'PUT', path, body, headers: { 'Content-Type': type, ...headers } },
    { status },
  );
}

async function holds(reference: string, body: Buffer | undefined): Promise<void> {
  const expected = body === undefined ? { status: 404 } : { status: 200, bytes: body };
  await check(server, { path: `/v2/${name}/manifests/${reference}` }, expected);
}

const puts: [what: string, reference: string, headers: Headers, status: 201 | 412][] = [
  ['create only, tag there', 'v1', { 'If-None-Match': '*' }, 412],
  ['create only, tag not there', 'v2', { 'If-None-Match': '*' }, 201],
  ['another than this', 'v1', { 'If-None-Match': tagOf(A) }, 412],
  ['another than this, weakly', 'v1', { 'If-None-Match': `W/${tagOf(A)}` }, 412],
  ['another than that', 'v1', { 'If-None-Match': tagOf(B) }, 201],
  ['replace only', 'v1', { 'If-Match': '*' }, 201],
  ['replace only, tag not there', 'v2', { 'If-Match': '*' }, 412],
  ['replace this', 'v1', { 'If-Match': `"x", ${tagOf(A)}` }, 201],
  ['replace this, without quotes', 'v1', { 'If-Match': digestOf(A) }, 201],
  ['replace that', 'v1', { 'If-Match': tagOf(B) }, 412],
  ['replace this, weakly', 'v1', { 'If-Match': `W/${tagOf(A)}` }, 412],
  ['replace this and create', 'v1', { 'If-Match': tagOf(A), 'If-None-Match': '*' }, 412],
  ['by digest, create only', digestOf(B), { 'If-None-Match': '*' }, 201],
  ['by digest, replace only', digestOf(B), { 'If-Match': '*' }, 412],
  ['by sha512, create only', digestOf(B, 'sha512'), { 'If-None-Match': '*' }, 201],
  ['a date says nothing', 'v1', { 'If-Unmodified-Since': 'Thu, 01 Jan 1970 00:00:00 GMT' }, 201],
];

describe('PUT of a manifest under conditions', () => {
  beforeEach(prepare);
  for (const [what, reference, headers, status] of puts) {
    it(`${what} (${Object.keys(headers).join(', ')}): ${status}`, async () => {
      const before = reference === 'v1' ? A : undefined;
      await put(reference, B, headers, status);
      await holds(reference, status === 201 ? B : before);
      if (status === 412) await holds(digestOf(B), undefined);
    });
  }

  it('says in the error which condition it was', async () => {
    const path = `/v2/${name}/manifests/v1`;
    await check(
      server,
      { method: 'PUT', path, body: B, headers: { 'Content-Type': OCI, 'If-None-Match': '*' } },
      {
        status: 412,
        headers: { 'Content-Type': 'application/json' },
        error: ['PRECONDITION_FAILED', 'If-None-Match has the entity tag of the content.'],
      },
    );
  });

  it('by a digest that is there: 412 to create, 201 to replace, whichever its algorithm', async () => {
    for (const digest of [digestOf(A), digestOf(A, 'sha512')]) {
      await put(digest, A, {}, 201);
      await put(digest, A, { 'If-None-Match': '*' }, 412);
      await put(digest, A, { 'If-Match': `"${digest}"` }, 201);
      await put(digest, A, { 'If-Match': tagOf(B) }, 412);
    }
  });

  it('the tag of a tag set by sha512 is that digest, as GET says', async () => {
    const digest = digestOf(B, 'sha512');
    await put(`${digest}?tag=v5`, B, {}, 201);
    await check(
      server,
      { path: `/v2/${name}/manifests/v5` },
      { status: 200, headers: { ETag: `"${digest}"` } },
    );
    await put('v5', C, { 'If-Match': tagOf(B) }, 412);
    await put('v5', C, { 'If-Match': `"${digest}"` }, 201);
  });

  it('one of two that create a tag wins', async () => {
    const writers = [A, B, C, manifestOf(4), manifestOf(5)];
    const answers = await Promise.all(
      writers.map((body) =>
        server.request({
          method: 'PUT',
          path: `/v2/${name}/manifests/new`,
          body,
          headers: { 'Content-Type': OCI, 'If-None-Match': '*' },
        }),
      ),
    );
    assert.deepEqual(answers.map(({ status }) => status).sort(), [201, 412, 412, 412, 412]);
    const winner = writers[answers.findIndex(({ status }) => status === 201)];
    assert.ok(winner);
    await holds('new', winner);
  });
});

describe('DELETE of a manifest under conditions', () => {
  beforeEach(prepare);
  const cases: [reference: string, headers: Headers, status: 202 | 404 | 412][] = [
    ['v1', { 'If-Match': tagOf(A) }, 202],
    ['v1', { 'If-Match': '*' }, 202],
    ['v1', { 'If-Match': tagOf(B) }, 412],
    ['v1', { 'If-None-Match': '*' }, 412],
    ['v1', { 'If-None-Match': tagOf(B) }, 202],
    [digestOf(A), { 'If-Match': tagOf(A) }, 202],
    [digestOf(A), { 'If-Match': tagOf(B) }, 412],
    // A condition never hides another refusal.
    ['v2', { 'If-Match': '*' }, 404],
    [digestOf(B), { 'If-Match': tagOf(B) }, 404],
  ];
  for (const [reference, headers, status] of cases) {
    it(`${reference.slice(0, 10)} ${JSON.stringify(headers)}: ${status}`, async () => {
      const path = `/v2/${name}/manifests/${reference}`;
      await check(server, { method: 'DELETE', path, headers }, { status });
      await holds('v1', status === 202 ? undefined : A);
    });
  }

  it('of a member of an index is refused as without', async () => {
    const member = { mediaType: OCI, digest: digestOf(A), size: A.length };
    await put(
      'all',
      Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: INDEX, manifests: [member] })),
      {},
      201,
    );
    const path = `/v2/${name}/manifests/${digestOf(A)}`;
    await check(server, { method: 'DELETE', path, headers: { 'If-Match': '"x"' } }, { status: 405 });
  });
});

describe('DELETE of a blob under conditions', () => {
  beforeEach(prepare);
  it('412 when it is false, and the refusals there would be without', async () => {
    const blob = Buffer.from('a blob');
    const tag = tagOf(blob);
    const path = `/v2/${name}/blobs/${digestOf(blob)}`;
    const steps: [path: string, headers: Headers, status: number][] = [
      [path, { 'If-Match': tag }, 404],
      [path, { 'If-Match': '"x"' }, 412],
      [path, { 'If-None-Match': '*' }, 412],
      [path, { 'If-Match': tag }, 202],
      [path, { 'If-Match': '"x"' }, 404],
      [`/v2/${name}/blobs/${digestOf(CONFIG)}`, { 'If-Match': '"x"' }, 405],
    ];
    for (const [at, [target, headers, status]] of steps.entries()) {
      await check(server, { method: 'DELETE', path: target, headers }, { status });
      if (at > 0) continue;
      const upload = `/v2/${name}/blobs/uploads/?digest=${digestOf(blob)}`;
      await check(server, { method: 'POST', path: upload, body: blob }, { status: 201 });
    }
  });
});
