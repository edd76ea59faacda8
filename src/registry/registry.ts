/**
 * What both doors share: content, uploads, images and tags of a repository. The doors have authorised the caller before
 * they come here; nothing here knows HTTP or IAM. Every method that takes a `Repository` works on the row as it was
 * read, and the transaction inside re-checks that it still exists.
 */
import type { Readable } from 'node:stream';
import type { BlobReader, BlobStore } from '../blobs/blobs.ts';
import type { SparseManifests } from '../domain/manifests.ts';
import type { Digest, RepositoryAddress } from '../domain/names.ts';
import type { ImageCondition } from '../domain/preconditions.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import { prepareFindRepository, type Store } from '../store/store.ts';
import { createGarbageCollector } from './garbage.ts';
import { createImages } from './images.ts';
import { createLayers } from './layers.ts';
import { createTemplates, type Templates } from './templates.ts';
import { createReadiness } from './readiness.ts';
import { createUploads } from './uploads.ts';

export { templateChecks } from './templates.ts';
export { createLifecycleHandlers, evaluateRepository, type LifecycleOptions } from './lifecycle.ts';

export { kmsKeyOfAlias, kmsKeyOfId, MANAGED_ALIAS, resolveEncryption, type KmsKey } from './keys.ts';

export { createBackup, type BackupReport } from './backup.ts';
export { BackupError, type BackupManifest } from './backup-format.ts';
export { checkRegistry, type CheckReport, type Finding } from './check.ts';
export { RESTORE_MARKER, restoreBackup, verifyBackup, type RestoreProgress } from './restore.ts';

/** A repository as stored. `policy` and `tags` also serve authorisation. */
export interface Repository extends RepositoryAddress {
  readonly id: string;
  readonly createdAt: number;
  readonly mutability: 'MUTABLE' | 'IMMUTABLE' | 'IMMUTABLE_WITH_EXCLUSION' | 'MUTABLE_WITH_EXCLUSION';
  readonly exclusionFilters: readonly { readonly filterType: 'WILDCARD'; readonly filter: string }[];
  readonly scanOnPush: boolean;
  readonly encryptionType: 'AES256' | 'KMS' | 'KMS_DSSE';
  readonly kmsKey: string | undefined;
  readonly contentKey: string;
  readonly policy: string | undefined;
  readonly tags: ReadonlyMap<string, string>;
}

/** An image as stored, with the tags it had when it was read. */
export interface Image {
  readonly digest: Digest;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly subjectDigest: string | undefined;
  /** manifest bytes exactly as pushed */
  readonly manifest: Uint8Array;
  /** imageSizeInBytes */
  readonly size: number;
  readonly pushedAt: number;
  readonly lastPulledAt: number | undefined;
}

/** An image under the digest it was asked for by: the digest itself, or the one its tag was set by. */
export interface FoundImage extends Image {
  readonly namedDigest: Digest;
}

/** An image that has a subject. */
export interface Referrer {
  /** in the algorithm of the subject's when it was pushed by such a digest, else sha256 */
  readonly digest: Digest;
  readonly mediaType: string;
  readonly artifactType: string | undefined;
  readonly manifest: Uint8Array;
  /** distinct among the images of a repository */
  readonly pushedAt: number;
}

export interface ReferrersOptions {
  /** any of these; any at all when there are none */
  readonly artifactTypes: readonly string[];
  /** `pushedAt` of the last one of the page before */
  readonly after: number | undefined;
}

export interface PutImageInput {
  readonly manifest: Uint8Array;
  /** Content-Type or imageManifestMediaType, without parameters */
  readonly mediaType: string | undefined;
  /** the digest the client named, checked against the bytes; also sha512 with `accept` */
  readonly digest: string | undefined;
  /** tags to set, all or none */
  readonly tags: readonly string[];
  /**
   * What to do when the image already has the tag: the ECR API refuses with ImageAlreadyExistsException, the OCI door
   * answers as if it had been stored (retries need it).
   */
  readonly existing: 'refuse' | 'accept';
  /** what must be true when it is stored; absent: nothing */
  readonly condition?: ImageCondition | undefined;
}

export interface PutImageResult {
  readonly digest: Digest;
  readonly mediaType: string;
  readonly subjectDigest: string | undefined;
}

/** `imageId` of the ECR API. */
export interface ImageId {
  readonly imageDigest?: string | undefined;
  readonly imageTag?: string | undefined;
}

export interface ImageFailure {
  readonly imageId: ImageId;
  readonly failureCode: string;
  readonly failureReason: string;
}

export interface Images {
  /**
   * Stores a manifest and moves its tags, in one transaction that verifies every reference and size.
   *
   * @throws Fault InvalidParameterException, ImageDigestDoesNotMatchException, LayersNotFoundException,
   *   ReferencedImagesNotFoundException, ManifestInvalid (size of a layer differs), ImageTagAlreadyExistsException,
   *   ImageAlreadyExistsException, LimitExceededException, RepositoryNotFoundException, PreconditionFailed
   */
  put(repository: Repository, input: PutImageInput): Promise<PutImageResult>;
  /** See `Layers.resolve`: the same for images. */
  resolve(repository: Repository, digest: Digest): Promise<Digest | undefined>;
  /**
   * The image under a tag or a digest of any algorithm; a tag look-up is always current. Records the pull (batched) when `pull`.
   */
  find(
    repository: Repository,
    reference: string,
    options: { readonly pull: boolean },
  ): Promise<FoundImage | undefined>;
  /**
   * BatchGetImage's rules (ecr-api.md §7.2): one entry per tag of a digest. Records the pulls unless told not to.
   *
   * @throws Fault LimitExceededException when the manifests are too much for one answer
   */
  batchGet(
    repository: Repository,
    ids: readonly ImageId[],
    options?: { readonly pull: boolean },
  ): Promise<{ images: { imageId: ImageId; image: Image }[]; failures: ImageFailure[] }>;
  /**
   * BatchDeleteImage's rules (ecr-api.md §7.4), in request order, one transaction. Used by both doors. `condition` is what must
   * be true then; where it is not, but the ids can be deleted, none is.
   *
   * @throws Fault RepositoryNotFoundException, PreconditionFailed
   */
  batchDelete(
    repository: Repository,
    ids: readonly ImageId[],
    condition?: ImageCondition,
  ): Promise<{ imageIds: ImageId[]; failures: ImageFailure[] }>;
  /** Tag names after `last` in byte order, at most `limit`. */
  listTags(repository: Repository, last: string | undefined, limit: number): Promise<string[]>;
  /** Images whose manifests name this very subject digest, which need not exist; oldest first, read as they are taken. */
  referrers(repository: Repository, subject: Digest, options: ReferrersOptions): AsyncIterable<Referrer>;
}

export interface StoredBlob {
  readonly digest: Digest;
  readonly size: number;
}

export interface Layers {
  /**
   * The sha256 digest behind a digest of any algorithm, by which the other methods know content; a sha256 digest comes back as
   * it is. `undefined` when the repository knows nothing by it.
   */
  resolve(repository: Repository, digest: Digest): Promise<Digest | undefined>;
  /** Whether the repository can see the blob; true renews its lease, so that a manifest PUT may rely on it. */
  stat(repository: Repository, digest: string): Promise<StoredBlob | undefined>;
  /** Availability of many at once, without renewing leases; `mediaType` when an image refers to it. */
  availability(
    repository: Repository,
    digests: readonly string[],
  ): Promise<Map<string, { size: number; mediaType: string | undefined; referenced: boolean }>>;
  /** Opens the bytes `start` to `end` (exclusive). The first bytes are verified before it resolves. */
  open(repository: Repository, digest: string, start?: number, end?: number): Promise<BlobReader | undefined>;
  /** Links a blob of `source`, with its aliases, into `target`. False when it cannot (unknown, other key): then start an upload. */
  mount(target: Repository, source: Repository, digest: string): Promise<boolean>;
  /** Repositories of the registry (account, region) other than `target` that know the digest (any algorithm) under the same key. */
  holders(target: Repository, digest: string): Promise<Repository[]>;
  /**
   * Unlinks a blob from the repository. `absent` when it is not there, `referenced` when an image needs it.
   */
  remove(repository: Repository, digest: string): Promise<'removed' | 'absent' | 'referenced'>;
}

export interface UploadStatus {
  readonly id: string;
  /** committed bytes */
  readonly size: number;
}

export interface AppendOptions {
  /** where the first byte must go; refused with InvalidLayerPartException when it is not the committed size */
  readonly offset?: number | undefined;
  /** announced length; fewer or more bytes are refused with SizeInvalid and rolled back */
  readonly length?: number | undefined;
  /** the append is a part of the ECR API: counted and measured for LayerPartTooSmallException */
  readonly part?: boolean;
  readonly signal?: AbortSignal | undefined;
}

export interface FinishOptions {
  /** by the rules of the ECR API */
  readonly api: boolean;
  /** bytes that come with the closing */
  readonly tail?: (Omit<AppendOptions, 'part'> & { readonly source: Readable }) | undefined;
}

export interface Uploads {
  start(repository: Repository): Promise<UploadStatus>;
  /** @throws Fault UploadNotFoundException */
  status(repository: Repository, id: string): Promise<UploadStatus>;
  /**
   * Appends a stream. The offset moves only when the whole stream arrived; an aborted append leaves the committed bytes
   * as they were. One writer at a time: the loser gets InvalidLayerPartException.
   */
  append(repository: Repository, id: string, source: Readable, options: AppendOptions): Promise<UploadStatus>;
  cancel(repository: Repository, id: string): Promise<void>;
  /**
   * Ends the upload: takes the bytes that come with it, compares the digests (any algorithm but with `api: true`), seals the
   * bytes, binds sha256 to key and links the repository, in one transaction. A repeated call with the same digests after success
   * answers the same. After a failure, other than a mismatch, nothing was appended and the call can be repeated whole.
   *
   * @throws Fault DigestInvalid / InvalidLayerException (upload destroyed on mismatch), UploadNotFoundException,
   *   EmptyUploadException and LayerPartTooSmallException and LayerAlreadyExistsException (only with `api: true`), and those of
   *   `append`
   */
  finish(
    repository: Repository,
    id: string,
    digests: readonly string[],
    options: FinishOptions,
  ): Promise<StoredBlob>;
}

export interface Registry {
  /** The repository row, always current; `undefined` when there is none. */
  findRepository(address: RepositoryAddress): Promise<Repository | undefined>;
  /** Names of the repositories of a registry (account, region) after `last` in byte order, at most `limit`. */
  listRepositories(
    registry: Pick<RepositoryAddress, 'account' | 'region'>,
    last: string | undefined,
    limit: number,
  ): Promise<string[]>;
  readonly images: Images;
  readonly layers: Layers;
  readonly uploads: Uploads;
  readonly templates: Templates;
  /** Bytes a layer may have. */
  readonly layerBytesMax: number;
  /** How long bytes that nothing names any more are kept. */
  readonly trashGraceMs: number;
  /** Writes batched pull times. Called on a schedule and on shutdown. */
  flush(): Promise<void>;
  /**
   * One round of online garbage collection: expired uploads, reviews, trash, and orphans when `orphans`. `signal` ends it early.
   * Rejects in the end when files could not be deleted: they stay in the trash.
   */
  collectGarbage(options: {
    readonly orphans: boolean;
    readonly signal?: AbortSignal;
  }): Promise<GarbageReport>;
  /** Resolves when writes can be made durable now, or could a few seconds ago; rejects with what is in the way. */
  ready(): Promise<void>;
  close(): Promise<void>;
}

export interface GarbageReport {
  readonly uploadsExpired: number;
  readonly blobsUnlinked: number;
  readonly filesDeleted: number;
  readonly orphansTrashed: number;
}

export interface RegistryOptions {
  readonly store: Store;
  readonly blobs: BlobStore;
  /** keys of new repositories */
  readonly ring: KeyRing;
  /** epoch milliseconds */
  readonly clock: () => number;
  /** quotas that operators may set: repositories of a registry, images of a repository */
  readonly repositoriesMax?: number;
  readonly imagesPerRepositoryMax?: number;
  /** uploads of a repository that were begun and not finished, which ECR does not limit */
  readonly uploadsPerRepositoryMax?: number;
  /** and those of one image and one layer, which ECR does not adjust */
  readonly tagsPerImageMax?: number;
  readonly layerBytesMax?: number;
  readonly layerPartsMax?: number;
  /** what a manifest may name that the repository does not have, which ECR refuses */
  readonly sparseManifests?: SparseManifests;
  /** overrides of the garbage collector's times, for tests and operators */
  readonly uploadIdleMs?: number;
  readonly blobLeaseMs?: number;
  readonly trashGraceMs?: number;
  readonly orphanAgeMs?: number;
  /** an event for each image pulled since the last flush, which ECR does not have */
  readonly pullEvents?: boolean;
}

/** What the parts of the registry work with: the options, complete. */
export type RegistryContext = Required<RegistryOptions>;

/** The registry over a store and a blob store, which stay the caller's to close (after {@link Registry.close}). */
export function createRegistry(options: RegistryOptions): Registry {
  const context: RegistryContext = {
    repositoriesMax: LIMITS.repositoriesMax,
    imagesPerRepositoryMax: LIMITS.imagesPerRepositoryMax,
    uploadsPerRepositoryMax: LIMITS.uploadsPerRepositoryMax,
    tagsPerImageMax: LIMITS.tagsPerImageMax,
    layerBytesMax: LIMITS.layerBytesMax,
    layerPartsMax: LIMITS.layerPartsMax,
    sparseManifests: 'refuse',
    uploadIdleMs: LIMITS.uploadIdleMs,
    blobLeaseMs: LIMITS.blobLeaseMs,
    trashGraceMs: LIMITS.trashGraceMs,
    orphanAgeMs: LIMITS.orphanAgeMs,
    pullEvents: false,
    ...options,
  };
  const findRepository = prepareFindRepository(context.store);
  const images = createImages(context);
  return {
    findRepository,
    listRepositories: async ({ account, region }, last, limit) => {
      const rows = await context.store.read
        .selectFrom('repository')
        .select('name')
        .where('account', '=', account)
        .where('region', '=', region)
        .where('name', '>', last ?? '')
        .orderBy('name')
        .limit(limit)
        .execute();
      return rows.map(({ name }) => name);
    },
    images,
    layers: createLayers(context, findRepository),
    uploads: createUploads(context),
    templates: createTemplates(context, findRepository),
    layerBytesMax: context.layerBytesMax,
    trashGraceMs: context.trashGraceMs,
    flush: images.flush,
    collectGarbage: createGarbageCollector(context),
    ready: createReadiness(context),
    close: images.flush,
  };
}
