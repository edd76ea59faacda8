import { Fault, type FaultCode, FAULTS } from '../domain/faults.ts';
import type { Exchange } from '../http/http.ts';
import { commonHeaders } from './call.ts';

/**
 * Sentences the data plane prints whatever the API's are: what ECR sends where clients match on it (registry-protocol.md
 * §3.4), the distribution registry's default elsewhere (§1.3).
 */
const SENTENCES: { readonly [code in FaultCode]?: string } = {
  ImageNotFoundException: 'Requested image not found',
  LayerNotFound: 'blob unknown to registry',
  LayerInaccessibleException: 'blob unknown to registry',
  UploadNotFoundException: 'blob upload unknown to registry',
  InvalidRegistryToken: 'Your Authorization Token is invalid.',
  ExpiredRegistryToken: 'Your authorization token has expired. Reauthenticate and try again.',
  ThrottlingException: 'Rate exceeded',
  ServerException: 'unknown error',
};

/** Answers with a fault: `{"errors":[{"code","message","detail"?}]}`. `headers` are names and values alternating. */
export function sendFault(exchange: Exchange, fault: Fault, headers: readonly string[] = []): void {
  exchange.noteFault(fault.code, fault.message);
  const [code, status] = FAULTS[fault.code].oci;
  const error = {
    code,
    message: SENTENCES[fault.code] ?? fault.message,
    ...(fault.detail === undefined ? {} : { detail: fault.detail }),
  };
  const all = commonHeaders(exchange);
  all.push('Content-Type', 'application/json', ...headers);
  if (status === 429 || status === 503) all.push('Retry-After', '1');
  exchange.send(status, all, JSON.stringify({ errors: [error] }));
}

/**
 * Answers whatever a request failed with. A client that is gone gets nothing, an answer already under way is cut so
 * that it cannot pass for whole, and what is no Fault is reported and shown as an unknown error.
 */
export function sendFailure(
  exchange: Exchange,
  error: unknown,
  onError: (error: unknown, exchange: Exchange) => void,
): void {
  const { request, response } = exchange;
  const gone = response.destroyed || request.socket.destroyed || request.errored !== null;
  if (error instanceof Fault) {
    if (error.code === 'ServerException') onError(error, exchange);
  } else if (!gone) onError(error, exchange);
  if (gone || response.headersSent) {
    if (!gone)
      exchange.noteFault(error instanceof Fault ? error.code : 'ServerException', 'The answer was cut.');
    response.destroy();
    return;
  }
  sendFault(exchange, error instanceof Fault ? error : new Fault('ServerException', 'unknown error'));
}

/** A path that is none of the registry's. */
export function routeUnknown(): Fault {
  return new Fault('RouteUnknown', 'The path is not part of the registry API.');
}

export function blobUnknown(): Fault {
  return new Fault('LayerNotFound', 'blob unknown to registry');
}

export function manifestUnknown(): Fault {
  return new Fault('ImageNotFoundException', 'Requested image not found');
}
