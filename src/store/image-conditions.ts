/** Preconditions of writes to images, judged in the transaction that writes: of two that race, one sees the other's outcome. */
import { findFalse, type ImageCondition } from '../domain/preconditions.ts';
import { resolveAliases } from './aliases.ts';
import type { Tx } from './transaction.ts';

/** Which of the conditions is false now; an image that is archived counts as absent, as it does to a pull. */
export async function findFalseCondition(
  tx: Tx,
  repositoryId: string,
  { reference, precondition }: ImageCondition,
): Promise<'match' | 'noneMatch' | undefined> {
  const current = reference.includes(':')
    ? await tagOfDigest(tx, repositoryId, reference)
    : await tagOfTag(tx, repositoryId, reference);
  return findFalse(precondition, current);
}

/** The entity tag by a digest is that digest, whichever its algorithm. */
async function tagOfDigest(tx: Tx, repositoryId: string, named: string): Promise<string | undefined> {
  const digest = (await resolveAliases(tx, 'image_alias', repositoryId, [named])).get(named);
  if (digest === undefined) return undefined;
  const image = await tx
    .selectFrom('image')
    .select('digest')
    .where('repository_id', '=', repositoryId)
    .where('digest', '=', digest)
    .where('status', 'is', null)
    .executeTakeFirst();
  return image && named;
}

/** The entity tag by a tag is the digest that the tag was last set by. */
async function tagOfTag(tx: Tx, repositoryId: string, name: string): Promise<string | undefined> {
  const tag = await tx
    .selectFrom('tag as t')
    .innerJoin('image as i', (join) =>
      join.onRef('i.repository_id', '=', 't.repository_id').onRef('i.digest', '=', 't.image_digest'),
    )
    .select(['t.image_digest', 't.alias'])
    .where('t.repository_id', '=', repositoryId)
    .where('t.name', '=', name)
    .where('i.status', 'is', null)
    .executeTakeFirst();
  return tag && (tag.alias ?? tag.image_digest);
}
