/** IAM operations on users and their permissions boundary (iam-sts.md §6.4, §6.5). */
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import { findAccountCreation, findLoginProfile, listTags, pageUsers } from '../store/store.ts';
import type { UserRecord } from '../store/store.ts';
import { rootArn, userArn } from './arns.ts';
import {
  isManagedBoundary,
  pathCheck,
  readTags,
  requireUser,
  selfCheck,
  showBoundary,
  showTags,
  subjectOf,
  tagConditionKeys,
  userCheck,
} from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageSize, readMarker } from './paging.ts';

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

export function userOperations(services: IamServices) {
  return {
    CreateUser: createUser(services),
    GetUser: getUser(services),
    ListUsers: listUsers(services),
    UpdateUser: updateUser(services),
    DeleteUser: deleteUser(services),
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
        User: {
          ...showUser(user),
          ...showBoundary(user.boundaryArn),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
        },
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
      const tags = await listTags(services.store.read, user.id);
      const lastUsedAt = (await findLoginProfile(services.store.read, user.id))?.lastUsedAt;
      return {
        User: {
          ...showUser(user),
          ...(lastUsedAt !== undefined && { PasswordLastUsed: new Date(lastUsedAt) }),
          ...showBoundary(user.boundaryArn),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
        },
      };
    },
  };
}

function listUsers({ store }: IamServices): Op<iam.ListUsersRequest, iam.ListUsersResponse> {
  return {
    access: ({ PathPrefix }, context) => [pathCheck('ListUsers', 'user', context, PathPrefix)],
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
        const tags = new Map((await listTags(store.read, user.id)).map(({ key, value }) => [key, value]));
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

function putBoundary({ store }: IamServices): Op<iam.PutUserPermissionsBoundaryRequest> {
  return {
    access: ({ UserName, PermissionsBoundary }, context) => {
      const keys = new Map([['iam:permissionsboundary', PermissionsBoundary]]);
      return [userCheck('PutUserPermissionsBoundary', context, UserName, keys)];
    },
    async run({ UserName, PermissionsBoundary }, { caller: { account } }) {
      const managed = isManagedBoundary(PermissionsBoundary);
      const owner = { kind: 'user', account, name: UserName } as const;
      await store.transact('owner.setBoundary', { owner, policyArn: PermissionsBoundary, managed });
    },
  };
}

function deleteBoundary({ store }: IamServices): Op<iam.DeleteUserPermissionsBoundaryRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('DeleteUserPermissionsBoundary', context, UserName)],
    async run({ UserName }, { caller: { account } }) {
      const owner = { kind: 'user', account, name: UserName } as const;
      await store.transact('owner.setBoundary', { owner, policyArn: undefined, managed: false });
    },
  };
}
