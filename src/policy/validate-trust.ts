/** IAM's write-time checks of role trust policies, with its messages. */
import {
  DOCUMENT_ELEMENTS,
  STATEMENT_ELEMENTS,
  conditionValues,
  statementsOf,
  stringList,
} from './document.ts';
import { parseOperator } from './conditions.ts';
import { compileGlob, matchGlob } from './glob.ts';
import { isArray, isObject, parseJson, PolicySyntaxError, type Json, type JsonObject } from './json.ts';
import { compilePrincipals } from './principals.ts';
import { compiles, isConditionBlock, isKnownVersion, isOptionalString } from './validate-identity.ts';

const SYNTAX = 'Syntax error in policy.';
const ACTIONS: readonly string[] = [
  'sts:assumerole',
  'sts:assumerolewithsaml',
  'sts:assumerolewithwebidentity',
  'sts:tagsession',
  'sts:setsourceidentity',
  'sts:setcontext',
];

/**
 * Token issuers that many customers share: without a condition on one of these claims anybody's token would do. AWS's table of
 * identity-provider controls for shared OIDC providers.
 */
const SHARED_PROVIDERS: ReadonlyMap<string, readonly string[]> = new Map([
  ['token.actions.githubusercontent.com', ['sub', 'job_workflow_ref']],
  ['vstoken.actions.githubusercontent.com', ['sub']],
  ['oidc-configuration.audit-log.githubusercontent.com', ['sub']],
  ['gitlab.com', ['sub']],
  ['app.terraform.io', ['sub']],
  ['agent.buildkite.com', ['sub']],
  ['oidc.codefresh.io', ['sub']],
  ['studio.datachain.ai/api', ['sub']],
  ['proidc.upbound.io', ['sub']],
  ['scalr.io', ['sub']],
  ['tokens.cloud.shisho.dev', ['sub']],
  ['api.pulumi.com/oidc', ['aud']],
  ['sandboxes.cloud', ['aud']],
  ['oidc.vercel.com', ['aud']],
]);
const SCOPING_OPERATORS: ReadonlySet<string> = new Set([
  'StringEquals',
  'StringLike',
  'StringEqualsIgnoreCase',
]);

/** Whether a condition narrows one of the keys to something other than `*` alone. */
function isScoped(condition: Json | undefined, keys: readonly string[]): boolean {
  for (const [operator, block] of isObject(condition) ? condition : []) {
    const name = parseOperator(operator);
    if (name === undefined || name.ifExists || !SCOPING_OPERATORS.has(name.base) || !isObject(block))
      continue;
    for (const [key, value] of block) {
      if (keys.includes(key.toLowerCase()) && conditionValues(value)?.some((v) => v !== '*')) return true;
    }
  }
  return false;
}

function providerProblem(provider: string, statement: JsonObject): string | undefined {
  const condition = statement.get('Condition');
  if (provider === 'cognito-identity.amazonaws.com') {
    const present = isObject(condition) && condition.size > 0;
    return present ? undefined : 'A condition block must be present for the Cognito provider';
  }
  const host = /^arn:[^:]+:iam::[0-9]{12}:oidc-provider\/(.+)$/.exec(provider)?.[1];
  const keys = SHARED_PROVIDERS.get(host ?? '')?.map((claim) => `${host}:${claim}`);
  if (keys === undefined || statement.get('Effect') !== 'Allow' || isScoped(condition, keys))
    return undefined;
  return `Trust policy with trusted principal ${provider} must evaluate, using StringEquals, StringLike or StringEqualsIgnoreCase, ${keys.join(' or ')} which is not scoped to all.`;
}

/** `*`, an account, an ARN of a user, role or session, or a unique id; for services a host name. */
function valueProblem(key: string, value: Json): string | undefined {
  if (typeof value !== 'string') return SYNTAX;
  const shown = key === 'AWS' ? key : key.toUpperCase();
  const problem = `Invalid principal in policy: "${shown}":"${value}"`;
  if (key === 'Service') return /^[a-z0-9-]+(?:\.[a-z0-9-]+)+$/.test(value) ? undefined : problem;
  if (key === 'Federated') return value === '' || /[*?]/.test(value) ? problem : undefined;
  const [named] = compilePrincipals(new Map([['AWS', value]])).named;
  return named === undefined || named.form === 'unknown' ? problem : undefined;
}

function principalProblem(statement: JsonObject): string | undefined {
  const principal = statement.get('Principal');
  if (principal === undefined) return 'Missing required field Principal';
  if (!isObject(principal)) return 'Principal must be a JSON object.';
  if (principal.size === 0) return 'Missing required field Principal cannot be empty!';
  for (const [key, json] of principal) {
    if (key !== 'AWS' && key !== 'Service' && key !== 'Federated')
      return `Invalid principal in policy: "${key}"`;
    const values = isArray(json) ? json : [json];
    if (values.length === 0) return 'Missing required field Principal cannot be empty!';
    for (const value of values) {
      const problem = valueProblem(key, value);
      if (problem !== undefined) return problem;
    }
  }
  return undefined;
}

const isTrustAction = (action: string): boolean =>
  /^sts:/i.test(action) && ACTIONS.some((a) => matchGlob(compileGlob(action.toLowerCase()), a));

function statementProblem(statement: JsonObject): string | undefined {
  const effect = statement.get('Effect');
  if (effect === undefined) return 'Missing required field Effect';
  if (typeof effect !== 'string') return SYNTAX;
  if (effect !== 'Allow' && effect !== 'Deny') return `Invalid effect: ${effect}`;
  if (statement.has('NotPrincipal')) {
    const inAllow = 'Allow with NotPrincipal is not allowed.';
    return effect === 'Allow' ? inAllow : 'AssumeRole policy must not contain NotPrincipal field.';
  }
  const principal = principalProblem(statement);
  if (principal !== undefined) return principal;
  const actions = stringList(statement.get('Action') ?? []);
  if (actions === undefined) return SYNTAX;
  if (actions.length === 0) return 'Missing required field Action';
  if (!actions.every(isTrustAction)) return 'AssumeRole policy may only specify STS AssumeRole actions.';
  if (statement.has('Resource')) return 'Has prohibited field Resource';
  if (statement.has('NotResource')) return 'AssumeRole policy must not contain resources.';
  if (!isConditionBlock(statement.get('Condition')) || !isOptionalString(statement.get('Sid'))) return SYNTAX;
  if (![...statement.keys()].every((e) => STATEMENT_ELEMENTS.has(e))) return SYNTAX;
  const map = statement.get('Principal');
  const providers = stringList((isObject(map) && map.get('Federated')) || []) ?? [];
  return providers.map((p) => providerProblem(p, statement)).find((p) => p !== undefined);
}

function parseDocument(text: string): JsonObject | string {
  try {
    const json = parseJson(text);
    return isObject(json) ? json : SYNTAX;
  } catch (error) {
    const broken = !(error instanceof PolicySyntaxError) || error.problem === 'json';
    return broken ? 'This policy contains invalid Json' : SYNTAX;
  }
}

/**
 * IAM's message for a `MalformedPolicyDocument` of a trust policy, undefined if it is fine. Whether named users and
 * roles exist is for the caller to check (`principalsNamed`; text `Invalid principal in policy: "AWS":"{arn}"`).
 */
export function validateTrustPolicy(text: string): string | undefined {
  const document = parseDocument(text);
  if (typeof document === 'string') return document;
  if (!isKnownVersion(document.get('Version'))) return 'The policy must contain a valid version string';
  const json = document.get('Statement');
  if (json === undefined || json === null || (isArray(json) && json.length === 0)) {
    return 'Could not parse the policy: Statement is empty!';
  }
  const statements = statementsOf(document);
  if (statements === undefined) return SYNTAX;
  if (![...document.keys()].every((e) => DOCUMENT_ELEMENTS.has(e)) || !isOptionalString(document.get('Id')))
    return SYNTAX;
  const sids = statements.map((s) => s.get('Sid')).filter((s) => typeof s === 'string' && s !== '');
  if (new Set(sids).size < sids.length) return 'The Statement Ids in the policy are not unique';
  const problem = statements.map(statementProblem).find((p) => p !== undefined);
  return problem ?? (compiles(text) ? undefined : SYNTAX);
}
