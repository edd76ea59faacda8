/** Tags in the transactions of images: setting them when an image is put, and reading those of an image. */
import { Fault, imageTagAlreadyExists } from '../domain/faults.ts';
import { decideTagMove, type TagRules } from '../domain/tags.ts';
import type { PutImageRow } from './images.ts';
import { chunks } from './repository-blobs.ts';
import type { Tx } from './transaction.ts';

/** What refuses a put that repeats what is there. `tag` is `null`, spelt so, when none was given. */
export function imageAlreadyExists(input: PutImageRow, tag: string): Fault {
  const { name, account } = input.repository;
  return new Fault(
    'ImageAlreadyExistsException',
    `Image with digest '${input.digest}' and tag '${tag}' already exists in the repository with name '${name}' ` +
      `in registry with id '${account}'`,
  );
}

/** Returns the tags that are new to the image. */
export async function setTags(
  tx: Tx,
  input: PutImageRow,
  rules: TagRules,
  isNew: boolean,
): Promise<readonly string[]> {
  const { repository } = input;
  const wanted = [...new Set(input.tags)];
  if (wanted.length === 0) return [];
  const current = new Map<string, string>();
  const renamed: string[] = [];
  for (const part of chunks(wanted)) {
    const rows = await tx
      .selectFrom('tag')
      .select(['name', 'image_digest', 'alias'])
      .where('repository_id', '=', repository.id)
      .where('name', 'in', part)
      .execute();
    for (const row of rows) {
      current.set(row.name, row.image_digest);
      if (row.image_digest === input.digest && row.alias !== (input.alias ?? null)) renamed.push(row.name);
    }
  }
  const fresh = wanted.filter((tag) => current.get(tag) !== input.digest);
  if (input.existing === 'refuse') {
    const same = wanted.find((tag) => current.get(tag) === input.digest);
    if (same !== undefined) throw imageAlreadyExists(input, same);
  }
  for (const tag of fresh) {
    if (current.has(tag) && !decideTagMove(rules, tag).movable) {
      throw imageTagAlreadyExists(tag, repository.name, rules.mutability);
    }
  }
  if (fresh.length > 0) {
    await writeTags(tx, input, fresh, isNew ? NO_TAGS : await countTagsOf(tx, repository.id, input.digest));
  }
  for (const part of chunks(renamed)) {
    await tx
      .updateTable('tag')
      .set({ alias: input.alias ?? null })
      .where('repository_id', '=', repository.id)
      .where('name', 'in', part)
      .execute();
  }
  return fresh;
}

/** How many tags an image has, and when the newest was given. */
interface TagCount {
  readonly count: number;
  readonly newestAt: number;
}

const NO_TAGS: TagCount = { count: 0, newestAt: 0 };

/** Of the index by image alone: a push costs the same however many tags the image has. */
async function countTagsOf(tx: Tx, repositoryId: string, digest: string): Promise<TagCount> {
  const { count, newestAt } = await tx
    .selectFrom('tag')
    .select((q) => [q.fn.countAll<number | string>().as('count'), q.fn.max('tagged_at').as('newestAt')])
    .where('repository_id', '=', repositoryId)
    .where('image_digest', '=', digest)
    .executeTakeFirstOrThrow();
  return { count: Number(count), newestAt: newestAt ?? 0 };
}

/**
 * Tags of an image, oldest first.
 *
 * WHY the table twice: `k` finds the names in the index by image, `o` their times by key. Asked for both at once, SQLite
 * walks all tags of the repository instead.
 */
export async function selectTagsOf(
  tx: Tx,
  repositoryId: string,
  digest: string,
): Promise<{ name: string; tagged_at: number }[]> {
  return await tx
    .selectFrom('tag as k')
    .innerJoin('tag as o', (join) =>
      join.onRef('o.repository_id', '=', 'k.repository_id').onRef('o.name', '=', 'k.name'),
    )
    .select(['o.name', 'o.tagged_at'])
    .where('k.repository_id', '=', repositoryId)
    .where('k.image_digest', '=', digest)
    .orderBy('o.tagged_at')
    .orderBy('o.name')
    .execute();
}

async function writeTags(
  tx: Tx,
  input: PutImageRow,
  tags: readonly string[],
  present: TagCount,
): Promise<void> {
  const { repository } = input;
  const room = input.tagsPerImageMax - present.count;
  if (tags.length > room) {
    throw new Fault(
      'LimitExceededException',
      `Adding tag '${tags[Math.max(room, 0)]}' to an image in the repository with name '${repository.name}' in registry ` +
        `with id '${repository.account}' exceeds the maximum allowed number of tags per image which is ` +
        `'${input.tagsPerImageMax}'`,
    );
  }
  // WHY distinct times: an image lists its tags in the order they were given.
  let at = Math.max(input.now, present.newestAt + 1);
  for (const part of chunks(tags)) {
    await tx
      .insertInto('tag')
      .values(
        part.map((name) => ({
          repository_id: repository.id,
          name,
          image_digest: input.digest,
          tagged_at: at++,
          alias: input.alias ?? null,
        })),
      )
      .onConflict((conflict) =>
        conflict.columns(['repository_id', 'name']).doUpdateSet((q) => ({
          image_digest: q.ref('excluded.image_digest'),
          tagged_at: q.ref('excluded.tagged_at'),
          alias: q.ref('excluded.alias'),
        })),
      )
      .execute();
  }
}
