/** Who a statement's `Principal` names, and how strongly it names a caller. */
import { isObject, PolicySyntaxError, type Json } from './json.ts';

/** Who asks, as policies see it. */
export interface Caller {
  /** `web-identity`: the holder of a foreign token that asks for a role (`AssumeRoleWithWebIdentity`, `...SAML`). */
  readonly kind:
    | 'root'
    | 'user'
    | 'role-session'
    | 'federated-user'
    | 'service'
    | 'web-identity'
    | 'anonymous';
  /** Twelve digits. */
  readonly account: string;
  /** The ARN printed in denials: user, `assumed-role` session, `federated-user` session or root ARN. */
  readonly arn: string;
  /** `AIDA...`, `AROA...` (with or without `:session`), the account id for root. */
  readonly id: string;
  /** Role sessions: the role's ARN, with path. */
  readonly roleArn?: string | undefined;
  /** Role sessions: the role's unique id; taken from `id` when absent. */
  readonly roleId?: string | undefined;
  /** Federated-user sessions: the user that created the session. */
  readonly userArn?: string | undefined;
  readonly userId?: string | undefined;
  /** Services: `ecs-tasks.amazonaws.com`. */
  readonly serviceName?: string | undefined;
  /** Web identities: the provider ARN, or a built-in provider's host name. */
  readonly federatedProvider?: string | undefined;
}

/** How a resource policy names a caller; iam-sts.md 2.4. `via-user`: a federated session by its user. */
export type PrincipalKind =
  | 'wildcard'
  | 'session'
  | 'user'
  | 'role'
  | 'via-user'
  | 'account'
  | 'service'
  | 'federated';

/** One entry of a `Principal` or `NotPrincipal`. */
export interface NamedPrincipal {
  readonly type: 'AWS' | 'Service' | 'Federated' | 'CanonicalUser';
  readonly value: string;
  /** What the value is by its form; `unknown` names nobody. `id` is a unique id such as `AROA...`. */
  readonly form:
    | 'wildcard'
    | 'account'
    | 'user'
    | 'role'
    | 'session'
    | 'federated-user'
    | 'id'
    | 'service'
    | 'federated'
    | 'unknown';
  /** The account in an account id or ARN. */
  readonly account: string | undefined;
}

export interface PrincipalSet {
  /** The bare `"*"`: also services and web identities. */
  readonly everyone: boolean;
  /** `{"AWS":"*"}`: accounts, users, sessions and anonymous callers. */
  readonly anyAws: boolean;
  readonly accounts: ReadonlySet<string>;
  /** ARNs and unique ids. */
  readonly aws: ReadonlySet<string>;
  readonly services: ReadonlySet<string>;
  readonly federated: ReadonlySet<string>;
  readonly named: readonly NamedPrincipal[];
}

const TYPES = ['AWS', 'Service', 'Federated', 'CanonicalUser'] as const;
const AWS_FORMS: readonly (readonly [NamedPrincipal['form'], RegExp])[] = [
  ['account', /^([0-9]{12})$/],
  ['account', /^arn:aws[a-z-]*:iam::([0-9]{12}):root$/],
  ['user', /^arn:aws[a-z-]*:iam::([0-9]{12}):user\/[^*?]+$/],
  ['role', /^arn:aws[a-z-]*:iam::([0-9]{12}):role\/[^*?]+$/],
  ['session', /^arn:aws[a-z-]*:sts::([0-9]{12}):assumed-role\/[^*?/]+\/[^*?/]+$/],
  ['federated-user', /^arn:aws[a-z-]*:sts::([0-9]{12}):federated-user\/[^*?/]+$/],
  ['id', /^A[A-Z0-9]{15,127}$/],
];

function namedPrincipal(type: NamedPrincipal['type'], value: string): NamedPrincipal {
  if (type === 'Service') return { type, value, form: 'service', account: undefined };
  if (type === 'Federated') return { type, value, form: 'federated', account: undefined };
  if (type === 'CanonicalUser') return { type, value, form: 'unknown', account: undefined };
  if (value === '*') return { type, value, form: 'wildcard', account: undefined };
  for (const [form, pattern] of AWS_FORMS) {
    const found = pattern.exec(value);
    if (found !== null) return { type, value, form, account: found[1] };
  }
  return { type, value, form: 'unknown', account: undefined };
}

const stringsOf = (value: Json): readonly string[] => {
  const list = Array.isArray(value) ? (value as readonly Json[]) : [value];
  if (!list.every((v) => typeof v === 'string'))
    throw new PolicySyntaxError('document', 'principals must be strings');
  return list;
};

/** @throws PolicySyntaxError unless it is `"*"` or a map from the four principal types to strings. */
export function compilePrincipals(json: Json): PrincipalSet {
  const named: NamedPrincipal[] = [];
  const everyone = json === '*';
  if (everyone) named.push(namedPrincipal('AWS', '*'));
  else if (!isObject(json)) throw new PolicySyntaxError('document', 'a principal must be "*" or an object');
  else {
    for (const [key, value] of json) {
      const type = TYPES.find((t) => t === key);
      if (type === undefined) throw new PolicySyntaxError('document', `unknown principal type ${key}`);
      for (const v of stringsOf(value)) named.push(namedPrincipal(type, v));
    }
  }
  const values = (wanted: (n: NamedPrincipal) => boolean) =>
    new Set(named.filter(wanted).map((n) => n.value));
  return {
    everyone,
    anyAws: everyone || named.some((n) => n.form === 'wildcard'),
    accounts: new Set(named.filter((n) => n.form === 'account').map((n) => n.account ?? '')),
    aws: values((n) => n.type === 'AWS' && n.form !== 'account' && n.form !== 'wildcard'),
    services: values((n) => n.type === 'Service'),
    federated: values((n) => n.type === 'Federated'),
    named,
  };
}

const roleIdOf = (caller: Caller): string => {
  const colon = caller.id.indexOf(':');
  return caller.roleId ?? (colon < 0 ? caller.id : caller.id.slice(0, colon));
};

/** The strongest way in which the set names the caller, undefined if it does not. */
export function matchPrincipals(set: PrincipalSet, caller: Caller): PrincipalKind | undefined {
  if (set.everyone) return 'wildcard';
  const { kind } = caller;
  if (kind === 'service') return set.services.has(caller.serviceName ?? '') ? 'service' : undefined;
  if (kind === 'web-identity')
    return set.federated.has(caller.federatedProvider ?? '') ? 'federated' : undefined;
  if (set.anyAws) return 'wildcard';
  if (kind === 'anonymous') return undefined;
  const has = (value: string | undefined): boolean => value !== undefined && set.aws.has(value);
  if (kind === 'user' && (has(caller.arn) || has(caller.id))) return 'user';
  if (kind === 'role-session') {
    if (has(caller.arn)) return 'session';
    if (has(caller.roleArn) || has(roleIdOf(caller))) return 'role';
  }
  if (kind === 'federated-user') {
    if (has(caller.arn)) return 'session';
    if (has(caller.userArn) || has(caller.userId)) return 'via-user';
  }
  return set.accounts.has(caller.account) ? 'account' : undefined;
}

/**
 * Whether `NotPrincipal` excepts the caller. Every level that the caller has (account, role or user, session) must be
 * listed, because a policy with NotPrincipal applies to each level on its own.
 */
export function exceptsCaller(set: PrincipalSet, caller: Caller): boolean {
  const kind = matchPrincipals(set, caller);
  if (kind === undefined) return false;
  if (kind === 'wildcard' || kind === 'service' || kind === 'federated') return true;
  if (!set.accounts.has(caller.account)) return false;
  const has = (value: string | undefined): boolean => value !== undefined && set.aws.has(value);
  if (caller.kind === 'root') return true;
  if (caller.kind === 'user') return kind === 'user';
  if (caller.kind === 'role-session')
    return has(caller.arn) && (has(caller.roleArn) || has(roleIdOf(caller)));
  const hasUser = caller.userArn === undefined || has(caller.userArn) || has(caller.userId);
  return has(caller.arn) && hasUser;
}
