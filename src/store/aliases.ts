/**
 * Digests of other algorithms than sha256 by which clients know content of a repository (ADR 0008). An alias was computed
 * from the bytes when it was written, so it is true as long as it is there; it goes with what it names.
 */
import { isSha256 } from '../domain/names.ts';
import type { Store } from './store.ts';
import type { Tx } from './transaction.ts';

type AliasTable = 'blob_alias' | 'image_alias';

/**
 * Makes the look-up of the sha256 digest behind any digest. A sha256 digest comes back as it is, whether or not there is
 * such content; for another, `undefined` means that the repository knows nothing by it.
 */
export function prepareResolve(
  store: Pick<Store, 'prepare'>,
  table: AliasTable,
): (repositoryId: string, digest: string) => Promise<string | undefined> {
  const query = store.prepare<{ digest: string }>(
    `select digest from ${table} where alias = ? and repository_id = ?`,
    'keep',
  );
  return async (repositoryId, digest) =>
    isSha256(digest) ? digest : (await query(digest, repositoryId))[0]?.digest;
}

/** The sha256 digests behind digests of any algorithm; those that the repository does not know are absent. */
export async function resolveAliases(
  tx: Tx,
  table: AliasTable,
  repositoryId: string,
  digests: readonly string[],
): Promise<Map<string, string>> {
  const resolved = new Map(digests.filter(isSha256).map((digest) => [digest, digest]));
  if (resolved.size === digests.length) return resolved;
  const rows = await tx
    .selectFrom(table)
    .select(['alias', 'digest'])
    .where('repository_id', '=', repositoryId)
    .where(
      'alias',
      'in',
      digests.filter((digest) => !isSha256(digest)),
    )
    .execute();
  for (const { alias, digest } of rows) resolved.set(alias, digest);
  return resolved;
}

/** Adds aliases of content that the repository has. */
export async function addAliases(
  tx: Tx,
  table: AliasTable,
  content: { readonly repositoryId: string; readonly digest: string },
  aliases: readonly string[],
): Promise<void> {
  if (aliases.length === 0) return;
  await tx
    .insertInto(table)
    .values(aliases.map((alias) => ({ alias, repository_id: content.repositoryId, digest: content.digest })))
    .onConflict((conflict) => conflict.columns(['alias', 'repository_id']).doNothing())
    .execute();
}
