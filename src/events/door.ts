/**
 * Events over HTTP, for `berth events`: not an AWS API, but signed like one, for the service `berth`. Every answer is
 * JSON; an error has `__type` and `message` as ECR's have.
 *
 *     GET  /events?from=<event id>|after=<position>&limit=<n>&wait=<ms>   berth:FollowEvents
 *     GET  /events/dead?after=<next of a page>                           berth:ListDeadEvents
 *     POST /events/replay?id=<event id>                                  berth:ReplayEvents
 *
 * INVARIANT: a caller sees and replays events of their own account only.
 */
import type { Socket } from 'node:net';
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
  /** Counts a request. @throws Fault ThrottlingException when it is over a rate limit */
  readonly throttle?: ((caller: Caller, action: string, region: string) => void) | undefined;
  readonly describeCaller: (caller: Caller) => NonNullable<Exchange['principal']>;
  /** hears of defects */
  readonly onError: (error: unknown, exchange: Exchange) => void;
}

type Answer = (events: Events, exchange: Exchange, account: string, followers: Followers) => Promise<object>;

const ROUTES: Readonly<Record<string, { readonly action: string; readonly answer: Answer }>> = {
  [`GET ${EVENTS_PATH}`]: { action: 'berth:FollowEvents', answer: follow },
  [`GET ${EVENTS_PATH}/dead`]: { action: 'berth:ListDeadEvents', answer: listDead },
  [`POST ${EVENTS_PATH}/replay`]: { action: 'berth:ReplayEvents', answer: replay },
};

/** Takes every request for {@link EVENTS_PATH} and below it. */
export function createEventsDoor<Caller extends { readonly account: string }>(
  options: EventsDoorOptions<Caller>,
): (exchange: Exchange) => Promise<void> {
  const followers = new Followers();
  return async (exchange) => {
    try {
      send(exchange, 200, await answer(options, followers, exchange));
    } catch (error) {
      if (!(error instanceof Fault)) options.onError(error, exchange);
      const fault =
        error instanceof Fault
          ? error
          : new Fault('ServerException', 'The request could not be completed because of an internal error.');
      exchange.noteFault(fault.code, fault.message);
      send(exchange, FAULTS[fault.code].aws, { __type: fault.code, message: fault.message });
    }
  };
}

function send(exchange: Exchange, status: number, body: object): void {
  const headers = { 'Content-Type': 'application/json', 'x-amzn-RequestId': exchange.requestId };
  exchange.send(status, headers, JSON.stringify(body));
}

async function answer<Caller extends { readonly account: string }>(
  { events, verify, authorize, throttle, describeCaller }: EventsDoorOptions<Caller>,
  followers: Followers,
  exchange: Exchange,
): Promise<object> {
  const { method, path, rawQuery } = exchange;
  const name = `${method} ${path}`;
  const route = Object.hasOwn(ROUTES, name) ? ROUTES[name] : undefined;
  if (route === undefined) throw new Fault('UnknownOperationException', `There is no ${name}`);
  exchange.action = route.action;
  // What is asked is in the query; a body is read only to be verified.
  const body = await readBody(exchange, BODY_BYTES_MAX);
  const { rawHeaders } = exchange.request;
  const verified = await verify({ method, path, rawQuery, rawHeaders, body }, 'berth', 'json');
  exchange.principal = describeCaller(verified.caller);
  exchange.region = verified.region;
  throttle?.(verified.caller, route.action, verified.region);
  await authorize(verified.caller, [{ action: route.action, resource: '*' }], {
    requestId: exchange.requestId,
    region: verified.region,
    now: verified.now,
    sourceIp: exchange.sourceIp,
    secure: exchange.secure,
    userAgent: exchange.header('user-agent'),
  });
  const answered = await route.answer(events, exchange, verified.caller.account, followers);
  if (route.answer === follow) exchange.continues = followers.isRecorded(exchange, verified.now);
  return answered;
}

/** Who waits for events, and on which connections. */
class Followers {
  readonly #waiting = new Map<string, number>();
  readonly #recorded = new WeakMap<Socket, { readonly who: string; readonly at: number }>();

  /** Waits with `work`. @throws Fault ThrottlingException when the principal waits too often already */
  async wait<T>({ principal }: Exchange, work: () => Promise<T>): Promise<T> {
    const { account, roleId, id } = principal?.caller ?? { account: '', id: '' };
    // WHY the role's: whoever may assume a role could have as many sessions as they like.
    const who = `${account} ${roleId ?? id}`;
    const waiting = this.#waiting.get(who) ?? 0;
    if (waiting >= LIMITS.eventFollowersPerPrincipalMax)
      throw new Fault('ThrottlingException', 'Rate exceeded');
    this.#waiting.set(who, waiting + 1);
    try {
      return await work();
    } finally {
      const left = (this.#waiting.get(who) ?? 1) - 1;
      if (left > 0) this.#waiting.set(who, left);
      else this.#waiting.delete(who);
    }
  }

  /**
   * Whether there is an audit record, not too old, of the caller following on this connection. WHY: a follower asks again
   * and again, and a record of each time would bury the others.
   */
  isRecorded({ request: { socket }, principal }: Exchange, now: number): boolean {
    const who = `${principal?.caller.arn} ${principal?.accessKeyId}`;
    const last = this.#recorded.get(socket);
    if (last?.who === who && now - last.at < LIMITS.eventRecordMs) return true;
    this.#recorded.set(socket, { who, at: now });
    return false;
  }
}

async function follow(
  events: Events,
  exchange: Exchange,
  account: string,
  followers: Followers,
): Promise<object> {
  const { query, response } = exchange;
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  const after = query.has('after')
    ? readNumber(query, 'after', 0, Number.MAX_SAFE_INTEGER)
    : await events.find(account, query.get('from') ?? undefined);
  const limit = readNumber(query, 'limit', LIMITS.eventPageMax, LIMITS.eventPageMax);
  const waitMs = readNumber(query, 'wait', 0, LIMITS.eventWaitMs);
  const read = () => events.read(account, after, { limit, waitMs, signal: gone.signal });
  return await (waitMs === 0 ? read() : followers.wait(exchange, read));
}

async function listDead(events: Events, { query }: Exchange, account: string): Promise<object> {
  return events.listDead(account, query.get('after') ?? undefined);
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
