import type { Exchange } from '../http/http.ts';
import type { Registry } from '../registry/registry.ts';
import { sendPage } from './pages.ts';
import type { Scope } from './scope.ts';

/** `GET /v2/_catalog?n=&last=`: repositories of the registry in byte order, paged like tags (registry-protocol.md §1.10). */
export async function listRepositories(exchange: Exchange, registry: Registry, scope: Scope): Promise<void> {
  await sendPage(
    exchange,
    scope,
    '/v2/_catalog',
    (last, limit) => registry.listRepositories(scope, last, limit),
    (repositories) => ({ repositories }),
  );
}
