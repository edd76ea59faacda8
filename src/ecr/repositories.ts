/** Create, describe and delete repositories, and their tag mutability (ecr-api.md §4 and §10). */
import { invalidParameter } from '../domain/faults.ts';
import { repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import type { Principal } from '../identity/identity.ts';
import { storageKey } from '../lib/ids.ts';
import type {
  CreateRepositoryRequest,
  CreateRepositoryResponse,
  DeleteRepositoryRequest,
  DeleteRepositoryResponse,
  DescribeRepositoriesRequest,
  DescribeRepositoriesResponse,
  ImageTagMutability,
  ImageTagMutabilityExclusionFilter,
  PutImageTagMutabilityRequest,
  PutImageTagMutabilityResponse,
  Repository as RepositoryShape,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { resolveEncryption } from '../registry/registry.ts';
import { pageRepositories, type RepositoryRecord } from '../store/store.ts';
import { PAGE_DEFAULT, refusePaging } from './pages.ts';
import { addressOf, checkRepository, requireRepository, type Context, type EcrServices } from './services.ts';
import { readTags, tagConditionKeys } from './tags.ts';

/** The `Repository` of answers (ecr-api.md §4.1). */
function describe(services: EcrServices, repository: RepositoryRecord, context: Context): RepositoryShape {
  const { account, region, name, encryptionType, kmsKey, exclusionFilters } = repository;
  return {
    repositoryArn: repositoryArn(repository),
    registryId: account,
    repositoryName: name,
    repositoryUri: `${services.uri(account, region, context.origin).host}/${name}`,
    createdAt: new Date(repository.createdAt),
    imageTagMutability: repository.mutability,
    ...(exclusionFilters.length > 0 && {
      imageTagMutabilityExclusionFilters: exclusionFilters.map((filter) => ({ ...filter })),
    }),
    imageScanningConfiguration: { scanOnPush: repository.scanOnPush },
    encryptionConfiguration: { encryptionType, ...(kmsKey !== undefined && { kmsKey }) },
  };
}

/**
 * The filters of a mode: required with exclusions, absent without (ecr-api.md §1.4, §10.1).
 *
 * @throws Fault InvalidParameterException
 */
export function readExclusionFilters(
  mutability: ImageTagMutability,
  filters: readonly ImageTagMutabilityExclusionFilter[] | undefined,
): readonly ImageTagMutabilityExclusionFilter[] {
  const member = 'imageTagMutabilityExclusionFilters';
  const refuse = (what: string) =>
    invalidParameter(
      member,
      `ImageTagMutabilityExclusionFilters ${what} when imageTagMutability is set to ${mutability}`,
    );
  if (mutability === 'MUTABLE' || mutability === 'IMMUTABLE') {
    if (filters !== undefined) throw refuse('are not allowed');
    return [];
  }
  if (filters === undefined || filters.length === 0) throw refuse("can't be null");
  return filters.map(({ filterType, filter }) => ({ filterType, filter }));
}

export function createRepositoryOperations(services: EcrServices) {
  const { store, ring, pages } = services;

  const createRepository: Operation<Principal, CreateRepositoryRequest, CreateRepositoryResponse> = {
    notCovered:
      '`imageScanningConfiguration.scanOnPush` is kept and returned, and nothing scans. `KMS_DSSE` is refused. Keys are those of `berth key`, without grants or policies.',
    access: (input, context) => [
      {
        action: 'ecr:CreateRepository',
        resource: repositoryArn(addressOf(input, context)),
        keys: tagConditionKeys(input.tags),
      },
    ],
    async run(input, context) {
      const address = addressOf(input, context);
      if (address.account !== context.caller.account) {
        throw invalidParameter(
          'registryId',
          'Repositories can only be created in the registry of the caller',
        );
      }
      const { repositoriesMax, resourceTagsMax } = services.limits;
      const mutability = input.imageTagMutability ?? 'MUTABLE';
      const exclusionFilters = readExclusionFilters(mutability, input.imageTagMutabilityExclusionFilters);
      const tags = readTags(input.tags ?? [], resourceTagsMax);
      const repository: RepositoryRecord = {
        ...address,
        ...(await resolveEncryption(ring, address, input.encryptionConfiguration)),
        id: storageKey(context.now),
        createdAt: context.now,
        mutability,
        exclusionFilters,
        scanOnPush: input.imageScanningConfiguration?.scanOnPush ?? false,
        policy: undefined,
      };
      await store.transact('repository.create', { repository, tags, repositoriesMax });
      return { repository: describe(services, repository, context) };
    },
  };

  const describeRepositories: Operation<
    Principal,
    DescribeRepositoriesRequest,
    DescribeRepositoriesResponse
  > = {
    access(input, context) {
      const names = input.repositoryNames ?? ['*'];
      return [...new Set(names)].map((repositoryName) => ({
        action: 'ecr:DescribeRepositories',
        resource: repositoryArn(addressOf({ registryId: input.registryId, repositoryName }, context)),
      }));
    },
    async run(input, context) {
      if (input.repositoryNames !== undefined) {
        refusePaging('repositoryNames', input);
        const repositories: RepositoryShape[] = [];
        for (const repositoryName of new Set(input.repositoryNames)) {
          const named = { registryId: input.registryId, repositoryName };
          repositories.push(describe(services, await requireRepository(services, named, context), context));
        }
        return { repositories };
      }
      const { account, region } = addressOf({ registryId: input.registryId, repositoryName: '' }, context);
      const scope = ['DescribeRepositories', account, region];
      const [after] = pages.open(scope, input.nextToken) ?? [];
      const limit = input.maxResults ?? PAGE_DEFAULT;
      const last = after === undefined ? undefined : String(after);
      const found = await pageRepositories(store.read, { account, region }, last, limit + 1);
      const page = found.slice(0, limit);
      const name = page.at(-1)?.name;
      return {
        repositories: page.map((repository) => describe(services, repository, context)),
        ...(found.length > limit && name !== undefined && { nextToken: pages.seal(scope, [name]) }),
      };
    },
  };

  const deleteRepository: Operation<Principal, DeleteRepositoryRequest, DeleteRepositoryResponse> = {
    notCovered: 'With `force` no events tell of the images, since ECR documents none.',
    access: checkRepository('DeleteRepository'),
    async run(input, context) {
      const address = addressOf(input, context);
      const { force = false } = input;
      const { now } = context;
      const deleteAfter = now + services.registry.trashGraceMs;
      const repository = await store.transact('repository.delete', { address, force, now, deleteAfter });
      return { repository: describe(services, repository, context) };
    },
  };

  const putImageTagMutability: Operation<
    Principal,
    PutImageTagMutabilityRequest,
    PutImageTagMutabilityResponse
  > = {
    access: checkRepository('PutImageTagMutability'),
    async run(input, context) {
      const address: RepositoryAddress = addressOf(input, context);
      const mutability = input.imageTagMutability;
      const filters = readExclusionFilters(mutability, input.imageTagMutabilityExclusionFilters);
      await store.transact('repository.setTagMutability', { address, mutability, exclusionFilters: filters });
      return {
        registryId: address.account,
        repositoryName: address.name,
        imageTagMutability: mutability,
        ...(filters.length > 0 && { imageTagMutabilityExclusionFilters: [...filters] }),
      };
    },
  };

  return {
    CreateRepository: createRepository,
    DescribeRepositories: describeRepositories,
    DeleteRepository: deleteRepository,
    PutImageTagMutability: putImageTagMutability,
  };
}
