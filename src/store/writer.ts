/**
 * The writer thread of the embedded database: the one connection that writes. Takes what is queued, runs each
 * transaction in a savepoint of its own, commits once and only then answers: one sync to disk for many transactions.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { Fault } from '../domain/faults.ts';
import type { FaultCode, FaultDetail } from '../domain/faults.ts';
import { migrate } from './migrations.ts';
import { connect, queryBuilder } from './sqlite.ts';
import type { Transaction, Tx } from './transaction.ts';

export interface WriterData {
  readonly file: string;
  /** href of the module that exports `TRANSACTIONS` */
  readonly registry: string;
}

export interface Request {
  readonly id: number;
  readonly name: string;
  readonly input: unknown;
}

export type Failure =
  | { readonly fault: FaultCode; readonly message: string; readonly detail: FaultDetail | undefined }
  | {
      readonly message: string;
      readonly stack: string | undefined;
      readonly code: unknown;
      readonly errcode: unknown;
    };

export type Answer =
  | { readonly id: number; readonly output: unknown }
  | { readonly id: number; readonly failure: Failure };

export type FromWriter = 'ready' | { readonly answers: readonly Answer[]; readonly commits: number };
export type ToWriter = readonly Request[] | 'close';

/** A commit is due after this many transactions or this long, so that the first of a batch does not wait for ever. */
const BATCH_MAX = 256;
const BATCH_MS = 20;
/** Pages (of 4 KiB) in the write-ahead log before they are copied into the database, which never waits for readers. */
const CHECKPOINT_PAGES = 2000;
const LOG_BYTES_MAX = 64 * 1_048_576;
const CACHE_KIB = 16_384;

/**
 * Results of SQLite that say the database cannot work now: PERM, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL,
 * CANTOPEN, PROTOCOL.
 */
const UNAVAILABLE = new Set([3, 5, 6, 7, 8, 9, 10, 13, 14, 15]);

if (parentPort !== null) await serve(parentPort, workerData as WriterData);

async function serve(port: MessagePort, { file, registry }: WriterData): Promise<void> {
  const { TRANSACTIONS } = (await import(registry)) as { TRANSACTIONS: Registry };
  const database = connect(file, false);
  database.exec(`
    pragma journal_mode = wal;
    pragma synchronous = full;
    pragma wal_autocheckpoint = ${CHECKPOINT_PAGES};
    pragma journal_size_limit = ${LOG_BYTES_MAX};
    pragma cache_size = -${CACHE_KIB}`);
  const tx = queryBuilder(database);
  await migrate(tx, 'sqlite');

  const writing: Writing = { database, tx, run: statementRunner(database) };
  const queue: Request[] = [];
  let commits = 0;
  let running = false;
  let closing = false;

  const work = async (): Promise<void> => {
    const answers = await runBatch(writing, TRANSACTIONS, queue);
    commits += 1;
    send(port, answers, commits);
    advance();
  };
  const advance = (): void => {
    running = queue.length > 0;
    // WHY setImmediate: what arrived meanwhile is received first and joins the batch.
    if (running) setImmediate(() => void work());
    else if (closing) finish();
  };
  const finish = (): void => {
    database.exec('pragma optimize');
    database.close();
    port.close();
  };

  port.on('message', (message: ToWriter) => {
    if (message === 'close') closing = true;
    else for (const request of message) queue.push(request);
    if (!running) advance();
  });
  port.postMessage('ready' satisfies FromWriter);
}

function send(port: MessagePort, answers: readonly Answer[], commits: number): void {
  try {
    port.postMessage({ answers, commits } satisfies FromWriter);
  } catch {
    // An output is not plain data: only its own caller is told so.
    port.postMessage({ answers: answers.map(cloneable), commits } satisfies FromWriter);
  }
}

function cloneable(answer: Answer): Answer {
  try {
    return structuredClone(answer);
  } catch (error) {
    return { id: answer.id, failure: describe(error) };
  }
}

type Registry = Readonly<Record<string, Transaction<unknown, unknown>>>;

interface Writing {
  readonly database: DatabaseSync;
  readonly tx: Tx;
  /** Runs a statement that begins or ends something, compiled once. */
  run(statement: Control): void;
}

type Control =
  | 'begin immediate'
  | 'commit'
  | 'rollback'
  | 'savepoint request'
  | 'release request'
  | 'rollback to request';

function statementRunner(database: DatabaseSync): (statement: Control) => void {
  const compiled = new Map<Control, StatementSync>();
  return (text) => {
    const statement = compiled.get(text) ?? database.prepare(text);
    compiled.set(text, statement);
    statement.run();
  };
}

/** Takes requests off the queue and runs them in one commit. Never throws: a commit that fails is every request's failure. */
async function runBatch(writing: Writing, registry: Registry, queue: Request[]): Promise<Answer[]> {
  const { database, run } = writing;
  const batch: Request[] = [];
  const answers: Answer[] = [];
  const until = performance.now() + BATCH_MS;
  try {
    run('begin immediate');
    for (let request = queue.shift(); request !== undefined; request = queue.shift()) {
      batch.push(request);
      answers.push(await runOne(writing, registry, request));
      if (batch.length >= BATCH_MAX || performance.now() >= until) break;
    }
    run('commit');
    return answers;
  } catch (error) {
    if (database.isTransaction) run('rollback');
    const first = batch.length === 0 ? queue.splice(0, BATCH_MAX) : batch;
    return first.map(({ id }) => ({ id, failure: describe(error) }));
  }
}

/** Throws only when the whole batch is lost: SQLite rolls everything back itself on some errors (disk full, I/O). */
async function runOne({ database, tx, run }: Writing, registry: Registry, request: Request): Promise<Answer> {
  const { id, name, input } = request;
  run('savepoint request');
  try {
    const transaction = Object.hasOwn(registry, name) ? registry[name] : undefined;
    if (transaction === undefined) throw new Error(`there is no transaction ${name}`);
    const output = await transaction(tx, input);
    run('release request');
    return { id, output };
  } catch (error) {
    if (!database.isTransaction) throw error;
    run('rollback to request');
    run('release request');
    return { id, failure: describe(error) };
  }
}

function describe(error: unknown): Failure {
  if (error instanceof Fault) return { fault: error.code, message: error.message, detail: error.detail };
  if (!(error instanceof Error))
    return { message: String(error), stack: undefined, code: undefined, errcode: undefined };
  const { code, errcode } = error as { code?: unknown; errcode?: unknown };
  if (typeof errcode === 'number' && UNAVAILABLE.has(errcode & 0xff))
    return {
      fault: 'ServiceUnavailableException',
      message: `The metadata database failed: ${error.message}`,
      detail: undefined,
    };
  return { message: error.message, stack: error.stack, code, errcode };
}
