/**
 * What `berth fsck` asks of the database: pages of what must have bytes, who needs what, and rows that contradict each
 * other; and the few repairs that are safe. All reads are bounded; none needs a snapshot, since whoever finds something
 * wrong looks again before saying so.
 */
import { sql } from 'kysely';
import { isSetAside } from './damage.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** A stored copy that some digest is bound to. */
export interface StoredCopy {
  readonly storageKey: string;
  readonly digest: string;
  readonly size: number;
  /** found damaged before, and not offered to anybody since (damage.ts) */
  readonly setAside: boolean;
  /** digests of other algorithms that repositories know it by */
  readonly aliases: readonly string[];
}

/** Copies in the order of their storage keys, after `after`. */
export async function pageStoredCopies(reader: Reader, after: string, limit: number): Promise<StoredCopy[]> {
  const rows = await reader
    .selectFrom('blob')
    .select(['storage_key', 'digest', 'size', 'content_key'])
    .where('storage_key', '>', after)
    .orderBy('storage_key')
    .limit(limit)
    .execute();
  if (rows.length === 0) return [];
  const aliases = await reader
    .selectFrom('repository_blob')
    .innerJoin('blob_alias', (join) =>
      join
        .onRef('blob_alias.repository_id', '=', 'repository_blob.repository_id')
        .onRef('blob_alias.digest', '=', 'repository_blob.digest'),
    )
    .select(['repository_blob.storage_key', 'blob_alias.alias'])
    .distinct()
    .where(
      'repository_blob.storage_key',
      'in',
      rows.map((row) => row.storage_key),
    )
    .execute();
  return rows.map((row) => ({
    storageKey: row.storage_key,
    digest: row.digest,
    size: row.size,
    setAside: isSetAside(row.content_key),
    aliases: aliases.filter(({ storage_key: key }) => key === row.storage_key).map(({ alias }) => alias),
  }));
}

/** Whether a digest is (still) bound to this key. */
export async function isBound(reader: Reader, storageKey: string): Promise<boolean> {
  const row = await reader
    .selectFrom('blob')
    .select('digest')
    .where('storage_key', '=', storageKey)
    .executeTakeFirst();
  return row !== undefined;
}

export interface ImageAddress {
  readonly account: string;
  readonly region: string;
  readonly repository: string;
  readonly digest: string;
}

export interface NeedingImage extends ImageAddress {
  readonly tags: readonly string[];
}

interface ImageKey extends ImageAddress {
  readonly repository_id: string;
}

const IMAGE_KEY = ['r.account', 'r.region', 'r.name as repository', 'r.id as repository_id'] as const;
/** Tags named for one image. */
const TAGS_MAX = 100;

/** The images that need a stored copy, and the indexes that need those, up to `limit`. */
export async function findNeedingImages(
  reader: Reader,
  storageKey: string,
  limit: number,
): Promise<NeedingImage[]> {
  let found: ImageKey[] = await reader
    .selectFrom('repository_blob as b')
    .innerJoin('image_blob as i', (join) =>
      join.onRef('i.repository_id', '=', 'b.repository_id').onRef('i.blob_digest', '=', 'b.digest'),
    )
    .innerJoin('repository as r', 'r.id', 'b.repository_id')
    .select([...IMAGE_KEY, 'i.image_digest as digest'])
    .where('b.storage_key', '=', storageKey)
    .limit(limit)
    .execute();
  const all = new Map<string, ImageKey>();
  while (found.length > 0 && all.size < limit) {
    const fresh = found.filter((image) => !all.has(nameOf(image))).slice(0, limit - all.size);
    for (const image of fresh) all.set(nameOf(image), image);
    found = (await Promise.all(fresh.map((image) => indexesOf(reader, image, limit)))).flat();
  }
  return Promise.all(
    [...all.values()].map(async (image) => {
      const { account, region, repository, digest } = image;
      return { account, region, repository, digest, tags: await tagsOf(reader, image) };
    }),
  );
}

function nameOf({ repository_id: repositoryId, digest }: ImageKey): string {
  return `${repositoryId} ${digest}`;
}

async function indexesOf(reader: Reader, image: ImageKey, limit: number): Promise<ImageKey[]> {
  const rows = await reader
    .selectFrom('image_child')
    .select('parent_digest')
    .where('repository_id', '=', image.repository_id)
    .where('child_digest', '=', image.digest)
    .limit(limit)
    .execute();
  return rows.map(({ parent_digest: digest }) => ({ ...image, digest }));
}

async function tagsOf(reader: Reader, image: ImageKey): Promise<string[]> {
  const rows = await reader
    .selectFrom('tag')
    .select('name')
    .where('repository_id', '=', image.repository_id)
    .where('image_digest', '=', image.digest)
    .orderBy('name')
    .limit(TAGS_MAX)
    .execute();
  return rows.map(({ name }) => name);
}

export interface StoredImage extends ImageAddress {
  readonly id: string;
  readonly repositoryId: string;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly subjectDigest: string | undefined;
  readonly size: number;
  readonly manifest: Uint8Array;
  readonly aliases: readonly string[];
}

/** Images in the order of their rows, after the row `after`. Manifests may have 4 MiB each. */
export async function pageStoredImages(reader: Reader, after: string, limit: number): Promise<StoredImage[]> {
  const rows = await reader
    .selectFrom('image as i')
    .leftJoin('repository as r', 'r.id', 'i.repository_id')
    .select(['i.id', 'i.repository_id', 'i.digest', 'i.media_type', 'i.artifact_type', 'i.subject_digest'])
    .select(['i.size', 'i.manifest'])
    .select(['r.account', 'r.region', 'r.name as repository'])
    .where('i.id', '>', after)
    .orderBy('i.id')
    .limit(limit)
    .execute();
  return Promise.all(
    rows.map(async (row) => {
      const aliases = await reader
        .selectFrom('image_alias')
        .select('alias')
        .where('repository_id', '=', row.repository_id)
        .where('digest', '=', row.digest)
        .execute();
      return {
        id: row.id,
        repositoryId: row.repository_id,
        account: row.account ?? '?',
        region: row.region ?? '?',
        repository: row.repository ?? row.repository_id,
        digest: row.digest,
        mediaType: row.media_type,
        artifactType: row.artifact_type ?? undefined,
        subjectDigest: row.subject_digest ?? undefined,
        size: row.size,
        manifest: row.manifest,
        aliases: aliases.map(({ alias }) => alias),
      };
    }),
  );
}

/** What the rows say that an image needs: sha256 digests, and the aliases by which its manifest may name them. */
export async function referencesOfImage(
  reader: Reader,
  { repositoryId, digest }: Pick<StoredImage, 'repositoryId' | 'digest'>,
): Promise<Set<string>> {
  const { rows } = await sql<{ digest: string }>`
    select blob_digest as digest from image_blob where repository_id = ${repositoryId} and image_digest = ${digest}
    union all
    select a.alias from image_blob b
      join blob_alias a on a.repository_id = b.repository_id and a.digest = b.blob_digest
      where b.repository_id = ${repositoryId} and b.image_digest = ${digest}
    union all
    select child_digest from image_child where repository_id = ${repositoryId} and parent_digest = ${digest}
    union all
    select blob_digest from image_blob_absent where repository_id = ${repositoryId} and image_digest = ${digest}
    union all
    select child_digest from image_child_absent where repository_id = ${repositoryId} and parent_digest = ${digest}
    union all
    select a.alias from image_child c
      join image_alias a on a.repository_id = c.repository_id and a.digest = c.child_digest
      where c.repository_id = ${repositoryId} and c.parent_digest = ${digest}`.execute(reader);
  return new Set(rows.map((row) => row.digest));
}

/** Whether the image is (still) there. */
export async function imageExists(reader: Reader, id: string): Promise<boolean> {
  const row = await reader.selectFrom('image').select('id').where('id', '=', id).executeTakeFirst();
  return row !== undefined;
}

/** A row that refers to nothing, or says something else than the row it refers to. */
export interface Contradiction {
  readonly code:
    | 'tag-dangling'
    | 'reference-missing'
    | 'image-missing'
    | 'child-missing'
    | 'awaited-present'
    | 'copy-missing'
    | 'link-wrong'
    | 'alias-dangling';
  readonly repositoryId: string;
  readonly detail: string;
}

const CONTRADICTIONS: readonly (readonly [Contradiction['code'], string])[] = [
  [
    'tag-dangling',
    `select t.repository_id, 'tag ' || t.name || ' names ' || t.image_digest as detail from tag t where not exists
      (select 1 from image i where i.repository_id = t.repository_id and i.digest = t.image_digest)`,
  ],
  [
    'reference-missing',
    `select b.repository_id, b.image_digest || ' needs ' || b.blob_digest as detail from image_blob b where not exists
      (select 1 from repository_blob r where r.repository_id = b.repository_id and r.digest = b.blob_digest)`,
  ],
  [
    'image-missing',
    `select b.repository_id, b.image_digest || ' is said to need ' || b.blob_digest as detail from image_blob b where not exists
      (select 1 from image i where i.repository_id = b.repository_id and i.digest = b.image_digest)`,
  ],
  [
    'child-missing',
    `select c.repository_id, c.parent_digest || ' needs ' || c.child_digest as detail from image_child c where not exists
      (select 1 from image i where i.repository_id = c.repository_id and i.digest = c.child_digest) or not exists
      (select 1 from image i where i.repository_id = c.repository_id and i.digest = c.parent_digest)`,
  ],
  // That a sparse manifest misses something is in order; that it waits for what is here is not.
  [
    'awaited-present',
    `select c.repository_id, c.parent_digest || ' waits for ' || c.child_digest || ', which is here' as detail
      from image_child_absent c where exists
      (select 1 from image i where i.repository_id = c.repository_id and i.digest = c.child_digest) or exists
      (select 1 from image_alias a where a.repository_id = c.repository_id and a.alias = c.child_digest)
     union all
     select b.repository_id, b.image_digest || ' waits for ' || b.blob_digest || ', which is here' as detail
      from image_blob_absent b where exists
      (select 1 from repository_blob r where r.repository_id = b.repository_id and r.digest = b.blob_digest) or exists
      (select 1 from blob_alias a where a.repository_id = b.repository_id and a.alias = b.blob_digest)`,
  ],
  [
    'copy-missing',
    `select l.repository_id, l.digest || ' is bound to ' || l.storage_key as detail from repository_blob l where not exists
      (select 1 from blob b where b.storage_key = l.storage_key)`,
  ],
  [
    'link-wrong',
    `select l.repository_id, l.digest || ' is bound to ' || l.storage_key || ', which is ' || b.digest as detail
      from repository_blob l join blob b on b.storage_key = l.storage_key
      where b.digest <> l.digest or b.size <> l.size`,
  ],
  [
    'alias-dangling',
    `select a.repository_id, a.alias || ' stands for ' || a.digest as detail from blob_alias a where not exists
      (select 1 from repository_blob r where r.repository_id = a.repository_id and r.digest = a.digest)
     union all
     select a.repository_id, a.alias || ' stands for ' || a.digest as detail from image_alias a where not exists
      (select 1 from image i where i.repository_id = a.repository_id and i.digest = a.digest)`,
  ],
];

/** Up to `limit` contradictions of each kind, with the repository's name for its id where it has one. */
export async function findContradictions(reader: Reader, limit: number): Promise<Contradiction[]> {
  const found: Contradiction[] = [];
  for (const [code, text] of CONTRADICTIONS) {
    const { rows } = await sql<{
      repository_id: string;
      detail: string;
    }>`${sql.raw(text)} limit ${limit}`.execute(reader);
    for (const row of rows) found.push({ code, repositoryId: row.repository_id, detail: row.detail });
  }
  return found;
}

/** `account/region/name` of a repository; its id when there is none. */
export async function describeRepository(reader: Reader, id: string): Promise<string> {
  const row = await reader
    .selectFrom('repository')
    .select(['account', 'region', 'name'])
    .where('id', '=', id)
    .executeTakeFirst();
  return row === undefined ? `repository ${id}` : `${row.account}/${row.region}/${row.name}`;
}

/** What SQLite's own checks of its file find, up to `limit` lines each. Reads the whole file. */
export async function checkSqliteFile(
  reader: Reader,
  limit: number,
): Promise<{ integrity: string[]; foreignKeys: string[] }> {
  const integrity = await sql<{ integrity_check: string }>`pragma integrity_check(${sql.lit(limit)})`.execute(
    reader,
  );
  const broken = await sql<{ child: string; parent: string; count: number }>`
    select "table" as child, parent, count(*) as count from pragma_foreign_key_check
    group by 1, 2 limit ${limit}`.execute(reader);
  return {
    integrity: integrity.rows.map((row) => row.integrity_check).filter((text) => text !== 'ok'),
    foreignKeys: broken.rows.map(
      (row) => `${row.count} rows of ${row.child} refer to no row of ${row.parent}`,
    ),
  };
}

export interface PendingUpload {
  readonly id: string;
  readonly repositoryId: string;
  readonly storageKey: string;
  readonly createdAt: number;
}

/** Unfinished uploads in the order of their ids, after `after`. */
export async function pagePendingUploads(
  reader: Reader,
  after: string,
  limit: number,
): Promise<PendingUpload[]> {
  const rows = await reader
    .selectFrom('upload')
    .select(['id', 'repository_id', 'storage_key', 'created_at'])
    .where('completed_digest', 'is', null)
    .where('id', '>', after)
    .orderBy('id')
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    id: row.id,
    repositoryId: row.repository_id,
    storageKey: row.storage_key,
    createdAt: row.created_at,
  }));
}

/** Whether the upload is (still) there and unfinished. */
export async function isPending(reader: Reader, id: string): Promise<boolean> {
  const row = await reader
    .selectFrom('upload')
    .select('id')
    .where('id', '=', id)
    .where('completed_digest', 'is', null)
    .executeTakeFirst();
  return row !== undefined;
}

/** Copies that no repository has, so that nothing would ever collect them. */
const UNLINKED = sql<boolean>`not exists (select 1 from repository_blob r where r.storage_key = blob.storage_key)`;
/** Trash that a digest is bound to, which the collector would delete. */
const BOUND = sql<boolean>`exists (select 1 from blob b where b.storage_key = garbage_trash.storage_key)`;
/** Links that no image needs and nobody will look at again. */
const UNREVIEWED = sql<boolean>`not exists
  (select 1 from image_blob i where i.repository_id = repository_blob.repository_id and i.blob_digest = repository_blob.digest)
  and not exists (select 1 from garbage_review g
    where g.repository_id = repository_blob.repository_id and g.digest = repository_blob.digest)`;

/** What the collector misses, or must not touch; up to `limit` each. */
export async function findLeaks(
  reader: Reader,
  limit: number,
): Promise<{
  unlinked: string[];
  trashedButBound: string[];
  unreviewed: { repositoryId: string; digest: string }[];
}> {
  const unlinked = await reader
    .selectFrom('blob')
    .select('storage_key')
    .where(UNLINKED)
    .limit(limit)
    .execute();
  const bound = await reader
    .selectFrom('garbage_trash')
    .select('storage_key')
    .where(BOUND)
    .limit(limit)
    .execute();
  const unreviewed = await reader
    .selectFrom('repository_blob')
    .select(['repository_id', 'digest'])
    .where(UNREVIEWED)
    .limit(limit)
    .execute();
  return {
    unlinked: unlinked.map((row) => row.storage_key),
    trashedButBound: bound.map((row) => row.storage_key),
    unreviewed: unreviewed.map((row) => ({ repositoryId: row.repository_id, digest: row.digest })),
  };
}

/** How many rows there are of what has no bytes of its own to check. */
export async function countRows(reader: Reader): Promise<{ tags: number; trash: number }> {
  const { rows } = await sql<{ tags: number; trash: number }>`
    select (select count(*) from tag) as tags, (select count(*) from garbage_trash) as trash`.execute(reader);
  return rows[0] ?? { tags: 0, trash: 0 };
}

/** Moves a copy that no repository has to the trash. False when one has it (again). */
async function trashUnlinked(
  tx: Tx,
  { storageKey, deleteAfter }: { readonly storageKey: string; readonly deleteAfter: number },
): Promise<boolean> {
  const removed = await tx
    .deleteFrom('blob')
    .where('storage_key', '=', storageKey)
    .where(UNLINKED)
    .returning('storage_key')
    .executeTakeFirst();
  if (removed === undefined) return false;
  await tx
    .insertInto('garbage_trash')
    .values({ storage_key: storageKey, delete_after: deleteAfter })
    .onConflict((conflict) => conflict.column('storage_key').doNothing())
    .execute();
  return true;
}

/** Takes what a digest is bound to out of the trash. */
async function untrashBound(tx: Tx, { storageKey }: { readonly storageKey: string }): Promise<boolean> {
  const removed = await tx
    .deleteFrom('garbage_trash')
    .where('storage_key', '=', storageKey)
    .where(BOUND)
    .returning('storage_key')
    .executeTakeFirst();
  return removed !== undefined;
}

/** Has the collector look at a link at `reviewAfter`. */
async function reviewLink(
  tx: Tx,
  input: { readonly repositoryId: string; readonly digest: string; readonly reviewAfter: number },
): Promise<boolean> {
  await tx
    .insertInto('garbage_review')
    .values({ repository_id: input.repositoryId, digest: input.digest, review_after: input.reviewAfter })
    .onConflict((conflict) => conflict.columns(['repository_id', 'digest']).doNothing())
    .execute();
  return true;
}

/** Has the row of an image say what its manifest says; `size` absent: as it is. */
async function describeImage(
  tx: Tx,
  input: {
    readonly id: string;
    readonly artifactType: string | undefined;
    readonly subjectDigest: string | undefined;
    readonly size: number | undefined;
  },
): Promise<boolean> {
  const updated = await tx
    .updateTable('image')
    .set({
      artifact_type: input.artifactType ?? null,
      subject_digest: input.subjectDigest ?? null,
      ...(input.size !== undefined && { size: input.size }),
    })
    .where('id', '=', input.id)
    .executeTakeFirst();
  return updated.numUpdatedRows > 0n;
}

export const checkTransactions = {
  'check.trashUnlinked': trashUnlinked,
  'check.untrashBound': untrashBound,
  'check.reviewLink': reviewLink,
  'check.describeImage': describeImage,
} as const satisfies Record<string, Transaction<never, unknown>>;
