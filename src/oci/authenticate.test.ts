import assert from 'node:assert/strict';
import { it } from 'node:test';
import { createPasswordReader } from './authenticate.ts';

const basic = (text: string): string => `Basic ${Buffer.from(text).toString('base64')}`;

const cases: [header: string | undefined, password: string | undefined][] = [
  [basic('AWS:eyJwYXNz'), 'eyJwYXNz'],
  [basic('AWS:with:colon'), 'with:colon'],
  [basic('AWS:x').replace('Basic', 'basic'), 'x'],
  [basic('AWS:x').replace('Basic ', 'BASIC   '), 'x'],
  [undefined, undefined],
  ['', undefined],
  ['Basic', undefined],
  ['Basic ', undefined],
  ['Basic !!!', undefined],
  ['Basic QVdTOng=junk', undefined],
  ['Bearer QVdTOng=', undefined],
  [basic('AWS'), undefined],
  [basic('AWS:'), undefined],
  [basic('aws:x'), undefined],
  [basic('admin:x'), undefined],
  [basic(':x'), undefined],
  [basic(`AWS:${'x'.repeat(5000)}`), undefined],
];
const readPassword = createPasswordReader();
for (const [header, password] of cases) {
  it(`credential ${header?.slice(0, 40)}`, () => {
    assert.equal(readPassword(header), password);
    assert.equal(readPassword(header), password);
  });
}
