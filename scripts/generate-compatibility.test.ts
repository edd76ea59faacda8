import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ServiceModel } from '../src/model/service-model.ts';
import { renderCompatibility } from './generate-compatibility.ts';

test('one line per operation, in order of names, with the reason of a refusal', () => {
  const model: ServiceModel = {
    source: { package: 'botocore', version: '1.2.3', license: 'Apache-2.0' },
    metadata: { apiVersion: '2015-09-21', protocol: 'json' },
    operations: { PutB: {}, GetA: {} },
    shapes: {},
  };
  const page = renderCompatibility([
    { name: 'Amazon ECR', model, table: { PutB: { notBuilt: 'a | b' }, GetA: {} } },
  ]);
  assert.ok(
    page.endsWith(
      '\n## Amazon ECR\n\nAPI version 2015-09-21 as described by botocore 1.2.3. 1 of 2 operations.\n\n' +
        '| operation | built | why not |\n|---|---|---|\n| `GetA` | yes |  |\n| `PutB` | no | a \\| b |\n',
    ),
    page,
  );
});
