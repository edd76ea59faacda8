/** Forms of the Query protocol → model values, model values → XML (iam-sts.md §5, §6). */
import { Fault } from '../domain/faults.ts';
import { decodeUri, parseTimestamp, type EscapeError } from '../lib/sigv4.ts';
import { element, escapeXml } from '../lib/xml.ts';
import { checkNumber, readBase64 } from './json.ts';
import type { Shape, Structure } from './operation.ts';
import type { CompiledShape } from './shapes.ts';

/** Parameters of a request by name; the first of several wins. */
export type Form = ReadonlyMap<string, string>;

/** Longest dotted name the models can give a meaning. */
const SEGMENTS_MAX = 16;

interface Node {
  value: string | undefined;
  children: Map<string, Node> | undefined;
}

function malformed(message: string): Fault {
  return new Fault('SerializationException', message);
}

/**
 * Adds the parameters of a form or query string to `form`; a name that is there already keeps its value.
 *
 * @throws Fault MalformedQueryString for bad escapes or bytes that are not UTF-8
 */
export function readForm(text: string, form: Map<string, string>): void {
  if (text === '') return;
  for (const part of text.split('&')) {
    if (part === '') continue;
    const mark = part.indexOf('=');
    const name = decode(mark === -1 ? part : part.slice(0, mark));
    if (!form.has(name)) form.set(name, mark === -1 ? '' : decode(part.slice(mark + 1)));
  }
}

function decode(text: string): string {
  const spaced = text.includes('+') ? text.replaceAll('+', ' ') : text;
  if (!spaced.includes('%')) return spaced;
  try {
    return decodeURIComponent(spaced);
  } catch {
    try {
      decodeUri(spaced);
    } catch (error) {
      throw malformedEscape(error as EscapeError);
    }
    throw new Fault('MalformedQueryString', 'The parameters are not valid UTF-8.');
  }
}

/** iam-sts.md §1.5 no. 4 */
export function malformedEscape(error: EscapeError): Fault {
  return new Fault(
    'MalformedQueryString',
    error.escape === undefined
      ? 'Incomplete trailing escape % sequence'
      : `Illegal hex characters in escape % pattern: ${error.escape}`,
  );
}

/**
 * The input of an operation. Parameters the model does not have are ignored at the top and inside structures; inside
 * a list anything but `member.N` is refused, so that a misspelt restriction never silently vanishes.
 *
 * @throws Fault SerializationException (`MalformedInput` at the Query door)
 */
export function parseForm(shape: CompiledShape | undefined, form: Form): Structure {
  if (shape === undefined || shape.members.length === 0) return {};
  const root: Node = { value: undefined, children: undefined };
  for (const [name, value] of form) {
    const segments = name.split('.', SEGMENTS_MAX + 1);
    if (segments.length > SEGMENTS_MAX) continue;
    let node = root;
    for (const segment of segments) {
      node.children ??= new Map();
      let child = node.children.get(segment);
      if (child === undefined) {
        child = { value: undefined, children: undefined };
        node.children.set(segment, child);
      }
      node = child;
    }
    node.value = value;
  }
  return readStructure(shape, root);
}

function readStructure(shape: CompiledShape, node: Node): Structure {
  const result: Structure = {};
  for (const member of shape.members) {
    const child = node.children?.get(member.name);
    if (child !== undefined) result[member.name] = readNode(member.shape, child, member.name);
  }
  return result;
}

function readNode(shape: CompiledShape, node: Node, name: string): Shape {
  switch (shape.type) {
    case 'structure':
      if (node.value !== undefined && node.value !== '') throw malformed(`${name} is not a value`);
      return readStructure(shape, node);
    case 'list':
      return numbered(node, 'member', name).map((child) =>
        readNode(shape.element as CompiledShape, child, name),
      );
    case 'map':
      return readMap(shape, node, name);
    default:
      if (node.children !== undefined || node.value === undefined) {
        throw malformed(`${name} is not a structure or list`);
      }
      return readScalar(shape, node.value);
  }
}

/** The children `{label}.1`, `{label}.2`, … by number; gaps are closed. `Name=` alone is the empty list. */
function numbered(node: Node, label: string, name: string): Node[] {
  if (node.children === undefined) {
    if (node.value !== '') throw malformed(`${name} is not a value`);
    return [];
  }
  const found: [number, Node][] = [];
  for (const [segment, child] of node.children) {
    if (segment !== label || child.value !== undefined) throw malformed(`Unexpected list element in ${name}`);
    for (const [index, item] of child.children ?? []) {
      if (!/^[1-9][0-9]{0,8}$/.test(index)) throw malformed(`Key (${index.slice(0, 40)}) must be integer`);
      found.push([Number(index), item]);
    }
  }
  return found.toSorted(([a], [b]) => a - b).map(([, item]) => item);
}

function readMap(shape: CompiledShape, node: Node, name: string): Shape {
  const entries = numbered(node, 'entry', name).map((entry) => {
    const key = entry.children?.get('key')?.value;
    const value = entry.children?.get('value');
    if (key === undefined || value === undefined) throw malformed(`Incomplete entry in ${name}`);
    return [key, readNode(shape.value as CompiledShape, value, name)] as const;
  });
  return Object.fromEntries(entries);
}

function readScalar(shape: CompiledShape, text: string): Shape {
  switch (shape.type) {
    case 'boolean':
      if (/^true$/i.test(text)) return true;
      if (/^false$/i.test(text)) return false;
      throw malformed('A boolean must follow xsd1.1 definition');
    case 'integer':
    case 'long':
      if (!/^[+-]?[0-9]{1,19}$/.test(text)) throw malformed('A number must be whole.');
      return checkNumber(shape, Number(text));
    case 'double':
      if (!/^[+-]?[0-9]{1,40}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,3})?$/i.test(text)) {
        throw malformed('A number is malformed.');
      }
      return checkNumber(shape, Number(text));
    case 'timestamp': {
      const ms = parseTimestamp(text.replace(/\.[0-9]{1,9}Z$/, 'Z'));
      if (ms === undefined) throw malformed('Timestamp must be in ISO8601');
      return new Date(ms);
    }
    case 'blob':
      return readBase64(text);
    default:
      return text;
  }
}

/** Parameters an SDK would send for this input: the inverse of {@link parseForm}. For our own clients and tests. */
export function writeForm(shape: CompiledShape, value: Shape, prefix = ''): [string, string][] {
  const at = (name: string): string => (prefix === '' ? name : `${prefix}.${name}`);
  switch (shape.type) {
    case 'structure':
      return shape.members.flatMap((member) => {
        const each = (value as Structure)[member.name];
        return each === undefined ? [] : writeForm(member.shape, each, at(member.name));
      });
    case 'list': {
      const items = value as Shape[];
      if (items.length === 0) return [[prefix, '']];
      return items.flatMap((each, i) =>
        writeForm(shape.element as CompiledShape, each, at(`member.${i + 1}`)),
      );
    }
    case 'map': {
      const entries = Object.entries(value as Structure);
      if (entries.length === 0) return [[prefix, '']];
      return entries.flatMap(([key, each], i) => [
        [at(`entry.${i + 1}.key`), key] as [string, string],
        ...writeForm(shape.value as CompiledShape, each as Shape, at(`entry.${i + 1}.value`)),
      ]);
    }
    default:
      return [[prefix, scalarText(shape, value)]];
  }
}

/** A scalar in the words of the Query protocol: ISO timestamps in whole seconds, blobs in base64. */
function scalarText(shape: CompiledShape, value: Shape): string {
  if (shape.type === 'timestamp') return `${(value as Date).toISOString().slice(0, 19)}Z`;
  if (shape.type === 'blob') return Buffer.from(value as Uint8Array).toString('base64');
  // oxlint-disable-next-line typescript/no-unnecessary-type-assertion -- lists and structures never come here
  return String(value as string | number | boolean);
}

/** Content of the element that holds `value`: members in the order of the model, absent ones left out. */
export function renderXml(shape: CompiledShape, value: Shape): string {
  switch (shape.type) {
    case 'structure': {
      let out = '';
      for (const member of shape.members) {
        const each = (value as Structure)[member.name];
        if (each !== undefined) out += element(member.name, renderXml(member.shape, each));
      }
      return out;
    }
    case 'list': {
      const item = shape.element as CompiledShape;
      return (value as Shape[]).map((each) => element('member', renderXml(item, each))).join('');
    }
    case 'map':
      return Object.entries(value as Structure)
        .filter((entry) => entry[1] !== undefined)
        .map(([key, each]) => {
          const content = renderXml(shape.value as CompiledShape, each as Shape);
          return element('entry', element('key', escapeXml(key)) + element('value', content));
        })
        .join('');
    default:
      return escapeXml(scalarText(shape, value));
  }
}
