/** IAM operations that list across kinds: GetAccountAuthorizationDetails and ListEntitiesForPolicy. */
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import {
  countPolicyUses,
  listAttachments,
  listGroupsOf,
  listInlinePolicies,
  listPolicies,
  listProfilesOf,
  listTags,
  pageGroups,
  pageRoles,
  pageUsers,
} from '../store/store.ts';
import type { NamedPage, RoleRecord, UserRecord } from '../store/store.ts';
import { encodeDocument, policyCheck, showBoundary, showTags } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import { showGroup } from './iam-groups.ts';
import { showProfile } from './iam-instance-profiles.ts';
import { requirePolicy, showPolicy, showVersion, versionsOf } from './iam-policies.ts';
import type { AnyPolicy } from './iam-policies.ts';
import { showLastUsed, showRole } from './iam-roles.ts';
import { showUser } from './iam-users.ts';
import type { Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { pageOf, pageSize, readMarker } from './paging.ts';
import type { PageInput, PageOutput } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function detailOperations(services: IamServices) {
  return {
    GetAccountAuthorizationDetails: getDetails(services),
    ListEntitiesForPolicy: listEntities(services),
  };
}

/** One of several lists that are paged as one; `read` gives names after `last` in order. */
interface Source<Item> {
  readonly kind: string;
  read(last: string | undefined, limit: number): Promise<readonly { name: string; item: Item }[]>;
}

/** A page over lists one after another; the marker says in which list and behind which name. */
async function pageAcross<Item>(
  sources: readonly Source<Item>[],
  input: PageInput,
): Promise<{ items: Item[]; page: PageOutput }> {
  const marker = readMarker(input);
  const colon = marker?.indexOf(':') ?? -1;
  const start = marker === undefined ? 0 : sources.findIndex(({ kind }) => kind === marker.slice(0, colon));
  const rows: { key: string; item: Item }[] = [];
  const wanted = pageSize(input) + 1;
  for (const [i, source] of sources.entries()) {
    // A marker of a list that is not asked for any more: nothing is left behind it.
    if (start < 0 || i < start || rows.length >= wanted) continue;
    const last = marker !== undefined && i === start ? marker.slice(colon + 1) : undefined;
    for (const { name, item } of await source.read(last, wanted - rows.length)) {
      rows.push({ key: `${source.kind}:${name.toLowerCase()}`, item });
    }
  }
  const { items, page } = pageOf(rows, input, ({ key }) => key);
  return { items: items.map(({ item }) => item), page };
}

type Detail =
  | { readonly User: iam.UserDetail }
  | { readonly Group: iam.GroupDetail }
  | { readonly Role: iam.RoleDetail }
  | { readonly Policy: iam.ManagedPolicyDetail };

function getDetails(
  services: IamServices,
): Op<iam.GetAccountAuthorizationDetailsRequest, iam.GetAccountAuthorizationDetailsResponse> {
  return {
    access: () => [{ action: 'iam:GetAccountAuthorizationDetails', resource: '*' }],
    async run(input, { caller: { account } }) {
      const wanted = new Set<string>(input.Filter ?? []);
      const sources = detailSources(services, account).filter(
        ({ kind }) => wanted.size === 0 || wanted.has(kind),
      );
      const { items, page } = await pageAcross(sources, input);
      return {
        UserDetailList: items.flatMap((each) => ('User' in each ? each.User : [])),
        GroupDetailList: items.flatMap((each) => ('Group' in each ? each.Group : [])),
        RoleDetailList: items.flatMap((each) => ('Role' in each ? each.Role : [])),
        Policies: items.flatMap((each) => ('Policy' in each ? each.Policy : [])),
        ...page,
      };
    },
  };
}

/** In the order of AWS's answer; AWS's own policies only when they are attached. */
function detailSources(services: IamServices, account: string): Source<Detail>[] {
  const { read } = services.store;
  async function details<Row extends { readonly name: string }>(
    rows: readonly Row[],
    show: (row: Row) => Promise<Detail>,
  ) {
    return await Promise.all(rows.map(async (row) => ({ name: row.name, item: await show(row) })));
  }
  async function policies(all: readonly AnyPolicy[], last: string | undefined, limit: number) {
    const uses = await countPolicyUses(read, account);
    const rows = all
      .filter(({ kind, record }) => kind === 'customer' || uses.has(record.arn))
      .map((policy) => ({ name: policy.record.name, policy }))
      .filter(({ name }) => last === undefined || name.toLowerCase() > last)
      .toSorted((a, b) => (a.name.toLowerCase() < b.name.toLowerCase() ? -1 : 1))
      .slice(0, limit);
    return await details(rows, async ({ policy }) => ({
      Policy: {
        ...showPolicy(policy, uses.get(policy.record.arn)),
        ...(policy.record.description !== undefined && { Description: policy.record.description }),
        PolicyVersionList: (await versionsOf(services, policy)).map((version) => ({
          Document: encodeDocument(version.document),
          ...showVersion(version, policy),
        })),
      },
    }));
  }
  return [
    {
      kind: 'User',
      read: async (last, limit) =>
        await details(await pageUsers(read, account, { last, limit }), async (user) => ({
          User: await userDetail(services, user),
        })),
    },
    {
      kind: 'Group',
      read: async (last, limit) =>
        await details(await pageGroups(read, account, { last, limit }), async (group) => ({
          Group: {
            ...showGroup(group),
            GroupPolicyList: await inlineDetails(services, group.id),
            AttachedManagedPolicies: await attachedDetails(services, group.id),
          },
        })),
    },
    {
      kind: 'Role',
      read: async (last, limit) =>
        await details(await pageRoles(read, account, { last, limit }), async (role) => ({
          Role: await roleDetail(services, role),
        })),
    },
    {
      kind: 'LocalManagedPolicy',
      read: async (last, limit) => {
        const customers = await listPolicies(read, account);
        const all = customers.map((record): AnyPolicy => ({ kind: 'customer', record }));
        return await policies(all, last, limit);
      },
    },
    {
      kind: 'AWSManagedPolicy',
      read: async (last, limit) => {
        const all = [...MANAGED_POLICIES.values()].map((record): AnyPolicy => ({ kind: 'aws', record }));
        return await policies(all, last, limit);
      },
    },
  ];
}

async function inlineDetails({ store }: IamServices, ownerId: string): Promise<iam.PolicyDetail[]> {
  const policies = await listInlinePolicies(store.read, ownerId);
  return policies.map(({ name, document }) => ({
    PolicyName: name,
    PolicyDocument: encodeDocument(document),
  }));
}

async function attachedDetails({ store }: IamServices, ownerId: string): Promise<iam.AttachedPolicy[]> {
  const arns = await listAttachments(store.read, ownerId);
  return arns.map((arn) => ({ PolicyName: arn.slice(arn.lastIndexOf('/') + 1), PolicyArn: arn }));
}

async function userDetail(services: IamServices, user: UserRecord): Promise<iam.UserDetail> {
  const { read } = services.store;
  return {
    ...showUser(user),
    UserPolicyList: await inlineDetails(services, user.id),
    GroupList: (await listGroupsOf(read, user.id)).map(({ name }) => name),
    AttachedManagedPolicies: await attachedDetails(services, user.id),
    ...showBoundary(user.boundaryArn),
    Tags: showTags(await listTags(read, user.id)),
  };
}

async function roleDetail(services: IamServices, role: RoleRecord): Promise<iam.RoleDetail> {
  const { read } = services.store;
  const { Description: _, ...shown } = await showRole(services, role);
  const profiles = await listProfilesOf(read, role.id);
  return {
    ...shown,
    InstanceProfileList: await Promise.all(profiles.map((profile) => showProfile(services, profile))),
    RolePolicyList: await inlineDetails(services, role.id),
    AttachedManagedPolicies: await attachedDetails(services, role.id),
    ...showBoundary(role.boundaryArn),
    Tags: showTags(await listTags(read, role.id)),
    RoleLastUsed: showLastUsed(role),
  };
}

type Entity =
  | { readonly Group: iam.PolicyGroup }
  | { readonly User: iam.PolicyUser }
  | { readonly Role: iam.PolicyRole };

/** Who has a policy attached, or is bounded by it. */
function listEntities(
  services: IamServices,
): Op<iam.ListEntitiesForPolicyRequest, iam.ListEntitiesForPolicyResponse> {
  const { read } = services.store;
  return {
    access: ({ PolicyArn }) => [policyCheck('ListEntitiesForPolicy', PolicyArn)],
    async run(input, { caller: { account } }) {
      const { PolicyArn: arn, EntityFilter: filter, PolicyUsageFilter: usage } = input;
      await requirePolicy(services, arn);
      const policy = {
        arn,
        attached: usage !== 'PermissionsBoundary',
        boundary: usage !== 'PermissionsPolicy',
      };
      const pageOfNames = (last: string | undefined, limit: number): NamedPage => ({
        pathPrefix: input.PathPrefix,
        last,
        limit,
        policy,
      });
      const sources: Source<Entity>[] = [
        {
          kind: 'Group',
          read: async (last, limit) =>
            (await pageGroups(read, account, pageOfNames(last, limit))).map(({ id, name }) => ({
              name,
              item: { Group: { GroupName: name, GroupId: id } },
            })),
        },
        {
          kind: 'User',
          read: async (last, limit) =>
            (await pageUsers(read, account, pageOfNames(last, limit))).map(({ id, name }) => ({
              name,
              item: { User: { UserName: name, UserId: id } },
            })),
        },
        {
          kind: 'Role',
          read: async (last, limit) =>
            (await pageRoles(read, account, pageOfNames(last, limit))).map(({ id, name }) => ({
              name,
              item: { Role: { RoleName: name, RoleId: id } },
            })),
        },
      ];
      const asked = sources.filter(({ kind }) => filter === undefined || filter === kind);
      const { items, page } = await pageAcross(asked, input);
      return {
        PolicyGroups: items.flatMap((each) => ('Group' in each ? each.Group : [])),
        PolicyUsers: items.flatMap((each) => ('User' in each ? each.User : [])),
        PolicyRoles: items.flatMap((each) => ('Role' in each ? each.Role : [])),
        ...page,
      };
    },
  };
}
