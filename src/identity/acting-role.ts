/**
 * A service that acts as a role of the account, as ECR does with the `customRoleArn` of a creation template (ecr-api.md §17):
 * the role must trust the service, and what is done must be allowed to the role.
 */
import { Fault } from '../domain/faults.ts';
import { denialMessage } from '../policy/policy.ts';
import type { AccessCheck } from '../protocol/protocol.ts';
import type { Store } from '../store/store.ts';
import { roleSubject } from './explain-subjects.ts';
import type { Identity, RequestFacts, ResourceSide } from './identity.ts';
import { serviceSubject } from './service-roles.ts';
import { findNamedRole, trustSide } from './sts-sessions.ts';

export interface ServiceAction {
  /** e.g. `ecr.amazonaws.com` */
  readonly service: string;
  readonly roleArn: string;
  /** the name of the session in denials */
  readonly sessionName: string;
  /** what the service acts for: `aws:SourceArn` where the trust policy asks for it */
  readonly sourceArn: string;
}

/**
 * @throws Fault AccessDeniedException: the role is not there or does not trust the service (the same words), or is not allowed
 *   one of the checks (AWS's sentence, with the session as the user)
 */
export async function authorizeAsRole(
  store: Store,
  { authorizeFor, judge }: Pick<Identity, 'authorizeFor' | 'judge'>,
  { service, roleArn, sessionName, sourceArn }: ServiceAction,
  checks: readonly AccessCheck[],
  facts: RequestFacts,
  side: ResourceSide,
): Promise<void> {
  const role = await findNamedRole(store, roleArn);
  const assume: AccessCheck = {
    action: 'sts:AssumeRole',
    resource: roleArn,
    keys: new Map([['sts:rolesessionname', sessionName]]),
  };
  const refusal = `${service} is not authorized to perform: sts:AssumeRole on resource: ${roleArn}`;
  const asService = serviceSubject(service, side.account, sourceArn);
  await authorizeFor(asService, [assume], facts, await trustSide(store, role), () => refusal);
  if (role.record === undefined) throw new Fault('AccessDeniedException', refusal);
  const subject = await roleSubject(store, role.record, facts.now, sessionName);
  for (const check of checks) {
    const { request, decision } = await judge(subject, check, facts, side);
    await authorizeFor(subject, [check], facts, side, () => denialMessage(request, decision, 'given'));
  }
}
