/** The first six versions of the schema. They were released and are never edited; what follows is in migrations.ts. */
import type { Migration, Words } from './migration-words.ts';

/** One entry a version, from 1 on. */
export const FIRST_MIGRATIONS: readonly Migration[] = [
  createTables,
  createJobsAndEvents,
  createAliases,
  createLifecycle,
  createRegistries,
  createIdentityTables,
];

function createTables({ text, int, bytes, keyed, wide }: Words): readonly string[] {
  return [
    `create table account (id ${text} primary key, created_at ${int} not null)${keyed}`,
    `create table revision (subject ${text} primary key, value ${int} not null)${keyed}`,

    `create table iam_user (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      boundary_arn ${text},
      created_at ${int} not null,
      constraint iam_user_name unique (account, name_lower))${keyed}`,
    `create index iam_user_boundary on iam_user (boundary_arn) where boundary_arn is not null`,
    `create table iam_user_tag (
      user_id ${text} not null references iam_user on delete restrict,
      key_lower ${text} not null,
      key ${text} not null,
      value ${text} not null,
      primary key (user_id, key_lower))${keyed}`,
    `create table iam_access_key (
      id ${text} primary key,
      account ${text} not null,
      user_id ${text} references iam_user on delete restrict,
      secret ${bytes} not null,
      status ${text} not null,
      created_at ${int} not null,
      last_used_at ${int},
      last_used_service ${text},
      last_used_region ${text})${keyed}`,
    `create index iam_access_key_user on iam_access_key (user_id)`,
    `create table iam_policy (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      arn ${text} not null,
      description ${text},
      default_version ${int} not null,
      next_version ${int} not null,
      created_at ${int} not null,
      updated_at ${int} not null,
      constraint iam_policy_name unique (account, name_lower),
      constraint iam_policy_arn unique (arn))${keyed}`,
    `create table iam_policy_tag (
      policy_id ${text} not null references iam_policy on delete restrict,
      key_lower ${text} not null,
      key ${text} not null,
      value ${text} not null,
      primary key (policy_id, key_lower))${keyed}`,
    `create table iam_policy_version (
      policy_id ${text} not null references iam_policy on delete restrict,
      version ${int} not null,
      document ${text} not null,
      created_at ${int} not null,
      primary key (policy_id, version))${wide}`,
    `create table iam_user_policy (
      user_id ${text} not null references iam_user on delete restrict,
      name ${text} not null,
      document ${text} not null,
      primary key (user_id, name))${wide}`,
    `create table iam_user_attachment (
      user_id ${text} not null references iam_user on delete restrict,
      policy_arn ${text} not null,
      attached_at ${int} not null,
      primary key (user_id, policy_arn))${keyed}`,
    `create index iam_user_attachment_policy on iam_user_attachment (policy_arn)`,

    `create table repository (
      id ${text} not null primary key,
      account ${text} not null,
      region ${text} not null,
      name ${text} not null,
      created_at ${int} not null,
      mutability ${text} not null,
      exclusion_filters ${text},
      scan_on_push ${int} not null,
      encryption_type ${text} not null,
      kms_key ${text},
      content_key ${text} not null,
      policy ${text},
      constraint repository_name unique (account, region, name))${wide}`,
    `create table repository_tag (
      repository_id ${text} not null references repository on delete cascade,
      key ${text} not null,
      value ${text} not null,
      primary key (repository_id, key))${keyed}`,

    `create table blob (
      storage_key ${text} primary key,
      digest ${text} not null,
      content_key ${text} not null,
      size ${int} not null,
      created_at ${int} not null,
      constraint blob_content unique (digest, content_key))${keyed}`,
    `create table repository_blob (
      repository_id ${text} not null references repository on delete restrict,
      digest ${text} not null,
      storage_key ${text} not null references blob on delete restrict,
      size ${int} not null,
      leased_until ${int} not null,
      primary key (repository_id, digest))${keyed}`,
    `create index repository_blob_storage on repository_blob (storage_key)`,

    // WHY: the manifest comes last, so that reading the other columns of a row does not walk its overflow pages.
    `create table image (
      id ${text} not null primary key,
      repository_id ${text} not null references repository on delete restrict,
      digest ${text} not null,
      media_type ${text} not null,
      artifact_type ${text},
      subject_digest ${text},
      size ${int} not null,
      pushed_at ${int} not null,
      last_pulled_at ${int},
      manifest ${bytes} not null,
      constraint image_digest unique (repository_id, digest))${wide}`,
    `create index image_pushed on image (repository_id, pushed_at desc, digest)`,
    `create index image_subject on image (repository_id, subject_digest, pushed_at) where subject_digest is not null`,
    `create table image_blob (
      repository_id ${text} not null,
      image_digest ${text} not null,
      blob_digest ${text} not null,
      media_type ${text} not null,
      primary key (repository_id, image_digest, blob_digest),
      constraint image_blob_image foreign key (repository_id, image_digest)
        references image (repository_id, digest) on delete restrict,
      constraint image_blob_blob foreign key (repository_id, blob_digest)
        references repository_blob (repository_id, digest) on delete restrict)${keyed}`,
    `create index image_blob_blob_digest on image_blob (repository_id, blob_digest, media_type)`,
    `create table image_child (
      repository_id ${text} not null,
      parent_digest ${text} not null,
      child_digest ${text} not null,
      primary key (repository_id, parent_digest, child_digest),
      constraint image_child_parent foreign key (repository_id, parent_digest)
        references image (repository_id, digest) on delete restrict,
      constraint image_child_child foreign key (repository_id, child_digest)
        references image (repository_id, digest) on delete restrict)${keyed}`,
    `create index image_child_child_digest on image_child (repository_id, child_digest)`,
    `create table tag (
      repository_id ${text} not null,
      name ${text} not null,
      image_digest ${text} not null,
      tagged_at ${int} not null,
      primary key (repository_id, name),
      constraint tag_image foreign key (repository_id, image_digest)
        references image (repository_id, digest) on delete restrict)${keyed}`,
    `create index tag_image_digest on tag (repository_id, image_digest, tagged_at)`,

    `create table upload (
      id ${text} primary key,
      repository_id ${text} not null references repository on delete cascade,
      storage_key ${text} not null,
      content_key ${text} not null,
      size ${int} not null,
      sha256 ${text} not null,
      parts ${int} not null default 0,
      last_part_size ${int} not null default 0,
      small_part ${int} not null default 0,
      writer ${text},
      writer_until ${int},
      created_at ${int} not null,
      updated_at ${int} not null,
      completed_digest ${text},
      constraint upload_storage unique (storage_key))${keyed}`,
    `create index upload_repository on upload (repository_id)`,
    `create index upload_updated on upload (updated_at)`,

    `create table garbage_review (
      repository_id ${text} not null,
      digest ${text} not null,
      review_after ${int} not null,
      primary key (repository_id, digest))${keyed}`,
    `create index garbage_review_due on garbage_review (review_after)`,
    `create table garbage_trash (
      storage_key ${text} primary key,
      delete_after ${int} not null)${keyed}`,
    `create index garbage_trash_due on garbage_trash (delete_after)`,
  ];
}

function createJobsAndEvents({ text, int, counted, keyed, wide }: Words): readonly string[] {
  return [
    `create table job (
      kind ${text} not null,
      key ${text} not null,
      payload ${text} not null,
      run_at ${int},
      due_at ${int},
      lease ${text},
      attempts ${int} not null default 0,
      every_ms ${int},
      error ${text},
      died_at ${int},
      primary key (kind, key))${keyed}`,
    `create index job_due on job (kind, due_at)`,
    `create table event (
      id ${counted},
      account ${text} not null,
      region ${text} not null,
      repository ${text} not null,
      record ${text} not null,
      created_at ${int} not null,
      position ${int})${wide}`,
    `create index event_position on event (position)`,
    `create table event_delivery (
      sink ${text} not null,
      stream ${text} not null,
      position ${int} not null,
      event_id ${int} not null references event on delete restrict,
      attempts ${int} not null default 0,
      retry_at ${int} not null,
      error ${text},
      died_at ${int},
      primary key (sink, stream, position))${keyed}`,
    `create index event_delivery_event on event_delivery (event_id)`,
    `create index event_delivery_dead on event_delivery (died_at) where died_at is not null`,
  ];
}

function createAliases({ text, int, keyed }: Words): readonly string[] {
  // WHY the alias first: a mount that names no source looks through all repositories.
  const aliasTable = (name: string, target: string): readonly string[] => [
    `create table ${name} (
      alias ${text} not null,
      repository_id ${text} not null,
      digest ${text} not null,
      primary key (alias, repository_id),
      constraint ${name}_digest foreign key (repository_id, digest)
        references ${target} (repository_id, digest) on delete cascade)${keyed}`,
    `create index ${name}_content on ${name} (repository_id, digest)`,
  ];
  return [
    ...aliasTable('blob_alias', 'repository_blob'),
    ...aliasTable('image_alias', 'image'),
    `alter table tag add column alias ${text}`,
    `alter table upload add column contested ${int} not null default 0`,
  ];
}

function createLifecycle({ text, int, keyed, wide }: Words): readonly string[] {
  return [
    // WHY null for what is usual: behind the manifest a null is read without walking the manifest's overflow pages.
    `alter table image add column status ${text}`,
    `alter table image add column archived_at ${int}`,
    `alter table image add column activated_at ${int}`,
    `create index image_stored on image (repository_id, status, pushed_at desc, digest) where status is not null`,
    `create table lifecycle_policy (
      repository_id ${text} not null primary key references repository on delete cascade,
      policy ${text} not null,
      evaluated_at ${int})${wide}`,
    `create table lifecycle_preview (
      repository_id ${text} not null primary key references repository on delete cascade,
      preview ${text} not null,
      policy ${text} not null,
      status ${text} not null,
      started_at ${int} not null,
      completed_at ${int},
      expiring ${int} not null,
      transitioning ${int} not null)${wide}`,
    `create table lifecycle_preview_image (
      repository_id ${text} not null references repository on delete cascade,
      preview ${text} not null,
      place ${int} not null,
      digest ${text} not null,
      tags ${text} not null,
      pushed_at ${int} not null,
      action ${text} not null,
      rule_priority ${int} not null,
      storage_class ${text} not null,
      primary key (repository_id, preview, place))${keyed}`,
    `create index lifecycle_preview_image_digest on lifecycle_preview_image (repository_id, preview, digest)`,
  ];
}

function createRegistries({ text, int, keyed, wide }: Words): readonly string[] {
  return [
    `create table registry (
      account ${text} not null,
      region ${text} not null,
      policy ${text},
      policy_scope ${text},
      blob_mounting ${int},
      primary key (account, region))${keyed}`,
    `create table pull_time_exclusion (
      account ${text} not null,
      region ${text} not null,
      principal_arn ${text} not null,
      created_at ${int} not null,
      primary key (account, region, principal_arn))${keyed}`,
    `create table creation_template (
      account ${text} not null,
      region ${text} not null,
      key ${text} not null,
      prefix ${text} not null,
      description ${text},
      encryption_type ${text} not null,
      kms_key ${text},
      mutability ${text} not null,
      exclusion_filters ${text} not null,
      tags ${text} not null,
      repository_policy ${text},
      lifecycle_policy ${text},
      applied_for ${text} not null,
      custom_role_arn ${text},
      created_at ${int} not null,
      updated_at ${int} not null,
      primary key (account, region, key))${wide}`,
  ];
}

/**
 * Groups, roles, providers, passwords, sessions. What users alone had (inline policies, attachments, tags) becomes what every
 * owner has.
 */
function createIdentityTables({ text, int, keyed, wide }: Words): readonly string[] {
  return [
    `create table iam_group (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      created_at ${int} not null,
      constraint iam_group_name unique (account, name_lower))${keyed}`,
    `create table iam_group_member (
      group_id ${text} not null references iam_group on delete restrict,
      user_id ${text} not null references iam_user on delete restrict,
      added_at ${int} not null,
      primary key (group_id, user_id))${keyed}`,
    `create index iam_group_member_user on iam_group_member (user_id)`,
    `create table iam_role (
      id ${text} not null primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      trust_policy ${text} not null,
      trust_pinned ${text} not null,
      description ${text},
      max_session_seconds ${int} not null,
      boundary_arn ${text},
      service ${text},
      created_at ${int} not null,
      last_used_at ${int},
      last_used_region ${text},
      constraint iam_role_name unique (account, name_lower))${wide}`,
    `create index iam_role_boundary on iam_role (boundary_arn) where boundary_arn is not null`,
    `create table iam_instance_profile (
      id ${text} primary key,
      account ${text} not null,
      name ${text} not null,
      name_lower ${text} not null,
      path ${text} not null,
      role_id ${text} references iam_role on delete restrict,
      created_at ${int} not null,
      constraint iam_instance_profile_name unique (account, name_lower))${keyed}`,
    `create index iam_instance_profile_role on iam_instance_profile (role_id) where role_id is not null`,
    `create table iam_oidc_provider (
      id ${text} not null primary key,
      account ${text} not null,
      arn ${text} not null,
      url ${text} not null,
      client_ids ${text} not null,
      thumbprints ${text} not null,
      created_at ${int} not null,
      constraint iam_oidc_provider_arn unique (arn))${wide}`,
    `create index iam_oidc_provider_account on iam_oidc_provider (account, arn)`,
    `create table iam_inline_policy (
      owner_id ${text} not null,
      name ${text} not null,
      document ${text} not null,
      primary key (owner_id, name))${wide}`,
    `create table iam_attachment (
      owner_id ${text} not null,
      policy_arn ${text} not null,
      account ${text} not null,
      attached_at ${int} not null,
      primary key (owner_id, policy_arn))${keyed}`,
    `create index iam_attachment_policy on iam_attachment (policy_arn, account)`,
    `create table iam_tag (
      owner_id ${text} not null,
      key_lower ${text} not null,
      key ${text} not null,
      value ${text} not null,
      primary key (owner_id, key_lower))${keyed}`,
    `insert into iam_inline_policy (owner_id, name, document) select user_id, name, document from iam_user_policy`,
    `insert into iam_attachment (owner_id, policy_arn, account, attached_at)
      select a.user_id, a.policy_arn, u.account, a.attached_at
      from iam_user_attachment a join iam_user u on u.id = a.user_id`,
    `insert into iam_tag (owner_id, key_lower, key, value) select user_id, key_lower, key, value from iam_user_tag`,
    `insert into iam_tag (owner_id, key_lower, key, value) select policy_id, key_lower, key, value from iam_policy_tag`,
    `drop table iam_user_policy`,
    `drop table iam_user_attachment`,
    `drop table iam_user_tag`,
    `drop table iam_policy_tag`,
    `create table iam_login_profile (
      user_id ${text} primary key references iam_user on delete restrict,
      hash ${text} not null,
      reset_required ${int} not null,
      created_at ${int} not null,
      changed_at ${int} not null,
      last_used_at ${int},
      previous ${text} not null)${keyed}`,
    `create table iam_account_alias (
      account ${text} primary key,
      alias ${text} not null,
      constraint iam_account_alias_alias unique (alias))${keyed}`,
    `create table iam_password_policy (account ${text} primary key, policy ${text} not null)${keyed}`,
    `create table iam_credential_report (
      account ${text} not null primary key,
      content ${text} not null,
      generated_at ${int} not null)${wide}`,
    `create table iam_deletion_task (
      id ${text} primary key,
      account ${text} not null,
      created_at ${int} not null)${keyed}`,
    `create table sts_session (
      id ${text} not null primary key,
      token ${text} not null,
      expires_at ${int} not null)${wide}`,
    `create index sts_session_expiry on sts_session (expires_at)`,
  ];
}
