/** Repositories whose distance to a quota is remembered. */
const REPOSITORIES_MAX = 10_000;

/**
 * When to count what a repository has of something again. WHY not at every addition: counting is linear, and on PostgreSQL makes
 * transactions conflict that add to one repository. A sixteenth of the room that was left may be filled in between, so that up to
 * sixteen processes stay under the quota together.
 */
export class Quotas {
  readonly #uncounted = new Map<string, number>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  mustCount(repositoryId: string): boolean {
    return (this.#uncounted.get(repositoryId) ?? 0) <= 0;
  }

  /** `count`: how many there are now, when they were counted */
  added(repositoryId: string, count: number | undefined): void {
    const left =
      count === undefined
        ? (this.#uncounted.get(repositoryId) ?? 0) - 1
        : Math.floor((this.#max - count) / 16);
    this.#uncounted.delete(repositoryId);
    this.#uncounted.set(repositoryId, left);
    const [oldest] = this.#uncounted.size > REPOSITORIES_MAX ? this.#uncounted.keys() : [];
    if (oldest !== undefined) this.#uncounted.delete(oldest);
  }
}
