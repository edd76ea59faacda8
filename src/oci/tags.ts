import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import type { Exchange } from '../http/http.ts';
import { type Call, commonHeaders } from './call.ts';

/** `GET /v2/<name>/tags/list?n=&last=`: tags in byte order; a page of at most 1000 with a link to the next. */
export async function listTags(call: Call): Promise<void> {
  const { exchange, repository } = call;
  const page = readPage(exchange);
  const found =
    page.limit === 0
      ? []
      : await call.services.registry.images.listTags(repository, page.last, page.limit + 1);
  const tags = found.slice(0, page.limit);
  const headers = commonHeaders(exchange);
  headers.push('Content-Type', 'application/json');
  const last = tags.at(-1);
  if (found.length > tags.length && last !== undefined) {
    const next = `/v2/${repository.name}/tags/list?n=${page.limit}&last=${encodeURIComponent(last)}`;
    headers.push('Link', `<${next}>; rel="next"`);
  }
  exchange.send(200, headers, JSON.stringify({ name: repository.name, tags }));
}

/** Page parameters of a list. `n` over the limit is clamped, as distribution does; clients follow the link. */
function readPage(exchange: Exchange): { limit: number; last: string | undefined } {
  const max = LIMITS.listPageMax;
  if (exchange.rawQuery === '') return { limit: max, last: undefined };
  const n = exchange.query.get('n');
  if (n !== null && !/^\d{1,18}$/.test(n)) {
    throw new Fault('PaginationNumberInvalid', 'invalid number of results requested');
  }
  const last = exchange.query.get('last');
  return { limit: n === null ? max : Math.min(Number(n), max), last: last === null ? undefined : last };
}
