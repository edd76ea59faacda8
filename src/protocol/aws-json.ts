/** The AWS JSON 1.1 door: `POST /` with `X-Amz-Target` (ecr-api.md §1, iam-sts.md §1.11). */
import { Fault, FAULTS } from '../domain/faults.ts';
import { readBody, type Exchange } from '../http/http.ts';
import { LIMITS } from '../lib/limits.ts';
import type { ServiceModel } from '../model/service-model.ts';
import { ecrFault, findViolations } from './constraints.ts';
import {
  answerHeaders,
  checkTable,
  contextOf,
  entryOf,
  faultOf,
  isBuilt,
  notBuilt,
  perform,
  signedHead,
  signedRequest,
  type DoorOptions,
} from './door.ts';
import { parseJson, renderJson } from './json.ts';
import type { OperationTable } from './operation.ts';
import { compileModel, type CompiledModel } from './shapes.ts';

const CONTENT_TYPE = 'application/x-amz-json-1.1';

export interface JsonDoorOptions<Caller> extends DoorOptions<Caller> {
  /** signing name, e.g. `ecr` */
  readonly service: string;
  readonly model: ServiceModel;
  readonly table: OperationTable<Caller>;
}

/**
 * Makes the door of one JSON service. Order: route → for a large body: key → body under the operation's limit → signature → shape and
 * constraints → authorisation → run → serialise.
 *
 * @throws Error when table and model disagree or the model does not compile
 */
export function createJsonDoor<Caller>(
  options: JsonDoorOptions<Caller>,
): (exchange: Exchange) => Promise<void> {
  checkTable(options.model, options.table);
  const compiled = compileModel(options.model);
  return async (exchange) => {
    try {
      const body = await answer(exchange, options, compiled);
      exchange.send(200, answerHeaders(exchange, options, CONTENT_TYPE), body);
    } catch (error) {
      const fault = faultOf(error, exchange, options);
      exchange.noteFault(fault.code, fault.message);
      const headers = answerHeaders(exchange, options, CONTENT_TYPE, fault);
      exchange.send(FAULTS[fault.code].aws, headers, renderFault(fault, compiled));
    }
  };
}

/** Answers with a fault before it is known which operation is asked. */
export function sendJsonFault(exchange: Exchange, fault: Fault, clock: () => number): void {
  exchange.noteFault(fault.code, fault.message);
  const body = JSON.stringify({ __type: fault.code, message: fault.message });
  exchange.send(FAULTS[fault.code].aws, answerHeaders(exchange, { clock }, CONTENT_TYPE, fault), body);
}

async function answer<Caller>(
  exchange: Exchange,
  options: JsonDoorOptions<Caller>,
  compiled: CompiledModel,
): Promise<string> {
  const name = operationName(exchange, options.model);
  const entry = entryOf(options.table, name);
  const shapes = compiled.operations.get(name);
  if (entry === undefined || shapes === undefined) throw unknownOperation();
  exchange.action = `${options.service}:${name}`;

  const bytesMax = (isBuilt(entry) && entry.bodyBytesMax) || LIMITS.jsonBodyBytesMax;
  const vet = () => options.verify.vet(signedHead(exchange), options.service, 'json');
  const body = await readBody(exchange, bytesMax, { vet });
  const verified = await options.verify(signedRequest(exchange, body), options.service, 'json');
  exchange.principal = options.describeCaller(verified.caller);
  exchange.region = verified.region;
  options.throttle?.(verified.caller, exchange.action, verified.region);
  if (!isBuilt(entry)) throw notBuilt(name, entry);

  const input = shapes.input === undefined ? {} : parseJson(shapes.input, body);
  const broken = shapes.input && ecrFault(findViolations(shapes.input, input));
  if (broken) throw broken;
  const output = await perform(entry, input, exchange, contextOf(exchange, verified), options);
  return renderJson(shapes.output, output);
}

function unknownOperation(): Fault {
  return new Fault('UnknownOperationException', '');
}

/** WHY: AWS picks the protocol by method and content type too; a form with a target is no known operation. */
function operationName(exchange: Exchange, model: ServiceModel): string {
  const target = exchange.header('x-amz-target') ?? '';
  const type = (exchange.header('content-type') ?? CONTENT_TYPE).split(';', 1)[0]?.trim().toLowerCase();
  const json = type === CONTENT_TYPE || type === 'application/x-amz-json-1.0' || type === 'application/json';
  const prefix = `${model.metadata.targetPrefix ?? ''}.`;
  if (exchange.method !== 'POST' || !json || !target.startsWith(prefix)) throw unknownOperation();
  return target.slice(prefix.length);
}

/** Members beside the message are sent only where the model gives the error such members. */
function renderFault(fault: Fault, compiled: CompiledModel): string {
  const body: Record<string, unknown> = { __type: fault.code, message: fault.message };
  for (const member of compiled.errorMembers.get(fault.code) ?? []) {
    const value = fault.detail?.[member];
    if (value !== undefined) body[member] = value;
  }
  return JSON.stringify(body);
}
