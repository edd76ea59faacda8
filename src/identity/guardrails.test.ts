import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { compileGuardrails } from './guardrails.ts';

const policy = (name: string) => ({
  name,
  document: { Version: '2012-10-17', Statement: { Effect: 'Deny', Action: 's3:*', Resource: '*' } },
});

const bound = (more: object) => ({
  Statement: { Effect: 'Deny', Principal: '*', Action: 'ecr:*', Resource: '*', ...more },
});
const resource = (more: object) => ({ '*': { 'resource-control': [{ name: 'x', document: bound(more) }] } });

describe('guardrails', () => {
  it('are levels: everybody, then the account', () => {
    const guardrails = compileGuardrails({
      '*': { 'service-control': [policy('for-all')] },
      '123456789012': {
        'service-control': ['detach-full-access', policy('own')],
        'resource-control': [{ name: 'resources', document: bound({}) }],
      },
    });
    const names = (levels: readonly (readonly { name: string }[])[] | undefined) =>
      levels?.map((level) => level.map(({ name }) => name));
    assert.deepEqual(names(guardrails.serviceControl('123456789012')), [
      ['FullAWSAccess', 'for-all'],
      ['own'],
    ]);
    assert.deepEqual(names(guardrails.serviceControl('000000000000')), [['FullAWSAccess', 'for-all']]);
    assert.deepEqual(names(guardrails.resourceControl('123456789012')), [['resources']]);
    assert.equal(guardrails.resourceControl('000000000000'), undefined);
    assert.equal(compileGuardrails(null).serviceControl('000000000000'), undefined);
  });

  it('are named in denials as policies of the organisation that is set', () => {
    const arnOf = (organization?: string) =>
      compileGuardrails({ '*': { 'service-control': [policy('own')] } }, organization)
        .serviceControl('123456789012')
        ?.flat()
        .map(({ arn }) => arn)
        .at(-1);
    const arn = (organization: string) =>
      `arn:aws:organizations::000000000000:policy/${organization}/service_control_policy/own`;
    assert.equal(arnOf('o-a1b2c3d4e5'), arn('o-a1b2c3d4e5'));
    assert.equal(arnOf(), arn('o-berth'));
  });

  const cases: readonly [what: string, file: unknown, message: RegExp][] = [
    ['a list', [], /must be a map/],
    ['no account', { production: {} }, /"production" is not an account/],
    ['another kind', { '*': { scp: [] } }, /"scp" of \* is unknown/],
    ['no list', { '*': { 'service-control': {} } }, /must be a list/],
    ['no name', { '*': { 'service-control': [{ document: {} }] } }, /needs a name/],
    [
      'no policy',
      { '*': { 'service-control': [{ name: 'x', document: { Statement: [] } }] } },
      /policy x of \*/,
    ],
    [
      'a resource nothing matches',
      {
        '*': {
          'service-control': [
            { name: 'x', document: { Statement: { Effect: 'Deny', Action: '*', Resource: '*/x' } } },
          ],
        },
      },
      /must be in ARN format/,
    ],
    ['an Allow on resources', resource({ Effect: 'Allow' }), /only deny/],
    ['somebody in particular', resource({ Principal: { AWS: '*' } }), /the Principal must be/],
    ['a short resource', resource({ Resource: '*/x' }), /the Resource must be/],
    ['a stray word', { '*': { 'resource-control': [{ ...policy('x'), note: '' }] } }, /"note" in a policy/],
    ['the word of the other kind', { '*': { 'resource-control': ['detach-full-access'] } }, /must be a map/],
  ];
  for (const [what, file, message] of cases) {
    it(`refuse ${what}`, () => {
      assert.throws(() => compileGuardrails(file), { name: 'GuardrailError', message });
    });
  }
});
