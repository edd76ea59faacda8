/** IAM operations on what users, groups and roles are granted: inline policies and attachments (iam-sts.md §6.4, §6.5). */
import { LIMITS } from '../lib/limits.ts';
import type { Operation, Structure } from '../protocol/protocol.ts';
import { findInlinePolicy, listAttachments, noSuchInlinePolicy, pageInlinePolicies } from '../store/store.ts';
import type { OwnerKind, OwnerReference } from '../store/store.ts';
import { readPolicyArn } from './arns.ts';
import {
  checkDocument,
  encodeDocument,
  isManagedAttachable,
  namedCheck,
  requireOwner,
} from './iam-access.ts';
import type { Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOf, pageOfAll, pageSize, readMarker } from './paging.ts';
import type { PageInput } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

/** The owner's name under the member of its kind. */
interface OwnerInput {
  readonly UserName?: string;
  readonly GroupName?: string;
  readonly RoleName?: string;
}
interface PolicyNameInput extends OwnerInput {
  readonly PolicyName: string;
}
interface PolicyArnInput extends OwnerInput {
  readonly PolicyArn: string;
}

/** One kind of owner: how its operations are called, and its quotas. */
interface Owner {
  readonly kind: OwnerKind;
  readonly word: 'User' | 'Group' | 'Role';
  readonly member: 'UserName' | 'GroupName' | 'RoleName';
  readonly inlineCharactersMax: number;
  readonly attachedMax: number;
}

const USER: Owner = {
  kind: 'user',
  word: 'User',
  member: 'UserName',
  inlineCharactersMax: LIMITS.userInlineCharactersMax,
  attachedMax: LIMITS.attachedPoliciesPerUserMax,
};
const GROUP: Owner = {
  kind: 'group',
  word: 'Group',
  member: 'GroupName',
  inlineCharactersMax: LIMITS.groupInlineCharactersMax,
  attachedMax: LIMITS.attachedPoliciesPerGroupMax,
};
const ROLE: Owner = {
  kind: 'role',
  word: 'Role',
  member: 'RoleName',
  inlineCharactersMax: LIMITS.roleInlineCharactersMax,
  attachedMax: LIMITS.attachedPoliciesPerRoleMax,
};

/** The model has the name required, and the door has checked it. */
function nameIn({ member }: Owner, input: OwnerInput): string {
  return input[member] ?? '';
}

function referenceTo(owner: Owner, input: OwnerInput, context: Context): OwnerReference {
  return { kind: owner.kind, account: context.caller.account, name: nameIn(owner, input) };
}

export function ownerPolicyOperations(services: IamServices) {
  return {
    PutUserPolicy: putPolicy(USER, services),
    GetUserPolicy: getPolicy(USER, services),
    ListUserPolicies: listPolicies(USER, services),
    DeleteUserPolicy: deletePolicy(USER, services),
    AttachUserPolicy: attachPolicy(USER, services),
    DetachUserPolicy: detachPolicy(USER, services),
    ListAttachedUserPolicies: listAttached(USER, services),
    PutGroupPolicy: putPolicy(GROUP, services),
    GetGroupPolicy: getPolicy(GROUP, services),
    ListGroupPolicies: listPolicies(GROUP, services),
    DeleteGroupPolicy: deletePolicy(GROUP, services),
    AttachGroupPolicy: attachPolicy(GROUP, services),
    DetachGroupPolicy: detachPolicy(GROUP, services),
    ListAttachedGroupPolicies: listAttached(GROUP, services),
    PutRolePolicy: putPolicy(ROLE, services),
    GetRolePolicy: getPolicy(ROLE, services),
    ListRolePolicies: listPolicies(ROLE, services),
    DeleteRolePolicy: deletePolicy(ROLE, services),
    AttachRolePolicy: attachPolicy(ROLE, services),
    DetachRolePolicy: detachPolicy(ROLE, services),
    ListAttachedRolePolicies: listAttached(ROLE, services),
  };
}

function putPolicy(
  owner: Owner,
  { store }: IamServices,
): Op<PolicyNameInput & { readonly PolicyDocument: string }> {
  return {
    access: (input, context) => [
      namedCheck(owner.kind, `Put${owner.word}Policy`, context, nameIn(owner, input)),
    ],
    async run(input, context) {
      checkDocument(input.PolicyDocument);
      await store.transact('owner.putPolicy', {
        owner: referenceTo(owner, input, context),
        policyName: input.PolicyName,
        document: input.PolicyDocument,
        charactersMax: owner.inlineCharactersMax,
      });
    },
  };
}

function getPolicy(owner: Owner, services: IamServices): Op<PolicyNameInput, Structure> {
  return {
    access: (input, context) => [
      namedCheck(owner.kind, `Get${owner.word}Policy`, context, nameIn(owner, input)),
    ],
    async run(input, context) {
      const name = nameIn(owner, input);
      const { id } = await requireOwner(services, context, owner.kind, name);
      const document = await findInlinePolicy(services.store.read, id, input.PolicyName);
      if (document === undefined) throw noSuchInlinePolicy(owner.kind, input.PolicyName);
      return {
        [owner.member]: name,
        PolicyName: input.PolicyName,
        PolicyDocument: encodeDocument(document),
      };
    },
  };
}

function listPolicies(owner: Owner, services: IamServices): Op<OwnerInput & PageInput, Structure> {
  return {
    access: (input, context) => [
      namedCheck(owner.kind, `List${owner.word}Policies`, context, nameIn(owner, input)),
    ],
    async run(input, context) {
      const { id } = await requireOwner(services, context, owner.kind, nameIn(owner, input));
      const last = readMarker(input);
      const names = await pageInlinePolicies(services.store.read, id, last, pageSize(input) + 1);
      const { items, page } = pageOf(names, input, (name) => name);
      return { PolicyNames: items, ...page };
    },
  };
}

function deletePolicy(owner: Owner, { store }: IamServices): Op<PolicyNameInput> {
  return {
    access: (input, context) => [
      namedCheck(owner.kind, `Delete${owner.word}Policy`, context, nameIn(owner, input)),
    ],
    async run(input, context) {
      await store.transact('owner.deletePolicy', {
        owner: referenceTo(owner, input, context),
        policyName: input.PolicyName,
      });
    },
  };
}

function attachPolicy(owner: Owner, { store }: IamServices): Op<PolicyArnInput> {
  return {
    access: (input, context) => {
      const keys = new Map([['iam:policyarn', input.PolicyArn]]);
      return [namedCheck(owner.kind, `Attach${owner.word}Policy`, context, nameIn(owner, input), keys)];
    },
    async run(input, context) {
      await store.transact('owner.attachPolicy', {
        owner: referenceTo(owner, input, context),
        policyArn: input.PolicyArn,
        managed: isManagedAttachable(input.PolicyArn),
        now: context.now,
        attachedMax: owner.attachedMax,
      });
    },
  };
}

function detachPolicy(owner: Owner, { store }: IamServices): Op<PolicyArnInput> {
  return {
    access: (input, context) => {
      const keys = new Map([['iam:policyarn', input.PolicyArn]]);
      return [namedCheck(owner.kind, `Detach${owner.word}Policy`, context, nameIn(owner, input), keys)];
    },
    async run(input, context) {
      await store.transact('owner.detachPolicy', {
        owner: referenceTo(owner, input, context),
        policyArn: input.PolicyArn,
      });
    },
  };
}

function listAttached(
  owner: Owner,
  services: IamServices,
): Op<OwnerInput & PageInput & { readonly PathPrefix?: string }, Structure> {
  return {
    access: (input, context) => [
      namedCheck(owner.kind, `ListAttached${owner.word}Policies`, context, nameIn(owner, input)),
    ],
    async run(input, context) {
      const { id } = await requireOwner(services, context, owner.kind, nameIn(owner, input));
      const arns = await listAttachments(services.store.read, id);
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
