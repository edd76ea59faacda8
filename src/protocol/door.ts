/** What the AWS JSON and the Query door have in common. */
import type { OutgoingHttpHeaders } from 'node:http';
import { Fault } from '../domain/faults.ts';
import type { Exchange } from '../http/http.ts';
import type { AuditedPrincipal } from '../lib/cloudtrail.ts';
import type { ServiceModel } from '../model/service-model.ts';
import type {
  AccessCheck,
  Operation,
  OperationContext,
  OperationNotBuilt,
  OperationTable,
  Structure,
} from './operation.ts';
import type { SignedHead, SignedRequest, Verify } from './signature.ts';

export interface DoorOptions<Caller> {
  readonly verify: Verify<Caller>;
  /** epoch milliseconds; also the `Date` of every answer, from which SDKs correct their clocks */
  readonly clock: () => number;
  /** @throws Fault AccessDeniedException unless every check is allowed */
  readonly authorize: (context: OperationContext<Caller>, checks: readonly AccessCheck[]) => Promise<void>;
  /** Hears of defects: everything thrown that is not a Fault. The client gets a plain server error. */
  readonly onError: (error: unknown, exchange: Exchange) => void;
  /** Counts a request. @throws Fault ThrottlingException when it is over a rate limit */
  readonly throttle?: ((caller: Caller, action: string, region: string) => void) | undefined;
  /** The caller as logs and the audit log know it. */
  readonly describeCaller: (caller: Caller) => AuditedPrincipal;
}

/**
 * Compares an operation table with its model.
 *
 * @throws Error naming every operation that only one of them has
 */
export function checkTable<Caller>(model: ServiceModel, table: OperationTable<Caller>): void {
  const unknown = Object.keys(table).filter((name) => !Object.hasOwn(model.operations, name));
  const missing = Object.keys(model.operations).filter((name) => !Object.hasOwn(table, name));
  if (unknown.length === 0 && missing.length === 0) return;
  throw new Error(
    `operation table and model disagree; not in the model: [${unknown.join(', ')}]; ` +
      `not in the table: [${missing.join(', ')}]`,
  );
}

/** The entry of a table; own names only. */
export function entryOf<Caller>(
  table: OperationTable<Caller>,
  name: string,
): Operation<Caller, never> | OperationNotBuilt | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

export function isBuilt<Caller>(
  entry: Operation<Caller, never> | OperationNotBuilt,
): entry is Operation<Caller, never> {
  return !('notBuilt' in entry);
}

export function notBuilt(name: string, entry: OperationNotBuilt): Fault {
  return new Fault('OperationNotBuilt', `Berth does not perform ${name}: ${entry.notBuilt}`);
}

export function signedRequest(exchange: Exchange, body: Uint8Array): SignedRequest {
  return { ...signedHead(exchange), body };
}

export function signedHead(exchange: Exchange): SignedHead {
  const { method, path, rawQuery } = exchange;
  return { method, path, rawQuery, rawHeaders: exchange.request.rawHeaders };
}

export function contextOf<Caller>(
  exchange: Exchange,
  who: { readonly caller: Caller; readonly region: string; readonly now: number },
): OperationContext<Caller> {
  return {
    requestId: exchange.requestId,
    caller: who.caller,
    region: who.region,
    now: who.now,
    sourceIp: exchange.sourceIp,
    secure: exchange.secure,
    userAgent: exchange.header('user-agent'),
    origin: exchange.origin,
    identify: (principal, resource) => {
      exchange.principal = principal;
      exchange.resources = [resource];
    },
  };
}

/** Authorises and runs. An empty list of checks means that being authenticated suffices. */
export async function perform<Caller>(
  operation: Operation<Caller, never>,
  input: Structure,
  exchange: Exchange,
  context: OperationContext<Caller>,
  options: DoorOptions<Caller>,
): Promise<Structure | undefined> {
  exchange.parameters = input;
  // INVARIANT: `input` was parsed and checked by the operation's own shape
  const checks = operation.access(input as never, context);
  exchange.resources = [...new Set(checks.map(({ resource }) => resource))];
  if (checks.length > 0) await options.authorize(context, checks);
  const output = (await operation.run(input as never, context)) ?? undefined;
  // WHY not those of other services: what they answer is secrets, often enough.
  if (exchange.action?.startsWith('ecr:') === true) exchange.outcome = output;
  return output;
}

/** The Fault to tell the client; a defect is reported and becomes a ServerException. */
export function faultOf<Caller>(error: unknown, exchange: Exchange, options: DoorOptions<Caller>): Fault {
  if (error instanceof Fault) return error;
  options.onError(error, exchange);
  return new Fault('ServerException', 'The request could not be completed because of an internal error.');
}

export function answerHeaders(
  exchange: Exchange,
  options: { readonly clock: () => number },
  contentType: string,
  fault?: Fault,
): OutgoingHttpHeaders {
  return {
    'Content-Type': contentType,
    'x-amzn-RequestId': exchange.requestId,
    Date: new Date(options.clock()).toUTCString(),
    // WHY: the rest of an oversized body is not worth reading
    ...(fault?.code === 'RequestEntityTooLargeException' && { Connection: 'close' }),
    ...(fault?.code === 'ServiceUnavailableException' && { 'Retry-After': '1' }),
  };
}
