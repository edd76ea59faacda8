/** Attacks on signatures, framing and tokens, sent byte by byte to the whole server. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { presignUrl, signRequest } from '../../src/lib/sigv4.ts';
import {
  ACCOUNT,
  openTarget,
  REGION,
  type Answer,
  type Call,
  type Prepared,
  type Target,
} from './attack-kit.ts';

const MINUTE = 60_000;
const DESCRIBE: Call = { service: 'ecr', operation: 'DescribeRepositories' };
const WHO: Call = { service: 'sts', operation: 'GetCallerIdentity' };

let target: Target;
before(async () => {
  target = await openTarget();
});
after(() => target[Symbol.asyncDispose]());

type Line = readonly [name: string, value: string];
const change = (it: Prepared, name: string, value: (was: string) => string): Prepared => ({
  ...it,
  headers: it.headers.map(([n, v]): Line => (n === name ? [n, value(v)] : [n, v])),
});
const without = (it: Prepared, name: string): Prepared => ({
  ...it,
  headers: it.headers.filter(([n]) => n !== name),
});
const plus = (it: Prepared, ...lines: Line[]): Prepared => ({ ...it, headers: [...it.headers, ...lines] });
const first = (it: Prepared, ...lines: Line[]): Prepared => ({ ...it, headers: [...lines, ...it.headers] });
const valueOf = (it: Prepared, name: string): string => it.headers.find(([n]) => n === name)?.[1] ?? '';

function refused(answer: Answer, code: string): void {
  assert.equal(answer.code, code, answer.text);
  assert.ok(answer.status >= 400 && answer.status < 500, String(answer.status));
  // What is secret stays so: neither the string to sign nor the expected signature is told.
  assert.doesNotMatch(answer.text, /[0-9a-f]{64}|repositories"/);
}

describe('a signed request that was changed on its way', () => {
  it('is answered when nothing was changed', async () => {
    for (const call of [DESCRIBE, WHO]) {
      assert.equal((await target.send(target.prepare(call, target.admin))).status, 200);
    }
  });

  const MISMATCHING: readonly (readonly [name: string, tamper: (it: Prepared) => Prepared])[] = [
    ['another body', (it) => ({ ...it, body: it.body.replace('{}', '{ }') })],
    ['another method', (it) => ({ ...it, method: 'PUT'.replace('PUT', 'POST'), target: '/?x=1' })],
    ['another path', (it) => ({ ...it, target: '/other' })],
    ['a dot segment', (it) => ({ ...it, target: '/a/..%2f' })],
    ['another host', (it) => change(it, 'host', () => 'ecr.us-east-1.amazonaws.com')],
    ['another target', (it) => change(it, 'x-amz-target', (v) => v.replace('Repositories', 'Registry'))],
    ['another content type', (it) => change(it, 'content-type', () => 'application/x-amz-json-1.0')],
    [
      'a date that was moved',
      (it) => change(it, 'x-amz-date', (v) => v.replace(/\d\dZ$/, (s) => (s === '00Z' ? '01Z' : '00Z'))),
    ],
    ['the date twice', (it) => plus(it, ['X-Amz-Date', '20260101T000000Z'])],
    [
      'another region in the scope',
      (it) => change(it, 'authorization', (v) => v.replace(`/${REGION}/`, '/eu-west-1/')),
    ],
    [
      'the signature of nothing',
      (it) => change(it, 'authorization', (v) => v.replace(/Signature=.*/, `Signature=${'0'.repeat(64)}`)),
    ],
    ['a truncated signature', (it) => change(it, 'authorization', (v) => v.slice(0, -1))],
    ['a signature with a tail', (it) => change(it, 'authorization', (v) => `${v}0`)],
    [
      'an upper-case signature',
      (it) => change(it, 'authorization', (v) => v.replace(/[0-9a-f]{64}$/, (s) => s.toUpperCase())),
    ],
    [
      'a header list in another order',
      (it) => change(it, 'authorization', (v) => v.replace('content-type;host', 'host;content-type')),
    ],
    [
      'a header named twice in the list',
      (it) => change(it, 'authorization', (v) => v.replace('host;', 'host;host;')),
    ],
    [
      'a header list in upper case',
      (it) => change(it, 'authorization', (v) => v.replace('content-type;', 'Content-Type;')),
    ],
    [
      'a content type that is no longer signed',
      (it) => change(it, 'authorization', (v) => v.replace('content-type;', '')),
    ],
  ];
  for (const [name, tamper] of MISMATCHING) {
    it(`is refused: ${name}`, async () => {
      refused(await target.send(tamper(target.prepare(DESCRIBE, target.admin))), 'InvalidSignatureException');
    });
  }

  const OF_TWO_HOSTS: readonly (readonly [name: string, tamper: (it: Prepared) => Prepared])[] = [
    ['absolute form of another host', (it) => ({ ...it, target: 'http://evil.example/' })],
    ['the host twice', (it) => plus(it, ['Host', 'evil.example'])],
    ['the host twice, the foreign one first', (it) => first(it, ['Host', 'evil.example'])],
  ];
  for (const [name, tamper] of OF_TWO_HOSTS) {
    it(`is refused before its signature is looked at: ${name}`, async () => {
      const { status, text } = await target.send(tamper(target.prepare(DESCRIBE, target.admin)));
      assert.deepEqual({ status, text }, { status: 400, text: 'A request names one host.\n' });
    });
  }

  const WRONG: readonly (readonly [name: string, code: string, tamper: (it: Prepared) => Prepared])[] = [
    [
      'stripped of its signature',
      'MissingAuthenticationTokenException',
      (it) => without(it, 'authorization'),
    ],
    ['an empty Authorization', 'IncompleteSignatureException', (it) => change(it, 'authorization', () => '')],
    ['Basic', 'IncompleteSignatureException', (it) => change(it, 'authorization', () => 'Basic QVdTOng=')],
    ['SigV2', 'IncompleteSignatureException', (it) => change(it, 'authorization', () => 'AWS AKIA:sig')],
    [
      'SigV4a',
      'IncompleteSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('HMAC-SHA256', 'ECDSA-P256-SHA256')),
    ],
    [
      'HMAC-SHA1',
      'IncompleteSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('SHA256', 'SHA1')),
    ],
    [
      'no algorithm',
      'IncompleteSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('AWS4-HMAC-SHA256 ', '')),
    ],
    [
      'a lower-case algorithm',
      'IncompleteSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('AWS4-HMAC-SHA256', 'aws4-hmac-sha256')),
    ],
    [
      'host not signed',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('host;', '')),
    ],
    [
      'the target not signed',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace(';x-amz-target', '')),
    ],
    [
      'the date not signed',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace(';x-amz-date', '')),
    ],
    [
      'no signed headers',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace(/SignedHeaders=[^,]*/, 'SignedHeaders=')),
    ],
    ['a session token added', 'InvalidSignatureException', (it) => plus(it, ['X-Amz-Security-Token', 'x'])],
    [
      'scoped to another service',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('/ecr/', '/sts/')),
    ],
    [
      'scoped to another day',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace(/\/\d{8}\//, '/20200101/')),
    ],
    [
      'another terminator',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace('aws4_request', 'aws4_requesT')),
    ],
    [
      'both forms at once',
      'InvalidSignatureException',
      (it) => ({ ...it, target: '/?X-Amz-Algorithm=AWS4-HMAC-SHA256' }),
    ],
    [
      'the target twice',
      'UnknownOperationException',
      (it) => plus(it, ['X-Amz-Target', 'AmazonEC2ContainerRegistry_V20150921.DeleteRepository']),
    ],
    [
      'the target twice, the foreign one first',
      'UnknownOperationException',
      (it) => first(it, ['X-Amz-Target', 'AmazonEC2ContainerRegistry_V20150921.DeleteRepository']),
    ],
    [
      'a signed header with inner white space that differs',
      'UnknownOperationException',
      (it) => change(it, 'x-amz-target', (v) => v.replace('.', ' .')),
    ],
    [
      'an unknown key',
      'UnrecognizedClientException',
      (it) => change(it, 'authorization', (v) => v.replace(/AKIA\w+/, 'AKIAUNKNOWN000000000')),
    ],
    [
      'the key of the other account',
      'InvalidSignatureException',
      (it) => change(it, 'authorization', (v) => v.replace(/AKIA\w+/, target.stranger.accessKeyId)),
    ],
  ];
  for (const [name, code, tamper] of WRONG) {
    it(`is refused: ${name}`, async () => {
      refused(await target.send(tamper(target.prepare(DESCRIBE, target.admin))), code);
    });
  }

  it('is judged by the first Authorization header and by no other', async () => {
    const good = target.prepare(DESCRIBE, target.admin);
    refused(
      await target.send(first(good, ['Authorization', 'Basic QVdTOng='])),
      'IncompleteSignatureException',
    );
    const foreign = target.prepare(DESCRIBE, target.stranger);
    const mixed = first(without(foreign, 'authorization'), [
      'Authorization',
      'AWS4-HMAC-SHA256 Credential=a/b',
    ]);
    refused(
      await target.send(plus(mixed, ['Authorization', valueOf(foreign, 'authorization')])),
      'IncompleteSignatureException',
    );
  });

  it('has its body hashed, whatever it claims about it', async () => {
    for (const claim of [
      'UNSIGNED-PAYLOAD',
      'STREAMING-AWS4-HMAC-SHA256-PAYLOAD',
      'STREAMING-UNSIGNED-PAYLOAD-TRAILER',
      createHash('sha256').update('{}').digest('hex'),
    ]) {
      const url = `${target.endpoint}/`;
      const body = '{}';
      const signed = signRequest(
        {
          method: 'POST',
          url,
          headers: {
            'content-type': 'application/x-amz-json-1.1',
            'x-amz-target': 'AmazonEC2ContainerRegistry_V20150921.DescribeRepositories',
            'x-amz-content-sha256': claim,
          },
          body,
        },
        target.admin,
        { region: REGION, service: 'ecr', now: target.now() },
      );
      const request = { method: 'POST', target: '/', headers: Object.entries(signed), body };
      assert.equal((await target.send(request)).status, 200, claim);
      refused(await target.send({ ...request, body: '{"maxResults":1}' }), 'InvalidSignatureException');
      // The body as chunked signing would frame it is just another body.
      refused(
        await target.send({ ...request, body: '2;chunk-signature=0\r\n{}\r\n0;chunk-signature=0\r\n\r\n' }),
        'InvalidSignatureException',
      );
    }
  });

  it('may have its header values folded as the specification says, and its unsigned headers changed', async () => {
    const good = target.prepare(DESCRIBE, target.admin);
    assert.equal((await target.send(change(good, 'x-amz-target', (v) => `  ${v}  `))).status, 200);
    const extra: Line[] = [
      ['X-Forwarded-For', '10.0.0.1'],
      ['X-Forwarded-Host', 'evil.example'],
      ['X-Forwarded-Proto', 'https'],
      ['X-HTTP-Method-Override', 'DELETE'],
      ['X-Original-URL', '/v2/'],
    ];
    assert.equal((await target.send(plus(good, ...extra))).status, 200);
  });

  it('is worth its fifteen minutes, in both directions, and not a second more', async () => {
    const now = Math.floor(target.now() / 1000) * 1000;
    for (const [at, good] of [
      [now - 14.9 * MINUTE, true],
      [now + 14.9 * MINUTE, true],
      [now - 15.1 * MINUTE, false],
      [now + 15.1 * MINUTE, false],
      [now - 24 * 60 * MINUTE, false],
      [now + 365 * 24 * 60 * MINUTE, false],
    ] as const) {
      const answer = await target.send(target.prepare(DESCRIBE, target.admin, at));
      assert.equal(answer.status, good ? 200 : 400, answer.text);
      if (!good) assert.match(answer.message, /^Signature (expired|not yet current): /);
    }
  });
});

describe('framing', () => {
  const request = (headers: string, body: string) => {
    const it = target.prepare(WHO, target.admin);
    const lines = it.headers.map(([n, v]) => `${n}: ${v}\r\n`).join('');
    return target.raw(`POST / HTTP/1.1\r\n${lines}${headers}Connection: close\r\n\r\n${body}`);
  };
  const BAD: readonly (readonly [name: string, headers: string, body: string])[] = [
    ['both lengths', 'Content-Length: 43\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'],
    ['both lengths, the other order', 'Transfer-Encoding: chunked\r\nContent-Length: 43\r\n', '0\r\n\r\n'],
    ['two lengths', 'Content-Length: 43\r\nContent-Length: 0\r\n', ''],
    ['a list of lengths', 'Content-Length: 43, 43\r\n', ''],
    ['a signed length', 'Content-Length: +43\r\n', ''],
    ['a hexadecimal length', 'Content-Length: 0x2b\r\n', ''],
    ['chunked is not last', 'Transfer-Encoding: chunked, identity\r\n', '0\r\n\r\n'],
    ['a coding that is almost chunked', 'Transfer-Encoding: xchunked\r\n', '0\r\n\r\n'],
    ['white space before the colon', 'Transfer-Encoding : chunked\r\n', '0\r\n\r\n'],
    ['a bare line feed', 'X-A: b\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'],
    ['a folded header', 'X-A: b\r\n Transfer-Encoding: chunked\r\n', '0\r\n\r\n'],
    ['NUL in a header', 'X-A: b\0c\r\n', ''],
    ['a chunk size that overflows', 'Transfer-Encoding: chunked\r\n', 'fffffffffffffffff\r\n'],
    ['a negative chunk size', 'Transfer-Encoding: chunked\r\n', '-1\r\n'],
  ];
  for (const [name, headers, body] of BAD) {
    it(`is refused and the connection closed: ${name}`, async () => {
      const answer = await request(headers, body);
      assert.equal(answer.status, 400, answer.text);
      assert.doesNotMatch(answer.text, /GetCallerIdentityResult/);
    });
  }

  it('never lets bytes after a request become another one with its credential', async () => {
    const it = target.prepare(WHO, target.admin);
    const lines = it.headers.map(([n, v]) => `${n}: ${v}\r\n`).join('');
    const answer = await target.raw(
      `POST / HTTP/1.1\r\n${lines}Content-Length: ${it.body.length}\r\n\r\n${it.body}` +
        `POST / HTTP/1.1\r\nHost: ${target.host}\r\nX-Amz-Target: AmazonEC2ContainerRegistry_V20150921.DescribeRepositories\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}`,
    );
    assert.match(
      answer.text,
      /GetCallerIdentityResult[\s\S]*HTTP\/1\.1 400[\s\S]*MissingAuthenticationTokenException/,
    );
  });
});

describe('presigned requests', () => {
  const ACTION = 'Action=GetCallerIdentity&Version=2011-06-15';
  const presign = (expiresS = 60, now = target.now()): string =>
    presignUrl({ method: 'GET', url: `${target.endpoint}/?${ACTION}` }, target.admin, {
      region: REGION,
      service: 'sts',
      now,
      expiresS,
    }).slice(target.endpoint.length);
  const get = (path: string, method = 'GET', host = target.host) =>
    target.raw(
      `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`,
    );

  it('pass as they were signed', async () => {
    assert.equal((await get(presign())).status, 200);
  });

  const BAD: readonly (readonly [name: string, send: () => Promise<Answer>])[] = [
    ['another method', () => get(presign(), 'POST')],
    ['another path', () => get(presign().replace('/?', '/x?'))],
    ['another host', () => get(presign(), 'GET', 'localhost')],
    ['another action', () => get(presign().replace('GetCallerIdentity', 'GetSessionToken'))],
    ['an action added', () => get(`${presign()}&Action=GetSessionToken`)],
    ['an action put first', () => get(presign().replace('/?', '/?Action=GetSessionToken&'))],
    ['a longer life', () => get(presign().replace('Expires=60', 'Expires=600'))],
    [
      'a later date',
      () =>
        get(
          presign(60, target.now() - 20 * MINUTE).replace(
            /X-Amz-Date=\w+/,
            `X-Amz-Date=${new Date(target.now()).toISOString().replace(/[-:]|\.\d+/g, '')}`,
          ),
        ),
    ],
    ['twenty minutes later', () => get(presign(604_800, target.now() - 20 * MINUTE))],
    ['twenty minutes early', () => get(presign(60, target.now() + 20 * MINUTE))],
    ['another algorithm in the list twice', () => get(`${presign()}&X-Amz-Algorithm=none`)],
    [
      'a second signature',
      () =>
        get(
          `${presign()}&X-Amz-Signature=${'0'.repeat(64)}`.replace(
            /X-Amz-Signature=(\w+)&/,
            'X-Amz-Signature=00&',
          ),
        ),
    ],
    ['no host signed', () => get(presign().replace('SignedHeaders=host', 'SignedHeaders='))],
  ];
  for (const [name, send] of BAD) {
    it(`are refused: ${name}`, async () => refused(await send(), 'SignatureDoesNotMatch'));
  }

  it('are refused: a security token added', async () => {
    refused(await get(`${presign()}&X-Amz-Security-Token=x`), 'InvalidClientTokenId');
  });
});

describe('layer download URLs', () => {
  it('are good for their blob, their hour and nothing else', async () => {
    const call = async (operation: string, input: object): Promise<Record<string, string>> => {
      const answer = await target.call({ service: 'ecr', operation, input }, target.admin);
      assert.equal(answer.status, 200, answer.text);
      return JSON.parse(answer.text) as Record<string, string>;
    };
    const repositoryName = 'layers';
    await call('CreateRepository', { repositoryName });
    const digests: string[] = [];
    for (const content of ['first layer', 'second layer']) {
      const { uploadId } = await call('InitiateLayerUpload', { repositoryName });
      const layerPartBlob = Buffer.from(content).toString('base64');
      await call('UploadLayerPart', {
        repositoryName,
        uploadId,
        partFirstByte: 0,
        partLastByte: content.length - 1,
        layerPartBlob,
      });
      const digest = `sha256:${createHash('sha256').update(content).digest('hex')}`;
      await call('CompleteLayerUpload', { repositoryName, uploadId, layerDigests: [digest] });
      digests.push(digest);
    }
    const [config, layer] = [
      { mediaType: 'application/vnd.oci.image.config.v1+json', size: 11, digest: digests[0] },
      { mediaType: 'application/vnd.oci.image.layer.v1.tar', size: 12, digest: digests[1] },
    ];
    const mediaType = 'application/vnd.oci.image.manifest.v1+json';
    const imageManifest = JSON.stringify({ schemaVersion: 2, mediaType, config, layers: [config, layer] });
    await call('PutImage', { repositoryName, imageManifest });
    const urlOf = async (layerDigest: string | undefined) => {
      const { downloadUrl = '' } = await call('GetDownloadUrlForLayer', { repositoryName, layerDigest });
      return new URL(downloadUrl).pathname;
    };
    const [one, two] = [await urlOf(digests[0]), await urlOf(digests[1])];
    const get = async (path: string) => {
      const answer = await fetch(target.endpoint + path);
      return [answer.status, await answer.text()] as const;
    };
    assert.deepEqual(await get(one), [200, 'first layer']);
    const [payload = '', seal = ''] = one.split('/').at(-1)?.split('.') ?? [];
    const [otherPayload = ''] = two.split('/').at(-1)?.split('.') ?? [];
    const forged = [
      `/blob-download/${otherPayload}.${seal}`,
      `/blob-download/${payload}`,
      `/blob-download/${payload}.`,
      `/blob-download/.${seal}`,
      `/blob-download/${payload}.${seal.slice(0, -2)}`,
      `/blob-download/${payload}.${seal}.${seal}`,
      `/blob-download/${Buffer.from(
        Buffer.from(payload, 'base64url')
          .toString()
          .replace(/"expiresAt":\d+/, '"expiresAt":9999999999999'),
      ).toString('base64url')}.${seal}`,
      ...Array.from(
        { length: seal.length - 1 },
        (_, i) =>
          `/blob-download/${payload}.${seal.slice(0, i)}${seal[i] === 'A' ? 'B' : 'A'}${seal.slice(i + 1)}`,
      ),
    ];
    for (const path of forged) {
      const [status, text] = await get(path);
      assert.equal(status, 403, path);
      assert.match(text, /SignatureDoesNotMatch/);
    }
    target.pass(61 * MINUTE);
    const [status, text] = await get(one);
    assert.equal(status, 403);
    assert.match(text, /Request has expired/);
    target.pass(-61 * MINUTE);
  });
});

describe('registry tokens', () => {
  const v2 = async (user: string, password: string) => {
    const authorization = `Basic ${Buffer.from(`${user}:${password}`, 'latin1').toString('base64')}`;
    const answer = await fetch(`${target.endpoint}/v2/`, { headers: { authorization } });
    return answer.status;
  };
  const tokenOf = async (key = target.admin): Promise<string> => {
    const answer = await target.call({ service: 'ecr', operation: 'GetAuthorizationToken' }, key);
    const [, token = ''] = /"authorizationToken":"([^"]*)"/.exec(answer.text) ?? [];
    return Buffer.from(token, 'base64').toString().slice('AWS:'.length);
  };
  const refusedStatus = (status: number) => assert.ok([400, 401, 403].includes(status), String(status));

  it('have one spelling: every bit counts, every prefix fails', async () => {
    const token = await tokenOf();
    assert.equal(await v2('AWS', token), 200);
    for (let i = 0; i < token.length; i++) {
      const other = token[i] === 'A' ? 'B' : 'A';
      refusedStatus(await v2('AWS', token.slice(0, i) + other + token.slice(i + 1)));
      refusedStatus(await v2('AWS', token.slice(0, i)));
    }
    for (const spelling of [
      `${token}=`,
      `${token}A`,
      ` ${token}`,
      `${token}\n`,
      token.toUpperCase(),
      `${token}:x`,
      '',
    ]) {
      refusedStatus(await v2('AWS', spelling));
    }
    for (const user of ['', 'aws', 'AWS ', 'root', 'admin', '<token>']) refusedStatus(await v2(user, token));
  });

  it('of another server are foreign', async () => {
    await using other = await openTarget();
    const answer = await other.call({ service: 'ecr', operation: 'GetAuthorizationToken' }, other.admin);
    const [, encoded = ''] = /"authorizationToken":"([^"]*)"/.exec(answer.text) ?? [];
    const foreign = Buffer.from(encoded, 'base64').toString().slice('AWS:'.length);
    refusedStatus(await v2('AWS', foreign));
  });

  it('of another account open nothing here', async () => {
    const authorization = `Basic ${Buffer.from(`AWS:${await tokenOf(target.stranger)}`).toString('base64')}`;
    const answer = await fetch(
      `${target.endpoint}/v2/layers/tags/list?ns=${ACCOUNT}.dkr.ecr.${REGION}.amazonaws.com`,
      { headers: { authorization } },
    );
    assert.equal(answer.status, 403);
    assert.match(await answer.text(), /no resource-based policy allows the ecr:ListImages action/);
  });

  it('are no AWS credential, and an access key is no registry password', async () => {
    const token = await tokenOf();
    const answer = await target.call(WHO, { accessKeyId: token.slice(0, 128), secretAccessKey: token });
    assert.equal(answer.code, 'InvalidClientTokenId');
    refusedStatus(await v2(target.admin.accessKeyId, target.admin.secretAccessKey));
    refusedStatus(await v2('AWS', target.admin.secretAccessKey));
  });
});
