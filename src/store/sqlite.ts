/**
 * The embedded database. One writer (a worker thread with group commit, writer.ts) and one read-only connection on each
 * thread that serves: reads take microseconds, and WAL lets them go on while the writer commits.
 *
 * WHY never open the files of the data directory that SQLite uses (`berth.db*`, `berth.lock`) with `node:fs` in this
 * process: POSIX drops all of a process's locks on a file when any of its descriptors for it is closed.
 */
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { SQLInputValue, StatementSync } from 'node:sqlite';
import type { MessagePort } from 'node:worker_threads';
import { Kysely, SqliteDialect } from 'kysely';
import { requireCurrent } from './migrations.ts';
import { drawOwner, nameWriter, ownerOf } from './owners.ts';
import type { Schema } from './schema.ts';
import type { PreparedQuery, StoreOf } from './store.ts';
import type { Registry } from './transactions.ts';
import { openWriterClient, unavailable, type WriterClient } from './writer-client.ts';
import { startWriter, type WriterThread } from './writer-thread.ts';

/** Statements kept by their text. Lists of varying length make many texts; the oldest give way. */
const STATEMENTS_MAX = 500;
/** Answers of one prepared query that are kept until the next commit. */
const KEPT_MAX = 1000;
const BUSY_MS = 5000;
/** See `SharedSqlite.commits`. */
const OWNER_AT = 1;
/** Bytes of the database read through the page cache of the kernel instead of by system calls. */
const MMAP_BYTES = 256 * 1_048_576;
/** How long a read transaction is held open at most: older ones keep the log from being copied into the database. */
const SNAPSHOT_MS = 100;

export interface SqliteStore<R extends Registry> extends StoreOf<R> {
  /** Commits (that is, syncs to disk) so far; many transactions share one. */
  readonly commits: number;
}

/** What threads of this process need to use the database too; see `joinSqlite`. */
export interface SharedSqlite {
  readonly file: string;
  /**
   * Counts commits, over shared memory: every thread sees a commit before anybody hears that it is done. Behind the count, the
   * number of this owner of the database (owners.ts).
   */
  readonly commits: Int32Array<SharedArrayBuffer>;
  /** A new channel to the writer, as soon as there is one. */
  connect(): Promise<MessagePort>;
}

export interface OwnedSqliteStore<R extends Registry> extends SqliteStore<R> {
  /** absent when opened for reading only */
  readonly shared?: SharedSqlite | undefined;
}

export interface SqliteOptions {
  readonly file: string;
  readonly readOnly?: boolean;
  /** Hears that the writer thread died, and why. It is started again. */
  readonly onWriterLost?: (cause: unknown) => void;
}

/** See `openSqliteStore`. `registry` is the module that exports `TRANSACTIONS`, loaded by the writer thread. */
export async function openSqlite<R extends Registry>(
  { file, readOnly = false, onWriterLost: onLost = () => {} }: SqliteOptions,
  registry: URL,
): Promise<OwnedSqliteStore<R>> {
  if (readOnly) return readOnlyStore(await openReader(file));
  const unlock = lock(file);
  let writer: WriterThread | undefined;
  try {
    createPrivate(file);
    const commits = new Int32Array(new SharedArrayBuffer(8));
    commits[OWNER_AT] = drawOwner();
    writer = await startWriter({ data: { file, registry: registry.href, commits }, onLost });
    const { connect: connectWriter, close: closeWriter } = writer;
    const shared = { file, commits, connect: connectWriter };
    const store = await joinSqlite<R>(shared);
    return Object.defineProperties(
      {
        ...store,
        shared,
        close: once(async () => {
          // WHY the reader first: the last connection to close copies the log into the database, and must be able to write.
          await store.close();
          await closeWriter();
          unlock();
        }),
      },
      { commits: { get: () => store.commits } },
    ) as OwnedSqliteStore<R>;
  } catch (error) {
    await writer?.close();
    unlock();
    throw error;
  }
}

/**
 * The database on another thread of the process that owns it: a connection of its own for reads, the one writer for
 * transactions. To be closed before its owner.
 */
export async function joinSqlite<R extends Registry>(shared: SharedSqlite): Promise<SqliteStore<R>> {
  const reader = await openReader(shared.file, shared.commits);
  let writer: WriterClient;
  try {
    writer = await openWriterClient({ connect: shared.connect, onCommit: reader.snapshot.end });
  } catch (error) {
    await reader.close();
    throw error;
  }
  const owner = shared.commits[OWNER_AT] ?? 0;
  return {
    engine: 'sqlite',
    read: reader.read,
    prepare: reader.prepare,
    transact: writer.transact as SqliteStore<R>['transact'],
    newWriter: () => nameWriter(owner),
    // The lock is this process's, so every other has ended: the kernel frees it when the last thread has let go of its files.
    fateOf: async (name) => (ownerOf(name) === owner ? 'running' : 'dead'),
    get commits() {
      return writer.commits();
    },
    close: once(async () => {
      await writer.drain();
      await reader.close();
      writer.close();
    }),
  };
}

function readOnlyStore<R extends Registry>(reader: SqliteReader): OwnedSqliteStore<R> {
  const { read, prepare, close } = reader;
  return {
    engine: 'sqlite',
    read,
    prepare,
    transact: refuseWrites,
    newWriter: () => nameWriter(0),
    fateOf: async () => 'running',
    commits: 0,
    close: once(close),
  };
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
export function queryBuilder(database: DatabaseSync, beforeQuery = (): unknown => undefined): Kysely<Schema> {
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

function adapt(database: DatabaseSync, text: string, beforeQuery: () => unknown) {
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
  /**
   * Before each query: makes sure that it sees everything committed so far. Returns how many commits that are, or
   * `undefined` when that is not known.
   */
  begin(): number | undefined;
  /** Lets go of what is held. */
  end(): void;
}

/**
 * Keeps one read transaction open between commits, so that a query does not have to take and release SQLite's locks: five
 * microseconds become three. INVARIANT: only with the writer in this process, which counts a commit in shared memory
 * before anybody hears of it. So a query sees whatever was acknowledged to anyone, on any thread, before it began.
 *
 * The transaction is also ended when this thread is told of a commit, and after a while, so that an idle thread does not
 * hold up the checkpoint.
 */
function holdSnapshot(database: DatabaseSync, commits: Int32Array<SharedArrayBuffer>): Snapshot {
  const begin = database.prepare('begin');
  const commit = database.prepare('commit');
  let seen = 0;
  let timer: NodeJS.Timeout | undefined;
  const end = (): void => {
    if (database.isOpen && database.isTransaction) commit.run();
  };
  const expire = (): void => {
    timer = undefined;
    end();
  };
  return {
    begin: () => {
      // WHY read first: what is committed from here on changes it, whether or not the transaction sees that already.
      const now = Atomics.load(commits, 0);
      if (database.isTransaction) {
        if (now === seen) return now;
        commit.run();
      }
      seen = now;
      begin.run();
      timer ??= setTimeout(expire, SNAPSHOT_MS).unref();
      return now;
    },
    end,
  };
}

interface SqliteReader extends Pick<SqliteStore<Registry>, 'read' | 'prepare' | 'close'> {
  readonly snapshot: Snapshot;
}

/** With `commits` of the writer of this process, or without when another process may write. */
async function openReader(file: string, commits?: Int32Array<SharedArrayBuffer>): Promise<SqliteReader> {
  const database = connect(file, true);
  const snapshot =
    commits === undefined ? { begin: () => undefined, end: () => {} } : holdSnapshot(database, commits);
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
  const prepare = <Row>(text: string, keep?: 'keep'): PreparedQuery<Row> => {
    const readRows = rowReader(database.prepare(text));
    if (keep === 'keep') return keepRows(readRows, snapshot) as PreparedQuery<Row>;
    return async (...parameters) => {
      snapshot.begin();
      return readRows(parameters) as Row[];
    };
  };
  return { read, prepare, close, snapshot };
}

/**
 * Keeps what a query gave until the next commit: between commits the same question has the same answer. INVARIANT: nobody
 * changes the rows, which are everybody's.
 */
function keepRows(
  readRows: (parameters: SQLInputValue[]) => Record<string, unknown>[],
  snapshot: Snapshot,
): PreparedQuery<unknown> {
  let kept = new Map<string, Record<string, unknown>[]>();
  let keptAt: number | undefined;
  return async (...parameters) => {
    const commits = snapshot.begin();
    if (commits === undefined) return readRows(parameters);
    if (commits !== keptAt || kept.size >= KEPT_MAX) {
      // WHY not cleared when empty: a store that only writes would make a map for every commit.
      if (kept.size > 0) kept = new Map();
      keptAt = commits;
    }
    const key = parameters.length === 1 ? String(parameters[0]) : parameters.join('\0');
    const known = kept.get(key);
    if (known !== undefined) return known;
    const rows = readRows(parameters);
    kept.set(key, rows);
    return rows;
  };
}

function refuseWrites(): Promise<never> {
  return Promise.reject(unavailable('The registry was opened for reading only'));
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
