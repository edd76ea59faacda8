/**
 * The EC2 instance metadata service, versions 1 and 2 (EC2 user guide, "Use instance metadata to manage your EC2
 * instance"; iam-sts.md §7.1).
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import { isIP } from 'node:net';
import { instanceTree, type InstanceFacts, type Leaf, type Tree } from './instance-tree.ts';
import type { Handler } from './listen.ts';
import type { createRoleCredentials } from './role-credentials.ts';

export type { InstanceFacts };

export interface InstanceMetadataOptions {
  readonly facts: InstanceFacts;
  readonly credentials: ReturnType<typeof createRoleCredentials>;
  /** Whether requests without a token are answered. */
  readonly v1: boolean;
  /**
   * `1`: only who has an address of this machine gets a token, as the answer's IP TTL of 1 has it on EC2. More: whoever
   * reaches the listener.
   */
  readonly hopLimit: number;
  /** The addresses of this machine now. */
  readonly ownAddresses: () => readonly string[];
  readonly clock: () => number;
}

const TTL_HEADER = 'x-aws-ec2-metadata-token-ttl-seconds';
const TOKEN_HEADER = 'x-aws-ec2-metadata-token';
const TOKEN_SECONDS_MAX = 21_600;
const EXPIRY_BYTES = 6;
const NONCE_BYTES = 10;

/** https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html, "instance metadata versions" */
const VERSIONS =
  `1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01 2009-04-04 2011-01-01
2011-05-01 2012-01-12 2014-02-25 2014-11-05 2015-10-20 2016-04-19 2016-06-30 2016-09-02 2018-03-28 2018-08-17
2018-09-24 2019-10-01 2020-10-27 2021-01-03 2021-03-23 2021-07-15 2022-09-24 2024-04-11 latest`.split(/\s/);

const REASONS: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  503: 'Service Unavailable',
};

export function createInstanceMetadata(options: InstanceMetadataOptions): Handler {
  const tokens = createTokens(options.clock);
  const tree = instanceTree(options.facts, options.credentials);
  return async (request, response) => {
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/';
    // WHY: a web page whose name was pointed at this address would be of the same origin, and could send any header.
    if (!isHostOfMachine(request.headers.host)) return refuse(request, response, 403);
    if (path === '/latest/api/token') return answerToken(request, response, tokens, options);
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      const allow = { allow: 'OPTIONS, GET, HEAD' };
      if (request.method === 'OPTIONS') return send(request, response, 200, '', allow);
      return refuse(request, response, 405, allow);
    }
    const token = request.headers[TOKEN_HEADER];
    const permitted = token === undefined ? options.v1 : typeof token === 'string' && tokens.accepts(token);
    if (!permitted) return refuse(request, response, 401);
    const body = await find(tree, path);
    if (body === undefined) return refuse(request, response, 404);
    if (body === 'unavailable') return refuse(request, response, 503);
    return send(request, response, 200, body.text);
  };
}

/** `PUT /latest/api/token` */
function answerToken(
  request: IncomingMessage,
  response: ServerResponse,
  tokens: ReturnType<typeof createTokens>,
  { hopLimit, ownAddresses }: InstanceMetadataOptions,
): void {
  const allow = { allow: 'OPTIONS, PUT' };
  if (request.method === 'OPTIONS') return send(request, response, 200, '', allow);
  if (request.method !== 'PUT') return refuse(request, response, 405, allow);
  // A proxy in between is somebody else's request: the reason version 2 exists.
  if (request.headers['x-forwarded-for'] !== undefined) return refuse(request, response, 403);
  if (hopLimit === 1 && !ownAddresses().includes(unmapped(request.socket.remoteAddress))) {
    // On EC2 such a client never sees the answer.
    response.destroy();
    return;
  }
  const text = request.headers[TTL_HEADER];
  const seconds = typeof text === 'string' && /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (seconds < 1 || seconds > TOKEN_SECONDS_MAX) return refuse(request, response, 400);
  return send(request, response, 200, tokens.issue(seconds), { [TTL_HEADER]: String(seconds) });
}

/** Tokens are signed with a key of this process: nothing is kept, none outlives a restart. */
function createTokens(clock: () => number): {
  issue(seconds: number): string;
  accepts(token: string): boolean;
} {
  const key = randomBytes(32);
  const signatureOf = (content: Buffer): Buffer =>
    createHmac('sha256', key).update(content).digest().subarray(0, 24);
  return {
    issue(seconds) {
      const expiry = Buffer.alloc(EXPIRY_BYTES);
      expiry.writeUIntBE(clock() + seconds * 1000, 0, EXPIRY_BYTES);
      const content = Buffer.concat([expiry, randomBytes(NONCE_BYTES)]);
      return Buffer.concat([content, signatureOf(content)]).toString('base64url');
    },
    accepts(token) {
      const bytes = Buffer.from(token, 'base64url');
      if (bytes.length !== EXPIRY_BYTES + NONCE_BYTES + 24 || bytes.toString('base64url') !== token)
        return false;
      const content = bytes.subarray(0, EXPIRY_BYTES + NONCE_BYTES);
      if (!timingSafeEqual(signatureOf(content), bytes.subarray(content.length))) return false;
      return clock() < content.readUIntBE(0, EXPIRY_BYTES);
    },
  };
}

/** Follows a path; directories answer their list with and without a slash at the end. */
async function find(tree: Tree, path: string): Promise<{ text: string } | 'unavailable' | undefined> {
  if (path === '/') return { text: VERSIONS.join('\n') };
  const [version = '', ...names] = path.slice(1).split('/');
  if (!VERSIONS.includes(version)) return undefined;
  let node: Tree | Leaf = tree;
  for (const [i, part] of names.entries()) {
    if (typeof node !== 'object') return undefined;
    const name = decoded(part);
    if (name === undefined) return undefined;
    if (name === '' && i === names.length - 1) break;
    const next: Tree | Leaf | undefined = Object.hasOwn(node, name) ? node[name] : undefined;
    if (next === undefined) return undefined;
    node = next;
  }
  if (typeof node === 'object') return { text: listOf(node) };
  const text = typeof node === 'string' ? node : await node();
  return text === undefined ? 'unavailable' : { text };
}

/** A part of a path: names of roles have characters that some clients escape. Undefined for what is no escape. */
function decoded(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** The list of a directory: one name a line, directories with a slash. */
function listOf(tree: Tree): string {
  return Object.entries(tree)
    .map(([name, node]) => (typeof node === 'object' ? `${name}/` : name))
    .join('\n');
}

function isHostOfMachine(header: string | undefined): boolean {
  const host = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+))(?::\d+)?$/i.exec(header ?? '');
  const name = host?.[1] ?? host?.[2]?.toLowerCase() ?? '';
  return isIP(name) !== 0 || name === 'localhost' || name === 'instance-data.ec2.internal';
}

function unmapped(address = ''): string {
  return address.startsWith('::ffff:') ? address.slice(7) : address;
}

function refuse(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  headers: OutgoingHttpHeaders = {},
): void {
  const title = `${status} - ${REASONS[status] ?? ''}`;
  const page = `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>${title}</title>
 </head>
 <body>
  <h1>${title}</h1>
 </body>
</html>
`;
  send(request, response, status, page, { 'content-type': 'text/html', ...headers });
}

function send(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  text: string,
  headers: OutgoingHttpHeaders = {},
): void {
  response.writeHead(status, {
    'content-type': 'text/plain',
    'content-length': Buffer.byteLength(text),
    connection: 'close',
    server: 'EC2ws',
    ...headers,
  });
  response.end(request.method === 'HEAD' ? undefined : text);
}
