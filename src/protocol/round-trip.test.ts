import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { ecrModel, iamModel, stsModel } from '../model/service-model.ts';
import { parseJson, renderJson } from './json.ts';
import type { Shape, Structure } from './operation.ts';
import { parseForm, readForm, renderXml, writeForm } from './query.ts';
import { compileModel, type CompiledShape } from './shapes.ts';

interface Wire {
  /** smallest step of a timestamp in ms */
  readonly stepMs: number;
  /** a form cannot say "empty structure" */
  readonly emptyStructures: boolean;
}

function arbitrary(shape: CompiledShape, wire: Wire): fc.Arbitrary<Shape> {
  switch (shape.type) {
    case 'structure': {
      const members = Object.fromEntries(
        shape.members.map((member) => [
          member.name,
          fc.option(arbitrary(member.shape, wire), { nil: undefined }),
        ]),
      );
      const structures = fc
        .record(members)
        .map((value) => Object.fromEntries(Object.entries(value).filter((entry) => entry[1] !== undefined)));
      return wire.emptyStructures
        ? structures
        : structures.filter((value) => Object.keys(value).length > 0 || shape.members.length === 0);
    }
    case 'list':
      return fc.array(arbitrary(shape.element as CompiledShape, wire), { maxLength: 3 });
    case 'map':
      return fc
        .array(fc.tuple(text, arbitrary(shape.value as CompiledShape, wire)), { maxLength: 3 })
        .map((entries) => Object.fromEntries(entries));
    case 'string':
      return text;
    case 'boolean':
      return fc.boolean();
    case 'integer':
      return fc.integer();
    case 'long':
      return fc.maxSafeInteger();
    case 'double':
      return fc.integer({ min: -1e6, max: 1e6 }).map((value) => value / 8);
    case 'timestamp':
      return fc
        .integer({ min: 0, max: 4e9 })
        .map((seconds) => new Date(seconds * 1000 + (wire.stepMs === 1 ? seconds % 1000 : 0)));
    case 'blob':
      return fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes));
  }
}

const text = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 8 }).map((value) => value.toWellFormed()),
  fc.constantFrom('', '__proto__', 'constructor', 'a&b=c+d', '%zz', ' ', '{"a":1}', '<x>'),
);

/** Shapes that say something: two members at least. */
function shapesOf(model: Parameters<typeof compileModel>[0], side: 'input' | 'output'): CompiledShape[] {
  const found = [...compileModel(model).operations.values()].map((operation) => operation[side]);
  return found.filter((shape) => shape !== undefined && shape.members.length > 1) as CompiledShape[];
}

test('JSON: what is rendered is parsed to the same value, inputs and outputs of every ECR operation', () => {
  for (const shape of [...shapesOf(ecrModel, 'input'), ...shapesOf(ecrModel, 'output')]) {
    const values = arbitrary(shape, { stepMs: 1, emptyStructures: true });
    fc.assert(
      fc.property(values, (value) => {
        const rendered = renderJson(shape, value as Structure);
        assert.deepEqual(parseJson(shape, Buffer.from(rendered)), value);
      }),
      { numRuns: 5 },
    );
  }
});

test('forms: what is written is parsed to the same value, inputs of every IAM and STS operation', () => {
  for (const shape of [...shapesOf(iamModel, 'input'), ...shapesOf(stsModel, 'input')]) {
    const values = arbitrary(shape, { stepMs: 1000, emptyStructures: false });
    fc.assert(
      fc.property(values, (value) => {
        const form = new Map<string, string>();
        readForm(new URLSearchParams(writeForm(shape, value)).toString(), form);
        assert.deepEqual(parseForm(shape, form), value);
      }),
      { numRuns: 5 },
    );
  }
});

test('XML: every output of IAM and STS is well-formed and carries no raw text', () => {
  for (const shape of [...shapesOf(iamModel, 'output'), ...shapesOf(stsModel, 'output')]) {
    const values = arbitrary(shape, { stepMs: 1000, emptyStructures: true });
    fc.assert(
      fc.property(values, (value) => {
        const open: string[] = [];
        const xml = renderXml(shape, value);
        const rest = xml.replace(
          /<(\/?)([A-Za-z]\w*)(\/?)>/g,
          (_, closing: string, name: string, empty: string) => {
            if (closing !== '') assert.equal(open.pop(), name);
            else if (empty === '') open.push(name);
            return '';
          },
        );
        assert.deepEqual(open, []);
        assert.doesNotMatch(rest, /[<>"']|&(?!(?:amp|lt|gt|quot|#39|#xD);)/);
      }),
      { numRuns: 5 },
    );
  }
});
