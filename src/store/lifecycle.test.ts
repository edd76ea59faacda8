import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openSqliteStore } from './store.ts';

test('what deleting an image asks of a large repository are steps into indexes by image', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'berth-plans-'));
  const file = join(directory, 'berth.db');
  // Still open: closing it would gather statistics, which a server that runs for months does not have.
  const store = await openSqliteStore({ file });
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const statements = [
      'delete from image where repository_id = ? and digest = ?',
      'select distinct subject_digest from image where repository_id = ? and subject_digest in (?, ?)',
      'select name from tag where repository_id = ? and image_digest = ?',
      'select status from image where repository_id = ? and status is not null limit 1',
    ];
    const steps = statements.flatMap((sql) =>
      database
        .prepare(`explain query plan ${sql}`)
        .all()
        .map(({ detail }) => String(detail)),
    );
    assert.ok(steps.length > statements.length);
    const walks = steps.filter((step) => !/\(repository_id=\? AND \w+(=\?|>\?)/.test(step));
    assert.deepEqual(walks, []);
  } finally {
    database.close();
    await store.close();
    await rm(directory, { recursive: true });
  }
});
