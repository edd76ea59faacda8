import type { Store } from '../store/store.ts';

/** Images whose pull waits to be written; beyond this the newest are forgotten, which only makes a pull time lag. */
const PULLS_MAX = 20_000;
const BATCH = 500;

interface Pull {
  readonly repositoryId: string;
  readonly digest: string;
  readonly at: number;
}

/** Pull times on their way to the database: a pull never waits for a write. */
export class Pulls {
  readonly #store: Store;
  readonly #events: boolean;
  #waiting = new Map<string, Pull>();
  #flushing: Promise<void> = Promise.resolve();

  constructor(store: Store, events: boolean) {
    this.#store = store;
    this.#events = events;
  }

  record(repositoryId: string, digest: string, at: number): void {
    const key = `${repositoryId} ${digest}`;
    if (this.#waiting.size >= PULLS_MAX && !this.#waiting.has(key)) return;
    this.#waiting.set(key, { repositoryId, digest, at });
  }

  /** The newest pull time: what waits here or what the database said. */
  newest(repositoryId: string, digest: string, stored: number | undefined): number | undefined {
    const at = this.#waiting.get(`${repositoryId} ${digest}`)?.at;
    return at !== undefined && (stored === undefined || stored < at) ? at : stored;
  }

  /** Writes what waits; after a failure it waits again. One at a time. */
  flush(): Promise<void> {
    const turn = this.#flushing.then(() => this.#write());
    this.#flushing = turn.catch(() => {});
    return turn;
  }

  async #write(): Promise<void> {
    const pulls = [...this.#waiting.values()];
    this.#waiting = new Map();
    for (let at = 0; at < pulls.length; at += BATCH) {
      try {
        await this.#store.transact('image.recordPulls', {
          pulls: pulls.slice(at, at + BATCH),
          events: this.#events,
        });
      } catch (error) {
        for (const pull of pulls.slice(at)) {
          const newer = this.newest(pull.repositoryId, pull.digest, pull.at) ?? pull.at;
          this.record(pull.repositoryId, pull.digest, newer);
        }
        throw error;
      }
    }
  }
}
