/** Images and tags of a repository: look-ups of the registry, and every write to them. */
import { sql } from 'kysely';
import { Fault, layersNotFound, referencedImagesNotFound, repositoryNotFound } from '../domain/faults.ts';
import {
  distinctImageIds,
  imageIdFailure,
  imageNotFoundFailure,
  tagDigestFailure,
  type ImageIdFailure,
  type ImageIdName,
} from '../domain/image-ids.ts';
import {
  type BlobReference,
  type ChildReference,
  imageSize,
  type SparseManifests,
} from '../domain/manifests.ts';
import { type ImageCondition, preconditionFailed } from '../domain/preconditions.ts';
import type { Digest } from '../domain/names.ts';
import type { TagRules } from '../domain/tags.ts';
import { findFalseCondition } from './image-conditions.ts';
import { recordDeletion, recordPulls, recordPush, type Deletion } from './image-events.ts';
import { imageAlreadyExists, selectTagsOf, setTags } from './image-tags.ts';
import { addAliases, resolveAliases } from './aliases.ts';
import { chunks } from './repository-blobs.ts';
import { admitChild } from './sparse-manifests.ts';
import { followSubject, restoreImage } from './storage-class.ts';
import type { Transaction, Tx } from './transaction.ts';

export { unlinkBlobsOfRepository } from './repository-blobs.ts';

/** Which repository, and how texts call it. */
export interface RepositoryName {
  readonly id: string;
  readonly name: string;
  readonly account: string;
}

/** Parents named in one refusal. */
const PARENTS_NAMED_MAX = 100;

export interface PutImageRow {
  readonly repository: RepositoryName;
  readonly digest: string;
  /** the digest of another algorithm that the client named it by, computed from the bytes */
  readonly alias: string | undefined;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly subjectDigest: string | undefined;
  readonly manifest: Uint8Array;
  /** bytes of the content the manifest names itself */
  readonly contentSize: number;
  readonly blobs: readonly BlobReference[];
  readonly children: readonly ChildReference[];
  readonly tags: readonly string[];
  readonly existing: 'refuse' | 'accept';
  /** absent: none */
  readonly condition?: ImageCondition | undefined;
  /** absent: `refuse` */
  readonly sparseManifests?: SparseManifests;
  readonly now: number;
  /** random, makes the row's id unique */
  readonly nonce: string;
  readonly tagsPerImageMax: number;
  /** absent: the images of the repository are not counted this time */
  readonly imagesMax: number | undefined;
}

export interface PutImageOutcome {
  readonly mediaType: string;
  readonly subjectDigest: string | undefined;
  /** false when the image was there before, and not archived */
  readonly added: boolean;
  /** images of the repository, when they were counted */
  readonly images: number | undefined;
}

/** Stores an image and sets its tags. See `Images.put` for the Faults. */
async function putImage(tx: Tx, asked: PutImageRow): Promise<PutImageOutcome> {
  const { region, rules } = await requireRepository(tx, asked.repository);
  const unmet = asked.condition && (await findFalseCondition(tx, asked.repository.id, asked.condition));
  if (unmet !== undefined) throw preconditionFailed(unmet);
  const present = await tx
    .selectFrom('image')
    .select(['media_type', 'subject_digest', 'status'])
    .where('repository_id', '=', asked.repository.id)
    .where('digest', '=', asked.digest)
    .executeTakeFirst();
  // WHY accepted: pushing an archived image restores it (ecr-api.md §7.1), so it is no repetition.
  const isStored = present !== undefined && present.status !== null;
  const input: PutImageRow = isStored ? { ...asked, existing: 'accept' } : asked;
  if (present !== undefined && input.existing === 'refuse' && input.tags.length === 0) {
    throw imageAlreadyExists(input, 'null');
  }
  const name = { repositoryId: input.repository.id, digest: input.digest };
  const aliases = input.alias === undefined ? [] : [input.alias];
  let images: number | undefined;
  let awaited = aliases.length > 0;
  if (present === undefined) {
    const blobs = await requireBlobs(tx, input);
    const children = await requireChildren(tx, input);
    images = await requireRoom(tx, input);
    const size = imageSize(input.contentSize, [...children.held.values()]);
    if (await insertImage(tx, input, size)) awaited = true;
    await insertBlobs(tx, 'image_blob', input, [...blobs.held.values()]);
    await insertBlobs(tx, 'image_blob_absent', input, blobs.absent);
    await insertChildren(tx, 'image_child', input, [...children.held.keys()]);
    await insertChildren(tx, 'image_child_absent', input, children.absent);
  }
  await addAliases(tx, 'image_alias', name, aliases);
  if (awaited) await admitChild(tx, name, [input.digest, ...aliases]);
  // An archived image takes no room, a restored one does.
  const isArchived = present?.status === 'ARCHIVED';
  if (isArchived) images = await requireRoom(tx, input);
  if (isStored) await restoreImage(tx, { ...input.repository, region }, input.digest, input.now);
  const tagged = await setTags(tx, input, rules, present === undefined);
  await recordPush(tx, input, region, present === undefined, tagged);
  return {
    mediaType: present?.media_type ?? input.mediaType,
    subjectDigest: present === undefined ? input.subjectDigest : (present.subject_digest ?? undefined),
    added: present === undefined || isArchived,
    images,
  };
}

/** What a write to a repository goes by. @throws Fault RepositoryNotFoundException */
async function requireRepository(
  tx: Tx,
  repository: RepositoryName,
): Promise<{ region: string; rules: TagRules }> {
  const row = await tx
    .selectFrom('repository')
    .select(['region', 'mutability', 'exclusion_filters'])
    .where('id', '=', repository.id)
    .executeTakeFirst();
  if (row === undefined) throw repositoryNotFound(repository.name, repository.account);
  const filters = row.exclusion_filters;
  return {
    region: row.region,
    rules: {
      mutability: row.mutability,
      exclusionFilters: filters === null ? [] : (JSON.parse(filters) as TagRules['exclusionFilters']),
    },
  };
}

function wrongSize(digest: string, said: number, stored: number): Fault {
  return new Fault(
    'ManifestInvalid',
    `The manifest says that ${digest} has ${said} bytes, but it has ${stored}`,
  );
}

/**
 * Verifies that the repository holds what the manifest names, in these sizes, unless it may be sparse. Returns what to refer to,
 * by sha256, and what is absent.
 */
async function requireBlobs(
  tx: Tx,
  input: PutImageRow,
): Promise<{ held: Map<string, BlobReference>; absent: readonly BlobReference[] }> {
  const held = new Map<string, BlobReference>();
  const absent: BlobReference[] = [];
  const missing: BlobReference[] = [];
  for (const part of chunks(input.blobs)) {
    const known = await resolveAliases(tx, 'blob_alias', input.repository.id, digestsOf(part));
    if (known.size === 0) {
      absent.push(...part.filter(({ required }) => required));
      continue;
    }
    const rows = await tx
      .selectFrom('repository_blob')
      .select(['digest', 'size', 'leased_until'])
      .where('repository_id', '=', input.repository.id)
      .where('digest', 'in', [...known.values()])
      .execute();
    const links = new Map(rows.map((row) => [row.digest, row]));
    for (const blob of part) {
      const digest = known.get(blob.digest) ?? '';
      const link = links.get(digest);
      // WHY: a link without a lease is to a copy set aside as damaged: its content is to be pushed again (damage.ts).
      if (link === undefined || link.leased_until === 0) {
        if (blob.required) (link === undefined ? absent : missing).push(blob);
      } else if (link.size !== blob.size) throw wrongSize(blob.digest, blob.size, link.size);
      else held.set(digest, { ...blob, digest: digest as Digest });
    }
  }
  if (input.sparseManifests !== 'all') missing.push(...absent);
  const { name, account } = input.repository;
  if (missing.length > 0) throw layersNotFound(digestsOf(missing), name, account);
  return { held, absent };
}

function digestsOf(references: readonly { readonly digest: string }[]): string[] {
  return references.map(({ digest }) => digest);
}

/**
 * Verifies that the members of an index are images here, unless it may be sparse. Returns their imageSizeInBytes by sha256,
 * and the names of those that are absent.
 */
async function requireChildren(
  tx: Tx,
  input: PutImageRow,
): Promise<{ held: Map<string, number>; absent: readonly string[] }> {
  const sparse = (input.sparseManifests ?? 'refuse') !== 'refuse';
  const held = new Map<string, number>();
  const absent: string[] = [];
  for (const part of chunks(input.children)) {
    const known = await resolveAliases(tx, 'image_alias', input.repository.id, digestsOf(part));
    if (known.size === 0) {
      absent.push(...digestsOf(part));
      continue;
    }
    const rows = await tx
      .selectFrom('image')
      .select(['digest', 'size', 'status', sql<number | string>`length(manifest)`.as('bytes')])
      .where('repository_id', '=', input.repository.id)
      .where('digest', 'in', [...known.values()])
      .execute();
    const found = new Map(rows.map((row) => [row.digest, row]));
    for (const child of part) {
      const row = found.get(known.get(child.digest) ?? '');
      // An archived image cannot be pulled, so it must be pushed again first, which restores it.
      if (row === undefined || (row.status !== null && !sparse)) absent.push(child.digest);
      else if (Number(row.bytes) !== child.size) throw wrongSize(child.digest, child.size, Number(row.bytes));
      else held.set(row.digest, row.size);
    }
  }
  const { name, account } = input.repository;
  if (absent.length > 0 && !sparse) throw referencedImagesNotFound(absent, name, account);
  return { held, absent };
}

/** Archived images are not counted (ecr-api.md §23), those being restored are. */
async function requireRoom(tx: Tx, { repository, imagesMax }: PutImageRow): Promise<number | undefined> {
  if (imagesMax === undefined) return undefined;
  const images = tx
    .selectFrom('image')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('repository_id', '=', repository.id);
  // WHY two: each is a range of an index.
  const active = await images.where('status', 'is', null).executeTakeFirstOrThrow();
  const activating = await images.where('status', '=', 'ACTIVATING').executeTakeFirstOrThrow();
  const count = Number(active.count) + Number(activating.count);
  if (count >= imagesMax) {
    throw new Fault(
      'LimitExceededException',
      `The repository with name '${repository.name}' in registry with id '${repository.account}' already has the ` +
        `maximum allowed number of images which is '${imagesMax}'`,
    );
  }
  return count + 1;
}

/** Says whether a sparse index waits for this image. */
async function insertImage(tx: Tx, input: PutImageRow, size: number): Promise<boolean> {
  const { id: repositoryId } = input.repository;
  // WHY in one: every push asks for both, and hardly ever does an index wait. Without images there is none.
  const newest = await tx
    .selectFrom('image')
    .select((q) => [
      'pushed_at',
      q
        .selectFrom('image_child_absent as a')
        .select('a.parent_digest')
        .where('a.repository_id', '=', repositoryId)
        .where('a.child_digest', '=', input.digest)
        .limit(1)
        .as('awaiting'),
    ])
    .where('repository_id', '=', repositoryId)
    .orderBy('pushed_at', 'desc')
    .limit(1)
    .executeTakeFirst();
  // INVARIANT: push times of a repository are distinct and in the order of the pushes (ecr-api.md §7.5).
  const pushedAt = Math.max(input.now, (newest?.pushed_at ?? 0) + 1);
  await tx
    .insertInto('image')
    .values({
      id: pushedAt.toString(16).padStart(12, '0') + input.nonce,
      repository_id: repositoryId,
      digest: input.digest,
      media_type: input.mediaType,
      artifact_type: input.artifactType ?? null,
      subject_digest: input.subjectDigest ?? null,
      manifest: input.manifest,
      size,
      pushed_at: pushedAt,
      last_pulled_at: null,
    })
    .execute();
  return (newest?.awaiting ?? null) !== null;
}

async function insertBlobs(
  tx: Tx,
  table: 'image_blob' | 'image_blob_absent',
  { repository, digest: image }: PutImageRow,
  blobs: readonly BlobReference[],
): Promise<void> {
  for (const part of chunks(blobs)) {
    const rows = part.map(({ digest, mediaType }) => ({
      repository_id: repository.id,
      image_digest: image,
      blob_digest: digest,
      media_type: mediaType,
    }));
    await tx.insertInto(table).values(rows).execute();
  }
}

async function insertChildren(
  tx: Tx,
  table: 'image_child' | 'image_child_absent',
  { repository, digest: image }: PutImageRow,
  children: readonly string[],
): Promise<void> {
  for (const part of chunks(children)) {
    const rows = part.map((digest) => ({
      repository_id: repository.id,
      parent_digest: image,
      child_digest: digest,
    }));
    await tx.insertInto(table).values(rows).execute();
  }
}

export interface DeleteImagesInput {
  readonly repository: RepositoryName;
  readonly ids: readonly ImageIdName[];
  /** Judged after what would refuse the deletion anyway (RFC 9110 §13.2.1); absent: none. */
  readonly condition?: ImageCondition | undefined;
  readonly now: number;
}

export interface DeleteImagesOutcome {
  imageIds: ImageIdName[];
  failures: ImageIdFailure[];
}

/**
 * Deletes in the order asked, judging each id by what is left then.
 *
 * @throws Fault RepositoryNotFoundException, PreconditionFailed
 */
export async function deleteImages(tx: Tx, input: DeleteImagesInput): Promise<DeleteImagesOutcome> {
  const { region } = await requireRepository(tx, input.repository);
  const unmet = input.condition && (await findFalseCondition(tx, input.repository.id, input.condition));
  const outcome: DeleteImagesOutcome = { imageIds: [], failures: [] };
  for (const imageId of distinctImageIds(input.ids)) {
    const failure = imageIdFailure(imageId);
    const result =
      failure ??
      (imageId.imageTag === undefined
        ? await deleteByDigest(tx, input, imageId)
        : await deleteByTag(tx, input, imageId, imageId.imageTag));
    if ('failureCode' in result) outcome.failures.push(result);
    else {
      outcome.imageIds.push(...result.ids);
      await recordDeletion(tx, { ...input.repository, region }, input.now, result);
    }
  }
  if (unmet !== undefined && outcome.failures.length === 0) throw preconditionFailed(unmet);
  return outcome;
}

async function deleteByDigest(
  tx: Tx,
  { repository, now }: DeleteImagesInput,
  imageId: ImageIdName,
): Promise<Deletion | ImageIdFailure> {
  const { imageDigest = '' } = imageId;
  const image = await tx
    .selectFrom('image')
    .select(['media_type', 'artifact_type'])
    .where('repository_id', '=', repository.id)
    .where('digest', '=', imageDigest)
    .executeTakeFirst();
  if (image === undefined) return imageNotFoundFailure(imageId);
  const referenced = await referencedFailure(tx, repository.id, imageDigest, imageId);
  if (referenced !== undefined) return referenced;
  const tags = await selectTagsOf(tx, repository.id, imageDigest);
  await deleteImage(tx, repository.id, imageDigest, now);
  return {
    ids: tags.length === 0 ? [{ imageDigest }] : tags.map(({ name }) => ({ imageDigest, imageTag: name })),
    mediaType: image.media_type,
    artifactType: image.artifact_type,
  };
}

/** Removes one tag, and with the last one the image. */
async function deleteByTag(
  tx: Tx,
  { repository, now }: DeleteImagesInput,
  imageId: ImageIdName,
  imageTag: string,
): Promise<Deletion | ImageIdFailure> {
  const tag = await tx
    .selectFrom('tag as t')
    .innerJoin('image as i', (join) =>
      join.onRef('i.repository_id', '=', 't.repository_id').onRef('i.digest', '=', 't.image_digest'),
    )
    .select(['t.image_digest', 'i.media_type', 'i.artifact_type'])
    .where('t.repository_id', '=', repository.id)
    .where('t.name', '=', imageTag)
    .executeTakeFirst();
  if (tag === undefined) return imageNotFoundFailure(imageId);
  const imageDigest = tag.image_digest;
  if (imageId.imageDigest !== undefined && imageId.imageDigest !== imageDigest)
    return tagDigestFailure(imageId);
  const other = await tx
    .selectFrom('tag')
    .select('name')
    .where('repository_id', '=', repository.id)
    .where('image_digest', '=', imageDigest)
    .where('name', '!=', imageTag)
    .limit(1)
    .executeTakeFirst();
  if (other === undefined) {
    const referenced = await referencedFailure(tx, repository.id, imageDigest, imageId);
    if (referenced !== undefined) return referenced;
    await deleteImage(tx, repository.id, imageDigest, now);
  } else {
    await tx
      .deleteFrom('tag')
      .where('repository_id', '=', repository.id)
      .where('name', '=', imageTag)
      .execute();
  }
  return { ids: [{ imageDigest, imageTag }], mediaType: tag.media_type, artifactType: tag.artifact_type };
}

/** ECR keeps the members of an index as long as there is the index. */
async function referencedFailure(
  tx: Tx,
  repositoryId: string,
  digest: string,
  imageId: ImageIdName,
): Promise<ImageIdFailure | undefined> {
  const parents = await tx
    .selectFrom('image_child')
    .select('parent_digest')
    .where('repository_id', '=', repositoryId)
    .where('child_digest', '=', digest)
    .orderBy('parent_digest')
    .limit(PARENTS_NAMED_MAX)
    .execute();
  if (parents.length === 0) return undefined;
  const names = parents.map((row) => row.parent_digest).join(', ');
  return {
    imageId,
    failureCode: 'ImageReferencedByManifestList',
    failureReason: `Requested image referenced by manifest list: [${names}]`,
  };
}

/** Deletes an image that is no member of an index, with its tags; its content is reviewed when its lease is over. */
async function deleteImage(tx: Tx, repositoryId: string, digest: string, now: number): Promise<void> {
  await tx
    .insertInto('garbage_review')
    .columns(['repository_id', 'digest', 'review_after'])
    .expression(
      tx
        .selectFrom('image_blob')
        .innerJoin('repository_blob', (join) =>
          join
            .onRef('repository_blob.repository_id', '=', 'image_blob.repository_id')
            .onRef('repository_blob.digest', '=', 'image_blob.blob_digest'),
        )
        .select([
          'image_blob.repository_id',
          'image_blob.blob_digest',
          sql<number>`case when repository_blob.leased_until > ${now} then repository_blob.leased_until else cast(${now} as bigint) end`.as(
            'review_after',
          ),
        ])
        .where('image_blob.repository_id', '=', repositoryId)
        .where('image_blob.image_digest', '=', digest),
    )
    .onConflict((conflict) =>
      conflict
        .columns(['repository_id', 'digest'])
        .doUpdateSet((q) => ({ review_after: q.ref('excluded.review_after') })),
    )
    .execute();
  await tx
    .deleteFrom('tag')
    .where('repository_id', '=', repositoryId)
    // WHY by names: see selectTagsOf.
    .where('name', 'in', (q) =>
      q
        .selectFrom('tag as k')
        .select('k.name')
        .where('k.repository_id', '=', repositoryId)
        .where('k.image_digest', '=', digest),
    )
    .execute();
  await tx
    .deleteFrom('image_child')
    .where('repository_id', '=', repositoryId)
    .where('parent_digest', '=', digest)
    .execute();
  await tx
    .deleteFrom('image_blob')
    .where('repository_id', '=', repositoryId)
    .where('image_digest', '=', digest)
    .execute();
  await followSubject(tx, { repositoryId, digest }, now);
  await tx
    .deleteFrom('image')
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .execute();
}

/**
 * Deletes all images and tags of a repository, by set: memory does not grow with the repository. First step of deleting a
 * repository; then `unlinkBlobsOfRepository`.
 */
export async function deleteImagesOfRepository(tx: Tx, repositoryId: string, _now: number): Promise<void> {
  await tx.deleteFrom('tag').where('repository_id', '=', repositoryId).execute();
  await tx.deleteFrom('image_child').where('repository_id', '=', repositoryId).execute();
  await tx.deleteFrom('image_blob').where('repository_id', '=', repositoryId).execute();
  await tx.deleteFrom('image').where('repository_id', '=', repositoryId).execute();
}

export const imageTransactions = {
  'image.put': putImage,
  'image.delete': deleteImages,
  'image.recordPulls': recordPulls,
} as const satisfies Record<string, Transaction<never, unknown>>;
