/** IAM operations on groups and their members (iam-sts.md §6.4). */
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findGroup, listGroupsOf, noSuchNamed, pageGroups, pageMembers } from '../store/store.ts';
import type { GroupRecord } from '../store/store.ts';
import { groupArn } from './arns.ts';
import { namedCheck, pathCheck, requireUser } from './iam-access.ts';
import type { Context, IamServices } from './iam-access.ts';
import { showUser } from './iam-users.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function showGroup(group: GroupRecord): iam.Group {
  return {
    Path: group.path,
    GroupName: group.name,
    GroupId: group.id,
    Arn: groupArn(group),
    CreateDate: new Date(group.createdAt),
  };
}

/** @throws Fault NoSuchEntity */
async function requireGroup({ store }: IamServices, { caller }: Context, name: string): Promise<GroupRecord> {
  const group = await findGroup(store.read, caller.account, name);
  if (group === undefined) throw noSuchNamed('group', name);
  return group;
}

export function groupOperations(services: IamServices) {
  return {
    CreateGroup: createGroup(services),
    GetGroup: getGroup(services),
    ListGroups: listGroups(services),
    UpdateGroup: updateGroup(services),
    DeleteGroup: deleteGroup(services),
    AddUserToGroup: addUser(services),
    RemoveUserFromGroup: removeUser(services),
    ListGroupsForUser: listGroupsForUser(services),
  };
}

function createGroup({ store }: IamServices): Op<iam.CreateGroupRequest, iam.CreateGroupResponse> {
  return {
    access: ({ GroupName, Path = '/' }, { caller: { account } }) => [
      { action: 'iam:CreateGroup', resource: groupArn({ account, path: Path, name: GroupName }) },
    ],
    async run({ GroupName, Path = '/' }, { caller: { account }, now }) {
      const group = { id: uniqueId('AGPA'), account, name: GroupName, path: Path, createdAt: now };
      await store.transact('group.create', { group, groupsMax: LIMITS.groupsPerAccountMax });
      return { Group: showGroup(group) };
    },
  };
}

function getGroup(services: IamServices): Op<iam.GetGroupRequest, iam.GetGroupResponse> {
  return {
    access: ({ GroupName }, context) => [namedCheck('group', 'GetGroup', context, GroupName)],
    async run(input, context) {
      const group = await requireGroup(services, context, input.GroupName);
      const last = readMarker(input);
      const rows = await pageMembers(services.store.read, group.id, last, pageSize(input) + 1);
      const { items, page } = pageOf(rows, input, ({ name }) => name.toLowerCase());
      return { Group: showGroup(group), Users: items.map(showUser), ...page };
    },
  };
}

function listGroups({ store }: IamServices): Op<iam.ListGroupsRequest, iam.ListGroupsResponse> {
  return {
    access: ({ PathPrefix }, context) => [pathCheck('ListGroups', 'group', context, PathPrefix)],
    async run(input, { caller: { account } }) {
      const rows = await pageGroups(store.read, account, {
        pathPrefix: input.PathPrefix,
        last: readMarker(input),
        limit: pageSize(input) + 1,
      });
      const { items, page } = pageOf(rows, input, ({ name }) => name.toLowerCase());
      return { Groups: items.map(showGroup), ...page };
    },
  };
}

function updateGroup(services: IamServices): Op<iam.UpdateGroupRequest> {
  return {
    access: ({ GroupName }, context) => [namedCheck('group', 'UpdateGroup', context, GroupName)],
    async run({ GroupName, NewGroupName, NewPath }, context) {
      const group = await requireGroup(services, context, GroupName);
      const renamed = { ...group, name: NewGroupName ?? group.name, path: NewPath ?? group.path };
      if (groupArn(renamed) !== groupArn(group)) {
        // Both ends need the permission: the group as it is, and as it will be called.
        const check = {
          action: 'iam:UpdateGroup',
          resource: groupArn(renamed),
          shownAs: `group ${renamed.name}`,
        };
        await services.identity.authorize(context.caller, [check], context, {
          account: group.account,
          policy: undefined,
          tags: new Map(),
        });
      }
      await services.store.transact('group.update', {
        account: group.account,
        groupName: GroupName,
        newName: NewGroupName,
        newPath: NewPath,
      });
    },
  };
}

function deleteGroup({ store }: IamServices): Op<iam.DeleteGroupRequest> {
  return {
    access: ({ GroupName }, context) => [namedCheck('group', 'DeleteGroup', context, GroupName)],
    async run({ GroupName }, { caller: { account } }) {
      await store.transact('group.delete', { account, groupName: GroupName });
    },
  };
}

function addUser({ store }: IamServices): Op<iam.AddUserToGroupRequest> {
  return {
    access: ({ GroupName }, context) => [namedCheck('group', 'AddUserToGroup', context, GroupName)],
    async run({ GroupName, UserName }, { caller: { account }, now }) {
      await store.transact('group.addMember', {
        account,
        groupName: GroupName,
        userName: UserName,
        now,
        groupsMax: LIMITS.groupsPerUserMax,
      });
    },
  };
}

function removeUser({ store }: IamServices): Op<iam.RemoveUserFromGroupRequest> {
  return {
    access: ({ GroupName }, context) => [namedCheck('group', 'RemoveUserFromGroup', context, GroupName)],
    async run({ GroupName, UserName }, { caller: { account } }) {
      await store.transact('group.removeMember', { account, groupName: GroupName, userName: UserName });
    },
  };
}

function listGroupsForUser(
  services: IamServices,
): Op<iam.ListGroupsForUserRequest, iam.ListGroupsForUserResponse> {
  return {
    access: ({ UserName }, context) => [namedCheck('user', 'ListGroupsForUser', context, UserName)],
    async run(input, context) {
      const user = await requireUser(services, context, input.UserName);
      const { items, page } = pageOfAll(await listGroupsOf(services.store.read, user.id), input);
      return { Groups: items.map(showGroup), ...page };
    },
  };
}
