/** AWS JSON 1.1 text ⇄ model values (ecr-api.md §1.1). */
import { Fault } from '../domain/faults.ts';
import type { Shape, Structure } from './operation.ts';
import type { CompiledShape } from './shapes.ts';

/** Deepest nesting of arrays and objects a request may have. The models need six. */
const DEPTH_MAX = 64;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

function malformed(message: string): Fault {
  return new Fault('SerializationException', message);
}

/** WHY: before `JSON.parse`, because millions of open brackets cost it far more memory than the text has bytes. */
function checkDepth(body: Buffer): void {
  let depth = 0;
  for (let i = 0; i < body.length; i++) {
    const byte = body[i];
    if (byte === QUOTE) {
      // jump to the closing quote: the first one with an even number of backslashes before it
      for (;;) {
        i = body.indexOf(QUOTE, i + 1);
        if (i === -1) return;
        let slashes = 0;
        while (body[i - 1 - slashes] === BACKSLASH) slashes++;
        if (slashes % 2 === 0) break;
      }
    } else if (byte === 0x7b || byte === 0x5b) {
      if (++depth > DEPTH_MAX) throw malformed('The request is nested too deeply.');
    } else if (byte === 0x7d || byte === 0x5d) depth--;
  }
}

/**
 * The input of an operation. Members the model does not have are ignored, `null` is absent, the last of several equal
 * names wins. Constraints are not checked here.
 *
 * @throws Fault SerializationException for text that is not UTF-8 or JSON, or a value of the wrong kind
 */
export function parseJson(shape: CompiledShape, body: Buffer): Structure {
  if (body.length === 0) return {};
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
  } catch {
    throw malformed('The request is not valid UTF-8.');
  }
  checkDepth(body);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw malformed('The request is not valid JSON.');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw malformed('Start of structure expected.');
  }
  return readStructure(shape, value as Record<string, unknown>);
}

function readStructure(shape: CompiledShape, value: Record<string, unknown>): Structure {
  const result: Structure = {};
  for (const member of shape.members) {
    // INVARIANT: only names of the model are read and only own ones, so `__proto__` and its kin mean nothing
    if (!Object.hasOwn(value, member.name)) continue;
    const given = value[member.name];
    if (given !== null) result[member.name] = readValue(member.shape, given);
  }
  return result;
}

function readValue(shape: CompiledShape, value: unknown): Shape {
  switch (shape.type) {
    case 'structure':
      return readStructure(shape, objectOf(value, shape));
    case 'list': {
      if (!Array.isArray(value)) throw wrongKind(value, shape);
      return value.map((each: unknown) => readValue(shape.element as CompiledShape, each));
    }
    case 'map': {
      // fromEntries defines own properties: a key called `__proto__` is a key
      const entries = Object.entries(objectOf(value, shape)).filter((entry) => entry[1] !== null);
      return Object.fromEntries(
        entries.map(([key, each]) => [key, readValue(shape.value as CompiledShape, each)]),
      );
    }
    case 'string':
      if (typeof value !== 'string') throw wrongKind(value, shape);
      return value;
    case 'boolean':
      if (typeof value !== 'boolean') throw wrongKind(value, shape);
      return value;
    case 'integer':
    case 'long':
    case 'double':
      if (typeof value !== 'number') throw wrongKind(value, shape);
      return checkNumber(shape, value);
    case 'timestamp': {
      if (typeof value !== 'number') throw wrongKind(value, shape);
      // rounded: 1.001 * 1000 is not 1001
      const date = new Date(Math.round(value * 1000));
      if (Number.isNaN(date.getTime())) throw malformed('The timestamp is out of range.');
      return date;
    }
    case 'blob':
      if (typeof value !== 'string') throw wrongKind(value, shape);
      return readBase64(value);
  }
}

/**
 * A whole number within the type's range (32 bits for `integer`, what a double holds exactly for `long`).
 *
 * @throws Fault SerializationException
 */
export function checkNumber(shape: CompiledShape, value: number): number {
  if (shape.type === 'double') {
    if (!Number.isFinite(value)) throw malformed('The number is out of range.');
    return value;
  }
  if (!Number.isInteger(value)) throw malformed('A decimal number can not be converted to a whole one.');
  const fits = shape.type === 'integer' ? (value | 0) === value : Number.isSafeInteger(value);
  if (!fits) throw malformed('The number is out of range.');
  return value;
}

/** @throws Fault SerializationException unless the text is base64 with its padding */
export function readBase64(text: string): Buffer {
  const bytes = Buffer.from(text, 'base64');
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  // Buffer skips what is not base64 and also reads the URL alphabet; both show here
  const exact = text.length % 4 === 0 && bytes.length === (text.length / 4) * 3 - padding;
  if (!exact || text.includes('-') || text.includes('_')) throw malformed('A blob is not valid base64.');
  return bytes;
}

function objectOf(value: unknown, shape: CompiledShape): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrongKind(value, shape);
  return value as Record<string, unknown>;
}

/** What the Java side calls a kind of value, in the words of its JSON reader. */
const TARGETS: Readonly<Record<CompiledShape['type'], string>> = {
  structure: 'a Structure',
  list: 'a List',
  map: 'a Map',
  string: 'a String',
  integer: 'an Integer',
  long: 'a Long',
  double: 'a Double',
  boolean: 'a Boolean',
  timestamp: 'a Timestamp',
  blob: 'a Blob',
};

function wrongKind(value: unknown, shape: CompiledShape): Fault {
  if (Array.isArray(value)) return malformed('Start of list found where not expected');
  if (value === null) return malformed('A list must not contain null.');
  if (typeof value === 'object') return malformed('Start of structure or map found where not expected.');
  const kind =
    typeof value === 'boolean'
      ? value
        ? 'TRUE_VALUE'
        : 'FALSE_VALUE'
      : `${(typeof value).toUpperCase()}_VALUE`;
  return malformed(`${kind} can not be converted to ${TARGETS[shape.type]}`);
}

/** The value as `JSON.stringify` takes it: timestamps in epoch seconds, blobs in base64, absent members left out. */
export function toJson(shape: CompiledShape, value: Shape): unknown {
  switch (shape.type) {
    case 'structure': {
      const given = value as Structure;
      const result: Record<string, unknown> = {};
      for (const member of shape.members) {
        const each = given[member.name];
        if (each !== undefined) result[member.name] = toJson(member.shape, each);
      }
      return result;
    }
    case 'list':
      return (value as Shape[]).map((each) => toJson(shape.element as CompiledShape, each));
    case 'map': {
      const entries = Object.entries(value as Structure).filter((entry) => entry[1] !== undefined);
      return Object.fromEntries(
        entries.map(([key, each]) => [key, toJson(shape.value as CompiledShape, each as Shape)]),
      );
    }
    case 'timestamp':
      return (value as Date).getTime() / 1000;
    case 'blob': {
      const bytes = value as Uint8Array;
      return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64');
    }
    default:
      return value;
  }
}

/** Text of an AWS JSON answer. An operation without output members answers `{}`. */
export function renderJson(shape: CompiledShape | undefined, value: Structure | undefined): string {
  return shape === undefined || value === undefined ? '{}' : JSON.stringify(toJson(shape, value));
}
