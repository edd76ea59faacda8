import assert from 'node:assert/strict';
import { test } from 'node:test';
import { casesOf, messageOf, REPOSITORY_NAME, sample } from '../../test/constraint-cases.ts';
import { ecrModel, iamModel, stsModel } from '../model/service-model.ts';
import { ecrFault, findViolations, iamFault, stsFault } from './constraints.ts';
import { parseJson } from './json.ts';
import { parseForm, readForm } from './query.ts';
import { compileModel, compilePattern, type CompiledShape } from './shapes.ts';

const ecr = compileModel(ecrModel);
const iam = compileModel(iamModel);
const sts = compileModel(stsModel);

function inputShape(of: typeof ecr, operation: string): CompiledShape {
  const shape = of.operations.get(operation)?.input;
  assert.ok(shape, operation);
  return shape;
}

/** What ECR answers to an input; undefined when it is good. */
function ecrMessage(operation: string, input: unknown): string | undefined {
  const shape = inputShape(ecr, operation);
  const fault = ecrFault(findViolations(shape, parseJson(shape, Buffer.from(JSON.stringify(input)))));
  if (fault !== undefined) assert.equal(fault.code, 'InvalidParameterException');
  return fault?.message;
}

function queryMessage(of: 'iam' | 'sts', operation: string, text: string): string | undefined {
  const shape = inputShape(of === 'iam' ? iam : sts, operation);
  const form = new Map<string, string>();
  readForm(text, form);
  const violations = findViolations(shape, parseForm(shape, form));
  const fault = of === 'iam' ? iamFault(violations) : stsFault(violations);
  if (fault !== undefined) assert.equal(fault.code, 'ValidationError');
  return fault?.message;
}

// ---------------------------------------------------------------- generated from the model

let generated = 0;
for (const [name, operation] of Object.entries(ecrModel.operations)) {
  test(`${name}: every constraint of the model, broken alone`, () => {
    const shape = operation.input as string;
    assert.equal(ecrMessage(name, sample(ecrModel, shape)), undefined);
    for (const broken of casesOf(ecrModel, shape)) {
      assert.equal(ecrMessage(name, broken.input), messageOf(broken));
      generated++;
    }
  });
}

test('the generated cases are not fewer than they were', () => {
  assert.ok(generated >= 300, `${generated}`);
});

// ---------------------------------------------------------------- texts seen from AWS

const SEEN: readonly (readonly [operation: string, input: unknown, message: string])[] = [
  [
    'CreateRepository',
    { repositoryName: 'Upper/case' },
    `Invalid parameter at 'repositoryName' failed to satisfy constraint: '${REPOSITORY_NAME}'`,
  ],
  [
    'CreateRepository',
    { repositoryName: 'a' },
    "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must have length greater than or equal to 2'",
  ],
  [
    'CreateRepository',
    { repositoryName: 'ab', imageTagMutability: 'SOMETIMES' },
    "Invalid parameter at 'imageTagMutability' failed to satisfy constraint: 'Member must satisfy enum value set: [IMMUTABLE, MUTABLE, MUTABLE_WITH_EXCLUSION, IMMUTABLE_WITH_EXCLUSION]'",
  ],
  [
    'GetAuthorizationToken',
    { registryIds: ['12345'] },
    "Invalid parameter at 'registryIds' failed to satisfy constraint: 'Member must satisfy constraint: [Member must satisfy regular expression pattern: [0-9]{12}]'",
  ],
  [
    'BatchGetImage',
    { repositoryName: 'ab', imageIds: [] },
    "Invalid parameter at 'imageIds' failed to satisfy constraint: 'Member must have length greater than or equal to 1'",
  ],
  // the first in the order of the model wins
  [
    'BatchGetImage',
    { registryId: 'x', repositoryName: 'A', imageIds: [] },
    "Invalid parameter at 'registryId' failed to satisfy constraint: 'Member must satisfy regular expression pattern: [0-9]{12}'",
  ],
];

for (const [operation, input, message] of SEEN) {
  test(`ECR ${operation} ${JSON.stringify(input)}`, () => {
    assert.equal(ecrMessage(operation, input), message);
  });
}

const STS = 'RoleArn=arn:aws:iam::012345678901:role/a';
const QUERY: readonly (readonly [
  'iam' | 'sts',
  operation: string,
  form: string,
  message: string | undefined,
])[] = [
  [
    'sts',
    'AssumeRole',
    `${STS}&RoleSessionName=Session1:2`,
    "1 validation error detected: Value 'Session1:2' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*",
  ],
  [
    'sts',
    'AssumeRole',
    'RoleSessionName=é&DurationSeconds=1',
    "4 validation errors detected: Value null at 'roleArn' failed to satisfy constraint: Member must not be null; Value 'é' at 'roleSessionName' failed to satisfy constraint: Member must have length greater than or equal to 2; Value 'é' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*; Value '1' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900",
  ],
  ['sts', 'AssumeRole', `${STS}&RoleSessionName=ok&Tags.member.1.Key=Ä%20ok&Tags.member.1.Value=`, undefined],
  [
    'sts',
    'AssumeRole',
    `${STS}&RoleSessionName=ok&Tags.member.1.Key=a&Tags.member.1.Value=%21`,
    "1 validation error detected: Value '!' at 'tags.1.member.value' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*",
  ],
  [
    'iam',
    'CreateUser',
    '',
    "1 validation error detected: Value at 'userName' failed to satisfy constraint: Member must not be null",
  ],
  [
    'iam',
    'CreateUser',
    `UserName=${'x'.repeat(65)}`,
    "1 validation error detected: Value at 'userName' failed to satisfy constraint: Member must have length less than or equal to 64",
  ],
  [
    'iam',
    'CreateUser',
    'UserName=a%20b',
    'The specified value for userName is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-',
  ],
  [
    'iam',
    'CreateUser',
    'UserName=a&Path=a',
    'The specified value for path is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.',
  ],
  [
    'iam',
    'ListUsers',
    'PathPrefix=a',
    'The specified value for pathPrefix is invalid. It must begin with the / character and contain only alphanumeric characters and/or / characters.',
  ],
  [
    'iam',
    'UpdateAccessKey',
    `AccessKeyId=${'!'.repeat(16)}&Status=Active`,
    'The specified value for accessKeyId is invalid. It must contain only alphanumeric characters.',
  ],
  [
    'iam',
    'CreatePolicy',
    'PolicyName=a&PolicyDocument=%E2%82%AC',
    'The specified value for policyDocument is invalid. It must contain only printable ASCII characters.',
  ],
  [
    'iam',
    'UpdateAccessKey',
    `AccessKeyId=${'A'.repeat(16)}&Status=On`,
    "1 validation error detected: Value at 'status' failed to satisfy constraint: Member must satisfy enum value set",
  ],
  [
    'iam',
    'ListUsers',
    'MaxItems=1001',
    "1 validation error detected: Value at 'maxItems' failed to satisfy constraint: Member must have value less than or equal to 1000",
  ],
  [
    'iam',
    'CreateUser',
    `UserName=a&${Array.from({ length: 51 }, (_, i) => `Tags.member.${i + 1}.Key=k${i}&Tags.member.${i + 1}.Value=`).join('&')}`,
    "1 validation error detected: Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50",
  ],
  // the model's own checks are told before those of names
  [
    'iam',
    'CreateAccessKey',
    `UserName=${'%20'.repeat(129)}`,
    "1 validation error detected: Value at 'userName' failed to satisfy constraint: Member must have length less than or equal to 128",
  ],
];

for (const [service, operation, form, message] of QUERY) {
  test(`${service} ${operation} ${form.slice(0, 60)}`, () => {
    assert.equal(queryMessage(service, operation, form), message);
  });
}

// ---------------------------------------------------------------- patterns

const PATTERNS = [ecrModel, iamModel, stsModel].flatMap((model) =>
  Object.entries(model.shapes).filter(([, shape]) => shape.pattern !== undefined),
);

test('no pattern of the models takes long on values made to be slow', () => {
  for (const [name, shape] of PATTERNS) {
    const regex = compilePattern(shape.pattern as string);
    const size = Math.min(shape.max ?? 20_000, 20_000);
    for (const seed of [
      'a',
      '1',
      'a-',
      'a.',
      'a/',
      '-',
      '_',
      '/',
      ':',
      'arn:aws',
      '*',
      '=',
      'o-0000000000/r-0000',
    ]) {
      const text = seed.repeat(Math.ceil(size / seed.length)).slice(0, size - 1);
      const started = performance.now();
      for (const value of [text, `${text}\n`, `arn:aws${text}!`, `/${text}`, `http://${text}\u0001`])
        regex.test(value);
      const tookMs = performance.now() - started;
      assert.ok(tookMs < 200, `${name} took ${tookMs} ms on ${seed}`);
    }
  }
});

test('a pattern matches whole values and code points, as Java does', () => {
  const matches = (pattern: string, value: string): boolean => compilePattern(pattern).test(value);
  assert.ok(matches('[0-9]{12}', '012345678901'));
  assert.ok(!matches('[0-9]{12}', '0123456789012'));
  assert.ok(!matches('[0-9]{12}', '012345678901\n'));
  assert.ok(matches('^$|arn:x', 'arn:x') && matches('^$|arn:x', '') && !matches('^$|arn:x', 'arn:xy'));
  assert.ok(matches('[\\p{L}\\p{Z}]*', 'Äé 𝒜') && !matches('[\\w]+', 'é'));
  assert.ok(matches('a\\-b\\:[c\\-d\\:]', 'a-b:-') && !matches('[c\\-e]', 'd'));
});

test('the scanning filter pattern and its linear form accept the same values', () => {
  const pattern = '^[a-z0-9*](?:[._\\-/a-z0-9*]?[a-z0-9*]+)*$';
  const [original, linear] = [new RegExp(pattern), compilePattern(pattern)];
  const letters = ['', 'a', '*', '.', '/'];
  for (let i = 0; i < 5 ** 6; i++) {
    const value = Array.from({ length: 6 }, (_, at) => letters[Math.floor(i / 5 ** at) % 5]).join('');
    assert.equal(linear.test(value), original.test(value), value);
  }
});
