import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { Fault } from '../domain/faults.ts';
import { parseRepositoryName } from '../domain/names.ts';
import { parsePath } from './path.ts';

const HEX = 'a'.repeat(64);
const SHA = `sha256:${HEX}`;
const ID = '0b0e7ad2-52a2-4b0e-9f0a-6f1f5b6f2a10';

function outcome(path: string): unknown {
  try {
    return parsePath(path);
  } catch (error) {
    assert.ok(error instanceof Fault);
    return error.code;
  }
}

describe('paths under /v2/', () => {
  const targets: [path: string, target: unknown][] = [
    ['/v2', { kind: 'base' }],
    ['/v2/', { kind: 'base' }],
    ['/v2/_catalog', { kind: 'catalog' }],
    ['/v2/app/manifests/latest', { kind: 'manifest', name: 'app', reference: { tag: 'latest' } }],
    [`/v2/app/manifests/${SHA}`, { kind: 'manifest', name: 'app', reference: { digest: SHA } }],
    [`/v2/app/manifests/sha256%3A${HEX}`, { kind: 'manifest', name: 'app', reference: { digest: SHA } }],
    [`/v2/a/b/c/blobs/${SHA}`, { kind: 'blob', name: 'a/b/c', digest: SHA }],
    [`/v2/%61pp/blobs/${SHA}`, { kind: 'blob', name: 'app', digest: SHA }],
    ['/v2/app/blobs/uploads', { kind: 'uploads', name: 'app' }],
    ['/v2/app/blobs/uploads/', { kind: 'uploads', name: 'app' }],
    [`/v2/app/blobs/uploads/${ID}`, { kind: 'upload', name: 'app', id: ID }],
    ['/v2/app/tags/list', { kind: 'tags', name: 'app' }],
    [`/v2/app/referrers/${SHA}`, { kind: 'referrers', name: 'app', digest: SHA }],
    // Names made of the route's own words
    ['/v2/blobs/uploads/tags/list', { kind: 'tags', name: 'blobs/uploads' }],
    [
      '/v2/manifests/manifests/manifests',
      { kind: 'manifest', name: 'manifests', reference: { tag: 'manifests' } },
    ],
    [`/v2/x/blobs/uploads/blobs/${SHA}`, { kind: 'blob', name: 'x/blobs/uploads', digest: SHA }],
    ['/v2/x/blobs/blobs/uploads/', { kind: 'uploads', name: 'x/blobs' }],
    ['/v2/tags/list/tags/list', { kind: 'tags', name: 'tags/list' }],
    // None of the registry's
    ['/', undefined],
    ['/v1/app/manifests/latest', undefined],
    ['/v2/app', undefined],
    ['/v2/app/manifests', undefined],
    ['/v2/app/manifests/', undefined],
    ['/v2/app/blobs/', undefined],
    ['/v2/manifests/latest', undefined],
    ['/v2/blobs/uploads/', undefined],
    ['/v2/uploads/x', undefined],
    ['/v2/app/uploads/', undefined],
    ['/v2/app/tags/list/', undefined],
    ['/v2/app/tags/all', undefined],
    ['/v2/_oci/ext/discover', undefined],
    ['/v2/_catalog/', undefined],
    // Names that are none
    ['/v2//manifests/latest', 'NameInvalid'],
    ['/v2/a/manifests/latest', 'NameInvalid'],
    ['/v2/a//b/manifests/latest', 'NameInvalid'],
    ['/v2/../manifests/latest', 'NameInvalid'],
    ['/v2/app/../../etc/manifests/latest', 'NameInvalid'],
    ['/v2/%2e%2e/manifests/latest', 'NameInvalid'],
    ['/v2/app/%2e%2e/%2e%2e/etc/manifests/latest', 'NameInvalid'],
    ['/v2/app%2fother/manifests/latest', 'NameInvalid'],
    ['/v2/app%2Fother/manifests/latest', 'NameInvalid'],
    ['/v2/app%252fother/manifests/latest', 'NameInvalid'],
    ['/v2/app%00/manifests/latest', 'NameInvalid'],
    ['/v2/app%/manifests/latest', 'NameInvalid'],
    ['/v2/app%ff/manifests/latest', 'NameInvalid'],
    ['/v2/App/manifests/latest', 'NameInvalid'],
    ['/v2/app\\other/manifests/latest', 'NameInvalid'],
    ['/v2/-app/tags/list', 'NameInvalid'],
    ['/v2/app_/tags/list', 'NameInvalid'],
    [`/v2/${'a'.repeat(257)}/tags/list`, 'NameInvalid'],
    [`/v2/${'a'.repeat(256)}/tags/list`, { kind: 'tags', name: 'a'.repeat(256) }],
    // References that are none
    ['/v2/app/manifests/.hidden', 'TagInvalid'],
    ['/v2/app/manifests/a%2fb', 'TagInvalid'],
    ['/v2/app/manifests/%zz', 'TagInvalid'],
    [`/v2/app/manifests/${'t'.repeat(129)}`, 'TagInvalid'],
    ['/v2/app/manifests/sha256:beef', 'DigestInvalid'],
    ['/v2/app/manifests/sha256:', 'DigestInvalid'],
    [`/v2/app/manifests/sha256:${HEX.toUpperCase()}`, 'DigestInvalid'],
    [`/v2/app/manifests/blake3:${HEX}`, 'DigestInvalid'],
    ['/v2/app/blobs/latest', 'DigestInvalid'],
    [`/v2/app/blobs/sha256:${HEX}a`, 'DigestInvalid'],
    ['/v2/app/referrers/sha256:baddigeststring', 'DigestInvalid'],
  ];
  for (const [path, expected] of targets) {
    it(path.length > 80 ? `${path.slice(0, 80)}…` : path, () => {
      assert.deepEqual(outcome(path), expected);
    });
  }

  const word = fc.constantFrom(
    'blobs',
    'uploads',
    'manifests',
    'tags',
    'list',
    'referrers',
    'a1',
    'x-y',
    'v2',
  );
  const name = fc.array(word, { minLength: 1, maxLength: 8 }).map((words) => words.join('/'));

  it('finds any name in front of any tail', () => {
    fc.assert(
      fc.property(name, (text) => {
        assert.ok(parseRepositoryName(text));
        assert.deepEqual(parsePath(`/v2/${text}/tags/list`), { kind: 'tags', name: text });
        assert.deepEqual(parsePath(`/v2/${text}/blobs/${SHA}`), { kind: 'blob', name: text, digest: SHA });
        assert.deepEqual(parsePath(`/v2/${text}/blobs/uploads/`), { kind: 'uploads', name: text });
        assert.deepEqual(parsePath(`/v2/${text}/blobs/uploads/${ID}`), {
          kind: 'upload',
          name: text,
          id: ID,
        });
        assert.deepEqual(parsePath(`/v2/${text}/manifests/uploads`), {
          kind: 'manifest',
          name: text,
          reference: { tag: 'uploads' },
        });
      }),
    );
  });

  it('never lets through a name outside the grammar, whatever the bytes', () => {
    const bit = fc.oneof(
      word,
      fc.constantFrom('/', '..', '%2e', '%2f', '%00', '%', '//', ':', '\u0000', 'é'),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.array(bit, { maxLength: 12 }), (bits) => {
        const result = outcome(`/v2/${bits.join('')}`);
        if (typeof result === 'object' && result !== null && 'name' in result) {
          assert.ok(parseRepositoryName(String(result.name)));
        }
      }),
    );
  });

  it('takes linear time for the longest targets node:http lets through', () => {
    const started = process.cpuUsage();
    for (const bit of ['a/', 'a-', '/blobs/uploads', '%2e', 'a..', '-'.repeat(9)]) {
      for (let i = 0; i < 20; i++) outcome(`/v2/${bit.repeat(16_000 / bit.length)}/tags/list`);
    }
    assert.ok(process.cpuUsage(started).user < 1_000_000);
  });
});
