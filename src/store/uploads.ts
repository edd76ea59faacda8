/**
 * Unfinished blobs. A row holds what is committed: size and digest of the bytes so far. One writer at a time holds a
 * claim on it, which counts no more when its process has died (owners.ts), and runs out by itself. A finished upload keeps
 * its row for a while, so that a client whose answer got lost may ask again; its storage key then belongs to a blob or to
 * the trash.
 */
import { Fault, repositoryNotFound, uploadNotFound } from '../domain/faults.ts';
import { replaceSetAside } from './damage.ts';
import { link, repositoryBlobTransactions, trash } from './repository-blobs.ts';
import type { Transaction, Tx } from './transaction.ts';

/** An upload of a repository; names are for texts. */
export interface UploadName {
  readonly id: string;
  readonly repositoryId: string;
  readonly repositoryName: string;
  readonly account: string;
}

export interface StartUploadInput {
  readonly upload: UploadName;
  readonly storageKey: string;
  /** hex sha256 of no bytes */
  readonly sha256: string;
  readonly now: number;
  /** how many unfinished uploads the repository may have; `undefined` when it is known to have fewer */
  readonly uploadsMax: number | undefined;
}

/** The content key, and how many unfinished uploads there are now, if they were counted. */
export interface StartedUpload {
  readonly contentKey: string;
  readonly uploads: number | undefined;
}

/** Records an upload and its storage key. @throws Fault RepositoryNotFoundException, LimitExceededException */
async function startUpload(tx: Tx, input: StartUploadInput): Promise<StartedUpload> {
  const { upload, storageKey, sha256, now, uploadsMax } = input;
  const repository = await tx
    .selectFrom('repository')
    .select('content_key')
    .where('id', '=', upload.repositoryId)
    .executeTakeFirst();
  if (repository === undefined) throw repositoryNotFound(upload.repositoryName, upload.account);
  const uploads = uploadsMax === undefined ? undefined : await requireRoom(tx, upload, uploadsMax);
  await tx
    .insertInto('upload')
    .values({
      id: upload.id,
      repository_id: upload.repositoryId,
      storage_key: storageKey,
      content_key: repository.content_key,
      size: 0,
      sha256,
      writer: null,
      writer_until: null,
      created_at: now,
      updated_at: now,
      completed_digest: null,
    })
    .execute();
  return { contentKey: repository.content_key, uploads };
}

/** Counts the unfinished uploads of a repository, one more included. @throws Fault LimitExceededException */
async function requireRoom(tx: Tx, upload: UploadName, uploadsMax: number): Promise<number> {
  const { count } = await tx
    .selectFrom('upload')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('repository_id', '=', upload.repositoryId)
    .where('completed_digest', 'is', null)
    .executeTakeFirstOrThrow();
  if (Number(count) >= uploadsMax) {
    throw new Fault(
      'LimitExceededException',
      `The repository with name '${upload.repositoryName}' in registry with id '${upload.account}' already has the ` +
        `maximum allowed number of unfinished layer uploads which is '${uploadsMax}'`,
    );
  }
  return Number(count) + 1;
}

export interface ClaimUploadInput {
  readonly upload: UploadName;
  /** random, names this append or this closing */
  readonly writer: string;
  readonly now: number;
  readonly writerUntil: number;
  /** where the first byte is meant to go */
  readonly offset: number | undefined;
  /** set for a part of the ECR API: its length */
  readonly partLength: number | undefined;
  readonly partsMax: number;
  /** a writer whose owner has ended (`dead`), or is taken for it: its claim counts no more */
  readonly gone?: { readonly writer: string; readonly dead: boolean };
}

/** What the holder of the claim works on. */
export interface ClaimedUpload {
  readonly outcome: 'claimed';
  readonly storageKey: string;
  readonly contentKey: string;
  readonly size: number;
  readonly sha256: string;
  readonly parts: number;
  readonly smallPart: boolean;
  /** somebody who lost a claim before may still be writing to these bytes */
  readonly contested: boolean;
}

export type ClaimOutcome =
  | ClaimedUpload
  /** finished before, with this digest */
  | { readonly outcome: 'completed'; readonly digest: string; readonly size: number }
  /** the part is the newest one again, after a lost answer; nothing is claimed */
  | { readonly outcome: 'repeated'; readonly size: number }
  /** another writer has it */
  | { readonly outcome: 'busy'; readonly size: number; readonly writer: string };

/**
 * Claims the right to write to an upload, for appending or closing.
 *
 * @throws Fault UploadNotFoundException, InvalidLayerPartException (another offset), LimitExceededException
 */
async function claimUpload(tx: Tx, input: ClaimUploadInput): Promise<ClaimOutcome> {
  const row = await requireUpload(tx, input.upload);
  if (row.completed_digest !== null) {
    return { outcome: 'completed', digest: row.completed_digest, size: row.size };
  }
  const { offset, partLength, gone } = input;
  const other = row.writer === input.writer ? null : row.writer;
  if (other !== null && other !== gone?.writer && (row.writer_until ?? 0) > input.now) {
    return { outcome: 'busy', size: row.size, writer: other };
  }
  if (offset !== undefined && offset !== row.size) {
    const repeated =
      partLength !== undefined && partLength === row.last_part_size && offset + partLength === row.size;
    if (repeated) return { outcome: 'repeated', size: row.size };
    throw invalidPart(`First byte of the layer part is ${offset} instead of ${row.size}`, row.size);
  }
  if (partLength !== undefined && row.parts >= input.partsMax) {
    throw new Fault(
      'LimitExceededException',
      `The layer exceeds the maximum allowed number of parts which is '${input.partsMax}'`,
    );
  }
  const ended = other === null || (other === gone?.writer && gone.dead);
  const contested = row.contested !== 0 || !ended;
  await tx
    .updateTable('upload')
    .set({ writer: input.writer, writer_until: input.writerUntil, contested: contested ? 1 : 0 })
    .where('id', '=', input.upload.id)
    .execute();
  return {
    outcome: 'claimed',
    storageKey: row.storage_key,
    contentKey: row.content_key,
    contested,
    size: row.size,
    sha256: row.sha256,
    parts: row.parts,
    smallPart: row.small_part !== 0,
  };
}

/** The detail is what clients resume from: `lastValidByteReceived` is -1 while there are no bytes. */
export function invalidPart(message: string, size: number): Fault {
  return new Fault('InvalidLayerPartException', message, { lastValidByteReceived: size - 1 });
}

async function requireUpload(tx: Tx, upload: UploadName) {
  const row = await tx
    .selectFrom('upload')
    .selectAll()
    .where('id', '=', upload.id)
    .where('repository_id', '=', upload.repositoryId)
    .executeTakeFirst();
  if (row === undefined) throw uploadNotFound(upload.id, upload.repositoryName, upload.account);
  return row;
}

export interface HoldUploadInput {
  readonly upload: UploadName;
  readonly writer: string;
  /** until when the claim holds; null gives it up */
  readonly writerUntil: number | null;
}

/** Renews or gives up a claim. False when it is no longer held. */
async function holdUpload(tx: Tx, { upload, writer, writerUntil }: HoldUploadInput): Promise<boolean> {
  const held = await tx
    .updateTable('upload')
    .set(writerUntil === null ? { writer: null, writer_until: null } : { writer_until: writerUntil })
    .where('id', '=', upload.id)
    .where('writer', '=', writer)
    .returning('id')
    .executeTakeFirst();
  return held !== undefined;
}

export interface CommitAppendInput {
  readonly upload: UploadName;
  readonly writer: string;
  readonly size: number;
  readonly sha256: string;
  readonly partLength: number | undefined;
  readonly partBytesMin: number;
  readonly now: number;
}

/**
 * Moves the committed size over durable bytes and gives up the claim.
 *
 * @throws Fault UploadNotFoundException, InvalidLayerPartException (the claim ran out and somebody else took it)
 */
async function commitAppend(tx: Tx, input: CommitAppendInput): Promise<void> {
  const row = await requireUpload(tx, input.upload);
  if (row.writer !== input.writer) throw invalidPart('Another request is writing to the upload', row.size);
  const part =
    input.partLength === undefined
      ? {}
      : {
          parts: row.parts + 1,
          last_part_size: input.partLength,
          small_part:
            row.small_part !== 0 || (row.parts > 0 && row.last_part_size < input.partBytesMin) ? 1 : 0,
        };
  await tx
    .updateTable('upload')
    .set({
      size: input.size,
      sha256: input.sha256,
      writer: null,
      writer_until: null,
      updated_at: input.now,
      ...part,
    })
    .where('id', '=', input.upload.id)
    .execute();
}

export interface CompleteUploadInput {
  readonly upload: UploadName;
  readonly writer: string;
  /** of the sealed bytes: sha256, what other digests they were found to have, and their number */
  readonly digest: string;
  readonly aliases: readonly string[];
  readonly size: number;
  /** the sealed bytes when they are not the upload's own: a copy that the trash names until then */
  readonly copy: { readonly storageKey: string; readonly deleteAfter: number } | undefined;
  readonly now: number;
  readonly leasedUntil: number;
  /** refuse content the repository sees already (ECR API) */
  readonly refuseKnown: boolean;
}

/**
 * Binds the digest to the sealed bytes, or to an equal copy stored before under the same key, whose bytes then win; links
 * the repository with a lease; ends the upload. `known` when it was refused: then the upload is gone, too.
 *
 * @throws Fault UploadNotFoundException, InvalidLayerPartException (the claim was lost)
 */
async function completeUpload(tx: Tx, input: CompleteUploadInput): Promise<'linked' | 'known'> {
  const row = await requireUpload(tx, input.upload);
  if (row.writer !== input.writer || row.completed_digest !== null) {
    throw invalidPart('Another request is writing to the upload', row.size);
  }
  const { repositoryId } = input.upload;
  if (input.refuseKnown && (await seesBlob(tx, repositoryId, input.digest))) {
    await dropUpload(tx, row, input.now);
    return 'known';
  }
  const storageKey = input.copy?.storageKey ?? row.storage_key;
  if (input.copy !== undefined) {
    await takeFromTrash(tx, input.copy);
    await trash(tx, row.storage_key, input.now);
  }
  // WHY doNothing: on PostgreSQL a failed insert would end the transaction; a copy committed meanwhile makes it run again.
  const bound = await tx
    .insertInto('blob')
    .values({
      storage_key: storageKey,
      digest: input.digest,
      content_key: row.content_key,
      size: input.size,
      created_at: input.now,
    })
    .onConflict((conflict) => conflict.columns(['digest', 'content_key']).doNothing())
    .returning('storage_key')
    .executeTakeFirst();
  const winner =
    bound ??
    (await tx
      .selectFrom('blob')
      .select('storage_key')
      .where('digest', '=', input.digest)
      .where('content_key', '=', row.content_key)
      .executeTakeFirstOrThrow());
  if (bound === undefined) await trash(tx, storageKey, input.now);
  else
    await replaceSetAside(tx, {
      digest: input.digest,
      contentKey: row.content_key,
      storageKey,
      now: input.now,
    });
  const content = { repositoryId, digest: input.digest, storageKey: winner.storage_key, size: input.size };
  await link(tx, content, input.leasedUntil, input.aliases);
  await tx
    .updateTable('upload')
    .set({
      size: input.size,
      completed_digest: input.digest,
      writer: null,
      writer_until: null,
      updated_at: input.now,
    })
    .where('id', '=', row.id)
    .execute();
  return 'linked';
}

/** INVARIANT: a key moves from the trash only while nobody has been told to delete its bytes. */
async function takeFromTrash(
  tx: Tx,
  { storageKey, deleteAfter }: NonNullable<CompleteUploadInput['copy']>,
): Promise<void> {
  const taken = await tx
    .deleteFrom('garbage_trash')
    .where('storage_key', '=', storageKey)
    .where('delete_after', '=', deleteAfter)
    .returning('storage_key')
    .executeTakeFirst();
  if (taken === undefined) throw new Error(`the copy ${storageKey} was collected before it was bound`);
}

async function seesBlob(tx: Tx, repositoryId: string, digest: string): Promise<boolean> {
  const row = await tx
    .selectFrom('repository_blob')
    .select('digest')
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    // Zero: its bytes are damaged (damage.ts).
    .where('leased_until', '>', 0)
    .executeTakeFirst();
  return row !== undefined;
}

async function dropUpload(tx: Tx, row: { id: string; storage_key: string }, now: number): Promise<void> {
  await tx.deleteFrom('upload').where('id', '=', row.id).execute();
  await trash(tx, row.storage_key, now);
}

export interface DestroyUploadInput {
  readonly upload: UploadName;
  readonly now: number;
}

/** Ends an upload without a result, whoever writes to it; its bytes go at once. False when there was none. */
async function destroyUpload(tx: Tx, { upload, now }: DestroyUploadInput): Promise<boolean> {
  const row = await tx
    .selectFrom('upload')
    .select(['id', 'storage_key', 'completed_digest'])
    .where('id', '=', upload.id)
    .where('repository_id', '=', upload.repositoryId)
    .executeTakeFirst();
  // INVARIANT: the key of a finished upload is not its own any more.
  if (row === undefined || row.completed_digest !== null) return false;
  await dropUpload(tx, row, now);
  return true;
}

/** Ends all uploads of a repository, by set. First step of deleting a repository, beside its images. */
export async function deleteUploadsOfRepository(tx: Tx, repositoryId: string, now: number): Promise<void> {
  await tx
    .insertInto('garbage_trash')
    .columns(['storage_key', 'delete_after'])
    .expression((q) =>
      q
        .selectFrom('upload')
        .select((column) => [
          'storage_key',
          column.cast<number>(column.val(now), 'bigint').as('delete_after'),
        ])
        .where('repository_id', '=', repositoryId)
        .where('completed_digest', 'is', null),
    )
    .onConflict((conflict) => conflict.column('storage_key').doNothing())
    .execute();
  await tx.deleteFrom('upload').where('repository_id', '=', repositoryId).execute();
}

export const uploadTransactions = {
  ...repositoryBlobTransactions,
  'upload.start': startUpload,
  'upload.claim': claimUpload,
  'upload.hold': holdUpload,
  'upload.commitAppend': commitAppend,
  'upload.complete': completeUpload,
  'upload.destroy': destroyUpload,
} as const satisfies Record<string, Transaction<never, unknown>>;
