/** Key ids and headers of foreign tokens are names to look up and nothing else: no path, no URL, no query, no key. */
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign, type KeyObject } from 'node:crypto';
import { test } from 'node:test';
import { isSignedBy, keyFor, parseJwt, readIssuerKey } from '../../src/identity/jwt.ts';

const issuer = generateKeyPairSync('rsa', { modulusLength: 2048 });
const attacker = generateKeyPairSync('rsa', { modulusLength: 2048 });
const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');

function makeToken(header: object, key: KeyObject): string {
  const signed = `${encode({ alg: 'RS256', ...header })}.${encode({ sub: 'x' })}`;
  return `${signed}.${sign('sha256', Buffer.from(signed), key).toString('base64url')}`;
}

const keys = ['k1', 'k2'].map((kid) => {
  const jwk = { ...issuer.publicKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' };
  return readIssuerKey(jwk) ?? assert.fail();
});

function accepts(token: string): boolean {
  const jwt = parseJwt(token);
  const key = jwt && keyFor(jwt, keys);
  return jwt !== undefined && key !== undefined && isSignedBy(jwt, key);
}

test('a key id is compared letter by letter', () => {
  assert.equal(accepts(makeToken({ kid: 'k1' }, issuer.privateKey)), true);
  const tricks: readonly unknown[] = [
    'K1',
    'k1 ',
    'k1\0',
    'ｋ1',
    './k1',
    '../../../../dev/null',
    '/proc/self/environ',
    'https://evil.example/jwks.json',
    "k1' OR '1'='1",
    '*',
    '',
    '__proto__',
    0,
    null,
    true,
    ['k1'],
    { kid: 'k1' },
  ];
  for (const kid of tricks) {
    assert.equal(accepts(makeToken({ kid }, issuer.privateKey)), false, JSON.stringify(kid));
  }
  // Two keys, none named: neither is tried.
  assert.equal(accepts(makeToken({}, issuer.privateKey)), false);
});

test('a key that comes with the token counts for nothing', () => {
  const jwk = { ...attacker.publicKey.export({ format: 'jwk' }), kid: 'k1' };
  const pem = attacker.publicKey.export({ type: 'spki', format: 'der' }).toString('base64');
  for (const extra of [
    { jwk },
    { jku: 'https://evil.example/jwks.json' },
    { x5u: 'https://evil.example/cert.pem' },
    { x5c: [pem] },
    { x5t: 'AAAA', 'x5t#S256': 'AAAA' },
    { typ: 'JWE', enc: 'none', zip: 'DEF' },
  ]) {
    assert.equal(
      accepts(makeToken({ kid: 'k1', ...extra }, attacker.privateKey)),
      false,
      JSON.stringify(extra),
    );
  }
});

test('algorithms are spelt one way and each has its own kind of key', () => {
  const good = makeToken({ kid: 'k1' }, issuer.privateKey);
  const [, body = '', signature = ''] = good.split('.');
  for (const alg of [
    'none',
    'NONE',
    '',
    'rs256',
    'RS256 ',
    'HS256',
    'ES256',
    'PS256',
    'RS1',
    'constructor',
    256,
    null,
    ['RS256'],
  ]) {
    assert.equal(accepts(`${encode({ alg, kid: 'k1' })}.${body}.${signature}`), false, JSON.stringify(alg));
  }
});
