import { Ticket, type Admission, type Kind, type Reason, type Waiting } from './admission.ts';
import type { Exchange } from './exchange.ts';

/** A request that is not over after this time is no longer counted among the requests, but among the slow ones. */
const SLOW_MS = 1000;

/**
 * Takes requests in under {@link Admission} for as long as they last, and moves those away that turn out to take long, so that
 * clients who send or read slowly take no place from others.
 */
export class Entrance {
  readonly #admission: Admission;
  /** with the slow ones moved away, oldest first */
  readonly #requests = new Map<Exchange, Ticket>();
  readonly #onCut: (exchange: Exchange) => void;
  #timer: NodeJS.Timeout | undefined;

  /** `onCut` hears of slow requests whose connections are closed because there are too many of them. */
  constructor(admission: Admission, onCut: (exchange: Exchange) => void) {
    this.#admission = admission;
    this.#onCut = onCut;
  }

  /** Resolves with `undefined` when the request may begin, with the reason when not, with `gone` when its client left. */
  enter(exchange: Exchange, kind: Kind): undefined | Promise<Reason | 'gone' | undefined> {
    const entered = this.#admission.enter(kind);
    if (!(entered instanceof Ticket)) return this.#wait(exchange, entered);
    this.#hold(exchange, entered);
    return undefined;
  }

  async #wait(exchange: Exchange, { outcome, leave }: Waiting): Promise<Reason | 'gone' | undefined> {
    const { response } = exchange;
    response.once('close', leave);
    const ticket = await outcome;
    response.off('close', leave);
    if (response.destroyed) {
      if (typeof ticket !== 'string') ticket.release();
      return 'gone';
    }
    if (typeof ticket === 'string') return ticket;
    this.#hold(exchange, ticket);
    return undefined;
  }

  #hold(exchange: Exchange, ticket: Ticket): void {
    const release = (): void => {
      ticket.release();
      this.#requests.delete(exchange);
    };
    exchange.response.once('close', release);
    // WHY: who was refused and still sends must not hold a place while that is read away.
    exchange.onEarlyAnswer = release;
    if (ticket.kind !== 'request') return;
    this.#requests.set(exchange, ticket);
    if (this.#timer === undefined) this.#timer = setTimeout(() => this.#sweep(), SLOW_MS).unref();
  }

  #sweep(): void {
    const now = this.#admission.now;
    for (const [exchange, ticket] of this.#requests) {
      if (now - ticket.since < SLOW_MS) break;
      if (this.#admission.slowDown(ticket)) {
        this.#requests.delete(exchange);
        continue;
      }
      if (!waitsForClient(exchange)) continue;
      this.#requests.delete(exchange);
      this.#onCut(exchange);
      exchange.request.socket.destroy();
    }
    this.#timer = this.#requests.size === 0 ? undefined : setTimeout(() => this.#sweep(), SLOW_MS).unref();
  }
}

function waitsForClient({ request, response, bodyPending }: Exchange): boolean {
  if (response.headersSent) return !response.writableFinished;
  return bodyPending && request.readableLength === 0;
}
