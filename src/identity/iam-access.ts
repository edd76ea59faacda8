/** What the IAM operations share: their services, whom they are about, what must be allowed, checks of tags and policies. */
import { Fault } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { AttachedPermissionsBoundary } from '../model/iam-types.ts';
import { validateIdentityPolicy } from '../policy/policy.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';
import { findGroup, findRole, findUser, noSuchNamed, noSuchUser } from '../store/store.ts';
import type { OwnerKind, Store, TagRecord, UserRecord } from '../store/store.ts';
import { parsePolicyArn, readPolicyArn, requireArn, rootArn } from './arns.ts';
import type { Guardrails } from './guardrails.ts';
import type { Identity, Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';

export interface IamServices {
  readonly store: Store;
  readonly keys: KeyRing;
  readonly identity: Identity;
  /** for simulation: the same that `identity` has */
  readonly guardrails?: Guardrails | undefined;
}

export type Context = OperationContext<Principal>;
export type ConditionKeys = ReadonlyMap<string, string | readonly string[]>;

interface Tag {
  readonly Key: string;
  readonly Value: string;
}

/**
 * The user an operation is about: the one named, else the caller itself.
 *
 * @throws Fault ValidationError when nobody is named and the caller is no user
 */
export function subjectOf(input: { readonly UserName?: string | undefined }, context: Context): string {
  const name = input.UserName ?? context.caller.userName;
  if (name === undefined) {
    throw new Fault('ValidationError', 'Must specify userName when calling with non-User credentials');
  }
  return name;
}

/** How denials name things (iam-sts.md §4.5). */
const SHOWN = { user: 'user', group: 'group', role: 'role', 'instance-profile': 'instance profile' } as const;

/**
 * A check on a user, group, role or instance profile of the caller's account. `authorize` looks up its path; a denial shows
 * the name only, so that it reads the same whether it exists or not.
 */
export function namedCheck(
  kind: keyof typeof SHOWN,
  action: string,
  context: Context,
  name: string,
  keys?: ConditionKeys,
): AccessCheck {
  return {
    action: `iam:${action}`,
    resource: `arn:aws:iam::${context.caller.account}:${kind}/${name}`,
    shownAs: `${SHOWN[kind]} ${name}`,
    ...(keys && { keys }),
  };
}

/** {@link namedCheck} of a user. */
export function userCheck(
  action: string,
  context: Context,
  userName: string,
  keys?: ConditionKeys,
): AccessCheck {
  return namedCheck('user', action, context, userName, keys);
}

/** A check on a listing by path. */
export function pathCheck(
  action: string,
  kind: keyof typeof SHOWN,
  { caller: { account } }: Context,
  pathPrefix = '/',
): AccessCheck {
  const resource = `arn:aws:iam::${account}:${kind}${pathPrefix}`;
  return { action: `iam:${action}`, resource, shownAs: resource };
}

/** As {@link userCheck} for operations that answer about root when root asks without naming a user. */
export function selfCheck(
  action: string,
  context: Context,
  input: { readonly UserName?: string | undefined },
): AccessCheck {
  return input.UserName === undefined && context.caller.caller.kind === 'root'
    ? { action: `iam:${action}`, resource: rootArn(context.caller.account) }
    : userCheck(action, context, subjectOf(input, context));
}

/** A check on a managed policy. @throws Fault ValidationError, InvalidInput when it is not the ARN of one */
export function policyCheck(action: string, arn: string, keys?: ConditionKeys): AccessCheck {
  parsePolicyArn(arn);
  return { action: `iam:${action}`, resource: arn, shownAs: `policy ${arn}`, ...(keys && { keys }) };
}

/** A check on an identity provider. @throws Fault ValidationError, InvalidInput when it is not the ARN of one */
export function providerCheck(action: string, arn: string, keys?: ConditionKeys): AccessCheck {
  requireArn(arn);
  if (!/^arn:aws:iam::[0-9]{12}:oidc-provider\/./.test(arn)) {
    throw new Fault('InvalidInput', `ARN ${arn} is not valid.`);
  }
  return { action: `iam:${action}`, resource: arn, ...(keys && { keys }) };
}

/** What users, groups and roles have in common. @throws Fault NoSuchEntity */
export async function requireOwner(
  { store }: IamServices,
  { caller: { account } }: Context,
  kind: OwnerKind,
  name: string,
): Promise<{ readonly id: string; readonly name: string; readonly boundaryArn?: string | undefined }> {
  const find = { user: findUser, group: findGroup, role: findRole }[kind];
  const owner = await find(store.read, account, name);
  if (owner === undefined) throw noSuchNamed(kind, name);
  return owner;
}

/** @throws Fault NoSuchEntity */
export async function requireUser(
  services: IamServices,
  context: Context,
  userName: string,
): Promise<UserRecord> {
  const user = await findUser(services.store.read, context.caller.account, userName);
  if (user === undefined) throw noSuchUser(userName);
  return user;
}

/** `aws:RequestTag/*` and `aws:TagKeys` of a request that sets tags. */
export function tagConditionKeys(tags: readonly Tag[] | undefined): Map<string, string | readonly string[]> {
  const keys = new Map<string, string | readonly string[]>();
  if (tags === undefined || tags.length === 0) return keys;
  keys.set(
    'aws:tagkeys',
    tags.map(({ Key }) => Key),
  );
  for (const { Key, Value } of tags) keys.set(`aws:requesttag/${Key.toLowerCase()}`, Value);
  return keys;
}

/** @throws Fault InvalidInput for keys that differ at most in case, and for AWS's own keys */
export function readTags(tags: readonly Tag[] | undefined): TagRecord[] {
  const records = (tags ?? []).map(({ Key, Value }) => ({ key: Key, value: Value }));
  if (new Set(records.map(({ key }) => key.toLowerCase())).size < records.length) {
    throw new Fault(
      'InvalidInput',
      'Duplicate tag keys found. Please note that Tag keys are case insensitive.',
    );
  }
  if (records.some(({ key }) => key.toLowerCase().startsWith('aws:'))) {
    throw new Fault('InvalidInput', 'Tag keys starting with "aws:" are reserved for system use.');
  }
  return records;
}

export function showTags(tags: readonly TagRecord[]): { Key: string; Value: string }[] {
  return tags.map(({ key, value }) => ({ Key: key, Value: value }));
}

/** @throws Fault MalformedPolicyDocument */
export function checkDocument(document: string): void {
  const problem = validateIdentityPolicy(document);
  if (problem !== undefined) throw new Fault('MalformedPolicyDocument', problem);
}

/**
 * Whether the policy to attach is AWS-managed.
 *
 * @throws Fault ValidationError, InvalidInput (no ARN of a policy), PolicyNotAttachable (of a service-linked role)
 */
export function isManagedAttachable(arn: string): boolean {
  parsePolicyArn(arn);
  const managed = MANAGED_POLICIES.get(arn);
  if (managed !== undefined && !managed.attachable) {
    throw new Fault('PolicyNotAttachable', 'Cannot attach a Service Role Policy to a Customer Role.');
  }
  return managed !== undefined;
}

/** @throws Fault InvalidParameterValue (no ARN of a policy), PolicyNotAttachable */
export function isManagedBoundary(arn: string): boolean {
  if (readPolicyArn(arn) === undefined) {
    throw new Fault('InvalidParameterValue', `Value (${arn}) for parameter PermissionsBoundary is invalid.`);
  }
  return isManagedAttachable(arn);
}

/** The member of a user or role that has a boundary. */
export function showBoundary(arn: string | undefined): { PermissionsBoundary?: AttachedPermissionsBoundary } {
  if (arn === undefined) return {};
  // WHY: the wire says `Policy` although the model's enumeration has `PermissionsBoundaryPolicy` (iam-sts.md §6.5).
  const type = 'Policy' as NonNullable<AttachedPermissionsBoundary['PermissionsBoundaryType']>;
  return { PermissionsBoundary: { PermissionsBoundaryType: type, PermissionsBoundaryArn: arn } };
}

/** A policy text as IAM returns it: percent-encoded after RFC 3986. */
export function encodeDocument(document: string): string {
  return encodeURIComponent(document).replace(
    /[!'()*]/g,
    (letter) => `%${letter.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
