import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { LIMITS } from '../lib/limits.ts';
import { Fault } from './faults.ts';
import { imageSize, MANIFEST_REFERENCES_MAX, OCI_INDEX, readManifest } from './manifests.ts';

interface Case {
  readonly name: string;
  readonly given: string | null;
  readonly detect: boolean;
  /** one of the three: the manifest as JSON, as text, as bytes */
  readonly document?: unknown;
  readonly text?: string;
  readonly base64?: string;
  readonly reading?: Record<string, unknown>;
  readonly message?: string;
}

const cases = JSON.parse(
  readFileSync(new URL('../../test/fixtures/manifests.json', import.meta.url), 'utf8'),
) as Case[];

function bytesOf({ document, text, base64 }: Case): Uint8Array {
  return base64 === undefined ? Buffer.from(text ?? JSON.stringify(document)) : Buffer.from(base64, 'base64');
}

for (const example of cases) {
  test(`manifest: ${example.name}`, () => {
    const read = () => readManifest(bytesOf(example), example.given ?? undefined, example);
    if (example.message !== undefined) {
      assert.throws(read, new Fault('InvalidParameterException', example.message));
      return;
    }
    // JSON has no undefined.
    const expected = Object.entries(example.reading ?? {}).map(([key, value]) => [key, value ?? undefined]);
    assert.deepEqual(read(), Object.fromEntries(expected));
  });
}

test('a manifest of 4 MiB is read, one byte more is refused', () => {
  const frame = { schemaVersion: 2, mediaType: OCI_INDEX, manifests: [], annotations: { a: '' } };
  const fill = (bytes: number): Uint8Array => {
    const room = bytes - JSON.stringify(frame).length;
    return Buffer.from(JSON.stringify({ ...frame, annotations: { a: 'x'.repeat(room) } }));
  };
  assert.equal(readManifest(fill(LIMITS.manifestBytesMax), undefined, { detect: false }).kind, 'index');
  assert.throws(() => readManifest(fill(LIMITS.manifestBytesMax + 1), undefined, { detect: false }), {
    message: /length less than or equal to 4194304/,
  });
});

test('too many references are refused', () => {
  const entry = { mediaType: OCI_INDEX, digest: `sha256:${'a'.repeat(64)}`, size: 1 };
  const manifests = Array.from({ length: MANIFEST_REFERENCES_MAX + 1 }, () => entry);
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: OCI_INDEX, manifests }));
  assert.throws(() => readManifest(bytes, undefined, { detect: false }), { message: /too many members/ });
});

test('whatever is sent is read or refused with a Fault', () => {
  fc.assert(
    fc.property(fc.json(), (text) => {
      try {
        readManifest(Buffer.from(text), OCI_INDEX, { detect: true });
      } catch (error) {
        assert.ok(error instanceof Fault);
      }
    }),
  );
});

test('an index weighs as much as its heaviest member', () => {
  assert.equal(imageSize(0, [5, 9, 7]), 9);
  assert.equal(imageSize(25, []), 25);
  assert.equal(imageSize(0, []), 0);
});
