/** One thread's side of the channel to the writer: transactions on their way, and what became of them. */
import type { MessagePort } from 'node:worker_threads';
import { Fault } from '../domain/faults.ts';
import type { Answer, Failure, FromWriter, Request, ToWriter } from './writer.ts';

/** Writes of one thread that wait for the writer; more are refused. */
const PENDING_MAX = 20_000;

export interface WriterClient {
  transact(name: string, input: unknown): Promise<unknown>;
  /** commits the writer has told of */
  commits(): number;
  /** Refuses new transactions and waits for those in flight. */
  drain(): Promise<void>;
  close(): void;
}

export interface WriterClientOptions {
  /** Gives a channel to the writer there is, or to the next one. */
  readonly connect: () => Promise<MessagePort>;
  /** Called at every commit with transactions of this thread, before any of their callers is told. */
  readonly onCommit: () => void;
}

interface Pending {
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

/**
 * Connects to the writer, and again whenever it was lost: transactions in flight are refused then, as those are that come
 * before it is back.
 */
export async function openWriterClient({ connect, onCommit }: WriterClientOptions): Promise<WriterClient> {
  const pending = new Map<number, Pending>();
  let port: MessagePort | undefined;
  let outgoing: Request[] = [];
  let nextId = 0;
  let commits = 0;
  let draining = false;
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
  const attach = (next: MessagePort): void => {
    port = next;
    next.on('message', (message: FromWriter) => {
      ({ commits } = message);
      onCommit();
      for (const answer of message.answers) receive(answer);
    });
    next.on('close', () => {
      port = undefined;
      outgoing = [];
      for (const id of pending.keys()) settle(id, (waiting) => waiting.reject(stopped()));
      // It fails only when the writer is closing for good.
      if (!draining) connect().then(attach, () => {});
    });
  };
  const flush = (): void => {
    const requests = outgoing;
    outgoing = [];
    if (requests.length === 0 || port === undefined) return;
    try {
      send(port, requests);
    } catch {
      // Something in it is not plain data: only its own caller is at fault.
      for (const request of requests) sendAlone(port, request);
    }
  };
  const sendAlone = (to: MessagePort, request: Request): void => {
    try {
      send(to, [request]);
    } catch (error) {
      settle(request.id, (waiting) => waiting.reject(error));
    }
  };

  attach(await connect());
  return {
    commits: () => commits,
    transact: (name, input) =>
      new Promise((resolve, reject) => {
        if (draining) return reject(unavailable('The registry is shutting down'));
        if (port === undefined) return reject(stopped());
        if (pending.size >= PENDING_MAX) return reject(unavailable('Too many writes are waiting'));
        const id = nextId++;
        pending.set(id, { resolve, reject });
        outgoing.push({ id, name, input });
        if (outgoing.length === 1) queueMicrotask(flush);
      }),
    drain: async () => {
      draining = true;
      if (pending.size > 0) await new Promise<void>((resolve) => (reportDrained = resolve));
    },
    close: () => {
      draining = true;
      port?.close();
    },
  };
}

function send(port: MessagePort, message: ToWriter): void {
  port.postMessage(message, []);
}

function stopped(): Fault {
  return unavailable('The metadata writer stopped and is being started again');
}

export function unavailable(message: string): Fault {
  return new Fault('ServiceUnavailableException', message);
}

/** The error a transaction threw on the writer thread, as it was. */
function revive(failure: Failure): Error {
  if ('fault' in failure) return new Fault(failure.fault, failure.message, failure.detail);
  const { message, ...rest } = failure;
  return Object.assign(new Error(message), rest);
}
