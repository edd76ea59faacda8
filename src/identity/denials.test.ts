/** Denials: what is kept, for how long, and that other instances on the same database find it. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { findPostgres, startPostgres } from '../../test/postgres.ts';
import { LIMITS } from '../lib/limits.ts';
import { evaluate } from '../policy/policy.ts';
import type { AccessRequest } from '../policy/policy.ts';
import { openPostgresStore, openSqliteStore, type Store } from '../store/store.ts';
import { createDenials, type Denial } from './denials.ts';

function denialOf(requestId: string, account: string, at: number, action = 'ecr:PutImage'): Denial {
  const request: AccessRequest = {
    caller: { kind: 'user', account, arn: `arn:aws:iam::${account}:user/ann`, id: 'AIDA' },
    action,
    resource: '*',
    resourceAccount: account,
    context: new Map(),
  };
  const decision = evaluate(request, { identity: [] });
  return { requestId, at, sourceIp: '192.0.2.1', region: 'us-east-1', request, decision, message: 'no' };
}

function denialTests(open: () => Promise<{ store: Store; close: () => Promise<void> }>): void {
  let store: Store;
  let close: () => Promise<void>;
  before(async () => {
    ({ store, close } = await open());
  });
  after(() => close());

  test('one instance finds what another noted, and the newest is the newest', async () => {
    const [first, second] = [createDenials(store), createDenials(store)];
    first.note(denialOf('a', '000000000000', 1000));
    const found = await second.find('a', '000000000000');
    assert.equal(found?.principal, 'arn:aws:iam::000000000000:user/ann');
    first.note(denialOf('b', '000000000000', 2000));
    first.note(denialOf('c', '000000000000', 3000, 'berth:ExplainDenial'));
    first.note(denialOf('d', '111111111111', 4000));
    assert.equal((await first.findNewest('000000000000', undefined))?.requestId, 'b');
    assert.equal(
      (await first.findNewest('000000000000', 'arn:aws:iam::000000000000:user/bob'))?.requestId,
      undefined,
    );
    assert.equal(await second.find('a', '111111111111'), undefined);
    assert.equal(await second.find('never', '000000000000'), undefined);
  });

  test('who is refused all the time pushes out only their own; what is a day old goes', async () => {
    const denials = createDenials(store);
    denials.note(denialOf('old', '000000000000', 10_000));
    denials.note(denialOf('quiet', '222222222222', 20_000));
    for (let i = 0; i < 2 * LIMITS.denialBatchPerAccountMax; i++)
      denials.note(denialOf(`loud-${i}`, '333333333333', 20_000 + i));
    await denials.flush();
    assert.ok(await denials.find('old', '000000000000'));
    assert.ok(await denials.find('quiet', '222222222222'));
    const loud = await store.read
      .selectFrom('denial')
      .select('request_id')
      .where('account', '=', '333333333333')
      .execute();
    assert.equal(loud.length, LIMITS.denialBatchPerAccountMax);
    assert.ok(loud.some(({ request_id: id }) => id === `loud-${2 * LIMITS.denialBatchPerAccountMax - 1}`));

    const row = { resourceAccount: '4', principal: 'p', owner: 'p', action: 'a', content: '{}' };
    const input = { since: 0, perAccountMax: 3, max: 5 };
    const batch = [1, 2, 3, 4, 5].map((n) => ({ ...row, account: '4', requestId: `r${n}`, at: 100_000 + n }));
    await store.transact('denial.record', { ...input, denials: batch });
    const left = await store.read.selectFrom('denial').select('request_id').orderBy('at', 'desc').execute();
    assert.deepEqual(
      left.slice(0, 3).map(({ request_id: id }) => id),
      ['r5', 'r4', 'r3'],
    );
    assert.equal(left.length, 5);
    denials.note(denialOf('fresh', '000000000000', 200_000 + LIMITS.denialAgeMs));
    await denials.flush();
    const rows = await store.read.selectFrom('denial').select('request_id').execute();
    assert.deepEqual(rows, [{ request_id: 'fresh' }]);
  });
}

describe('denials on SQLite', () => {
  denialTests(async () => {
    const directory = await mkdtemp(join(tmpdir(), 'berth-denials-'));
    const store = await openSqliteStore({ file: join(directory, 'berth.db') });
    const close = async (): Promise<void> => {
      await store.close();
      await rm(directory, { recursive: true, force: true });
    };
    return { store, close };
  });
});

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED denials on PostgreSQL: no initdb and pg_ctl found\n');
else {
  describe('denials on PostgreSQL', () => {
    denialTests(async () => {
      const server = await startPostgres(bin);
      const store = await openPostgresStore({ url: server.url });
      const close = async (): Promise<void> => {
        await store.close();
        await server.stop();
      };
      return { store, close };
    });
  });
}
