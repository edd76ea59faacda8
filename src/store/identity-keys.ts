/** Writes to access keys, and the first account. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import { bumpIdentity, quotaExceeded } from './identity-owners.ts';
import { insertUser, requireUser } from './identity-users.ts';
import type { UserReference } from './identity-users.ts';
import type { Tx } from './transaction.ts';

/** An access key without its secret. */
export interface AccessKeyRecord {
  readonly id: string;
  readonly status: 'Active' | 'Inactive';
  readonly createdAt: number;
}

export const noSuchAccessKey = (id: string): Fault =>
  new Fault('NoSuchEntity', `The Access Key with id ${id} cannot be found`);

/** `secret` is sealed. @throws Fault NoSuchEntity, LimitExceeded */
async function createAccessKey(
  tx: Tx,
  input: UserReference & {
    readonly id: string;
    readonly secret: Uint8Array;
    readonly now: number;
    readonly keysMax: number;
  },
): Promise<void> {
  const user = await requireUser(tx, input);
  const { count } = await tx
    .selectFrom('iam_access_key')
    .select((q) => q.fn.countAll<number | string>().as('count'))
    .where('user_id', '=', user.id)
    .executeTakeFirstOrThrow();
  if (Number(count) >= input.keysMax) {
    throw quotaExceeded('AccessKeysPerUser', input.keysMax);
  }
  const { id, secret, now } = input;
  await insertAccessKey(tx, { id, account: user.account, userId: user.id, secret, now });
  await bumpIdentity(tx);
}

async function insertAccessKey(
  tx: Tx,
  key: {
    readonly id: string;
    readonly account: string;
    readonly userId: string | null;
    readonly secret: Uint8Array;
    readonly now: number;
  },
): Promise<void> {
  await tx
    .insertInto('iam_access_key')
    .values({
      id: key.id,
      account: key.account,
      user_id: key.userId,
      secret: key.secret,
      status: 'Active',
      created_at: key.now,
    })
    .execute();
}

/** @throws Fault NoSuchEntity */
async function updateAccessKey(
  tx: Tx,
  input: UserReference & { readonly id: string; readonly status: 'Active' | 'Inactive' },
): Promise<void> {
  const user = await requireUser(tx, input);
  const updated = await tx
    .updateTable('iam_access_key')
    .set({ status: input.status })
    .where('id', '=', input.id)
    .where('user_id', '=', user.id)
    .returning('id')
    .executeTakeFirst();
  if (updated === undefined) throw noSuchAccessKey(input.id);
  await bumpIdentity(tx);
}

/** @throws Fault NoSuchEntity */
async function deleteAccessKey(tx: Tx, input: UserReference & { readonly id: string }): Promise<void> {
  const user = await requireUser(tx, input);
  const deleted = await tx
    .deleteFrom('iam_access_key')
    .where('id', '=', input.id)
    .where('user_id', '=', user.id)
    .returning('id')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchAccessKey(input.id);
  await bumpIdentity(tx);
}

/** A use of an access key, or of a role (by its unique id). */
export interface KeyUse {
  readonly id: string;
  readonly at: number;
  readonly service: string;
  readonly region: string;
}

/** The newest use wins, whatever the order of arrival. Keys deleted meanwhile are ignored. */
async function recordKeyUses(tx: Tx, input: { readonly uses: readonly KeyUse[] }): Promise<void> {
  for (const { id, at, service, region } of input.uses) {
    if (id.startsWith('AROA')) {
      await tx
        .updateTable('iam_role')
        .set({ last_used_at: at, last_used_region: region })
        .where('id', '=', id)
        .where((q) => q.or([q('last_used_at', 'is', null), q('last_used_at', '<', at)]))
        .execute();
      continue;
    }
    await tx
      .updateTable('iam_access_key')
      .set({ last_used_at: at, last_used_service: service, last_used_region: region })
      .where('id', '=', id)
      .where((q) => q.or([q('last_used_at', 'is', null), q('last_used_at', '<', at)]))
      .execute();
  }
}

interface SealedKey {
  readonly id: string;
  readonly secret: Uint8Array;
}

/** An account to be, with its first user and that user's key. */
interface NewAccount {
  readonly account: string;
  readonly now: number;
  readonly admin: {
    readonly id: string;
    readonly name: string;
    readonly policyArn: string;
    readonly key: SealedKey;
  };
}

/** Makes the account unless it is there; says whether it did. */
async function insertAccount(tx: Tx, { account, now, admin }: NewAccount): Promise<boolean> {
  const inserted = await tx
    .insertInto('account')
    .values({ id: account, created_at: now })
    .onConflict((on) => on.column('id').doNothing())
    .returning('id')
    .executeTakeFirst();
  if (inserted === undefined) return false;
  const { id, name, policyArn, key } = admin;
  await insertUser(tx, { id, account, name, path: '/', boundaryArn: undefined, createdAt: now });
  await tx
    .insertInto('iam_attachment')
    .values({ owner_id: id, policy_arn: policyArn, account, attached_at: now })
    .execute();
  await insertAccessKey(tx, { id: key.id, account, userId: id, secret: key.secret, now });
  await bumpIdentity(tx);
  return true;
}

/** @throws Fault EntityAlreadyExists */
async function createAccount(tx: Tx, input: NewAccount): Promise<void> {
  if (!(await insertAccount(tx, input))) {
    throw new Fault('EntityAlreadyExists', `The account ${input.account} already exists.`);
  }
}

/**
 * Makes the account with its first user and key unless it is there, and makes the root keys of the account exactly
 * `rootKey`. Says whether the account is new. @throws Fault InvalidInput when the root key's id is taken
 */
async function bootstrapAccount(
  tx: Tx,
  input: NewAccount & { readonly rootKey: SealedKey | undefined },
): Promise<{ readonly created: boolean }> {
  const created = await insertAccount(tx, input);
  await setRootKey(tx, input.account, input.rootKey, input.now);
  await bumpIdentity(tx);
  return { created };
}

/** INVARIANT: root credentials come from the configuration only; what it no longer names stops working. */
async function setRootKey(tx: Tx, account: string, key: SealedKey | undefined, now: number): Promise<void> {
  await tx.deleteFrom('iam_access_key').where('account', '=', account).where('user_id', 'is', null).execute();
  if (key === undefined) return;
  const taken = await tx
    .selectFrom('iam_access_key')
    .select('id')
    .where('id', '=', key.id)
    .executeTakeFirst();
  if (taken !== undefined) {
    throw new Fault('InvalidInput', `The access key id ${key.id} of the root credentials is already in use.`);
  }
  await insertAccessKey(tx, { id: key.id, account, userId: null, secret: key.secret, now });
}

export const keyTransactions = {
  'account.bootstrap': bootstrapAccount,
  'account.create': createAccount,
  'accessKey.create': createAccessKey,
  'accessKey.update': updateAccessKey,
  'accessKey.delete': deleteAccessKey,
  'accessKey.recordUses': recordKeyUses,
} as const;
