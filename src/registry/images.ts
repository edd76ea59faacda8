/** Images and tags: what both doors do with manifests. */
import { createHash, randomBytes } from 'node:crypto';
import { Fault } from '../domain/faults.ts';
import {
  distinctImageIds,
  imageIdFailure,
  imageNotFoundFailure,
  tagDigestFailure,
} from '../domain/image-ids.ts';
import { readManifest } from '../domain/manifests.ts';
import type { Digest } from '../domain/names.ts';
import { LIMITS } from '../lib/limits.ts';
import { type ImageCore, ImageCache } from './image-cache.ts';
import { Pulls } from './pulls.ts';
import { Quotas } from './quotas.ts';
import type {
  FoundImage,
  Image,
  ImageFailure,
  ImageId,
  Images,
  PutImageInput,
  PutImageResult,
  Referrer,
  ReferrersOptions,
  RegistryContext,
  Repository,
} from './registry.ts';
import { retryBrokenReference } from './retry.ts';
import { pageTags, prepareResolve, type Store } from '../store/store.ts';

const CACHE_BYTES_MAX = 32 * 1_048_576;
/** Rows read at once for referrers: a few manifests fit in memory at any size. */
const REFERRERS_PAGE = 16;

export interface FlushableImages extends Images {
  /** Writes batched pull times. */
  flush(): Promise<void>;
}

export function createImages(context: RegistryContext): FlushableImages {
  const { store, clock } = context;
  const lookUp = createLookUp(store);
  const tagsOf = prepareTags(store);
  const resolve = prepareResolve(store, 'image_alias');
  const pulls = new Pulls(store, context.pullEvents);
  const quotas = new Quotas(context.imagesPerRepositoryMax);

  const read = async (
    repository: Repository,
    reference: ImageId,
    pull: boolean,
  ): Promise<FoundImage | undefined> => {
    const image = await lookUp(repository.id, reference);
    if (image === undefined) return undefined;
    const lastPulledAt = pulls.newest(repository.id, image.digest, image.lastPulledAt);
    if (pull) pulls.record(repository.id, image.digest, clock());
    return { ...image, lastPulledAt };
  };

  return {
    put: (repository, input) => putImage(context, quotas, repository, input),
    resolve: async (repository, digest) => (await resolve(repository.id, digest)) as Digest | undefined,
    find: async (repository, reference, { pull }) => {
      if (!reference.includes(':')) return await read(repository, { imageTag: reference }, pull);
      const imageDigest = await resolve(repository.id, reference);
      const image = imageDigest === undefined ? undefined : await read(repository, { imageDigest }, pull);
      return image && { ...image, namedDigest: reference as Digest };
    },
    batchGet: (repository, ids, { pull } = { pull: true }) =>
      batchGet(
        (id) => read(repository, id, pull),
        (digest) => tagsOf(repository.id, digest),
        ids,
      ),
    batchDelete: (repository, ids, condition) =>
      retryBrokenReference(() =>
        store.transact('image.delete', { repository: nameOf(repository), ids, condition, now: clock() }),
      ),
    listTags: async (repository, last, limit) => {
      const names: string[] = [];
      let after = last;
      do {
        const page = await pageTags(store.read, repository.id, after, limit - names.length, 'ACTIVE');
        names.push(...page.tags.map(({ name }) => name));
        after = page.next;
      } while (after !== undefined && names.length < limit);
      return names;
    },
    referrers: (repository, subject, options) => listReferrers(store, repository, subject, options),
    flush: () => pulls.flush(),
  };
}

function nameOf(repository: Repository) {
  return { id: repository.id, name: repository.name, account: repository.account };
}

async function putImage(
  { store, clock, imagesPerRepositoryMax, tagsPerImageMax, sparseManifests }: RegistryContext,
  quotas: Quotas,
  repository: Repository,
  input: PutImageInput,
): Promise<PutImageResult> {
  const reading = readManifest(input.manifest, input.mediaType, { detect: input.existing === 'accept' });
  const digest = digestOf('sha256', input.manifest);
  let alias: string | undefined;
  if (input.digest !== undefined && input.digest !== digest) {
    if (input.existing === 'accept' && input.digest.startsWith('sha512:')) {
      alias = digestOf('sha512', input.manifest);
    }
    if (input.digest !== alias) throw wrongDigest(repository, input);
  }
  const outcome = await retryBrokenReference(() =>
    store.transact('image.put', {
      repository: nameOf(repository),
      digest,
      alias,
      ...reading,
      // WHY a copy: what crosses to the writer thread takes the whole memory behind a view along.
      manifest: new Uint8Array(input.manifest),
      tags: input.tags,
      existing: input.existing,
      condition: input.condition,
      sparseManifests,
      now: clock(),
      nonce: randomBytes(10).toString('hex'),
      tagsPerImageMax,
      imagesMax: quotas.mustCount(repository.id) ? imagesPerRepositoryMax : undefined,
    }),
  );
  if (outcome.added) quotas.added(repository.id, outcome.images);
  return {
    digest,
    mediaType: outcome.mediaType,
    subjectDigest: outcome.subjectDigest,
  };
}

function digestOf(algorithm: 'sha256' | 'sha512', bytes: Uint8Array): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` as Digest;
}

function wrongDigest(repository: Repository, input: PutImageInput): Fault {
  return new Fault(
    'ImageDigestDoesNotMatchException',
    `The image with digest '${input.digest}' in repository '${repository.name}' and registry ID '${repository.account}' ` +
      'does not match the image digest that Amazon ECR has calculated.',
  );
}

interface HeadRow {
  readonly id: string;
  readonly last_pulled_at: number | null;
  /** of the tag that was asked for */
  readonly alias: string | null;
}

interface ImageRow {
  readonly digest: string;
  readonly media_type: string;
  readonly artifact_type: string | null;
  readonly subject_digest: string | null;
  readonly manifest: Uint8Array;
  readonly size: number;
  readonly pushed_at: number;
}

/**
 * The hottest look-up: one small query says whether the image exists now, and the rest, which never changes, comes from the
 * cache. It costs the same however many tags the image has.
 */
function createLookUp(store: Store): (repositoryId: string, id: ImageId) => Promise<FoundImage | undefined> {
  const byTag = store.prepare<HeadRow>(
    `select i.id, i.last_pulled_at, t.alias
     from tag t join image i on i.repository_id = t.repository_id and i.digest = t.image_digest
     where t.repository_id = ? and t.name = ? and i.status is null`,
    'keep',
  );
  const byDigest = store.prepare<HeadRow>(
    `select id, last_pulled_at, null as alias from image
     where repository_id = ? and digest = ? and status is null`,
    'keep',
  );
  const byId = store.prepare<ImageRow>(
    `select digest, media_type, artifact_type, subject_digest, size, pushed_at, manifest from image where id = ?`,
  );
  const cache = new ImageCache(CACHE_BYTES_MAX);
  return async (repositoryId, { imageDigest, imageTag }) => {
    const [head] =
      imageTag === undefined
        ? await byDigest(repositoryId, imageDigest ?? '')
        : await byTag(repositoryId, imageTag);
    if (head === undefined) return undefined;
    let core = cache.get(head.id);
    if (core === undefined) {
      const [row] = await byId(head.id);
      // Deleted between the two queries.
      if (row === undefined) return undefined;
      core = coreOf(row);
      cache.set(head.id, core);
    }
    const namedDigest = (head.alias as Digest | null) ?? core.digest;
    return { ...core, lastPulledAt: timeOf(head.last_pulled_at), namedDigest };
  };
}

/**
 * The names an image has, oldest first.
 *
 * WHY `k` and `o` are one table twice: `k` finds the names in the index by image, `o` their times by key. Asked for both
 * at once, SQLite walks all tags of the repository instead.
 */
function prepareTags(store: Store): (repositoryId: string, digest: Digest) => Promise<string[]> {
  const query = store.prepare<{ name: string }>(
    `select o.name from tag k join tag o on o.repository_id = k.repository_id and o.name = k.name
     where k.repository_id = ? and k.image_digest = ? order by o.tagged_at, o.name`,
  );
  return async (repositoryId, digest) => (await query(repositoryId, digest)).map(({ name }) => name);
}

/** @throws Error when the manifest is not the one of its digest: the disk has changed it, and it must not be served */
function coreOf(row: ImageRow): ImageCore {
  if (digestOf('sha256', row.manifest) !== row.digest)
    throw new Error(`the manifest ${row.digest} is damaged in the database`);
  return {
    digest: row.digest as Digest,
    mediaType: row.media_type,
    artifactType: row.artifact_type ?? undefined,
    subjectDigest: row.subject_digest ?? undefined,
    // WHY a copy: drivers hand out views of larger buffers, which the cache would keep alive.
    manifest: new Uint8Array(row.manifest),
    size: row.size,
    pushedAt: row.pushed_at,
  };
}

function timeOf(value: number | null): number | undefined {
  return value === null ? undefined : value;
}

/**
 * An image once per tag when asked by digest, once when asked by tag; what comes out twice collapses.
 *
 * @throws Fault LimitExceededException when the answer would not fit in memory: an image can have a thousand tags, and each entry
 *   has the manifest
 */
async function batchGet(
  read: (id: ImageId) => Promise<Image | undefined>,
  tagsOf: (digest: Digest) => Promise<readonly string[]>,
  ids: readonly ImageId[],
): Promise<{ images: { imageId: ImageId; image: Image }[]; failures: ImageFailure[] }> {
  const images = new Map<string, { imageId: ImageId; image: Image }>();
  const failures: ImageFailure[] = [];
  let bytes = 0;
  for (const id of distinctImageIds(ids)) {
    const image = imageIdFailure(id) === undefined ? await read(id) : undefined;
    if (image === undefined) {
      failures.push(imageIdFailure(id) ?? imageNotFoundFailure(id));
    } else if (id.imageTag !== undefined && id.imageDigest !== undefined && id.imageDigest !== image.digest) {
      failures.push(tagDigestFailure(id));
    } else {
      const tags = id.imageTag === undefined ? await tagsOf(image.digest) : [id.imageTag];
      for (const imageId of idsOf(image, tags)) {
        const key = `${imageId.imageDigest} ${imageId.imageTag ?? ''}`;
        if (images.has(key)) continue;
        images.set(key, { imageId, image });
        if ((bytes += image.manifest.byteLength) > LIMITS.manifestsAnswerBytesMax) throw tooManyManifests();
      }
    }
  }
  return { images: [...images.values()], failures };
}

function tooManyManifests(): Fault {
  return new Fault(
    'LimitExceededException',
    'The manifests of the requested images, one for each tag, exceed the maximum allowed size of an answer which is ' +
      `'${LIMITS.manifestsAnswerBytesMax}' bytes. Request fewer images at once, or name them by tag.`,
  );
}

function idsOf({ digest }: Image, tags: readonly string[]): ImageId[] {
  if (tags.length === 0) return [{ imageDigest: digest }];
  return tags.map((imageTag) => ({ imageDigest: digest, imageTag }));
}

async function* listReferrers(
  store: Store,
  repository: Repository,
  subject: Digest,
  { artifactTypes, after }: ReferrersOptions,
): AsyncGenerator<Referrer> {
  const algorithm = subject.slice(0, subject.indexOf(':') + 1);
  let last = after;
  for (;;) {
    let query = store.read
      .selectFrom('image as i')
      .select((q) => [
        'i.digest',
        'i.media_type',
        'i.artifact_type',
        'i.manifest',
        'i.pushed_at',
        q
          .selectFrom('image_alias as a')
          .select('a.alias')
          .whereRef('a.repository_id', '=', 'i.repository_id')
          .whereRef('a.digest', '=', 'i.digest')
          .where('a.alias', 'like', `${algorithm}%`)
          .limit(1)
          .as('alias'),
      ])
      .where('i.repository_id', '=', repository.id)
      .where('i.subject_digest', '=', subject)
      .where('i.status', 'is', null)
      .orderBy('i.pushed_at')
      .limit(REFERRERS_PAGE);
    if (artifactTypes.length > 0) query = query.where('i.artifact_type', 'in', artifactTypes);
    // INVARIANT: push times of a repository are distinct, so they alone say where a page ends.
    if (last !== undefined) query = query.where('i.pushed_at', '>', last);
    const rows = await query.execute();
    for (const row of rows) {
      last = row.pushed_at;
      yield {
        digest: (row.alias ?? row.digest) as Digest,
        mediaType: row.media_type,
        artifactType: row.artifact_type ?? undefined,
        manifest: row.manifest,
        pushedAt: last,
      };
    }
    if (rows.length < REFERRERS_PAGE) return;
  }
}
