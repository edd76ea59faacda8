/**
 * Stored copies whose bytes are missing or damaged, as `berth fsck` found them. Such a copy is set aside: its row keeps
 * everything that refers to it, but nobody is told any more that the content is here, so that the next push of the digest
 * brings the bytes again; these then take the place of the damaged ones in every repository at once.
 *
 * WHY in `content_key`: content is shared under equal content keys only, so a copy under a name that no key has is found by
 * no upload and no mount. The links of such a copy have no lease (0), which makes every HEAD ask `blob.renewLease`.
 */
import { sql } from 'kysely';
import type { Transaction, Tx } from './transaction.ts';

/** Key names are of letters, digits, `-` and `_`. */
const MARK = '!';

export function isSetAside(contentKey: string): boolean {
  return contentKey.startsWith(MARK);
}

/** SQL condition on the outer row's `storage_key`: its copy is set aside. */
export function setAsideSql(outer: 'repository_blob'): ReturnType<typeof sql<boolean>> {
  return sql<boolean>`exists (select 1 from blob d where d.storage_key = ${sql.ref(`${outer}.storage_key`)}
    and d.content_key like ${`${MARK}%`})`;
}

/** Sets a copy aside. False when it is already, or there is none (any more). */
async function setAside(tx: Tx, { storageKey }: { readonly storageKey: string }): Promise<boolean> {
  const marked = await tx
    .updateTable('blob')
    .set({ content_key: sql<string>`${MARK} || content_key` })
    .where('storage_key', '=', storageKey)
    .where('content_key', 'not like', `${MARK}%`)
    .returning('storage_key')
    .executeTakeFirst();
  if (marked === undefined) return false;
  await tx
    .updateTable('repository_blob')
    .set({ leased_until: 0 })
    .where('storage_key', '=', storageKey)
    .execute();
  return true;
}

/** The bytes are back (from a backup, from a disk that was away): offers the copy again. False when it was not set aside. */
async function takeBack(
  tx: Tx,
  { storageKey, now }: { readonly storageKey: string; readonly now: number },
): Promise<boolean> {
  const row = await tx
    .updateTable('blob')
    .set({ content_key: sql<string>`substr(content_key, 2)` })
    .where('storage_key', '=', storageKey)
    .where('content_key', 'like', `${MARK}%`)
    .returning('storage_key')
    .executeTakeFirst();
  if (row === undefined) return false;
  await tx
    .updateTable('repository_blob')
    .set({ leased_until: now })
    .where('storage_key', '=', storageKey)
    .execute();
  return true;
}

/** Puts a copy just bound in the place of the one that was set aside, if there is one, in every repository that has it. */
export async function replaceSetAside(
  tx: Tx,
  fresh: {
    readonly digest: string;
    readonly contentKey: string;
    readonly storageKey: string;
    readonly now: number;
  },
): Promise<void> {
  const damaged = await tx
    .selectFrom('blob')
    .select('storage_key')
    .where('digest', '=', fresh.digest)
    .where('content_key', '=', MARK + fresh.contentKey)
    .executeTakeFirst();
  if (damaged === undefined) return;
  await tx
    .updateTable('repository_blob')
    .set({ storage_key: fresh.storageKey, leased_until: fresh.now })
    .where('storage_key', '=', damaged.storage_key)
    .execute();
  await tx.deleteFrom('blob').where('storage_key', '=', damaged.storage_key).execute();
  await tx
    .insertInto('garbage_trash')
    .values({ storage_key: damaged.storage_key, delete_after: fresh.now })
    .onConflict((conflict) => conflict.column('storage_key').doNothing())
    .execute();
}

export const damageTransactions = {
  'damage.setAside': setAside,
  'damage.takeBack': takeBack,
} as const satisfies Record<string, Transaction<never, unknown>>;
