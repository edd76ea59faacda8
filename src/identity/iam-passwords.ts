/** IAM operations on console passwords and the account's password policy. INVARIANT: no password leaves again. */
import { Fault } from '../domain/faults.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import {
  findLoginProfile,
  findPasswordPolicy,
  noSuchLoginProfile,
  noSuchPasswordPolicy,
} from '../store/store.ts';
import { requireUser, subjectOf, userCheck } from './iam-access.ts';
import type { Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import {
  hashPassword,
  passwordProblem,
  readPasswordPolicy,
  showPasswordPolicy,
  verifyPassword,
} from './passwords.ts';
import type { PasswordPolicy } from './passwords.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function passwordOperations(services: IamServices) {
  return {
    CreateLoginProfile: createProfile(services),
    GetLoginProfile: getProfile(services),
    UpdateLoginProfile: updateProfile(services),
    DeleteLoginProfile: deleteProfile(services),
    ChangePassword: changePassword(services),
    GetAccountPasswordPolicy: getPolicy(services),
    UpdateAccountPasswordPolicy: updatePolicy(services),
    DeleteAccountPasswordPolicy: deletePolicy(services),
  };
}

async function policyOf(
  { store }: Pick<IamServices, 'store'>,
  account: string,
): Promise<PasswordPolicy | undefined> {
  const text = await findPasswordPolicy(store.read, account);
  return text === undefined ? undefined : (JSON.parse(text) as PasswordPolicy);
}

/** @throws Fault PasswordPolicyViolation */
function checkPassword(password: string, policy: PasswordPolicy | undefined, userName: string): void {
  const problem = passwordProblem(password, policy, userName);
  if (problem !== undefined) throw new Fault('PasswordPolicyViolation', problem);
}

function createProfile(
  services: IamServices,
): Op<iam.CreateLoginProfileRequest, iam.CreateLoginProfileResponse> {
  return {
    access: (input, context) => [userCheck('CreateLoginProfile', context, subjectOf(input, context))],
    async run(input, context) {
      const { account } = context.caller;
      const userName = subjectOf(input, context);
      const { Password: password, PasswordResetRequired: resetRequired = false } = input;
      if (password === undefined) {
        throw new Fault(
          'ValidationError',
          "1 validation error detected: Value at 'password' failed to satisfy constraint: Member must not be null",
        );
      }
      await requireUser(services, context, userName);
      checkPassword(password, await policyOf(services, account), userName);
      const hash = await hashPassword(password);
      await services.store.transact('loginProfile.create', {
        account,
        userName,
        hash,
        resetRequired,
        now: context.now,
      });
      return {
        LoginProfile: {
          UserName: userName,
          CreateDate: new Date(context.now),
          PasswordResetRequired: resetRequired,
        },
      };
    },
  };
}

function getProfile(services: IamServices): Op<iam.GetLoginProfileRequest, iam.GetLoginProfileResponse> {
  return {
    access: (input, context) => [userCheck('GetLoginProfile', context, subjectOf(input, context))],
    async run(input, context) {
      const { id, name } = await requireUser(services, context, subjectOf(input, context));
      const profile = await findLoginProfile(services.store.read, id);
      if (profile === undefined) throw noSuchLoginProfile(name);
      return {
        LoginProfile: {
          UserName: name,
          CreateDate: new Date(profile.createdAt),
          PasswordResetRequired: profile.resetRequired,
        },
      };
    },
  };
}

function updateProfile(services: IamServices): Op<iam.UpdateLoginProfileRequest> {
  return {
    access: ({ UserName }, context) => [userCheck('UpdateLoginProfile', context, UserName)],
    async run({ UserName: userName, Password: password, PasswordResetRequired: resetRequired }, context) {
      const { account } = context.caller;
      const user = await requireUser(services, context, userName);
      if ((await findLoginProfile(services.store.read, user.id)) === undefined) {
        throw noSuchLoginProfile(userName);
      }
      const policy = await policyOf(services, account);
      if (password !== undefined) checkPassword(password, policy, userName);
      await services.store.transact('loginProfile.update', {
        account,
        userName,
        hash: password === undefined ? undefined : await hashPassword(password),
        resetRequired,
        remember: policy?.remember ?? 0,
        now: context.now,
      });
    },
  };
}

function deleteProfile({ store }: IamServices): Op<iam.DeleteLoginProfileRequest> {
  return {
    access: (input, context) => [userCheck('DeleteLoginProfile', context, subjectOf(input, context))],
    async run(input, context) {
      const { account } = context.caller;
      await store.transact('loginProfile.delete', { account, userName: subjectOf(input, context) });
    },
  };
}

/**
 * One's own password, who knows the old one and may: by a policy, or because the account's password policy lets its users,
 * unless a policy denies it.
 *
 * @throws Fault InvalidUserType, AccessDeniedException
 */
async function requireChange({ identity, store }: IamServices, context: Context): Promise<void> {
  const { caller } = context;
  if (caller.userName === undefined) {
    throw new Fault('InvalidUserType', 'Only IAM Users can change their own password');
  }
  const check = userCheck('ChangePassword', context, caller.userName);
  const policy = await policyOf({ store }, caller.account);
  if (policy?.usersMayChange === true && caller.session === undefined) {
    const { reason } = await identity.decide(caller, check, context);
    // The password policy stands in for the identity policy that is not there, and for nothing else.
    if (reason.outcome === 'implicit-deny' && reason.policyType === 'identity') return;
  }
  await identity.authorize(caller, [check], context);
}

function changePassword(services: IamServices): Op<iam.ChangePasswordRequest> {
  return {
    // WHY: what the password policy says is read first; `run` authorises before anything else.
    access: () => [],
    async run({ OldPassword, NewPassword }, context) {
      await requireChange(services, context);
      const { account, userName = '' } = context.caller;
      const user = await requireUser(services, context, userName);
      const profile = await findLoginProfile(services.store.read, user.id);
      const isRight = await verifyPassword(OldPassword, profile?.hash);
      if (profile === undefined) throw noSuchLoginProfile(userName);
      if (!isRight) {
        throw new Fault('AccessDeniedException', 'The old password was incorrect.');
      }
      const policy = await policyOf(services, account);
      checkPassword(NewPassword, policy, userName);
      const remembered = [profile.hash, ...profile.previous].slice(0, policy?.remember ?? 0);
      for (const hash of remembered) {
        if (await verifyPassword(NewPassword, hash)) {
          throw new Fault('PasswordPolicyViolation', 'Policy constraint violation: password was used before');
        }
      }
      await services.store.transact('loginProfile.update', {
        account,
        userName,
        hash: await hashPassword(NewPassword),
        resetRequired: false,
        remember: policy?.remember ?? 0,
        now: context.now,
      });
    },
  };
}

/** Checks on the account as a whole are made on everything. */
const accountCheck = (action: string) => ({ action: `iam:${action}`, resource: '*' });

function getPolicy(
  services: IamServices,
): Op<{ [member: string]: never }, iam.GetAccountPasswordPolicyResponse> {
  return {
    access: () => [accountCheck('GetAccountPasswordPolicy')],
    async run(_input, { caller: { account } }) {
      const policy = await policyOf(services, account);
      if (policy === undefined) throw noSuchPasswordPolicy(account);
      return { PasswordPolicy: showPasswordPolicy(policy) };
    },
  };
}

/** What is left out goes back to its default, as in AWS. */
function updatePolicy({ store }: IamServices): Op<iam.UpdateAccountPasswordPolicyRequest> {
  return {
    access: () => [accountCheck('UpdateAccountPasswordPolicy')],
    async run(input, { caller: { account } }) {
      const policy = JSON.stringify(readPasswordPolicy(input));
      await store.transact('passwordPolicy.set', { account, policy });
    },
  };
}

function deletePolicy({ store }: IamServices): Op<{ [member: string]: never }> {
  return {
    access: () => [accountCheck('DeleteAccountPasswordPolicy')],
    async run(_input, { caller: { account } }) {
      await store.transact('passwordPolicy.set', { account, policy: undefined });
    },
  };
}
