/** Writing to unfinished blobs under a claim that only one request holds, in whatever process. */
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { BlobNotFoundError, BlobSealedError, ByteLimitError, UploadBusyError } from '../blobs/blobs.ts';
import { Fault, uploadNotFound } from '../domain/faults.ts';
import { KeyUnavailableError } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import type { TransactionInput, TransactionOutput } from '../store/store.ts';
import type { AppendOptions, RegistryContext } from './registry.ts';

export type UploadName = TransactionInput<'upload.hold'>['upload'];
export type Claim = Extract<TransactionOutput<'upload.claim'>, { outcome: 'claimed' }>;

export function ignore(): void {}

/** Between tries to give a claim up. */
const GIVE_UP_MS = 500;

/**
 * What the operating system says when files cannot be written or read now, and what the client is told: without paths. It
 * passes when the operator has mended it, so the client is to come again.
 */
const DISK_FAULTS: Readonly<Record<string, string>> = {
  ENOSPC: 'is full',
  EDQUOT: 'has used up its quota',
  EFBIG: 'does not take files this large',
  EROFS: 'is read-only',
  EACCES: 'does not let the server in',
  EPERM: 'does not let the server in',
  EIO: 'failed',
  ENXIO: 'failed',
  ENODEV: 'failed',
  ESTALE: 'failed',
  EMFILE: 'cannot be reached: too many files are open',
  ENFILE: 'cannot be reached: too many files are open',
  ENOMEM: 'cannot be reached: there is no memory',
};

/** A missing content key is the client's business, a sick disk passes; other errors stay what they are. */
export function keyFault(error: unknown): unknown {
  if (error instanceof KeyUnavailableError)
    return new Fault('KmsException', `The encryption key of the content is not available: ${error.message}`, {
      kmsError: 'NotFoundException',
    });
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  const what = code === undefined || !Object.hasOwn(DISK_FAULTS, code) ? undefined : DISK_FAULTS[code];
  if (what === undefined) return error;
  return new Fault('ServiceUnavailableException', `The storage of the registry ${what} (${code})`);
}

/**
 * Claims an upload, also from a writer whose process has died; one that is only taken for dead makes it contested.
 *
 * @throws Fault as `upload.claim` does, and InvalidLayerPartException when another request is writing
 */
export async function claim(
  { store, clock, layerPartsMax }: RegistryContext,
  upload: UploadName,
  writer: string,
  options: Pick<AppendOptions, 'offset'> & { readonly partLength: number | undefined },
): Promise<Exclude<TransactionOutput<'upload.claim'>, { outcome: 'busy' }>> {
  const now = clock();
  const input = {
    upload,
    writer,
    now,
    writerUntil: now + LIMITS.uploadWriterMs,
    offset: options.offset,
    partLength: options.partLength,
    partsMax: layerPartsMax,
  };
  let claimed = await store.transact('upload.claim', input);
  if (claimed.outcome === 'busy') {
    const fate = await store.fateOf(claimed.writer);
    const gone = { writer: claimed.writer, dead: fate === 'dead' };
    if (fate !== 'running') claimed = await store.transact('upload.claim', { ...input, gone });
  }
  if (claimed.outcome === 'busy') throw busy(claimed.size);
  return claimed;
}

/**
 * Streams into the blob store behind the committed bytes. Throws with the row as it was, still claimed: what the blob store
 * throws, for {@link appendFault}, or a Fault.
 */
export async function appendStream(
  { blobs, layerBytesMax }: RegistryContext,
  claimed: Claim,
  source: Readable,
  options: AppendOptions,
): Promise<{ size: number; sha256: string }> {
  const room = layerBytesMax - claimed.size;
  const stored = await blobs.append(claimed.storageKey, claimed.size, source, {
    maxBytes: Math.min(options.length ?? room, room),
    signal: options.signal,
  });
  const length = stored.size - claimed.size;
  if (options.length !== undefined && length !== options.length) {
    throw new Fault('SizeInvalid', `Received ${length} bytes instead of ${options.length}`);
  }
  return stored;
}

/** What an error of the blob store means to the client of an upload whose committed size is `size`. */
export function appendFault(
  { layerBytesMax }: RegistryContext,
  error: unknown,
  upload: UploadName,
  size: number,
  length: number | undefined,
): unknown {
  if (error instanceof ByteLimitError) {
    return length !== undefined && length <= layerBytesMax - size
      ? new Fault('SizeInvalid', `Received more than ${length} bytes`)
      : new Fault(
          'LimitExceededException',
          `The layer exceeds the maximum allowed size which is '${layerBytesMax}' bytes`,
        );
  }
  // A writer whose claim ran out is still at it.
  if (error instanceof UploadBusyError) return busy(size);
  // The upload ended meanwhile, and its bytes with it; or it was being closed with more bytes than the row knows.
  if (error instanceof BlobNotFoundError || error instanceof BlobSealedError) {
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
export async function whileHolding<T>(
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
    await store
      .transact('upload.hold', { upload, writer, writerUntil: null })
      .catch(() => void giveUpLater(store, upload, writer));
    throw error;
  } finally {
    clearInterval(timer);
  }
}

/** Tries to give a claim up when the database is back, for as long as the claim may last, so that the client can go on sooner. */
async function giveUpLater(
  store: RegistryContext['store'],
  upload: UploadName,
  writer: string,
): Promise<void> {
  for (let waited = 0; waited < LIMITS.uploadWriterMs; waited += GIVE_UP_MS) {
    await delay(GIVE_UP_MS, undefined, { ref: false });
    try {
      await store.transact('upload.hold', { upload, writer, writerUntil: null });
      return;
    } catch {
      // The next time.
    }
  }
}
