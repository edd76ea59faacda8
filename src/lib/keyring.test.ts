import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { KeyFileError, KeyUnavailableError, openKeyRing } from './keyring.ts';

async function withDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const parent = await mkdtemp(join(tmpdir(), 'berth-keys-'));
  try {
    await run(join(parent, 'keys'));
  } finally {
    await rm(parent, { recursive: true });
  }
}

describe('key ring', () => {
  it('keeps its keys', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      await ring.createKey('tenant_1');
      const again = await openKeyRing(directory);
      assert.ok(again.master.equals(ring.master));
      assert.ok(again.derive('tokens').equals(ring.derive('tokens')));
      assert.ok(again.contentKey('default').equals(ring.contentKey('default')));
      assert.ok(again.contentKey('tenant_1').equals(ring.contentKey('tenant_1')));
    });
  });

  it('gives each purpose and name a key of its own', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      await ring.createKey('a');
      await ring.createKey('b');
      const keys = [
        ring.master,
        ring.derive('a'),
        ring.derive('b'),
        ring.contentKey('default'),
        ring.contentKey('a'),
        ring.contentKey('b'),
      ];
      assert.deepEqual(
        keys.map((key) => key.symmetricKeySize),
        keys.map(() => 32),
      );
      assert.equal(new Set(keys.map((key) => key.export().toString('hex'))).size, keys.length);
      assert.equal(ring.derive('a'), ring.derive('a'));
    });
  });

  it('is opened by several at once, and shares keys made later', async () => {
    await withDirectory(async (directory) => {
      const rings = await Promise.all(Array.from({ length: 8 }, () => openKeyRing(directory)));
      for (const ring of rings) assert.ok(ring.master.equals(rings[0]?.master ?? ring.derive('none')));
      await Promise.all(rings.map((ring) => ring.createKey('shared')));
      const keys = new Set(rings.map((ring) => ring.contentKey('shared').export().toString('hex')));
      assert.equal(keys.size, 1);
      await rings[0]?.createKey('later');
      assert.equal(rings[1]?.has('later'), true);
      assert.deepEqual((await readdir(directory)).toSorted(), [
        'content-later.key',
        'content-shared.key',
        'master.key',
      ]);
    });
  });

  it('is readable by the owner only', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      await ring.createKey('a');
      assert.equal((await stat(directory)).mode & 0o777, 0o700);
      for (const file of await readdir(directory)) {
        assert.equal((await stat(join(directory, file))).mode & 0o777, 0o600);
      }
    });
  });

  it('says which key is missing', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      for (const name of ['missing', '', '../master', 'a/b', 'x'.repeat(129)]) {
        assert.equal(ring.has(name), false);
        assert.throws(() => ring.contentKey(name), new KeyUnavailableError(name));
      }
      assert.equal(ring.has('default'), true);
    });
  });

  it('refuses names that are no file names', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      for (const name of ['', '.', '../x', 'a b', 'é', 'a\n', 'x'.repeat(129)]) {
        await assert.rejects(ring.createKey(name), RangeError);
      }
      await ring.createKey('default');
      await ring.createKey('x'.repeat(128));
    });
  });

  it('refuses damaged key files, and leaves them as they are', async () => {
    await withDirectory(async (directory) => {
      const ring = await openKeyRing(directory);
      await ring.createKey('a');
      await ring.createKey('b');
      const file = (name: string): string => join(directory, name);
      await rename(file('content-a.key'), file('content-c.key'));
      await assert.rejects(openKeyRing(directory), KeyFileError);
      await rename(file('content-c.key'), file('content-a.key'));
      await truncate(file('content-a.key'), 32);
      await assert.rejects(openKeyRing(directory), KeyFileError);
      await rm(file('content-a.key'));
      const master = await readFile(file('master.key'));
      for (const length of [0, 31, 33]) {
        await writeFile(file('master.key'), Buffer.alloc(length));
        await assert.rejects(openKeyRing(directory), KeyFileError);
        assert.equal((await stat(file('master.key'))).size, length);
      }
      await writeFile(file('master.key'), master);
      assert.ok((await openKeyRing(directory)).contentKey('b').equals(ring.contentKey('b')));
    });
  });
});
