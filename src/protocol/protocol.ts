/**
 * The AWS protocols: signature, shapes, errors. An operation table and its service model go in, a door comes out; no
 * operation knows what is on the wire.
 */
import type { Exchange } from '../http/http.ts';
import { berthModel, ecrModel, iamModel, stsModel } from '../model/service-model.ts';
import { createJsonDoor } from './aws-json.ts';
import type { DoorOptions } from './door.ts';
import type { OperationTable } from './operation.ts';
import { createQueryDoor } from './query-xml.ts';
import { chooseProtocol } from './routing.ts';

export { createJsonDoor, type JsonDoorOptions } from './aws-json.ts';
export { checkTable, type DoorOptions } from './door.ts';
export type {
  AccessCheck,
  Operation,
  OperationContext,
  OperationNotBuilt,
  OperationTable,
  Shape,
  Structure,
} from './operation.ts';
export { createQueryDoor, type QueryDoorOptions, type QueryService } from './query-xml.ts';
export { refuseAws } from './refusal.ts';
export { chooseProtocol } from './routing.ts';
export {
  createVerifier,
  type KeySource,
  type SignedRequest,
  type Verified,
  type VerifierOptions,
  type Verify,
} from './signature.ts';

export interface AwsDoorOptions<Caller> extends DoorOptions<Caller> {
  readonly ecr: OperationTable<Caller>;
  readonly iam: OperationTable<Caller>;
  readonly sts: OperationTable<Caller>;
  /** Berth's own operations (src/model/berth.json) */
  readonly berth: OperationTable<Caller>;
  /** Who asks in an operation that takes unsigned requests, and the region it is answered for. */
  readonly anonymous: { readonly caller: Caller; readonly region: string };
}

/**
 * The one endpoint that serves ECR, IAM and STS, and Berth's own operations. Takes the server's `POST`s of any path and its signed GETs.
 *
 * @throws Error when a table and its model disagree
 */
export function createAwsDoor<Caller>(
  options: AwsDoorOptions<Caller>,
): (exchange: Exchange) => Promise<void> {
  const json = createJsonDoor({ ...options, service: 'ecr', model: ecrModel, table: options.ecr });
  const own = createJsonDoor({ ...options, service: 'berth', model: berthModel, table: options.berth });
  const ownPrefix = `${berthModel.metadata.targetPrefix}.`;
  const query = createQueryDoor({
    ...options,
    services: [
      { service: 'iam', model: iamModel, table: options.iam },
      { service: 'sts', model: stsModel, table: options.sts },
    ],
  });
  return (exchange) => {
    if (chooseProtocol(exchange) === 'query') return query(exchange);
    return exchange.header('x-amz-target')?.startsWith(ownPrefix) === true ? own(exchange) : json(exchange);
  };
}
