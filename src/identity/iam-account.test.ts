import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, deny, factsOf, NOW, onEveryStore, policyText } from '../../test/identity.ts';
import type { Fixture, TestCredentials } from '../../test/identity.ts';
import { compileGuardrails, createAccount } from './identity.ts';

const OTHER = '999999999999';
const refuses = (promise: Promise<unknown>, code: string, message: string | RegExp) =>
  assert.rejects(promise, { name: 'Fault', code, message });
const arnOf = (rest: string) => `arn:aws:iam::${ACCOUNT}:${rest}`;
const TRUST = policyText([
  { Effect: 'Allow', Principal: { Service: 'ec2.amazonaws.com' }, Action: 'sts:AssumeRole' },
]);
const GUARDRAILS = compileGuardrails({
  [OTHER]: {
    'service-control': [
      {
        name: 'no-deletion',
        document: { Statement: [{ Effect: 'Deny', Action: 'ecr:Delete*', Resource: '*' }] },
      },
    ],
    'resource-control': [
      {
        name: 'home-only',
        document: {
          Statement: [
            {
              Effect: 'Deny',
              Principal: '*',
              Action: 'ecr:*',
              Resource: '*',
              Condition: { StringNotEquals: { 'aws:PrincipalAccount': OTHER } },
            },
          ],
        },
      },
    ],
  },
});

await onEveryStore(
  (fixture) => {
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

    describe('passwords', () => {
      it('go through their life under the password policy', async () => {
        const key = await f.makeUser('pat', [allow('iam:ChangePassword')]);
        const create = (Password: string) => f.call('CreateLoginProfile', { UserName: 'pat', Password });
        await refuses(
          create('short'),
          'PasswordPolicyViolation',
          'Password should have a minimum length of 8',
        );
        await refuses(create('all-lower-case'), 'PasswordPolicyViolation', /at least three of/);
        assert.deepEqual(await create('Tr0ub4dor'), {
          LoginProfile: { UserName: 'pat', CreateDate: new Date(NOW), PasswordResetRequired: false },
        });
        await refuses(
          create('Tr0ub4dor'),
          'EntityAlreadyExists',
          'Login Profile for user pat already exists.',
        );
        await refuses(
          f.call('GetAccountPasswordPolicy'),
          'NoSuchEntity',
          `The Password Policy with domain name ${ACCOUNT} cannot be found.`,
        );
        await f.call('UpdateAccountPasswordPolicy', {
          MinimumPasswordLength: 10,
          RequireNumbers: true,
          PasswordReusePrevention: 2,
        });
        const change = (OldPassword: string, NewPassword: string) =>
          f.call('ChangePassword', { OldPassword, NewPassword }, { as: key });
        await refuses(
          change('wrong', 'correct horse 1'),
          'AccessDeniedException',
          'The old password was incorrect.',
        );
        await refuses(
          change('Tr0ub4dor', 'correct horse'),
          'PasswordPolicyViolation',
          'Password should have at least one number',
        );
        await change('Tr0ub4dor', 'correct horse 1');
        await refuses(change('correct horse 1', 'correct horse 1'), 'PasswordPolicyViolation', /used before/);
        await f.call('UpdateLoginProfile', {
          UserName: 'pat',
          Password: 'battery staple 2',
          PasswordResetRequired: true,
        });
        const profile = await member('GetLoginProfile', { UserName: 'pat' }, 'LoginProfile');
        assert.equal(profile['PasswordResetRequired'], true);
        await refuses(
          f.call(
            'ChangePassword',
            { OldPassword: 'x', NewPassword: 'y' },
            { as: { id: 'AKIAROOTROOTROOTROOT', secret: '' } },
          ),
          'InvalidUserType',
          /./,
        );
        await f.call('DeleteAccessKey', { UserName: 'pat', AccessKeyId: key.id });
        await f.call('DeleteUserPolicy', { UserName: 'pat', PolicyName: 'inline' });
        await refuses(
          f.call('DeleteUser', { UserName: 'pat' }),
          'DeleteConflict',
          'Cannot delete entity, must delete login profile first.',
        );
        await f.call('DeleteLoginProfile', { UserName: 'pat' });
        await f.call('DeleteUser', { UserName: 'pat' });
        await f.call('DeleteAccountPasswordPolicy');
      });
    });

    it('are changed by users themselves where the password policy lets them', async () => {
      const key = await f.makeUser('penny');
      const denied = await f.makeUser('paul', [deny('iam:ChangePassword')]);
      const Password = 'Tr0ub4dor';
      for (const UserName of ['penny', 'paul']) await f.call('CreateLoginProfile', { UserName, Password });
      const change = (as: typeof key) =>
        f.call('ChangePassword', { OldPassword: Password, NewPassword: 'Tr0ub4dor-2' }, { as });
      await refuses(change(key), 'AccessDeniedException', /not authorized to perform: iam:ChangePassword/);
      await f.call('UpdateAccountPasswordPolicy', { AllowUsersToChangePassword: true });
      await change(key);
      await refuses(change(denied), 'AccessDeniedException', /with an explicit deny in an identity-based/);
      await f.call('DeleteAccountPasswordPolicy');
      for (const UserName of ['penny', 'paul']) await f.call('DeleteLoginProfile', { UserName });
    });

    describe('the account', () => {
      it('has one alias', async () => {
        await f.call('CreateAccountAlias', { AccountAlias: 'first' });
        await f.call('CreateAccountAlias', { AccountAlias: 'second' });
        assert.deepEqual(await f.call('ListAccountAliases'), {
          AccountAliases: ['second'],
          IsTruncated: false,
        });
        await refuses(f.call('DeleteAccountAlias', { AccountAlias: 'first' }), 'NoSuchEntity', /first/);
        await f.call('DeleteAccountAlias', { AccountAlias: 'second' });
      });

      it('sums itself up', async () => {
        const before = await member('GetAccountSummary', {}, 'SummaryMap');
        await f.call('CreateRole', { RoleName: 'counted', AssumeRolePolicyDocument: TRUST });
        await f.call('CreatePolicy', { PolicyName: 'counted', PolicyDocument: policyText([allow('*')]) });
        const after = await member('GetAccountSummary', {}, 'SummaryMap');
        assert.equal(Object.keys(after).length, 34);
        assert.equal(after['Roles'], Number(before['Roles']) + 1);
        assert.equal(after['PolicyVersionsInUse'], Number(before['PolicyVersionsInUse']) + 1);
        assert.equal(after['AccountAccessKeysPresent'], 1);
      });

      it('lists everything in pages across the kinds', async () => {
        const whole = await f.call('GetAccountAuthorizationDetails');
        const lists = ['UserDetailList', 'GroupDetailList', 'RoleDetailList', 'Policies'] as const;
        const pages: Record<string, unknown[]> = {
          UserDetailList: [],
          GroupDetailList: [],
          RoleDetailList: [],
          Policies: [],
        };
        let Marker: Structure[string];
        do {
          const page = await f.call('GetAccountAuthorizationDetails', {
            MaxItems: 2,
            ...(Marker !== undefined && { Marker }),
          });
          for (const list of lists) pages[list]?.push(...(page[list] as unknown[]));
          Marker = page['Marker'];
        } while (Marker !== undefined);
        for (const list of lists) assert.deepEqual(pages[list], whole[list]);
        const [admin] = (whole['UserDetailList'] as Structure[]).filter(
          (user) => user['UserName'] === 'admin',
        );
        assert.deepEqual(admin?.['AttachedManagedPolicies'], [
          { PolicyName: 'AdministratorAccess', PolicyArn: 'arn:aws:iam::aws:policy/AdministratorAccess' },
        ]);
        const roles = await f.call('GetAccountAuthorizationDetails', { Filter: ['Role'] });
        assert.deepEqual(roles['UserDetailList'], []);
        assert.deepEqual(roles['RoleDetailList'], whole['RoleDetailList']);
      });

      it('reports its credentials', async () => {
        await refuses(f.call('GetCredentialReport'), 'ReportNotPresent', 'The report is not present.');
        await f.call('CreateUser', { UserName: 'rita' });
        await f.call('CreateLoginProfile', { UserName: 'rita', Password: 'Tr0ub4dor' });
        await f.call('UpdateAccountPasswordPolicy', { MaxPasswordAge: 10 });
        assert.equal((await f.call('GenerateCredentialReport'))['State'], 'STARTED');
        assert.equal((await f.call('GenerateCredentialReport'))['State'], 'COMPLETE');
        const report = await f.call('GetCredentialReport');
        const rows = Buffer.from(report['Content'] as Uint8Array)
          .toString()
          .split('\n');
        const [head = '', root = '', admin = ''] = rows;
        const columns = head.split(',').length;
        assert.equal(columns, 22);
        assert.ok(root.startsWith('<root_account>,') && root.split(',').length === columns);
        assert.ok(admin.startsWith(`admin,${arnOf('user/admin')},2026-11-23T09:00:00+00:00,false,N/A,`));
        const changed = '2026-11-23T09:00:00+00:00';
        assert.deepEqual(
          rows
            .find((row) => row.startsWith('rita,'))
            ?.split(',')
            .slice(2, 8),
          [changed, 'true', 'no_information', changed, '2026-12-03T09:00:00+00:00', 'false'],
        );
        await f.call('DeleteAccountPasswordPolicy');
        await refuses(
          f.call('GetCredentialReport', {}, { facts: { now: NOW + 4 * 3_600_000 } }),
          'ReportExpired',
          /expired/,
        );
      });
    });

    describe('simulation', () => {
      const results = async (name: string, input: Structure) =>
        (await f.call(name, input))['EvaluationResults'] as Structure[];

      it('of texts is answered by the engine, with places', async () => {
        const text =
          '{\n  "Version": "2012-10-17",\n  "Statement": [\n    {"Effect": "Allow", "Action": "ecr:*", "Resource": "*",\n     "Condition": {"StringEquals": {"aws:PrincipalTag/team": "${aws:username}"}}},\n    {"Effect": "Deny", "Action": "ecr:Delete*", "Resource": "*"}\n  ]\n}';
        const ask = (more: Structure = {}) =>
          results('SimulateCustomPolicy', {
            PolicyInputList: [text],
            ActionNames: ['ecr:PutImage', 'ecr:DeleteRepository', 's3:GetObject'],
            ...more,
          });
        const ContextEntries = [
          { ContextKeyName: 'aws:PrincipalTag/team', ContextKeyValues: ['blue'], ContextKeyType: 'string' },
          { ContextKeyName: 'aws:username', ContextKeyValues: ['blue'], ContextKeyType: 'string' },
        ];
        const answers = await ask({ ContextEntries });
        assert.deepEqual(
          answers.map((each) => each['EvalDecision']),
          ['allowed', 'explicitDeny', 'implicitDeny'],
        );
        assert.deepEqual(answers[1]?.['MatchedStatements'], [
          {
            SourcePolicyId: 'PolicyInputList.1',
            SourcePolicyType: 'IAM Policy',
            StartPosition: { Line: 6, Column: 5 },
            EndPosition: { Line: 6, Column: 65 },
          },
        ]);
        assert.deepEqual(answers[0]?.['MissingContextValues'], []);
        const [blind] = await ask();
        assert.equal(blind?.['EvalDecision'], 'implicitDeny');
        assert.deepEqual(blind?.['MissingContextValues'], ['aws:PrincipalTag/team', 'aws:username']);
        assert.deepEqual(await f.call('GetContextKeysForCustomPolicy', { PolicyInputList: [text] }), {
          ContextKeyNames: ['aws:PrincipalTag/team', 'aws:username'],
        });
        const [bounded] = await ask({
          ContextEntries,
          PermissionsBoundaryPolicyInputList: [policyText([allow('s3:*')])],
        });
        assert.equal(bounded?.['EvalDecision'], 'implicitDeny');
        assert.deepEqual(bounded?.['PermissionsBoundaryDecisionDetail'], {
          AllowedByPermissionsBoundary: false,
        });
        await refuses(ask({ ActionNames: ['ecr'] }), 'InvalidInput', 'Invalid Action: ecr');
        await refuses(ask({ PolicyInputList: ['{}'] }), 'InvalidInput', /^PolicyInputList\.1: /);
        await refuses(ask({ ResourcePolicy: text }), 'InvalidInput', /CallerArn/);
      });

      it('of principals agrees with what is decided', async () => {
        const key = await f.makeUser('sim', [allow('ecr:PutImage'), deny('ecr:DeleteRepository')]);
        await f.call('CreateGroup', { GroupName: 'simulants' });
        await f.call('PutGroupPolicy', {
          GroupName: 'simulants',
          PolicyName: 'pull',
          PolicyDocument: policyText([allow('ecr:BatchGetImage')]),
        });
        await f.call('AddUserToGroup', { GroupName: 'simulants', UserName: 'sim' });
        const actions = ['ecr:PutImage', 'ecr:BatchGetImage', 'ecr:DeleteRepository', 'ecr:ListImages'];
        const resource = `arn:aws:ecr:eu-west-1:${ACCOUNT}:repository/x`;
        const answers = await results('SimulatePrincipalPolicy', {
          PolicySourceArn: arnOf('user/sim'),
          ActionNames: actions,
          ResourceArns: [resource],
        });
        for (const [i, action] of actions.entries()) {
          assert.equal(answers[i]?.['EvalDecision'] === 'allowed', await may(key, action, resource), action);
        }
        // Of two policies of one name, the one that says so.
        const PolicyDocument = `\n\n${policyText([allow('ecr:ListImages')])}`;
        await f.call('PutGroupPolicy', { GroupName: 'simulants', PolicyName: 'inline', PolicyDocument });
        const [listing] = await results('SimulatePrincipalPolicy', {
          PolicySourceArn: arnOf('user/sim'),
          ActionNames: ['ecr:ListImages'],
        });
        const matched = JSON.stringify(listing?.['MatchedStatements']);
        assert.match(
          matched,
          /^\[\{"SourcePolicyId":"inline","SourcePolicyType":"IAM Policy","StartPosition":\{"Line":3,/,
        );
        assert.equal(matched.match(/SourcePolicyId/g)?.length, 1);
        const [group] = await results('SimulatePrincipalPolicy', {
          PolicySourceArn: arnOf('group/simulants'),
          ActionNames: ['ecr:BatchGetImage'],
        });
        assert.equal(group?.['EvalDecision'], 'allowed');
        const session = `arn:aws:sts::${ACCOUNT}:assumed-role/x/y`;
        await refuses(
          f.call('SimulatePrincipalPolicy', { PolicySourceArn: session, ActionNames: actions }),
          'InvalidInput',
          `Invalid ARN provided in the request: ${session}`,
        );
        await refuses(
          f.call('SimulatePrincipalPolicy', { PolicySourceArn: arnOf('user/ghost'), ActionNames: actions }),
          'NoSuchEntity',
          'The user with name ghost cannot be found.',
        );
      });
    });

    describe('accounts', () => {
      it('are made once, are strangers to each other and have guardrails', async () => {
        const options = { store: f.store, keys: f.keys, account: OTHER, now: NOW };
        const { adminKey } = await createAccount(options);
        await refuses(createAccount(options), 'EntityAlreadyExists', `The account ${OTHER} already exists.`);
        const found = await f.identity.findKey(adminKey.id, undefined);
        assert.ok(typeof found === 'object');
        const authorize = (action: string, resource: string, as = found.caller) =>
          f.identity.authorize(as, [{ action, resource }], factsOf());
        const own = `arn:aws:ecr:eu-west-1:${OTHER}:repository/x`;
        const foreign = `arn:aws:ecr:eu-west-1:${ACCOUNT}:repository/x`;
        await authorize('ecr:PutImage', own);
        await refuses(
          authorize('ecr:PutImage', foreign),
          'AccessDeniedException',
          /because no resource-based policy allows the ecr:PutImage action$/,
        );
        await refuses(
          authorize('ecr:DeleteRepository', own),
          'AccessDeniedException',
          `User: arn:aws:iam::${OTHER}:user/admin is not authorized to perform: ecr:DeleteRepository on resource: ${own} with an explicit deny in a service control policy: arn:aws:organizations::${OTHER}:policy/o-berth/service_control_policy/no-deletion`,
        );
        const admin = await f.identity.findKey(f.admin.id, undefined);
        assert.ok(typeof admin === 'object');
        const side = {
          account: OTHER,
          policy: policyText([{ Effect: 'Allow', Principal: '*', Action: 'ecr:*' }]),
          tags: new Map(),
        };
        await refuses(
          f.identity.authorize(
            admin.caller,
            [{ action: 'ecr:BatchGetImage', resource: own }],
            factsOf(),
            side,
          ),
          'AccessDeniedException',
          new RegExp(
            `with an explicit deny in a resource control policy: arn:aws:organizations::${OTHER}:policy/o-berth/resource_control_policy/home-only$`,
          ),
        );
        const [simulated] = (
          await f.call(
            'SimulatePrincipalPolicy',
            { PolicySourceArn: `arn:aws:iam::${OTHER}:user/admin`, ActionNames: ['ecr:DeleteRepository'] },
            { as: adminKey },
          )
        )['EvaluationResults'] as Structure[];
        assert.deepEqual(
          [simulated?.['EvalDecision'], simulated?.['OrganizationsDecisionDetail']],
          ['explicitDeny', { AllowedByOrganizations: false }],
        );
      });
    });
  },
  { guardrails: GUARDRAILS },
);
