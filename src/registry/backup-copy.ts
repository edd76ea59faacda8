/** Moving stored copies between blob stores under the same storage keys, with their digests verified on the way. */
import { Transform } from 'node:stream';
import { BlobCorruptError, BlobNotFoundError, type BlobReader, type BlobStore } from '../blobs/blobs.ts';
import { KeyUnavailableError } from '../lib/keyring.ts';
import type { Row } from '../store/store.ts';

export interface BlobRow {
  readonly storageKey: string;
  readonly digest: string;
  readonly size: number;
  readonly contentKey: string;
}

/** The row of table `blob` as a backup has it. */
export function blobRowOf(row: Row): BlobRow {
  return {
    storageKey: String(row['storage_key']),
    digest: String(row['digest']),
    size: Number(row['size']),
    contentKey: String(row['content_key']),
  };
}

/** What the source had under a storage key is not what its row says, or cannot be read. */
export class CopyUnreadableError extends Error {
  override readonly name = 'CopyUnreadableError';
  /** there is nothing under the key */
  readonly absent: boolean;
  constructor(reason: string, absent: boolean) {
    super(reason);
    this.absent = absent;
  }
}

/**
 * Copies one blob, durably. Written anew under a data key of its own, so what comes out was authenticated and has the digest
 * of its row. False when the target has it already.
 *
 * @throws CopyUnreadableError when the source is at fault; the target's errors as they are
 */
export async function copyBlob(
  source: Pick<BlobStore, 'open'>,
  target: BlobStore,
  blob: BlobRow,
): Promise<boolean> {
  const { storageKey, size, contentKey } = blob;
  if ((await target.size(storageKey).catch(() => undefined)) === size) return false;
  const reader = await source.open(storageKey).catch((error: unknown) => {
    throw sourceError(error);
  });
  // What an earlier copying that was broken off left.
  await target.delete(storageKey);
  try {
    await target.create(storageKey, contentKey);
    await transfer(reader, target, blob);
    await target.seal(storageKey, size);
    return true;
  } catch (error) {
    await target.delete(storageKey);
    throw error;
  } finally {
    await reader.close();
  }
}

async function transfer(reader: BlobReader, target: BlobStore, blob: BlobRow): Promise<void> {
  let failure: unknown;
  // WHY bytes of its own: the reader uses its buffers again as soon as they are taken.
  const through = new Transform({ transform: (bytes: Buffer, _, done) => done(null, Buffer.from(bytes)) });
  const sent = reader.sendTo(through).then(
    () => void through.end(),
    (error: Error) => {
      failure = error;
      through.destroy(error);
    },
  );
  try {
    const stored = await target.append(blob.storageKey, 0, through, { maxBytes: reader.size });
    if (stored.size !== blob.size || `sha256:${stored.sha256}` !== blob.digest)
      throw new CopyUnreadableError(
        `the stored bytes are sha256:${stored.sha256}, ${stored.size} bytes`,
        false,
      );
  } catch (error) {
    throw error === failure ? sourceError(error) : error;
  } finally {
    through.destroy();
    await sent;
  }
}

function sourceError(error: unknown): unknown {
  const known =
    error instanceof BlobNotFoundError ||
    error instanceof BlobCorruptError ||
    error instanceof KeyUnavailableError ||
    (error as NodeJS.ErrnoException).code === 'EIO';
  return known
    ? new CopyUnreadableError((error as Error).message, error instanceof BlobNotFoundError)
    : error;
}
