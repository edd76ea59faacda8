import { repositoryNotFound } from '../domain/faults.ts';
import { repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import type { Principal, RequestFacts } from '../identity/identity.ts';
import type { Repository } from '../registry/registry.ts';
import type { OciServices } from './call.ts';

/**
 * Creates the repository a push goes to, when a template of the registry is for it (ecr-api.md §17). The caller has been
 * allowed what it came for; creating takes `ecr:CreateRepository`, and an upload's right, besides.
 *
 * @throws Fault RepositoryNotFoundException when no template is for it, AccessDeniedException
 */
export async function createOnPush(
  { registry, identity }: OciServices,
  principal: Principal,
  facts: RequestFacts,
  address: RepositoryAddress,
): Promise<Repository> {
  const template = await registry.templates.match(address, 'CREATE_ON_PUSH');
  if (template === undefined) throw repositoryNotFound(address.name, address.account);
  const resource = repositoryArn(address);
  await identity.authorize(
    principal,
    ['ecr:CreateRepository', 'ecr:InitiateLayerUpload'].map((action) => ({ action, resource })),
    facts,
    { account: address.account, policy: undefined, tags: new Map() },
  );
  return registry.templates.create(address, template);
}

/** Whether a request is how a push into a repository may begin. */
export function beginsPush(kind: string, method: string | undefined): boolean {
  return (kind === 'uploads' && method === 'POST') || (kind === 'manifest' && method === 'PUT');
}
