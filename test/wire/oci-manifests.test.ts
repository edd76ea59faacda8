import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { ACCOUNT, check, type Expected, startWireServer, type WireServer } from './server.ts';

const OCI = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const DOCKER = 'application/vnd.docker.distribution.manifest.v2+json';
const EMPTY_CONFIG = 'application/vnd.oci.empty.v1+json';
const ZERO = `sha256:${'0'.repeat(64)}`;

const sha256 = (bytes: string | Uint8Array): string =>
  `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

let server: WireServer;
before(async () => {
  server = await startWireServer();
});
after(() => server.stop());

/** A repository with the blobs `{}` and `layer`. */
async function repositoryOf(
  name: string,
  values?: Parameters<WireServer['createRepository']>[1],
): Promise<string> {
  await server.createRepository(name, values);
  for (const blob of ['{}', 'layer']) {
    await check(
      server,
      { method: 'POST', path: `/v2/${name}/blobs/uploads/?digest=${sha256(blob)}`, body: blob },
      { status: 201 },
    );
  }
  return name;
}

const descriptor = (mediaType: string, bytes: string) => ({
  mediaType,
  digest: sha256(bytes),
  size: Buffer.byteLength(bytes),
});

function image(more: Record<string, unknown> = {}): string {
  return JSON.stringify({
    schemaVersion: 2,
    mediaType: OCI,
    config: descriptor(EMPTY_CONFIG, '{}'),
    layers: [descriptor('application/vnd.oci.image.layer.v1.tar', 'layer')],
    ...more,
  });
}

const index = (children: string[], more: Record<string, unknown> = {}): string =>
  JSON.stringify({
    schemaVersion: 2,
    mediaType: INDEX,
    manifests: children.map((child) => descriptor(OCI, child)),
    ...more,
  });

function put(name: string, reference: string, body: string | Uint8Array, type: string | undefined = OCI) {
  return {
    method: 'PUT',
    path: `/v2/${name}/manifests/${reference}`,
    body,
    headers: type === '' ? {} : { 'Content-Type': type },
  };
}

const stored = (name: string, body: string, more: Record<string, string | undefined> = {}): Expected => ({
  status: 201,
  headers: {
    Location: `/v2/${name}/manifests/${sha256(body)}`,
    'Docker-Content-Digest': sha256(body),
    'Content-Length': '0',
    'OCI-Subject': undefined,
    'OCI-Tag': undefined,
    ...more,
  },
});

const notFound: Expected = { status: 404, error: ['MANIFEST_UNKNOWN', 'Requested image not found'] };

describe('a manifest', () => {
  it('comes back byte for byte under its type, by tag and digest, whatever Accept says', async () => {
    const name = await repositoryOf('m/read');
    const body = `${image()}\n \n`;
    await check(server, put(name, 'v1', body, `${OCI}; charset=utf-8`), stored(name, body));
    const head = {
      'Content-Type': OCI,
      'Content-Length': String(body.length),
      'Docker-Content-Digest': sha256(body),
      ETag: `"${sha256(body)}"`,
    };
    for (const reference of ['v1', sha256(body), encodeURIComponent(sha256(body))]) {
      const path = `/v2/${name}/manifests/${reference}`;
      for (const accept of ['*/*', DOCKER, 'text/html']) {
        await check(
          server,
          { path, headers: { Accept: accept } },
          { status: 200, bytes: Buffer.from(body), headers: head },
        );
      }
      await check(server, { method: 'HEAD', path }, { status: 200, headers: head });
      for (const tag of [`"${sha256(body)}"`, sha256(body)]) {
        await check(server, { path, headers: { 'If-None-Match': tag } }, { status: 304 });
      }
      await check(server, { path, headers: { 'If-None-Match': `"${ZERO}"` } }, { status: 200 });
    }
  });

  it('is taken again, and again with its tag', async () => {
    const name = await repositoryOf('m/again');
    for (const reference of ['v1', 'v1', sha256(image()), 'v2']) {
      await check(server, put(name, reference, image()), stored(name, image()));
    }
    await check(
      server,
      { path: `/v2/${name}/tags/list` },
      { status: 200, json: { name, tags: ['v1', 'v2'] } },
    );
  });

  it('needs no Content-Type when the document tells', async () => {
    const name = await repositoryOf('m/typeless');
    await check(server, put(name, 'v1', image(), ''), stored(name, image()));
    await check(server, put(name, 'v1', image(), OCI.replace('oci', 'OCI')), stored(name, image()));
    await check(
      server,
      { path: `/v2/${name}/manifests/v1` },
      { status: 200, headers: { 'Content-Type': OCI } },
    );
  });

  it('by digest sets any number of tags at once', async () => {
    const name = await repositoryOf('m/tags');
    const body = image();
    const tags = Array.from({ length: 12 }, (_, i) => `t${String(i).padStart(2, '0')}`);
    const query = tags.map((tag) => `tag=${tag}`).join('&');
    await check(
      server,
      put(name, `${sha256(body)}?${query}&tag=t00`, body),
      stored(name, body, { 'OCI-Tag': tags.join(', ') }),
    );
    await check(server, { path: `/v2/${name}/tags/list` }, { status: 200, json: { name, tags } });
    await check(server, put(name, `${sha256(body)}?tag=ok&tag=.bad`, body), {
      status: 400,
      error: ['TAG_INVALID', /imageTag/],
    });
    await check(server, { path: `/v2/${name}/manifests/ok` }, notFound);
  });

  it('that cannot be stored is refused', async () => {
    const name = await repositoryOf('m/bad');
    const gone = image({ layers: [descriptor('application/x', 'never pushed')] });
    const cases: [what: string, request: ReturnType<typeof put>, expected: Expected][] = [
      [
        'missing layer',
        put(name, 'v1', gone),
        {
          status: 400,
          error: [
            'MANIFEST_BLOB_UNKNOWN',
            `Layers with digests '[${sha256('never pushed')}]' required for pushing image into repository with name '${name}' in the registry with id '${ACCOUNT}' do not exist`,
          ],
        },
      ],
      [
        'missing child',
        put(name, 'v1', index([image()]), INDEX),
        {
          status: 400,
          error: [
            'MANIFEST_BLOB_UNKNOWN',
            `Images with digests '[${sha256(image())}]' required for pushing image into repository with name '${name}' in the registry with id '${ACCOUNT}' do not exist`,
          ],
        },
      ],
      [
        'other digest',
        put(name, ZERO, image()),
        {
          status: 400,
          error: [
            'MANIFEST_INVALID',
            `The image with digest '${ZERO}' in repository '${name}' and registry ID '${ACCOUNT}' does not match the image digest that Amazon ECR has calculated.`,
          ],
        },
      ],
      ['not JSON', put(name, 'v1', '{'), { status: 405, error: ['UNSUPPORTED', /Invalid JSON syntax/] }],
      [
        'a type that PostgreSQL could not keep',
        put(name, 'v1', image({ artifactType: 'a/b\0' })),
        { status: 405, error: ['UNSUPPORTED', /artifactType must be a short text/] },
      ],
      ['nothing', put(name, 'v1', ''), { status: 405, error: ['UNSUPPORTED', /./] }],
      [
        'wrong size of a layer',
        put(name, 'v1', image({ layers: [{ ...descriptor('application/x', 'layer'), size: 4 }] })),
        { status: 400, error: ['MANIFEST_INVALID', /./] },
      ],
      ['bad tag', put(name, '.v1', image()), { status: 400, error: ['TAG_INVALID', /imageTag/] }],
      ['bad digest', put(name, 'sha256:x', image()), { status: 400, error: ['DIGEST_INVALID', /./] }],
    ];
    for (const [, request, expected] of cases) await check(server, request, expected);
    await check(server, { path: `/v2/${name}/tags/list` }, { status: 200, json: { name, tags: [] } });
  });

  it('may be 4 MiB and no more', async () => {
    const name = await repositoryOf('m/large');
    const fill = (size: number): string => {
      const bare = image({ annotations: { x: '' } });
      return image({ annotations: { x: 'a'.repeat(size - bare.length) } });
    };
    const largest = fill(4_194_304);
    assert.equal(largest.length, 4_194_304);
    await check(server, put(name, 'v1', largest), stored(name, largest));
    await check(server, { path: `/v2/${name}/manifests/v1` }, { status: 200, bytes: Buffer.from(largest) });
    for (const chunked of [false, true]) {
      await check(
        server,
        { ...put(name, 'v2', fill(4_194_305)), chunked },
        { status: 413, error: ['MANIFEST_INVALID', 'The manifest is larger than 4194304 bytes.'] },
      );
    }
  });

  it('cannot move an immutable tag', async () => {
    const name = await repositoryOf('m/fixed', { mutability: 'IMMUTABLE' });
    await check(server, put(name, 'v1', image()), { status: 201 });
    await check(server, put(name, 'v1', image()), { status: 201 });
    await check(server, put(name, 'v1', image({ annotations: { a: 'b' } })), {
      status: 400,
      error: [
        'TAG_INVALID',
        `The image tag 'v1' already exists in the '${name}' repository and cannot be overwritten because the repository is immutable.`,
      ],
    });
  });
});

describe('deleting a manifest', () => {
  it('by digest takes its tags along', async () => {
    const name = await repositoryOf('d/digest');
    for (const tag of ['a', 'b']) await check(server, put(name, tag, image()), { status: 201 });
    const path = `/v2/${name}/manifests/${sha256(image())}`;
    await check(server, { method: 'DELETE', path }, { status: 202, headers: { 'Content-Length': '0' } });
    for (const reference of ['a', 'b', sha256(image())]) {
      await check(server, { path: `/v2/${name}/manifests/${reference}` }, notFound);
    }
    await check(server, { method: 'DELETE', path }, notFound);
  });

  it('by tag takes the tag, and with the last one the image', async () => {
    const name = await repositoryOf('d/tag');
    for (const tag of ['a', 'b']) await check(server, put(name, tag, image()), { status: 201 });
    await check(server, { method: 'DELETE', path: `/v2/${name}/manifests/a` }, { status: 202 });
    await check(server, { path: `/v2/${name}/manifests/a` }, notFound);
    await check(server, { path: `/v2/${name}/manifests/${sha256(image())}` }, { status: 200 });
    await check(server, { method: 'DELETE', path: `/v2/${name}/manifests/b` }, { status: 202 });
    await check(server, { path: `/v2/${name}/manifests/${sha256(image())}` }, notFound);
  });

  it('is refused while an index needs it, and its blobs while it needs them', async () => {
    const name = await repositoryOf('d/child');
    await check(server, put(name, sha256(image()), image()), { status: 201 });
    await check(server, put(name, 'list', index([image()]), INDEX), { status: 201 });
    const child = `/v2/${name}/manifests/${sha256(image())}`;
    const layer = `/v2/${name}/blobs/${sha256('layer')}`;
    await check(server, { method: 'DELETE', path: child }, { status: 405, error: ['UNSUPPORTED', /./] });
    await check(
      server,
      { method: 'DELETE', path: layer },
      { status: 405, error: ['UNSUPPORTED', /is referenced by an image/] },
    );
    await check(server, { method: 'DELETE', path: `/v2/${name}/manifests/list` }, { status: 202 });
    await check(server, { method: 'DELETE', path: child }, { status: 202 });
    await check(server, { method: 'DELETE', path: layer }, { status: 202 });
  });
});

describe('the list of tags', () => {
  const name = 'tags/many';
  const all = ['1', '10', '2', 'A', 'B', '_x', 'a', 'b'];
  before(async () => {
    await repositoryOf(name);
    const query = all.map((tag) => `tag=${tag}`).join('&');
    await check(server, put(name, `${sha256(image())}?${query}`, image()), { status: 201 });
  });

  const pages: [query: string, tags: string[], link: string | undefined][] = [
    ['', all, undefined],
    ['?n=8', all, undefined],
    ['?n=1000', all, undefined],
    ['?n=3', ['1', '10', '2'], `</v2/${name}/tags/list?n=3&last=2>; rel="next"`],
    ['?n=3&last=2', ['A', 'B', '_x'], `</v2/${name}/tags/list?n=3&last=_x>; rel="next"`],
    ['?n=3&last=_x', ['a', 'b'], undefined],
    ['?last=A', ['B', '_x', 'a', 'b'], undefined],
    ['?last=5', ['A', 'B', '_x', 'a', 'b'], undefined],
    ['?last=zzz', [], undefined],
    ['?last=', all, undefined],
    ['?n=0', [], undefined],
    ['?unknown=1', all, undefined],
    ['?last=A%00z', ['B', '_x', 'a', 'b'], undefined],
  ];
  for (const [query, tags, link] of pages) {
    it(`in byte order: ${query}`, async () => {
      await check(
        server,
        { path: `/v2/${name}/tags/list${query}` },
        { status: 200, json: { name, tags }, headers: { Link: link, 'Content-Type': 'application/json' } },
      );
    });
  }
  for (const n of ['1001', '100000', '999999999999999999']) {
    it(`refuses n=${n} as ECR does`, async () => {
      await check(
        server,
        { path: `/v2/${name}/tags/list?n=${n}` },
        {
          status: 405,
          error: [
            'UNSUPPORTED',
            /^Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value less than or equal to 1000'$/,
          ],
        },
      );
    });
  }
  for (const n of ['-1', 'x', '1.5', '', '1e3', '99999999999999999999']) {
    it(`refuses n=${n}`, async () => {
      await check(
        server,
        { path: `/v2/${name}/tags/list?n=${n}` },
        { status: 400, error: ['PAGINATION_NUMBER_INVALID', /./] },
      );
    });
  }
});

describe('referrers', () => {
  const name = 'ref/errers';
  const subject = image();
  const signature = image({
    subject: descriptor(OCI, subject),
    artifactType: 'application/vnd.example.signature',
    annotations: { who: 'me' },
  });
  const plain = image({ subject: descriptor(OCI, subject) });
  const list = index([], { subject: descriptor(OCI, subject) });
  const of = (body: string, type: string, artifactType?: string, annotations?: unknown) => ({
    ...descriptor(type, body),
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(annotations === undefined ? {} : { annotations }),
  });
  const entries = [
    of(signature, OCI, 'application/vnd.example.signature', { who: 'me' }),
    of(plain, OCI, EMPTY_CONFIG),
    of(list, INDEX),
  ];
  before(async () => {
    await repositoryOf(name);
    for (const [body, type] of [
      [signature, OCI],
      [plain, OCI],
      [list, INDEX],
    ] as const) {
      // The subject itself comes last.
      await check(
        server,
        put(name, sha256(body), body, type),
        stored(name, body, { 'OCI-Subject': sha256(subject) }),
      );
    }
    await check(server, put(name, 'v1', subject), stored(name, subject));
  });

  const answers: [query: string, manifests: unknown[], applied: string | undefined][] = [
    ['', entries, undefined],
    ['?artifactType=application/vnd.example.signature', [entries[0]], 'artifactType'],
    ['?artifactType=application%2Fvnd.oci.empty.v1%2Bjson', [entries[1]], 'artifactType'],
    [
      `?artifactType=application/vnd.example.signature&artifactType=${encodeURIComponent(EMPTY_CONFIG)}`,
      entries.slice(0, 2),
      'artifactType',
    ],
    ['?artifactType=none', [], 'artifactType'],
    ['?artifactType=%00', [], 'artifactType'],
    ['?artifactType=', entries, undefined],
    ['?unknown=x', entries, undefined],
  ];
  for (const [query, manifests, applied] of answers) {
    it(`of a subject${query}`, async () => {
      await check(
        server,
        { path: `/v2/${name}/referrers/${sha256(subject)}${query}` },
        {
          status: 200,
          json: { schemaVersion: 2, mediaType: INDEX, manifests },
          headers: { 'Content-Type': INDEX, 'OCI-Filters-Applied': applied, Link: undefined },
        },
      );
    });
  }

  it('after a position that is none is refused', async () => {
    await check(
      server,
      { path: `/v2/${name}/referrers/${sha256(subject)}?last=${sha256(plain)}` },
      { status: 400, error: ['PAGINATION_NUMBER_INVALID', /last entry/] },
    );
  });

  it('of a subject that does not exist are none', async () => {
    await check(
      server,
      { path: `/v2/${name}/referrers/${ZERO}` },
      {
        status: 200,
        json: { schemaVersion: 2, mediaType: INDEX, manifests: [] },
        headers: { 'Content-Type': INDEX },
      },
    );
  });

  it('too long for one page go on in the next, each under 4 MiB', async () => {
    const long = await repositoryOf('ref/long');
    const digests: string[] = [];
    for (let i = 0; i < 3; i++) {
      const body = image({
        subject: descriptor(OCI, subject),
        annotations: { i: String(i), x: 'a'.repeat(1_900_000) },
      });
      digests.push(sha256(body));
      await check(server, put(long, sha256(body), body), { status: 201 });
    }
    const found: string[] = [];
    let path: string | undefined =
      `/v2/${long}/referrers/${sha256(subject)}?artifactType=${encodeURIComponent(EMPTY_CONFIG)}`;
    let pages = 0;
    while (path !== undefined) {
      const answer = await check(
        server,
        { path },
        { status: 200, headers: { 'OCI-Filters-Applied': 'artifactType' } },
      );
      assert.ok(answer.bytes.length < 4 * 1_048_576);
      const { manifests } = JSON.parse(answer.bytes.toString()) as { manifests: { digest: string }[] };
      found.push(...manifests.map(({ digest }) => digest));
      path = /^<(.*)>; rel="next"$/.exec(String(answer.headers.link))?.[1];
      pages++;
    }
    assert.deepEqual(found, digests);
    assert.equal(pages, 2);
  });
});
