import type { StoreOf } from './store.ts';
import type { Registry } from './transactions.ts';

export function openPostgres<R extends Registry>(
  _options: { url: string; poolMax?: number },
  _registry: R,
): Promise<StoreOf<R>> {
  throw new Error('not written yet');
}
