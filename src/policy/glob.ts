/**
 * Globs with `*` and `?`. A glob is a list of segments between stars; matching looks for each segment once, leftmost
 * first, and never goes back, so hostile patterns cannot make it exponential. `?` is one UTF-16 code unit.
 */

/** Any run of characters, also an empty one. */
export const STAR: unique symbol = Symbol('*');
/** Exactly one character. */
export const ANY: unique symbol = Symbol('?');
/** A string token stands for itself, whatever it contains. */
export type GlobToken = string | typeof STAR | typeof ANY;

interface Segment {
  readonly text: string;
  /** 1 where any character will do; undefined when every character counts. */
  readonly any: Uint8Array | undefined;
}

export interface Glob {
  /** Set when there is no wildcard: compare for equality. */
  readonly exact: string | undefined;
  /** A lone `*`. */
  readonly everything: boolean;
  readonly segments: readonly Segment[];
  readonly lengthMin: number;
}

function segment(tokens: readonly (string | typeof ANY)[]): Segment {
  const text = tokens.map((t) => (t === ANY ? '\0' : t)).join('');
  if (!tokens.includes(ANY)) return { text, any: undefined };
  const any = new Uint8Array(text.length);
  let at = 0;
  for (const token of tokens) {
    if (token === ANY) any[at++] = 1;
    else at += token.length;
  }
  return { text, any };
}

export function buildGlob(tokens: readonly GlobToken[]): Glob {
  const groups: (string | typeof ANY)[][] = [[]];
  for (const token of tokens) {
    if (token === STAR) groups.push([]);
    else if (token !== '') groups.at(-1)?.push(token);
  }
  const all = groups.map(segment);
  // Neighbouring stars leave empty segments between them, which say nothing.
  const segments = all.filter((s, i) => i === 0 || i === all.length - 1 || s.text !== '');
  const [first] = segments;
  return {
    exact: segments.length === 1 && first?.any === undefined ? first?.text : undefined,
    everything: segments.length > 1 && segments.every((s) => s.text === ''),
    segments,
    lengthMin: segments.reduce((sum, s) => sum + s.text.length, 0),
  };
}

/** `*` and `?` are wildcards, everything else is itself. */
export function globTokens(pattern: string): GlobToken[] {
  const tokens: GlobToken[] = [];
  let start = 0;
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i];
    if (char !== '*' && char !== '?') continue;
    if (i > start) tokens.push(pattern.slice(start, i));
    tokens.push(char === '*' ? STAR : ANY);
    start = i + 1;
  }
  if (start < pattern.length) tokens.push(pattern.slice(start));
  return tokens;
}

export const compileGlob = (pattern: string): Glob => buildGlob(globTokens(pattern));

/**
 * `text.startsWith(wanted, at)`. WHY: compared from the end, since the names in one account share their beginnings; this
 * decides most mismatches at the first character and is three times as fast in an evaluation.
 */
export function occursAt(wanted: string, text: string, at: number): boolean {
  if (at + wanted.length > text.length) return false;
  for (let i = wanted.length - 1; i >= 0; i--) {
    if (wanted.charCodeAt(i) !== text.charCodeAt(at + i)) return false;
  }
  return true;
}

function matchesAt({ text: wanted, any }: Segment, text: string, at: number): boolean {
  if (any === undefined) return occursAt(wanted, text, at);
  for (let i = 0; i < wanted.length; i++) {
    if (any[i] !== 1 && wanted.charCodeAt(i) !== text.charCodeAt(at + i)) return false;
  }
  return true;
}

/** The first place from `at` on where the segment fits before `end`, or -1. */
function find(wanted: Segment, text: string, at: number, end: number): number {
  const last = end - wanted.text.length;
  if (wanted.any === undefined) {
    const found = text.indexOf(wanted.text, at);
    return found > last ? -1 : found;
  }
  for (let i = at; i <= last; i++) if (matchesAt(wanted, text, i)) return i;
  return -1;
}

export function matchGlob(glob: Glob, text: string): boolean {
  if (glob.exact !== undefined) return glob.exact === text;
  if (glob.everything) return true;
  const { segments, lengthMin } = glob;
  const first = segments[0];
  const last = segments.at(-1);
  if (first === undefined || last === undefined || text.length < lengthMin) return false;
  if (segments.length === 1) return text.length === lengthMin && matchesAt(first, text, 0);
  const end = text.length - last.text.length;
  if (!matchesAt(first, text, 0) || !matchesAt(last, text, end)) return false;
  let at = first.text.length;
  for (let i = 1; i < segments.length - 1; i++) {
    const middle = segments[i];
    if (middle === undefined) return false;
    at = find(middle, text, at, end);
    if (at < 0) return false;
    at += middle.text.length;
  }
  return true;
}
