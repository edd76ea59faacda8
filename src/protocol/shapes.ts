/** The service model compiled for the interpreter: shape references resolved, patterns ready to match. */
import type { ModelShape, ServiceModel } from '../model/service-model.ts';

export interface CompiledMember {
  readonly name: string;
  readonly required: boolean;
  readonly shape: CompiledShape;
}

export interface CompiledShape {
  readonly name: string;
  readonly type: ModelShape['type'];
  /** in the order of the model, which is the order of checks and of XML output */
  readonly members: readonly CompiledMember[];
  /** list elements, map keys and map values */
  readonly element: CompiledShape | undefined;
  readonly key: CompiledShape | undefined;
  readonly value: CompiledShape | undefined;
  readonly min: number | undefined;
  readonly max: number | undefined;
  /** as the model writes it, for messages */
  readonly pattern: string | undefined;
  readonly regex: RegExp | undefined;
  readonly enumSet: ReadonlySet<string> | undefined;
  /** `[A, B]` in the order AWS prints */
  readonly enumText: string;
  readonly sensitive: boolean;
}

export interface CompiledOperation {
  readonly name: string;
  readonly input: CompiledShape | undefined;
  readonly output: CompiledShape | undefined;
  readonly resultWrapper: string | undefined;
  readonly unsigned: boolean;
}

export interface CompiledModel {
  readonly model: ServiceModel;
  readonly operations: ReadonlyMap<string, CompiledOperation>;
  /** Members beside the message that an error of this name may carry. */
  readonly errorMembers: ReadonlyMap<string, readonly string[]>;
}

/**
 * Patterns that take exponential time in a backtracking engine, with an equal one that does not. The original is what
 * messages print.
 *
 * WHY: `(?:[sep or char]?[char]+)*` can split a run of characters in 2^n ways. The same language is: characters, then
 * groups of one separator and characters.
 */
const LINEAR: Readonly<Record<string, string>> = {
  '^[a-z0-9*](?:[._\\-/a-z0-9*]?[a-z0-9*]+)*$': '^[a-z0-9*]+(?:[._\\-/][a-z0-9*]+)*$',
};

/**
 * A model pattern (Java syntax) as a JavaScript expression over the whole value.
 *
 * WHY: the `u` flag gives `\p{L}` and code points as Java has them, but refuses escapes of characters that need none
 * (`\:`, `\,`, `\-` outside a class); those lose their backslash.
 */
export function compilePattern(pattern: string): RegExp {
  let inClass = false;
  const source = (LINEAR[pattern] ?? pattern).replace(/\\(.)|[[\]]/gs, (part, escaped?: string) => {
    if (part === '[') inClass = true;
    else if (part === ']') inClass = false;
    else if (!/[A-Za-z0-9^$\\.*+?()[\]{}|/]/.test(escaped as string) && !(escaped === '-' && inClass)) {
      return escaped as string;
    }
    return part;
  });
  return new RegExp(`^(?:${source})$`, 'u');
}

function javaHash(text: string): number {
  let hash = 0;
  for (let i = 0; i < text.length; i++) hash = (Math.imul(hash, 31) + text.charCodeAt(i)) | 0;
  return hash ^ (hash >>> 16);
}

/**
 * The values in the order AWS prints them. WHY: its validator keeps them in a Java HashSet; the observed
 * `[IMMUTABLE, MUTABLE, MUTABLE_WITH_EXCLUSION, IMMUTABLE_WITH_EXCLUSION]` (ecr-api.md §1.4) is that set's order.
 */
export function enumOrder(values: readonly string[]): string[] {
  let buckets = 16;
  while (values.length > buckets * 0.75) buckets *= 2;
  const bucket = (text: string): number => javaHash(text) & (buckets - 1);
  return values.toSorted((a, b) => bucket(a) - bucket(b));
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/**
 * Resolves a model once, at start.
 *
 * @throws Error when it names a shape it does not have; SyntaxError when a pattern does not compile
 */
export function compileModel(model: ServiceModel): CompiledModel {
  const compiled = new Map<string, CompiledShape>();

  const shapeOf = (name: string): CompiledShape => {
    const known = compiled.get(name);
    if (known !== undefined) return known;
    const shape = model.shapes[name];
    if (shape === undefined) throw new Error(`the model has no shape ${name}`);
    const result: Mutable<CompiledShape> = {
      name,
      type: shape.type,
      members: [],
      element: undefined,
      key: undefined,
      value: undefined,
      min: shape.min,
      max: shape.max,
      pattern: shape.pattern,
      regex: shape.pattern === undefined ? undefined : compilePattern(shape.pattern),
      enumSet: shape.enum && new Set(shape.enum),
      enumText: shape.enum === undefined ? '' : `[${enumOrder(shape.enum).join(', ')}]`,
      sensitive: shape.sensitive === true,
    };
    // registered before its parts are resolved, so that a shape may contain itself
    compiled.set(name, result);
    result.members = Object.entries(shape.members ?? {}).map(([member, of]) => ({
      name: member,
      required: shape.required?.includes(member) === true,
      shape: shapeOf(of),
    }));
    if (shape.member !== undefined) result.element = shapeOf(shape.member);
    if (shape.key !== undefined) result.key = shapeOf(shape.key);
    if (shape.value !== undefined) result.value = shapeOf(shape.value);
    return result;
  };

  const operations = new Map<string, CompiledOperation>();
  for (const [name, operation] of Object.entries(model.operations)) {
    operations.set(name, {
      name,
      input: operation.input === undefined ? undefined : shapeOf(operation.input),
      output: operation.output === undefined ? undefined : shapeOf(operation.output),
      resultWrapper: operation.resultWrapper,
      unsigned: operation.authtype === 'none',
    });
  }
  const errorMembers = new Map<string, readonly string[]>();
  for (const [name, shape] of Object.entries(model.shapes)) {
    if (shape.exception !== true) continue;
    errorMembers.set(
      shape.error?.code ?? name,
      Object.keys(shape.members ?? {}).filter((member) => member !== 'message'),
    );
  }
  return { model, operations, errorMembers };
}
