/** Door-neutral kit over `node:http`: one request with its answer, capped body readers, ranges, slow clients. */
export { Exchange, type ExchangeOptions } from './exchange.ts';
export { readBody } from './body.ts';
export { BodyMemory } from './body-memory.ts';
export { Admission, type Kind, type Reason } from './admission.ts';
export { Entrance } from './entrance.ts';
export { evaluateConditions, readPrecondition, selectRange } from './etag.ts';
export { parseContentRange, type ByteRange } from './range.ts';
export { watchReceiving, watchSending } from './watch.ts';
