/** Service-linked roles of ECR (iam-sts.md §6.7). */
import { randomUUID } from 'node:crypto';
import { Fault } from '../domain/faults.ts';
import { uniqueId } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findRole, hasDeletionTask, noSuchNamed } from '../store/store.ts';
import type { RoleRecord } from '../store/store.ts';
import { roleArn } from './arns.ts';
import { namedCheck } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import { requireRole, showRole } from './iam-roles.ts';
import type { Principal } from './identity.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

const SERVICES: ReadonlyMap<string, { readonly role: string; readonly policy: string }> = new Map([
  ['ecr.amazonaws.com', { role: 'AWSServiceRoleForECRTemplate', policy: 'ECRTemplateServiceRolePolicy' }],
  [
    'pullthroughcache.ecr.amazonaws.com',
    {
      role: 'AWSServiceRoleForECRPullThroughCache',
      policy: 'AWSECRPullThroughCache_ServiceRolePolicy',
    },
  ],
  [
    'replication.ecr.amazonaws.com',
    { role: 'AWSServiceRoleForECRReplication', policy: 'ECRReplicationServiceRolePolicy' },
  ],
]);

const pathOf = (service: string): string => `/aws-service-role/${service}/`;

export function serviceRoleOperations(services: IamServices) {
  return {
    CreateServiceLinkedRole: create(services),
    DeleteServiceLinkedRole: remove(services),
    GetServiceLinkedRoleDeletionStatus: getStatus(services),
  };
}

function create(
  services: IamServices,
): Op<iam.CreateServiceLinkedRoleRequest, iam.CreateServiceLinkedRoleResponse> {
  return {
    access: ({ AWSServiceName: service }, { caller: { account } }) => {
      const name = SERVICES.get(service)?.role ?? '*';
      const keys = new Map([['iam:awsservicename', service]]);
      return [
        {
          action: 'iam:CreateServiceLinkedRole',
          resource: roleArn({ account, path: pathOf(service), name }),
          keys,
        },
      ];
    },
    async run({ AWSServiceName: service, Description, CustomSuffix }, { caller: { account }, now }) {
      const linked = SERVICES.get(service);
      if (linked === undefined) {
        throw new Fault('InvalidInput', `Service linked roles are not supported for service ${service}.`);
      }
      if (CustomSuffix !== undefined) {
        throw new Fault('InvalidInput', `Custom suffix is not allowed for ${service}`);
      }
      if ((await findRole(services.store.read, account, linked.role)) !== undefined) {
        throw new Fault(
          'InvalidInput',
          `Service role name ${linked.role} has been taken in this account, please try a different suffix.`,
        );
      }
      const trust = JSON.stringify({
        Version: '2012-10-17',
        Statement: [{ Effect: 'Allow', Principal: { Service: service }, Action: 'sts:AssumeRole' }],
      });
      const role: RoleRecord = {
        id: uniqueId('AROA'),
        account,
        name: linked.role,
        path: pathOf(service),
        trustPolicy: trust,
        trustPinned: trust,
        description: Description,
        maxSessionSeconds: LIMITS.roleSessionSeconds,
        boundaryArn: undefined,
        service,
        createdAt: now,
        lastUsed: undefined,
      };
      await services.store.transact('role.create', {
        role,
        tags: [],
        boundaryManaged: false,
        rolesMax: LIMITS.rolesPerAccountMax,
        policyArn: `arn:aws:iam::aws:policy/aws-service-role/${linked.policy}`,
      });
      return { Role: await showRole(services, role) };
    },
  };
}

/** Nothing of Berth needs the role while it runs, so it is gone when the answer leaves; the task is finished. */
function remove(
  services: IamServices,
): Op<iam.DeleteServiceLinkedRoleRequest, iam.DeleteServiceLinkedRoleResponse> {
  return {
    access: ({ RoleName }, context) => [namedCheck('role', 'DeleteServiceLinkedRole', context, RoleName)],
    async run({ RoleName }, context) {
      const { service, name } = await requireRole(services, context, RoleName);
      if (service === undefined) throw noSuchNamed('role', RoleName);
      const taskId = `task${pathOf(service)}${name}/${randomUUID()}`;
      const { account } = context.caller;
      await services.store.transact('role.deleteServiceLinked', {
        account,
        roleName: name,
        taskId,
        now: context.now,
      });
      return { DeletionTaskId: taskId };
    },
  };
}

function getStatus({
  store,
}: IamServices): Op<
  iam.GetServiceLinkedRoleDeletionStatusRequest,
  iam.GetServiceLinkedRoleDeletionStatusResponse
> {
  return {
    access: ({ DeletionTaskId }, { caller: { account } }) => {
      const path =
        /^task(\/aws-service-role\/[^/]+\/[^/]+)\//.exec(DeletionTaskId)?.[1] ?? '/aws-service-role/*';
      return [
        {
          action: 'iam:GetServiceLinkedRoleDeletionStatus',
          resource: `arn:aws:iam::${account}:role${path}`,
        },
      ];
    },
    async run({ DeletionTaskId }, { caller: { account } }) {
      if (!(await hasDeletionTask(store.read, account, DeletionTaskId))) {
        throw new Fault('NoSuchEntity', `The deletion task with id ${DeletionTaskId} cannot be found.`);
      }
      return { Status: 'SUCCEEDED' };
    },
  };
}
