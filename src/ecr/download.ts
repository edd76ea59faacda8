/**
 * Layer downloads by URL (ecr-api.md §8.5): what GetDownloadUrlForLayer hands out. The URL carries the right to one blob for
 * an hour, so nobody has to sign the request, and a signature that is sent along is not looked at.
 */
import { createHmac, timingSafeEqual, type KeyObject } from 'node:crypto';
import { evaluateConditions, selectRange, watchSending, type Exchange } from '../http/http.ts';
import type { BlobReader } from '../blobs/blobs.ts';
import { KeyUnavailableError } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import { Fault } from '../domain/faults.ts';
import { repositoryArn } from '../domain/names.ts';
import type { Registry, Repository } from '../registry/registry.ts';

/** Where the server sends requests to `serve`. */
export const DOWNLOAD_PATH = '/blob-download/';

export interface Downloads {
  /** A URL for a blob the repository has, on `origin`, valid for an hour from `now`. */
  url(repository: Repository, digest: string, at: { readonly origin: string; readonly now: number }): string;
  /** Answers a request for such a URL: 200 or 206 with the bytes, 403 when it is forged or expired, 404, 416. */
  serve(exchange: Exchange): Promise<void>;
}

export interface DownloadOptions {
  readonly registry: Registry;
  /** signs URLs; every process of a server must have the same */
  readonly key: KeyObject;
  /** epoch milliseconds */
  readonly clock: () => number;
}

/** What a URL stands for. The id refuses a repository that was deleted and made again under the same name. */
interface Grant {
  readonly account: string;
  readonly region: string;
  readonly name: string;
  readonly id: string;
  readonly digest: string;
  readonly expiresAt: number;
}

type Refusal = readonly [status: number, code: string, message: string];

const FORGED: Refusal = [403, 'SignatureDoesNotMatch', 'The signature of this URL is not valid.'];
const EXPIRED: Refusal = [403, 'AccessDenied', 'Request has expired'];
const MISSING: Refusal = [404, 'NoSuchKey', 'The layer does not exist.'];
const FAILED: Refusal = [
  412,
  'PreconditionFailed',
  'At least one of the pre-conditions you specified did not hold',
];
const UNREADABLE: Refusal = [400, 'KMS.NotFoundException', 'The key of this layer is not available.'];

export function createDownloads({ registry, key, clock }: DownloadOptions): Downloads {
  const sign = (payload: string): Buffer => createHmac('sha256', key).update(payload).digest();

  const read = (token: string): Grant | undefined => {
    const dot = token.indexOf('.');
    const payload = token.slice(0, dot);
    const given = Buffer.from(token.slice(dot + 1), 'base64url');
    const wanted = sign(payload);
    if (dot === -1 || given.length !== wanted.length || !timingSafeEqual(given, wanted)) return undefined;
    return JSON.parse(Buffer.from(payload, 'base64url').toString()) as Grant;
  };

  return {
    url({ account, region, name, id }, digest, { origin, now }) {
      const grant: Grant = { account, region, name, id, digest, expiresAt: now + LIMITS.downloadUrlMs };
      const payload = Buffer.from(JSON.stringify(grant)).toString('base64url');
      return `${origin}${DOWNLOAD_PATH}${payload}.${sign(payload).toString('base64url')}`;
    },
    async serve(exchange) {
      exchange.action = 'ecr:GetLayer';
      if (exchange.method !== 'GET' && exchange.method !== 'HEAD') {
        const method = 'The specified method is not allowed against this resource.';
        refuse(exchange, [405, 'MethodNotAllowed', method], { Allow: 'GET, HEAD' });
        return;
      }
      const grant = read(exchange.path.slice(DOWNLOAD_PATH.length));
      if (grant !== undefined) {
        exchange.region = grant.region;
        exchange.resources = [repositoryArn(grant)];
        exchange.parameters = {
          registryId: grant.account,
          repositoryName: grant.name,
          layerDigest: grant.digest,
        };
      }
      if (grant === undefined) refuse(exchange, FORGED);
      else if (grant.expiresAt <= clock()) refuse(exchange, EXPIRED);
      else await sendLayer(registry, grant, exchange);
    },
  };
}

async function sendLayer(registry: Registry, grant: Grant, exchange: Exchange): Promise<void> {
  const { digest } = grant;
  const repository = await registry.findRepository(grant);
  const layer =
    repository?.id === grant.id
      ? (await registry.layers.availability(repository, [digest])).get(digest)
      : undefined;
  if (repository === undefined || layer === undefined) {
    refuse(exchange, MISSING);
    return;
  }
  const outcome = evaluateConditions(exchange, digest);
  if (outcome === 'failed') {
    refuse(exchange, FAILED);
    return;
  }
  if (outcome === 'unmodified') {
    exchange.send(304, { ETag: `"${digest}"` });
    return;
  }
  const range = selectRange(exchange, digest, layer.size);
  if (range === 'unsatisfiable') {
    const message = 'The requested range is not satisfiable';
    refuse(exchange, [416, 'InvalidRange', message], { 'Content-Range': `bytes */${layer.size}` });
    return;
  }
  const { start, end } = range ?? { start: 0, end: layer.size };
  const status = range === undefined ? 200 : 206;
  const headers = {
    'Content-Type': 'application/octet-stream',
    'Content-Length': end - start,
    'Accept-Ranges': 'bytes',
    ETag: `"${digest}"`,
    ...(range !== undefined && { 'Content-Range': `bytes ${start}-${end - 1}/${layer.size}` }),
  };
  if (exchange.method === 'HEAD') {
    exchange.send(status, headers);
    return;
  }
  const reader = await openLayer(registry, repository, digest, start, end);
  if ('refusal' in reader) {
    refuse(exchange, reader.refusal);
    return;
  }
  const { response } = exchange;
  const unwatch = watchSending(response, LIMITS.idleSocketMs);
  try {
    response.writeHead(status, headers);
    await reader.sendTo(response);
    exchange.blobBytesOut = end - start;
    response.end();
  } catch {
    // The client left, or the stored bytes are damaged: either way less than announced was sent, so the connection ends.
    response.destroy();
  } finally {
    unwatch();
  }
}

async function openLayer(
  registry: Registry,
  repository: Repository,
  digest: string,
  start: number,
  end: number,
): Promise<BlobReader | { readonly refusal: Refusal }> {
  try {
    return (await registry.layers.open(repository, digest, start, end)) ?? { refusal: MISSING };
  } catch (error) {
    const keyGone =
      error instanceof KeyUnavailableError || (error instanceof Fault && error.code === 'KmsException');
    if (keyGone) return { refusal: UNREADABLE };
    throw error;
  }
}

/** Refusals look like Amazon S3's, whose presigned URLs clients of this operation know. */
function refuse(
  exchange: Exchange,
  [status, code, message]: Refusal,
  headers: Record<string, string> = {},
): void {
  exchange.noteFault(code, message);
  const body = `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>${message}</Message></Error>`;
  exchange.send(status, { 'Content-Type': 'application/xml', ...headers }, body);
}
