/** The STS operation table (iam-sts.md §5). */
import { Fault } from '../domain/faults.ts';
import { accountOfAccessKey } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import { stsModel } from '../model/service-model.ts';
import type * as sts from '../model/sts-types.ts';
import type { AccessCheck, Operation, OperationTable } from '../protocol/protocol.ts';
import { findAccessKey } from '../store/store.ts';
import { federatedUserArn } from './arns.ts';
import { notBuiltOperations } from './iam.ts';
import type { Principal } from './identity.ts';
import { newSession } from './sessions.ts';
import type { Session } from './sessions.ts';
import { assumeRole } from './sts-assume-role.ts';
import {
  packedPercent,
  readSessionPolicies,
  readSessionTags,
  sessionTagKeys,
  showCredentials,
} from './sts-sessions.ts';
import type { StsServices } from './sts-sessions.ts';
import { assumeRoleWithWebIdentity } from './sts-web-identity.ts';

type Op<Input, Output> = Operation<Principal, Input, Output>;

const FAMILIES: readonly (readonly [name: RegExp, reason: string])[] = [
  [/SAML/, 'SAML is not part of Berth'],
  [/GetWebIdentityToken/, 'Berth signs no identity tokens for other services'],
  [/AssumeRoot|Delegated/, 'organisations and delegation between AWS services are not part of Berth'],
];

/** Always allowed for whoever is authenticated, even against an explicit deny. */
function getCallerIdentity(): Op<sts.GetCallerIdentityRequest, sts.GetCallerIdentityResponse> {
  return {
    access: () => [],
    async run(_input, { caller: { caller } }) {
      return { UserId: caller.id, Account: caller.account, Arn: caller.arn };
    },
  };
}

/** For any well-formed id, whoever owns it; ids that do not carry their account are looked up. */
function getAccessKeyInfo({
  store,
}: StsServices): Op<sts.GetAccessKeyInfoRequest, sts.GetAccessKeyInfoResponse> {
  return {
    access: () => [{ action: 'sts:GetAccessKeyInfo', resource: '*' }],
    async run({ AccessKeyId: id }) {
      const account = (await findAccessKey(store.read, id))?.account ?? accountOfAccessKey(id);
      if (account === undefined) {
        throw new Fault('ValidationError', 'The specified value for accessKeyId is invalid.');
      }
      return { Account: account };
    },
  };
}

/** @throws Fault AccessDeniedException unless the caller uses a long-term key of a user or root */
function requireLongTermKey(operation: string, { session }: Principal): void {
  if (session !== undefined) {
    throw new Fault('AccessDeniedException', `Cannot call ${operation} with session credentials`);
  }
}

function readSeconds(asked: number | undefined, { caller }: Principal): number {
  const seconds = asked ?? LIMITS.userSessionSeconds;
  // Root's sessions last an hour at most, whatever is asked for.
  return caller.kind === 'root' ? Math.min(seconds, LIMITS.rootSessionSeconds) : seconds;
}

/** What a session of the caller's own has in common. */
function ownSession({
  account,
  accessKeyId,
  userId,
}: Principal): Pick<Session, 'account' | 'ownerId' | 'parentKeyId' | 'transitiveKeys'> {
  return { account, ownerId: userId ?? account, parentKeyId: accessKeyId, transitiveKeys: [] };
}

/** Needs no permission for one's own keys. */
function getSessionToken({ keys }: StsServices): Op<sts.GetSessionTokenRequest, sts.GetSessionTokenResponse> {
  return {
    access: (_input, { caller }) => {
      requireLongTermKey('GetSessionToken', caller);
      return [];
    },
    async run(input, { caller, now }) {
      if (input.SerialNumber !== undefined || input.TokenCode !== undefined) {
        throw new Fault(
          'AccessDeniedException',
          'MultiFactorAuthentication failed with invalid MFA one time pass code. ',
        );
      }
      const kind = caller.caller.kind === 'root' ? 'root' : 'user';
      const session = newSession(
        { ...ownSession(caller), kind, name: '', tags: [] },
        now,
        readSeconds(input.DurationSeconds, caller),
      );
      return { Credentials: showCredentials(keys, session) };
    },
  };
}

function getFederationToken({
  store,
  keys,
}: StsServices): Op<sts.GetFederationTokenRequest, sts.GetFederationTokenResponse> {
  return {
    access({ Name, Tags = [] }, { caller }) {
      requireLongTermKey('GetFederationToken', caller);
      const tags = Tags.map(({ Key, Value }) => ({ key: Key, value: Value }));
      const check: AccessCheck = {
        action: 'sts:GetFederationToken',
        resource: federatedUserArn(caller.account, Name),
        keys: new Map(sessionTagKeys(tags)),
      };
      return tags.length === 0 ? [check] : [check, { ...check, action: 'sts:TagSession' }];
    },
    async run(input, { caller, now }) {
      const { account } = caller;
      const tags = readSessionTags(input.Tags);
      const policies = await readSessionPolicies(store, account, input);
      const session = newSession(
        { ...ownSession(caller), kind: 'federated-user', name: input.Name, policies, tags },
        now,
        readSeconds(input.DurationSeconds, caller),
      );
      return {
        Credentials: showCredentials(keys, session),
        FederatedUser: {
          FederatedUserId: `${account}:${input.Name}`,
          Arn: federatedUserArn(account, input.Name),
        },
        PackedPolicySize: packedPercent(session),
      };
    },
  };
}

/** Denials of Berth are in the clear, as ECR's are: whatever is handed in was not made here. */
function decodeAuthorizationMessage(): Op<
  sts.DecodeAuthorizationMessageRequest,
  sts.DecodeAuthorizationMessageResponse
> {
  return {
    access: () => [{ action: 'sts:DecodeAuthorizationMessage', resource: '*' }],
    async run() {
      throw new Fault('InvalidAuthorizationMessageException', 'Message is not valid');
    },
  };
}

/** All operations of the STS model. */
export function stsOperations(services: StsServices): OperationTable<Principal> {
  const built = {
    AssumeRole: assumeRole(services),
    AssumeRoleWithWebIdentity: assumeRoleWithWebIdentity(services),
    DecodeAuthorizationMessage: decodeAuthorizationMessage(),
    GetAccessKeyInfo: getAccessKeyInfo(services),
    GetCallerIdentity: getCallerIdentity(),
    GetFederationToken: getFederationToken(services),
    GetSessionToken: getSessionToken(services),
  };
  return { ...built, ...notBuiltOperations(Object.keys(stsModel.operations), built, FAMILIES) };
}
