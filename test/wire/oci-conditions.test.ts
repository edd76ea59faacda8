/** Conditional requests for content (RFC 9110 §13) on `/v2/` and by download URL. */
import { createHash, randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { check, startWireServer, type Expected, type WireServer } from './server.ts';

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
const OCI = 'application/vnd.oci.image.manifest.v1+json';
const NAME = 'conditions/app';
const BLOB = randomBytes(3000);
const BLOB_TAG = `"${sha256(BLOB)}"`;
const CONFIG = Buffer.from('{}');
const MANIFEST = Buffer.from(
  JSON.stringify({
    schemaVersion: 2,
    mediaType: OCI,
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', digest: sha256(CONFIG), size: 2 },
    layers: [
      { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: sha256(BLOB), size: BLOB.length },
    ],
  }),
);
const PAST = 'Thu, 01 Jan 1970 00:00:00 GMT';
const FUTURE = 'Fri, 31 Dec 2199 00:00:00 GMT';

let server: WireServer;
before(async () => {
  server = await startWireServer();
  await server.createRepository(NAME);
  for (const bytes of [BLOB, CONFIG]) {
    const path = `/v2/${NAME}/blobs/uploads/?digest=${sha256(bytes)}`;
    await check(server, { method: 'POST', path, body: bytes }, { status: 201 });
  }
  await check(
    server,
    {
      method: 'PUT',
      path: `/v2/${NAME}/manifests/v1`,
      body: MANIFEST,
      headers: { 'Content-Type': OCI },
    },
    { status: 201 },
  );
});
after(() => server.stop());

const contents = [
  { what: 'a blob', bytes: BLOB, type: 'application/octet-stream', path: `blobs/${sha256(BLOB)}` },
  { what: 'a manifest by tag', bytes: MANIFEST, type: OCI, path: 'manifests/v1' },
  { what: 'a manifest by digest', bytes: MANIFEST, type: OCI, path: `manifests/${sha256(MANIFEST)}` },
];

/** `{}` stands for the digest of the content. */
const conditions: [headers: Record<string, string>, status: 200 | 304 | 412][] = [
  [{ 'If-Match': '"{}"' }, 200],
  [{ 'If-Match': '{}' }, 200],
  [{ 'If-Match': '*' }, 200],
  [{ 'If-Match': '"x", "{}"' }, 200],
  [{ 'If-Match': '"x"' }, 412],
  [{ 'If-Match': '' }, 412],
  [{ 'If-Match': 'W/"{}"' }, 412],
  [{ 'If-Match': '"x, {}, y"' }, 412],
  [{ 'If-None-Match': '"{}"' }, 304],
  [{ 'If-None-Match': 'W/"{}"' }, 304],
  [{ 'If-None-Match': '*' }, 304],
  [{ 'If-None-Match': '"x", "y"' }, 200],
  [{ 'If-Match': '"x"', 'If-None-Match': '"{}"' }, 412],
  [{ 'If-Match': '"{}"', 'If-None-Match': '"{}"' }, 304],
  [{ 'If-Match': '"{}"', 'If-None-Match': '"x"' }, 200],
  // There is no Last-Modified, so dates are nothing to compare with.
  [{ 'If-Modified-Since': FUTURE }, 200],
  [{ 'If-Unmodified-Since': PAST }, 200],
  [{ 'If-Match': '"{}"', 'If-Unmodified-Since': PAST }, 200],
  [{ 'If-None-Match': '"x"', 'If-Modified-Since': FUTURE }, 200],
];

for (const { what, bytes, type, path } of contents) {
  const digest = sha256(bytes);
  const head = { 'Docker-Content-Digest': digest, ETag: `"${digest}"`, 'Last-Modified': undefined };
  const whole = { ...head, 'Content-Type': type, 'Content-Length': String(bytes.length) };
  const message = 'None of the entity tags in If-Match is that of the content.';
  const expected: Record<200 | 304 | 412, Expected> = {
    200: { status: 200, headers: whole, bytes },
    304: { status: 304, headers: head },
    412: {
      status: 412,
      headers: { 'Content-Type': 'application/json' },
      error: ['PRECONDITION_FAILED', message],
    },
  };
  describe(`${what} under conditions`, () => {
    for (const [sent, status] of conditions)
      it(`${JSON.stringify(sent)}: ${status}`, async () => {
        const headers = Object.fromEntries(
          Object.entries(sent).map(([name, value]) => [name, value.replaceAll('{}', digest)]),
        );
        for (const method of ['GET', 'HEAD'])
          await check(server, { method, path: `/v2/${NAME}/${path}`, headers }, expected[status]);
      });
  });
}

describe('a condition on what is not there', () => {
  const absent = `sha256:${'0'.repeat(64)}`;
  for (const path of [`blobs/${absent}`, `manifests/${absent}`, 'manifests/none'])
    for (const headers of [
      { 'If-Match': '*' },
      { 'If-Match': '"x"' },
      { 'If-None-Match': '*' },
    ] satisfies Record<string, string>[])
      it(`${path} ${JSON.stringify(headers)}: 404`, async () => {
        for (const method of ['GET', 'HEAD'])
          await check(server, { method, path: `/v2/${NAME}/${path}`, headers }, { status: 404 });
      });

  it('is not looked at before access', async () => {
    const path = `/v2/${NAME}/blobs/${sha256(BLOB)}`;
    const headers = { 'If-Match': '"x"', 'If-None-Match': '*' };
    await check(server, { path, headers, auth: null }, { status: 401 });
  });
});

describe('a range under conditions', () => {
  const part: Expected = {
    status: 206,
    bytes: BLOB.subarray(5, 10),
    headers: { ETag: BLOB_TAG, 'Content-Range': 'bytes 5-9/3000', 'Content-Length': '5' },
  };
  const all: Expected = { status: 200, bytes: BLOB, headers: { ETag: BLOB_TAG, 'Content-Range': undefined } };
  const none: Expected = { status: 304 };
  const past = { Range: 'bytes=3000-' };
  const cases: [headers: Record<string, string>, expected: Expected][] = [
    [{ 'If-Range': BLOB_TAG }, part],
    [{ 'If-Range': '"x"' }, all],
    [{ 'If-Range': `W/${BLOB_TAG}` }, all],
    [{ 'If-Range': FUTURE }, all],
    [{ 'If-Match': BLOB_TAG }, part],
    [{ 'If-Match': BLOB_TAG, 'If-Range': '"x"' }, all],
    [{ 'If-Match': '"x"', 'If-Range': BLOB_TAG }, { status: 412 }],
    [{ 'If-None-Match': BLOB_TAG, 'If-Range': BLOB_TAG }, none],
    [{ 'If-None-Match': '"x"', 'If-Range': BLOB_TAG }, part],
    [{ 'If-Unmodified-Since': PAST }, part],
    [past, { status: 416, headers: { 'Content-Range': 'bytes */3000' } }],
    [
      { ...past, 'If-Match': '"x"' },
      { status: 412, headers: { 'Content-Range': undefined } },
    ],
    [{ ...past, 'If-None-Match': BLOB_TAG }, none],
    [{ ...past, 'If-Range': '"x"' }, all],
  ];
  for (const [sent, expected] of cases) {
    const headers = { Range: 'bytes=5-9', ...sent };
    it(`${JSON.stringify(sent)}: ${expected.status}`, () =>
      check(server, { path: `/v2/${NAME}/blobs/${sha256(BLOB)}`, headers }, expected).then(() => undefined));
  }

  it('If-Range without Range asks for nothing', async () => {
    await check(
      server,
      { path: `/v2/${NAME}/blobs/${sha256(BLOB)}`, headers: { 'If-Range': BLOB_TAG } },
      all,
    );
  });
});
