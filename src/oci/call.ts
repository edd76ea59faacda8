import { repositoryArn } from '../domain/names.ts';
import type { Exchange } from '../http/http.ts';
import type { Identity, Principal, RequestFacts } from '../identity/identity.ts';
import type { Registry, Repository } from '../registry/registry.ts';
import type { Scope } from './scope.ts';

export interface OciServices {
  readonly registry: Registry;
  readonly identity: Identity;
  /** epoch milliseconds */
  readonly clock: () => number;
  /** Whether a name is a region this server knows; decides whether a host name is a registry's. */
  readonly isRegion: (name: string) => boolean;
  /** Told about every failure that is not a Fault; the client is shown `UNKNOWN`. */
  readonly onError: (error: unknown, exchange: Exchange) => void;
  /** Counts the actions of a request. @throws Fault ThrottlingException when they are over a rate limit */
  readonly throttle?:
    | ((principal: Principal, actions: readonly string[], region: string) => void)
    | undefined;
  /** How long a client may send or read nothing in mid-transfer. */
  readonly idleMs: number;
}

/** An authorised request: what a handler works with. */
export interface Call {
  readonly services: OciServices;
  readonly exchange: Exchange;
  readonly principal: Principal;
  readonly facts: RequestFacts;
  readonly scope: Scope;
  readonly repository: Repository;
}

/** The headers of every answer under `/v2/`, as a new array of names and values that the caller may extend. */
export function commonHeaders(exchange: Exchange): string[] {
  return ['Docker-Distribution-Api-Version', 'registry/2.0', 'x-amzn-RequestId', exchange.requestId];
}

/** Whether the caller may pull blobs of another repository: what a mount needs besides the upload itself. */
export async function mayPull(call: Call, source: Repository): Promise<boolean> {
  const check = { action: 'ecr:GetDownloadUrlForLayer', resource: repositoryArn(source) };
  const decision = await call.services.identity.decide(call.principal, check, call.facts, source);
  return decision.allowed;
}
