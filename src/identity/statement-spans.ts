/** Where the statements of a policy stand in its text, for the simulator's answers. */

/** Line and column, both from 1. */
export interface Position {
  readonly line: number;
  readonly column: number;
}

/** `end` is behind the closing brace. */
export interface Span {
  readonly start: Position;
  readonly end: Position;
}

/** The statements of a valid policy in document order. */
export function statementSpans(text: string): readonly Span[] {
  const spans: Span[] = [];
  let depth = 0;
  let inStatement = false;
  let start: number | undefined;
  let startDepth = 0;
  const positionOf = positions(text);
  for (let i = 0; i < text.length; i++) {
    const letter = text[i];
    if (letter === '"') {
      const end = endOfString(text, i);
      if (depth === 1 && text.slice(i, end) === '"Statement"') inStatement = true;
      i = end - 1;
    } else if (letter === '{' || letter === '[') {
      depth++;
      if (letter === '{' && inStatement && start === undefined) {
        start = i;
        startDepth = depth;
      }
    } else if (letter === '}' || letter === ']') {
      if (start !== undefined && depth === startDepth) {
        spans.push({ start: positionOf(start), end: positionOf(i + 1) });
        start = undefined;
      }
      depth--;
    } else if (letter === ',' && depth === 1) inStatement = false;
  }
  return spans;
}

/** The index behind the closing quote. */
function endOfString(text: string, open: number): number {
  let i = open + 1;
  while (i < text.length && text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
  return i + 1;
}

/** Positions of ascending offsets, in one pass. */
function positions(text: string): (offset: number) => Position {
  let line = 1;
  let lineStart = 0;
  let lineEnd = text.indexOf('\n');
  return (offset) => {
    while (lineEnd !== -1 && lineEnd < offset) {
      line++;
      lineStart = lineEnd + 1;
      lineEnd = text.indexOf('\n', lineStart);
    }
    return { line, column: offset - lineStart + 1 };
  };
}
