/** The ECR API: what each of its operations means. Everything that is the same for all of them is protocol/'s. */
import type { Principal } from '../identity/identity.ts';
import { LIMITS } from '../lib/limits.ts';
import type { OperationTable } from '../protocol/protocol.ts';
import { createExclusionOperations } from './exclusions.ts';
import { createImageOperations } from './images.ts';
import { createLayerOperations } from './layers.ts';
import { createLifecycleOperations } from './lifecycle.ts';
import { createListingOperations } from './listings.ts';
import { notBuiltOperations } from './not-built.ts';
import { createPageTokens } from './pages.ts';
import { createPolicyOperations } from './policies.ts';
import { createReferrerOperations } from './referrers.ts';
import { createRegistryOperations } from './registry.ts';
import { createRepositoryOperations } from './repositories.ts';
import type { EcrOptions, EcrServices } from './services.ts';
import { createStorageClassOperations } from './storage-class.ts';
import { createTagOperations } from './tags.ts';
import { createTemplateOperations } from './templates.ts';
import { createTokenOperations } from './tokens.ts';

export { createDownloads, DOWNLOAD_PATH, type DownloadOptions, type Downloads } from './download.ts';
export { createExplainLifecycle } from './lifecycle-explanation.ts';
export type { EcrOptions, RegistryUri } from './services.ts';

/** The table of all operations of the `ecr` service model, those that are not built included. */
export function createEcrOperations(options: EcrOptions): OperationTable<Principal> {
  const services: EcrServices = {
    ...options,
    limits: {
      repositoriesMax: options.limits?.repositoriesMax ?? LIMITS.repositoriesMax,
      resourceTagsMax: options.limits?.resourceTagsMax ?? LIMITS.resourceTagsMax,
      creationTemplatesMax: options.limits?.creationTemplatesMax ?? LIMITS.creationTemplatesMax,
      pullTimeExclusionsMax: options.limits?.pullTimeExclusionsMax ?? LIMITS.pullTimeExclusionsMax,
    },
    pages: createPageTokens(options.ring.derive('ecr page tokens')),
  };
  return {
    ...createRepositoryOperations(services),
    ...createTagOperations(services),
    ...createPolicyOperations(services),
    ...createImageOperations(services),
    ...createListingOperations(services),
    ...createLayerOperations(services),
    ...createLifecycleOperations(services),
    ...createStorageClassOperations(services),
    ...createTokenOperations(services),
    ...createRegistryOperations(services),
    ...createExclusionOperations(services),
    ...createTemplateOperations(services),
    ...createReferrerOperations(services),
    ...notBuiltOperations(),
  };
}
