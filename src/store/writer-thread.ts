/**
 * The writer thread of the embedded database as seen by the process that owns it: started, given a channel for each
 * thread that writes, and started again when it dies.
 */
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { MessageChannel, Worker, type MessagePort } from 'node:worker_threads';
import type { ToWriterThread, WriterData } from './writer.ts';

/** The pause before the thread is started again, doubling while starts fail. */
const RESTART_MS = 50;
const RESTART_MS_MAX = 5000;

export interface WriterThread {
  /** A new channel to the writer, as soon as there is one. Rejects when it is closing. */
  connect(): Promise<MessagePort>;
  /** Lets the writer end what it has begun and close the database. */
  close(): Promise<void>;
}

export interface WriterThreadOptions {
  readonly data: WriterData;
  /** Hears that the thread died, or did not start again, and why. */
  readonly onLost: (cause: unknown) => void;
}

interface Running {
  readonly worker: Worker;
  /** resolves with the cause when the thread has ended */
  readonly ended: Promise<unknown>;
}

/** Starts the thread; resolves once the database is migrated and transactions are taken. */
export async function startWriter({ data, onLost }: WriterThreadOptions): Promise<WriterThread> {
  const closing = new AbortController();
  let current: Promise<Running> = launch(data);

  const restart = async (): Promise<Running> => {
    for (let pauseMs = RESTART_MS; ; pauseMs = Math.min(RESTART_MS_MAX, pauseMs * 2)) {
      await delay(pauseMs, undefined, { signal: closing.signal });
      try {
        return supervise(await launch(data));
      } catch (error) {
        onLost(error);
      }
    }
  };
  const supervise = (running: Running): Running => {
    void replace(running.ended);
    return running;
  };
  const replace = async (ended: Promise<unknown>): Promise<void> => {
    const cause = await ended;
    // What it committed and could not announce must be seen all the same.
    Atomics.add(data.commits, 0, 1);
    if (closing.signal.aborted) return;
    onLost(cause);
    current = restart();
    current.catch(() => {});
  };
  supervise(await current);

  return {
    async connect() {
      closing.signal.throwIfAborted();
      const { worker } = await current;
      const { port1, port2 } = new MessageChannel();
      send(worker, { connect: port2 }, [port2]);
      return port1;
    },
    async close() {
      closing.abort(new Error('The metadata writer is closing'));
      const running = await current.catch(() => undefined);
      if (running === undefined) return;
      send(running.worker, 'close');
      await running.ended;
    },
  };
}

async function launch(data: WriterData): Promise<Running> {
  const worker = new Worker(new URL('./writer.ts', import.meta.url), {
    workerData: data,
    name: 'store-writer',
  });
  let cause: unknown;
  worker.on('error', (error) => (cause = error));
  const ended = new Promise<unknown>((resolve) => {
    worker.once('exit', (code) => resolve(cause ?? new Error(`The metadata writer ended with code ${code}`)));
  });
  const failed = ended.then((error) => Promise.reject(error as Error));
  await Promise.race([once(worker, 'message'), failed]);
  failed.catch(() => {});
  return { worker, ended };
}

function send(worker: Worker, message: ToWriterThread, transfer: MessagePort[] = []): void {
  worker.postMessage(message, transfer);
}
