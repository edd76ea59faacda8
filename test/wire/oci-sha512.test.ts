import { createHash, randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { ACCOUNT, basic, check, REGION, startWireServer, type WireServer } from './server.ts';

const OCI = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const NAME = 'long/digests';

const digest = (algorithm: 'sha256' | 'sha512', bytes: string | Uint8Array): string =>
  `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
const sha512 = (bytes: string | Uint8Array): string => digest('sha512', bytes);
const sha256 = (bytes: string | Uint8Array): string => digest('sha256', bytes);

let server: WireServer;
before(async () => {
  server = await startWireServer();
  await server.createRepository(NAME);
  await server.createRepository('long/target');
});
after(() => server.stop());

const stored = (bytes: string | Uint8Array, name = NAME) => ({
  status: 201,
  headers: {
    Location: `/v2/${name}/blobs/${sha512(bytes)}`,
    'Docker-Content-Digest': sha512(bytes),
    'Content-Length': '0',
  },
});

async function begin(query = ''): Promise<string> {
  const { headers } = await check(
    server,
    { method: 'POST', path: `/v2/${NAME}/blobs/uploads/${query}` },
    { status: 202 },
  );
  return String(headers.location);
}

const shown = (bytes: string | Uint8Array) => ({
  'Docker-Content-Digest': sha512(bytes),
  'Content-Length': String(bytes.length),
  ETag: `"${sha512(bytes)}"`,
});

describe('a blob by sha512', () => {
  it('is stored by every form of upload, and read, in part, and deleted', async () => {
    const forms: [name: string, send: (bytes: Buffer) => Promise<unknown>][] = [
      [
        'at once',
        (bytes) =>
          check(
            server,
            { method: 'POST', path: `/v2/${NAME}/blobs/uploads/?digest=${sha512(bytes)}`, body: bytes },
            stored(bytes),
          ),
      ],
      [
        'in the closing',
        async (bytes) => {
          const path = `${await begin('?digest-algorithm=sha512')}?digest=${sha512(bytes)}`;
          const put = { method: 'PUT', path, body: bytes };
          await check(server, put, stored(bytes));
          // The answer got lost.
          await check(server, put, stored(bytes));
        },
      ],
      [
        'streamed',
        async (bytes) => {
          const path = await begin();
          await check(server, { method: 'PATCH', path, body: bytes, chunked: true }, { status: 202 });
          await check(server, { method: 'PUT', path: `${path}?digest=${sha512(bytes)}` }, stored(bytes));
        },
      ],
    ];
    for (const [name, send] of forms) {
      const bytes = Buffer.concat([Buffer.from(name), randomBytes(2_000_000)]);
      await send(bytes);
      for (const known of [sha512(bytes), sha256(bytes)]) {
        const path = `/v2/${NAME}/blobs/${known}`;
        const headers = { 'Docker-Content-Digest': known, ETag: `"${known}"` };
        await check(server, { method: 'HEAD', path }, { status: 200, headers });
        await check(server, { path }, { status: 200, headers, bytes });
        await check(
          server,
          { path, headers: { Range: 'bytes=5-9', 'If-Range': `"${known}"` } },
          { status: 206, headers, bytes: bytes.subarray(5, 10) },
        );
        await check(server, { path, headers: { 'If-None-Match': `"${known}"` } }, { status: 304 });
      }
      const path = `/v2/${NAME}/blobs/${sha512(bytes)}`;
      await check(server, { method: 'DELETE', path }, { status: 202 });
      for (const known of [sha512(bytes), sha256(bytes)]) {
        await check(server, { method: 'HEAD', path: `/v2/${NAME}/blobs/${known}` }, { status: 404 });
      }
    }
  });

  it('is verified', async () => {
    const path = `${await begin()}?digest=${sha512('other')}`;
    await check(
      server,
      { method: 'PUT', path, body: 'text' },
      { status: 400, error: ['DIGEST_INVALID', 'provided digest did not match uploaded content'] },
    );
    await check(server, { method: 'PUT', path, body: 'text' }, { status: 404 });
    for (const bad of ['sha512:beef', sha512('x').toUpperCase(), `blake3:${'0'.repeat(64)}`]) {
      await check(
        server,
        { method: 'PUT', path: `${await begin()}?digest=${bad}`, body: 'x' },
        { status: 400, error: ['DIGEST_INVALID', /./] },
      );
    }
    await check(
      server,
      { method: 'POST', path: `/v2/${NAME}/blobs/uploads/?digest-algorithm=blake3` },
      { status: 400, error: ['DIGEST_INVALID', /./] },
    );
  });

  it('is mounted', async () => {
    const registry = { account: ACCOUNT, region: REGION };
    await server.store.transact('registry.configure', { registry, blobMounting: true });
    await check(
      server,
      { method: 'POST', path: `/v2/${NAME}/blobs/uploads/?digest=${sha512('mount')}`, body: 'mount' },
      stored('mount'),
    );
    for (const from of [`&from=${NAME}`, '']) {
      const path = `/v2/long/target/blobs/uploads/?mount=${sha512('mount')}${from}`;
      await check(server, { method: 'POST', path }, stored('mount', 'long/target'));
      const blob = `/v2/long/target/blobs/${sha512('mount')}`;
      await check(server, { path: blob }, { status: 200, text: 'mount' });
      await check(server, { method: 'DELETE', path: blob }, { status: 202 });
    }
  });
});

describe('a manifest by sha512', () => {
  const descriptor = (mediaType: string, bytes: string) => ({
    mediaType,
    digest: sha512(bytes),
    size: bytes.length,
  });
  const image = JSON.stringify({
    schemaVersion: 2,
    mediaType: OCI,
    config: descriptor('application/vnd.oci.empty.v1+json', '{}'),
    layers: [descriptor('application/octet-stream', 'layer')],
    subject: descriptor(OCI, 'absent'),
  });
  const index = JSON.stringify({
    schemaVersion: 2,
    mediaType: INDEX,
    manifests: [descriptor(OCI, image)],
  });
  const at = (reference: string): string => `/v2/${NAME}/manifests/${reference}`;
  const put = (reference: string, body: string, type = OCI) => ({
    method: 'PUT',
    path: at(reference),
    body,
    headers: { 'Content-Type': type },
  });
  const named = (body: string) => ({
    Location: at(sha512(body)),
    'Docker-Content-Digest': sha512(body),
  });

  it('needs its content by the digests it names', async () => {
    await check(server, put(sha512(image), image), {
      status: 400,
      error: ['MANIFEST_BLOB_UNKNOWN', new RegExp(`${sha512('{}')}, ${sha512('layer')}`)],
    });
    for (const blob of ['{}', 'layer']) {
      await check(
        server,
        { method: 'POST', path: `/v2/${NAME}/blobs/uploads/?digest=${sha512(blob)}`, body: blob },
        stored(blob),
      );
    }
    await check(server, put(sha512(index), index, INDEX), {
      status: 400,
      error: ['MANIFEST_BLOB_UNKNOWN', new RegExp(sha512(image))],
    });
    await check(server, put(sha512('other'), image), {
      status: 400,
      error: ['MANIFEST_INVALID', /does not match the image digest/],
    });
  });

  it('is pushed, tagged, pulled, referred to and deleted', async () => {
    await check(server, put(`${sha512(image)}?tag=one&tag=two`, image), {
      status: 201,
      headers: { ...named(image), 'OCI-Tag': 'one, two', 'OCI-Subject': sha512('absent') },
    });
    await check(server, put(sha512(index), index, INDEX), { status: 201, headers: named(index) });
    for (const reference of [sha512(image), 'one', 'two']) {
      for (const method of ['GET', 'HEAD']) {
        await check(
          server,
          { method, path: at(reference) },
          { status: 200, headers: { ...shown(image), 'Content-Type': OCI }, text: image },
        );
      }
    }
    await check(server, put('one', image), {
      status: 201,
      headers: { 'Docker-Content-Digest': sha256(image) },
    });
    for (const [tag, known] of [
      ['one', sha256(image)],
      ['two', sha512(image)],
    ] as const) {
      await check(server, { path: at(tag) }, { status: 200, headers: { 'Docker-Content-Digest': known } });
    }
    for (const [subject, count] of [
      [sha512('absent'), 1],
      [sha256('absent'), 0],
    ] as const) {
      const entry = { ...descriptor(OCI, image), artifactType: 'application/vnd.oci.empty.v1+json' };
      await check(
        server,
        { path: `/v2/${NAME}/referrers/${subject}` },
        {
          status: 200,
          json: { schemaVersion: 2, mediaType: INDEX, manifests: Array.from({ length: count }, () => entry) },
        },
      );
    }
    await check(
      server,
      { method: 'DELETE', path: at(sha512(image)) },
      { status: 405, error: ['UNSUPPORTED', /referenced by manifest list/] },
    );
    await check(server, { method: 'DELETE', path: at(sha512(index)) }, { status: 202 });
    await check(server, { method: 'DELETE', path: at(sha512(image)) }, { status: 202 });
    for (const reference of [sha512(image), sha256(image), 'one', 'two']) {
      await check(server, { path: at(reference) }, { status: 404 });
    }
    await check(server, { method: 'DELETE', path: at(sha512(image)) }, { status: 404 });
  });
});

describe('the catalog', () => {
  const names: string[] = [];
  before(async () => {
    for (const name of ['a/z', 'a-b', 'zebra']) await server.createRepository(name);
    await server.createRepository('elsewhere', { region: 'eu-west-1' });
    names.push('a-b', 'a/z', NAME, 'long/target', 'zebra');
  });

  const pages: [query: string, from: number, to: number, next: string | undefined][] = [
    ['', 0, 5, undefined],
    ['?n=2', 0, 2, '/v2/_catalog?n=2&last=a%2Fz'],
    ['?n=2&last=a%2Fz', 2, 4, '/v2/_catalog?n=2&last=long%2Ftarget'],
    ['?n=2&last=long/target', 4, 5, undefined],
    ['?n=0', 0, 0, undefined],
    ['?n=1000', 0, 5, undefined],
    ['?last=zzz', 5, 5, undefined],
  ];
  for (const [query, from, to, next] of pages) {
    it(`lists the repositories of one registry in order${query}`, async () => {
      const expected = {
        status: 200,
        headers: {
          'Content-Type': 'application/json',
          Link: next === undefined ? undefined : `<${next}>; rel="next"`,
        },
        json: { repositories: names.slice(from, to) },
      };
      await check(server, { path: `/v2/_catalog${query}` }, expected);
      await check(server, { method: 'HEAD', path: `/v2/_catalog${query}` }, { status: 200 });
    });
  }

  it('refuses what is no number, other methods, and who may not describe all repositories', async () => {
    for (const n of ['-1', 'x', '']) {
      await check(
        server,
        { path: `/v2/_catalog?n=${n}` },
        { status: 400, error: ['PAGINATION_NUMBER_INVALID', /./] },
      );
    }
    await check(
      server,
      { method: 'DELETE', path: '/v2/_catalog' },
      {
        status: 405,
        headers: { Allow: 'GET, HEAD' },
        error: ['UNSUPPORTED', 'The operation is unsupported.'],
      },
    );
    const host = `${ACCOUNT}.dkr.ecr.${REGION}.localhost`;
    await check(
      server,
      { path: '/v2/_catalog', auth: server.strangerAuth, headers: { Host: host } },
      {
        status: 403,
        error: ['DENIED', new RegExp(`ecr:DescribeRepositories on resource: .*:${ACCOUNT}:repository/\\*`)],
      },
    );
    await check(
      server,
      { path: '/v2/_catalog', auth: server.strangerAuth },
      { status: 200, json: { repositories: [] } },
    );
    await check(server, { path: '/v2/_catalog', auth: basic('') }, { status: 401 });
  });
});
