/** What every ECR operation needs: the services behind it, and the way from an input to an address and a check. */
import type { RepositoryAddress } from '../domain/names.ts';
import { repositoryArn } from '../domain/names.ts';
import { Fault, repositoryNotFound } from '../domain/faults.ts';
import type { Identity, Principal } from '../identity/identity.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { AccessCheck, OperationContext } from '../protocol/protocol.ts';
import type { Registry, Repository } from '../registry/registry.ts';
import type { Store } from '../store/store.ts';
import type { Downloads } from './download.ts';
import type { PageTokens } from './pages.ts';

export type Context = OperationContext<Principal>;

/** How a registry is reached: `host` starts image names (`localhost:7327`), `endpoint` is its URL. */
export interface RegistryUri {
  readonly host: string;
  readonly endpoint: string;
}

export interface EcrOptions {
  readonly store: Store;
  readonly registry: Registry;
  readonly identity: Identity;
  readonly ring: KeyRing;
  readonly downloads: Downloads;
  /** The one template behind `repositoryUri` and `proxyEndpoint`; `origin` is what the client reached. */
  uri(account: string, region: string, origin: string): RegistryUri;
  /** Quotas that operators and tests may set; LIMITS otherwise. */
  readonly limits?: {
    readonly repositoriesMax?: number;
    readonly resourceTagsMax?: number;
    readonly creationTemplatesMax?: number;
    readonly pullTimeExclusionsMax?: number;
  };
}

export interface EcrServices extends Required<EcrOptions> {
  readonly limits: Required<NonNullable<EcrOptions['limits']>>;
  readonly pages: PageTokens;
}

interface RepositoryInput {
  readonly registryId?: string | undefined;
  readonly repositoryName: string;
}

/** The repository an input names: in the registry it names, otherwise in the caller's. */
export function addressOf(input: RepositoryInput, context: Context): RepositoryAddress {
  return {
    account: input.registryId ?? context.caller.account,
    region: context.region,
    name: input.repositoryName,
  };
}

/** The check of an operation on one repository, from its name alone: nothing is looked up before it is allowed. */
export function checkRepository(
  action: string,
): (input: RepositoryInput, context: Context) => readonly AccessCheck[] {
  return (input, context) => [
    { action: `ecr:${action}`, resource: repositoryArn(addressOf(input, context)) },
  ];
}

/** The registry of operations that have no other than the caller's (ecr-api.md §1.5). */
export function ownRegistry(context: Context): { readonly account: string; readonly region: string } {
  return { account: context.caller.account, region: context.region };
}

/** The check of an operation on the caller's registry. */
export function checkRegistry(action: string): () => readonly AccessCheck[] {
  const checks = [{ action: `ecr:${action}`, resource: '*' }];
  return () => checks;
}

/** @throws Fault RepositoryNotFoundException */
export async function requireRepository(
  services: Pick<EcrServices, 'registry'>,
  input: RepositoryInput,
  context: Context,
): Promise<Repository> {
  const address = addressOf(input, context);
  const repository = await services.registry.findRepository(address);
  if (repository === undefined) throw repositoryNotFound(address.name, address.account);
  return repository;
}

/** The repository, whose content can be read. @throws Fault RepositoryNotFoundException, KmsException */
export async function requireReadable(
  services: EcrServices,
  input: RepositoryInput,
  context: Context,
): Promise<Repository> {
  const repository = await requireRepository(services, input, context);
  if (!services.ring.has(repository.contentKey)) throw keyUnavailable(repository);
  return repository;
}

/** Content under a key that was lost or taken away. */
export function keyUnavailable(repository: Pick<Repository, 'kmsKey' | 'contentKey'>): Fault {
  return new Fault('KmsException', `Key '${repository.kmsKey ?? repository.contentKey}' is not available`, {
    kmsError: 'NotFoundException',
  });
}
