/** What a user who may do little tries in order to do more, and names that look like other names. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { ACCOUNT, openTarget, OTHER, REGION, type Answer, type Call, type Target } from './attack-kit.ts';

const ADMINISTRATOR = 'arn:aws:iam::aws:policy/AdministratorAccess';
const allow = (Action: string | string[], Resource: string | string[] = '*', more: object = {}) => ({
  Effect: 'Allow',
  Action,
  Resource,
  ...more,
});
const text = (...statements: object[]) => JSON.stringify({ Version: '2012-10-17', Statement: statements });
const trusting = (AWS: string, Condition?: object) =>
  text({ Effect: 'Allow', Principal: { AWS }, Action: 'sts:AssumeRole', ...(Condition && { Condition }) });
const repository = (name: string) => `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${name}`;

let target: Target;
const iam = (operation: string, input: object): Call => ({ service: 'iam', operation, input });
const sts = (operation: string, input: object): Call => ({ service: 'sts', operation, input });
const ecr = (operation: string, input: object): Call => ({ service: 'ecr', operation, input });

async function done(call: Call, key: Credentials = target.admin): Promise<Answer> {
  const answer = await target.call(call, key);
  assert.equal(answer.status, 200, `${call.operation}: ${answer.text}`);
  return answer;
}

function denied(answer: Answer, action: string): void {
  assert.match(answer.code, /^AccessDenied(Exception)?$/, answer.text);
  assert.match(answer.message, new RegExp(`is not authorized to perform: ${action}\\b`));
}

before(async () => {
  target = await openTarget();
  const power = { RoleName: 'power', AssumeRolePolicyDocument: trusting(ACCOUNT) };
  await done(iam('CreateRole', power));
  await done(iam('AttachRolePolicy', { RoleName: 'power', PolicyArn: ADMINISTRATOR }));
  await done(iam('CreateInstanceProfile', { InstanceProfileName: 'machine' }));
  await done(iam('CreateGroup', { GroupName: 'admins' }));
  await done(iam('AttachGroupPolicy', { GroupName: 'admins', PolicyArn: ADMINISTRATOR }));
  await done(iam('CreatePolicy', { PolicyName: 'own', PolicyDocument: text(allow('ecr:ListImages')) }));
  const version = { PolicyArn: `arn:aws:iam::${ACCOUNT}:policy/own`, PolicyDocument: text(allow('*')) };
  await done(iam('CreatePolicyVersion', version));
  for (const repositoryName of ['team/app', 'secret/app'])
    await done(ecr('CreateRepository', { repositoryName }));
});
after(() => target[Symbol.asyncDispose]());

describe('a user who may read IAM and use ECR', () => {
  let mallory: Credentials;
  before(async () => {
    mallory = await target.addUser('mallory', [allow(['iam:Get*', 'iam:List*', 'ecr:*'])]);
    const PolicyArn = `arn:aws:iam::${ACCOUNT}:policy/own`;
    await done(iam('AttachUserPolicy', { UserName: 'mallory', PolicyArn }));
  });

  const document = text(allow('*'));
  const own = `arn:aws:iam::${ACCOUNT}:policy/own`;
  const power = `arn:aws:iam::${ACCOUNT}:role/power`;
  const ATTEMPTS: readonly Call[] = [
    iam('AttachUserPolicy', { UserName: 'mallory', PolicyArn: ADMINISTRATOR }),
    iam('PutUserPolicy', { UserName: 'mallory', PolicyName: 'p', PolicyDocument: document }),
    iam('DeleteUserPolicy', { UserName: 'mallory', PolicyName: 'p' }),
    iam('AttachGroupPolicy', { GroupName: 'admins', PolicyArn: ADMINISTRATOR }),
    iam('PutGroupPolicy', { GroupName: 'admins', PolicyName: 'p', PolicyDocument: document }),
    iam('AddUserToGroup', { GroupName: 'admins', UserName: 'mallory' }),
    iam('AttachRolePolicy', { RoleName: 'power', PolicyArn: ADMINISTRATOR }),
    iam('PutRolePolicy', { RoleName: 'power', PolicyName: 'p', PolicyDocument: document }),
    iam('UpdateAssumeRolePolicy', { RoleName: 'power', PolicyDocument: trusting(ACCOUNT) }),
    iam('UpdateRole', { RoleName: 'power', MaxSessionDuration: '43200' }),
    iam('CreateRole', { RoleName: 'mine', AssumeRolePolicyDocument: trusting(ACCOUNT) }),
    iam('CreateUser', { UserName: 'accomplice' }),
    iam('UpdateUser', { UserName: 'mallory', NewUserName: 'admin2' }),
    iam('CreateAccessKey', { UserName: 'admin' }),
    iam('CreateAccessKey', {}),
    iam('UpdateAccessKey', { UserName: 'admin', AccessKeyId: 'AKIAAAAAAAAAAAAAAAAA', Status: 'Inactive' }),
    iam('DeleteAccessKey', { UserName: 'admin', AccessKeyId: 'AKIAAAAAAAAAAAAAAAAA' }),
    iam('CreateLoginProfile', { UserName: 'admin', Password: 'Correct-Horse-7' }),
    iam('UpdateLoginProfile', { UserName: 'admin', Password: 'Correct-Horse-7' }),
    iam('CreatePolicy', { PolicyName: 'wide', PolicyDocument: document }),
    iam('CreatePolicyVersion', { PolicyArn: own, PolicyDocument: document, SetAsDefault: 'true' }),
    iam('SetDefaultPolicyVersion', { PolicyArn: own, VersionId: 'v2' }),
    iam('DeleteUserPermissionsBoundary', { UserName: 'mallory' }),
    iam('PutUserPermissionsBoundary', { UserName: 'mallory', PermissionsBoundary: ADMINISTRATOR }),
    iam('DeleteRolePermissionsBoundary', { RoleName: 'power' }),
    iam('AddRoleToInstanceProfile', { InstanceProfileName: 'machine', RoleName: 'power' }),
    iam('TagUser', { UserName: 'mallory', 'Tags.member.1.Key': 'team', 'Tags.member.1.Value': 'admins' }),
    iam('TagRole', { RoleName: 'power', 'Tags.member.1.Key': 'team', 'Tags.member.1.Value': 'x' }),
    iam('CreateOpenIDConnectProvider', {
      Url: 'https://evil.example',
      'ClientIDList.member.1': 'sts.amazonaws.com',
    }),
    sts('AssumeRole', { RoleArn: power, RoleSessionName: 'xx' }),
    sts('GetFederationToken', { Name: 'xx', Policy: document }),
  ];
  for (const call of ATTEMPTS) {
    it(`may not ${call.operation} ${JSON.stringify(call.input).slice(0, 70)}`, async () => {
      denied(await target.call(call, mallory), `${call.service}:${call.operation}`);
    });
  }

  it('gains nothing by GetSessionToken', async () => {
    const answer = await done(sts('GetSessionToken', {}), mallory);
    const field = (name: string) => new RegExp(`<${name}>(.*?)</${name}>`, 's').exec(answer.text)?.[1] ?? '';
    const session = {
      accessKeyId: field('AccessKeyId'),
      secretAccessKey: field('SecretAccessKey'),
      sessionToken: field('SessionToken'),
    };
    assert.equal((await target.call(iam('ListUsers', {}), session)).code, 'InvalidClientTokenId');
    denied(
      await target.call(sts('AssumeRole', { RoleArn: power, RoleSessionName: 'xx' }), session),
      'sts:AssumeRole',
    );
    for (const sessionToken of [
      `${session.sessionToken}A`,
      session.sessionToken.slice(0, -4),
      '',
      target.admin.secretAccessKey,
    ]) {
      const answer = await target.call(sts('GetCallerIdentity', {}), { ...session, sessionToken });
      assert.notEqual(answer.status, 200);
    }
    // A session's own token with the long-term key, and the session key without its token.
    const crossed = { ...mallory, sessionToken: session.sessionToken };
    assert.equal((await target.call(sts('GetCallerIdentity', {}), crossed)).code, 'InvalidClientTokenId');
    const bare = { ...session, sessionToken: undefined };
    assert.equal((await target.call(sts('GetCallerIdentity', {}), bare)).code, 'InvalidClientTokenId');
  });
});

describe('a permission goes as far as it says', () => {
  it('AddRoleToInstanceProfile needs PassRole on that role', async () => {
    const add = iam('AddRoleToInstanceProfile', { InstanceProfileName: 'machine', RoleName: 'power' });
    const passing = allow('iam:PassRole', `arn:aws:iam::${ACCOUNT}:role/weak`);
    const key = await target.addUser('passer', [allow('iam:AddRoleToInstanceProfile'), passing]);
    denied(await target.call(add, key), 'iam:PassRole');
  });

  it('own keys are no keys of others, however the name is written', async () => {
    const own = `arn:aws:iam::${ACCOUNT}:user/\${aws:username}`;
    const key = await target.addUser('self', [allow('iam:CreateAccessKey', own)]);
    await done(iam('CreateAccessKey', { UserName: 'self' }), key);
    for (const UserName of [
      'admin',
      'Admin',
      'ADMIN',
      'selfish',
      '*',
      's*',
      '?elf',
      '../admin',
      'self/../admin',
      'self\0',
      'ｓelf',
      'self%2fadmin',
    ]) {
      const answer = await target.call(iam('CreateAccessKey', { UserName }), key);
      assert.match(answer.code, /^(AccessDenied|ValidationError)$/, `${UserName}: ${answer.text}`);
    }
  });

  it('a boundary cannot be shaken off by who has it', async () => {
    const bounded = await target.addUser('bounded', [allow('*')]);
    const PolicyName = 'limits';
    const own = `arn:aws:iam::${ACCOUNT}:policy/${PolicyName}`;
    const inside = allow(['ecr:*', 'iam:*']);
    const outside = {
      Effect: 'Deny',
      Action: [
        'iam:DeleteUserPermissionsBoundary',
        'iam:PutUserPermissionsBoundary',
        'iam:CreatePolicyVersion',
        'iam:SetDefaultPolicyVersion',
        'iam:DeletePolicyVersion',
      ],
      Resource: '*',
    };
    const unbounded = {
      Effect: 'Deny',
      Action: ['iam:CreateUser', 'iam:CreateRole', 'iam:AttachUserPolicy', 'iam:PutUserPolicy'],
      Resource: '*',
      Condition: { StringNotEquals: { 'iam:PermissionsBoundary': own } },
    };
    await done(iam('CreatePolicy', { PolicyName, PolicyDocument: text(inside, outside, unbounded) }));
    await done(iam('PutUserPermissionsBoundary', { UserName: 'bounded', PermissionsBoundary: own }));
    const attempts: readonly Call[] = [
      iam('DeleteUserPermissionsBoundary', { UserName: 'bounded' }),
      iam('PutUserPermissionsBoundary', { UserName: 'bounded', PermissionsBoundary: ADMINISTRATOR }),
      iam('CreatePolicyVersion', { PolicyArn: own, PolicyDocument: text(allow('*')), SetAsDefault: 'true' }),
      iam('SetDefaultPolicyVersion', { PolicyArn: own, VersionId: 'v1' }),
      iam('CreateUser', { UserName: 'free' }),
      iam('CreateUser', { UserName: 'free', PermissionsBoundary: ADMINISTRATOR }),
      iam('CreateRole', { RoleName: 'free', AssumeRolePolicyDocument: trusting(ACCOUNT) }),
      iam('AttachUserPolicy', { UserName: 'admin', PolicyArn: ADMINISTRATOR }),
      sts('AssumeRole', { RoleArn: `arn:aws:iam::${ACCOUNT}:role/power`, RoleSessionName: 'xx' }),
    ];
    for (const call of attempts)
      denied(await target.call(call, bounded), `${call.service}:${call.operation}`);
    await done(iam('CreateUser', { UserName: 'child', PermissionsBoundary: own }), bounded);
  });

  it('attaching is limited to the policies a condition names', async () => {
    const condition = {
      Condition: {
        ArnEquals: { 'iam:PolicyARN': 'arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly' },
      },
    };
    const key = await target.addUser('attacher', [allow('iam:AttachUserPolicy', '*', condition)]);
    const attach = (PolicyArn: string) =>
      target.call(iam('AttachUserPolicy', { UserName: 'attacher', PolicyArn }), key);
    denied(await attach(ADMINISTRATOR), 'iam:AttachUserPolicy');
    assert.equal((await attach('arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryReadOnly')).status, 200);
    denied(await attach(ADMINISTRATOR), 'iam:AttachUserPolicy');
  });

  it("a tag's value is text in a policy variable, never a pattern", async () => {
    const key = await target.addUser('tagged', [allow('ecr:*', repository('${aws:PrincipalTag/team}/*'))]);
    const list = (repositoryName: string) => target.call(ecr('ListImages', { repositoryName }), key);
    for (const value of ['*', '?ecret', 'secre*', '${*}', 'secret/*/../', '']) {
      await done(
        iam('TagUser', { UserName: 'tagged', 'Tags.member.1.Key': 'team', 'Tags.member.1.Value': value }),
      ).catch(() => undefined);
      denied(await list('secret/app'), 'ecr:ListImages');
    }
    await done(
      iam('TagUser', { UserName: 'tagged', 'Tags.member.1.Key': 'team', 'Tags.member.1.Value': 'team' }),
    );
    assert.equal((await list('team/app')).status, 200);
    denied(await list('secret/app'), 'ecr:ListImages');
  });
});

describe('the confused deputy', () => {
  it('must know the external id, letter by letter', async () => {
    const ExternalId = 'Unique-17/a:b';
    const AssumeRolePolicyDocument = trusting(OTHER, { StringEquals: { 'sts:ExternalId': ExternalId } });
    await done(iam('CreateRole', { RoleName: 'vendor', AssumeRolePolicyDocument }));
    const role = `arn:aws:iam::${ACCOUNT}:role/vendor`;
    const assume = (more: object) =>
      target.call(sts('AssumeRole', { RoleArn: role, RoleSessionName: 'xx', ...more }), target.stranger);
    assert.equal((await assume({ ExternalId })).status, 200);
    denied(await assume({}), 'sts:AssumeRole');
    for (const wrong of ['Unique-17', 'unique-17/a:b', 'Unique-17/a:bc', 'Unique-17/a:', 'xx']) {
      const answer = await assume({ ExternalId: wrong });
      denied(answer, 'sts:AssumeRole');
      // Nothing tells which part was wrong.
      assert.doesNotMatch(answer.text, /ExternalId|condition|because/i);
    }
    for (const wrong of [
      ' Unique-17/a:b',
      'Unique-17/a:b\n',
      'Ｕnique-17/a:b',
      'Unique-17/?:b',
      '*',
      'x',
      `${ExternalId},${ExternalId},*`,
    ]) {
      assert.match((await assume({ ExternalId: wrong })).code, /^(ValidationError|AccessDenied)$/, wrong);
    }
    // Said twice, only one of them counts, the same for every reader.
    const entries = { Action: 'AssumeRole', Version: '2011-06-15', RoleArn: role, RoleSessionName: 'xx' };
    const twice = (...ids: string[]) =>
      target.call(
        sts('AssumeRole', [...Object.entries(entries), ...ids.map((id) => ['ExternalId', id])]),
        target.stranger,
      );
    const statuses = [(await twice(ExternalId, 'wrong')).status, (await twice('wrong', ExternalId)).status];
    assert.ok(
      statuses.some((status) => status >= 400),
      String(statuses),
    );
  });
});

describe('names that look like other names', () => {
  let key: Credentials;
  before(async () => {
    key = await target.addUser('namer', [
      allow('ecr:*', repository('team/*')),
      allow('ecr:GetAuthorizationToken'),
    ]);
  });

  const NAMES = [
    'secret/app',
    'TEAM/app',
    'Team/app',
    'ｔeam/app',
    'te\u0430m/app',
    'team\u2215app',
    'team%2Fapp',
    'team%2fapp',
    'team/../secret/app',
    'team/./app',
    'team//app',
    '/team/app',
    'team/app/',
    'team\\app',
    'team/app\0',
    'team\0/app',
    'team/app\n',
    'team/*',
    'team/?pp',
    '*',
    'team/caf\u00e9',
    'team/cafe\u0301',
    'team/\u202eppa',
    'team/\u200bapp',
    'te\u017fam/app',
    '${aws:username}/app',
    'team/${*}',
    'team/app@sha256',
    'team/app:latest',
  ];
  for (const repositoryName of NAMES) {
    it(`open nothing in the API: ${JSON.stringify(repositoryName)}`, async () => {
      for (const operation of ['CreateRepository', 'ListImages', 'DeleteRepository', 'GetRepositoryPolicy']) {
        const answer = await target.call(ecr(operation, { repositoryName }), key);
        assert.match(
          answer.code,
          /^(AccessDeniedException|InvalidParameterException)$/,
          `${operation}: ${answer.text}`,
        );
      }
    });
  }

  it('open nothing on the registry', async () => {
    const answer = await done(ecr('GetAuthorizationToken', {}), key);
    const [, token = ''] = /"authorizationToken":"([^"]*)"/.exec(answer.text) ?? [];
    const get = (path: string) =>
      target.raw(
        `GET ${path} HTTP/1.1\r\nHost: ${target.host}\r\nAuthorization: Basic ${token}\r\nConnection: close\r\n\r\n`,
      );
    assert.equal((await get('/v2/team/app/tags/list')).status, 200);
    const paths = [
      '/v2/secret/app/tags/list',
      '/v2/team/../secret/app/tags/list',
      '/v2/team/%2e%2e/secret/app/tags/list',
      '/v2/team/..%2fsecret%2fapp/tags/list',
      '/v2/secret%2Fapp/tags/list',
      '/v2/%73ecret/app/tags/list',
      '/v2//secret/app/tags/list',
      '/v2/./secret/app/tags/list',
      '/v2/SECRET/app/tags/list',
      '/v2/team%2f..%2f..%2fsecret/app/tags/list',
      '/v2/team%00/app/tags/list',
      '/v2/team/*/tags/list',
      '/v2/\xef\xbd\x94eam/app/tags/list',
      '/v2/secret/app/manifests/../tags/list',
      '//v2/secret/app/tags/list',
      '/V2/secret/app/tags/list',
      `http://${target.host}/v2/secret/app/tags/list`,
      '/v2/team/app/../../secret/app/tags/list',
      '/v2/team/app/tags/list/../../../../secret/app/tags/list',
    ];
    for (const path of paths) {
      const { status, text } = await get(path);
      assert.ok([400, 403, 404, 405].includes(status), `${path}: ${status} ${text}`);
      assert.doesNotMatch(text, /"name":"secret/);
    }
  });

  it('name nobody in a policy', async () => {
    const principals = [
      `arn:aws:iam::${OTHER}:user/*`,
      `arn:aws:iam::${OTHER}:*`,
      'arn:aws:iam::*:root',
      `arn:aws:iam::${OTHER}:user/adm?n`,
      '１１１１１１１１１１１１',
      `${OTHER} `,
      `0x${OTHER}`,
      'arn:aws:iam::11111111111:root',
      `ARN:AWS:IAM::${OTHER}:ROOT`,
      `arn:aws:iam::${OTHER}:user/ADMIN/../admin`,
      `arn:aws:iam::${OTHER}:user/\${aws:username}`,
      `arn:aws:sts::${OTHER}:assumed-role/*/*`,
    ];
    for (const AWS of principals) {
      const policyText = text({ Effect: 'Allow', Principal: { AWS }, Action: 'ecr:*' });
      const answer = await target.call(
        ecr('SetRepositoryPolicy', { repositoryName: 'secret/app', policyText }),
        target.admin,
      );
      assert.equal(answer.code, 'InvalidParameterException', `${AWS}: ${answer.text}`);
      const trust = { RoleName: `r${principals.indexOf(AWS)}`, AssumeRolePolicyDocument: trusting(AWS) };
      assert.match(
        (await target.call(iam('CreateRole', trust), target.admin)).code,
        /^(MalformedPolicyDocument|ValidationError)$/,
        AWS,
      );
    }
  });
});
