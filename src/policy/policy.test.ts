import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { compileGlob, matchGlob } from './glob.ts';
import {
  compilePolicy,
  denialMessage,
  evaluate,
  formatPolicyDocument,
  policySizeOf,
  PolicySyntaxError,
  principalsNamed,
  replacePrincipals,
  validateIdentityPolicy,
  validateRegistryPolicy,
  validateRepositoryPolicy,
  validateTrustPolicy,
  type AccessRequest,
  type Caller,
  type NamedPolicy,
  type PolicySet,
} from './policy.ts';

const fixture = <T>(name: string): T =>
  JSON.parse(readFileSync(new URL(`../../test/fixtures/policy-${name}.json`, import.meta.url), 'utf8')) as T;

const callers = fixture<Record<string, Caller>>('callers');
const callerNamed = (name: string): Caller => {
  const caller = callers[name];
  assert.ok(caller, `no caller ${name}`);
  return caller;
};

const policyOf = (statements: unknown, version = '2012-10-17', name = 'p', arn?: string): NamedPolicy => ({
  policy: compilePolicy(JSON.stringify({ Version: version, Statement: statements })),
  name,
  arn,
});

interface EvaluationCase {
  name?: string;
  caller: string;
  action?: string;
  resource_arn?: string;
  resourceAccount?: string;
  trustPolicy?: boolean;
  context?: Record<string, string | string[]>;
  arns?: Record<string, string>;
  identity?: unknown;
  boundary?: unknown;
  session?: unknown;
  resource?: unknown;
  endpoint?: unknown;
  serviceControl?: unknown[];
  resourceControl?: unknown[];
}

const requestOf = (c: EvaluationCase): AccessRequest => {
  const resourceAccount = c.resourceAccount ?? '111122223333';
  return {
    caller: callerNamed(c.caller),
    action: c.action ?? 'ecr:PutImage',
    resource: c.resource_arn ?? `arn:aws:ecr:us-east-1:${resourceAccount}:repository/app`,
    resourceAccount,
    context: new Map(Object.entries(c.context ?? {})),
    trustPolicy: c.trustPolicy,
  };
};

const policiesOf = (c: EvaluationCase): PolicySet => {
  const one = (type: 'identity' | 'boundary' | 'session' | 'resource' | 'endpoint') =>
    c[type] === undefined ? undefined : policyOf(c[type], undefined, type, c.arns?.[type]);
  const list = (policy: NamedPolicy | undefined) => policy && [policy];
  const levels = (type: 'serviceControl' | 'resourceControl') =>
    c[type]?.map((level) =>
      Array.isArray(level) && level.length > 0 ? [policyOf(level, undefined, type, c.arns?.[type])] : [],
    );
  return {
    identity: list(one('identity')) ?? [],
    boundary: one('boundary'),
    session: list(one('session')),
    resource: one('resource'),
    endpoint: list(one('endpoint')),
    serviceControl: levels('serviceControl'),
    resourceControl: levels('resourceControl'),
  };
};

const text = (document: unknown): string =>
  typeof document === 'string' ? document : JSON.stringify(document);

describe('policy evaluation', () => {
  for (const c of fixture<{ cases: (EvaluationCase & { expect: [string, string] })[] }>('evaluation').cases) {
    it(c.name ?? '', () => {
      const decision = evaluate(requestOf(c), policiesOf(c));
      assert.deepEqual([decision.reason.outcome, decision.reason.policyType], c.expect);
      assert.equal(decision.allowed, c.expect[0] === 'allow');
      assert.equal(decision.explain().allowed, decision.allowed);
    });
  }

  it('judges repository and registry policy together', () => {
    const grant = policyOf({ Effect: 'Allow', Principal: '*', Action: 'ecr:*' }, undefined, 'repository');
    const deny = policyOf(
      { Effect: 'Deny', Principal: '*', Action: 'ecr:PutImage', Resource: '*' },
      undefined,
      'registry',
    );
    const request = requestOf({ caller: 'user' });
    assert.equal(evaluate(request, { identity: [], resource: [grant] }).allowed, true);
    const { reason } = evaluate(request, { identity: [], resource: [grant, deny] });
    assert.deepEqual([reason.outcome, reason.policy?.name], ['explicit-deny', 'registry']);
  });

  it('explains every statement of every policy', () => {
    const identity = policyOf(
      [
        { Sid: 'Wrong', Effect: 'Allow', Action: 's3:*', Resource: '*' },
        { Effect: 'Allow', Action: 'ecr:*', Resource: 'arn:aws:ecr:*:*:repository/other' },
        {
          Effect: 'Allow',
          Action: 'ecr:*',
          Resource: '*',
          Condition: { StringEquals: { 'aws:X': ['1', '2'] } },
        },
        { Effect: 'Allow', NotAction: 'ecr:*', Resource: '*' },
      ],
      undefined,
      'team',
      'arn:aws:iam::111122223333:policy/team',
    );
    const resource = policyOf(
      [
        { Effect: 'Allow', Principal: { AWS: '999999999999' }, Action: '*' },
        { Sid: 'Yes', Effect: 'Allow', Principal: { AWS: callerNamed('user').arn }, Action: '*' },
      ],
      undefined,
      'repository',
    );
    const decision = evaluate(requestOf({ caller: 'user', context: { 'aws:x': '3' } }), {
      identity: [identity],
      resource,
    });
    assert.deepEqual(decision.reason.statement, { index: 1, sid: 'Yes' });
    assert.equal(decision.reason.principalKind, 'user');
    const no = { sid: undefined, effect: 'Allow', matched: false };
    assert.deepEqual(decision.explain().policies, [
      {
        policyType: 'resource',
        name: 'repository',
        outcome: 'allow',
        statements: [
          { ...no, index: 0, mismatch: { element: 'Principal' } },
          { index: 1, sid: 'Yes', effect: 'Allow', matched: true, principalKind: 'user' },
        ],
      },
      {
        policyType: 'identity',
        name: 'team',
        arn: 'arn:aws:iam::111122223333:policy/team',
        outcome: 'neutral',
        statements: [
          { ...no, index: 0, sid: 'Wrong', mismatch: { element: 'Action' } },
          { ...no, index: 1, mismatch: { element: 'Resource' } },
          {
            ...no,
            index: 2,
            mismatch: {
              element: 'Condition',
              operator: 'StringEquals',
              key: 'aws:X',
              expected: ['1', '2'],
              actual: '3',
            },
          },
          { ...no, index: 3, mismatch: { element: 'NotAction' } },
        ],
      },
    ]);
  });
});

describe('denial messages', () => {
  const { cases } = fixture<{ cases: (EvaluationCase & { reason?: 'given'; message: string })[] }>('denials');
  for (const c of cases) {
    it(c.message, () => {
      const decision = evaluate(requestOf(c), policiesOf(c));
      assert.equal(decision.allowed, false);
      assert.equal(denialMessage(requestOf(c), decision, c.reason), c.message);
    });
  }
});

const allows = (statement: object, request: Partial<EvaluationCase>, version?: string): boolean => {
  const identity = policyOf({ Effect: 'Allow', Action: '*', Resource: '*', ...statement }, version);
  return evaluate(requestOf({ caller: 'user', ...request }), { identity: [identity] }).allowed;
};

const context = { 'aws:username': 'bob', 'aws:wild': 'a*c', 'aws:list': ['x', 'y'] };

describe('conditions', () => {
  type Case = [operator: string, values: unknown, actual: string | string[] | null, holds: boolean];
  // The numbers' spelling matters, so the policy text is cut from the file rather than parsed.
  const { cases } = fixture<{ cases: Case[] }>('conditions');
  for (const [operator, values, actual, holds] of cases) {
    const spelt = values === 1.5 ? '1.50' : JSON.stringify(values);
    it(`${operator} ${spelt} ${holds ? 'holds' : 'fails'} for ${JSON.stringify(actual)}`, () => {
      const source = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"${operator}":{"AWS:Test":${spelt}}}}}`;
      const present = actual === null ? {} : { 'aws:test': actual };
      const request = requestOf({ caller: 'user', context: { ...context, ...present } });
      const set = { identity: [{ policy: compilePolicy(source), name: 'p' }] };
      assert.equal(evaluate(request, set).allowed, holds);
    });
  }

  it('takes variables as text under 2008-10-17', () => {
    const Condition = { StringEquals: { 'aws:test': '${aws:username}' } };
    assert.equal(allows({ Condition }, { context: { ...context, 'aws:test': 'bob' } }, '2008-10-17'), false);
    assert.equal(allows({ Condition }, { context: { 'aws:test': '${aws:username}' } }, '2008-10-17'), true);
  });
});

describe('elements', () => {
  type Pair = [pattern: string, value: string, matches: boolean];
  const matching = fixture<{
    actions: Pair[];
    resources: Pair[];
    resourcesOf2008: Pair[];
    principals: [unknown, string, string | null][];
    notPrincipals: [unknown, string, boolean][];
  }>('matching');
  for (const [pattern, action, matches] of matching.actions) {
    it(`action ${pattern} ${matches ? 'is' : 'is not'} ${action}`, () => {
      assert.equal(allows({ Action: pattern }, { action }), matches);
      const denied = policyOf({ Effect: 'Allow', NotAction: pattern, Resource: '*' });
      assert.equal(evaluate(requestOf({ caller: 'user', action }), { identity: [denied] }).allowed, !matches);
    });
  }
  for (const version of ['2012-10-17', '2008-10-17']) {
    for (const [pattern, resource_arn, matches] of version === '2012-10-17'
      ? matching.resources
      : matching.resourcesOf2008) {
      it(`resource ${pattern} ${matches ? 'is' : 'is not'} ${resource_arn} (${version})`, () => {
        assert.equal(allows({ Resource: pattern }, { resource_arn, context }, version), matches);
      });
    }
  }
  for (const [Principal, caller, kind] of matching.principals) {
    it(`principal ${JSON.stringify(Principal)} names ${caller}: ${kind}`, () => {
      const resource = policyOf({ Effect: 'Allow', Principal, Action: '*' });
      const [explained] = evaluate(requestOf({ caller }), { identity: [], resource }).explain().policies;
      assert.equal(explained?.statements[0]?.principalKind ?? null, kind);
    });
  }
  for (const [NotPrincipal, caller, excepted] of matching.notPrincipals) {
    it(`${caller} ${excepted ? 'is' : 'is not'} excepted by ${JSON.stringify(NotPrincipal)}`, () => {
      const resource = policyOf({ Effect: 'Deny', NotPrincipal, Action: '*' });
      const { reason } = evaluate(requestOf({ caller }), { identity: [], resource });
      assert.equal(reason.outcome === 'explicit-deny', !excepted);
    });
  }
});

describe('validation', () => {
  type Expected = [document: unknown, message: string | null];
  const validation = fixture<{
    identity: Expected[];
    trust: Expected[];
    repository: [unknown, boolean][];
    registry: [unknown, 'V1' | 'V2', boolean][];
  }>('validation');
  for (const [kind, validate] of [
    ['identity', validateIdentityPolicy],
    ['trust', validateTrustPolicy],
  ] as const) {
    for (const [document, message] of validation[kind]) {
      it(`${kind}: ${text(document).slice(0, 200)}`, () =>
        assert.equal(validate(text(document)) ?? null, message));
    }
  }
  for (const [document, accepted] of validation.repository) {
    it(`repository: ${text(document)}`, () => {
      const said = validateRepositoryPolicy(
        text(document),
        'arn:aws:ecr:us-east-1:111122223333:repository/app',
      );
      assert.equal(said, accepted ? undefined : 'Invalid repository policy provided');
    });
  }
  for (const [document, scope, accepted] of validation.registry) {
    it(`registry ${scope}: ${text(document)}`, () => {
      const said = validateRegistryPolicy(text(document), scope);
      assert.equal(said, accepted ? undefined : 'Invalid registry policy provided');
    });
  }
});

describe('documents', () => {
  it('refuses what it does not know', () => {
    for (const source of ['{}', '[]', '{"Statement":{"Effect":"Allow","Action":"*","Conditon":{}}}']) {
      assert.throws(() => compilePolicy(source), PolicySyntaxError);
    }
    const nested = `{"Statement":${'['.repeat(100_000)}`;
    assert.throws(() => compilePolicy(nested), { problem: 'too-deep' });
    assert.throws(() => compilePolicy('{"Id":"a","Id":"b"}'), { problem: 'duplicate-key' });
    assert.throws(() => compilePolicy('{"\\u0049d":"a","Id":"b"}'), { problem: 'duplicate-key' });
  });

  it('is not confused by inherited names', () => {
    const source =
      '{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"__proto__":"a","constructor":"b"}}}}';
    const identity = [{ policy: compilePolicy(source), name: 'p' }];
    const request = requestOf({ caller: 'user' });
    assert.equal(evaluate(request, { identity }).allowed, false);
    const keys = new Map([
      ['__proto__', 'a'],
      ['constructor', 'b'],
    ]);
    assert.equal(evaluate({ ...request, context: keys }, { identity }).allowed, true);
  });

  it('lists the principals named, each once', () => {
    const { policy } = policyOf([
      {
        Effect: 'Allow',
        Principal: { AWS: ['123456789012', 'arn:aws:iam::123456789012:role/a/b'] },
        Action: '*',
      },
      { Effect: 'Deny', NotPrincipal: { AWS: '123456789012', Service: 'ec2.amazonaws.com' }, Action: '*' },
    ]);
    assert.deepEqual(principalsNamed(policy), [
      { type: 'AWS', value: '123456789012', form: 'account', account: '123456789012' },
      { type: 'AWS', value: 'arn:aws:iam::123456789012:role/a/b', form: 'role', account: '123456789012' },
      { type: 'Service', value: 'ec2.amazonaws.com', form: 'service', account: undefined },
    ]);
  });

  it('replaces principals and nothing else', () => {
    const source =
      '{"Statement":[{"Principal":{"AWS":["a","b"],"Service":"a"},"Action":"a","n":1.0},{"Principal":"*"}]}';
    const replaced = replacePrincipals(source, (type, value) => (type === 'AWS' ? `${value}!` : value));
    assert.equal(
      replaced,
      '{"Statement":[{"Principal":{"AWS":["a!","b!"],"Service":"a"},"Action":"a","n":1.0},{"Principal":"*"}]}',
    );
  });

  it('prints as Jackson does', () => {
    const source =
      '{"Version":"2008-10-17","Statement":[{"Sid":"a\\u001f/é","Action":["ecr:A","ecr:B"],"e":{},"l":[],"n":1.50},{"Effect":"Deny"}]}';
    assert.equal(
      formatPolicyDocument(source),
      `{
  "Version" : "2008-10-17",
  "Statement" : [ {
    "Sid" : "a\\u001F/é",
    "Action" : [ "ecr:A", "ecr:B" ],
    "e" : { },
    "l" : [ ],
    "n" : 1.50
  }, {
    "Effect" : "Deny"
  } ]
}`,
    );
    assert.throws(() => formatPolicyDocument('{'), PolicySyntaxError);
  });

  it('counts no white space', () => assert.equal(policySizeOf('{ "a" :\n\t"b c" }'), 10));
});

/** Recursion in the plainest form, to compare with. */
const naive = (pattern: string, value: string): boolean => {
  if (pattern === '') return value === '';
  if (pattern.startsWith('*'))
    return naive(pattern.slice(1), value) || (value !== '' && naive(pattern, value.slice(1)));
  return (
    value !== '' && (pattern[0] === '?' || pattern[0] === value[0]) && naive(pattern.slice(1), value.slice(1))
  );
};

const pick = <T>(...values: T[]) => fc.constantFrom(...values);
const few = <T>(...values: T[]) => fc.array(pick(...values), { minLength: 1, maxLength: 3 });
const condition = fc.dictionary(
  pick(
    'StringEquals',
    'StringNotLike',
    'ForAllValues:StringLike',
    'ForAnyValue:StringNotEquals',
    'IpAddressIfExists',
    'DateLessThan',
    'NumericEquals',
    'Null',
    'ArnLike',
    'Bool',
    'BinaryEquals',
  ),
  fc.dictionary(
    pick('aws:a', 'aws:b', '__proto__'),
    fc.oneof(fc.string(), few('a', 'b*', '${aws:a}', '10.0.0.0/8', 'true', '2026-01-01')),
  ),
  { maxKeys: 2 },
);
const statement = fc.record(
  {
    Effect: pick('Allow', 'Deny'),
    Action: few('*', 'ecr:*', 'ecr:PutImage', 's3:*', 'ecr:Get?'),
    Resource: few('*', 'arn:aws:ecr:*:*:repository/app', 'arn:aws:ecr:*:*:repository/${aws:a}', 'arn:*'),
    Principal: fc.oneof(
      pick('*'),
      fc.record({ AWS: few('*', '111122223333', ...Object.values(callers).map((c) => c.arn)) }),
    ),
    Condition: condition,
  },
  { requiredKeys: ['Effect', 'Action', 'Resource', 'Principal'] },
);
const statements = fc.array(statement, { minLength: 1, maxLength: 4 });
const withoutPrincipal = (list: readonly object[]) => list.map((s) => ({ ...s, Principal: undefined }));
const value = fc.oneof(
  fc.string(),
  pick('a', 'b', '10.1.1.1', 'true'),
  fc.array(pick('a', 'b'), { maxLength: 2 }),
);
const world = fc.record({
  caller: pick(...Object.keys(callers)),
  resourceAccount: pick('111122223333', '444455556666'),
  trustPolicy: fc.boolean(),
  context: fc.dictionary(pick('aws:a', 'aws:b', 'aws:c'), value),
  identity: statements.map(withoutPrincipal),
  boundary: fc.option(statements.map(withoutPrincipal), { nil: undefined }),
  session: fc.option(statements.map(withoutPrincipal), { nil: undefined }),
  resource: fc.option(statements, { nil: undefined }),
});
const decide = (c: EvaluationCase) => evaluate(requestOf(c), policiesOf(c));

describe('properties', () => {
  it('a glob equals the naive reference', () => {
    const letters = (alphabet: string) => fc.string({ unit: pick(...alphabet), maxLength: 9 });
    fc.assert(
      fc.property(letters('ab*?'), letters('ab'), (pattern, given) =>
        assert.equal(matchGlob(compileGlob(pattern), given), naive(pattern, given)),
      ),
      { numRuns: 3000 },
    );
  });

  it('a hostile glob takes no exponential time', () => {
    const given = 'a'.repeat(20_000);
    assert.equal(matchGlob(compileGlob(`${'*a'.repeat(5000)}*b`), given), false);
    assert.equal(matchGlob(compileGlob(`${'*a?'.repeat(3000)}b`), given), false);
  });

  it('a hostile document is read in linear time', () => {
    for (const part of ["${a, 'x}", '${a}', '${', '*a', ':', "}${a, '"]) {
      const Resource = `arn:aws:ecr:us-east-1:111122223333:${part.repeat(130_000 / part.length)}`;
      const source = JSON.stringify({
        Version: '2012-10-17',
        Statement: { Effect: 'Allow', Action: '*', Resource },
      });
      assert.equal(validateIdentityPolicy(source), undefined);
    }
  });

  it('adding a Deny never grants', () => {
    const place = pick('identity', 'boundary', 'session', 'resource') as fc.Arbitrary<'identity'>;
    fc.assert(
      fc.property(world, statement, place, (c, extra, type) => {
        if (c[type] === undefined) return;
        const added =
          type === 'identity' || c.resource === undefined ? { ...extra, Principal: undefined } : extra;
        const more = { ...c, [type]: [...c[type], { ...added, Effect: 'Deny' }] };
        assert.ok(!decide(more).allowed || decide(c).allowed);
      }),
    );
  });

  it('the order of statements never matters', () => {
    fc.assert(
      fc.property(world, (c) => {
        const turned = Object.fromEntries(
          Object.entries(c).map(([k, v]) => [k, Array.isArray(v) ? v.toReversed() : v]),
        ) as unknown as EvaluationCase;
        const [a, b] = [decide(c).reason, decide(turned).reason];
        assert.deepEqual([a.outcome, a.policyType], [b.outcome, b.policyType]);
      }),
    );
  });

  it('a boundary never grants', () => {
    fc.assert(
      fc.property(world, (c) =>
        assert.ok(!decide(c).allowed || decide({ ...c, boundary: undefined }).allowed),
      ),
    );
  });

  it('taking an Allow away never grants', () => {
    const place = pick('identity', 'boundary', 'session', 'resource') as fc.Arbitrary<'identity'>;
    fc.assert(
      fc.property(world, place, fc.nat(3), (c, type, index) => {
        const list = c[type] as unknown as { Effect: string }[] | undefined;
        if (list?.[index]?.Effect !== 'Allow') return;
        const neutral = { ...list[index], Effect: 'Deny', Condition: { Bool: { 'aws:never': 'true' } } };
        const less = { ...c, [type]: list.with(index, neutral) };
        assert.ok(!decide(less).allowed || decide(c).allowed);
      }),
    );
  });

  it('session policies and control policies only narrow', () => {
    fc.assert(
      fc.property(world, statements.map(withoutPrincipal), (c, level) => {
        const { allowed } = decide(c);
        assert.ok(allowed || !decide({ ...c, serviceControl: [level] }).allowed);
        assert.ok(allowed || !decide({ ...c, resourceControl: [level] }).allowed);
        // A federated user without session policy may do nothing, so there one can only add.
        if (c.caller !== 'federated') assert.ok(!allowed || decide({ ...c, session: undefined }).allowed);
      }),
    );
  });

  it('a policy decides as on its first request, however many came before, and as read statement by statement', () => {
    const actions = ['ecr:PutImage', 'ecr:GetX', 's3:GetObject', 'ecr:putimage', 'x', ''];
    fc.assert(
      fc.property(world, fc.array(pick(...actions), { minLength: 1, maxLength: 4 }), (c, asked) => {
        const warm = policiesOf(c);
        for (const action of asked) {
          const request = requestOf({ ...c, action });
          const [a, b] = [evaluate(request, warm), evaluate(request, policiesOf(c))];
          const told = ({ reason: { outcome, policyType, statement: by } }: typeof a) => [
            outcome,
            policyType,
            by,
          ];
          assert.deepEqual(told(a), told(b));
          const denies = a.explain().policies.some(({ outcome }) => outcome === 'deny');
          assert.equal(a.reason.outcome === 'explicit-deny', denies);
        }
      }),
    );
  });

  it('never throws and explains what it decided', () => {
    fc.assert(
      fc.property(world, (c) => {
        const decision = decide(c);
        const explanation = decision.explain();
        if (decision.reason.statement !== undefined) {
          const { policy, statement: decided, policyType } = decision.reason;
          const found = explanation.policies.find(
            (p) => p.name === policy?.name && p.policyType === policyType,
          );
          assert.equal(found?.statements[decided.index]?.matched, true);
        }
        if (!decision.allowed)
          assert.match(denialMessage(requestOf(c), decision), /^User: .* is not authorized to perform: /);
      }),
    );
  });

  it('validators answer any text', () => {
    const json = fc.oneof(
      fc.json(),
      fc.string(),
      statements.map((Statement) => JSON.stringify({ Statement })),
    );
    fc.assert(
      fc.property(json, (source) => {
        for (const validate of [validateIdentityPolicy, validateTrustPolicy]) {
          if (validate(source) === undefined) compilePolicy(source);
        }
        if (validateRepositoryPolicy(source, 'x') === undefined) compilePolicy(source);
      }),
    );
  });
});
