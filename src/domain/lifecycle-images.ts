/**
 * The images of a repository as a lifecycle run sees them: by age, and what refers to what (ecr-api.md §12.4, §9.3). Pure.
 */
import type { ImageColumns } from './lifecycle-columns.ts';
import type { LifecycleStorageClass } from './lifecycle.ts';

/** Times are milliseconds since the epoch. */
export interface LifecycleImage {
  readonly digest: string;
  /** each once */
  readonly tags: readonly string[];
  readonly pushedAt: number;
  readonly lastPulledAt?: number | undefined;
  readonly lastArchivedAt?: number | undefined;
  readonly lastActivatedAt?: number | undefined;
  readonly status: 'ACTIVE' | 'ARCHIVED' | 'ACTIVATING';
  readonly subjectDigest?: string | undefined;
  /** members of an index or manifest list */
  readonly children?: readonly string[] | undefined;
}

/** The storage class an image is in; `undefined` while it is being restored, when no rule selects it. */
export function storageClassOfImage(image: LifecycleImage): LifecycleStorageClass | undefined {
  switch (image.status) {
    case 'ACTIVE':
      return 'standard';
    case 'ARCHIVED':
      return 'archive';
    case 'ACTIVATING':
      return undefined;
  }
}

/** The time an image counts as pushed: a restore is a new push (ecr-api.md §11). */
export function effectivePush(image: LifecycleImage): number {
  return image.lastActivatedAt ?? image.pushedAt;
}

/** Images in order of age, and what refers to what. A place is the number of an image in that order, youngest first. */
export interface ImageSet {
  readonly size: number;
  /** INVARIANT: a total order, so it does not depend on the input's */
  readonly at: (place: number) => LifecycleImage;
  readonly digestAt: (place: number) => string;
  readonly statusAt: (place: number) => LifecycleImage['status'];
  readonly placeOf: (digest: string) => number | undefined;
  /** indexes each member belongs to */
  readonly indexesOf: ReadonlyMap<number, readonly number[]>;
  /** referrers of each subject */
  readonly referrersOf: ReadonlyMap<number, readonly number[]>;
  /** 1 where an image has a subject among the images */
  readonly follows: Uint8Array;
}

/** Images handled between two yields of a stepwise function: about a millisecond. */
export const STEP_IMAGES = 1000;

/**
 * Sorts the images by age and finds their references to each other, in steps. O(n log n), O(n) when added youngest first. A
 * digest that was added twice counts once.
 */
export function* arrangeImages(columns: ImageColumns): Generator<undefined, ImageSet, undefined> {
  const first = yield* columns.index(STEP_IMAGES);
  yield;
  // WHY a plain array: its sort is quick on what is nearly sorted.
  const order = Uint32Array.from(first.sort((a, b) => columns.compareAge(a, b)));
  yield;
  const placeOf = new Uint32Array(columns.size);
  order.forEach((number, place) => (placeOf[number] = place));
  const at = (place: number): number => order[place] ?? 0;
  const set = {
    size: order.length,
    at: (place: number) => columns.at(at(place)),
    digestAt: (place: number) => columns.digestAt(at(place)),
    statusAt: (place: number) => columns.statusAt(at(place)),
    placeOf: (digest: string) => {
      const found = columns.find(digest);
      return found === undefined ? undefined : placeOf[found];
    },
    indexesOf: new Map<number, number[]>(),
    referrersOf: new Map<number, number[]>(),
    follows: new Uint8Array(order.length),
  };
  for (let place = 0; place < set.size; place++) {
    link(set, place, columns.childrenAt(at(place)), columns.subjectAt(at(place)));
    if (place % STEP_IMAGES === 0) yield;
  }
  return set;
}

/** Notes what the image at `place` refers to. Places come in ascending order. */
function link(
  set: ImageSet & { indexesOf: Map<number, number[]>; referrersOf: Map<number, number[]> },
  place: number,
  children: readonly string[],
  subjectDigest: string | undefined,
): void {
  for (const child of children) {
    const member = set.placeOf(child);
    // One that the same index named before has that index last.
    if (member !== undefined && member !== place && set.indexesOf.get(member)?.at(-1) !== place)
      addTo(set.indexesOf, member, place);
  }
  const subject = subjectDigest === undefined ? undefined : set.placeOf(subjectDigest);
  if (subject === undefined || subject === place) return;
  set.follows[place] = 1;
  addTo(set.referrersOf, subject, place);
}

function addTo(lists: Map<number, number[]>, key: number, value: number): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [value]);
  else list.push(value);
}

/** Whether the image at `place` has a subject among the images. */
export function followsSubject(set: ImageSet, place: number): boolean {
  return set.follows[place] === 1;
}

/**
 * The places of the indexes because of which an image cannot be acted on now. WHY: archiving waits for the indexes to be
 * archived, expiring for them to be gone, since an archived index can be restored; both as they are before this run.
 */
export function indexesInTheWay(set: ImageSet, place: number, action: 'EXPIRE' | 'TRANSITION'): number[] {
  const indexes = set.indexesOf.get(place) ?? [];
  return indexes.filter((index) => action === 'EXPIRE' || set.statusAt(index) !== 'ARCHIVED');
}
