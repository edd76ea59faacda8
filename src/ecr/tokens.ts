/** GetAuthorizationToken (ecr-api.md §21). */
import type { Principal } from '../identity/identity.ts';
import type { GetAuthorizationTokenRequest, GetAuthorizationTokenResponse } from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { EcrServices } from './services.ts';

export function createTokenOperations({ identity, uri }: EcrServices) {
  const getAuthorizationToken: Operation<
    Principal,
    GetAuthorizationTokenRequest,
    GetAuthorizationTokenResponse
  > = {
    access: () => [{ action: 'ecr:GetAuthorizationToken', resource: '*' }],
    // WHY: not a check on the registries named. The token carries the principal, whose permissions are evaluated when it
    // is used; an id only chooses the endpoint to print.
    async run(input, { caller, region, origin, now }) {
      const registryIds = input.registryIds ?? [caller.account];
      const { password, expiresAt } = await identity.issueRegistryToken(caller, { region }, now);
      return {
        authorizationData: registryIds.map((account) => ({
          authorizationToken: Buffer.from(`AWS:${password}`).toString('base64'),
          expiresAt: new Date(expiresAt),
          proxyEndpoint: uri(account, region, origin).endpoint,
        })),
      };
    },
  };
  return { GetAuthorizationToken: getAuthorizationToken };
}
