import type { Call } from './call.ts';
import { sendPage } from './pages.ts';

/** `GET /v2/<name>/tags/list?n=&last=`: tags in byte order; a page of at most 1000 with a link to the next. */
export async function listTags({ exchange, repository, scope, services }: Call): Promise<void> {
  const { name } = repository;
  await sendPage(
    exchange,
    scope,
    `/v2/${name}/tags/list`,
    (last, limit) => services.registry.images.listTags(repository, last, limit),
    (tags) => ({ name, tags }),
  );
}
