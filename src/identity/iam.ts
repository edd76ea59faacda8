/** The IAM operation table: what Berth performs of IAM, and why not the rest. */
import { iamModel } from '../model/service-model.ts';
import type { OperationNotBuilt, OperationTable } from '../protocol/protocol.ts';
import { absentOperations } from './iam-absent.ts';
import type { IamServices } from './iam-access.ts';
import { accountOperations } from './iam-account.ts';
import { detailOperations } from './iam-details.ts';
import { groupOperations } from './iam-groups.ts';
import { instanceProfileOperations } from './iam-instance-profiles.ts';
import { keyOperations } from './iam-keys.ts';
import { ownerPolicyOperations } from './iam-owner-policies.ts';
import { passwordOperations } from './iam-passwords.ts';
import { policyOperations } from './iam-policies.ts';
import { providerOperations } from './iam-providers.ts';
import { roleOperations } from './iam-roles.ts';
import { serviceRoleOperations } from './iam-service-roles.ts';
import { simulationOperations } from './iam-simulation.ts';
import { tagOperations } from './iam-tags.ts';
import { userOperations } from './iam-users.ts';
import type { Principal } from './identity.ts';

/** The first family that an operation's name fits gives the reason. */
const FAMILIES: readonly (readonly [name: RegExp, reason: string])[] = [
  [/SAML/, 'SAML is not part of Berth'],
  [/MFADevice/, 'multi-factor authentication of IAM users is not built'],
  [
    /SSHPublicKey|SigningCertificate|ServerCertificate|ServiceSpecificCredential/,
    'IAM users have access keys and passwords, and no other credentials',
  ],
  [
    /Organization|Delegation|OutboundWebIdentity|HumanReadable|Delegated|SecurityTokenService|TokenVersion/,
    'organisations, delegation and token exchange between AWS services are not part of Berth',
  ],
  [
    /LastAccessed/,
    'uses are kept for access keys and roles, not by service; GetAccessKeyLastUsed and GetRole tell',
  ],
  [
    /GrantingServiceAccess/,
    'SimulatePrincipalPolicy and GetAccountAuthorizationDetails answer what grants access',
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
    ...groupOperations(services),
    ...roleOperations(services),
    ...serviceRoleOperations(services),
    ...instanceProfileOperations(services),
    ...providerOperations(services),
    ...keyOperations(services),
    ...passwordOperations(services),
    ...ownerPolicyOperations(services),
    ...policyOperations(services),
    ...tagOperations(services),
    ...accountOperations(services),
    ...detailOperations(services),
    ...simulationOperations(services),
    ...absentOperations(services),
  };
  return { ...built, ...notBuiltOperations(Object.keys(iamModel.operations), built, FAMILIES) };
}
