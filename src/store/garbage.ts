import type { Transaction } from './transaction.ts';

export const garbageTransactions = {} as const satisfies Record<string, Transaction<never, unknown>>;
