/**
 * Unfinished blobs. Bytes are appended under a claim that only one request holds, in whatever process; the row moves only
 * after the bytes are durable.
 */
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import type { Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { BlobNotFoundError, ByteLimitError, UploadBusyError } from '../blobs/blobs.ts';
import { Fault, uploadNotFound } from '../domain/faults.ts';
import { type Digest, parseDigest } from '../domain/names.ts';
import { storageKey } from '../lib/ids.ts';
import { KeyUnavailableError } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import { retryBrokenReference } from './retry.ts';
import type { TransactionInput, TransactionOutput } from '../store/store.ts';
import type {
  AppendOptions,
  RegistryContext,
  Repository,
  StoredBlob,
  Uploads,
  UploadStatus,
} from './registry.ts';

type UploadName = TransactionInput<'upload.hold'>['upload'];
type Claim = Extract<TransactionOutput<'upload.claim'>, { outcome: 'claimed' }>;

const EMPTY_SHA256 = createHash('sha256').digest('hex');

export function createUploads(context: RegistryContext): Uploads {
  const { store, clock } = context;
  const findUpload = store.prepare<{ size: number; completed_digest: string | null }>(
    'select size, completed_digest from upload where id = ? and repository_id = ?',
  );
  return {
    start: (repository) => start(context, repository),
    status: async (repository, id) => {
      const [row] = await findUpload(id, repository.id);
      if (row === undefined || row.completed_digest !== null) {
        throw uploadNotFound(id, repository.name, repository.account);
      }
      return { id, size: Number(row.size) };
    },
    append: (repository, id, source, options) => append(context, nameOf(repository, id), source, options),
    cancel: async (repository, id) => {
      const upload = nameOf(repository, id);
      if (!(await store.transact('upload.destroy', { upload, now: clock() }))) {
        throw uploadNotFound(id, repository.name, repository.account);
      }
    },
    finish: (repository, id, digests, options) =>
      finish(context, nameOf(repository, id), digests, options.api),
  };
}

function nameOf(repository: Repository, id: string): UploadName {
  return { id, repositoryId: repository.id, repositoryName: repository.name, account: repository.account };
}

async function start(
  { store, blobs, clock }: RegistryContext,
  repository: Repository,
): Promise<UploadStatus> {
  const now = clock();
  const upload = nameOf(repository, randomUUID());
  const key = storageKey(now);
  // INVARIANT: the row knows the key before there is a file, so a crash leaves no file that only a scan would find.
  const contentKey = await store.transact('upload.start', {
    upload,
    storageKey: key,
    sha256: EMPTY_SHA256,
    now,
  });
  try {
    await blobs.create(key, contentKey);
  } catch (error) {
    await store.transact('upload.destroy', { upload, now });
    throw keyFault(error);
  }
  return { id: upload.id, size: 0 };
}

/** A missing content key is the client's business; other errors stay what they are. */
export function keyFault(error: unknown): unknown {
  if (!(error instanceof KeyUnavailableError)) return error;
  return new Fault('KmsException', `The encryption key of the content is not available: ${error.message}`, {
    kmsError: 'NotFoundException',
  });
}

async function claim(
  { store, clock }: RegistryContext,
  upload: UploadName,
  writer: string,
  options: Pick<AppendOptions, 'offset'> & { readonly partLength: number | undefined },
): Promise<TransactionOutput<'upload.claim'>> {
  const now = clock();
  return await store.transact('upload.claim', {
    upload,
    writer,
    now,
    writerUntil: now + LIMITS.uploadWriterMs,
    offset: options.offset,
    partLength: options.partLength,
    partsMax: LIMITS.layerPartsMax,
  });
}

async function append(
  context: RegistryContext,
  upload: UploadName,
  source: Readable,
  options: AppendOptions,
): Promise<UploadStatus> {
  // WHY: until the blob store listens, an error of the source (a client that hangs up) must not end the process.
  source.on('error', ignore);
  try {
    const writer = randomBytes(12).toString('hex');
    const partLength = options.part === true ? (options.length ?? 0) : undefined;
    const claimed = await claim(context, upload, writer, { offset: options.offset, partLength });
    if (claimed.outcome === 'completed') {
      throw uploadNotFound(upload.id, upload.repositoryName, upload.account);
    }
    if (claimed.outcome === 'repeated') {
      await finished(source.resume(), { writable: false, signal: options.signal });
      return { id: upload.id, size: claimed.size };
    }
    return await whileHolding(context, upload, writer, options.signal, async (signal) => {
      const size = await appendBytes(context, upload, writer, claimed, source, { ...options, signal });
      return { id: upload.id, size };
    });
  } finally {
    // WHY kept until the source is gone: it may still fail after it was given up.
    if (source.closed) source.off('error', ignore);
  }
}

function ignore(): void {}

/** Streams into the blob store and moves the row. Throws with the row as it was, still claimed. */
async function appendBytes(
  { store, blobs, clock }: RegistryContext,
  upload: UploadName,
  writer: string,
  claimed: Claim,
  source: Readable,
  options: AppendOptions,
): Promise<number> {
  const room = LIMITS.layerBytesMax - claimed.size;
  const maxBytes = Math.min(options.length ?? room, room);
  let stored: { size: number; sha256: string };
  try {
    stored = await blobs.append(claimed.storageKey, claimed.size, source, {
      maxBytes,
      signal: options.signal,
    });
  } catch (error) {
    throw appendFault(error, upload, claimed.size, options.length, room);
  }
  const length = stored.size - claimed.size;
  if (options.length !== undefined && length !== options.length) {
    throw new Fault('SizeInvalid', `Received ${length} bytes instead of ${options.length}`);
  }
  await store.transact('upload.commitAppend', {
    upload,
    writer,
    ...stored,
    partLength: options.part === true ? length : undefined,
    partBytesMin: LIMITS.layerPartBytesMin,
    now: clock(),
  });
  return stored.size;
}

function appendFault(
  error: unknown,
  upload: UploadName,
  size: number,
  length: number | undefined,
  room: number,
): unknown {
  if (error instanceof ByteLimitError) {
    return length !== undefined && length <= room
      ? new Fault('SizeInvalid', `Received more than ${length} bytes`)
      : new Fault(
          'LimitExceededException',
          `The layer exceeds the maximum allowed size which is '${LIMITS.layerBytesMax}' bytes`,
        );
  }
  // A writer whose claim ran out is still at it.
  if (error instanceof UploadBusyError) return busy(size);
  // The upload ended meanwhile, and its bytes with it.
  if (error instanceof BlobNotFoundError) {
    return uploadNotFound(upload.id, upload.repositoryName, upload.account);
  }
  return keyFault(error);
}

function busy(size: number): Fault {
  return new Fault('InvalidLayerPartException', 'Another request is writing to the upload', {
    lastValidByteReceived: size - 1,
  });
}

/**
 * Runs `work` under a claim, renewing it. `work` gives the claim up by committing; when it throws, it is given up here.
 * Its signal aborts when the claim is lost, so that two writers do not meet.
 */
async function whileHolding<T>(
  { store, clock }: RegistryContext,
  upload: UploadName,
  writer: string,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const lost = new AbortController();
  const renew = async (): Promise<void> => {
    const writerUntil = clock() + LIMITS.uploadWriterMs;
    const held = await store.transact('upload.hold', { upload, writer, writerUntil });
    if (!held) lost.abort(uploadNotFound(upload.id, upload.repositoryName, upload.account));
  };
  // WHY the error is passed over: the next renewal may succeed, and the commit checks the claim in any case.
  const timer = setInterval(() => void renew().catch(ignore), LIMITS.uploadWriterMs / 3);
  timer.unref();
  try {
    return await work(signal === undefined ? lost.signal : AbortSignal.any([signal, lost.signal]));
  } catch (error) {
    // WHY the outcome is passed over: the first error is what went wrong, and the claim runs out by itself.
    await store.transact('upload.hold', { upload, writer, writerUntil: null }).catch(ignore);
    throw error;
  } finally {
    clearInterval(timer);
  }
}

async function finish(
  context: RegistryContext,
  upload: UploadName,
  digests: readonly string[],
  api: boolean,
): Promise<StoredBlob> {
  const wanted = wantedDigests(digests, api);
  const writer = randomBytes(12).toString('hex');
  const claimed = await claim(context, upload, writer, { offset: undefined, partLength: undefined });
  if (claimed.outcome === 'repeated') throw new Error('a closing is never a repeated part');
  if (claimed.outcome === 'completed') {
    if (wanted.some((digest) => digest !== claimed.digest)) {
      throw uploadNotFound(upload.id, upload.repositoryName, upload.account);
    }
    return { digest: claimed.digest as Digest, size: claimed.size };
  }
  return await whileHolding(context, upload, writer, undefined, async () => {
    if (api) checkParts(claimed, upload);
    const digest = `sha256:${claimed.sha256}` as Digest;
    if (wanted.some((other) => other !== digest)) {
      await context.store.transact('upload.destroy', { upload, now: context.clock() });
      throw digestMismatch(api);
    }
    await complete(context, upload, writer, claimed, digest, api);
    return { digest, size: claimed.size };
  });
}

/**
 * The digests the content must have. ECR passes over algorithms it does not know (ecr-api.md §8.4).
 *
 * @throws Fault DigestInvalid for what cannot be verified: content is known by sha256 only
 */
function wantedDigests(digests: readonly string[], api: boolean): string[] {
  const sha256 = digests
    .filter((digest) => digest.startsWith('sha256:'))
    .map((digest) => (api ? digest.toLowerCase() : digest));
  if (sha256.some((digest) => parseDigest(digest) === undefined)) {
    throw api ? digestMismatch(api) : unsupportedDigest();
  }
  const others = digests.filter((digest) => !digest.startsWith('sha256:'));
  const refused = api
    ? sha256.length === 0 && others.some((digest) => digest.startsWith('sha512:'))
    : others.length > 0;
  if (digests.length === 0 || refused) throw unsupportedDigest();
  return sha256;
}

function unsupportedDigest(): Fault {
  return new Fault('DigestInvalid', 'provided digest is not a supported sha256 digest');
}

function digestMismatch(api: boolean): Fault {
  return api
    ? new Fault(
        'InvalidLayerException',
        'None of the provided layer digests match the calculated layer digest',
      )
    : new Fault('DigestInvalid', 'provided digest did not match uploaded content');
}

/** The ECR API's rules about parts. The upload stays: the client may still send parts. */
function checkParts(claimed: Claim, upload: UploadName): void {
  if (claimed.size === 0) {
    throw new Fault(
      'EmptyUploadException',
      `The upload with id '${upload.id}' in the repository with name '${upload.repositoryName}' in the registry with id ` +
        `'${upload.account}' does not contain any layer parts`,
    );
  }
  if (claimed.smallPart) {
    throw new Fault(
      'LayerPartTooSmallException',
      'All layer parts except the last part should be at least 5MB',
    );
  }
}

/** INVARIANT: bytes durable and sealed, then the row, then the answer. */
async function complete(
  { store, blobs, clock, blobLeaseMs }: RegistryContext,
  upload: UploadName,
  writer: string,
  claimed: Claim,
  digest: Digest,
  api: boolean,
): Promise<void> {
  try {
    await blobs.seal(claimed.storageKey, claimed.size);
  } catch (error) {
    throw appendFault(error, upload, claimed.size, undefined, 0);
  }
  const now = clock();
  const outcome = await retryBrokenReference(() =>
    store.transact('upload.complete', {
      upload,
      writer,
      digest,
      now,
      leasedUntil: now + blobLeaseMs,
      refuseKnown: api,
    }),
  );
  if (outcome === 'known') {
    const { repositoryName, account } = upload;
    throw new Fault(
      'LayerAlreadyExistsException',
      `The layer with digest '${digest}' already exists in the repository with name '${repositoryName}' in registry with ` +
        `id '${account}'`,
    );
  }
}
