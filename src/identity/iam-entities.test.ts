import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, factsOf, NOW, onEveryStore, policyText } from '../../test/identity.ts';
import type { Fixture, TestCredentials } from '../../test/identity.ts';

const READ_ONLY = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly';
const refuses = (promise: Promise<unknown>, code: string, message: string | RegExp) =>
  assert.rejects(promise, { name: 'Fault', code, message });
const arnOf = (rest: string) => `arn:aws:iam::${ACCOUNT}:${rest}`;
const TRUST = policyText([
  { Effect: 'Allow', Principal: { Service: 'ec2.amazonaws.com' }, Action: 'sts:AssumeRole' },
]);
const trusting = (principal: string) =>
  policyText([{ Effect: 'Allow', Principal: { AWS: principal }, Action: 'sts:AssumeRole' }]);
await onEveryStore((fixture) => {
  let f: Fixture;
  before(() => {
    f = fixture();
  });
  const member = async (name: string, input: Structure, of: string) =>
    (await f.call(name, input))[of] as Structure;
  const may = async (key: TestCredentials, action: string, resource = '*') => {
    const found = await f.identity.findKey(key.id, key.token, NOW);
    assert.ok(typeof found === 'object');
    return (await f.identity.decide(found.caller, { action, resource }, factsOf())).allowed;
  };

  describe('groups', () => {
    it('go through their life, and their policies are their members', async () => {
      const group = await member('CreateGroup', { GroupName: 'Builders', Path: '/ci/' }, 'Group');
      assert.match(String(group['GroupId']), /^AGPA[A-Z2-7]{17}$/);
      assert.deepEqual(group, {
        Path: '/ci/',
        GroupName: 'Builders',
        GroupId: group['GroupId'],
        Arn: arnOf('group/ci/Builders'),
        CreateDate: new Date(NOW),
      });
      await refuses(
        f.call('CreateGroup', { GroupName: 'builders' }),
        'EntityAlreadyExists',
        'Group with name builders already exists.',
      );
      const key = await f.makeUser('gus');
      assert.equal(await may(key, 'ecr:GetAuthorizationToken'), false);
      await f.call('AttachGroupPolicy', { GroupName: 'Builders', PolicyArn: READ_ONLY });
      await f.call('PutGroupPolicy', {
        GroupName: 'Builders',
        PolicyName: 'more',
        PolicyDocument: policyText([allow('ecr:PutImage')]),
      });
      await f.call('AddUserToGroup', { GroupName: 'Builders', UserName: 'gus' });
      await f.call('AddUserToGroup', { GroupName: 'Builders', UserName: 'gus' });
      assert.equal(await may(key, 'ecr:GetAuthorizationToken'), true);
      assert.equal(await may(key, 'ecr:PutImage'), true);
      assert.deepEqual(await f.call('ListGroupsForUser', { UserName: 'gus' }), {
        Groups: [group],
        IsTruncated: false,
      });
      const { Users } = await f.call('GetGroup', { GroupName: 'Builders' });
      assert.deepEqual(
        (Users as Structure[]).map((user) => user['UserName']),
        ['gus'],
      );
      const entities = await f.call('ListEntitiesForPolicy', { PolicyArn: READ_ONLY });
      assert.deepEqual(entities['PolicyGroups'], [{ GroupName: 'Builders', GroupId: group['GroupId'] }]);

      await f.call('UpdateGroup', { GroupName: 'Builders', NewGroupName: 'makers', NewPath: '/' });
      const renamed = await member('GetGroup', { GroupName: 'makers' }, 'Group');
      assert.equal(renamed['Arn'], arnOf('group/makers'));
      const first = 'Cannot delete entity, must remove users from group first.';
      await refuses(f.call('DeleteGroup', { GroupName: 'makers' }), 'DeleteConflict', first);
      await f.call('DeleteAccessKey', { UserName: 'gus', AccessKeyId: key.id });
      await refuses(f.call('DeleteUser', { UserName: 'gus' }), 'DeleteConflict', first);
      await f.call('RemoveUserFromGroup', { GroupName: 'makers', UserName: 'gus' });
      await refuses(
        f.call('DeleteGroup', { GroupName: 'makers' }),
        'DeleteConflict',
        'Cannot delete entity, must delete policies first.',
      );
      await f.call('DeleteGroupPolicy', { GroupName: 'makers', PolicyName: 'more' });
      await refuses(
        f.call('DeleteGroup', { GroupName: 'makers' }),
        'DeleteConflict',
        'Cannot delete entity, must detach all policies first.',
      );
      await f.call('DetachGroupPolicy', { GroupName: 'makers', PolicyArn: READ_ONLY });
      await f.call('DeleteGroup', { GroupName: 'makers' });
      await refuses(
        f.call('GetGroup', { GroupName: 'makers' }),
        'NoSuchEntity',
        'The group with name makers cannot be found.',
      );
    });

    it('are at most ten a user', async () => {
      await f.call('CreateUser', { UserName: 'many' });
      for (let i = 0; i < 11; i++) await f.call('CreateGroup', { GroupName: `g${i}` });
      for (let i = 0; i < 10; i++) await f.call('AddUserToGroup', { GroupName: `g${i}`, UserName: 'many' });
      await refuses(
        f.call('AddUserToGroup', { GroupName: 'g10', UserName: 'many' }),
        'LimitExceeded',
        'Cannot exceed quota for GroupsPerUser: 10',
      );
      const { Groups, Marker, IsTruncated } = await f.call('ListGroups', { MaxItems: 3 });
      assert.equal(IsTruncated, true);
      const rest = await f.call('ListGroups', { Marker });
      const names = [Groups, rest['Groups']].flatMap((page) =>
        (page as Structure[]).map((each) => each['GroupName']),
      );
      assert.deepEqual(names, ['g0', 'g1', 'g10', 'g2', 'g3', 'g4', 'g5', 'g6', 'g7', 'g8', 'g9']);
    });
  });

  describe('roles', () => {
    it('go through their life', async () => {
      const created = await member(
        'CreateRole',
        {
          RoleName: 'Worker',
          Path: '/svc/',
          AssumeRolePolicyDocument: TRUST,
          Description: 'works',
          MaxSessionDuration: 7200,
          PermissionsBoundary: READ_ONLY,
          Tags: [{ Key: 'team', Value: 'blue' }],
        },
        'Role',
      );
      const shown = {
        Path: '/svc/',
        RoleName: 'Worker',
        RoleId: created['RoleId'],
        Arn: arnOf('role/svc/Worker'),
        CreateDate: new Date(NOW),
        AssumeRolePolicyDocument: encodeURIComponent(TRUST),
        Description: 'works',
      };
      const boundary = {
        PermissionsBoundary: { PermissionsBoundaryType: 'Policy', PermissionsBoundaryArn: READ_ONLY },
      };
      const Tags = [{ Key: 'team', Value: 'blue' }];
      assert.deepEqual(created, { ...shown, ...boundary, Tags });
      assert.deepEqual(await member('GetRole', { RoleName: 'Worker' }, 'Role'), {
        ...shown,
        ...boundary,
        Tags,
        MaxSessionDuration: 7200,
        RoleLastUsed: {},
      });
      assert.deepEqual(await f.call('ListRoles', { PathPrefix: '/svc/' }), {
        Roles: [{ ...shown, MaxSessionDuration: 7200 }],
        IsTruncated: false,
      });
      assert.deepEqual(await f.call('UpdateRole', { RoleName: 'Worker', MaxSessionDuration: 3600 }), {});
      const described = await member(
        'UpdateRoleDescription',
        { RoleName: 'Worker', Description: '' },
        'Role',
      );
      assert.deepEqual([described['Description'], described['MaxSessionDuration']], ['', 3600]);
      await f.call('AttachRolePolicy', { RoleName: 'Worker', PolicyArn: READ_ONLY });
      assert.deepEqual(await f.call('ListAttachedRolePolicies', { RoleName: 'Worker' }), {
        AttachedPolicies: [{ PolicyName: 'AmazonEC2ContainerRegistryReadOnly', PolicyArn: READ_ONLY }],
        IsTruncated: false,
      });
      const entities = await f.call('ListEntitiesForPolicy', { PolicyArn: READ_ONLY });
      assert.deepEqual(entities['PolicyRoles'], [{ RoleName: 'Worker', RoleId: created['RoleId'] }]);
      const uses = await member('GetPolicy', { PolicyArn: READ_ONLY }, 'Policy');
      assert.deepEqual([uses['AttachmentCount'], uses['PermissionsBoundaryUsageCount']], [1, 1]);

      await f.call('CreateInstanceProfile', { InstanceProfileName: 'Box' });
      await f.call('AddRoleToInstanceProfile', { InstanceProfileName: 'Box', RoleName: 'Worker' });
      const conflict = (what: string) =>
        refuses(
          f.call('DeleteRole', { RoleName: 'Worker' }),
          'DeleteConflict',
          `Cannot delete entity, must ${what} first.`,
        );
      await conflict('remove roles from instance profile');
      await refuses(
        f.call('DeleteInstanceProfile', { InstanceProfileName: 'Box' }),
        'DeleteConflict',
        'Cannot delete entity, must remove roles from instance profile first.',
      );
      await refuses(
        f.call('AddRoleToInstanceProfile', { InstanceProfileName: 'Box', RoleName: 'Worker' }),
        'LimitExceeded',
        'Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1',
      );
      const profile = await member('GetInstanceProfile', { InstanceProfileName: 'Box' }, 'InstanceProfile');
      assert.deepEqual(
        (profile['Roles'] as Structure[]).map((role) => role['Arn']),
        [shown.Arn],
      );
      const { InstanceProfiles } = await f.call('ListInstanceProfilesForRole', { RoleName: 'Worker' });
      assert.equal((InstanceProfiles as Structure[]).length, 1);
      await f.call('RemoveRoleFromInstanceProfile', { InstanceProfileName: 'Box', RoleName: 'Worker' });
      await f.call('DeleteInstanceProfile', { InstanceProfileName: 'Box' });
      await conflict('detach all policies');
      await f.call('DetachRolePolicy', { RoleName: 'Worker', PolicyArn: READ_ONLY });
      await f.call('DeleteRole', { RoleName: 'Worker' });
      await refuses(
        f.call('GetRole', { RoleName: 'Worker' }),
        'NoSuchEntity',
        'The role with name Worker cannot be found.',
      );
    });

    it('have trust policies that name who exists', async () => {
      const create = (document: string) =>
        f.call('CreateRole', { RoleName: 'trusting', AssumeRolePolicyDocument: document });
      for (const principal of [
        arnOf('user/ghost'),
        arnOf('role/ghost'),
        'AROAZZZZZZZZZZZZZZZZZ',
        '111111111111',
      ]) {
        await refuses(
          create(trusting(principal)),
          'MalformedPolicyDocument',
          `Invalid principal in policy: "AWS":"${principal}"`,
        );
      }
      await refuses(create('{'), 'MalformedPolicyDocument', 'This policy contains invalid Json');
      await refuses(
        create(
          policyText([
            {
              Effect: 'Allow',
              Principal: { AWS: ACCOUNT },
              Action: 'sts:AssumeRole',
              Sid: 'x'.repeat(2048),
            },
          ]),
        ),
        'LimitExceeded',
        'Cannot exceed quota for ACLSizePerRole: 2048',
      );
      await f.call('CreateUser', { UserName: 'mallory' });
      const written = trusting(arnOf('user/mallory')).replace('{', '{ ');
      await create(written);
      const shown = async () =>
        decodeURIComponent(
          String((await member('GetRole', { RoleName: 'trusting' }, 'Role'))['AssumeRolePolicyDocument']),
        );
      assert.equal(await shown(), written);
      await f.call('UpdateUser', { UserName: 'mallory', NewUserName: 'molly' });
      assert.equal(await shown(), trusting(arnOf('user/molly')));
      await f.call('UpdateAssumeRolePolicy', { RoleName: 'trusting', PolicyDocument: TRUST });
      assert.equal(await shown(), TRUST);
    });

    it('of services are made, protected and deleted', async () => {
      const service = 'replication.ecr.amazonaws.com';
      const role = await member('CreateServiceLinkedRole', { AWSServiceName: service }, 'Role');
      assert.equal(role['Arn'], arnOf(`role/aws-service-role/${service}/AWSServiceRoleForECRReplication`));
      const RoleName = 'AWSServiceRoleForECRReplication';
      await refuses(
        f.call('CreateServiceLinkedRole', { AWSServiceName: service }),
        'InvalidInput',
        `Service role name ${RoleName} has been taken in this account, please try a different suffix.`,
      );
      await refuses(
        f.call('CreateServiceLinkedRole', { AWSServiceName: 'ecr.amazonaws.com', CustomSuffix: 'x' }),
        'InvalidInput',
        'Custom suffix is not allowed for ecr.amazonaws.com',
      );
      const protectedSentence = `Cannot perform the operation on the protected role '${RoleName}' - this role is only modifiable by AWS`;
      for (const [name, input] of [
        ['DeleteRole', {}],
        ['AttachRolePolicy', { PolicyArn: READ_ONLY }],
        ['PutRolePolicy', { PolicyName: 'x', PolicyDocument: policyText([allow('*')]) }],
        ['UpdateAssumeRolePolicy', { PolicyDocument: TRUST }],
        ['UpdateRole', { MaxSessionDuration: 3600 }],
      ] as const) {
        await refuses(f.call(name, { RoleName, ...input }), 'UnmodifiableEntity', protectedSentence);
      }
      const { DeletionTaskId } = await f.call('DeleteServiceLinkedRole', { RoleName });
      assert.match(
        String(DeletionTaskId),
        new RegExp(`^task/aws-service-role/${service}/${RoleName}/[0-9a-f-]{36}$`),
      );
      assert.deepEqual(await f.call('GetServiceLinkedRoleDeletionStatus', { DeletionTaskId }), {
        Status: 'SUCCEEDED',
      });
      await refuses(
        f.call('GetServiceLinkedRoleDeletionStatus', { DeletionTaskId: `${String(DeletionTaskId)}0` }),
        'NoSuchEntity',
        /cannot be found/,
      );
    });

    it('are handed to machines by whoever may pass them', async () => {
      await f.call('CreateRole', { RoleName: 'passed', AssumeRolePolicyDocument: TRUST });
      await f.call('CreateInstanceProfile', { InstanceProfileName: 'passing' });
      const input = { InstanceProfileName: 'passing', RoleName: 'passed' };
      const key = await f.makeUser('paul', [allow('iam:AddRoleToInstanceProfile')]);
      await refuses(
        f.call('AddRoleToInstanceProfile', input, { as: key }),
        'AccessDeniedException',
        `User: ${arnOf('user/paul')} is not authorized to perform: iam:PassRole on resource: ${arnOf('role/passed')} because no identity-based policy allows the iam:PassRole action`,
      );
      await f.call('PutUserPolicy', {
        UserName: 'paul',
        PolicyName: 'pass',
        PolicyDocument: policyText([
          allow('iam:PassRole', arnOf('role/passed'), {
            StringEquals: { 'iam:PassedToService': 'ec2.amazonaws.com' },
          }),
        ]),
      });
      await f.call('AddRoleToInstanceProfile', input, { as: key });
    });
  });

  describe('identity providers', () => {
    it('go through their life', async () => {
      const Url = 'https://issuer.example.com/id/1';
      const OpenIDConnectProviderArn = arnOf('oidc-provider/issuer.example.com/id/1');
      const print = 'A'.repeat(40);
      assert.deepEqual(
        await f.call('CreateOpenIDConnectProvider', {
          Url,
          ClientIDList: ['a', 'b', 'a'],
          ThumbprintList: [print],
          Tags: [{ Key: 'x', Value: 'y' }],
        }),
        { OpenIDConnectProviderArn, Tags: [{ Key: 'x', Value: 'y' }] },
      );
      await refuses(
        f.call('CreateOpenIDConnectProvider', { Url }),
        'EntityAlreadyExists',
        `Provider with url ${Url} already exists.`,
      );
      for (const bad of [
        'issuer.example.com',
        'https://x?y',
        'https://u@x/',
        'https://',
        'https://EXAMPLE.com',
        'ftp://x',
      ]) {
        await refuses(
          f.call('CreateOpenIDConnectProvider', { Url: bad }),
          'ValidationError',
          'Invalid Open ID Connect Provider URL',
        );
      }
      await refuses(
        f.call('CreateOpenIDConnectProvider', {
          Url: 'https://x',
          ThumbprintList: Array(6).fill(print) as string[],
        }),
        'InvalidInput',
        'Thumbprint list must contain fewer than 5 entries.',
      );
      await f.call('AddClientIDToOpenIDConnectProvider', { OpenIDConnectProviderArn, ClientID: 'c' });
      await f.call('RemoveClientIDFromOpenIDConnectProvider', { OpenIDConnectProviderArn, ClientID: 'a' });
      await f.call('UpdateOpenIDConnectProviderThumbprint', {
        OpenIDConnectProviderArn,
        ThumbprintList: ['b'.repeat(40)],
      });
      await f.call('TagOpenIDConnectProvider', {
        OpenIDConnectProviderArn,
        Tags: [{ Key: 'X', Value: 'z' }],
      });
      assert.deepEqual(await f.call('GetOpenIDConnectProvider', { OpenIDConnectProviderArn }), {
        Url: 'issuer.example.com/id/1',
        ClientIDList: ['b', 'c'],
        ThumbprintList: ['b'.repeat(40)],
        CreateDate: new Date(NOW),
        Tags: [{ Key: 'X', Value: 'z' }],
      });
      assert.deepEqual(await f.call('ListOpenIDConnectProviders'), {
        OpenIDConnectProviderList: [{ Arn: OpenIDConnectProviderArn }],
      });
      await f.call('DeleteOpenIDConnectProvider', { OpenIDConnectProviderArn });
      await f.call('DeleteOpenIDConnectProvider', { OpenIDConnectProviderArn });
      await refuses(
        f.call('GetOpenIDConnectProvider', { OpenIDConnectProviderArn }),
        'NoSuchEntity',
        `OpenIDConnect Provider not found for arn ${OpenIDConnectProviderArn}`,
      );
      // The tags do not come back with the ARN.
      await f.call('CreateOpenIDConnectProvider', { Url });
      assert.deepEqual((await f.call('GetOpenIDConnectProvider', { OpenIDConnectProviderArn }))['Tags'], []);
    });
  });
});
