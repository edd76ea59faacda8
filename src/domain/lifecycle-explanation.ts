/**
 * Why a lifecycle run does to one image what it does, rule by rule (ecr-api.md §12.4). Pure; times in sentences are UTC.
 */
import type { Marking } from './lifecycle-evaluation.ts';
import {
  followsSubject,
  type ImageSet,
  type LifecycleImage,
  storageClassOfImage,
} from './lifecycle-images.ts';
import { type CompiledRule, DAY_MS, startOfAge } from './lifecycle-selection.ts';

export interface LifecycleExplanation {
  readonly digest: string;
  readonly verdict: 'EXPIRE' | 'TRANSITION' | 'KEEP';
  /** priority of the rule that owns the image: the first that selects it. Absent when none does or none is asked. */
  readonly owner?: number;
  /** one sentence */
  readonly reason: string;
  /** present exactly when the verdict is KEEP */
  readonly keptBy?: LifecycleKeeper;
  /** every rule by priority; empty when the rules are not asked (referrers, images being restored) */
  readonly rules: readonly RuleExplanation[];
}

export type LifecycleKeeper =
  | { readonly kind: 'RULE'; readonly rulePriority: number }
  | { readonly kind: 'NO_RULE' }
  | { readonly kind: 'INDEX'; readonly digests: readonly string[] }
  | { readonly kind: 'SUBJECT'; readonly digest: string }
  | { readonly kind: 'RESTORE' };

export interface RuleExplanation {
  readonly rulePriority: number;
  /** storage class and tags fit */
  readonly selects: boolean;
  /** count or age is exceeded; false when the rule does not select the image */
  readonly marks: boolean;
  readonly owns: boolean;
  readonly why: string;
  /** ms after which a rule that counts days marks the image, be it past or future */
  readonly dueAfter?: number;
}

/** What the run decided for an image that its owner, or its subject's, would act on. */
export interface ImageFate {
  readonly rulePriority: number;
  readonly action: 'EXPIRE' | 'TRANSITION';
  /** indexes in the way; none when the action is taken */
  readonly indexes: readonly string[];
  /** they are acted on by this run, so that the run right after it decides again */
  readonly makesWay: boolean;
}

/** entries of a tag list spelled out in one sentence */
const ENTRIES_SHOWN_MAX = 5;

interface Question {
  readonly place: number;
  readonly set: ImageSet;
  readonly rules: readonly CompiledRule[];
  readonly marking: Marking;
  readonly now: number;
  readonly fate: ImageFate | undefined;
}

export function explainImage(question: Question): LifecycleExplanation {
  const { place, set, rules, marking, fate } = question;
  const image = set.at(place);
  const { digest } = image;
  if (followsSubject(set, place)) return explainReferrer(digest, image.subjectDigest ?? '', fate);
  if (image.status === 'ACTIVATING') {
    const reason = 'It is being restored, so no rule looks at it.';
    return { digest, verdict: 'KEEP', reason, keptBy: { kind: 'RESTORE' }, rules: [] };
  }
  const owner = rules[marking.ownerOf[place] ?? -1]?.rule.rulePriority;
  const explained = rules.map((rule, number) => explainRule(question, image, rule, number, owner));
  if (owner === undefined) {
    const reason = 'No rule selects it.';
    return { digest, verdict: 'KEEP', reason, keptBy: { kind: 'NO_RULE' }, rules: explained };
  }
  if (fate === undefined) {
    const keptBy = { kind: 'RULE', rulePriority: owner } as const;
    const reason = `Rule ${owner} owns it and keeps it; rules after it cannot act.`;
    return { digest, verdict: 'KEEP', owner, reason, keptBy, rules: explained };
  }
  return { digest, owner, ...outcome(fate, `Rule ${owner} owns it and`), rules: explained };
}

function explainReferrer(digest: string, subject: string, fate: ImageFate | undefined): LifecycleExplanation {
  if (fate !== undefined) {
    return { digest, ...outcome(fate, `It refers to ${subject}; rule ${fate.rulePriority}`), rules: [] };
  }
  const reason = `It refers to ${subject} and shares its fate; nothing happens to that one now.`;
  return { digest, verdict: 'KEEP', reason, keptBy: { kind: 'SUBJECT', digest: subject }, rules: [] };
}

function outcome(
  { action, indexes, makesWay }: ImageFate,
  who: string,
): Pick<LifecycleExplanation, 'verdict' | 'reason' | 'keptBy'> {
  const verb = action === 'EXPIRE' ? 'expire' : 'archive';
  if (indexes.length === 0) return { verdict: action, reason: `${who} ${verb}s it.` };
  const until = action === 'EXPIRE' ? 'gone' : 'archived or gone';
  const next = makesWay ? ', which it is after this run; the next comes at once' : '';
  const needed = indexes.length === 1 ? indexes[0] : `${indexes[0]} and ${indexes.length - 1} more`;
  const reason = `${who} would ${verb} it, but it is a member of ${needed}; it stays until that is ${until}${next}.`;
  return { verdict: 'KEEP', reason, keptBy: { kind: 'INDEX', digests: indexes } };
}

function explainRule(
  { place, marking, now }: Question,
  image: LifecycleImage,
  compiled: CompiledRule,
  number: number,
  owner: number | undefined,
): RuleExplanation {
  const { rulePriority, selection, action } = compiled.rule;
  const refusal = whyNotSelected(compiled, image);
  if (refusal !== undefined) {
    return { rulePriority, selects: false, marks: false, owns: false, why: refusal };
  }
  const owns = rulePriority === owner;
  const extent = explainExtent(compiled, image, now, {
    selected: marking.counts[number] ?? 0,
    kept: place <= (marking.keptThrough[number] ?? Infinity),
  });
  const shadow =
    owns || !extent.marks ? '' : ` Rule ${owner} owns it, so this rule does not ${action.type} it.`;
  return {
    rulePriority,
    selects: true,
    marks: extent.marks,
    owns,
    why: `${whySelected(compiled, image)} ${extent.why}${shadow}`,
    ...(selection.countUnit !== undefined && extent.dueAfter !== undefined && { dueAfter: extent.dueAfter }),
  };
}

function whyNotSelected({ rule, storageClass, entries, selectsTags }: CompiledRule, image: LifecycleImage) {
  const actual = storageClassOfImage(image);
  if (actual !== storageClass)
    return `It selects images in storage class ${storageClass}; this is in ${actual}.`;
  if (selectsTags(image.tags)) return undefined;
  if (rule.selection.tagStatus === 'untagged') return 'It selects untagged images; this one has tags.';
  if (image.tags.length === 0) return 'It selects tagged images; this one has no tags.';
  const missing = entries.find(({ matches }) => !image.tags.some(matches));
  return `No tag ${missing?.kind === 'prefix' ? 'starts with' : 'matches'} '${missing?.text ?? ''}'.`;
}

function whySelected({ rule, entries }: CompiledRule, image: LifecycleImage): string {
  if (rule.selection.tagStatus === 'any') return 'It selects all images.';
  if (rule.selection.tagStatus === 'untagged') return 'It selects untagged images.';
  const found = entries.slice(0, ENTRIES_SHOWN_MAX).map(({ kind, text, matches }) => {
    const tag = image.tags.find(matches) ?? '';
    return `'${tag}' ${kind === 'prefix' ? 'starts with' : 'matches'} '${text}'`;
  });
  const more = entries.length - found.length;
  return `Tag ${found.join(', ')}${more > 0 ? ` and ${more} more` : ''}.`;
}

/** The half of a rule that counts images or days. */
function explainExtent(
  { rule: { selection } }: CompiledRule,
  image: LifecycleImage,
  now: number,
  count: { readonly selected: number; readonly kept: boolean },
): { readonly marks: boolean; readonly why: string; readonly dueAfter?: number } {
  const limit = selection.countNumber;
  if (selection.countType === 'imageCountMoreThan') {
    const images = count.selected === 1 ? '1 image' : `${count.selected} images`;
    const among = count.kept ? 'is among' : 'is not among';
    return {
      marks: !count.kept,
      why: `It selects ${images} and keeps the youngest ${limit}; this ${among} them.`,
    };
  }
  const start = startOfAge(selection, image);
  if (start === undefined) return { marks: false, why: 'When it was archived is not recorded.' };
  const age = now - start.at;
  const marks = age > limit * DAY_MS;
  const days = Math.floor(age / DAY_MS);
  const when = `It was ${start.event} ${utc(start.at)}, ${days} ${days === 1 ? 'day' : 'days'} ago`;
  const why = `${when}, ${marks ? 'more than' : 'not more than'} the limit of ${limit}.`;
  return { marks, why, dueAfter: start.at + limit * DAY_MS };
}

function utc(ms: number): string {
  return new Date(ms).toISOString();
}
