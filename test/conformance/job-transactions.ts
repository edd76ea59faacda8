/** The product's transactions and one that changes its mind. Loaded by the writer thread as well. */
import { Fault } from '../../src/domain/faults.ts';
import { enqueueJob, type NewJob } from '../../src/store/jobs.ts';
import type { Transaction, Tx } from '../../src/store/store.ts';
import { TRANSACTIONS as PRODUCT } from '../../src/store/transactions.ts';

/** Asks for a job, and refuses unless told otherwise. */
async function enqueueOrRefuse(tx: Tx, { job, refuse }: { job: NewJob; refuse: boolean }): Promise<void> {
  await enqueueJob(tx, job);
  if (refuse) throw new Fault('ValidationError', 'no');
}

async function clearJobs(tx: Tx, _input: null): Promise<void> {
  await tx.deleteFrom('job').execute();
}

export const TRANSACTIONS = {
  ...PRODUCT,
  enqueueOrRefuse,
  clearJobs,
} as const satisfies Record<string, Transaction<never, unknown>>;
