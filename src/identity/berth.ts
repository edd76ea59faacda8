/** Operations of Berth's own that are about identity: the part of the `berth` table that lives here. */
import type { Operation } from '../protocol/protocol.ts';
import type { Principal } from './identity.ts';
import { assumeServiceRole } from './service-roles.ts';
import type { StsServices } from './sts-sessions.ts';

/** By name in src/model/berth.json; `compose.ts` joins the parts of the table. */
export function berthOperations(
  services: Pick<StsServices, 'store' | 'keys' | 'identity'>,
): Record<string, Operation<Principal, never>> {
  return { AssumeServiceRole: assumeServiceRole(services) };
}
