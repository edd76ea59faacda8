/** Principals as they would ask, without their credentials: whom explanations are about. */
import { Fault } from '../domain/faults.ts';
import { compilePolicy } from '../policy/policy.ts';
import { findRole, findUser, readGrants } from '../store/store.ts';
import type { RoleRecord, Store, UserRecord } from '../store/store.ts';
import { readNamedArn, roleArn, userArn } from './arns.ts';
import type { Subject } from './identity.ts';
import { ADMINISTRATOR_ACCESS, MANAGED_POLICIES } from './managed-policies.ts';
import { rolePrincipal, rootPrincipal, userPrincipal } from './principals.ts';
import type { LoadedPrincipal } from './principals.ts';

/** A principal an ARN names: the root of an account, a user, a role or a session of a role. */
export interface NamedSubject {
  readonly kind: 'root' | 'user' | 'role';
  readonly account: string;
  /** user or role */
  readonly name: string;
  /** with path, as it was named; undefined for sessions, whose ARN has none */
  readonly arn: string | undefined;
  readonly session: string;
}

const ROOT = /^arn:aws:iam::([0-9]{12}):root$/;
const SESSION = /^arn:aws:sts::([0-9]{12}):assumed-role\/([^/:*?]+)\/([\w+=,.@-]+)$/;
/** The session an imagined holder of a role has. */
const IMAGINED_SESSION = 'explain';

/** @throws Fault ValidationException for ARNs of anything else */
export function readSubjectArn(arn: string): NamedSubject {
  const [, root] = ROOT.exec(arn) ?? [];
  if (root !== undefined) return { kind: 'root', account: root, name: '', arn, session: '' };
  const [, account, role, session] = SESSION.exec(arn) ?? [];
  if (account !== undefined && role !== undefined && session !== undefined) {
    return { kind: 'role', account, name: role, arn: undefined, session };
  }
  const named = readNamedArn(arn);
  if (named?.type === 'user' || named?.type === 'role') {
    const { type: kind, name } = named;
    return { kind, account: named.account, name, arn, session: IMAGINED_SESSION };
  }
  throw new Fault('ValidationException', `${arn} is no user, role, session of a role or root of an account.`);
}

/**
 * A principal of this server with its policies. A role asks as one of its sessions, without session policies.
 *
 * @throws Fault NoSuchEntity
 */
export async function loadSubject(store: Store, named: NamedSubject, now: number): Promise<Subject> {
  const { kind, account, name, arn } = named;
  if (kind === 'root') return subjectOf(rootPrincipal(account, '', ''));
  if (kind === 'user') {
    const user = await findUser(store.read, account, name);
    if (user === undefined || userArn(user) !== arn) throw noSuchSubject('user', name);
    return await userSubject(store, user);
  }
  const role = await findRole(store.read, account, name);
  if (role === undefined || (arn !== undefined && roleArn(role) !== arn)) throw noSuchSubject('role', name);
  return await roleSubject(store, role, now, named.session);
}

export async function userSubject(store: Store, user: UserRecord): Promise<Subject> {
  return subjectOf(userPrincipal(user, '', '', await readGrants(store.read, 'user', user), compilePolicy));
}

export async function roleSubject(
  store: Store,
  role: RoleRecord,
  now: number,
  name = IMAGINED_SESSION,
): Promise<Subject> {
  const session = {
    id: '',
    accessKeyId: '',
    secret: '',
    kind: 'role' as const,
    account: role.account,
    ownerId: role.id,
    name,
    issuedAt: now,
    expiresAt: now,
    tags: [],
    transitiveKeys: [],
  };
  const grants = await readGrants(store.read, 'role', role);
  return subjectOf(rolePrincipal(session, role, grants, undefined, compilePolicy));
}

/**
 * Somebody of another account, of whom nothing is read: taken to be allowed everything by that account, so that what decides
 * is the resource's side alone. `arn` may name anybody a policy can name.
 */
export function foreignSubject(arn: string, account: string): Subject {
  const everything = MANAGED_POLICIES.get(ADMINISTRATOR_ACCESS)?.document ?? '';
  const [, sessionAccount, role] = SESSION.exec(arn) ?? [];
  const isRole = sessionAccount !== undefined || arn.startsWith(`arn:aws:iam::${account}:role/`);
  const roleName = sessionAccount === undefined ? arn : `arn:aws:iam::${account}:role/${role ?? ''}`;
  const kind = isRole ? 'role-session' : ROOT.test(arn) ? 'root' : 'user';
  return {
    caller: {
      kind,
      account,
      arn,
      id: arn,
      ...(isRole && { roleArn: roleName, roleId: roleName }),
    },
    identityPolicies: [{ policy: compilePolicy(everything), name: 'whatever the other account allows' }],
    boundary: undefined,
    sessionPolicies: undefined,
    conditionKeys: new Map([
      ['aws:principalarn', isRole ? roleName : arn],
      ['aws:principalaccount', account],
      ['aws:principalisawsservice', 'false'],
      ['aws:viaawsservice', 'false'],
    ]),
  };
}

function subjectOf({ principal, ...loaded }: LoadedPrincipal): Subject {
  return { caller: principal.caller, ...loaded };
}

function noSuchSubject(kind: 'user' | 'role', name: string): Fault {
  return new Fault('NoSuchEntity', `The ${kind} with name ${name} cannot be found.`);
}
