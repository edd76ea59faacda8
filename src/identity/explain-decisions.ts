/**
 * Decisions in words and data: what every policy said, and the smallest change that would allow what was refused. A decision
 * has two sides, the caller's account and the resource's: who looks at it sees the policies of their own side.
 */
import { LIMITS } from '../lib/limits.ts';
import type * as berth from '../model/berth-types.ts';
import type {
  AccessRequest,
  Decision,
  Explanation,
  Mismatch,
  NamedPolicy,
  PolicyExplanation,
  PolicyType,
  StatementExplanation,
} from '../policy/policy.ts';

/** A decision as it is kept: plain data, bounded, both sides. */
export interface DecisionRecord {
  readonly callerKind: AccessRequest['caller']['kind'];
  readonly principalArn: string;
  /** what a policy names to mean this caller: the role behind a session, else the caller's ARN */
  readonly namedAs: string;
  readonly account: string;
  readonly resourceAccount: string;
  readonly action: string;
  readonly resource: string;
  readonly trust: boolean;
  readonly allowed: boolean;
  readonly outcome: 'allow' | 'explicit-deny' | 'implicit-deny';
  readonly policyType: string;
  readonly policyName?: string | undefined;
  readonly policyArn?: string | undefined;
  readonly statementIndex?: number | undefined;
  readonly statementSid?: string | undefined;
  /** conditions of the statement that decided, which were all met */
  readonly conditions: readonly berth.ConditionComparison[];
  readonly policies: readonly PolicyRecord[];
}

export interface PolicyRecord {
  readonly policyType: PolicyType;
  readonly name: string;
  readonly arn?: string | undefined;
  readonly outcome: 'allow' | 'deny' | 'neutral';
  readonly statements: readonly berth.ConsideredStatement[];
  /** statements about other actions that were left out */
  readonly omitted: number;
}

export type Side = 'principal' | 'resource';

const VALUES_MAX = 10;
const VALUE_CHARACTERS_MAX = 200;
/** Values that prove something: not shown, whoever asks. */
const CONFIDENTIAL_KEYS: ReadonlySet<string> = new Set(['sts:externalid']);
const STATEMENTS_MAX = 40;

/** On whose side a policy of this type is. */
export function sideOf(policyType: string): Side {
  return ['resource', 'trust', 'resource-control', 'registry'].includes(policyType)
    ? 'resource'
    : 'principal';
}

export function recordDecision(request: AccessRequest, decision: Decision): DecisionRecord {
  const { caller, action, resource, resourceAccount, trustPolicy } = request;
  const explanation: Explanation = decision.explain();
  const { outcome, policyType, policy, statement } = explanation.reason;
  return {
    callerKind: caller.kind,
    principalArn: caller.arn,
    namedAs: caller.roleArn ?? caller.federatedProvider ?? caller.arn,
    account: caller.account,
    resourceAccount,
    action,
    resource,
    trust: trustPolicy === true,
    allowed: explanation.allowed,
    outcome,
    policyType,
    policyName: policy?.name,
    policyArn: policy?.arn,
    statementIndex: statement?.index,
    statementSid: statement?.sid,
    conditions: conditionsOf(policy, statement?.index, request),
    policies: explanation.policies.map(recordPolicy),
  };
}

/** The conditions of a statement that applied, with what the request had. */
function conditionsOf(
  named: NamedPolicy | undefined,
  index: number | undefined,
  { context }: AccessRequest,
): berth.ConditionComparison[] {
  const statement = named?.policy.statements.find((each) => each.index === index);
  return (statement?.conditions ?? [])
    .slice(0, VALUES_MAX)
    .map(({ operator, key, keyLower, values }) =>
      compare({ operator, key, expected: values, actual: context.get(keyLower) }),
    );
}

function compare({
  operator,
  key,
  expected,
  actual,
}: Omit<Extract<Mismatch, { element: 'Condition' }>, 'element'>): berth.ConditionComparison {
  const hidden = CONFIDENTIAL_KEYS.has(key.toLowerCase());
  const shown = (values: readonly string[]): string[] =>
    hidden
      ? ['(not shown)']
      : values.slice(0, VALUES_MAX).map((value) => value.slice(0, VALUE_CHARACTERS_MAX));
  return {
    operator,
    key,
    expected: shown(expected),
    ...(actual !== undefined && { actual: shown(typeof actual === 'string' ? [actual] : actual) }),
  };
}

function recordPolicy({ policyType, name, arn, outcome, statements }: PolicyExplanation): PolicyRecord {
  const aboutAction = ({ mismatch }: StatementExplanation): boolean =>
    mismatch?.element !== 'Action' && mismatch?.element !== 'NotAction';
  const few = statements.length <= STATEMENTS_MAX;
  const kept = (few ? statements : statements.filter(aboutAction)).slice(0, STATEMENTS_MAX);
  return {
    policyType,
    name,
    arn,
    outcome,
    statements: kept.map(recordStatement),
    omitted: statements.length - kept.length,
  };
}

function recordStatement({
  index,
  sid,
  effect,
  matched,
  mismatch,
  principalKind,
}: StatementExplanation): berth.ConsideredStatement {
  return {
    index,
    ...(sid !== undefined && { sid }),
    effect,
    matched,
    ...(principalKind !== undefined && { principalKind }),
    ...(mismatch !== undefined && { mismatchedElement: mismatch.element }),
    ...(mismatch?.element === 'Condition' && { condition: compare(mismatch) }),
  };
}

/** `registry` for the policy of the registry, which the engine judges together with the repository's. */
function shownType({ policyType, name }: Pick<PolicyRecord, 'policyType' | 'name'>): string {
  return policyType === 'resource' && name === 'registry policy' ? 'registry' : policyType;
}

/**
 * The record as somebody of `viewer` may see it: of the other account's side only that it decided and how, which the denial
 * itself says.
 */
export function showDecision(record: DecisionRecord, viewer: string): berth.DecisionExplanation {
  const sees = (side: Side): boolean =>
    viewer === (side === 'principal' ? record.account : record.resourceAccount);
  const decidedBy = record.policyName === 'registry policy' ? 'registry' : record.policyType;
  const named = sees(sideOf(decidedBy));
  return {
    allowed: record.allowed,
    decision: (
      { allow: 'allowed', 'explicit-deny': 'explicitDeny', 'implicit-deny': 'implicitDeny' } as const
    )[record.outcome],
    decidedBy: {
      policyType: decidedBy,
      ...(named && record.policyName !== undefined && { policyName: record.policyName }),
      ...(named && record.policyArn !== undefined && { policyArn: record.policyArn }),
      ...(named && record.statementIndex !== undefined && { statementIndex: record.statementIndex }),
      ...(named && record.statementSid !== undefined && { statementSid: record.statementSid }),
    },
    conditions: named ? [...record.conditions] : [],
    policies: record.policies
      .filter(({ policyType }) => sees(sideOf(policyType)))
      .map((policy) => ({
        policyType: shownType(policy),
        name: policy.name,
        ...(policy.arn !== undefined && { arn: policy.arn }),
        outcome: policy.outcome,
        statements: [...policy.statements],
        statementsOmitted: policy.omitted,
      })),
    withheldAccounts: [
      ...(sees('principal') ? [] : [record.account]),
      ...(sees('resource') ? [] : [record.resourceAccount]),
    ].filter((account, i, all) => all.indexOf(account) === i),
    changes: record.allowed ? [] : changesFor(record, sees),
  };
}

/**
 * The sentence of a denial as somebody of `viewer` may read it. It was told to the caller, and names the service control
 * policy of the caller's account, which is not for the owner of the resource to know.
 */
export function showMessage(
  message: string,
  record: Pick<DecisionRecord, 'account'>,
  viewer: string,
): string {
  if (viewer === record.account) return message;
  return message.replace(/( in a service control policy): \S+$/, '$1');
}

/** What has to change so that the request is allowed, all of it, in the order of evaluation. */
export function changesFor(
  record: DecisionRecord,
  sees: (side: Side) => boolean = () => true,
): berth.PolicyChange[] {
  const { policies, account, resourceAccount } = record;
  const sameAccount = account === resourceAccount;
  const changes: berth.PolicyChange[] = [];
  const ownerOf = (side: Side): string => (side === 'principal' ? account : resourceAccount);
  const add = (change: Omit<berth.PolicyChange, 'account'>): void =>
    void changes.push({ ...change, account: ownerOf(sideOf(change.policyType)) });
  for (const policy of policies) {
    const policyType = shownType(policy);
    for (const { index, sid, effect, matched } of policy.statements) {
      if (effect !== 'Deny' || !matched) continue;
      if (!sees(sideOf(policyType))) continue;
      add({
        kind: 'narrow-deny',
        policyType,
        policyName: policy.name,
        ...(policy.arn !== undefined && { policyArn: policy.arn }),
        statementIndex: index,
        ...(sid !== undefined && { statementSid: sid }),
      });
    }
  }
  // The other side's denying statement is not shown, but that there is one is what the denial says.
  const blind = record.outcome === 'explicit-deny' && !sees(sideOf(record.policyType));
  if (blind) add({ kind: 'narrow-deny', policyType: record.policyType });
  for (const policyType of missingGrants(record, sameAccount)) {
    const side = sideOf(policyType);
    // Of the other side only what the denial itself says.
    if (!sees(side) && (blind || side !== sideOf(record.policyType))) continue;
    const statement = grantFor(record, policyType);
    const bounding = policies.find((policy) => policy.policyType === policyType);
    const nameable = policyType !== 'identity' && bounding !== undefined && sees(sideOf(policyType));
    add({
      kind: policyType === 'session' ? 'pass-other-session-policy' : 'add-statement',
      policyType,
      ...(nameable && { policyName: bounding.name }),
      ...(nameable && bounding.arn !== undefined && { policyArn: bounding.arn }),
      statement: JSON.stringify(statement),
      ...nearMiss(policies, policyType, sees),
    });
  }
  return changes;
}

/** The types of policy that must allow and do not; denials are somebody else's concern. */
function missingGrants(record: DecisionRecord, sameAccount: boolean): PolicyType[] {
  const { callerKind, policies, trust } = record;
  const of = (type: PolicyType): readonly PolicyRecord[] =>
    policies.filter(({ policyType }) => policyType === type);
  const granting = (type: PolicyType): readonly berth.ConsideredStatement[] =>
    of(type).flatMap(({ statements }) => statements.filter((it) => it.effect === 'Allow' && it.matched));
  const grants = (type: PolicyType): boolean => granting(type).length > 0;
  const missing: PolicyType[] = [];
  const decided = record.outcome === 'implicit-deny' ? record.policyType : undefined;
  // The decision counts too: one level of the organisation may lack what another has.
  if (decided === 'service-control' || (of('service-control').length > 0 && !grants('service-control'))) {
    missing.push('service-control');
  }
  const own = callerKind === 'user' || callerKind === 'role-session' || callerKind === 'federated-user';
  const resourceType: PolicyType = trust ? 'trust' : 'resource';
  const needsResource = trust || !sameAccount || !(own || callerKind === 'root');
  const addsResource = needsResource && !grants(resourceType);
  if (addsResource) missing.push(resourceType);
  if (!own) return missing;
  // In the same account, naming the caller is a grant by itself; naming the role behind it one that boundary and session
  // limit; naming the account none, it leaves it to identity policies (iam-sts.md §3.3).
  const kinds = granting(resourceType).map(({ principalKind }) => principalKind ?? '');
  if (addsResource) kinds.push(callerKind === 'role-session' ? 'role' : 'user');
  const naming = sameAccount ? kinds.filter((kind) => kind !== 'account') : [];
  if (naming.length === 0 && !grants('identity')) missing.push('identity');
  if (naming.some((kind) => kind !== 'role' && kind !== 'via-user')) return missing;
  for (const type of ['boundary', 'session'] as const) {
    if (of(type).length > 0 && !grants(type)) missing.push(type);
  }
  return missing;
}

function grantFor(record: DecisionRecord, policyType: PolicyType): object {
  const { action, resource, callerKind, namedAs, principalArn } = record;
  if (policyType !== 'resource' && policyType !== 'trust') {
    return { Effect: 'Allow', Action: action, Resource: resource };
  }
  const principal =
    callerKind === 'service'
      ? { Service: principalArn }
      : callerKind === 'web-identity'
        ? { Federated: namedAs }
        : { AWS: namedAs };
  return { Effect: 'Allow', Principal: principal, Action: action };
}

/** The statement that almost allows: it is about the action, and one later element does not match. */
function nearMiss(
  policies: readonly PolicyRecord[],
  policyType: PolicyType,
  sees: (side: Side) => boolean,
): Pick<berth.PolicyChange, 'nearest'> {
  if (!sees(sideOf(policyType))) return {};
  const rank = ['Condition', 'Resource', 'NotResource', 'Principal', 'NotPrincipal'];
  const candidates = policies
    .filter((policy) => policy.policyType === policyType)
    .flatMap(({ name, arn, statements }) =>
      statements
        .filter(({ effect, mismatchedElement: it }) => effect === 'Allow' && rank.includes(it ?? ''))
        .map((statement) => ({
          policyName: name,
          ...(arn !== undefined && { policyArn: arn }),
          ...statement,
        })),
    )
    .sort((a, b) => rank.indexOf(a.mismatchedElement ?? '') - rank.indexOf(b.mismatchedElement ?? ''));
  const [first] = candidates;
  if (first === undefined) return {};
  const { policyName, policyArn, index, sid, mismatchedElement, condition } = first;
  return {
    nearest: {
      policyName,
      ...(policyArn !== undefined && { policyArn }),
      statementIndex: index,
      ...(sid !== undefined && { statementSid: sid }),
      mismatchedElement: mismatchedElement ?? '',
      ...(condition !== undefined && { condition }),
    },
  };
}

/** A record that fits into a row: of one that is too long only the statements that applied are kept. */
export function fitDecision(record: DecisionRecord): DecisionRecord {
  if (JSON.stringify(record).length <= LIMITS.denialCharactersMax) return record;
  const bare = (policy: PolicyRecord): PolicyRecord => {
    const statements = policy.statements.filter(({ matched }) => matched).slice(0, 3);
    const omitted = policy.omitted + policy.statements.length - statements.length;
    return { ...policy, statements, omitted };
  };
  return { ...record, conditions: [], policies: record.policies.map(bare) };
}

/**
 * What the resource's side alone says to somebody of another account: a denial of theirs decides nothing here, for it is not
 * for the owner of the resource to know.
 */
export function ownSideOf(record: DecisionRecord): DecisionRecord {
  const policies = record.policies.filter(({ policyType }) => sideOf(policyType) === 'resource');
  const first = (effect: 'Allow' | 'Deny') =>
    policies.flatMap((policy) =>
      policy.statements
        .filter((each) => each.matched && each.effect === effect)
        .map((statement) => ({ policy, statement })),
    )[0];
  const denied = first('Deny');
  const decided = denied ?? first('Allow');
  return {
    ...record,
    policies,
    allowed: denied === undefined && decided !== undefined,
    outcome: denied !== undefined ? 'explicit-deny' : decided === undefined ? 'implicit-deny' : 'allow',
    policyType: decided?.policy.policyType ?? (record.trust ? 'trust' : 'resource'),
    policyName: decided?.policy.name,
    policyArn: decided?.policy.arn,
    statementIndex: decided?.statement.index,
    statementSid: decided?.statement.sid,
    conditions: [],
  };
}
