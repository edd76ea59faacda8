/**
 * The arithmetic of Signature Version 4: canonical request, string to sign, key chain, and taking apart what a request
 * carries. Nothing here decides whether a request is acceptable.
 *
 * Names, values and paths of a received request are *binary strings*: one character per byte, as `node:http` hands
 * them over. Source: iam-sts.md §1.2; verified against the vectors of awslabs/aws-c-auth.
 */
import { createHmac, hash } from 'node:crypto';

export const ALGORITHM = 'AWS4-HMAC-SHA256';
export const TERMINATOR = 'aws4_request';
/** SHA-256 of no bytes. */
export const EMPTY_SHA256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

/** Name and value as received, in order of arrival; the name in any case. */
export type HeaderLine = readonly [name: string, value: string];
export type QueryPair = readonly [name: string, value: string];

/** Where a key is good: part of what is signed. */
export interface CredentialScope {
  /** `YYYYMMDD` */
  readonly date: string;
  readonly region: string;
  readonly service: string;
}

/** A percent escape that is not one. `escape` is what was found, e.g. `%G1`; undefined when the text ends in it. */
export class EscapeError extends Error {
  override readonly name = 'EscapeError';
  readonly escape: string | undefined;
  constructor(escape: string | undefined) {
    super(escape === undefined ? 'incomplete percent escape' : `bad percent escape ${escape}`);
    this.escape = escape;
  }
}

export function sha256Hex(data: string | Uint8Array): string {
  return hash('sha256', data);
}

function hmac(key: string | Uint8Array, data: string): Buffer {
  return createHmac('sha256', key).update(data).digest();
}

/** Unreserved characters of RFC 3986 stay, every other byte becomes `%XX`. */
const ENCODED: readonly string[] = Array.from({ length: 256 }, (_, byte) => {
  const character = String.fromCharCode(byte);
  return /[A-Za-z0-9\-._~]/.test(character)
    ? character
    : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
});

const UNRESERVED = /^[A-Za-z0-9\-._~]*$/;

/** Percent-encodes a binary string by the rules of SigV4. */
export function encodeUri(binary: string): string {
  if (UNRESERVED.test(binary)) return binary;
  let out = '';
  for (let i = 0; i < binary.length; i++) out += ENCODED[binary.charCodeAt(i) & 0xff];
  return out;
}

/**
 * Resolves percent escapes to a binary string; `+` is data.
 *
 * @throws EscapeError
 */
export function decodeUri(text: string): string {
  if (!text.includes('%')) return text;
  return text.replace(/%(.{0,2})/gs, (escape: string, hex: string) => {
    if (hex.length < 2) throw new EscapeError(undefined);
    if (!/^[0-9A-Fa-f]{2}$/.test(hex)) throw new EscapeError(escape);
    return String.fromCharCode(Number.parseInt(hex, 16));
  });
}

/** The UTF-8 bytes of a text as a binary string. */
export function toBinary(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/**
 * Parameters of a raw query string, escapes resolved, in order of arrival. A name without `=` has an empty value.
 *
 * @throws EscapeError
 */
export function parseQuery(rawQuery: string): QueryPair[] {
  const pairs: QueryPair[] = [];
  if (rawQuery === '') return pairs;
  for (const part of rawQuery.split('&')) {
    if (part === '') continue;
    const mark = part.indexOf('=');
    const name = mark === -1 ? part : part.slice(0, mark);
    pairs.push([decodeUri(name), mark === -1 ? '' : decodeUri(part.slice(mark + 1))]);
  }
  return pairs;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Encoded and sorted by name, then value, in byte order. */
export function canonicalQuery(pairs: readonly QueryPair[]): string {
  return pairs
    .map(([name, value]) => [encodeUri(name), encodeUri(value)] as const)
    .toSorted(([a, x], [b, y]) => compare(a, b) || compare(x, y))
    .map(([name, value]) => `${name}=${value}`)
    .join('&');
}

/** Dot segments and doubled slashes resolved, then every segment encoded (again). For services other than S3. */
export function canonicalPath(path: string): string {
  if (path === '/' || path === '') return '/';
  const segments: string[] = [];
  const parts = path.split('/');
  for (const part of parts) {
    if (part === '' || part === '.') continue;
    if (part === '..') segments.pop();
    else segments.push(encodeUri(part));
  }
  const last = parts.at(-1);
  const open = last === '' || last === '.' || last === '..';
  return segments.length === 0 ? '/' : `/${segments.join('/')}${open ? '/' : ''}`;
}

/**
 * `name:value` lines of the signed headers in the order given; `undefined` when one of them was not sent.
 * Blanks around a value go, runs of blanks become one, several lines of one name are joined by commas.
 */
export function canonicalHeaders(
  lines: readonly HeaderLine[],
  signedHeaders: readonly string[],
): string | undefined {
  const values = new Map<string, string>();
  for (const [rawName, rawValue] of lines) {
    const name = rawName.toLowerCase();
    if (!signedHeaders.includes(name)) continue;
    const value = /^[ \t]|[ \t]{2}|[\t\r\n]|[ \t]$/.test(rawValue)
      ? rawValue.replace(/[ \t\r\n]+/g, ' ').replace(/^ | $/g, '')
      : rawValue;
    const earlier = values.get(name);
    values.set(name, earlier === undefined ? value : `${earlier},${value}`);
  }
  let out = '';
  for (const name of signedHeaders) {
    const value = values.get(name);
    if (value === undefined) return undefined;
    out += `${name}:${value}\n`;
  }
  return out;
}

export interface CanonicalParts {
  readonly method: string;
  readonly path: string;
  /** without `X-Amz-Signature` */
  readonly query: readonly QueryPair[];
  readonly headers: readonly HeaderLine[];
  /** lower case, sorted */
  readonly signedHeaders: readonly string[];
  /** lower-case hex SHA-256 of the body */
  readonly payloadHash: string;
}

/** The canonical request as a binary string; `undefined` when a signed header was not sent. */
export function canonicalRequest(parts: CanonicalParts): string | undefined {
  const headers = canonicalHeaders(parts.headers, parts.signedHeaders);
  if (headers === undefined) return undefined;
  return (
    `${parts.method}\n${canonicalPath(parts.path)}\n${canonicalQuery(parts.query)}\n${headers}\n` +
    `${parts.signedHeaders.join(';')}\n${parts.payloadHash}`
  );
}

/** `timestamp` in the basic form `YYYYMMDDTHHMMSSZ`. */
export function stringToSign(timestamp: string, scope: CredentialScope, canonical: string): string {
  const digest = hash('sha256', Buffer.from(canonical, 'latin1'));
  return `${ALGORITHM}\n${timestamp}\n${scope.date}/${scope.region}/${scope.service}/${TERMINATOR}\n${digest}`;
}

export function signingKey(secret: string, scope: CredentialScope): Buffer {
  const date = hmac(`AWS4${secret}`, scope.date);
  return hmac(hmac(hmac(date, scope.region), scope.service), TERMINATOR);
}

/** Lower-case hex. */
export function signature(key: Uint8Array, toSign: string): string {
  return createHmac('sha256', key).update(toSign).digest('hex');
}

/** An `Authorization` header taken apart. */
export interface AuthorizationHeader {
  readonly algorithm: string;
  /** Parameters by name; the last of several wins. */
  readonly parameters: ReadonlyMap<string, string>;
  /** First parameter without `=`, if any. */
  readonly malformed: string | undefined;
}

export function parseAuthorization(header: string): AuthorizationHeader {
  const text = header.trim();
  const blank = text.search(/[ \t]/);
  const algorithm = blank === -1 ? text : text.slice(0, blank);
  const parameters = new Map<string, string>();
  let malformed: string | undefined;
  for (const part of blank === -1 ? [] : text.slice(blank).split(',')) {
    const parameter = part.trim();
    if (parameter === '') continue;
    const mark = parameter.indexOf('=');
    if (mark === -1) malformed ??= parameter;
    else parameters.set(parameter.slice(0, mark), parameter.slice(mark + 1));
  }
  return { algorithm, parameters, malformed };
}

/** `20150830T123600Z` for epoch milliseconds. */
export function formatTimestamp(ms: number): string {
  return new Date(ms).toISOString().replace(/[-:]|\.\d{3}/g, '');
}

/** Epoch milliseconds of a basic (`20150830T123600Z`) or extended (`2015-08-30T12:36:00Z`) ISO 8601 time. */
export function parseTimestamp(text: string): number | undefined {
  const match = /^(\d{4})(-?)(\d{2})\2(\d{2})T(\d{2})(:?)(\d{2})\6(\d{2})Z$/.exec(text);
  if (match === null) return undefined;
  const [year, month, day] = [Number(match[1]), Number(match[3]), Number(match[4])];
  const [hour, minute, second] = [Number(match[5]), Number(match[7]), Number(match[8])];
  if (month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59 || year < 100) return undefined;
  const ms = Date.UTC(year, month - 1, day, hour, minute, second);
  // Date.UTC rolls 30 February over into March
  return new Date(ms).getUTCDate() === day ? ms : undefined;
}

export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
}

export interface RequestToSign {
  readonly method: string;
  /** absolute, with the query; as it goes on the wire */
  readonly url: string;
  /** beside `host`; all of them are signed */
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
}

export interface SignOptions {
  readonly region: string;
  readonly service: string;
  /** epoch milliseconds */
  readonly now: number;
}

interface Target {
  readonly host: string;
  readonly path: string;
  readonly query: QueryPair[];
}

function splitUrl(url: string): Target {
  const match = /^https?:\/\/([^/?#]+)([^?#]*)(?:\?([^#]*))?/.exec(url);
  if (match === null) throw new TypeError(`not an absolute http URL: ${url}`);
  return {
    host: match[1] as string,
    path: toBinary(match[2] || '/'),
    query: parseQuery(toBinary(match[3] ?? '')),
  };
}

function sign(
  parts: CanonicalParts,
  credentials: Credentials,
  { region, service, now }: SignOptions,
): { readonly signature: string; readonly scope: string } {
  const timestamp = formatTimestamp(now);
  const scope = { date: timestamp.slice(0, 8), region, service };
  // every header in signedHeaders was just put there
  const canonical = canonicalRequest(parts) as string;
  return {
    signature: signature(
      signingKey(credentials.secretAccessKey, scope),
      stringToSign(timestamp, scope, canonical),
    ),
    scope: `${scope.date}/${region}/${service}/${TERMINATOR}`,
  };
}

/** The headers to send: those given, `host`, `x-amz-date`, the session token if there is one, and `authorization`. */
export function signRequest(
  request: RequestToSign,
  credentials: Credentials,
  options: SignOptions,
): Record<string, string> {
  const { host, path, query } = splitUrl(request.url);
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(request.headers ?? {})) headers[name.toLowerCase()] = value;
  headers['host'] ??= host;
  headers['x-amz-date'] = formatTimestamp(options.now);
  if (credentials.sessionToken !== undefined) headers['x-amz-security-token'] = credentials.sessionToken;
  const signedHeaders = Object.keys(headers).toSorted(compare);
  const lines = Object.entries(headers).map(([name, value]) => [name, toBinary(value)] as const);
  const payloadHash = sha256Hex(request.body ?? '');
  const parts = { method: request.method, path, query, headers: lines, signedHeaders, payloadHash };
  const signed = sign(parts, credentials, options);
  headers['authorization'] =
    `${ALGORITHM} Credential=${credentials.accessKeyId}/${signed.scope}, ` +
    `SignedHeaders=${signedHeaders.join(';')}, Signature=${signed.signature}`;
  return headers;
}

/** The URL that carries its own signature ("presigned"); `headers` must be sent with it. */
export function presignUrl(
  request: RequestToSign,
  credentials: Credentials,
  options: SignOptions & { readonly expiresS: number },
): string {
  const { host, path, query } = splitUrl(request.url);
  const headers = { host, ...request.headers };
  const lines = Object.entries(headers).map(
    ([name, value]) => [name.toLowerCase(), toBinary(value)] as const,
  );
  const signedHeaders = lines.map(([name]) => name).toSorted(compare);
  const timestamp = formatTimestamp(options.now);
  const scope = `${timestamp.slice(0, 8)}/${options.region}/${options.service}/${TERMINATOR}`;
  query.push(
    ['X-Amz-Algorithm', ALGORITHM],
    ['X-Amz-Credential', `${credentials.accessKeyId}/${scope}`],
    ['X-Amz-Date', timestamp],
    ['X-Amz-Expires', String(options.expiresS)],
    ['X-Amz-SignedHeaders', signedHeaders.join(';')],
  );
  if (credentials.sessionToken !== undefined) query.push(['X-Amz-Security-Token', credentials.sessionToken]);
  const payloadHash = sha256Hex(request.body ?? '');
  const parts = { method: request.method, path, query, headers: lines, signedHeaders, payloadHash };
  const signed = sign(parts, credentials, options);
  const base = request.url.split(/[?#]/, 1)[0] as string;
  return `${base}?${canonicalQuery(query)}&X-Amz-Signature=${signed.signature}`;
}
