/**
 * Principals with everything a decision needs: what they are, their policies compiled, their condition keys. Cached under
 * the identity revision: one small read tells whether the cache is current, so a change is in force at the next request
 * in every process.
 */
import { Fault } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { compilePolicy } from '../policy/policy.ts';
import type { CompiledPolicy, NamedPolicy } from '../policy/policy.ts';
import {
  findAccessKey,
  findRoleById,
  prepareIdentityRevision,
  readDefaultDocuments,
  readGrants,
} from '../store/store.ts';
import type { RoleRecord, Store, StoredGrants, TagRecord, UserRecord } from '../store/store.ts';
import type { Principal } from './identity.ts';
import { assumedRoleArn, federatedUserArn, roleArn, rootArn, userArn } from './arns.ts';
import { ADMINISTRATOR_ACCESS, MANAGED_POLICIES } from './managed-policies.ts';
import { RecentMap } from '../lib/recent.ts';
import { unsealSecret } from './secrets.ts';
import type { Session } from './sessions.ts';

/** A principal as of one request. */
export interface LoadedPrincipal {
  readonly principal: Principal;
  /** secret access key, in the clear: never logged, never returned */
  readonly secret: string;
  readonly identityPolicies: readonly NamedPolicy[];
  readonly boundary: NamedPolicy | undefined;
  /** undefined: no session policy; an empty list allows nothing */
  readonly sessionPolicies: readonly NamedPolicy[] | undefined;
  /** condition keys that only depend on the principal, lower-cased */
  readonly conditionKeys: ReadonlyMap<string, string>;
}

export interface Principals {
  /** The principal behind an active access key; `undefined` when the key is unknown, inactive or its user is gone. */
  find(accessKeyId: string): Promise<LoadedPrincipal | undefined>;
  /** The principal of a session, whether it is over or not; `undefined` when its role, user or key is gone. */
  findSession(session: Session): Promise<LoadedPrincipal | undefined>;
  /** What a principal was loaded with when its request was authenticated. */
  loaded(principal: Principal): LoadedPrincipal | undefined;
  /** The identity revision as it was last read: at the latest when the present request was authenticated. */
  revision(): number;
  readRevision(): Promise<number>;
  /** Compiles a policy text, or finds it compiled. @throws PolicySyntaxError */
  compile(text: string): CompiledPolicy;
}

const PRINCIPALS_MAX = 10_000;
const POLICY_TEXTS_MAX = 5_000;
/** How often a principal is read again because identities changed while it was read. */
const READS_MAX = 10;

/** Stands in for a restriction whose document is gone: a missing one must not become none. */
const NOTHING = '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}';

type Compile = (text: string) => CompiledPolicy;

export function createPrincipals({
  store,
  keys,
}: {
  readonly store: Store;
  readonly keys: KeyRing;
}): Principals {
  const readRevision = prepareIdentityRevision(store);
  const compiled = new RecentMap<string, CompiledPolicy>(POLICY_TEXTS_MAX);
  /** by access key id, or by session id */
  const known = new RecentMap<string, LoadedPrincipal>(PRINCIPALS_MAX);
  const byPrincipal = new WeakMap<Principal, LoadedPrincipal>();
  /** INVARIANT: everything in `known` was read at this revision. */
  let revision = -1;

  function compile(text: string): CompiledPolicy {
    const found = compiled.get(text);
    if (found !== undefined) return found;
    const policy = compilePolicy(text);
    compiled.set(text, policy);
    return policy;
  }

  /** Reads the revision and empties the cache when it moved. Reads may overtake each other: never go back. */
  async function currentRevision(): Promise<number> {
    const now = await readRevision();
    if (now > revision) {
      known.clear();
      revision = now;
    }
    return now;
  }

  async function current(
    id: string,
    load: () => Promise<LoadedPrincipal | undefined>,
  ): Promise<LoadedPrincipal | undefined> {
    let before = await currentRevision();
    const cached = known.get(id);
    if (cached !== undefined) return cached;
    // WHY: the reads of one principal are no snapshot; a change in between could show a mixture that never was.
    for (let reads = 0; reads < READS_MAX; reads++) {
      const loaded = await load();
      const after = await currentRevision();
      if (before === after) {
        if (loaded === undefined) return undefined;
        byPrincipal.set(loaded.principal, loaded);
        if (after === revision) known.set(id, loaded);
        return loaded;
      }
      before = after;
    }
    throw new Fault('ServiceUnavailableException', 'Identities are changing too fast to be read. Try again.');
  }

  async function load(accessKeyId: string): Promise<LoadedPrincipal | undefined> {
    const key = await findAccessKey(store.read, accessKeyId);
    if (key === undefined || key.status !== 'Active') return undefined;
    const secret = unsealSecret(keys, accessKeyId, key.secret);
    return key.user === undefined
      ? rootPrincipal(key.account, accessKeyId, secret)
      : userPrincipal(key.user, accessKeyId, secret, await readGrants(store.read, 'user', key.user), compile);
  }

  async function sessionPoliciesOf({ policies }: Session): Promise<readonly NamedPolicy[] | undefined> {
    if (policies === undefined) return undefined;
    const documents = await readDefaultDocuments(store.read, policies.arns);
    const inline = policies.inline === undefined ? [] : [policies.inline];
    return [
      ...inline.map((text) => ({ policy: compile(text), name: 'session policy' })),
      ...policies.arns.map((arn) => managed(arn, documents.get(arn), compile)),
    ];
  }

  async function loadSession(session: Session): Promise<LoadedPrincipal | undefined> {
    const sessionPolicies = await sessionPoliciesOf(session);
    if (session.kind === 'role') {
      const role = await findRoleById(store.read, session.ownerId);
      if (role === undefined || role.account !== session.account) return undefined;
      const grants = await readGrants(store.read, 'role', role);
      return rolePrincipal(session, role, grants, sessionPolicies, compile);
    }
    const parent = await load(session.parentKeyId ?? '');
    if (parent === undefined || parent.principal.account !== session.account) return undefined;
    if ((parent.principal.userId ?? session.account) !== session.ownerId) return undefined;
    return session.kind === 'federated-user'
      ? federatedPrincipal(session, parent, sessionPolicies, compile)
      : ofSession(parent, session);
  }

  return {
    compile,
    revision: () => revision,
    readRevision: currentRevision,
    loaded: (principal) => byPrincipal.get(principal),
    find: (accessKeyId) => current(accessKeyId, () => load(accessKeyId)),
    findSession: (session) => current(session.id, () => loadSession(session)),
  };
}

export function rootPrincipal(account: string, accessKeyId: string, secret: string): LoadedPrincipal {
  const arn = rootArn(account);
  return {
    principal: {
      caller: { kind: 'root', account, arn, id: account },
      account,
      accessKeyId,
      userName: undefined,
      userId: undefined,
    },
    secret,
    identityPolicies: [],
    boundary: undefined,
    sessionPolicies: undefined,
    conditionKeys: new Map([...commonKeys(account, arn, account), ['aws:principaltype', 'Account']]),
  };
}

export function userPrincipal(
  user: UserRecord,
  accessKeyId: string,
  secret: string,
  grants: StoredGrants,
  compile: Compile,
): LoadedPrincipal {
  const { id, account, name } = user;
  const arn = userArn(user);
  return {
    principal: {
      caller: { kind: 'user', account, arn, id },
      account,
      accessKeyId,
      userName: name,
      userId: id,
    },
    secret,
    ...compileGrants(grants, compile),
    sessionPolicies: undefined,
    conditionKeys: new Map([
      ...commonKeys(account, arn, id),
      ['aws:principaltype', 'User'],
      ['aws:username', name],
      ...tagKeys(grants.tags),
    ]),
  };
}

export function rolePrincipal(
  session: Session,
  role: RoleRecord,
  grants: StoredGrants,
  sessionPolicies: readonly NamedPolicy[] | undefined,
  compile: Compile,
): LoadedPrincipal {
  const { account } = role;
  const id = `${role.id}:${session.name}`;
  return {
    principal: {
      caller: {
        kind: 'role-session',
        account,
        arn: assumedRoleArn(role, session.name),
        id,
        roleArn: roleArn(role),
        roleId: role.id,
      },
      account,
      accessKeyId: session.accessKeyId,
      userName: undefined,
      userId: undefined,
      session,
    },
    secret: session.secret,
    ...compileGrants(grants, compile),
    sessionPolicies,
    conditionKeys: new Map([
      ...commonKeys(account, roleArn(role), id),
      ['aws:principaltype', 'AssumedRole'],
      ...tagKeys(grants.tags),
      ...sessionKeys(session),
    ]),
  };
}

/** What the user has, of which only what the session policies allow. Of the user's own tags none are handed on. */
function federatedPrincipal(
  session: Session,
  user: LoadedPrincipal,
  sessionPolicies: readonly NamedPolicy[] | undefined,
  compile: Compile,
): LoadedPrincipal {
  const { account, name } = session;
  const { caller } = user.principal;
  const arn = federatedUserArn(account, name);
  const id = `${account}:${name}`;
  // WHY: root has no policies of its own that could be handed on; it has everything.
  const everything = MANAGED_POLICIES.get(ADMINISTRATOR_ACCESS)?.document ?? NOTHING;
  return {
    principal: {
      caller: { kind: 'federated-user', account, arn, id, userArn: caller.arn, userId: caller.id },
      account,
      accessKeyId: session.accessKeyId,
      userName: undefined,
      userId: undefined,
      session,
    },
    secret: session.secret,
    identityPolicies:
      caller.kind === 'root' ? [managed(ADMINISTRATOR_ACCESS, everything, compile)] : user.identityPolicies,
    boundary: user.boundary,
    sessionPolicies: sessionPolicies ?? [],
    conditionKeys: new Map([
      ...commonKeys(account, arn, id),
      ['aws:principaltype', 'FederatedUser'],
      ...sessionKeys(session),
    ]),
  };
}

/** The user or root itself, by way of GetSessionToken. */
function ofSession(parent: LoadedPrincipal, session: Session): LoadedPrincipal {
  return {
    ...parent,
    principal: { ...parent.principal, accessKeyId: session.accessKeyId, session },
    secret: session.secret,
    conditionKeys: new Map([...parent.conditionKeys, ...sessionKeys(session)]),
  };
}

export function compileGrants(
  grants: StoredGrants,
  compile: Compile,
): Pick<LoadedPrincipal, 'identityPolicies' | 'boundary'> {
  const { policies, boundary } = grants;
  return {
    identityPolicies: policies.flatMap(({ arn, name, document }): NamedPolicy[] => {
      const text = document ?? MANAGED_POLICIES.get(arn ?? '')?.document;
      if (text === undefined) return [];
      return [{ policy: compile(text), name, ...(arn !== undefined && { arn }) }];
    }),
    boundary: boundary && managed(boundary.arn, boundary.document, compile),
  };
}

/** A managed policy that restricts: without a document it allows nothing. */
function managed(arn: string, document: string | undefined, compile: Compile): NamedPolicy {
  const text = document ?? MANAGED_POLICIES.get(arn)?.document ?? NOTHING;
  return { policy: compile(text), name: arn.slice(arn.lastIndexOf('/') + 1), arn };
}

type Keys = (readonly [string, string])[];

function tagKeys(tags: readonly TagRecord[]): Keys {
  return tags.map(({ key, value }) => [`aws:principaltag/${key.toLowerCase()}`, value]);
}

function sessionKeys({ tags, issuedAt, sourceIdentity, provider }: Session): Keys {
  const keys: Keys = [
    ...tagKeys(tags),
    ['aws:tokenissuetime', `${new Date(issuedAt).toISOString().slice(0, 19)}Z`],
    ['aws:multifactorauthpresent', 'false'],
  ];
  if (sourceIdentity !== undefined) keys.push(['aws:sourceidentity', sourceIdentity]);
  if (provider !== undefined) keys.push(['aws:federatedprovider', provider]);
  return keys;
}

function commonKeys(account: string, arn: string, id: string): Keys {
  return [
    ['aws:principalarn', arn],
    ['aws:principalaccount', account],
    ['aws:userid', id],
    ['aws:principalisawsservice', 'false'],
    ['aws:viaawsservice', 'false'],
  ];
}
