/** ECR's write-time checks of repository and registry policies: one text for every mistake. */
import { compilePolicy, principalsNamed, statementsOf, stringList, type CompiledPolicy } from './document.ts';
import { isObject, type Json, type JsonObject } from './json.ts';
import type { NamedPrincipal } from './principals.ts';
import { parseObject } from './validate-identity.ts';

/** What a registry policy of scope V1 may speak about. */
const V1_ACTIONS: ReadonlySet<string> = new Set([
  'ecr:replicateimage',
  'ecr:batchimportupstreamimage',
  'ecr:createrepository',
  'ecr:*',
]);

function compiled(text: string): CompiledPolicy | undefined {
  try {
    return compilePolicy(text);
  } catch {
    return undefined;
  }
}

function isPrincipal({ form, value }: NamedPrincipal): boolean {
  if (form === 'service') return /^[a-z0-9-]+(?:\.[a-z0-9-]+)+$/.test(value);
  return form === 'federated' ? value !== '' : form !== 'unknown';
}

const isEcrAction = (action: string): boolean => action === '*' || /^ecr:[A-Za-z*?]+$/i.test(action);

/** Non-empty, and not a map with an empty list. */
function isFilled(principal: Json | undefined): boolean {
  if (!isObject(principal)) return principal === '*';
  return principal.size > 0 && [...principal.values()].every((v) => (stringList(v)?.length ?? 0) > 0);
}

function isStatement(
  statement: JsonObject,
  resources: (list: readonly string[] | undefined) => boolean,
): boolean {
  const actions = stringList(statement.get('Action') ?? statement.get('NotAction')) ?? [];
  return (
    actions.length > 0 &&
    actions.every(isEcrAction) &&
    // WHY: everybody except a few would include anonymous callers.
    !(statement.has('NotPrincipal') && statement.get('Effect') === 'Allow') &&
    isFilled(statement.get('Principal') ?? statement.get('NotPrincipal')) &&
    !statement.has('NotResource') &&
    resources(statement.has('Resource') ? stringList(statement.get('Resource')) : undefined)
  );
}

function isResourcePolicy(
  text: string,
  resources: (list: readonly string[] | undefined) => boolean,
): boolean {
  const policy = compiled(text);
  const document = parseObject(text);
  if (policy === undefined || document === undefined) return false;
  return (
    principalsNamed(policy).every(isPrincipal) &&
    (statementsOf(document) ?? []).every((s) => isStatement(s, resources))
  );
}

/**
 * ecr-api.md 13.2. `Resource` may be absent, `*` or the repository's own ARN; the actions must be ECR's. Whether the
 * principals exist is for the caller to check (`principalsNamed`).
 */
export function validateRepositoryPolicy(
  text: string,
  repositoryArn: string,
): 'Invalid repository policy provided' | undefined {
  const own = (list: readonly string[] | undefined): boolean =>
    list === undefined || (list.length > 0 && list.every((r) => r === '*' || r === repositoryArn));
  return isResourcePolicy(text, own) ? undefined : 'Invalid repository policy provided';
}

/** ecr-api.md 14.2. `Resource` is required, its ARNs are not checked; scope V1 limits the actions. */
export function validateRegistryPolicy(
  text: string,
  scope: 'V1' | 'V2',
): 'Invalid registry policy provided' | undefined {
  const present = (list: readonly string[] | undefined): boolean => list !== undefined && list.length > 0;
  const inScope = (s: JsonObject): boolean =>
    scope === 'V2' || (stringList(s.get('Action'))?.every((a) => V1_ACTIONS.has(a.toLowerCase())) ?? false);
  const fine =
    isResourcePolicy(text, present) && (statementsOf(parseObject(text) ?? new Map()) ?? []).every(inScope);
  return fine ? undefined : 'Invalid registry policy provided';
}
