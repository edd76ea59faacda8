/** IAM operations on users, their tags and permissions boundary (iam-sts.md §6.4, §6.5). */
import { Fault } from '../domain/faults.ts';
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import { findAccountCreation, listUserTags, pageUsers } from '../store/store.ts';
import type { UserRecord } from '../store/store.ts';
import { readPolicyArn, rootArn, userArn } from './arns.ts';
import {
  isManagedAttachable,
  readTags,
  requireUser,
  selfCheck,
  showTags,
  subjectOf,
  tagConditionKeys,
  userCheck,
} from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

/** The members every operation answers; tags and boundary only where the caller has read them. */
export function showUser(user: UserRecord): iam.User {
  return {
    Path: user.path,
    UserName: user.name,
    UserId: user.id,
    Arn: userArn(user),
    CreateDate: new Date(user.createdAt),
  };
}

function showBoundary(user: UserRecord): Pick<iam.User, 'PermissionsBoundary'> {
  if (user.boundaryArn === undefined) return {};
  // WHY: the wire says `Policy` although the model's enumeration has `PermissionsBoundaryPolicy` (iam-sts.md §6.5).
  const type = 'Policy' as iam.PermissionsBoundaryAttachmentType;
  return { PermissionsBoundary: { PermissionsBoundaryType: type, PermissionsBoundaryArn: user.boundaryArn } };
}

/** @throws Fault InvalidParameterValue (no ARN of a policy), PolicyNotAttachable */
function isManagedBoundary(arn: string): boolean {
  if (readPolicyArn(arn) === undefined) {
    throw new Fault('InvalidParameterValue', `Value (${arn}) for parameter PermissionsBoundary is invalid.`);
  }
  return isManagedAttachable(arn);
}

export function userOperations(services: IamServices) {
  return {
    CreateUser: createUser(services),
    GetUser: getUser(services),
    ListUsers: listUsers(services),
    UpdateUser: updateUser(services),
    DeleteUser: deleteUser(services),
    TagUser: tagUser(services),
    UntagUser: untagUser(services),
    ListUserTags: listTags(services),
    PutUserPermissionsBoundary: putBoundary(services),
    DeleteUserPermissionsBoundary: deleteBoundary(services),
  };
}

function createUser({ store }: IamServices): Op<iam.CreateUserRequest, iam.CreateUserResponse> {
  return {
    access({ UserName, Path = '/', PermissionsBoundary, Tags }, { caller: { account } }) {
      const resource = userArn({ account, path: Path, name: UserName });
      const keys = tagConditionKeys(Tags);
      if (PermissionsBoundary !== undefined) keys.set('iam:permissionsboundary', PermissionsBoundary);
      const create: AccessCheck = { action: 'iam:CreateUser', resource, keys };
      if (Tags === undefined || Tags.length === 0) return [create];
      // Tagging at creation needs the permission to tag.
      return [create, { action: 'iam:TagUser', resource, shownAs: resource, keys }];
    },
    async run({ UserName, Path = '/', PermissionsBoundary, Tags }, { caller: { account }, now }) {
      const tags = readTags(Tags);
      const user: UserRecord = {
        id: uniqueId('AIDA'),
        account,
        name: UserName,
        path: Path,
        boundaryArn: PermissionsBoundary,
        createdAt: now,
      };
      const boundaryManaged = PermissionsBoundary !== undefined && isManagedBoundary(PermissionsBoundary);
      await store.transact('user.create', {
        user,
        tags,
        boundaryManaged,
        usersMax: LIMITS.usersPerAccountMax,
      });
      return {
        User: { ...showUser(user), ...showBoundary(user), ...(tags.length > 0 && { Tags: showTags(tags) }) },
      };
    },
  };
}

function getUser(services: IamServices): Op<iam.GetUserRequest, iam.GetUserResponse> {
  return {
    access: (input, context) => [selfCheck('GetUser', context, input)],
    async run(input, context) {
      const { account, caller } = context.caller;
      if (input.UserName === undefined && caller.kind === 'root') {
        const created = await findAccountCreation(services.store.read, account);
        // Root has neither name nor path.
        const root = { UserId: account, Arn: rootArn(account), CreateDate: new Date(created ?? 0) };
        return { User: root as iam.User };
      }
      const user = await requireUser(services, context, subjectOf(input, context));
      const tags = await listUserTags(services.store.read, user.id);
      return {
        User: { ...showUser(user), ...showBoundary(user), ...(tags.length > 0 && { Tags: showTags(tags) }) },
      };
    },
  };
}

function listUsers({ store }: IamServices): Op<iam.ListUsersRequest, iam.ListUsersResponse> {
  return {
    access: ({ PathPrefix = '/' }, { caller: { account } }) => [
      {
        action: 'iam:ListUsers',
        resource: `arn:aws:iam::${account}:user${PathPrefix}`,
        shownAs: `arn:aws:iam::${account}:user${PathPrefix}`,
      },
    ],
    async run(input, { caller: { account } }) {
      const rows = await pageUsers(store.read, account, {
        pathPrefix: input.PathPrefix,
        last: readMarker(input),
        limit: pageSize(input) + 1,
      });
      const { items, page } = pageOf(rows, input, ({ name }) => name.toLowerCase());
      return { Users: items.map(showUser), ...page };
    },
  };
}

function updateUser(services: IamServices): Op<iam.UpdateUserRequest> {
  const { store, identity } = services;
  return {
    access: ({ UserName }, context) => [userCheck('UpdateUser', context, UserName)],
    async run({ UserName, NewUserName, NewPath }, context) {
      const user = await requireUser(services, context, UserName);
      const renamed = { ...user, name: NewUserName ?? user.name, path: NewPath ?? user.path };
      if (userArn(renamed) !== userArn(user)) {
        // Both ends need the permission: the user as it is, and as it will be called.
        const tags = new Map((await listUserTags(store.read, user.id)).map(({ key, value }) => [key, value]));
        const check = {
          action: 'iam:UpdateUser',
          resource: userArn(renamed),
          shownAs: `user ${renamed.name}`,
        };
        await identity.authorize(context.caller, [check], context, {
          account: user.account,
          policy: undefined,
          tags,
        });
      }
      const { account } = context.caller;
      await store.transact('user.update', {
        account,
        userName: UserName,
        newName: NewUserName,
        newPath: NewPath,
      });
    },
  };
}

function deleteUser({ store }: IamServices): Op<iam.DeleteUserRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('DeleteUser', context, UserName)],
    async run({ UserName }, { caller: { account } }) {
      await store.transact('user.delete', { account, userName: UserName });
    },
  };
}

function tagUser({ store }: IamServices): Op<iam.TagUserRequest> {
  return {
    access: ({ UserName, Tags }, context) => [
      userCheck('TagUser', context, UserName, tagConditionKeys(Tags)),
    ],
    async run({ UserName, Tags }, { caller: { account } }) {
      const tags = readTags(Tags);
      await store.transact('user.tag', {
        account,
        userName: UserName,
        tags,
        tagsMax: LIMITS.resourceTagsMax,
      });
    },
  };
}

function untagUser({ store }: IamServices): Op<iam.UntagUserRequest> {
  return {
    access: ({ UserName, TagKeys }, context) => [
      userCheck('UntagUser', context, UserName, new Map([['aws:tagkeys', TagKeys]])),
    ],
    async run({ UserName, TagKeys }, { caller: { account } }) {
      await store.transact('user.untag', { account, userName: UserName, keys: TagKeys });
    },
  };
}

function listTags(services: IamServices): Op<iam.ListUserTagsRequest, iam.ListUserTagsResponse> {
  return {
    access: ({ UserName }, context) => [userCheck('ListUserTags', context, UserName)],
    async run(input, context) {
      const user = await requireUser(services, context, input.UserName);
      const { items, page } = pageOfAll(await listUserTags(services.store.read, user.id), input);
      return { Tags: showTags(items), ...page };
    },
  };
}

function putBoundary({ store }: IamServices): Op<iam.PutUserPermissionsBoundaryRequest> {
  return {
    access: ({ UserName, PermissionsBoundary }, context) => {
      const keys = new Map([['iam:permissionsboundary', PermissionsBoundary]]);
      return [userCheck('PutUserPermissionsBoundary', context, UserName, keys)];
    },
    async run({ UserName, PermissionsBoundary }, { caller: { account } }) {
      const managed = isManagedBoundary(PermissionsBoundary);
      const policyArn = PermissionsBoundary;
      await store.transact('user.setBoundary', { account, userName: UserName, policyArn, managed });
    },
  };
}

function deleteBoundary({ store }: IamServices): Op<iam.DeleteUserPermissionsBoundaryRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('DeleteUserPermissionsBoundary', context, UserName)],
    async run({ UserName }, { caller: { account } }) {
      const none = { policyArn: undefined, managed: false };
      await store.transact('user.setBoundary', { account, userName: UserName, ...none });
    },
  };
}
