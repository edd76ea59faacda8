/**
 * Where the oracle is known to differ from AWS's documentation. Each difference is a rewriting of the case into one that
 * says the same by the documentation and on which the oracle must then agree: a difference is explained only if its rewriting makes it go away.
 */
import type { Caller } from '../../src/policy/policy.ts';
import type { Case, CasePolicy, CaseStatement, Condition, Principals } from './cases.ts';

export interface Difference {
  readonly name: string;
  /** What decides: the page of the IAM user guide, or why we differ knowingly. */
  readonly source: string;
  /** The equivalent case; undefined if the difference cannot play a part. */
  rewrite(it: Case): Case | undefined;
}

type Rewriter<T> = (value: T, it: Case) => T;

/** Rewrites all policies statement by statement; undefined if nothing changed. */
function mapStatements(
  it: Case,
  change: (s: CaseStatement, version: string) => CaseStatement,
): Case | undefined {
  let changed = false;
  const policy = (p: CasePolicy): CasePolicy => {
    const statements = p.statements.map((s) => change(s, p.version));
    if (statements.every((s, i) => s === p.statements[i])) return p;
    changed = true;
    return { ...p, statements };
  };
  const levels = (list: Case['serviceControl']) => list.map((level) => level.map(policy));
  const mapped: Case = {
    ...it,
    identity: it.identity.map(policy),
    boundary: it.boundary && policy(it.boundary),
    session: it.session && policy(it.session),
    attached: it.attached && policy(it.attached),
    serviceControl: levels(it.serviceControl),
    resourceControl: levels(it.resourceControl),
    endpoint: it.endpoint && policy(it.endpoint),
  };
  return changed ? mapped : undefined;
}

/** `'true'` stands for a condition that always holds. */
function mapConditions(
  it: Case,
  change: (condition: Condition, version: string) => Condition | 'true',
): Case | undefined {
  return mapStatements(it, (s, version) => {
    const conditions = s.conditions.map((c) => change(c, version));
    if (conditions.every((c, i) => c === s.conditions[i])) return s;
    return { ...s, conditions: conditions.filter((c) => c !== 'true') };
  });
}

const mapValues = (it: Case, operators: RegExp, change: Rewriter<string>): Case | undefined =>
  mapConditions(it, (condition) => {
    const [operator, key, values] = condition;
    if (!operators.test(operator)) return condition;
    const mapped = values.map((v) => change(v, it));
    return mapped.every((v, i) => v === values[i]) ? condition : [operator, key, mapped];
  });

function mapContext(it: Case, keys: RegExp, change: (value: string) => string): Case | undefined {
  let changed = false;
  const context = new Map(it.context);
  for (const [key, value] of it.context) {
    if (typeof value !== 'string' || !keys.test(key)) continue;
    const mapped = change(value);
    if (mapped !== value) changed = true;
    context.set(key, mapped);
  }
  return changed ? { ...it, context } : undefined;
}

/** A rewriting of policies, then one of the context. */
const both = (
  it: Case,
  first: (it: Case) => Case | undefined,
  second: (it: Case) => Case | undefined,
): Case | undefined => {
  const once = first(it);
  return second(once ?? it) ?? once;
};

const has = (it: Case, key: string): boolean => {
  const value = it.context.get(key);
  return value !== undefined && (typeof value === 'string' || value.length > 0);
};
const isList = (it: Case, key: string): boolean => Array.isArray(it.context.get(key));
const baseOf = (operator: string): string => operator.replace(/^For\w+:/, '').replace(/IfExists$/, '');
const NEGATED = /^(String|Numeric|Date|Arn)Not|^NotIp/;
const isNegated = (operator: string): boolean => NEGATED.test(baseOf(operator));

/** Whether a request's value is of the type that the operator compares; anything else matches no policy value. */
const TYPES: readonly (readonly [operator: RegExp, isTyped: (value: string) => boolean])[] = [
  [/^Numeric/, (v) => /^-?\d+(\.\d+)?(e\d+)?$/.test(v)],
  [/^Date/, (v) => /^\d+$|^\d{4}-/.test(v)],
  [/IpAddress$/, (v) => /^[\d.]+(\/\d+)?$|:/.test(v)],
  [/^Arn/, (v) => v.startsWith('arn:')],
];
/** A value of the right type that no request has. */
const NEVER: readonly (readonly [operator: RegExp, value: string])[] = [
  [/^Numeric/, '987654321.125'],
  [/^Date/, '1999-09-09T09:09:09Z'],
  [/IpAddress$/, '198.51.100.99/32'],
  [/^Arn/, 'arn:never:never:never:never:never'],
  [/^String/, 'never'],
];
/** The operator with its prefix and suffix, asking for a text that no request has. */
const falseOf = (operator: string, key: string): Condition => [
  operator.replace(baseOf(operator), 'StringEquals'),
  key,
  ['never'],
];
const neverOf = (operator: string): string => NEVER.find(([o]) => o.test(baseOf(operator)))?.[1] ?? 'never';

function valuesOfWrongType(it: Case): Case | undefined {
  return mapConditions(it, (condition) => {
    const [operator, key, values] = condition;
    const isTyped = TYPES.find(([o]) => o.test(baseOf(operator)))?.[1];
    if (isTyped === undefined) return condition;
    const actual = it.context.get(key);
    if (typeof actual === 'string' && !isTyped(actual)) {
      if (isNegated(operator)) return 'true';
      return falseOf(operator, key);
    }
    const isPattern = (v: string): boolean =>
      baseOf(operator).startsWith('Arn') ? v === '*' || v.split(':').length >= 6 : isTyped(v);
    if (values.every(isPattern)) return condition;
    const kept = values.filter(isPattern);
    if (kept.length > 0) return [operator, key, kept];
    return isNegated(operator) ? [operator, key, [neverOf(operator)]] : falseOf(operator, key);
  });
}

/** Whether a text has a variable that has no single value and no default. */
function isUnresolvable(it: Case, text: string): boolean {
  const keys = new Map([...it.context].map(([k, v]) => [k.toLowerCase(), v]));
  return [...text.matchAll(/\$\{([^*?$}][^},]*)(,[^}]*)?\}/g)].some(
    ([, key = '', fallback]) => fallback === undefined && typeof keys.get(key.toLowerCase()) !== 'string',
  );
}

/** Whether AWS reads the request's resource as one that the pattern's last part covers, wildcards in the type included. */
const covers = (pattern: string, text: string): boolean =>
  new RegExp(
    `^${pattern
      .replace(/[.+^${}()|[\]\\]/g, '\\$&')
      .replaceAll('*', '.*')
      .replaceAll('?', '.')}$`,
    's',
  ).test(text);

function wildcardInType(it: Case): Case | undefined {
  const [, , , , , ...rest] = it.resource.split(':');
  return mapStatements(it, (s) => {
    const resources = s.resources?.map((r) => {
      const [arn, partition, service, region, account, ...last] = r.split(':');
      const pattern = last.join(':');
      if (last.length === 0 || !/^[^/]*[*?][^/]*\//.test(pattern) || !covers(pattern, rest.join(':')))
        return r;
      return [arn, partition, service, region, account, rest.join(':')].join(':');
    });
    return resources === undefined || resources.every((r, i) => r === s.resources?.[i])
      ? s
      : { ...s, resources };
  });
}

const NOBODY = ['AWS', 'arn:aws:iam::999999999999:user/nobody'] as const;
type Named = Exclude<Principals, '*'>[number];

const mapPrincipals = (it: Case, change: (named: Named) => Named): Case | undefined =>
  mapStatements(it, (s) => {
    if (s.principals === undefined || s.principals === '*') return s;
    const principals = s.principals.map(change);
    return principals.every((p, i) => p === (s.principals as Named[])[i]) ? s : { ...s, principals };
  });

/** Whether every level of the caller is listed. */
function isExcepted(principals: Principals, caller: Caller): boolean {
  if (principals === '*') return true;
  const named = new Set(principals.map(([type, value]) => `${type} ${value}`));
  const has = (value: string | undefined) => value !== undefined && named.has(`AWS ${value}`);
  if (caller.kind === 'service') return named.has(`Service ${caller.serviceName}`);
  if (caller.kind === 'web-identity') return named.has(`Federated ${caller.federatedProvider}`);
  if (named.has('AWS *')) return true;
  const account = has(caller.account) || has(`arn:aws:iam::${caller.account}:root`);
  if (!account) return false;
  const above = caller.roleArn ?? caller.userArn;
  return caller.kind === 'root' || (has(caller.arn) && (above === undefined || has(above)));
}

function isoOf(text: string): string {
  return /^\d+$/.test(text) ? new Date(Number(text) * 1000).toISOString() : text;
}

const isNumberText = /^-?\d+(\.\d+)?(e\d+)?$/;
const plainNumber = (text: string): string => (isNumberText.test(text) ? String(Number(text)) : text);

function plainAddress(text: string): string {
  const [host = '', bits] = text.split('/');
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(host)?.[1] ?? host;
  const known = mapped === '2001:DB8:0::1' ? '2001:db8::1' : mapped;
  return bits === undefined ? known : `${known}/${bits}`;
}
const withBits = (text: string): string =>
  text.includes('/') || !/^[\d.]+$|:/.test(text) ? text : `${text}/${text.includes(':') ? 128 : 32}`;

export const DIFFERENCES: readonly Difference[] = [
  {
    name: 'variables under version 2008-10-17 are text',
    source: 'IAM JSON policy elements: Version ("variables ... are treated as literal strings")',
    rewrite: (it) =>
      mapStatements(it, (s, version) => {
        if (version !== '2008-10-17') return s;
        const text = (v: string) => v.replaceAll('${', '${$}{');
        if (!JSON.stringify(s).includes('${')) return s;
        return {
          ...s,
          resources: s.resources?.map(text),
          conditions: s.conditions.map(([o, k, v]): Condition => [o, k, v.map(text)]),
        };
      }),
  },
  {
    name: '${*}, ${?} and ${$} stand for the characters also where there are no wildcards',
    source: 'Policy variables: special characters ("used ... as predefined policy variables")',
    rewrite: (it) =>
      mapConditions(it, (c, version) => {
        if (version === '2008-10-17' || !/^String(Not)?Equals/.test(baseOf(c[0]))) return c;
        const values = c[2].map((v) => v.replace(/\$\{([*?$])\}/g, '$1'));
        return values.every((v, i) => v === c[2][i]) ? c : [c[0], c[1], values];
      }),
  },
  {
    name: 'a pattern with fewer than six parts that ends in * covers the parts it leaves out',
    source:
      'IAM accepts such patterns; the oracle never matches them in NotResource and resource control policies',
    rewrite: (it) => {
      const isShort = (r: string) => /^arn:[^:]*(:[^:]*){0,3}\*$/.test(r);
      const long = (r: string) =>
        isShort(r) ? [...r.split(':'), '*', '*', '*', '*'].slice(0, 6).join(':') : r;
      return mapStatements(it, (s) =>
        s.resources?.some(isShort) ? { ...s, resources: s.resources.map(long) } : s,
      );
    },
  },
  {
    name: 'Deny with NotResource applies when a variable in it has no value',
    source:
      'Policy variables: no value ("matches no resource"), and so none is excepted; an Allow then allows nothing',
    rewrite: (it) =>
      mapStatements(it, (s) => {
        if (!s.notResource || s.effect === 'Allow' || !s.resources?.some((r) => isUnresolvable(it, r)))
          return s;
        return {
          ...s,
          resources: s.resources.map((r) =>
            isUnresolvable(it, r) ? 'arn:never:never:never:never:x/never' : r,
          ),
        };
      }),
  },
  {
    name: '0.0.0.0/0 is every IPv4 address',
    source: 'IP address condition operators (RFC 4632); the oracle computes its mask as /32',
    rewrite: (it) =>
      mapConditions(it, (c) =>
        /IpAddress/.test(c[0]) && c[2].includes('0.0.0.0/0')
          ? [c[0], c[1], [...c[2].filter((v) => v !== '0.0.0.0/0'), '0.0.0.0/1', '128.0.0.0/1']]
          : c,
      ),
  },
  {
    name: 'a web identity needs only the trust policy, in every account',
    source: 'Evaluation logic; AssumeRoleWithWebIdentity is called without credentials of an account',
    rewrite: (it) =>
      it.caller.kind === 'web-identity' && it.resourceAccount !== it.caller.account
        ? { ...it, resourceAccount: it.caller.account }
        : undefined,
  },
  {
    name: 'a key with an empty set of values counts as absent',
    source: 'Single-valued vs. multivalued context keys ("resolves to a null dataset"); Null operator',
    rewrite: (it) => {
      const context = new Map([...it.context].filter(([, v]) => typeof v === 'string' || v.length > 0));
      return context.size < it.context.size ? { ...it, context } : undefined;
    },
  },
  {
    name: 'IfExists with ForAnyValue holds for an absent key',
    source:
      'Condition operators: ...IfExists ("If the key is not present, evaluate the condition element as true")',
    rewrite: (it) =>
      mapConditions(it, (c) => (/^ForAny.*IfExists$/.test(c[0]) && !has(it, c[1]) ? 'true' : c)),
  },
  {
    name: 'a negated operator without set operator on a multivalued key',
    source: 'Not documented; we ask that no value is equal, which for a Deny errs on the side of denying',
    rewrite: (it) =>
      mapConditions(it, (c) =>
        isNegated(c[0]) && !c[0].startsWith('For') && isList(it, c[1])
          ? [`ForAllValues:${c[0]}`, c[1], c[2]]
          : c,
      ),
  },
  {
    name: 'a negated operator holds against a variable that has no value',
    source: 'Policy variables: variables with no value ("negated condition operators ... match")',
    rewrite: (it) =>
      mapConditions(it, (c) => {
        if (!isNegated(c[0]) || !c[2].some((v) => isUnresolvable(it, v))) return c;
        return [c[0], c[1], c[2].map((v) => (isUnresolvable(it, v) ? neverOf(c[0]) : v))];
      }),
  },
  {
    name: 'an empty value of a variable is a value',
    source: 'Policy variables ("if the key is not present" is what makes a default apply)',
    rewrite: (it) => {
      const empty = [...it.context].filter(([, v]) => v === '').map(([k]) => k);
      const text = (v: string) => empty.reduce((t, key) => t.replaceAll(`\${${key}}`, ''), v);
      if (empty.length === 0) return undefined;
      return mapStatements(it, (s) => {
        const resources = s.resources?.map(text);
        const conditions = s.conditions.map(([o, k, v]): Condition => [o, k, v.map(text)]);
        return JSON.stringify([resources, conditions]) === JSON.stringify([s.resources, s.conditions])
          ? s
          : { ...s, resources, conditions };
      });
    },
  },
  {
    name: 'a value of the wrong type equals nothing, so the negated operator holds',
    source: 'Condition operators: negated matching ("if no value matches, the condition is true")',
    rewrite: valuesOfWrongType,
  },
  {
    name: 'numbers in exponent notation',
    source: 'JSON numbers; the oracle reads 1e1 as 1 and "10 days" as 10',
    rewrite: (it) =>
      both(
        it,
        (x) => mapValues(x, /Numeric/, plainNumber),
        (x) => mapContext(x, /Number|Age$/, plainNumber),
      ),
  },
  {
    name: 'epoch seconds are seconds',
    source:
      'Date condition operators ("or in epoch (UNIX) time"); the oracle compares them with milliseconds',
    rewrite: (it) =>
      both(
        it,
        (x) => mapValues(x, /Date/, isoOf),
        (x) => mapContext(x, /Time$/, isoOf),
      ),
  },
  {
    name: 'addresses are compared by value, not by spelling',
    source: 'IP address condition operators; RFC 4291 2.2. A bare IPv4 address never equals an IPv6 one',
    rewrite: (it) =>
      both(
        it,
        (x) => mapValues(x, /IpAddress/, (v) => withBits(plainAddress(v))),
        (x) => mapContext(x, /Ip$/, plainAddress),
      ),
  },
  {
    name: 'binary values are compared by their bytes',
    source:
      'Binary condition operators ("compares ... byte by byte against a base-64 encoded representation")',
    rewrite: (it) =>
      both(
        it,
        (x) => mapValues(x, /Binary/, (v) => v.replace(/=+$/, '')),
        (x) => mapContext(x, /Binary$/, (v) => v.replace(/=+$/, '')),
      ),
  },
  {
    name: 'a lone * is every ARN',
    source: 'ARN condition operators; published policies compare aws:PrincipalArn with "*"',
    rewrite: (it) => mapValues(it, /Arn/, (v) => (v === '*' ? 'arn:*:*:*:*:*' : v)),
  },
  {
    name: 'regions in ARNs are case-sensitive',
    source: 'IAM identifiers: ARNs are case-sensitive',
    rewrite: (it) =>
      mapStatements(it, (s) =>
        s.resources?.some((r) => r.includes(':US-EAST-1:'))
          ? { ...s, resources: s.resources.map((r) => r.replace(':US-EAST-1:', ':nowhere-1:')) }
          : s,
      ),
  },
  {
    name: 'wildcards in the type part of a resource',
    source:
      'Amazon Resource Names: not allowed when written by AWS tools, yet matched as any text; the oracle matches nothing',
    rewrite: wildcardInType,
  },
  {
    name: 'a role is named by its whole ARN, path included',
    source: 'AWS JSON policy elements: Principal; the oracle compares only the name behind the path',
    rewrite: (it) =>
      mapPrincipals(it, (named) =>
        named[1].includes(':role/') && named[1] !== it.caller.roleArn ? NOBODY : named,
      ),
  },
  {
    name: 'nothing of type AWS names a service or a web identity',
    source: 'AWS JSON policy elements: Principal (All principals); services are named by Service only',
    rewrite: (it) => {
      if (it.caller.kind !== 'service' && it.caller.kind !== 'web-identity') return undefined;
      return mapPrincipals(it, (named) => (named[0] === 'AWS' ? NOBODY : named));
    },
  },
  {
    name: 'NotPrincipal excepts a caller only if every level of it is listed',
    source: 'AWS JSON policy elements: NotPrincipal ("must also include the account ARN")',
    rewrite: (it) =>
      mapStatements(it, (s) =>
        s.notPrincipal && s.principals !== undefined && !isExcepted(s.principals, it.caller)
          ? { ...s, notPrincipal: false, principals: '*' }
          : s,
      ),
  },
  {
    name: 'a session is not limited by its session policy where a resource policy names the session itself',
    source:
      'Policies and permissions: session policies ("the ARN of the session as a principal ... not limited")',
    rewrite: (it) => {
      const { attached, session, caller } = it;
      if (session === undefined || attached === undefined || caller.account !== it.resourceAccount)
        return undefined;
      const names = ({ principals, notPrincipal }: CaseStatement): boolean =>
        notPrincipal || principals === '*' || !!principals?.some(([, v]) => v === '*' || v === caller.arn);
      const granting = attached.statements.filter((s) => s.effect === 'Allow' && names(s));
      if (granting.length === 0) return undefined;
      // What the session policy denies stays denied; and nothing but the grant itself may allow.
      const denies = session.statements.filter((s) => s.effect === 'Deny');
      const statements = [...attached.statements.filter((s) => s.effect === 'Deny'), ...granting];
      return {
        ...it,
        identity: it.identity.map((p) => ({
          ...p,
          statements: p.statements.filter((s) => s.effect === 'Deny'),
        })),
        attached: { ...attached, statements },
        session: undefined,
        boundary: it.boundary,
        endpoint: it.endpoint,
        serviceControl: it.serviceControl,
        resourceControl: [...it.resourceControl, [{ ...session, statements: denies }]],
      };
    },
  },
  {
    name: 'nothing but a trust policy lets a role be assumed',
    source:
      'Evaluation logic: IAM role trust policies and KMS keys are exceptions (an explicit Allow is needed)',
    rewrite: (it) =>
      it.trust && it.attached === undefined
        ? { ...it, attached: { version: '2012-10-17', statements: [] } }
        : undefined,
  },
  {
    name: 'root cannot assume a role',
    source: 'AssumeRole ("You cannot use AWS account root user credentials to call AssumeRole")',
    rewrite: (it) =>
      it.trust && it.caller.kind === 'root' && it.attached
        ? {
            ...it,
            attached: {
              ...it.attached,
              statements: it.attached.statements.filter((s) => s.effect === 'Deny'),
            },
          }
        : undefined,
  },
  {
    name: 'a federated user without session policy has no permissions of its own',
    source: 'GetFederationToken ("if you do not pass a policy, the resulting session has no permissions")',
    rewrite: (it) =>
      it.caller.kind === 'federated-user' && it.session === undefined
        ? { ...it, session: { version: '2012-10-17', statements: [] } }
        : undefined,
  },
  {
    name: 'GetSessionToken needs no permission',
    source: 'GetSessionToken: permissions ("No permissions are required")',
    rewrite: (it) =>
      it.action === 'sts:GetSessionToken' && it.caller.kind !== 'anonymous'
        ? { ...it, action: 'sts:GetCallerIdentity' }
        : undefined,
  },
];
