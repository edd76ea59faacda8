/**
 * Nothing passes by the layer: what Node.js and whole lives of the server change can be taken back by its records, all of it,
 * and what it does not know ends the process.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  basic,
  makePlace,
  readAdmin,
  registryPassword,
  run,
  startBerth,
  type Environment,
} from '../clients/harness.ts';
import { findPostgres, startPostgres, type Postgres } from '../postgres.ts';
import { connect } from './client.ts';
import { layFaults, missingCompiler } from './faults.ts';
import { takeBack } from './power.ts';
import { createWorld, live, settle, verify, type Life } from './world.ts';

/** What is below a directory: digests of files, and names of the rest. Not what the layer leaves alone. */
async function readTree(root: string): Promise<Record<string, string>> {
  const tree: Record<string, string> = {};
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    if (entry.name.endsWith('-shm') || entry.name === 'berth.lock') continue;
    const path = join(entry.parentPath, entry.name);
    let content = 'directory';
    if (entry.isFile())
      content = createHash('sha256')
        .update(await readFile(path))
        .digest('hex');
    else if (entry.isSymbolicLink()) content = `to ${await readlink(path)}`;
    tree[relative(root, path)] = content;
  }
  return tree;
}

describe('calls of Node.js on files', { skip: missingCompiler }, () => {
  let root: string;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), 'berth-layer-'));
    await mkdir(join(root, 'sub', 'empty'), { recursive: true });
    for (const name of ['old', 'other', join('sub', 'inner')])
      await writeFile(join(root, name), name.repeat(3000));
  });
  after(() => rm(root, { recursive: true, force: true }));

  async function runUnder(code: string): Promise<{ ended: string; steps: number }> {
    const was = await readTree(root);
    const layer = await layFaults(root);
    try {
      const environment = { ...layer.environment, PATH: process.env['PATH'] ?? '' };
      const script = `const fs = require('node:fs'); process.chdir(${JSON.stringify(root)}); ${code}`;
      const { code: status, stderr } = await run([process.execPath, '-e', script], { environment });
      const steps = layer.steps();
      takeBack(root, layer.area);
      assert.deepEqual(await readTree(root), was, `${code}\n${stderr}`);
      return { ended: status === 0 ? '' : stderr.trim(), steps };
    } finally {
      await layer.remove();
    }
  }

  // Failed attempts count: a directory without its parent, the removal of one that is not empty.
  const counted: [code: string, steps: number][] = [
    ["fs.writeFileSync('new', 'text')", 2],
    ["fs.writeFileSync('old', 'text')", 2],
    ["fs.appendFileSync('old', 'text')", 1],
    ["const fd = fs.openSync('old', 'r+'); fs.writeSync(fd, 'in the middle', 500); fs.fsyncSync(fd)", 2],
    ["const fd = fs.openSync('old', 'r+'); fs.writevSync(fd, [Buffer.from('a'), Buffer.from('b')], 9)", 1],
    ["const fd = fs.openSync('old', 'r+'); fs.writevSync(fd, [Buffer.from('a'), Buffer.from('b')])", 1],
    ["fs.truncateSync('old', 100)", 1],
    ["const fd = fs.openSync('old', 'r+'); fs.ftruncateSync(fd, 20000); fs.fdatasyncSync(fd)", 2],
    ["fs.renameSync('old', 'other')", 1],
    ["fs.renameSync('old', 'sub/new'); fs.writeFileSync('old', 'again')", 3],
    ["fs.linkSync('old', 'new'); fs.unlinkSync('old')", 2],
    ["fs.mkdirSync('a/b/c', { recursive: true }); fs.writeFileSync('a/b/c/new', 'text')", 7],
    ["fs.rmdirSync('sub/empty')", 1],
    ["fs.rmSync('sub', { recursive: true })", 3],
    ["fs.promises.rm('sub', { recursive: true })", 4],
    ["fs.promises.writeFile('new', 'text').then(() => fs.promises.rename('new', 'old'))", 3],
    ["fs.createWriteStream('new').end('text')", 2],
    ["fs.chmodSync('old', 0o600); fs.readFileSync('old'); fs.readdirSync('.')", 0],
  ];
  for (const [code, steps] of counted)
    test(`counted: ${code}`, async () => {
      assert.deepEqual(await runUnder(code), { ended: '', steps });
    });

  const refused: [code: string, call: string][] = [
    ["fs.copyFileSync('old', 'new')", '(copy_file_range|sendfile|a system call by number)'],
    ["fs.promises.copyFile('old', 'other')", '(copy_file_range|sendfile|a system call by number)'],
    ["fs.copyFileSync('old', 'new', fs.constants.COPYFILE_FICLONE)", 'ioctl'],
    ["fs.symlinkSync('old', 'new')", 'symlink'],
    ["fs.mkdtempSync('new-')", 'mkdtemp'],
    ["fs.renameSync('old', `${process.cwd()}-elsewhere`)", 'rename'],
  ];
  for (const [code, call] of refused)
    test(`refused: ${code}`, async () => {
      assert.match(
        (await runUnder(code)).ended,
        new RegExp(`^fault-layer.c does not know ${call} on (${root}/|files)`),
      );
    });
});

const postgres = await findPostgres();

describe('whole lives of the server', { skip: missingCompiler }, () => {
  test('SQLite: are taken back, the first start included', () => liveTwice('sqlite', {}));

  describe('PostgreSQL', { skip: postgres === undefined && 'not installed: postgresql' }, () => {
    let database: Postgres;
    before(async () => {
      database = await startPostgres(postgres ?? '');
    });
    after(() => database.stop());
    test('are taken back, the first start included', () =>
      liveTwice('postgres', { BERTH_DATABASE: database.url }));
  });
});

async function liveTwice(name: string, extra: Environment): Promise<void> {
  const place = await makePlace(`layer-${name}`);
  const data = join(place.directory, 'data');
  const layer = await layFaults(data);
  const flags = ['--gc-interval-ms', '60', '--trash-grace-ms', '200', '--log-level', 'warn'];
  const world = createWorld();
  let authorization: string | undefined;
  try {
    const was = await readTree(data);
    for (let number = 0; number < 2; number++) {
      const environment = { ...place.environment, ...layer.environment, ...extra };
      const server = await startBerth({ data, environment, flags });
      try {
        const admin = await readAdmin(data);
        authorization ??= basic(await registryPassword(server, admin));
        const connection = connect(server.port, authorization);
        const life: Life = { server, admin, world, aheadMs: 0, connection };
        if (number === 0) await settle(life);
        else await verify(life, true);
        world.life += 1;
        await live(life);
        connection.close();
        assert.equal(await server.stop(), 0, server.output());
      } finally {
        await server.stop('SIGKILL');
      }
    }
    assert.ok(Object.keys(await readTree(data)).length > 20);
    takeBack(data, layer.area);
    assert.deepEqual(await readTree(data), was);
  } finally {
    await layer.remove();
    await place.remove();
  }
}
