/** Operations of Berth's own that are about identity: the part of the `berth` table that lives here. */
import type { Operation } from '../protocol/protocol.ts';
import type { Principal } from './identity.ts';
import { explainOperations } from './explain.ts';
import type { ExplainServices } from './explain.ts';
import type { IssuerFetch } from './issuer-fetch.ts';
import { createIssuers } from './issuers.ts';
import { assumeRoleForPodIdentity } from './pod-identity.ts';
import { assumeServiceRole } from './service-roles.ts';
import type { StsServices } from './sts-sessions.ts';

/** By name in src/model/berth.json; `compose.ts` joins the parts of the table. */
export function berthOperations(
  services: Pick<StsServices, 'store' | 'keys' | 'identity'> &
    ExplainServices & { readonly fetchIssuer: IssuerFetch },
): Record<string, Operation<Principal, never>> {
  const issuers = createIssuers(services.fetchIssuer);
  return {
    AssumeRoleForPodIdentity: assumeRoleForPodIdentity({ ...services, issuers }),
    AssumeServiceRole: assumeServiceRole(services),
    ...explainOperations(services),
  };
}
