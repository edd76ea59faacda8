import assert from 'node:assert/strict';
import { test } from 'node:test';
import { element, escapeXml } from './xml.ts';

test('text is escaped so that any XML reader gets it back, what XML cannot carry is replaced', () => {
  assert.equal(escapeXml(`a&b<c>"d"'e'`), 'a&amp;b&lt;c&gt;&quot;d&quot;&#39;e&#39;');
  assert.equal(escapeXml('line\r\nnext\t'), 'line&#xD;\nnext\t');
  assert.equal(escapeXml('\u0000\u001f\ufffe\ud800x'), '\ufffd\ufffd\ufffd\ufffdx');
  assert.equal(escapeXml('😀'), '😀');
});

test('an element without content closes itself', () => {
  assert.equal(element('Tags', ''), '<Tags/>');
  assert.equal(element('Tags', 'x'), '<Tags>x</Tags>');
});
