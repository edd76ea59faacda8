import type { Transaction } from './transaction.ts';

export const uploadTransactions = {} as const satisfies Record<string, Transaction<never, unknown>>;
