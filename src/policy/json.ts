/**
 * Reading JSON the way IAM does: duplicate keys are errors, nesting is limited, numbers keep their spelling,
 * objects become Maps so that a key such as `__proto__` is only a key.
 */

/** How deep arrays and objects may nest; a legal policy needs six levels. */
const DEPTH_MAX = 24;

export type SyntaxProblem = 'json' | 'duplicate-key' | 'too-deep' | 'document';

/** The text is not a policy. `problem` tells broken JSON from a wrong document; the message is for people, not for the wire. */
export class PolicySyntaxError extends Error {
  readonly problem: SyntaxProblem;
  constructor(problem: SyntaxProblem, message: string) {
    super(message);
    this.name = 'PolicySyntaxError';
    this.problem = problem;
  }
}

/** A number as it was written: conditions compare text, and the printer must not change `1.0` into `1`. */
export class JsonNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

export type JsonObject = ReadonlyMap<string, Json>;
export type Json = string | boolean | null | JsonNumber | readonly Json[] | JsonObject;

export const isObject = (value: Json | undefined): value is JsonObject => value instanceof Map;
export const isArray = (value: Json | undefined): value is readonly Json[] => Array.isArray(value);

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const LITERALS: readonly (readonly [string, boolean | null])[] = [
  ['true', true],
  ['false', false],
  ['null', null],
];

class Scanner {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  document(): Json {
    const value = this.#value(0);
    this.#blank();
    if (this.#at < this.#text.length) this.#fail();
    return value;
  }

  #fail(): never {
    throw new PolicySyntaxError('json', `invalid JSON at character ${this.#at}`);
  }

  #blank(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
      this.#at++;
    }
  }

  /** Skips blanks and takes `char` if it is next. */
  #take(char: string): boolean {
    this.#blank();
    if (this.#text[this.#at] !== char) return false;
    this.#at++;
    return true;
  }

  #value(depth: number): Json {
    if (depth > DEPTH_MAX) throw new PolicySyntaxError('too-deep', `nested deeper than ${DEPTH_MAX} levels`);
    if (this.#take('{')) return this.#object(depth);
    if (this.#take('[')) return this.#array(depth);
    if (this.#take('"')) return this.#string();
    for (const [word, value] of LITERALS) {
      if (this.#text.startsWith(word, this.#at)) {
        this.#at += word.length;
        return value;
      }
    }
    NUMBER.lastIndex = this.#at;
    const number = NUMBER.exec(this.#text)?.[0];
    if (number === undefined) this.#fail();
    this.#at += number.length;
    return new JsonNumber(number);
  }

  #object(depth: number): JsonObject {
    const object = new Map<string, Json>();
    if (this.#take('}')) return object;
    do {
      if (!this.#take('"')) this.#fail();
      const key = this.#string();
      if (object.has(key))
        throw new PolicySyntaxError('duplicate-key', `duplicate key ${JSON.stringify(key)}`);
      if (!this.#take(':')) this.#fail();
      object.set(key, this.#value(depth + 1));
    } while (this.#take(','));
    if (!this.#take('}')) this.#fail();
    return object;
  }

  #array(depth: number): Json[] {
    const array: Json[] = [];
    if (this.#take(']')) return array;
    do array.push(this.#value(depth + 1));
    while (this.#take(','));
    if (!this.#take(']')) this.#fail();
    return array;
  }

  /** After the opening quote. */
  #string(): string {
    const start = this.#at;
    let plain = true;
    for (;;) {
      const code = this.#text.charCodeAt(this.#at);
      if (code === 0x22) break;
      if (Number.isNaN(code) || code < 0x20) this.#fail();
      if (code === 0x5c) {
        plain = false;
        this.#at++;
      }
      this.#at++;
    }
    const end = this.#at++;
    if (plain) return this.#text.slice(start, end);
    try {
      return String(JSON.parse(this.#text.slice(start - 1, end + 1)));
    } catch {
      return this.#fail();
    }
  }
}

/** @throws PolicySyntaxError for anything that is not one strict JSON value without duplicate keys. */
export function parseJson(text: string): Json {
  return new Scanner(text).document();
}

const ESCAPES: ReadonlyMap<string, string> = new Map([
  ['"', '\\"'],
  ['\\', '\\\\'],
  ['\n', '\\n'],
  ['\r', '\\r'],
  ['\t', '\\t'],
  ['\b', '\\b'],
  ['\f', '\\f'],
]);

const quote = (text: string): string =>
  // eslint-disable-next-line no-control-regex -- control characters are what must be escaped
  `"${text.replace(/["\\\u0000-\u001f]/g, (c) => ESCAPES.get(c) ?? `\\u${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`)}"`;

function scalar(value: string | boolean | null | JsonNumber): string {
  if (typeof value === 'string') return quote(value);
  return value instanceof JsonNumber ? value.text : String(value);
}

/** Jackson's default pretty printer: two blanks per object level, ` : `, arrays in line. */
export function printJackson(value: Json, level = 0): string {
  if (isArray(value)) {
    return value.length === 0 ? '[ ]' : `[ ${value.map((v) => printJackson(v, level)).join(', ')} ]`;
  }
  if (!isObject(value)) return scalar(value);
  if (value.size === 0) return '{ }';
  const pad = '  '.repeat(level + 1);
  const members = [...value].map(([k, v]) => `${pad}${quote(k)} : ${printJackson(v, level + 1)}`);
  return `{\n${members.join(',\n')}\n${'  '.repeat(level)}}`;
}

/** The shortest spelling. */
export function printCompact(value: Json): string {
  if (isArray(value)) return `[${value.map(printCompact).join(',')}]`;
  if (!isObject(value)) return scalar(value);
  return `{${[...value].map(([k, v]) => `${quote(k)}:${printCompact(v)}`).join(',')}}`;
}
