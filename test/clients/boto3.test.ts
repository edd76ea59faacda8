/** boto3, the SDK most programs use ECR and IAM with: paginators, waiters, errors by class, times, empty lists. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  ACCOUNT,
  awsVariables,
  makePlace,
  ok,
  readAdmin,
  ROOT,
  startBerth,
  stopBerth,
  type BerthServer,
  type Place,
} from './harness.ts';
import { findPython } from './python.ts';

const python = findPython();
const skip = python === undefined ? 'not installed: boto3 for python3' : false;

type Seen = Readonly<Record<string, unknown>>;

/** class, code, HTTP status, message */
const ERRORS: readonly (readonly [string, string, number, RegExp])[] = [
  ...same(
    'RepositoryNotFoundException',
    /^The repository with name 'no\/body' does not exist in the registry/,
  ),
  ...same(
    'RepositoryNotFoundException',
    /^The repository with name 'no\/body' does not exist in the registry/,
  ),
  ...same('RepositoryAlreadyExistsException', /'team\/r0' already exists/),
  ...same('RepositoryNotEmptyException', /'team\/r0'/),
  ...same('RepositoryPolicyNotFoundException', /^Repository policy does not exist/),
  ...same('LifecyclePolicyNotFoundException', /^Lifecycle policy does not exist/),
  ...same('LifecyclePolicyPreviewNotFoundException', /^Lifecycle policy preview does not exist/),
  ...same('RegistryPolicyNotFoundException', /^Registry policy does not exist/),
  ...same('ImageNotFoundException', /imageTag:'none'/),
  ...same('ImageAlreadyExistsException', /already exists/),
  ...same('ImageTagAlreadyExistsException', /tag 'v4' already exists.*immutable/),
  ...same('LayersNotFoundException', /sha256:/),
  ...same('UploadNotFoundException', /00000000-0000-0000-0000-000000000000/),
  ...same('InvalidParameterException', /^Invalid parameter at 'repositoryName'/),
  ['ClientError', 'OperationNotBuilt', 501, /Pull-through caches are not built/],
  ['NoSuchEntityException', 'NoSuchEntity', 404, /user with name nobody cannot be found/],
  ['EntityAlreadyExistsException', 'EntityAlreadyExists', 409, /user0 already exists/],
  ['MalformedPolicyDocumentException', 'MalformedPolicyDocument', 400, /./],
];

/** ECR's errors: the class is the code, the status 400. */
function same(code: string, message: RegExp): [[string, string, number, RegExp]] {
  return [[code, code, 400, message]];
}

describe('boto3', { skip }, () => {
  let place: Place;
  let server: BerthServer;
  let seen: Seen;

  before(async () => {
    place = await makePlace('boto3');
    server = await startBerth({ data: join(place.directory, 'data') });
    const environment = { ...place.environment, ...awsVariables(server, await readAdmin(server.data)) };
    const script = join(ROOT, 'test', 'clients', 'boto3-walk.py');
    // -B: no compiled files beside the script
    seen = JSON.parse(await ok([python ?? '', '-B', script], { environment })) as Seen;
  });

  after(async () => {
    if (!server.hasExited()) await stopBerth(server);
    await place.remove();
  });

  test('lists are there when they are empty', () => {
    assert.equal(seen['account'], ACCOUNT);
    assert.deepEqual(seen['empty'], {
      describe_repositories: [],
      list_policies: [],
      list_roles: [],
      paginator: [[0], []],
      list_images: [],
      describe_images: [],
      list_tags: [],
    });
  });

  test('paginators give every item once, in pages of the size asked for', () => {
    const repositories = ['team/r0', 'team/r1', 'team/r2', 'team/r3', 'team/r4'];
    const tags = ['v0', 'v1', 'v2', 'v3', 'v4'];
    assert.deepEqual(seen['describe_repositories'], [[2, 2, 1], repositories]);
    assert.deepEqual(seen['describe_images'], [[2, 2, 1], tags]);
    assert.deepEqual(seen['list_images'], [[2, 2, 1], tags]);
    const users = ['admin', 'user0', 'user1', 'user2', 'user3', 'user4'];
    assert.deepEqual(seen['list_users'], [[2, 2, 2], users]);
    assert.deepEqual(seen['list_policies'], [
      [2, 1],
      ['policy0', 'policy1', 'policy2'],
    ]);
    assert.deepEqual(seen['resumed'], [repositories.slice(0, 3), repositories.slice(3)]);
    assert.deepEqual(seen['search'], ['team/r3']);
  });

  test('the waiter lifecycle_policy_preview_complete, and the preview it waited for', () => {
    assert.equal(seen['started'], 'IN_PROGRESS');
    assert.equal(seen['preview status'], 'COMPLETE');
    assert.equal(seen['summary'], 3);
    const [lengths, tags] = seen['preview'] as [number[], string[][]];
    assert.deepEqual(lengths, [1, 1, 1]);
    assert.deepEqual(tags.flat().sort(), ['v0', 'v1', 'v2']);
    assert.equal(seen['waiter error'], 'LifecyclePolicyPreviewNotFoundException');
  });

  test('times are aware datetimes', () => {
    const times = ['createdAt', 'imagePushedAt', 'preview', 'expiresAt', 'CreateDate'];
    assert.deepEqual(seen['times'], Object.fromEntries(times.map((name) => [name, true])));
  });

  test('errors have the classes of the service model', () => {
    const errors = seen['errors'] as readonly (readonly [string, string, number, string] | null)[];
    assert.deepEqual(
      errors.map((error) => error?.slice(0, 3)),
      ERRORS.map((error) => error.slice(0, 3)),
    );
    for (const [i, [name, , , message]] of ERRORS.entries())
      assert.match(errors[i]?.[3] ?? '', message, `${i} ${name}`);
  });

  test('a partial failure is an answer, a refusal an error', () => {
    const [digest] = seen['images'] as string[];
    assert.deepEqual(seen['batch'], [
      [{ imageDigest: digest, imageTag: 'v0' }],
      [[{ imageTag: 'none' }, 'ImageNotFound']],
    ]);
    assert.deepEqual(seen['denied'], [
      'ClientError',
      'AccessDeniedException',
      400,
      `User: arn:aws:iam::${ACCOUNT}:user/user0 is not authorized to perform: ecr:DescribeRepositories on resource: ` +
        `arn:aws:ecr:us-east-1:${ACCOUNT}:repository/team/r0 because no identity-based policy allows the ` +
        'ecr:DescribeRepositories action',
    ]);
  });
});
