import type { Transaction } from './transaction.ts';

export const imageTransactions = {} as const satisfies Record<string, Transaction<never, unknown>>;
