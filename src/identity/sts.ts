/** The STS operation table (iam-sts.md §5). */
import { Fault } from '../domain/faults.ts';
import { accountOfAccessKey } from '../lib/ids.ts';
import { stsModel } from '../model/service-model.ts';
import type * as sts from '../model/sts-types.ts';
import type { Operation, OperationTable } from '../protocol/protocol.ts';
import { findAccessKey } from '../store/store.ts';
import type { Store } from '../store/store.ts';
import { notBuiltOperations } from './iam.ts';
import type { Principal } from './identity.ts';

const FAMILIES: readonly (readonly [name: RegExp, reason: string])[] = [
  [/SAML/, 'SAML is not part of Berth'],
  [/WebIdentity/, 'identity providers (OpenID Connect) are not built yet'],
  [/AssumeRole/, 'IAM roles are not built yet; use IAM users with access keys'],
  [/SessionToken|FederationToken/, 'temporary credentials are not built yet; use access keys'],
  [/DecodeAuthorizationMessage/, 'denials are in the clear; there is nothing to decode'],
  [/AssumeRoot|Delegated/, 'organisations and delegation between AWS services are not part of Berth'],
];

/** Always allowed for whoever is authenticated, even against an explicit deny. */
function getCallerIdentity(): Operation<
  Principal,
  sts.GetCallerIdentityRequest,
  sts.GetCallerIdentityResponse
> {
  return {
    access: () => [],
    async run(_input, { caller: { caller } }) {
      return { UserId: caller.id, Account: caller.account, Arn: caller.arn };
    },
  };
}

/** For any well-formed id, whoever owns it; ids that do not carry their account are looked up. */
function getAccessKeyInfo(
  store: Store,
): Operation<Principal, sts.GetAccessKeyInfoRequest, sts.GetAccessKeyInfoResponse> {
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

/** All operations of the STS model. */
export function stsOperations({ store }: { readonly store: Store }): OperationTable<Principal> {
  const built = { GetCallerIdentity: getCallerIdentity(), GetAccessKeyInfo: getAccessKeyInfo(store) };
  return { ...built, ...notBuiltOperations(Object.keys(stsModel.operations), built, FAMILIES) };
}
