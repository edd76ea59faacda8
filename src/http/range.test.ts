import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { etagMatches } from './etag.ts';
import { parseContentRange, parseRange } from './range.ts';

describe('Range', () => {
  const cases: [header: string | undefined, size: number, expected: unknown][] = [
    ['bytes=0-9', 100, { start: 0, end: 10 }],
    ['bytes=90-', 100, { start: 90, end: 100 }],
    ['bytes=-10', 100, { start: 90, end: 100 }],
    ['bytes=-1000', 100, { start: 0, end: 100 }],
    ['bytes=0-99999999999999999999999', 100, { start: 0, end: 100 }],
    ['BYTES=0-0', 100, { start: 0, end: 1 }],
    ['bytes=100-', 100, 'unsatisfiable'],
    ['bytes=500-0', 1000, 'unsatisfiable'],
    ['bytes=-0', 100, 'unsatisfiable'],
    ['bytes=0-', 0, 'unsatisfiable'],
    ['bytes=-1', 0, 'unsatisfiable'],
    ['bytes=0-9,20-29', 100, undefined],
    ['bytes=-', 100, undefined],
    ['bytes=a-b', 100, undefined],
    ['bytes=--1', 100, undefined],
    ['bytes=1.5-2', 100, undefined],
    ['lines=0-9', 100, undefined],
    ['', 100, undefined],
    [undefined, 100, undefined],
  ];
  for (const [header, size, expected] of cases) {
    it(`${header} of ${size}`, () => assert.deepEqual(parseRange(header, size), expected));
  }

  it('stays inside the resource and answers what was asked', () => {
    const nat = fc.nat(2000);
    fc.assert(
      fc.property(nat, nat, nat, (first, last, size) => {
        const range = parseRange(`bytes=${first}-${last}`, size);
        if (last < first || first >= size) assert.equal(range, 'unsatisfiable');
        else assert.deepEqual(range, { start: first, end: Math.min(last + 1, size) });
      }),
    );
  });

  it('never yields an empty or outside range, whatever the header', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^bytes=[0-9,\- ]{0,12}$/), fc.nat(50), (header, size) => {
        const range = parseRange(header, size);
        if (typeof range !== 'object') return;
        assert.ok(range.start >= 0 && range.start < range.end && range.end <= size);
      }),
    );
  });
});

describe('Content-Range of an upload', () => {
  const cases: [header: string, expected: unknown][] = [
    ['0-0', { start: 0, end: 1 }],
    ['5-9', { start: 5, end: 10 }],
    ['bytes 5-9/100', { start: 5, end: 10 }],
    ['bytes 5-9/*', { start: 5, end: 10 }],
    ['9-5', undefined],
    ['-5', undefined],
    ['5-', undefined],
    ['bytes=5-9', undefined],
    ['5-9-13', undefined],
    ['0x5-9', undefined],
    ['0-9999999999999999', undefined],
    ['99999999999999999999-999999999999999999999', undefined],
    ['', undefined],
  ];
  for (const [header, expected] of cases) {
    it(header || '(empty)', () => assert.deepEqual(parseContentRange(header), expected));
  }
});

describe('an entity tag', () => {
  const cases: [header: string, weak: boolean, strong: boolean][] = [
    ['"sha256:aa"', true, true],
    ['sha256:aa', true, true],
    ['W/"sha256:aa"', true, false],
    ['W/sha256:aa', true, false],
    ['"x", "sha256:aa"', true, true],
    ['"x","sha256:aa"', true, true],
    ['"x", W/"sha256:aa"', true, false],
    ['W/"sha256:aa", "sha256:aa"', true, true],
    ['*', true, true],
    [' * ', true, true],
    ['"*"', false, false],
    ['"x", *', false, false],
    ['"sha256:ab"', false, false],
    ['"x, sha256:aa, y"', false, false],
    ['', false, false],
  ];
  for (const [header, weak, strong] of cases) {
    it(`is looked for in ${header || '(nothing)'}`, () => {
      assert.equal(etagMatches(header, 'sha256:aa', 'weak'), weak);
      assert.equal(etagMatches(header, 'sha256:aa', 'strong'), strong);
    });
  }

  it('is found among others wherever it stands, and not when it is not there', () => {
    const tag = fc.stringMatching(/^[!#-~]{0,12}$/);
    fc.assert(
      fc.property(fc.array(tag, { maxLength: 5 }), tag, fc.nat(5), (others, mine, at) => {
        fc.pre(mine !== '' && !others.includes(mine));
        const quoted = others.map((other) => `"${other}"`);
        const list = [...quoted.slice(0, at), `"${mine}"`, ...quoted.slice(at)];
        assert.ok(etagMatches(list.join(', '), mine, 'strong'));
        assert.ok(!etagMatches(quoted.join(', '), mine, 'weak'));
      }),
    );
  });
});
