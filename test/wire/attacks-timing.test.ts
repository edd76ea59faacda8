/** Time must not tell an unknown key from a known one: the same cryptographic work, counted. */
import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';
import { test } from 'node:test';
import { signRequest } from '../../src/lib/sigv4.ts';
import { createVerifier } from '../../src/protocol/protocol.ts';

const NOW = Date.UTC(2026, 10, 24, 12);
const WORK = ['createHmac', 'createHash', 'hash', 'timingSafeEqual'] as const;

/** How often each function of node:crypto is called while `act` runs. */
async function countWork(act: () => Promise<unknown>): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  const originals = WORK.map((name) => [name, crypto[name]] as const);
  for (const [name, original] of originals) {
    const counting = (...args: unknown[]): unknown => {
      counts[name] = (counts[name] ?? 0) + 1;
      return (original as (...args: unknown[]) => unknown)(...args);
    };
    Object.assign(crypto, { [name]: counting });
  }
  syncBuiltinESMExports();
  try {
    await act();
  } finally {
    Object.assign(crypto, Object.fromEntries(originals));
    syncBuiltinESMExports();
  }
  return counts;
}

test('unknown, known, foreign and expired keys cost the same', async () => {
  type Found = { secret: string; caller: string } | 'invalid-token' | 'expired' | undefined;
  const found: Readonly<Record<string, Found>> = {
    AKIAKNOWN: { secret: 'known', caller: 'c' },
    AKIATOKEN: 'invalid-token',
    AKIAEXPIRED: 'expired',
    AKIAUNKNOWN: undefined,
  };
  const body = '{}';
  const url = 'http://localhost/';
  const costs: Record<string, number>[] = [];
  for (const warm of [false, true]) {
    for (const accessKeyId of Object.keys(found)) {
      const verify = createVerifier<string>({
        keys: { findKey: (id) => Promise.resolve(found[id]) },
        clock: () => NOW,
        acceptsRegion: () => true,
      });
      // A wrong secret, so that the known key is refused like the others.
      const headers = signRequest(
        { method: 'POST', url, body },
        { accessKeyId, secretAccessKey: 'wrong' },
        { region: 'us-east-1', service: 'ecr', now: NOW },
      );
      const rawHeaders = Object.entries(headers).flat();
      const request = { method: 'POST', path: '/', rawQuery: '', rawHeaders, body: Buffer.from(body) };
      const attempt = () => assert.rejects(verify(request, 'ecr', 'json'));
      if (warm) await attempt();
      costs.push(await countWork(attempt));
    }
  }
  const [cold, warm] = [costs.slice(0, 4), costs.slice(4)];
  assert.equal(cold[0]?.['timingSafeEqual'], 1);
  assert.ok((cold[0]?.['createHmac'] ?? 0) > (warm[0]?.['createHmac'] ?? 0));
  for (const group of [cold, warm]) for (const cost of group) assert.deepEqual(cost, group[0]);
});
