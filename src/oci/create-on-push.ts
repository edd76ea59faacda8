import { repositoryNotFound } from '../domain/faults.ts';
import { repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import type { Principal, RequestFacts } from '../identity/identity.ts';
import { templateChecks, type Repository } from '../registry/registry.ts';
import type { OciServices } from './call.ts';

/** The name of ECR's session when it acts as the role of a template. */
const SESSION_NAME = 'ECRTemplate';

/**
 * Creates the repository a push goes to, when a template of the registry is for it (ecr-api.md §17). The caller has been
 * allowed what it came for; creating takes `ecr:CreateRepository`, and an upload's right, besides. Where the template names a
 * role, ECR acts as that: it must trust `ecr.amazonaws.com` and be allowed all that the template sets.
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
  const nothing = { account: address.account, policy: undefined, tags: new Map<string, string>() };
  await identity.authorize(
    principal,
    ['ecr:CreateRepository', 'ecr:InitiateLayerUpload'].map((action) => ({ action, resource })),
    facts,
    nothing,
  );
  const acting = templateChecks(template, address);
  if (acting !== undefined) {
    const { roleArn, checks } = acting;
    const action = { service: 'ecr.amazonaws.com', roleArn, sessionName: SESSION_NAME, sourceArn: resource };
    await identity.authorizeAsRole(action, checks, facts, nothing);
  }
  return registry.templates.create(address, template);
}

/** Whether a request is how a push into a repository may begin. */
export function beginsPush(kind: string, method: string | undefined): boolean {
  return (kind === 'uploads' && method === 'POST') || (kind === 'manifest' && method === 'PUT');
}
