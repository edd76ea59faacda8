/** From policy text to a compiled policy: immutable, strict, indexed by service prefix, safe to cache by its text. */
import { compileCondition, type Condition } from './conditions.ts';
import { compileGlob, matchGlob, type Glob } from './glob.ts';
import {
  isArray,
  isObject,
  JsonNumber,
  parseJson,
  PolicySyntaxError,
  printCompact,
  printJackson,
  type Json,
  type JsonObject,
} from './json.ts';
import { compilePrincipals, type NamedPrincipal, type PrincipalSet } from './principals.ts';
import { compileTemplate, splitArnPattern, type Template } from './variables.ts';

/** Lower-cased actions: names to look up, globs to try. */
export interface ActionMatcher {
  readonly not: boolean;
  readonly everything: boolean;
  readonly names: ReadonlySet<string>;
  readonly globs: readonly Glob[];
}

/** One of the first five parts of an ARN: equal to the text, matching the glob, or anything. */
export type FixedPart = string | Glob | undefined;

/** A resource pattern: everything, six parts, or a short pattern that is a glob over the whole ARN (undefined: matches nothing). */
export type ResourcePattern =
  | { readonly form: 'everything' }
  | { readonly form: 'parts'; readonly fixed: readonly FixedPart[]; readonly rest: Template }
  | { readonly form: 'whole'; readonly glob: Glob | undefined };

export interface Statement {
  /** Position in the document, from 0. */
  readonly index: number;
  readonly sid: string | undefined;
  readonly effect: 'Allow' | 'Deny';
  readonly actions: ActionMatcher;
  /** Undefined: no Resource element, the statement is about the resource the policy is attached to. */
  readonly resources: readonly ResourcePattern[] | undefined;
  readonly notResource: boolean;
  readonly principals: PrincipalSet | undefined;
  readonly notPrincipal: boolean;
  readonly conditions: readonly Condition[];
}

/** Statements by effect, in document order. */
export interface StatementList {
  readonly deny: readonly Statement[];
  readonly allow: readonly Statement[];
}

export interface CompiledPolicy {
  readonly version: '2012-10-17' | '2008-10-17';
  readonly id: string | undefined;
  readonly statements: readonly Statement[];
  /** Statements that can concern a service prefix, for the prefixes named; everything else is in `anyService`. */
  readonly byService: ReadonlyMap<string, StatementList>;
  readonly anyService: StatementList;
  /** Exactly the statements whose Action or NotAction matches; both in lower case. Remembers some answers. */
  statementsFor(service: string, action: string): StatementList;
}

/** How many actions a policy remembers the statements for: more than ECR has. */
const ACTIONS_REMEMBERED = 128;

export const DOCUMENT_ELEMENTS: ReadonlySet<string> = new Set(['Version', 'Id', 'Statement']);
export const STATEMENT_ELEMENTS: ReadonlySet<string> = new Set([
  'Sid',
  'Effect',
  'Principal',
  'NotPrincipal',
  'Action',
  'NotAction',
  'Resource',
  'NotResource',
  'Condition',
]);

const fail = (message: string): never => {
  throw new PolicySyntaxError('document', message);
};

/** A string or an array of strings, as a list; undefined for anything else. */
export function stringList(json: Json | undefined): readonly string[] | undefined {
  if (typeof json === 'string') return [json];
  return isArray(json) && json.every((v) => typeof v === 'string') ? json : undefined;
}

/** A condition's values (strings, numbers, booleans, alone or in an array) as text; undefined for anything else. */
export function conditionValues(json: Json): readonly string[] | undefined {
  const values: string[] = [];
  for (const value of isArray(json) ? json : [json]) {
    if (typeof value === 'string') values.push(value);
    else if (typeof value === 'boolean') values.push(String(value));
    else if (value instanceof JsonNumber) values.push(value.text);
    else return undefined;
  }
  return values;
}

/** The statements of a document: an object alone or a non-empty array of objects; undefined for anything else. */
export function statementsOf(document: JsonObject): readonly JsonObject[] | undefined {
  const json = document.get('Statement');
  if (isObject(json)) return [json];
  return isArray(json) && json.length > 0 && json.every(isObject) ? json : undefined;
}

function compileActions(statement: JsonObject): ActionMatcher {
  const not = statement.has('NotAction');
  if (not === statement.has('Action')) fail('a statement needs either Action or NotAction');
  const list = stringList(statement.get(not ? 'NotAction' : 'Action')) ?? fail('actions must be strings');
  const lower = list.map((a) => a.toLowerCase());
  const globs = lower.filter((a) => /[*?]/.test(a));
  return {
    not,
    everything: globs.includes('*'),
    names: new Set(lower.filter((a) => !/[*?]/.test(a))),
    globs: globs.map(compileGlob),
  };
}

function compileFixed(text: string): FixedPart {
  const glob = compileGlob(text);
  return glob.everything ? undefined : (glob.exact ?? glob);
}

/** Partition and service are exact (a lone `*` is every partition), variables only stand after the fifth colon. */
function compileResource(text: string, variables: boolean): ResourcePattern {
  if (text === '*') return { form: 'everything' };
  const parts = splitArnPattern(text);
  if (parts === undefined) return { form: 'whole', glob: text.endsWith('*') ? compileGlob(text) : undefined };
  const [arn = '', partition = '', service = '', region = '', account = '', rest = ''] = parts;
  return {
    form: 'parts',
    fixed: [
      arn,
      partition === '*' ? undefined : partition,
      service,
      compileFixed(region),
      compileFixed(account),
    ],
    rest: compileTemplate(rest, { variables, wildcards: true }),
  };
}

function compileConditions(json: Json | undefined, variables: boolean): Condition[] {
  if (json === undefined) return [];
  const conditions: Condition[] = [];
  for (const [operator, keys] of isObject(json) ? json : fail('Condition must be an object')) {
    for (const [key, value] of isObject(keys) ? keys : fail(`${operator} must be an object`)) {
      const values =
        conditionValues(value) ?? fail(`${key} has a value that is no string, number or boolean`);
      conditions.push(
        compileCondition(operator, key, values, variables) ?? fail(`unknown operator ${operator}`),
      );
    }
  }
  return conditions;
}

function compileStatement(json: JsonObject, index: number, variables: boolean): Statement {
  for (const element of json.keys()) if (!STATEMENT_ELEMENTS.has(element)) fail(`unknown element ${element}`);
  const sid = json.get('Sid');
  if (sid !== undefined && typeof sid !== 'string') fail('Sid must be a string');
  const effect = json.get('Effect');
  if (effect !== 'Allow' && effect !== 'Deny') return fail('Effect must be Allow or Deny');
  const notResource = json.has('NotResource');
  if (notResource && json.has('Resource')) fail('Resource and NotResource exclude each other');
  const notPrincipal = json.has('NotPrincipal');
  if (notPrincipal && json.has('Principal')) fail('Principal and NotPrincipal exclude each other');
  const resource = json.get(notResource ? 'NotResource' : 'Resource');
  const resources =
    resource === undefined ? undefined : (stringList(resource) ?? fail('resources must be strings'));
  const principal = json.get(notPrincipal ? 'NotPrincipal' : 'Principal');
  return {
    index,
    sid: typeof sid === 'string' ? sid : undefined,
    effect,
    actions: compileActions(json),
    resources: resources?.map((r) => compileResource(r, variables)),
    notResource,
    principals: principal === undefined ? undefined : compilePrincipals(principal),
    notPrincipal,
    conditions: compileConditions(json.get('Condition'), variables),
  };
}

/** Whether the lower-cased action is one that Action names or NotAction does not. */
export function matchAction(matcher: ActionMatcher, action: string): boolean {
  if (matcher.everything || matcher.names.has(action)) return !matcher.not;
  for (const glob of matcher.globs) if (matchGlob(glob, action)) return !matcher.not;
  return matcher.not;
}

/** The literal service prefixes of a statement's actions; undefined if it may concern any service. */
function servicesOf({ actions }: Statement, json: JsonObject): ReadonlySet<string> | undefined {
  if (actions.not) return undefined;
  const services = new Set<string>();
  for (const action of stringList(json.get('Action')) ?? []) {
    const service = /^([^:*?]*):/.exec(action.toLowerCase())?.[1];
    if (service === undefined) return undefined;
    services.add(service);
  }
  return services;
}

const byEffect = (statements: readonly Statement[]): StatementList => ({
  deny: statements.filter((s) => s.effect === 'Deny'),
  allow: statements.filter((s) => s.effect === 'Allow'),
});

/**
 * Compiles any kind of policy (identity, boundary, session, resource, trust, control). Stricter than evaluation needs:
 * what is unknown is refused, since ignoring a misspelt element would widen a policy.
 * @throws PolicySyntaxError
 */
export function compilePolicy(text: string): CompiledPolicy {
  const document = parseJson(text);
  if (!isObject(document)) return fail('a policy must be an object');
  for (const element of document.keys())
    if (!DOCUMENT_ELEMENTS.has(element)) fail(`unknown element ${element}`);
  const version = document.get('Version') ?? '2008-10-17';
  if (document.get('Version') === null) fail('Version must be a string');
  if (version !== '2012-10-17' && version !== '2008-10-17') return fail('unknown Version');
  const id = document.get('Id');
  if (id !== undefined && typeof id !== 'string') fail('Id must be a string');
  const sources =
    statementsOf(document) ?? fail('Statement must be an object or a non-empty array of objects');
  const statements = sources.map((json, i) => compileStatement(json, i, version === '2012-10-17'));
  const services = statements.map((s, i) => servicesOf(s, sources[i] ?? new Map()));
  const named = new Set(services.flatMap((s) => [...(s ?? [])]));
  const concerning = (service: string) =>
    byEffect(statements.filter((_, i) => services[i] === undefined || services[i]?.has(service)));
  const byService = new Map([...named].map((service) => [service, concerning(service)]));
  const anyService = byEffect(statements.filter((_, i) => services[i] === undefined));
  const remembered = new Map<string, StatementList>();
  return {
    version,
    id: typeof id === 'string' ? id : undefined,
    statements,
    byService,
    anyService,
    statementsFor(service, action) {
      const known = remembered.get(action);
      if (known !== undefined) return known;
      const { deny, allow } = byService.get(service) ?? anyService;
      const matching = (s: Statement): boolean => matchAction(s.actions, action);
      const list = { deny: deny.filter(matching), allow: allow.filter(matching) };
      // WHY bounded: whoever simulates may ask about any action.
      if (remembered.size < ACTIONS_REMEMBERED) remembered.set(action, list);
      return list;
    },
  };
}

/** Every principal that the policy names in `Principal` or `NotPrincipal`, each once: callers check that they exist. */
export function principalsNamed(policy: CompiledPolicy): readonly NamedPrincipal[] {
  const seen = new Map<string, NamedPrincipal>();
  for (const { principals } of policy.statements) {
    for (const named of principals?.named ?? []) seen.set(`${named.type} ${named.value}`, named);
  }
  return [...seen.values()];
}

/**
 * The document with every principal value replaced, in compact JSON: stores pin unique ids this way and show ARNs again.
 * @throws PolicySyntaxError if the text is not JSON
 */
export function replacePrincipals(text: string, replace: (type: string, value: string) => string): string {
  const values = (type: string, json: Json): Json =>
    typeof json === 'string' ? replace(type, json) : isArray(json) ? json.map((v) => values(type, v)) : json;
  const mapObject = (json: Json, change: (key: string, value: Json) => Json): Json =>
    isObject(json) ? new Map([...json].map(([k, v]) => [k, change(k, v)])) : json;
  const statement = (json: Json): Json =>
    mapObject(json, (key, value) =>
      key === 'Principal' || key === 'NotPrincipal' ? mapObject(value, values) : value,
    );
  const document = mapObject(parseJson(text), (key, value) => {
    if (key !== 'Statement') return value;
    return isArray(value) ? value.map(statement) : statement(value);
  });
  return printCompact(document);
}

/** The text as ECR returns it: Jackson's pretty print, key order and scalar-or-array kept. @throws PolicySyntaxError if it is not JSON */
export const formatPolicyDocument = (text: string): string => printJackson(parseJson(text));

/** Length as IAM counts it against its quotas: white space does not count. */
export const policySizeOf = (text: string): number => text.replace(/\s/g, '').length;
