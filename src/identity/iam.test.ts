import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { iamModel, stsModel } from '../model/service-model.ts';
import { checkTable } from '../protocol/protocol.ts';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, NOW, onEveryStore, policyText, ROOT } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';
import { iamOperations, stsOperations } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { validateIdentityPolicy } from '../policy/policy.ts';

const VALID = policyText([allow('ecr:GetAuthorizationToken')]);
const policyOf = (name: string, path = '/') => `arn:aws:iam::${ACCOUNT}:policy${path}${name}`;
const AWS_READ_ONLY = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
const PULL_THROUGH = 'arn:aws:iam::aws:policy/aws-service-role/AWSECRPullThroughCache_ServiceRolePolicy';

const refuses = (promise: Promise<unknown>, code: string, message: string) =>
  assert.rejects(promise, { name: 'Fault', code, message });

await onEveryStore((fixture) => {
  let f: Fixture;
  before(() => {
    f = fixture();
  });

  describe('operation tables', () => {
    it('agree with the models', () => {
      checkTable(iamModel, iamOperations(f));
      checkTable(stsModel, stsOperations(f));
    });
  });

  describe('users', () => {
    it('go through their life', async () => {
      const created = await f.call('CreateUser', {
        UserName: 'Alice',
        Path: '/dev/',
        PermissionsBoundary: AWS_READ_ONLY,
        Tags: [{ Key: 'Team', Value: 'blue' }],
      });
      const { UserId } = created['User'] as Structure;
      assert.match(String(UserId), /^AIDA[A-Z2-7]{17}$/);
      const user = {
        Path: '/dev/',
        UserName: 'Alice',
        UserId,
        Arn: `arn:aws:iam::${ACCOUNT}:user/dev/Alice`,
        CreateDate: new Date(NOW),
      };
      const boundary = {
        PermissionsBoundary: { PermissionsBoundaryType: 'Policy', PermissionsBoundaryArn: AWS_READ_ONLY },
      };
      assert.deepEqual(created, { User: { ...user, ...boundary, Tags: [{ Key: 'Team', Value: 'blue' }] } });
      assert.deepEqual(await f.call('GetUser', { UserName: 'Alice' }), created);
      assert.deepEqual(await f.call('ListUsers', { PathPrefix: '/dev/' }), {
        Users: [user],
        IsTruncated: false,
      });

      await f.call('TagUser', {
        UserName: 'Alice',
        Tags: [
          { Key: 'team', Value: 'red' },
          { Key: 'Cost', Value: '' },
        ],
      });
      assert.deepEqual(await f.call('ListUserTags', { UserName: 'Alice' }), {
        Tags: [
          { Key: 'Cost', Value: '' },
          { Key: 'team', Value: 'red' },
        ],
        IsTruncated: false,
      });
      await f.call('UntagUser', { UserName: 'Alice', TagKeys: ['Team', 'absent'] });
      await f.call('DeleteUserPermissionsBoundary', { UserName: 'Alice' });
      await f.call('UpdateUser', { UserName: 'Alice', NewUserName: 'alice', NewPath: '/' });
      assert.deepEqual(await f.call('GetUser', { UserName: 'alice' }), {
        User: {
          ...user,
          Path: '/',
          UserName: 'alice',
          Arn: `arn:aws:iam::${ACCOUNT}:user/alice`,
          Tags: [{ Key: 'Cost', Value: '' }],
        },
      });
      assert.deepEqual(await f.call('ListGroupsForUser', { UserName: 'alice' }), {
        Groups: [],
        IsTruncated: false,
      });
      await f.call('DeleteUser', { UserName: 'alice' });
      await refuses(
        f.call('GetUser', { UserName: 'alice' }),
        'NoSuchEntity',
        'The user with name alice cannot be found.',
      );
    });

    it('are the caller when none is named', async () => {
      const key = await f.makeUser('selfish', [allow('iam:*')]);
      const { User } = await f.call('GetUser', {}, { as: key });
      assert.equal((User as Structure)['UserName'], 'selfish');
      const { AccessKeyMetadata } = await f.call('ListAccessKeys', {}, { as: key });
      assert.deepEqual(AccessKeyMetadata, [
        { UserName: 'selfish', AccessKeyId: key.id, Status: 'Active', CreateDate: new Date(NOW) },
      ]);
      assert.deepEqual(await f.call('GetUser', {}, { as: ROOT }), {
        User: { UserId: ACCOUNT, Arn: `arn:aws:iam::${ACCOUNT}:root`, CreateDate: new Date(NOW) },
      });
      assert.deepEqual(await f.call('ListAccessKeys', {}, { as: ROOT }), {
        AccessKeyMetadata: [
          { UserName: undefined, AccessKeyId: ROOT.id, Status: 'Active', CreateDate: new Date(NOW) },
        ],
        IsTruncated: false,
      });
      await refuses(
        f.call('CreateAccessKey', {}, { as: ROOT }),
        'ValidationError',
        'Must specify userName when calling with non-User credentials',
      );
    });

    it('have unique names ignoring case, also when two are created at once', async () => {
      const results = await Promise.allSettled(
        ['Race', 'race', 'RACE'].map((UserName) => f.call('CreateUser', { UserName })),
      );
      assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1);
      for (const result of results) {
        if (result.status === 'rejected') assert.equal(result.reason.code, 'EntityAlreadyExists');
      }
    });
  });

  describe('access keys', () => {
    it('are at most two, also when made at once', async () => {
      await f.call('CreateUser', { UserName: 'keys' });
      const results = await Promise.allSettled(
        Array.from({ length: 6 }, () => f.call('CreateAccessKey', { UserName: 'keys' })),
      );
      assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 2);
      for (const result of results) {
        if (result.status !== 'rejected') continue;
        assert.equal(result.reason.code, 'LimitExceeded');
        assert.equal(result.reason.message, 'Cannot exceed quota for AccessKeysPerUser: 2');
      }
    });

    it('tell when they were last used', async () => {
      const { id } = await f.makeUser('used');
      assert.deepEqual(await f.call('GetAccessKeyLastUsed', { AccessKeyId: id }), {
        UserName: 'used',
        AccessKeyLastUsed: { ServiceName: 'N/A', Region: 'N/A' },
      });
      f.identity.recordKeyUse(id, 'sts', 'eu-west-1', NOW + 1000);
      f.identity.recordKeyUse(id, 'ecr', 'eu-west-2', NOW + 2000);
      assert.deepEqual(await f.call('GetAccessKeyLastUsed', { AccessKeyId: id }), {
        UserName: 'used',
        AccessKeyLastUsed: { LastUsedDate: new Date(NOW + 2000), ServiceName: 'ecr', Region: 'eu-west-2' },
      });
    });

    it('stop working when inactive or deleted, at once', async () => {
      const key = await f.makeUser('stopped', [allow('sts:*')]);
      assert.equal(typeof (await f.identity.findKey(key.id, undefined)), 'object');
      const input = { UserName: 'stopped', AccessKeyId: key.id };
      await f.call('UpdateAccessKey', { ...input, Status: 'Inactive' });
      assert.equal(await f.identity.findKey(key.id, undefined), undefined);
      await f.call('UpdateAccessKey', { ...input, Status: 'Active' });
      assert.equal(await f.identity.findKey(key.id, 'a session token', NOW), 'invalid-token');
      await f.call('DeleteAccessKey', input);
      assert.equal(await f.identity.findKey(key.id, undefined), undefined);
    });
  });

  describe('managed policies', () => {
    it('of AWS are good documents under unique ids', () => {
      for (const { document, name } of MANAGED_POLICIES.values()) {
        assert.equal(validateIdentityPolicy(document), undefined, name);
      }
      assert.equal(new Set([...MANAGED_POLICIES.values()].map(({ id }) => id)).size, MANAGED_POLICIES.size);
    });

    it('go through their life', async () => {
      const arn = policyOf('life', '/team/');
      const { Policy } = await f.call('CreatePolicy', {
        PolicyName: 'life',
        Path: '/team/',
        PolicyDocument: VALID,
        Description: 'a life',
      });
      const { PolicyId } = Policy as Structure;
      assert.match(String(PolicyId), /^ANPA[A-Z2-7]{17}$/);
      const shown = {
        PolicyName: 'life',
        PolicyId,
        Arn: arn,
        Path: '/team/',
        DefaultVersionId: 'v1',
        AttachmentCount: 0,
        PermissionsBoundaryUsageCount: 0,
        IsAttachable: true,
        CreateDate: new Date(NOW),
        UpdateDate: new Date(NOW),
      };
      assert.deepEqual(Policy, shown);
      const written =
        '{"Version":"2012-10-17",\n "Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}';
      assert.deepEqual(
        await f.call('CreatePolicyVersion', { PolicyArn: arn, PolicyDocument: written, SetAsDefault: true }),
        { PolicyVersion: { VersionId: 'v2', IsDefaultVersion: true, CreateDate: new Date(NOW) } },
      );
      const { PolicyVersion } = await f.call('GetPolicyVersion', { PolicyArn: arn, VersionId: 'v2' });
      const encoded = String((PolicyVersion as Structure)['Document']);
      assert.doesNotMatch(encoded, /[^A-Za-z0-9._~%-]/);
      assert.equal(decodeURIComponent(encoded), written);
      assert.match(encoded, /s3%3A%2A/);

      await f.call('CreateUser', { UserName: 'lifer', PermissionsBoundary: arn });
      await f.call('AttachUserPolicy', { UserName: 'lifer', PolicyArn: arn });
      await f.call('AttachUserPolicy', { UserName: 'lifer', PolicyArn: arn });
      assert.deepEqual(await f.call('GetPolicy', { PolicyArn: arn }), {
        Policy: {
          ...shown,
          DefaultVersionId: 'v2',
          AttachmentCount: 1,
          PermissionsBoundaryUsageCount: 1,
          Description: 'a life',
          Tags: [],
        },
      });
      const entities = await f.call('ListEntitiesForPolicy', {
        PolicyArn: arn,
        PolicyUsageFilter: 'PermissionsBoundary',
      });
      assert.deepEqual(
        (entities['PolicyUsers'] as Structure[]).map((user) => user['UserName']),
        ['lifer'],
      );
      assert.deepEqual(await f.call('ListAttachedUserPolicies', { UserName: 'lifer' }), {
        AttachedPolicies: [{ PolicyName: 'life', PolicyArn: arn }],
        IsTruncated: false,
      });
      assert.deepEqual(
        await f.call('ListAttachedUserPolicies', { UserName: 'lifer', PathPrefix: '/other/' }),
        {
          AttachedPolicies: [],
          IsTruncated: false,
        },
      );
      await refuses(
        f.call('DeletePolicy', { PolicyArn: arn }),
        'DeleteConflict',
        'Cannot delete a policy attached to entities.',
      );
      await f.call('DetachUserPolicy', { UserName: 'lifer', PolicyArn: arn });
      await refuses(
        f.call('DeletePolicy', { PolicyArn: arn }),
        'DeleteConflict',
        'Cannot delete a policy attached to entities.',
      );
      await f.call('DeleteUser', { UserName: 'lifer' });
      await refuses(
        f.call('DeletePolicy', { PolicyArn: arn }),
        'DeleteConflict',
        "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. " +
          'The default version is deleted with the policy.',
      );
      await f.call('SetDefaultPolicyVersion', { PolicyArn: arn, VersionId: 'v1' });
      await f.call('DeletePolicyVersion', { PolicyArn: arn, VersionId: 'v2' });
      const third = await f.call('CreatePolicyVersion', { PolicyArn: arn, PolicyDocument: VALID });
      assert.equal((third['PolicyVersion'] as Structure)['VersionId'], 'v3');
      await f.call('DeletePolicyVersion', { PolicyArn: arn, VersionId: 'v3' });
      await f.call('TagPolicy', { PolicyArn: arn, Tags: [{ Key: 'a', Value: 'b' }] });
      assert.deepEqual(await f.call('ListPolicyTags', { PolicyArn: arn }), {
        Tags: [{ Key: 'a', Value: 'b' }],
        IsTruncated: false,
      });
      await f.call('UntagPolicy', { PolicyArn: arn, TagKeys: ['A'] });
      await f.call('DeletePolicy', { PolicyArn: arn });
      await refuses(f.call('GetPolicy', { PolicyArn: arn }), 'NoSuchEntity', `Policy ${arn} was not found.`);
    });

    it('have five versions at most', async () => {
      const PolicyArn = policyOf('five');
      await f.call('CreatePolicy', { PolicyName: 'five', PolicyDocument: VALID });
      for (let i = 0; i < 4; i++) await f.call('CreatePolicyVersion', { PolicyArn, PolicyDocument: VALID });
      await refuses(
        f.call('CreatePolicyVersion', { PolicyArn, PolicyDocument: VALID }),
        'LimitExceeded',
        'A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing version.',
      );
      const { Versions } = await f.call('ListPolicyVersions', { PolicyArn });
      assert.deepEqual(
        (Versions as Structure[]).map((v) => [v['VersionId'], v['IsDefaultVersion']]),
        [
          ['v5', false],
          ['v4', false],
          ['v3', false],
          ['v2', false],
          ['v1', true],
        ],
      );
    });

    it('of AWS are there and attachable, those of services are not', async () => {
      const { Policy } = await f.call('GetPolicy', {
        PolicyArn: 'arn:aws:iam::aws:policy/AdministratorAccess',
      });
      assert.equal((Policy as Structure)['PolicyId'], 'ANPAIWMBCKSKIEE64ZLYK');
      assert.equal((Policy as Structure)['AttachmentCount'], 1);
      const listed = await f.call('ListPolicies', { Scope: 'AWS', PathPrefix: '/aws-service-role/' });
      assert.deepEqual(
        (listed['Policies'] as Structure[]).map((p) => [p['PolicyName'], p['IsAttachable']]),
        [
          ['AWSECRPullThroughCache_ServiceRolePolicy', false],
          ['ECRReplicationServiceRolePolicy', false],
          ['ECRTemplateServiceRolePolicy', false],
        ],
      );
      const attached = await f.call('ListPolicies', { Scope: 'AWS', OnlyAttached: true });
      assert.deepEqual(
        (attached['Policies'] as Structure[]).map((p) => p['PolicyName']),
        ['AdministratorAccess'],
      );
      await f.call('CreateUser', { UserName: 'managed' });
      await refuses(
        f.call('AttachUserPolicy', { UserName: 'managed', PolicyArn: PULL_THROUGH }),
        'PolicyNotAttachable',
        'Cannot attach a Service Role Policy to a Customer Role.',
      );
      await refuses(
        f.call('DeletePolicy', { PolicyArn: AWS_READ_ONLY }),
        'AccessDeniedException',
        `User: arn:aws:iam::${ACCOUNT}:user/admin is not authorized to perform: iam:DeletePolicy on resource: policy ${AWS_READ_ONLY} because no resource-based policy allows the iam:DeletePolicy action`,
      );
    });
  });
});
