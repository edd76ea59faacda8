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
  /** One number, counted up after every commit and before its callers are told; it may wrap. */
  readonly commits: Int32Array<SharedArrayBuffer>;
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

/** What goes over the channel of a thread that writes. */
export type FromWriter = { readonly answers: readonly Answer[]; readonly commits: number };
export type ToWriter = readonly Request[];
/** What the owner of the writer thread tells it. It answers `ready` once. */
export type ToWriterThread = { readonly connect: MessagePort } | 'close';

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

async function serve(owner: MessagePort, { file, registry, commits: counter }: WriterData): Promise<void> {
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
  const clients = new Set<MessagePort>();
  const queue: Queued[] = [];
  let commits = 0;
  let running = false;
  let closing = false;

  const work = async (): Promise<void> => {
    const answers = await runBatch(writing, TRANSACTIONS, queue);
    commits += 1;
    // INVARIANT: before any answer, so that who hears of a commit, or hears of one who did, reads it on every thread.
    Atomics.add(counter, 0, 1);
    for (const [port, its] of answers) send(port, its, commits);
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
    for (const port of clients) port.close();
    owner.close();
  };
  const admit = (port: MessagePort): void => {
    clients.add(port);
    port.on('close', () => clients.delete(port));
    port.on('message', (requests: ToWriter) => {
      for (const request of requests) queue.push({ port, request });
      if (!running) advance();
    });
  };

  owner.on('message', (message: ToWriterThread) => {
    if (message !== 'close') return admit(message.connect);
    closing = true;
    if (!running) advance();
  });
  owner.postMessage('ready', []);
}

/** A request and the channel its answer goes to. */
interface Queued {
  readonly port: MessagePort;
  readonly request: Request;
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
async function runBatch(
  writing: Writing,
  registry: Registry,
  queue: Queued[],
): Promise<Map<MessagePort, Answer[]>> {
  const { database, run } = writing;
  const batch: Queued[] = [];
  const answers: Answer[] = [];
  const until = performance.now() + BATCH_MS;
  try {
    run('begin immediate');
    for (let queued = queue.shift(); queued !== undefined; queued = queue.shift()) {
      batch.push(queued);
      answers.push(await runOne(writing, registry, queued.request));
      if (batch.length >= BATCH_MAX || performance.now() >= until) break;
    }
    run('commit');
    return byPort(batch, (_, i) => answers[i] as Answer);
  } catch (error) {
    if (database.isTransaction) run('rollback');
    const failed = batch.length === 0 ? queue.splice(0, BATCH_MAX) : batch;
    return byPort(failed, ({ id }) => ({ id, failure: describe(error) }));
  }
}

function byPort(
  batch: readonly Queued[],
  answerOf: (request: Request, i: number) => Answer,
): Map<MessagePort, Answer[]> {
  const answers = new Map<MessagePort, Answer[]>();
  for (const [i, { port, request }] of batch.entries())
    answers.getOrInsertComputed(port, () => []).push(answerOf(request, i));
  return answers;
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
