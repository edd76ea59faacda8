/** Operations of Berth's own that are about identity: the part of the `berth` table that lives here. */
import type { Operation } from '../protocol/protocol.ts';
import type { Principal } from './identity.ts';
import { explainOperations } from './explain.ts';
import type { ExplainServices } from './explain.ts';
import { assumeRoleForPodIdentity } from './pod-identity.ts';
import { assumeServiceRole } from './service-roles.ts';
import type { StsServices } from './sts-sessions.ts';

/** By name in src/model/berth.json; `compose.ts` joins the parts of the table. */
export function berthOperations(
  services: StsServices & ExplainServices,
): Record<string, Operation<Principal, never>> {
  return {
    AssumeRoleForPodIdentity: assumeRoleForPodIdentity(services),
    AssumeServiceRole: assumeServiceRole(services),
    ...explainOperations(services),
  };
}
