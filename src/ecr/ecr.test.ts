/** The operation tables over the databases there are. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe } from 'node:test';
import { promisify } from 'node:util';
import { findPostgres, type Postgres, startPostgres } from '../../test/postgres.ts';
import { openPostgresStore, openSqliteStore } from '../store/store.ts';
import { downloadTests } from './test-download.ts';
import { exclusionsTests } from './test-exclusions.ts';
import { imagesTests } from './test-images.ts';
import { layersTests } from './test-layers.ts';
import { lifecycleTests } from './test-lifecycle.ts';
import { listingsTests } from './test-listings.ts';
import { policiesTests } from './test-policies.ts';
import { referrersTests } from './test-referrers.ts';
import { registryTests } from './test-registry.ts';
import { repositoriesTests } from './test-repositories.ts';
import { storageClassTests } from './test-storage-class.ts';
import { tagsTests } from './test-tags.ts';
import { templatesTests } from './test-templates.ts';
import { createOpener, type OpenStore } from './testing.ts';

const run = promisify(execFile);

const SUITES = [
  repositoriesTests,
  tagsTests,
  policiesTests,
  imagesTests,
  listingsTests,
  layersTests,
  downloadTests,
  lifecycleTests,
  storageClassTests,
  registryTests,
  exclusionsTests,
  templatesTests,
  referrersTests,
];

function ecrTests(openStore: OpenStore): void {
  for (const suite of SUITES) describe(suite.name, () => suite(createOpener(openStore)));
}

describe('ECR operations on SQLite', () => {
  ecrTests((directory) => openSqliteStore({ file: join(directory, 'berth.db') }));
});

const programs = await findPostgres();
if (programs === undefined) {
  process.stdout.write('SKIPPED ECR operations on PostgreSQL: no initdb and pg_ctl found\n');
} else {
  describe('ECR operations on PostgreSQL', () => {
    let server: Postgres | undefined;
    const databases = new Map<string, string>();
    const createDatabase = async (name: string, ...options: readonly string[]): Promise<string> => {
      assert.ok(server !== undefined);
      const url = new URL(server.url);
      const host = decodeURIComponent(url.host);
      await run(join(programs, 'createdb'), ['-h', host, '-U', url.username, ...options, name]);
      return server.url.replace(/[^/]*$/, name);
    };
    before(async () => {
      server = await startPostgres(programs);
      // Every test's database is a copy of one that has the schema.
      const url = await createDatabase('empty');
      await (await openPostgresStore({ url, poolMax: 2 })).close();
    });
    after(() => server?.stop());
    ecrTests(async (directory) => {
      const url = databases.get(directory) ?? (await createDatabase(`ecr_${databases.size}`, '-T', 'empty'));
      databases.set(directory, url);
      return openPostgresStore({ url, poolMax: 4 });
    });
  });
}
