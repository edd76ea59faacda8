/** Repository policies (ecr-api.md §13). */
import { invalidParameter, repositoryPolicyNotFound } from '../domain/faults.ts';
import { repositoryArn } from '../domain/names.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  DeleteRepositoryPolicyRequest,
  DeleteRepositoryPolicyResponse,
  GetRepositoryPolicyRequest,
  GetRepositoryPolicyResponse,
  SetRepositoryPolicyRequest,
  SetRepositoryPolicyResponse,
} from '../model/ecr-types.ts';
import {
  compilePolicy,
  formatPolicyDocument,
  principalsNamed,
  validateRepositoryPolicy,
} from '../policy/policy.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { Repository } from '../registry/registry.ts';
import { principalsExist } from '../store/store.ts';
import { addressOf, checkRepository, requireRepository, type Context, type EcrServices } from './services.ts';

/** The text as it is stored and returned. @throws Fault InvalidParameterException */
async function readPolicy({ store }: EcrServices, text: string, arn: string): Promise<string> {
  const mistake = validateRepositoryPolicy(text, arn);
  if (mistake !== undefined) throw invalidParameter('PolicyText', mistake);
  if (!(await principalsExist(store.read, principalsNamed(compilePolicy(text)))))
    throw invalidParameter('PolicyText', 'Principal not found');
  return formatPolicyDocument(text);
}

/**
 * Refuses a policy under which its own author could not set another one (ecr-api.md §13.3).
 *
 * WHY only explicit denials: the caller was just allowed by something, and whatever that was is not weakened by a policy
 * that does not deny.
 *
 * @throws Fault InvalidParameterException
 */
async function refuseLockOut(
  { identity }: EcrServices,
  repository: Repository,
  policy: string,
  context: Context,
): Promise<void> {
  const { account, tags } = repository;
  const check = { action: 'ecr:SetRepositoryPolicy', resource: repositoryArn(repository) };
  const { reason } = await identity.decide(context.caller, check, context, { account, policy, tags });
  if (reason.outcome === 'explicit-deny') {
    throw invalidParameter(
      'PolicyText',
      'The policy would prevent you from setting another policy in the future. Use force to set it anyway.',
    );
  }
}

export function createPolicyOperations(services: EcrServices) {
  const { store } = services;

  const setRepositoryPolicy: Operation<Principal, SetRepositoryPolicyRequest, SetRepositoryPolicyResponse> = {
    access: checkRepository('SetRepositoryPolicy'),
    async run(input, context) {
      const address = addressOf(input, context);
      const policy = await readPolicy(services, input.policyText, repositoryArn(address));
      const repository = await requireRepository(services, input, context);
      if (input.force !== true) await refuseLockOut(services, repository, policy, context);
      await store.transact('repository.setPolicy', { address, policy });
      return { registryId: address.account, repositoryName: address.name, policyText: policy };
    },
  };

  const getRepositoryPolicy: Operation<Principal, GetRepositoryPolicyRequest, GetRepositoryPolicyResponse> = {
    access: checkRepository('GetRepositoryPolicy'),
    async run(input, context) {
      const { account, name, policy } = await requireRepository(services, input, context);
      if (policy === undefined) throw repositoryPolicyNotFound(name, account);
      return { registryId: account, repositoryName: name, policyText: policy };
    },
  };

  const deleteRepositoryPolicy: Operation<
    Principal,
    DeleteRepositoryPolicyRequest,
    DeleteRepositoryPolicyResponse
  > = {
    access: checkRepository('DeleteRepositoryPolicy'),
    async run(input, context) {
      const address = addressOf(input, context);
      const policyText = await store.transact('repository.deletePolicy', { address });
      return { registryId: address.account, repositoryName: address.name, policyText };
    },
  };

  return {
    SetRepositoryPolicy: setRepositoryPolicy,
    GetRepositoryPolicy: getRepositoryPolicy,
    DeleteRepositoryPolicy: deleteRepositoryPolicy,
  };
}
