/**
 * A differential test of policy decisions: 100,000 requests, decided by Berth and by an independent implementation. The
 * seed is fixed; BERTH_ORACLE_SEED sets another, BERTH_ORACLE_CASES another number.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { drawCases, makeRandom, type Case } from './cases.ts';
import { DIFFERENCES } from './differences.ts';
import { createOracle, createOurs, type Outcome } from './oracle.ts';

const SEED = Number(process.env['BERTH_ORACLE_SEED'] ?? 20_260_101);
const CASES = Number(process.env['BERTH_ORACLE_CASES'] ?? 100_000);
const REQUESTS_PER_POLICY_SET = 6;
const IS_STANDARD = SEED === 20_260_101 && CASES === 100_000;
/** What the standard run counts: requests on which the two differ, and the least of everything else. */
const DIFFERING = 7406;
const TIMES_MIN = 20;

/** Every type of policy decides in every way it can. */
const DECIDED_BY = [
  'allow always',
  'allow identity',
  'allow resource',
  'allow root',
  'allow trust',
  'explicit-deny boundary',
  'explicit-deny endpoint',
  'explicit-deny identity',
  'explicit-deny resource',
  'explicit-deny resource-control',
  'explicit-deny service-control',
  'explicit-deny session',
  'explicit-deny trust',
  'implicit-deny boundary',
  'implicit-deny endpoint',
  'implicit-deny identity',
  'implicit-deny resource',
  'implicit-deny service-control',
  'implicit-deny session',
  'implicit-deny trust',
];

/** The names of the differences that together explain `wanted`, undefined if they do not. */
function explain(it: Case, wanted: Outcome, oracle: (it: Case) => Outcome): readonly string[] | undefined {
  for (const { name, rewrite } of DIFFERENCES) {
    const rewritten = rewrite(it);
    if (rewritten !== undefined && oracle(rewritten) === wanted) return [name];
  }
  const names: string[] = [];
  let rewritten = it;
  for (const { name, rewrite } of DIFFERENCES) {
    const next = rewrite(rewritten);
    if (next === undefined) continue;
    rewritten = next;
    names.push(name);
    if (oracle(rewritten) === wanted) return names;
  }
  return undefined;
}

describe('decisions and an independent implementation', () => {
  it(`agree on ${CASES} requests but for documented differences`, (t) => {
    const random = makeRandom(SEED);
    const [ours, oracle] = [createOurs(), createOracle()];
    const outcomes = new Map<string, number>();
    const explained = new Map<string, number>(DIFFERENCES.map(({ name }) => [name, 0]));
    const unexplained: string[] = [];
    const count = (counts: Map<string, number>, name: string) =>
      counts.set(name, (counts.get(name) ?? 0) + 1);
    let [decided, differing] = [0, 0];
    while (decided < CASES) {
      for (const drawn of drawCases(random, REQUESTS_PER_POLICY_SET)) {
        decided++;
        const { outcome, policyType } = ours(drawn).reason;
        count(outcomes, `${outcome} ${policyType}`);
        if (oracle(drawn) === outcome) continue;
        differing++;
        const names = explain(drawn, outcome, oracle);
        for (const name of names ?? []) count(explained, name);
        if (names === undefined && unexplained.length < 3) {
          unexplained.push(
            JSON.stringify({
              outcome,
              policyType,
              oracle: oracle(drawn),
              ...drawn,
              context: [...drawn.context],
            }),
          );
        }
      }
    }
    assert.deepEqual(unexplained, []);
    t.diagnostic(`${decided} requests, ${differing} differences, all explained`);
    for (const [name, times] of [...explained, ...outcomes]) t.diagnostic(`${name}: ${times}`);
    if (!IS_STANDARD) return;
    assert.equal(differing, DIFFERING);
    // A difference that no longer occurs is no difference: its rewriting has to go.
    for (const [name, times] of [...explained, ...outcomes])
      assert.ok(times >= TIMES_MIN, `${name}: ${times}`);
    assert.deepEqual([...outcomes.keys()].toSorted(), DECIDED_BY);
  });
});
