/** What the STS operations that make sessions share: passed policies and tags, and the answer. */
import { Fault } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as sts from '../model/sts-types.ts';
import { validateIdentityPolicy } from '../policy/policy.ts';
import { findPolicy, findRole, listTags } from '../store/store.ts';
import type { RoleRecord, Store, TagRecord } from '../store/store.ts';
import { readNamedArn, readPolicyArn, roleArn } from './arns.ts';
import type { Identity, ResourceSide } from './identity.ts';
import type { Issuers } from './issuers.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { sealSession } from './sessions.ts';
import type { Session } from './sessions.ts';

export interface StsServices {
  readonly store: Store;
  readonly keys: KeyRing;
  readonly identity: Identity;
  readonly issuers: Issuers;
}

/** Tags in a request. */
type Tags = readonly { readonly Key: string; readonly Value: string }[];
type Descriptors = readonly { readonly arn?: string | undefined }[];

interface PassedPolicies {
  readonly Policy?: string | undefined;
  readonly PolicyArns?: Descriptors | undefined;
}

const POLICY_ARNS_MAX = 10;

/**
 * The session policies of a request; undefined when none was passed.
 *
 * @throws Fault MalformedPolicyDocument, PackedPolicyTooLarge, ValidationError
 */
export async function readSessionPolicies(
  store: Store,
  account: string,
  { Policy: inline, PolicyArns = [] }: PassedPolicies,
): Promise<Session['policies']> {
  const arns = [...new Set(PolicyArns.flatMap(({ arn }) => arn ?? []))];
  if (inline === undefined && arns.length === 0) return undefined;
  if (PolicyArns.length > POLICY_ARNS_MAX) {
    throw new Fault(
      'ValidationError',
      `1 validation error detected: Value at 'policyArns' failed to satisfy constraint: Member must have length less than or equal to ${POLICY_ARNS_MAX}`,
    );
  }
  const problem = inline === undefined ? undefined : validateIdentityPolicy(inline);
  if (problem !== undefined) throw new Fault('MalformedPolicyDocument', problem);
  for (const arn of arns) {
    const named = readPolicyArn(arn);
    const exists =
      MANAGED_POLICIES.has(arn) ||
      (named?.account === account && (await findPolicy(store.read, arn)) !== undefined);
    if (!exists) throw new Fault('MalformedPolicyDocument', `Policy ${arn} does not exist or is not usable.`);
  }
  const percent = policyPercent({ inline, arns });
  if (percent > 100) {
    throw new Fault(
      'PackedPolicyTooLarge',
      `Packed policy consumes ${percent}% of allotted space, please use smaller policy.`,
    );
  }
  return { inline, arns };
}

function policyPercent(policies: Session['policies']): number {
  const characters = [policies?.inline ?? '', ...(policies?.arns ?? [])].join('').length;
  return Math.ceil((100 * characters) / LIMITS.sessionPolicyCharactersMax);
}

/**
 * Session tags, checked.
 *
 * @throws Fault InvalidParameterValue, ValidationError, PackedPolicyTooLarge
 */
export function readSessionTags(
  passed: Tags | undefined,
  inherited: readonly TagRecord[] = [],
): readonly TagRecord[] {
  const tags = (passed ?? []).map(({ Key, Value }) => ({ key: Key, value: Value }));
  const lower = tags.map(({ key }) => key.toLowerCase());
  if (new Set(lower).size < lower.length) {
    throw new Fault(
      'InvalidParameterValue',
      'Duplicate tag keys found. Please note that Tag keys are case insensitive.',
    );
  }
  if (tags.length > LIMITS.resourceTagsMax) {
    throw new Fault(
      'ValidationError',
      `1 validation error detected: Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to ${LIMITS.resourceTagsMax}`,
    );
  }
  if (lower.some((key) => key.startsWith('aws:'))) {
    throw new Fault('ValidationError', 'Tag keys starting with "aws:" are reserved for system use.');
  }
  if (inherited.some(({ key }) => lower.includes(key.toLowerCase()))) {
    throw new Fault(
      'InvalidParameterValue',
      "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.",
    );
  }
  const percent = tagPercent([...inherited, ...tags]);
  if (percent > 100) {
    throw new Fault(
      'PackedPolicyTooLarge',
      `Packed size of session tags consumes ${percent}% of allotted space.`,
    );
  }
  return [...inherited, ...tags];
}

function tagPercent(tags: readonly TagRecord[]): number {
  const characters = tags.reduce((sum, { key, value }) => sum + key.length + value.length, 0);
  return Math.ceil((100 * characters) / LIMITS.sessionTagCharactersMax);
}

/** How full the session's room is. WHY not AWS's figure: its packing is not published (iam-sts.md §2.8). */
export function packedPercent(session: Pick<Session, 'policies' | 'tags'>): number {
  return Math.max(policyPercent(session.policies), tagPercent(session.tags));
}

/** `aws:RequestTag/*` and `aws:TagKeys` of session tags. */
export function sessionTagKeys(tags: readonly TagRecord[]): [string, string | readonly string[]][] {
  if (tags.length === 0) return [];
  return [
    ['aws:tagkeys', tags.map(({ key }) => key)],
    ...tags.map(({ key, value }): [string, string] => [`aws:requesttag/${key.toLowerCase()}`, value]),
  ];
}

/** The role a request names; `record` is undefined when there is none. @throws Fault ValidationError */
export async function findNamedRole(
  store: Store,
  arn: string,
): Promise<{ readonly account: string; readonly record: RoleRecord | undefined }> {
  const named = readNamedArn(arn);
  if (named?.type !== 'role') throw new Fault('ValidationError', `${arn} is invalid`);
  const record = await findRole(store.read, named.account, named.name);
  // The path is part of who is meant.
  return { account: named.account, record: record && roleArn(record) === arn ? record : undefined };
}

/** The role's side of a check: its trust policy, which grants nothing when there is no role. */
export async function trustSide(
  store: Store,
  { account, record }: Awaited<ReturnType<typeof findNamedRole>>,
): Promise<ResourceSide> {
  const tags = record === undefined ? [] : await listTags(store.read, record.id);
  return {
    account,
    policy: record?.trustPinned,
    tags: new Map(tags.map(({ key, value }) => [key, value])),
    trust: true,
  };
}

/** @throws Fault ValidationError when a role's session may not last that long */
export function readRoleSeconds(asked: number | undefined, role: RoleRecord, chained: boolean): number {
  const seconds = asked ?? LIMITS.roleSessionSeconds;
  if (chained && seconds > LIMITS.chainedSessionSecondsMax) {
    throw new Fault(
      'ValidationError',
      'The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.',
    );
  }
  if (seconds > role.maxSessionSeconds) {
    throw new Fault(
      'ValidationError',
      'The requested DurationSeconds exceeds the MaxSessionDuration set for this role.',
    );
  }
  return seconds;
}

/** INVARIANT: the one place where a session's secret leaves. */
export function showCredentials(keys: KeyRing, session: Session): sts.Credentials {
  return {
    AccessKeyId: session.accessKeyId,
    SecretAccessKey: session.secret,
    SessionToken: sealSession(keys, session),
    Expiration: new Date(session.expiresAt),
  };
}
