/** Previews of lifecycle policies (ecr-api.md §12.1): one for each repository, the newest, with what a run would do. */
import { lifecyclePolicyNotFound, lifecyclePreviewInProgress } from '../domain/faults.ts';
import type { LifecycleAction } from '../domain/lifecycle-evaluation.ts';
import type { RepositoryAddress } from '../domain/names.ts';
import { LIMITS } from '../lib/limits.ts';
import { enqueueJob } from './jobs.ts';
import { findLifecyclePolicy, requireRepositoryId } from './lifecycle.ts';
import { chunks } from './repository-blobs.ts';
import type { Schema } from './schema.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** Kind of the jobs that compute a preview; the key is the id of the repository. */
export const PREVIEW_JOB = 'lifecycle.preview';

/** The newest preview of a repository. Times in milliseconds since the epoch. */
export interface LifecyclePreview {
  readonly preview: string;
  readonly policy: string;
  readonly status: 'IN_PROGRESS' | 'COMPLETE' | 'EXPIRED' | 'FAILED';
  readonly startedAt: number;
  readonly completedAt: number | undefined;
  readonly expiring: number;
  readonly transitioning: number;
}

/** What it is at `now`: one that is never ended has failed, and results grow old. */
export async function findPreview(
  read: Reader,
  repositoryId: string,
  now: number,
): Promise<LifecyclePreview | undefined> {
  const row = await read
    .selectFrom('lifecycle_preview')
    .selectAll()
    .where('repository_id', '=', repositoryId)
    .executeTakeFirst();
  if (row === undefined) return undefined;
  const { status, started_at: startedAt, completed_at: completedAt } = row;
  const lost = status === 'IN_PROGRESS' && now > startedAt + LIMITS.previewRunMs;
  const old = status === 'COMPLETE' && now > (completedAt ?? 0) + LIMITS.previewKeepMs;
  return {
    preview: row.preview,
    policy: row.policy,
    status: lost ? 'FAILED' : old ? 'EXPIRED' : status,
    startedAt,
    completedAt: completedAt ?? undefined,
    expiring: row.expiring,
    transitioning: row.transitioning,
  };
}

/**
 * Begins a preview, of the repository's policy without a text. Returns the text.
 *
 * @throws Fault RepositoryNotFoundException, LifecyclePolicyNotFoundException, LifecyclePolicyPreviewInProgressException
 */
async function startPreview(
  tx: Tx,
  input: {
    readonly address: RepositoryAddress;
    readonly policy: string | undefined;
    /** unique to this preview */
    readonly preview: string;
    readonly now: number;
  },
): Promise<string> {
  const { address, preview, now } = input;
  const repositoryId = await requireRepositoryId(tx, address);
  const policy = input.policy ?? (await findLifecyclePolicy(tx, repositoryId))?.policy;
  if (policy === undefined) throw lifecyclePolicyNotFound(address.name, address.account);
  if ((await findPreview(tx, repositoryId, now))?.status === 'IN_PROGRESS') {
    throw lifecyclePreviewInProgress(address.name, address.account);
  }
  const row = {
    preview,
    policy,
    status: 'IN_PROGRESS',
    started_at: now,
    completed_at: null,
    expiring: 0,
    transitioning: 0,
  } as const;
  await tx
    .insertInto('lifecycle_preview')
    .values({ repository_id: repositoryId, ...row })
    .onConflict((conflict) => conflict.column('repository_id').doUpdateSet(row))
    .execute();
  await enqueueJob(tx, { kind: PREVIEW_JOB, key: repositoryId, runAt: now, payload: { preview } });
  return policy;
}

/** Removes up to `limit` results of previews. Returns how many. */
async function clearPreviews(
  tx: Tx,
  { repositoryId, limit }: { repositoryId: string; limit: number },
): Promise<number> {
  const rows = await tx
    .selectFrom('lifecycle_preview_image')
    .select(['preview', 'place'])
    .where('repository_id', '=', repositoryId)
    .limit(limit)
    .execute();
  for (const [preview, places] of Map.groupBy(rows, (row) => row.preview)) {
    for (const part of chunks(places.map(({ place }) => place))) {
      await tx
        .deleteFrom('lifecycle_preview_image')
        .where('repository_id', '=', repositoryId)
        .where('preview', '=', preview)
        .where('place', 'in', part)
        .execute();
    }
  }
  return rows.length;
}

interface PreviewName {
  readonly repositoryId: string;
  readonly preview: string;
}

/** Adds at most 500 results of a preview that is under way, from `place` on. False when it is not the newest any more. */
async function addPreviewImages(
  tx: Tx,
  input: PreviewName & { readonly place: number; readonly actions: readonly LifecycleAction[] },
): Promise<boolean> {
  const { repositoryId, preview, place, actions } = input;
  if (!(await isUnderWay(tx, input))) return false;
  if (actions.length === 0) return true;
  await tx
    .insertInto('lifecycle_preview_image')
    .values(
      actions.map((action, i) => ({
        repository_id: repositoryId,
        preview,
        place: place + i,
        digest: action.digest,
        tags: JSON.stringify(action.tags),
        pushed_at: action.pushedAt,
        action: action.action,
        rule_priority: action.rulePriority,
        storage_class: action.storageClass,
      })),
    )
    .execute();
  return true;
}

async function isUnderWay(tx: Tx, { repositoryId, preview }: PreviewName): Promise<boolean> {
  const row = await tx
    .selectFrom('lifecycle_preview')
    .select('status')
    .where('repository_id', '=', repositoryId)
    .where('preview', '=', preview)
    .executeTakeFirst();
  return row?.status === 'IN_PROGRESS';
}

/** Ends a preview. */
async function endPreview(
  tx: Tx,
  input: PreviewName & {
    readonly status: 'COMPLETE' | 'FAILED' | 'EXPIRED';
    readonly now: number;
    readonly expiring: number;
    readonly transitioning: number;
  },
): Promise<void> {
  const { status, now, expiring, transitioning } = input;
  await tx
    .updateTable('lifecycle_preview')
    .set({ status, completed_at: now, expiring, transitioning })
    .where('repository_id', '=', input.repositoryId)
    .where('preview', '=', input.preview)
    .execute();
}

export interface PreviewImage {
  readonly place: number;
  readonly digest: string;
  readonly tags: readonly string[];
  readonly pushedAt: number;
  readonly action: 'EXPIRE' | 'TRANSITION';
  readonly rulePriority: number;
  readonly storageClass: 'STANDARD' | 'ARCHIVE';
}

/** Results of a preview in the order of a run, after a place. */
export async function pagePreview(
  read: Reader,
  { repositoryId, preview }: PreviewName,
  options: {
    readonly after: number | undefined;
    readonly tagged: boolean | undefined;
    readonly limit: number;
  },
): Promise<{ images: PreviewImage[]; next: number | undefined }> {
  const { after, tagged, limit } = options;
  let query = previewImages(read, { repositoryId, preview })
    .orderBy('place')
    .limit(limit + 1);
  if (after !== undefined) query = query.where('place', '>', after);
  if (tagged !== undefined) query = query.where('tags', tagged ? '!=' : '=', '[]');
  const rows = await query.execute();
  const images = rows.slice(0, limit).map(previewImageOf);
  return { images, next: rows.length > limit ? images.at(-1)?.place : undefined };
}

/** Results of a preview about these digests. */
export async function previewOfImages(
  read: Reader,
  name: PreviewName,
  digests: readonly string[],
): Promise<PreviewImage[]> {
  if (digests.length === 0) return [];
  return (await previewImages(read, name).where('digest', 'in', digests).execute()).map(previewImageOf);
}

function previewImages(read: Reader, { repositoryId, preview }: PreviewName) {
  return read
    .selectFrom('lifecycle_preview_image')
    .select(['place', 'digest', 'tags', 'pushed_at', 'action', 'rule_priority', 'storage_class'])
    .where('repository_id', '=', repositoryId)
    .where('preview', '=', preview);
}

function previewImageOf(
  row: Omit<Schema['lifecycle_preview_image'], 'repository_id' | 'preview'>,
): PreviewImage {
  return {
    place: row.place,
    digest: row.digest,
    tags: JSON.parse(row.tags) as string[],
    pushedAt: row.pushed_at,
    action: row.action,
    rulePriority: row.rule_priority,
    storageClass: row.storage_class,
  };
}

export const previewTransactions = {
  'lifecycle.startPreview': startPreview,
  'lifecycle.addPreviewImages': addPreviewImages,
  'lifecycle.endPreview': endPreview,
  'lifecycle.clearPreviews': clearPreviews,
} as const satisfies Record<string, Transaction<never, unknown>>;
