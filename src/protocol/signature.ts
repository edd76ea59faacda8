/**
 * Verification of signed requests, header and query form. Order of checks and texts: iam-sts.md §1.5 and §1.6. Faults
 * carry the JSON codes; the Query door maps them through FAULTS.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import * as sigv4 from '../lib/sigv4.ts';
import { malformedEscape } from './query.ts';

/** The head of a request as it arrived; header values and target as binary strings, as `node:http` gives them. */
export interface SignedHead {
  readonly method: string;
  readonly path: string;
  readonly rawQuery: string;
  /** names and values in turn, as `IncomingMessage.rawHeaders` */
  readonly rawHeaders: readonly string[];
}

export interface SignedRequest extends SignedHead {
  readonly body: Uint8Array;
}

/** Where the verifier finds keys. Identity implements it. */
export interface KeySource<Caller> {
  /**
   * The secret and the caller behind an access key. `'invalid-token'`: the session token is not this key's, or comes
   * with a long-term key. `'expired'`: the session is over at `now`. `undefined`: unknown or inactive key, or a temporary key
   * without its token.
   */
  findKey(
    accessKeyId: string,
    sessionToken: string | undefined,
    now: number,
  ): Promise<{ readonly secret: string; readonly caller: Caller } | 'invalid-token' | 'expired' | undefined>;
}

export interface VerifierOptions<Caller> {
  readonly keys: KeySource<Caller>;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly acceptsRegion: (region: string) => boolean;
  /** Called after every success: `Identity.recordKeyUse`. Must not throw or wait. */
  readonly onKeyUse?: (accessKeyId: string, service: string, region: string, now: number) => void;
}

export interface Verified<Caller> {
  readonly caller: Caller;
  readonly accessKeyId: string;
  readonly region: string;
  /** epoch milliseconds of the check */
  readonly now: number;
}

/**
 * Checks a request signed for `service`.
 *
 * @throws Fault MissingAuthenticationTokenException, IncompleteSignatureException, InvalidSignatureException,
 *   UnrecognizedClientException, ExpiredTokenException, MalformedQueryString
 */
export interface Verify<Caller> {
  (request: SignedRequest, service: string, vocabulary: 'json' | 'query'): Promise<Verified<Caller>>;
  /**
   * Throws what the check would throw whatever the body is: everything but a signature that does not match. For requests whose
   * body is not worth waiting for otherwise; who passes is not who they say they are. `service` undefined: not known yet.
   */
  vet(request: SignedHead, service: string | undefined, vocabulary: 'json' | 'query'): Promise<void>;
}

/** Bounded memory for derived keys: one HMAC chain per key and day instead of per request. */
const SIGNING_KEYS_MAX = 1024;

const SKEW_MINUTES = LIMITS.clockSkewMs / 60_000;
const MISMATCH =
  'The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key ' +
  'and signing method. Consult the service documentation for details.';
const INVALID_TOKEN = 'The security token included in the request is invalid';
const NOT_SIGNED = "must be a 'SignedHeader' in the AWS Authorization.";
/** Headers that change what a request means: signed or absent. WHY: hardening beyond AWS; every SDK signs them. */
const MUST_BE_SIGNED = ['x-amz-date', 'x-amz-security-token', 'x-amz-target'];

/** What a request claims, both forms alike. */
interface Claim {
  readonly credential: string;
  readonly signedHeaders: readonly string[];
  readonly signature: string;
  readonly timestamp: string;
  readonly sessionToken: string | undefined;
  /** what is signed of the query */
  readonly query: readonly sigv4.QueryPair[];
}

interface Credential extends sigv4.CredentialScope {
  readonly accessKeyId: string;
}

const incomplete = (message: string): Fault => new Fault('IncompleteSignatureException', message);
const invalid = (message: string): Fault => new Fault('InvalidSignatureException', message);

/** Whether a request carries a signature in either form, good or bad. */
export function carriesSignature(authorization: string | undefined, rawQuery: string): boolean {
  return authorization !== undefined || /(?:^|&)X-Amz-Algorithm(?:=|&|$)/.test(rawQuery);
}

/** Makes the verifier both doors share; it keeps derived signing keys in memory. */
export function createVerifier<Caller>(options: VerifierOptions<Caller>): Verify<Caller> {
  const keyFor = createKeyCache();

  const readHead = (request: SignedHead, service: string | undefined, vocabulary: 'json' | 'query') => {
    const headers = pairUp(request.rawHeaders);
    const claim = readClaim(headers, parseQuery(request.rawQuery), vocabulary);
    checkSignedHeaders(claim, headers);
    const now = options.clock();
    const timestamp = checkTime(claim.timestamp, now);
    const credential = readCredential(claim, timestamp, service, options.acceptsRegion);
    return { headers, claim, now, timestamp, credential };
  };

  const verify = async (
    request: SignedRequest,
    service: string,
    vocabulary: 'json' | 'query',
  ): Promise<Verified<Caller>> => {
    const { headers, claim, now, timestamp, credential } = readHead(request, service, vocabulary);
    const found = await options.keys.findKey(credential.accessKeyId, claim.sessionToken, now);
    const known = typeof found === 'object';
    // INVARIANT: the same work for unknown keys, so that time does not tell them from known ones
    const matches = signatureMatches(
      claim,
      request,
      headers,
      timestamp,
      credential,
      keyFor(known ? found.secret : 'unknown key', credential),
    );
    if (!known) throw unrecognized(found);
    if (!matches) throw invalid(MISMATCH);
    options.onKeyUse?.(credential.accessKeyId, service, credential.region, now);
    return { caller: found.caller, accessKeyId: credential.accessKeyId, region: credential.region, now };
  };

  const vet: Verify<Caller>['vet'] = async (request, service, vocabulary) => {
    const { claim, now, credential } = readHead(request, service, vocabulary);
    const found = await options.keys.findKey(credential.accessKeyId, claim.sessionToken, now);
    // WHY sooner than for a known key: the answer itself tells them apart, here as in `verify`.
    if (typeof found !== 'object') throw unrecognized(found);
  };
  return Object.assign(verify, { vet });
}

function unrecognized(found: 'invalid-token' | 'expired' | undefined): Fault {
  if (found === 'invalid-token') return new Fault('UnrecognizedClientException', INVALID_TOKEN);
  if (found === 'expired')
    return new Fault('ExpiredTokenException', 'The security token included in the request is expired');
  return new Fault('UnrecognizedClientException', `${INVALID_TOKEN}.`);
}

function createKeyCache(): (secret: string, scope: sigv4.CredentialScope) => Buffer {
  const cache = new Map<string, Buffer>();
  return (secret, scope) => {
    const id = `${scope.date}/${scope.region}/${scope.service}/${secret}`;
    const cached = cache.get(id);
    if (cached !== undefined) return cached;
    const key = sigv4.signingKey(secret, scope);
    const oldest = cache.size >= SIGNING_KEYS_MAX ? cache.keys().next().value : undefined;
    if (oldest !== undefined) cache.delete(oldest);
    cache.set(id, key);
    return key;
  };
}

function pairUp(rawHeaders: readonly string[]): sigv4.HeaderLine[] {
  const lines: sigv4.HeaderLine[] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    lines.push([(rawHeaders[i] as string).toLowerCase(), rawHeaders[i + 1] as string]);
  }
  return lines;
}

function parseQuery(rawQuery: string): sigv4.QueryPair[] {
  try {
    return sigv4.parseQuery(rawQuery);
  } catch (error) {
    throw error instanceof sigv4.EscapeError ? malformedEscape(error) : error;
  }
}

function readClaim(
  headers: readonly sigv4.HeaderLine[],
  query: readonly sigv4.QueryPair[],
  vocabulary: 'json' | 'query',
): Claim {
  const header = (name: string): string | undefined => headers.find((line) => line[0] === name)?.[1];
  const parameter = (name: string): string | undefined => query.find((pair) => pair[0] === name)?.[1];
  const authorization = header('authorization');
  const algorithm = parameter('X-Amz-Algorithm');
  if (authorization !== undefined && algorithm !== undefined) throw invalid('');
  if (authorization !== undefined) {
    const date = header('x-amz-date') ?? header('date');
    return readHeaderClaim(authorization, date, header('x-amz-security-token'), query);
  }
  if (algorithm !== undefined) return readQueryClaim(algorithm, parameter, query);
  throw new Fault(
    'MissingAuthenticationTokenException',
    vocabulary === 'json' ? 'Missing Authentication Token' : 'Request is missing Authentication Token',
  );
}

/** WHY: the header is told by its hash, as IAM does since 2025, so that no secret is echoed. */
function hashed(authorization: string): string {
  return createHash('sha256').update(authorization, 'latin1').digest('base64');
}

function readHeaderClaim(
  authorization: string,
  timestamp: string | undefined,
  sessionToken: string | undefined,
  query: readonly sigv4.QueryPair[],
): Claim {
  const { algorithm, parameters, malformed } = sigv4.parseAuthorization(authorization);
  if (algorithm !== sigv4.ALGORITHM) throw incomplete(`Unsupported AWS 'algorithm': '${algorithm}'.`);
  if (malformed !== undefined) {
    throw incomplete(
      `'${malformed}' not a valid key=value pair (missing equal-sign) in Authorization header ` +
        `(hashed with SHA-256 and encoded with Base64): '${hashed(authorization)}'.`,
    );
  }
  const [credential, signature, signedHeaders] = ['Credential', 'Signature', 'SignedHeaders'].map((name) =>
    parameters.get(name),
  );
  if (
    credential === undefined ||
    signature === undefined ||
    signedHeaders === undefined ||
    timestamp === undefined
  ) {
    const missing = [
      credential === undefined && "Authorization header requires 'Credential' parameter.",
      signature === undefined && "Authorization header requires 'Signature' parameter.",
      signedHeaders === undefined && "Authorization header requires 'SignedHeaders' parameter.",
      timestamp === undefined &&
        "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
    ];
    const tail = `(Hashed with SHA-256 and encoded with Base64) Authorization=${hashed(authorization)}`;
    throw incomplete([...missing.filter((each) => each !== false), tail].join(' '));
  }
  return { credential, signature, signedHeaders: signedHeaders.split(';'), timestamp, sessionToken, query };
}

function readQueryClaim(
  algorithm: string,
  parameter: (name: string) => string | undefined,
  query: readonly sigv4.QueryPair[],
): Claim {
  if (algorithm !== sigv4.ALGORITHM) {
    throw new Fault('MissingAuthenticationTokenException', 'Missing Authentication Token');
  }
  const names = ['X-Amz-Credential', 'X-Amz-Signature', 'X-Amz-SignedHeaders', 'X-Amz-Date'];
  const [credential, signature, signedHeaders, timestamp] = names.map(parameter);
  if (
    credential === undefined ||
    signature === undefined ||
    signedHeaders === undefined ||
    timestamp === undefined
  ) {
    const missing = names.filter((name) => parameter(name) === undefined);
    const sentences = missing.map((name) => `AWS query-string parameters must include '${name}'.`);
    throw incomplete([...sentences, 'Re-examine the query-string parameters.'].join(' '));
  }
  return {
    credential,
    signature,
    signedHeaders: signedHeaders.split(';'),
    timestamp,
    sessionToken: parameter('X-Amz-Security-Token'),
    query: query.filter(([name]) => name !== 'X-Amz-Signature'),
  };
}

function checkSignedHeaders(claim: Claim, headers: readonly sigv4.HeaderLine[]): void {
  const { signedHeaders } = claim;
  if (!signedHeaders.includes('host') && !signedHeaders.includes(':authority')) {
    throw invalid(`'Host' or ':authority' ${NOT_SIGNED}`);
  }
  for (const name of MUST_BE_SIGNED) {
    if (headers.some((line) => line[0] === name) && !signedHeaders.includes(name)) {
      throw invalid(`'${name}' ${NOT_SIGNED}`);
    }
  }
}

/** The timestamp in its basic form. */
function checkTime(text: string, now: number): string {
  const ms = sigv4.parseTimestamp(text);
  if (ms === undefined) {
    throw incomplete(
      `Date must be in ISO-8601 'basic format'. Got '${text}'. See http://en.wikipedia.org/wiki/ISO_8601`,
    );
  }
  const time = sigv4.formatTimestamp(ms);
  if (ms >= now - LIMITS.clockSkewMs && ms <= now + LIMITS.clockSkewMs) return time;
  const server = sigv4.formatTimestamp(now);
  if (ms < now - LIMITS.clockSkewMs) {
    const limit = sigv4.formatTimestamp(now - LIMITS.clockSkewMs);
    throw invalid(
      `Signature expired: ${time} is now earlier than ${limit} (${server} - ${SKEW_MINUTES} min.)`,
    );
  }
  const limit = sigv4.formatTimestamp(now + LIMITS.clockSkewMs);
  throw invalid(
    `Signature not yet current: ${time} is still later than ${limit} (${server} + ${SKEW_MINUTES} min.)`,
  );
}

function readCredential(
  claim: Claim,
  timestamp: string,
  expectedService: string | undefined,
  acceptsRegion: (region: string) => boolean,
): Credential {
  const parts = claim.credential.split('/');
  if (parts.length !== 5) {
    throw incomplete(
      `Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '${claim.credential}'`,
    );
  }
  const [accessKeyId, date, region, service, terminator] = parts as [string, string, string, string, string];
  let complaints = '';
  // the blanks at the ends are AWS's
  if (!acceptsRegion(region)) complaints += 'Credential should be scoped to a valid region. ';
  if (expectedService !== undefined && service !== expectedService) {
    complaints += `Credential should be scoped to correct service: '${expectedService}'. `;
  }
  if (terminator !== sigv4.TERMINATOR) {
    complaints += `Credential should be scoped with a valid terminator: '${sigv4.TERMINATOR}'. `;
  }
  const today = timestamp.slice(0, 8);
  if (date !== today) {
    complaints += `Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '${date}' != '${today}', from '${timestamp}'.`;
  }
  if (complaints !== '') throw invalid(complaints);
  return { accessKeyId, date, region, service };
}

function isSorted(names: readonly string[]): boolean {
  return names.every((name, i) => i === 0 || (names[i - 1] as string) < name);
}

function signatureMatches(
  claim: Claim,
  request: SignedRequest,
  headers: readonly sigv4.HeaderLine[],
  timestamp: string,
  scope: sigv4.CredentialScope,
  key: Buffer,
): boolean {
  const canonical = sigv4.canonicalRequest({
    method: request.method,
    path: request.path,
    query: claim.query,
    headers,
    signedHeaders: claim.signedHeaders,
    // INVARIANT: always of the bytes received, whatever x-amz-content-sha256 says
    payloadHash: request.body.length === 0 ? sigv4.EMPTY_SHA256 : sigv4.sha256Hex(request.body),
  });
  const expected = sigv4.signature(key, sigv4.stringToSign(timestamp, scope, canonical ?? ''));
  const wellFormed =
    canonical !== undefined && isSorted(claim.signedHeaders) && /^[0-9a-f]{64}$/.test(claim.signature);
  const given = wellFormed ? claim.signature : '0'.repeat(64);
  return timingSafeEqual(Buffer.from(expected, 'latin1'), Buffer.from(given, 'latin1')) && wellFormed;
}
