/**
 * Who asks, and may they. Principals, their keys and registry tokens, `authorize()`, and the IAM and STS operation
 * tables. Policies are evaluated at use: a change is in force at the next request on either door.
 */
import { LIMITS } from '../lib/limits.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { Caller, Decision } from '../policy/policy.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';
import type { KeyUse, Store } from '../store/store.ts';
import { createAuthorizer } from './authorize.ts';
import { createPrincipals } from './principals.ts';
import { RecentMap } from './recent.ts';
import { createRegistryRules, type RegistryRules } from './registries.ts';
import { expiredToken, invalidToken, sealToken, unsealToken } from './registry-token.ts';
import type { TokenContent } from './registry-token.ts';

export { bootstrap, generateCredentials } from './bootstrap.ts';
export type { BootstrapOptions, Credentials } from './bootstrap.ts';
export { iamOperations } from './iam.ts';
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
}

/** Facts of a request that fill the global condition keys (iam-sts.md §3.9). OperationContext is one. */
export type RequestFacts = Omit<OperationContext<Principal>, 'caller' | 'origin'>;

/** The resource side of a check when the door already has the row: policy text and tags of the repository. */
export interface ResourceSide {
  readonly account: string;
  readonly policy: string | undefined;
  readonly tags: ReadonlyMap<string, string>;
}

export interface RegistryToken {
  /** what follows `AWS:` — opaque, sealed, base64url, at most 300 characters */
  readonly password: string;
  readonly expiresAt: number;
}

export interface Identity {
  /** KeySource of protocol/: the secret and the principal behind an access key. */
  findKey(
    accessKeyId: string,
    sessionToken: string | undefined,
  ): Promise<{ secret: string; caller: Principal } | 'invalid-token' | 'expired' | undefined>;
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
  issueRegistryToken(principal: Principal, scope: { readonly region: string }, now: number): RegistryToken;
  /**
   * The principal behind a registry password, and the account and region bound into it.
   *
   * @throws Fault InvalidRegistryToken, ExpiredRegistryToken; InvalidRegistryToken when its key or user is gone or inactive
   */
  openRegistryToken(password: string, now: number): Promise<{ principal: Principal; region: string }>;
  /** Writes batched uses of keys. Called on a schedule and on shutdown. */
  flush(): Promise<void>;
}

export interface IdentityOptions {
  readonly store: Store;
  readonly keys: KeyRing;
  /** How old a noted use of a key may grow before it is written, in milliseconds. */
  readonly keyUseBatchMs?: number;
  /** The organisation all accounts belong to, `o-…`: `aws:PrincipalOrgID` and `aws:ResourceOrgID` of every request. */
  readonly organizationId?: string | undefined;
}

/** Opened tokens that are kept, about 1 KiB each. */
const TOKENS_MAX = 10_000;
const KEY_USE_BATCH_MS = 60_000;

/** What both doors need of {@link IdentityOptions}' store; remembers only what the identity revision keeps honest. */
export function createIdentity(options: IdentityOptions): Identity {
  const { store, keys, keyUseBatchMs = KEY_USE_BATCH_MS, organizationId } = options;
  const principals = createPrincipals({ store, keys });
  const registryRules = createRegistryRules(store, principals);
  const tokens = new RecentMap<string, TokenContent>(TOKENS_MAX);
  const uses = createKeyUses(store, keyUseBatchMs);

  function openToken(password: string): TokenContent {
    const known = tokens.get(password);
    if (known !== undefined) return known;
    const content = unsealToken(keys, password);
    tokens.set(password, content);
    return content;
  }

  return {
    ...createAuthorizer({ store, principals, registryRules, organizationId }),
    registryRules,
    async recordsPulls({ caller }, registry) {
      const { pullTimeExclusions } = await registryRules(registry);
      // A session is its role (ecr-api.md §20).
      return pullTimeExclusions.size === 0 || !pullTimeExclusions.has(caller.roleArn ?? caller.arn);
    },
    async findKey(accessKeyId, sessionToken) {
      const loaded = await principals.find(accessKeyId);
      if (loaded === undefined) return undefined;
      // All keys are long-term ones, and those come without a token (iam-sts.md §1.6).
      if (sessionToken !== undefined) return 'invalid-token';
      return { secret: loaded.secret, caller: loaded.principal };
    },
    recordKeyUse: uses.record,
    flush: uses.flush,
    issueRegistryToken(principal, { region }, now) {
      const expiresAt = now + LIMITS.registryTokenMs;
      const { account, accessKeyId } = principal;
      return { password: sealToken(keys, { account, region, accessKeyId, expiresAt }), expiresAt };
    },
    async openRegistryToken(password, now) {
      const { account, region, accessKeyId, expiresAt } = openToken(password);
      if (now >= expiresAt) throw expiredToken();
      const loaded = await principals.find(accessKeyId);
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
