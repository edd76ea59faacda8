import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as fc from 'fast-check';
import {
  canonicalRequest,
  decodeUri,
  encodeUri,
  EscapeError,
  formatTimestamp,
  parseAuthorization,
  parseQuery,
  parseTimestamp,
  presignUrl,
  sha256Hex,
  signature,
  signingKey,
  signRequest,
  stringToSign,
  toBinary,
  type HeaderLine,
} from './sigv4.ts';

interface Form {
  readonly canonicalRequest: string;
  readonly stringToSign: string;
  readonly signature: string;
  readonly signedRequest: string;
}

interface Vector {
  readonly name: string;
  readonly normalize: boolean;
  readonly region: string;
  readonly service: string;
  readonly timestamp: string;
  readonly expiresS: number;
  readonly credentials: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken?: string;
  };
  readonly omitSessionToken: boolean;
  readonly request: string;
  readonly header: Form;
  readonly query: Form;
}

const vectors = JSON.parse(
  readFileSync(join(import.meta.dirname, '../../test/fixtures/sigv4/vectors.json'), 'utf8'),
) as { readonly cases: readonly Vector[] };

const S3 = 'paths are signed as sent only by S3, which Berth does not speak';
const AFTER =
  'a session token added after signing is refused: only the signed form is accepted (iam-sts.md §1.4)';

/** Vectors that are not for this verifier, each with its reason. */
const EXCLUDED: Readonly<Record<string, string>> = {
  'get-relative-relative-unnormalized': S3,
  'get-relative-unnormalized': S3,
  'get-slash-dot-slash-unnormalized': S3,
  'get-slash-pointless-dot-unnormalized': S3,
  'get-slash-unnormalized': S3,
  'get-slashes-unnormalized': S3,
  'get-space-unnormalized': S3,
  'post-sts-header-after': AFTER,
};

interface Parsed {
  readonly method: string;
  readonly path: string;
  readonly rawQuery: string;
  readonly headers: HeaderLine[];
  readonly body: string;
}

/** A request text as bytes on the wire; continuation lines belong to the header before. */
function parseRequest(text: string): Parsed {
  const [head, body = ''] = text.split('\n\n', 2) as [string, string?];
  const [line = '', ...rest] = toBinary(head).replace(/\n$/, '').split('\n');
  const target = line.slice(line.indexOf(' ') + 1, line.lastIndexOf(' '));
  const headers: HeaderLine[] = [];
  for (const header of rest) {
    const last = headers.at(-1);
    if (/^\s/.test(header) && last !== undefined)
      headers[headers.length - 1] = [last[0], `${last[1]}\n${header}`];
    else headers.push([header.slice(0, header.indexOf(':')), header.slice(header.indexOf(':') + 1)]);
  }
  const [path = '/', rawQuery = ''] = target.split(/\?(.*)/s, 2);
  return { method: line.slice(0, line.indexOf(' ')), path, rawQuery, headers, body };
}

test('the excluded vectors are those of the suite that sign unnormalized paths or add the token afterwards', () => {
  const expected = vectors.cases.filter((each) => !each.normalize || each.omitSessionToken);
  assert.deepEqual(expected.map((each) => each.name).toSorted(), Object.keys(EXCLUDED).toSorted());
  assert.equal(vectors.cases.length, 38);
});

for (const vector of vectors.cases) {
  if (vector.name in EXCLUDED) continue;
  for (const kind of ['header', 'query'] as const) {
    test(`vector ${vector.name}, ${kind} form`, () => {
      const form = vector[kind];
      const request = parseRequest(form.signedRequest);
      const query = parseQuery(request.rawQuery);
      const authorization = request.headers.find(([name]) => name === 'Authorization')?.[1] ?? '';
      const parameters =
        kind === 'header'
          ? parseAuthorization(authorization).parameters
          : new Map(query.map(([name, value]) => [name.replace('X-Amz-', ''), value]));
      const canonical = canonicalRequest({
        method: request.method,
        path: request.path,
        query: query.filter(([name]) => name !== 'X-Amz-Signature'),
        headers: request.headers,
        signedHeaders: (parameters.get('SignedHeaders') ?? '').split(';'),
        payloadHash: sha256Hex(request.body),
      });
      assert.equal(canonical, form.canonicalRequest);
      const [, date = '', region = '', service = ''] = (parameters.get('Credential') ?? '').split('/');
      const scope = { date, region, service };
      const toSign = stringToSign(formatTimestamp(Date.parse(vector.timestamp)), scope, canonical ?? '');
      assert.equal(toSign, form.stringToSign);
      const made = signature(signingKey(vector.credentials.secretAccessKey, scope), toSign);
      assert.equal(made, form.signature);
      assert.equal(parameters.get('Signature'), form.signature);
    });
  }
}

/** Vectors whose request can be given to our signer: one line per header, a path without blanks. */
const SIGNABLE = vectors.cases.filter((vector) => {
  const { headers } = parseRequest(vector.request);
  const names = headers.map(([name]) => name.toLowerCase());
  return (
    !(vector.name in EXCLUDED) &&
    new Set(names).size === names.length &&
    !vector.request.includes('\n ') &&
    !vector.header.canonicalRequest.includes('x-amz-content-sha256')
  );
});

test('signRequest and presignUrl make the signatures of the vectors', () => {
  assert.ok(SIGNABLE.length >= 20, `${SIGNABLE.length}`);
  for (const vector of SIGNABLE) {
    const { method, path, rawQuery, headers, body } = parseRequest(vector.request);
    const url = `https://example.amazonaws.com${Buffer.from(path, 'latin1').toString()}?${Buffer.from(rawQuery, 'latin1').toString()}`;
    const given = Object.fromEntries(
      headers.filter(([name]) => name !== 'Host').map(([name, value]) => [name.toLowerCase(), value]),
    );
    const request = { method, url, headers: given, body };
    const options = { region: vector.region, service: vector.service, now: Date.parse(vector.timestamp) };
    const signed = signRequest(request, vector.credentials, options);
    assert.ok(signed['authorization']?.endsWith(`Signature=${vector.header.signature}`), vector.name);
    const presigned = presignUrl(request, vector.credentials, { ...options, expiresS: vector.expiresS });
    assert.ok(presigned.endsWith(`X-Amz-Signature=${vector.query.signature}`), vector.name);
  }
});

test('percent encoding resolves to what it was made from', () => {
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      const binary = Buffer.from(bytes).toString('latin1');
      const encoded = encodeUri(binary);
      assert.match(encoded, /^(?:[A-Za-z0-9\-._~]|%[0-9A-F]{2})*$/);
      assert.equal(decodeUri(encoded), binary);
    }),
  );
});

test('escapes that are none are refused', () => {
  for (const text of ['%', 'a%2', '%4']) {
    assert.throws(
      () => decodeUri(text),
      (error) => error instanceof EscapeError && error.escape === undefined,
    );
  }
  assert.throws(
    () => decodeUri('a%zzb'),
    (error) => error instanceof EscapeError && error.escape === '%zz',
  );
});

test('timestamps: basic and extended form, nothing else', () => {
  const ms = Date.UTC(2015, 7, 30, 12, 36);
  assert.equal(parseTimestamp('20150830T123600Z'), ms);
  assert.equal(parseTimestamp('2015-08-30T12:36:00Z'), ms);
  assert.equal(formatTimestamp(ms), '20150830T123600Z');
  for (const text of [
    '',
    '20150830',
    '20150230T123600Z',
    '20150830T246000Z',
    '20150830T123600',
    '2015-0830T123600Z',
    'Sun, 30 Aug 2015 12:36:00 GMT',
  ]) {
    assert.equal(parseTimestamp(text), undefined, text);
  }
});

test('an Authorization header: free order, the last of several wins, parts without = are named', () => {
  const parsed = parseAuthorization(
    'AWS4-HMAC-SHA256  Signature=1,Credential=a/b , Signature=2,SignedHeaders=host',
  );
  assert.equal(parsed.algorithm, 'AWS4-HMAC-SHA256');
  assert.deepEqual(
    [...parsed.parameters],
    [
      ['Signature', '2'],
      ['Credential', 'a/b'],
      ['SignedHeaders', 'host'],
    ],
  );
  assert.equal(parsed.malformed, undefined);
  assert.equal(parseAuthorization('AWS4-HMAC-SHA256 oops, Signature=1').malformed, 'oops');
  assert.deepEqual(parseAuthorization('Basic'), {
    algorithm: 'Basic',
    parameters: new Map(),
    malformed: undefined,
  });
});
