/** The words of a denial (iam-sts.md section 4). Clients match on them. */
import type { Decision, PolicyType } from './evaluate.ts';
import type { AccessRequest } from './match.ts';

const EXPLICIT: Readonly<Record<PolicyType, string>> = {
  identity: 'an identity-based policy',
  resource: 'a resource-based policy',
  boundary: 'a permissions boundary',
  session: 'a session policy',
  'service-control': 'a service control policy',
  'resource-control': 'a resource control policy',
  endpoint: 'a VPC endpoint policy',
  trust: 'the role trust policy',
};

const IMPLICIT: Readonly<Record<PolicyType, string>> = {
  identity: 'identity-based policy',
  resource: 'resource-based policy',
  boundary: 'permissions boundary',
  session: 'session policy',
  'service-control': 'service control policy',
  'resource-control': 'resource control policy',
  endpoint: 'VPC endpoint policy',
  trust: 'role trust policy',
};

/** IAM operations whose denials name the resource in short, `role Name`, instead of by ARN. */
const SHORT_FORM: ReadonlySet<string> = new Set([
  'GetRole',
  'DeleteRole',
  'GetRolePolicy',
  'PutRolePolicy',
  'DeleteRolePolicy',
  'ListRolePolicies',
  'AttachRolePolicy',
  'DetachRolePolicy',
  'ListAttachedRolePolicies',
  'UpdateAssumeRolePolicy',
  'GetUser',
  'DeleteUser',
  'GetUserPolicy',
  'PutUserPolicy',
  'DeleteUserPolicy',
  'ListUserPolicies',
  'AttachUserPolicy',
  'DetachUserPolicy',
  'ListAttachedUserPolicies',
  'ListMFADevices',
  'CreateAccessKey',
  'DeleteAccessKey',
  'UpdateAccessKey',
  'ListAccessKeys',
  'CreatePolicy',
]);

function shownResource(action: string, resource: string): string {
  if (!action.startsWith('iam:') || !SHORT_FORM.has(action.slice(4))) return resource;
  const [, type, name] = /^arn:[^:]*:iam::[^:]*:(role|user|policy)\/(?:.*\/)?([^/]+)$/.exec(resource) ?? [];
  return type === undefined || name === undefined ? resource : `${type} ${name}`;
}

function tail(request: AccessRequest, { reason }: Decision): string {
  const { policyType, outcome, policy } = reason;
  if (policyType === 'root' || policyType === 'always' || outcome === 'allow') return '';
  if (outcome === 'implicit-deny')
    return ` because no ${IMPLICIT[policyType]} allows the ${request.action} action`;
  // AWS names policies to callers of the same account, and those of the organisation to all of its accounts.
  const sameAccount = request.caller.account === request.resourceAccount;
  const ofOrganisation = policyType === 'service-control' || policyType === 'resource-control';
  const unnamed = policyType === 'resource' || policyType === 'trust' || policyType === 'endpoint';
  const named = ofOrganisation || (sameAccount && !unnamed);
  return ` with an explicit deny in ${EXPLICIT[policyType]}${named && policy?.arn ? `: ${policy.arn}` : ''}`;
}

/**
 * AWS's message for a denied request. `reason` says whether the tail with the cause is given; AWS withholds it for
 * requests that a trust policy decides (every recorded `sts:AssumeRole` denial ends after the role ARN).
 */
export function denialMessage(
  request: AccessRequest,
  decision: Decision,
  reason: 'given' | 'withheld' = request.trustPolicy === true ? 'withheld' : 'given',
): string {
  const { caller, action, resource } = request;
  const who = `User: ${caller.arn} is not authorized to perform: ${action} on resource: ${shownResource(action, resource)}`;
  return reason === 'withheld' ? who : who + tail(request, decision);
}
