/**
 * The lifecycle policy language: text to policy or Fault, and policy to the text ECR returns. Pure.
 * Sources: ecr-api.md §12.1 (form returned), §12.2 (grammar), §12.3 (errors). Where ECR's sentence is not known, the
 * sentence is the one the same JSON-schema validator gives for such a case.
 */
import { Fault, invalidParameter } from './faults.ts';

export const LIFECYCLE_RULES_MAX = 50;
/** `*` in one entry of `tagPatternList` */
export const PATTERN_WILDCARDS_MAX = 4;
/** days an image stays archived at least, hence the smallest `countNumber` of `sinceImageTransitioned` */
export const ARCHIVE_DAYS_MIN = 90;

const TAG_STATUSES = ['any', 'tagged', 'untagged'] as const;
const STORAGE_CLASSES = ['archive', 'standard'] as const;
const COUNT_TYPES = [
  'imageCountMoreThan',
  'sinceImagePushed',
  'sinceImagePulled',
  'sinceImageTransitioned',
] as const;
const INTEGER_MAX = 2_147_483_647;

export type LifecycleStorageClass = (typeof STORAGE_CLASSES)[number];

export interface LifecycleSelection {
  readonly tagStatus: (typeof TAG_STATUSES)[number];
  /** INVARIANT: exactly one of the two lists, not empty, when `tagStatus` is `tagged`; neither otherwise. */
  readonly tagPatternList?: readonly string[];
  readonly tagPrefixList?: readonly string[];
  /** absent means `standard`; INVARIANT: `archive` exactly with `sinceImageTransitioned` */
  readonly storageClass?: LifecycleStorageClass;
  readonly countType: (typeof COUNT_TYPES)[number];
  /** present exactly with the three `since…` types */
  readonly countUnit?: 'days';
  readonly countNumber: number;
}

export type LifecycleRuleAction =
  | { readonly type: 'expire' }
  | { readonly type: 'transition'; readonly targetStorageClass: 'archive' };

export interface LifecycleRule {
  readonly rulePriority: number;
  readonly description?: string;
  readonly selection: LifecycleSelection;
  readonly action: LifecycleRuleAction;
}

/** INVARIANT: 1 to 50 rules, ascending by `rulePriority`, which is unique. */
export interface LifecyclePolicy {
  readonly rules: readonly LifecycleRule[];
}

/**
 * Reads and checks a policy. The schema of every rule is judged first, then the meaning of each rule, then the rules
 * together. The length of the text is the model's matter (templates and repositories differ).
 *
 * @throws Fault InvalidParameterException with ECR's frame at `LifecyclePolicyText`
 */
export function parseLifecyclePolicy(text: string): LifecyclePolicy {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw refuse('Could not map policyString into LifecyclePolicy.');
  }
  if (!isObject(document)) throw refuse('Could not map policyString into LifecyclePolicy.');
  checkMembers(document, ['rules'], []);
  const list = arrayOf(document['rules'], LIFECYCLE_RULES_MAX);
  const rules = list.map(readRule);
  for (const rule of rules) checkRule(rule);
  checkTogether(rules);
  return { rules: rules.sort((a, b) => a.rulePriority - b.rulePriority) };
}

/** The text ECR stores and returns: minified, members in canonical order, rules by priority. */
export function formatLifecyclePolicy(policy: LifecyclePolicy): string {
  const rules = policy.rules
    .toSorted((a, b) => a.rulePriority - b.rulePriority)
    .map(({ rulePriority, description, selection, action }) => ({
      rulePriority,
      description,
      selection: {
        tagStatus: selection.tagStatus,
        tagPatternList: selection.tagPatternList,
        tagPrefixList: selection.tagPrefixList,
        storageClass: selection.storageClass,
        countType: selection.countType,
        countUnit: selection.countUnit,
        countNumber: selection.countNumber,
      },
      action:
        action.type === 'expire'
          ? { type: action.type }
          : { type: action.type, targetStorageClass: action.targetStorageClass },
    }));
  return JSON.stringify({ rules });
}

/** The storage class whose images a rule looks at. */
export function storageClassOf(rule: LifecycleRule): LifecycleStorageClass {
  return rule.selection.storageClass ?? 'standard';
}

function refuse(reason: string): Fault {
  return invalidParameter('LifecyclePolicyText', `Lifecycle policy validation failure: ${reason}`);
}

/** WHY: ECR sends these validator sentences without the quote that closes its frame (ecr-api.md §12.3). */
function refuseOpen(reason: string): Fault {
  const framed = refuse(reason);
  return new Fault(framed.code, framed.message.slice(0, -1));
}

function refuseCombination(): Fault {
  return refuseOpen('instance failed to match exactly one schema (matched 0 out of 2)');
}

type Document = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Document {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The validator's name of a JSON type. */
function typeOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  if (typeof value === 'number') return Number.isInteger(value) ? 'integer' : 'number';
  return typeof value;
}

function wrongType(value: unknown, allowed: string): Fault {
  return refuse(
    `instance type (${typeOf(value)}) does not match any allowed primitive type (allowed: ["${allowed}"])`,
  );
}

function objectOf(value: unknown): Document {
  if (!isObject(value)) throw wrongType(value, 'object');
  return value;
}

/** A list of 1 to `max` elements. */
function arrayOf(value: unknown, max: number): readonly unknown[] {
  if (!Array.isArray(value)) throw wrongType(value, 'array');
  if (value.length === 0) {
    throw refuse('array is too short: must have at least 1 elements but instance has 0 elements');
  }
  if (value.length > max) {
    throw refuse(
      `array is too long: must have at most ${max} elements but instance has ${value.length} elements`,
    );
  }
  return value as unknown[];
}

function stringOf(value: unknown): string {
  if (typeof value !== 'string') throw wrongType(value, 'string');
  return value;
}

function integerOf(value: unknown, minimum: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value)) throw wrongType(value, 'integer');
  if (value < minimum) {
    throw refuseOpen(
      `numeric instance is lower than the required minimum (minimum: ${minimum}, found: ${value})`,
    );
  }
  if (value > INTEGER_MAX) {
    throw refuseOpen(
      `numeric instance is greater than the required maximum (maximum: ${INTEGER_MAX}, found: ${value})`,
    );
  }
  return value;
}

/** `allowed` is sorted, as the sentence lists it. */
function oneOf<T extends string>(value: unknown, allowed: readonly T[]): T {
  const known = allowed.find((each) => each === value);
  if (known !== undefined) return known;
  if (typeof value !== 'string') throw wrongType(value, 'string');
  throw refuse(
    `instance value (${value.slice(0, 255)}) not found in enum :(possible values: ${JSON.stringify(allowed)})`,
  );
}

function checkMembers(object: Document, required: readonly string[], optional: readonly string[]): void {
  const missing = required.filter((name) => !Object.hasOwn(object, name)).toSorted();
  if (missing.length > 0) throw refuse(`object has missing required properties (${JSON.stringify(missing)})`);
  const extra = Object.keys(object).filter((name) => !required.includes(name) && !optional.includes(name));
  if (extra.length > 0) {
    const names = JSON.stringify(extra.toSorted().map((name) => name.slice(0, 255)));
    throw refuse(`object instance has properties which are not allowed by the schema: (${names})`);
  }
}

function readRule(value: unknown): LifecycleRule {
  const rule = objectOf(value);
  checkMembers(rule, ['rulePriority', 'selection', 'action'], ['description']);
  const description = Object.hasOwn(rule, 'description') ? stringOf(rule['description']) : undefined;
  return {
    rulePriority: integerOf(rule['rulePriority'], 1),
    ...(description !== undefined && { description }),
    action: readAction(rule['action']),
    selection: readSelection(rule['selection']),
  };
}

function readAction(value: unknown): LifecycleRuleAction {
  const action = objectOf(value);
  checkMembers(action, ['type'], ['targetStorageClass']);
  const type = oneOf(action['type'], ['expire', 'transition'] as const);
  const target = action['targetStorageClass'];
  // WHY: a null beside `expire` is refused as a combination, not as a type; Terraform modules have met it.
  if (type === 'expire') {
    if (target !== undefined) throw refuseCombination();
    return { type };
  }
  if (target === undefined || target === null) throw refuseCombination();
  return { type, targetStorageClass: oneOf(target, ['archive'] as const) };
}

function readSelection(value: unknown): LifecycleSelection {
  const selection = objectOf(value);
  const lists = ['tagPatternList', 'tagPrefixList'] as const;
  checkMembers(selection, ['tagStatus', 'countType', 'countNumber'], [...lists, 'storageClass', 'countUnit']);
  const tagStatus = oneOf(selection['tagStatus'], TAG_STATUSES);
  const countType = COUNT_TYPES.find((each) => each === selection['countType']);
  if (countType === undefined) throw refuseCombination();
  const unit = selection['countUnit'];
  if (typeof unit === 'string') oneOf(unit, ['days'] as const);
  const timed = countType !== 'imageCountMoreThan';
  if (timed ? unit !== 'days' : unit !== undefined) throw refuseCombination();
  const countNumber = integerOf(
    selection['countNumber'],
    countType === 'sinceImageTransitioned' ? ARCHIVE_DAYS_MIN : 1,
  );
  const storageClass = Object.hasOwn(selection, 'storageClass')
    ? oneOf(selection['storageClass'], STORAGE_CLASSES)
    : undefined;
  if ((storageClass === 'archive') !== (countType === 'sinceImageTransitioned')) throw refuseCombination();
  const [tagPatternList, tagPrefixList] = lists.map((name) =>
    Object.hasOwn(selection, name) ? readTags(selection[name]) : undefined,
  );
  return {
    tagStatus,
    ...(tagPatternList !== undefined && { tagPatternList }),
    ...(tagPrefixList !== undefined && { tagPrefixList }),
    ...(storageClass !== undefined && { storageClass }),
    countType,
    ...(unit === 'days' && { countUnit: unit }),
    countNumber,
  };
}

function readTags(value: unknown): string[] {
  const tags = arrayOf(value, Number.MAX_SAFE_INTEGER).map(stringOf);
  if (tags.includes('')) throw refuse('string "" is too short (length: 0, required minimum: 1)');
  return tags;
}

/** What the schema cannot say about one rule. */
function checkRule({ selection, action }: LifecycleRule): void {
  const { tagStatus, tagPatternList, tagPrefixList, countType } = selection;
  const listed = tagPatternList !== undefined || tagPrefixList !== undefined;
  if (tagStatus === 'tagged' && !listed) {
    throw refuse('Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED.');
  }
  if (tagStatus !== 'tagged' && listed) {
    throw refuse('tagPrefixList and tagPatternList can only be specified when tagStatus=TAGGED.');
  }
  if (tagPatternList !== undefined && tagPrefixList !== undefined) {
    throw refuse('Only one of tagPrefixList and tagPatternList can be specified.');
  }
  if (tagPatternList?.some((pattern) => pattern.split('*').length - 1 > PATTERN_WILDCARDS_MAX)) {
    throw refuse(`A tag pattern can have at most ${PATTERN_WILDCARDS_MAX} wildcards (*).`);
  }
  if (countType === 'sinceImagePulled' && action.type !== 'transition') {
    throw refuse('countType=sinceImagePulled can only be used with action type=transition.');
  }
  if (countType === 'sinceImageTransitioned' && action.type !== 'expire') {
    throw refuse('countType=sinceImageTransitioned can only be used with action type=expire.');
  }
}

/** What must hold between rules; all but the priorities per storage class. */
function checkTogether(rules: readonly LifecycleRule[]): void {
  if (new Set(rules.map(({ rulePriority }) => rulePriority)).size < rules.length) {
    throw refuse('Each rule must have a unique rulePriority.');
  }
  for (const storageClass of STORAGE_CLASSES) {
    const those = rules.filter((rule) => storageClassOf(rule) === storageClass);
    if (those.filter(({ selection }) => selection.tagStatus === 'untagged').length > 1) {
      throw refuse('Only one rule can select Untagged images per storage class.');
    }
    const last = Math.max(...those.map(({ rulePriority }) => rulePriority));
    if (those.some((rule) => rule.selection.tagStatus === 'any' && rule.rulePriority !== last)) {
      throw refuse('Rule for tagStatus=ANY must have the lowest priority per storage class.');
    }
    const lists = those.flatMap(({ selection: { tagPatternList, tagPrefixList } }) => {
      const list = tagPatternList ?? tagPrefixList;
      if (list === undefined) return [];
      return JSON.stringify([tagPrefixList !== undefined, ...[...new Set(list)].sort()]);
    });
    if (new Set(lists).size < lists.length) {
      throw refuse('Each rule must select a unique list of tags per storage class.');
    }
  }
}
