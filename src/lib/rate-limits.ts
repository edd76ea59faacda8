/**
 * Rate limits of principals: what the setting `rate-limits` means, and the buckets that enforce it. The buckets are in
 * shared memory, so that all threads of a process count together.
 */
import { createHash } from 'node:crypto';

/** So many requests per second, and so many at once after a pause, of the actions that match. */
export interface RateLimit {
  /** `ecr:PutImage`, or a beginning with `*` at its end */
  readonly actions: string;
  readonly perSecond: number;
  readonly burst: number;
}

/** Amazon ECR's default quotas of requests per second (ecr-api.md §23). */
const ECR_LIMITS: readonly RateLimit[] = Object.entries({
  GetDownloadUrlForLayer: 3000,
  BatchGetImage: 2000,
  BatchCheckLayerAvailability: 1000,
  GetAuthorizationToken: 500,
  UploadLayerPart: 500,
  InitiateLayerUpload: 100,
  CompleteLayerUpload: 100,
  PutImage: 10,
}).map(([name, rate]) => ({ actions: `ecr:${name}`, perSecond: rate, burst: rate }));

/**
 * Reads limits: `ecr` for Amazon's defaults, and `action=rate` or `action=rate/burst`, separated by commas, e.g.
 * `ecr:PutImage=50/100,ecr,iam:*=20`. Of an action the first that matches counts. `undefined` when the text is no good.
 */
export function readRateLimits(text: string): readonly RateLimit[] | undefined {
  const limits: RateLimit[] = [];
  for (const part of text.split(',').flatMap((it) => it.trim() || [])) {
    if (part === 'ecr') {
      limits.push(...ECR_LIMITS);
      continue;
    }
    const match = /^((?:ecr|iam|sts|berth):(?:[A-Za-z]+\*?|\*))=(\d{1,6})(?:\/(\d{1,6}))?$/.exec(part);
    if (match === null) return undefined;
    const [, actions = '', rate = ''] = match;
    const limit = { actions, perSecond: Number(rate), burst: Number(match[3] ?? rate) };
    if (limit.perSecond === 0 || limit.burst === 0) return undefined;
    limits.push(limit);
  }
  return limits;
}

/** Buckets of one table. Each is two numbers: whose it is, and when it will be full again. */
const SLOTS = 16_384;
/** Places one bucket may have. When others have them all, the one that is full soonest gives way. */
const PROBES = 8;

/** Memory for the buckets of a process. */
export function allocateBuckets(): SharedArrayBuffer {
  return new SharedArrayBuffer(SLOTS * 2 * BigInt64Array.BYTES_PER_ELEMENT);
}

export class RateLimiter {
  readonly #limits: readonly RateLimit[];
  readonly #clock: () => number;
  readonly #owners: BigInt64Array;
  readonly #fullAt: BigInt64Array;
  /** WHY safe to keep: there are as many actions as the service models have */
  readonly #byAction = new Map<string, RateLimit | undefined>();

  /** `clock` is in epoch milliseconds, of which threads have the same. */
  constructor(limits: readonly RateLimit[], memory: SharedArrayBuffer, clock: () => number) {
    this.#limits = limits;
    this.#clock = clock;
    this.#owners = new BigInt64Array(memory, 0, SLOTS);
    this.#fullAt = new BigInt64Array(memory, SLOTS * BigInt64Array.BYTES_PER_ELEMENT, SLOTS);
  }

  /** Counts one request of `who` and says whether it is within the limit of its action. A refused one is not counted. */
  take(who: string, action: string): boolean {
    const limit = this.#limitOf(action);
    if (limit === undefined) return true;
    const everyNs = Math.round(1e9 / limit.perSecond);
    const now = BigInt(Math.round(this.#clock() * 1000)) * 1000n;
    const slot = this.#slotOf(`${limit.actions}\n${who}`, now);
    // The generic cell rate algorithm: a bucket is the time at which it will be full, so one exchange takes from it.
    const most = BigInt(everyNs) * BigInt(limit.burst);
    for (;;) {
      const seen = Atomics.load(this.#fullAt, slot);
      // WHY the upper end: a clock that was set back must not lock anybody out.
      const from = seen < now || seen - now > most ? now : seen;
      const to = from + BigInt(everyNs);
      if (to - now > most) return false;
      if (Atomics.compareExchange(this.#fullAt, slot, seen, to) === seen) return true;
    }
  }

  #limitOf(action: string): RateLimit | undefined {
    if (this.#byAction.has(action)) return this.#byAction.get(action);
    const limit = this.#limits.find(({ actions }) =>
      actions.endsWith('*') ? action.startsWith(actions.slice(0, -1)) : action === actions,
    );
    this.#byAction.set(action, limit);
    return limit;
  }

  #slotOf(key: string, now: bigint): number {
    const hash = createHash('sha256').update(key).digest();
    const owner = hash.readBigInt64LE(0) | 1n;
    const first = hash.readUInt32LE(8);
    let weakest = first % SLOTS;
    for (let i = 0; i < PROBES; i += 1) {
      const slot = (first + i) % SLOTS;
      if (Atomics.load(this.#owners, slot) === owner) return slot;
      if (Atomics.load(this.#fullAt, slot) < Atomics.load(this.#fullAt, weakest)) weakest = slot;
    }
    Atomics.store(this.#owners, weakest, owner);
    Atomics.store(this.#fullAt, weakest, now);
    return weakest;
  }
}
