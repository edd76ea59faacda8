/** The registry of the caller: its policy, its account settings, its description (ecr-api.md §14, §15.1). */
import { Fault, invalidParameter } from '../domain/faults.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  DeleteRegistryPolicyRequest,
  DeleteRegistryPolicyResponse,
  DescribeRegistryRequest,
  DescribeRegistryResponse,
  GetAccountSettingRequest,
  GetAccountSettingResponse,
  GetRegistryPolicyRequest,
  GetRegistryPolicyResponse,
  PutAccountSettingRequest,
  PutAccountSettingResponse,
  PutRegistryPolicyRequest,
  PutRegistryPolicyResponse,
} from '../model/ecr-types.ts';
import {
  compilePolicy,
  formatPolicyDocument,
  principalsNamed,
  validateRegistryPolicy,
} from '../policy/policy.ts';
import type { Operation } from '../protocol/protocol.ts';
import {
  findRegistry,
  principalsExist,
  registryPolicyNotFound,
  type RegistryAddress,
  type RegistryRecord,
} from '../store/store.ts';
import { checkRegistry, ownRegistry, type Context, type EcrServices } from './services.ts';

interface Setting {
  readonly values: readonly string[];
  /** absent: what it governs is not built, for this reason */
  read?(registry: RegistryRecord): string;
  change?(value: string): { readonly policyScope?: 'V1' | 'V2'; readonly blobMounting?: boolean };
  readonly notBuilt?: string;
}

const SETTINGS: Readonly<Record<string, Setting>> = {
  BASIC_SCAN_TYPE_VERSION: {
    values: ['AWS_NATIVE'],
    notBuilt: 'Image scanning is not built: BASIC_SCAN_TYPE_VERSION would have no effect.',
  },
  REGISTRY_POLICY_SCOPE: {
    values: ['V1', 'V2'],
    read: ({ policyScope }) => policyScope,
    change: (value) => ({ policyScope: value === 'V1' ? 'V1' : 'V2' }),
  },
  BLOB_MOUNTING: {
    values: ['ENABLED', 'DISABLED'],
    read: ({ blobMounting }) => (blobMounting ? 'ENABLED' : 'DISABLED'),
    change: (value) => ({ blobMounting: value === 'ENABLED' }),
  },
};

const NO_SCANNING = '`BASIC_SCAN_TYPE_VERSION` is refused: nothing scans.';

const enumeration = (names: readonly string[]): string =>
  `Member must satisfy enum value set: [${names.join(', ')}]`;

/** @throws Fault InvalidParameterException, OperationNotBuilt for a setting that would have no effect */
function requireSetting(name: string): Required<Omit<Setting, 'notBuilt'>> {
  const setting = Object.hasOwn(SETTINGS, name) ? SETTINGS[name] : undefined;
  if (setting === undefined) throw invalidParameter('name', enumeration(Object.keys(SETTINGS)));
  const { values, read, change, notBuilt } = setting;
  if (read === undefined || change === undefined) throw new Fault('OperationNotBuilt', notBuilt ?? name);
  return { values, read, change };
}

const checkSetting =
  (action: string) =>
  ({ name }: { readonly name: string }) => [
    { action: `ecr:${action}`, resource: '*', keys: new Map([['ecr:accountsetting', name]]) },
  ];

/** The text as it is stored and returned. @throws Fault InvalidParameterException */
async function readPolicy({ store }: EcrServices, registry: RegistryAddress, text: string): Promise<string> {
  const { policyScope } = await findRegistry(store.read, registry);
  const mistake = validateRegistryPolicy(text, policyScope);
  if (mistake !== undefined) throw invalidParameter('PolicyText', mistake);
  if (!(await principalsExist(store.read, principalsNamed(compilePolicy(text)))))
    throw invalidParameter('PolicyText', 'Principal not found');
  return formatPolicyDocument(text);
}

export function createRegistryOperations(services: EcrServices) {
  const { store } = services;

  const putRegistryPolicy: Operation<Principal, PutRegistryPolicyRequest, PutRegistryPolicyResponse> = {
    notCovered:
      '`ecr:ReplicateImage` and `ecr:BatchImportUpstreamImage` are accepted, and nothing replicates or imports.',
    access: checkRegistry('PutRegistryPolicy'),
    async run({ policyText }, context) {
      const registry = ownRegistry(context);
      const policy = await readPolicy(services, registry, policyText);
      await store.transact('registry.setPolicy', { registry, policy });
      return { registryId: registry.account, policyText: policy };
    },
  };

  const getRegistryPolicy: Operation<Principal, GetRegistryPolicyRequest, GetRegistryPolicyResponse> = {
    access: checkRegistry('GetRegistryPolicy'),
    async run(_input, context) {
      const registry = ownRegistry(context);
      const { policy } = await findRegistry(store.read, registry);
      if (policy === undefined) throw registryPolicyNotFound(registry.account);
      return { registryId: registry.account, policyText: policy };
    },
  };

  const deleteRegistryPolicy: Operation<
    Principal,
    DeleteRegistryPolicyRequest,
    DeleteRegistryPolicyResponse
  > = {
    access: checkRegistry('DeleteRegistryPolicy'),
    async run(_input, context) {
      const registry = ownRegistry(context);
      const policyText = await store.transact('registry.deletePolicy', { registry });
      return { registryId: registry.account, policyText };
    },
  };

  const describeRegistry: Operation<Principal, DescribeRegistryRequest, DescribeRegistryResponse> = {
    notCovered: 'Always without replication rules: `PutReplicationConfiguration` is refused.',
    access: checkRegistry('DescribeRegistry'),
    run: (_input, context: Context) =>
      Promise.resolve({ registryId: context.caller.account, replicationConfiguration: { rules: [] } }),
  };

  const getAccountSetting: Operation<Principal, GetAccountSettingRequest, GetAccountSettingResponse> = {
    notCovered: NO_SCANNING,
    access: checkSetting('GetAccountSetting'),
    async run({ name }, context) {
      const { read } = requireSetting(name);
      return { name, value: read(await findRegistry(store.read, ownRegistry(context))) };
    },
  };

  const putAccountSetting: Operation<Principal, PutAccountSettingRequest, PutAccountSettingResponse> = {
    notCovered: NO_SCANNING,
    access: checkSetting('PutAccountSetting'),
    async run({ name, value }, context) {
      const { values, change } = requireSetting(name);
      if (!values.includes(value)) throw invalidParameter('value', enumeration(values));
      await store.transact('registry.configure', { registry: ownRegistry(context), ...change(value) });
      return { name, value };
    },
  };

  return {
    PutRegistryPolicy: putRegistryPolicy,
    GetRegistryPolicy: getRegistryPolicy,
    DeleteRegistryPolicy: deleteRegistryPolicy,
    DescribeRegistry: describeRegistry,
    GetAccountSetting: getAccountSetting,
    PutAccountSetting: putAccountSetting,
  };
}
