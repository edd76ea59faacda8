/**
 * The embedded database. One writer (a worker thread with group commit, writer.ts) and one read-only connection on this
 * thread: reads take microseconds, and WAL lets them go on while the writer commits.
 *
 * WHY never open the files of the data directory that SQLite uses (`berth.db*`, `berth.lock`) with `node:fs` in this
 * process: POSIX drops all of a process's locks on a file when any of its descriptors for it is closed.
 */
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { SQLInputValue, StatementSync } from 'node:sqlite';
import { Worker } from 'node:worker_threads';
import { Kysely, SqliteDialect } from 'kysely';
import { Fault } from '../domain/faults.ts';
import { requireCurrent } from './migrations.ts';
import type { Schema } from './schema.ts';
import type { PreparedQuery, StoreOf } from './store.ts';
import type { Registry } from './transactions.ts';
import type { Answer, Failure, FromWriter, Request, ToWriter, WriterData } from './writer.ts';

/** Statements kept by their text. Lists of varying length make many texts; the oldest give way. */
const STATEMENTS_MAX = 500;
/** Writes waiting for the writer; more are refused. */
const PENDING_MAX = 20_000;
const BUSY_MS = 5000;
/** Bytes of the database read through the page cache of the kernel instead of by system calls. */
const MMAP_BYTES = 256 * 1_048_576;

export interface SqliteStore<R extends Registry> extends StoreOf<R> {
  /** Commits (that is, syncs to disk) so far; many transactions share one. */
  readonly commits: number;
}

/** See `openSqliteStore`. `registry` is the module that exports `TRANSACTIONS`, loaded by the writer thread. */
export async function openSqlite<R extends Registry>(
  options: { file: string; readOnly?: boolean },
  registry: URL,
): Promise<SqliteStore<R>> {
  const { file, readOnly = false } = options;
  const unlock = readOnly ? undefined : lock(file);
  let writer: Writer | undefined;
  try {
    if (!readOnly) {
      createPrivate(file);
      writer = await startWriter({ file, registry: registry.href });
    }
    const reader = await openReader(file, writer !== undefined);
    writer?.onCommit(reader.snapshot.end);
    return {
      engine: 'sqlite',
      read: reader.read,
      prepare: reader.prepare,
      transact: (writer?.transact ?? refuseWrites) as SqliteStore<R>['transact'],
      get commits() {
        return writer?.commits() ?? 0;
      },
      close: once(async () => {
        await writer?.drain();
        // WHY the reader first: the last connection to close copies the log into the database, and must be able to write.
        await reader.close();
        await writer?.close();
        unlock?.();
      }),
    };
  } catch (error) {
    await writer?.close();
    unlock?.();
    throw error;
  }
}

/** Opens a connection with the settings both threads share. */
export function connect(file: string, readOnly: boolean): DatabaseSync {
  const database = new DatabaseSync(file, {
    readOnly,
    timeout: BUSY_MS,
    enableForeignKeyConstraints: true,
    enableDoubleQuotedStringLiterals: false,
  });
  database.exec(`pragma trusted_schema = off; pragma mmap_size = ${MMAP_BYTES}`);
  return database;
}

/** Kysely on a connection of `node:sqlite`; statements are compiled once per text. Destroying it closes the connection. */
export function queryBuilder(database: DatabaseSync, beforeQuery = (): void => {}): Kysely<Schema> {
  const statements = new Map<string, ReturnType<typeof adapt>>();
  const prepare = (text: string): ReturnType<typeof adapt> => {
    let statement = statements.get(text);
    if (statement === undefined) {
      statement = adapt(database, text, beforeQuery);
      const [oldest] = statements.size >= STATEMENTS_MAX ? statements.keys() : [];
      if (oldest !== undefined) statements.delete(oldest);
    } else statements.delete(text);
    statements.set(text, statement);
    return statement;
  };
  return new Kysely<Schema>({
    dialect: new SqliteDialect({ database: { prepare, close: () => database.close() } }),
  });
}

function adapt(database: DatabaseSync, text: string, beforeQuery: () => void) {
  const statement = database.prepare(text);
  const readRows = rowReader(statement);
  type Parameters = readonly unknown[];
  return {
    reader: statement.columns().length > 0,
    all: (parameters: Parameters) => {
      beforeQuery();
      return readRows(parameters as SQLInputValue[]);
    },
    run: (parameters: Parameters) => statement.run(...(parameters as SQLInputValue[])),
    // WHY its own statement: a cached one would be reset under an iteration by the next query of the same text.
    iterate: (parameters: Parameters) => database.prepare(text).iterate(...(parameters as SQLInputValue[])),
  };
}

/**
 * Runs a statement and returns rows with the ordinary prototype, as PostgreSQL's are. WHY arrays first: `node:sqlite`
 * makes null-prototype objects slowly; copying arrays into objects of one shape takes half the time (docs/performance.md).
 */
function rowReader(statement: StatementSync): (parameters: SQLInputValue[]) => Record<string, unknown>[] {
  const names = statement.columns().map((column) => column.name);
  statement.setReturnArrays(true);
  return (parameters) => {
    const rows = statement.all(...parameters) as unknown as unknown[][];
    const objects: Record<string, unknown>[] = [];
    for (const row of rows) {
      const object: Record<string, unknown> = {};
      for (let i = 0; i < names.length; i++) object[names[i] as string] = row[i];
      objects.push(object);
    }
    return objects;
  };
}

/** See {@link holdSnapshot}. */
interface Snapshot {
  /** Before each query: makes sure that it sees everything committed so far as this process knows. */
  begin(): void;
  /** When the writer has committed: the next query must see it. */
  end(): void;
}

/**
 * Keeps one read transaction open between commits, so that a query does not have to take and release SQLite's locks: five
 * microseconds become three. INVARIANT: only with the writer in this process, whose every commit is announced before its
 * caller hears of it. The transaction is ended at the announcement and not at the next query, so that it never holds up
 * the checkpoint.
 */
function holdSnapshot(database: DatabaseSync): Snapshot {
  const begin = database.prepare('begin');
  const commit = database.prepare('commit');
  return {
    begin: () => {
      if (!database.isTransaction) begin.run();
    },
    end: () => {
      if (database.isOpen && database.isTransaction) commit.run();
    },
  };
}

interface SqliteReader extends Pick<SqliteStore<Registry>, 'read' | 'prepare' | 'close'> {
  readonly snapshot: Snapshot;
}

async function openReader(file: string, writerIsHere: boolean): Promise<SqliteReader> {
  const database = connect(file, true);
  const snapshot = writerIsHere ? holdSnapshot(database) : { begin: () => {}, end: () => {} };
  const read = queryBuilder(database, snapshot.begin);
  const close = async (): Promise<void> => {
    // WHY both: Kysely closes only what it has used.
    await read.destroy();
    if (database.isOpen) database.close();
  };
  try {
    await requireCurrent(read);
  } catch (error) {
    await close();
    throw error;
  }
  const prepare = <Row>(text: string): PreparedQuery<Row> => {
    const readRows = rowReader(database.prepare(text));
    return async (...parameters) => {
      snapshot.begin();
      return readRows(parameters) as Row[];
    };
  };
  return { read, prepare, close, snapshot };
}

function refuseWrites(): Promise<never> {
  return Promise.reject(unavailable('The registry was opened for reading only'));
}

function unavailable(message: string): Fault {
  return new Fault('ServiceUnavailableException', message);
}

/**
 * Takes the data directory for this process, or throws an error that names the process that has it. The lock is the
 * kernel's (an exclusive transaction on a file of its own), so it ends with the process however that dies; the process
 * id beside it is only for the message. Returns the release.
 */
function lock(file: string): () => void {
  const directory = dirname(file);
  const pidFile = join(directory, 'berth.pid');
  createPrivate(join(directory, 'berth.lock'));
  const database = new DatabaseSync(join(directory, 'berth.lock'), { timeout: 0 });
  try {
    database.exec('pragma journal_mode = memory; begin exclusive');
  } catch {
    database.close();
    throw new Error(
      `the data directory ${directory} is in use by another Berth process (${readPid(pidFile)})`,
    );
  }
  writeFileSync(pidFile, `${process.pid}\n`, { mode: 0o600 });
  return once(() => database.close());
}

function readPid(file: string): string {
  try {
    return `pid ${readFileSync(file, 'utf8').trim()}`;
  } catch {
    return 'pid unknown';
  }
}

/** Makes the file readable to its owner only; SQLite gives its `-wal` and `-shm` the same mode. */
function createPrivate(file: string): void {
  try {
    closeSync(openSync(file, 'wx', 0o600));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

function once<T>(action: () => T): () => T {
  let result: { value: T } | undefined;
  return () => (result ??= { value: action() }).value;
}

interface Pending {
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

interface Writer {
  transact(name: string, input: unknown): Promise<unknown>;
  commits(): number;
  /** Calls `listener` at every commit, before any of its transactions' callers is told. */
  onCommit(listener: () => void): void;
  /** Refuses new transactions and waits for those in flight. */
  drain(): Promise<void>;
  close(): Promise<void>;
}

/** Starts the writer thread; resolves once the database is migrated and it takes transactions. */
async function startWriter(data: WriterData): Promise<Writer> {
  const worker = new Worker(new URL('./writer.ts', import.meta.url), {
    workerData: data,
    name: 'store-writer',
  });
  const exited = new Promise<void>((resolve) => void worker.once('exit', () => resolve()));
  const pending = new Map<number, Pending>();
  let outgoing: Request[] = [];
  let nextId = 0;
  let commits = 0;
  let announce = (): void => {};
  let refusal: Fault | undefined;
  let reportDrained: (() => void) | undefined;

  const settle = (id: number, action: (waiting: Pending) => void): void => {
    const waiting = pending.get(id);
    pending.delete(id);
    if (waiting !== undefined) action(waiting);
    if (pending.size === 0) reportDrained?.();
  };
  const receive = (answer: Answer): void =>
    settle(answer.id, (waiting) => {
      if ('failure' in answer) waiting.reject(revive(answer.failure));
      else waiting.resolve(answer.output);
    });
  const flush = (): void => {
    const requests = outgoing;
    outgoing = [];
    try {
      send(worker, requests);
    } catch {
      // Something in it is not plain data: only its own caller is at fault.
      for (const request of requests) sendAlone(request);
    }
  };
  const sendAlone = (request: Request): void => {
    try {
      send(worker, [request]);
    } catch (error) {
      settle(request.id, (waiting) => waiting.reject(error));
    }
  };

  await new Promise<void>((resolve, reject) => {
    let cause = '';
    worker.on('message', (message: FromWriter) => {
      if (message === 'ready') return resolve();
      ({ commits } = message);
      announce();
      for (const answer of message.answers) receive(answer);
    });
    worker.on('error', (error) => {
      cause = `: ${(error as Error).message}`;
      reject(error);
    });
    worker.on('exit', () => {
      const fault = unavailable(`The metadata writer stopped${cause}`);
      refusal = fault;
      for (const id of pending.keys()) settle(id, (waiting) => waiting.reject(fault));
      reject(fault);
    });
  });

  return {
    commits: () => commits,
    onCommit: (listener) => {
      announce = listener;
    },
    transact: (name, input) =>
      new Promise((resolve, reject) => {
        if (refusal !== undefined) return reject(refusal);
        if (pending.size >= PENDING_MAX) return reject(unavailable('Too many writes are waiting'));
        const id = nextId++;
        pending.set(id, { resolve, reject });
        outgoing.push({ id, name, input });
        if (outgoing.length === 1) queueMicrotask(flush);
      }),
    drain: async () => {
      refusal ??= unavailable('The registry is shutting down');
      if (pending.size > 0) await new Promise<void>((resolve) => (reportDrained = resolve));
    },
    close: async () => {
      send(worker, 'close');
      await exited;
    },
  };
}

function send(worker: Worker, message: ToWriter): void {
  worker.postMessage(message, []);
}

/** The error a transaction threw on the writer thread, as it was. */
function revive(failure: Failure): Error {
  if ('fault' in failure) return new Fault(failure.fault, failure.message, failure.detail);
  const { message, ...rest } = failure;
  return Object.assign(new Error(message), rest);
}
