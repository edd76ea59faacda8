import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { request, type IncomingMessage } from 'node:http';
import { after, before, test } from 'node:test';
import { presignUrl, signRequest, type Credentials } from '../lib/sigv4.ts';
import {
  answering,
  KEY,
  openEndpoint,
  REQUEST_ID,
  SESSION,
  type Answer,
  type Endpoint,
} from './test-endpoint.ts';

const NOW = Date.UTC(2026, 10, 24, 12, 0, 0);
const DATE = new Date(NOW).toUTCString();
const MINUTE = 60_000;
const MISMATCH =
  'The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.';

let endpoint: Endpoint;
before(async () => {
  endpoint = await openEndpoint({
    now: NOW,
    ecr: { DescribeRegistry: answering({ registryId: '000000000000' }) },
    sts: { GetCallerIdentity: answering({ Account: '000000000000' }) },
  });
});
after(async () => {
  await endpoint[Symbol.asyncDispose]();
});

interface Setup {
  readonly credentials?: Credentials;
  readonly region?: string;
  readonly service?: string;
  readonly now?: number;
}

type Headers = Record<string, string>;

interface Row {
  readonly name: string;
  readonly setup?: Setup;
  /** what is done to the headers of a good request */
  readonly change?: (headers: Headers, service: string) => void;
  /** sends more body than was signed */
  readonly longer?: true;
  readonly json: string;
  readonly query: readonly [code: string, status: number];
  readonly message: string | ((headers: Headers, service: string) => string);
  /** where the doors say different things */
  readonly queryMessage?: string;
}

const edit = (headers: Headers, pattern: RegExp, to: string): void => {
  headers['authorization'] = (headers['authorization'] ?? '').replace(pattern, to);
};
const hash = (headers: Headers): string =>
  createHash('sha256')
    .update(headers['authorization'] ?? '')
    .digest('base64');
const tail = (headers: Headers): string =>
  `(Hashed with SHA-256 and encoded with Base64) Authorization=${hash(headers)}`;

const INCOMPLETE = ['IncompleteSignature', 400] as const;
const NO_MATCH = ['SignatureDoesNotMatch', 403] as const;
const NO_CLIENT = ['InvalidClientTokenId', 403] as const;

const ROWS: readonly Row[] = [
  {
    name: 'no credentials',
    change: (headers) => delete headers['authorization'],
    json: 'MissingAuthenticationTokenException',
    query: ['MissingAuthenticationToken', 403],
    message: 'Missing Authentication Token',
    queryMessage: 'Request is missing Authentication Token',
  },
  {
    name: 'another scheme',
    change: (headers) => (headers['authorization'] = 'Basic QVdTOng='),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: "Unsupported AWS 'algorithm': 'Basic'.",
  },
  {
    name: 'SigV4a',
    change: (headers) => edit(headers, /^AWS4-HMAC-SHA256/, 'AWS4-ECDSA-P256-SHA256'),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: "Unsupported AWS 'algorithm': 'AWS4-ECDSA-P256-SHA256'.",
  },
  {
    name: 'a component without equal sign',
    change: (headers) => edit(headers, /$/, ', oops'),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: (headers) =>
      `'oops' not a valid key=value pair (missing equal-sign) in Authorization header (hashed with SHA-256 and encoded with Base64): '${hash(headers)}'.`,
  },
  {
    name: 'no Credential',
    change: (headers) => edit(headers, /Credential=[^,]*, /, ''),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: (headers) => `Authorization header requires 'Credential' parameter. ${tail(headers)}`,
  },
  {
    name: 'nothing but the algorithm, and no date',
    change: (headers) => {
      headers['authorization'] = 'AWS4-HMAC-SHA256';
      delete headers['x-amz-date'];
    },
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: (headers) =>
      "Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. " +
      "Authorization header requires 'SignedHeaders' parameter. Authorization header requires existence of either a " +
      `'X-Amz-Date' or a 'Date' header. ${tail(headers)}`,
  },
  {
    name: 'host not signed',
    change: (headers) => edit(headers, /host;/, ''),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
  },
  {
    name: 'date not signed',
    change: (headers) => edit(headers, /;x-amz-date/, ''),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: "'x-amz-date' must be a 'SignedHeader' in the AWS Authorization.",
  },
  {
    name: 'session token not signed',
    setup: { credentials: SESSION },
    change: (headers) => edit(headers, /;x-amz-security-token/, ''),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: "'x-amz-security-token' must be a 'SignedHeader' in the AWS Authorization.",
  },
  {
    name: 'date of another form',
    change: (headers) => (headers['x-amz-date'] = DATE),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message: `Date must be in ISO-8601 'basic format'. Got '${DATE}'. See http://en.wikipedia.org/wiki/ISO_8601`,
  },
  {
    name: 'too old',
    setup: { now: NOW - 15 * MINUTE - 1000 },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message:
      'Signature expired: 20261124T114459Z is now earlier than 20261124T114500Z (20261124T120000Z - 15 min.)',
  },
  {
    name: 'too far ahead',
    setup: { now: NOW + 15 * MINUTE + 1000 },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message:
      'Signature not yet current: 20261124T121501Z is still later than 20261124T121500Z (20261124T120000Z + 15 min.)',
  },
  {
    name: 'four credential parts',
    change: (headers) => edit(headers, /Credential=[^,]*/, 'Credential=a/b/c/d'),
    json: 'IncompleteSignatureException',
    query: INCOMPLETE,
    message:
      "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 'a/b/c/d'",
  },
  {
    name: 'wrong region',
    setup: { region: 'mars-1' },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: 'Credential should be scoped to a valid region. ',
  },
  {
    name: 'wrong region, service, terminator and date',
    change: (headers) => edit(headers, /Credential=[^,]*/, 'Credential=a/20261123/mars-1/s3/aws5_request'),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: (_, service) =>
      `Credential should be scoped to a valid region. Credential should be scoped to correct service: '${service}'. ` +
      "Credential should be scoped with a valid terminator: 'aws4_request'. Date in Credential scope does not match " +
      "YYYYMMDD from ISO-8601 version of date from HTTP: '20261123' != '20261124', from '20261124T120000Z'.",
  },
  {
    name: 'wrong service',
    setup: { service: 'iam' },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: (_, service) => `Credential should be scoped to correct service: '${service}'. `,
  },
  {
    name: 'corrupt session token',
    setup: { credentials: { ...SESSION, sessionToken: 'bad' } },
    json: 'UnrecognizedClientException',
    query: NO_CLIENT,
    message: 'The security token included in the request is invalid',
  },
  {
    name: 'session token with a long-term key',
    setup: { credentials: { ...KEY, sessionToken: 'any' } },
    json: 'UnrecognizedClientException',
    query: NO_CLIENT,
    message: 'The security token included in the request is invalid',
  },
  {
    name: 'session over',
    setup: { credentials: { ...SESSION, sessionToken: 'old' } },
    json: 'ExpiredTokenException',
    query: ['ExpiredToken', 403],
    message: 'The security token included in the request is expired',
  },
  {
    name: 'unknown key',
    setup: { credentials: { ...KEY, accessKeyId: 'AKIDUNKNOWN000000000' } },
    json: 'UnrecognizedClientException',
    query: NO_CLIENT,
    message: 'The security token included in the request is invalid.',
  },
  {
    name: 'temporary key without its token',
    setup: { credentials: { ...SESSION, sessionToken: undefined } },
    json: 'UnrecognizedClientException',
    query: NO_CLIENT,
    message: 'The security token included in the request is invalid.',
  },
  {
    name: 'wrong secret',
    setup: { credentials: { ...KEY, secretAccessKey: 'another' } },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'signature not hex',
    change: (headers) => edit(headers, /Signature=[0-9a-f]{2}/, 'Signature=ZZ'),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'signature in capitals',
    change: (headers) => {
      const [start = '', end = ''] = (headers['authorization'] ?? '').split('Signature=');
      headers['authorization'] = `${start}Signature=${end.toUpperCase()}`;
    },
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'signed headers in another order',
    change: (headers) => edit(headers, /content-type;host/, 'host;content-type'),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'a signed header that was not sent',
    change: (headers) => edit(headers, /;x-amz-date/, ';x-amz-date;x-gone'),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'another body than signed',
    longer: true,
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'UNSIGNED-PAYLOAD',
    change: (headers) => (headers['x-amz-content-sha256'] = 'UNSIGNED-PAYLOAD'),
    longer: true,
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
  {
    name: 'the same request from another host name',
    change: (headers) => (headers['host'] = 'evil.example'),
    json: 'InvalidSignatureException',
    query: NO_MATCH,
    message: MISMATCH,
  },
];

function prepare(row: Row, service: 'ecr' | 'sts'): { headers: Headers; body: string; message: string } {
  const body = service === 'ecr' ? '{}' : 'Action=GetCallerIdentity&Version=2011-06-15';
  const given: Headers =
    service === 'ecr'
      ? {
          'content-type': 'application/x-amz-json-1.1',
          'x-amz-target': 'AmazonEC2ContainerRegistry_V20150921.DescribeRegistry',
        }
      : { 'content-type': 'application/x-www-form-urlencoded' };
  const { credentials = KEY, region = 'eu-west-1', now = NOW } = row.setup ?? {};
  const headers = signRequest(
    { method: 'POST', url: `${endpoint.url}/`, headers: given, body },
    credentials,
    {
      region,
      service: row.setup?.service ?? service,
      now,
    },
  );
  row.change?.(headers, service);
  const text = typeof row.message === 'string' ? row.message : row.message(headers, service);
  const message = service === 'sts' ? (row.queryMessage ?? text) : text;
  const extra = service === 'ecr' ? ' ' : '&x=1';
  return { headers, body: row.longer === true ? body + extra : body, message };
}

for (const row of ROWS) {
  test(`JSON door: ${row.name}`, async () => {
    const { headers, body, message } = prepare(row, 'ecr');
    const answer = await endpoint.send({ headers, body });
    assert.deepEqual(JSON.parse(answer.body), { __type: row.json, message });
    assert.equal(answer.status, 400);
    assert.equal(answer.headers['content-type'], 'application/x-amz-json-1.1');
    assert.equal(answer.headers['x-amzn-requestid'], REQUEST_ID);
    assert.equal(answer.headers['date'], DATE);
  });

  test(`Query door: ${row.name}`, async () => {
    const { headers, body, message } = prepare(row, 'sts');
    const answer = await endpoint.send({ headers, body });
    const [code, status] = row.query;
    const text = message.replaceAll("'", '&#39;');
    assert.equal(
      answer.body,
      '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>' +
        `<Code>${code}</Code><Message>${text}</Message></Error><RequestId>${REQUEST_ID}</RequestId></ErrorResponse>`,
    );
    assert.equal(answer.status, status);
    assert.equal(answer.headers['content-type'], 'text/xml');
    assert.equal(answer.headers['x-amzn-requestid'], REQUEST_ID);
    assert.equal(answer.headers['date'], DATE);
  });
}

/** Sends no more than the head; undefined when there is no answer to it. */
async function sendHead(headers: Headers, bytes: number | 'chunked'): Promise<Answer | undefined> {
  const length: Headers =
    bytes === 'chunked' ? { 'transfer-encoding': 'chunked' } : { 'content-length': `${bytes}` };
  const outgoing = request(endpoint.url, {
    method: 'POST',
    headers: { ...headers, ...length },
    agent: false,
  });
  outgoing.on('error', () => undefined).flushHeaders();
  const answer = once(outgoing, 'response') as Promise<[IncomingMessage]>;
  // An answer to the head of another request that came later shows that there is none.
  const other = endpoint.send({ headers: {}, body: '' }).then(() => endpoint.send({ headers: {}, body: '' }));
  const response = await Promise.race([answer.then(([first]) => first), other.then(() => undefined)]);
  if (response === undefined) {
    outgoing.destroy();
    return undefined;
  }
  const body = Buffer.concat((await response.toArray()) as Buffer[]).toString();
  outgoing.destroy();
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}

const LARGE = [65_537, 'chunked'] as const;

test('a large body is not waited for when its key, or anything else in the head, is no good', async () => {
  const told = ROWS.filter(({ message }) => message !== MISMATCH);
  for (const [i, row] of told.entries()) {
    const json = prepare(row, 'ecr');
    const answer = await sendHead(json.headers, LARGE[i % 2] ?? 0);
    assert.deepEqual(JSON.parse(answer?.body ?? row.name), { __type: row.json, message: json.message });
    const form = prepare(row, 'sts');
    // An unsigned form may be no larger, and which service it is for is not known yet.
    if (row.query[0] === 'MissingAuthenticationToken' || form.message.includes('correct service')) continue;
    const text = (await sendHead(form.headers, LARGE[i % 2] ?? 0))?.body ?? row.name;
    assert.ok(
      text.includes(
        `<Code>${row.query[0]}</Code><Message>${form.message.replaceAll("'", '&#39;')}</Message>`,
      ),
      text,
    );
  }
  assert.ok(told.length > 10);
});

test('a large body of a known key is waited for, and a small one of any', async () => {
  const mismatch = ROWS.find(({ message }) => message === MISMATCH) as Row;
  const unknown = ROWS.find(({ name }) => name === 'unknown key') as Row;
  for (const service of ['ecr', 'sts'] as const) {
    assert.equal(await sendHead(prepare(mismatch, service).headers, 65_537), undefined);
    assert.equal(await sendHead(prepare(unknown, service).headers, 65_536), undefined);
  }
});

test('an unsigned form may have 64 KiB', async () => {
  const headers = { 'content-type': 'application/x-www-form-urlencoded' };
  const form = 'Action=GetCallerIdentity&Version=2011-06-15&x=';
  assert.equal((await endpoint.send({ headers, body: form.padEnd(65_536, '.') })).status, 403);
  const answer = await sendHead(headers, 65_537);
  assert.equal(answer?.status, 413);
  assert.match(answer.body, /Request body is larger than 65536 bytes\./);
});

test('good signatures pass, at the edges of the window too', async () => {
  const plain: Row = { name: '', json: '', query: INCOMPLETE, message: '' };
  for (const now of [NOW - 15 * MINUTE, NOW, NOW + 15 * MINUTE]) {
    for (const credentials of [KEY, SESSION]) {
      for (const service of ['ecr', 'sts'] as const) {
        const { headers, body } = prepare({ ...plain, setup: { now, credentials } }, service);
        const answer = await endpoint.send({ headers, body });
        assert.equal(answer.status, 200, answer.body);
      }
    }
  }
});

test('an X-Amz-Target that is not signed is refused', async () => {
  const { headers, body } = prepare({ name: '', json: '', query: INCOMPLETE, message: '' }, 'ecr');
  edit(headers, /;x-amz-target/, '');
  const answer = await endpoint.send({ headers, body });
  assert.deepEqual(JSON.parse(answer.body), {
    __type: 'InvalidSignatureException',
    message: "'x-amz-target' must be a 'SignedHeader' in the AWS Authorization.",
  });
});

const ACTION = 'Action=GetCallerIdentity&Version=2011-06-15';

function presigned(setup: Setup & { readonly expiresS?: number; readonly headers?: Headers } = {}): string {
  const { credentials = KEY, region = 'eu-west-1', service = 'sts', now = NOW, expiresS = 60 } = setup;
  const request = { method: 'GET', url: `${endpoint.url}/?${ACTION}`, headers: setup.headers ?? {} };
  return presignUrl(request, credentials, { region, service, now, expiresS }).slice(endpoint.url.length);
}

interface PresignedRow {
  readonly name: string;
  readonly path: () => string;
  readonly headers?: Headers;
  readonly code: string;
  readonly status: number;
  readonly message: string;
}

const HEAD = '';
const PRESIGNED: readonly PresignedRow[] = [
  {
    name: 'both forms at once',
    path: presigned,
    headers: { authorization: 'AWS4-HMAC-SHA256 Credential=x' },
    code: 'SignatureDoesNotMatch',
    status: 403,
    message: '',
  },
  {
    name: 'another algorithm',
    path: () => presigned().replace('AWS4-HMAC-SHA256', 'AWS4-ECDSA-P256-SHA256'),
    code: 'MissingAuthenticationToken',
    status: 403,
    message: 'Missing Authentication Token',
  },
  {
    name: 'parameters missing',
    path: () => presigned().replace(/&X-Amz-(Date|Signature)=[^&]*/g, ''),
    code: 'IncompleteSignature',
    status: 400,
    message:
      "AWS query-string parameters must include 'X-Amz-Signature'. AWS query-string parameters must include 'X-Amz-Date'. Re-examine the query-string parameters.",
  },
  {
    name: 'host not signed',
    path: () => presigned().replace('SignedHeaders=host', 'SignedHeaders=x-k8s-aws-id'),
    code: 'SignatureDoesNotMatch',
    status: 403,
    message: "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
  },
  {
    name: 'too old, whatever X-Amz-Expires says',
    path: () => presigned({ now: NOW - 16 * MINUTE, expiresS: 604_800 }),
    code: 'SignatureDoesNotMatch',
    status: 403,
    message:
      'Signature expired: 20261124T114400Z is now earlier than 20261124T114500Z (20261124T120000Z - 15 min.)',
  },
  {
    name: 'a session token added after signing',
    path: () =>
      `${presigned({ credentials: { ...SESSION, sessionToken: undefined } })}&X-Amz-Security-Token=${encodeURIComponent(SESSION.sessionToken ?? '')}`,
    code: 'SignatureDoesNotMatch',
    status: 403,
    message: MISMATCH,
  },
  {
    name: 'a signed parameter changed',
    path: () => presigned().replace('X-Amz-Expires=60', 'X-Amz-Expires=61'),
    code: 'SignatureDoesNotMatch',
    status: 403,
    message: MISMATCH,
  },
  {
    name: 'a bad escape',
    path: () => `${presigned()}&x=%zz`,
    code: 'MalformedQueryString',
    status: 400,
    message: 'Illegal hex characters in escape % pattern: %zz',
  },
  {
    name: 'an incomplete escape',
    path: () => `${presigned()}&x=%4`,
    code: 'MalformedQueryString',
    status: 400,
    message: 'Incomplete trailing escape % sequence',
  },
];

for (const row of PRESIGNED) {
  test(`presigned: ${row.name}`, async () => {
    const answer = await endpoint.send({ method: 'GET', path: row.path(), headers: row.headers ?? {} });
    assert.equal(/<Code>(.*)<\/Code>/.exec(answer.body)?.[1], row.code, answer.body);
    const message = /<Message>(.*)<\/Message>/.exec(answer.body)?.[1] ?? HEAD;
    assert.equal(message.replaceAll('&#39;', "'"), row.message);
    assert.equal(answer.status, row.status);
  });
}

test('presigned requests pass, with extra signed headers and session tokens', async () => {
  const header = { 'x-k8s-aws-id': 'cluster' };
  const eks = await endpoint.send({ method: 'GET', path: presigned({ headers: header }), headers: header });
  assert.equal(eks.status, 200, eks.body);
  const session = await endpoint.send({ method: 'GET', path: presigned({ credentials: SESSION }) });
  assert.equal(session.status, 200, session.body);
  const without = await endpoint.send({ method: 'GET', path: presigned({ headers: header }) });
  assert.equal(without.status, 403);
});
