/** Condition blocks: every IAM operator, `IfExists`, the set operators and the rules for absent keys. */
import { contains, parseAddress, parseBase64, parseDate, parseNumber, parseRange } from './literals.ts';
import {
  compileTemplate,
  matchTemplate,
  resolveText,
  splitArn,
  splitArnPattern,
  type Context,
  type Template,
} from './variables.ts';

/** Whether one request value matches one policy value. */
type Test = (value: string, context: Context) => boolean;
/** Turns a policy value into its test; `variables` says whether `${...}` is a variable. */
type TestCompiler = (expected: string, variables: boolean) => Test;

interface Operator {
  readonly compile: TestCompiler;
  /** The operator holds when no policy value matches. */
  readonly negated: boolean;
}

export interface Condition {
  /** As written, with prefix and suffix. */
  readonly operator: string;
  /** As written. */
  readonly key: string;
  readonly keyLower: string;
  readonly values: readonly string[];
  readonly set: 'all' | 'any' | undefined;
  readonly ifExists: boolean;
  readonly negated: boolean;
  /** Undefined for `Null`. */
  readonly tests: readonly Test[] | undefined;
}

/** What a value without wildcards resolves to is handed to `compare`; text known beforehand is resolved once. */
function withText(compare: (value: string, expected: string) => boolean): TestCompiler {
  return (expected, variables) => {
    const template = compileTemplate(expected, { variables, wildcards: false });
    const text = template.glob?.exact;
    if (text !== undefined) return (value) => compare(value, text);
    return (value, context) => {
      const resolved = resolveText(template, context);
      return resolved !== undefined && compare(value, resolved);
    };
  };
}

const stringEquals = withText((value, expected) => value === expected);
const stringEqualsIgnoreCase = withText((value, expected) => value.toLowerCase() === expected.toLowerCase());

const stringLike: TestCompiler = (expected, variables) => {
  const template = compileTemplate(expected, { variables, wildcards: true });
  return (value, context) => matchTemplate(template, value, context);
};

const bool = withText((value, expected) => {
  const [got, wanted] = [value.toLowerCase(), expected.toLowerCase()];
  return got === wanted && (wanted === 'true' || wanted === 'false');
});

const never: Test = () => false;

/** Both sides must parse, otherwise there is no match (so that the negated form holds). */
function ordered(
  parse: (text: string) => number,
  compare: (value: number, expected: number) => boolean,
): TestCompiler {
  return (expected) => {
    const wanted = parse(expected);
    return Number.isNaN(wanted) ? never : (value) => compare(parse(value), wanted);
  };
}

const binaryEquals: TestCompiler = (expected) => {
  const wanted = parseBase64(expected);
  return wanted === undefined ? never : (value) => parseBase64(value) === wanted;
};

const ipAddress: TestCompiler = (expected) => {
  const range = parseRange(expected);
  if (range === undefined) return never;
  return (value) => {
    const address = parseAddress(value);
    return address !== undefined && contains(range, address);
  };
};

/** Six parts, a glob each; a lone `*` is every ARN. Patterns with fewer parts match nothing. */
const arnLike: TestCompiler = (expected, variables) => {
  if (expected === '*') return (value) => splitArn(value) !== undefined;
  const patterns = splitArnPattern(expected)?.map((p): Template =>
    compileTemplate(p, { variables, wildcards: true }),
  );
  if (patterns === undefined) return never;
  return (value, context) => {
    const parts = splitArn(value);
    return parts !== undefined && patterns.every((p, i) => matchTemplate(p, parts[i] ?? '', context));
  };
};

const OPERATORS: ReadonlyMap<string, Operator> = new Map(
  (
    [
      ['StringEquals', stringEquals, false],
      ['StringNotEquals', stringEquals, true],
      ['StringEqualsIgnoreCase', stringEqualsIgnoreCase, false],
      ['StringNotEqualsIgnoreCase', stringEqualsIgnoreCase, true],
      ['StringLike', stringLike, false],
      ['StringNotLike', stringLike, true],
      ['NumericEquals', ordered(parseNumber, (v, e) => v === e), false],
      ['NumericNotEquals', ordered(parseNumber, (v, e) => v === e), true],
      ['NumericLessThan', ordered(parseNumber, (v, e) => v < e), false],
      ['NumericLessThanEquals', ordered(parseNumber, (v, e) => v <= e), false],
      ['NumericGreaterThan', ordered(parseNumber, (v, e) => v > e), false],
      ['NumericGreaterThanEquals', ordered(parseNumber, (v, e) => v >= e), false],
      ['DateEquals', ordered(parseDate, (v, e) => v === e), false],
      ['DateNotEquals', ordered(parseDate, (v, e) => v === e), true],
      ['DateLessThan', ordered(parseDate, (v, e) => v < e), false],
      ['DateLessThanEquals', ordered(parseDate, (v, e) => v <= e), false],
      ['DateGreaterThan', ordered(parseDate, (v, e) => v > e), false],
      ['DateGreaterThanEquals', ordered(parseDate, (v, e) => v >= e), false],
      ['Bool', bool, false],
      ['BinaryEquals', binaryEquals, false],
      ['IpAddress', ipAddress, false],
      ['NotIpAddress', ipAddress, true],
      ['ArnEquals', arnLike, false],
      ['ArnLike', arnLike, false],
      ['ArnNotEquals', arnLike, true],
      ['ArnNotLike', arnLike, true],
    ] as const
  ).map(([name, compile, negated]) => [name, { compile, negated }]),
);

export interface OperatorName {
  readonly base: string;
  readonly set: 'all' | 'any' | undefined;
  readonly ifExists: boolean;
}

/** Takes an operator apart; undefined if IAM does not know it. Spelling is exact, `Null` has no `IfExists`. */
export function parseOperator(name: string): OperatorName | undefined {
  const [, prefix, rest = ''] = /^(ForAllValues:|ForAnyValue:)?(.*)$/s.exec(name) ?? [];
  const set = prefix === undefined ? undefined : prefix === 'ForAllValues:' ? 'all' : 'any';
  const ifExists = rest.endsWith('IfExists');
  const base = ifExists ? rest.slice(0, -'IfExists'.length) : rest;
  if (!OPERATORS.has(base) && (base !== 'Null' || ifExists)) return undefined;
  return { base, set, ifExists };
}

/** One (operator, key, values) triple; undefined if the operator is unknown. */
export function compileCondition(
  operator: string,
  key: string,
  values: readonly string[],
  variables: boolean,
): Condition | undefined {
  const name = parseOperator(operator);
  if (name === undefined) return undefined;
  const known = OPERATORS.get(name.base);
  return {
    operator,
    key,
    keyLower: key.toLowerCase(),
    values,
    set: name.set,
    ifExists: name.ifExists,
    negated: known?.negated ?? false,
    tests: known && values.map((v) => known.compile(v, variables)),
  };
}

function matchesAny(tests: readonly Test[], value: string, context: Context): boolean {
  for (const test of tests) if (test(value, context)) return true;
  return false;
}

/** Whether the condition holds. Total: bad values on either side are simply no match. */
export function matchCondition(condition: Condition, context: Context): boolean {
  const { tests, negated, set } = condition;
  if (condition.values.length === 0) return false;
  const found = context.get(condition.keyLower);
  const absent = found === undefined || (found.length === 0 && typeof found !== 'string');
  if (tests === undefined) return condition.values.some((v) => v.toLowerCase() === String(absent));
  if (absent) return condition.ifExists || set === 'all' || (set === undefined && negated);
  if (typeof found === 'string') return matchesAny(tests, found, context) !== negated;
  if (set === 'all') return found.every((v) => matchesAny(tests, v, context) !== negated);
  if (set === 'any') return found.some((v) => matchesAny(tests, v, context) !== negated);
  // WHY: a multi-valued key without a set operator matches nothing; the negated form asks that no value is equal.
  return negated && !found.some((v) => matchesAny(tests, v, context));
}
