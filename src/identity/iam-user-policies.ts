/** IAM operations on what a user is granted: inline policies and attachments (iam-sts.md §6.4, §6.5). */
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findUserPolicy, listAttachments, noSuchUserPolicy, pageUserPolicies } from '../store/store.ts';
import { readPolicyArn } from './arns.ts';
import { checkDocument, encodeDocument, isManagedAttachable, requireUser, userCheck } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function userPolicyOperations(services: IamServices) {
  return {
    PutUserPolicy: putUserPolicy(services),
    GetUserPolicy: getUserPolicy(services),
    ListUserPolicies: listUserPolicies(services),
    DeleteUserPolicy: deleteUserPolicy(services),
    AttachUserPolicy: attachUserPolicy(services),
    DetachUserPolicy: detachUserPolicy(services),
    ListAttachedUserPolicies: listAttached(services),
  };
}

function putUserPolicy({ store }: IamServices): Op<iam.PutUserPolicyRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('PutUserPolicy', context, UserName)],
    async run({ UserName, PolicyName, PolicyDocument }, { caller: { account } }) {
      checkDocument(PolicyDocument);
      await store.transact('user.putPolicy', {
        account,
        userName: UserName,
        name: PolicyName,
        document: PolicyDocument,
        charactersMax: LIMITS.userInlineCharactersMax,
      });
    },
  };
}

function getUserPolicy(services: IamServices): Op<iam.GetUserPolicyRequest, iam.GetUserPolicyResponse> {
  return {
    access: ({ UserName }, context) => [userCheck('GetUserPolicy', context, UserName)],
    async run({ UserName, PolicyName }, context) {
      const user = await requireUser(services, context, UserName);
      const document = await findUserPolicy(services.store.read, user.id, PolicyName);
      if (document === undefined) throw noSuchUserPolicy(PolicyName);
      return { UserName, PolicyName, PolicyDocument: encodeDocument(document) };
    },
  };
}

function listUserPolicies(
  services: IamServices,
): Op<iam.ListUserPoliciesRequest, iam.ListUserPoliciesResponse> {
  return {
    access: ({ UserName }, context) => [userCheck('ListUserPolicies', context, UserName)],
    async run(input, context) {
      const user = await requireUser(services, context, input.UserName);
      const last = readMarker(input);
      const names = await pageUserPolicies(services.store.read, user.id, last, pageSize(input) + 1);
      const { items, page } = pageOf(names, input, (name) => name);
      return { PolicyNames: items, ...page };
    },
  };
}

function deleteUserPolicy({ store }: IamServices): Op<iam.DeleteUserPolicyRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('DeleteUserPolicy', context, UserName)],
    async run({ UserName, PolicyName }, { caller: { account } }) {
      await store.transact('user.deletePolicy', { account, userName: UserName, name: PolicyName });
    },
  };
}

function attachUserPolicy({ store }: IamServices): Op<iam.AttachUserPolicyRequest> {
  return {
    access: ({ UserName, PolicyArn }, context) => [
      userCheck('AttachUserPolicy', context, UserName, new Map([['iam:policyarn', PolicyArn]])),
    ],
    async run({ UserName, PolicyArn }, { caller: { account }, now }) {
      await store.transact('user.attachPolicy', {
        account,
        userName: UserName,
        policyArn: PolicyArn,
        managed: isManagedAttachable(PolicyArn),
        now,
        attachedMax: LIMITS.attachedPoliciesPerUserMax,
      });
    },
  };
}

function detachUserPolicy({ store }: IamServices): Op<iam.DetachUserPolicyRequest> {
  return {
    access: ({ UserName, PolicyArn }, context) => [
      userCheck('DetachUserPolicy', context, UserName, new Map([['iam:policyarn', PolicyArn]])),
    ],
    async run({ UserName, PolicyArn }, { caller: { account } }) {
      await store.transact('user.detachPolicy', { account, userName: UserName, policyArn: PolicyArn });
    },
  };
}

function listAttached(
  services: IamServices,
): Op<iam.ListAttachedUserPoliciesRequest, iam.ListAttachedUserPoliciesResponse> {
  return {
    access: ({ UserName }, context) => [userCheck('ListAttachedUserPolicies', context, UserName)],
    async run(input, context) {
      const user = await requireUser(services, context, input.UserName);
      const arns = await listAttachments(services.store.read, user.id);
      const policies = arns
        .flatMap((arn) => readPolicyArn(arn) ?? [])
        .filter(({ path }) => path.startsWith(input.PathPrefix ?? '/'));
      const { items, page } = pageOfAll(policies, input);
      return {
        AttachedPolicies: items.map(({ arn, name }) => ({ PolicyName: name, PolicyArn: arn })),
        ...page,
      };
    },
  };
}
