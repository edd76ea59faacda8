/**
 * The images of a repository as a lifecycle run sees them: by age, and what refers to what (ecr-api.md §12.4, §9.3). Pure.
 */
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
  readonly mediaType: string;
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

/** Images in order of age, and what refers to what. Numbers are places in `images`. */
export interface ImageSet {
  /** youngest first; INVARIANT: a total order, so it does not depend on the input's */
  readonly images: readonly LifecycleImage[];
  readonly placeOf: ReadonlyMap<string, number>;
  /** indexes each member belongs to */
  readonly indexesOf: ReadonlyMap<number, readonly number[]>;
  /** referrers of each subject */
  readonly referrersOf: ReadonlyMap<number, readonly number[]>;
}

/** Images handled between two yields of a stepwise function: about a millisecond. */
export const STEP_IMAGES = 1000;

/** Sorts the images by age and finds their references to each other, in steps. O(n log n), O(n) when sorted already. */
export function* arrangeImages(input: Iterable<LifecycleImage>): Generator<undefined, ImageSet, undefined> {
  const images = distinct([...input].sort(compareAge));
  yield;
  const placeOf = new Map<string, number>();
  for (let place = 0; place < images.length; place++) {
    const digest = images[place]?.digest;
    if (digest !== undefined) placeOf.set(digest, place);
    if (place % STEP_IMAGES === 0) yield;
  }
  const set = {
    images,
    placeOf,
    indexesOf: new Map<number, number[]>(),
    referrersOf: new Map<number, number[]>(),
  };
  for (let place = 0; place < images.length; place++) {
    link(set, place);
    if (place % STEP_IMAGES === 0) yield;
  }
  return set;
}

/** Younger before older; equally old ones by digest, so that the order is total. */
function compareAge(a: LifecycleImage, b: LifecycleImage): number {
  return effectivePush(b) - effectivePush(a) || b.pushedAt - a.pushedAt || compareText(b.digest, a.digest);
}

/** Equal digests are of equal age, so they lie side by side. */
function distinct(sorted: readonly LifecycleImage[]): LifecycleImage[] {
  return sorted.filter(({ digest }, at) => at === 0 || sorted[at - 1]?.digest !== digest);
}

/** Notes what the image at `place` refers to. Places come in ascending order. */
function link(
  set: ImageSet & { indexesOf: Map<number, number[]>; referrersOf: Map<number, number[]> },
  place: number,
): void {
  const image = set.images[place];
  if (image === undefined) return;
  for (const child of image.children ?? []) {
    const member = child === image.digest ? undefined : set.placeOf.get(child);
    // One that the same index named before has that index last.
    if (member !== undefined && set.indexesOf.get(member)?.at(-1) !== place)
      addTo(set.indexesOf, member, place);
  }
  if (image.subjectDigest === undefined || image.subjectDigest === image.digest) return;
  const subject = set.placeOf.get(image.subjectDigest);
  if (subject !== undefined) addTo(set.referrersOf, subject, place);
}

function addTo(lists: Map<number, number[]>, key: number, value: number): void {
  const list = lists.get(key);
  if (list === undefined) lists.set(key, [value]);
  else list.push(value);
}

function compareText(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** Whether the image at `place` has a subject among the images. */
export function followsSubject(set: ImageSet, place: number): boolean {
  const image = set.images[place];
  const subject = image?.subjectDigest;
  return subject !== undefined && subject !== image?.digest && set.placeOf.has(subject);
}

/**
 * The indexes because of which an image cannot be acted on now. WHY: archiving waits for the indexes to be archived,
 * expiring for them to be gone, since an archived index can be restored; both as they are before this run.
 */
export function indexesInTheWay(set: ImageSet, place: number, action: 'EXPIRE' | 'TRANSITION'): string[] {
  const indexes = set.indexesOf.get(place) ?? [];
  return indexes.flatMap((index) => {
    const image = set.images[index];
    if (image === undefined || (action === 'TRANSITION' && image.status === 'ARCHIVED')) return [];
    return image.digest;
  });
}
