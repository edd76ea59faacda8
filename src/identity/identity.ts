/**
 * Who asks, and may they. Principals, their keys and registry tokens, `authorize()`, and the IAM and STS operation
 * tables. Policies are evaluated at use: a change is in force at the next request on either door.
 */
import type { Caller, Decision } from '../policy/policy.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';

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
  issueRegistryToken(principal: Principal, scope: { readonly region: string }, now: number): RegistryToken;
  /**
   * The principal behind a registry password, and the account and region bound into it.
   *
   * @throws Fault InvalidRegistryToken, ExpiredRegistryToken; InvalidRegistryToken when its key or user is gone or inactive
   */
  openRegistryToken(password: string, now: number): Promise<{ principal: Principal; region: string }>;
  flush(): Promise<void>;
}
