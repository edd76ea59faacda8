/** Policy variables: `${key}`, `${key, 'default'}` and the escapes `${*}` `${?}` `${$}`. */
import { buildGlob, globTokens, matchGlob, occursAt, type Glob, type GlobToken } from './glob.ts';

/** What is known about a request: lower-cased keys; an array marks a multi-valued key. A map is one. */
export type Context = Pick<ReadonlyMap<string, string | readonly string[]>, 'get'>;

interface Variable {
  readonly key: string;
  readonly fallback: string | undefined;
}

/** Text of a policy in which variables may stand. */
export interface Template {
  /** The finished glob when no variable occurs. */
  readonly glob: Glob | undefined;
  /** Literal text before the first variable or wildcard: what does not start with it cannot match. */
  readonly prefix: string;
  readonly parts: readonly (GlobToken | Variable)[];
  /** With variables: text and variables before the first wildcard. */
  readonly head: readonly (string | Variable)[];
  /** What follows the head: undefined if nothing does, `'variable'` if there are variables in it. */
  readonly tail: Glob | 'variable' | undefined;
}

export interface TemplateRules {
  /** `${...}` is a variable (only under version 2012-10-17), otherwise plain text. */
  readonly variables: boolean;
  /** `*` and `?` are wildcards. */
  readonly wildcards: boolean;
}

const ESCAPED = new Set(['*', '?', '$']);

/**
 * The end of the variable whose inside starts at `open` (position of its `}`), or -1 if it is not closed. Looks no
 * further than the next brace or quote, so reading a hostile text stays linear.
 */
function closeOf(text: string, open: number): number {
  const brace = text.indexOf('}', open);
  if (brace < 0) return -1;
  const quoted = /^[^,]*,\s*'/.exec(text.slice(open, brace));
  if (quoted === null) return brace;
  // The default may contain a brace: it ends with its quote.
  const quote = text.indexOf("'", open + quoted[0].length);
  return quote >= 0 && text[quote + 1] === '}' ? quote + 1 : brace;
}

function variable(inside: string): Variable {
  const comma = inside.indexOf(',');
  const rest = comma < 0 ? '' : inside.slice(comma + 1).trim();
  if (rest.length >= 2 && rest.startsWith("'") && rest.endsWith("'")) {
    return { key: inside.slice(0, comma).trim().toLowerCase(), fallback: rest.slice(1, -1) };
  }
  return { key: inside.trim().toLowerCase(), fallback: undefined };
}

/** Cuts text into literal pieces (`text`) and variables; an unclosed `${` is text. */
export function* piecesOf(text: string): Generator<{ text: string } | { inside: string }> {
  let at = 0;
  for (;;) {
    const open = text.indexOf('${', at);
    const close = open < 0 ? -1 : closeOf(text, open + 2);
    if (close < 0) break;
    if (open > at) yield { text: text.slice(at, open) };
    yield { inside: text.slice(open + 2, close) };
    at = close + 1;
  }
  if (at < text.length) yield { text: text.slice(at) };
}

export function compileTemplate(text: string, rules: TemplateRules): Template {
  const plain = (piece: string): GlobToken[] => (rules.wildcards ? globTokens(piece) : [piece]);
  const parts: (GlobToken | Variable)[] = [];
  let constant = true;
  for (const piece of rules.variables ? piecesOf(text) : [{ text }]) {
    if ('text' in piece) for (const token of plain(piece.text)) parts.push(token);
    else if (ESCAPED.has(piece.inside)) parts.push(piece.inside);
    else {
      parts.push(variable(piece.inside));
      constant = false;
    }
  }
  const [first] = parts;
  const prefix = typeof first === 'string' ? first : '';
  if (constant) return { glob: buildGlob(parts as GlobToken[]), prefix, parts, head: [], tail: undefined };
  const wildcard = parts.findIndex((part) => typeof part === 'symbol');
  const head = (wildcard < 0 ? parts : parts.slice(0, wildcard)) as readonly (string | Variable)[];
  const rest = wildcard < 0 ? [] : parts.slice(wildcard);
  const tail = rest.some((part) => typeof part === 'object') ? 'variable' : buildGlob(rest as GlobToken[]);
  return { glob: undefined, prefix, parts, head, tail: rest.length === 0 ? undefined : tail };
}

const valueOf = ({ key, fallback }: Variable, context: Context): string | undefined => {
  const found = context.get(key);
  return typeof found === 'string' ? found : fallback;
};

/** The glob for this request; undefined if a variable has no single value and no default. Values are literal text. */
function resolveGlob(template: Template, context: Context): Glob | undefined {
  if (template.glob !== undefined) return template.glob;
  const tokens: GlobToken[] = [];
  for (const part of template.parts) {
    if (typeof part !== 'object') {
      tokens.push(part);
      continue;
    }
    const value = valueOf(part, context);
    if (value === undefined) return undefined;
    tokens.push(value);
  }
  return buildGlob(tokens);
}

/** Whether every variable has a single value or a default. */
export const isResolvable = (template: Template, context: Context): boolean =>
  template.parts.every((part) => typeof part !== 'object' || valueOf(part, context) !== undefined);

/** Whether `value` matches; never if a variable cannot be resolved. */
export function matchTemplate(template: Template, value: string, context: Context): boolean {
  if (template.glob !== undefined) return matchGlob(template.glob, value);
  if (template.tail === 'variable') {
    const glob = occursAt(template.prefix, value, 0) ? resolveGlob(template, context) : undefined;
    return glob !== undefined && matchGlob(glob, value);
  }
  // WHY: building a glob for every request costs more than the rest of a decision.
  let at = 0;
  for (const part of template.head) {
    const text = typeof part === 'string' ? part : valueOf(part, context);
    if (text === undefined || !occursAt(text, value, at)) return false;
    at += text.length;
  }
  return template.tail === undefined ? at === value.length : matchGlob(template.tail, value.slice(at));
}

/** The text of a template without wildcards, undefined if a variable cannot be resolved. */
export function resolveText(template: Template, context: Context): string | undefined {
  if (template.glob !== undefined) return template.glob.exact;
  let resolved = '';
  for (const part of template.head) {
    const text = typeof part === 'string' ? part : valueOf(part, context);
    if (text === undefined) return undefined;
    resolved += text;
  }
  return resolved;
}

/** Splits an ARN or ARN pattern at its first five colons, not counting those inside `${...}`; undefined if there are fewer. */
export function splitArnPattern(text: string): readonly string[] | undefined {
  const parts: string[] = [''];
  for (const piece of piecesOf(text)) {
    let rest = 'text' in piece ? piece.text : '';
    while (parts.length < 6 && rest.includes(':')) {
      const colon = rest.indexOf(':');
      parts[parts.length - 1] += rest.slice(0, colon);
      parts.push('');
      rest = rest.slice(colon + 1);
    }
    parts[parts.length - 1] += 'text' in piece ? rest : `\${${piece.inside}}`;
  }
  return parts.length === 6 ? parts : undefined;
}

/** The six parts of an ARN as it occurs in a request, undefined if it is none. */
export function splitArn(arn: string): readonly string[] | undefined {
  if (!arn.startsWith('arn:')) return undefined;
  const parts: string[] = [];
  let at = 0;
  for (let i = 0; i < 5; i++) {
    const colon = arn.indexOf(':', at);
    if (colon < 0) return undefined;
    parts.push(arn.slice(at, colon));
    at = colon + 1;
  }
  parts.push(arn.slice(at));
  return parts;
}
