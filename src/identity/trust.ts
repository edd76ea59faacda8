/** Trust policies: checked, pinned to unique ids when they are written, shown with ARNs (iam-sts.md §2.4, §2.8). */
import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import {
  compilePolicy,
  policySizeOf,
  principalsNamed,
  replacePrincipals,
  validateTrustPolicy,
} from '../policy/policy.ts';
import { findNamedById, findPrincipalId, principalExists, quotaExceeded } from '../store/store.ts';
import type { RoleRecord, Store } from '../store/store.ts';
import { roleArn, userArn } from './arns.ts';

const UNIQUE_ID = /^A(?:IDA|ROA)[A-Z2-7]{16,}$/;

/**
 * A trust policy as it is stored: as written, and with users and roles replaced by their unique ids, so that whoever is made
 * later under the same name is a stranger.
 *
 * @throws Fault MalformedPolicyDocument (also when a named principal does not exist), LimitExceeded
 */
export async function pinTrustPolicy(
  store: Store,
  text: string,
): Promise<{ readonly policy: string; readonly pinned: string }> {
  const problem = validateTrustPolicy(text);
  if (problem !== undefined) throw new Fault('MalformedPolicyDocument', problem);
  if (policySizeOf(text) > LIMITS.trustPolicyCharactersMax) {
    throw quotaExceeded('ACLSizePerRole', LIMITS.trustPolicyCharactersMax);
  }
  const ids = new Map<string, string>();
  for (const named of principalsNamed(compilePolicy(text))) {
    if (named.type !== 'AWS') continue;
    const id = await findPrincipalId(store.read, named);
    if (id !== undefined) ids.set(named.value, id);
    else if (!(await principalExists(store.read, named))) {
      throw new Fault('MalformedPolicyDocument', `Invalid principal in policy: "AWS":"${named.value}"`);
    }
  }
  const pinned =
    ids.size === 0
      ? text
      : replacePrincipals(text, (type, value) => (type === 'AWS' ? (ids.get(value) ?? value) : value));
  return { policy: text, pinned };
}

/**
 * The trust policy as it is returned: as written while everybody it names is still called so; otherwise with the present
 * ARNs, and the bare unique id of whoever is gone.
 */
export async function showTrustPolicy(store: Store, role: RoleRecord): Promise<string> {
  const { trustPolicy, trustPinned } = role;
  if (trustPolicy === trustPinned) return trustPolicy;
  const written = new Set(principalsNamed(compilePolicy(trustPolicy)).map(({ value }) => value));
  const arns = new Map<string, string>();
  for (const { value } of principalsNamed(compilePolicy(trustPinned))) {
    if (!UNIQUE_ID.test(value)) continue;
    const found = await findNamedById(store.read, value);
    if (found !== undefined) arns.set(value, found.kind === 'role' ? roleArn(found) : userArn(found));
    else if (!written.has(value)) arns.set(value, value);
  }
  if ([...arns.values()].every((arn) => written.has(arn))) return trustPolicy;
  return replacePrincipals(trustPinned, (type, value) =>
    type === 'AWS' ? (arns.get(value) ?? value) : value,
  );
}
