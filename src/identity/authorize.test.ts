import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { repositoryArn } from '../domain/names.ts';
import type { AccessCheck } from '../protocol/protocol.ts';
import { ACCOUNT, allow, deny, factsOf, NOW, onEveryStore, policyText, ROOT } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';
import { createIdentity } from './identity.ts';
import type { Credentials, Identity, Principal, RequestFacts, ResourceSide } from './identity.ts';

const REGION = 'eu-west-1';
const POWER_USER = 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPowerUser';
const arnOf = (name: string, account = ACCOUNT) => repositoryArn({ account, region: REGION, name });
const put: AccessCheck = { action: 'ecr:PutImage', resource: arnOf('app') };

await onEveryStore((fixture) => {
  let f: Fixture;
  before(() => {
    f = fixture();
  });

  async function principalOf(key: Credentials, identity: Identity = f.identity): Promise<Principal> {
    const found = await identity.findKey(key.id, undefined);
    if (typeof found !== 'object') throw new Error('no such key');
    return found.caller;
  }

  interface Question {
    readonly check?: AccessCheck;
    readonly facts?: Partial<RequestFacts>;
    readonly side?: ResourceSide;
    readonly identity?: Identity;
  }

  /** Whether a request made now is allowed: authenticated and decided afresh. */
  async function isAllowed(
    key: Credentials,
    { check = put, facts, side, identity = f.identity }: Question = {},
  ) {
    const principal = await principalOf(key, identity);
    return (await identity.decide(principal, check, factsOf(facts), side)).allowed;
  }

  async function createRepository(
    name: string,
    policy: string | undefined,
    tags: Record<string, string> = {},
    account = ACCOUNT,
  ) {
    await f.store.transact('repository.create', {
      repository: {
        id: `repository-${name}-${account}`,
        account,
        region: REGION,
        name,
        createdAt: NOW,
        mutability: 'MUTABLE',
        exclusionFilters: [],
        scanOnPush: false,
        encryptionType: 'AES256',
        kmsKey: undefined,
        contentKey: 'default',
        policy,
      },
      tags: Object.entries(tags).map(([key, value]) => ({ key, value })),
      repositoriesMax: 100,
    });
  }

  describe('policies at use', () => {
    it('are in force at the next request, in every process', async () => {
      const other = createIdentity({ store: f.store, keys: f.keys });
      const key = await f.makeUser('attached');
      const both = async () => [await isAllowed(key), await isAllowed(key, { identity: other })];
      assert.deepEqual(await both(), [false, false]);
      const attachment = { UserName: 'attached', PolicyArn: POWER_USER };
      await f.call('AttachUserPolicy', attachment);
      assert.deepEqual(await both(), [true, true]);
      const inline = { UserName: 'attached', PolicyName: 'deny' };
      await f.call('PutUserPolicy', { ...inline, PolicyDocument: policyText([deny('ecr:PutImage')]) });
      assert.deepEqual(await both(), [false, false]);
      await f.call('DeleteUserPolicy', inline);
      assert.deepEqual(await both(), [true, true]);
      await f.call('PutUserPermissionsBoundary', {
        UserName: 'attached',
        PermissionsBoundary: 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly',
      });
      assert.deepEqual(await both(), [false, false]);
      await f.call('DeleteUserPermissionsBoundary', { UserName: 'attached' });
      assert.deepEqual(await both(), [true, true]);
      await f.call('DetachUserPolicy', attachment);
      assert.deepEqual(await both(), [false, false]);
    });

    it('follow the default version and the tags of the user', async () => {
      const key = await f.makeUser('versioned');
      const PolicyArn = `arn:aws:iam::${ACCOUNT}:policy/versioned`;
      await f.call('CreatePolicy', { PolicyName: 'versioned', PolicyDocument: policyText([allow('s3:*')]) });
      await f.call('AttachUserPolicy', { UserName: 'versioned', PolicyArn });
      const blue = { StringEquals: { 'aws:PrincipalTag/Team': 'blue' } };
      const PolicyDocument = policyText([allow('ecr:*', '*', blue)]);
      await f.call('CreatePolicyVersion', { PolicyArn, PolicyDocument });
      assert.equal(await isAllowed(key), false);
      await f.call('SetDefaultPolicyVersion', { PolicyArn, VersionId: 'v2' });
      assert.equal(await isAllowed(key), false);
      await f.call('TagUser', { UserName: 'versioned', Tags: [{ Key: 'team', Value: 'blue' }] });
      assert.equal(await isAllowed(key), true);
      await f.call('UntagUser', { UserName: 'versioned', TagKeys: ['team'] });
      assert.equal(await isAllowed(key), false);
    });

    it('are never a mixture of two moments', async () => {
      const key = await f.makeUser('mixed');
      const inline = { UserName: 'mixed', PolicyName: 'deny', PolicyDocument: policyText([deny('ecr:*')]) };
      const attachment = { UserName: 'mixed', PolicyArn: POWER_USER };
      const state = { writing: true };
      // INVARIANT of the writer: the user is never granted anything without the deny.
      const writer = (async () => {
        for (let i = 0; i < 40; i++) {
          await f.call('PutUserPolicy', inline);
          await f.call('AttachUserPolicy', attachment);
          await f.call('DetachUserPolicy', attachment);
          await f.call('DeleteUserPolicy', { UserName: 'mixed', PolicyName: 'deny' });
        }
        state.writing = false;
      })();
      let asked = 0;
      while (state.writing) {
        assert.equal(await isAllowed(key), false);
        asked++;
        await new Promise(setImmediate);
      }
      await writer;
      assert.ok(asked > 0);
    });
  });

  describe('condition keys', () => {
    const facts = { sourceIp: '10.1.2.3', secure: false, userAgent: 'docker/28' };
    const user = `arn:aws:iam::${ACCOUNT}:user/conditioned`;
    const holds: readonly object[] = [
      { ArnEquals: { 'aws:PrincipalArn': user } },
      {
        StringEquals: {
          'aws:PrincipalAccount': ACCOUNT,
          'aws:PrincipalType': 'User',
          'aws:username': 'conditioned',
        },
      },
      { StringLike: { 'aws:userid': 'AIDA*' } },
      { IpAddress: { 'aws:SourceIp': '10.0.0.0/8' } },
      {
        Bool: {
          'aws:SecureTransport': 'false',
          'aws:ViaAWSService': 'false',
          'aws:PrincipalIsAWSService': 'false',
        },
      },
      {
        StringEquals: {
          'aws:RequestedRegion': REGION,
          'aws:UserAgent': 'docker/28',
          'aws:ResourceAccount': ACCOUNT,
        },
      },
      {
        DateEquals: { 'aws:CurrentTime': '2026-11-23T09:00:00Z' },
        NumericEquals: { 'aws:EpochTime': NOW / 1000 },
      },
      { StringEquals: { 'aws:ResourceTag/Stage': 'prod', 'ecr:ResourceTag/stage': 'prod' } },
      {
        Null: { 'aws:MultiFactorAuthPresent': 'true', 'aws:TokenIssueTime': 'true', 'aws:SourceVpc': 'true' },
      },
      {
        'ForAllValues:StringEquals': { 'aws:TagKeys': ['a', 'b'] },
        StringEquals: { 'aws:RequestTag/a': '1' },
      },
    ];

    it('are filled', async () => {
      const key = await f.makeUser('conditioned');
      const side = { account: ACCOUNT, policy: undefined, tags: new Map([['Stage', 'prod']]) };
      const keys = new Map<string, string | readonly string[]>([
        ['aws:tagkeys', ['a']],
        ['aws:requesttag/a', '1'],
      ]);
      for (const condition of holds) {
        const PolicyDocument = policyText([allow('ecr:*', '*', condition)]);
        await f.call('PutUserPolicy', { UserName: 'conditioned', PolicyName: 'p', PolicyDocument });
        const allowed = await isAllowed(key, { check: { ...put, keys }, facts, side });
        assert.equal(allowed, true, JSON.stringify(condition));
      }
    });

    it('count IAM as in us-east-1', async () => {
      const condition = { StringEquals: { 'aws:RequestedRegion': 'us-east-1' } };
      const key = await f.makeUser('regional', [allow('iam:GetUser', '*', condition)]);
      assert.equal(await isAllowed(key, { check: { action: 'iam:GetUser', resource: '*' } }), true);
    });
  });

  describe('the resource side', () => {
    it('is read for a repository: its policy and its tags', async () => {
      const key = await f.makeUser('guest');
      const Principal = { AWS: `arn:aws:iam::${ACCOUNT}:user/guest` };
      await createRepository(
        'shared',
        policyText([{ Effect: 'Allow', Principal, Action: 'ecr:BatchGetImage' }]),
      );
      const pull = { action: 'ecr:BatchGetImage', resource: arnOf('shared') };
      assert.equal(await isAllowed(key, { check: pull }), true);
      assert.equal(await isAllowed(key, { check: { ...pull, action: 'ecr:PutImage' } }), false);
      assert.equal(await isAllowed(key, { check: { ...pull, resource: arnOf('absent') } }), false);
      // A side that is given is not read again.
      const side = { account: ACCOUNT, policy: undefined, tags: new Map<string, string>() };
      assert.equal(await isAllowed(key, { check: pull, side }), false);

      await createRepository('tagged', undefined, { Stage: 'dev' });
      const byTag = await f.makeUser('by-tag', [
        allow('ecr:*', '*', { StringEquals: { 'ecr:ResourceTag/Stage': 'dev' } }),
      ]);
      assert.equal(await isAllowed(byTag, { check: { ...pull, resource: arnOf('tagged') } }), true);
      assert.equal(await isAllowed(byTag, { check: pull }), false);
    });

    it('is needed across accounts', async () => {
      const key = await f.makeUser('foreign', [allow('ecr:*')]);
      const other = '999999999999';
      const check = { action: 'ecr:BatchGetImage', resource: arnOf('far', other) };
      assert.equal(await isAllowed(key, { check }), false);
      assert.equal(await isAllowed(ROOT, { check }), false);
      const Principal = { AWS: ACCOUNT };
      await createRepository('far', policyText([{ Effect: 'Allow', Principal, Action: 'ecr:*' }]), {}, other);
      assert.equal(await isAllowed(key, { check }), true);
    });

    it('of an IAM user is its real ARN, its tags and its boundary', async () => {
      await f.call('CreateUser', { UserName: 'deep', Path: '/dev/', Tags: [{ Key: 'owner', Value: 'x' }] });
      const check = { action: 'iam:GetUser', resource: `arn:aws:iam::${ACCOUNT}:user/deep` };
      const byPath = await f.makeUser('by-path', [allow('iam:*', `arn:aws:iam::${ACCOUNT}:user/dev/*`)]);
      assert.equal(await isAllowed(byPath, { check }), true);
      assert.equal(
        await isAllowed(byPath, { check: { ...check, resource: `arn:aws:iam::${ACCOUNT}:user/by-path` } }),
        false,
      );
      const byTag = await f.makeUser('by-owner', [
        allow('iam:*', '*', { StringEquals: { 'iam:ResourceTag/owner': 'x' } }),
      ]);
      assert.equal(await isAllowed(byTag, { check }), true);
      const bounded = await f.makeUser('by-boundary', [
        allow('iam:AttachUserPolicy', '*', { ArnEquals: { 'iam:PermissionsBoundary': POWER_USER } }),
      ]);
      const attach = { UserName: 'deep', PolicyArn: POWER_USER };
      await assert.rejects(f.call('AttachUserPolicy', attach, { as: bounded }), {
        code: 'AccessDeniedException',
      });
      await f.call('PutUserPermissionsBoundary', { UserName: 'deep', PermissionsBoundary: POWER_USER });
      await f.call('AttachUserPolicy', attach, { as: bounded });
    });

    it('is what is there also when something is made for it: a key, a password', async () => {
      const Tags = [{ Key: 'guarded', Value: 'yes' }];
      await f.call('CreateUser', { UserName: 'boss', Path: '/bosses/', Tags });
      const UserName = 'boss';
      const attempts = [
        ['CreateAccessKey', { UserName }],
        ['CreateLoginProfile', { UserName, Password: 'Correct-horse-9' }],
      ] as const;
      const tagged = { StringEquals: { 'aws:ResourceTag/guarded': 'yes' } };
      for (const [name, guard] of [
        ['by-path', deny('iam:*', `arn:aws:iam::${ACCOUNT}:user/bosses/*`)],
        ['by-tag', deny('iam:*', '*', tagged)],
      ] as const) {
        const as = await f.makeUser(`kept-off-${name}`, [allow('iam:*'), guard]);
        for (const [operation, input] of attempts) {
          await assert.rejects(f.call(operation, input, { as }), { code: 'AccessDeniedException' });
        }
      }
      const as = await f.makeUser('for-bosses', [allow('iam:Create*', '*', tagged)]);
      for (const [operation, input] of attempts) await f.call(operation, input, { as });
    });

    it('of a role named with its path has its tags', async () => {
      const AssumeRolePolicyDocument = policyText([
        { Effect: 'Allow', Principal: { Service: 'ec2.amazonaws.com' }, Action: 'sts:AssumeRole' },
      ]);
      const Tags = [{ Key: 'guarded', Value: 'yes' }];
      await f.call('CreateRole', { RoleName: 'vault', Path: '/ops/', AssumeRolePolicyDocument, Tags });
      const guarded = { StringEquals: { 'iam:ResourceTag/guarded': 'yes' } };
      const keptOff = await f.makeUser('kept-off', [allow('iam:*'), deny('iam:*', '*', guarded)]);
      const letIn = await f.makeUser('let-in', [allow('iam:PassRole', '*', guarded)]);
      const pass = async (key: Credentials, path: string) =>
        await isAllowed(key, {
          check: { action: 'iam:PassRole', resource: `arn:aws:iam::${ACCOUNT}:role/${path}` },
        });
      assert.equal(await pass(keptOff, 'ops/vault'), false);
      assert.equal(await pass(keptOff, 'vault'), false);
      assert.equal(await pass(letIn, 'ops/vault'), true);
      // Nobody's name: there is no such role.
      assert.equal(await pass(letIn, 'dev/vault'), false);
      assert.equal(await pass(keptOff, 'dev/vault'), true);
    });

    it('of an access key is its owner', async () => {
      const owner = await f.makeUser('key-owner');
      const key = await f.makeUser('key-reader', [
        allow('iam:GetAccessKeyLastUsed', `arn:aws:iam::${ACCOUNT}:user/key-owner`),
      ]);
      await f.call('GetAccessKeyLastUsed', { AccessKeyId: owner.id }, { as: key });
      for (const AccessKeyId of [key.id, ROOT.id, 'AKIANONE000000000000']) {
        await assert.rejects(f.call('GetAccessKeyLastUsed', { AccessKeyId }, { as: key }), {
          code: 'AccessDeniedException',
        });
      }
    });
  });

  describe('delegated administration', () => {
    it('is limited to what may be attached, set as boundary and tagged', async () => {
      const key = await f.makeUser('delegate', [
        allow('iam:AttachUserPolicy', '*', { ArnEquals: { 'iam:PolicyARN': POWER_USER } }),
        allow('iam:CreateUser', `arn:aws:iam::${ACCOUNT}:user/dev/*`, {
          StringEquals: { 'iam:PermissionsBoundary': POWER_USER },
        }),
        allow('iam:TagUser', '*', { 'ForAllValues:StringEquals': { 'aws:TagKeys': ['team'] } }),
        allow('iam:UpdateUser', `arn:aws:iam::${ACCOUNT}:user/dev/*`),
      ]);
      const as = { as: key };
      const denied = { code: 'AccessDeniedException' };
      const created = { UserName: 'made', Path: '/dev/', PermissionsBoundary: POWER_USER };
      await assert.rejects(f.call('CreateUser', { ...created, PermissionsBoundary: undefined }, as), denied);
      await assert.rejects(f.call('CreateUser', { ...created, Path: '/' }, as), denied);
      await assert.rejects(
        f.call('CreateUser', { ...created, Tags: [{ Key: 'cost', Value: '1' }] }, as),
        denied,
      );
      await f.call('CreateUser', { ...created, Tags: [{ Key: 'team', Value: '1' }] }, as);
      await f.call('AttachUserPolicy', { UserName: 'made', PolicyArn: POWER_USER }, as);
      const admin = 'arn:aws:iam::aws:policy/AdministratorAccess';
      await assert.rejects(
        f.call('AttachUserPolicy', { UserName: 'delegate', PolicyArn: admin }, as),
        denied,
      );
      // Moving a user needs the permission at both ends.
      await assert.rejects(f.call('UpdateUser', { UserName: 'made', NewPath: '/' }, as), denied);
      await f.call('UpdateUser', { UserName: 'made', NewUserName: 'made2' }, as);
    });
  });

  describe('denials', () => {
    it('say it in the words of AWS', async () => {
      const key = await f.makeUser('nobody', [
        deny('ecr:DeleteRepository'),
        allow('iam:GetUser', `arn:aws:iam::${ACCOUNT}:user/dev/*`),
      ]);
      const who = `User: arn:aws:iam::${ACCOUNT}:user/nobody is not authorized to perform:`;
      const none = (action: string) => `because no identity-based policy allows the ${action} action`;
      const policy = `arn:aws:iam::${ACCOUNT}:policy/p`;
      const cases: readonly (readonly [string, Record<string, string>, string])[] = [
        [
          'GetUser',
          { UserName: 'admin' },
          `${who} iam:GetUser on resource: user admin ${none('iam:GetUser')}`,
        ],
        // Whether a user exists is not told.
        [
          'GetUser',
          { UserName: 'absent' },
          `${who} iam:GetUser on resource: user absent ${none('iam:GetUser')}`,
        ],
        [
          'CreateUser',
          { UserName: 'n', Path: '/x/' },
          `${who} iam:CreateUser on resource: arn:aws:iam::${ACCOUNT}:user/x/n ${none('iam:CreateUser')}`,
        ],
        [
          'ListUsers',
          {},
          `${who} iam:ListUsers on resource: arn:aws:iam::${ACCOUNT}:user/ ${none('iam:ListUsers')}`,
        ],
        [
          'CreatePolicy',
          { PolicyName: 'p', PolicyDocument: 'x' },
          `${who} iam:CreatePolicy on resource: policy p ${none('iam:CreatePolicy')}`,
        ],
        [
          'GetPolicy',
          { PolicyArn: policy },
          `${who} iam:GetPolicy on resource: policy ${policy} ${none('iam:GetPolicy')}`,
        ],
        [
          'ListPolicies',
          {},
          `${who} iam:ListPolicies on resource: policy path / ${none('iam:ListPolicies')}`,
        ],
        [
          'AttachUserPolicy',
          { UserName: 'u', PolicyArn: POWER_USER },
          `${who} iam:AttachUserPolicy on resource: user u ${none('iam:AttachUserPolicy')}`,
        ],
        [
          'CreateAccessKey',
          {},
          `${who} iam:CreateAccessKey on resource: user nobody ${none('iam:CreateAccessKey')}`,
        ],
        [
          'GetAccessKeyInfo',
          { AccessKeyId: ROOT.id },
          `${who} sts:GetAccessKeyInfo on resource: * ${none('sts:GetAccessKeyInfo')}`,
        ],
      ];
      for (const [operation, input, message] of cases) {
        await assert.rejects(f.call(operation, input, { as: key }), {
          code: 'AccessDeniedException',
          message,
        });
      }
      const principal = await principalOf(key);
      await assert.rejects(f.identity.authorize(principal, [put], factsOf()), {
        code: 'AccessDeniedException',
        message: `${who} ecr:PutImage on resource: ${arnOf('app')} ${none('ecr:PutImage')}`,
      });
      await assert.rejects(
        f.identity.authorize(
          principal,
          [{ action: 'ecr:DeleteRepository', resource: arnOf('app') }],
          factsOf(),
        ),
        {
          message: `${who} ecr:DeleteRepository on resource: ${arnOf('app')} with an explicit deny in an identity-based policy`,
        },
      );
    });

    it('never reach root in its own account', async () => {
      assert.equal(await isAllowed(ROOT), true);
    });
  });
});
