import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { ACCOUNT, factsOf, NOW, openFixture, ROOT } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';
import { bootstrap } from './identity.ts';

let f: Fixture;
before(async () => {
  f = await openFixture();
});
after(async () => {
  await f.close();
});

describe('bootstrap', () => {
  it('makes an administrator once', async () => {
    const found = await f.identity.findKey(f.admin.id, undefined);
    assert.ok(typeof found === 'object');
    assert.equal(found.secret, f.admin.secret);
    assert.equal(found.caller.userName, 'admin');
    const check = { action: 'ecr:CreateRepository', resource: '*' };
    assert.equal((await f.identity.decide(found.caller, check, factsOf())).allowed, true);
    const again = { store: f.store, keys: f.keys, account: ACCOUNT, now: NOW + 1, rootKey: ROOT };
    assert.equal(await bootstrap(again), undefined);
    const { Users } = await f.call('ListUsers');
    assert.equal((Users as unknown[]).length, 1);
  });

  it('makes one administrator of an account, however many processes start', async () => {
    const account = '000000000000';
    const starts = await Promise.all(
      Array.from({ length: 5 }, () => bootstrap({ store: f.store, keys: f.keys, account, now: NOW })),
    );
    const made = starts.filter((start) => start !== undefined);
    assert.equal(made.length, 1);
    assert.match(made[0]?.adminKey.id ?? '', /^AKIAQAAAAAAA[A-P][A-Z2-7]{7}$/);
  });

  it('uses the administrator key that is given, on the first start only', async () => {
    const adminKey = { id: 'AKIAGIVENGIVENGIVEN1', secret: 'given-given-given-given-given-given-giv1' };
    const options = { store: f.store, keys: f.keys, account: '111111111111', now: NOW, adminKey };
    assert.deepEqual(await bootstrap(options), { adminKey });
    assert.equal(await bootstrap({ ...options, adminKey: { ...adminKey, secret: 'another' } }), undefined);
    const found = await f.identity.findKey(adminKey.id, undefined);
    assert.ok(typeof found === 'object');
    assert.equal(found.secret, adminKey.secret);
  });

  it('keeps the root credentials exactly as configured', async () => {
    const secretOf = async (id: string) => {
      const found = await f.identity.findKey(id, undefined);
      return typeof found === 'object' ? found.secret : found;
    };
    const start = (rootKey: typeof ROOT | undefined) =>
      bootstrap({ store: f.store, keys: f.keys, account: ACCOUNT, now: NOW, rootKey });
    assert.equal(await secretOf(ROOT.id), ROOT.secret);
    await start({ ...ROOT, secret: 'rotated' });
    assert.equal(await secretOf(ROOT.id), 'rotated');
    await start({ id: 'AKIAOTHER00000000000', secret: 'other' });
    assert.equal(await secretOf(ROOT.id), undefined);
    assert.equal(await secretOf('AKIAOTHER00000000000'), 'other');
    await start(undefined);
    assert.equal(await secretOf('AKIAOTHER00000000000'), undefined);
    await assert.rejects(start({ id: f.admin.id, secret: 'x' }), { code: 'InvalidInput' });
    assert.equal(await secretOf(f.admin.id), f.admin.secret);
  });
});

describe('uses of keys', () => {
  it('are written in batches, by themselves when they grow old', async () => {
    const { id } = await f.makeUser('batch');
    const row = async () =>
      await f.store.read
        .selectFrom('iam_access_key')
        .selectAll()
        .where('id', '=', id)
        .executeTakeFirstOrThrow();
    f.identity.recordKeyUse(id, 'ecr', 'eu-west-1', NOW);
    f.identity.recordKeyUse(id, 'ecr', 'eu-west-1', NOW + 59_999);
    assert.equal((await row()).last_used_at, null);
    f.identity.recordKeyUse(id, 'sts', 'eu-west-2', NOW + 60_000);
    // The write was started by the last call; a later transaction comes after it.
    await f.call('TagUser', { UserName: 'batch', Tags: [{ Key: 'a', Value: 'b' }] });
    const { last_used_at, last_used_service, last_used_region } = await row();
    assert.deepEqual([last_used_at, last_used_service, last_used_region], [NOW + 60_000, 'sts', 'eu-west-2']);
    // An older use that arrives later changes nothing.
    f.identity.recordKeyUse(id, 'iam', 'eu-west-3', NOW + 1);
    await f.identity.flush();
    assert.equal((await row()).last_used_service, 'sts');
  });
});
