import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Fault } from '../domain/faults.ts';
import { presignUrl, signRequest } from '../lib/sigv4.ts';
import { stsModel } from '../model/service-model.ts';
import type { Structure } from './operation.ts';
import { checkTable } from './protocol.ts';
import { KEY, openEndpoint, REQUEST_ID, type Endpoint } from './test-endpoint.ts';

const NOW = Date.UTC(2026, 10, 24, 12);
const TARGET = 'AmazonEC2ContainerRegistry_V20150921';

let endpoint: Endpoint;
let received: Structure[] = [];
before(async () => {
  const keep = (output: Structure | undefined) => ({
    run: (input: Structure) => {
      received.push(input);
      return Promise.resolve(output);
    },
  });
  endpoint = await openEndpoint({
    now: NOW,
    ecr: {
      ListImages: keep({ imageIds: [] }),
      CreateRepository: {
        ...keep({ repository: { repositoryName: 'ab', createdAt: new Date(1448875853241) } }),
        access: (input: { repositoryName: string }) => [
          { action: 'ecr:CreateRepository', resource: input.repositoryName },
        ],
      },
      TagResource: keep(undefined),
      UploadLayerPart: {
        bodyBytesMax: 1000,
        run: () =>
          Promise.reject(
            new Fault('InvalidLayerPartException', 'wrong', {
              registryId: '000000000000',
              lastValidByteReceived: 9,
              secret: 'not in the model',
            }),
          ),
      },
      BatchGetImage: { run: () => Promise.reject(new Error('a defect with a secret in it')) },
    },
    iam: {
      DeleteUser: keep(undefined),
      UpdateRole: keep(undefined),
      ListUsers: keep({
        Users: [
          { Path: '/', UserName: 'a<b>&"', UserId: 'AIDA', Arn: 'arn', CreateDate: new Date(NOW + 999) },
        ],
        IsTruncated: false,
      }),
      ListAccountAliases: keep({ AccountAliases: [] }),
      GetAccountSummary: keep({ SummaryMap: { Users: 3 } }),
      GetUser: {
        run: () => Promise.reject(new Fault('NoSuchEntity', 'The user with name x cannot be found.')),
      },
      ListRoles: { run: () => Promise.reject(new Error('a defect')) },
      CreateUser: keep(undefined),
    },
    sts: {
      GetCallerIdentity: keep({ Arn: 'arn:x', UserId: 'u', Account: '000000000000' }),
      GetSessionToken: keep({
        Credentials: { AccessKeyId: 'A', SecretAccessKey: 'S', SessionToken: 'T', Expiration: new Date(NOW) },
      }),
      AssumeRole: keep(undefined),
      AssumeRoleWithWebIdentity: keep({ Provider: 'p' }),
    },
  });
});
after(async () => {
  await endpoint[Symbol.asyncDispose]();
});

const error = (code: string, message: string): string => JSON.stringify({ __type: code, message });

test('a JSON answer: exact status, headers and body; timestamps in seconds', async () => {
  const answer = await endpoint.callEcr('CreateRepository', '{"repositoryName":"ab"}');
  assert.equal(answer.status, 200);
  assert.equal(answer.body, '{"repository":{"repositoryName":"ab","createdAt":1448875853.241}}');
  assert.deepEqual(
    { ...answer.headers, connection: undefined, 'keep-alive': undefined },
    {
      'content-type': 'application/x-amz-json-1.1',
      'content-length': '65',
      'x-amzn-requestid': REQUEST_ID,
      date: new Date(NOW).toUTCString(),
      connection: undefined,
      'keep-alive': undefined,
    },
  );
  const context = endpoint.contexts.at(-1);
  assert.equal(context?.region, 'eu-west-1');
  assert.equal(context?.caller, 'admin');
  assert.equal(context?.now, NOW);
  assert.equal(context?.sourceIp, '127.0.0.1');
  assert.equal(context?.origin, endpoint.url);
  assert.deepEqual(endpoint.checks.at(-1), { action: 'ecr:CreateRepository', resource: 'ab' });
});

test('empty lists are sent, empty outputs are {}', async () => {
  assert.equal((await endpoint.callEcr('ListImages', '{"repositoryName":"ab"}')).body, '{"imageIds":[]}');
  const body = '{"resourceArn":"arn:aws:ecr:eu-west-1:000000000000:repository/ab","tags":[]}';
  assert.equal((await endpoint.callEcr('TagResource', body)).body, '{}');
});

test('a refusal by authorize is the answer, and nothing runs', async () => {
  received = [];
  const answer = await endpoint.callEcr('CreateRepository', '{"repositoryName":"forbidden"}');
  assert.equal(answer.status, 400);
  assert.equal(
    answer.body,
    error('AccessDeniedException', 'User: x is not authorized to perform: ecr:CreateRepository'),
  );
  assert.deepEqual(received, []);
});

test('only modelled members of a fault are sent', async () => {
  const body = JSON.stringify({
    repositoryName: 'ab',
    uploadId: REQUEST_ID,
    partFirstByte: 0,
    partLastByte: 1,
    layerPartBlob: 'YQ==',
  });
  const answer = await endpoint.callEcr('UploadLayerPart', body);
  assert.equal(
    answer.body,
    '{"__type":"InvalidLayerPartException","message":"wrong","registryId":"000000000000","lastValidByteReceived":9}',
  );
  const tooLong = await endpoint.callEcr('UploadLayerPart', body.padEnd(1001));
  assert.equal(tooLong.status, 413);
  assert.equal(tooLong.headers['connection'], 'close');
  assert.equal(
    tooLong.body,
    error('RequestEntityTooLargeException', 'Request body is larger than 1000 bytes.'),
  );
});

test('a defect is reported and tells the client nothing', async () => {
  const answer = await endpoint.callEcr('BatchGetImage', '{"repositoryName":"ab","imageIds":[{}]}');
  assert.equal(answer.status, 500);
  assert.equal(
    answer.body,
    error('ServerException', 'The request could not be completed because of an internal error.'),
  );
  assert.match(String(endpoint.errors.pop()), /a defect with a secret/);
  const query = await endpoint.callQuery('iam', 'Action=ListRoles&Version=2010-05-08');
  assert.equal(query.status, 500);
  assert.match(query.body, /<Type>Receiver<\/Type><Code>InternalFailure<\/Code>/);
  assert.match(String(endpoint.errors.pop()), /a defect/);
});

test('an operation that is not built says so, to those who may ask', async () => {
  const answer = await endpoint.callEcr('PutImage', '{}');
  assert.equal(answer.status, 501);
  assert.equal(
    answer.body,
    error('OperationNotBuilt', 'Berth does not perform PutImage: not part of this test'),
  );
  const unsigned = await endpoint.send({
    headers: { 'content-type': 'application/x-amz-json-1.1', 'x-amz-target': `${TARGET}.PutImage` },
    body: '{}',
  });
  assert.equal(unsigned.body, error('MissingAuthenticationTokenException', 'Missing Authentication Token'));
  const query = await endpoint.callQuery('iam', 'Action=ListGroups&Version=2010-05-08');
  assert.equal(query.status, 501);
  assert.match(query.body, /<Code>NotImplemented<\/Code>/);
});

const SERIALIZATION: readonly (readonly [name: string, body: string | Buffer, message: string])[] = [
  ['cut JSON', '{"repositoryName":', 'The request is not valid JSON.'],
  ['not an object', '[]', 'Start of structure expected.'],
  ['null', 'null', 'Start of structure expected.'],
  ['invalid UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), 'The request is not valid UTF-8.'],
  ['deep arrays', `{"x":${'['.repeat(100_000)}`, 'The request is nested too deeply.'],
  ['deep objects', '{"x":'.repeat(1000), 'The request is nested too deeply.'],
  ['a number for a string', '{"repositoryName":5}', 'NUMBER_VALUE can not be converted to a String'],
  ['a list for a string', '{"repositoryName":["ab"]}', 'Start of list found where not expected'],
  [
    'a structure for a string',
    '{"repositoryName":{}}',
    'Start of structure or map found where not expected.',
  ],
  ['a string for a number', '{"maxResults":"5"}', 'STRING_VALUE can not be converted to an Integer'],
  ['a boolean for a number', '{"maxResults":true}', 'TRUE_VALUE can not be converted to an Integer'],
  ['a fraction', '{"maxResults":1.5}', 'A decimal number can not be converted to a whole one.'],
  ['a huge number', '{"maxResults":1e400}', 'A decimal number can not be converted to a whole one.'],
  ['more than 32 bits', '{"maxResults":4294967297}', 'The number is out of range.'],
];

for (const [name, body, message] of SERIALIZATION) {
  test(`JSON body with ${name}`, async () => {
    const answer = await endpoint.callEcr('ListImages', body);
    assert.equal(answer.status, 400);
    assert.equal(answer.body, error('SerializationException', message));
  });
}

const BLOBS = ['YQ', 'YQ=', 'Y===', 'YQ==YQ==', 'Y-==', 'Y_==', 'YQ==\n', 'a b='];
test('a blob must be base64 with padding', async () => {
  for (const blob of BLOBS) {
    const answer = await endpoint.callEcr('UploadLayerPart', JSON.stringify({ layerPartBlob: blob }));
    assert.equal(answer.body, error('SerializationException', 'A blob is not valid base64.'), blob);
  }
});

test('what JSON inputs may hold without harm', async () => {
  received = [];
  const bodies = [
    '{"repositoryName":"ab","repositoryName":"cd"}',
    '{"repositoryName":"ab","__proto__":{"maxResults":7},"constructor":1,"unknown":[[{}]]}',
    '{"repositoryName":"ab","maxResults":null}',
    '{"repositoryName":"ab","unknown":"\\"[[[[\\\\"}',
  ];
  for (const body of bodies) {
    const answer = await endpoint.callEcr('ListImages', body);
    assert.equal(answer.status, 200, answer.body);
  }
  assert.deepEqual(received, [
    { repositoryName: 'cd' },
    { repositoryName: 'ab' },
    { repositoryName: 'ab' },
    { repositoryName: 'ab' },
  ]);
  assert.ok(received.every((input) => Object.getPrototypeOf(input) === Object.prototype));
});

test('no body is the empty structure', async () => {
  const answer = await endpoint.callEcr('ListImages', '');
  assert.equal(
    answer.body,
    error(
      'InvalidParameterException',
      "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'Member must not be null'",
    ),
  );
});

test('unknown targets, methods and content types are unknown operations', async () => {
  const json = 'application/x-amz-json-1.1';
  const requests = [
    { headers: { 'x-amz-target': `${TARGET}.Nothing`, 'content-type': json } },
    { headers: { 'x-amz-target': `${TARGET}.toString`, 'content-type': json } },
    { headers: { 'x-amz-target': `${TARGET}.__proto__`, 'content-type': json } },
    { headers: { 'x-amz-target': 'SpencerFrontendService.DescribeImages', 'content-type': json } },
    { headers: { 'x-amz-target': `${TARGET}.ListImages`, 'content-type': 'text/plain' } },
    { headers: { 'x-amz-target': `${TARGET}.ListImages` }, method: 'GET' },
    { headers: { 'content-type': json } },
  ];
  for (const request of requests) {
    const answer = await endpoint.send({ ...request, body: request.method === 'GET' ? '' : '{}' });
    assert.equal(answer.status, 400);
    assert.equal(answer.body, error('UnknownOperationException', ''));
  }
});

const IAM = 'https://iam.amazonaws.com/doc/2010-05-08/';
const METADATA = `<ResponseMetadata><RequestId>${REQUEST_ID}</RequestId></ResponseMetadata>`;

test('XML answers: lists, maps, timestamps in whole seconds, empty outputs', async () => {
  const user =
    '<Path>/</Path><UserName>a&lt;b&gt;&amp;&quot;</UserName><UserId>AIDA</UserId><Arn>arn</Arn>' +
    '<CreateDate>2026-11-24T12:00:00Z</CreateDate>';
  const cases = [
    ['ListUsers', `<ListUsersResult><Users><member>${user}</member></Users><IsTruncated>false</IsTruncated></ListUsersResult>`],
    ['ListAccountAliases', '<ListAccountAliasesResult><AccountAliases/></ListAccountAliasesResult>'],
    ['GetAccountSummary', '<GetAccountSummaryResult><SummaryMap><entry><key>Users</key><value>3</value></entry></SummaryMap></GetAccountSummaryResult>'],
    ['DeleteUser&UserName=a', ''],
    ['UpdateRole&RoleName=a', '<UpdateRoleResult/>'],
  ] as const; // prettier-ignore
  for (const [action, result] of cases) {
    const answer = await endpoint.callQuery('iam', `Action=${action}&Version=2010-05-08`);
    const name = action.split('&', 1)[0];
    assert.equal(answer.body, `<${name}Response xmlns="${IAM}">${result}${METADATA}</${name}Response>`);
    assert.equal(answer.status, 200);
    assert.equal(answer.headers['content-type'], 'text/xml');
    assert.equal(answer.headers['x-amzn-requestid'], REQUEST_ID);
    assert.equal(answer.headers['date'], new Date(NOW).toUTCString());
  }
});

test('XML errors carry the code and status of the Query door', async () => {
  const answer = await endpoint.callQuery('iam', 'Action=GetUser&Version=2010-05-08&UserName=x');
  assert.equal(answer.status, 404);
  assert.equal(
    answer.body,
    `<ErrorResponse xmlns="${IAM}"><Error><Type>Sender</Type><Code>NoSuchEntity</Code>` +
      `<Message>The user with name x cannot be found.</Message></Error><RequestId>${REQUEST_ID}</RequestId></ErrorResponse>`,
  );
});

const ROUTES: readonly (readonly [form: string, status: number, code: string, message: string])[] = [
  [
    'Action=Nothing&Version=2010-05-08',
    400,
    'InvalidAction',
    'Could not find operation Nothing for version 2010-05-08',
  ],
  [
    'Action=ListUsers',
    400,
    'InvalidAction',
    'Could not find operation ListUsers for version NO_VERSION_SPECIFIED',
  ],
  [
    'Action=__proto__&Version=2010-05-08',
    400,
    'InvalidAction',
    'Could not find operation __proto__ for version 2010-05-08',
  ],
  ['Version=2010-05-08', 400, 'MissingAction', 'The request must contain the parameter Action.'],
];

for (const [form, status, code, message] of ROUTES) {
  test(`Query request ${form}`, async () => {
    const answer = await endpoint.callQuery('iam', form);
    assert.equal(answer.status, status);
    assert.equal(
      answer.body,
      '<ErrorResponse xmlns="http://webservices.amazon.com/AWSFault/2005-15-09"><Error><Type>Sender</Type>' +
        `<Code>${code}</Code><Message>${message}</Message></Error><RequestId>${REQUEST_ID}</RequestId></ErrorResponse>`,
    );
  });
}

const ROLE = `Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::000000000000:role/a&RoleSessionName=me`;
const MALFORMED: readonly (readonly [service: 'iam' | 'sts', form: string, message: string])[] = [
  ['sts', `${ROLE}&DurationSeconds=1h`, 'A number must be whole.'],
  ['sts', `${ROLE}&DurationSeconds=99999999999`, 'The number is out of range.'],
  ['sts', `${ROLE}&PolicyArns.member.x.arn=a`, 'Key (x) must be integer'],
  ['sts', `${ROLE}&PolicyArns.1.arn=a`, 'Unexpected list element in PolicyArns'],
  ['sts', `${ROLE}&PolicyArns=a`, 'PolicyArns is not a value'],
  ['sts', `${ROLE}&RoleSessionName.x=a`, 'RoleSessionName is not a structure or list'],
  ['iam', 'Action=CreateUser&Version=2010-05-08&UserName=%ff', 'The parameters are not valid UTF-8.'],
];

for (const [service, form, message] of MALFORMED) {
  test(`form ${form.slice(-40)}`, async () => {
    const answer = await endpoint.callQuery(service, form);
    assert.equal(answer.status, 400);
    assert.match(answer.body, /<Code>(MalformedInput|MalformedQueryString)<\/Code>/);
    assert.equal(/<Message>(.*)<\/Message>/.exec(answer.body)?.[1], message);
  });
}

test('list members in any order and with gaps; the first of several equal names wins', async () => {
  received = [];
  const form = `${ROLE}&Tags.member.10.Key=b&Tags.member.10.Value=2&Tags.member.2.Key=a&Tags.member.2.Value=&RoleSessionName=you&Policy.x.y=`;
  assert.equal((await endpoint.callQuery('sts', form.replace('&Policy.x.y=', ''))).status, 200);
  assert.deepEqual(received.pop(), {
    RoleArn: 'arn:aws:iam::000000000000:role/a',
    RoleSessionName: 'me',
    Tags: [
      { Key: 'a', Value: '' },
      { Key: 'b', Value: '2' },
    ],
  });
});

test('a form with a hundred thousand parameters is read in good time, one over the size limit is refused', async () => {
  const many = Array.from({ length: 100_000 }, (_, i) => `&${i}`).join('');
  const started = performance.now();
  const answer = await endpoint.callQuery('sts', `${ROLE}${many}`);
  assert.equal(answer.status, 200, answer.body);
  assert.ok(performance.now() - started < 2000);
  const long = await endpoint.callQuery('sts', `${ROLE}&x=${'.'.repeat(1_048_576)}`);
  assert.equal(long.status, 413);
  const deep = await endpoint.callQuery('sts', `${ROLE}&${'a.'.repeat(400_000)}=`);
  assert.equal(deep.status, 200);
});

test('STS answers JSON to those who ask for it', async () => {
  const form = 'Action=GetSessionToken&Version=2011-06-15';
  const answer = await endpoint.callQuery('sts', form, { accept: 'application/json' });
  assert.equal(answer.headers['content-type'], 'application/json');
  assert.deepEqual(JSON.parse(answer.body), {
    GetSessionTokenResponse: {
      GetSessionTokenResult: {
        Credentials: { AccessKeyId: 'A', SecretAccessKey: 'S', SessionToken: 'T', Expiration: NOW / 1000 },
      },
      ResponseMetadata: { RequestId: REQUEST_ID },
    },
  });
  const bad = await endpoint.callQuery('sts', `${form}&DurationSeconds=1`, { accept: 'application/json' });
  assert.equal(bad.status, 400);
  assert.deepEqual(JSON.parse(bad.body), {
    Error: {
      Code: 'ValidationError',
      Message:
        "1 validation error detected: Value '1' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900",
      Type: 'Sender',
    },
    RequestId: REQUEST_ID,
  });
});

test('only operations the model marks so take unsigned requests, by GET and by POST', async () => {
  const form =
    'Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn:aws:iam::000000000000:role/a&RoleSessionName=me&WebIdentityToken=abcd';
  const get = await endpoint.send({ method: 'GET', path: `/?${form}` });
  assert.equal(get.status, 200, get.body);
  const post = await endpoint.send({
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: form,
  });
  assert.equal(post.status, 200, post.body);
  const other = await endpoint.send({ method: 'GET', path: `/?${ROLE}` });
  assert.equal(other.status, 403);
  const nothing = await endpoint.send({ body: '' });
  assert.match(nothing.body, /<Code>MissingAuthenticationToken<\/Code>/);
});

test('a request signed for one service that asks another is told of the service it asks', async () => {
  const options = { region: 'eu-west-1', now: NOW };
  const headers = {
    'content-type': 'application/x-amz-json-1.1',
    'x-amz-target': `${TARGET}.ListImages`,
  };
  const request = { method: 'POST', url: `${endpoint.url}/`, headers, body: '{}' };
  const forSts = signRequest(request, KEY, { ...options, service: 'sts' });
  const json = await endpoint.send({ headers: forSts, body: '{}' });
  assert.equal(
    json.body,
    error('InvalidSignatureException', "Credential should be scoped to correct service: 'ecr'. "),
  );
  const url = presignUrl(
    { method: 'GET', url: `${endpoint.url}/?Action=GetCallerIdentity&Version=2011-06-15` },
    KEY,
    { ...options, service: 'ecr', expiresS: 60 },
  );
  const query = await endpoint.send({ method: 'GET', path: url.slice(endpoint.url.length) });
  assert.match(query.body, /correct service: &#39;sts&#39;\. <\/Message>/);
  // nothing but the scope says what is asked
  const bare = signRequest({ method: 'POST', url: `${endpoint.url}/` }, KEY, { ...options, service: 'ecr' });
  assert.equal((await endpoint.send({ headers: bare })).body, error('UnknownOperationException', ''));
});

test('a table that disagrees with its model stops the start', () => {
  const full = Object.fromEntries(Object.keys(stsModel.operations).map((name) => [name, { notBuilt: 'x' }]));
  checkTable(stsModel, full);
  const { AssumeRole: _, ...less } = full;
  assert.throws(
    () => checkTable(stsModel, { ...less, AssumeRoll: { notBuilt: 'x' } }),
    /not in the model: \[AssumeRoll\]; not in the table: \[AssumeRole\]/,
  );
});
