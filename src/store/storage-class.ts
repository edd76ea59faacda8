/**
 * Storage classes of images (ecr-api.md §11), and the referrers that share the fate of their subject (§9.3). An image that
 * is not active keeps its tags and content, but nobody can pull it until it is restored.
 */
import { storageClassAction } from '../domain/events.ts';
import { Fault, imageNotFound, repositoryNotFound } from '../domain/faults.ts';
import type { ImageIdName } from '../domain/image-ids.ts';
import type { RepositoryAddress } from '../domain/names.ts';
import { LIMITS } from '../lib/limits.ts';
import { recordEvent } from './events.ts';
import { enqueueJob } from './jobs.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

export type ImageStatus = 'ACTIVE' | 'ARCHIVED' | 'ACTIVATING';

/** Kind of the jobs that end a restore; the payload is an {@link ImageName}. */
export const ACTIVATION_JOB = 'image.activate';
/** Kind of the jobs that delete or archive the referrers of an image; the payload is a {@link SubjectName}. */
export const REFERRERS_JOB = 'image.referrers';

export interface ImageName {
  readonly repositoryId: string;
  readonly digest: string;
}

/** A subject, and how its referrers name it: by its digest or one of another algorithm (ADR 0008). */
export interface SubjectName extends ImageName {
  readonly name: string;
}

/** A repository with its id. */
interface Place extends RepositoryAddress {
  readonly id: string;
}

interface ImageRow {
  readonly digest: string;
  readonly media_type: string;
  readonly artifact_type: string | null;
  readonly subject_digest: string | null;
  readonly status: 'ARCHIVED' | 'ACTIVATING' | null;
}

const COLUMNS = ['digest', 'media_type', 'artifact_type', 'subject_digest', 'status'] as const;

/** Whether a repository has images that are not active: if not, every listing can do without looking at the status. */
export async function hasStoredImages(read: Reader, repositoryId: string): Promise<boolean> {
  const row = await read
    .selectFrom('image')
    .select('status')
    .where('repository_id', '=', repositoryId)
    .where('status', 'is not', null)
    .limit(1)
    .executeTakeFirst();
  return row !== undefined;
}

/** Those of the layers that only images which are not active refer to. */
export async function archivedLayers(
  read: Reader,
  repositoryId: string,
  digests: readonly string[],
): Promise<Set<string>> {
  if (digests.length === 0 || !(await hasStoredImages(read, repositoryId))) return new Set();
  const rows = await read
    .selectFrom('image_blob as b')
    .innerJoin('image as i', (join) =>
      join.onRef('i.repository_id', '=', 'b.repository_id').onRef('i.digest', '=', 'b.image_digest'),
    )
    .select(['b.blob_digest', 'i.status'])
    .distinct()
    .where('b.repository_id', '=', repositoryId)
    .where('b.blob_digest', 'in', digests)
    .execute();
  const archived = new Set(rows.map((row) => row.blob_digest));
  for (const row of rows) if (row.status === null) archived.delete(row.blob_digest);
  return archived;
}

/** The repository of this id, by its address. */
export async function findPlace(read: Reader, repositoryId: string): Promise<Place | undefined> {
  return await read
    .selectFrom('repository')
    .select(['id', 'account', 'region', 'name'])
    .where('id', '=', repositoryId)
    .executeTakeFirst();
}

async function findImage(tx: Tx, { repositoryId, digest }: ImageName): Promise<ImageRow | undefined> {
  return await tx
    .selectFrom('image')
    .select(COLUMNS)
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .executeTakeFirst();
}

async function setStatus(
  tx: Tx,
  { repositoryId, digest }: ImageName,
  change: { status: ImageRow['status']; archived_at?: number; activated_at?: number },
): Promise<void> {
  await tx
    .updateTable('image')
    .set(change)
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .execute();
}

/** The indexes because of which an image cannot be archived: those that are not archived themselves. */
async function activeIndexes(tx: Tx, { repositoryId, digest }: ImageName): Promise<string[]> {
  const rows = await tx
    .selectFrom('image_child as c')
    .innerJoin('image as i', (join) =>
      join.onRef('i.repository_id', '=', 'c.repository_id').onRef('i.digest', '=', 'c.parent_digest'),
    )
    .select(['c.parent_digest', 'i.status'])
    .where('c.repository_id', '=', repositoryId)
    .where('c.child_digest', '=', digest)
    .orderBy('c.parent_digest')
    .execute();
  return rows.filter(({ status }) => status !== 'ARCHIVED').map((row) => row.parent_digest);
}

/**
 * Archives an active image, with its event; its referrers follow. False, with nothing done, when an index needs it or it is
 * not active.
 */
export async function archiveImage(tx: Tx, place: Place, digest: string, now: number): Promise<boolean> {
  const name = { repositoryId: place.id, digest };
  const image = await findImage(tx, name);
  if (image === undefined || image.status !== null) return false;
  if ((await activeIndexes(tx, name)).length > 0) return false;
  await setStatus(tx, name, { status: 'ARCHIVED', archived_at: now });
  await recordEvent(tx, storageClassAction(place, now, { ...aboutImage(image), target: 'ARCHIVE' }));
  await followSubject(tx, name, now);
  return true;
}

/** Makes an image active, as a new push of it, with the event. */
export async function restoreImage(tx: Tx, place: Place, digest: string, now: number): Promise<void> {
  const name = { repositoryId: place.id, digest };
  const image = await findImage(tx, name);
  if (image === undefined || image.status === null) return;
  await setStatus(tx, name, { status: null, activated_at: now });
  const event = { ...aboutImage(image), target: 'STANDARD', activatedAt: now } as const;
  await recordEvent(tx, storageClassAction(place, now, event));
}

function aboutImage(image: ImageRow) {
  return {
    digest: image.digest,
    mediaType: image.media_type,
    artifactType: image.artifact_type,
    referrer: image.subject_digest !== null,
  };
}

/**
 * Has the referrers of an image that is being deleted or was archived share its fate, later. WHY later: whoever pushes the
 * image again soon finds its signatures still there.
 */
export async function followSubject(tx: Tx, subject: ImageName, now: number): Promise<void> {
  const { repositoryId, digest } = subject;
  const aliases = await tx
    .selectFrom('image_alias')
    .select('alias')
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .execute();
  const names = [digest, ...aliases.map(({ alias }) => alias)];
  const rows = await tx
    .selectFrom('image')
    .select('subject_digest')
    .distinct()
    .where('repository_id', '=', repositoryId)
    .where('subject_digest', 'in', names)
    .execute();
  for (const { subject_digest: name } of rows) {
    await enqueueJob(tx, {
      kind: REFERRERS_JOB,
      key: `${repositoryId}/${name}`,
      runAt: now + LIMITS.referrersFollowMs,
      payload: { repositoryId, digest, name },
    });
  }
}

export interface SetStorageClassInput {
  readonly repository: { readonly id: string; readonly name: string; readonly account: string };
  readonly imageId: ImageIdName;
  readonly target: 'STANDARD' | 'ARCHIVE';
  readonly now: number;
}

/**
 * Archives at once; begins a restore, which a job ends. An image in the class already stays as it is.
 *
 * @throws Fault RepositoryNotFoundException, ImageNotFoundException, ImageStorageClassUpdateNotSupportedException
 */
async function setStorageClass(
  tx: Tx,
  { repository, imageId, target, now }: SetStorageClassInput,
): Promise<{ digest: string; status: ImageStatus }> {
  const { name, account } = repository;
  const place = await findPlace(tx, repository.id);
  if (place === undefined) throw repositoryNotFound(name, account);
  const digest = await digestOf(tx, repository.id, imageId);
  const image =
    digest === undefined ? undefined : await findImage(tx, { repositoryId: repository.id, digest });
  if (digest === undefined || image === undefined) {
    throw imageNotFound({ digest: imageId.imageDigest, tag: imageId.imageTag }, name, account);
  }
  const imageName = { repositoryId: repository.id, digest };
  if (target === 'STANDARD') {
    if (image.status !== 'ARCHIVED') return { digest, status: image.status ?? 'ACTIVE' };
    await setStatus(tx, imageName, { status: 'ACTIVATING' });
    await enqueueJob(tx, {
      kind: ACTIVATION_JOB,
      key: `${repository.id}/${digest}`,
      runAt: now + LIMITS.imageActivationMs,
      payload: imageName,
    });
    return { digest, status: 'ACTIVATING' };
  }
  if (image.status === 'ACTIVATING') throw updateNotSupported(`The image '${digest}' is being restored`);
  if (image.status === null && !(await archiveImage(tx, place, digest, now))) {
    const indexes = (await activeIndexes(tx, imageName)).join(', ');
    throw updateNotSupported(
      `The image '${digest}' is referenced by manifest list: [${indexes}], which must be archived or deleted first`,
    );
  }
  return { digest, status: 'ARCHIVED' };
}

function updateNotSupported(why: string): Fault {
  return new Fault('ImageStorageClassUpdateNotSupportedException', why);
}

/** The digest an image id names; a tag that is on another image names nothing. */
async function digestOf(
  tx: Tx,
  repositoryId: string,
  { imageDigest, imageTag }: ImageIdName,
): Promise<string | undefined> {
  if (imageTag === undefined) return imageDigest;
  const tag = await tx
    .selectFrom('tag')
    .select('image_digest')
    .where('repository_id', '=', repositoryId)
    .where('name', '=', imageTag)
    .executeTakeFirst();
  return imageDigest === undefined || imageDigest === tag?.image_digest ? tag?.image_digest : undefined;
}

/** Ends a restore that is still under way. Returns the repository; `undefined` when there was nothing to end. */
async function activateImage(
  tx: Tx,
  input: ImageName & { readonly now: number },
): Promise<RepositoryAddress | undefined> {
  const place = await findPlace(tx, input.repositoryId);
  if (place === undefined) return undefined;
  const image = await findImage(tx, input);
  if (image?.status !== 'ACTIVATING') return undefined;
  await restoreImage(tx, place, input.digest, input.now);
  return place;
}

export const storageClassTransactions = {
  'image.setStorageClass': setStorageClass,
  'image.activate': activateImage,
} as const satisfies Record<string, Transaction<never, unknown>>;
