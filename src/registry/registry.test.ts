import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe } from 'node:test';
import { promisify } from 'node:util';
import { findPostgres, type Postgres, startPostgres } from '../../test/postgres.ts';
import { openPostgresStore, openSqliteStore } from '../store/store.ts';
import { aliasesTests } from './test-aliases.ts';
import { closingTests } from './test-closing.ts';
import { garbageTests } from './test-garbage.ts';
import { imagesTests } from './test-images.ts';
import { layersTests } from './test-layers.ts';
import { sparseManifestsTests } from './test-sparse-manifests.ts';
import { uploadsTests } from './test-uploads.ts';
import { type OpenStore, openTestRegistry } from './testing.ts';

const run = promisify(execFile);

function registryTests(openStore: OpenStore): void {
  for (const suite of [
    uploadsTests,
    closingTests,
    imagesTests,
    sparseManifestsTests,
    layersTests,
    aliasesTests,
    garbageTests,
  ]) {
    describe(suite.name, () => suite((options) => openTestRegistry(openStore, options)));
  }
}

describe('registry on SQLite', () => {
  registryTests((directory) => openSqliteStore({ file: join(directory, 'berth.db') }));
});

const programs = await findPostgres();
if (programs === undefined) {
  process.stdout.write('SKIPPED registry on PostgreSQL: no initdb and pg_ctl found\n');
} else {
  describe('registry on PostgreSQL', () => {
    let server: Postgres | undefined;
    let databases = 0;
    before(async () => {
      server = await startPostgres(programs);
    });
    after(() => server?.stop());
    registryTests(async () => {
      assert.ok(server !== undefined);
      const url = new URL(server.url);
      const name = `registry_${++databases}`;
      const host = decodeURIComponent(url.host);
      await run(join(programs, 'createdb'), ['-h', host, '-U', url.username, name]);
      return openPostgresStore({ url: server.url.replace(/[^/]*$/, name), poolMax: 16 });
    });
  });
}
