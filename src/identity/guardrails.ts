/**
 * Organisation-wide guardrails: service control policies (what the principals of an account may do) and resource control
 * policies (what may be done to the resources of an account), attached by configuration.
 */
import { compilePolicy, PolicySyntaxError, validateIdentityPolicy } from '../policy/policy.ts';
import type { CompiledPolicy, NamedPolicy } from '../policy/policy.ts';

/** One list a level (the organisation, then the account); undefined when nothing is attached. */
export interface Guardrails {
  serviceControl(account: string): readonly (readonly NamedPolicy[])[] | undefined;
  resourceControl(account: string): readonly (readonly NamedPolicy[])[] | undefined;
}

/** The guardrails cannot be used. The message says where and why. */
export class GuardrailError extends Error {
  override readonly name = 'GuardrailError';
}

export const NO_GUARDRAILS: Guardrails = {
  serviceControl: () => undefined,
  resourceControl: () => undefined,
};

const FULL_ACCESS: NamedPolicy = {
  name: 'FullAWSAccess',
  arn: 'arn:aws:organizations::aws:policy/service_control_policy/p-FullAWSAccess',
  policy: compilePolicy(
    '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}',
  ),
};

const KINDS = {
  'service-control': 'service_control_policy',
  'resource-control': 'resource_control_policy',
} as const;
type Kind = keyof typeof KINDS;

interface Attached {
  readonly 'service-control': readonly NamedPolicy[] | undefined;
  readonly 'resource-control': readonly NamedPolicy[] | undefined;
}

/**
 * Compiles guardrails from their file, once parsed: a map from account (twelve digits, or `*` for all) to
 * `service-control` and `resource-control`, each a list of `{name, document}`. As in AWS, the policy FullAWSAccess is
 * attached beside the service control policies, which therefore only need to deny; an entry that is the word
 * `detach-full-access` takes it away, and then they must allow as well. `organization` is the id in the policies' ARNs.
 *
 * @throws GuardrailError
 */
export function compileGuardrails(file: unknown, organization = 'o-berth'): Guardrails {
  if (file === null || file === undefined) return NO_GUARDRAILS;
  const levels = new Map<string, Attached>();
  for (const [account, entry] of entriesOf(file, 'the guardrails')) {
    if (account !== '*' && !/^[0-9]{12}$/.test(account)) {
      throw new GuardrailError(`"${account}" is not an account: twelve digits in quotes, or "*"`);
    }
    levels.set(account, readLevel(organization, account, entry));
  }
  const of = (kind: Kind, account: string) => {
    const found = ['*', account].flatMap((level) => {
      const policies = levels.get(level)?.[kind];
      return policies === undefined ? [] : [policies];
    });
    return found.length === 0 ? undefined : found;
  };
  return {
    serviceControl: (account) => of('service-control', account),
    resourceControl: (account) => of('resource-control', account),
  };
}

function entriesOf(value: unknown, what: string): [string, unknown][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new GuardrailError(`${what} must be a map`);
  }
  return Object.entries(value);
}

function readLevel(organization: string, account: string, entry: unknown): Attached {
  const level: { [kind in Kind]: readonly NamedPolicy[] | undefined } = {
    'service-control': undefined,
    'resource-control': undefined,
  };
  for (const [kind, list] of entriesOf(entry, `the entry of ${account}`)) {
    if (!Object.hasOwn(KINDS, kind)) {
      throw new GuardrailError(`"${kind}" of ${account} is unknown: service-control, resource-control`);
    }
    if (!Array.isArray(list)) throw new GuardrailError(`${kind} of ${account} must be a list`);
    level[kind as Kind] = readPolicies(organization, kind as Kind, account, list);
  }
  return level;
}

function readPolicies(
  organization: string,
  kind: Kind,
  account: string,
  list: readonly unknown[],
): NamedPolicy[] {
  const detached = kind === 'service-control' && list.includes('detach-full-access');
  const policies = list
    .filter((each) => !(detached && each === 'detach-full-access'))
    .map((each) => readPolicy(organization, kind, account, each));
  return kind === 'service-control' && !detached ? [FULL_ACCESS, ...policies] : policies;
}

function readPolicy(organization: string, kind: Kind, account: string, entry: unknown): NamedPolicy {
  const { name, document, ...rest } = Object.fromEntries(entriesOf(entry, `a policy of ${account}`));
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined)
    throw new GuardrailError(`"${unknown}" in a policy of ${account}: name, document`);
  if (typeof name !== 'string' || !/^[\w+=,.@-]{1,128}$/.test(name)) {
    throw new GuardrailError(`a policy of ${account} needs a name of letters, digits and +=,.@_-`);
  }
  const text = typeof document === 'string' ? document : JSON.stringify(document ?? null);
  try {
    const policy = compilePolicy(text);
    // WHY strict: a Deny that can never match is no guardrail, and nobody would notice.
    const problem =
      kind === 'service-control' ? validateIdentityPolicy(text) : resourceControlProblem(policy);
    if (problem !== undefined) throw new GuardrailError(`policy ${name} of ${account}: ${problem}`);
    const owner = account === '*' ? '000000000000' : account;
    return {
      name,
      arn: `arn:aws:organizations::${owner}:policy/${organization}/${KINDS[kind]}/${name}`,
      policy,
    };
  } catch (error) {
    if (!(error instanceof PolicySyntaxError)) throw error;
    throw new GuardrailError(`policy ${name} of ${account}: ${error.message}`);
  }
}

/** As in AWS, resource control policies only deny, and everybody. */
function resourceControlProblem({ statements }: CompiledPolicy): string | undefined {
  for (const { effect, principals, notPrincipal, resources } of statements) {
    if (effect !== 'Deny') return 'resource control policies only deny';
    if (principals?.everyone !== true || notPrincipal) return 'the Principal must be "*"';
    const isUsable = resources?.every((each) => each.form !== 'whole' || each.glob !== undefined);
    if (isUsable !== true) return 'the Resource must be ARNs or "*"';
  }
  return undefined;
}
