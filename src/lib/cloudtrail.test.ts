import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  createRecorder,
  createServiceEventRecorder,
  type AuditedCall,
  type AuditedPrincipal,
  type LifecycleServiceEvent,
  type ServiceEvent,
} from './cloudtrail.ts';

const ACCOUNT = '123456789012';
const NOW = Date.UTC(2026, 10, 24, 5, 33, 10, 987);
const ARN = `arn:aws:ecr:eu-west-1:${ACCOUNT}:repository/team/app`;

const USER: AuditedPrincipal = {
  caller: { kind: 'user', account: ACCOUNT, arn: `arn:aws:iam::${ACCOUNT}:user/bob`, id: 'AIDAEXAMPLE' },
  accessKeyId: 'AKIAEXAMPLE',
  userName: 'bob',
};

type Given = Partial<Omit<AuditedCall, 'header'>> & { readonly headers?: Record<string, string> };

const render = createRecorder({ clock: () => NOW, account: '000000000000', region: 'us-east-1' });

function record({ headers = {}, ...given }: Given): Record<string, unknown> {
  const line = render({
    requestId: 'request-1',
    action: 'ecr:BatchGetImage',
    principal: USER,
    region: 'eu-west-1',
    resources: [ARN],
    parameters: undefined,
    faultCode: undefined,
    faultMessage: undefined,
    sourceIp: '192.0.2.7',
    ...given,
    header: (name) => headers[name],
  });
  assert.ok(!line.includes('\n'));
  const { eventID, ...rest } = JSON.parse(line) as Record<string, unknown>;
  assert.match(String(eventID), /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  return rest;
}

describe('audit records', () => {
  it('have the members of CloudTrail', () => {
    const parameters = { repositoryName: 'team/app', imageIds: [{ imageTag: 'v1' }] };
    assert.deepEqual(record({ parameters, headers: { 'user-agent': 'docker/27 "go"' } }), {
      eventVersion: '1.11',
      userIdentity: {
        type: 'IAMUser',
        principalId: 'AIDAEXAMPLE',
        arn: `arn:aws:iam::${ACCOUNT}:user/bob`,
        accountId: ACCOUNT,
        accessKeyId: 'AKIAEXAMPLE',
        userName: 'bob',
      },
      eventTime: '2026-11-24T05:33:10Z',
      eventSource: 'ecr.amazonaws.com',
      eventName: 'BatchGetImage',
      awsRegion: 'eu-west-1',
      sourceIPAddress: '192.0.2.7',
      userAgent: 'docker/27 "go"',
      requestParameters: parameters,
      responseElements: null,
      requestID: 'request-1',
      readOnly: true,
      resources: [{ accountId: ACCOUNT, type: 'AWS::ECR::Repository', ARN }],
      eventType: 'AwsApiCall',
      managementEvent: true,
      recipientAccountId: ACCOUNT,
      eventCategory: 'Management',
    });
  });

  it('tell a refusal', () => {
    const refused = record({
      action: 'ecr:PutImage',
      faultCode: 'AccessDeniedException',
      faultMessage: 'User: x',
    });
    assert.deepEqual(
      [refused['errorCode'], refused['errorMessage'], refused['readOnly']],
      ['AccessDeniedException', 'User: x', false],
    );
  });

  it('show what a change answered, without what is secret, and nothing of reads and refusals', () => {
    const outcome = { image: { imageId: { imageDigest: 'sha256:1' }, password: 'x', data: Buffer.alloc(3) } };
    assert.deepEqual(record({ action: 'ecr:PutImage', outcome })['responseElements'], {
      image: {
        imageId: { imageDigest: 'sha256:1' },
        password: 'HIDDEN_DUE_TO_SECURITY_REASONS',
        data: 'omitted: 3 bytes',
      },
    });
    assert.equal(record({ action: 'ecr:GetAuthorizationToken', outcome })['responseElements'], null);
    const refused = { action: 'ecr:PutImage', outcome, faultCode: 'ClientDisconnected' };
    assert.equal(record(refused)['responseElements'], null);
  });

  const readers = [
    'ecr:ListImages',
    'sts:AssumeRoleWithWebIdentity',
    'berth:FollowEvents',
    'berth:ListDeadEvents',
    'berth:ExplainImage',
  ];
  const writers = ['ecr:PutImage', 'berth:ReplayEvents', 'iam:CreateUser'];
  for (const [action, readOnly] of [
    ...readers.map((action) => [action, true] as const),
    ...writers.map((action) => [action, false] as const),
  ])
    it(`say of ${action} that it ${readOnly ? 'only reads' : 'changes something'}`, () => {
      assert.equal(record({ action })['readOnly'], readOnly);
    });

  const identities: [name: string, principal: AuditedPrincipal | undefined, identity: object][] = [
    [
      'root',
      {
        caller: { kind: 'root', account: ACCOUNT, arn: `arn:aws:iam::${ACCOUNT}:root`, id: ACCOUNT },
        accessKeyId: 'AKIAROOT',
        userName: undefined,
      },
      {
        type: 'Root',
        principalId: ACCOUNT,
        arn: `arn:aws:iam::${ACCOUNT}:root`,
        accountId: ACCOUNT,
        accessKeyId: 'AKIAROOT',
      },
    ],
    [
      'a role session',
      {
        caller: {
          kind: 'role-session',
          account: ACCOUNT,
          arn: `arn:aws:sts::${ACCOUNT}:assumed-role/ci/run7`,
          id: 'AROAEXAMPLE:run7',
          roleArn: `arn:aws:iam::${ACCOUNT}:role/build/ci`,
        },
        accessKeyId: 'ASIAEXAMPLE',
        userName: undefined,
      },
      {
        type: 'AssumedRole',
        principalId: 'AROAEXAMPLE:run7',
        arn: `arn:aws:sts::${ACCOUNT}:assumed-role/ci/run7`,
        accountId: ACCOUNT,
        accessKeyId: 'ASIAEXAMPLE',
        sessionContext: {
          sessionIssuer: {
            type: 'Role',
            principalId: 'AROAEXAMPLE',
            arn: `arn:aws:iam::${ACCOUNT}:role/build/ci`,
            accountId: ACCOUNT,
            userName: 'ci',
          },
        },
      },
    ],
    [
      'nobody, where nobody has to sign',
      {
        caller: { kind: 'anonymous', account: 'anonymous', arn: 'anonymous', id: 'anonymous' },
        accessKeyId: '',
        userName: undefined,
      },
      { type: 'AWSAccount', principalId: '', accountId: 'ANONYMOUS_PRINCIPAL' },
    ],
    ['a caller that is not known', undefined, { type: 'Unknown' }],
  ];
  for (const [name, principal, identity] of identities) {
    it(`name ${name}`, () => assert.deepEqual(record({ principal })['userIdentity'], identity));
  }

  it('name the key that a bad signature claimed', () => {
    const authorization = `AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20261124/us-east-1/ecr/aws4_request, Signature=abc`;
    assert.deepEqual(record({ principal: undefined, headers: { authorization } })['userIdentity'], {
      type: 'Unknown',
      accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
    });
  });

  it("belong to the resource's account, else the caller's, else the default", () => {
    const other = 'arn:aws:ecr:eu-west-1:222222222222:repository/x';
    assert.equal(record({ resources: [other] })['recipientAccountId'], '222222222222');
    assert.equal(record({ resources: ['*'] })['recipientAccountId'], ACCOUNT);
    const unknown = record({ resources: [], principal: undefined, region: undefined, action: undefined });
    assert.deepEqual(
      [unknown['recipientAccountId'], unknown['awsRegion'], unknown['eventName'], unknown['resources']],
      ['000000000000', 'us-east-1', 'UnknownOperation', undefined],
    );
  });

  it('show parameters in their spelling, within limits, without bytes and secrets', () => {
    const parameters = {
      UserName: 'bob',
      MaxItems: 5,
      force: true,
      since: new Date(0),
      nothing: undefined,
      layerPartBlob: Buffer.alloc(20_000_000),
      policyText: 'x'.repeat(16_385),
      imageIds: Array.from({ length: 200 }, (_, i) => ({ imageTag: String(i) })),
      NewPassword: 'hunter2',
      nextToken: 'hunter2',
      MinimumPasswordLength: 12,
      AllowUsersToChangePassword: true,
      WebIdentityToken: 'hunter2',
      nested: { secretString: { value: 'hunter2' } },
    };
    const shown = record({ parameters })['requestParameters'] as Record<string, unknown>;
    assert.deepEqual(
      { ...shown, imageIds: (shown['imageIds'] as unknown[]).length },
      {
        userName: 'bob',
        maxItems: 5,
        force: true,
        since: '1970-01-01T00:00:00.000Z',
        layerPartBlob: 'omitted: 20000000 bytes',
        policyText: 'omitted: 16385 characters',
        imageIds: 100,
        newPassword: 'HIDDEN_DUE_TO_SECURITY_REASONS',
        nextToken: 'HIDDEN_DUE_TO_SECURITY_REASONS',
        minimumPasswordLength: 12,
        allowUsersToChangePassword: true,
        webIdentityToken: 'HIDDEN_DUE_TO_SECURITY_REASONS',
        nested: { secretString: 'HIDDEN_DUE_TO_SECURITY_REASONS' },
      },
    );
  });

  const messages: [code: string, message: string, shown: string][] = [
    ['IncompleteSignatureException', "'hunter2' not a valid key=value pair", ''],
    [
      'IncompleteSignatureException',
      "Authorization header requires 'Signature' parameter. Authorization=hunter2",
      'Authorization header requires',
    ],
    ['SignatureDoesNotMatch', 'The signature does not match.\nhunter2', 'The signature does not match.'],
    ['ExpiredTokenException', 'The security token is expired', 'The security token is expired'],
    [
      'ValidationError',
      "1 validation error detected: Value 'it's\nhunter2' at 'webIdentityToken' failed to satisfy constraint: x",
      "1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint: x",
    ],
  ];
  for (const [code, message, shown] of messages) {
    it(`take credentials out of ${JSON.stringify(message)}`, () => {
      assert.equal(record({ faultCode: code, faultMessage: message })['errorMessage'], shown);
    });
  }

  it('survive whatever a client calls itself', () => {
    for (const agent of ['\u0000"\\', 'x'.repeat(10_000), '\ud800', '']) {
      const shown = record({ headers: { 'user-agent': agent } })['userAgent'];
      assert.equal(shown, agent.slice(0, 256));
    }
    for (let i = 0; i < 3000; i++)
      record({ headers: { 'user-agent': `agent ${i}` }, resources: [`${ARN}${i}`] });
  });
});

describe('service events', () => {
  const renderEvent = createServiceEventRecorder({ clock: () => NOW });
  const subject = { repositoryName: 'team/app', resource: ARN, region: 'eu-west-1' };
  const run: LifecycleServiceEvent = {
    ...subject,
    name: 'PolicyExecutionEvent',
    policy: { id: 'policy-1', evaluatedAt: undefined, rules: [] },
    actions: [],
    failures: [],
  };

  /** The whole record but for its random id. */
  function text(event: ServiceEvent): string {
    const line = renderEvent(event);
    assert.ok(!line.includes('\n'));
    return line.replace(/"eventID":"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"/, '"eventID":"…"');
  }

  const record = (name: string, readOnly: boolean, details: string) =>
    `{"eventVersion":"1.11","userIdentity":{"accountId":"${ACCOUNT}","invokedBy":"ecr.amazonaws.com"}` +
    `,"eventTime":"2026-11-24T05:33:10Z","eventSource":"ecr.amazonaws.com","eventName":"${name}","awsRegion":"eu-west-1"` +
    `,"sourceIPAddress":"ecr.amazonaws.com","userAgent":"ecr.amazonaws.com","requestParameters":null,"responseElements":null` +
    `,"eventID":"…","readOnly":${readOnly}` +
    `,"resources":[{"accountId":"${ACCOUNT}","type":"AWS::ECR::Repository","ARN":"${ARN}"}]` +
    `,"eventType":"AwsServiceEvent","managementEvent":true,"recipientAccountId":"${ACCOUNT}"` +
    `,"serviceEventDetails":${details},"eventCategory":"Management"}`;

  it('a run has its policy, what it did and what failed', () => {
    const event: LifecycleServiceEvent = {
      ...run,
      policy: {
        id: 'ceb86829-58e7-8498-a20c-aa042e33037b',
        evaluatedAt: 1_584_042_000_000,
        rules: [
          {
            rulePriority: 1,
            description: 'release "candidates"\n',
            selection: {
              tagStatus: 'tagged',
              tagPatternList: ['rc-*'],
              countType: 'sinceImagePushed',
              countUnit: 'days',
              countNumber: 14,
            },
            action: { type: 'expire' },
          },
          {
            rulePriority: 2,
            selection: { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber: 2 },
            action: { type: 'transition' },
          },
        ],
      },
      actions: [
        { digest: 'sha256:aa', tags: ['rc-1', 'x'], pushedAt: 1_584_042_813_000, rulePriority: 1 },
        { digest: 'sha256:bb', tags: [], pushedAt: 1_584_042_842_000, rulePriority: 2 },
      ],
      failures: [
        {
          digest: 'sha256:cc',
          tags: [],
          pushedAt: 1_584_042_843_000,
          rulePriority: 2,
          failureCode: 'ImageReferencedByManifestList',
          failureReason: 'Requested image referenced by manifest list: [sha256:dd]',
        },
      ],
    };
    const details =
      '{"repositoryName":"team/app","lifecycleEventPolicy":{"lifecycleEventRules":[' +
      '{"rulePriority":1,"description":"release \\"candidates\\"\\n","lifecycleEventSelection":{"tagStatus":"Tagged"' +
      ',"tagPrefixList":[],"tagPatternList":["rc-*"],"countType":"Time since image pushed","countUnit":"Days"' +
      ',"countNumber":14},"action":"expire"},' +
      '{"rulePriority":2,"lifecycleEventSelection":{"tagStatus":"Any","tagPrefixList":[],"tagPatternList":[]' +
      ',"countType":"Image count more than","countNumber":2},"action":"transition"}]' +
      ',"lastEvaluatedAt":1584042000000,"policyVersion":1,"policyId":"ceb86829-58e7-8498-a20c-aa042e33037b"}' +
      ',"lifecycleEventImageActions":[' +
      '{"lifecycleEventImage":{"digest":"sha256:aa","tagStatus":"Tagged","tagList":["rc-1","x"],"pushedAt":1584042813000}' +
      ',"rulePriority":1},' +
      '{"lifecycleEventImage":{"digest":"sha256:bb","tagStatus":"Untagged","tagList":[],"pushedAt":1584042842000}' +
      ',"rulePriority":2}]' +
      ',"lifecycleEventFailureDetails":[' +
      '{"lifecycleEventImage":{"digest":"sha256:cc","tagStatus":"Untagged","tagList":[],"pushedAt":1584042843000}' +
      ',"rulePriority":2,"failureCode":"ImageReferencedByManifestList"' +
      ',"failureReason":"Requested image referenced by manifest list: [sha256:dd]"}]}';
    assert.equal(text(event), record('PolicyExecutionEvent', true, details));
    assert.equal(text({ ...event, name: 'DryRunEvent' }), record('DryRunEvent', true, details));
  });

  it('a run that had nothing to do, the first of its policy', () => {
    const details =
      '{"repositoryName":"team/app","lifecycleEventPolicy":{"lifecycleEventRules":[],"lastEvaluatedAt":0' +
      ',"policyVersion":1,"policyId":"policy-1"},"lifecycleEventImageActions":[],"lifecycleEventFailureDetails":[]}';
    assert.equal(text(run), record('PolicyExecutionEvent', true, details));
  });

  it('a restore', () => {
    const details =
      '{"repositoryName":"team/app","imageDigest":"sha256:aa","targetStorageClass":"STANDARD","result":"SUCCESS"' +
      ',"imageStatus":"ACTIVE"}';
    const event = { ...subject, name: 'ImageActivationEvent', digest: 'sha256:aa' } as const;
    assert.equal(text(event), record('ImageActivationEvent', false, details));
  });

  it('show a hundred tags of an image at most', () => {
    const tags = Array.from({ length: 101 }, (_, i) => `v${i}`);
    const image = { digest: 'sha256:aa', tags, pushedAt: 0, rulePriority: 1 };
    const { serviceEventDetails } = JSON.parse(renderEvent({ ...run, actions: [image] })) as {
      serviceEventDetails: {
        lifecycleEventImageActions: { lifecycleEventImage: { tagStatus: string; tagList: string[] } }[];
      };
    };
    const [shown] = serviceEventDetails.lifecycleEventImageActions;
    assert.deepEqual(shown?.lifecycleEventImage.tagList, tags.slice(0, 100));
  });
});
