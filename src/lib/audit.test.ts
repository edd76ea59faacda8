import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { openAuditLog, type AuditLog, type AuditLogOptions } from './audit.ts';

describe('audit log', () => {
  let root: string;
  let directory: string;
  let errors: unknown[];
  let count = 0;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), 'berth-audit-'));
  });
  beforeEach(() => {
    directory = join(root, String((count += 1)), 'audit');
    errors = [];
  });
  after(() => rm(root, { recursive: true }));

  function open(options: Partial<AuditLogOptions> = {}): Promise<AuditLog> {
    return openAuditLog({
      directory,
      fileBytesMax: 1000,
      filesMax: 3,
      onError: (error) => errors.push(error),
      onRecovered: (dropped) => errors.push(dropped),
      ...options,
    });
  }

  const read = (number: number): Promise<string> =>
    readFile(join(directory, `audit-0000000${number}.jsonl`), 'utf8');

  it('keeps lines in order in a file only its owner can read', async () => {
    const log = await open();
    for (let i = 0; i < 5; i++) log.write(`line ${i}`);
    await log.close();
    assert.equal(await read(1), 'line 0\nline 1\nline 2\nline 3\nline 4\n');
    assert.equal((await stat(join(directory, 'audit-00000001.jsonl'))).mode & 0o777, 0o600);
    assert.equal((await stat(directory)).mode & 0o777, 0o700);
    assert.deepEqual([log.written, log.dropped, errors], [5, 0, []]);
  });

  it('goes on in the same file, after a line that was broken off', async () => {
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, 'audit-00000001.jsonl'), 'whole\nbrok');
    for (const line of ['next', 'last']) {
      const log = await open();
      log.write(line);
      await log.close();
    }
    assert.equal(await read(1), 'whole\nbrok\nnext\nlast\n');
  });

  it('begins a file when one is full, and keeps the newest', async () => {
    const log = await open({ filesMax: 2 });
    for (let i = 0; i < 5; i++) {
      log.write(String(i).repeat(600));
      await log.flush();
    }
    await log.close();
    assert.deepEqual((await readdir(directory)).sort(), ['audit-00000004.jsonl', 'audit-00000005.jsonl']);
    assert.equal(await read(5), `${'4'.repeat(600)}\n`);
  });

  it('goes on in another file when the current one, or the directory, was removed', async () => {
    const log = await open();
    log.write('one');
    await log.flush();
    await rm(join(directory, 'audit-00000001.jsonl'));
    log.write('two');
    await log.flush();
    assert.deepEqual(await readdir(directory), ['audit-00000002.jsonl']);
    assert.equal(await read(2), 'two\n');
    await rm(directory, { recursive: true });
    log.write('three');
    await log.flush();
    log.write('four');
    await log.close();
    assert.equal(await read(3), 'three\nfour\n');
    assert.deepEqual(errors, []);
  });

  it('is shared by processes: each follows when another begins a file, and no line is torn', async () => {
    const logs = [await open(), await open()];
    for (let i = 0; i < 40; i++) {
      for (const log of logs) log.write(`${i} `.padEnd(90, 'x'));
      await Promise.all(logs.map((log) => log.flush()));
    }
    await Promise.all(logs.map((log) => log.close()));
    const files = (await readdir(directory)).sort();
    assert.equal(files.length, 3);
    for (const file of files) {
      const text = await readFile(join(directory, file), 'utf8');
      assert.ok(text.length <= 1200);
      for (const line of text.split('\n').slice(0, -1)) assert.match(line, /^\d+ x+$/);
    }
  });

  it('drops lines when the disk is full, says so once, and does not grow', async () => {
    await mkdir(directory, { recursive: true });
    await symlink('/dev/full', join(directory, 'audit-00000001.jsonl'));
    const log = await open();
    const line = 'x'.repeat(1_048_575);
    for (let i = 0; i < 40; i++) {
      log.write(line);
      await log.flush();
    }
    assert.ok(log.dropped > 10, String(log.dropped));
    assert.equal(log.written + log.dropped, 40);
    assert.deepEqual(
      errors.map((error) => (error as NodeJS.ErrnoException).code),
      ['ENOSPC'],
    );
    await log.close();
  });

  it('writes long lines before many have gathered, and before the time', async (t) => {
    const log = await open({ fileBytesMax: 100_000_000 });
    t.mock.timers.enable({ apis: ['setTimeout'] });
    for (let i = 0; i < 11; i++) log.write('x'.repeat(100_000));
    while ((await read(1)).length < 1_100_000) await new Promise(setImmediate);
    t.mock.timers.reset();
    await log.close();
  });

  it('refuses to open where it cannot write', async () => {
    await mkdir(join(root, 'file'), { recursive: true });
    await writeFile(join(root, 'file', 'audit'), '');
    await chmod(join(root, 'file', 'audit'), 0o600);
    await assert.rejects(open({ directory: join(root, 'file', 'audit') }), { code: 'EEXIST' });
  });
});
