/**
 * Manifests that name what is partly not here (sparse): members of an index, content of an image. What one misses waits in
 * `image_child_absent` and `image_blob_absent`; the push that brings it makes of that the edge which every manifest has to what
 * it names, in the same transaction. So nothing else has to know of sparse manifests: what they name is protected from the
 * moment it is there.
 *
 * INVARIANT: whoever adds an image or a blob to a repository, or another name of one, admits it here.
 *
 * WHY its size is not compared with what they say: they were there first, and it is good by its own digest, so whoever may push
 * a manifest could keep a digest out of the repository for good.
 * WHY the size of an index stays: it would have to be written again in all that wait, with their manifests, at one push.
 */
import { sql } from 'kysely';
import type { Tx } from './transaction.ts';

interface Content {
  readonly repositoryId: string;
  readonly digest: string;
}

/** Makes an image a member of the indexes that wait for it by one of `names`, its digests of any algorithm. */
export async function admitChild(
  tx: Tx,
  { repositoryId, digest }: Content,
  names: readonly string[],
): Promise<void> {
  await sql`insert into image_child (repository_id, parent_digest, child_digest)
    select repository_id, parent_digest, cast(${digest} as text) from image_child_absent
    where repository_id = ${repositoryId} and child_digest in (${sql.join(names)}) on conflict do nothing`.execute(
    tx,
  );
  await tx
    .deleteFrom('image_child_absent')
    .where('repository_id', '=', repositoryId)
    .where('child_digest', 'in', names)
    .execute();
}

/** Makes a blob content of the images that wait for it by one of `names`, its digests of any algorithm. */
export async function admitBlob(
  tx: Tx,
  { repositoryId, digest }: Content,
  names: readonly string[],
): Promise<void> {
  const waiting = await tx
    .selectFrom('image_blob_absent')
    .select('image_digest')
    .where('repository_id', '=', repositoryId)
    .where('blob_digest', 'in', names)
    .limit(1)
    .executeTakeFirst();
  if (waiting === undefined) return;
  await sql`insert into image_blob (repository_id, image_digest, blob_digest, media_type)
    select repository_id, image_digest, cast(${digest} as text), media_type from image_blob_absent
    where repository_id = ${repositoryId} and blob_digest in (${sql.join(names)}) on conflict do nothing`.execute(
    tx,
  );
  await tx
    .deleteFrom('image_blob_absent')
    .where('repository_id', '=', repositoryId)
    .where('blob_digest', 'in', names)
    .execute();
}
