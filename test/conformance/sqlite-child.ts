/** A process to be killed: writes accounts until then, and prints the id of each once its write is acknowledged. */
import { openSqlite } from '../../src/store/sqlite.ts';
import type { TRANSACTIONS } from './transactions.ts';

const [file = ''] = process.argv.slice(2);
const store = await openSqlite<typeof TRANSACTIONS>({ file }, new URL('./transactions.ts', import.meta.url));
let next = 0;

async function write(): Promise<never> {
  for (;;) {
    const id = String(next++);
    await store.transact('insertRows', { rows: [['account', { id, created_at: 1 }]] });
    process.stdout.write(`${id}\n`);
  }
}

await Promise.all(Array.from({ length: 16 }, write));
