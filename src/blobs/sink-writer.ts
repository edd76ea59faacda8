import { OutgoingMessage } from 'node:http';
import { Socket } from 'node:net';
import type { Writable } from 'node:stream';

/** The error Node's own streams give when one closes before its end. */
export function prematureClose(): Error {
  return Object.assign(new Error('Premature close'), { code: 'ERR_STREAM_PREMATURE_CLOSE' });
}

/** Writes chunks to a sink one at a time, each until the sink has taken it, and fails as soon as the sink closes. */
export class SinkWriter {
  readonly #sink: Writable;
  readonly #signal: AbortSignal | undefined;
  #failure: Error | undefined;
  #reject: ((error: Error) => void) | undefined;

  /** Listens on the sink until `detach`. */
  constructor(sink: Writable, signal: AbortSignal | undefined) {
    this.#sink = sink;
    this.#signal = signal;
    sink.on('error', this.#onError);
    sink.on('close', this.#onClose);
    signal?.addEventListener('abort', this.#onAbort);
    if (signal?.aborted === true) this.#onAbort();
    else if (sink.destroyed || sink.writableEnded) this.#fail(sink.errored ?? prematureClose());
  }

  /**
   * Whether the sink no longer refers to a chunk once it has taken it. Network streams have handed it to the kernel by then; another
   * kind of stream may still hold it.
   */
  get copies(): boolean {
    return this.#sink instanceof OutgoingMessage || this.#sink instanceof Socket;
  }

  /** Resolves when the sink has taken the chunk. Rejects with its error, its closing, or the signal's reason. */
  write(chunk: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure);
      this.#reject = reject;
      this.#sink.write(chunk, (error) => (error ? this.#fail(error) : resolve()));
    });
  }

  /** Takes the listeners off, all but one that keeps a later error of the sink from ending the process. */
  detach(): void {
    this.#sink.off('close', this.#onClose);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    if (this.#failure === undefined) this.#sink.off('error', this.#onError);
  }

  readonly #onError = (error: Error): void => this.#fail(error);
  readonly #onClose = (): void => this.#fail(this.#sink.errored ?? prematureClose());
  readonly #onAbort = (): void => this.#fail(abortReason(this.#signal));

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#reject?.(this.#failure);
  }
}

/** The reason of an aborted signal as an error. */
export function abortReason(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason;
  return reason instanceof Error ? reason : new DOMException('This operation was aborted', 'AbortError');
}
