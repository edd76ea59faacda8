/** Repositories that nobody created by hand: made by the registry's templates, when a push (or a copy) needs them (ecr-api.md §17). */
import { Fault } from '../domain/faults.ts';
import { repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import { storageKey } from '../lib/ids.ts';
import { matchTemplate, type Scenario, type TemplateRecord } from '../store/store.ts';
import { resolveEncryption } from './keys.ts';
import type { RegistryContext, Repository } from './registry.ts';

export interface Templates {
  /** The template that makes a repository of this name; `undefined` when none does. */
  match(address: RepositoryAddress, scenario: Scenario): Promise<TemplateRecord | undefined>;
  /**
   * Makes the repository with all the template sets, and returns it; or the one somebody else made meanwhile. Whoever asks has
   * put `templateChecks` to the policies before.
   *
   * @throws Fault KmsException, LimitExceededException
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
 * What the role of a template must be allowed, to make a repository by it; none when the template has no role, and ECR's own
 * does it. Keys have no policies of their own here, so nothing of KMS is asked, as CreateRepository does not.
 *
 * @throws Fault AccessDeniedException: keys and tags are set only as a role of the account
 */
export function templateChecks(
  template: TemplateRecord,
  address: RepositoryAddress,
): { readonly roleArn: string; readonly checks: readonly TemplateCheck[] } | undefined {
  const { prefix, encryptionType, tags, customRoleArn } = template;
  if (customRoleArn === undefined) {
    if (encryptionType === 'AES256' && tags.length === 0) return undefined;
    throw new Fault(
      'AccessDeniedException',
      `The repository creation template with prefix '${prefix}' sets KMS encryption or resource tags, and has no ` +
        'customRoleArn of a role to do so',
    );
  }
  const resource = repositoryArn(address);
  const keys = new Map<string, string | readonly string[]>(
    tags.map(({ key, value }) => [`aws:requesttag/${key.toLowerCase()}`, value]),
  );
  if (tags.length > 0)
    keys.set(
      'aws:tagkeys',
      tags.map(({ key }) => key),
    );
  const actions = [
    'ecr:CreateRepository',
    ...(tags.length > 0 ? ['ecr:TagResource'] : []),
    ...(template.repositoryPolicy === undefined ? [] : ['ecr:SetRepositoryPolicy']),
    ...(template.lifecyclePolicy === undefined ? [] : ['ecr:PutLifecyclePolicy']),
  ];
  const checks = actions.map((action) => ({
    action,
    resource,
    ...(/(?:CreateRepository|TagResource)$/.test(action) && { keys }),
  }));
  return { roleArn: customRoleArn, checks };
}

/** An AccessCheck of protocol/. */
interface TemplateCheck {
  readonly action: string;
  readonly resource: string;
  readonly keys?: ReadonlyMap<string, string | readonly string[]>;
}
