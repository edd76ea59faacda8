import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { decideTagMove, matchesWildcard, type TagRules } from './tags.ts';

const matches: readonly [filter: string, tag: string, expected: boolean][] = [
  ['latest', 'latest', true],
  ['latest', 'latest1', false],
  ['latest', 'Latest', false],
  ['*', 'anything', true],
  ['*', '', true],
  ['dev-*', 'dev-', true],
  ['dev-*', 'dev-1', true],
  ['dev-*', 'xdev-1', false],
  ['*-rc', '1-rc', true],
  ['*-rc', '1-rc2', false],
  ['v1.*', 'v1.2', true],
  ['v1.*', 'v1x2', false],
  ['a*b*c', 'abc', true],
  ['a*b*c', 'axxbyyc', true],
  ['a*b*c', 'acb', false],
  ['ab*ba', 'aba', false],
  ['ab*ba', 'abba', true],
  ['**a**', 'bab', true],
  ['a*a', 'a', false],
  ['*a*a*', 'a', false],
  ['*a*a*', 'aa', true],
];

for (const [filter, tag, expected] of matches) {
  test(`filter ${filter} ${expected ? 'matches' : 'does not match'} '${tag}'`, () => {
    assert.equal(matchesWildcard(filter, tag), expected);
  });
}

test('the matcher agrees with the expression it stands for', () => {
  const word = fc.string({ unit: fc.constantFrom('a', 'b', '.', '-'), maxLength: 12 });
  const glob = fc.string({ unit: fc.constantFrom('a', 'b', '.', '*'), maxLength: 8 });
  fc.assert(
    fc.property(glob, word, (filter, tag) => {
      const parts = filter.split('*').map((part) => part.replaceAll('.', '\\.'));
      assert.equal(matchesWildcard(filter, tag), new RegExp(`^${parts.join('.*')}$`).test(tag));
    }),
  );
});

test('a filter full of stars does not take long', () => {
  const filter = '*a'.repeat(63) + '*b';
  assert.equal(matchesWildcard(filter, 'a'.repeat(128)), false);
});

const decisions: readonly [TagRules['mutability'], string, boolean, string | undefined][] = [
  ['MUTABLE', 'latest', true, undefined],
  ['IMMUTABLE', 'latest', false, undefined],
  ['IMMUTABLE_WITH_EXCLUSION', 'latest', true, 'latest'],
  ['IMMUTABLE_WITH_EXCLUSION', 'dev-1', true, 'dev-*'],
  ['IMMUTABLE_WITH_EXCLUSION', 'v1', false, undefined],
  ['MUTABLE_WITH_EXCLUSION', 'latest', false, 'latest'],
  ['MUTABLE_WITH_EXCLUSION', 'v1', true, undefined],
];

for (const [mutability, tag, movable, filter] of decisions) {
  test(`${mutability}: ${tag} ${movable ? 'moves' : 'stays'}`, () => {
    const filters = mutability.endsWith('EXCLUSION') ? ['latest', 'dev-*'] : [];
    const exclusionFilters = filters.map((text) => ({ filterType: 'WILDCARD' as const, filter: text }));
    assert.deepEqual(decideTagMove({ mutability, exclusionFilters }, tag), { movable, filter });
  });
}
