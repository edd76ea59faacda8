/**
 * IAM operations on what no user has here: MFA devices, certificates, SSH keys. The truthful
 * answer is "none", and it is what lets `terraform destroy` remove a user with `force_destroy`.
 */
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { requireUser, selfCheck, subjectOf } from './iam-access.ts';
import type { Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';

interface OfUser {
  readonly UserName?: string | undefined;
}

export function absentOperations(services: IamServices) {
  return {
    ListMFADevices: emptyList('ListMFADevices', services, { MFADevices: [], IsTruncated: false }),
    ListSSHPublicKeys: emptyList('ListSSHPublicKeys', services, { SSHPublicKeys: [], IsTruncated: false }),
    ListSigningCertificates: emptyList('ListSigningCertificates', services, {
      Certificates: [],
      IsTruncated: false,
    }),
    ListServiceSpecificCredentials: emptyList('ListServiceSpecificCredentials', services, {
      ServiceSpecificCredentials: [],
    }),
    ListVirtualMFADevices: listVirtualDevices(),
  };
}

function emptyList<Output>(
  action: string,
  services: IamServices,
  nothing: Output,
): Operation<Principal, OfUser, Output> {
  return {
    access: (input, context) => [selfCheck(action, context, input)],
    async run(input, context) {
      if (!isAboutRoot(input, context)) await requireUser(services, context, subjectOf(input, context));
      return nothing;
    },
  };
}

function isAboutRoot({ UserName }: OfUser, { caller }: Context): boolean {
  return UserName === undefined && caller.caller.kind === 'root';
}

function listVirtualDevices(): Operation<
  Principal,
  iam.ListVirtualMFADevicesRequest,
  iam.ListVirtualMFADevicesResponse
> {
  return {
    access: (_input, { caller }) => [
      { action: 'iam:ListVirtualMFADevices', resource: `arn:aws:iam::${caller.account}:mfa/` },
    ],
    run: async () => ({ VirtualMFADevices: [], IsTruncated: false }),
  };
}
