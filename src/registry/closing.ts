/**
 * Ending an upload: the rest of its bytes, the seal, the digests, and one transaction that binds digest to key. The row
 * moves only with that transaction, so a closing that failed can be said again whole.
 */
import { createHash, type Hash } from 'node:crypto';
import { Transform, Writable } from 'node:stream';
import { BlobCorruptError, BlobSealedError } from '../blobs/blobs.ts';
import { Fault, uploadNotFound } from '../domain/faults.ts';
import { type Digest, isSha256, parseDigest } from '../domain/names.ts';
import { storageKey } from '../lib/ids.ts';
import { prepareResolve, type TransactionInput } from '../store/store.ts';
import {
  appendFault,
  appendStream,
  type Claim,
  claim,
  ignore,
  keyFault,
  type UploadName,
  whileHolding,
} from './appending.ts';
import type { FinishOptions, RegistryContext, StoredBlob } from './registry.ts';
import { retryBrokenReference } from './retry.ts';

type Finish = (upload: UploadName, digests: readonly string[], options: FinishOptions) => Promise<StoredBlob>;

/** The closing of uploads. See `Uploads.finish`. */
export function createFinish(context: RegistryContext): Finish {
  const resolve = prepareResolve(context.store, 'blob_alias');
  return async (upload, digests, { api, tail }) => {
    const wanted = wantedDigests(digests, api);
    const writer = context.store.newWriter();
    // WHY: until the blob store listens, an error of the source (a client that hangs up) must not end the process.
    tail?.source.on('error', ignore);
    try {
      const claimed = await claim(context, upload, writer, { offset: tail?.offset, partLength: undefined });
      if (claimed.outcome === 'repeated') throw new Error('a closing is never a repeated part');
      if (claimed.outcome === 'completed') {
        const known = await Promise.all(wanted.map((digest) => resolve(upload.repositoryId, digest)));
        if (known.every((digest) => digest === claimed.digest)) {
          return { digest: claimed.digest as Digest, size: claimed.size };
        }
        throw uploadNotFound(upload.id, upload.repositoryName, upload.account);
      }
      return await whileHolding(context, upload, writer, tail?.signal, async (signal) => {
        if (api) checkParts(claimed, upload);
        const received = await receiveTail(context, upload, claimed, tail && { ...tail, signal });
        return await complete(context, { upload, writer, claimed, wanted, api }, received);
      });
    } finally {
      // WHY kept until the source is gone: it may still fail after it was given up.
      if (tail?.source.closed === true) tail.source.off('error', ignore);
    }
  };
}

/** What the stored bytes are. */
interface Content {
  readonly size: number;
  /** hex, of the bytes as they came; `undefined` when only the stored bytes can tell */
  readonly sha256: string | undefined;
}

/** Appends what comes with the closing. */
async function receiveTail(
  context: RegistryContext,
  upload: UploadName,
  claimed: Claim,
  tail: FinishOptions['tail'],
): Promise<Content> {
  if (tail === undefined) return claimed;
  try {
    return await appendStream(context, claimed, tail.source, tail);
  } catch (error) {
    const size = error instanceof BlobSealedError ? await context.blobs.size(claimed.storageKey) : undefined;
    if (size === undefined) throw appendFault(context, error, upload, claimed.size, tail.length);
    // An earlier closing came as far as the seal: the same bytes again are not needed, the digest says whether they are.
    return { size, sha256: undefined };
  }
}

interface Closing {
  readonly upload: UploadName;
  readonly writer: string;
  readonly claimed: Claim;
  readonly wanted: readonly string[];
  readonly api: boolean;
}

/** INVARIANT: bytes durable and sealed, then the row, then the answer. */
async function complete(
  context: RegistryContext,
  closing: Closing,
  { size, sha256 }: Content,
): Promise<StoredBlob> {
  const { upload, claimed, wanted, api } = closing;
  const { store, blobs, clock, blobLeaseMs } = context;
  let digests = sha256 === undefined ? [] : [`sha256:${sha256}`];
  await requireDigests(context, closing, digests);
  try {
    await blobs.seal(claimed.storageKey, size);
  } catch (error) {
    throw appendFault(context, error, upload, size, undefined);
  }
  const known = claimed.contested ? [] : digests.map(algorithmOf);
  const missing = ['sha256', ...wanted.map(algorithmOf)].filter((algorithm) => !known.includes(algorithm));
  let copy: Copy | undefined;
  if (missing.length > 0) {
    const hashes = [...new Set(missing)].map((algorithm) => ({ algorithm, hash: createHash(algorithm) }));
    copy = await readAgain(context, closing, size, hashes).catch((error: unknown) => {
      throw keyFault(error);
    });
    const read = hashes.map(({ algorithm, hash }) => `${algorithm}:${hash.digest('hex')}`);
    // A contested upload has the digest its bytes had when they came, or is not what its client sent.
    if (sha256 !== undefined && claimed.contested && read[0] !== digests[0]) await refuse(context, closing);
    digests = [...new Set([...digests, ...read])];
    await requireDigests(context, closing, digests);
  }
  const [digest = '', ...others] = digests;
  const now = clock();
  const outcome = await retryBrokenReference(() =>
    store.transact('upload.complete', {
      upload,
      writer: closing.writer,
      digest,
      aliases: others,
      size,
      copy,
      now,
      leasedUntil: now + blobLeaseMs,
      refuseKnown: api,
    }),
  );
  if (outcome === 'known') throw layerAlreadyExists(digest, upload);
  return { digest: digest as Digest, size };
}

type Copy = NonNullable<TransactionInput<'upload.complete'>['copy']>;

function algorithmOf(digest: string): string {
  return digest.slice(0, digest.indexOf(':'));
}

/**
 * Reads the sealed bytes through the hashes; those of a contested upload into a copy, which the answer names.
 *
 * WHY a copy: a writer that was given up for dead still has the file open and may write to it at any time (ADR 0008).
 */
async function readAgain(
  context: RegistryContext,
  closing: Closing,
  size: number,
  hashes: readonly { readonly hash: Hash }[],
): Promise<Copy | undefined> {
  const { store, blobs, clock, orphanAgeMs } = context;
  const { claimed } = closing;
  const update = (bytes: Uint8Array): void => {
    for (const { hash } of hashes) hash.update(bytes);
  };
  if (!claimed.contested) {
    const reader = await blobs.open(claimed.storageKey);
    await reader.sendTo(sinkOf(update));
    return undefined;
  }
  const copy = { storageKey: storageKey(clock()), deleteAfter: clock() + orphanAgeMs };
  // INVARIANT: a row knows the key before there is a file.
  await store.transact('trashStorageKeys', { storageKeys: [copy.storageKey], deleteAfter: copy.deleteAfter });
  await blobs.create(copy.storageKey, claimed.contentKey);
  // WHY bytes of its own: the reader uses its buffers again as soon as they are taken.
  const through = new Transform({
    transform: (bytes: Buffer, _, done) => {
      update(bytes);
      done(null, Buffer.from(bytes));
    },
  });
  let sent: Promise<unknown> | undefined;
  try {
    const reader = await blobs.open(claimed.storageKey);
    sent = reader.sendTo(through).then(
      () => through.end(),
      (error: Error) => through.destroy(error),
    );
    await blobs.append(copy.storageKey, 0, through, { maxBytes: size });
  } catch (error) {
    if (error instanceof BlobCorruptError) await refuse(context, closing);
    throw error;
  } finally {
    through.destroy();
    await sent;
  }
  await blobs.seal(copy.storageKey, size);
  return copy;
}

function sinkOf(update: (bytes: Uint8Array) => void): Writable {
  return new Writable({
    write: (bytes: Buffer, _, done) => {
      update(bytes);
      done();
    },
  });
}

/** Refuses a closing by a digest that is not one of the content's, as far as its algorithm is among these. */
async function requireDigests(
  context: RegistryContext,
  closing: Closing,
  digests: readonly string[],
): Promise<void> {
  const algorithms = new Set(digests.map(algorithmOf));
  const wrong = closing.wanted.some(
    (digest) => algorithms.has(algorithmOf(digest)) && !digests.includes(digest),
  );
  if (wrong) await refuse(context, closing);
}

/** Ends the upload without a result. */
async function refuse(
  { store, clock }: RegistryContext,
  { upload, api }: Pick<Closing, 'upload' | 'api'>,
): Promise<never> {
  await store.transact('upload.destroy', { upload, now: clock() });
  throw digestMismatch(api);
}

/**
 * The digests the content must have. ECR knows sha256 only and passes over algorithms it does not know (ecr-api.md §8.4).
 *
 * @throws Fault DigestInvalid for what cannot be verified
 */
function wantedDigests(digests: readonly string[], api: boolean): string[] {
  if (!api) {
    if (digests.length === 0 || digests.some((digest) => parseDigest(digest) === undefined))
      throw unsupportedDigest();
    return [...digests];
  }
  const sha256 = digests.filter(isSha256).map((digest) => digest.toLowerCase());
  if (sha256.some((digest) => parseDigest(digest) === undefined)) throw digestMismatch(api);
  const refused = sha256.length === 0 && digests.some((digest) => digest.startsWith('sha512:'));
  if (digests.length === 0 || refused) throw unsupportedDigest();
  return sha256;
}

function unsupportedDigest(): Fault {
  return new Fault('DigestInvalid', 'provided digest is not a supported digest');
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

function layerAlreadyExists(digest: string, { repositoryName, account }: UploadName): Fault {
  return new Fault(
    'LayerAlreadyExistsException',
    `The layer with digest '${digest}' already exists in the repository with name '${repositoryName}' in registry with ` +
      `id '${account}'`,
  );
}
