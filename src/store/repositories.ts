import type { Transaction } from './transaction.ts';

export const repositoryTransactions = {} as const satisfies Record<string, Transaction<never, unknown>>;
