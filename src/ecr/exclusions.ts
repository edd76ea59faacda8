/** Pull-time update exclusions: users and roles whose pulls leave `lastRecordedPullTime` alone (ecr-api.md §20). */
import type { Principal } from '../identity/identity.ts';
import type {
  DeregisterPullTimeUpdateExclusionRequest,
  DeregisterPullTimeUpdateExclusionResponse,
  ListPullTimeUpdateExclusionsRequest,
  ListPullTimeUpdateExclusionsResponse,
  RegisterPullTimeUpdateExclusionRequest,
  RegisterPullTimeUpdateExclusionResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { pageExclusions } from '../store/store.ts';
import { PAGE_DEFAULT } from './pages.ts';
import { checkRegistry, ownRegistry, type EcrServices } from './services.ts';

export function createExclusionOperations({ store, pages, limits }: EcrServices) {
  const register: Operation<
    Principal,
    RegisterPullTimeUpdateExclusionRequest,
    RegisterPullTimeUpdateExclusionResponse
  > = {
    access: checkRegistry('RegisterPullTimeUpdateExclusion'),
    async run({ principalArn }, context) {
      await store.transact('registry.addExclusion', {
        registry: ownRegistry(context),
        principalArn,
        now: context.now,
        exclusionsMax: limits.pullTimeExclusionsMax,
      });
      return { principalArn, createdAt: new Date(context.now) };
    },
  };

  const deregister: Operation<
    Principal,
    DeregisterPullTimeUpdateExclusionRequest,
    DeregisterPullTimeUpdateExclusionResponse
  > = {
    access: checkRegistry('DeregisterPullTimeUpdateExclusion'),
    async run({ principalArn }, context) {
      await store.transact('registry.removeExclusion', { registry: ownRegistry(context), principalArn });
      return { principalArn };
    },
  };

  const list: Operation<
    Principal,
    ListPullTimeUpdateExclusionsRequest,
    ListPullTimeUpdateExclusionsResponse
  > = {
    access: checkRegistry('ListPullTimeUpdateExclusions'),
    async run(input, context) {
      const registry = ownRegistry(context);
      const scope = ['ListPullTimeUpdateExclusions', registry.account, registry.region];
      const [after] = pages.open(scope, input.nextToken) ?? [];
      const limit = input.maxResults ?? PAGE_DEFAULT;
      const last = after === undefined ? undefined : String(after);
      const found = await pageExclusions(store.read, registry, last, limit + 1);
      const page = found.slice(0, limit);
      const end = page.at(-1);
      return {
        pullTimeUpdateExclusions: page,
        ...(found.length > limit && end !== undefined && { nextToken: pages.seal(scope, [end]) }),
      };
    },
  };

  return {
    RegisterPullTimeUpdateExclusion: register,
    DeregisterPullTimeUpdateExclusion: deregister,
    ListPullTimeUpdateExclusions: list,
  };
}
