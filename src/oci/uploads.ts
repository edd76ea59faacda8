import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { Fault } from '../domain/faults.ts';
import { type Digest, parseDigest, parseRepositoryName } from '../domain/names.ts';
import { type ByteRange, parseContentRange, watchReceiving } from '../http/http.ts';
import type { Repository, UploadStatus } from '../registry/registry.ts';
import { type Call, commonHeaders, mayPull } from './call.ts';
import { sendFault } from './errors.ts';
import { digestInvalid } from './path.ts';
import { linkTo } from './scope.ts';

const UPLOAD_ID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Repositories an anonymous mount looks at, at most: each costs a policy decision. */
const MOUNT_SOURCES_MAX = 20;

/**
 * How long to wait, again and again, for another request to let go of an upload. WHY: a client whose connection broke comes
 * back before the server has put away what the broken request sent, and most clients take the 416 for the end.
 */
const BUSY_PAUSES_MS = [10, 20, 40, 80, 160, 320, 640];

/**
 * `POST`: begins an upload; or takes the whole blob with `?digest=`; or links it from another repository with `?mount=`.
 * A mount that cannot be done begins an upload like any other POST, whatever the reason (registry-protocol.md §1.7).
 */
export async function startUpload(call: Call): Promise<void> {
  const { exchange, repository } = call;
  if (exchange.rawQuery !== '') {
    const { query } = exchange;
    // What the closing digest will be in. Nothing is prepared for it: the closing reads the bytes again (ADR 0008).
    const algorithm = query.get('digest-algorithm');
    if (algorithm !== null && algorithm !== 'sha256' && algorithm !== 'sha512') throw digestInvalid();
    const mount = parseDigest(query.get('mount') ?? '');
    if (mount !== undefined && (await mountBlob(call, mount, query.get('from')))) {
      exchange.action = 'ecr:MountLayer';
      sendStored(call, mount);
      return;
    }
    const digest = query.get('digest');
    if (digest !== null && mount === undefined) {
      await uploadAtOnce(call, parseDigest(digest));
      return;
    }
  }
  sendStatus(call, 202, await call.services.registry.uploads.start(repository));
}

async function uploadAtOnce(call: Call, digest: Digest | undefined): Promise<void> {
  if (digest === undefined) throw digestInvalid();
  const { uploads } = call.services.registry;
  const { id } = await uploads.start(call.repository);
  try {
    await finishWithBody(call, id, digest, ANYWHERE);
  } catch (error) {
    await discard(call, id);
    throw error;
  }
  sendStored(call, digest);
}

/** Cancels an upload that its client cannot go on with; it may be gone already. */
async function discard(call: Call, id: string): Promise<void> {
  try {
    await call.services.registry.uploads.cancel(call.repository, id);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
  }
}

/** Permission comes before existence: only repositories the caller may pull from are looked into. */
async function mountBlob(call: Call, digest: Digest, from: string | null): Promise<boolean> {
  const { repository, scope, services } = call;
  const { layers } = services.registry;
  // The account setting BLOB_MOUNTING: off unless it was switched on (ecr-api.md §8.6).
  if (!(await services.identity.registryRules(scope)).blobMounting) return false;
  if (from === null) {
    if ((await mayPull(call, repository)) && (await holds(call, digest))) return true;
    const holders = await layers.holders(repository, digest);
    for (const source of holders.slice(0, MOUNT_SOURCES_MAX)) {
      if ((await mayPull(call, source)) && (await mountFrom(call, source, digest))) return true;
    }
    return false;
  }
  const name = parseRepositoryName(from);
  if (name === undefined) return false;
  const source = await services.registry.findRepository({ ...scope, name });
  if (source === undefined || !(await mayPull(call, source))) return false;
  return source.id === repository.id ? holds(call, digest) : mountFrom(call, source, digest);
}

/** Whether the repository has the blob already; renews its lease. */
async function holds({ services, repository }: Call, digest: Digest): Promise<boolean> {
  const { layers } = services.registry;
  const known = await layers.resolve(repository, digest);
  return known !== undefined && (await layers.stat(repository, known)) !== undefined;
}

/** ECR mounts only what an image of the source refers to; the specification knows no such condition (ADR 0006). */
async function mountFrom(call: Call, source: Repository, digest: Digest): Promise<boolean> {
  const { layers } = call.services.registry;
  const known = await layers.resolve(source, digest);
  return known !== undefined && (await layers.mount(call.repository, source, known));
}

/** `PATCH`: appends the body, streamed or, with `Content-Range`, as a chunk that must begin where the upload ends. */
export async function patchUpload(call: Call, id: string): Promise<void> {
  checkId(id);
  const { repository, services } = call;
  await withUploadRange(call, id, async (place) => {
    const status = await receive(call, place, (source, options) =>
      services.registry.uploads.append(repository, id, source, options),
    );
    sendStatus(call, 202, status);
  });
}

/**
 * `PUT ?digest=`: appends the body, if any, and ends the upload, both or nothing: a client that got an error, or no answer,
 * sends the whole PUT again. Said again after success it answers the same, whatever body comes.
 */
export async function finishUpload(call: Call, id: string): Promise<void> {
  checkId(id);
  const { exchange } = call;
  const digest = parseDigest(exchange.rawQuery === '' ? '' : (exchange.query.get('digest') ?? ''));
  if (digest === undefined) throw digestInvalid();
  await withUploadRange(call, id, async (place) => {
    await finishWithBody(call, id, digest, place);
    sendStored(call, digest);
  });
}

async function finishWithBody(call: Call, id: string, digest: Digest, place: Place): Promise<void> {
  const { exchange, repository, services } = call;
  const { uploads } = services.registry;
  if (exchange.announcesBody) {
    await receive(call, place, (source, options) =>
      uploads.finish(repository, id, [digest], { api: false, tail: { source, ...options } }),
    );
  } else {
    await uploads.finish(repository, id, [digest], { api: false });
  }
}

/** `GET` and `HEAD`: how far the upload is. */
export async function getUpload(call: Call, id: string): Promise<void> {
  checkId(id);
  sendStatus(call, 204, await call.services.registry.uploads.status(call.repository, id));
}

/** `DELETE`: gives the upload up. */
export async function cancelUpload(call: Call, id: string): Promise<void> {
  checkId(id);
  await call.services.registry.uploads.cancel(call.repository, id);
  call.exchange.send(204, commonHeaders(call.exchange));
}

function checkId(id: string): void {
  if (!UPLOAD_ID.test(id)) throw new Fault('UploadNotFoundException', 'blob upload unknown to registry');
}

/** Where a body goes. */
interface Place {
  /** of Content-Range */
  readonly range: ByteRange | undefined;
  /** what must be committed before it; absent: whatever is */
  readonly offset: number | undefined;
}

const ANYWHERE: Place = { range: undefined, offset: undefined };

/** Hands the request's body on, within the layer limit, while its client keeps sending. */
async function receive<T>(
  { exchange, services }: Call,
  { range, offset }: Place,
  take: (
    source: Readable,
    options: { readonly offset: number | undefined; readonly length: number | undefined },
  ) => Promise<T>,
): Promise<T> {
  const length = range === undefined ? exchange.contentLength : range.end - range.start;
  if (range !== undefined && (exchange.contentLength ?? length) !== length) {
    throw new Fault('SizeInvalid', 'provided length did not match content length');
  }
  if ((range?.start ?? 0) + (length ?? 0) > services.registry.layerBytesMax) {
    throw new Fault(
      'RequestEntityTooLargeException',
      `A layer may have at most ${services.registry.layerBytesMax} bytes.`,
    );
  }
  const unwatch = watchReceiving(exchange.request, services.idleMs);
  const { socket } = exchange.request;
  const before = socket.bytesRead;
  try {
    return await take(exchange.request, { offset, length });
  } finally {
    // A chunked body is counted as it came: with its framing, without what arrived together with the head.
    exchange.blobBytesIn =
      exchange.request.complete && length !== undefined ? length : socket.bytesRead - before;
    unwatch();
  }
}

/** @throws Fault RangeInvalid */
function readContentRange(call: Call): ByteRange | undefined {
  const header = call.exchange.header('content-range');
  if (header === undefined) return undefined;
  const range = parseContentRange(header);
  if (range === undefined) throw new Fault('RangeInvalid', 'invalid content range');
  return range;
}

/** A chunk out of place is refused with where the upload is, so that the client can go on from there (§1.6). */
async function withUploadRange(call: Call, id: string, work: (place: Place) => Promise<void>): Promise<void> {
  try {
    const range = readContentRange(call);
    await whenFree(call, { range, offset: range?.start }, work);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    if (error.code !== 'InvalidLayerPartException' && error.code !== 'RangeInvalid') throw error;
    const status = await call.services.registry.uploads.status(call.repository, id);
    sendFault(call.exchange, error, uploadHeaders(call, status));
  }
}

/**
 * Tries again while the upload is another request's, the place is right, and nothing of the body is gone. INVARIANT: what comes
 * after a wait goes where it would have gone before it: should the other request have stored its bytes, nothing is appended to them.
 */
async function whenFree(
  { exchange: { request, response } }: Call,
  { range, offset }: Place,
  work: (place: Place) => Promise<void>,
): Promise<void> {
  let place = offset;
  for (const pause of BUSY_PAUSES_MS) {
    try {
      return await work({ range, offset: place });
    } catch (error) {
      if (!(error instanceof Fault) || error.code !== 'InvalidLayerPartException') throw error;
      const committed = Number(error.detail?.['lastValidByteReceived']) + 1;
      place ??= committed;
      if (place !== committed || request.readableDidRead || response.destroyed) throw error;
    }
    await delay(pause);
  }
  await work({ range, offset: place });
}

function uploadHeaders(call: Call, status: UploadStatus): string[] {
  return [
    'Location',
    linkTo(call.scope, `/v2/${call.repository.name}/blobs/uploads/${status.id}`),
    'Range',
    `0-${Math.max(0, status.size - 1)}`,
    'Docker-Upload-UUID',
    status.id,
  ];
}

function sendStatus(call: Call, code: 202 | 204, status: UploadStatus): void {
  const { account: registryId, name: repositoryName } = call.repository;
  const { id: uploadId, size } = status;
  call.exchange.outcome = { registryId, repositoryName, uploadId, lastByteReceived: size - 1 };
  const headers = commonHeaders(call.exchange);
  headers.push(...uploadHeaders(call, status));
  call.exchange.send(code, headers);
}

function sendStored(call: Call, digest: Digest): void {
  const { account: registryId, name: repositoryName } = call.repository;
  call.exchange.outcome = { registryId, repositoryName, layerDigest: digest };
  const headers = commonHeaders(call.exchange);
  const location = linkTo(call.scope, `/v2/${call.repository.name}/blobs/${digest}`);
  headers.push('Location', location, 'Docker-Content-Digest', digest);
  call.exchange.send(201, headers);
}
