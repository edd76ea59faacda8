import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as fc from 'fast-check';
import { openKeyRing } from '../lib/keyring.ts';
import { ACCOUNT, NOW, openFixture } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';
import { createIdentity } from './identity.ts';
import type { Credentials, Principal } from './identity.ts';
import { sealToken, unsealToken } from './registry-token.ts';

const HOUR = 3_600_000;
const invalid = {
  name: 'Fault',
  code: 'InvalidRegistryToken',
  message: 'Your Authorization Token is invalid.',
};
const expired = {
  name: 'Fault',
  code: 'ExpiredRegistryToken',
  message: 'Your authorization token has expired. Reauthenticate and try again.',
};

let f: Fixture;
before(async () => {
  f = await openFixture();
});
after(async () => {
  await f.close();
});

async function principalOf(key: Credentials): Promise<Principal> {
  const found = await f.identity.findKey(key.id, undefined);
  if (typeof found !== 'object') throw new Error('no such key');
  return found.caller;
}

describe('registry tokens', () => {
  it('carry who asked and the region for twelve hours', async () => {
    const principal = await principalOf(f.admin);
    const { password, expiresAt } = await f.identity.issueRegistryToken(
      principal,
      { region: 'eu-west-1' },
      NOW,
    );
    assert.match(password, /^ey[A-Za-z0-9_-]+$/);
    assert.ok(password.length <= 300);
    assert.equal(expiresAt, NOW + 12 * HOUR);
    const opened = await f.identity.openRegistryToken(password, expiresAt - 1);
    assert.deepEqual(opened, { principal, region: 'eu-west-1' });
    // Another process with the same key ring and store.
    const other = createIdentity({ store: f.store, keys: f.keys });
    assert.deepEqual(await other.openRegistryToken(password, NOW), { principal, region: 'eu-west-1' });
    for (const late of [expiresAt, expiresAt + HOUR]) {
      await assert.rejects(f.identity.openRegistryToken(password, late), expired);
    }
  });

  it('stop working with the key and the user', async () => {
    const key = await f.makeUser('token');
    const { password } = await f.identity.issueRegistryToken(await principalOf(key), { region: 'r' }, NOW);
    const open = () => f.identity.openRegistryToken(password, NOW);
    await open();
    const input = { UserName: 'token', AccessKeyId: key.id };
    await f.call('UpdateAccessKey', { ...input, Status: 'Inactive' });
    await assert.rejects(open(), invalid);
    await f.call('UpdateAccessKey', { ...input, Status: 'Active' });
    await open();
    await f.call('DeleteAccessKey', input);
    await assert.rejects(open(), invalid);
    await f.call('DeleteUser', { UserName: 'token' });
    await assert.rejects(open(), invalid);
  });

  it('cannot be forged', async () => {
    const { password } = await f.identity.issueRegistryToken(
      await principalOf(f.admin),
      { region: 'eu-west-1' },
      NOW,
    );
    const refuse = (forged: string) =>
      assert.rejects(f.identity.openRegistryToken(forged, NOW), invalid, forged);
    for (let i = 0; i < password.length; i++) {
      await refuse(password.slice(0, i));
      for (const letter of ['A', 'B', '_']) {
        if (password[i] !== letter) await refuse(password.slice(0, i) + letter + password.slice(i + 1));
      }
    }
    const bytes = Buffer.from(password.slice(2), 'base64url');
    for (let i = 0; i < bytes.length; i++) {
      const flipped = Buffer.from(bytes);
      flipped[i] = (flipped[i] ?? 0) ^ 1;
      await refuse(`ey${flipped.toString('base64url')}`);
    }
    for (const tail of ['=', ' ', 'A', '\n', '!']) await refuse(password + tail);
    for (const nothing of ['', 'ey', 'eyJwYXlsb2FkIjoi', 'x'.repeat(301)]) await refuse(nothing);
  });

  it('of another key ring are foreign', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'berth-keys-'));
    try {
      const content = {
        account: ACCOUNT,
        region: 'eu-west-1',
        holder: { kind: 'key', id: f.admin.id } as const,
        expiresAt: NOW + HOUR,
      };
      const foreign = sealToken(await openKeyRing(directory), content);
      await assert.rejects(f.identity.openRegistryToken(foreign, NOW), invalid);
      await f.identity.openRegistryToken(sealToken(f.keys, content), NOW);
      // The right key of another account is not enough either.
      const elsewhere = sealToken(f.keys, { ...content, account: '999999999999' });
      await assert.rejects(f.identity.openRegistryToken(elsewhere, NOW), invalid);
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  it('hold any account, region and key id in 300 characters', () => {
    fc.assert(
      fc.property(
        fc.record({
          account: fc.stringMatching(/^[0-9]{12}$/),
          region: fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/),
          holder: fc.record({
            kind: fc.constantFrom('key' as const, 'session' as const),
            id: fc.stringMatching(/^[A-Za-z0-9_]{16,128}$/),
          }),
          expiresAt: fc.integer({ min: 0, max: 2 ** 48 - 1 }),
        }),
        (content) => {
          const password = sealToken(f.keys, content);
          assert.ok(password.length <= 300);
          assert.deepEqual(unsealToken(f.keys, password), { ...content, holder: { ...content.holder } });
        },
      ),
      { numRuns: 200 },
    );
  });
});
