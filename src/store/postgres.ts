/**
 * PostgreSQL for any number of replicas. Reads go through connections that cannot write; transactions run in this
 * process, SERIALIZABLE, and are run again when the database refuses their order.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { Kysely, PostgresDialect, sql } from 'kysely';
import type { PostgresPool, PostgresPoolClient } from 'kysely';
import { Pool, types } from 'pg';
import type { PoolClient, PoolConfig } from 'pg';
import { Fault } from '../domain/faults.ts';
import { migrate } from './migrations.ts';
import { drawOwner, nameWriter, ownerOf } from './owners.ts';
import type { Schema } from './schema.ts';
import type { PreparedQuery, StoreOf } from './store.ts';
import type { Transaction } from './transaction.ts';
import type { InputOf, NameOf, OutputOf, Registry } from './transactions.ts';

const POOL_MAX = 16;
const CONNECT_MS = 5000;
/** The server ends a statement, and a transaction whose client fell silent, after this long. */
const STATEMENT_MS = 30_000;
const IDLE_IN_TRANSACTION_MS = 60_000;
/**
 * Tries of a transaction that others keep getting in the way of, that seems to break a constraint because of another, and whose
 * connection broke before its commit.
 */
const CONFLICT_TRIES_MAX = 25;
const VIOLATION_TRIES_MAX = 5;
const CONNECTION_TRIES_MAX = 3;
/** After so many conflicts one after the other a transaction runs alone. */
const CONFLICTS_BESIDE_MAX = 6;
/** The pause before another try is random, up to a bound that doubles with every try between these. */
const PAUSE_MIN_MS = 4;
const PAUSE_MAX_MS = 250;

/**
 * First key of the advisory locks that owners of claims hold (owners.ts), each under its number as long as it is connected; the
 * number only has to be the same in all processes.
 */
const OWNERS_LOCK = 7_327_002;

/** See `openPostgresStore`. */
export async function openPostgres<R extends Registry>(
  options: { url: string; poolMax?: number },
  registry: R,
): Promise<StoreOf<R>> {
  const poolMax = options.poolMax ?? POOL_MAX;
  const writersMax = Math.max(1, Math.floor(poolMax / 2));
  const owner = drawOwner();
  const own = async (client: Pick<PoolClient, 'query'>): Promise<void> => {
    await client.query(`select pg_advisory_lock_shared(${OWNERS_LOCK}, ${owner})`);
  };
  // WHY never without a connection: it is what others know a running owner by.
  // oxlint-disable-next-line typescript/no-misused-promises -- the pool waits for it; its types say void
  const writePool = openPool(options.url, { max: writersMax, min: 1, onConnect: own });
  // oxlint-disable-next-line typescript/no-misused-promises -- the pool waits for it; its types say void
  const readPool = openPool(options.url, { max: Math.max(1, poolMax - writersMax), onConnect: forbidWrites });
  const writers = new Kysely<Schema>({ dialect: new PostgresDialect({ pool: writePool }) });
  const read = new Kysely<Schema>({ dialect: new PostgresDialect({ pool: guard(readPool) }) });
  const tries = new Tries();
  const inFlight = new Set<Promise<unknown>>();
  let closing: Promise<void> | undefined;
  let prepared = 0;

  const close = async (): Promise<void> => {
    await Promise.allSettled(inFlight);
    await Promise.all([writers.destroy(), read.destroy()]);
    // WHY: Kysely only ends a pool it has used, and `end` may be called once.
    for (const pool of [writePool, readPool]) if (!pool.ended) await pool.end();
  };
  const transact = <Name extends NameOf<R>>(
    name: Name,
    input: InputOf<R, Name>,
  ): Promise<OutputOf<R, Name>> => {
    if (closing !== undefined) return Promise.reject(unavailable('The registry is shutting down'));
    if (!Object.hasOwn(registry, name)) return Promise.reject(new Error(`there is no transaction ${name}`));
    const transaction = registry[name] as unknown as Transaction<unknown, OutputOf<R, Name>>;
    const running = runUntilSerialised(writers, tries, transaction, input);
    inFlight.add(running);
    return running.finally(() => inFlight.delete(running));
  };

  try {
    await migrate(writers, 'postgres');
  } catch (error) {
    await close();
    // the operator may read it all
    throw isUnavailable(error)
      ? unavailable(`The metadata database cannot be reached: ${(error as Error).message}`)
      : translate(error);
  }
  return {
    engine: 'postgres',
    read,
    prepare<Row>(text: string): PreparedQuery<Row> {
      const query = { name: `berth_${prepared++}`, text: numberPlaceholders(text) };
      return async (...values) => {
        try {
          return (await readPool.query({ ...query, values })).rows as Row[];
        } catch (error) {
          throw translate(error);
        }
      };
    },
    transact,
    newWriter: () => nameWriter(owner),
    async fateOf(writer) {
      const other = ownerOf(writer);
      if (other === undefined || other === owner) return 'running';
      const { rows } =
        await sql`select 1 from pg_locks where locktype = 'advisory' and granted and objsubid = 2
        and database = (select oid from pg_database where datname = current_database())
        and classid = ${OWNERS_LOCK} and objid = ${other} limit 1`.execute(read);
      return rows.length === 0 ? 'lost' : 'running';
    },
    close: () => (closing ??= close()),
  };
}

function openPool(url: string, config: PoolConfig): Pool {
  const pool = new Pool({
    connectionString: url,
    application_name: 'berth',
    connectionTimeoutMillis: CONNECT_MS,
    statement_timeout: STATEMENT_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
    keepAlive: true,
    types: { getTypeParser: typeParser as typeof types.getTypeParser },
    ...config,
  });
  // WHY: without listeners a connection that breaks while idle, or between two queries, ends the process. The next
  // query on it fails, and the pool drops it.
  pool.on('error', ignore);
  pool.on('connect', (client) => void client.on('error', ignore));
  return pool;
}

function ignore(): void {}

/** WHY async although the type says void: the pool waits for it before it hands the connection out. */
async function forbidWrites(client: Pick<PoolClient, 'query'>): Promise<void> {
  await client.query('set default_transaction_read_only = on');
}

const OID = { bool: 16, int8: 20, numeric: 1700 } as const;

/** Values as SQLite gives them: numbers for 64-bit integers and sums, 0 and 1 for conditions. */
function typeParser(oid: number, format?: 'text' | 'binary'): (value: string) => unknown {
  if (oid === OID.int8 || oid === OID.numeric) return toNumber;
  if (oid === OID.bool) return (value) => (value === 't' ? 1 : 0);
  // oxlint-disable-next-line typescript/no-unsafe-enum-assignment, typescript/no-unnecessary-type-assertion -- a number
  return types.getTypeParser(oid, format as 'text') as (value: string) => unknown;
}

function toNumber(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && !Number.isSafeInteger(value))
    throw new RangeError(`${text} is too large for a number`);
  return value;
}

/** A pool for Kysely whose failures are Faults where the database cannot be reached. */
function guard(pool: Pool): PostgresPool {
  const clients = new WeakMap<PoolClient, PostgresPoolClient>();
  const wrap = (client: PoolClient): PostgresPoolClient => ({
    query: (async (text: string, values: readonly unknown[]) => {
      try {
        return await client.query(text, [...values]);
      } catch (error) {
        throw translate(error);
      }
    }) as unknown as PostgresPoolClient['query'],
    release: (destroy) => client.release(destroy),
  });
  return {
    options: pool.options,
    connect: async () => {
      try {
        const client = await pool.connect();
        const known = clients.get(client) ?? wrap(client);
        clients.set(client, known);
        return known;
      } catch (error) {
        throw translate(error);
      }
    },
    end: () => pool.end(),
  };
}

/** How the tries of transactions of this process go past each other. */
class Tries {
  readonly #running = new Set<Promise<unknown>>();
  #last: Promise<unknown> = Promise.resolve();
  #alone: Promise<unknown> | undefined;

  /** Beside all others. */
  async beside<T>(run: () => Promise<T>): Promise<T> {
    while (this.#alone !== undefined) await this.#alone;
    const running = run();
    this.#running.add(running);
    return await running.finally(() => this.#running.delete(running));
  }

  /** One after the other of those that conflicted; beside first tries. */
  inTurn<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(() => this.beside(run));
    this.#last = turn.catch(ignore);
    return turn;
  }

  /** As {@link inTurn}, and first tries wait until it is over. */
  alone<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(() => {
      const alone = Promise.allSettled(this.#running).then(run);
      this.#alone = alone.catch(ignore);
      return alone.finally(() => (this.#alone = undefined));
    });
    this.#last = turn.catch(ignore);
    return turn;
  }
}

/**
 * Runs a transaction until it commits, its own refusal, or there is no more point in trying. WHY in turn after a conflict: many
 * at once would be in each other's way until their tries are used up; one at a time they meet only those that just came. A long
 * one may meet some each time: after a few tries it meets only those of other processes.
 */
async function runUntilSerialised<Output>(
  writers: Kysely<Schema>,
  tries: Tries,
  transaction: Transaction<unknown, Output>,
  input: unknown,
): Promise<Output> {
  const run = (): Promise<Attempt<Output>> => runOnce(writers, transaction, input);
  let conflicts = 0;
  for (let count = 1; ; count++) {
    const attempt: Attempt<Output> =
      conflicts === 0
        ? await tries.beside(run)
        : await (conflicts < CONFLICTS_BESIDE_MAX ? tries.inTurn(run) : tries.alone(run));
    if ('output' in attempt) return attempt.output;
    if (count >= triesMax(attempt))
      throw sqlState(attempt.error) === READ_ONLY
        ? unavailable('The metadata database is read-only')
        : translate(attempt.error);
    conflicts = isConflict(attempt.error) || isViolation(attempt.error) ? conflicts + 1 : 0;
    await delay(randomInt(Math.min(PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** count)) + 1);
  }
}

function isConflict(error: unknown): boolean {
  const code = sqlState(error);
  return code === '40001' || code === '40P01';
}

/**
 * A check of uniqueness or of a reference looks past the snapshot, so a concurrent transaction can show as a violation that
 * the transaction, had it seen the row, would have answered itself.
 */
function isViolation(error: unknown): boolean {
  const code = sqlState(error);
  return code === '23505' || code === '23503';
}

/** What a standby, or a primary that became one, answers to a writer. */
const READ_ONLY = '25006';

type Attempt<Output> = { output: Output } | { error: unknown; committing: boolean };

async function runOnce<Output>(
  writers: Kysely<Schema>,
  transaction: Transaction<unknown, Output>,
  input: unknown,
): Promise<Attempt<Output>> {
  let committing = false;
  try {
    const output = await writers.connection().execute(async (tx) => {
      // WHY without seqscan: it locks a table whole against all who write to it, and of a small table the planner likes it.
      await sql`start transaction isolation level serializable read write; set local enable_seqscan = off`.execute(
        tx,
      );
      try {
        const result = await transaction(tx, input);
        committing = true;
        await commit(tx);
        return result;
      } catch (error) {
        // A connection that cannot roll back is broken: the pool drops it and the server rolls back.
        await sql`rollback`.execute(tx).catch(ignore);
        throw error;
      }
    });
    return { output };
  } catch (error) {
    return { error, committing };
  }
}

async function commit(tx: Kysely<Schema>): Promise<void> {
  const { rows } = await sql<{ command?: string }>`commit`.execute(tx);
  // The server answers ROLLBACK when a statement failed and the transaction went on regardless.
  if (rows[0]?.command === 'ROLLBACK')
    throw new Error('the transaction went on after a statement of it had failed');
}

/** How often a transaction that failed so may be tried in all. */
function triesMax({ error, committing }: { error: unknown; committing: boolean }): number {
  if (error instanceof Fault) return 1;
  if (isConflict(error)) return CONFLICT_TRIES_MAX;
  if (isViolation(error)) return VIOLATION_TRIES_MAX;
  // INVARIANT: what broke after its commit was sent may have been committed, and is never run again.
  if (isUnavailable(error) && !committing) return CONNECTION_TRIES_MAX;
  return 1;
}

function translate(error: unknown): unknown {
  const code = sqlState(error);
  if (isConflict(error)) return unavailable('The metadata database is too busy; please try again');
  if (code === '22021' || code === '22P05')
    return new Fault('InvalidParameterException', 'A text has a character that cannot be stored.');
  if (!isUnavailable(error)) return error;
  // WHY the code only: clients read this, and the message names hosts and paths.
  return unavailable(`The metadata database cannot be reached${code === undefined ? '' : ` (${code})`}`);
}

function unavailable(message: string): Fault {
  return new Fault('ServiceUnavailableException', message);
}

function sqlState(error: unknown): string | undefined {
  const code = error instanceof Error ? (error as { code?: unknown }).code : undefined;
  return typeof code === 'string' ? code : undefined;
}

/**
 * Classes of SQLSTATE: connection (08), resources such as a full disk (53), intervention such as a shutdown or a timeout
 * (57), the system (58); silence in a transaction (25P03), a lock not had (55P03).
 */
const UNAVAILABLE_STATE = /^(08...|53...|57...|58...|25P03|55P03)$/;
const UNAVAILABLE_SOCKET = /^(ECONN|ENET|EHOST|EPIPE|ETIMEDOUT|ENOENT|ENOTFOUND|EAI_AGAIN|EADDRNOTAVAIL)/;
/** What `pg` says in errors of its own, which carry no code. */
const UNAVAILABLE_TEXT =
  /^(Connection terminated|timeout e|Client (has encountered|was closed)|Query read timeout|Cannot use a pool)/;

function isUnavailable(error: unknown): boolean {
  if (!(error instanceof Error) || error instanceof Fault) return false;
  const code = sqlState(error);
  if (code === undefined) return UNAVAILABLE_TEXT.test(error.message);
  return UNAVAILABLE_STATE.test(code) || UNAVAILABLE_SOCKET.test(code);
}

/** `?` outside quotes becomes `$1`, `$2`, … */
function numberPlaceholders(text: string): string {
  let count = 0;
  return text.replace(/'[^']*'|"[^"]*"|\?/g, (part) => (part === '?' ? `$${++count}` : part));
}
