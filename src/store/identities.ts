import type { Transaction } from './transaction.ts';

export const identityTransactions = {} as const satisfies Record<string, Transaction<never, unknown>>;
