/**
 * Memory for request bodies that are read whole. Small ones are free; what larger ones may hold together is bounded, and who
 * finds no room waits before anything of the body is read. Without it everybody, key or not, could fill the memory: a body has
 * to be there before its signature can be looked at.
 */
import { Fault } from '../domain/faults.ts';
import type { Exchange } from './exchange.ts';

export interface BodyMemoryOptions {
  /** of all bodies together that are not free */
  readonly bytesMax: number;
  /** bodies up to this size are free: the number of requests under way bounds them */
  readonly freeBytes: number;
  /** how long a body waits for room at most */
  readonly waitMs: number;
  /** while others wait, a body must come fast enough to be complete in this time */
  readonly receiveMs: number;
  /** monotonic milliseconds */
  readonly clock: () => number;
}

interface Holder {
  readonly bytes: number;
  readonly since: number;
  /** bytes of its connection before the body */
  readonly before: number;
}

interface Waiter {
  readonly bytes: number;
  readonly settle: (granted: boolean) => void;
}

const SWEEP_MS = 1000;

export class BodyMemory {
  readonly #options: BodyMemoryOptions;
  readonly #holders = new Map<Exchange, Holder>();
  readonly #waiters = new Set<Waiter>();
  #left: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: BodyMemoryOptions) {
    this.#options = options;
    this.#left = options.bytesMax;
  }

  /** bytes promised to bodies under way */
  get held(): number {
    return this.#options.bytesMax - this.#left;
  }

  /**
   * Room for a body of so many bytes, until the answer is complete, its client gone or it is given back.
   *
   * @throws Fault ServiceUnavailableException when there is none in time, SerializationException when the client left
   */
  hold(exchange: Exchange, bytes: number): undefined | Promise<void> {
    if (bytes <= this.#options.freeBytes) return undefined;
    const wanted = Math.min(bytes, this.#options.bytesMax);
    if (this.#waiters.size > 0 || wanted > this.#left) return this.#wait(exchange, wanted);
    this.#grant(exchange, wanted);
    return undefined;
  }

  async #wait(exchange: Exchange, bytes: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const waiter: Waiter = { bytes, settle: resolve };
    const { response } = exchange;
    const leave = (): void => resolve(false);
    const timer = setTimeout(leave, this.#options.waitMs);
    response.once('close', leave);
    this.#waiters.add(waiter);
    this.#timer ??= setInterval(() => this.#sweep(), SWEEP_MS).unref();
    const granted = await promise;
    clearTimeout(timer);
    response.off('close', leave);
    this.#waiters.delete(waiter);
    if (granted && !response.destroyed) {
      this.#left += bytes;
      this.#grant(exchange, bytes);
      return;
    }
    if (granted) this.#left += bytes;
    this.#next();
    if (response.destroyed)
      throw new Fault('SerializationException', 'The request body ended before it was complete.');
    throw new Fault('ServiceUnavailableException', 'The server is overloaded. Try again later.');
  }

  #grant(exchange: Exchange, bytes: number): void {
    this.#left -= bytes;
    const { request, response } = exchange;
    const before = request.socket.bytesRead - request.readableLength;
    this.#holders.set(exchange, { bytes, since: this.#options.clock(), before });
    response.once('close', () => this.release(exchange));
  }

  /** Gives back what a body holds; more than once is the same as once. */
  release(exchange: Exchange): void {
    const holder = this.#holders.get(exchange);
    if (holder === undefined) return;
    this.#holders.delete(exchange);
    this.#left += holder.bytes;
    this.#next();
  }

  /** First come, first served: a large body is not passed by smaller ones for ever. */
  #next(): void {
    for (const waiter of this.#waiters) {
      if (waiter.bytes > this.#left) return;
      this.#waiters.delete(waiter);
      // Taken from now on, until the one who waits goes on with it.
      this.#left -= waiter.bytes;
      waiter.settle(true);
    }
    if (this.#waiters.size === 0) this.#rest();
  }

  /** Who holds room for a body and sends it slowly gives way to those who wait. */
  #sweep(): void {
    if (this.#waiters.size === 0) return this.#rest();
    const { clock, receiveMs } = this.#options;
    const now = clock();
    for (const [{ request }, { bytes, since, before }] of this.#holders) {
      const elapsed = now - since;
      if (request.complete || request.readableLength > 0 || elapsed < receiveMs / 10) continue;
      if ((request.socket.bytesRead - before) * receiveMs < bytes * elapsed) request.destroy();
    }
  }

  #rest(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
