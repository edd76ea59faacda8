import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ServiceModel } from '../src/model/service-model.ts';
import { renderCompatibility } from './generate-compatibility.ts';

test('one line per operation, in order of names, with the reason of a refusal or what is not covered', () => {
  const model: ServiceModel = {
    source: { package: 'botocore', version: '1.2.3', license: 'Apache-2.0' },
    metadata: { apiVersion: '2015-09-21', protocol: 'json' },
    operations: { PutB: {}, GetA: {}, GetC: {} },
    shapes: {},
  };
  const page = renderCompatibility([
    {
      name: 'Amazon ECR',
      model,
      table: { PutB: { notBuilt: 'a | b' }, GetA: {}, GetC: { notCovered: 'c' } },
    },
  ]);
  assert.ok(
    page.endsWith(
      '\n## Amazon ECR\n\nAPI version 2015-09-21 as described by botocore 1.2.3. 2 of 3 operations.\n\n' +
        '| operation | built | what is not covered |\n|---|---|---|\n| `GetA` | yes |  |\n| `GetC` | yes | c |\n| `PutB` | no | a \\| b |\n',
    ),
    page,
  );
});
