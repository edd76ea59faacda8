/** Every limit, with unit and origin. */
export const LIMITS = {
  /** Manifest bytes (ecr-api.md §2; OCI recommends at least 4 MiB). */
  manifestBytesMax: 4_194_304,
  /** Bytes of one layer: 52,000 MiB (ecr-api.md §8.3). */
  layerBytesMax: 52_000 * 1_048_576,
  /** Parts of one layer, and the size InitiateLayerUpload advertises (ecr-api.md §8). */
  layerPartsMax: 4200,
  layerPartBytes: 10_485_760,
  layerPartBytesMax: 20_971_520,
  layerPartBytesMin: 5 * 1_048_576,
  /** Tags of one image, images and repositories (ecr-api.md §23). */
  tagsPerImageMax: 1000,
  imagesPerRepositoryMax: 100_000,
  repositoriesMax: 100_000,
  /** Unfinished uploads of one repository, which ECR does not limit: each is a row and a file for a day (docs/operations/limits.md). */
  uploadsPerRepositoryMax: 10_000,
  /** Of one registry: principals whose pulls are not recorded, and creation templates (ecr-api.md §23). */
  pullTimeExclusionsMax: 100,
  creationTemplatesMax: 50,
  /** Resource tags of one repository (ecr-api.md §5). */
  resourceTagsMax: 50,
  /** Body of an AWS JSON request: a 4 MiB manifest escaped; UploadLayerPart is base64 of 20 MiB (ecr-api.md §1.1). */
  jsonBodyBytesMax: 8 * 1_048_576,
  layerPartBodyBytesMax: 32 * 1_048_576,
  /** Body of an IAM or STS form (iam-sts.md §1.3). */
  formBodyBytesMax: 1_048_576,
  /** The same without a signature: a web identity token and its request are far shorter, and anybody may send one. */
  unsignedFormBodyBytesMax: 65_536,
  /** Manifests of one answer of BatchGetImage or ListImageReferrers: they are in memory all at once, a hundred of 4 MiB would not fit. */
  manifestsAnswerBytesMax: 32 * 1_048_576,
  /** Entries of one page of tags/list and the catalog (ECR's maxResults). */
  listPageMax: 1000,
  /** Registry token lifetime (ecr-api.md §21). */
  registryTokenMs: 12 * 3_600_000,
  /** Lifetime of a layer download URL (ecr-api.md §8.5). */
  downloadUrlMs: 3_600_000,
  /** Difference of clocks a signature survives (iam-sts.md §1.7). */
  clockSkewMs: 15 * 60_000,
  /** An upload nobody continued expires (registry-protocol.md §1.6). */
  uploadIdleMs: 24 * 3_600_000,
  /** How long a claim to append to an upload holds without renewal. */
  uploadWriterMs: 60_000,
  /** How long content stays that no image refers to, after upload, mount or HEAD; renewed when it would move this much. */
  blobLeaseMs: 24 * 3_600_000,
  blobLeaseStepMs: 3_600_000,
  /** Time between the removal of the last row and of the bytes: longer than a download URL lives. */
  trashGraceMs: 2 * 3_600_000,
  /** A stored file unknown to the database is trash once it is this old. */
  orphanAgeMs: 24 * 3_600_000,
  /** Slowest acceptable client: silence on a socket in mid-request. */
  idleSocketMs: 60_000,
  /**
   * Connections and, by kind, requests under way at the same time, of one process. A transfer holds up to 1 MiB, so their
   * number bounds the memory that slow readers can take. Requests: several times what keeps one event loop and the disk
   * busy, so that a pause of the disk refuses nobody. Slow: those that take longer than a second.
   */
  connectionsMax: 4096,
  requestsInFlightMax: 256,
  transfersInFlightMax: 256,
  eventFollowersMax: 256,
  /** of the event followers; somebody else must find a place */
  eventFollowersPerPrincipalMax: 64,
  slowRequestsMax: 256,
  /**
   * Memory of bodies that are read whole, which manifests and calls of the APIs are: of all together, of those that need not
   * wait for it, how long others wait, and in what time a body must be able to arrive while others wait.
   */
  bodyMemoryBytesMax: 64 * 1_048_576,
  bodyFreeBytes: 65_536,
  bodyWaitMs: 30_000,
  bodyReceiveMs: 120_000,
  /** Requests of one connection that may wait for each other's answers. */
  pipelinedMax: 64,
  /** Requests that wait to begin, how long at most, and what is too long while there is constantly too much to do. */
  admissionQueueMax: 4096,
  admissionQueueMs: 2000,
  admissionTargetMs: 5,
  admissionCalmMs: 100,
  /** The head of a request. */
  headBytesMax: 16_384,
  /** Time a client has to send its headers. */
  headersMs: 60_000,
  /** Idle keep-alive: longer than any client's or load balancer's (registry-protocol.md §4.4 no. 9). */
  keepAliveMs: 130_000,
  /** Background jobs: a lease outlives a stalled process by this much; looks for jobs of other processes; tries. */
  jobLeaseMs: 60_000,
  jobPollMs: 1000,
  jobRetryMs: 1000,
  jobRetryMsMax: 3_600_000,
  jobAttemptsMax: 20,
  /** Time between runs of a lifecycle policy, so that what becomes due is done within 24 hours (ecr-api.md §12.4). */
  lifecycleEveryMs: 23 * 3_600_000,
  /** A preview that takes longer has failed; results are kept this long (ecr-api.md §12.1). */
  previewRunMs: 3_600_000,
  previewKeepMs: 24 * 3_600_000,
  /** How long a restored image is activating: ECR promises 20 minutes (ecr-api.md §11). */
  imageActivationMs: 60_000,
  /** Referrers follow a subject that was deleted or archived: ECR promises 24 hours (ecr-api.md §9.3). */
  referrersFollowMs: 3_600_000,
  /** Webhooks: time for one answer, tries, and the age at which an event not accepted is a dead letter (EventBridge's). */
  webhookTimeoutMs: 10_000,
  webhookAttemptsMax: 20,
  webhookAgeMs: 24 * 3_600_000,
  /** How long events are kept for those who follow them. */
  eventRetentionMs: 7 * 24 * 3_600_000,
  /** Longest wait of one request for events, and the most events of one answer. */
  eventWaitMs: 20_000,
  /** While a connection follows events there is an audit record of it this often. */
  eventRecordMs: 3_600_000,
  eventPageMax: 500,
  /** The audit log: size of one file and how many are kept. */
  auditFileBytesMax: 64 * 1_048_576,
  auditFilesMax: 8,
  /** IAM quotas (iam-sts.md §6.8). */
  usersPerAccountMax: 5000,
  policiesPerAccountMax: 1500,
  attachedPoliciesPerUserMax: 10,
  accessKeysPerUserMax: 2,
  policyVersionsMax: 5,
  managedPolicyCharactersMax: 6144,
  userInlineCharactersMax: 2048,
  groupInlineCharactersMax: 5120,
  roleInlineCharactersMax: 10_240,
  trustPolicyCharactersMax: 2048,
  groupsPerAccountMax: 300,
  groupsPerUserMax: 10,
  rolesPerAccountMax: 1000,
  attachedPoliciesPerGroupMax: 10,
  attachedPoliciesPerRoleMax: 10,
  instanceProfilesPerAccountMax: 1000,
  oidcProvidersPerAccountMax: 100,
  clientIdsPerProviderMax: 100,
  thumbprintsPerProviderMax: 5,
  /** Plain text of a session policy and of the ARNs beside it; of session tags (iam-sts.md §2.7, §2.8). */
  sessionPolicyCharactersMax: 2048,
  sessionTagCharactersMax: 4096,
  /** Lifetimes of sessions, in seconds (iam-sts.md §5.1). */
  roleSessionSeconds: 3600,
  roleSessionSecondsMin: 900,
  chainedSessionSecondsMax: 3600,
  userSessionSeconds: 43_200,
  rootSessionSeconds: 3600,
  /** A token issuer's answers: bytes, time, how long its keys are believed, how soon they are asked for again. */
  issuerBytesMax: 1_048_576,
  issuerMs: 5000,
  issuerKeysMs: 3_600_000,
  issuerRetryMs: 30_000,
  issuerKeysMax: 200,
  /** Difference of clocks an identity token survives (iam-sts.md §5.5). */
  identityTokenSkewMs: 5 * 60_000,
  /** Denials kept for explanations: of all, of one account, for how long; of one batch and how long it may wait. */
  denialsMax: 10_000,
  denialsPerAccountMax: 2000,
  denialAgeMs: 86_400_000,
  denialBatchPerAccountMax: 50,
  denialBatchAccountsMax: 20,
  denialBatchMs: 500,
  denialCharactersMax: 32_768,
} as const;
