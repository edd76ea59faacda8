/** IAM operations on instance profiles (iam-sts.md §6.4, §6.5). */
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import {
  findInstanceProfile,
  findRoleById,
  listProfilesOf,
  listTags,
  noSuchNamed,
  pageInstanceProfiles,
} from '../store/store.ts';
import type { InstanceProfileRecord } from '../store/store.ts';
import { instanceProfileArn } from './arns.ts';
import { namedCheck, pathCheck, readTags, showTags, tagConditionKeys } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import { requireRole, showRole } from './iam-roles.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export async function showProfile(
  services: Pick<IamServices, 'store'>,
  profile: InstanceProfileRecord,
): Promise<iam.InstanceProfile> {
  const role =
    profile.roleId === undefined ? undefined : await findRoleById(services.store.read, profile.roleId);
  return {
    Path: profile.path,
    InstanceProfileName: profile.name,
    InstanceProfileId: profile.id,
    Arn: instanceProfileArn(profile),
    CreateDate: new Date(profile.createdAt),
    Roles: role === undefined ? [] : [await showRole(services, role)],
  };
}

export function instanceProfileOperations(services: IamServices) {
  return {
    CreateInstanceProfile: create(services),
    GetInstanceProfile: get(services),
    ListInstanceProfiles: list(services),
    ListInstanceProfilesForRole: listForRole(services),
    DeleteInstanceProfile: remove(services),
    AddRoleToInstanceProfile: addRole(services),
    RemoveRoleFromInstanceProfile: removeRole(services),
  };
}

function create(
  services: IamServices,
): Op<iam.CreateInstanceProfileRequest, iam.CreateInstanceProfileResponse> {
  return {
    access({ InstanceProfileName, Path = '/', Tags }, { caller: { account } }) {
      const resource = instanceProfileArn({ account, path: Path, name: InstanceProfileName });
      const keys = tagConditionKeys(Tags);
      const check: AccessCheck = { action: 'iam:CreateInstanceProfile', resource, keys };
      if (Tags === undefined || Tags.length === 0) return [check];
      return [check, { action: 'iam:TagInstanceProfile', resource, shownAs: resource, keys }];
    },
    async run({ InstanceProfileName, Path = '/', Tags }, { caller: { account }, now }) {
      const tags = readTags(Tags);
      const profile: InstanceProfileRecord = {
        id: uniqueId('AIPA'),
        account,
        name: InstanceProfileName,
        path: Path,
        roleId: undefined,
        createdAt: now,
      };
      await services.store.transact('instanceProfile.create', {
        profile,
        tags,
        profilesMax: LIMITS.instanceProfilesPerAccountMax,
      });
      return {
        InstanceProfile: {
          ...(await showProfile(services, profile)),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
        },
      };
    },
  };
}

function get(services: IamServices): Op<iam.GetInstanceProfileRequest, iam.GetInstanceProfileResponse> {
  const { read } = services.store;
  return {
    access: ({ InstanceProfileName }, context) => [
      namedCheck('instance-profile', 'GetInstanceProfile', context, InstanceProfileName),
    ],
    async run({ InstanceProfileName }, { caller: { account } }) {
      const profile = await findInstanceProfile(read, account, InstanceProfileName);
      if (profile === undefined) throw noSuchNamed('instance-profile', InstanceProfileName);
      const tags = await listTags(read, profile.id);
      return { InstanceProfile: { ...(await showProfile(services, profile)), Tags: showTags(tags) } };
    },
  };
}

function list(services: IamServices): Op<iam.ListInstanceProfilesRequest, iam.ListInstanceProfilesResponse> {
  return {
    access: ({ PathPrefix }, context) => [
      pathCheck('ListInstanceProfiles', 'instance-profile', context, PathPrefix),
    ],
    async run(input, { caller: { account } }) {
      const rows = await pageInstanceProfiles(services.store.read, account, {
        pathPrefix: input.PathPrefix,
        last: readMarker(input),
        limit: pageSize(input) + 1,
      });
      const { items, page } = pageOf(rows, input, ({ name }) => name.toLowerCase());
      const InstanceProfiles = await Promise.all(items.map((profile) => showProfile(services, profile)));
      return { InstanceProfiles, ...page };
    },
  };
}

function listForRole(
  services: IamServices,
): Op<iam.ListInstanceProfilesForRoleRequest, iam.ListInstanceProfilesForRoleResponse> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'ListInstanceProfilesForRole', context, RoleName)],
    async run(input, context) {
      const role = await requireRole(services, context, input.RoleName);
      const { items, page } = pageOfAll(await listProfilesOf(services.store.read, role.id), input);
      const InstanceProfiles = await Promise.all(items.map((profile) => showProfile(services, profile)));
      return { InstanceProfiles, ...page };
    },
  };
}

function remove({ store }: IamServices): Op<iam.DeleteInstanceProfileRequest> {
  return {
    access: ({ InstanceProfileName }, context) => [
      namedCheck('instance-profile', 'DeleteInstanceProfile', context, InstanceProfileName),
    ],
    async run({ InstanceProfileName }, { caller: { account } }) {
      await store.transact('instanceProfile.delete', { account, profileName: InstanceProfileName });
    },
  };
}

/** Whoever puts a role into a profile hands it to machines, and needs `iam:PassRole` for that. */
function addRole({ store }: IamServices): Op<iam.AddRoleToInstanceProfileRequest> {
  return {
    access: ({ InstanceProfileName, RoleName }, context) => {
      const { account } = context.caller;
      const passedTo = new Map([['iam:passedtoservice', 'ec2.amazonaws.com']]);
      return [
        namedCheck('instance-profile', 'AddRoleToInstanceProfile', context, InstanceProfileName),
        // PassRole's denials name the ARN; `authorize` looks up the path.
        { action: 'iam:PassRole', resource: `arn:aws:iam::${account}:role/${RoleName}`, keys: passedTo },
      ];
    },
    async run({ InstanceProfileName, RoleName }, { caller: { account } }) {
      await store.transact('instanceProfile.addRole', {
        account,
        profileName: InstanceProfileName,
        roleName: RoleName,
      });
    },
  };
}

function removeRole({ store }: IamServices): Op<iam.RemoveRoleFromInstanceProfileRequest> {
  return {
    access: ({ InstanceProfileName }, context) => [
      namedCheck('instance-profile', 'RemoveRoleFromInstanceProfile', context, InstanceProfileName),
    ],
    async run({ InstanceProfileName, RoleName }, { caller: { account } }) {
      await store.transact('instanceProfile.removeRole', {
        account,
        profileName: InstanceProfileName,
        roleName: RoleName,
      });
    },
  };
}
