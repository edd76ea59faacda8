/**
 * Principals with everything a decision needs: what they are, their policies compiled, their condition keys. Cached under
 * the identity revision: one small read tells whether the cache is current, so a change is in force at the next request
 * in every process.
 */
import { Fault } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import { compilePolicy } from '../policy/policy.ts';
import type { CompiledPolicy, NamedPolicy } from '../policy/policy.ts';
import { findAccessKey, prepareIdentityRevision, readGrants } from '../store/store.ts';
import type { Store, StoredAccessKey, StoredGrants, UserRecord } from '../store/store.ts';
import type { Principal } from './identity.ts';
import { rootArn, userArn } from './arns.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { RecentMap } from './recent.ts';
import { unsealSecret } from './secrets.ts';

/** A principal as of one request. */
export interface LoadedPrincipal {
  readonly principal: Principal;
  /** secret access key, in the clear: never logged, never returned */
  readonly secret: string;
  readonly identityPolicies: readonly NamedPolicy[];
  readonly boundary: NamedPolicy | undefined;
  /** condition keys that only depend on the principal, lower-cased */
  readonly conditionKeys: ReadonlyMap<string, string>;
}

export interface Principals {
  /** The principal behind an active access key; `undefined` when the key is unknown, inactive or its user is gone. */
  find(accessKeyId: string): Promise<LoadedPrincipal | undefined>;
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

/** Stands in for a boundary whose document is gone: a missing restriction must not become none. */
const NOTHING = '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}';

export function createPrincipals({
  store,
  keys,
}: {
  readonly store: Store;
  readonly keys: KeyRing;
}): Principals {
  const readRevision = prepareIdentityRevision(store);
  const compiled = new RecentMap<string, CompiledPolicy>(POLICY_TEXTS_MAX);
  const byKey = new RecentMap<string, LoadedPrincipal>(PRINCIPALS_MAX);
  const byPrincipal = new WeakMap<Principal, LoadedPrincipal>();
  /** INVARIANT: everything in `byKey` was read at this revision. */
  let revision = -1;

  function compile(text: string): CompiledPolicy {
    const known = compiled.get(text);
    if (known !== undefined) return known;
    const policy = compilePolicy(text);
    compiled.set(text, policy);
    return policy;
  }

  /** Reads the revision and empties the cache when it moved. Reads may overtake each other: never go back. */
  async function currentRevision(): Promise<number> {
    const now = await readRevision();
    if (now > revision) {
      byKey.clear();
      revision = now;
    }
    return now;
  }

  async function load(accessKeyId: string): Promise<LoadedPrincipal | undefined> {
    const key = await findAccessKey(store.read, accessKeyId);
    if (key === undefined || key.status !== 'Active') return undefined;
    const secret = unsealSecret(keys, accessKeyId, key.secret);
    return key.user === undefined
      ? loadedRoot(key, secret)
      : loadedUser(key.id, key.user, secret, await readGrants(store.read, key.user), compile);
  }

  return {
    compile,
    revision: () => revision,
    readRevision: currentRevision,
    loaded: (principal) => byPrincipal.get(principal),
    async find(accessKeyId) {
      let before = await currentRevision();
      const cached = byKey.get(accessKeyId);
      if (cached !== undefined) return cached;
      // WHY: the reads of one principal are no snapshot; a change in between could show a mixture that never was.
      for (let reads = 0; reads < READS_MAX; reads++) {
        const loaded = await load(accessKeyId);
        const after = await currentRevision();
        if (before === after) {
          if (loaded === undefined) return undefined;
          byPrincipal.set(loaded.principal, loaded);
          if (after === revision) byKey.set(accessKeyId, loaded);
          return loaded;
        }
        before = after;
      }
      throw new Fault(
        'ServiceUnavailableException',
        'Identities are changing too fast to be read. Try again.',
      );
    },
  };
}

function loadedRoot(key: StoredAccessKey, secret: string): LoadedPrincipal {
  const { account } = key;
  const arn = rootArn(account);
  return {
    principal: {
      caller: { kind: 'root', account, arn, id: account },
      account,
      accessKeyId: key.id,
      userName: undefined,
      userId: undefined,
    },
    secret,
    identityPolicies: [],
    boundary: undefined,
    conditionKeys: new Map([...commonKeys(account, arn, account), ['aws:principaltype', 'Account']]),
  };
}

function loadedUser(
  accessKeyId: string,
  user: UserRecord,
  secret: string,
  grants: StoredGrants,
  compile: (text: string) => CompiledPolicy,
): LoadedPrincipal {
  const { id, account, name } = user;
  const arn = userArn(user);
  const conditionKeys = new Map([
    ...commonKeys(account, arn, id),
    ['aws:principaltype', 'User'],
    ['aws:username', name],
    ...grants.tags.map(({ key, value }) => [`aws:principaltag/${key.toLowerCase()}`, value] as const),
  ] as const);
  const documentOf = (policy: { readonly arn: string; readonly document: string | undefined }) =>
    policy.document ?? MANAGED_POLICIES.get(policy.arn)?.document;
  const attached = grants.attached.flatMap((policy) => {
    const document = documentOf(policy);
    return document === undefined ? [] : [named(policy.arn, compile(document))];
  });
  return {
    principal: {
      caller: { kind: 'user', account, arn, id },
      account,
      accessKeyId,
      userName: name,
      userId: id,
    },
    secret,
    identityPolicies: [
      ...grants.inline.map((policy) => ({ policy: compile(policy.document), name: policy.name })),
      ...attached,
    ],
    boundary: grants.boundary && named(grants.boundary.arn, compile(documentOf(grants.boundary) ?? NOTHING)),
    conditionKeys,
  };
}

function named(arn: string, policy: CompiledPolicy): NamedPolicy {
  return { policy, name: arn.slice(arn.lastIndexOf('/') + 1), arn };
}

function commonKeys(account: string, arn: string, id: string): (readonly [string, string])[] {
  return [
    ['aws:principalarn', arn],
    ['aws:principalaccount', account],
    ['aws:userid', id],
    ['aws:principalisawsservice', 'false'],
    ['aws:viaawsservice', 'false'],
  ];
}
