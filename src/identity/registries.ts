/**
 * What a registry says about its callers: its policy, whether it mounts blobs, whose pulls it does not record. Remembered
 * under the identity revision, which every request reads when it is authenticated and every write of these moves: a change is
 * in force at the next request in every process, and no request pays a query for it.
 */
import { Fault } from '../domain/faults.ts';
import type { CompiledPolicy } from '../policy/policy.ts';
import { findRegistry, pageExclusions } from '../store/store.ts';
import type { RegistryAddress, Store } from '../store/store.ts';
import type { Principals } from './principals.ts';
import { RecentMap } from '../lib/recent.ts';

export interface RegistryRules {
  readonly policy: CompiledPolicy | undefined;
  /** V1: the policy has a say about the actions of {@link V1_ACTIONS} only */
  readonly policyScope: 'V1' | 'V2';
  /** whether `/v2/` may mount blobs of another repository */
  readonly blobMounting: boolean;
  /** ARNs of users and roles */
  readonly pullTimeExclusions: ReadonlySet<string>;
}

/** What registry policies of the old scope are about (ecr-api.md §14.2). */
const V1_ACTIONS: ReadonlySet<string> = new Set([
  'ecr:ReplicateImage',
  'ecr:BatchImportUpstreamImage',
  'ecr:CreateRepository',
]);

/** What the root of an account may do whatever its registry policy says: the way back in after a policy that denies all. */
const ROOT_ACTIONS: ReadonlySet<string> = new Set([
  'ecr:GetRegistryPolicy',
  'ecr:PutRegistryPolicy',
  'ecr:DeleteRegistryPolicy',
]);

const REGISTRIES_MAX = 10_000;
const READS_MAX = 10;
/** More than a registry may have. */
const EXCLUSIONS_MAX = 10_000;

/** The policy of these rules that has a say about an action, if any. */
export function registryPolicyFor(
  rules: RegistryRules,
  action: string,
  ownRoot: boolean,
): CompiledPolicy | undefined {
  if (rules.policyScope === 'V1' && !V1_ACTIONS.has(action)) return undefined;
  return ownRoot && ROOT_ACTIONS.has(action) ? undefined : rules.policy;
}

export function createRegistryRules(
  store: Store,
  principals: Principals,
): (registry: RegistryAddress) => Promise<RegistryRules> {
  const cache = new RecentMap<string, RegistryRules>(REGISTRIES_MAX);
  /** INVARIANT: everything in `cache` was read at this revision. */
  let cachedAt = -1;

  async function read(registry: RegistryAddress): Promise<RegistryRules> {
    const { policy, ...record } = await findRegistry(store.read, registry);
    const exclusions = await pageExclusions(store.read, registry, undefined, EXCLUSIONS_MAX);
    return {
      ...record,
      policy: policy === undefined ? undefined : principals.compile(policy),
      pullTimeExclusions: new Set(exclusions),
    };
  }

  return async (registry) => {
    const key = `${registry.account} ${registry.region}`;
    if (principals.revision() !== cachedAt) {
      cache.clear();
      cachedAt = principals.revision();
    }
    const known = cache.get(key);
    if (known !== undefined) return known;
    let before = await principals.readRevision();
    for (let reads = 0; reads < READS_MAX; reads++) {
      const rules = await read(registry);
      const after = await principals.readRevision();
      if (before === after) {
        if (after === cachedAt) cache.set(key, rules);
        return rules;
      }
      before = after;
    }
    throw new Fault(
      'ServiceUnavailableException',
      'The registry is changing too fast to be read. Try again.',
    );
  };
}
