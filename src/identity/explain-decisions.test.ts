/** What is called the smallest change does allow the request, and nothing less does. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { compilePolicy, denialMessage, evaluate } from '../policy/policy.ts';
import type { AccessRequest, NamedPolicy, PolicySet } from '../policy/policy.ts';
import { LIMITS } from '../lib/limits.ts';
import { changesFor, fitDecision, recordDecision, showDecision, showMessage } from './explain-decisions.ts';
import type * as berth from '../model/berth-types.ts';

const OWN = '000000000000';
const OTHER = '111111111111';
const ACTION = 'ecr:BatchGetImage';
const ALLOW = { Effect: 'Allow', Action: ACTION, Resource: '*' };
const ELSE = { Effect: 'Allow', Action: 'ecr:ListImages', Resource: '*' };
const DENY = { Effect: 'Deny', Action: 'ecr:*', Resource: '*' };

type Texts = Record<
  'identity' | 'boundary' | 'session' | 'resource' | 'service-control',
  object[] | undefined
>;

function policy(name: string, statements: readonly object[]): NamedPolicy {
  const document = JSON.stringify({ Version: '2012-10-17', Statement: statements });
  return { name, policy: compilePolicy(document) };
}

function setOf(texts: Texts): PolicySet {
  const one = (type: keyof Texts): NamedPolicy | undefined =>
    texts[type] === undefined ? undefined : policy(type, texts[type]);
  const session = one('session');
  const control = one('service-control');
  return {
    identity: [policy('identity', texts.identity ?? [ELSE])],
    boundary: one('boundary'),
    session: session && [session],
    resource: one('resource'),
    serviceControl: control && [[control]],
  };
}

function requestBy(kind: 'user' | 'role-session', resourceAccount: string): AccessRequest {
  const role = `arn:aws:iam::${OWN}:role/node`;
  return {
    caller:
      kind === 'user'
        ? { kind, account: OWN, arn: `arn:aws:iam::${OWN}:user/ann`, id: 'AIDAAAAAAAAAAAAAAAAAA' }
        : {
            kind,
            account: OWN,
            arn: `arn:aws:sts::${OWN}:assumed-role/node/i-1`,
            id: 'AROAAAAAAAAAAAAAAAAAA:i-1',
            roleArn: role,
            roleId: 'AROAAAAAAAAAAAAAAAAAA',
          },
    action: ACTION,
    resource: `arn:aws:ecr:us-east-1:${resourceAccount}:repository/app`,
    resourceAccount,
    context: new Map(),
  };
}

/** The policies after a change. */
function apply(texts: Texts, change: berth.PolicyChange): Texts {
  const type = change.policyType as keyof Texts;
  const statements = texts[type] ?? [];
  if (change.kind !== 'narrow-deny') {
    return { ...texts, [type]: [...statements, JSON.parse(change.statement ?? '') as object] };
  }
  // Nothing is left of it, at its place so that the others keep their numbers.
  const narrowed = { ...statements[change.statementIndex ?? -1], Action: 'ecr:ListTagsForResource' };
  return { ...texts, [type]: statements.map((each, i) => (i === change.statementIndex ? narrowed : each)) };
}

const listOf = (first: object, ...others: object[]) => fc.subarray(others).map((some) => [first, ...some]);
const attached = (statement: object) => {
  const { Effect, Action } = statement as typeof ALLOW;
  return { Effect, Action, Principal: { AWS: OWN } };
};
const texts: fc.Arbitrary<Texts> = fc.record({
  identity: listOf(ELSE, ALLOW, DENY),
  boundary: fc.option(listOf(ELSE, ALLOW, DENY), { nil: undefined }),
  session: fc.option(listOf(ELSE, ALLOW, DENY), { nil: undefined }),
  resource: fc.option(listOf(attached(ELSE), attached(ALLOW), attached(DENY)), { nil: undefined }),
  'service-control': fc.option(listOf(ELSE, ALLOW, DENY), { nil: undefined }),
});

test('all changes together allow the request, and without one of them it stays denied', () => {
  fc.assert(
    fc.property(
      texts,
      fc.constantFrom('user', 'role-session'),
      fc.constantFrom(OWN, OTHER),
      (before, kind, resourceAccount) => {
        const request = requestBy(kind, resourceAccount);
        const decision = evaluate(request, setOf(before));
        if (decision.allowed) return;
        const changes = changesFor(recordDecision(request, decision));
        assert.ok(changes.length > 0);
        assert.ok(evaluate(request, setOf(changes.reduce(apply, before))).allowed, JSON.stringify(changes));
        for (const left of changes) {
          const others = changes.filter((each) => each !== left);
          assert.ok(!evaluate(request, setOf(others.reduce(apply, before))).allowed, JSON.stringify(left));
        }
      },
    ),
    { numRuns: 2000 },
  );
});

test('what proves something is not shown', () => {
  const trust = {
    Effect: 'Allow',
    Principal: { AWS: OWN },
    Action: 'sts:AssumeRole',
    Condition: { StringEquals: { 'sts:ExternalId': 'expected-id' } },
  };
  const request: AccessRequest = {
    ...requestBy('user', OWN),
    action: 'sts:AssumeRole',
    resource: `arn:aws:iam::${OWN}:role/node`,
    context: new Map([['sts:externalid', 'given-id']]),
    trustPolicy: true,
  };
  const decision = evaluate(request, { identity: [], resource: policy('trust policy', [trust]) });
  const shown = JSON.stringify(showDecision(recordDecision(request, decision), OWN));
  assert.match(shown, /sts:ExternalId/);
  assert.doesNotMatch(shown, /expected-id|given-id/);
});

test('the sentence names the service control policy to its own account only', () => {
  const request = requestBy('user', OTHER);
  const arn = `arn:aws:organizations::${OWN}:policy/o-berth/service_control_policy/secret-plan`;
  const serviceControl = [[{ ...policy('secret-plan', [DENY]), arn }]];
  const decision = evaluate(request, { identity: [policy('p', [ALLOW])], serviceControl });
  const message = denialMessage(request, decision);
  const record = recordDecision(request, decision);
  assert.ok(message.endsWith(` with an explicit deny in a service control policy: ${arn}`));
  assert.equal(showMessage(message, record, OWN), message);
  assert.equal(showMessage(message, record, OTHER), message.slice(0, -`: ${arn}`.length));
  assert.doesNotMatch(JSON.stringify(showDecision(record, OTHER)), /secret-plan/);
});

test('a record of many long policies fits into a row', () => {
  const statements = Array.from({ length: 60 }, (_, i) => ({
    Sid: `S${i}`,
    ...ALLOW,
    Condition: {
      StringEquals: { 'aws:PrincipalTag/a': Array.from({ length: 20 }, (__, j) => 'x'.repeat(90) + j) },
    },
  }));
  const identity = Array.from({ length: 10 }, (_, i) => policy(`p${i}`, statements));
  const request = requestBy('user', OWN);
  const record = recordDecision(request, evaluate(request, { identity }));
  assert.ok(JSON.stringify(record).length > LIMITS.denialCharactersMax);
  const fitted = fitDecision(record);
  assert.ok(JSON.stringify(fitted).length <= LIMITS.denialCharactersMax);
  assert.equal(fitted.policies[0]?.omitted, 60);
});
