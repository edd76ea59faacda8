import assert from 'node:assert/strict';
import { createHash, randomUUID } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import {
  ACCOUNT,
  basic,
  check,
  type Expected,
  REGION,
  STRANGER,
  startWireServer,
  type WireRequest,
  type WireServer,
} from './server.ts';

const HEX = 'a'.repeat(64);
const SHA = `sha256:${HEX}`;

let server: WireServer;
before(async () => {
  server = await startWireServer();
  await server.createRepository('team/app');
  await server.createRepository('shared', {
    policy: JSON.stringify({
      Version: '2012-10-17',
      Statement: [
        {
          Effect: 'Allow',
          Principal: { AWS: `arn:aws:iam::${STRANGER}:root` },
          Action: ['ecr:ListImages', 'ecr:BatchGetImage'],
        },
      ],
    }),
  });
  await server.createRepository('locked', {
    policy: JSON.stringify({
      Version: '2012-10-17',
      Statement: [{ Effect: 'Deny', Principal: '*', Action: 'ecr:*' }],
    }),
  });
});
after(() => server.stop());

describe('without a usable credential', () => {
  const challenged: [name: string, auth: string | null][] = [
    ['none', null],
    ['another scheme', 'Bearer abc'],
    ['bad base64', 'Basic ***'],
    ['no colon', `Basic ${Buffer.from('AWS').toString('base64')}`],
    ['another user', basic('secret', 'admin')],
    ['an empty password', basic('')],
  ];
  for (const [name, auth] of challenged) {
    it(`is challenged as by ECR: ${name}`, async () => {
      await check(
        server,
        { path: '/v2/', auth },
        {
          status: 401,
          text: 'Not Authorized\n',
          headers: {
            'Www-Authenticate': `Basic realm="http://localhost:${server.port}/",service="ecr.amazonaws.com"`,
            'Content-Type': 'text/plain; charset=utf-8',
            'Content-Length': '15',
          },
        },
      );
    });
  }

  const routes: [method: string, path: string][] = [
    ['GET', '/v2'],
    ['HEAD', `/v2/team/app/blobs/${SHA}`],
    ['PUT', '/v2/team/app/manifests/latest'],
    ['POST', '/v2/absent/blobs/uploads/'],
    ['GET', '/v2/no/such/route'],
    ['GET', '/v2/../etc/manifests/passwd'],
    ['OPTIONS', '/v2/'],
  ];
  for (const [method, path] of routes) {
    it(`is challenged on every route alike: ${method} ${path}`, async () => {
      await check(
        server,
        { method, path, auth: null, ...(method === 'PUT' ? { body: 'x'.repeat(100_000) } : {}) },
        { status: 401, headers: { 'Www-Authenticate': /^Basic realm=/, 'Content-Length': '15' } },
      );
    });
  }

  it('names the host the client reached, and cannot be made to say more', async () => {
    for (const [host, realm] of [
      [`${ACCOUNT}.dkr.ecr.${REGION}.localhost:80`, `http://${ACCOUNT}.dkr.ecr.${REGION}.localhost:80/`],
      ['a",evil="b', 'http://a,evil=b/'],
    ] as const) {
      await check(
        server,
        { path: '/v2/', auth: null, headers: { Host: host } },
        {
          status: 401,
          headers: { 'Www-Authenticate': `Basic realm="${realm}",service="ecr.amazonaws.com"` },
        },
      );
    }
  });
});

describe('a token', () => {
  it('that is valid opens /v2/', async () => {
    for (const path of ['/v2/', '/v2']) {
      await check(
        server,
        { path },
        { status: 200, text: '{}', headers: { 'Content-Type': 'application/json' } },
      );
    }
    await check(
      server,
      { method: 'HEAD', path: '/v2/' },
      { status: 200, headers: { 'Content-Length': '2' } },
    );
  });

  it('that is none is refused with 400', async () => {
    const good = server.adminAuth;
    const password = Buffer.from(good.slice(6), 'base64').toString().slice(4);
    for (const bad of ['hunter2', `${password}A`, password.slice(0, -1), 'x'.repeat(3000), 'naïve']) {
      await check(
        server,
        { path: '/v2/', auth: basic(bad) },
        {
          status: 400,
          error: ['DENIED', 'Your Authorization Token is invalid.'],
          headers: { 'Www-Authenticate': undefined },
        },
      );
    }
  });

  it('that is expired is refused with 403 and the sentence clients match on', async () => {
    const { password } = await server.identity.issueRegistryToken(
      server.admin,
      { region: REGION },
      Date.now() - 43_200_001,
    );
    for (const method of ['GET', 'HEAD']) {
      await check(
        server,
        { method, path: '/v2/', auth: basic(password) },
        {
          status: 403,
          error: ['DENIED', 'Your authorization token has expired. Reauthenticate and try again.'],
          headers: { 'Www-Authenticate': undefined },
        },
      );
    }
  });
});

describe('the registry asked for', () => {
  const list = '/v2/team/app/tags/list';
  const found: Expected = { status: 200, json: { name: 'team/app', tags: [] } };
  const host = (account: string, region: string): string => `${account}.dkr.ecr.${region}.localhost:7327`;
  const otherRegion: Expected = {
    status: 403,
    error: [
      'DENIED',
      'Your authorization token was issued for region us-east-1 and cannot be used in region eu-west-1.',
    ],
  };
  const cases: [name: string, request: WireRequest, expected: Expected][] = [
    ['is the token’s on a plain host', { path: list }, found],
    ['is the host’s', { path: list, headers: { Host: host(ACCOUNT, REGION) } }, found],
    [
      'is the host’s in the spelling of dual stack and FIPS',
      { path: list, headers: { Host: `${ACCOUNT}.dkr-ecr-fips.${REGION}.on.aws` } },
      found,
    ],
    [
      'is that of ns=, and the answer says so',
      { path: `${list}?ns=${host(ACCOUNT, REGION)}` },
      { ...found, headers: { 'OCI-Namespace': host(ACCOUNT, REGION), 'Content-Type': 'application/json' } },
    ],
    [
      'is that of ns=, whatever else that has',
      { path: `${list}?ns=${host(ACCOUNT, REGION)}%0d%0aX:y` },
      { ...found, headers: { 'OCI-Namespace': undefined } },
    ],
    [
      'is not that of a foreign ns=',
      { path: `${list}?ns=docker.io` },
      { ...found, headers: { 'OCI-Namespace': undefined } },
    ],
    [
      'of another region is refused',
      { path: list, headers: { Host: host(ACCOUNT, 'eu-west-1') } },
      otherRegion,
    ],
    [
      'of another region in ns= is refused',
      { path: `${list}?ns=${host(ACCOUNT, 'eu-west-1')}` },
      otherRegion,
    ],
    [
      'of another region is refused at login',
      { path: '/v2/', headers: { Host: host(ACCOUNT, 'eu-west-1') } },
      otherRegion,
    ],
    [
      'cannot be made out of a broken host',
      { path: '/v2/', headers: { Host: '123.dkr.ecr.us-east-1.localhost:7327' } },
      {
        status: 403,
        error: ['DENIED', 'Could not resolve registry id from host 123.dkr.ecr.us-east-1.localhost'],
      },
    ],
  ];
  for (const [name, request, expected] of cases) {
    it(name, async () => void (await check(server, request, expected)));
  }
});

describe('a push into a registry that only ns= names', () => {
  it('is told to go on there, in every Location and Link', async () => {
    const name = 'mirrored';
    await server.createRepository(name, {
      policy: JSON.stringify({
        Version: '2012-10-17',
        Statement: [
          { Effect: 'Allow', Principal: { AWS: `arn:aws:iam::${STRANGER}:root` }, Action: 'ecr:*' },
        ],
      }),
    });
    const ns = `ns=${ACCOUNT}.dkr.ecr.${REGION}.amazonaws.com`;
    const base = `/v2/${name}`;
    const digestOf = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`;
    const go = async (status: number, request: WireRequest, location?: RegExp): Promise<string> => {
      const answer = await server.request({ ...request, auth: server.strangerAuth });
      assert.equal(answer.status, status, answer.bytes.toString());
      const found = answer.headers.location ?? '';
      if (location !== undefined) assert.match(found, location);
      return found;
    };
    const type = 'application/vnd.oci.image.manifest.v1+json';
    const upload = await go(
      202,
      { method: 'POST', path: `${base}/blobs/uploads/?${ns}` },
      /\/uploads\/[^?]+\?ns=/,
    );
    const further = await go(202, { method: 'PATCH', path: upload, body: '{' }, /\?ns=/);
    const blob = await go(
      201,
      { method: 'PUT', path: `${further}&digest=${digestOf('{}')}`, body: '}' },
      /\?ns=/,
    );
    await go(200, { method: 'HEAD', path: blob });
    const config = { mediaType: 'application/x', digest: digestOf('{}'), size: 2 };
    const manifest = JSON.stringify({ schemaVersion: 2, mediaType: type, config, layers: [] });
    for (const tag of ['a', 'b']) {
      const path = `${base}/manifests/${tag}?${ns}`;
      const location = await go(
        201,
        { method: 'PUT', path, body: manifest, headers: { 'Content-Type': type } },
        /\?ns=/,
      );
      await go(200, { path: location });
    }
    const next = `${base}/tags/list?n=1&last=a&${ns}`;
    const list = { path: `${base}/tags/list?n=1&${ns}`, auth: server.strangerAuth };
    await check(server, list, { status: 200, headers: { Link: `<${next}>; rel="next"` } });
    await check(server, { ...list, path: next }, { status: 200, json: { name, tags: ['b'] } });
  });
});

describe('what does not exist', () => {
  const nameUnknown = (name: string): Expected => ({
    status: 404,
    error: [
      'NAME_UNKNOWN',
      `The repository with name '${name}' does not exist in the registry with id '${ACCOUNT}'`,
    ],
  });
  const cases: [method: string, path: string, expected: Expected][] = [
    ['GET', '/v2/absent/tags/list', nameUnknown('absent')],
    ['HEAD', '/v2/absent/manifests/latest', nameUnknown('absent')],
    ['PUT', '/v2/absent/manifests/latest', nameUnknown('absent')],
    ['POST', '/v2/absent/blobs/uploads/', nameUnknown('absent')],
    ['POST', '/v2/absent/blobs/uploads', nameUnknown('absent')],
    ['PATCH', `/v2/absent/blobs/uploads/${randomUUID()}`, nameUnknown('absent')],
    ['GET', `/v2/absent/referrers/${SHA}`, nameUnknown('absent')],
    [
      'GET',
      '/v2/team/app/manifests/latest',
      { status: 404, error: ['MANIFEST_UNKNOWN', 'Requested image not found'] },
    ],
    [
      'GET',
      `/v2/team/app/manifests/${SHA}`,
      { status: 404, error: ['MANIFEST_UNKNOWN', 'Requested image not found'] },
    ],
    [
      'GET',
      `/v2/team/app/blobs/${SHA}`,
      { status: 404, error: ['BLOB_UNKNOWN', 'blob unknown to registry'] },
    ],
    ['HEAD', `/v2/team/app/blobs/${SHA}`, { status: 404 }],
    [
      'DELETE',
      `/v2/team/app/blobs/${SHA}`,
      { status: 404, error: ['BLOB_UNKNOWN', 'blob unknown to registry'] },
    ],
    [
      'DELETE',
      '/v2/team/app/manifests/latest',
      { status: 404, error: ['MANIFEST_UNKNOWN', 'Requested image not found'] },
    ],
    [
      'GET',
      '/v2/nothing',
      { status: 404, error: ['UNSUPPORTED', 'The path is not part of the registry API.'] },
    ],
    ['GET', '/v2/_oci/ext/discover', { status: 404 }],
  ];
  for (const uploadId of [randomUUID(), 'not-a-uuid', '..', '%2e%2e', 'a%00b']) {
    for (const method of ['GET', 'PATCH', 'DELETE', 'HEAD']) {
      cases.push([
        method,
        `/v2/team/app/blobs/uploads/${uploadId}`,
        { status: 404, error: ['BLOB_UPLOAD_UNKNOWN', 'blob upload unknown to registry'] },
      ]);
    }
    cases.push([
      'PUT',
      `/v2/team/app/blobs/uploads/${uploadId}?digest=${SHA}`,
      { status: 404, error: ['BLOB_UPLOAD_UNKNOWN', 'blob upload unknown to registry'] },
    ]);
  }
  for (const [method, path, expected] of cases) {
    it(`${method} ${path}`, async () => void (await check(server, { method, path }, expected)));
  }
});

describe('a target that is malformed', () => {
  const cases: [path: string, code: string][] = [
    ['/v2/Team/tags/list', 'NAME_INVALID'],
    ['/v2/a//b/tags/list', 'NAME_INVALID'],
    ['/v2/%2e%2e/%2e%2e/etc/tags/list', 'NAME_INVALID'],
    ['/v2/team%2fapp/tags/list', 'NAME_INVALID'],
    ['/v2/team%00/tags/list', 'NAME_INVALID'],
    [`/v2/${'a/'.repeat(4000)}a/tags/list`, 'NAME_INVALID'],
    ['/v2/team/app/manifests/-x', 'TAG_INVALID'],
    [`/v2/team/app/manifests/${'x'.repeat(129)}`, 'TAG_INVALID'],
    ['/v2/team/app/manifests/sha256:baddigeststring', 'DIGEST_INVALID'],
    [`/v2/team/app/blobs/sha256:${HEX.toUpperCase()}`, 'DIGEST_INVALID'],
    ['/v2/team/app/referrers/latest', 'DIGEST_INVALID'],
  ];
  for (const [path, code] of cases) {
    it(path.slice(0, 60), async () => {
      await check(server, { path }, { status: 400, error: [code, /./] });
    });
  }
});

describe('a method the route has not', () => {
  const cases: [method: string, path: string, allow: string][] = [
    ['POST', '/v2/', 'GET, HEAD'],
    ['POST', '/v2/team/app/manifests/latest', 'GET, HEAD, PUT, DELETE'],
    ['PUT', `/v2/team/app/blobs/${SHA}`, 'GET, HEAD, DELETE'],
    ['GET', '/v2/team/app/blobs/uploads/', 'POST'],
    ['POST', `/v2/team/app/blobs/uploads/${randomUUID()}`, 'PATCH, PUT, GET, HEAD, DELETE'],
    ['DELETE', '/v2/team/app/tags/list', 'GET, HEAD'],
    ['PUT', `/v2/team/app/referrers/${SHA}`, 'GET, HEAD'],
    ['OPTIONS', '/v2/team/app/tags/list', 'GET, HEAD'],
    ['PROPFIND', '/v2/team/app/tags/list', 'GET, HEAD'],
  ];
  for (const [method, path, allow] of cases) {
    it(`${method} ${path}`, async () => {
      await check(
        server,
        { method, path },
        { status: 405, headers: { Allow: allow }, error: ['UNSUPPORTED', 'The operation is unsupported.'] },
      );
    });
  }
});

describe('permissions', () => {
  const host = { Host: `${ACCOUNT}.dkr.ecr.${REGION}.localhost` };

  it('of another account come from the repository policy, action by action', async () => {
    const auth = server.strangerAuth;
    await check(server, { path: '/v2/shared/tags/list', headers: host, auth }, { status: 200 });
    await check(server, { path: '/v2/shared/manifests/none', headers: host, auth }, { status: 404 });
    await check(
      server,
      { method: 'POST', path: '/v2/shared/blobs/uploads/', headers: host, auth },
      {
        status: 403,
        error: [
          'DENIED',
          `User: arn:aws:iam::${STRANGER}:user/admin is not authorized to perform: ecr:InitiateLayerUpload on resource: ` +
            `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/shared because no resource-based policy allows the ecr:InitiateLayerUpload action`,
        ],
      },
    );
  });

  it('are checked before existence shows', async () => {
    for (const name of ['team/app', 'absent']) {
      await check(
        server,
        { path: `/v2/${name}/tags/list`, headers: host, auth: server.strangerAuth },
        {
          status: 403,
          error: [
            'DENIED',
            `User: arn:aws:iam::${STRANGER}:user/admin is not authorized to perform: ecr:ListImages on resource: ` +
              `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${name} because no resource-based policy allows the ecr:ListImages action`,
          ],
        },
      );
    }
  });

  const actions: [method: string, path: string, action: string][] = [
    ['GET', 'manifests/x', 'BatchGetImage'],
    ['HEAD', 'manifests/x', 'BatchGetImage'],
    ['PUT', 'manifests/x', 'PutImage'],
    ['DELETE', 'manifests/x', 'BatchDeleteImage'],
    ['GET', `blobs/${SHA}`, 'GetDownloadUrlForLayer'],
    ['HEAD', `blobs/${SHA}`, 'BatchCheckLayerAvailability'],
    ['DELETE', `blobs/${SHA}`, 'BatchDeleteImage'],
    ['POST', 'blobs/uploads/', 'InitiateLayerUpload'],
    ['PATCH', `blobs/uploads/${randomUUID()}`, 'UploadLayerPart'],
    ['PUT', `blobs/uploads/${randomUUID()}?digest=${SHA}`, 'CompleteLayerUpload'],
    ['GET', 'tags/list', 'ListImages'],
    ['GET', `referrers/${SHA}`, 'BatchGetImage'],
  ];
  for (const [method, path, action] of actions) {
    it(`${method} ${path} needs ecr:${action}`, async () => {
      await check(
        server,
        { method, path: `/v2/locked/${path}` },
        {
          status: 403,
          error: [
            'DENIED',
            `User: arn:aws:iam::${ACCOUNT}:user/admin is not authorized to perform: ecr:${action} on resource: ` +
              `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/locked with an explicit deny in a resource-based policy`,
          ],
        },
      );
    });
  }

  const uploads: [denied: string, method: string, path: string, body: string, status: number][] = [
    ['UploadLayerPart', 'POST', 'blobs/uploads/', '', 202],
    ['UploadLayerPart', 'POST', `blobs/uploads/?digest=${SHA}`, 'x', 403],
    ['CompleteLayerUpload', 'POST', `blobs/uploads/?digest=${SHA}`, 'x', 403],
    ['InitiateLayerUpload', 'POST', `blobs/uploads/?digest=${SHA}`, 'x', 403],
    ['UploadLayerPart', 'PUT', `blobs/uploads/${randomUUID()}?digest=${SHA}`, 'x', 403],
    ['UploadLayerPart', 'PUT', `blobs/uploads/${randomUUID()}?digest=${SHA}`, '', 404],
    ['CompleteLayerUpload', 'PUT', `blobs/uploads/${randomUUID()}?digest=${SHA}`, 'x', 403],
    ['CompleteLayerUpload', 'PATCH', `blobs/uploads/${randomUUID()}`, 'x', 404],
  ];
  for (const [denied, method, path, body, status] of uploads) {
    it(`without ecr:${denied}, ${method} ${path.split('?').length > 1 ? 'with' : 'without'} digest and ${body.length} bytes: ${status}`, async () => {
      const name = `without/${denied.toLowerCase()}`;
      if ((await server.registry.findRepository({ account: ACCOUNT, region: REGION, name })) === undefined) {
        await server.createRepository(name, {
          policy: JSON.stringify({
            Version: '2012-10-17',
            Statement: [{ Effect: 'Deny', Principal: '*', Action: `ecr:${denied}` }],
          }),
        });
      }
      await check(
        server,
        { method, path: `/v2/${name}/${path}`, body },
        status === 403 ? { status, error: ['DENIED', new RegExp(`perform: ecr:${denied} on`)] } : { status },
      );
    });
  }
});
