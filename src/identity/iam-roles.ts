/** IAM operations on roles, their trust policies and permissions boundaries (iam-sts.md §6.4, §6.5). */
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import { findRole, listTags, noSuchNamed, pageRoles } from '../store/store.ts';
import type { RoleRecord } from '../store/store.ts';
import { roleArn } from './arns.ts';
import {
  encodeDocument,
  isManagedBoundary,
  namedCheck,
  pathCheck,
  readTags,
  showBoundary,
  showTags,
  tagConditionKeys,
} from './iam-access.ts';
import type { Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageSize, readMarker } from './paging.ts';
import { pinTrustPolicy, showTrustPolicy } from './trust.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

/** The members every operation answers. */
export async function showRole({ store }: Pick<IamServices, 'store'>, role: RoleRecord): Promise<iam.Role> {
  return {
    Path: role.path,
    RoleName: role.name,
    RoleId: role.id,
    Arn: roleArn(role),
    CreateDate: new Date(role.createdAt),
    AssumeRolePolicyDocument: encodeDocument(await showTrustPolicy(store, role)),
    ...(role.description !== undefined && { Description: role.description }),
  };
}

/** As listings answer it: with the longest session, without tags, boundary and last use. */
export async function showListedRole(
  services: Pick<IamServices, 'store'>,
  role: RoleRecord,
): Promise<iam.Role> {
  return { ...(await showRole(services, role)), MaxSessionDuration: role.maxSessionSeconds };
}

export function showLastUsed({ lastUsed }: RoleRecord): iam.RoleLastUsed {
  return lastUsed === undefined ? {} : { LastUsedDate: new Date(lastUsed.at), Region: lastUsed.region };
}

/** @throws Fault NoSuchEntity */
export async function requireRole(
  { store }: Pick<IamServices, 'store'>,
  { caller }: Context,
  name: string,
): Promise<RoleRecord> {
  const role = await findRole(store.read, caller.account, name);
  if (role === undefined) throw noSuchNamed('role', name);
  return role;
}

export function roleOperations(services: IamServices) {
  return {
    CreateRole: createRole(services),
    GetRole: getRole(services),
    ListRoles: listRoles(services),
    UpdateRole: updateRole(services),
    UpdateRoleDescription: updateDescription(services),
    UpdateAssumeRolePolicy: updateTrust(services),
    DeleteRole: deleteRole(services),
    PutRolePermissionsBoundary: putBoundary(services),
    DeleteRolePermissionsBoundary: deleteBoundary(services),
  };
}

function createRole(services: IamServices): Op<iam.CreateRoleRequest, iam.CreateRoleResponse> {
  const { store } = services;
  return {
    access({ RoleName, Path = '/', PermissionsBoundary, Tags }, { caller: { account } }) {
      const resource = roleArn({ account, path: Path, name: RoleName });
      const keys = tagConditionKeys(Tags);
      if (PermissionsBoundary !== undefined) keys.set('iam:permissionsboundary', PermissionsBoundary);
      const create: AccessCheck = { action: 'iam:CreateRole', resource, keys };
      if (Tags === undefined || Tags.length === 0) return [create];
      // Tagging at creation needs the permission to tag.
      return [create, { action: 'iam:TagRole', resource, shownAs: resource, keys }];
    },
    async run(input, { caller: { account }, now }) {
      const tags = readTags(input.Tags);
      const { PermissionsBoundary: boundaryArn } = input;
      const boundaryManaged = boundaryArn !== undefined && isManagedBoundary(boundaryArn);
      const trust = await pinTrustPolicy(store, input.AssumeRolePolicyDocument);
      const role: RoleRecord = {
        id: uniqueId('AROA'),
        account,
        name: input.RoleName,
        path: input.Path ?? '/',
        trustPolicy: trust.policy,
        trustPinned: trust.pinned,
        description: input.Description,
        maxSessionSeconds: input.MaxSessionDuration ?? LIMITS.roleSessionSeconds,
        boundaryArn,
        service: undefined,
        createdAt: now,
        lastUsed: undefined,
      };
      await store.transact('role.create', {
        role,
        tags,
        boundaryManaged,
        rolesMax: LIMITS.rolesPerAccountMax,
      });
      return {
        Role: {
          ...(await showRole(services, role)),
          ...showBoundary(boundaryArn),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
        },
      };
    },
  };
}

function getRole(services: IamServices): Op<iam.GetRoleRequest, iam.GetRoleResponse> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'GetRole', context, RoleName)],
    async run({ RoleName }, context) {
      // A use that is not written yet is a use.
      await services.identity.flush();
      const role = await requireRole(services, context, RoleName);
      const tags = await listTags(services.store.read, role.id);
      return {
        Role: {
          ...(await showListedRole(services, role)),
          ...showBoundary(role.boundaryArn),
          ...(tags.length > 0 && { Tags: showTags(tags) }),
          RoleLastUsed: showLastUsed(role),
        },
      };
    },
  };
}

function listRoles(services: IamServices): Op<iam.ListRolesRequest, iam.ListRolesResponse> {
  return {
    access: ({ PathPrefix }, context) => [pathCheck('ListRoles', 'role', context, PathPrefix)],
    async run(input, { caller: { account } }) {
      const rows = await pageRoles(services.store.read, account, {
        pathPrefix: input.PathPrefix,
        last: readMarker(input),
        limit: pageSize(input) + 1,
      });
      const { items, page } = pageOf(rows, input, ({ name }) => name.toLowerCase());
      return { Roles: await Promise.all(items.map((role) => showListedRole(services, role))), ...page };
    },
  };
}

/** An absent description keeps the old one (iam-sts.md §6.5). */
function updateRole({ store }: IamServices): Op<iam.UpdateRoleRequest, iam.UpdateRoleResponse> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'UpdateRole', context, RoleName)],
    async run({ RoleName, Description, MaxSessionDuration }, { caller: { account } }) {
      await store.transact('role.update', {
        account,
        roleName: RoleName,
        description: Description,
        maxSessionSeconds: MaxSessionDuration,
      });
      return {};
    },
  };
}

function updateDescription(
  services: IamServices,
): Op<iam.UpdateRoleDescriptionRequest, iam.UpdateRoleDescriptionResponse> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'UpdateRoleDescription', context, RoleName)],
    async run({ RoleName, Description }, context) {
      const { account } = context.caller;
      await services.store.transact('role.update', {
        account,
        roleName: RoleName,
        description: Description,
      });
      return { Role: await showListedRole(services, await requireRole(services, context, RoleName)) };
    },
  };
}

function updateTrust(services: IamServices): Op<iam.UpdateAssumeRolePolicyRequest> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'UpdateAssumeRolePolicy', context, RoleName)],
    async run({ RoleName, PolicyDocument }, context) {
      await requireRole(services, context, RoleName);
      const trust = await pinTrustPolicy(services.store, PolicyDocument);
      const { account } = context.caller;
      await services.store.transact('role.update', { account, roleName: RoleName, trust });
    },
  };
}

function deleteRole({ store }: IamServices): Op<iam.DeleteRoleRequest> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'DeleteRole', context, RoleName)],
    async run({ RoleName }, { caller: { account } }) {
      await store.transact('role.delete', { account, roleName: RoleName });
    },
  };
}

function putBoundary({ store }: IamServices): Op<iam.PutRolePermissionsBoundaryRequest> {
  return {
    access: ({ RoleName, PermissionsBoundary }, context) => {
      const keys = new Map([['iam:permissionsboundary', PermissionsBoundary]]);
      return [namedCheck('role', 'PutRolePermissionsBoundary', context, RoleName, keys)];
    },
    async run({ RoleName, PermissionsBoundary }, { caller: { account } }) {
      const managed = isManagedBoundary(PermissionsBoundary);
      const owner = { kind: 'role', account, name: RoleName } as const;
      await store.transact('owner.setBoundary', { owner, policyArn: PermissionsBoundary, managed });
    },
  };
}

function deleteBoundary({ store }: IamServices): Op<iam.DeleteRolePermissionsBoundaryRequest> {
  return {
    access: ({ RoleName }, context) => [
      namedCheck('role', 'DeleteRolePermissionsBoundary', context, RoleName),
    ],
    async run({ RoleName }, { caller: { account } }) {
      const owner = { kind: 'role', account, name: RoleName } as const;
      await store.transact('owner.setBoundary', { owner, policyArn: undefined, managed: false });
    },
  };
}
