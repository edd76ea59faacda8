/** What the IAM operations share: their services, whom they are about, what must be allowed, checks of tags and policies. */
import { Fault } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { validateIdentityPolicy } from '../policy/policy.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';
import { findUser, noSuchUser } from '../store/store.ts';
import type { Store, TagRecord, UserRecord } from '../store/store.ts';
import { parsePolicyArn, rootArn } from './arns.ts';
import type { Identity, Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';

export interface IamServices {
  readonly store: Store;
  readonly keys: KeyRing;
  readonly identity: Identity;
}

export type Context = OperationContext<Principal>;
type ConditionKeys = ReadonlyMap<string, string | readonly string[]>;

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

/**
 * A check on a user of the caller's account. `authorize` looks up the user's path; a denial shows the name only, so
 * that it reads the same whether the user exists or not.
 */
export function userCheck(
  action: string,
  context: Context,
  userName: string,
  keys?: ConditionKeys,
): AccessCheck {
  return {
    action: `iam:${action}`,
    resource: `arn:aws:iam::${context.caller.account}:user/${userName}`,
    shownAs: `user ${userName}`,
    ...(keys && { keys }),
  };
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

/** A policy text as IAM returns it: percent-encoded after RFC 3986. */
export function encodeDocument(document: string): string {
  return encodeURIComponent(document).replace(
    /[!'()*]/g,
    (letter) => `%${letter.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
