/** Wakes a loop that sleeps between looks, without letting it look more often than it should. */
export class Bell {
  readonly #pauseMs: number;
  #rung = false;
  #wake: (() => void) | undefined;
  #last = Number.NEGATIVE_INFINITY;

  /** `pauseMs`: the least time between two wake-ups by ringing, so that a storm of rings costs few looks. */
  constructor(pauseMs = 0) {
    this.#pauseMs = pauseMs;
  }

  /** Ends the wait there is, or the next one. */
  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  /** Ends the wait there is at once, whatever the pause: for shutting down. */
  async wait(ms: number, signal: AbortSignal): Promise<void> {
    const until = performance.now() + ms;
    while (!signal.aborted) {
      const now = performance.now();
      const ready = this.#rung ? Math.min(until, this.#last + this.#pauseMs) : until;
      if (ready <= now) break;
      await this.#sleep(ready - now, signal);
    }
    if (this.#rung) this.#last = performance.now();
    this.#rung = false;
  }

  /** Until the time is up, the first ring, or the signal. */
  #sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wasRung = this.#rung;
      const done = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        this.#wake = undefined;
        resolve();
      };
      const timer = setTimeout(done, ms);
      signal.addEventListener('abort', done);
      this.#wake = wasRung ? undefined : done;
    });
  }
}
