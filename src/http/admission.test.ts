import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { LoopDelay } from './admission.ts';

const TARGET_MS = 5;
const CALM_MS = 100;
/** of a request that is begun, and of one that is not */
const COST_MS = 0.25;
const REFUSAL_MS = 0.05;

/** An event loop whose turns bring so many requests each; what was begun in every turn. */
async function run(
  arrivals: readonly number[],
  idleAfter: (turn: number) => number = () => 0,
): Promise<number[]> {
  let now = 1000;
  let idle = 0;
  const delay = new LoopDelay({
    clock: () => now,
    idleMs: () => idle,
    targetMs: TARGET_MS,
    calmMs: CALM_MS,
  });
  const begun: number[] = [];
  for (const [number, count] of arrivals.entries()) {
    let begins = 0;
    for (let arrived = 0; arrived < count; arrived++) {
      const behind = delay.isBehind(now);
      if (!behind) begins += 1;
      now += behind ? REFUSAL_MS : COST_MS;
    }
    begun.push(begins);
    await turn();
    now += idleAfter(number);
    idle += idleAfter(number);
  }
  return begun;
}

const turns = (count: number, arrivals: number): number[] => Array.from({ length: count }, () => arrivals);

describe('an event loop', () => {
  test('that 64 clients keep busy all the time begins everything', async () => {
    assert.deepEqual(await run(turns(100, 64)), turns(100, 64));
  });

  test('begins all of a burst, however large', async () => {
    assert.deepEqual(await run([300]), [300]);
  });

  test('that has nothing to do between large bursts begins everything', async () => {
    assert.deepEqual(await run(turns(20, 300), () => 2), turns(20, 300));
  });

  test('that more keep busy for long begins what it can answer soon, and a few in any case', async () => {
    const begun = await run(turns(100, 300));

    // a tenth of a second of patience: a turn of 75 ms and the first hundred of the next
    assert.deepEqual(begun.slice(0, 2), [300, 101]);
    for (const count of begun.slice(2)) assert.ok(count >= 12 && count <= 20, `${count} of 300 in a turn`);
  });

  test('takes everything again as soon as it has rested', async () => {
    const begun = await run([...turns(10, 300), 64, 64, 300], (number) => (number === 10 ? 20 : 0));

    assert.ok((begun[10] ?? 0) < 64);
    assert.deepEqual(begun.slice(-2), [64, 300]);
  });

  test('takes everything again half a minute after it was crowded', async () => {
    const begun = await run([...turns(10, 300), ...turns(6500, 64)]);

    assert.ok(begun.slice(10, 5000).every((count) => count < 64));
    assert.deepEqual(begun.slice(-500), turns(500, 64));
  });
});
