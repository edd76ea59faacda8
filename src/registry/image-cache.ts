import type { Image } from './registry.ts';

/** What never changes about a stored image. */
export type ImageCore = Omit<Image, 'lastPulledAt'>;

/** What an entry costs beside its manifest. */
const ENTRY_BYTES = 1024;

/**
 * Images by the id of their row, the least recently used giving way. INVARIANT: an id is never reused and its row never
 * changes in these members, so an entry is never stale; whether the image still exists is asked before.
 */
export class ImageCache {
  readonly #entries = new Map<string, ImageCore>();
  readonly #bytesMax: number;
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get(id: string): ImageCore | undefined {
    const image = this.#entries.get(id);
    if (image !== undefined) {
      this.#entries.delete(id);
      this.#entries.set(id, image);
    }
    return image;
  }

  set(id: string, image: ImageCore): void {
    const cost = ENTRY_BYTES + image.manifest.byteLength;
    // One huge manifest must not empty the cache.
    if (this.#entries.has(id) || cost > this.#bytesMax / 8) return;
    this.#entries.set(id, image);
    this.#bytes += cost;
    for (const [oldest, { manifest }] of this.#entries) {
      if (this.#bytes <= this.#bytesMax) return;
      this.#entries.delete(oldest);
      this.#bytes -= ENTRY_BYTES + manifest.byteLength;
    }
  }
}
