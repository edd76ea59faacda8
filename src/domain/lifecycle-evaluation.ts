/**
 * What a lifecycle policy does to the images of one repository, and why (ecr-api.md §12.4, §9.3). Pure, and independent
 * of the order of its input. Preview and effect are this one function.
 *
 * - Every rule looks at the unchanged set of images, also at those that belong to other rules.
 * - The first rule by priority that selects an image owns it; only the owner may act on it.
 * - A member of an index is left alone until no index of the repository needs it, in a later run.
 * - A referrer whose subject is in the repository is not selected or counted; it shares its subject's fate.
 */
import { explainImage, type ImageFate, type LifecycleExplanation } from './lifecycle-explanation.ts';
import {
  arrangeImages,
  followsSubject,
  type ImageSet,
  indexesInTheWay,
  type LifecycleImage,
  STEP_IMAGES,
  storageClassOfImage,
} from './lifecycle-images.ts';
import { type CompiledRule, compileRule, isOlder } from './lifecycle-selection.ts';
import type { LifecyclePolicy, LifecycleRule } from './lifecycle.ts';

export interface LifecycleAction {
  readonly digest: string;
  readonly tags: readonly string[];
  readonly pushedAt: number;
  /** where the image is now */
  readonly storageClass: 'STANDARD' | 'ARCHIVE';
  /** the rule that acts; for a referrer, the rule that acts on its subject */
  readonly rulePriority: number;
  readonly action: 'EXPIRE' | 'TRANSITION';
  /** present exactly with `TRANSITION` */
  readonly targetStorageClass?: 'ARCHIVE';
  /** the subject, when the image is acted on only because it is a referrer */
  readonly follows?: string;
}

/** An image a rule would act on, were it not a member of an index. */
export interface BlockedLifecycleAction extends LifecycleAction {
  readonly failureCode: 'ImageReferencedByManifestList';
  /** the indexes that need it */
  readonly indexes: readonly string[];
}

export interface LifecycleEvaluation {
  /** Oldest first, each image at most once; a referrer before its subject, so that a run cut short leaves no orphan. */
  readonly actions: readonly LifecycleAction[];
  /** oldest first */
  readonly blocked: readonly BlockedLifecycleAction[];
  /** Once the actions are done, a further run has more to do: some blocked image waits only for indexes that are acted on now. */
  readonly unfinished: boolean;
  /** `undefined` for a digest that was not among the images. */
  readonly explain: (digest: string) => LifecycleExplanation | undefined;
}

/**
 * Evaluates `policy` over all images of one repository, archived ones included, at `now` (ms). A digest given twice must be
 * the same image, and counts once. Takes O(n log n + n × entries of tag lists); keeps the images and about 100 bytes beside each.
 */
export function evaluateLifecycle(
  policy: LifecyclePolicy,
  images: Iterable<LifecycleImage>,
  now: number,
): LifecycleEvaluation {
  const steps = evaluateLifecycleInSteps(policy, images, now);
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
  }
}

/** The same for a thread that has other work: yields about every millisecond, except while it sorts (give images youngest first). */
export function* evaluateLifecycleInSteps(
  policy: LifecyclePolicy,
  images: Iterable<LifecycleImage>,
  now: number,
): Generator<undefined, LifecycleEvaluation, undefined> {
  const rules = policy.rules.toSorted((a, b) => a.rulePriority - b.rulePriority).map(compileRule);
  const set = yield* arrangeImages(images);
  const marking = yield* mark(rules, set, now);
  const fates = yield* decide(rules, set, marking);
  return {
    actions: fates.actions,
    blocked: fates.blocked,
    unfinished: isUnfinished(fates),
    explain: (digest) => {
      const place = set.placeOf.get(digest);
      if (place === undefined) return undefined;
      return explainImage({ place, set, rules, marking, now, fate: fates.fateOf.get(place) });
    },
  };
}

/** What the rules say about each place before indexes and subjects have a word. */
export interface Marking {
  /** number of the owning rule; negative where there is none or the rules are not asked */
  readonly ownerOf: Int8Array;
  /** 1 where the owner would act */
  readonly marked: Uint8Array;
  /** images each rule selects */
  readonly counts: number[];
  /** for each counting rule the place of the last image it keeps; all selected ones behind it are marked */
  readonly keptThrough: number[];
}

const UNOWNED = -1;

/** Tag tests between two yields. */
const STEP_TESTS = 10_000;

/** Goes through the images once, youngest first, so that a counting rule keeps the first ones it meets. */
function* mark(
  rules: readonly CompiledRule[],
  set: ImageSet,
  now: number,
): Generator<undefined, Marking, undefined> {
  const size = set.images.length;
  const marking = {
    ownerOf: new Int8Array(size).fill(UNOWNED),
    marked: new Uint8Array(size),
    counts: rules.map(() => 0),
    keptThrough: rules.map(() => Number.POSITIVE_INFINITY),
  };
  const entries = rules.reduce((sum, rule) => sum + rule.entries.length, 1);
  let tests = 0;
  for (let place = 0; place < size; place++) {
    const image = set.images[place];
    if (image === undefined || followsSubject(set, place)) continue;
    markOne(rules, marking, place, image, now);
    tests += entries * Math.max(1, image.tags.length);
    if (tests < STEP_TESTS) continue;
    tests = 0;
    yield;
  }
  return marking;
}

function markOne(
  rules: readonly CompiledRule[],
  marking: Marking,
  place: number,
  image: LifecycleImage,
  now: number,
): void {
  const storageClass = storageClassOfImage(image);
  for (let number = 0; number < rules.length; number++) {
    const compiled = rules[number];
    if (compiled === undefined || compiled.storageClass !== storageClass) continue;
    if (!compiled.selectsTags(image.tags)) continue;
    const { selection } = compiled.rule;
    const counts = selection.countType === 'imageCountMoreThan';
    const count = (marking.counts[number] ?? 0) + 1;
    marking.counts[number] = count;
    if (counts && count === selection.countNumber) marking.keptThrough[number] = place;
    if (marking.ownerOf[place] !== UNOWNED) continue;
    marking.ownerOf[place] = number;
    const acts = counts ? count > selection.countNumber : isOlder(selection, image, now);
    marking.marked[place] = acts ? 1 : 0;
  }
}

interface Fates {
  readonly actions: LifecycleAction[];
  readonly blocked: BlockedLifecycleAction[];
  readonly fateOf: Map<number, ImageFate>;
}

/** Oldest first: the marked images, and what follows them, unless an index needs them. */
function* decide(
  rules: readonly CompiledRule[],
  set: ImageSet,
  { ownerOf, marked }: Marking,
): Generator<undefined, Fates, undefined> {
  const fates: Fates = { actions: [], blocked: [], fateOf: new Map() };
  for (let place = set.images.length - 1; place >= 0; place--) {
    if (place % STEP_IMAGES === 0) yield;
    if (marked[place] === 1) decideGroup(fates, rules[ownerOf[place] ?? UNOWNED]?.rule, set, place);
  }
  return fates;
}

/** Decides on a marked image and on its referrers. */
function decideGroup(fates: Fates, rule: LifecycleRule | undefined, set: ImageSet, place: number): void {
  if (rule === undefined) return;
  const action = rule.action.type === 'expire' ? 'EXPIRE' : 'TRANSITION';
  const followers = stays(set, place, action) ? [] : followersOf(set, place, action);
  for (const follower of followers.toReversed()) record(fates, set, follower, rule.rulePriority, action);
  record(fates, set, place, rule.rulePriority, action);
}

/** Adds what becomes of one image. One that is archived already has nothing to do in a transition. */
function record(
  fates: Fates,
  set: ImageSet,
  place: number,
  rulePriority: number,
  action: LifecycleAction['action'],
): void {
  const image = set.images[place];
  if (image === undefined || (action === 'TRANSITION' && image.status !== 'ACTIVE')) return;
  const entry: LifecycleAction = {
    digest: image.digest,
    tags: image.tags,
    pushedAt: image.pushedAt,
    storageClass: image.status === 'ACTIVE' ? 'STANDARD' : 'ARCHIVE',
    rulePriority,
    action,
    ...(action === 'TRANSITION' && { targetStorageClass: 'ARCHIVE' }),
    ...(followsSubject(set, place) && { follows: image.subjectDigest ?? '' }),
  };
  const indexes = indexesInTheWay(set, place, action);
  fates.fateOf.set(place, { rulePriority, action, indexes });
  if (indexes.length === 0) fates.actions.push(entry);
  else fates.blocked.push({ ...entry, failureCode: 'ImageReferencedByManifestList', indexes });
}

function isUnfinished({ actions, blocked }: Fates): boolean {
  if (blocked.length === 0) return false;
  const done = new Set(actions.map(({ digest }) => digest));
  return blocked.some(({ indexes }) => indexes.every((index) => done.has(index)));
}

/** Whether an image is exempt from what happens to its subject: an index needs it, or it is being restored. */
function stays(set: ImageSet, place: number, action: LifecycleAction['action']): boolean {
  const restoring = action === 'TRANSITION' && set.images[place]?.status === 'ACTIVATING';
  return restoring || indexesInTheWay(set, place, action).length > 0;
}

/**
 * The referrers of an image, and theirs, nearest first; not beyond one that stays. Each has one subject, so this is a
 * tree, and a (forged) ring of subjects cannot be entered from an image that is no referrer.
 */
function followersOf(set: ImageSet, subject: number, action: LifecycleAction['action']): number[] {
  const found: number[] = [];
  if (!set.referrersOf.has(subject)) return found;
  const open = [subject];
  for (const at of open) {
    for (const referrer of set.referrersOf.get(at) ?? []) {
      found.push(referrer);
      if (!stays(set, referrer, action)) open.push(referrer);
    }
  }
  return found;
}
