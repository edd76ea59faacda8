/** Inputs generated from a service model that break exactly one of its constraints, each with ECR's reason. */
import type { ModelShape, ServiceModel } from '../src/model/service-model.ts';
import { enumOrder } from '../src/protocol/shapes.ts';

/** A good value for every pattern of the ECR inputs. */
const SAMPLES: Readonly<Record<string, string>> = {
  CredentialArn: 'arn:aws:secretsmanager:eu-west-1:012345678901:secret:ecr-pullthroughcache/a',
  KmsKeyForRepositoryCreationTemplate: '',
  LayerDigest: 'sha256:0a',
  PrincipalArn: 'arn:aws:iam::012345678901:role/a',
  RegistryId: '012345678901',
  SigningProfileArn: 'arn:aws:signer:eu-west-1:012345678901:/signing-profiles/ab',
  UploadId: '84b47cd7-fc7b-442f-b75b-309b93d2b2ee',
};

export function sample(model: ServiceModel, name: string): unknown {
  const shape = model.shapes[name] as ModelShape;
  switch (shape.type) {
    case 'structure':
      return Object.fromEntries(
        Object.entries(shape.members ?? {}).map(([member, of]) => [member, sample(model, of)]),
      );
    case 'list':
      return Array.from({ length: Math.max(shape.min ?? 1, 1) }, () => sample(model, shape.member as string));
    case 'string':
      return SAMPLES[name] ?? shape.enum?.[0] ?? 'a'.repeat(shape.min ?? 1);
    case 'boolean':
      return true;
    case 'blob':
      return 'YQ==';
    case 'integer':
    case 'long':
      return shape.min ?? 1;
    default:
      throw new Error(`no sample of ${name}`);
  }
}

interface Break {
  readonly value: unknown;
  readonly reason: string;
}

/** Texts longer than this are of single bytes, so that they fit into a request. */
const LONG = 1_000_000;

/** Ways to break one value, each with AWS's reason. */
function breaks(model: ServiceModel, name: string): Break[] {
  const shape = model.shapes[name] as ModelShape;
  const { min, max, type } = shape;
  const number = type === 'integer' || type === 'long';
  const measured = number ? 'value' : 'length';
  const sized = (size: number): unknown =>
    number
      ? size
      : type === 'list'
        ? Array.from({ length: size }, () => sample(model, shape.member as string))
        : type === 'blob'
          ? Buffer.alloc(size).toString('base64')
          : (size > LONG ? 'a' : '😀').repeat(size);
  const found: Break[] = [];
  if (max !== undefined) {
    found.push({
      value: sized(max + 1),
      reason: `Member must have ${measured} less than or equal to ${max}`,
    });
  }
  if (min !== undefined && (number || min > 0)) {
    found.push({
      value: sized(min - 1),
      reason: `Member must have ${measured} greater than or equal to ${min}`,
    });
  }
  if (shape.enum !== undefined) {
    const reason = `Member must satisfy enum value set: [${enumOrder(shape.enum).join(', ')}]`;
    found.push({ value: 'NONE_OF_THESE', reason });
  }
  if (shape.pattern !== undefined) {
    const reason = `Member must satisfy regular expression pattern: ${shape.pattern}`;
    found.push({ value: ' '.repeat(Math.max(min ?? 1, 1)), reason });
  }
  return found;
}

function allConstraints(shape: ModelShape): string {
  const all = [
    shape.max !== undefined && `Member must have length less than or equal to ${shape.max}`,
    shape.min !== undefined && `Member must have length greater than or equal to ${shape.min}`,
    shape.enum !== undefined && `Member must satisfy enum value set: [${enumOrder(shape.enum).join(', ')}]`,
    shape.pattern !== undefined && `Member must satisfy regular expression pattern: ${shape.pattern}`,
  ];
  return all.filter((each) => each !== false).join(', ');
}

export interface ConstraintCase {
  readonly path: string;
  readonly input: unknown;
  readonly reason: string;
  readonly shape: string;
}

/** Every way to break exactly one constraint of a structure, with everything else good. */
export function casesOf(model: ServiceModel, name: string): ConstraintCase[] {
  const shape = model.shapes[name] as ModelShape;
  const good = sample(model, name) as Record<string, unknown>;
  return Object.entries(shape.members ?? {}).flatMap(([wire, of]) => {
    const put = (value: unknown): unknown => ({ ...good, [wire]: value });
    // tags alone have capitals on the wire (`Key`), none in messages
    const member = wire.slice(0, 1).toLowerCase() + wire.slice(1);
    const inner = model.shapes[of] as ModelShape;
    const cases: ConstraintCase[] = [];
    if (shape.required?.includes(wire) === true) {
      cases.push({ path: member, input: put(null), reason: 'Member must not be null', shape: '' });
    }
    for (const { value, reason } of breaks(model, of)) {
      cases.push({ path: member, input: put(value), reason, shape: of });
    }
    if (inner.type === 'structure') {
      for (const each of casesOf(model, of)) {
        cases.push({ ...each, path: `${member}.${each.path}`, input: put(each.input) });
      }
    }
    if (inner.type === 'list') cases.push(...elementCases(model, member, inner, put));
    return cases;
  });
}

function elementCases(
  model: ServiceModel,
  member: string,
  list: ModelShape,
  put: (value: unknown) => unknown,
): ConstraintCase[] {
  const of = list.member as string;
  const element = model.shapes[of] as ModelShape;
  if (element.type === 'structure') {
    return casesOf(model, of).map((each) => ({
      ...each,
      path: `${member}.1.member.${each.path}`,
      input: put([each.input]),
    }));
  }
  const reason = `Member must satisfy constraint: [${allConstraints(element)}]`;
  return breaks(model, of).map(({ value }) => ({ path: member, input: put([value]), reason, shape: '' }));
}

export const REPOSITORY_NAME =
  "must satisfy regular expression '[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*'";

/** ECR's message about a case. */
export function messageOf({ path, reason, shape: broken }: ConstraintCase): string {
  const own = broken === 'RepositoryName';
  const words = reason.includes('pattern') ? REPOSITORY_NAME : reason.replace('Member must', 'must');
  return `Invalid parameter at '${path}' failed to satisfy constraint: '${own ? words : reason}'`;
}
