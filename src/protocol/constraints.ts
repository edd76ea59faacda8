/** Checks of model constraints, and the sentences AWS makes of a broken one (ecr-api.md §1.4, iam-sts.md §5.1, §6.3). */
import { Fault, invalidParameter } from '../domain/faults.ts';
import type { Shape, Structure } from './operation.ts';
import type { CompiledMember, CompiledShape } from './shapes.ts';

export interface Violation {
  /** dotted, lower camel case: `imageIds.1.member.imageTag` */
  readonly path: string;
  /** `Member must …` */
  readonly reason: string;
  readonly kind: 'null' | 'enum' | 'length' | 'pattern' | 'range' | 'element';
  readonly shape: CompiledShape;
  readonly value: Shape | undefined;
}

/** More than these are neither looked for nor reported. */
const VIOLATIONS_MAX = 20;
/** A value longer than this is not matched where the model gives no length. */
const UNBOUNDED_PATTERN_MAX = 1_048_576;

/** Every broken constraint of an input, in the order of the model; at most twenty. */
export function findViolations(shape: CompiledShape, input: Structure): Violation[] {
  const found: Violation[] = [];
  checkStructure(shape, input, '', found);
  return found;
}

function lowerFirst(name: string): string {
  return name.slice(0, 1).toLowerCase() + name.slice(1);
}

function checkStructure(shape: CompiledShape, value: Structure, prefix: string, found: Violation[]): void {
  for (const member of shape.members) {
    if (found.length >= VIOLATIONS_MAX) return;
    checkMember(member, value[member.name], prefix + lowerFirst(member.name), found);
  }
}

function checkMember(
  member: CompiledMember,
  value: Shape | undefined,
  path: string,
  found: Violation[],
): void {
  if (value !== undefined) return checkValue(member.shape, value, path, found);
  if (!member.required) return;
  found.push({ path, reason: 'Member must not be null', kind: 'null', shape: member.shape, value });
}

function checkValue(shape: CompiledShape, value: Shape, path: string, found: Violation[]): void {
  for (const [kind, reason] of brokenBy(shape, value)) found.push({ path, reason, kind, shape, value });
  if (shape.type === 'structure') checkStructure(shape, value as Structure, `${path}.`, found);
  else if (shape.type === 'list') {
    if (!overlong(shape, value)) checkElements(shape, value as Shape[], path, found);
  } else if (shape.type === 'map') checkEntries(shape, value as Structure, path, found);
}

function overlong(shape: CompiledShape, value: Shape): boolean {
  return shape.max !== undefined && (value as Shape[]).length > shape.max;
}

function checkElements(
  shape: CompiledShape,
  values: readonly Shape[],
  path: string,
  found: Violation[],
): void {
  const element = shape.element as CompiledShape;
  const nested = element.type === 'structure' || element.type === 'list' || element.type === 'map';
  for (const [i, each] of values.entries()) {
    if (found.length >= VIOLATIONS_MAX) return;
    if (nested) checkValue(element, each, `${path}.${i + 1}.member`, found);
    else if (brokenBy(element, each).length > 0) {
      // a bad element is a fault of the list, told with everything an element has to satisfy
      const reason = `Member must satisfy constraint: [${allConstraints(element).join(', ')}]`;
      found.push({ path, reason, kind: 'element', shape, value: [...values] });
      return;
    }
  }
}

function checkEntries(shape: CompiledShape, entries: Structure, path: string, found: Violation[]): void {
  const [keyShape, valueShape] = [shape.key as CompiledShape, shape.value as CompiledShape];
  for (const [key, value] of Object.entries(entries)) {
    if (found.length >= VIOLATIONS_MAX || value === undefined) return;
    const bad = (what: string, of: CompiledShape): void => {
      const reason = `Map ${what} must satisfy constraint: [${allConstraints(of).join(', ')}]`;
      found.push({ path, reason, kind: 'element', shape, value: entries });
    };
    if (brokenBy(keyShape, key).length > 0) return bad('keys', keyShape);
    if (brokenBy(valueShape, value).length > 0) return bad('value', valueShape);
  }
}

type Broken = readonly [kind: Violation['kind'], reason: string];

/** What a single value breaks, without its parts. */
function brokenBy(shape: CompiledShape, value: Shape): Broken[] {
  const broken: Broken[] = [];
  const size = sizeOf(shape, value);
  if (size !== undefined) {
    const measured = typeof value === 'number' ? 'value' : 'length';
    const kind = typeof value === 'number' ? 'range' : 'length';
    if (shape.max !== undefined && size > shape.max) {
      broken.push([kind, `Member must have ${measured} less than or equal to ${shape.max}`]);
    }
    if (shape.min !== undefined && size < shape.min) {
      broken.push([kind, `Member must have ${measured} greater than or equal to ${shape.min}`]);
    }
  }
  if (typeof value !== 'string') return broken;
  if (shape.enumSet !== undefined && !shape.enumSet.has(value)) broken.push(['enum', enumReason(shape)]);
  if (shape.regex !== undefined && size !== undefined) {
    // INVARIANT: no pattern meets a value longer than the model allows
    if (size <= (shape.max ?? UNBOUNDED_PATTERN_MAX) && !shape.regex.test(value)) {
      broken.push(['pattern', patternReason(shape)]);
    } else if (shape.max === undefined && size > UNBOUNDED_PATTERN_MAX) {
      broken.push(['pattern', patternReason(shape)]);
    }
  }
  return broken;
}

/** Code points of a string, bytes of a blob, entries of a list or map, the number itself. */
function sizeOf(shape: CompiledShape, value: Shape): number | undefined {
  if (shape.min === undefined && shape.max === undefined && shape.regex === undefined) return undefined;
  if (typeof value === 'number') return value;
  if (typeof value === 'string') return codePoints(value);
  if (value instanceof Uint8Array) return value.byteLength;
  if (Array.isArray(value)) return value.length;
  if (shape.type === 'map') return Object.keys(value as Structure).length;
  return undefined;
}

function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i++) {
    // one less for every pair; a lone surrogate counts as one
    if ((text.charCodeAt(i) & 0xfc00) === 0xd800 && (text.charCodeAt(i + 1) & 0xfc00) === 0xdc00) {
      count--;
      i++;
    }
  }
  return count;
}

function enumReason(shape: CompiledShape): string {
  return `Member must satisfy enum value set: ${shape.enumText}`;
}

function patternReason(shape: CompiledShape): string {
  return `Member must satisfy regular expression pattern: ${shape.pattern}`;
}

function allConstraints(shape: CompiledShape): string[] {
  const measured =
    shape.type === 'integer' || shape.type === 'long' || shape.type === 'double' ? 'value' : 'length';
  return [
    ...(shape.max === undefined ? [] : [`Member must have ${measured} less than or equal to ${shape.max}`]),
    ...(shape.min === undefined
      ? []
      : [`Member must have ${measured} greater than or equal to ${shape.min}`]),
    ...(shape.enumSet === undefined ? [] : [enumReason(shape)]),
    ...(shape.pattern === undefined ? [] : [patternReason(shape)]),
  ];
}

/** As ECR prints it: unlike the model, without escaped slashes. */
const REPOSITORY_NAME_REASON =
  "must satisfy regular expression '[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*'";

/** ECR names the first broken constraint only, and has words of its own for a single repository name. */
export function ecrFault(violations: readonly Violation[]): Fault | undefined {
  const [first] = violations;
  if (first === undefined) return undefined;
  const own = first.shape.name === 'RepositoryName' && first.kind !== 'null';
  if (!own) return invalidParameter(first.path, first.reason);
  if (first.kind === 'pattern') return invalidParameter(first.path, REPOSITORY_NAME_REASON);
  return invalidParameter(first.path, first.reason.replace('Member must', 'must'));
}

/** STS prints values, IAM does not. */
export function stsFault(violations: readonly Violation[]): Fault | undefined {
  if (violations.length === 0) return undefined;
  return validationErrors(
    violations.map(
      (each) => `Value ${printedValue(each)}at '${each.path}' failed to satisfy constraint: ${each.reason}`,
    ),
  );
}

function printedValue({ value, shape }: Violation): string {
  if (value === undefined) return 'null ';
  if (shape.sensitive || (typeof value === 'object' && !(value instanceof Date))) return '';
  return `'${String(value)}' `;
}

/**
 * IAM. Its own checks of names, paths and key ids come after those of the model and have their own sentences, one at
 * a time.
 */
export function iamFault(violations: readonly Violation[]): Fault | undefined {
  const own = violations.map(iamSentence);
  const modelled = violations.filter((_, i) => own[i] === undefined);
  if (modelled.length > 0) {
    return validationErrors(
      modelled.map((each) => {
        const reason = each.kind === 'enum' ? 'Member must satisfy enum value set' : each.reason;
        return `Value at '${each.path}' failed to satisfy constraint: ${reason}`;
      }),
    );
  }
  const sentence = own.find((each) => each !== undefined);
  return sentence === undefined ? undefined : new Fault('ValidationError', sentence);
}

const NAME_PATTERN = '[\\w+=,.@-]+';

function iamSentence({ kind, path, shape }: Violation): string | undefined {
  if (kind !== 'pattern') return undefined;
  const prefix = `The specified value for ${path} is invalid. `;
  if (shape.pattern === NAME_PATTERN) {
    return `${prefix}It must contain only alphanumeric characters and/or the following: +=,.@_-`;
  }
  switch (shape.name) {
    case 'pathType':
    case 'policyPathType':
      return `${prefix}It must begin and end with / and contain only alphanumeric characters and/or / characters.`;
    case 'pathPrefixType':
      return `${prefix}It must begin with the / character and contain only alphanumeric characters and/or / characters.`;
    case 'accessKeyIdType':
      return `${prefix}It must contain only alphanumeric characters.`;
    case 'policyDocumentType':
      return `${prefix}It must contain only printable ASCII characters.`;
    default:
      return undefined;
  }
}

function validationErrors(entries: readonly string[]): Fault {
  const counted = entries.length === 1 ? '1 validation error' : `${entries.length} validation errors`;
  return new Fault('ValidationError', `${counted} detected: ${entries.join('; ')}`);
}
