/**
 * AssumeServiceRole, an operation of Berth's own: what EC2, ECS and EKS do inside AWS when they hand a role to a machine,
 * a task or a pod. The caller stands for the service and must be allowed `iam:PassRole` (`iam:PassedToService` says to
 * which); then the role's trust policy must trust the service. So whoever runs `berth imds` needs exactly what running an
 * instance with that role needs on AWS (IAM user guide, "Grant a user permissions to pass a role to an AWS service").
 */
import { Fault } from '../domain/faults.ts';
import type * as berth from '../model/berth-types.ts';
import type { AccessCheck, Operation, OperationContext } from '../protocol/protocol.ts';
import { findRole } from '../store/store.ts';
import { assumedRoleArn, readNamedArn, roleArn } from './arns.ts';
import type { NamedArn } from './arns.ts';
import type { Principal, Subject } from './identity.ts';
import { newSession } from './sessions.ts';
import {
  findNamedRole,
  readRoleSeconds,
  readSessionTags,
  sessionTagKeys,
  showCredentials,
  trustSide,
} from './sts-sessions.ts';
import type { StsServices } from './sts-sessions.ts';

type Services = Pick<StsServices, 'store' | 'keys' | 'identity'>;
type Input = berth.AssumeServiceRoleRequest;

export function assumeServiceRole(
  services: Services,
): Operation<Principal, Input, berth.AssumeServiceRoleResponse> {
  return {
    access: ({ roleArn: resource, serviceName }) => [
      { action: 'iam:PassRole', resource, keys: new Map([['iam:passedtoservice', serviceName]]) },
    ],
    async run(input, context) {
      return openServiceSession(services, input, context);
    },
  };
}

/**
 * The session of a role for a service that the caller may pass the role to.
 *
 * @throws Fault AccessDeniedException, ValidationError and the faults of session tags
 */
export async function openServiceSession(
  services: Services,
  input: Input,
  context: OperationContext<Principal>,
): Promise<berth.AssumeServiceRoleResponse> {
  const { store, keys } = services;
  // A role is passed within its account only, whoever would allow it.
  const named = readNamedArn(input.roleArn);
  if (named?.account !== context.caller.account) {
    throw new Fault('AccessDeniedException', 'Cross-account pass role is not allowed.');
  }
  const role = await findPassedRole(store, named);
  const tags = readSessionTags((input.tags ?? []).map(({ key, value }) => ({ Key: key, Value: value })));
  // INVARIANT: policies judge the role as it is called, with its path.
  const resource = role.record === undefined ? input.roleArn : roleArn(role.record);
  await requireTrust(services, role, { ...input, roleArn: resource, tags }, context);
  // INVARIANT: no trust policy, no access.
  if (role.record === undefined) throw new Error('a role that does not exist was granted');
  const { record } = role;
  const seconds = readRoleSeconds(input.durationSeconds, record, false);
  const session = newSession(
    {
      kind: 'role',
      account: record.account,
      ownerId: record.id,
      name: input.sessionName,
      tags,
      // Pod Identity's tags go along when the pod assumes another role; the others have none.
      transitiveKeys: tags.map(({ key }) => key),
    },
    context.now,
    seconds,
  );
  const shown = showCredentials(keys, session);
  return {
    credentials: {
      accessKeyId: shown.AccessKeyId,
      secretAccessKey: shown.SecretAccessKey,
      sessionToken: shown.SessionToken,
      expiration: shown.Expiration,
    },
    assumedRoleArn: assumedRoleArn(record, session.name),
    assumedRoleId: `${record.id}:${session.name}`,
    roleArn: roleArn(record),
  };
}

/**
 * The role whose ARN this is. Machines and tasks are given roles by name too, which is unique in an account: an ARN without
 * a path is the role of that name under whatever path, as it is for `iam:PassRole` (authorize.ts).
 */
async function findPassedRole(store: Services['store'], { arn, account, path, name }: NamedArn) {
  if (path !== '/') return await findNamedRole(store, arn);
  return { account, record: await findRole(store.read, account, name) };
}

/** @throws Fault AccessDeniedException unless the role trusts the service; the same when there is no role */
async function requireTrust(
  { store, identity }: Services,
  role: Awaited<ReturnType<typeof findNamedRole>>,
  {
    roleArn: resource,
    serviceName,
    sourceArn,
    sessionName,
    tags,
  }: Omit<Input, 'tags'> & Parameters<typeof tagKeys>[0],
  context: OperationContext<Principal>,
): Promise<void> {
  const subject = serviceSubject(serviceName, context.caller.account, sourceArn);
  const keys = new Map<string, string | readonly string[]>([
    ['sts:rolesessionname', sessionName],
    ...tagKeys({ tags }),
  ]);
  const side = await trustSide(store, role);
  const actions = tags.length > 0 ? ['sts:AssumeRole', 'sts:TagSession'] : ['sts:AssumeRole'];
  const checks = actions.map((action): AccessCheck => ({ action, resource, keys }));
  await identity.authorizeFor(
    subject,
    checks,
    context,
    side,
    ({ action }) => `${serviceName} is not authorized to perform: ${action} on resource: ${resource}`,
  );
}

function tagKeys({ tags }: { readonly tags: ReturnType<typeof readSessionTags> }) {
  const keys = tags.map(({ key }) => key);
  return [
    ...sessionTagKeys(tags),
    ...(keys.length === 0 ? [] : [['sts:transitivetagkeys', keys] as [string, readonly string[]]]),
  ];
}

/** A service as principal, with the keys that keep it from being a confused deputy. */
export function serviceSubject(serviceName: string, account: string, sourceArn: string | undefined): Subject {
  return {
    caller: { kind: 'service', account, arn: serviceName, id: serviceName, serviceName },
    identityPolicies: [],
    boundary: undefined,
    sessionPolicies: undefined,
    conditionKeys: new Map([
      ['aws:principalisawsservice', 'true'],
      ['aws:principalservicename', serviceName],
      ['aws:sourceaccount', account],
      ...(sourceArn === undefined ? [] : [['aws:sourcearn', sourceArn] as [string, string]]),
    ]),
  };
}
