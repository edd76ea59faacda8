/** IAM operations on managed policies, customer's and AWS's (iam-sts.md §6.4, §6.5). */
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import { policySizeOf } from '../policy/policy.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import {
  countPolicyUses,
  findPolicy,
  listPolicies,
  listPolicyVersions,
  listTags,
  noSuchPolicy,
  noSuchVersion,
  quotaExceeded,
} from '../store/store.ts';
import type { PolicyRecord, PolicyUses, PolicyVersionRecord } from '../store/store.ts';
import { policyArn } from './arns.ts';
import {
  checkDocument,
  encodeDocument,
  policyCheck,
  readTags,
  showTags,
  tagConditionKeys,
} from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import type { ManagedPolicy } from './managed-policies.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

const UNUSED: PolicyUses = { attached: 0, boundary: 0 };

/** A managed policy of either kind. */
export type AnyPolicy =
  | { readonly kind: 'customer'; readonly record: PolicyRecord }
  | { readonly kind: 'aws'; readonly record: ManagedPolicy };

export function showPolicy({ kind, record }: AnyPolicy, uses: PolicyUses = UNUSED): iam.Policy {
  return {
    PolicyName: record.name,
    PolicyId: record.id,
    Arn: record.arn,
    Path: record.path,
    DefaultVersionId: `v${kind === 'aws' ? record.version : record.defaultVersion}`,
    AttachmentCount: uses.attached,
    PermissionsBoundaryUsageCount: uses.boundary,
    IsAttachable: kind === 'aws' ? record.attachable : true,
    CreateDate: new Date(record.createdAt),
    UpdateDate: new Date(record.updatedAt),
  };
}

/** @throws Fault NoSuchEntity */
export async function requirePolicy({ store }: IamServices, arn: string): Promise<AnyPolicy> {
  const managed = MANAGED_POLICIES.get(arn);
  if (managed !== undefined) return { kind: 'aws', record: managed };
  const record = await findPolicy(store.read, arn);
  if (record === undefined) throw noSuchPolicy(arn);
  return { kind: 'customer', record };
}

/** Newest first. Of AWS-managed policies only the newest version is known. */
export async function versionsOf(
  { store }: IamServices,
  policy: AnyPolicy,
): Promise<readonly PolicyVersionRecord[]> {
  if (policy.kind === 'customer') return await listPolicyVersions(store.read, policy.record.id);
  const { version, document, updatedAt } = policy.record;
  return [{ version, document, createdAt: updatedAt }];
}

export function showVersion(
  { version, createdAt }: PolicyVersionRecord,
  policy: AnyPolicy,
): iam.PolicyVersion {
  const defaultVersion = policy.kind === 'aws' ? policy.record.version : policy.record.defaultVersion;
  return {
    VersionId: `v${version}`,
    IsDefaultVersion: version === defaultVersion,
    CreateDate: new Date(createdAt),
  };
}

/** `v3` → 3. @throws Fault NoSuchEntity for ids no policy has */
function readVersionId(arn: string, versionId: string): number {
  const [, digits] = /^v([1-9][0-9]{0,8})$/.exec(versionId) ?? [];
  if (digits === undefined) throw noSuchVersion(arn, versionId);
  return Number(digits);
}

/** @throws Fault MalformedPolicyDocument, LimitExceeded */
function checkManagedDocument(document: string): void {
  checkDocument(document);
  if (policySizeOf(document) > LIMITS.managedPolicyCharactersMax) {
    throw quotaExceeded('PolicySize', LIMITS.managedPolicyCharactersMax);
  }
}

export function policyOperations(services: IamServices) {
  return {
    CreatePolicy: createPolicy(services),
    GetPolicy: getPolicy(services),
    ListPolicies: listAllPolicies(services),
    DeletePolicy: deletePolicy(services),
    CreatePolicyVersion: createVersion(services),
    GetPolicyVersion: getVersion(services),
    ListPolicyVersions: listVersions(services),
    DeletePolicyVersion: deleteVersion(services),
    SetDefaultPolicyVersion: setDefaultVersion(services),
  };
}

function createPolicy({ store }: IamServices): Op<iam.CreatePolicyRequest, iam.CreatePolicyResponse> {
  return {
    access({ PolicyName, Path = '/', Tags }, { caller: { account } }) {
      const resource = policyArn({ account, path: Path, name: PolicyName });
      const keys = tagConditionKeys(Tags);
      const create: AccessCheck = {
        action: 'iam:CreatePolicy',
        resource,
        shownAs: `policy ${PolicyName}`,
        keys,
      };
      if (Tags === undefined || Tags.length === 0) return [create];
      // Tagging at creation needs the permission to tag.
      return [create, { ...create, action: 'iam:TagPolicy' }];
    },
    async run({ PolicyName, Path = '/', PolicyDocument, Description, Tags }, { caller: { account }, now }) {
      checkManagedDocument(PolicyDocument);
      const tags = readTags(Tags);
      const policy: PolicyRecord = {
        id: uniqueId('ANPA'),
        account,
        name: PolicyName,
        path: Path,
        arn: policyArn({ account, path: Path, name: PolicyName }),
        description: Description,
        defaultVersion: 1,
        createdAt: now,
        updatedAt: now,
      };
      const policiesMax = LIMITS.policiesPerAccountMax;
      await store.transact('policy.create', { policy, document: PolicyDocument, tags, policiesMax });
      return {
        Policy: {
          ...showPolicy({ kind: 'customer', record: policy }),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
        },
      };
    },
  };
}

function getPolicy(services: IamServices): Op<iam.GetPolicyRequest, iam.GetPolicyResponse> {
  const { read } = services.store;
  return {
    access: ({ PolicyArn }) => [policyCheck('GetPolicy', PolicyArn)],
    async run({ PolicyArn }, { caller: { account } }) {
      const policy = await requirePolicy(services, PolicyArn);
      const uses = (await countPolicyUses(read, account, PolicyArn)).get(PolicyArn);
      const tags = policy.kind === 'customer' ? await listTags(read, policy.record.id) : [];
      return {
        Policy: {
          ...showPolicy(policy, uses),
          Description: policy.record.description,
          Tags: showTags(tags),
        },
      };
    },
  };
}

/** Customer's policies first, then AWS's, each by name; neither descriptions nor tags, as in AWS. */
function listAllPolicies({ store }: IamServices): Op<iam.ListPoliciesRequest, iam.ListPoliciesResponse> {
  const keyOf = ({ kind, record }: AnyPolicy) =>
    kind === 'customer' ? `1${record.name.toLowerCase()}` : `2${record.name.toLowerCase()}`;
  return {
    access: ({ PathPrefix = '/' }, { caller: { account } }) => [
      {
        action: 'iam:ListPolicies',
        resource: `arn:aws:iam::${account}:policy${PathPrefix}`,
        shownAs: `policy path ${PathPrefix}`,
      },
    ],
    async run(input, { caller: { account } }) {
      const { Scope = 'All', OnlyAttached = false, PathPrefix = '/', PolicyUsageFilter: usage } = input;
      const last = readMarker(input);
      const customers = Scope === 'AWS' ? [] : await listPolicies(store.read, account);
      const all: AnyPolicy[] = [
        ...customers.map((record) => ({ kind: 'customer' as const, record })),
        ...(Scope === 'Local' ? [] : [...MANAGED_POLICIES.values()]).map((record) => ({
          kind: 'aws' as const,
          record,
        })),
      ];
      const uses = await countPolicyUses(store.read, account);
      const isListed = (policy: AnyPolicy): boolean => {
        const { attached, boundary } = uses.get(policy.record.arn) ?? UNUSED;
        if (!policy.record.path.startsWith(PathPrefix)) return false;
        if (usage === 'PermissionsBoundary') return boundary > 0;
        if (usage === 'PermissionsPolicy' && attached === 0 && (boundary > 0 || OnlyAttached)) return false;
        return !OnlyAttached || attached + boundary > 0;
      };
      const rows = all
        .filter((policy) => isListed(policy) && (last === undefined || keyOf(policy) > last))
        .sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1))
        .slice(0, pageSize(input) + 1);
      const { items, page } = pageOf(rows, input, keyOf);
      return { Policies: items.map((policy) => showPolicy(policy, uses.get(policy.record.arn))), ...page };
    },
  };
}

function deletePolicy({ store }: IamServices): Op<iam.DeletePolicyRequest> {
  return {
    access: ({ PolicyArn }) => [policyCheck('DeletePolicy', PolicyArn)],
    async run({ PolicyArn }) {
      await store.transact('policy.delete', { arn: PolicyArn });
    },
  };
}

function createVersion({
  store,
}: IamServices): Op<iam.CreatePolicyVersionRequest, iam.CreatePolicyVersionResponse> {
  return {
    access: ({ PolicyArn }) => [policyCheck('CreatePolicyVersion', PolicyArn)],
    async run({ PolicyArn, PolicyDocument, SetAsDefault: setDefault = false }, { now }) {
      checkManagedDocument(PolicyDocument);
      const version = await store.transact('policy.createVersion', {
        arn: PolicyArn,
        document: PolicyDocument,
        setDefault,
        now,
        versionsMax: LIMITS.policyVersionsMax,
      });
      return {
        PolicyVersion: { VersionId: `v${version}`, IsDefaultVersion: setDefault, CreateDate: new Date(now) },
      };
    },
  };
}

function getVersion(services: IamServices): Op<iam.GetPolicyVersionRequest, iam.GetPolicyVersionResponse> {
  return {
    access: ({ PolicyArn }) => [policyCheck('GetPolicyVersion', PolicyArn)],
    async run({ PolicyArn, VersionId }) {
      const policy = await requirePolicy(services, PolicyArn);
      const wanted = readVersionId(PolicyArn, VersionId);
      const found = (await versionsOf(services, policy)).find(({ version }) => version === wanted);
      if (found === undefined) throw noSuchVersion(PolicyArn, VersionId);
      return { PolicyVersion: { Document: encodeDocument(found.document), ...showVersion(found, policy) } };
    },
  };
}

function listVersions(
  services: IamServices,
): Op<iam.ListPolicyVersionsRequest, iam.ListPolicyVersionsResponse> {
  return {
    access: ({ PolicyArn }) => [policyCheck('ListPolicyVersions', PolicyArn)],
    async run(input) {
      const policy = await requirePolicy(services, input.PolicyArn);
      const { items, page } = pageOfAll(await versionsOf(services, policy), input);
      return { Versions: items.map((version) => showVersion(version, policy)), ...page };
    },
  };
}

function deleteVersion({ store }: IamServices): Op<iam.DeletePolicyVersionRequest> {
  return {
    access: ({ PolicyArn }) => [policyCheck('DeletePolicyVersion', PolicyArn)],
    async run({ PolicyArn: arn, VersionId }, { now }) {
      await store.transact('policy.deleteVersion', { arn, version: readVersionId(arn, VersionId), now });
    },
  };
}

function setDefaultVersion({ store }: IamServices): Op<iam.SetDefaultPolicyVersionRequest> {
  return {
    access: ({ PolicyArn }) => [policyCheck('SetDefaultPolicyVersion', PolicyArn)],
    async run({ PolicyArn: arn, VersionId }, { now }) {
      await store.transact('policy.setDefaultVersion', { arn, version: readVersionId(arn, VersionId), now });
    },
  };
}
