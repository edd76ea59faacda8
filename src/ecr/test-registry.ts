import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bootstrap } from '../identity/identity.ts';
import { ACCOUNT, type OpenTestRegistry, OTHER, REGION, type TestRegistry } from './testing.ts';

export function registryTests(openTestRegistry: OpenTestRegistry): void {
  const statement = (more: object = {}) => ({
    Effect: 'Allow',
    Principal: '*',
    Action: 'ecr:BatchGetImage',
    Resource: '*',
    ...more,
  });
  const text = (...statements: object[]) => JSON.stringify({ Version: '2012-10-17', Statement: statements });
  const at = (member: string, reason: string) =>
    `InvalidParameterException: Invalid parameter at '${member}' failed to satisfy constraint: '${reason}'`;
  const invalid = at('PolicyText', 'Invalid registry policy provided');
  const put = (t: TestRegistry, ...statements: object[]) =>
    t.call('PutRegistryPolicy', { policyText: text(...statements) });
  const scope = (t: TestRegistry, value: string) =>
    t.call('PutAccountSetting', { name: 'REGISTRY_POLICY_SCOPE', value });

  test('a registry policy is set, got, replaced and deleted', async () => {
    await using t = await openTestRegistry();
    const none = `RegistryPolicyNotFoundException: Registry policy does not exist in the registry with id '${ACCOUNT}'`;
    assert.equal(await t.fault('GetRegistryPolicy', {}), none);
    assert.equal(await t.fault('DeleteRegistryPolicy', {}), none);
    const policyText = [
      '{',
      '  "Version" : "2012-10-17",',
      '  "Statement" : [ {',
      '    "Effect" : "Allow",',
      '    "Principal" : "*",',
      '    "Action" : "ecr:BatchGetImage",',
      '    "Resource" : "*"',
      '  } ]',
      '}',
    ].join('\n');
    const answer = { registryId: ACCOUNT, policyText };
    assert.deepEqual(await put(t, statement()), answer);
    assert.deepEqual(await t.call('GetRegistryPolicy', {}), answer);
    assert.equal((await t.refusal('GetRegistryPolicy', {}, t.other)).code, 'RegistryPolicyNotFoundException');
    await put(t, statement({ Sid: 'second' }));
    await t.call('PutRegistryPolicy', { policyText });
    assert.deepEqual(await t.call('DeleteRegistryPolicy', {}), answer);
    assert.equal(await t.fault('GetRegistryPolicy', {}), none);
  });

  test('registry policies that are refused', async () => {
    await using t = await openTestRegistry();
    const cases: [policyText: string, fault: string][] = [
      ['', invalid],
      ['{', invalid],
      [text(statement({ Resource: undefined })), invalid],
      [text(statement({ Principal: undefined })), invalid],
      [text(statement({ Action: 's3:GetObject' })), invalid],
      [text(statement({ Principal: { AWS: '222222222222' } })), at('PolicyText', 'Principal not found')],
      [
        text(statement({ Principal: { AWS: `arn:aws:iam::${ACCOUNT}:user/ghost` } })),
        at('PolicyText', 'Principal not found'),
      ],
    ];
    for (const [policyText, fault] of cases)
      assert.equal(await t.fault('PutRegistryPolicy', { policyText }), fault, policyText);
  });

  test('scope V1 takes the actions of replication and caches only', async () => {
    await using t = await openTestRegistry();
    await scope(t, 'V1');
    for (const Action of ['ecr:BatchGetImage', ['ecr:CreateRepository', 'ecr:PutImage'], 'ecr:Put*'])
      assert.equal(
        await t.fault('PutRegistryPolicy', { policyText: text(statement({ Action })) }),
        invalid,
        String(Action),
      );
    for (const Action of [
      'ecr:ReplicateImage',
      ['ecr:CreateRepository', 'ecr:BatchImportUpstreamImage'],
      'ecr:*',
    ])
      await put(t, statement({ Action }));
  });

  test('account settings: names, values, defaults', async () => {
    await using t = await openTestRegistry();
    const names = 'BASIC_SCAN_TYPE_VERSION, REGISTRY_POLICY_SCOPE, BLOB_MOUNTING';
    const settings: [name: string, initial: string, values: string[]][] = [
      ['REGISTRY_POLICY_SCOPE', 'V2', ['V1', 'V2']],
      ['BLOB_MOUNTING', 'DISABLED', ['ENABLED', 'DISABLED']],
    ];
    for (const [name, initial, values] of settings) {
      assert.deepEqual(await t.call('GetAccountSetting', { name }), { name, value: initial });
      for (const value of values) {
        assert.deepEqual(await t.call('PutAccountSetting', { name, value }), { name, value });
        assert.deepEqual(await t.call('GetAccountSetting', { name }), { name, value });
        const theirs = await t.call('GetAccountSetting', { name }, t.other);
        assert.deepEqual(theirs, { name, value: initial });
      }
      assert.equal(
        await t.fault('PutAccountSetting', { name, value: 'v2' }),
        at('value', `Member must satisfy enum value set: [${values.join(', ')}]`),
      );
    }
    for (const name of ['BLOB_MOUNT', 'toString'])
      for (const operation of ['GetAccountSetting', 'PutAccountSetting'])
        assert.equal(
          await t.fault(operation, { name, value: 'V1' }),
          at('name', `Member must satisfy enum value set: [${names}]`),
        );
    const scan = { name: 'BASIC_SCAN_TYPE_VERSION', value: 'AWS_NATIVE' };
    assert.equal((await t.refusal('PutAccountSetting', scan)).code, 'OperationNotBuilt');
    assert.equal((await t.refusal('GetAccountSetting', scan)).code, 'OperationNotBuilt');
    assert.deepEqual(await t.call('DescribeRegistry', {}), {
      registryId: ACCOUNT,
      replicationConfiguration: { rules: [] },
    });
  });

  test('a setting may be allowed by its name', async () => {
    await using t = await openTestRegistry();
    const user = await t.addUser('setter', [
      {
        Effect: 'Allow',
        Action: 'ecr:*AccountSetting',
        Resource: '*',
        Condition: { StringEquals: { 'ecr:AccountSetting': 'BLOB_MOUNTING' } },
      },
    ]);
    await t.call('PutAccountSetting', { name: 'BLOB_MOUNTING', value: 'ENABLED' }, user);
    assert.equal(
      await t.fault('PutAccountSetting', { name: 'REGISTRY_POLICY_SCOPE', value: 'V1' }, user),
      `AccessDeniedException: User: ${user.arn} is not authorized to perform: ecr:PutAccountSetting on resource: * ` +
        'because no identity-based policy allows the ecr:PutAccountSetting action',
    );
  });

  test('a registry policy decides: granting and denying, own account and others, by scope', async () => {
    await using t = await openTestRegistry();
    for (const repositoryName of ['app', 'team/app']) await t.call('CreateRepository', { repositoryName });
    const idle = await t.addUser('idle', [{ Effect: 'Allow', Action: 's3:*', Resource: '*' }]);
    const reader = await t.addUser('reader', [{ Effect: 'Allow', Action: 'ecr:*', Resource: '*' }]);
    const arn = (name: string) => `arn:aws:ecr:${REGION}:${ACCOUNT}:repository/${name}`;
    const theirs = { AWS: `arn:aws:iam::${OTHER}:root` };
    const allow = (more: object) => statement({ Action: 'ecr:ListImages', ...more });
    const deny = (more: object) => allow({ Effect: 'Deny', ...more });
    const denied = 'with an explicit deny in a resource-based policy';
    const silent = (by: string) => `because no ${by}-based policy allows the ecr:ListImages action`;

    const cases: [
      name: string,
      as: 'idle' | 'reader' | 'other',
      statements: object[],
      scope: string,
      end?: string,
    ][] = [
      ['nothing said, no grant', 'idle', [], 'V2', silent('identity')],
      ['nothing said, own grant', 'reader', [], 'V2'],
      ['a user by name', 'idle', [allow({ Principal: { AWS: idle.arn } })], 'V2'],
      [
        'a user by name, not in V1',
        'idle',
        [allow({ Principal: { AWS: idle.arn } })],
        'V1',
        silent('identity'),
      ],
      [
        'the account alone grants its users nothing',
        'idle',
        [allow({ Principal: { AWS: ACCOUNT } })],
        'V2',
        silent('identity'),
      ],
      ['another account, nothing said', 'other', [], 'V2', silent('resource')],
      ['another account', 'other', [allow({ Principal: theirs })], 'V2'],
      ['another account, not in V1', 'other', [allow({ Principal: theirs })], 'V1', silent('resource')],
      [
        'another account, by prefix',
        'other',
        [allow({ Principal: theirs, Resource: arn('team/*') })],
        'V2',
        silent('resource'),
      ],
      ['everybody is denied', 'reader', [deny({})], 'V2', denied],
      ['everybody is denied, not in V1', 'reader', [deny({})], 'V1'],
      ['elsewhere is denied', 'reader', [deny({ Resource: arn('team/*') })], 'V2'],
      [
        'a deny outweighs an allow',
        'other',
        [allow({ Principal: theirs }), deny({ Principal: theirs })],
        'V2',
        denied,
      ],
      [
        'addresses',
        'reader',
        [deny({ Condition: { IpAddress: { 'aws:SourceIp': '127.0.0.0/8' } } })],
        'V2',
        denied,
      ],
      [
        'other addresses',
        'reader',
        [deny({ Condition: { IpAddress: { 'aws:SourceIp': '10.0.0.0/8' } } })],
        'V2',
      ],
    ];
    const users = { idle, reader, other: t.other };
    for (const [name, as, statements, value, end] of cases) {
      // Texts of V1 are checked when they are set, and what was set before stays.
      await scope(t, 'V2');
      if (statements.length > 0) await put(t, ...statements);
      await scope(t, value);
      const input = { repositoryName: 'app', registryId: ACCOUNT };
      if (end === undefined) await t.call('ListImages', input, users[as]);
      else {
        const { arn: who } = users[as];
        assert.equal(
          await t.fault('ListImages', input, users[as]),
          `AccessDeniedException: User: ${who} is not authorized to perform: ecr:ListImages on resource: ${arn('app')} ${end}`,
          name,
        );
      }
    }
  });

  test('the root of an account can always take its registry policy back', async () => {
    await using t = await openTestRegistry();
    await put(t, statement({ Effect: 'Deny', Action: 'ecr:*' }));
    assert.match(
      await t.fault('DeleteRegistryPolicy', {}),
      /^AccessDeniedException: .* explicit deny in a resource/,
    );
    const rootKey = { id: 'AKIAROOTROOTROOTROOT', secret: 'root-secret-root-secret-root-secret-root' };
    await bootstrap({ store: t.store, keys: t.ring, account: ACCOUNT, now: t.now, rootKey });
    const found = await t.identity.findKey(rootKey.id, undefined);
    assert.ok(typeof found === 'object');
    const root = { principal: found.caller, arn: found.caller.caller.arn, secret: rootKey.secret };
    assert.match(await t.fault('DescribeRegistry', {}, root), /explicit deny in a resource/);
    await t.call('GetRegistryPolicy', {}, root);
    await t.call('DeleteRegistryPolicy', {}, root);
    await t.call('DescribeRegistry', {});
  });
}
