/**
 * Pages of a repository's images for the ECR API, newest push first (then by digest), without manifest bytes. Every page
 * is a range of an index from a position on (keyset), so a late page costs what the first does, and images pushed
 * meanwhile do not move it.
 */
import { sql } from 'kysely';
import { hasStoredImages, type ImageStatus } from './storage-class.ts';
import type { Reader } from './transaction.ts';

/** An image without its manifest. Times in milliseconds since the epoch. */
export interface ImageSummary {
  readonly digest: string;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly subjectDigest: string | undefined;
  readonly size: number;
  readonly pushedAt: number;
  readonly lastPulledAt: number | undefined;
  readonly status: ImageStatus;
  /** of the last time */
  readonly archivedAt: number | undefined;
  readonly activatedAt: number | undefined;
}

export interface ImagePosition {
  readonly pushedAt: number;
  readonly digest: string;
}

export interface ImagePageOptions {
  /** the last image of the page before */
  readonly after: ImagePosition | undefined;
  /** only images with tags, or only those without */
  readonly tagged: boolean | undefined;
  /** only images of this status; of any without */
  readonly status?: ImageStatus | undefined;
  readonly limit: number;
}

/** Images a filtered page looks at before it ends short: filters that select little must not walk a whole repository. */
const SCAN_MAX = 5000;

const SUMMARY = [
  'i.digest',
  'i.media_type',
  'i.artifact_type',
  'i.subject_digest',
  'i.size',
  'i.pushed_at',
  'i.last_pulled_at',
  'i.status',
  'i.archived_at',
  'i.activated_at',
] as const;

interface SummaryRow {
  readonly digest: string;
  readonly media_type: string;
  readonly artifact_type: string | null;
  readonly subject_digest: string | null;
  readonly size: number;
  readonly pushed_at: number;
  readonly last_pulled_at: number | null;
  readonly status: 'ARCHIVED' | 'ACTIVATING' | null;
  readonly archived_at: number | null;
  readonly activated_at: number | null;
}

function summaryOf(row: SummaryRow): ImageSummary {
  return {
    digest: row.digest,
    mediaType: row.media_type,
    artifactType: row.artifact_type ?? undefined,
    subjectDigest: row.subject_digest ?? undefined,
    size: row.size,
    pushedAt: row.pushed_at,
    lastPulledAt: row.last_pulled_at ?? undefined,
    status: row.status ?? 'ACTIVE',
    archivedAt: row.archived_at ?? undefined,
    activatedAt: row.activated_at ?? undefined,
  };
}

/**
 * The images of a repository after a position, in the order of the listing. Those that are not active have an index of their
 * own; the active ones are found by walking over all.
 */
function imagesAfter(
  read: Reader,
  repositoryId: string,
  after: ImagePosition | undefined,
  status: ImageStatus | undefined,
) {
  let query = read
    .selectFrom('image as i')
    .where('i.repository_id', '=', repositoryId)
    .orderBy('i.pushed_at', 'desc')
    .orderBy('i.digest');
  if (status !== undefined && status !== 'ACTIVE') query = query.where('i.status', '=', status);
  if (after !== undefined) {
    query = query
      .where('i.pushed_at', '<=', after.pushedAt)
      .where((q) => q.or([q('i.pushed_at', '<', after.pushedAt), q('i.digest', '>', after.digest)]));
  }
  return query;
}

/** The page query. `until` ends the range, inclusive. Exported for the test of its plan. */
export function selectImages(
  read: Reader,
  repositoryId: string,
  { after, tagged, status, limit }: ImagePageOptions,
  until?: ImagePosition,
) {
  let query = imagesAfter(read, repositoryId, after, status).select(SUMMARY).limit(limit);
  if (status === 'ACTIVE') query = query.where('i.status', 'is', null);
  if (until !== undefined) {
    query = query
      .where('i.pushed_at', '>=', until.pushedAt)
      .where((q) => q.or([q('i.pushed_at', '>', until.pushedAt), q('i.digest', '<=', until.digest)]));
  }
  if (tagged !== undefined) {
    const exists = sql<boolean>`exists (select 1 from tag t where t.repository_id = i.repository_id and t.image_digest = i.digest)`;
    query = query.where(tagged ? exists : sql<boolean>`not ${exists}`);
  }
  return query;
}

/** A page of images; `next` is where the following page starts, `undefined` on the last one. It may be short. */
export async function pageImages(
  read: Reader,
  repositoryId: string,
  options: ImagePageOptions,
): Promise<{ images: ImageSummary[]; next: ImagePosition | undefined }> {
  const { after, tagged, status, limit } = options;
  const filters = tagged !== undefined || (await mustFilter(read, repositoryId, status));
  const until = filters ? await findScanEnd(read, repositoryId, after, status) : undefined;
  const query = selectImages(read, repositoryId, { ...options, limit: limit + 1 }, until);
  const rows = await query.execute();
  const images = rows.slice(0, limit).map(summaryOf);
  const last = images.at(-1);
  const next =
    rows.length > limit && last !== undefined ? { pushedAt: last.pushedAt, digest: last.digest } : until;
  return { images, next };
}

/** Whether a walk over the images of a repository passes over some because of their status. */
async function mustFilter(
  read: Reader,
  repositoryId: string,
  status: ImageStatus | undefined,
): Promise<boolean> {
  return status === 'ACTIVE' && (await hasStoredImages(read, repositoryId));
}

/** The last image a filtered page looks at; `undefined` when the repository ends before. */
async function findScanEnd(
  read: Reader,
  repositoryId: string,
  after: ImagePosition | undefined,
  status: ImageStatus | undefined,
): Promise<ImagePosition | undefined> {
  const row = await imagesAfter(read, repositoryId, after, status)
    .select(['i.pushed_at', 'i.digest'])
    .offset(SCAN_MAX)
    .limit(1)
    .executeTakeFirst();
  return row === undefined ? undefined : { pushedAt: row.pushed_at, digest: row.digest };
}

/** One entry of ListImages: a tag with its image, or an image without tags. */
export interface ImageEntry extends ImagePosition {
  readonly tag: string | undefined;
}

/** The page query of all entries: images newest first, the tags of each by name. Exported for the test of its plan. */
export function selectEntries(
  read: Reader,
  repositoryId: string,
  after: ImageEntry | undefined,
  limit: number,
  status?: ImageStatus,
  until?: ImagePosition,
) {
  let query = read
    .selectFrom('image as i')
    .leftJoin('tag as t', (join) =>
      join.onRef('t.repository_id', '=', 'i.repository_id').onRef('t.image_digest', '=', 'i.digest'),
    )
    .select(['i.pushed_at as pushedAt', 'i.digest', 't.name as tag'])
    .where('i.repository_id', '=', repositoryId)
    .orderBy('i.pushed_at', 'desc')
    .orderBy('i.digest')
    .orderBy('t.name')
    .limit(limit);
  if (status === 'ACTIVE') query = query.where('i.status', 'is', null);
  else if (status !== undefined) query = query.where('i.status', '=', status);
  if (until !== undefined) {
    query = query
      .where('i.pushed_at', '>=', until.pushedAt)
      .where((q) => q.or([q('i.pushed_at', '>', until.pushedAt), q('i.digest', '<=', until.digest)]));
  }
  if (after !== undefined) {
    const { pushedAt, digest, tag } = after;
    query = query
      .where('i.pushed_at', '<=', pushedAt)
      .where((q) =>
        q.or([
          q('i.pushed_at', '<', pushedAt),
          q('i.digest', '>', digest),
          ...(tag === undefined ? [] : [q.and([q('i.digest', '=', digest), q('t.name', '>', tag)])]),
        ]),
      );
  }
  return query;
}

/** A page of all entries. An image is never left out, whatever happens to its tags between two pages. It may be short. */
export async function pageEntries(
  read: Reader,
  repositoryId: string,
  after: ImageEntry | undefined,
  limit: number,
  status?: ImageStatus,
): Promise<{ entries: ImageEntry[]; next: ImageEntry | undefined }> {
  // WHY no filter that passes over nothing: the plan of the query stays that of a plain walk.
  const filters = status !== 'ACTIVE' || (await hasStoredImages(read, repositoryId));
  const until =
    status === 'ACTIVE' && filters ? await findScanEnd(read, repositoryId, after, status) : undefined;
  const query = selectEntries(read, repositoryId, after, limit + 1, filters ? status : undefined, until);
  const rows = await query.execute();
  const entries = rows.slice(0, limit).map((row) => ({ ...row, tag: row.tag ?? undefined }));
  const end = until === undefined ? undefined : { ...until, tag: undefined };
  return { entries, next: rows.length > limit ? entries.at(-1) : end };
}

/** The page query of tags alone, by name. Exported for the test of its plan. */
export function selectTags(read: Reader, repositoryId: string, last: string | undefined, limit: number) {
  let query = read
    .selectFrom('tag')
    .select(['name', 'image_digest as digest'])
    .where('repository_id', '=', repositoryId)
    .orderBy('name')
    .limit(limit);
  if (last !== undefined) query = query.where('name', '>', last);
  return query;
}

export interface TagEntry {
  readonly name: string;
  readonly digest: string;
}

/** A page of tags by name, of images of a status; `next` is where the following page starts. It may be short. */
export async function pageTags(
  read: Reader,
  repositoryId: string,
  last: string | undefined,
  limit: number,
  status: ImageStatus | undefined,
): Promise<{ tags: TagEntry[]; next: string | undefined }> {
  const stored = status === undefined ? undefined : await hasStoredImages(read, repositoryId);
  if (stored === false && status !== 'ACTIVE') return { tags: [], next: undefined };
  if (stored !== true) {
    const rows = await selectTags(read, repositoryId, last, limit + 1).execute();
    const tags = rows.slice(0, limit);
    return { tags, next: rows.length > limit ? tags.at(-1)?.name : undefined };
  }
  const rows = await read
    .selectFrom(selectTags(read, repositoryId, last, SCAN_MAX).as('t'))
    .innerJoin('image as i', 'i.digest', 't.digest')
    .select(['t.name', 't.digest'])
    .where('i.repository_id', '=', repositoryId)
    .where((q) =>
      status === undefined || status === 'ACTIVE' ? q('i.status', 'is', null) : q('i.status', '=', status),
    )
    .orderBy('t.name')
    .limit(limit + 1)
    .execute();
  const tags = rows.slice(0, limit);
  if (rows.length > limit) return { tags, next: tags.at(-1)?.name };
  const end = selectTags(read, repositoryId, last, 1).offset(SCAN_MAX - 1);
  return { tags, next: (await end.executeTakeFirst())?.name };
}

/** Tags of images in the order they were first set. Images without tags have no entry. */
export async function tagsOfImages(
  read: Reader,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, string[]>> {
  const tags = new Map<string, string[]>();
  if (digests.length === 0) return tags;
  const rows = await read
    .selectFrom('tag')
    .select(['image_digest', 'name'])
    .where('repository_id', '=', repositoryId)
    .where('image_digest', 'in', padded(digests))
    .orderBy('tagged_at')
    .orderBy('name')
    .execute();
  for (const row of rows) {
    const known = tags.get(row.image_digest);
    if (known === undefined) tags.set(row.image_digest, [row.name]);
    else known.push(row.name);
  }
  return tags;
}

/** Images by digest; unknown ones are absent. */
export async function imagesByDigest(
  read: Reader,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, ImageSummary>> {
  if (digests.length === 0) return new Map();
  const rows = await read
    .selectFrom('image as i')
    .select(SUMMARY)
    .where('i.repository_id', '=', repositoryId)
    .where('i.digest', 'in', padded(digests))
    .execute();
  return new Map(rows.map((row) => [row.digest, summaryOf(row)]));
}

/** The digests tags point at; unknown tags are absent. */
export async function digestsOfTags(
  read: Reader,
  repositoryId: string,
  names: readonly string[],
): Promise<Map<string, string>> {
  if (names.length === 0) return new Map();
  const rows = await read
    .selectFrom('tag')
    .select(['name', 'image_digest'])
    .where('repository_id', '=', repositoryId)
    .where('name', 'in', padded(names))
    .execute();
  return new Map(rows.map((row) => [row.name, row.image_digest]));
}

/**
 * The values with the last one repeated up to a power of two.
 *
 * WHY: lists of every length would be statements of every length, which the connection compiles and keeps one by one.
 */
function padded(values: readonly string[]): string[] {
  const length = 2 ** Math.ceil(Math.log2(values.length));
  return [...values, ...Array.from({ length: length - values.length }, () => values.at(-1) ?? '')];
}
