import { Fault } from '../domain/faults.ts';
import { type Digest, isSha256 } from '../domain/names.ts';
import { findFalse, preconditionFailed } from '../domain/preconditions.ts';
import {
  type ByteRange,
  evaluateConditions,
  readPrecondition,
  selectRange,
  watchSending,
} from '../http/http.ts';
import { type Call, commonHeaders } from './call.ts';
import { blobUnknown, sendFault } from './errors.ts';

/** What may make a GET answer something else than the whole blob. If-Range does so only with Range. */
const CONDITIONS = ['range', 'if-none-match', 'if-match'] as const;

/** `HEAD`: whether the repository has the blob, and its size. Renews the lease, so that a push may rely on the answer. */
export async function headBlob(call: Call, digest: Digest): Promise<void> {
  const blob = await call.services.registry.layers.stat(call.repository, await resolve(call, digest));
  if (blob === undefined) throw blobUnknown();
  if (answerByCondition(call, digest)) return;
  const headers = blobHeaders(call, digest);
  headers.push('Content-Length', String(blob.size));
  call.exchange.sendHead(200, headers);
}

/** `GET`: the blob or one range of it, inline (registry-protocol.md §1.5). Several ranges get the whole blob. */
export async function getBlob(call: Call, digest: Digest): Promise<void> {
  const { exchange } = call;
  const { layers } = call.services.registry;
  const content = await resolve(call, digest);
  let range: ByteRange | undefined;
  const { headers } = exchange.request;
  if (CONDITIONS.some((name) => headers[name] !== undefined)) {
    const size = (await layers.availability(call.repository, [content])).get(content)?.size;
    if (size === undefined) throw blobUnknown();
    if (answerByCondition(call, digest)) return;
    const selected = selectRange(exchange, digest, size);
    if (selected === 'unsatisfiable') {
      sendFault(exchange, new Fault('RangeInvalid', 'The requested range is not satisfiable.'), [
        'Content-Range',
        `bytes */${size}`,
      ]);
      return;
    }
    range = selected;
  }
  await sendBlob(call, digest, content, range);
}

/** Whether a condition was the answer: 412 or 304. The blob is there. */
function answerByCondition(call: Call, digest: Digest): boolean {
  const outcome = evaluateConditions(call.exchange, digest);
  if (outcome === 'failed') throw preconditionFailed('match');
  if (outcome === 'unmodified') call.exchange.send(304, blobHeaders(call, digest));
  return outcome !== undefined;
}

/** The sha256 digest of a blob that is asked for by one of any algorithm; answers show the one asked for. */
async function resolve(call: Call, digest: Digest): Promise<Digest> {
  if (isSha256(digest)) return digest;
  const content = await call.services.registry.layers.resolve(call.repository, digest);
  if (content === undefined) throw blobUnknown();
  return content;
}

async function sendBlob(
  call: Call,
  digest: Digest,
  content: Digest,
  range: ByteRange | undefined,
): Promise<void> {
  const { response } = call.exchange;
  const reader = await call.services.registry.layers.open(call.repository, content, range?.start, range?.end);
  if (reader === undefined) throw blobUnknown();
  if (response.destroyed) {
    await reader.close();
    return;
  }
  const headers = blobHeaders(call, digest);
  if (range === undefined) headers.push('Content-Length', String(reader.size));
  else {
    headers.push('Content-Length', String(range.end - range.start));
    headers.push('Content-Range', `bytes ${range.start}-${range.end - 1}/${reader.size}`);
  }
  const unwatch = watchSending(response, call.services.idleMs);
  try {
    response.writeHead(range === undefined ? 200 : 206, headers);
    await reader.sendTo(response);
    call.exchange.blobBytesOut = range === undefined ? reader.size : range.end - range.start;
    response.end();
  } finally {
    unwatch();
  }
}

function blobHeaders(call: Call, digest: Digest): string[] {
  const headers = commonHeaders(call.exchange);
  headers.push(
    'Content-Type',
    'application/octet-stream',
    'Docker-Content-Digest',
    digest,
    'ETag',
    `"${digest}"`,
    'Accept-Ranges',
    'bytes',
    'Cache-Control',
    'max-age=31536000, private',
    'X-Content-Type-Options',
    'nosniff',
  );
  return headers;
}

/** What a deletion would come to. */
async function standing(call: Call, content: Digest): Promise<'absent' | 'referenced' | 'deletable'> {
  const found = await call.services.registry.layers.availability(call.repository, [content]);
  const blob = found.get(content);
  if (blob === undefined) return 'absent';
  return blob.referenced ? 'referenced' : 'deletable';
}

/** `DELETE`: unlinks the blob from this repository, unless an image of the repository needs it. */
export async function deleteBlob(call: Call, digest: Digest): Promise<void> {
  const { layers } = call.services.registry;
  const content = await resolve(call, digest);
  const precondition = readPrecondition(call.exchange);
  // A blob has one entity tag for ever, so that nothing can change between the question and the deletion but whether it is there.
  const unmet = precondition && findFalse(precondition, digest);
  const outcome =
    unmet === undefined ? await layers.remove(call.repository, content) : await standing(call, content);
  if (outcome === 'absent') throw blobUnknown();
  if (outcome === 'deletable') throw preconditionFailed(unmet ?? 'match');
  if (outcome === 'referenced') {
    throw new Fault(
      'MethodNotAllowed',
      `The layer with digest '${digest}' in the repository with name '${call.repository.name}' is referenced by an image and cannot be deleted.`,
    );
  }
  call.exchange.send(202, commonHeaders(call.exchange));
}
