import type { EntityTags, Precondition } from '../domain/preconditions.ts';
import type { Exchange } from './exchange.ts';
import { type ByteRange, parseRange } from './range.ts';

/**
 * What the conditional headers of a GET or HEAD make of an answer that would be 200: `failed` is 412, `unmodified` is 304,
 * `undefined` goes on. `value` without quotes is the strong entity tag of what is there; that it is there is asked first, as
 * a condition never hides another refusal (RFC 9110 §13.2.1). Order of §13.2.2: If-Match, then If-None-Match, then the range
 * ({@link selectRange}).
 *
 * If-Modified-Since and If-Unmodified-Since are ignored, which is what §13.1.3 and §13.1.4 ask of content that has no
 * modification date: no answer here carries Last-Modified.
 */
export function evaluateConditions(
  { request: { headers } }: Pick<Exchange, 'request'>,
  value: string,
): 'failed' | 'unmodified' | undefined {
  const wanted = headers['if-match'];
  if (wanted !== undefined && !etagMatches(wanted, value, 'strong')) return 'failed';
  const known = headers['if-none-match'];
  return known !== undefined && etagMatches(known, value, 'weak') ? 'unmodified' : undefined;
}

/**
 * The part of a GET's answer that is to be sent, as {@link parseRange} says. An If-Range that is not exactly the strong tag of
 * `value` makes it the whole (RFC 9110 §13.1.5): a weak tag never matches, and neither does a date without Last-Modified.
 */
export function selectRange(
  exchange: Pick<Exchange, 'header'>,
  value: string,
  size: number,
): ByteRange | 'unsatisfiable' | undefined {
  const condition = exchange.header('if-range');
  if (condition !== undefined && condition !== `"${value}"`) return undefined;
  return parseRange(exchange.header('range'), size);
}

/**
 * Whether the list of an `If-Match` (strong comparison) or `If-None-Match` (weak) names the strong tag of `value`; `*` alone
 * names whatever is there. Unquoted spellings match too: some clients send the bare digest (registry-protocol.md §1.8).
 */
export function etagMatches(header: string, value: string, comparison: 'strong' | 'weak'): boolean {
  if (header === `"${value}"`) return true;
  const tags = listTags(header, comparison);
  return tags === '*' || tags.includes(value);
}

/** The tags of a list that can match a strong tag by the comparison. */
function listTags(header: string, comparison: 'strong' | 'weak'): EntityTags {
  if (header.trim() === '*') return '*';
  const tags: string[] = [];
  for (const [, weak, quoted, bare] of header.matchAll(/(W\/)?(?:"([^"]*)"|([^\s",]+))/g)) {
    if (weak === undefined || comparison === 'weak') tags.push(quoted ?? bare ?? '');
  }
  return tags;
}

/** What a PUT or DELETE wants to be true of what it replaces; `undefined` when it says nothing. Dates are ignored as above. */
export function readPrecondition({
  request: { headers },
}: Pick<Exchange, 'request'>): Precondition | undefined {
  const wanted = headers['if-match'];
  const unwanted = headers['if-none-match'];
  if (wanted === undefined && unwanted === undefined) return undefined;
  return {
    match: wanted === undefined ? undefined : listTags(wanted, 'strong'),
    noneMatch: unwanted === undefined ? undefined : listTags(unwanted, 'weak'),
  };
}
