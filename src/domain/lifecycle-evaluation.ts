/**
 * What a lifecycle policy does to the images of one repository, and why (ecr-api.md §12.4, §9.3). Pure, and independent
 * of the order of its input. Preview and effect are this one function.
 *
 * - Every rule looks at the unchanged set of images, also at those that belong to other rules.
 * - The first rule by priority that selects an image owns it; only the owner may act on it.
 * - A member of an index is left alone until no index of the repository needs it, in a later run.
 * - A referrer whose subject is in the repository is not selected or counted; it shares its subject's fate.
 */
import { ImageColumns, Places } from './lifecycle-columns.ts';
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

/** Entries that are made when they are asked for. */
export interface Sequence<T> extends Iterable<T> {
  readonly length: number;
}

export interface LifecycleEvaluation {
  /** Oldest first, each image at most once; a referrer before its subject, so that a run cut short leaves no orphan. */
  readonly actions: Sequence<LifecycleAction>;
  /** oldest first */
  readonly blocked: Sequence<BlockedLifecycleAction>;
  /** Once the actions are done, a further run has more to do: some blocked image waits only for indexes that are acted on now. */
  readonly unfinished: boolean;
  /** `undefined` for a digest that was not among the images. */
  readonly explain: (digest: string) => LifecycleExplanation | undefined;
  /** images that were evaluated, each digest once */
  readonly size: number;
  /** The place of a digest in the order of age, youngest first. */
  readonly placeOf: (digest: string) => number | undefined;
  /** The image at a place below `size`, as it was evaluated. */
  readonly imageAt: (place: number) => LifecycleImage;
}

/**
 * Evaluates `policy` over all images of one repository, archived ones included, at `now` (ms). A digest given twice must be
 * the same image, and counts once. Takes O(n log n + n × entries of tag lists), and about 150 bytes for an image beside its tags.
 */
export function evaluateLifecycle(
  policy: LifecyclePolicy,
  images: Iterable<LifecycleImage>,
  now: number,
): LifecycleEvaluation {
  const columns = new ImageColumns();
  for (const image of images) columns.add(image);
  const steps = evaluateLifecycleInSteps(policy, columns, now);
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
  }
}

/** The same for a thread that has other work: yields about every millisecond, except while it sorts (add images youngest first). */
export function* evaluateLifecycleInSteps(
  policy: LifecyclePolicy,
  images: ImageColumns,
  now: number,
): Generator<undefined, LifecycleEvaluation, undefined> {
  const rules = policy.rules.toSorted((a, b) => a.rulePriority - b.rulePriority).map(compileRule);
  const set = yield* arrangeImages(images);
  const marking = yield* mark(rules, set, now);
  const fates = yield* decide(rules, set, marking);
  const done = placesDone(set, fates);
  const fateAt = (place: number): ImageFate | undefined => {
    const rule = rules[fates.ruleOf[place] ?? UNOWNED]?.rule;
    if (rule === undefined) return undefined;
    const action = actionOf(rule);
    const indexes = indexesInTheWay(set, place, action);
    const makesWay = indexes.length > 0 && indexes.every((index) => done[index] === 1);
    return { rulePriority: rule.rulePriority, action, indexes: indexes.map(set.digestAt), makesWay };
  };
  return {
    actions: sequence(fates.acting, (place) => describe(set, place, fateAt(place))),
    blocked: sequence(fates.blocked, (place) => {
      const fate = fateAt(place);
      const { indexes = [] } = fate ?? {};
      return {
        ...describe(set, place, fate),
        failureCode: 'ImageReferencedByManifestList' as const,
        indexes,
      };
    }),
    unfinished: isUnfinished(rules, set, fates, done),
    explain: (digest) => {
      const place = set.placeOf(digest);
      if (place === undefined) return undefined;
      return explainImage({ place, set, rules, marking, now, fate: fateAt(place) });
    },
    size: set.size,
    placeOf: set.placeOf,
    imageAt: set.at,
  };
}

function sequence<T>(places: Places, entryAt: (place: number) => T): Sequence<T> {
  return {
    length: places.length,
    *[Symbol.iterator]() {
      for (const place of places) yield entryAt(place);
    },
  };
}

function actionOf({ action }: LifecycleRule): LifecycleAction['action'] {
  return action.type === 'expire' ? 'EXPIRE' : 'TRANSITION';
}

function describe(set: ImageSet, place: number, fate: ImageFate | undefined): LifecycleAction {
  const { digest, tags, pushedAt, status, subjectDigest } = set.at(place);
  const { rulePriority = 0, action = 'EXPIRE' } = fate ?? {};
  return {
    digest,
    tags,
    pushedAt,
    storageClass: status === 'ACTIVE' ? 'STANDARD' : 'ARCHIVE',
    rulePriority,
    action,
    ...(action === 'TRANSITION' && { targetStorageClass: 'ARCHIVE' }),
    ...(followsSubject(set, place) && { follows: subjectDigest ?? '' }),
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
  const { size } = set;
  const marking = {
    ownerOf: new Int8Array(size).fill(UNOWNED),
    marked: new Uint8Array(size),
    counts: rules.map(() => 0),
    keptThrough: rules.map(() => Number.POSITIVE_INFINITY),
  };
  const entries = rules.reduce((sum, rule) => sum + rule.entries.length, 1);
  let tests = 0;
  for (let place = 0; place < size; place++) {
    if (followsSubject(set, place)) continue;
    const image = set.at(place);
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
  readonly acting: Places;
  readonly blocked: Places;
  /** number of the rule that acts, or would; negative where none does */
  readonly ruleOf: Int8Array;
}

/** Oldest first: the marked images, and what follows them, unless an index needs them. */
function* decide(
  rules: readonly CompiledRule[],
  set: ImageSet,
  { ownerOf, marked }: Marking,
): Generator<undefined, Fates, undefined> {
  const fates: Fates = {
    acting: new Places(),
    blocked: new Places(),
    ruleOf: new Int8Array(set.size).fill(UNOWNED),
  };
  for (let place = set.size - 1; place >= 0; place--) {
    if (place % STEP_IMAGES === 0) yield;
    const owner = ownerOf[place] ?? UNOWNED;
    const rule = marked[place] === 1 ? rules[owner]?.rule : undefined;
    if (rule !== undefined) decideGroup(fates, owner, actionOf(rule), set, place);
  }
  return fates;
}

/** Decides on a marked image and on its referrers. */
function decideGroup(
  fates: Fates,
  rule: number,
  action: LifecycleAction['action'],
  set: ImageSet,
  place: number,
): void {
  const followers = stays(set, place, action) ? [] : followersOf(set, place, action);
  for (const one of [...followers.toReversed(), place]) {
    // One that is archived already has nothing to do in a transition.
    if (action === 'TRANSITION' && set.statusAt(one) !== 'ACTIVE') continue;
    fates.ruleOf[one] = rule;
    if (indexesInTheWay(set, one, action).length === 0) fates.acting.push(one);
    else fates.blocked.push(one);
  }
}

/** 1 where an image is acted on; empty when none waits for that. */
function placesDone(set: ImageSet, { acting, blocked }: Fates): Uint8Array {
  const done = new Uint8Array(blocked.length === 0 ? 0 : set.size);
  if (blocked.length > 0) for (const place of acting) done[place] = 1;
  return done;
}

function isUnfinished(
  rules: readonly CompiledRule[],
  set: ImageSet,
  { blocked, ruleOf }: Fates,
  done: Uint8Array,
): boolean {
  for (const place of blocked) {
    const rule = rules[ruleOf[place] ?? UNOWNED]?.rule;
    if (rule !== undefined && indexesInTheWay(set, place, actionOf(rule)).every((index) => done[index] === 1))
      return true;
  }
  return false;
}

/** Whether an image is exempt from what happens to its subject: an index needs it, or it is being restored. */
function stays(set: ImageSet, place: number, action: LifecycleAction['action']): boolean {
  const restoring = action === 'TRANSITION' && set.statusAt(place) === 'ACTIVATING';
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
