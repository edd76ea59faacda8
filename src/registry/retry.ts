import { isForeignKeyViolation } from '../store/store.ts';

/**
 * Runs a transaction again, once, when a row it relied on went away meanwhile.
 *
 * WHY: PostgreSQL checks foreign keys against what is committed now, not against the transaction's snapshot, so a race that
 * serialisation would have caught shows as a broken constraint. Run again, the transaction sees what happened.
 */
export async function retryBrokenReference<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isForeignKeyViolation(error)) throw error;
    return await work();
  }
}
