/** Denials, kept for a while so that they can be explained by the request id the client was given. */
import type { Reader, Tx } from './transaction.ts';

/** One refused request. Who may read which part of it is the reader's to know: `content` holds both sides. */
export interface DenialRecord {
  readonly requestId: string;
  readonly at: number;
  /** of the caller */
  readonly account: string;
  readonly resourceAccount: string;
  /** the caller's ARN as denials print it */
  readonly principal: string;
  /** the role behind a session, else the same as `principal` */
  readonly owner: string;
  readonly action: string;
  /** JSON: what was asked and what every policy said. No secrets. */
  readonly content: string;
}

/**
 * Writes a batch and takes away what is too old, then what is too much: of each account in the batch, and of all. A request
 * id that is there already keeps what it has.
 */
async function recordDenials(
  tx: Tx,
  input: {
    readonly denials: readonly DenialRecord[];
    /** older ones go */
    readonly since: number;
    readonly perAccountMax: number;
    readonly max: number;
  },
): Promise<void> {
  for (const {
    requestId,
    at,
    account,
    resourceAccount,
    principal,
    owner,
    action,
    content,
  } of input.denials) {
    await tx
      .insertInto('denial')
      .values({
        request_id: requestId,
        at,
        account,
        resource_account: resourceAccount,
        principal,
        owner,
        action,
        content,
      })
      .onConflict((conflict) => conflict.column('request_id').doNothing())
      .execute();
  }
  await tx.deleteFrom('denial').where('at', '<', input.since).execute();
  const accounts = new Set(input.denials.map(({ account }) => account));
  for (const account of accounts) await keepNewest(tx, account, input.perAccountMax);
  await keepNewest(tx, undefined, input.max);
}

/** INVARIANT: what remains is the newest; of those with the time of the last one that fits, some may go too. */
async function keepNewest(tx: Tx, account: string | undefined, max: number): Promise<void> {
  let newest = tx.selectFrom('denial').select('at').orderBy('at', 'desc').offset(max).limit(1);
  if (account !== undefined) newest = newest.where('account', '=', account);
  const first = await newest.executeTakeFirst();
  if (first === undefined) return;
  let surplus = tx.deleteFrom('denial').where('at', '<=', first.at);
  if (account !== undefined) surplus = surplus.where('account', '=', account);
  await surplus.execute();
}

const recordOf = (row: {
  request_id: string;
  at: number;
  account: string;
  resource_account: string;
  principal: string;
  owner: string;
  action: string;
  content: string;
}): DenialRecord => ({
  requestId: row.request_id,
  at: row.at,
  account: row.account,
  resourceAccount: row.resource_account,
  principal: row.principal,
  owner: row.owner,
  action: row.action,
  content: row.content,
});

/** A denial that concerns the account: of its caller, or at its resource. */
export async function findDenial(
  read: Reader,
  requestId: string,
  account: string,
): Promise<DenialRecord | undefined> {
  const row = await read
    .selectFrom('denial')
    .selectAll()
    .where('request_id', '=', requestId)
    .where((q) => q.or([q('account', '=', account), q('resource_account', '=', account)]))
    .executeTakeFirst();
  return row && recordOf(row);
}

/** The newest denial of an account's callers, of one of them if `principal` (a caller or the role behind it) is given. */
export async function findNewestDenial(
  read: Reader,
  {
    account,
    principal,
    except,
  }: {
    readonly account: string;
    readonly principal?: string | undefined;
    /** actions that begin with this do not count */
    readonly except: string;
  },
): Promise<DenialRecord | undefined> {
  let query = read
    .selectFrom('denial')
    .selectAll()
    .where('account', '=', account)
    .where('action', 'not like', `${except}%`)
    .orderBy('at', 'desc')
    .orderBy('request_id', 'desc')
    .limit(1);
  if (principal !== undefined) {
    query = query.where((q) => q.or([q('principal', '=', principal), q('owner', '=', principal)]));
  }
  const row = await query.executeTakeFirst();
  return row && recordOf(row);
}

export const denialTransactions = { 'denial.record': recordDenials } as const;
