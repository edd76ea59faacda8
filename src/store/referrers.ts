/** Pages of the images that refer to a subject, oldest push first, each a range of an index. */
import { sql } from 'kysely';
import type { Schema } from './schema.ts';
import type { Reader } from './transaction.ts';

/** An image that refers to another, without its manifest. */
export interface ReferrerSummary {
  readonly id: string;
  readonly digest: string;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  /** bytes of the manifest */
  readonly size: number;
  readonly pushedAt: number;
  readonly status: 'ACTIVE' | NonNullable<Schema['image']['status']>;
}

export interface ReferrerPageOptions {
  readonly subject: string;
  /** empty: all */
  readonly artifactTypes: readonly string[];
  /** absent: any */
  readonly status: ReferrerSummary['status'] | undefined;
  /** the push time of the last referrer of the page before */
  readonly after: number | undefined;
  readonly limit: number;
}

/** The page query. Exported for the test of its plan. */
export function selectReferrers(
  read: Reader,
  repositoryId: string,
  { subject, artifactTypes, status, after, limit }: ReferrerPageOptions,
) {
  let query = read
    .selectFrom('image')
    .select(['id', 'digest', 'media_type', 'artifact_type', 'pushed_at', 'status'])
    .select(sql<number | string>`length(manifest)`.as('bytes'))
    .where('repository_id', '=', repositoryId)
    .where('subject_digest', '=', subject)
    // INVARIANT: push times of a repository are distinct, so they alone say where a page ends.
    .orderBy('pushed_at')
    .limit(limit);
  if (artifactTypes.length > 0) query = query.where('artifact_type', 'in', artifactTypes);
  if (after !== undefined) query = query.where('pushed_at', '>', after);
  if (status === 'ACTIVE') query = query.where('status', 'is', null);
  else if (status !== undefined) query = query.where('status', '=', status);
  return query;
}

export async function pageReferrers(
  read: Reader,
  repositoryId: string,
  options: ReferrerPageOptions,
): Promise<ReferrerSummary[]> {
  const rows = await selectReferrers(read, repositoryId, options).execute();
  return rows.map((row) => ({
    id: row.id,
    digest: row.digest,
    mediaType: row.media_type,
    artifactType: row.artifact_type ?? undefined,
    size: Number(row.bytes),
    pushedAt: row.pushed_at,
    status: row.status ?? 'ACTIVE',
  }));
}

/** The manifest of an image by the id of its row; `undefined` when it is gone. */
export async function findManifest(read: Reader, id: string): Promise<Uint8Array | undefined> {
  const row = await read.selectFrom('image').select('manifest').where('id', '=', id).executeTakeFirst();
  return row?.manifest;
}
