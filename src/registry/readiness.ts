/** Whether the registry can take writes: a look at the real thing, now and then. */
import { storageKey } from '../lib/ids.ts';
import type { RegistryContext } from './registry.ts';

/** A good answer counts for so long: probes of load balancers come often, and each would cost two flushes. */
const GOOD_MS = 5000;
const BAD_MS = 500;

/**
 * Resolves when database and blob store take durable writes, or did a few seconds ago; rejects with what is in the way. Many
 * callers at once share one try.
 */
export function createReadiness({ store, blobs, clock }: RegistryContext): () => Promise<void> {
  let current: Promise<void> | undefined;
  let until = 0;
  const look = async (): Promise<void> => {
    try {
      await Promise.all([
        blobs.probe(),
        store.transact('probeWrites', { name: `probe ${storageKey(clock())}` }),
      ]);
      until = performance.now() + GOOD_MS;
    } catch (error) {
      until = performance.now() + BAD_MS;
      throw error;
    }
  };
  return () => {
    if (current === undefined || performance.now() >= until) {
      until = Number.POSITIVE_INFINITY;
      current = look();
    }
    return current;
  };
}
