/** What belongs to an account as a whole, and the passwords of its users. Messages: iam-sts.md §6.4. */
import { Fault } from '../domain/faults.ts';
import { requireUser } from './identity-users.ts';
import type { UserReference } from './identity-users.ts';
import type { Reader, Tx } from './transaction.ts';

export interface AccountRecord {
  readonly id: string;
  readonly alias: string | undefined;
  readonly createdAt: number;
}

/** By id. */
export async function listAccounts(read: Reader): Promise<AccountRecord[]> {
  const rows = await read
    .selectFrom('account as a')
    .leftJoin('iam_account_alias as l', 'l.account', 'a.id')
    .select(['a.id', 'a.created_at', 'l.alias'])
    .orderBy('a.id')
    .execute();
  return rows.map(({ id, created_at, alias }) => ({ id, createdAt: created_at, alias: alias ?? undefined }));
}

export async function findAccountCreation(read: Reader, account: string): Promise<number | undefined> {
  const row = await read
    .selectFrom('account')
    .select('created_at')
    .where('id', '=', account)
    .executeTakeFirst();
  return row?.created_at;
}

export async function findAlias(read: Reader, account: string): Promise<string | undefined> {
  const row = await read
    .selectFrom('iam_account_alias')
    .select('alias')
    .where('account', '=', account)
    .executeTakeFirst();
  return row?.alias;
}

/** One alias an account: a new one replaces the old. @throws Fault EntityAlreadyExists when another account has it */
async function setAlias(
  tx: Tx,
  { account, alias }: { readonly account: string; readonly alias: string },
): Promise<void> {
  const taken = await tx
    .selectFrom('iam_account_alias')
    .select('account')
    .where('alias', '=', alias)
    .executeTakeFirst();
  if (taken !== undefined && taken.account !== account) {
    throw new Fault('EntityAlreadyExists', `The account alias ${alias} already exists.`);
  }
  await tx
    .insertInto('iam_account_alias')
    .values({ account, alias })
    .onConflict((on) => on.column('account').doUpdateSet({ alias }))
    .execute();
}

/** @throws Fault NoSuchEntity */
async function deleteAlias(
  tx: Tx,
  { account, alias }: { readonly account: string; readonly alias: string },
): Promise<void> {
  const deleted = await tx
    .deleteFrom('iam_account_alias')
    .where('account', '=', account)
    .where('alias', '=', alias)
    .returning('alias')
    .executeTakeFirst();
  if (deleted === undefined) {
    throw new Fault('NoSuchEntity', `The account alias ${alias} does not exist.`);
  }
}

/** JSON, as the transaction `passwordPolicy.set` was given it. */
export async function findPasswordPolicy(read: Reader, account: string): Promise<string | undefined> {
  const row = await read
    .selectFrom('iam_password_policy')
    .select('policy')
    .where('account', '=', account)
    .executeTakeFirst();
  return row?.policy;
}

export const noSuchPasswordPolicy = (account: string): Fault =>
  new Fault('NoSuchEntity', `The Password Policy with domain name ${account} cannot be found.`);

/** `policy` undefined takes it away. @throws Fault NoSuchEntity when there is none to take */
async function setPasswordPolicy(
  tx: Tx,
  { account, policy }: { readonly account: string; readonly policy: string | undefined },
): Promise<void> {
  if (policy !== undefined) {
    await tx
      .insertInto('iam_password_policy')
      .values({ account, policy })
      .onConflict((on) => on.column('account').doUpdateSet({ policy }))
      .execute();
    return;
  }
  const deleted = await tx
    .deleteFrom('iam_password_policy')
    .where('account', '=', account)
    .returning('account')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchPasswordPolicy(account);
}

export async function findCredentialReport(
  read: Reader,
  account: string,
): Promise<{ content: string; generatedAt: number } | undefined> {
  const row = await read
    .selectFrom('iam_credential_report')
    .select(['content', 'generated_at'])
    .where('account', '=', account)
    .executeTakeFirst();
  return row === undefined ? undefined : { content: row.content, generatedAt: row.generated_at };
}

async function putCredentialReport(
  tx: Tx,
  input: { readonly account: string; readonly content: string; readonly now: number },
): Promise<void> {
  const { account, content, now: generated_at } = input;
  await tx
    .insertInto('iam_credential_report')
    .values({ account, content, generated_at })
    .onConflict((on) => on.column('account').doUpdateSet({ content, generated_at }))
    .execute();
}

/** A console password. Times in milliseconds since the epoch. */
export interface LoginProfileRecord {
  /** scrypt */
  readonly hash: string;
  readonly resetRequired: boolean;
  readonly createdAt: number;
  readonly changedAt: number;
  readonly lastUsedAt: number | undefined;
  /** older hashes, newest first */
  readonly previous: readonly string[];
}

export async function findLoginProfile(
  read: Reader,
  userId: string,
): Promise<LoginProfileRecord | undefined> {
  const row = await read
    .selectFrom('iam_login_profile')
    .selectAll()
    .where('user_id', '=', userId)
    .executeTakeFirst();
  return row === undefined
    ? undefined
    : {
        hash: row.hash,
        resetRequired: row.reset_required === 1,
        createdAt: row.created_at,
        changedAt: row.changed_at,
        lastUsedAt: row.last_used_at ?? undefined,
        previous: JSON.parse(row.previous) as string[],
      };
}

export const noSuchLoginProfile = (userName: string): Fault =>
  new Fault('NoSuchEntity', `Login Profile for User ${userName} cannot be found.`);

/** @throws Fault NoSuchEntity, EntityAlreadyExists */
async function createLoginProfile(
  tx: Tx,
  input: UserReference & { readonly hash: string; readonly resetRequired: boolean; readonly now: number },
): Promise<void> {
  const user = await requireUser(tx, input);
  const inserted = await tx
    .insertInto('iam_login_profile')
    .values({
      user_id: user.id,
      hash: input.hash,
      reset_required: input.resetRequired ? 1 : 0,
      created_at: input.now,
      changed_at: input.now,
      last_used_at: null,
      previous: '[]',
    })
    .onConflict((on) => on.column('user_id').doNothing())
    .returning('user_id')
    .executeTakeFirst();
  if (inserted === undefined) {
    throw new Fault('EntityAlreadyExists', `Login Profile for user ${user.name} already exists.`);
  }
}

/** Changes what is given; `remember` old hashes are kept. @throws Fault NoSuchEntity */
async function updateLoginProfile(
  tx: Tx,
  input: UserReference & {
    readonly hash: string | undefined;
    readonly resetRequired: boolean | undefined;
    readonly remember: number;
    readonly now: number;
  },
): Promise<void> {
  const user = await requireUser(tx, input);
  const profile = await findLoginProfile(tx, user.id);
  if (profile === undefined) throw noSuchLoginProfile(user.name);
  const { hash, resetRequired, remember, now } = input;
  if (hash === undefined && resetRequired === undefined) return;
  await tx
    .updateTable('iam_login_profile')
    .set({
      ...(hash !== undefined && {
        hash,
        changed_at: now,
        previous: JSON.stringify([profile.hash, ...profile.previous].slice(0, remember)),
      }),
      ...(resetRequired !== undefined && { reset_required: resetRequired ? 1 : 0 }),
    })
    .where('user_id', '=', user.id)
    .execute();
}

/** @throws Fault NoSuchEntity */
async function deleteLoginProfile(tx: Tx, input: UserReference): Promise<void> {
  const user = await requireUser(tx, input);
  const deleted = await tx
    .deleteFrom('iam_login_profile')
    .where('user_id', '=', user.id)
    .returning('user_id')
    .executeTakeFirst();
  if (deleted === undefined) throw noSuchLoginProfile(user.name);
}

/** Notes that a password was used to sign in. */
async function recordLogin(tx: Tx, input: { readonly userId: string; readonly now: number }): Promise<void> {
  await tx
    .updateTable('iam_login_profile')
    .set({ last_used_at: input.now })
    .where('user_id', '=', input.userId)
    .execute();
}

/** The session token behind a registry token; also after `expires_at`, which the caller knows better. */
export async function findSessionToken(read: Reader, id: string): Promise<string | undefined> {
  const row = await read.selectFrom('sts_session').select('token').where('id', '=', id).executeTakeFirst();
  return row?.token;
}

/** How many rows that are over one write takes away. */
const EXPIRED_PER_WRITE = 100;

/** Keeps a session until `expiresAt`, or longer if it is kept longer already, and drops some that are over. */
async function keepSession(
  tx: Tx,
  input: {
    readonly id: string;
    readonly token: string;
    readonly expiresAt: number;
    readonly now: number;
  },
): Promise<void> {
  const { id, token, expiresAt, now } = input;
  const over = await tx
    .selectFrom('sts_session')
    .select('id')
    .where('expires_at', '<', now)
    .orderBy('expires_at')
    .limit(EXPIRED_PER_WRITE)
    .execute();
  if (over.length > 0) {
    await tx
      .deleteFrom('sts_session')
      .where(
        'id',
        'in',
        over.map((row) => row.id),
      )
      .execute();
  }
  const known = await tx
    .selectFrom('sts_session')
    .select('expires_at')
    .where('id', '=', id)
    .executeTakeFirst();
  if (known === undefined) {
    await tx.insertInto('sts_session').values({ id, token, expires_at: expiresAt }).execute();
  } else if (known.expires_at < expiresAt) {
    await tx.updateTable('sts_session').set({ expires_at: expiresAt }).where('id', '=', id).execute();
  }
}

export const accountTransactions = {
  'alias.set': setAlias,
  'alias.delete': deleteAlias,
  'passwordPolicy.set': setPasswordPolicy,
  'credentialReport.put': putCredentialReport,
  'loginProfile.create': createLoginProfile,
  'loginProfile.update': updateLoginProfile,
  'loginProfile.delete': deleteLoginProfile,
  'loginProfile.recordLogin': recordLogin,
  'session.keep': keepSession,
} as const;
