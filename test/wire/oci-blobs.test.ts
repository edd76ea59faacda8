import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import {
  ACCOUNT,
  check,
  type Expected,
  REGION,
  startWireServer,
  type WireRequest,
  type WireServer,
} from './server.ts';

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
const EMPTY = sha256(Buffer.alloc(0));
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

let server: WireServer;
before(async () => {
  server = await startWireServer();
  await server.createRepository('team/app');
});
after(() => server.stop());

async function startUpload(name = 'team/app'): Promise<string> {
  const { headers } = await check(
    server,
    { method: 'POST', path: `/v2/${name}/blobs/uploads/`, headers: { 'Content-Type': 'application/json' } },
    { status: 202, headers: { 'Docker-Upload-UUID': UUID, Range: '0-0', 'Content-Length': '0' } },
  );
  assert.equal(headers.location, `/v2/${name}/blobs/uploads/${headers['docker-upload-uuid'] as string}`);
  return headers.location;
}

const stored = (digest: string, name = 'team/app'): Expected => ({
  status: 201,
  headers: {
    Location: `/v2/${name}/blobs/${digest}`,
    'Docker-Content-Digest': digest,
    'Content-Length': '0',
  },
});

async function push(bytes: Uint8Array, name = 'team/app'): Promise<string> {
  const digest = sha256(bytes);
  const path = `/v2/${name}/blobs/uploads/?digest=${digest}`;
  await check(server, { method: 'POST', path, body: bytes }, stored(digest, name));
  return digest;
}

async function uploads(): Promise<number> {
  const rows = await server.store.read
    .selectFrom('upload')
    .select('id')
    .where('completed_digest', 'is', null)
    .execute();
  return rows.length;
}

describe('an upload', () => {
  it('in one request', async () => {
    const before = await uploads();
    await push(randomBytes(5000));
    await push(Buffer.alloc(0));
    assert.equal(await uploads(), before);
  });

  it('in one request that fails leaves nothing', async () => {
    const before = await uploads();
    const cases: [digest: string, status: number, code: string][] = [
      [EMPTY, 400, 'DIGEST_INVALID'],
      ['sha256:beef', 400, 'DIGEST_INVALID'],
      ['', 400, 'DIGEST_INVALID'],
      [`blake3:${'a'.repeat(64)}`, 400, 'DIGEST_INVALID'],
    ];
    for (const [digest, status, code] of cases) {
      await check(
        server,
        { method: 'POST', path: `/v2/team/app/blobs/uploads/?digest=${digest}`, body: 'bytes' },
        { status, error: [code, /./] },
      );
    }
    assert.equal(await uploads(), before);
    assert.deepEqual((await server.leftovers()).files, []);
  });

  it('streamed in one PATCH and ended by an empty PUT', async () => {
    const bytes = randomBytes(300_000);
    const location = await startUpload();
    const { headers } = await check(
      server,
      { method: 'PATCH', path: location, body: bytes, chunked: true },
      { status: 202, headers: { Location: location, Range: '0-299999', 'Content-Length': '0' } },
    );
    assert.match(String(headers['docker-upload-uuid']), UUID);
    await check(
      server,
      { method: 'PUT', path: `${location}?digest=${sha256(bytes)}` },
      stored(sha256(bytes)),
    );
    await check(
      server,
      { path: `/v2/team/app/blobs/${sha256(bytes)}` },
      { status: 200, bytes, headers: { 'Content-Length': '300000' } },
    );
  });

  it('of a single PUT, repeated after its answer was lost', async () => {
    const bytes = randomBytes(2000);
    const location = await startUpload();
    const put = {
      method: 'PUT',
      path: `${location}?digest=${encodeURIComponent(sha256(bytes))}`,
      body: bytes,
    };
    await check(server, put, stored(sha256(bytes)));
    await check(server, put, stored(sha256(bytes)));
    await check(server, { ...put, body: '' }, stored(sha256(bytes)));
    await check(
      server,
      { method: 'PUT', path: `${location}?digest=${EMPTY}` },
      { status: 404, error: ['BLOB_UPLOAD_UNKNOWN', /./] },
    );
  });

  it('of no bytes', async () => {
    const location = await startUpload();
    await check(server, { method: 'PUT', path: `${location}?digest=${EMPTY}` }, stored(EMPTY));
    await check(server, { path: `/v2/team/app/blobs/${EMPTY}` }, { status: 200, text: '' });
  });

  it('in chunks, the last in the PUT', async () => {
    const bytes = randomBytes(3000);
    const location = await startUpload();
    for (const [first, last] of [
      [0, 999],
      [1000, 1999],
    ] as const) {
      await check(
        server,
        {
          method: 'PATCH',
          path: location,
          body: bytes.subarray(first, last + 1),
          headers: { 'Content-Range': `${first}-${last}` },
        },
        { status: 202, headers: { Location: location, Range: `0-${last}` } },
      );
    }
    await check(
      server,
      {
        method: 'PUT',
        path: `${location}?digest=${sha256(bytes)}`,
        body: bytes.subarray(2000),
        headers: { 'Content-Range': '2000-2999' },
      },
      stored(sha256(bytes)),
    );
    await check(server, { path: `/v2/team/app/blobs/${sha256(bytes)}` }, { status: 200, bytes });
  });

  it('refuses chunks out of place and says where it is', async () => {
    const location = await startUpload();
    await check(
      server,
      { method: 'PATCH', path: location, body: 'x'.repeat(1024), headers: { 'Content-Range': '0-1023' } },
      { status: 202 },
    );
    const where = { Location: location, Range: '0-1023', 'Docker-Upload-UUID': UUID };
    const cases: [method: string, path: string, range: string, code: string][] = [
      ['PATCH', location, '0-1023', 'BLOB_UPLOAD_INVALID'],
      ['PATCH', location, '2048-3071', 'BLOB_UPLOAD_INVALID'],
      ['PUT', `${location}?digest=${EMPTY}`, '2048-3071', 'BLOB_UPLOAD_INVALID'],
      ['PATCH', location, 'nonsense', 'RANGE_INVALID'],
      ['PATCH', location, '9-1', 'RANGE_INVALID'],
      ['PATCH', location, 'bytes=1024-2047', 'RANGE_INVALID'],
      ['PUT', `${location}?digest=${EMPTY}`, '1024-', 'RANGE_INVALID'],
    ];
    for (const [method, path, range, code] of cases) {
      await check(
        server,
        { method, path, body: 'y'.repeat(1024), headers: { 'Content-Range': range } },
        { status: 416, headers: where, error: [code, /./] },
      );
      await check(server, { path }, { status: 204, headers: where });
      await check(server, { method: 'HEAD', path }, { status: 204, headers: where });
    }
    await check(
      server,
      { method: 'PATCH', path: location, body: 'y'.repeat(10), headers: { 'Content-Range': '2000-2009' } },
      { status: 416, error: ['BLOB_UPLOAD_INVALID', 'First byte of the layer part is 2000 instead of 1024'] },
    );
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('refuses a length other than the announced and keeps what it had', async () => {
    const location = await startUpload();
    const cases: [range: string, chunked: boolean][] = [
      ['0-4', false],
      ['0-98', false],
      ['0-4', true],
      ['0-98', true],
    ];
    for (const [range, chunked] of cases) {
      await check(
        server,
        {
          method: 'PATCH',
          path: location,
          body: 'ten bytes!',
          chunked,
          headers: { 'Content-Range': range },
        },
        { status: 400, error: ['SIZE_INVALID', /./] },
      );
      await check(server, { path: location }, { status: 204, headers: { Range: '0-0' } });
    }
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('larger than a layer may be is refused by its announcement', async () => {
    const location = await startUpload();
    await check(
      server,
      {
        method: 'PATCH',
        path: location,
        body: 'x',
        chunked: true,
        headers: { 'Content-Range': '0-54525952000' },
      },
      { status: 413, error: ['SIZE_INVALID', 'A layer may have at most 54525952000 bytes.'] },
    );
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('stays usable after a PUT with no or a malformed digest, and ends with a wrong one', async () => {
    const location = await startUpload();
    for (const query of ['', '?digest=', '?digest=sha256:beef', '?digest=md5:beef']) {
      await check(
        server,
        { method: 'PUT', path: `${location}${query}` },
        { status: 400, error: ['DIGEST_INVALID', /./] },
      );
    }
    await check(server, { method: 'PATCH', path: location, body: 'abc' }, { status: 202 });
    await check(
      server,
      { method: 'PUT', path: `${location}?digest=${EMPTY}` },
      { status: 400, error: ['DIGEST_INVALID', 'provided digest did not match uploaded content'] },
    );
    await check(
      server,
      { path: location },
      { status: 404, error: ['BLOB_UPLOAD_UNKNOWN', 'blob upload unknown to registry'] },
    );
  });

  it('can be given up', async () => {
    const location = await startUpload();
    await check(server, { method: 'PATCH', path: location, body: 'abc' }, { status: 202 });
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
    for (const method of ['GET', 'DELETE', 'PATCH', 'HEAD']) {
      await check(server, { method, path: location }, { status: 404 });
    }
  });

  it('belongs to its repository', async () => {
    await server.createRepository('team/elsewhere');
    const location = await startUpload();
    const elsewhere = location.replace('team/app', 'team/elsewhere');
    for (const method of ['GET', 'PATCH', 'DELETE']) {
      await check(server, { method, path: elsewhere }, { status: 404 });
    }
    await check(server, { method: 'PUT', path: `${elsewhere}?digest=${EMPTY}` }, { status: 404 });
    await check(server, { path: location }, { status: 204 });
    await check(server, { method: 'DELETE', path: location }, { status: 204 });
  });

  it('of the same content twice at once succeeds twice', async () => {
    const bytes = randomBytes(100_000);
    const digest = sha256(bytes);
    const locations = await Promise.all([startUpload(), startUpload(), startUpload()]);
    await Promise.all(
      locations.map((location) =>
        check(server, { method: 'PUT', path: `${location}?digest=${digest}`, body: bytes }, stored(digest)),
      ),
    );
    await check(server, { path: `/v2/team/app/blobs/${digest}` }, { status: 200, bytes });
  });

  it('with digest-algorithm begins when the algorithm is known', async () => {
    const path = '/v2/team/app/blobs/uploads/?digest-algorithm=';
    const { headers } = await check(server, { method: 'POST', path: `${path}sha256` }, { status: 202 });
    await check(server, { method: 'DELETE', path: String(headers.location) }, { status: 204 });
    await check(
      server,
      { method: 'POST', path: `${path}md5` },
      { status: 400, error: ['DIGEST_INVALID', /./] },
    );
  });
});

describe('a blob', () => {
  const bytes = randomBytes(2_500_000);
  const digest = sha256(bytes);
  const path = `/v2/team/app/blobs/${digest}`;
  const head = {
    'Content-Type': 'application/octet-stream',
    'Docker-Content-Digest': digest,
    'Accept-Ranges': 'bytes',
    ETag: `"${digest}"`,
  };
  before(() => push(bytes));

  it('is sent whole', async () => {
    await check(server, { path }, { status: 200, bytes, headers: { ...head, 'Content-Range': undefined } });
    await check(
      server,
      { path: `/v2/team/app/blobs/${encodeURIComponent(digest)}` },
      { status: 200, bytes, headers: head },
    );
    await check(
      server,
      { method: 'HEAD', path },
      { status: 200, headers: { ...head, 'Content-Length': '2500000' } },
    );
  });

  const ranges: [range: string, first: number, last: number][] = [
    ['bytes=0-0', 0, 0],
    ['bytes=500-1499', 500, 1499],
    ['bytes=1048570-1048590', 1_048_570, 1_048_590],
    ['bytes=2000000-', 2_000_000, 2_499_999],
    ['bytes=-500', 2_499_500, 2_499_999],
    ['bytes=2499000-9999999', 2_499_000, 2_499_999],
    ['bytes=-99999999', 0, 2_499_999],
  ];
  for (const [range, first, last] of ranges) {
    it(`is sent in part: ${range}`, async () => {
      await check(
        server,
        { path, headers: { Range: range } },
        {
          status: 206,
          bytes: bytes.subarray(first, last + 1),
          headers: { ...head, 'Content-Range': `bytes ${first}-${last}/2500000` },
        },
      );
    });
  }

  for (const range of ['bytes=2500000-', 'bytes=500-0', 'bytes=-0', 'bytes=9999999-99999999']) {
    it(`refuses ${range}`, async () => {
      await check(
        server,
        { path, headers: { Range: range } },
        { status: 416, headers: { 'Content-Range': 'bytes */2500000' }, error: ['RANGE_INVALID', /./] },
      );
    });
  }

  for (const range of ['bytes=0-9,20-29', 'bytes=', 'bytes=x-y', 'items=0-5', '0-5']) {
    it(`is sent whole for ${range}`, async () => {
      await check(server, { path, headers: { Range: range } }, { status: 200, bytes });
    });
  }

  it('is sent in part or whole as If-Range says', async () => {
    const range = { Range: 'bytes=0-9' };
    await check(server, { path, headers: { ...range, 'If-Range': `"${digest}"` } }, { status: 206 });
    await check(server, { path, headers: { ...range, 'If-Range': '"other"' } }, { status: 200, bytes });
  });

  it('is not sent to who has it', async () => {
    for (const tag of [`"${digest}"`, digest, '*', `"x", W/"${digest}"`]) {
      await check(server, { path, headers: { 'If-None-Match': tag } }, { status: 304, headers: head });
    }
    await check(server, { path, headers: { 'If-None-Match': '"x"' } }, { status: 200, bytes });
  });

  it('is seen only through repositories it was pushed to', async () => {
    await server.createRepository('team/blind');
    for (const method of ['GET', 'HEAD', 'DELETE']) {
      await check(server, { method, path: path.replace('team/app', 'team/blind') }, { status: 404 });
    }
    await check(
      server,
      { path: path.replace('team/app', 'team/blind'), headers: { Range: 'bytes=0-1' } },
      { status: 404, error: ['BLOB_UNKNOWN', 'blob unknown to registry'] },
    );
  });

  it('can be deleted', async () => {
    const mine = `/v2/team/app/blobs/${await push(randomBytes(10))}`;
    await check(
      server,
      { method: 'DELETE', path: mine },
      { status: 202, headers: { 'Content-Length': '0' } },
    );
    for (const method of ['HEAD', 'GET', 'DELETE'])
      await check(server, { method, path: mine }, { status: 404 });
  });
});

describe('a mount', () => {
  const bytes = randomBytes(4000);
  const digest = sha256(bytes);
  before(async () => {
    await server.createRepository('mount/source');
    await server.createRepository('mount/secret', {
      policy: JSON.stringify({
        Version: '2012-10-17',
        Statement: [{ Effect: 'Deny', Principal: '*', Action: 'ecr:GetDownloadUrlForLayer' }],
      }),
    });
    await push(bytes, 'mount/source');
    await server.createRepository('mount/off');
    for (const from of ['', '&from=mount/source', '&from=mount/off'])
      await begins(post('mount/off', `mount=${digest}${from}`));
    const registry = { account: ACCOUNT, region: REGION };
    await server.store.transact('registry.configure', { registry, blobMounting: true });
  });
  after(() =>
    server.store.transact('registry.configure', {
      registry: { account: ACCOUNT, region: REGION },
      blobMounting: false,
    }),
  );

  async function begins(request: WireRequest): Promise<void> {
    const { headers } = await check(server, request, {
      status: 202,
      headers: { 'Docker-Upload-UUID': UUID, Range: '0-0', 'Docker-Content-Digest': undefined },
    });
    await check(server, { method: 'DELETE', path: String(headers.location) }, { status: 204 });
  }

  const post = (target: string, query: string) => ({
    method: 'POST',
    path: `/v2/${target}/blobs/uploads/?${query}`,
  });

  it('links a blob the caller may pull', async () => {
    for (const [target, from] of [
      ['mount/named', '&from=mount/source&origin=localhost'],
      ['mount/anonymous', ''],
      ['mount/encoded', '&from=mount%2Fsource'],
    ] as const) {
      await server.createRepository(target);
      await check(server, { path: `/v2/${target}/blobs/${digest}` }, { status: 404 });
      await check(server, post(target, `mount=${digest}${from}`), stored(digest, target));
      await check(server, { path: `/v2/${target}/blobs/${digest}` }, { status: 200, bytes });
    }
    await check(
      server,
      post('mount/source', `mount=${digest}&from=mount/source`),
      stored(digest, 'mount/source'),
    );
    await check(server, post('mount/source', `mount=${digest}`), stored(digest, 'mount/source'));
  });

  it('of anything else begins an upload', async () => {
    await server.createRepository('mount/target');
    const hidden = randomBytes(40);
    const secret = await push(hidden, 'mount/secret');
    const unknown = sha256(Buffer.from('unknown'));
    for (const query of [
      `mount=${unknown}&from=mount/source`,
      `mount=${unknown}`,
      `mount=${digest}&from=mount/absent`,
      `mount=${digest}&from=../etc`,
      `mount=${digest}&from=`,
      `mount=${secret}&from=mount/secret`,
      `mount=${secret}`,
      'mount=sha256:beef&from=mount/source',
      'mount=',
    ]) {
      await begins(post('mount/target', query));
    }
  });

  it('needs the right to upload', async () => {
    await server.createRepository('mount/readonly', {
      policy: JSON.stringify({
        Version: '2012-10-17',
        Statement: [{ Effect: 'Deny', Principal: '*', Action: 'ecr:InitiateLayerUpload' }],
      }),
    });
    await check(server, post('mount/readonly', `mount=${digest}&from=mount/source`), {
      status: 403,
      error: [
        'DENIED',
        new RegExp(`ecr:InitiateLayerUpload on resource: .*:${ACCOUNT}:repository/mount/readonly`),
      ],
    });
  });
});
