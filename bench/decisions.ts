/**
 * Decisions, compiled and warm: how many a core makes in a second and what one costs, for requests as registries see them.
 * Needs nothing but the policy engine. Results are in docs/performance.md.
 *
 *   node bin/run.js bench/decisions.ts
 */
import {
  compilePolicy,
  evaluate,
  type AccessRequest,
  type Caller,
  type NamedPolicy,
  type PolicySet,
} from '../src/policy/policy.ts';

const ACCOUNT = '111122223333';
const OTHER = '444455556666';
const ROUNDS = 7;
const ROUND_MS = 300;
const BATCH = 2000;
/** What one decision may cost, in microseconds of CPU. */
const BUDGET_US = 5;

const policy = (...Statement: object[]): NamedPolicy => ({
  policy: compilePolicy(JSON.stringify({ Version: '2012-10-17', Statement })),
  name: 'policy',
});
const allow = (Action: string | string[], Resource: string | string[] = '*', Condition?: object) => ({
  Effect: 'Allow',
  Action,
  Resource,
  ...(Condition && { Condition }),
});
const deny = (Action: string | string[], Resource: string | string[], Condition?: object) => ({
  ...allow(Action, Resource, Condition),
  Effect: 'Deny',
});
const repository = (name: string, account = ACCOUNT): string =>
  `arn:aws:ecr:us-east-1:${account}:repository/${name}`;

const PULL = ['ecr:BatchCheckLayerAvailability', 'ecr:GetDownloadUrlForLayer', 'ecr:BatchGetImage'];
const PUSH = [
  ...PULL,
  'ecr:InitiateLayerUpload',
  'ecr:UploadLayerPart',
  'ecr:CompleteLayerUpload',
  'ecr:PutImage',
];
const READ_ONLY = [
  ...PULL,
  'ecr:GetAuthorizationToken',
  'ecr:Describe*',
  'ecr:List*',
  'ecr:GetRepositoryPolicy',
];
const EVERYTHING = policy(allow('*'));

const USER: Caller = {
  kind: 'user',
  account: ACCOUNT,
  arn: `arn:aws:iam::${ACCOUNT}:user/ci/builder`,
  id: 'AIDAEXAMPLEBUILDER000',
};
const session = (account: string): Caller => ({
  kind: 'role-session',
  account,
  arn: `arn:aws:sts::${account}:assumed-role/puller/i-0123456789abcdef0`,
  id: 'AROAEXAMPLEPULLER0000:i-0123456789abcdef0',
  roleArn: `arn:aws:iam::${account}:role/machines/puller`,
});

/** The condition keys that every request has (src/identity/authorize.ts). */
const CONTEXT = new Map<string, string | readonly string[]>([
  ['aws:sourceip', '10.20.30.40'],
  ['aws:securetransport', 'true'],
  ['aws:requestedregion', 'us-east-1'],
  ['aws:currenttime', '2026-11-24T12:00:00Z'],
  ['aws:epochtime', '1795521600'],
  ['aws:resourceaccount', ACCOUNT],
  ['aws:principalarn', USER.arn],
  ['aws:principalaccount', ACCOUNT],
  ['aws:principaltype', 'User'],
  ['aws:username', 'builder'],
  ['aws:userid', USER.id],
  ['aws:principaltag/team', 'blue'],
  ['aws:resourcetag/team', 'blue'],
  ['ecr:resourcetag/team', 'blue'],
  ['aws:useragent', 'docker/27.3.1 go/go1.22.7'],
]);

interface Case {
  readonly name: string;
  readonly request: AccessRequest;
  readonly policies: PolicySet;
  readonly allowed: boolean;
}

const request = (caller: Caller, action: string, resource: string): AccessRequest => ({
  caller,
  action,
  resource,
  resourceAccount: ACCOUNT,
  context: CONTEXT,
});
const pull = request(session(ACCOUNT), 'ecr:BatchGetImage', repository('team/blue/app'));
const push = request(USER, 'ecr:PutImage', repository('team/blue/app'));
const teams = (action: (i: number) => string | string[], condition?: object) =>
  Array.from({ length: 45 }, (_, i) => allow(action(i), repository(`team-${i}/*`), condition));

const CASES: readonly Case[] = [
  { name: 'administrator pushes', request: push, policies: { identity: [EVERYTHING] }, allowed: true },
  {
    name: 'machine pulls, AmazonEC2ContainerRegistryReadOnly',
    request: pull,
    policies: { identity: [policy(allow(READ_ONLY))] },
    allowed: true,
  },
  {
    name: 'CI pushes to its repositories, by tag and address',
    request: push,
    policies: {
      identity: [
        policy(
          allow('ecr:GetAuthorizationToken'),
          allow(PUSH, repository('team/${aws:PrincipalTag/team}/*'), {
            StringEquals: { 'aws:ResourceTag/team': '${aws:PrincipalTag/team}' },
            IpAddress: { 'aws:SourceIp': ['10.0.0.0/8', '192.0.2.0/24'] },
          }),
          deny('*', '*', { Bool: { 'aws:SecureTransport': 'false' } }),
        ),
      ],
    },
    allowed: true,
  },
  {
    name: 'another account pulls: repository policy, SCP, boundary, session policy',
    request: { ...request(session(OTHER), 'ecr:BatchGetImage', repository('team/blue/app')) },
    policies: {
      identity: [policy(allow(READ_ONLY))],
      boundary: policy(allow(['ecr:*', 's3:*', 'logs:*'])),
      session: [policy(allow(PULL, repository('team/*')))],
      resource: policy(
        ...[OTHER, '555566667777', '666677778888'].map((account) => ({
          Sid: `Pull${account}`,
          Effect: 'Allow',
          Principal: { AWS: `arn:aws:iam::${account}:root` },
          Action: PULL,
        })),
      ),
      serviceControl: [[EVERYTHING], [EVERYTHING, policy(deny('ecr:DeleteRepository', '*'))]],
    },
    allowed: true,
  },
  {
    name: 'denied: nothing allows it',
    request: push,
    policies: { identity: [policy(allow(READ_ONLY)), policy(allow(PULL, repository('team/*')))] },
    allowed: false,
  },
  {
    name: 'denied: 45 statements of ecr:*, none for this repository',
    request: push,
    policies: { identity: [policy(...teams(() => 'ecr:*'))] },
    allowed: false,
  },
  {
    name: 'denied: 45 statements with lists of actions, none for this repository',
    request: push,
    policies: {
      identity: [policy(...teams(() => PUSH, { StringEquals: { 'aws:PrincipalTag/team': 'red' } }))],
    },
    allowed: false,
  },
  {
    name: 'denied: 45 statements with other actions and patterns',
    request: push,
    policies: { identity: [policy(...teams((i) => ['ecr:BatchGet*', 'ecr:Describe*', `ecr:List${i}*`]))] },
    allowed: false,
  },
];

interface Cost {
  readonly perSecond: number;
  readonly cpuUs: number;
}

/** The median round. */
function measure({ name, request, policies, allowed }: Case): Cost {
  const costs: Cost[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    let decisions = 0;
    const cpu = process.cpuUsage();
    const started = performance.now();
    do {
      for (let i = 0; i < BATCH; i++) {
        if (evaluate(request, policies).allowed !== allowed) throw new Error(`${name}: decided wrongly`);
      }
      decisions += BATCH;
    } while (performance.now() - started < ROUND_MS);
    const elapsedMs = performance.now() - started;
    const { user, system } = process.cpuUsage(cpu);
    // The first round warms up.
    if (round > 0)
      costs.push({ perSecond: (decisions / elapsedMs) * 1000, cpuUs: (user + system) / decisions });
  }
  return costs.toSorted((x, y) => x.cpuUs - y.cpuUs)[Math.floor(ROUNDS / 2)] ?? { perSecond: 0, cpuUs: 0 };
}

const rows = CASES.map((it) => [it.name, measure(it)] as const);
const lines = rows.map(([name, { perSecond, cpuUs }]) => {
  const verdict = cpuUs <= BUDGET_US ? 'met' : 'MISSED';
  return `| ${name} | ${Math.round(perSecond / 1000)},000/s | ${cpuUs.toFixed(2)} µs | ≤ ${BUDGET_US} µs ${verdict} |`;
});
process.stdout.write(
  `| decision | throughput | CPU | budget |\n| --- | --- | --- | --- |\n${lines.join('\n')}\n`,
);
