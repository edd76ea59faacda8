import assert from 'node:assert/strict';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { Exchange } from '../http/http.ts';
import { LIMITS } from '../lib/limits.ts';
import { type OpenTestRegistry } from './testing.ts';

export function downloadTests(openTestRegistry: OpenTestRegistry): void {
  interface Answer {
    readonly status: number;
    readonly headers: Readonly<Record<string, string | string[] | undefined>>;
    readonly body: string;
  }

  /** A registry with one image, and a server of its downloads. */
  async function open() {
    const t = await openTestRegistry();
    await t.call('CreateRepository', { repositoryName: 'app' });
    const { layer, digest } = await t.addImage('app', '0123456789', 'v1');
    const server = createServer((incoming, response) => {
      void t.downloads.serve(new Exchange(incoming, response, { requestId: 'x', secure: false }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const get = (url: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Answer> =>
      new Promise((resolve, reject) => {
        const { pathname } = new URL(url);
        const outgoing = request({ host: '127.0.0.1', port, path: pathname, method, headers, agent: false });
        outgoing.on('error', reject).on('response', (response) => {
          const chunks: Buffer[] = [];
          response.on('error', reject);
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('end', () =>
            resolve({
              status: response.statusCode ?? 0,
              headers: response.headers,
              body: Buffer.concat(chunks).toString(),
            }),
          );
        });
        outgoing.end();
      });
    const { downloadUrl: url } = await t.call<{ downloadUrl: string }>('GetDownloadUrlForLayer', {
      repositoryName: 'app',
      layerDigest: layer,
    });
    const close = async () => {
      await new Promise((resolve) => server.close(resolve));
      await t[Symbol.asyncDispose]();
    };
    return { t, get, url, layer, digest, [Symbol.asyncDispose]: close };
  }

  test('the bytes, without or with an Authorization header', async () => {
    await using d = await open();
    for (const headers of [
      {},
      { authorization: 'AWS4-HMAC-SHA256 nonsense' },
      { authorization: 'Basic eDp5' },
    ]) {
      const answer = await d.get(d.url, headers);
      assert.equal(answer.status, 200);
      assert.equal(answer.body, '0123456789');
      assert.equal(answer.headers['content-length'], '10');
      assert.equal(answer.headers['content-type'], 'application/octet-stream');
      assert.equal(answer.headers['accept-ranges'], 'bytes');
      assert.equal(answer.headers['etag'], `"${d.layer}"`);
    }
    const head = await d.get(d.url, {}, 'HEAD');
    assert.deepEqual([head.status, head.body, head.headers['content-length']], [200, '', '10']);
  });

  test('ranges', async () => {
    await using d = await open();
    const cases = [
      ['bytes=0-3', 206, '0123', 'bytes 0-3/10'],
      ['bytes=8-', 206, '89', 'bytes 8-9/10'],
      ['bytes=-1', 206, '9', 'bytes 9-9/10'],
      ['bytes=5-99', 206, '56789', 'bytes 5-9/10'],
      ['bytes=0-0,2-2', 200, '0123456789', undefined],
    ] as const;
    for (const [range, status, body, contentRange] of cases) {
      const answer = await d.get(d.url, { range });
      assert.deepEqual(
        [answer.status, answer.body, answer.headers['content-range']],
        [status, body, contentRange],
      );
    }
    const beyond = await d.get(d.url, { range: 'bytes=10-' });
    assert.deepEqual([beyond.status, beyond.headers['content-range']], [416, 'bytes */10']);
    assert.match(beyond.body, /<Code>InvalidRange<\/Code>/);
  });

  test('forged, expired and other requests', async () => {
    await using d = await open();
    const { url } = d;
    const [payload = '', mac = ''] = new URL(url).pathname.slice('/blob-download/'.length).split('.');
    const grant = JSON.parse(Buffer.from(payload, 'base64url').toString()) as Record<string, unknown>;
    const longer = Buffer.from(
      JSON.stringify({ ...grant, expiresAt: Number(grant['expiresAt']) + 1 }),
    ).toString('base64url');
    const forged = [
      `${longer}.${mac}`,
      `${payload}.`,
      payload,
      `${payload}.${mac.slice(0, -2)}`,
      '',
      '.',
      '%00',
      `x.${mac}`,
    ];
    for (const token of forged) {
      const answer = await d.get(`http://localhost/blob-download/${token}`);
      assert.equal(answer.status, 403, token);
      assert.match(answer.body, /<Code>SignatureDoesNotMatch<\/Code>/);
    }
    const post = await d.get(url, {}, 'POST');
    assert.deepEqual([post.status, post.headers['allow']], [405, 'GET, HEAD']);
    d.t.now += LIMITS.downloadUrlMs - 1;
    assert.equal((await d.get(url)).status, 200);
    d.t.now += 1;
    const expired = await d.get(url);
    assert.equal(expired.status, 403);
    assert.match(expired.body, /<Code>AccessDenied<\/Code><Message>Request has expired<\/Message>/);
  });

  test('a URL is good for its hour across the collection of its layer', async () => {
    await using d = await open();
    const { t, layer: layerDigest } = d;
    // The lease of the push is over.
    t.now += 2 * LIMITS.blobLeaseMs;
    const { downloadUrl } = await t.call<{ downloadUrl: string }>('GetDownloadUrlForLayer', {
      repositoryName: 'app',
      layerDigest,
    });
    await t.call('BatchDeleteImage', { repositoryName: 'app', imageIds: [{ imageDigest: d.digest }] });
    for (const elapsedMs of [0, LIMITS.downloadUrlMs - 1]) {
      t.now += elapsedMs;
      await t.registry.collectGarbage({ orphans: true });
      assert.equal((await d.get(downloadUrl)).body, '0123456789');
    }
    t.now += LIMITS.blobLeaseMs + LIMITS.trashGraceMs;
    await t.registry.collectGarbage({ orphans: true });
    const { count } = await t.store.read
      .selectFrom('repository_blob')
      .select((q) => q.fn.countAll<number>().as('count'))
      .executeTakeFirstOrThrow();
    assert.equal(count, 0);
  });

  test('a URL outlives its image, but not the repository', async () => {
    await using d = await open();
    const imageIds = [{ imageDigest: d.digest }];
    await d.t.call('BatchDeleteImage', { repositoryName: 'app', imageIds });
    assert.equal((await d.get(d.url)).status, 200);
    await d.t.call('DeleteRepository', { repositoryName: 'app' });
    assert.equal((await d.get(d.url)).status, 404);
    await d.t.call('CreateRepository', { repositoryName: 'app' });
    await d.t.addImage('app', '0123456789', 'v1');
    assert.equal((await d.get(d.url)).status, 404);
  });
}
