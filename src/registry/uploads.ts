/**
 * Unfinished blobs. Bytes are appended under a claim that only one request holds, in whatever process; the row moves only
 * after the bytes are durable.
 */
import { createHash, randomUUID } from 'node:crypto';
import type { Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { uploadNotFound } from '../domain/faults.ts';
import { storageKey } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
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
import { createFinish } from './closing.ts';
import { Quotas } from './quotas.ts';
import type { AppendOptions, RegistryContext, Repository, Uploads, UploadStatus } from './registry.ts';

const EMPTY_SHA256 = createHash('sha256').digest('hex');

export function createUploads(context: RegistryContext): Uploads {
  const { store, clock } = context;
  const quotas = new Quotas(context.uploadsPerRepositoryMax);
  const finish = createFinish(context);
  const findUpload = store.prepare<{ size: number; completed_digest: string | null }>(
    'select size, completed_digest from upload where id = ? and repository_id = ?',
  );
  return {
    start: (repository) => start(context, quotas, repository),
    status: async (repository, id) => {
      const [row] = await findUpload(id, repository.id);
      if (row === undefined || row.completed_digest !== null) {
        throw uploadNotFound(id, repository.name, repository.account);
      }
      return { id, size: row.size };
    },
    append: (repository, id, source, options) => append(context, nameOf(repository, id), source, options),
    cancel: async (repository, id) => {
      const upload = nameOf(repository, id);
      if (!(await store.transact('upload.destroy', { upload, now: clock() }))) {
        throw uploadNotFound(id, repository.name, repository.account);
      }
    },
    finish: (repository, id, digests, options) => finish(nameOf(repository, id), digests, options),
  };
}

function nameOf(repository: Repository, id: string): UploadName {
  return { id, repositoryId: repository.id, repositoryName: repository.name, account: repository.account };
}

async function start(
  { store, blobs, clock, uploadsPerRepositoryMax }: RegistryContext,
  quotas: Quotas,
  repository: Repository,
): Promise<UploadStatus> {
  const now = clock();
  const upload = nameOf(repository, randomUUID());
  const key = storageKey(now);
  // INVARIANT: the row knows the key before there is a file, so a crash leaves no file that only a scan would find.
  const { contentKey, uploads } = await store.transact('upload.start', {
    upload,
    storageKey: key,
    sha256: EMPTY_SHA256,
    now,
    uploadsMax: quotas.mustCount(repository.id) ? uploadsPerRepositoryMax : undefined,
  });
  quotas.added(repository.id, uploads);
  try {
    await blobs.create(key, contentKey);
  } catch (error) {
    // WHY passed over: the first error is what went wrong, and an upload without bytes expires by itself.
    await store.transact('upload.destroy', { upload, now }).catch(ignore);
    throw keyFault(error);
  }
  return { id: upload.id, size: 0 };
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
    const writer = context.store.newWriter();
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

/** Streams into the blob store and moves the row. Throws with the row as it was, still claimed. */
async function appendBytes(
  context: RegistryContext,
  upload: UploadName,
  writer: string,
  claimed: Claim,
  source: Readable,
  options: AppendOptions,
): Promise<number> {
  let stored: { size: number; sha256: string };
  try {
    stored = await appendStream(context, claimed, source, options);
  } catch (error) {
    throw appendFault(context, error, upload, claimed.size, options.length);
  }
  await context.store.transact('upload.commitAppend', {
    upload,
    writer,
    ...stored,
    partLength: options.part === true ? stored.size - claimed.size : undefined,
    partBytesMin: LIMITS.layerPartBytesMin,
    now: context.clock(),
  });
  return stored.size;
}
