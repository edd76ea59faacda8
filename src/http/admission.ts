/**
 * Which requests may begin. A bounded number of each kind is under way, a bounded number waits for a short time, and the
 * others are refused before anything is read or verified for them. Knows nothing of what the requests are.
 */

/**
 * What a request holds while it runs. `request`: a moment of CPU and database. `transfer`: buffers, for as long as its client
 * needs. `waiting`: a client that waits for events. `slow`: what began as a request and takes long.
 */
export type Kind = 'request' | 'transfer' | 'waiting' | 'slow';

/** Why a request was refused: too many wait, it waited too long, or the event loop is behind. */
export type Reason = 'queue_full' | 'queue_timeout' | 'overload';

export interface AdmissionOptions {
  /** monotonic milliseconds */
  readonly clock: () => number;
  /** milliseconds the event loop has had nothing to do, ever */
  readonly idleMs: () => number;
  readonly inFlightMax: Readonly<Record<Kind, number>>;
  /** requests that wait, refused ones that were not told yet included */
  readonly queueMax: number;
  /** how long a request waits at most; a refusal is told after half of this time to all of it */
  readonly queueMs: number;
  /** while there is too much to do for longer than `calmMs`, a request that waited this long is not begun */
  readonly targetMs: number;
  readonly calmMs: number;
}

/** A request that waits. */
export interface Waiting {
  readonly outcome: Promise<Ticket | Reason>;
  /** Its client is gone. */
  leave(): void;
}

interface Entry {
  readonly kind: Kind;
  readonly since: number;
  readonly settle: (outcome: Ticket | Reason) => void;
  timer: NodeJS.Timeout | undefined;
}

/** A place of a request under way. */
export class Ticket {
  readonly since: number;
  #kind: Kind;
  readonly #release: (ticket: Ticket) => void;
  #released = false;

  constructor(kind: Kind, since: number, release: (ticket: Ticket) => void) {
    this.#kind = kind;
    this.since = since;
    this.#release = release;
  }

  get kind(): Kind {
    return this.#kind;
  }

  /** Gives the place back; more than once is the same as once. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#release(this);
  }

  /** INVARIANT: only Admission calls it, which counts the kinds. */
  change(kind: Kind): void {
    this.#kind = kind;
  }
}

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #loop: LoopDelay;
  readonly #running: Record<Kind, number> = { request: 0, transfer: 0, waiting: 0, slow: 0 };
  readonly #queues: Record<Kind, Set<Entry>> = {
    request: new Set(),
    transfer: new Set(),
    waiting: new Set(),
    slow: new Set(),
  };
  /** when the queue of a kind was last empty */
  readonly #emptyAt: Record<Kind, number>;
  readonly #strictUntil: Record<Kind, number> = { request: 0, transfer: 0, waiting: 0, slow: 0 };
  #waiting = 0;
  #told = 0;

  constructor(options: AdmissionOptions) {
    this.#options = options;
    this.#loop = new LoopDelay(options);
    const now = options.clock();
    this.#emptyAt = { request: now, transfer: now, waiting: now, slow: now };
  }

  /** requests under way, by kind */
  get running(): Readonly<Record<Kind, number>> {
    return this.#running;
  }

  /** requests that wait, and refused ones whose clients were not told yet */
  get waiting(): number {
    return this.#waiting;
  }

  /** monotonic milliseconds, as in {@link Ticket.since} */
  get now(): number {
    return this.#options.clock();
  }

  /**
   * A place at once, or the wait for one. WHY a refusal waits as well: clients that ask again at once would keep the server
   * busy with nothing but refusing them.
   */
  enter(kind: Kind): Ticket | Waiting {
    const now = this.#options.clock();
    const behind = this.#loop.isBehind(now);
    if (behind || this.#queues[kind].size > 0 || this.#running[kind] >= this.#options.inFlightMax[kind])
      return this.#wait(kind, now, behind);
    this.#emptyAt[kind] = now;
    return this.#begin(kind, now);
  }

  #wait(kind: Kind, now: number, behind: boolean): Waiting {
    const { queueMax, queueMs } = this.#options;
    if (this.#waiting >= queueMax) return { outcome: Promise.resolve('queue_full'), leave: () => {} };
    const queue = this.#queues[kind];
    const { promise, resolve } = Promise.withResolvers<Ticket | Reason>();
    const entry: Entry = { kind, since: now, settle: resolve, timer: undefined };
    this.#waiting += 1;
    // WHY not all after the same time: who was refused at once would come again at once.
    const toldMs = behind ? queueMs * (1 - (this.#told++ % 32) / 64) : queueMs;
    entry.timer = setTimeout(() => this.#drop(entry, behind ? 'overload' : 'queue_timeout'), toldMs);
    if (!behind) queue.add(entry);
    return { outcome: promise, leave: () => this.#drop(entry, 'queue_timeout') };
  }

  /** Moves a request to the slow ones. False when there are too many of them: then it has to be ended. */
  slowDown(ticket: Ticket): boolean {
    if (this.#running.slow >= this.#options.inFlightMax.slow) return false;
    const { kind } = ticket;
    this.#running[kind] -= 1;
    this.#running.slow += 1;
    ticket.change('slow');
    this.#next(kind);
    return true;
  }

  #begin(kind: Kind, now: number): Ticket {
    this.#running[kind] += 1;
    return new Ticket(kind, now, (ticket) => {
      this.#running[ticket.kind] -= 1;
      this.#next(ticket.kind);
    });
  }

  #drop(entry: Entry, reason: Reason): void {
    if (entry.timer === undefined) return;
    clearTimeout(entry.timer);
    entry.timer = undefined;
    this.#waiting -= 1;
    this.#queues[entry.kind].delete(entry);
    entry.settle(reason);
  }

  /** Lets in who waits, first come first served; while the queue does not get empty only who waited briefly. */
  #next(kind: Kind): void {
    const queue = this.#queues[kind];
    if (queue.size === 0) return;
    const { clock, inFlightMax, targetMs, calmMs } = this.#options;
    const now = clock();
    const strict = now - this.#emptyAt[kind] > calmMs || now < this.#strictUntil[kind];
    const patienceMs = strict ? targetMs : Number.POSITIVE_INFINITY;
    for (const entry of queue) {
      if (this.#running[kind] >= inFlightMax[kind]) return;
      queue.delete(entry);
      // Who waited too long gives way to younger ones and is refused when its time is over.
      if (now - entry.since > patienceMs && queue.size > 0) {
        // WHY: refusing empties the queue, which does not mean that there is less to do.
        this.#strictUntil[kind] = now + STRICT_MS;
        continue;
      }
      clearTimeout(entry.timer);
      entry.timer = undefined;
      this.#waiting -= 1;
      entry.settle(this.#begin(kind, now));
    }
    this.#emptyAt[kind] = now;
  }
}

/**
 * How far the event loop is behind. A turn of the loop hands out what arrived during the one before: a request has waited
 * for as long as its own turn and that one have lasted. That is much after a burst too, which does no harm; a server is
 * overloaded when no turn has been short for a while and too many requests come in one, and for some time after that.
 */
export class LoopDelay {
  readonly #options: Pick<AdmissionOptions, 'clock' | 'idleMs' | 'targetMs' | 'calmMs'>;
  #turning = false;
  #seen = 0;
  #began = 0;
  #ended = 0;
  #lastMs = 0;
  #idleMs = 0;
  #beforeMs = 0;
  #calmAt: number;
  #crowdedUntil = 0;

  constructor(options: Pick<AdmissionOptions, 'clock' | 'idleMs' | 'targetMs' | 'calmMs'>) {
    this.#options = options;
    this.#calmAt = options.clock();
  }

  /** Whether a request that is seen now should not be begun. */
  isBehind(now: number): boolean {
    const { targetMs, calmMs } = this.#options;
    if (!this.#turning) this.#begin(now);
    // WHY: with so few it is not requests that keep the loop busy but transfers, which refusing requests would not help.
    if (++this.#seen <= TURN_REQUESTS_MIN || now - this.#began + this.#beforeMs <= targetMs) return false;
    if (this.#seen > TURN_REQUESTS_MAX && now - this.#calmAt > calmMs) this.#crowdedUntil = now + CROWDED_MS;
    return now < this.#crowdedUntil;
  }

  #begin(now: number): void {
    this.#turning = true;
    this.#seen = 0;
    this.#began = now;
    const idleMs = this.#options.idleMs();
    const idle = idleMs - this.#idleMs > IDLE_MS;
    if (idleMs - this.#idleMs > REST_MS) this.#crowdedUntil = 0;
    this.#idleMs = idleMs;
    // What ran since the last turn's requests were handed out belongs to that turn.
    if (!idle) this.#lastMs += now - this.#ended;
    this.#beforeMs = idle ? 0 : this.#lastMs;
    if (idle) this.#calmAt = now;
    setImmediate(() => {
      this.#turning = false;
      this.#ended = this.#options.clock();
      this.#lastMs = this.#ended - this.#began;
      if (this.#lastMs < this.#options.targetMs) this.#calmAt = this.#ended;
    });
  }
}

/** How long waiting stays short after a refusal. */
const STRICT_MS = 5000;

/**
 * How long a loop is taken for crowded that has not had nothing to do for a while in between. WHY so long: to find out whether it
 * still is takes patience at the clients' expense.
 */
const CROWDED_MS = 30_000;
const REST_MS = 10;

/**
 * So many requests are begun in every turn. Who keeps more at it all the time than the second number is too many: from then on
 * what does not fit into the time is refused. WHY the two: as many clients as that, each with its next request when it has
 * the answer, wait a little for each other, and refusing them would be worse; more than that without an end want more than
 * there is, and what is begun for them is answered as fast as ever (three times the time it takes alone) only when few are.
 */
const TURN_REQUESTS_MIN = 12;
const TURN_REQUESTS_MAX = 64;

/** A loop that had nothing to do for this long between requests is not behind. */
const IDLE_MS = 1;
