/** IAM's write-time checks of identity policies, boundaries and session policies, with its messages in its order. */
import { parseOperator } from './conditions.ts';
import {
  compilePolicy,
  conditionValues,
  DOCUMENT_ELEMENTS,
  STATEMENT_ELEMENTS,
  statementsOf,
  stringList,
} from './document.ts';
import { isObject, parseJson, type Json, type JsonObject } from './json.ts';
import { parseDate } from './literals.ts';
import { splitArnPattern } from './variables.ts';

const SYNTAX = 'Syntax errors in policy.';
const LEGACY = 'The policy failed legacy parsing';
const PARTITIONS: ReadonlySet<string> = new Set([
  'aws',
  'aws-cn',
  'aws-us-gov',
  'aws-eusc',
  'aws-iso',
  'aws-iso-b',
  'aws-iso-e',
  'aws-iso-f',
  '*',
]);
const IAM_PATHS =
  'user/, federated-user/, role/, group/, instance-profile/, mfa/, server-certificate/, policy/, sms-mfa/, saml-provider/, oidc-provider/, report/, access-report/';

/** The JSON object in the text, undefined if there is none. */
export function parseObject(text: string): JsonObject | undefined {
  try {
    const json = parseJson(text);
    return isObject(json) ? json : undefined;
  } catch {
    return undefined;
  }
}

/** Whether the policy compiles: the last check of every validator, so that nothing is stored that cannot be evaluated. */
export function compiles(text: string): boolean {
  try {
    return compilePolicy(text) !== undefined;
  } catch {
    return false;
  }
}

/** Operators are known, keys are maps to scalars. */
export function isConditionBlock(json: Json | undefined): boolean {
  if (json === undefined) return true;
  if (!isObject(json)) return false;
  return [...json].every(
    ([operator, keys]) =>
      parseOperator(operator) !== undefined &&
      isObject(keys) &&
      [...keys.values()].every((v) => conditionValues(v)),
  );
}

export const isOptionalString = (json: Json | undefined): boolean =>
  json === undefined || typeof json === 'string';
const isOptionalList = (json: Json | undefined): boolean =>
  json === undefined || stringList(json) !== undefined;

function isStatementSyntax(s: JsonObject): boolean {
  const effect = s.get('Effect');
  return (
    [...s.keys()].every((e) => STATEMENT_ELEMENTS.has(e)) &&
    isOptionalString(s.get('Sid')) &&
    typeof effect === 'string' &&
    /^(?:allow|deny)$/i.test(effect) &&
    !(s.has('Action') && s.has('NotAction')) &&
    !(s.has('Resource') && s.has('NotResource')) &&
    ['Action', 'NotAction', 'Resource', 'NotResource'].every((e) => isOptionalList(s.get(e))) &&
    isConditionBlock(s.get('Condition'))
  );
}

export const isKnownVersion = (json: Json | undefined): boolean =>
  json === undefined || json === '2012-10-17' || json === '2008-10-17';

const isDocumentSyntax = (document: JsonObject): boolean =>
  [...document.keys()].every((e) => DOCUMENT_ELEMENTS.has(e)) &&
  isKnownVersion(document.get('Version')) &&
  isOptionalString(document.get('Id'));

const resourcesOf = (s: JsonObject) => stringList(s.get('Resource') ?? s.get('NotResource'));
const actionsOf = (s: JsonObject) => stringList(s.get('Action') ?? s.get('NotAction'));

/** Resources the old parser chokes on: too few parts, no service, variables or nonsense before the resource part. */
function isLegacyResource(resource: string): boolean {
  if (resource === '*') return true;
  const colons = resource.split(':');
  if ((colons.length < 6 && resource.includes('::')) || colons[2] === '') return false;
  const parts = splitArnPattern(resource);
  const account = parts?.[4] ?? '';
  if (parts?.slice(0, 5).some((p) => p.includes('${'))) return false;
  return /^[0-9a-z*?-]*$/i.test(account) && (!/^[0-9]+$/.test(account) || account.length === 12);
}

function hasLegacyDates(json: Json | undefined): boolean {
  for (const [operator, keys] of isObject(json) ? json : []) {
    if (!parseOperator(operator)?.base.startsWith('Date') || !isObject(keys)) continue;
    for (const value of keys.values()) {
      if (conditionValues(value)?.some((v) => Number.isNaN(parseDate(v)))) return false;
    }
  }
  return true;
}

const passesLegacyParsing = (s: JsonObject): boolean =>
  (s.get('Effect') === 'Allow' || s.get('Effect') === 'Deny') &&
  (resourcesOf(s) ?? []).every(isLegacyResource) &&
  hasLegacyDates(s.get('Condition'));

function sidProblem(statements: readonly JsonObject[]): string | undefined {
  const sids = statements.map((s) => s.get('Sid')).filter((s) => typeof s === 'string');
  if (!sids.every((s) => /^[A-Za-z0-9]*$/.test(s))) {
    return 'Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*';
  }
  const named = sids.filter((s) => s !== '');
  return new Set(named).size < named.length
    ? 'Statement IDs (SID) in a single policy must be unique.'
    : undefined;
}

function resourceProblem(resource: string): string | undefined {
  if (resource === '*') return undefined;
  const [first, partition, service, region, account, ...rest] = resource.split(':');
  if (partition === undefined || first === undefined)
    return `Resource ${resource} must be in ARN format or "*".`;
  if (!PARTITIONS.has(partition)) {
    const shown = [service, region, account, rest.length > 0 ? rest.join(':') : undefined].map(
      (p) => p ?? '*',
    );
    return `Partition "${partition}" is not valid for resource "arn:${partition}:${shown.join(':')}".`;
  }
  if (service === undefined || /[*?]/.test(service)) {
    return 'Resource vendor must be fully qualified and cannot contain regexes.';
  }
  if (service === 'iam' && region !== undefined && region !== '') {
    return `IAM resource ${resource} cannot contain region information.`;
  }
  if (service === 's3' && region !== undefined && region !== '') {
    return `Resource ${resource} can not contain region information.`;
  }
  const path = rest.join(':');
  if (service === 'iam' && !path.startsWith('*') && !IAM_PATHS.split(', ').some((p) => path.startsWith(p))) {
    return `IAM resource path must either be "*" or start with ${IAM_PATHS}.`;
  }
  return undefined;
}

function actionProblem(action: string): string | undefined {
  const [vendor = '', ...rest] = action.split(':');
  if (action === '*') return undefined;
  if (rest.length === 0) return 'Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.';
  if (rest.length > 1) return 'Actions/Condition can contain only one colon.';
  return vendor === '*' || /^[A-Za-z0-9.-]+$/.test(vendor) ? undefined : `Vendor ${vendor} is not valid`;
}

/** The first problem any item has. */
function firstProblem<T>(items: readonly T[], problem: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const found = problem(item);
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * IAM's message for a `MalformedPolicyDocument`, undefined if the document is fine. Also for boundaries and session
 * policies. A missing version counts as 2008-10-17 and is accepted; an explicit 2008-10-17 is refused.
 */
export function validateIdentityPolicy(text: string): string | undefined {
  const document = parseObject(text);
  const statements = document && statementsOf(document);
  if (!document || !statements || !isDocumentSyntax(document) || !statements.every(isStatementSyntax))
    return SYNTAX;
  if (document.get('Version') === '2008-10-17')
    return 'Policy document must be version 2012-10-17 or greater.';
  if (statements.some((s) => s.has('Principal') || s.has('NotPrincipal'))) {
    return 'Policy document should not specify a principal.';
  }
  if (!statements.every(passesLegacyParsing)) return LEGACY;
  return (
    sidProblem(statements) ??
    (statements.every((s) => (actionsOf(s)?.length ?? 0) > 0)
      ? undefined
      : 'Policy statement must contain actions.') ??
    firstProblem(statements, (s) => firstProblem(resourcesOf(s) ?? [], resourceProblem)) ??
    firstProblem(statements, (s) => firstProblem(actionsOf(s) ?? [], actionProblem)) ??
    (statements.every((s) => (resourcesOf(s)?.length ?? 0) > 0)
      ? undefined
      : 'Policy statement must contain resources.') ??
    (compiles(text) ? undefined : SYNTAX)
  );
}
