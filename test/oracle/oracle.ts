/**
 * The second opinion: `@cloud-copilot/iam-simulate`, an independent implementation of IAM's evaluation logic. Its own front
 * door reads and validates for most of a millisecond and drops context keys it does not know, so its engine is called
 * directly; the version is pinned (docs/adr/0010-policy-oracle.md).
 */
import { authorize } from '../../node_modules/@cloud-copilot/iam-simulate/dist/esm/core_engine/CoreSimulatorEngine.js';
import { DiscoveryContextKeyConstraints } from '../../node_modules/@cloud-copilot/iam-simulate/dist/esm/context_keys/discoveryContextKeyConstraints.js';
import { AwsRequestImpl } from '../../node_modules/@cloud-copilot/iam-simulate/dist/esm/request/request.js';
import { RequestContextImpl } from '../../node_modules/@cloud-copilot/iam-simulate/dist/esm/requestContext.js';
import { loadPolicy } from '../../node_modules/@cloud-copilot/iam-policy/dist/esm/index.js';
import { compilePolicy, evaluate, type Decision, type NamedPolicy } from '../../src/policy/policy.ts';
import type { Case, CasePolicy, CaseStatement, Principals } from './cases.ts';

export type Outcome = 'allow' | 'explicit-deny' | 'implicit-deny';

function principalsOf(principals: Principals): unknown {
  if (principals === '*') return '*';
  const map: Record<string, string[]> = {};
  for (const [type, value] of principals) (map[type] ??= []).push(value);
  return map;
}

function statementOf(it: CaseStatement): object {
  const condition: Record<string, Record<string, readonly string[]>> = {};
  for (const [operator, key, values] of it.conditions) (condition[operator] ??= {})[key] = values;
  return {
    Effect: it.effect,
    [it.notAction ? 'NotAction' : 'Action']: it.actions,
    ...(it.resources && { [it.notResource ? 'NotResource' : 'Resource']: it.resources }),
    ...(it.principals && { [it.notPrincipal ? 'NotPrincipal' : 'Principal']: principalsOf(it.principals) }),
    ...(it.conditions.length > 0 && { Condition: condition }),
  };
}

const documentOf = ({ version, statements }: CasePolicy): object => ({
  Version: version,
  Statement: statements.map(statementOf),
});

/** Policies read once each: many requests are put to one set. */
function remember<T>(read: (document: object) => T): (policy: CasePolicy) => T {
  const known = new WeakMap<CasePolicy, T>();
  return (policy) => {
    let value = known.get(policy);
    if (value === undefined) known.set(policy, (value = read(documentOf(policy))));
    return value;
  };
}

/** What Berth decides. */
export function createOurs(): (it: Case) => Decision {
  const named = remember((document): NamedPolicy => ({
    policy: compilePolicy(JSON.stringify(document)),
    name: 'p',
  }));
  return (it) =>
    evaluate(
      {
        caller: it.caller,
        action: it.action,
        resource: it.resource,
        resourceAccount: it.resourceAccount,
        context: new Map([...it.context].map(([key, value]) => [key.toLowerCase(), value])),
        trustPolicy: it.trust,
      },
      {
        identity: it.identity.map(named),
        boundary: it.boundary && named(it.boundary),
        session: it.session && [named(it.session)],
        resource: it.attached && named(it.attached),
        serviceControl: it.serviceControl.map((level) => level.map(named)),
        resourceControl: it.resourceControl.map((level) => level.map(named)),
        endpoint: it.endpoint && [named(it.endpoint)],
      },
    );
}

const ALL = { Version: '2012-10-17', Statement: { Effect: 'Allow', Action: '*', Resource: '*' } };
const STRICT = {
  simulationMode: 'Strict',
  discoveryContextKeyConstraints: new DiscoveryContextKeyConstraints([]),
} as const;
const OUTCOMES: Readonly<Record<string, Outcome>> = {
  Allowed: 'allow',
  ExplicitlyDenied: 'explicit-deny',
  ImplicitlyDenied: 'implicit-deny',
};

/** Replaces methods without arguments, which the oracle works out anew at every call, by what they return. */
function settle<T extends object>(it: T, methods: readonly (keyof T & string)[]): T {
  for (const method of methods) {
    const result: unknown = (it[method] as () => unknown).call(it);
    Object.defineProperty(it, method, { value: () => result });
  }
  return it;
}

/**
 * A policy as the oracle reads it. WHY settled: it compares operator names with `localeCompare` at every evaluation, which
 * is half of its time.
 */
function load(document: object) {
  const policy = settle(loadPolicy(document, { name: 'p' }), ['statements']);
  for (const statement of policy.statements()) {
    settle(statement, ['conditions']);
    for (const condition of statement.conditions()) {
      settle(condition, ['operation', 'conditionValues']);
      settle(condition.operation(), ['setOperator', 'isIfExists', 'baseOperator', 'value']);
    }
  }
  return policy;
}

/**
 * What the oracle decides. Root has no policies of its own there: it gets one that allows everything, which is what it may
 * do in its account. Every level of resource control policies gets RCPFullAWSAccess, as in AWS.
 */
export function createOracle(): (it: Case) => Outcome {
  const read = remember(load);
  const all = load(ALL);
  const levels = (list: Case['serviceControl'], more: readonly (typeof all)[]) =>
    list.map((level, i) => ({ orgIdentifier: `level${i}`, policies: [...level.map(read), ...more] }));
  return (it) => {
    const { caller } = it;
    const request = new AwsRequestImpl(
      caller.kind === 'anonymous' ? { type: 'Anonymous' } : caller.arn,
      { resource: it.resource, accountId: it.resourceAccount },
      it.action,
      new RequestContextImpl(
        Object.fromEntries([...it.context].map(([k, v]) => [k, typeof v === 'string' ? v : [...v]])),
      ),
      it.resource === '*',
    );
    const { result } = authorize({
      request,
      sessionPolicy: it.session && read(it.session),
      identityPolicies: caller.kind === 'root' ? [all] : it.identity.map(read),
      serviceControlPolicies: levels(it.serviceControl, []),
      resourceControlPolicies: levels(it.resourceControl, [all]),
      resourcePolicy: it.attached && read(it.attached),
      permissionBoundaries: it.boundary && [read(it.boundary)],
      vpcEndpointPolicies: it.endpoint && [read(it.endpoint)],
      simulationParameters: STRICT,
    });
    const outcome = OUTCOMES[result];
    if (outcome === undefined) throw new Error(`the oracle answered ${result}`);
    return outcome;
  };
}
