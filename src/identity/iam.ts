/** The IAM operation table: what Berth performs of IAM, and why not the rest. */
import { iamModel } from '../model/service-model.ts';
import type { OperationNotBuilt, OperationTable } from '../protocol/protocol.ts';
import { absentOperations } from './iam-absent.ts';
import type { IamServices } from './iam-access.ts';
import { keyOperations } from './iam-keys.ts';
import { policyOperations } from './iam-policies.ts';
import { userPolicyOperations } from './iam-user-policies.ts';
import { userOperations } from './iam-users.ts';
import type { Principal } from './identity.ts';

/** The first family that an operation's name fits gives the reason. */
const FAMILIES: readonly (readonly [name: RegExp, reason: string])[] = [
  [/OpenIDConnect|ClientID/, 'identity providers (OpenID Connect) are not built yet'],
  [/SAML/, 'SAML is not part of Berth'],
  [/MFADevice/, 'multi-factor authentication of IAM users is not built'],
  [/LoginProfile|Password/, 'IAM users have access keys and no passwords'],
  [
    /SSHPublicKey|SigningCertificate|ServerCertificate|ServiceSpecificCredential/,
    'IAM users have access keys and no other credentials',
  ],
  [
    /Simulate|ContextKeys/,
    'policy simulation is not built; `berth explain` tells why a request is allowed or denied',
  ],
  [/Role|InstanceProfile|ServiceLinked/, 'IAM roles are not built yet; use IAM users with access keys'],
  [/Group/, 'IAM groups are not built yet; attach policies to users'],
  [/AccountAlias/, 'an account has its number and no alias'],
  [
    /Organization|Delegation|OutboundWebIdentity|HumanReadable|Delegated|SecurityTokenService|TokenVersion/,
    'organisations, delegation and token exchange between AWS services are not part of Berth',
  ],
  [
    /Account|CredentialReport|LastAccessed|GrantingServiceAccess/,
    'reports about an account are not built yet',
  ],
];

/** Entries for every operation of a model that `built` does not have. */
export function notBuiltOperations(
  names: readonly string[],
  built: object,
  families: readonly (readonly [name: RegExp, reason: string])[],
): Record<string, OperationNotBuilt> {
  const entries: Record<string, OperationNotBuilt> = {};
  for (const name of names) {
    if (Object.hasOwn(built, name)) continue;
    const [, reason] = families.find(([family]) => family.test(name)) ?? [];
    if (reason === undefined) throw new Error(`no reason is given why ${name} is not built`);
    entries[name] = { notBuilt: reason };
  }
  return entries;
}

/** All operations of the IAM model. */
export function iamOperations(services: IamServices): OperationTable<Principal> {
  const built = {
    ...userOperations(services),
    ...keyOperations(services),
    ...userPolicyOperations(services),
    ...policyOperations(services),
    ...absentOperations(services),
  };
  return { ...built, ...notBuiltOperations(Object.keys(iamModel.operations), built, FAMILIES) };
}
