/** Repositories that nobody created by hand: made by the registry's templates, when a push (or a copy) needs them (ecr-api.md §17). */
import { Fault } from '../domain/faults.ts';
import type { RepositoryAddress } from '../domain/names.ts';
import { storageKey } from '../lib/ids.ts';
import { findRole, matchTemplate, type Scenario, type TemplateRecord } from '../store/store.ts';
import { resolveEncryption } from './keys.ts';
import type { RegistryContext, Repository } from './registry.ts';

export interface Templates {
  /** The template that makes a repository of this name; `undefined` when none does. */
  match(address: RepositoryAddress, scenario: Scenario): Promise<TemplateRecord | undefined>;
  /**
   * Makes the repository with all the template sets, and returns it; or the one somebody else made meanwhile.
   *
   * @throws Fault AccessDeniedException (the template lacks a role), KmsException, LimitExceededException
   */
  create(address: RepositoryAddress, template: TemplateRecord): Promise<Repository>;
}

export function createTemplates(
  context: RegistryContext,
  findRepository: (address: RepositoryAddress) => Promise<Repository | undefined>,
): Templates {
  const { store, clock, ring, repositoriesMax } = context;
  return {
    match: (address, scenario) => matchTemplate(store.read, address, address.name, scenario),
    async create(address, template) {
      await requireRole(context, template);
      const { encryptionType, kmsKey } = template;
      const encryption = await resolveEncryption(ring, address, { encryptionType, kmsKey });
      const now = clock();
      try {
        await store.transact('template.createRepository', {
          repository: {
            ...address,
            ...encryption,
            id: storageKey(now),
            createdAt: now,
            mutability: template.mutability,
            exclusionFilters: template.exclusionFilters,
            scanOnPush: false,
            policy: template.repositoryPolicy,
          },
          tags: template.tags,
          repositoriesMax,
          lifecyclePolicy: template.lifecyclePolicy,
          now,
        });
      } catch (error) {
        // Clients push the layers of an image side by side: all but one of the first requests come second.
        if (!(error instanceof Fault) || error.code !== 'RepositoryAlreadyExistsException') throw error;
      }
      const repository = await findRepository(address);
      if (repository === undefined) {
        throw new Fault('ServiceUnavailableException', 'The repository was deleted while it was created.');
      }
      return repository;
    },
  };
}

/**
 * ECR sets keys and tags only as a role of the account: without one the template can be stored, but not used.
 *
 * WHY its policies are not asked: whoever wrote the template had to be allowed to pass it.
 */
async function requireRole({ store }: RegistryContext, template: TemplateRecord): Promise<void> {
  const { prefix, account, encryptionType, tags, customRoleArn } = template;
  if (encryptionType === 'AES256' && tags.length === 0) return;
  const [, path = '', name = ''] = /:role(\/(?:.*\/)?)([^/]+)$/.exec(customRoleArn ?? '') ?? [];
  const role = await findRole(store.read, account, name);
  if (role?.path === path) return;
  throw new Fault(
    'AccessDeniedException',
    `The repository creation template with prefix '${prefix}' sets KMS encryption or resource tags, and has no ` +
      'customRoleArn of a role that exists to do so',
  );
}
