/**
 * Policy simulation, answered by the very engine that decides (iam-sts.md §6.6), and the context keys that policies ask for.
 */
import { Fault } from '../domain/faults.ts';
import type * as iam from '../model/iam-types.ts';
import { compilePolicy, evaluate, PolicySyntaxError, validateIdentityPolicy } from '../policy/policy.ts';
import type { AccessRequest, Caller, Explanation, NamedPolicy, PolicySet } from '../policy/policy.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findGroup, findRole, findUser, noSuchNamed, readGrants } from '../store/store.ts';
import { readNamedArn } from './arns.ts';
import type { NamedArn } from './arns.ts';
import type { Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { pageOfAll } from './paging.ts';
import { statementSpans } from './statement-spans.ts';
import type { Span } from './statement-spans.ts';

type Op<Input, Output> = Operation<Principal, Input, Output>;

/** A policy with its text, which positions and context keys are read from. */
interface SimulatedPolicy extends NamedPolicy {
  readonly text: string;
}

/** Everything that has a say in a simulation. */
interface Simulation {
  readonly caller: Caller;
  readonly identity: readonly SimulatedPolicy[];
  readonly boundary: SimulatedPolicy | undefined;
  readonly resource: SimulatedPolicy | undefined;
  readonly serviceControl: PolicySet['serviceControl'];
}

/** Questions of one call: a bound on work. */
const QUESTIONS_MAX = 10_000;

export function simulationOperations(services: IamServices) {
  return {
    SimulateCustomPolicy: simulateCustom(),
    SimulatePrincipalPolicy: simulatePrincipal(services),
    GetContextKeysForCustomPolicy: keysOfCustom(),
    GetContextKeysForPrincipalPolicy: keysOfPrincipal(services),
  };
}

const invalidInput = (message: string): Fault => new Fault('InvalidInput', message);

/** @throws Fault InvalidInput */
function readPolicies(list: string, texts: readonly string[] = []): SimulatedPolicy[] {
  return texts.map((text, i) => {
    const name = `${list}.${i + 1}`;
    const problem = validateIdentityPolicy(text);
    if (problem !== undefined) throw invalidInput(`${name}: ${problem}`);
    return { text, name, policy: compilePolicy(text) };
  });
}

/** @throws Fault InvalidInput */
function readResourcePolicy(text: string | undefined): SimulatedPolicy | undefined {
  if (text === undefined) return undefined;
  try {
    return { text, name: 'ResourcePolicy', policy: compilePolicy(text) };
  } catch (error) {
    if (!(error instanceof PolicySyntaxError)) throw error;
    throw invalidInput(`ResourcePolicy: ${error.message}`);
  }
}

/** One boundary policy is what a principal can have. @throws Fault InvalidInput */
function readBoundary(texts: readonly string[] | undefined): SimulatedPolicy | undefined {
  const [first, second] = readPolicies('PermissionsBoundaryPolicyInputList', texts);
  if (second !== undefined) throw invalidInput('A principal has one permissions boundary at most.');
  return first;
}

/** The caller a user or role ARN stands for. @throws Fault InvalidInput */
function callerOf(arn: string): Caller {
  const named = readNamedArn(arn);
  if (named?.type !== 'user' && named?.type !== 'role') {
    throw invalidInput(`Invalid ARN provided in the request: ${arn}`);
  }
  return named.type === 'user'
    ? { kind: 'user', account: named.account, arn, id: arn }
    : { kind: 'role-session', account: named.account, arn, id: arn, roleArn: arn, roleId: arn };
}

function simulateCustom(): Op<iam.SimulateCustomPolicyRequest, iam.SimulatePolicyResponse> {
  return {
    access: () => [{ action: 'iam:SimulateCustomPolicy', resource: '*' }],
    async run(input, { caller: { account } }) {
      if (input.ResourcePolicy !== undefined && input.CallerArn === undefined) {
        throw invalidInput('CallerArn is required when a ResourcePolicy is given.');
      }
      const simulation: Simulation = {
        caller: callerOf(input.CallerArn ?? `arn:aws:iam::${account}:user/simulated`),
        identity: readPolicies('PolicyInputList', input.PolicyInputList),
        boundary: readBoundary(input.PermissionsBoundaryPolicyInputList),
        resource: readResourcePolicy(input.ResourcePolicy),
        serviceControl: undefined,
      };
      return simulate(simulation, input);
    },
  };
}

/** The user, group or role a simulation is about. @throws Fault InvalidInput for everything else, sessions included */
function readSource(arn: string): NamedArn {
  const named = readNamedArn(arn);
  if (named === undefined || named.type === 'instance-profile') {
    throw invalidInput(`Invalid ARN provided in the request: ${arn}`);
  }
  return named;
}

/** What the source is granted. @throws Fault NoSuchEntity */
async function readSourcePolicies(
  { store }: IamServices,
  { type, account, name, arn }: NamedArn,
): Promise<Pick<Simulation, 'identity' | 'boundary'>> {
  const kind = type === 'instance-profile' ? 'user' : type;
  const owner = await { user: findUser, group: findGroup, role: findRole }[kind](store.read, account, name);
  if (owner === undefined || !arn.endsWith(`:${kind}${owner.path}${name}`)) throw noSuchNamed(kind, name);
  const { policies, boundary } = await readGrants(store.read, kind, owner);
  const simulated = (named: string, policyArn: string | undefined, text: string): SimulatedPolicy => ({
    text,
    name: named,
    ...(policyArn !== undefined && { arn: policyArn }),
    policy: compilePolicy(text),
  });
  const identity = policies.flatMap((policy) => {
    const text = policy.document ?? MANAGED_POLICIES.get(policy.arn ?? '')?.document;
    return text === undefined ? [] : [simulated(policy.name, policy.arn, text)];
  });
  const bounding = boundary && (boundary.document ?? MANAGED_POLICIES.get(boundary.arn)?.document);
  return {
    identity,
    boundary:
      boundary === undefined || bounding === undefined
        ? undefined
        : simulated(boundary.arn.slice(boundary.arn.lastIndexOf('/') + 1), boundary.arn, bounding),
  };
}

function simulatePrincipal(
  services: IamServices,
): Op<iam.SimulatePrincipalPolicyRequest, iam.SimulatePolicyResponse> {
  return {
    access: ({ PolicySourceArn }) => {
      readSource(PolicySourceArn);
      return [{ action: 'iam:SimulatePrincipalPolicy', resource: PolicySourceArn }];
    },
    async run(input, _context: Context) {
      const source = readSource(input.PolicySourceArn);
      const stored = await readSourcePolicies(services, source);
      if (source.type !== 'user' && input.ResourcePolicy !== undefined && input.CallerArn === undefined) {
        throw invalidInput('CallerArn is required when a ResourcePolicy is given and the source is no user.');
      }
      const arn = input.CallerArn ?? source.arn;
      const simulation: Simulation = {
        // A group asks for nothing itself; whoever is in it does.
        caller: callerOf(
          source.type === 'group' && input.CallerArn === undefined
            ? `arn:aws:iam::${source.account}:user/simulated`
            : arn,
        ),
        identity: [...stored.identity, ...readPolicies('PolicyInputList', input.PolicyInputList)],
        boundary: readBoundary(input.PermissionsBoundaryPolicyInputList) ?? stored.boundary,
        resource: readResourcePolicy(input.ResourcePolicy),
        serviceControl: services.guardrails?.serviceControl(source.account),
      };
      return simulate(simulation, input);
    },
  };
}

/** Context entries as the engine wants them: lists are multi-valued keys. */
function readContext(entries: readonly iam.ContextEntry[] = []): Map<string, string | readonly string[]> {
  const context = new Map<string, string | readonly string[]>();
  for (const { ContextKeyName: name, ContextKeyValues: values = [], ContextKeyType: type } of entries) {
    if (name === undefined) throw invalidInput('A context entry needs a ContextKeyName.');
    const isList = type?.endsWith('List') === true;
    if (!isList && values.length > 1) {
      throw invalidInput(`${name} has several values: its ContextKeyType must be a list.`);
    }
    const [first] = values;
    if (isList) context.set(name.toLowerCase(), values);
    else if (first !== undefined) context.set(name.toLowerCase(), first);
  }
  return context;
}

/** Every action on every resource, a page of them. @throws Fault InvalidInput */
function simulate(
  simulation: Simulation,
  input: iam.SimulateCustomPolicyRequest | iam.SimulatePrincipalPolicyRequest,
): iam.SimulatePolicyResponse {
  const { ActionNames: actions, ResourceArns: resources = ['*'] } = input;
  if (actions.length * resources.length > QUESTIONS_MAX) {
    throw invalidInput(`At most ${QUESTIONS_MAX} pairs of action and resource can be simulated at once.`);
  }
  const wrong = actions.find((action) => !/^[A-Za-z0-9-]+:[A-Za-z0-9]+$/.test(action));
  if (wrong !== undefined) throw invalidInput(`Invalid Action: ${wrong}`);
  const context = readContext(input.ContextEntries);
  const pairs = actions.flatMap((action) => resources.map((resource) => ({ action, resource })));
  const { items, page } = pageOfAll(pairs, input);
  const { numbered, policies, sources } = numberPolicies(simulation);
  const missing = contextKeysOf(policies).filter((key) => !context.has(key.toLowerCase()));
  const owner = input.ResourceOwner && /([0-9]{12})(?::root)?$/.exec(input.ResourceOwner)?.[1];
  return {
    EvaluationResults: items.map(({ action, resource }) => {
      const request: AccessRequest = {
        caller: simulation.caller,
        action,
        resource,
        resourceAccount: owner || resource.split(':')[4] || simulation.caller.account,
        context,
      };
      const explanation = evaluate(request, numbered).explain();
      return showResult(request, explanation, { missing, sources, simulation });
    }),
    ...page,
  };
}

/** A policy as results show it. */
interface Source {
  readonly name: string;
  readonly spans: readonly Span[];
}

/**
 * The simulation with its policies under numbers. WHY: a user and its groups may have inline policies of one name, and places
 * are told of the right one. `#` begins no name, so that those of control policies are none of these.
 */
function numberPolicies(simulation: Simulation): {
  readonly numbered: Simulation;
  readonly policies: readonly SimulatedPolicy[];
  readonly sources: ReadonlyMap<string, Source>;
} {
  const policies: SimulatedPolicy[] = [];
  const sources = new Map<string, Source>();
  const number = (policy: SimulatedPolicy): SimulatedPolicy => {
    const name = `#${policies.length}`;
    policies.push(policy);
    sources.set(name, { name: policy.name, spans: statementSpans(policy.text) });
    return { ...policy, name };
  };
  const { identity, boundary, resource } = simulation;
  const numbered = {
    ...simulation,
    identity: identity.map(number),
    boundary: boundary && number(boundary),
    resource: resource && number(resource),
  };
  return { numbered, policies, sources };
}

const DECISIONS = {
  allow: 'allowed',
  'explicit-deny': 'explicitDeny',
  'implicit-deny': 'implicitDeny',
} as const;

function showResult(
  { action, resource }: AccessRequest,
  explanation: Explanation,
  {
    missing,
    sources,
    simulation,
  }: {
    readonly missing: readonly string[];
    readonly sources: ReadonlyMap<string, Source>;
    readonly simulation: Simulation;
  },
): iam.EvaluationResult {
  const { reason, policies } = explanation;
  const decision = DECISIONS[reason.outcome];
  const decisive = decision === 'explicitDeny' ? 'Deny' : 'Allow';
  const matched =
    decision === 'implicitDeny'
      ? []
      : policies.flatMap(({ name, statements }) => {
          const source = sources.get(name);
          if (source === undefined) return [];
          return statements
            .filter((statement) => statement.matched && statement.effect === decisive)
            .map(({ index }) => showStatement(source.name, source.spans[index]));
        });
  const { boundary, serviceControl } = simulation;
  const details: Pick<iam.EvaluationResult, 'PermissionsBoundaryDecisionDetail'> =
    boundary === undefined
      ? {}
      : {
          PermissionsBoundaryDecisionDetail: {
            AllowedByPermissionsBoundary: policies.some(
              ({ policyType, outcome }) => policyType === 'boundary' && outcome === 'allow',
            ),
          },
        };
  return {
    EvalActionName: action,
    EvalResourceName: resource,
    EvalDecision: decision,
    MatchedStatements: matched,
    MissingContextValues: [...missing],
    EvalDecisionDetails: {},
    ...(serviceControl !== undefined && {
      OrganizationsDecisionDetail: { AllowedByOrganizations: reason.policyType !== 'service-control' },
    }),
    ...details,
    ResourceSpecificResults: [
      {
        EvalResourceName: resource,
        EvalResourceDecision: decision,
        MatchedStatements: matched,
        MissingContextValues: [...missing],
        EvalDecisionDetails: {},
        ...details,
      },
    ],
  };
}

function showStatement(name: string, span: Span | undefined): iam.Statement {
  return {
    SourcePolicyId: name,
    // WHY: AWS prints this, not the words of its model (iam-sts.md §6.6).
    SourcePolicyType: 'IAM Policy' as iam.PolicySourceType,
    ...(span && {
      StartPosition: { Line: span.start.line, Column: span.start.column },
      EndPosition: { Line: span.end.line, Column: span.end.column },
    }),
  };
}

/** Names of keys in conditions and variables, in order of appearance, each once ignoring case. */
function contextKeysOf(policies: readonly SimulatedPolicy[]): string[] {
  const keys = new Map<string, string>();
  const add = (key: string): void => {
    const lower = key.toLowerCase();
    if (!keys.has(lower)) keys.set(lower, key);
  };
  for (const { policy, text } of policies) {
    for (const { conditions } of policy.statements) for (const { key } of conditions) add(key);
    if (policy.version !== '2012-10-17') continue;
    for (const [, variable = ''] of text.matchAll(/\$\{\s*([^\s,}*?$]+)/g)) add(variable);
  }
  return [...keys.values()];
}

function keysOfCustom(): Op<iam.GetContextKeysForCustomPolicyRequest, iam.GetContextKeysForPolicyResponse> {
  return {
    access: () => [{ action: 'iam:GetContextKeysForCustomPolicy', resource: '*' }],
    async run({ PolicyInputList }) {
      return { ContextKeyNames: contextKeysOf(readPolicies('PolicyInputList', PolicyInputList)) };
    },
  };
}

function keysOfPrincipal(
  services: IamServices,
): Op<iam.GetContextKeysForPrincipalPolicyRequest, iam.GetContextKeysForPolicyResponse> {
  return {
    access: ({ PolicySourceArn }) => {
      readSource(PolicySourceArn);
      return [{ action: 'iam:GetContextKeysForPrincipalPolicy', resource: PolicySourceArn }];
    },
    async run({ PolicySourceArn, PolicyInputList }) {
      const { identity } = await readSourcePolicies(services, readSource(PolicySourceArn));
      return {
        ContextKeyNames: contextKeysOf([...identity, ...readPolicies('PolicyInputList', PolicyInputList)]),
      };
    },
  };
}
