/** The credentials of one role, held for a machine or a task: taken when first asked for, renewed long before they expire. */
import { setTimeout as delay } from 'node:timers/promises';

export interface RoleCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken: string;
  /** milliseconds since 1970 */
  readonly expiresAt: number;
}

/** What came of asking for the role: a refusal is an answer, an outage is an exception. */
export type Assumption =
  | { readonly kind: 'granted'; readonly credentials: RoleCredentials }
  | { readonly kind: 'refused'; readonly reason: string };

export type Held =
  | { readonly kind: 'granted'; readonly credentials: RoleCredentials; readonly updatedAt: number }
  | { readonly kind: 'refused'; readonly reason: string; readonly updatedAt: number }
  | { readonly kind: 'unavailable'; readonly updatedAt: number };

export interface RoleCredentialsOptions {
  /** Takes the role. @throws when nobody answers */
  readonly assume: () => Promise<Assumption>;
  /** milliseconds since 1970 */
  readonly clock: () => number;
  /** Told of every refusal and outage. */
  readonly onTrouble: (reason: string) => void;
}

/** Renewed at half of their life, at the latest an hour after they were taken, as EC2 and ECS do. */
const AGE_MS_MAX = 3_600_000;
/** After a refusal or an outage, nobody asks again sooner. */
const RETRY_MS = 2000;
/** SDKs wait one second for an answer: while a set is still good, a slow renewal does not hold it back. */
const PATIENCE_MS = 500;

/**
 * `read` resolves to credentials that have at least half of their life before them as long as the role can be taken. Sets
 * handed out before stay valid to their own end. An outage is sat out on the set that is held; a refusal is passed on at once.
 */
export function createRoleCredentials({ assume, clock, onTrouble }: RoleCredentialsOptions): {
  read(): Promise<Held>;
} {
  let held: Held = { kind: 'unavailable', updatedAt: Number.NEGATIVE_INFINITY };
  let renewAt = Number.NEGATIVE_INFINITY;
  let renewal: Promise<void> | undefined;

  const isGood = (now: number): boolean => held.kind === 'granted' && held.credentials.expiresAt > now;

  const renew = async (): Promise<void> => {
    try {
      const assumption = await assume();
      const now = clock();
      held = { ...assumption, updatedAt: now };
      if (assumption.kind === 'granted') {
        renewAt = now + Math.min(AGE_MS_MAX, (assumption.credentials.expiresAt - now) / 2);
      } else {
        renewAt = now + RETRY_MS;
        onTrouble(assumption.reason);
      }
    } catch (error) {
      const now = clock();
      renewAt = now + RETRY_MS;
      if (!isGood(now)) held = { kind: 'unavailable', updatedAt: now };
      onTrouble((error as Error).message);
    } finally {
      renewal = undefined;
    }
  };

  return {
    async read() {
      const now = clock();
      if (now >= renewAt || (held.kind === 'granted' && !isGood(now))) {
        renewal ??= renew();
        const patience = new AbortController();
        const waits = isGood(now) ? [delay(PATIENCE_MS, undefined, { signal: patience.signal })] : [];
        await Promise.race([renewal, ...waits.map((wait) => wait.catch(() => undefined))]);
        patience.abort();
      }
      return held;
    },
  };
}
