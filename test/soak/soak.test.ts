/** The soak (storm.ts) in seconds. SOAK_SEED is what chance hangs from. */
import { describe, test } from 'node:test';
import { findPostgres } from '../postgres.ts';
import { soak } from './storm.ts';

const seed = Number(process.env['SOAK_SEED'] ?? 7);
const skip = (await findPostgres()) === undefined && 'not installed: postgresql';

// WHY at once: most of each is the start of servers and the wait for the collector.
describe('eight clients while garbage is collected every second', { concurrency: true }, () => {
  test('SQLite, one worker', async () => {
    await soak({ events: 120, seed, database: 'sqlite', workers: 1, leaseMs: 4000 });
  });
  test('SQLite, two workers', async () => {
    await soak({ events: 100, seed: seed + 1, database: 'sqlite', workers: 2, leaseMs: 4000 });
  });
  test('PostgreSQL', { skip }, async () => {
    await soak({ events: 60, seed: seed + 2, database: 'postgres', workers: 1, leaseMs: 4000 });
  });
});
