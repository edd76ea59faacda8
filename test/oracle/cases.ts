/**
 * Requests with every policy that may have a say, drawn from a seeded generator: small vocabularies and values that nearly
 * match, so that allows, explicit and implicit denials by every type of policy all occur often.
 */
import type { Caller } from '../../src/policy/policy.ts';

export type Condition = readonly [operator: string, key: string, values: readonly string[]];

export interface CaseStatement {
  readonly effect: 'Allow' | 'Deny';
  readonly notAction: boolean;
  readonly actions: readonly string[];
  /** Undefined: no Resource element (policies attached to a resource). */
  readonly resources: readonly string[] | undefined;
  readonly notResource: boolean;
  /** Undefined: no Principal element (everything but policies attached to a resource). */
  readonly principals: Principals | undefined;
  readonly notPrincipal: boolean;
  /** Each key once, so a rewritten operator never meets its like. */
  readonly conditions: readonly Condition[];
}

export type Principals = '*' | readonly (readonly [type: 'AWS' | 'Service' | 'Federated', value: string])[];

export interface CasePolicy {
  readonly version: '2012-10-17' | '2008-10-17';
  readonly statements: readonly CaseStatement[];
}

export interface Case {
  readonly caller: Caller;
  readonly action: string;
  readonly resource: string;
  readonly resourceAccount: string;
  readonly trust: boolean;
  readonly context: ReadonlyMap<string, string | readonly string[]>;
  readonly identity: readonly CasePolicy[];
  readonly boundary: CasePolicy | undefined;
  readonly session: CasePolicy | undefined;
  readonly attached: CasePolicy | undefined;
  /** One list per level. */
  readonly serviceControl: readonly (readonly CasePolicy[])[];
  readonly resourceControl: readonly (readonly CasePolicy[])[];
  readonly endpoint: CasePolicy | undefined;
}

const A = '111122223333';
const B = '444455556666';
const PROVIDER = `arn:aws:iam::${A}:oidc-provider/token.example.com`;

export const CALLERS: readonly Caller[] = [
  { kind: 'user', account: A, arn: `arn:aws:iam::${A}:user/dev/bob`, id: 'AIDAEXAMPLEBOB000000A' },
  { kind: 'user', account: B, arn: `arn:aws:iam::${B}:user/amy`, id: 'AIDAEXAMPLEAMY000000B' },
  {
    kind: 'role-session',
    account: A,
    arn: `arn:aws:sts::${A}:assumed-role/builder/run1`,
    id: 'AROAEXAMPLEBUILDER00A:run1',
    roleArn: `arn:aws:iam::${A}:role/ci/builder`,
  },
  {
    kind: 'role-session',
    account: B,
    arn: `arn:aws:sts::${B}:assumed-role/puller/i-1`,
    id: 'AROAEXAMPLEPULLER000B:i-1',
    roleArn: `arn:aws:iam::${B}:role/puller`,
  },
  {
    kind: 'federated-user',
    account: A,
    arn: `arn:aws:sts::${A}:federated-user/fred`,
    id: `${A}:fred`,
    userArn: `arn:aws:iam::${A}:user/fred`,
  },
  { kind: 'root', account: A, arn: `arn:aws:iam::${A}:root`, id: A },
  { kind: 'root', account: B, arn: `arn:aws:iam::${B}:root`, id: B },
  {
    kind: 'service',
    account: 'service',
    arn: 'ecs-tasks.amazonaws.com',
    id: 'ecs-tasks.amazonaws.com',
    serviceName: 'ecs-tasks.amazonaws.com',
  },
  { kind: 'web-identity', account: A, arn: PROVIDER, id: 'web', federatedProvider: PROVIDER },
  { kind: 'anonymous', account: 'anonymous', arn: 'anonymous', id: 'anonymous' },
];
const CALLER_WEIGHTS = [5, 4, 5, 4, 3, 1, 1, 1, 1, 1];

/** Numbers in [0, 1) that depend on nothing but the seed (mulberry32). */
export function makeRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

interface Family {
  readonly operators: readonly string[];
  readonly keys: readonly string[];
  /** What requests have and policies ask for. */
  readonly values: readonly string[];
  /** What only policies ask for. */
  readonly patterns: readonly string[];
}

const TEXTS = ['bob', 'Bob', 'amy', 'blue', 'app', 'a*p', ''];
const FAMILIES: readonly Family[] = [
  {
    operators: [
      'StringEquals',
      'StringNotEquals',
      'StringEqualsIgnoreCase',
      'StringNotEqualsIgnoreCase',
      'StringLike',
      'StringNotLike',
    ],
    keys: [
      'aws:username',
      'aws:PrincipalTag/team',
      'aws:ResourceTag/Team',
      'ecr:ResourceTag/env',
      'aws:absent',
    ],
    values: TEXTS,
    patterns: [
      'b*',
      '?ob',
      '*',
      'bo?',
      '${aws:username}',
      '${aws:PrincipalTag/team}',
      '${aws:PrincipalTag/team}*',
      "${aws:absent, 'blue'}",
      '${aws:absent}',
      'a${*}p',
      '${aws:TagKeys}',
    ],
  },
  {
    operators: [
      'NumericEquals',
      'NumericNotEquals',
      'NumericLessThan',
      'NumericLessThanEquals',
      'NumericGreaterThan',
      'NumericGreaterThanEquals',
    ],
    keys: ['aws:MultiFactorAuthAge', 'aws:Number'],
    values: ['0', '10', '10.0', '-3', '2.5', '300', '1e1', '10 days'],
    patterns: ['11', 'ten'],
  },
  {
    operators: [
      'DateEquals',
      'DateNotEquals',
      'DateLessThan',
      'DateLessThanEquals',
      'DateGreaterThan',
      'DateGreaterThanEquals',
    ],
    keys: ['aws:CurrentTime', 'aws:EpochTime', 'aws:TokenIssueTime'],
    values: [
      '2026-01-01T00:00:00Z',
      '2026-01-01',
      '2026-06-30T12:00:00+02:00',
      '2026-06-30T10:00:00.000Z',
      '1767225600',
      '1782813600',
      'tomorrow',
    ],
    patterns: ['2030-01-01T00:00:00Z', '2020-01-01', '1500000000'],
  },
  {
    operators: ['Bool'],
    keys: ['aws:SecureTransport', 'aws:MultiFactorAuthPresent'],
    values: ['true', 'false'],
    patterns: ['True', 'FALSE', 'yes'],
  },
  {
    operators: ['BinaryEquals'],
    keys: ['aws:Binary'],
    values: ['QmluYXJ5', 'YQ==', 'YQ'],
    patterns: ['YWE='],
  },
  {
    operators: ['IpAddress', 'NotIpAddress'],
    keys: ['aws:SourceIp', 'aws:VpcSourceIp'],
    values: [
      '10.1.2.3',
      '192.0.2.7',
      '2001:db8::1',
      '2001:DB8:0::1',
      '203.0.113.255',
      '::ffff:10.1.2.3',
      'unknown',
    ],
    patterns: [
      '10.0.0.0/8',
      '192.0.2.0/24',
      '2001:db8::/32',
      '0.0.0.0/0',
      '::/0',
      '192.0.2.7/32',
      '10.1.2.3/31',
    ],
  },
  {
    operators: ['ArnEquals', 'ArnLike', 'ArnNotEquals', 'ArnNotLike'],
    keys: ['aws:PrincipalArn', 'aws:SourceArn'],
    values: [
      `arn:aws:iam::${A}:user/dev/bob`,
      `arn:aws:iam::${A}:role/ci/builder`,
      `arn:aws:iam::${B}:role/puller`,
      'arn:aws:s3:::bucket/a:b',
      'no-arn',
    ],
    patterns: [
      `arn:aws:iam::${A}:*`,
      'arn:aws:iam::*:role/*',
      'arn:*:iam::*:user/${aws:username}',
      'arn:aws:iam::4444????6666:*',
      'arn:aws:s3:::*',
      'arn:aws:iam::*',
      '*',
    ],
  },
];
const LISTS: Family = {
  operators: FAMILIES[0]?.operators ?? [],
  keys: ['aws:TagKeys', 'aws:CalledVia'],
  values: TEXTS.slice(0, 6),
  patterns: ['b*', '*', 'bo?', '${aws:username}'],
};

const REPOSITORIES = ['app', 'bob', 'team/app', 'blue-api', 'repo1'];
const ECR_ACTIONS = ['ecr:PutImage', 'ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer', 'ecr:DescribeImages'];

const ACTIONS = [
  ...ECR_ACTIONS,
  'ecr:GetAuthorizationToken',
  'iam:GetRole',
  'sts:GetCallerIdentity',
  'sts:GetSessionToken',
];
const ACTION_WEIGHTS = [8, 8, 4, 4, 3, 3, 0.2, 0.2];

/** Everything one case needs of chance. */
function chance(random: () => number) {
  const one = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  return {
    one,
    odds: (probability: number): boolean => random() < probability,
    count: (min: number, max: number): number => min + Math.floor(random() * (max - min + 1)),
    some: <T>(list: readonly T[], max: number): T[] => {
      const size = 1 + Math.floor(random() * max);
      return [...new Set(Array.from({ length: size }, () => one(list)))];
    },
    weighted: <T>(list: readonly T[], weights: readonly number[]): T => {
      let at = random() * weights.reduce((a, b) => a + b, 0);
      return list[weights.findIndex((w) => (at -= w) < 0)] as T;
    },
  };
}
type Chance = ReturnType<typeof chance>;

function drawContext(c: Chance, caller: Caller): Map<string, string | readonly string[]> {
  const context = new Map<string, string | readonly string[]>();
  for (const { keys, values } of FAMILIES) {
    for (const key of keys) if (key !== 'aws:absent' && c.odds(0.6)) context.set(key, c.one(values));
  }
  if (c.odds(0.7)) context.set('aws:PrincipalArn', caller.roleArn ?? caller.arn);
  for (const key of LISTS.keys) {
    if (c.odds(0.6)) context.set(key, c.odds(0.1) ? [] : c.some(LISTS.values, 3));
  }
  return context;
}

function drawOperator(c: Chance, family: Family, list: boolean): string {
  if (c.odds(0.06)) return 'Null';
  const base = c.one(family.operators);
  const set = c.odds(list ? 0.85 : 0.06) ? c.one(['ForAllValues:', 'ForAnyValue:']) : '';
  return `${set}${base}${c.odds(0.15) ? 'IfExists' : ''}`;
}

function drawConditions(c: Chance, context: Case['context']): Condition[] {
  const conditions = new Map<string, Condition>();
  for (let n = c.weighted([0, 1, 2, 3], [9, 6, 3, 1]); n > 0; n--) {
    const list = c.odds(0.2);
    // WHY: texts have the most operators, so they are drawn as often as two other families together.
    const family = list ? LISTS : c.one([...FAMILIES, FAMILIES[0] as Family]);
    const key = c.one(family.keys);
    const operator = drawOperator(c, family, list);
    if (operator === 'Null') {
      conditions.set(key, ['Null', key, c.some(['true', 'false'], 1)]);
      continue;
    }
    const values = c.some(c.odds(0.5) ? family.values : [...family.patterns, ...family.values], 3);
    const actual = context.get(key);
    if (c.odds(0.45) && actual !== undefined && actual.length > 0)
      values.push(...(typeof actual === 'string' ? [actual] : actual));
    conditions.set(key, [operator, key, [...new Set(values)]]);
  }
  return [...conditions.values()];
}

function drawActions(c: Chance, action: string): string[] {
  if (c.odds(0.7)) {
    const [service = '', name = ''] = action.split(':');
    const near = [
      '*',
      `${service}:*`,
      action,
      action.toLowerCase(),
      action.toUpperCase(),
      `${service}:${name.slice(0, 3)}*`,
      `${service}:*${name.slice(-5)}`,
      `${service}:${name.slice(0, -1)}?`,
      `${service}:?${name.slice(1)}`,
    ];
    return c.some(near, 2);
  }
  return c.some(
    [...ECR_ACTIONS, 's3:*', 'ecr:Get*', 'sts:AssumeRole', 'iam:PassRole', 'ecr:?utImage', 'ecr:Put'],
    3,
  );
}

function drawResources(
  c: Chance,
  { resource, resourceAccount }: Pick<Case, 'resource' | 'resourceAccount'>,
): string[] {
  const [arn, partition, service, region, account] = resource.split(':');
  const rest = resource.split(':').slice(5).join(':');
  const [type, name] = [rest.slice(0, rest.indexOf('/') + 1), rest.slice(rest.indexOf('/') + 1)];
  const head = `${arn}:${partition}:${service}:${region}:${account}`;
  const near = [
    '*',
    resource,
    `${head}:${type}*`,
    `${head}:*`,
    `arn:aws:${service}:*:*:${type}${name}`,
    `arn:aws:${service}:*:${resourceAccount}:${type}*`,
    `${head}:${type}${name.slice(0, 2)}*`,
    `${head}:${type}${name.slice(0, -1)}?`,
    `${head}:${type}*${name.slice(-2)}`,
    `arn:*:${service}:*:${account}:${type}*`,
    `arn:aws:${service}:*`,
    'arn:aws:*',
    `${head}:${type.slice(0, -2)}*/${name}`,
    `${head}:${type}\${aws:username}`,
    `${head}:${type}\${aws:PrincipalTag/team}*`,
    `${head}:${type}\${aws:absent, 'app'}`,
    `${head}:${type}\${aws:absent}`,
  ];
  const far = [
    `arn:aws:ecr:us-east-1:${B}:repository/other`,
    `arn:aws:ecr:eu-west-1:${A}:repository/app`,
    `arn:aws:ecr:US-EAST-1:${A}:repository/*`,
    'arn:aws:s3:::bucket/*',
    `${head}:${type}x${name}`,
    `${head}:${type}${name}/`,
    `${head}:${type}${name.toUpperCase()}`,
  ];
  return resource === '*' ? c.some(['*', '*', ...far], 2) : c.some(c.odds(0.8) ? near : far, 2);
}

function drawPrincipals(c: Chance, caller: Caller): Principals {
  if (c.odds(0.12)) return '*';
  const { account } = caller;
  const session = caller.kind === 'role-session';
  const own: (readonly ['AWS' | 'Service' | 'Federated', string])[] =
    caller.kind === 'service'
      ? [['Service', caller.serviceName ?? '']]
      : caller.kind === 'web-identity'
        ? [['Federated', PROVIDER]]
        : caller.kind === 'anonymous'
          ? [['AWS', '*']]
          : [
              ['AWS', account],
              ['AWS', `arn:aws:iam::${account}:root`],
              ['AWS', caller.arn],
              ['AWS', caller.roleArn ?? caller.userArn ?? caller.arn],
              ['AWS', '*'],
            ];
  const others: (readonly ['AWS' | 'Service' | 'Federated', string])[] = [
    ['AWS', B],
    ['AWS', A],
    ['AWS', `arn:aws:iam::${A}:user/dev/bobby`],
    ['AWS', `arn:aws:iam::${A}:user/DEV/bob`],
    ['AWS', session ? `arn:aws:iam::${account}:role/elsewhere/builder` : `arn:aws:iam::${A}:role/x`],
    ['AWS', `arn:aws:sts::${A}:assumed-role/builder/run2`],
    ['AWS', `arn:aws:sts::${A}:federated-user/frida`],
    ['AWS', '*'],
    ['Service', 'lambda.amazonaws.com'],
    ['Federated', `${PROVIDER}/other`],
  ];
  return [...c.some(c.odds(0.7) ? own : others, 2), ...(c.odds(0.25) ? c.some(others, 1) : [])];
}

type Shape = 'plain' | 'attached' | 'trust' | 'resource-control';

function drawStatement(c: Chance, it: Omit<Case, keyof Policies>, shape: Shape): CaseStatement {
  const effect = shape === 'resource-control' || c.odds(0.13) ? 'Deny' : 'Allow';
  // Denials that hit everything would drown the rest.
  const conditions = drawConditions(c, it.context);
  const attached = shape === 'attached' || shape === 'trust';
  return {
    effect,
    notAction: shape !== 'trust' && c.odds(0.08),
    actions:
      shape === 'trust' && c.odds(0.8)
        ? ['sts:AssumeRole', 'sts:AssumeRoleWithWebIdentity']
        : drawActions(c, it.action),
    resources: shape === 'trust' || (attached && c.odds(0.6)) ? undefined : drawResources(c, it),
    notResource: c.odds(0.08),
    principals: attached ? drawPrincipals(c, it.caller) : shape === 'resource-control' ? '*' : undefined,
    notPrincipal: attached && c.odds(0.08),
    conditions,
  };
}

const FULL: CasePolicy = {
  version: '2012-10-17',
  statements: [
    {
      effect: 'Allow',
      notAction: false,
      actions: ['*'],
      resources: ['*'],
      notResource: false,
      principals: undefined,
      notPrincipal: false,
      conditions: [],
    },
  ],
};

type Policies = Pick<
  Case,
  'identity' | 'boundary' | 'session' | 'attached' | 'serviceControl' | 'resourceControl' | 'endpoint'
>;

function drawPolicies(c: Chance, it: Omit<Case, keyof Policies>): Policies {
  const { kind } = it.caller;
  const policy = (shape: Shape = 'plain'): CasePolicy => {
    if (shape === 'plain' && c.odds(0.12)) return FULL;
    const version = c.odds(0.04) ? '2008-10-17' : '2012-10-17';
    return { version, statements: Array.from({ length: c.count(1, 3) }, () => drawStatement(c, it, shape)) };
  };
  const list = (count: number) => Array.from({ length: count }, () => policy());
  const levels = (draw: () => CasePolicy[]) => Array.from({ length: c.count(1, 2) }, draw);
  const own = kind === 'user' || kind === 'role-session' || kind === 'federated-user';
  const controlled = own || kind === 'root';
  const attached = it.trust
    ? c.odds(0.95)
    : it.action.startsWith('ecr:') && it.resource !== '*' && c.odds(0.6);
  return {
    identity: own ? list(c.weighted([0, 1, 2], [1, 5, 3])) : [],
    boundary: own && c.odds(0.25) ? policy() : undefined,
    session:
      (kind === 'role-session' && c.odds(0.3)) || (kind === 'federated-user' && c.odds(0.85))
        ? policy()
        : undefined,
    attached: attached ? policy(it.trust ? 'trust' : 'attached') : undefined,
    serviceControl:
      controlled && c.odds(0.25)
        ? levels(() => (c.odds(0.6) ? [FULL, ...list(c.count(0, 1))] : list(c.count(0, 2))))
        : [],
    resourceControl: c.odds(0.2) ? levels(() => (c.odds(0.7) ? [policy('resource-control')] : [])) : [],
    endpoint: c.odds(0.1) ? policy() : undefined,
  };
}

function drawRequest(c: Chance, caller: Caller, trust: boolean): Omit<Case, keyof Policies> {
  const resourceAccount = c.odds(0.65) ? A : B;
  const web = caller.kind === 'web-identity';
  const action = trust
    ? `sts:AssumeRole${web ? 'WithWebIdentity' : ''}`
    : c.weighted(ACTIONS, ACTION_WEIGHTS);
  const resource =
    trust || action.startsWith('iam:')
      ? `arn:aws:iam::${resourceAccount}:role/ci/target`
      : action.startsWith('sts:') || action === 'ecr:GetAuthorizationToken'
        ? '*'
        : `arn:aws:ecr:us-east-1:${resourceAccount}:repository/${c.one(REPOSITORIES)}`;
  const owner = resource === '*' && caller.account.length === 12 ? caller.account : resourceAccount;
  return { caller, action, resource, resourceAccount: owner, trust, context: drawContext(c, caller) };
}

/**
 * One set of policies and `count` requests under it. The requests differ in their context; the first sets what the
 * policies are about, so most of the others stay with its action and resource.
 */
export function drawCases(random: () => number, count: number): Case[] {
  const c = chance(random);
  const caller = c.weighted(CALLERS, CALLER_WEIGHTS);
  const trust = caller.kind === 'web-identity' || c.odds(0.12);
  const first = drawRequest(c, caller, trust);
  const policies = drawPolicies(c, first);
  const cases: Case[] = [{ ...first, ...policies }];
  while (cases.length < count) {
    const other = c.odds(0.3) ? drawRequest(c, caller, trust) : { ...first, context: drawContext(c, caller) };
    cases.push({ ...other, ...policies });
  }
  return cases;
}
