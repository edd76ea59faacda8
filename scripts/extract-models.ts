/**
 * Writes the trimmed service models and their TypeScript types from botocore (Apache-2.0).
 *
 *   node bin/run.js scripts/extract-models.ts [<unpacked botocore>] [--check]
 *
 * The argument is the folder that holds `__init__.py` and `data/`. With `--check` nothing is written and the exit
 * status is 1 when a committed file differs from what would be written. A trait or type the interpreter does not know
 * stops the extraction, so that an addition to the model is never silently ignored.
 *
 * `berth.json`, the model of Berth's own operations, is written by hand; only its types are made from it. Without the
 * folder of botocore only that is done.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { ModelOperation, ModelShape, ServiceModel } from '../src/model/service-model.ts';

interface RawReference {
  readonly shape: string;
  readonly resultWrapper?: string;
}

type Raw = Readonly<Record<string, unknown>>;

const SERVICES = [
  { name: 'ecr', folder: 'ecr/2015-09-21' },
  { name: 'iam', folder: 'iam/2010-05-08' },
  { name: 'sts', folder: 'sts/2011-06-15' },
] as const;

/** Traits that say nothing the server acts on. */
const DROPPED = new Set(['documentation', 'deprecated', 'deprecatedMessage', 'box', 'auth', 'name', 'http']);
const OPERATION_TRAITS = new Set(['input', 'output', 'errors', 'authtype']);
const SHAPE_TRAITS = [
  'type', 'members', 'required', 'member', 'key', 'value', 'min', 'max', 'pattern', 'enum',
  'sensitive', 'exception', 'fault', 'error',
] as const; // prettier-ignore

const modelFolder = join(import.meta.dirname, '../src/model');

function readModel(botocore: string, folder: string): Raw {
  const path = join(botocore, 'data', folder, 'service-2.json');
  const text = existsSync(path) ? readFileSync(path) : gunzipSync(readFileSync(`${path}.gz`));
  return JSON.parse(text.toString()) as Raw;
}

function trimOperation(name: string, raw: Raw): ModelOperation {
  const http = raw['http'] as Raw;
  if (http['method'] !== 'POST' || http['requestUri'] !== '/') throw new Error(`${name} is not POST /`);
  for (const trait of Object.keys(raw)) {
    if (!DROPPED.has(trait) && !OPERATION_TRAITS.has(trait)) throw new Error(`${name}: trait ${trait}`);
  }
  const input = raw['input'] as RawReference | undefined;
  const output = raw['output'] as RawReference | undefined;
  const errors = raw['errors'] as readonly RawReference[] | undefined;
  return {
    ...(input && { input: input.shape }),
    ...(output && { output: output.shape }),
    ...(output?.resultWrapper !== undefined && { resultWrapper: output.resultWrapper }),
    ...(errors && { errors: errors.map((error) => error.shape) }),
    ...(raw['authtype'] === 'none' && { authtype: 'none' as const }),
  };
}

function reference(owner: string, raw: unknown): string {
  for (const trait of Object.keys(raw as Raw)) {
    if (trait !== 'shape' && !DROPPED.has(trait)) throw new Error(`${owner}: trait ${trait}`);
  }
  return (raw as RawReference).shape;
}

function trimShape(name: string, raw: Raw): ModelShape {
  for (const trait of Object.keys(raw)) {
    if (!DROPPED.has(trait) && !(SHAPE_TRAITS as readonly string[]).includes(trait)) {
      throw new Error(`${name}: trait ${trait}`);
    }
  }
  const shape: Record<string, unknown> = {};
  for (const trait of SHAPE_TRAITS) {
    const value = raw[trait];
    if (value === undefined) continue;
    if (trait === 'members') {
      const members = Object.entries(value as Raw);
      shape['members'] = Object.fromEntries(
        members.map(([key, of]) => [key, reference(`${name}.${key}`, of)]),
      );
    } else if (trait === 'member' || trait === 'key' || trait === 'value') {
      shape[trait] = reference(name, value);
    } else if (trait === 'error') {
      const { code, httpStatusCode } = value as { code: string; httpStatusCode: number };
      shape['error'] = { code, httpStatusCode };
    } else shape[trait] = value;
  }
  return shape as unknown as ModelShape;
}

function sorted<Value>(record: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(Object.entries(record).toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

function mapValues<In, Out>(record: Readonly<Record<string, In>>, to: (key: string, value: In) => Out) {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, to(key, value)]));
}

function extractModel(botocore: string, version: string, name: string, folder: string): ServiceModel {
  const raw = readModel(botocore, folder);
  const metadata = raw['metadata'] as Record<string, string>;
  const kept = ['apiVersion', 'jsonVersion', 'protocol', 'targetPrefix', 'xmlNamespace'];
  const overlayPath = join(modelFolder, `${name}-overlay.json`);
  const overlay = existsSync(overlayPath)
    ? (JSON.parse(readFileSync(overlayPath, 'utf8')) as Pick<ServiceModel, 'operations' | 'shapes'>)
    : undefined;
  const operations = mapValues(raw['operations'] as Record<string, Raw>, trimOperation);
  const shapes = mapValues(raw['shapes'] as Record<string, Raw>, trimShape);
  for (const key of Object.keys(overlay?.operations ?? {})) {
    if (key in operations) throw new Error(`botocore has ${key} now: remove it from ${name}-overlay.json`);
  }
  return {
    source: {
      package: 'botocore',
      version,
      license: 'Apache-2.0',
      ...(overlay && { overlay: `${name}-overlay.json` }),
    },
    metadata: Object.fromEntries(
      kept.filter((key) => key in metadata).map((key) => [key, metadata[key]]),
    ) as unknown as ServiceModel['metadata'],
    operations: sorted({ ...operations, ...overlay?.operations }),
    shapes: sorted({ ...overlay?.shapes, ...shapes }),
  };
}

/** One line per operation and shape, so that a diff between versions reads well. */
function renderModel(model: ServiceModel): string {
  const block = (record: Readonly<Record<string, unknown>>): string =>
    Object.entries(record)
      .map(([key, value]) => `${JSON.stringify(key)}: ${JSON.stringify(value)}`)
      .join(',\n');
  return (
    `{\n"source": ${JSON.stringify(model.source)},\n"metadata": ${JSON.stringify(model.metadata)},\n` +
    `"operations": {\n${block(model.operations)}\n},\n"shapes": {\n${block(model.shapes)}\n}\n}\n`
  );
}

function typeOf(model: ServiceModel, name: string): string {
  const shape = model.shapes[name];
  if (shape === undefined) throw new Error(`shape ${name} is missing`);
  switch (shape.type) {
    case 'structure':
      return typeName(name);
    case 'list':
      return `${typeOf(model, shape.member ?? '')}[]`;
    case 'map':
      return `{ [key: string]: ${typeOf(model, shape.value ?? '')} }`;
    case 'string':
      return shape.enum === undefined ? 'string' : typeName(name);
    case 'integer':
    case 'long':
    case 'double':
      return 'number';
    case 'boolean':
      return 'boolean';
    case 'timestamp':
      return 'Date';
    case 'blob':
      return 'Uint8Array';
  }
}

/** IAM writes some shape names in lower camel case and would shadow a global with others. */
function typeName(name: string): string {
  return name === 'Date' || name === 'Record' ? `${name}Shape` : name;
}

function renderType(model: ServiceModel, name: string, shape: ModelShape): string {
  if (shape.enum !== undefined) {
    const values = shape.enum.map((value) => `'${value}'`);
    const line = `export type ${typeName(name)} = ${values.join(' | ')};\n`;
    return line.length <= 111 ? line : `export type ${typeName(name)} =\n  | ${values.join('\n  | ')};\n`;
  }
  const members = Object.entries(shape.members ?? {}).map(([member, of]) => {
    const required = shape.required?.includes(member) === true;
    const type = typeOf(model, of);
    return required ? `  ${member}: ${type};\n` : `  ${member}?: ${type} | undefined;\n`;
  });
  if (members.length === 0) return `export type ${typeName(name)} = { [member: string]: never };\n`;
  return `export type ${typeName(name)} = {\n${members.join('')}};\n`;
}

function sourceOf({ source }: ServiceModel): string {
  return source.package === 'berth' ? 'written by hand' : `${source.package} ${source.version}`;
}

/**
 * WHY: type aliases, not interfaces: only an alias is assignable to the index signature of `Structure`, which is what
 * the operation table asks for.
 */
function renderTypes(model: ServiceModel, name: string): string {
  const types = Object.entries(model.shapes)
    .filter(
      ([, shape]) => shape.exception !== true && (shape.type === 'structure' || shape.enum !== undefined),
    )
    .map(([key, shape]) => renderType(model, key, shape));
  return (
    `// Generated by scripts/extract-models.ts from ${name}.json (${sourceOf(model)}, Apache-2.0). ` +
    `Do not edit.\n/* oxlint-disable */\n\n${types.join('\n')}`
  );
}

function main(): void {
  const check = process.argv.includes('--check');
  const botocore = process.argv.slice(2).find((argument) => !argument.startsWith('-'));
  const write = (file: string, text: string): void => {
    const path = join(modelFolder, file);
    if (!check) writeFileSync(path, text);
    else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
      process.stderr.write(`src/model/${file} is not current: run the extraction again\n`);
      process.exitCode = 1;
    }
  };
  const own = JSON.parse(readFileSync(join(modelFolder, 'berth.json'), 'utf8')) as ServiceModel;
  write('berth-types.ts', renderTypes(own, 'berth'));
  if (botocore === undefined) return;
  const init = readFileSync(join(botocore, '__init__.py'), 'utf8');
  const version = /^__version__ = '([^']+)'/m.exec(init)?.[1];
  if (version === undefined) throw new Error('no __version__ in __init__.py');
  for (const { name, folder } of SERVICES) {
    const model = extractModel(botocore, version, name, folder);
    write(`${name}.json`, renderModel(model));
    write(`${name}-types.ts`, renderTypes(model, name));
  }
}

main();
