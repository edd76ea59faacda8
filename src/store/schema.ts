/**
 * The tables, as Kysely sees them on both databases. Conventions: every entity is keyed by account and region (or by
 * an id that belongs to one); times are integer milliseconds since the epoch; booleans are 0 or 1; JSON is text; digests
 * are `sha256:<hex>`; ids are opaque and never reused.
 */
import type { Generated } from 'kysely';

export interface Schema {
  account: AccountTable;
  registry: RegistryTable;
  pull_time_exclusion: PullTimeExclusionTable;
  creation_template: CreationTemplateTable;
  revision: RevisionTable;
  iam_user: IamUserTable;
  iam_access_key: IamAccessKeyTable;
  iam_policy: IamPolicyTable;
  iam_policy_version: IamPolicyVersionTable;
  iam_group: IamGroupTable;
  iam_group_member: IamGroupMemberTable;
  iam_role: IamRoleTable;
  iam_instance_profile: IamInstanceProfileTable;
  iam_oidc_provider: IamOidcProviderTable;
  iam_inline_policy: IamInlinePolicyTable;
  iam_attachment: IamAttachmentTable;
  iam_tag: IamTagTable;
  iam_login_profile: IamLoginProfileTable;
  iam_account_alias: IamAccountAliasTable;
  iam_password_policy: IamPasswordPolicyTable;
  iam_credential_report: IamCredentialReportTable;
  iam_deletion_task: IamDeletionTaskTable;
  sts_session: StsSessionTable;
  denial: DenialTable;
  repository: RepositoryTable;
  repository_tag: RepositoryTagTable;
  blob: BlobTable;
  repository_blob: RepositoryBlobTable;
  blob_alias: AliasTable;
  image_alias: AliasTable;
  image: ImageTable;
  image_blob: ImageBlobTable;
  image_child: ImageChildTable;
  image_blob_absent: ImageBlobAbsentTable;
  image_child_absent: ImageChildAbsentTable;
  tag: TagTable;
  upload: UploadTable;
  garbage_review: GarbageReviewTable;
  garbage_trash: GarbageTrashTable;
  job: JobTable;
  event: EventTable;
  event_delivery: EventDeliveryTable;
  lifecycle_policy: LifecyclePolicyTable;
  lifecycle_preview: LifecyclePreviewTable;
  lifecycle_preview_image: LifecyclePreviewImageTable;
}

interface AccountTable {
  id: string;
  created_at: number;
}

/** Counters bumped inside every write of a subject, so that caches know with one small read whether they are current. */
interface RevisionTable {
  /** PK. `identity`: everything IAM, of all accounts. */
  subject: string;
  value: number;
}

interface IamUserTable {
  /** PK, `AIDA…` */
  id: string;
  account: string;
  name: string;
  /** unique (account, name_lower): IAM names are unique ignoring case */
  name_lower: string;
  path: string;
  boundary_arn: string | null;
  created_at: number;
}

interface IamAccessKeyTable {
  /** PK, `AKIA…` */
  id: string;
  account: string;
  /** FK → iam_user RESTRICT; null for the root credentials of an account */
  user_id: string | null;
  /** sealed with the master key (lib/seal.ts) */
  secret: Uint8Array;
  status: 'Active' | 'Inactive';
  created_at: number;
  last_used_at: number | null;
  last_used_service: string | null;
  last_used_region: string | null;
}

/** Customer-managed policies. AWS-managed ones are data in the code and have no rows. */
interface IamPolicyTable {
  /** PK, `ANPA…` */
  id: string;
  account: string;
  name: string;
  /** unique (account, name_lower) */
  name_lower: string;
  path: string;
  /** unique */
  arn: string;
  description: string | null;
  default_version: number;
  /** the number of the next version: version numbers are never reused */
  next_version: number;
  created_at: number;
  updated_at: number;
}

interface IamPolicyVersionTable {
  /** PK (policy_id, version), FK → iam_policy RESTRICT */
  policy_id: string;
  version: number;
  document: string;
  created_at: number;
}

interface IamGroupTable {
  /** PK, `AGPA…` */
  id: string;
  account: string;
  name: string;
  /** unique (account, name_lower) */
  name_lower: string;
  path: string;
  created_at: number;
}

interface IamGroupMemberTable {
  /** PK (group_id, user_id), FKs → iam_group and iam_user RESTRICT; index on user_id */
  group_id: string;
  user_id: string;
  added_at: number;
}

interface IamRoleTable {
  /** PK, `AROA…` */
  id: string;
  account: string;
  name: string;
  /** unique (account, name_lower) */
  name_lower: string;
  path: string;
  /** the trust policy as written */
  trust_policy: string;
  /** the trust policy as evaluated: users and roles by unique id, so that a namesake made later is a stranger */
  trust_pinned: string;
  description: string | null;
  max_session_seconds: number;
  boundary_arn: string | null;
  /** service-linked roles: the service that may use and change it, e.g. `replication.ecr.amazonaws.com` */
  service: string | null;
  created_at: number;
  last_used_at: number | null;
  last_used_region: string | null;
}

interface IamInstanceProfileTable {
  /** PK, `AIPA…` */
  id: string;
  account: string;
  name: string;
  /** unique (account, name_lower) */
  name_lower: string;
  path: string;
  /** FK → iam_role RESTRICT, indexed */
  role_id: string | null;
  created_at: number;
}

interface IamOidcProviderTable {
  /** PK, opaque: an ARN may be used again, and the tags of the old one must not come back */
  id: string;
  account: string;
  /** unique */
  arn: string;
  /** without `https://`, as in the ARN, or with `http://` */
  url: string;
  /** JSON arrays of text */
  client_ids: string;
  thumbprints: string;
  created_at: number;
}

/**
 * Inline policies of users, groups and roles. No foreign key, since owners are in three tables: a row left behind would
 * belong to an id that is never given again, so it could grant nobody anything.
 */
interface IamInlinePolicyTable {
  /** PK (owner_id, name) */
  owner_id: string;
  name: string;
  document: string;
}

interface IamAttachmentTable {
  /** PK (owner_id, policy_arn); index (policy_arn, account). AWS-managed ARNs have no policy row. */
  owner_id: string;
  policy_arn: string;
  account: string;
  attached_at: number;
}

/** Tags of users, roles, policies, instance profiles and identity providers. */
interface IamTagTable {
  /** PK (owner_id, key_lower) */
  owner_id: string;
  key_lower: string;
  key: string;
  value: string;
}

/** Console passwords. */
interface IamLoginProfileTable {
  /** PK, FK → iam_user RESTRICT */
  user_id: string;
  /** scrypt, `identity/passwords.ts` */
  hash: string;
  reset_required: number;
  created_at: number;
  changed_at: number;
  last_used_at: number | null;
  /** JSON array of older hashes, newest first, as far as the password policy remembers them */
  previous: string;
}

interface IamAccountAliasTable {
  /** PK */
  account: string;
  /** unique */
  alias: string;
}

interface IamPasswordPolicyTable {
  /** PK */
  account: string;
  /** JSON */
  policy: string;
}

interface IamCredentialReportTable {
  /** PK */
  account: string;
  content: string;
  generated_at: number;
}

/** Finished deletions of service-linked roles, for GetServiceLinkedRoleDeletionStatus. */
interface IamDeletionTaskTable {
  /** PK */
  id: string;
  account: string;
  created_at: number;
}

/** Sessions that hold a registry token (docs/adr/0007). Everything else about a session is in its sealed token. */
interface StsSessionTable {
  /** PK */
  id: string;
  /** the session token, sealed */
  token: string;
  /** end of the newest registry token; indexed */
  expires_at: number;
}

/** Requests that policies refused, for explanations. Bounded: the newest of a day. */
interface DenialTable {
  /** PK */
  request_id: string;
  /** indexed; index (account, at) */
  at: number;
  account: string;
  resource_account: string;
  principal: string;
  owner: string;
  action: string;
  /** JSON */
  content: string;
}

/** What an account set for its registry in one region. No row: the defaults. See store/registries.ts. */
interface RegistryTable {
  /** PK (account, region) */
  account: string;
  region: string;
  /** the registry policy as formatted for return */
  policy: string | null;
  policy_scope: 'V1' | 'V2' | null;
  blob_mounting: number | null;
}

/** A user or role whose pulls leave pull times alone. */
interface PullTimeExclusionTable {
  /** PK (account, region, principal_arn) */
  account: string;
  region: string;
  principal_arn: string;
  created_at: number;
}

interface CreationTemplateTable {
  /** PK (account, region, key): the prefix without a closing slash */
  account: string;
  region: string;
  key: string;
  /** as it was given */
  prefix: string;
  description: string | null;
  encryption_type: 'AES256' | 'KMS' | 'KMS_DSSE';
  kms_key: string | null;
  mutability: RepositoryTable['mutability'];
  /** JSON arrays */
  exclusion_filters: string;
  tags: string;
  repository_policy: string | null;
  lifecycle_policy: string | null;
  /** JSON array of scenarios */
  applied_for: string;
  custom_role_arn: string | null;
  created_at: number;
  updated_at: number;
}

interface RepositoryTable {
  /** PK, opaque */
  id: string;
  account: string;
  region: string;
  /** unique (account, region, name) */
  name: string;
  created_at: number;
  mutability: 'MUTABLE' | 'IMMUTABLE' | 'IMMUTABLE_WITH_EXCLUSION' | 'MUTABLE_WITH_EXCLUSION';
  /** JSON array of `{filterType, filter}`, null in the plain modes */
  exclusion_filters: string | null;
  scan_on_push: number;
  encryption_type: 'AES256' | 'KMS' | 'KMS_DSSE';
  kms_key: string | null;
  /** name of the content key in the key ring that encrypts its blobs; content is shared only under the same key */
  content_key: string;
  /** the repository policy as formatted for return, null when none */
  policy: string | null;
}

interface RepositoryTagTable {
  /** PK (repository_id, key), FK → repository CASCADE */
  repository_id: string;
  key: string;
  value: string;
}

/** A stored copy of content. INVARIANT: unique (digest, content_key); `storage_key` is never reused. */
interface BlobTable {
  /** PK */
  storage_key: string;
  digest: string;
  content_key: string;
  size: number;
  created_at: number;
}

/** The content a repository can see. Lives while an image refers to it or until `leased_until`. */
interface RepositoryBlobTable {
  /** PK (repository_id, digest), FK repository_id → repository RESTRICT */
  repository_id: string;
  digest: string;
  /** FK → blob RESTRICT, indexed */
  storage_key: string;
  size: number;
  leased_until: number;
}

/**
 * Digests of other algorithms by which clients of a repository know a blob (`blob_alias`) or an image (`image_alias`). Each was
 * computed from the bytes; content itself is known by its sha256 only. See ADR 0008.
 */
interface AliasTable {
  /** PK (alias, repository_id), `sha512:<hex>` */
  alias: string;
  /** FK (repository_id, digest) → repository_blob or image, CASCADE; index (repository_id, digest) */
  repository_id: string;
  digest: string;
}

/** A manifest: one image, index or artifact of a repository. */
interface ImageTable {
  /** order of pushes inside the database; keyset of listings together with pushed_at. PK. */
  id: string;
  /** unique (repository_id, digest), FK repository_id → repository RESTRICT */
  repository_id: string;
  digest: string;
  media_type: string;
  artifact_type: string | null;
  subject_digest: string | null;
  /** manifest bytes as pushed */
  manifest: Uint8Array;
  /** imageSizeInBytes (ecr-api.md §6.3) */
  size: number;
  pushed_at: number;
  last_pulled_at: number | null;
  /** null while it is active. Index (repository_id, status, pushed_at, digest) of those that are not. */
  status: 'ARCHIVED' | 'ACTIVATING' | null;
  archived_at: number | null;
  activated_at: number | null;
}

/** Content a manifest needs: its config, layers and blobs. FK (repository_id, blob_digest) → repository_blob RESTRICT. */
interface ImageBlobTable {
  /** PK (repository_id, image_digest, blob_digest); FK (repository_id, image_digest) → image RESTRICT; index (repository_id, blob_digest) */
  repository_id: string;
  image_digest: string;
  blob_digest: string;
  media_type: string;
}

/** Manifests an index needs. FKs (repository_id, parent_digest) and (repository_id, child_digest) → image RESTRICT. */
interface ImageChildTable {
  /** PK (repository_id, parent_digest, child_digest); index (repository_id, child_digest) */
  repository_id: string;
  parent_digest: string;
  child_digest: string;
}

/** Content a sparse manifest names that is not here. INVARIANT: the repository has none of it. See sparse-manifests.ts. */
interface ImageBlobAbsentTable {
  /** PK (repository_id, image_digest, blob_digest), FK (repository_id, image_digest) → image CASCADE */
  repository_id: string;
  image_digest: string;
  /** as the manifest names it, in any algorithm; index (repository_id, blob_digest) */
  blob_digest: string;
  media_type: string;
}

/** Manifests a sparse index names that are not here. INVARIANT: none of them is an image of the repository. */
interface ImageChildAbsentTable {
  /** PK (repository_id, parent_digest, child_digest), FK (repository_id, parent_digest) → image CASCADE */
  repository_id: string;
  parent_digest: string;
  /** as the index names it, in any algorithm; index (repository_id, child_digest) */
  child_digest: string;
}

interface TagTable {
  /** PK (repository_id, name), FK (repository_id, image_digest) → image RESTRICT; index (repository_id, image_digest) */
  repository_id: string;
  name: string;
  image_digest: string;
  tagged_at: number;
  /** the digest of another algorithm that the image was tagged by; pulls by this tag show it */
  alias: string | null;
}

/** An unfinished blob. State is here and bytes in the blob store, so that any process can continue it. */
interface UploadTable {
  /** PK, lower-case UUID */
  id: string;
  /** FK → repository CASCADE */
  repository_id: string;
  storage_key: string;
  content_key: string;
  /** committed bytes, and the hex sha256 of exactly these */
  size: number;
  sha256: string;
  /** for the ECR API's rules: number of parts, size of the newest part, whether one before it was under 5 MiB */
  parts: Generated<number>;
  last_part_size: Generated<number>;
  small_part: Generated<number>;
  /** who appends now, and until when that claim holds; null when nobody */
  writer: string | null;
  writer_until: number | null;
  /** 1 once a claim ran out and was taken over: whoever held it may still be writing, so the bytes are looked at again */
  contested: Generated<number>;
  created_at: number;
  updated_at: number;
  /** set once finished: a repeated closing PUT with the same digest is answered 201 again (lost-response retry) */
  completed_digest: string | null;
}

/** Content to look at again: something that kept it alive was removed, or its lease will run out. */
interface GarbageReviewTable {
  /** PK (repository_id, digest) */
  repository_id: string;
  digest: string;
  /** indexed */
  review_after: number;
}

/** Stored bytes no row needs any more. Deleted from the blob store after the grace period. */
interface GarbageTrashTable {
  /** PK */
  storage_key: string;
  /** indexed */
  delete_after: number;
}

/** Work to be done: one row for each (kind, key), however often it is asked for. See store/jobs.ts. */
interface JobTable {
  /** PK (kind, key) */
  kind: string;
  key: string;
  /** JSON */
  payload: string;
  /** when it is wanted next; null while it runs and nobody asked for it again */
  run_at: number | null;
  /** when a runner may take it: `run_at`, or the end of its lease while it runs; null when dead. Index (kind, due_at). */
  due_at: number | null;
  /** whose it is until `due_at`; null while it waits */
  lease: string | null;
  /** times it was begun since it last succeeded */
  attempts: number;
  /** a recurring job: time between the end of a run and the next one */
  every_ms: number | null;
  /** text of the newest failure */
  error: string | null;
  /** given up, until somebody asks for it anew */
  died_at: number | null;
}

/** What happened, written in the transaction that made it happen. See store/events.ts. */
interface EventTable {
  /** PK, in the order of the writes; part of the id that receivers see */
  id: Generated<number>;
  account: string;
  region: string;
  /** name of the repository, empty when it is not about one. Events of one repository are delivered in order. */
  repository: string;
  /** JSON, the EventBridge record without its id */
  record: string;
  created_at: number;
  /** place in the published order; null until published. Indexed. */
  position: number | null;
}

/** An event a webhook has not accepted yet. */
interface EventDeliveryTable {
  /** PK (sink, stream, position); `sink` is the webhook, `stream` the repository whose order is kept */
  sink: string;
  stream: string;
  position: number;
  /** FK → event RESTRICT, indexed */
  event_id: number;
  attempts: number;
  /** not before */
  retry_at: number;
  error: string | null;
  /** a dead letter: given up until it is replayed */
  died_at: number | null;
}

interface LifecyclePolicyTable {
  /** PK, FK → repository CASCADE */
  repository_id: string;
  /** as formatted for return */
  policy: string;
  /** when its last run ended; null before the first */
  evaluated_at: number | null;
}

/** The newest preview of a repository. */
interface LifecyclePreviewTable {
  /** PK, FK → repository CASCADE */
  repository_id: string;
  /** which one it is: images of others are left over */
  preview: string;
  /** as the client sent it, or the policy of the repository */
  policy: string;
  status: 'IN_PROGRESS' | 'COMPLETE' | 'EXPIRED' | 'FAILED';
  started_at: number;
  completed_at: number | null;
  /** images that would be expired and archived */
  expiring: number;
  transitioning: number;
}

/** What a preview found, in the order a run would act. */
interface LifecyclePreviewImageTable {
  /** PK (repository_id, preview, place), FK repository_id → repository CASCADE; index (repository_id, preview, digest) */
  repository_id: string;
  preview: string;
  place: number;
  digest: string;
  /** JSON array */
  tags: string;
  pushed_at: number;
  action: 'EXPIRE' | 'TRANSITION';
  rule_priority: number;
  storage_class: 'STANDARD' | 'ARCHIVE';
}
