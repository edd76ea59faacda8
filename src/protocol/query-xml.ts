/** The Query door: forms in, XML out (iam-sts.md §1.11, §5, §6). */
import { Fault, FAULTS } from '../domain/faults.ts';
import { readBody, type Exchange } from '../http/http.ts';
import { LIMITS } from '../lib/limits.ts';
import { element, escapeXml } from '../lib/xml.ts';
import type { ServiceModel } from '../model/service-model.ts';
import { findViolations, iamFault, stsFault } from './constraints.ts';
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
import { toJson } from './json.ts';
import type { OperationTable, Structure } from './operation.ts';
import { parseForm, readForm, renderXml, type Form } from './query.ts';
import { compileModel, type CompiledModel, type CompiledOperation } from './shapes.ts';
import { carriesSignature } from './signature.ts';

/** Errors before a service is known come in this namespace. */
const FAULT_NAMESPACE = 'http://webservices.amazon.com/AWSFault/2005-15-09';

export interface QueryService<Caller> {
  /** signing name; decides whose sentences tell a broken constraint */
  readonly service: 'iam' | 'sts';
  readonly model: ServiceModel;
  readonly table: OperationTable<Caller>;
}

export interface QueryDoorOptions<Caller> extends DoorOptions<Caller> {
  readonly services: readonly QueryService<Caller>[];
  /** Who asks in an operation that takes unsigned requests, and the region it is answered for. */
  readonly anonymous: { readonly caller: Caller; readonly region: string };
}

interface CompiledService<Caller> extends QueryService<Caller> {
  readonly compiled: CompiledModel;
}

/** How an answer is to look. Starts with what is known of any request and is filled in as it is understood. */
interface Manner {
  namespace: string;
  json: boolean;
}

/**
 * Makes the door of several Query services; the `Version` parameter says which one is meant. Order: for a large body: key → body → route →
 * signature → shape and constraints → authorisation → run → serialise.
 *
 * @throws Error when a table and its model disagree or a model does not compile
 */
export function createQueryDoor<Caller>(
  options: QueryDoorOptions<Caller>,
): (exchange: Exchange) => Promise<void> {
  const services = new Map<string, CompiledService<Caller>>();
  for (const each of options.services) {
    checkTable(each.model, each.table);
    services.set(each.model.metadata.apiVersion, { ...each, compiled: compileModel(each.model) });
  }
  return async (exchange) => {
    const manner: Manner = { namespace: FAULT_NAMESPACE, json: false };
    try {
      const body = await answer(exchange, options, services, manner);
      exchange.send(200, answerHeaders(exchange, options, typeOf(manner)), body);
    } catch (error) {
      if (error instanceof ProtocolError) {
        sendError(exchange, options, manner, error.code, error.status, error.message);
      } else {
        const fault = faultOf(error, exchange, options);
        const [code, status] = FAULTS[fault.code].query;
        sendError(exchange, options, manner, code, status, fault.message, fault);
      }
    }
  };
}

/** Answers with a fault before it is known which service is asked. */
export function sendQueryFault(exchange: Exchange, fault: Fault, clock: () => number): void {
  const [code, status] = FAULTS[fault.code].query;
  sendError(
    exchange,
    { clock },
    { namespace: FAULT_NAMESPACE, json: false },
    code,
    status,
    fault.message,
    fault,
  );
}

/** Refusals of the Query protocol itself, which no operation can cause. */
class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
  readonly code: string;
  readonly status: number;
  constructor(code: string, status: number, message: string) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function answer<Caller>(
  exchange: Exchange,
  options: QueryDoorOptions<Caller>,
  services: ReadonlyMap<string, CompiledService<Caller>>,
  manner: Manner,
): Promise<string> {
  if (exchange.method !== 'GET' && exchange.method !== 'POST') {
    throw new ProtocolError('MethodNotAllowed', 405, 'The method is not GET or POST.');
  }
  // WHY so little without one: what AssumeRoleWithWebIdentity takes is shorter, and anybody may send it.
  const signed = carriesSignature(exchange.header('authorization'), exchange.rawQuery);
  const vet = () => options.verify.vet(signedHead(exchange), undefined, 'query');
  const bytesMax = signed ? LIMITS.formBodyBytesMax : LIMITS.unsignedFormBodyBytesMax;
  const body = await readBody(exchange, bytesMax, { vet });
  const form = readParameters(exchange, body);
  const { service, name } = route(exchange, form, services);
  manner.namespace = service.model.metadata.xmlNamespace ?? FAULT_NAMESPACE;
  manner.json = service.service === 'sts' && exchange.header('accept')?.includes('application/json') === true;
  const entry = entryOf(service.table, name);
  const shapes = service.compiled.operations.get(name);
  if (entry === undefined || shapes === undefined) throw new Error(`no entry for ${name}`);
  exchange.action = `${service.service}:${name}`;

  const who = shapes.unsigned
    ? { ...options.anonymous, now: options.clock() }
    : await options.verify(signedRequest(exchange, body), service.service, 'query');
  exchange.principal = options.describeCaller(who.caller);
  exchange.region = who.region;
  options.throttle?.(who.caller, exchange.action, who.region);
  if (!isBuilt(entry)) throw notBuilt(name, entry);

  const input = parseForm(shapes.input, form);
  const violations = shapes.input === undefined ? [] : findViolations(shapes.input, input);
  const broken = service.service === 'iam' ? iamFault(violations) : stsFault(violations);
  if (broken !== undefined) throw broken;
  const output = await perform(entry, input, exchange, contextOf(exchange, who), options);
  return manner.json
    ? renderJsonAnswer(shapes, output, exchange.requestId)
    : renderAnswer(shapes, output, exchange.requestId, manner.namespace);
}

/** Query string and form body together; the query string wins, as the first of several does. */
function readParameters(exchange: Exchange, body: Buffer): Form {
  const form = new Map<string, string>();
  readForm(exchange.rawQuery, form);
  const type = (exchange.header('content-type') ?? '').split(';', 1)[0]?.trim().toLowerCase();
  if (exchange.method === 'POST' && (type === '' || type === 'application/x-www-form-urlencoded')) {
    let text: string;
    try {
      text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
    } catch {
      throw new Fault('MalformedQueryString', 'The parameters are not valid UTF-8.');
    }
    readForm(text, form);
  }
  return form;
}

function route<Caller>(
  exchange: Exchange,
  form: Form,
  services: ReadonlyMap<string, CompiledService<Caller>>,
): { readonly service: CompiledService<Caller>; readonly name: string } {
  const name = form.get('Action');
  if (name === undefined || name === '') {
    if (!carriesSignature(exchange.header('authorization'), exchange.rawQuery)) {
      throw new Fault('MissingAuthenticationTokenException', 'Request is missing Authentication Token');
    }
    throw new ProtocolError('MissingAction', 400, 'The request must contain the parameter Action.');
  }
  const version = form.get('Version');
  const service = services.get(version ?? '');
  if (service === undefined || !service.compiled.operations.has(name)) {
    const asked = `${name.slice(0, 128)} for version ${(version ?? 'NO_VERSION_SPECIFIED').slice(0, 128)}`;
    throw new Fault('UnknownOperationException', `Could not find operation ${asked}`);
  }
  return { service, name };
}

function renderAnswer(
  operation: CompiledOperation,
  output: Structure | undefined,
  requestId: string,
  namespace: string,
): string {
  const wrapper = operation.resultWrapper;
  const result =
    operation.output === undefined || wrapper === undefined
      ? ''
      : element(wrapper, renderXml(operation.output, output ?? {}));
  const metadata = element('ResponseMetadata', element('RequestId', escapeXml(requestId)));
  return `<${operation.name}Response xmlns="${namespace}">${result}${metadata}</${operation.name}Response>`;
}

function renderJsonAnswer(
  operation: CompiledOperation,
  output: Structure | undefined,
  requestId: string,
): string {
  const { name, resultWrapper } = operation;
  const result =
    operation.output === undefined || resultWrapper === undefined
      ? {}
      : { [resultWrapper]: toJson(operation.output, output ?? {}) };
  return JSON.stringify({ [`${name}Response`]: { ...result, ResponseMetadata: { RequestId: requestId } } });
}

function typeOf(manner: Manner): string {
  return manner.json ? 'application/json' : 'text/xml';
}

function sendError(
  exchange: Exchange,
  options: { readonly clock: () => number },
  manner: Manner,
  code: string,
  status: number,
  message: string,
  fault?: Fault,
): void {
  exchange.noteFault(code, message);
  const type = status < 500 ? 'Sender' : 'Receiver';
  const requestId = exchange.requestId;
  const error =
    element('Type', type) +
    element('Code', escapeXml(code)) +
    // AWS leaves the text out where there is none
    (message === '' ? '' : element('Message', escapeXml(message)));
  const body = manner.json
    ? JSON.stringify({ Error: { Code: code, Message: message, Type: type }, RequestId: requestId })
    : `<ErrorResponse xmlns="${manner.namespace}">${element('Error', error)}` +
      `${element('RequestId', escapeXml(requestId))}</ErrorResponse>`;
  exchange.send(status, answerHeaders(exchange, options, typeOf(manner), fault), body);
}
