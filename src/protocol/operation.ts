/**
 * An operation is a table entry. The protocol doors (aws-json, query-xml) do everything that is the same for all
 * operations: routing, signature, shape and constraint checks, authorisation, serialisation, errors. An entry adds
 * only its meaning.
 */

import type { AuditedPrincipal } from '../lib/cloudtrail.ts';

/** A value of the service model: what the shapes interpreter parses from and serialises to the wire. */
export type Shape =
  | string
  | number
  | boolean
  | Date
  | Uint8Array
  | Shape[]
  | { [member: string]: Shape | undefined };
export type Structure = { [member: string]: Shape | undefined };

/** Facts of one request that authorisation and operations may use. `Caller` is identity's principal. */
export interface OperationContext<Caller> {
  readonly requestId: string;
  readonly caller: Caller;
  /** Region of the credential scope: selects the registry region (iam-sts.md §1.9). */
  readonly region: string;
  /** Epoch milliseconds at which the request was verified. */
  readonly now: number;
  /** Client address, IPv4-mapped IPv6 already unmapped. */
  readonly sourceIp: string;
  readonly secure: boolean;
  readonly userAgent: string | undefined;
  /** Scheme and authority the client reached, e.g. `http://localhost:7327`. */
  readonly origin: string;
  /** Tells logs who asks, and for what, where that is known only by what the operation reads: a foreign token. */
  readonly identify?: (who: AuditedPrincipal, resource: string) => void;
}

/** One thing an operation acts on. `resource` is an ARN or `*`; `keys` are condition keys, names lower-cased. */
export interface AccessCheck {
  readonly action: string;
  readonly resource: string;
  readonly keys?: ReadonlyMap<string, string | readonly string[]>;
  /** Text IAM prints instead of the ARN in its denials, e.g. `user bob` (iam-sts.md §4.5). */
  readonly shownAs?: string;
}

/** An operation Berth performs. `Input` and `Output` are the generated types of the service model. */
export interface Operation<Caller, Input = Structure, Output = Structure | void> {
  /**
   * What must be allowed before anything is looked up: usually one check. An empty list means that a valid signature
   * suffices (sts:GetCallerIdentity).
   */
  access(input: Input, context: OperationContext<Caller>): readonly AccessCheck[];
  /** What of it has no effect here, or is unlike AWS; absent when it is whole. Goes into docs/compatibility.md. */
  readonly notCovered?: string;
  /** Largest request body in bytes; the door's default otherwise. */
  readonly bodyBytesMax?: number;
  run(input: Input, context: OperationContext<Caller>): Promise<Output>;
}

/** An operation of the model that Berth refuses clearly. `reason` goes into docs/compatibility.md and the answer. */
export interface OperationNotBuilt {
  readonly notBuilt: string;
}

/** Every operation of a service model, by name. At start the table and the model must agree, both ways. */
export type OperationTable<Caller> = {
  readonly [name: string]: Operation<Caller, never> | OperationNotBuilt;
};
