/**
 * Metadata: one transactional database, SQLite or PostgreSQL, behind one interface. Reads are ordinary queries; a write
 * is a named transaction (transaction.ts), and nothing else writes.
 */
import type { Fate } from './owners.ts';
import type { Reader } from './transaction.ts';
import { TRANSACTIONS } from './transactions.ts';
import type { InputOf, NameOf, OutputOf, Registry } from './transactions.ts';
import { joinSqlite, openSqlite } from './sqlite.ts';
import type { OwnedSqliteStore, SharedSqlite, SqliteOptions } from './sqlite.ts';
import { openPostgres } from './postgres.ts';

export type { Schema } from './schema.ts';
export type { SharedSqlite } from './sqlite.ts';
export type { Reader, Transaction, Tx } from './transaction.ts';
export type { TransactionInput, TransactionName, TransactionOutput } from './transactions.ts';
export { prepareResolve } from './aliases.ts';
export type { Counters, Row, Value } from './backup.ts';
export { exportTables, isRestoring, listTables, SCHEMA_VERSION } from './backup.ts';
export type { NeedingImage, PendingUpload, StoredCopy, StoredImage } from './check.ts';
export {
  checkSqliteFile,
  countRows,
  describeRepository,
  findContradictions,
  findLeaks,
  findNeedingImages,
  imageExists,
  isBound,
  isPending,
  pagePendingUploads,
  pageStoredCopies,
  pageStoredImages,
  referencesOfImage,
} from './check.ts';
export { isSetAside } from './damage.ts';
export type { DenialRecord } from './denials.ts';
export { findDenial, findNewestDenial } from './denials.ts';
export type { ReviewedGarbage } from './garbage.ts';
export { knownStorageKeys } from './garbage.ts';
export type { DeadEvent, DeadPosition, DeliveryTarget, PendingDelivery, PublishedEvent } from './events.ts';
export {
  DELIVERY_JOB,
  listDeadEvents,
  newestPosition,
  positionOf,
  readDeliveries,
  readEvents,
  UNPUBLISHED_SQL,
} from './events.ts';
export type { ClaimedJob, DeadJob, JobPayload, Lease, NewJob, Schedule } from './jobs.ts';
export { listDeadJobs, listLeases } from './jobs.ts';
export type {
  AccessKeyRecord,
  AccountRecord,
  GrantedPolicy,
  GroupRecord,
  InstanceProfileRecord,
  KeyUse,
  LoginProfileRecord,
  NamedPage,
  OwnerKind,
  OwnerReference,
  PolicyRecord,
  PolicyUses,
  PolicyVersionRecord,
  ProviderRecord,
  RoleRecord,
  StoredAccessKey,
  StoredGrants,
  TaggedReference,
  TagRecord,
  UserRecord,
} from './identities.ts';
export {
  countAccount,
  countNamed,
  countPolicyUses,
  findAccessKey,
  findAccountCreation,
  findAlias,
  findCredentialReport,
  findGroup,
  findInlinePolicy,
  findInstanceProfile,
  findLoginProfile,
  findPasswordPolicy,
  findPolicy,
  findProvider,
  findRole,
  findRoleById,
  findSessionToken,
  findUser,
  findUserById,
  hasDeletionTask,
  listAccessKeys,
  listAccounts,
  listAttachments,
  listGroupsOf,
  listInlinePolicies,
  listPolicies,
  listPolicyVersions,
  listProfilesOf,
  listProviders,
  listRootKeys,
  listTags,
  noSuchAccessKey,
  noSuchInlinePolicy,
  noSuchLoginProfile,
  noSuchNamed,
  noSuchPasswordPolicy,
  noSuchPolicy,
  noSuchProvider,
  noSuchUser,
  noSuchVersion,
  pageGroups,
  pageInlinePolicies,
  pageInstanceProfiles,
  pageMembers,
  pageRoles,
  pageUsers,
  policyNotAttachable,
  prepareIdentityRevision,
  quotaExceeded,
  readDefaultDocuments,
  readGrants,
} from './identities.ts';
export { findNamedById, findPrincipalId, principalExists, principalsExist } from './identity-principals.ts';
export type { AppliedLifecycle, PlannedAction, PlannedGroup, StoredLifecyclePolicy } from './lifecycle.ts';
export { findLifecyclePolicy, LIFECYCLE_JOB, pageLifecycleImages } from './lifecycle.ts';
export type { LifecyclePreview, PreviewImage } from './previews.ts';
export { findPreview, pagePreview, PREVIEW_JOB, previewOfImages } from './previews.ts';
export type { ImageStatus } from './storage-class.ts';
export { ACTIVATION_JOB, archivedLayers, findPlace, REFERRERS_JOB } from './storage-class.ts';
export type { ImageEntry, ImagePageOptions, ImagePosition, ImageSummary } from './listings.ts';
export {
  digestsOfTags,
  imagesByDigest,
  pageEntries,
  pageImages,
  pageTags,
  tagsOfImages,
} from './listings.ts';
export { createTotals, prepareBacklogs } from './measures.ts';
export type { Backlog, Totals, TotalsReader } from './measures.ts';
export type { ReferrerPageOptions, ReferrerSummary } from './referrers.ts';
export { findManifest, pageReferrers } from './referrers.ts';
export type { PolicyScope, RegistryAddress, RegistryRecord } from './registries.ts';
export { findRegistry, pageExclusions, registryPolicyNotFound } from './registries.ts';
export type { ExclusionFilter, RepositoryRecord, StoredRepository } from './repositories.ts';
export { pageRepositories, prepareFindRepository, tooManyTags } from './repositories.ts';
export type { Scenario, TemplateChange, TemplateRecord } from './templates.ts';
export { findTemplates, matchTemplate, pageTemplates } from './templates.ts';
export { isForeignKeyViolation, isUniqueViolation } from './violations.ts';

/** A store whose transactions are those of `R`; the product's is {@link Store}. */
export interface StoreOf<R extends Registry> {
  readonly engine: 'sqlite' | 'postgres';
  /** Kysely on connections that cannot write. Sees every transaction whose `transact` has resolved. */
  readonly read: Reader;
  /**
   * Precompiled SQL for the hottest look-ups: `?` placeholders (translated for PostgreSQL), plain rows out. Prepare
   * once and keep the function. With `'keep'` an answer may be kept for as long as nothing is committed: for small
   * answers that are asked for again and again.
   */
  prepare<Row>(sql: string, keep?: 'keep'): PreparedQuery<Row>;
  /**
   * Runs a named transaction and resolves when it is durable. Input and output are plain data.
   *
   * Rejects with the Fault the transaction threw; with `ServiceUnavailableException` when the database cannot be
   * reached, is full or is closing, in which case the transaction was not acknowledged but may have happened if the
   * connection broke during its commit; with the database's own error for anything else (violations.ts reads it).
   */
  transact<Name extends NameOf<R>>(name: Name, input: InputOf<R, Name>): Promise<OutputOf<R, Name>>;
  /** A new name for a writer, for the claims it makes in rows. */
  newWriter(): string;
  /**
   * What became of who made this name with {@link newWriter}, on whatever process. SQLite knows for certain: its files have one
   * process at a time. PostgreSQL knows whether there is a connection.
   */
  fateOf(writer: string): Promise<Fate>;
  /** Waits for writes in flight; later ones are refused. */
  close(): Promise<void>;
}

export type PreparedQuery<Row> = (...parameters: (string | number | null)[]) => Promise<readonly Row[]>;

export type Store = StoreOf<typeof TRANSACTIONS>;

/**
 * Opens (and makes) the SQLite database `file`. The process owns the directory it lies in until `close`: a second owner
 * is refused with an error that names the first. With `readOnly` it owns nothing and `transact` refuses. Other threads
 * of the process join with what `shared` holds.
 */
export function openSqliteStore(options: SqliteOptions): Promise<OwnedSqliteStore<typeof TRANSACTIONS>> {
  return openSqlite(options, new URL('./transactions.ts', import.meta.url));
}

/** The store of this process's owner on another thread; to be closed before the owner's. */
export function joinSqliteStore(shared: SharedSqlite): Promise<Store> {
  return joinSqlite(shared);
}

/** Opens a PostgreSQL database, `postgres://…`, with at most `poolMax` connections (16 unless told). */
export function openPostgresStore(options: { url: string; poolMax?: number }): Promise<Store> {
  return openPostgres(options, TRANSACTIONS);
}
