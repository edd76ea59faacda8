/**
 * Indexes whose members are partly not here (sparse). What such an index misses waits in `image_child_absent`; the push that
 * brings a member turns that into the edge which every index has to its members, in the same transaction, so that nothing
 * else has to know of sparse indexes: a member is protected from the moment it is there.
 *
 * INVARIANT: whoever adds an image, or another name of one, admits it here.
 */
import { sql } from 'kysely';
import { chunks } from './repository-blobs.ts';
import type { Tx } from './transaction.ts';

/** Notes what a new index names and the repository does not have. */
export async function awaitChildren(
  tx: Tx,
  parent: { readonly repositoryId: string; readonly digest: string },
  absent: readonly string[],
): Promise<void> {
  for (const part of chunks(absent)) {
    await tx
      .insertInto('image_child_absent')
      .values(
        part.map((digest) => ({
          repository_id: parent.repositoryId,
          parent_digest: parent.digest,
          child_digest: digest,
        })),
      )
      .execute();
  }
}

/**
 * Makes an image that is here a member of the indexes that wait for it by one of `names`, its digests of any algorithm.
 *
 * WHY its size is not compared with what they say: they were there first and the image is good by its own digest, so whoever
 * may push an index could keep a digest out of the repository for good.
 * WHY their own size stays: it would have to be written again in all of them, with their manifests, at one push.
 */
export async function admitChild(
  tx: Tx,
  image: { readonly repositoryId: string; readonly digest: string },
  names: readonly string[],
): Promise<void> {
  const { repositoryId, digest } = image;
  await tx
    .insertInto('image_child')
    .columns(['repository_id', 'parent_digest', 'child_digest'])
    .expression(
      tx
        .selectFrom('image_child_absent')
        .select(['repository_id', 'parent_digest', sql<string>`cast(${digest} as text)`.as('child_digest')])
        .where('repository_id', '=', repositoryId)
        .where('child_digest', 'in', names),
    )
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  await tx
    .deleteFrom('image_child_absent')
    .where('repository_id', '=', repositoryId)
    .where('child_digest', 'in', names)
    .execute();
}
