import type { Transaction } from './transaction.ts';
import { backupTransactions } from './backup.ts';
import { checkTransactions } from './check.ts';
import { damageTransactions } from './damage.ts';
import { denialTransactions } from './denials.ts';
import { eventTransactions } from './events.ts';
import { garbageTransactions } from './garbage.ts';
import { identityTransactions } from './identities.ts';
import { imageTransactions } from './images.ts';
import { jobTransactions } from './jobs.ts';
import { lifecycleTransactions } from './lifecycle.ts';
import { previewTransactions } from './previews.ts';
import { registryTransactions } from './registries.ts';
import { repositoryTransactions } from './repositories.ts';
import { templateTransactions } from './templates.ts';
import { storageClassTransactions } from './storage-class.ts';
import { uploadTransactions } from './uploads.ts';

/** Changes nothing: it succeeds when transactions can be run. */
const probeTransactions = {
  'store.probe': (_tx: unknown, _input: object) => Promise.resolve(null),
};

/** Every write there is, by name. The writer thread imports this file itself: functions do not cross threads. */
export const TRANSACTIONS = {
  ...identityTransactions,
  ...denialTransactions,
  ...registryTransactions,
  ...repositoryTransactions,
  ...templateTransactions,
  ...imageTransactions,
  ...storageClassTransactions,
  ...lifecycleTransactions,
  ...previewTransactions,
  ...uploadTransactions,
  ...garbageTransactions,
  ...jobTransactions,
  ...eventTransactions,
  ...damageTransactions,
  ...checkTransactions,
  ...backupTransactions,
  ...probeTransactions,
} as const;

/** What a store can be opened with: transactions by name. */
export type Registry = Readonly<Record<string, Transaction<never, unknown>>>;

export type NameOf<R extends Registry> = Extract<keyof R, string>;
export type InputOf<R extends Registry, Name extends NameOf<R>> = Parameters<R[Name]>[1];
export type OutputOf<R extends Registry, Name extends NameOf<R>> = Awaited<ReturnType<R[Name]>>;

export type TransactionName = NameOf<typeof TRANSACTIONS>;
export type TransactionInput<Name extends TransactionName> = InputOf<typeof TRANSACTIONS, Name>;
export type TransactionOutput<Name extends TransactionName> = OutputOf<typeof TRANSACTIONS, Name>;
