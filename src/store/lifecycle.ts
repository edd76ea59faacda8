/**
 * Lifecycle policies and their runs (ecr-api.md §12). A run evaluates outside of transactions and acts inside
 * of them, each of which looks again at what it is about to do.
 */
import { lifecyclePolicyNotFound, repositoryNotFound } from '../domain/faults.ts';
import type { ImageIdFailure } from '../domain/image-ids.ts';
import type { LifecycleImage } from '../domain/lifecycle-images.ts';
import type { RepositoryAddress } from '../domain/names.ts';
import { resolveAliases } from './aliases.ts';
import { deleteImages } from './images.ts';
import { enqueueJob } from './jobs.ts';
import { type ImagePosition, pageImages, tagsOfImages } from './listings.ts';
import { chunks } from './repository-blobs.ts';
import type { Schema } from './schema.ts';
import { archiveImage, findPlace, type SubjectName } from './storage-class.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

/** Kind of the jobs that run the policy of a repository; the key is its id. */
export const LIFECYCLE_JOB = 'lifecycle';

export interface StoredLifecyclePolicy {
  readonly policy: string;
  /** epoch milliseconds; `undefined` before the first run */
  readonly evaluatedAt: number | undefined;
}

export async function findLifecyclePolicy(
  read: Reader,
  repositoryId: string,
): Promise<StoredLifecyclePolicy | undefined> {
  const row = await read
    .selectFrom('lifecycle_policy')
    .select(['policy', 'evaluated_at'])
    .where('repository_id', '=', repositoryId)
    .executeTakeFirst();
  return row && { policy: row.policy, evaluatedAt: row.evaluated_at ?? undefined };
}

/** @throws Fault RepositoryNotFoundException */
export async function requireRepositoryId(
  tx: Tx,
  { account, region, name }: RepositoryAddress,
): Promise<string> {
  const row = await tx
    .selectFrom('repository')
    .select('id')
    .where('account', '=', account)
    .where('region', '=', region)
    .where('name', '=', name)
    .executeTakeFirst();
  if (row === undefined) throw repositoryNotFound(name, account);
  return row.id;
}

/** Replaces the policy, which then waits for its first run, and asks for that. @throws Fault RepositoryNotFoundException */
async function putPolicy(
  tx: Tx,
  { address, policy, now }: { address: RepositoryAddress; policy: string; now: number },
): Promise<void> {
  const repositoryId = await requireRepositoryId(tx, address);
  await setLifecyclePolicy(tx, repositoryId, policy, now);
}

/** Gives a repository a policy, inside any transaction. */
export async function setLifecyclePolicy(
  tx: Tx,
  repositoryId: string,
  policy: string,
  now: number,
): Promise<void> {
  await tx
    .insertInto('lifecycle_policy')
    .values({ repository_id: repositoryId, policy, evaluated_at: null })
    .onConflict((conflict) => conflict.column('repository_id').doUpdateSet({ policy, evaluated_at: null }))
    .execute();
  await enqueueJob(tx, { kind: LIFECYCLE_JOB, key: repositoryId, runAt: now });
}

/** Returns what was removed. @throws Fault RepositoryNotFoundException, LifecyclePolicyNotFoundException */
async function deletePolicy(
  tx: Tx,
  { address }: { address: RepositoryAddress },
): Promise<StoredLifecyclePolicy> {
  const repositoryId = await requireRepositoryId(tx, address);
  const stored = await findLifecyclePolicy(tx, repositoryId);
  if (stored === undefined) throw lifecyclePolicyNotFound(address.name, address.account);
  await tx.deleteFrom('lifecycle_policy').where('repository_id', '=', repositoryId).execute();
  return stored;
}

/** Notes that a run of this policy ended. */
async function finishRun(
  tx: Tx,
  { repositoryId, policy, now }: { repositoryId: string; policy: string; now: number },
): Promise<void> {
  await tx
    .updateTable('lifecycle_policy')
    .set({ evaluated_at: now })
    .where('repository_id', '=', repositoryId)
    .where('policy', '=', policy)
    .execute();
}

/** Images of a repository as a run sees them, youngest push first; `next` is `undefined` on the last page. */
export async function pageLifecycleImages(
  read: Reader,
  repositoryId: string,
  after: ImagePosition | undefined,
  limit: number,
): Promise<{ images: LifecycleImage[]; next: ImagePosition | undefined }> {
  const page = await pageImages(read, repositoryId, { after, tagged: undefined, limit });
  const digests = page.images.map(({ digest }) => digest);
  const tags = await tagsOfImages(read, repositoryId, digests);
  const children = await childrenOf(read, repositoryId, digests);
  const named = new Set(page.images.flatMap(({ subjectDigest }) => subjectDigest ?? []));
  const subjects = await resolveAliases(read, 'image_alias', repositoryId, [...named]);
  const images = page.images.map((image): LifecycleImage => ({
    digest: image.digest,
    tags: tags.get(image.digest) ?? [],
    pushedAt: image.pushedAt,
    lastPulledAt: image.lastPulledAt,
    lastArchivedAt: image.archivedAt,
    lastActivatedAt: image.activatedAt,
    status: image.status,
    subjectDigest: subjects.get(image.subjectDigest ?? '') ?? image.subjectDigest,
    children: children.get(image.digest),
  }));
  return { images, next: page.next };
}

async function childrenOf(
  read: Reader,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, string[]>> {
  const children = new Map<string, string[]>();
  for (const part of chunks(digests)) {
    const rows = await read
      .selectFrom('image_child')
      .select(['parent_digest', 'child_digest'])
      .where('repository_id', '=', repositoryId)
      .where('parent_digest', 'in', part)
      .execute();
    for (const { parent_digest: parent, child_digest: child } of rows) {
      const known = children.get(parent);
      if (known === undefined) children.set(parent, [child]);
      else known.push(child);
    }
  }
  return children;
}

/** What is to happen to an image, and what it was when that was decided. */
export interface PlannedAction {
  readonly digest: string;
  readonly action: 'EXPIRE' | 'TRANSITION';
  readonly status: LifecycleImage['status'];
  readonly pushedAt: number;
}

/** An image that a rule acts on, with the referrers that go before it. */
export interface PlannedGroup extends PlannedAction {
  readonly tags: readonly string[];
  readonly archivedAt: number | undefined;
  readonly activatedAt: number | undefined;
  /** set when the rule counts from the last pull: no pull may have come since */
  readonly pulls: { readonly lastAt: number | undefined } | undefined;
  readonly referrers: readonly PlannedAction[];
  /** false: only the referrers are done now, the image itself in a later transaction */
  readonly ends: boolean;
}

export interface ApplyLifecycleInput {
  readonly repositoryId: string;
  /** the text that was evaluated */
  readonly policy: string;
  readonly groups: readonly PlannedGroup[];
  readonly now: number;
}

export interface AppliedLifecycle {
  /** false: the policy is another one now, or none, and nothing was done */
  readonly current: boolean;
  readonly expired: number;
  readonly archived: number;
  /** images left alone because something about them changed since */
  readonly changed: number;
  /** digests of those expired and archived */
  readonly acted: readonly string[];
  /** those of the changed that could not be deleted, and why */
  readonly failures: readonly ImageIdFailure[];
}

/**
 * Does what a run decided, for some of its images.
 *
 * INVARIANT: an image is acted on only if it is what it was at the decision: same push, status and tags, no pull where pulls
 * count, and no index that needs it; otherwise its referrers are left alone, too.
 */
async function applyLifecycle(tx: Tx, input: ApplyLifecycleInput): Promise<AppliedLifecycle> {
  const { repositoryId, groups, now } = input;
  const place = await findPlace(tx, repositoryId);
  const stored = await findLifecyclePolicy(tx, repositoryId);
  if (place === undefined || stored?.policy !== input.policy) {
    return { current: false, expired: 0, archived: 0, changed: 0, acted: [], failures: [] };
  }
  const unchanged = await findUnchanged(tx, repositoryId, groups);
  const planned = unchanged.flatMap((group) => (group.ends ? [...group.referrers, group] : group.referrers));
  const archived: string[] = [];
  let changed = groups.filter(({ ends }) => ends).length - unchanged.filter(({ ends }) => ends).length;
  const present = await findRows(
    tx,
    repositoryId,
    planned.map(({ digest }) => digest),
  );
  const expiring: string[] = [];
  for (const action of planned) {
    const row = present.get(action.digest);
    if (row === undefined || !isSameImage(row, action)) changed++;
    else if (action.action === 'EXPIRE') expiring.push(action.digest);
    else if (await archiveImage(tx, place, action.digest, now)) archived.push(action.digest);
    else changed++;
  }
  const { failures } = await deleteImages(tx, {
    repository: place,
    ids: expiring.map((imageDigest) => ({ imageDigest })),
    now,
  });
  const failed = new Set(failures.map(({ imageId }) => imageId.imageDigest));
  return {
    current: true,
    expired: expiring.length - failures.length,
    archived: archived.length,
    changed: changed + failures.length,
    acted: [...archived, ...expiring.filter((digest) => !failed.has(digest))],
    failures,
  };
}

type ImageRow = Pick<
  Schema['image'],
  'digest' | 'pushed_at' | 'last_pulled_at' | 'status' | 'archived_at' | 'activated_at'
>;

async function findRows(
  tx: Tx,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, ImageRow>> {
  const found = new Map<string, ImageRow>();
  for (const part of chunks(digests)) {
    const rows = await tx
      .selectFrom('image')
      .select(['digest', 'pushed_at', 'last_pulled_at', 'status', 'archived_at', 'activated_at'])
      .where('repository_id', '=', repositoryId)
      .where('digest', 'in', part)
      .execute();
    for (const row of rows) found.set(row.digest, row);
  }
  return found;
}

/** WHY the time: an image that was deleted and pushed again is another one. Push times of a repository are distinct. */
function isSameImage(row: ImageRow, planned: PlannedAction): boolean {
  return row.pushed_at === planned.pushedAt && (row.status ?? 'ACTIVE') === planned.status;
}

/** The groups whose image is as it was. */
async function findUnchanged(
  tx: Tx,
  repositoryId: string,
  groups: readonly PlannedGroup[],
): Promise<PlannedGroup[]> {
  const digests = groups.map(({ digest }) => digest);
  const rows = await findRows(tx, repositoryId, digests);
  const tags = await tagsOfImages(tx, repositoryId, digests);
  const needed = await neededByIndex(tx, repositoryId, digests);
  return groups.filter((group) => {
    const row = rows.get(group.digest);
    if (row === undefined || !isSameImage(row, group)) return false;
    if ((row.archived_at ?? undefined) !== group.archivedAt) return false;
    if ((row.activated_at ?? undefined) !== group.activatedAt) return false;
    if (group.pulls !== undefined && (row.last_pulled_at ?? undefined) !== group.pulls.lastAt) return false;
    const now = tags.get(group.digest) ?? [];
    if (now.length !== group.tags.length || !group.tags.every((tag) => now.includes(tag))) return false;
    const index = needed.get(group.digest);
    return group.action === 'EXPIRE' ? index === undefined : index !== 'active';
  });
}

/** Which of the images are members of an index, and whether one of those is active. */
async function neededByIndex(
  tx: Tx,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, 'active' | 'archived'>> {
  const needed = new Map<string, 'active' | 'archived'>();
  for (const part of chunks(digests)) {
    const rows = await tx
      .selectFrom('image_child as c')
      .innerJoin('image as i', (join) =>
        join.onRef('i.repository_id', '=', 'c.repository_id').onRef('i.digest', '=', 'c.parent_digest'),
      )
      .select(['c.child_digest', 'i.status'])
      .where('c.repository_id', '=', repositoryId)
      .where('c.child_digest', 'in', part)
      .execute();
    for (const { child_digest: child, status } of rows) {
      if (status !== 'ARCHIVED') needed.set(child, 'active');
      else if (!needed.has(child)) needed.set(child, 'archived');
    }
  }
  return needed;
}

export interface FollowedSubject {
  /** referrers that an index needs: they wait */
  readonly blocked: number;
  /** where to go on; `undefined` at the end */
  readonly next: string | undefined;
}

/**
 * Deletes the referrers of a subject that is gone, or archives those of one that is archived, at most `limit` after the digest
 * `after` (ecr-api.md §9.3). Does nothing when the subject is there and active, pushed again perhaps.
 */
async function followSubject(
  tx: Tx,
  input: SubjectName & { readonly now: number; readonly after: string; readonly limit: number },
): Promise<FollowedSubject> {
  const { repositoryId, digest, now } = input;
  const nothing = { blocked: 0, next: undefined };
  const place = await findPlace(tx, repositoryId);
  if (place === undefined) return nothing;
  const subject = (await findRows(tx, repositoryId, [digest])).get(digest);
  if (subject !== undefined && subject.status !== 'ARCHIVED') return nothing;
  const rows = await tx
    .selectFrom('image')
    .select(['digest', 'status'])
    .where('repository_id', '=', repositoryId)
    .where('subject_digest', '=', input.name)
    .where('digest', '>', input.after)
    .orderBy('digest')
    .limit(input.limit)
    .execute();
  let blocked = 0;
  if (subject === undefined) {
    const ids = rows.map((row) => ({ imageDigest: row.digest }));
    blocked = (await deleteImages(tx, { repository: place, ids, now })).failures.length;
  } else {
    for (const row of rows)
      if (row.status === null && !(await archiveImage(tx, place, row.digest, now))) blocked++;
  }
  return { blocked, next: rows.length < input.limit ? undefined : rows.at(-1)?.digest };
}

export const lifecycleTransactions = {
  'lifecycle.put': putPolicy,
  'lifecycle.delete': deletePolicy,
  'lifecycle.apply': applyLifecycle,
  'lifecycle.finish': finishRun,
  'lifecycle.followSubject': followSubject,
} as const satisfies Record<string, Transaction<never, unknown>>;
