import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fakeRole, grant, NOW } from './test-machine.ts';
import type { Assumption } from './role-credentials.ts';

const keyOf = async (role: ReturnType<typeof fakeRole>): Promise<string> => {
  const held = await role.credentials.read();
  return held.kind === 'granted' ? held.credentials.accessKeyId : held.kind;
};

test('one set until half of its life is over, at the latest an hour after it was taken', async () => {
  for (const [seconds, halfMs] of [
    [900, 450_000],
    [3600, 1_800_000],
    [43_200, 3_600_000],
  ] as const) {
    const role = fakeRole();
    role.next = (calls) => grant(calls, role.now, seconds);
    assert.equal(await keyOf(role), 'ASIA1');
    role.now = NOW + halfMs - 1;
    assert.equal(await keyOf(role), 'ASIA1');
    role.now = NOW + halfMs;
    assert.equal(await keyOf(role), 'ASIA2');
    assert.deepEqual([role.calls, role.troubles], [2, []]);
  }
});

test('many who ask at once share one call', async () => {
  const role = fakeRole();
  const all = await Promise.all(Array.from({ length: 20 }, () => keyOf(role)));
  assert.deepEqual([new Set(all), role.calls], [new Set(['ASIA1']), 1]);
});

test('an outage is sat out on the set that is held, until that expires', async () => {
  const role = fakeRole();
  assert.equal(await keyOf(role), 'ASIA1');
  role.next = () => 'nobody answers';
  role.now = NOW + 1_800_000;
  assert.equal(await keyOf(role), 'ASIA1');
  assert.equal(await keyOf(role), 'ASIA1');
  assert.equal(role.calls, 2, 'no second try so soon');
  role.now = NOW + 3_600_000;
  assert.equal(await keyOf(role), 'unavailable');
  role.next = (calls) => grant(calls, role.now);
  role.now += 2000;
  assert.equal(await keyOf(role), 'ASIA4');
  assert.deepEqual(role.troubles, ['nobody answers', 'nobody answers']);
});

test('a refusal is passed on at once, and forgotten when the role can be taken again', async () => {
  const role = fakeRole();
  assert.equal(await keyOf(role), 'ASIA1');
  role.next = () => ({ kind: 'refused', reason: 'AccessDeniedException: no' });
  role.now = NOW + 1_800_000;
  assert.equal(await keyOf(role), 'refused');
  role.next = (calls) => grant(calls, role.now);
  role.now += 1999;
  assert.equal(await keyOf(role), 'refused');
  role.now += 1;
  assert.equal(await keyOf(role), 'ASIA3');
  assert.deepEqual(role.troubles, ['AccessDeniedException: no']);
});

test('a slow renewal does not hold back a set that is still good', async () => {
  const role = fakeRole();
  assert.equal(await keyOf(role), 'ASIA1');
  let answer: (assumption: Assumption) => void = () => undefined;
  role.next = () => new Promise((resolve) => (answer = resolve));
  role.now = NOW + 1_800_000;
  assert.equal(await keyOf(role), 'ASIA1');
  answer(grant(2, role.now));
  assert.equal(await keyOf(role), 'ASIA2');
  assert.equal(role.calls, 2);
});
