/** Answers of the AWS endpoint to requests that no door has read. */
import type { Fault } from '../domain/faults.ts';
import type { Exchange } from '../http/http.ts';
import { sendJsonFault } from './aws-json.ts';
import { sendQueryFault } from './query-xml.ts';
import { chooseProtocol } from './routing.ts';

/** Answers with a fault in the protocol the request seems to speak. */
export function refuseAws(exchange: Exchange, fault: Fault, clock: () => number): void {
  if (chooseProtocol(exchange) === 'query') sendQueryFault(exchange, fault, clock);
  else sendJsonFault(exchange, fault, clock);
}
