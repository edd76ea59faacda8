import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ecrModel, iamModel, stsModel, type ModelShape, type ServiceModel } from '../model/service-model.ts';
import { ecrFault, findViolations, iamFault, stsFault } from './constraints.ts';
import { parseJson } from './json.ts';
import { parseForm, readForm } from './query.ts';
import { compileModel, compilePattern, enumOrder, type CompiledShape } from './shapes.ts';

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

/** A good value for every pattern of the ECR inputs. */
const SAMPLES: Readonly<Record<string, string>> = {
  CredentialArn: 'arn:aws:secretsmanager:eu-west-1:012345678901:secret:ecr-pullthroughcache/a',
  KmsKeyForRepositoryCreationTemplate: '',
  LayerDigest: 'sha256:0a',
  PrincipalArn: 'arn:aws:iam::012345678901:role/a',
  RegistryId: '012345678901',
  SigningProfileArn: 'arn:aws:signer:eu-west-1:012345678901:/signing-profiles/ab',
  UploadId: '84b47cd7-fc7b-442f-b75b-309b93d2b2ee',
};

function sample(model: ServiceModel, name: string): unknown {
  const shape = model.shapes[name] as ModelShape;
  switch (shape.type) {
    case 'structure':
      return Object.fromEntries(
        Object.entries(shape.members ?? {}).map(([member, of]) => [member, sample(model, of)]),
      );
    case 'list':
      return Array.from({ length: Math.max(shape.min ?? 1, 1) }, () => sample(model, shape.member as string));
    case 'string':
      return SAMPLES[name] ?? shape.enum?.[0] ?? 'a'.repeat(shape.min ?? 1);
    case 'boolean':
      return true;
    case 'blob':
      return 'YQ==';
    case 'integer':
    case 'long':
      return shape.min ?? 1;
    default:
      throw new Error(`no sample of ${name}`);
  }
}

interface Break {
  readonly value: unknown;
  readonly reason: string;
}

/** Ways to break one value, each with AWS's reason. */
function breaks(model: ServiceModel, name: string): Break[] {
  const shape = model.shapes[name] as ModelShape;
  const { min, max, type } = shape;
  const number = type === 'integer' || type === 'long';
  const measured = number ? 'value' : 'length';
  const sized = (size: number): unknown =>
    number
      ? size
      : type === 'list'
        ? Array.from({ length: size }, () => sample(model, shape.member as string))
        : type === 'blob'
          ? Buffer.alloc(size).toString('base64')
          : '😀'.repeat(size);
  const found: Break[] = [];
  if (max !== undefined) {
    found.push({
      value: sized(max + 1),
      reason: `Member must have ${measured} less than or equal to ${max}`,
    });
  }
  if (min !== undefined && (number || min > 0)) {
    found.push({
      value: sized(min - 1),
      reason: `Member must have ${measured} greater than or equal to ${min}`,
    });
  }
  if (shape.enum !== undefined) {
    const reason = `Member must satisfy enum value set: [${enumOrder(shape.enum).join(', ')}]`;
    found.push({ value: 'NONE_OF_THESE', reason });
  }
  if (shape.pattern !== undefined) {
    const reason = `Member must satisfy regular expression pattern: ${shape.pattern}`;
    found.push({ value: ' '.repeat(Math.max(min ?? 1, 1)), reason });
  }
  return found;
}

function allConstraints(shape: ModelShape): string {
  const all = [
    shape.max !== undefined && `Member must have length less than or equal to ${shape.max}`,
    shape.min !== undefined && `Member must have length greater than or equal to ${shape.min}`,
    shape.enum !== undefined && `Member must satisfy enum value set: [${enumOrder(shape.enum).join(', ')}]`,
    shape.pattern !== undefined && `Member must satisfy regular expression pattern: ${shape.pattern}`,
  ];
  return all.filter((each) => each !== false).join(', ');
}

interface Case {
  readonly path: string;
  readonly input: unknown;
  readonly reason: string;
  readonly shape: string;
}

/** Every way to break exactly one constraint of a structure, with everything else good. */
function casesOf(model: ServiceModel, name: string): Case[] {
  const shape = model.shapes[name] as ModelShape;
  const good = sample(model, name) as Record<string, unknown>;
  return Object.entries(shape.members ?? {}).flatMap(([wire, of]) => {
    const put = (value: unknown): unknown => ({ ...good, [wire]: value });
    // tags alone have capitals on the wire (`Key`), none in messages
    const member = wire.slice(0, 1).toLowerCase() + wire.slice(1);
    const inner = model.shapes[of] as ModelShape;
    const cases: Case[] = [];
    if (shape.required?.includes(wire) === true) {
      cases.push({ path: member, input: put(null), reason: 'Member must not be null', shape: '' });
    }
    for (const { value, reason } of breaks(model, of)) {
      cases.push({ path: member, input: put(value), reason, shape: of });
    }
    if (inner.type === 'structure') {
      for (const each of casesOf(model, of)) {
        cases.push({ ...each, path: `${member}.${each.path}`, input: put(each.input) });
      }
    }
    if (inner.type === 'list') cases.push(...elementCases(model, member, inner, put));
    return cases;
  });
}

function elementCases(
  model: ServiceModel,
  member: string,
  list: ModelShape,
  put: (value: unknown) => unknown,
): Case[] {
  const of = list.member as string;
  const element = model.shapes[of] as ModelShape;
  if (element.type === 'structure') {
    return casesOf(model, of).map((each) => ({
      ...each,
      path: `${member}.1.member.${each.path}`,
      input: put([each.input]),
    }));
  }
  const reason = `Member must satisfy constraint: [${allConstraints(element)}]`;
  return breaks(model, of).map(({ value }) => ({ path: member, input: put([value]), reason, shape: '' }));
}

const REPOSITORY_NAME =
  "must satisfy regular expression '[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*'";

let generated = 0;
for (const [name, operation] of Object.entries(ecrModel.operations)) {
  test(`${name}: every constraint of the model, broken alone`, () => {
    const shape = operation.input as string;
    assert.equal(ecrMessage(name, sample(ecrModel, shape)), undefined);
    for (const { path, input, reason, shape: broken } of casesOf(ecrModel, shape)) {
      const own = broken === 'RepositoryName';
      const words = reason.includes('pattern') ? REPOSITORY_NAME : reason.replace('Member must', 'must');
      const expected = `Invalid parameter at '${path}' failed to satisfy constraint: '${own ? words : reason}'`;
      assert.equal(ecrMessage(name, input), expected);
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
