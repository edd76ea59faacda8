/** The decision: all policies that concern a request, in IAM's order (iam-sts.md section 3), with its explanation. */
import type { CompiledPolicy, Statement } from './document.ts';
import { applies, mismatchOf, Query, type AccessRequest, type Mismatch } from './match.ts';
import type { PrincipalKind } from './principals.ts';

export interface NamedPolicy {
  readonly policy: CompiledPolicy;
  readonly name: string;
  /** Managed policies only. */
  readonly arn?: string | undefined;
}

/** Everything that may have a say. An absent member is no restriction; an empty `session` list allows nothing. */
export interface PolicySet {
  readonly identity: readonly NamedPolicy[];
  readonly boundary?: NamedPolicy | undefined;
  readonly session?: readonly NamedPolicy[] | undefined;
  /** Several: an ECR repository policy and the registry policy are judged together. */
  readonly resource?: NamedPolicy | readonly NamedPolicy[] | undefined;
  /** One list per level of the organisation; every level must allow. */
  readonly serviceControl?: readonly (readonly NamedPolicy[])[] | undefined;
  /** These only deny: AWS's implicit RCPFullAWSAccess allows everything else. */
  readonly resourceControl?: readonly (readonly NamedPolicy[])[] | undefined;
  /** The VPC endpoint's policies, when the request came through one. */
  readonly endpoint?: readonly NamedPolicy[] | undefined;
}

export type PolicyType =
  | 'identity'
  | 'boundary'
  | 'session'
  | 'resource'
  | 'trust'
  | 'service-control'
  | 'resource-control'
  | 'endpoint';

export interface Reason {
  readonly outcome: 'allow' | 'explicit-deny' | 'implicit-deny';
  /** What decided. `root`: the account's root user; `always`: an action nobody can be refused. */
  readonly policyType: PolicyType | 'root' | 'always';
  /** The deciding policy and statement; absent for implicit denials, `root` and `always`. */
  readonly policy?: NamedPolicy;
  readonly statement?: { readonly index: number; readonly sid: string | undefined };
  /** How a deciding resource policy names the caller. */
  readonly principalKind?: PrincipalKind;
}

export interface StatementExplanation {
  readonly index: number;
  readonly sid: string | undefined;
  readonly effect: 'Allow' | 'Deny';
  readonly matched: boolean;
  /** The first element that did not match. */
  readonly mismatch?: Mismatch;
  /** Resource policies: how a matching statement names the caller. */
  readonly principalKind?: PrincipalKind;
}

export interface PolicyExplanation {
  readonly policyType: PolicyType;
  readonly name: string;
  readonly arn?: string;
  /** What this policy alone says. */
  readonly outcome: 'allow' | 'deny' | 'neutral';
  readonly statements: readonly StatementExplanation[];
}

export interface Explanation {
  readonly allowed: boolean;
  readonly reason: Reason;
  /** Every policy that was considered, in order of evaluation. */
  readonly policies: readonly PolicyExplanation[];
}

export interface Decision {
  readonly allowed: boolean;
  readonly reason: Reason;
  /** Statement by statement; worked out on call, so deciding stays cheap. */
  explain(): Explanation;
}

/** Policies of one type that are judged together: one Allow among them is enough. */
interface Group {
  readonly policyType: PolicyType;
  readonly policies: readonly NamedPolicy[];
  /** Attached to a resource: statements name principals. */
  readonly attached: boolean;
}

interface Finding {
  readonly policy: NamedPolicy;
  readonly statement: Statement;
  readonly kind: PrincipalKind;
}

/** Actions that answer only about the caller and that no policy can refuse. */
const ALWAYS_ALLOWED: ReadonlySet<string> = new Set(['sts:GetCallerIdentity', 'sts:GetSessionToken']);

/** The groups that apply to this caller, in the order in which AWS evaluates them. */
function groupsOf({ caller, trustPolicy }: AccessRequest, set: PolicySet): readonly Group[] {
  const groups: Group[] = [];
  const add = (policyType: PolicyType, policies: readonly NamedPolicy[], attached = false) =>
    void groups.push({ policyType, policies, attached });
  const hasIdentity =
    caller.kind === 'user' || caller.kind === 'role-session' || caller.kind === 'federated-user';
  for (const level of set.resourceControl ?? []) add('resource-control', level);
  if (hasIdentity || caller.kind === 'root')
    for (const level of set.serviceControl ?? []) add('service-control', level);
  if (set.resource !== undefined) {
    add(
      trustPolicy === true ? 'trust' : 'resource',
      'policy' in set.resource ? [set.resource] : set.resource,
      true,
    );
  }
  if (hasIdentity) {
    add('identity', set.identity);
    if (set.boundary !== undefined) add('boundary', [set.boundary]);
    // WHY: a federated user has no permissions of its own; without a session policy nothing is passed on to it.
    const session = set.session ?? (caller.kind === 'federated-user' ? [] : undefined);
    if (session !== undefined) add('session', session);
  }
  if (set.endpoint !== undefined) add('endpoint', set.endpoint);
  return groups;
}

const listOf = ({ policy }: NamedPolicy, query: Query) =>
  policy.statementsFor(query.service, query.actionLower);

function findFirst(group: Group, query: Query, effect: 'allow' | 'deny'): Finding | undefined {
  for (const policy of group.policies) {
    for (const statement of listOf(policy, query)[effect]) {
      const kind = applies(statement, query, group.attached);
      if (kind !== undefined) return { policy, statement, kind };
    }
  }
  return undefined;
}

/** What a resource policy's grant is worth in the same account: `full` needs nothing else, `bounded` still obeys boundary and session, `delegated` leaves it to identity policies. */
const GRANT: Readonly<Record<PrincipalKind, 'full' | 'bounded' | 'delegated'>> = {
  wildcard: 'full',
  session: 'full',
  user: 'full',
  service: 'full',
  federated: 'full',
  role: 'bounded',
  'via-user': 'bounded',
  account: 'delegated',
};
const STRENGTH = { full: 3, bounded: 2, delegated: 1 } as const;

function strongestGrant(group: Group | undefined, query: Query): Finding | undefined {
  let best: Finding | undefined;
  for (const policy of group?.policies ?? []) {
    for (const statement of listOf(policy, query).allow) {
      const kind = applies(statement, query, true);
      if (kind === undefined || (best && STRENGTH[GRANT[best.kind]] >= STRENGTH[GRANT[kind]])) continue;
      if (GRANT[kind] === 'full') return { policy, statement, kind };
      best = { policy, statement, kind };
    }
  }
  return best;
}

function reasonFor(outcome: 'allow' | 'explicit-deny', group: Group, found: Finding): Reason {
  const { policy, statement, kind } = found;
  const { index, sid } = statement;
  const reason = { outcome, policyType: group.policyType, policy, statement: { index, sid } };
  return group.attached ? { ...reason, principalKind: kind } : reason;
}

const implicitDeny = (policyType: PolicyType): Reason => ({ outcome: 'implicit-deny', policyType });

/** The first group of these types that allows nothing. */
function firstSilent(
  groups: readonly Group[],
  types: readonly PolicyType[],
  query: Query,
): Reason | undefined {
  for (const group of groups) {
    if (types.includes(group.policyType) && findFirst(group, query, 'allow') === undefined) {
      return implicitDeny(group.policyType);
    }
  }
  return undefined;
}

/** After denies, control and endpoint policies: resource grant, identity, boundary, session. */
function decideGrant(query: Query, groups: readonly Group[]): Reason {
  const { caller, resourceAccount, trustPolicy } = query.request;
  const resource = groups.find((g) => g.attached);
  const grant = strongestGrant(resource, query);
  const granted = resource && grant && reasonFor('allow', resource, grant);
  const ungranted = implicitDeny(trustPolicy === true ? 'trust' : 'resource');
  if (caller.kind === 'service' || caller.kind === 'web-identity' || caller.kind === 'anonymous') {
    return granted ?? ungranted;
  }
  const sameAccount = caller.account === resourceAccount;
  if (caller.kind === 'root') {
    // As in AWS, root cannot assume roles, whatever the trust policy says.
    if (trustPolicy === true) return ungranted;
    return sameAccount ? { outcome: 'allow', policyType: 'root' } : (granted ?? ungranted);
  }
  if (sameAccount && grant === undefined && trustPolicy === true) return ungranted;
  const worth = sameAccount && grant !== undefined ? GRANT[grant.kind] : 'delegated';
  if (worth === 'full' && granted !== undefined) return granted;
  const identity = groups.find((g) => g.policyType === 'identity');
  const own = identity && findFirst(identity, query, 'allow');
  if (worth === 'delegated' && own === undefined) return implicitDeny('identity');
  const silent = firstSilent(groups, ['boundary', 'session'], query);
  if (silent !== undefined) return silent;
  if (!sameAccount && granted === undefined) return ungranted;
  if (worth === 'bounded' && granted !== undefined) return granted;
  return identity && own ? reasonFor('allow', identity, own) : implicitDeny('identity');
}

function decide(query: Query, groups: readonly Group[]): Reason {
  const { caller, action } = query.request;
  if (ALWAYS_ALLOWED.has(action) && caller.kind !== 'anonymous')
    return { outcome: 'allow', policyType: 'always' };
  for (const group of groups) {
    const denied = findFirst(group, query, 'deny');
    if (denied !== undefined) return reasonFor('explicit-deny', group, denied);
  }
  const controlled = firstSilent(groups, ['service-control'], query);
  if (controlled !== undefined) return controlled;
  const reason = decideGrant(query, groups);
  return reason.outcome === 'allow' ? (firstSilent(groups, ['endpoint'], query) ?? reason) : reason;
}

function explainStatement(statement: Statement, group: Group, query: Query): StatementExplanation {
  const { index, sid, effect } = statement;
  const mismatch = mismatchOf(statement, query, group.attached);
  if (mismatch !== undefined) return { index, sid, effect, matched: false, mismatch };
  const kind = group.attached ? applies(statement, query, true) : undefined;
  return { index, sid, effect, matched: true, ...(kind && { principalKind: kind }) };
}

function explainPolicy(named: NamedPolicy, group: Group, query: Query): PolicyExplanation {
  const statements = named.policy.statements.map((s) => explainStatement(s, group, query));
  const says = (effect: 'Allow' | 'Deny') => statements.some((s) => s.matched && s.effect === effect);
  return {
    policyType: group.policyType,
    name: named.name,
    ...(named.arn !== undefined && { arn: named.arn }),
    outcome: says('Deny') ? 'deny' : says('Allow') ? 'allow' : 'neutral',
    statements,
  };
}

/** Decides one request. Pure and total: the same arguments give the same decision, nothing is thrown. */
export function evaluate(request: AccessRequest, policies: PolicySet): Decision {
  const groups = groupsOf(request, policies);
  const query = new Query(
    request,
    groups.some((g) => g.policyType === 'boundary'),
  );
  const reason = decide(query, groups);
  const allowed = reason.outcome === 'allow';
  return {
    allowed,
    reason,
    explain: () => ({
      allowed,
      reason,
      policies: groups.flatMap((g) => g.policies.map((p) => explainPolicy(p, g, query))),
    }),
  };
}
