import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, deny, onEveryStore, policyText, ROOT } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';

const VALID = policyText([allow('ecr:GetAuthorizationToken')]);
const policyOf = (name: string, path = '/') => `arn:aws:iam::${ACCOUNT}:policy${path}${name}`;
const AWS_READ_ONLY = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';

/** A policy of exactly `size` characters that are not white space. */
function policyOfSize(size: number): string {
  const empty = policyText([{ ...allow('s3:GetObject'), Sid: '' }]).length;
  return policyText([{ ...allow('s3:GetObject'), Sid: 'A'.repeat(size - empty) }]);
}

const refuses = (promise: Promise<unknown>, code: string, message: string) =>
  assert.rejects(promise, { name: 'Fault', code, message });

await onEveryStore((fixture) => {
  let f: Fixture;
  before(() => {
    f = fixture();
  });

  describe('refusals', () => {
    const withUser = (more: Structure = {}): Structure => ({ UserName: 'bob', ...more });
    const cases: readonly (readonly [
      name: string,
      operation: string,
      input: Structure,
      code: string,
      message: string,
    ])[] = [
      [
        'user exists',
        'CreateUser',
        { UserName: 'BOB' },
        'EntityAlreadyExists',
        'User with name BOB already exists.',
      ],
      [
        'user missing',
        'DeleteUser',
        { UserName: 'nobody' },
        'NoSuchEntity',
        'The user with name nobody cannot be found.',
      ],
      [
        'user by other case',
        'GetUser',
        { UserName: 'Bob' },
        'NoSuchEntity',
        'The user with name Bob cannot be found.',
      ],
      [
        'rename to a taken name',
        'UpdateUser',
        withUser({ NewUserName: 'Admin' }),
        'EntityAlreadyExists',
        'User with name Admin already exists.',
      ],
      [
        'delete with inline policies',
        'DeleteUser',
        withUser(),
        'DeleteConflict',
        'Cannot delete entity, must delete policies first.',
      ],
      [
        'delete with attachments',
        'DeleteUser',
        { UserName: 'attached' },
        'DeleteConflict',
        'Cannot delete entity, must detach all policies first.',
      ],
      [
        'delete with keys',
        'DeleteUser',
        { UserName: 'keyed' },
        'DeleteConflict',
        'Cannot delete entity, must delete access keys first.',
      ],
      [
        'boundary is no policy',
        'PutUserPermissionsBoundary',
        withUser({ PermissionsBoundary: 'arn:aws:iam::aws:role/xxxxxx' }),
        'InvalidParameterValue',
        'Value (arn:aws:iam::aws:role/xxxxxx) for parameter PermissionsBoundary is invalid.',
      ],
      [
        'boundary missing',
        'CreateUser',
        { UserName: 'bounded', PermissionsBoundary: policyOf('none') },
        'NoSuchEntity',
        `Policy ${policyOf('none')} does not exist or is not attachable.`,
      ],
      [
        'duplicate tag keys',
        'TagUser',
        withUser({
          Tags: [
            { Key: 'a', Value: '1' },
            { Key: 'A', Value: '2' },
          ],
        }),
        'InvalidInput',
        'Duplicate tag keys found. Please note that Tag keys are case insensitive.',
      ],
      [
        'inline policy missing',
        'GetUserPolicy',
        withUser({ PolicyName: 'none' }),
        'NoSuchEntity',
        'The user policy with name none cannot be found.',
      ],
      [
        'inline policy to delete missing',
        'DeleteUserPolicy',
        withUser({ PolicyName: 'none' }),
        'NoSuchEntity',
        'The user policy with name none cannot be found.',
      ],
      [
        'inline policy malformed',
        'PutUserPolicy',
        withUser({ PolicyName: 'p', PolicyDocument: '{' }),
        'MalformedPolicyDocument',
        'Syntax errors in policy.',
      ],
      [
        'inline policy without actions',
        'PutUserPolicy',
        withUser({ PolicyName: 'p', PolicyDocument: policyText([{ Effect: 'Allow', Resource: '*' }]) }),
        'MalformedPolicyDocument',
        'Policy statement must contain actions.',
      ],
      [
        'inline policies too long',
        'PutUserPolicy',
        withUser({ PolicyName: 'p', PolicyDocument: policyOfSize(2049 - VALID.length) }),
        'LimitExceeded',
        'Maximum policy size of 2048 bytes exceeded for user bob',
      ],
      [
        'key missing',
        'UpdateAccessKey',
        withUser({ AccessKeyId: 'AKIANONE000000000000', Status: 'Inactive' }),
        'NoSuchEntity',
        'The Access Key with id AKIANONE000000000000 cannot be found',
      ],
      [
        'key of somebody else',
        'DeleteAccessKey',
        withUser({ AccessKeyId: ROOT.id }),
        'NoSuchEntity',
        `The Access Key with id ${ROOT.id} cannot be found`,
      ],
      [
        'use of a missing key',
        'GetAccessKeyLastUsed',
        { AccessKeyId: 'AKIANONE000000000000' },
        'NoSuchEntity',
        'The Access Key with id AKIANONE000000000000 cannot be found',
      ],
      [
        'attach what is missing',
        'AttachUserPolicy',
        withUser({ PolicyArn: policyOf('none') }),
        'NoSuchEntity',
        `Policy ${policyOf('none')} does not exist or is not attachable.`,
      ],
      [
        'attach an unknown policy of AWS',
        'AttachUserPolicy',
        withUser({ PolicyArn: 'arn:aws:iam::aws:policy/Nothing' }),
        'NoSuchEntity',
        'Policy arn:aws:iam::aws:policy/Nothing does not exist or is not attachable.',
      ],
      [
        'attach no ARN',
        'AttachUserPolicy',
        withUser({ PolicyArn: 'just some twenty characters' }),
        'ValidationError',
        'Invalid ARN:  Could not be parsed!',
      ],
      [
        'attach another ARN',
        'AttachUserPolicy',
        withUser({ PolicyArn: `arn:aws:iam::${ACCOUNT}:user/bob` }),
        'InvalidInput',
        `ARN arn:aws:iam::${ACCOUNT}:user/bob is not valid.`,
      ],
      [
        'detach what is not attached',
        'DetachUserPolicy',
        withUser({ PolicyArn: AWS_READ_ONLY }),
        'NoSuchEntity',
        `Policy ${AWS_READ_ONLY} was not found.`,
      ],
      [
        'policy exists',
        'CreatePolicy',
        { PolicyName: 'POL', Path: '/x/', PolicyDocument: VALID },
        'EntityAlreadyExists',
        'A policy called POL already exists. Duplicate names are not allowed.',
      ],
      [
        'policy missing',
        'ListPolicyVersions',
        { PolicyArn: policyOf('none') },
        'NoSuchEntity',
        `Policy ${policyOf('none')} was not found.`,
      ],
      [
        'policy too long',
        'CreatePolicy',
        { PolicyName: 'long', PolicyDocument: policyOfSize(6145) },
        'LimitExceeded',
        'Cannot exceed quota for PolicySize: 6144',
      ],
      [
        'version missing',
        'GetPolicyVersion',
        { PolicyArn: policyOf('pol'), VersionId: 'v9' },
        'NoSuchEntity',
        `Policy ${policyOf('pol')} version v9 does not exist or is not attachable.`,
      ],
      [
        'version with a suffix',
        'SetDefaultPolicyVersion',
        { PolicyArn: policyOf('pol'), VersionId: 'v1.x' },
        'NoSuchEntity',
        `Policy ${policyOf('pol')} version v1.x does not exist or is not attachable.`,
      ],
      [
        'default version',
        'DeletePolicyVersion',
        { PolicyArn: policyOf('pol'), VersionId: 'v1' },
        'DeleteConflict',
        'Cannot delete the default version of a policy.',
      ],
      [
        'marker of another make',
        'ListUsers',
        { Marker: 'bm9uc2Vuc2U=' },
        'ValidationError',
        'Invalid Marker.',
      ],
      [
        'login profile',
        'GetLoginProfile',
        withUser(),
        'NoSuchEntity',
        'Login Profile for User bob cannot be found.',
      ],
    ];

    before(async () => {
      await f.call('CreateUser', { UserName: 'bob' });
      await f.call('PutUserPolicy', { UserName: 'bob', PolicyName: 'inline', PolicyDocument: VALID });
      await f.call('CreateUser', { UserName: 'attached' });
      await f.call('AttachUserPolicy', { UserName: 'attached', PolicyArn: AWS_READ_ONLY });
      await f.makeUser('keyed');
      await f.call('CreatePolicy', { PolicyName: 'pol', PolicyDocument: VALID });
    });

    for (const [name, operation, input, code, message] of cases) {
      it(`${operation}: ${name}`, () => refuses(f.call(operation, input), code, message));
    }

    it('quotas of attachments and tags', async () => {
      await f.call('CreateUser', { UserName: 'full' });
      for (let i = 0; i < 11; i++) {
        const PolicyArn = policyOf(`full${i}`);
        await f.call('CreatePolicy', { PolicyName: `full${i}`, PolicyDocument: VALID });
        const attaching = f.call('AttachUserPolicy', { UserName: 'full', PolicyArn });
        if (i < 10) await attaching;
        else await refuses(attaching, 'LimitExceeded', 'Cannot exceed quota for PoliciesPerUser: 10');
      }
      const { AttachedPolicies } = await f.call('ListAttachedUserPolicies', { UserName: 'full' });
      assert.equal((AttachedPolicies as Structure[]).length, 10);
      const tags = (prefix: string, count: number) =>
        Array.from({ length: count }, (_, i) => ({ Key: `${prefix}${i}`, Value: '' }));
      await f.call('TagUser', { UserName: 'full', Tags: tags('a', 50) });
      await refuses(
        f.call('TagUser', { UserName: 'full', Tags: tags('b', 1) }),
        'LimitExceeded',
        'The number of tags has reached the maximum limit.',
      );
    });

    it('inline policies at exactly the quota, white space not counted', async () => {
      const PolicyDocument = policyOfSize(2048).replace('{', '{ \n\t');
      await f.call('CreateUser', { UserName: 'exact' });
      await f.call('PutUserPolicy', { UserName: 'exact', PolicyName: 'p', PolicyDocument });
      const { PolicyDocument: encoded } = await f.call('GetUserPolicy', {
        UserName: 'exact',
        PolicyName: 'p',
      });
      assert.equal(decodeURIComponent(String(encoded)), PolicyDocument);
    });
  });

  describe('listings', () => {
    /** Everything a listing has, read in pages of `size`. */
    async function pages(
      operation: string,
      input: Structure,
      member: string,
      size: number,
    ): Promise<unknown[]> {
      const all: unknown[] = [];
      let marker: string | undefined;
      for (;;) {
        const page = await f.call(operation, { ...input, MaxItems: size, ...(marker && { Marker: marker }) });
        const items = page[member] as unknown[];
        assert.ok(items.length <= size);
        all.push(...items);
        assert.equal(page['IsTruncated'], page['Marker'] !== undefined);
        if (page['Marker'] === undefined) return all;
        marker = String(page['Marker']);
        assert.ok(marker.length <= 320);
      }
    }

    it('are their pages one after the other, whatever the size', async () => {
      for (const name of ['z_', 'Z.', 'y=', 'zA', 'y-'])
        await f.call('CreateUser', { UserName: name, Path: '/paged/' });
      const long = 'ä'.repeat(120);
      await f.call('CreateUser', { UserName: 'pager' });
      await f.call('TagUser', {
        UserName: 'pager',
        Tags: ['1', '2', '3'].map((k) => ({ Key: `${long}${k}`, Value: k })),
      });
      for (const n of ['a', 'B', 'c']) {
        await f.call('PutUserPolicy', { UserName: 'pager', PolicyName: `p${n}`, PolicyDocument: VALID });
        await f.call('CreatePolicy', { PolicyName: `Paged${n}`, PolicyDocument: VALID, Path: '/paged/' });
        await f.call('AttachUserPolicy', { UserName: 'pager', PolicyArn: policyOf(`Paged${n}`, '/paged/') });
      }
      const listings: readonly (readonly [string, Structure, string, number])[] = [
        ['ListUsers', { PathPrefix: '/paged/' }, 'Users', 5],
        ['ListUserTags', { UserName: 'pager' }, 'Tags', 3],
        ['ListUserPolicies', { UserName: 'pager' }, 'PolicyNames', 3],
        ['ListAttachedUserPolicies', { UserName: 'pager' }, 'AttachedPolicies', 3],
        ['ListPolicies', { PathPrefix: '/paged/' }, 'Policies', 3],
        ['ListPolicies', {}, 'Policies', 14],
        ['ListEntitiesForPolicy', { PolicyArn: policyOf('Pageda', '/paged/') }, 'PolicyUsers', 1],
      ];
      for (const [operation, input, member, least] of listings) {
        const whole = await pages(operation, input, member, 1000);
        assert.ok(whole.length >= least, operation);
        for (const size of [1, 2, 4]) assert.deepEqual(await pages(operation, input, member, size), whole);
      }
      assert.deepEqual(await pages('ListUserPolicies', { UserName: 'pager' }, 'PolicyNames', 2), [
        'pB',
        'pa',
        'pc',
      ]);
    });
  });

  describe('secrets', () => {
    it('leave in the answer of CreateAccessKey and nowhere else', async () => {
      const key = await f.makeUser('secretive', [allow('*')]);
      const secrets = [key.secret, f.admin.secret, ROOT.secret];
      const answers: unknown[] = [];
      for (const [name, entry] of Object.entries(f.table)) {
        if ('notBuilt' in entry || /^(Create|Delete|Update|Put|Attach|Detach|Tag|Untag|Set)/.test(name))
          continue;
        for (const as of [key, f.admin, ROOT]) {
          for (const input of [
            { UserName: 'secretive' },
            { AccessKeyId: key.id },
            { PolicyArn: AWS_READ_ONLY, VersionId: 'v3' },
          ]) {
            const answer = await f
              .call(name, input as Structure, { as })
              .catch((error: Error) => error.message);
            answers.push(answer);
          }
        }
      }
      const text = JSON.stringify(answers);
      assert.ok(text.includes('secretive'));
      for (const secret of secrets) assert.ok(!text.includes(secret));
      const rows = await f.store.read.selectFrom('iam_access_key').selectAll().execute();
      for (const row of rows)
        for (const secret of secrets) assert.ok(!Buffer.from(row.secret).includes(secret));
    });
  });

  describe('STS', () => {
    it('GetCallerIdentity answers whoever is denied everything', async () => {
      const key = await f.makeUser('denied', [deny('*')]);
      const { User } = await f.call('GetUser', { UserName: 'denied' });
      assert.deepEqual(await f.call('GetCallerIdentity', {}, { as: key }), {
        UserId: (User as Structure)['UserId'],
        Account: ACCOUNT,
        Arn: `arn:aws:iam::${ACCOUNT}:user/denied`,
      });
      assert.deepEqual(await f.call('GetCallerIdentity', {}, { as: ROOT }), {
        UserId: ACCOUNT,
        Account: ACCOUNT,
        Arn: `arn:aws:iam::${ACCOUNT}:root`,
      });
    });

    it('GetAccessKeyInfo reads the account from the id, or finds it', async () => {
      assert.deepEqual(await f.call('GetAccessKeyInfo', { AccessKeyId: f.admin.id }), { Account: ACCOUNT });
      assert.deepEqual(await f.call('GetAccessKeyInfo', { AccessKeyId: ROOT.id }), { Account: ACCOUNT });
      assert.deepEqual(await f.call('GetAccessKeyInfo', { AccessKeyId: 'ASIAQNZGKIQY56JQ7WML' }), {
        Account: '029608264753',
      });
      await refuses(
        f.call('GetAccessKeyInfo', { AccessKeyId: 'AKIA0000000000000000' }),
        'ValidationError',
        'The specified value for accessKeyId is invalid.',
      );
    });
  });
});
