/**
 * Events over HTTP, for `berth events`: not an AWS API, but signed like one, for the service `berth`. Every answer is
 * JSON; an error has `__type` and `message` as ECR's have.
 *
 *     GET  /events?from=<event id>|after=<position>&limit=<n>&wait=<ms>   berth:FollowEvents
 *     GET  /events/dead                                                  berth:ListDeadEvents
 *     POST /events/replay?id=<event id>                                  berth:ReplayEvents
 *
 * INVARIANT: a caller sees and replays events of their own account only.
 */
import { Fault, FAULTS, invalidParameter } from '../domain/faults.ts';
import { readBody, type Exchange } from '../http/http.ts';
import { LIMITS } from '../lib/limits.ts';
import type { AccessCheck, Verify } from '../protocol/protocol.ts';
import type { Events } from './events.ts';

export const EVENTS_PATH = '/events';

const BODY_BYTES_MAX = 1024;

/** Facts of the request that decisions may depend on. */
interface Facts {
  readonly requestId: string;
  readonly region: string;
  readonly now: number;
  readonly sourceIp: string;
  readonly secure: boolean;
  readonly userAgent: string | undefined;
}

export interface EventsDoorOptions<Caller extends { readonly account: string }> {
  readonly events: Events;
  readonly verify: Verify<Caller>;
  /** @throws Fault AccessDeniedException */
  readonly authorize: (caller: Caller, checks: readonly AccessCheck[], facts: Facts) => Promise<void>;
  readonly describeCaller: (caller: Caller) => NonNullable<Exchange['principal']>;
  /** hears of defects */
  readonly onError: (error: unknown, exchange: Exchange) => void;
}

type Answer = (events: Events, exchange: Exchange, account: string) => Promise<object>;

const ROUTES: Readonly<Record<string, { readonly action: string; readonly answer: Answer }>> = {
  [`GET ${EVENTS_PATH}`]: { action: 'berth:FollowEvents', answer: follow },
  [`GET ${EVENTS_PATH}/dead`]: { action: 'berth:ListDeadEvents', answer: listDead },
  [`POST ${EVENTS_PATH}/replay`]: { action: 'berth:ReplayEvents', answer: replay },
};

/** Takes every request for {@link EVENTS_PATH} and below it. */
export function createEventsDoor<Caller extends { readonly account: string }>(
  options: EventsDoorOptions<Caller>,
): (exchange: Exchange) => Promise<void> {
  return async (exchange) => {
    try {
      send(exchange, 200, await answer(options, exchange));
    } catch (error) {
      if (!(error instanceof Fault)) options.onError(error, exchange);
      const fault =
        error instanceof Fault
          ? error
          : new Fault('ServerException', 'The request could not be completed because of an internal error.');
      send(exchange, FAULTS[fault.code].aws, { __type: fault.code, message: fault.message });
    }
  };
}

function send(exchange: Exchange, status: number, body: object): void {
  const headers = { 'Content-Type': 'application/json', 'x-amzn-RequestId': exchange.requestId };
  exchange.send(status, headers, JSON.stringify(body));
}

async function answer<Caller extends { readonly account: string }>(
  { events, verify, authorize, describeCaller }: EventsDoorOptions<Caller>,
  exchange: Exchange,
): Promise<object> {
  const { method, path, rawQuery } = exchange;
  const name = `${method} ${path}`;
  const route = Object.hasOwn(ROUTES, name) ? ROUTES[name] : undefined;
  if (route === undefined) throw new Fault('UnknownOperationException', `There is no ${name}`);
  exchange.action = route.action;
  // What is asked is in the query; a body is read only to be verified.
  const body = await readBody(exchange.request, BODY_BYTES_MAX);
  const { rawHeaders } = exchange.request;
  const verified = await verify({ method, path, rawQuery, rawHeaders, body }, 'berth', 'json');
  exchange.principal = describeCaller(verified.caller);
  await authorize(verified.caller, [{ action: route.action, resource: '*' }], {
    requestId: exchange.requestId,
    region: verified.region,
    now: verified.now,
    sourceIp: exchange.sourceIp,
    secure: exchange.secure,
    userAgent: exchange.header('user-agent'),
  });
  return await route.answer(events, exchange, verified.caller.account);
}

async function follow(events: Events, exchange: Exchange, account: string): Promise<object> {
  const { query, response } = exchange;
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  const after = query.has('after')
    ? readNumber(query, 'after', 0, Number.MAX_SAFE_INTEGER)
    : await events.find(account, query.get('from') ?? undefined);
  return await events.read(account, after, {
    limit: readNumber(query, 'limit', LIMITS.eventPageMax, LIMITS.eventPageMax),
    waitMs: readNumber(query, 'wait', 0, LIMITS.eventWaitMs),
    signal: gone.signal,
  });
}

async function listDead(events: Events, _exchange: Exchange, account: string): Promise<object> {
  return { deadLetters: await events.listDead(account) };
}

async function replay(events: Events, { query }: Exchange, account: string): Promise<object> {
  return { replayed: await events.replay(account, query.get('id') ?? undefined) };
}

function readNumber(query: URLSearchParams, name: string, fallback: number, most: number): number {
  const text = query.get(name);
  if (text === null) return fallback;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value <= most)) throw invalidParameter(name, `Must be a whole number up to ${most}`);
  return value;
}
