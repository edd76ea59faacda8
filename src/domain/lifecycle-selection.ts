/**
 * Which images one lifecycle rule selects, and by which of their times it counts (ecr-api.md §12.4). Pure.
 */
import { effectivePush, type LifecycleImage } from './lifecycle-images.ts';
import { type LifecycleRule, type LifecycleStorageClass, storageClassOf } from './lifecycle.ts';
import { matchesWildcard } from './tags.ts';

export const DAY_MS = 86_400_000;

/** One entry of a tag list: its own words for the explanation, and its test of one tag. */
export interface TagEntry {
  readonly text: string;
  readonly kind: 'prefix' | 'pattern';
  readonly matches: (tag: string) => boolean;
}

/** A rule made ready to be asked about many images. */
export interface CompiledRule {
  readonly rule: LifecycleRule;
  readonly storageClass: LifecycleStorageClass;
  readonly entries: readonly TagEntry[];
  /** INVARIANT: every entry must be satisfied, each by any one tag. */
  readonly selectsTags: (tags: readonly string[]) => boolean;
}

export function compileRule(rule: LifecycleRule): CompiledRule {
  const { tagStatus, tagPatternList, tagPrefixList } = rule.selection;
  const prefixes = tagPrefixList ?? [];
  const entries = [
    ...prefixes.map((text): TagEntry => ({ text, kind: 'prefix', matches: (tag) => tag.startsWith(text) })),
    ...(tagPatternList ?? []).map((text): TagEntry => ({ text, kind: 'pattern', matches: tagTest(text) })),
  ];
  return { rule, storageClass: storageClassOf(rule), entries, selectsTags: tagsTest(tagStatus, entries) };
}

function tagsTest(
  tagStatus: LifecycleRule['selection']['tagStatus'],
  entries: readonly TagEntry[],
): CompiledRule['selectsTags'] {
  switch (tagStatus) {
    case 'any':
      return () => true;
    case 'untagged':
      return (tags) => tags.length === 0;
    case 'tagged':
      return (tags) => tags.length > 0 && entries.every(({ matches }) => tags.some(matches));
  }
}

/**
 * WHY: not `matchesWildcard` at once. Most patterns are a word or `word*`, and most tags lack the longest piece of the
 * others; a policy of 50 rules asks millions of times.
 */
function tagTest(pattern: string): TagEntry['matches'] {
  const pieces = pattern.split('*');
  const [head = ''] = pieces;
  if (pieces.length === 1) return (tag) => tag === pattern;
  if (pieces.length === 2 && pieces[1] === '') return (tag) => tag.startsWith(head);
  const longest = pieces.reduce((one, other) => (other.length > one.length ? other : one));
  return (tag) => tag.startsWith(head) && tag.includes(longest) && matchesWildcard(pattern, tag);
}

/** The time from which a rule counts days, and what happened then; `undefined` if it never happened. */
export function startOfAge(
  { countType }: LifecycleRule['selection'],
  image: LifecycleImage,
): { readonly at: number; readonly event: 'pushed' | 'pulled' | 'restored' | 'archived' } | undefined {
  const push = {
    at: effectivePush(image),
    event: image.lastActivatedAt === undefined ? 'pushed' : 'restored',
  } as const;
  switch (countType) {
    case 'imageCountMoreThan':
    case 'sinceImagePushed':
      return push;
    case 'sinceImagePulled': {
      const pulled = image.lastPulledAt;
      if (pulled === undefined) return push;
      if (push.event === 'restored' && push.at > pulled) return push;
      return { at: pulled, event: 'pulled' };
    }
    case 'sinceImageTransitioned':
      return image.lastArchivedAt === undefined ? undefined : { at: image.lastArchivedAt, event: 'archived' };
  }
}

/** Whether a rule that counts days has waited long enough: strictly longer than `countNumber` days. */
export function isOlder(selection: LifecycleRule['selection'], image: LifecycleImage, now: number): boolean {
  const start = startOfAge(selection, image);
  return start !== undefined && now - start.at > selection.countNumber * DAY_MS;
}
