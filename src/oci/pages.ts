import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import type { Exchange } from '../http/http.ts';
import { commonHeaders } from './call.ts';
import { linkTo, type Scope } from './scope.ts';

/**
 * Page parameters of a list.
 *
 * @throws Fault MethodNotAllowed with ECR's sentence when `n` is over its limit (registry-protocol.md §3.3)
 */
function readPage(exchange: Exchange): { limit: number; last: string | undefined } {
  const max = LIMITS.listPageMax;
  if (exchange.rawQuery === '') return { limit: max, last: undefined };
  const n = exchange.query.get('n');
  if (n !== null && !/^\d{1,18}$/.test(n)) {
    throw new Fault('PaginationNumberInvalid', 'invalid number of results requested');
  }
  if (Number(n) > max) {
    throw new Fault(
      'MethodNotAllowed',
      `Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value less than or equal to ${max}'`,
    );
  }
  // WHY cut: PostgreSQL takes no NUL, and no name has one, so the same names come after what stands before it.
  const last = exchange.query.get('last')?.split('\0', 1)[0];
  return { limit: n === null ? max : Number(n), last };
}

/**
 * Answers with a page of names in a JSON object, linked to the next page at `path` of the registry. `list` reads names after `last`
 * in byte order.
 */
export async function sendPage(
  exchange: Exchange,
  scope: Scope,
  path: string,
  list: (last: string | undefined, limit: number) => Promise<string[]>,
  bodyOf: (names: readonly string[]) => object,
): Promise<void> {
  const page = readPage(exchange);
  const found = page.limit === 0 ? [] : await list(page.last, page.limit + 1);
  const names = found.slice(0, page.limit);
  const headers = commonHeaders(exchange);
  headers.push('Content-Type', 'application/json');
  const last = names.at(-1);
  if (found.length > names.length && last !== undefined) {
    const next = linkTo(scope, path, `n=${page.limit}&last=${encodeURIComponent(last)}`);
    headers.push('Link', `<${next}>; rel="next"`);
  }
  exchange.send(200, headers, JSON.stringify(bodyOf(names)));
}
