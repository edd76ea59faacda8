/**
 * The images of one repository in columns: about 60 bytes each beside the text of digest, subject, tags and members, where objects
 * take a kilobyte. A lifecycle run looks at all images of a repository at once, and there may be a hundred thousand. Pure.
 */
import type { LifecycleImage } from './lifecycle-images.ts';

/** Texts one after the other in one buffer. */
class Texts {
  #bytes = Buffer.allocUnsafeSlow(4096);
  /** where each text ends */
  #ends = new Float64Array(64);
  #count = 0;

  push(text: string): void {
    const start = this.#end(this.#count);
    const end = start + Buffer.byteLength(text);
    if (end > this.#bytes.length) {
      const bytes = Buffer.allocUnsafeSlow(Math.max(end, this.#bytes.length * 2));
      this.#bytes.copy(bytes, 0, 0, start);
      this.#bytes = bytes;
    }
    if (this.#count === this.#ends.length) this.#ends = grown(this.#ends, new Float64Array(this.#count * 2));
    this.#bytes.write(text, start);
    this.#ends[this.#count++] = end;
  }

  at(i: number): string {
    return this.#bytes.toString('utf8', this.#end(i), this.#end(i + 1));
  }

  /** The bytes of a text; a view, good until the next push. */
  bytesAt(i: number): Buffer {
    return this.#bytes.subarray(this.#end(i), this.#end(i + 1));
  }

  isEmpty(i: number): boolean {
    return this.#end(i) === this.#end(i + 1);
  }

  /** Where text number `i - 1` ends. */
  #end(i: number): number {
    return i === 0 ? 0 : (this.#ends[i - 1] ?? 0);
  }
}

function grown<A extends Float64Array | Uint8Array>(old: A, larger: A): A {
  larger.set(old);
  return larger;
}

/** Numbers that may be missing. */
class Times {
  #values = new Float64Array(64);

  set(i: number, value: number | undefined): void {
    if (i >= this.#values.length) this.#values = grown(this.#values, new Float64Array(i * 2));
    this.#values[i] = value ?? Number.NaN;
  }

  at(i: number): number | undefined {
    const value = this.#values[i];
    return value === undefined || Number.isNaN(value) ? undefined : value;
  }
}

const STATUSES = ['ACTIVE', 'ARCHIVED', 'ACTIVATING'] as const satisfies LifecycleImage['status'][];

/** Between the entries of a list; no tag and no digest has it. */
const SEPARATOR = '\n';

const NONE = -1;

/** Images by number, in the order they were added. */
export class ImageColumns {
  #size = 0;
  #statuses = new Uint8Array(64);
  readonly #digests = new Texts();
  readonly #subjects = new Texts();
  readonly #tags = new Texts();
  readonly #children = new Texts();
  readonly #pushedAt = new Times();
  readonly #pulledAt = new Times();
  readonly #archivedAt = new Times();
  readonly #activatedAt = new Times();
  /** open addressing over the bytes of digests; built by `index` */
  #slots = new Int32Array(0);

  get size(): number {
    return this.#size;
  }

  add(image: LifecycleImage): void {
    const i = this.#size++;
    if (i === this.#statuses.length) this.#statuses = grown(this.#statuses, new Uint8Array(i * 2));
    this.#statuses[i] = STATUSES.indexOf(image.status);
    this.#digests.push(image.digest);
    this.#subjects.push(image.subjectDigest ?? '');
    this.#tags.push(image.tags.join(SEPARATOR));
    this.#children.push((image.children ?? []).join(SEPARATOR));
    this.#pushedAt.set(i, image.pushedAt);
    this.#pulledAt.set(i, image.lastPulledAt);
    this.#archivedAt.set(i, image.lastArchivedAt);
    this.#activatedAt.set(i, image.lastActivatedAt);
  }

  /** The image as it was added. */
  at(i: number): LifecycleImage {
    return {
      digest: this.digestAt(i),
      tags: listOf(this.#tags, i),
      pushedAt: this.#pushedAt.at(i) ?? 0,
      lastPulledAt: this.#pulledAt.at(i),
      lastArchivedAt: this.#archivedAt.at(i),
      lastActivatedAt: this.#activatedAt.at(i),
      status: this.statusAt(i),
      subjectDigest: this.subjectAt(i),
      children: this.#children.isEmpty(i) ? undefined : this.childrenAt(i),
    };
  }

  digestAt(i: number): string {
    return this.#digests.at(i);
  }

  statusAt(i: number): LifecycleImage['status'] {
    return STATUSES[this.#statuses[i] ?? 0] ?? 'ACTIVE';
  }

  subjectAt(i: number): string | undefined {
    return this.#subjects.isEmpty(i) ? undefined : this.#subjects.at(i);
  }

  childrenAt(i: number): string[] {
    return listOf(this.#children, i);
  }

  /** Younger before older, a restore being a push; equally old ones by digest, so that the order is total. */
  compareAge(a: number, b: number): number {
    const pushedA = this.#pushedAt.at(a) ?? 0;
    const pushedB = this.#pushedAt.at(b) ?? 0;
    return (
      (this.#activatedAt.at(b) ?? pushedB) - (this.#activatedAt.at(a) ?? pushedA) ||
      pushedB - pushedA ||
      this.#digests.bytesAt(b).compare(this.#digests.bytesAt(a))
    );
  }

  /**
   * Makes `find` know the images added so far, in steps of `stepImages`, and returns the numbers of those whose digest came for
   * the first time.
   */
  *index(stepImages: number): Generator<undefined, number[], undefined> {
    const first: number[] = [];
    this.#slots = new Int32Array(2 ** Math.ceil(Math.log2(this.#size * 2 + 2))).fill(NONE);
    for (let i = 0; i < this.#size; i++) {
      if (i % stepImages === 0) yield;
      const slot = this.#slotOf(this.#digests.bytesAt(i));
      if (this.#slots[slot] !== NONE) continue;
      this.#slots[slot] = i;
      first.push(i);
    }
    return first;
  }

  /** The number of a digest among those indexed. */
  find(digest: string): number | undefined {
    if (this.#slots.length === 0) return undefined;
    const found = this.#slots[this.#slotOf(Buffer.from(digest))];
    return found === NONE ? undefined : found;
  }

  /** The slot of a digest, or the free one where it would be. */
  #slotOf(digest: Buffer): number {
    const mask = this.#slots.length - 1;
    for (let slot = hashOf(digest) & mask; ; slot = (slot + 1) & mask) {
      const i = this.#slots[slot];
      if (i === undefined || i === NONE || this.#digests.bytesAt(i).equals(digest)) return slot;
    }
  }
}

function listOf(texts: Texts, i: number): string[] {
  return texts.isEmpty(i) ? [] : texts.at(i).split(SEPARATOR);
}

/** FNV-1a. */
function hashOf(bytes: Buffer): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ (bytes[i] ?? 0), 0x01000193);
  return hash ^ (hash >>> 15);
}

/** Places in the order they are noted. */
export class Places {
  #values = new Float64Array(64);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(place: number): void {
    if (this.#length === this.#values.length)
      this.#values = grown(this.#values, new Float64Array(this.#length * 2));
    this.#values[this.#length++] = place;
  }

  *[Symbol.iterator](): Generator<number, void, undefined> {
    for (let i = 0; i < this.#length; i++) yield this.#values[i] ?? NONE;
  }
}
