/**
 * Who asks, and may they. Principals, their keys and registry tokens, `authorize()`, and the IAM and STS operation
 * tables. Policies are evaluated at use: a change is in force at the next request on either door.
 */
import { LIMITS } from '../lib/limits.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { AccessRequest, Caller, Decision, NamedPolicy } from '../policy/policy.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';
import { findSessionToken } from '../store/store.ts';
import type { KeyUse, Store } from '../store/store.ts';
import { authorizeAsRole, type ServiceAction } from './acting-role.ts';
import { createAuthorizer } from './authorize.ts';
import { createDenials } from './denials.ts';
import type { Denials } from './denials.ts';
import { NO_GUARDRAILS } from './guardrails.ts';
import type { Guardrails } from './guardrails.ts';
import { createPrincipals } from './principals.ts';
import type { LoadedPrincipal } from './principals.ts';
import { RecentMap } from '../lib/recent.ts';
import { createRegistryRules, type RegistryRules } from './registries.ts';
import { expiredToken, invalidToken, sealToken, unsealToken } from './registry-token.ts';
import type { TokenContent } from './registry-token.ts';
import { sealSession, unsealSession } from './sessions.ts';
import type { Session } from './sessions.ts';

export { berthOperations } from './berth.ts';
export { bootstrap, createAccount, generateCredentials } from './bootstrap.ts';
export type { BootstrapOptions, Credentials } from './bootstrap.ts';
export { compileGuardrails, GuardrailError } from './guardrails.ts';
export type { Guardrails } from './guardrails.ts';
export { iamOperations } from './iam.ts';
export { createIssuerFetch, IssuerError } from './issuer-fetch.ts';
export type { IssuerFetch } from './issuer-fetch.ts';
export { createIssuers } from './issuers.ts';
export type { Session } from './sessions.ts';
export { stsOperations } from './sts.ts';
export type { RegistryRules } from './registries.ts';

/** An authenticated caller with the key that proved it. */
export interface Principal {
  /** as policies and denials see it */
  readonly caller: Caller;
  readonly account: string;
  readonly accessKeyId: string;
  /** IAM users only */
  readonly userName: string | undefined;
  readonly userId: string | undefined;
  /** temporary credentials only */
  readonly session?: Session | undefined;
}

/** Who asks, with everything on that side that has a say. */
export interface Subject {
  readonly caller: Caller;
  readonly identityPolicies: readonly NamedPolicy[];
  readonly boundary: NamedPolicy | undefined;
  /** undefined: no session policy was passed */
  readonly sessionPolicies: readonly NamedPolicy[] | undefined;
  /** condition keys that only depend on the subject, lower-cased */
  readonly conditionKeys: ReadonlyMap<string, string | readonly string[]>;
}

/** Facts of a request that fill the global condition keys (iam-sts.md §3.9). OperationContext is one. */
export type RequestFacts = Omit<OperationContext<Principal>, 'caller' | 'origin'>;

/** The resource side of a check when the door already has the row: policy text and tags of the repository. */
export interface ResourceSide {
  readonly account: string;
  readonly policy: string | undefined;
  readonly tags: ReadonlyMap<string, string>;
  /** `policy` is a role's trust policy: it must grant by itself */
  readonly trust?: true;
}

export interface RegistryToken {
  /** what follows `AWS:` — opaque, sealed, base64url, at most 300 characters */
  readonly password: string;
  readonly expiresAt: number;
}

export interface Identity {
  /**
   * KeySource of protocol/: the secret and the principal behind an access key. `now`, in milliseconds, decides whether a
   * session is over; long-term keys do not ask for it.
   */
  findKey(accessKeyId: string, sessionToken: undefined, now?: number): Promise<FoundKey>;
  findKey(accessKeyId: string, sessionToken: string | undefined, now: number): Promise<FoundKey>;
  /** Notes the use of a key for GetAccessKeyLastUsed; batched, never waits. */
  recordKeyUse(accessKeyId: string, service: string, region: string, now: number): void;
  /**
   * Decides. `side` is undefined for resources without policy and tags; for the ARN of an existing ECR repository whose
   * row the caller does not have, leave it out and it is read.
   */
  decide(
    principal: Principal,
    check: AccessCheck,
    facts: RequestFacts,
    side?: ResourceSide,
  ): Promise<Decision>;
  /** As {@link decide}, for somebody who has no credentials here or is only imagined. */
  decideFor(
    subject: Subject,
    check: AccessCheck,
    facts: RequestFacts,
    side?: ResourceSide,
  ): Promise<Decision>;
  /** As {@link decideFor}, with the request as it was put to the policies. */
  judge(
    subject: Subject,
    check: AccessCheck,
    facts: RequestFacts,
    side?: ResourceSide,
  ): Promise<{ readonly request: AccessRequest; readonly decision: Decision }>;
  /** @throws Fault AccessDeniedException with `sentence` when any check is not allowed to somebody without credentials here */
  authorizeFor(
    subject: Subject,
    checks: readonly AccessCheck[],
    facts: RequestFacts,
    side: ResourceSide | undefined,
    sentence: (check: AccessCheck) => string,
  ): Promise<void>;
  /** Whether a service may do something as a role of the account. @throws as `authorizeAsRole` in acting-role.ts */
  authorizeAsRole(
    action: ServiceAction,
    checks: readonly AccessCheck[],
    facts: RequestFacts,
    side: ResourceSide,
  ): Promise<void>;
  /** @throws Fault AccessDeniedException with AWS's sentence when any check is not allowed */
  authorize(
    principal: Principal,
    checks: readonly AccessCheck[],
    facts: RequestFacts,
    side?: ResourceSide,
  ): Promise<void>;
  /** What a registry says about its callers, as current as the authentication of the request. */
  registryRules(registry: { readonly account: string; readonly region: string }): Promise<RegistryRules>;
  /** Whether the registry keeps the time of this principal's pulls (ecr-api.md §20). */
  recordsPulls(
    principal: Principal,
    registry: { readonly account: string; readonly region: string },
  ): Promise<boolean>;
  /** For twelve hours, also when the session it is made for ends earlier (ecr-api.md §21). */
  issueRegistryToken(
    principal: Principal,
    scope: { readonly region: string },
    now: number,
  ): Promise<RegistryToken>;
  /**
   * The principal behind a registry password, and the account and region bound into it.
   *
   * @throws Fault InvalidRegistryToken, ExpiredRegistryToken; InvalidRegistryToken when its key, user or role is gone or inactive
   */
  openRegistryToken(password: string, now: number): Promise<{ principal: Principal; region: string }>;
  /** What was refused lately, by request id. */
  readonly denials: Pick<Denials, 'find' | 'findNewest'>;
  /** Writes batched uses of keys and denials. Called on a schedule and on shutdown. */
  flush(): Promise<void>;
}

type FoundKey = { secret: string; caller: Principal } | 'invalid-token' | 'expired' | undefined;

export interface IdentityOptions {
  readonly store: Store;
  readonly keys: KeyRing;
  /** none unless told */
  readonly guardrails?: Guardrails | undefined;
  /** How old a noted use of a key may grow before it is written, in milliseconds. */
  readonly keyUseBatchMs?: number;
  /** The organisation all accounts belong to, `o-…`: `aws:PrincipalOrgID` and `aws:ResourceOrgID` of every request. */
  readonly organizationId?: string | undefined;
}

/** Opened tokens that are kept, about 1 KiB each. */
const TOKENS_MAX = 10_000;
const KEY_USE_BATCH_MS = 60_000;

/** Sessions whose content is kept, about 1 KiB each. */
const SESSIONS_MAX = 10_000;

/** What both doors need of {@link IdentityOptions}' store; remembers only what the identity revision keeps honest. */
export function createIdentity(options: IdentityOptions): Identity {
  const {
    store,
    keys,
    guardrails = NO_GUARDRAILS,
    keyUseBatchMs = KEY_USE_BATCH_MS,
    organizationId,
  } = options;
  const principals = createPrincipals({ store, keys });
  const registryRules = createRegistryRules(store, principals);
  const tokens = new RecentMap<string, TokenContent>(TOKENS_MAX);
  /** by session token and by id: what a session is never changes */
  const sessions = new RecentMap<string, Session>(SESSIONS_MAX);
  const rolesOfKeys = new RecentMap<string, string>(SESSIONS_MAX);
  const uses = createKeyUses(store, keyUseBatchMs);
  const denials = createDenials(store);
  const authorizer = createAuthorizer({
    store,
    principals,
    guardrails,
    registryRules,
    organizationId,
    denials,
  });

  function openToken(password: string): TokenContent {
    const known = tokens.get(password);
    if (known !== undefined) return known;
    const content = unsealToken(keys, password);
    tokens.set(password, content);
    return content;
  }

  function openSession(token: string): Session | undefined {
    const known = sessions.get(token);
    if (known !== undefined) return known;
    const session = unsealSession(keys, token);
    if (session !== undefined) sessions.set(token, session);
    return session;
  }

  /** The session a registry token names; undefined when nobody keeps it any more. */
  async function keptSession(id: string): Promise<Session | undefined> {
    const known = sessions.get(id);
    if (known !== undefined) return known;
    const token = await findSessionToken(store.read, id);
    const session = token === undefined ? undefined : openSession(token);
    if (session !== undefined) sessions.set(id, session);
    return session;
  }

  async function findSessionKey(accessKeyId: string, token: string, now: number): Promise<FoundKey> {
    const session = openSession(token);
    if (session === undefined || session.accessKeyId !== accessKeyId) return 'invalid-token';
    if (now >= session.expiresAt) return 'expired';
    const loaded = await principals.findSession(session);
    if (loaded === undefined) return 'invalid-token';
    if (session.kind === 'role') rolesOfKeys.set(accessKeyId, session.ownerId);
    return { secret: loaded.secret, caller: loaded.principal };
  }

  return {
    ...authorizer,
    authorizeAsRole: (action, checks, facts, side) =>
      authorizeAsRole(store, authorizer, action, checks, facts, side),
    denials,
    registryRules,
    async recordsPulls({ caller }, registry) {
      const { pullTimeExclusions } = await registryRules(registry);
      // A session is its role (ecr-api.md §20).
      return pullTimeExclusions.size === 0 || !pullTimeExclusions.has(caller.roleArn ?? caller.arn);
    },
    async findKey(accessKeyId: string, sessionToken: string | undefined, now = Infinity) {
      if (sessionToken !== undefined) return await findSessionKey(accessKeyId, sessionToken, now);
      // A temporary key without its token is unknown here.
      const loaded = await principals.find(accessKeyId);
      return loaded && { secret: loaded.secret, caller: loaded.principal };
    },
    recordKeyUse(accessKeyId, service, region, now) {
      const role = rolesOfKeys.get(accessKeyId);
      uses.record(role ?? accessKeyId, service, region, now);
    },
    async flush() {
      await denials.flush();
      await uses.flush();
    },
    async issueRegistryToken(principal, { region }, now) {
      const expiresAt = now + LIMITS.registryTokenMs;
      const { account, accessKeyId, session } = principal;
      if (session !== undefined) {
        const { id } = session;
        await store.transact('session.keep', { id, token: sealSession(keys, session), expiresAt, now });
      }
      const holder =
        session === undefined
          ? ({ kind: 'key', id: accessKeyId } as const)
          : ({ kind: 'session', id: session.id } as const);
      return { password: sealToken(keys, { account, region, holder, expiresAt }), expiresAt };
    },
    async openRegistryToken(password, now) {
      const { account, region, holder, expiresAt } = openToken(password);
      if (now >= expiresAt) throw expiredToken();
      let loaded: LoadedPrincipal | undefined;
      if (holder.kind === 'key') loaded = await principals.find(holder.id);
      else {
        const session = await keptSession(holder.id);
        loaded = session && (await principals.findSession(session));
      }
      if (loaded === undefined || loaded.principal.account !== account) throw invalidToken();
      return { principal: loaded.principal, region };
    },
  };
}

/** Uses of keys, noted in memory and written in batches: the newest of each key counts. */
function createKeyUses(
  store: Store,
  batchMs: number,
): Pick<Identity, 'flush'> & { record: Identity['recordKeyUse'] } {
  let noted = new Map<string, KeyUse>();
  let oldest: number | undefined;

  async function flush(): Promise<void> {
    if (noted.size === 0) return;
    const batch = noted;
    noted = new Map();
    oldest = undefined;
    try {
      await store.transact('accessKey.recordUses', { uses: [...batch.values()] });
    } catch (error) {
      // Later uses are newer than what could not be written.
      noted = new Map([...batch, ...noted]);
      throw error;
    }
  }

  return {
    flush,
    record(id, service, region, now) {
      noted.set(id, { id, at: now, service, region });
      oldest ??= now;
      if (now - oldest < batchMs) return;
      oldest = now;
      // A failed write keeps its batch for the next one; the caller's request has nothing to do with it.
      flush().catch(() => undefined);
    },
  };
}
