/** The keys of token issuers, by discovery, remembered for a while (iam-sts.md §5.5). */
import { LIMITS } from '../lib/limits.ts';
import { IssuerError } from './issuer-fetch.ts';
import type { IssuerFetch } from './issuer-fetch.ts';
import { readIssuerKey } from './jwt.ts';
import type { IssuerKey } from './jwt.ts';
import { RecentMap } from '../lib/recent.ts';

export interface Issuers {
  /**
   * The keys of an issuer. `enough` says whether the remembered ones will do; if not, they are asked for again, but not more
   * often than every half minute, so that forged tokens do not become requests.
   *
   * @throws IssuerError
   */
  keysOf(
    issuer: string,
    thumbprints: readonly string[],
    now: number,
    enough: (keys: readonly IssuerKey[]) => boolean,
  ): Promise<readonly IssuerKey[]>;
}

interface Known {
  readonly keys: readonly IssuerKey[];
  /** when `keys` were read */
  readonly keysAt: number;
  readonly triedAt: number;
  /** what the newest try came to */
  readonly error: IssuerError | undefined;
}

const ISSUERS_MAX = 1000;

export function createIssuers(fetch: IssuerFetch): Issuers {
  /**
   * By issuer and thumbprints. INVARIANT: keys that one account's thumbprints vouch for are no other account's, whose
   * provider has others. A corrected thumbprint is tried at once.
   */
  const known = new RecentMap<string, Known>(ISSUERS_MAX);
  const pending = new Map<string, Promise<Known>>();

  async function ask(
    id: string,
    issuer: string,
    thumbprints: readonly string[],
    now: number,
  ): Promise<Known> {
    const before = known.get(id);
    let answer: Known;
    try {
      const keys = await discover(fetch, issuer, thumbprints);
      answer = { keys, keysAt: now, triedAt: now, error: undefined };
    } catch (error) {
      if (!(error instanceof IssuerError)) throw error;
      // WHY: an issuer that is away for a moment keeps the keys it had, as long as they are believed.
      answer = { keys: before?.keys ?? [], keysAt: before?.keysAt ?? -Infinity, triedAt: now, error };
    }
    known.set(id, answer);
    return answer;
  }

  return {
    async keysOf(issuer, thumbprints, now, enough) {
      const believed = ({ keys, keysAt }: Known) => (now - keysAt < LIMITS.issuerKeysMs ? keys : []);
      const id = [issuer, ...thumbprints.toSorted()].join(' ');
      let found = known.get(id);
      if (found !== undefined && enough(believed(found))) return found.keys;
      if (found === undefined || now - found.triedAt >= LIMITS.issuerRetryMs) {
        let asked = pending.get(id);
        if (asked === undefined) {
          asked = ask(id, issuer, thumbprints, now).finally(() => pending.delete(id));
          pending.set(id, asked);
        }
        found = await asked;
      }
      const keys = believed(found);
      if (found.error !== undefined && !enough(keys)) throw found.error;
      return keys;
    },
  };
}

/** Discovery document, then key set. @throws IssuerError */
async function discover(
  fetch: IssuerFetch,
  issuer: string,
  thumbprints: readonly string[],
): Promise<IssuerKey[]> {
  const base = issuer.endsWith('/') ? issuer.slice(0, -1) : issuer;
  const document = await fetch(`${base}/.well-known/openid-configuration`, thumbprints);
  const { issuer: named, jwks_uri: uri } = (document ?? {}) as Record<string, unknown>;
  if (named !== issuer) throw new IssuerError('refused', `${issuer} says that it is ${String(named)}`);
  if (typeof uri !== 'string' || !URL.canParse(uri)) {
    throw new IssuerError('refused', `${issuer} names no key set`);
  }
  const set = await fetch(uri, thumbprints);
  const { keys } = (set ?? {}) as Record<string, unknown>;
  if (!Array.isArray(keys) || keys.length > LIMITS.issuerKeysMax) {
    throw new IssuerError('refused', `${uri} is no key set`);
  }
  return keys.flatMap((jwk) => readIssuerKey(jwk) ?? []);
}
