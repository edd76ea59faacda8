/** Does one statement apply to one request, and if not, because of which element? */
import { matchCondition } from './conditions.ts';
import { matchAction, type FixedPart, type ResourcePattern, type Statement } from './document.ts';
import { matchGlob, occursAt } from './glob.ts';
import { exceptsCaller, matchPrincipals, type Caller, type PrincipalKind } from './principals.ts';
import { isResolvable, matchTemplate, splitArn, type Context } from './variables.ts';

export interface AccessRequest {
  readonly caller: Caller;
  /** Canonical spelling: `ecr:PutImage`. */
  readonly action: string;
  /** An ARN, or `*` for actions without a resource type. */
  readonly resource: string;
  /** The account that owns the resource; for `*` the caller's own. */
  readonly resourceAccount: string;
  /** Keys lower-cased (`aws:principaltag/team`); arrays are multi-valued keys. */
  readonly context: Context;
  /** The resource policy is a role's trust policy: it must grant, an identity Allow alone never suffices. */
  readonly trustPolicy?: boolean | undefined;
}

/** A request with what every statement asks of it worked out once, and only if one asks. */
export class Query {
  readonly request: AccessRequest;
  readonly actionLower: string;
  readonly service: string;
  /** The caller has a permissions boundary. */
  readonly bounded: boolean;
  #resourceParts: readonly string[] | 'none' | undefined;

  constructor(request: AccessRequest, bounded: boolean) {
    this.request = request;
    this.actionLower = request.action.toLowerCase();
    this.service = this.actionLower.slice(0, Math.max(this.actionLower.indexOf(':'), 0));
    this.bounded = bounded;
  }

  /** The six parts of the resource's ARN, undefined for `*`. */
  get resourceParts(): readonly string[] | undefined {
    this.#resourceParts ??= splitArn(this.request.resource) ?? 'none';
    return this.#resourceParts === 'none' ? undefined : this.#resourceParts;
  }
}

function matchFixed(fixed: readonly FixedPart[], parts: readonly string[]): boolean {
  for (let i = 0; i < 5; i++) {
    const wanted = fixed[i];
    if (wanted === undefined) continue;
    if (typeof wanted === 'string' ? wanted !== parts[i] : !matchGlob(wanted, parts[i] ?? '')) return false;
  }
  return true;
}

function matchResource(pattern: ResourcePattern, query: Query): boolean {
  if (pattern.form === 'everything') return true;
  if (pattern.form === 'whole')
    return pattern.glob !== undefined && matchGlob(pattern.glob, query.request.resource);
  const parts = query.resourceParts;
  // WHY: the last part first, it tells most resources apart.
  if (parts === undefined || !matchTemplate(pattern.rest, parts[5] ?? '', query.request.context))
    return false;
  return matchFixed(pattern.fixed, parts);
}

/** Whether the pattern might have named the resource had all its variables a value. */
function isUndecided(pattern: ResourcePattern, { request, resourceParts: parts }: Query): boolean {
  if (pattern.form !== 'parts' || parts === undefined || isResolvable(pattern.rest, request.context))
    return false;
  return matchFixed(pattern.fixed, parts) && occursAt(pattern.rest.prefix, parts[5] ?? '', 0);
}

function matchResources(statement: Statement, query: Query, attached: boolean): boolean {
  // WHY: only policies attached to a resource may leave Resource out; elsewhere such a statement can only take away.
  if (statement.resources === undefined) return attached || statement.effect === 'Deny';
  for (const pattern of statement.resources) if (matchResource(pattern, query)) return !statement.notResource;
  if (!statement.notResource) return false;
  // WHY: what a variable without value would have kept out is unknown. Not documented by AWS; we rather allow nothing.
  return statement.effect === 'Deny' || !statement.resources.some((r) => isUndecided(r, query));
}

/** How the statement names the caller; undefined if it does not. Statements without principal name everybody the policy is attached to. */
function principalKind(statement: Statement, query: Query, attached: boolean): PrincipalKind | undefined {
  const { principals } = statement;
  if (principals === undefined) return attached ? undefined : 'wildcard';
  if (!statement.notPrincipal) return matchPrincipals(principals, query.request.caller);
  // WHY: AWS: Deny with NotPrincipal "will always deny any IAM principal that has a permissions boundary policy attached,
  // regardless of the values specified" (IAM user guide, Permissions boundaries for IAM entities).
  if (query.bounded && statement.effect === 'Deny') return 'wildcard';
  return exceptsCaller(principals, query.request.caller) ? undefined : 'wildcard';
}

/**
 * How the statement, whose action is known to match, names the caller if all of it applies, otherwise undefined. `attached`: the policy belongs to a
 * resource, so it must name a principal and needs no Resource.
 */
export function applies(statement: Statement, query: Query, attached: boolean): PrincipalKind | undefined {
  const kind = principalKind(statement, query, attached);
  if (kind === undefined || !matchResources(statement, query, attached)) return undefined;
  for (const condition of statement.conditions) {
    if (!matchCondition(condition, query.request.context)) return undefined;
  }
  return kind;
}

/** The first element that keeps a statement from applying. */
export type Mismatch =
  | { readonly element: 'Action' | 'NotAction' | 'Principal' | 'NotPrincipal' | 'Resource' | 'NotResource' }
  | {
      readonly element: 'Condition';
      readonly operator: string;
      readonly key: string;
      readonly expected: readonly string[];
      /** What the request has; undefined if the key is absent. */
      readonly actual: string | readonly string[] | undefined;
    };

/** Why the statement does not apply; undefined if it does. */
export function mismatchOf(statement: Statement, query: Query, attached: boolean): Mismatch | undefined {
  if (!matchAction(statement.actions, query.actionLower)) {
    return { element: statement.actions.not ? 'NotAction' : 'Action' };
  }
  if (principalKind(statement, query, attached) === undefined) {
    return { element: statement.notPrincipal ? 'NotPrincipal' : 'Principal' };
  }
  if (!matchResources(statement, query, attached)) {
    return { element: statement.notResource ? 'NotResource' : 'Resource' };
  }
  const { context } = query.request;
  const failed = statement.conditions.find((c) => !matchCondition(c, context));
  if (failed === undefined) return undefined;
  const { operator, key, values, keyLower } = failed;
  return { element: 'Condition', operator, key, expected: values, actual: context.get(keyLower) };
}
