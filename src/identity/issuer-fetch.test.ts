import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { RequestListener, Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { LIMITS } from '../lib/limits.ts';
import { createIssuerFetch, isPublicAddress } from './issuer-fetch.ts';

const tls = (name: string) => readFileSync(new URL(`../../test/fixtures/tls/${name}`, import.meta.url));
/** SHA-1 of test/fixtures/tls/ca.pem */
const CA_THUMBPRINT = '829e4740362e14d8c41271d4529ea5d1452209c3';

const answer: RequestListener = (request, response) => {
  switch (request.url) {
    case '/redirect':
      response.writeHead(302, { location: '/ok' }).end();
      break;
    case '/large':
      response.end(`"${'x'.repeat(LIMITS.issuerBytesMax)}"`);
      break;
    case '/text':
      response.end('hello');
      break;
    case '/broken':
      response.writeHead(503).end();
      break;
    default:
      response.end(JSON.stringify({ path: request.url }));
  }
};

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

describe('fetching from issuers', () => {
  const plain = createServer(answer);
  const secure = createTlsServer({ key: tls('server.key'), cert: tls('chain.pem') }, answer);
  const forged = createTlsServer({ key: tls('server.key'), cert: tls('forged-chain.pem') }, answer);
  const ports = { plain: 0, secure: 0, forged: 0 };
  before(async () => {
    ports.plain = await listen(plain);
    ports.secure = await listen(secure);
    ports.forged = await listen(forged);
  });
  after(async () => {
    for (const server of [plain, secure, forged]) {
      await new Promise((resolve) => server.close(resolve));
    }
  });
  const refuses = (promise: Promise<unknown>, problem: string) =>
    assert.rejects(promise, { name: 'IssuerError', problem });

  it('never reaches into the network it runs in', async () => {
    const fetch = createIssuerFetch([]);
    const { plain: port } = ports;
    for (const url of [
      `http://127.0.0.1:${port}/ok`,
      'http://example.com/',
      `https://127.0.0.1:${port}/ok`,
      `https://0x7f.1:${port}/ok`,
      `https://2130706433:${port}/ok`,
      `https://localhost:${port}/ok`,
      `https://[::1]:${port}/ok`,
      `https://[::ffff:127.0.0.1]:${port}/ok`,
      `https://[64:ff9b::7f00:1]:${port}/ok`,
      'https://169.254.169.254/latest/meta-data/',
      'https://10.0.0.1/',
    ]) {
      await refuses(fetch(url, []), 'refused');
    }
  });

  it('may ask hosts that a setting names, within limits and without following', async () => {
    const base = `http://127.0.0.1:${ports.plain}`;
    const fetch = createIssuerFetch([`127.0.0.1:${ports.plain}`]);
    assert.deepEqual(await fetch(`${base}/ok`, []), { path: '/ok' });
    await refuses(fetch(`${base}/redirect`, []), 'refused');
    await refuses(fetch(`${base}/large`, []), 'refused');
    await refuses(fetch(`${base}/text`, []), 'refused');
    await refuses(fetch(`${base}/broken`, []), 'unreachable');
    // Another port of the host is another host.
    await refuses(fetch(`http://127.0.0.1:${ports.secure}/ok`, []), 'refused');
    const byName = createIssuerFetch(['localhost']);
    assert.deepEqual(await byName(`http://localhost:${ports.plain}/x`, []), { path: '/x' });
  });

  it('believes a private CA by its thumbprint, and only what it really signed', async () => {
    const fetch = createIssuerFetch(['localhost']);
    const url = `https://localhost:${ports.secure}/ok`;
    await refuses(fetch(url, []), 'certificate');
    await refuses(fetch(url, ['0'.repeat(40)]), 'certificate');
    assert.deepEqual(await fetch(url, ['0'.repeat(40), CA_THUMBPRINT]), { path: '/ok' });
    // The pinned certificate in the chain, but the server's own signed by a namesake.
    await refuses(fetch(`https://localhost:${ports.forged}/ok`, [CA_THUMBPRINT]), 'certificate');
  });
});

describe('public addresses', () => {
  const cases: readonly [string, boolean][] = [
    ['8.8.8.8', true],
    ['172.15.255.255', true],
    ['172.16.0.0', false],
    ['100.64.0.1', false],
    ['0.0.0.0', false],
    ['255.255.255.255', false],
    ['2606:4700::1111', true],
    ['fe80::1', false],
    ['fd00::1', false],
    ['::', false],
    ['::ffff:8.8.8.8', false],
    ['2002:7f00:1::', false],
    ['ff02::1', false],
    ['localhost', false],
  ];
  for (const [address, isPublic] of cases) {
    it(`${address}: ${isPublic}`, () => assert.equal(isPublicAddress(address), isPublic));
  }
});
