/** Which door a request to the AWS endpoint is for (iam-sts.md §1.9). */
import type { Exchange } from '../http/http.ts';

/**
 * `X-Amz-Target` means JSON, `Action` in the query or a form body means Query. Only a request that has neither is
 * placed by the service its credential is scoped to.
 *
 * WHY: this order and not the scope first: when a request is signed for one service and asks another, the error to give
 * is the one of the service that is asked.
 */
export function chooseProtocol(exchange: Exchange): 'json' | 'query' {
  if (exchange.header('x-amz-target') !== undefined) return 'json';
  if (/(?:^|&)Action=/.test(exchange.rawQuery)) return 'query';
  const type = exchange.header('content-type') ?? '';
  if (/^application\/x-www-form-urlencoded\b/i.test(type)) return 'query';
  const service = scopeService(exchange);
  if (service !== undefined) return service === 'iam' || service === 'sts' ? 'query' : 'json';
  return /^application\/(?:x-amz-json-1\.[01]|json)\b/i.test(type) ? 'json' : 'query';
}

/** The service name of the credential scope, whatever else is wrong with the signature. */
function scopeService(exchange: Exchange): string | undefined {
  const header = /\bCredential=([^,\s]*)/.exec(exchange.header('authorization') ?? '')?.[1];
  const credential = header ?? exchange.query.get('X-Amz-Credential');
  return credential?.split('/')[3];
}
