/**
 * Tag mutability as a pure decision (ecr-api.md §10): may a push move a tag that names another image? New tags, deletions
 * and untagged pushes never come here: they are always allowed.
 */

export interface TagRules {
  readonly mutability: 'MUTABLE' | 'IMMUTABLE' | 'IMMUTABLE_WITH_EXCLUSION' | 'MUTABLE_WITH_EXCLUSION';
  readonly exclusionFilters: readonly { readonly filterType: 'WILDCARD'; readonly filter: string }[];
}

export interface TagDecision {
  readonly movable: boolean;
  /** the exclusion filter that made the difference; `undefined` when the mode alone decided */
  readonly filter: string | undefined;
}

/** Decides whether `tag` may move to another image. */
export function decideTagMove(rules: TagRules, tag: string): TagDecision {
  const excluded = (): string | undefined =>
    rules.exclusionFilters.find(({ filter }) => matchesWildcard(filter, tag))?.filter;
  switch (rules.mutability) {
    case 'MUTABLE':
      return { movable: true, filter: undefined };
    case 'IMMUTABLE':
      return { movable: false, filter: undefined };
    case 'IMMUTABLE_WITH_EXCLUSION': {
      const filter = excluded();
      return { movable: filter !== undefined, filter };
    }
    case 'MUTABLE_WITH_EXCLUSION': {
      const filter = excluded();
      return { movable: filter === undefined, filter };
    }
  }
}

/**
 * Whether the whole of `text` matches `filter`, in which `*` stands for any number of characters and everything else,
 * `.` included, for itself. Case-sensitive. Each piece between two stars is taken at its leftmost place, which is always
 * right when only `*` is special, so there is no backtracking over stars.
 */
export function matchesWildcard(filter: string, text: string): boolean {
  const pieces = filter.split('*');
  const first = pieces.shift() ?? '';
  const last = pieces.pop();
  if (last === undefined) return text === filter;
  if (text.length < first.length + last.length) return false;
  if (!text.startsWith(first) || !text.endsWith(last)) return false;
  const end = text.length - last.length;
  let at = first.length;
  for (const piece of pieces) {
    const found = text.indexOf(piece, at);
    if (found === -1 || found + piece.length > end) return false;
    at = found + piece.length;
  }
  return true;
}
