/** Door-neutral kit over `node:http`: one request with its answer, capped body readers, ranges. */
export { Exchange, type ExchangeOptions } from './exchange.ts';
export { readBody } from './body.ts';
export { parseRange, type ByteRange } from './range.ts';
