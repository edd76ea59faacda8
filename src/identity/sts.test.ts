import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { repositoryArn } from '../domain/names.ts';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, deny, factsOf, NOW, onEveryStore, policyText, ROOT } from '../../test/identity.ts';
import type { Fixture, TestCredentials } from '../../test/identity.ts';
import { createIdentity, createAccount } from './identity.ts';
import type { Principal } from './identity.ts';

const OTHER = '210987654321';
const HOUR = 3_600_000;
const refuses = (promise: Promise<unknown>, code: string, message: string | RegExp) =>
  assert.rejects(promise, { name: 'Fault', code, message });
const roleOf = (name: string, path = '/') => `arn:aws:iam::${ACCOUNT}:role${path}${name}`;
const trusting = (principal: object, condition?: object, action: string | string[] = 'sts:AssumeRole') => ({
  Effect: 'Allow',
  Principal: principal,
  Action: action,
  ...(condition && { Condition: condition }),
});
const TRUST_ACCOUNT = [
  trusting({ AWS: `arn:aws:iam::${ACCOUNT}:root` }, undefined, [
    'sts:AssumeRole',
    'sts:TagSession',
    'sts:SetSourceIdentity',
  ]),
];
const REPOSITORY = repositoryArn({ account: ACCOUNT, region: 'eu-west-1', name: 'team/app' });
const PULL = { action: 'ecr:BatchGetImage', resource: REPOSITORY };

await onEveryStore((fixture) => {
  let f: Fixture;
  before(() => {
    f = fixture();
  });

  async function makeRole(
    name: string,
    trust: readonly object[],
    statements?: readonly object[],
    more: Structure = {},
  ) {
    const { Role } = await f.call('CreateRole', {
      RoleName: name,
      AssumeRolePolicyDocument: policyText(trust),
      ...more,
    });
    if (statements !== undefined) {
      await f.call('PutRolePolicy', {
        RoleName: name,
        PolicyName: 'inline',
        PolicyDocument: policyText(statements),
      });
    }
    return Role as Structure;
  }

  function keyOf(answer: Structure): TestCredentials {
    const { AccessKeyId, SecretAccessKey, SessionToken } = answer['Credentials'] as Record<string, string>;
    return { id: AccessKeyId ?? '', secret: SecretAccessKey ?? '', token: SessionToken ?? '' };
  }

  async function assume(name: string, more: Structure = {}, as?: TestCredentials): Promise<TestCredentials> {
    const input = { RoleArn: roleOf(name), RoleSessionName: 'build-7', ...more };
    return keyOf(await f.call('AssumeRole', input, as && { as }));
  }

  async function principalOf(key: TestCredentials, now = NOW): Promise<Principal> {
    const found = await f.identity.findKey(key.id, key.token, now);
    if (typeof found !== 'object') throw new Error(`no such key: ${found}`);
    assert.equal(found.secret, key.secret);
    return found.caller;
  }

  const may = async (key: TestCredentials, check: { action: string; resource: string } = PULL) =>
    (await f.identity.decide(await principalOf(key), check, factsOf())).allowed;

  describe('AssumeRole', () => {
    it('answers credentials of the role, as AWS does', async () => {
      const role = await makeRole('puller', TRUST_ACCOUNT, [allow('ecr:BatchGetImage')], { Path: '/ci/' });
      const answer = await f.call('AssumeRole', {
        RoleArn: roleOf('puller', '/ci/'),
        RoleSessionName: 'build-7',
      });
      assert.deepEqual(Object.keys(answer).sort(), ['AssumedRoleUser', 'Credentials']);
      const { Expiration, AccessKeyId, SecretAccessKey, SessionToken } = answer['Credentials'] as Structure;
      assert.deepEqual(Expiration, new Date(NOW + HOUR));
      assert.match(String(AccessKeyId), /^ASIARZPUZDIK[A-P][A-Z2-7]{7}$/);
      assert.match(String(SecretAccessKey), /^[A-Za-z0-9/+]{40}$/);
      assert.match(String(SessionToken), /^[A-Za-z0-9+/]+=*$/);
      assert.ok(String(SessionToken).length < 1000);
      const arn = `arn:aws:sts::${ACCOUNT}:assumed-role/puller/build-7`;
      assert.deepEqual(answer['AssumedRoleUser'], {
        AssumedRoleId: `${String(role['RoleId'])}:build-7`,
        Arn: arn,
      });
      const key = keyOf(answer);
      assert.deepEqual(await f.call('GetCallerIdentity', {}, { as: key }), {
        UserId: `${String(role['RoleId'])}:build-7`,
        Account: ACCOUNT,
        Arn: arn,
      });
      assert.deepEqual(await f.call('GetAccessKeyInfo', { AccessKeyId: key.id }), { Account: ACCOUNT });
      assert.equal(await may(key), true);
      assert.equal(await may(key, { action: 'ecr:PutImage', resource: REPOSITORY }), false);
      // The path is part of who is meant.
      await refuses(
        f.call('AssumeRole', { RoleArn: roleOf('puller'), RoleSessionName: 'build-7' }),
        'AccessDeniedException',
        `User: arn:aws:iam::${ACCOUNT}:user/admin is not authorized to perform: sts:AssumeRole on resource: ${roleOf('puller')}`,
      );
    });

    it('needs the key, its token and the time', async () => {
      await makeRole('keyed', TRUST_ACCOUNT, [allow('*')]);
      const key = await assume('keyed');
      const other = await assume('keyed');
      const find = (id: string, token: string | undefined, now = NOW) => f.identity.findKey(id, token, now);
      assert.equal(await find(key.id, undefined), undefined);
      assert.equal(await find(key.id, other.token), 'invalid-token');
      assert.equal(await find(f.admin.id, key.token), 'invalid-token');
      assert.equal(await find(key.id, `${key.token?.slice(0, -4)}AAAA`), 'invalid-token');
      assert.equal(await find(key.id, 'x'.repeat(20_000)), 'invalid-token');
      assert.equal(await find(key.id, key.token, NOW + HOUR), 'expired');
      assert.equal(typeof (await find(key.id, key.token, NOW + HOUR - 1)), 'object');
      // Another process with the same key ring and store.
      const elsewhere = createIdentity({ store: f.store, keys: f.keys });
      const found = await elsewhere.findKey(key.id, key.token, NOW);
      assert.ok(typeof found === 'object');
      assert.equal(found.secret, key.secret);
    });

    it('ends with the role, also for a namesake', async () => {
      await makeRole('brief', TRUST_ACCOUNT, [allow('*')]);
      const key = await assume('brief');
      const { password } = await f.identity.issueRegistryToken(
        await principalOf(key),
        { region: 'eu-west-1' },
        NOW,
      );
      assert.ok(password.length <= 300);
      const opened = await f.identity.openRegistryToken(password, NOW + 11 * HOUR);
      assert.equal(opened.principal.caller.arn, `arn:aws:sts::${ACCOUNT}:assumed-role/brief/build-7`);
      await f.call('DeleteRolePolicy', { RoleName: 'brief', PolicyName: 'inline' });
      assert.equal(await may(key), false, 'a changed policy is in force at once');
      await f.call('DeleteRole', { RoleName: 'brief' });
      assert.equal(await f.identity.findKey(key.id, key.token, NOW), 'invalid-token');
      await makeRole('brief', TRUST_ACCOUNT, [allow('*')]);
      assert.equal(await f.identity.findKey(key.id, key.token, NOW), 'invalid-token');
      await refuses(
        f.identity.openRegistryToken(password, NOW),
        'InvalidRegistryToken',
        'Your Authorization Token is invalid.',
      );
    });

    it('gives registry tokens that outlive the session, with its restrictions', async () => {
      await makeRole('login', TRUST_ACCOUNT, [allow('ecr:*')]);
      const key = await assume('login', {
        Policy: policyText([allow('ecr:BatchGetImage')]),
        DurationSeconds: 900,
      });
      const { password, expiresAt } = await f.identity.issueRegistryToken(
        await principalOf(key),
        { region: 'eu-west-1' },
        NOW,
      );
      assert.equal(expiresAt, NOW + 12 * HOUR);
      const elsewhere = createIdentity({ store: f.store, keys: f.keys });
      const { principal, region } = await elsewhere.openRegistryToken(password, NOW + 5 * HOUR);
      assert.equal(region, 'eu-west-1');
      const decide = async (action: string) =>
        (await elsewhere.decide(principal, { action, resource: REPOSITORY }, factsOf())).allowed;
      assert.equal(await decide('ecr:BatchGetImage'), true);
      assert.equal(await decide('ecr:PutImage'), false);
      await refuses(
        elsewhere.openRegistryToken(password, expiresAt),
        'ExpiredRegistryToken',
        'Your authorization token has expired. Reauthenticate and try again.',
      );
    });

    it('says the same about roles that refuse and roles that do not exist', async () => {
      await makeRole('closed', [trusting({ Service: 'ec2.amazonaws.com' })]);
      const nobody = await f.makeUser('nobody');
      for (const [as, user] of [
        [f.admin, 'admin'],
        [nobody, 'nobody'],
      ] as const) {
        for (const name of ['closed', 'absent']) {
          await refuses(
            assume(name, {}, as),
            'AccessDeniedException',
            `User: arn:aws:iam::${ACCOUNT}:user/${user} is not authorized to perform: sts:AssumeRole on resource: ${roleOf(name)}`,
          );
        }
      }
      const denied = await f.makeUser('denied', [deny('sts:AssumeRole'), allow('*')]);
      await refuses(
        assume('absent', {}, denied),
        'AccessDeniedException',
        / on resource: .*:role\/absent with an explicit deny in an identity-based policy$/,
      );
      await refuses(
        assume('closed', {}, ROOT),
        'AccessDeniedException',
        'Roles may not be assumed by root accounts.',
      );
      for (const bad of [
        'arn:aws:iam::123456789012:user/admin',
        'arn:aws:iam::123456789012:role/',
        'role/closed/////',
      ]) {
        await refuses(
          f.call('AssumeRole', { RoleArn: bad, RoleSessionName: 'xx' }),
          'ValidationError',
          `${bad} is invalid`,
        );
      }
    });

    it('needs an identity Allow when the trust names the account, none when it names the user', async () => {
      const key = await f.makeUser('carol');
      await makeRole('for-all', TRUST_ACCOUNT);
      await makeRole('for-carol', [trusting({ AWS: `arn:aws:iam::${ACCOUNT}:user/carol` })]);
      await assert.rejects(assume('for-all', {}, key), { code: 'AccessDeniedException' });
      await assume('for-carol', {}, key);
      // The trust is pinned to the user's id: a namesake is a stranger.
      await f.call('DeleteAccessKey', { UserName: 'carol', AccessKeyId: key.id });
      const { User } = await f.call('GetUser', { UserName: 'carol' });
      await f.call('DeleteUser', { UserName: 'carol' });
      const again = await f.makeUser('carol');
      await assert.rejects(assume('for-carol', {}, again), { code: 'AccessDeniedException' });
      const { Role } = await f.call('GetRole', { RoleName: 'for-carol' });
      const shown = decodeURIComponent(String((Role as Structure)['AssumeRolePolicyDocument']));
      assert.ok(shown.includes(`"AWS":"${String((User as Structure)['UserId'])}"`), shown);
    });

    it('judges external id, source identity and tags', async () => {
      await makeRole('confused', [
        trusting(
          { AWS: `arn:aws:iam::${ACCOUNT}:user/admin` },
          { StringEquals: { 'sts:ExternalId': 'k-17' } },
        ),
      ]);
      await assert.rejects(assume('confused'), { code: 'AccessDeniedException' });
      await assert.rejects(assume('confused', { ExternalId: 'other' }), { code: 'AccessDeniedException' });
      await assume('confused', { ExternalId: 'k-17' });
      const tagged = { ExternalId: 'k-17', Tags: [{ Key: 'team', Value: 'blue' }] };
      await refuses(
        assume('confused', tagged),
        'AccessDeniedException',
        `User: arn:aws:iam::${ACCOUNT}:user/admin is not authorized to perform: sts:TagSession on resource: ${roleOf('confused')}`,
      );
      await refuses(
        assume('confused', { ExternalId: 'k-17', SourceIdentity: 'Ann' }),
        'AccessDeniedException',
        /sts:SetSourceIdentity/,
      );

      await makeRole(
        'tagged',
        TRUST_ACCOUNT,
        [
          allow('ecr:BatchGetImage', `arn:aws:ecr:*:*:repository/\${aws:PrincipalTag/team}/*`, {
            StringEquals: { 'aws:SourceIdentity': 'Ann', 'aws:PrincipalTag/kept': 'by the role' },
          }),
          allow('sts:*'),
        ],
        {
          Tags: [
            { Key: 'Team', Value: 'red' },
            { Key: 'kept', Value: 'by the role' },
          ],
        },
      );
      assert.equal(await may(await assume('tagged', { SourceIdentity: 'Ann' })), false);
      const answer = await f.call('AssumeRole', {
        RoleArn: roleOf('tagged'),
        RoleSessionName: 'build-7',
        SourceIdentity: 'Ann',
        Tags: [{ Key: 'team', Value: 'team' }],
        TransitiveTagKeys: ['team'],
      });
      assert.equal(answer['SourceIdentity'], 'Ann');
      assert.equal(answer['PackedPolicySize'], 1);
      const key = keyOf(answer);
      assert.equal(await may(key), true);

      // Along the chain: transitive tags and the source identity go with it and cannot be changed.
      await makeRole('second', TRUST_ACCOUNT, [
        allow('ecr:BatchGetImage', '*', {
          StringEquals: { 'aws:PrincipalTag/team': 'team', 'aws:SourceIdentity': 'Ann' },
        }),
      ]);
      assert.equal(await may(await assume('second', {}, key)), true);
      await refuses(
        assume('second', { Tags: [{ Key: 'TEAM', Value: 'x' }] }, key),
        'InvalidParameterValue',
        "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.",
      );
      await refuses(
        assume('second', { SourceIdentity: 'Bob' }, key),
        'AccessDeniedException',
        /sts:SetSourceIdentity/,
      );
      await refuses(
        assume('second', { DurationSeconds: 3601 }, key),
        'ValidationError',
        'The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.',
      );
    });

    it('refuses what does not fit', async () => {
      await makeRole('limits', TRUST_ACCOUNT, [allow('*')], { MaxSessionDuration: 7200 });
      const tag = (i: number, size = 1) => ({ Key: `k${i}`, Value: 'v'.repeat(size) });
      const long = policyText([allow('ecr:*', `arn:aws:ecr:*:*:repository/${'x'.repeat(2100)}`)]);
      const cases: [Structure, string, string | RegExp][] = [
        [
          { DurationSeconds: 7201 },
          'ValidationError',
          'The requested DurationSeconds exceeds the MaxSessionDuration set for this role.',
        ],
        [
          { Tags: [tag(1), { Key: 'K1', Value: '' }] },
          'InvalidParameterValue',
          'Duplicate tag keys found. Please note that Tag keys are case insensitive.',
        ],
        [
          { Tags: [tag(1)], TransitiveTagKeys: ['k2'] },
          'InvalidParameterValue',
          'The specified transitive tag key must be included in the requested tags.',
        ],
        [{ Tags: [{ Key: 'aws:x', Value: '' }] }, 'ValidationError', /reserved/],
        [
          { Tags: Array.from({ length: 50 }, (_, i) => tag(i, 100)) },
          'PackedPolicyTooLarge',
          /^Packed size of session tags consumes 1\d\d% of allotted space\.$/,
        ],
        [{ Policy: '{}' }, 'MalformedPolicyDocument', 'Syntax errors in policy.'],
        [
          { Policy: long },
          'PackedPolicyTooLarge',
          /^Packed policy consumes 1\d\d% of allotted space, please use smaller policy\.$/,
        ],
        [
          { PolicyArns: [{ arn: `arn:aws:iam::${ACCOUNT}:policy/absent` }] },
          'MalformedPolicyDocument',
          /absent/,
        ],
        [{ SerialNumber: 'arn:aws:iam::1:mfa/x', TokenCode: '123456' }, 'AccessDeniedException', /MFA/],
      ];
      for (const [more, code, message] of cases) await refuses(assume('limits', more), code, message);
      await assume('limits', { DurationSeconds: 7200 });
    });

    it('is narrowed by session policies, inline or managed, and by the boundary', async () => {
      await makeRole('narrow', TRUST_ACCOUNT, [allow('ecr:*')]);
      const document = policyText([allow('ecr:BatchGetImage')]);
      const { Policy } = await f.call('CreatePolicy', { PolicyName: 'narrowing', PolicyDocument: document });
      const arn = String((Policy as Structure)['Arn']);
      const push = { action: 'ecr:PutImage', resource: REPOSITORY };
      const inline = await assume('narrow', { Policy: document });
      const managed = await assume('narrow', { PolicyArns: [{ arn }] });
      for (const key of [inline, managed]) {
        assert.equal(await may(key), true);
        assert.equal(await may(key, push), false);
      }
      await refuses(
        f.identity.authorize(await principalOf(inline), [push], factsOf()),
        'AccessDeniedException',
        `User: arn:aws:sts::${ACCOUNT}:assumed-role/narrow/build-7 is not authorized to perform: ecr:PutImage on resource: ${REPOSITORY} because no session policy allows the ecr:PutImage action`,
      );
      await f.call('CreatePolicyVersion', {
        PolicyArn: arn,
        PolicyDocument: policyText([allow('ecr:PutImage')]),
        SetAsDefault: true,
      });
      assert.equal(await may(managed), false);
      assert.equal(await may(managed, push), true);
      await f.call('DeletePolicyVersion', { PolicyArn: arn, VersionId: 'v1' });
      await f.call('DeletePolicy', { PolicyArn: arn });
      assert.equal(await may(managed, push), false, 'a missing restriction is not none');
      const whole = await assume('narrow');
      assert.equal(await may(whole, push), true);
      await f.call('PutRolePermissionsBoundary', {
        RoleName: 'narrow',
        PermissionsBoundary: 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly',
      });
      assert.equal(await may(whole), true);
      assert.equal(await may(whole, push), false);
    });

    it('crosses accounts when both sides say so', async () => {
      const { adminKey: stranger } = await createAccount({
        store: f.store,
        keys: f.keys,
        account: OTHER,
        now: NOW,
      });
      await makeRole('inner', TRUST_ACCOUNT);
      await makeRole('shared', [trusting({ AWS: OTHER })], [allow('ecr:*')]);
      await assert.rejects(assume('inner', {}, stranger), { code: 'AccessDeniedException' });
      const key = await assume('shared', {}, stranger);
      assert.equal(await may(key), true);
      assert.equal((await f.call('GetCallerIdentity', {}, { as: key }))['Account'], ACCOUNT);
      const { AccessKey } = await f.call('CreateAccessKey', { UserName: 'admin' }, { as: stranger });
      assert.ok(AccessKey);
      await f.call(
        'PutUserPolicy',
        { UserName: 'admin', PolicyName: 'no', PolicyDocument: policyText([deny('sts:AssumeRole')]) },
        { as: stranger },
      );
      await refuses(
        assume('shared', {}, stranger),
        'AccessDeniedException',
        /with an explicit deny in an identity-based policy$/,
      );
    });
  });

  describe('sessions of users', () => {
    it('are the user, by GetSessionToken, and end with the key', async () => {
      const key = await f.makeUser('dave', [allow(['ecr:*', 'iam:*', 'sts:*'])]);
      const answer = await f.call('GetSessionToken', {}, { as: key });
      const session = keyOf(answer);
      const { Expiration } = answer['Credentials'] as Structure;
      assert.deepEqual(Expiration, new Date(NOW + 12 * HOUR));
      const { Arn } = await f.call('GetCallerIdentity', {}, { as: session });
      assert.equal(Arn, `arn:aws:iam::${ACCOUNT}:user/dave`);
      assert.equal(await may(session), true);
      const { password } = await f.identity.issueRegistryToken(
        await principalOf(session),
        { region: 'r' },
        NOW,
      );
      await f.identity.openRegistryToken(password, NOW);
      await refuses(
        f.call('GetUser', {}, { as: session }),
        'UnrecognizedClientException',
        'The security token included in the request is invalid.',
      );
      await refuses(
        f.call('GetSessionToken', {}, { as: session }),
        'AccessDeniedException',
        'Cannot call GetSessionToken with session credentials',
      );
      await refuses(
        f.call('GetFederationToken', { Name: 'fred' }, { as: session }),
        'AccessDeniedException',
        'Cannot call GetFederationToken with session credentials',
      );
      await makeRole('for-dave', TRUST_ACCOUNT);
      await assume('for-dave', {}, session);
      await f.call('UpdateAccessKey', { UserName: 'dave', AccessKeyId: key.id, Status: 'Inactive' });
      assert.equal(await f.identity.findKey(session.id, session.token, NOW), 'invalid-token');
      await refuses(f.identity.openRegistryToken(password, NOW), 'InvalidRegistryToken', /./);
      const root = await f.call('GetSessionToken', { DurationSeconds: 43_200 }, { as: ROOT });
      assert.deepEqual((root['Credentials'] as Structure)['Expiration'], new Date(NOW + HOUR));
      assert.equal(await may(keyOf(root)), true);
    });

    it('are federated users by GetFederationToken, with what is passed on and no more', async () => {
      const key = await f.makeUser('erin', [allow(['ecr:*', 'sts:*'])]);
      const federate = async (more: Structure = {}, as: TestCredentials = key) =>
        await f.call('GetFederationToken', { Name: 'fred', ...more }, { as });
      const answer = await federate({ Policy: policyText([allow(['ecr:BatchGetImage', 's3:*'])]) });
      const arn = `arn:aws:sts::${ACCOUNT}:federated-user/fred`;
      assert.deepEqual(answer['FederatedUser'], { FederatedUserId: `${ACCOUNT}:fred`, Arn: arn });
      const session = keyOf(answer);
      assert.equal(await may(session), true);
      assert.equal(await may(session, { action: 'ecr:PutImage', resource: REPOSITORY }), false);
      assert.equal(await may(session, { action: 's3:GetObject', resource: 'arn:aws:s3:::b/x' }), false);
      assert.deepEqual(await f.call('GetCallerIdentity', {}, { as: session }), {
        UserId: `${ACCOUNT}:fred`,
        Account: ACCOUNT,
        Arn: arn,
      });
      const bare = await federate();
      assert.equal(bare['PackedPolicySize'], 0);
      assert.equal(await may(keyOf(bare)), false, 'nothing passed on is nothing allowed');
      await assert.rejects(assume('for-dave', {}, session), { code: 'AccessDeniedException' });
      await assert.rejects(f.call('GetAccessKeyInfo', { AccessKeyId: key.id }, { as: session }), {
        code: 'AccessDeniedException',
      });
      await assert.rejects(f.call('ListUsers', {}, { as: session }), { code: 'UnrecognizedClientException' });
      const nobody = await f.makeUser('no-federation');
      await refuses(
        federate({}, nobody),
        'AccessDeniedException',
        `User: arn:aws:iam::${ACCOUNT}:user/no-federation is not authorized to perform: sts:GetFederationToken on resource: ${arn} because no identity-based policy allows the sts:GetFederationToken action`,
      );
    });
  });

  it('DecodeAuthorizationMessage refuses what was not made here', async () => {
    await refuses(
      f.call('DecodeAuthorizationMessage', { EncodedMessage: 'aGVsbG8' }),
      'InvalidAuthorizationMessageException',
      'Message is not valid',
    );
  });

  it('roles remember when they were last used', async () => {
    await makeRole('used', TRUST_ACCOUNT);
    const lastUse = async () =>
      ((await f.call('GetRole', { RoleName: 'used' }))['Role'] as Structure)['RoleLastUsed'];
    assert.deepEqual(await lastUse(), {});
    const key = await assume('used');
    await principalOf(key);
    f.identity.recordKeyUse(key.id, 'ecr', 'eu-west-1', NOW + 5000);
    assert.deepEqual(await lastUse(), { LastUsedDate: new Date(NOW + 5000), Region: 'eu-west-1' });
  });
});
