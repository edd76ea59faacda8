/** Backups of the server as it runs: taken while images are pushed and deleted, restored after everything is gone. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import {
  appendFile,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  CreateRepositoryCommand,
  DescribeImagesCommand,
  ECRClient,
  GetAuthorizationTokenCommand,
} from '@aws-sdk/client-ecr';
import { createMain, type Surroundings } from '../../src/cli/cli.ts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { listTables, openSqliteStore } from '../../src/store/store.ts';
import { findPostgres, startPostgres } from '../postgres.ts';

const OCI_IMAGE = 'application/vnd.oci.image.manifest.v1+json';
const digestOf = (bytes: Uint8Array | string) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

async function openPlace() {
  const place = await mkdtemp(join(tmpdir(), 'berth-backup-'));
  return {
    data: join(place, 'data'),
    backups: join(place, 'backups'),
    other: join(place, 'other'),
    [Symbol.asyncDispose]: () => rm(place, { recursive: true, force: true }),
  };
}

/** Runs the command line in this process. */
async function berth(argv: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const output = { out: '', err: '' };
  const capture = (name: 'out' | 'err') => ({ write: (text: string) => ((output[name] += text), true) });
  const surroundings = {
    ...process,
    env,
    platform: process.platform,
    stdout: capture('out'),
    stderr: capture('err'),
  };
  const code = await createMain(surroundings as unknown as Surroundings).run(['node', 'berth', ...argv]);
  return { code, ...output };
}

async function run<T>(argv: readonly string[], code: number, env: NodeJS.ProcessEnv = {}): Promise<T> {
  const result = await berth([...argv, '--json'], env);
  assert.equal(result.code, code, result.err);
  return JSON.parse(result.out) as T;
}

interface Snapshot {
  readonly snapshot: string;
  readonly blobs: { readonly count: number; readonly bytes: number };
  readonly copied: number;
  readonly removed: readonly string[];
  readonly lost: readonly { readonly digest: string }[];
}

interface Fsck {
  readonly result: string;
  readonly counts: { readonly images: number; readonly copies: number; readonly tags: number };
  readonly findings: readonly {
    readonly code: string;
    readonly digest?: string;
    readonly neededBy?: readonly { readonly repository: string; readonly tags: readonly string[] }[];
  }[];
}

interface Key {
  readonly id: string;
  readonly secret: string;
}

/** The server on a data directory; `key` is that of the first start, when this is not one. */
async function serve(data: string, key?: Key, database = '') {
  const env = database === '' ? {} : { BERTH_DATABASE: database };
  const server = await start(readConfig({ flags: { data, port: '0' }, env, platform: process.platform }), {
    log: createLog('silent'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const credentials = key ?? server.firstCredentials;
  assert.ok(credentials !== undefined);
  const client = new ECRClient({
    endpoint: server.endpoint,
    region: 'us-east-1',
    credentials: { accessKeyId: credentials.id, secretAccessKey: credentials.secret },
    maxAttempts: 1,
  });
  const { authorizationData } = await client.send(new GetAuthorizationTokenCommand({}));
  const authorization = `Basic ${authorizationData?.[0]?.authorizationToken}`;
  const send = async (
    method: string,
    path: string,
    body?: Uint8Array | string,
    type?: string,
  ): Promise<Response> => {
    const headers = { authorization, ...(type !== undefined && { 'content-type': type }) };
    const url = new URL(path, server.endpoint);
    return fetch(url, { method, headers, ...(body !== undefined && { body: Buffer.from(body) }) });
  };
  return {
    server,
    client,
    key: credentials,
    send,
    upload: async (repository: string, bytes: Uint8Array): Promise<void> => {
      const begun = await send('POST', `/v2/${repository}/blobs/uploads/`);
      const location = begun.headers.get('location') ?? '';
      const separator = location.includes('?') ? '&' : '?';
      const ended = await send('PUT', `${location}${separator}digest=${digestOf(bytes)}`, bytes);
      assert.equal(ended.status, 201, await ended.text());
    },
    pull: async (path: string): Promise<Buffer> => {
      const response = await send('GET', path);
      const bytes = Buffer.from(await response.arrayBuffer());
      assert.equal(response.status, 200, bytes.toString());
      return bytes;
    },
    async [Symbol.asyncDispose]() {
      client.destroy();
      await server.stop();
    },
  };
}

type Served = Awaited<ReturnType<typeof serve>>;

interface Pushed {
  readonly repository: string;
  readonly tag: string;
  readonly manifest: Buffer;
  readonly blobs: readonly Uint8Array[];
}

async function pushImage(
  served: Served,
  repository: string,
  tag: string,
  layers: readonly Uint8Array[],
): Promise<Pushed> {
  const config = Buffer.from(JSON.stringify({ tag }));
  for (const bytes of [config, ...layers]) {
    const { status } = await served.send('HEAD', `/v2/${repository}/blobs/${digestOf(bytes)}`);
    if (status === 404) await served.upload(repository, bytes);
  }
  const describe = (mediaType: string, bytes: Uint8Array) => ({
    mediaType,
    digest: digestOf(bytes),
    size: bytes.length,
  });
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_IMAGE,
      config: describe('application/vnd.oci.image.config.v1+json', config),
      layers: layers.map((layer) => describe('application/vnd.oci.image.layer.v1.tar', layer)),
    }),
  );
  const { status } = await served.send('PUT', `/v2/${repository}/manifests/${tag}`, manifest, OCI_IMAGE);
  assert.equal(status, 201);
  return { repository, tag, manifest, blobs: [config, ...layers] };
}

async function checkPulls(served: Served, images: readonly Pushed[]): Promise<void> {
  for (const { repository, tag, manifest, blobs } of images) {
    assert.deepEqual(await served.pull(`/v2/${repository}/manifests/${tag}`), manifest);
    for (const bytes of blobs) {
      assert.ok((await served.pull(`/v2/${repository}/blobs/${digestOf(bytes)}`)).equals(bytes));
    }
  }
}

/** Images of which some share layers: one larger than a frame, one of the smallest size. */
async function pushSome(served: Served, repository: string): Promise<Pushed[]> {
  await served.client.send(new CreateRepositoryCommand({ repositoryName: repository }));
  const shared = randomBytes(2_500_000);
  return [
    await pushImage(served, repository, 'one', [shared, randomBytes(1)]),
    await pushImage(served, repository, 'two', [shared, randomBytes(70_000)]),
  ];
}

async function filesOf(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** The newest number of an event, by the newest snapshot. */
async function eventsOf(backups: string): Promise<number> {
  const id = (await readdir(join(backups, 'snapshots'))).sort().at(-1) ?? '';
  const manifest = await readFile(join(backups, 'snapshots', id, 'manifest.json'), 'utf8');
  const { counters } = JSON.parse(manifest) as { counters: { event?: number } };
  assert.ok(counters.event !== undefined);
  return counters.event;
}

test('a backup made while images are pushed and deleted comes back byte for byte', async () => {
  await using place = await openPlace();
  const { data, backups } = place;
  let key: Key;
  let before: Pushed[];
  let during: Pushed[] = [];
  {
    await using served = await serve(data);
    ({ key } = served);
    before = await pushSome(served, 'team/app');
    await served.client.send(new CreateRepositoryCommand({ repositoryName: 'busy' }));
    const backup = { runs: true };
    const traffic = async (): Promise<Pushed[]> => {
      const pushed: Pushed[] = [];
      for (let count = 0; backup.runs || count < 3; count++) {
        pushed.push(await pushImage(served, 'busy', `t${count}`, [randomBytes(200_000)]));
        if (count % 3 !== 2) continue;
        const gone = pushed.splice(1, 1)[0];
        const deleted = await served.send('DELETE', `/v2/busy/manifests/${digestOf(gone?.manifest ?? '')}`);
        assert.equal(deleted.status, 202);
      }
      return pushed;
    };
    const pushing = traffic();
    await mkdir(join(data, 'tls'));
    await writeFile(join(data, 'tls', 'ca.pem'), 'a certificate', { mode: 0o600 });
    const first = await run<Snapshot>(['backup', backups, '--data', data], 0);
    backup.runs = false;
    during = await pushing;
    assert.ok(first.blobs.count >= 5);
    assert.equal(first.copied, first.blobs.count);
    // What was copied before is not copied again.
    const second = await run<Snapshot>(['backup', backups, '--data', data], 0);
    assert.ok(second.blobs.count > first.blobs.count);
    assert.ok(second.copied < second.blobs.count);
    assert.deepEqual(second.lost, []);
    await run(['fsck', '--data', data], 0);
  }
  await rm(data, { recursive: true });
  const { snapshot } = await run<Snapshot>(['restore', backups, '--data', data], 0);
  assert.deepEqual((await readdir(data)).sort(), [
    'berth.db',
    'berth.lock',
    'berth.pid',
    'blobs',
    'keys',
    'tls',
  ]);
  assert.equal(await readFile(join(data, 'tls', 'ca.pem'), 'utf8'), 'a certificate');
  for (const file of await filesOf(data)) assert.equal((await stat(file)).mode & 0o077, 0, file);
  const checked = await run<Fsck>(['fsck', '--data', data], 0);
  assert.equal(checked.result, 'clean');
  assert.equal(checked.counts.tags, before.length + during.length);

  await using served = await serve(data, key);
  assert.equal(served.server.firstCredentials, undefined);
  await checkPulls(served, [...before, ...during]);
  await checkPulls(served, [await pushImage(served, 'team/app', 'after', [randomBytes(1000)])]);
  const { imageDetails } = await served.client.send(
    new DescribeImagesCommand({ repositoryName: 'team/app' }),
  );
  assert.deepEqual(imageDetails?.flatMap(({ imageTags }) => imageTags ?? []).sort(), ['after', 'one', 'two']);
  assert.match(snapshot, /^\d{8}T\d{9}Z$/);
});

test('snapshots are kept by number, and only what they need', async () => {
  await using place = await openPlace();
  const { data, backups } = place;
  await using served = await serve(data);
  const [one, two] = await pushSome(served, 'team/app');
  assert.ok(one && two);
  const first = await run<Snapshot>(['backup', backups, '--data', data], 0);
  assert.equal((await filesOf(join(backups, 'blobs'))).length, 5);
  const second = await run<Snapshot>(['backup', backups, '--data', data, '--keep', '0'], 0);
  assert.deepEqual(second.removed, [first.snapshot]);
  assert.equal(second.copied, 0);
  assert.deepEqual(await readdir(join(backups, 'snapshots')), [second.snapshot]);
  assert.equal((await filesOf(join(backups, 'blobs'))).length, 5);
});

test('a backup that is not whole, or a place that is not empty, is refused and nothing changed', async () => {
  await using place = await openPlace();
  const { data, backups, other } = place;
  let images: Pushed[];
  let key: Key;
  {
    await using served = await serve(data);
    ({ key } = served);
    images = await pushSome(served, 'team/app');
    await run(['backup', backups, '--data', data], 0);
    await run(['backup', join(place.other, 'keyless'), '--data', data, '--without-keys'], 0);
  }
  const refused = async (argv: readonly string[], text: RegExp): Promise<void> => {
    const result = await berth(argv);
    assert.equal(result.code, 1);
    assert.match(result.err, text);
  };
  await refused(['restore', backups, '--data', data], /data is not empty: it has berth\.db/);
  await refused(['backup', data, '--data', data], /not a directory of backups/);
  const [id = ''] = await readdir(join(backups, 'snapshots'));
  const [blob = ''] = (await filesOf(join(backups, 'blobs'))).sort();
  const table = join(backups, 'snapshots', id, 'tables', 'repository.jsonl');
  const manifest = join(backups, 'snapshots', id, 'manifest.json');
  const damages: readonly (readonly [path: string, damage: () => Promise<void>, text: RegExp])[] = [
    [
      table,
      () => appendFile(table, '\n'),
      /tables\/repository\.jsonl of snapshot \S+ is not what was written/,
    ],
    [
      manifest,
      async () =>
        writeFile(manifest, (await readFile(manifest, 'utf8')).replace('"lost": []', '"lost": [1]')),
      /was altered/,
    ],
    [
      manifest,
      async () =>
        writeFile(manifest, (await readFile(manifest, 'utf8')).replace('keys/master.key', 'keys/../../key')),
      /names a file that no backup has: keys\/\.\.\/\.\.\/key/,
    ],
    [blob, () => truncate(blob, 1030), /in the backup cannot be read/],
    [blob, () => rm(blob), /in the backup cannot be read/],
  ];
  const fresh = join(place.other, 'fresh');
  for (const [path, damage, text] of damages) {
    const good = await readFile(path);
    await damage();
    await refused(['restore', backups, '--data', fresh], text);
    await refused(['restore', backups, '--data', fresh, '--verify'], text);
    assert.deepEqual(await readdir(fresh), []);
    await writeFile(path, good);
  }
  await run(['restore', backups, '--data', fresh, '--verify'], 0);

  const keyless = join(place.other, 'keyless');
  const restored = join(other, 'restored');
  assert.deepEqual(
    (await filesOf(keyless)).filter((path) => path.endsWith('.key')),
    [],
  );
  await refused(['restore', keyless, '--data', restored], /made without keys/);
  await cp(join(data, 'keys'), join(restored, 'keys'), { recursive: true });
  await run(['restore', keyless, '--data', restored], 0);
  await using served = await serve(restored, key);
  await checkPulls(served, images);
});

test('a restore that was broken off is begun again and keeps what it copied', async () => {
  await using place = await openPlace();
  const { data, backups, other } = place;
  {
    await using served = await serve(data);
    await pushSome(served, 'team/app');
    await run(['backup', backups, '--data', data], 0);
  }
  await run(['restore', backups, '--data', other], 0);
  // As a crash before the last steps would have left it.
  const [id = ''] = await readdir(join(backups, 'snapshots'));
  await cp(join(other, 'berth.db'), join(other, 'restoring-00ff.db'));
  await rm(join(other, 'berth.db'));
  await writeFile(join(other, 'restoring.json'), JSON.stringify({ snapshot: id }));
  const [kept = ''] = (await filesOf(join(other, 'blobs'))).sort();
  const { ino } = await stat(kept);
  await run(['restore', backups, '--data', other], 0);
  assert.equal((await stat(kept)).ino, ino);
  assert.deepEqual((await readdir(other)).sort(), ['berth.db', 'berth.lock', 'berth.pid', 'blobs', 'keys']);
  await run(['fsck', '--data', other], 0);
});

test('no server starts on a database that a restore has not filled to its end, from whatever directory', async () => {
  await using place = await openPlace();
  const { data } = place;
  await mkdir(data, { recursive: true });
  const store = await openSqliteStore({ file: join(data, 'berth.db') });
  await store.transact('restore.begin', { tables: await listTables(store) });
  await store.close();
  await assert.rejects(serve(data), /a restore into the database did not end: run "berth restore" again/);
});

test('damage is named with who needs it, kept out of backups, and healed by a push after a repair', async () => {
  await using place = await openPlace();
  const { data, backups, other } = place;
  let key: Key;
  let images: Pushed[];
  let lost: string;
  {
    await using served = await serve(data);
    ({ key } = served);
    images = await pushSome(served, 'team/app');
    lost = digestOf(images[0]?.blobs[1] ?? '');
  }
  let largest = '';
  for (const file of await filesOf(join(data, 'blobs')))
    if ((await stat(file)).size > 2_000_000) largest = file;
  const bytes = await readFile(largest);
  bytes[1_600_000] = (bytes[1_600_000] ?? 0) ^ 1;
  await writeFile(largest, bytes);

  const found = await run<Fsck>(['fsck', '--data', data], 2);
  assert.deepEqual(
    found.findings.map(({ code, digest, neededBy }) => [
      code,
      digest,
      neededBy?.map(({ tags }) => tags[0]).sort(),
    ]),
    [['copy-damaged', lost, ['one', 'two']]],
  );
  const text = await berth(['fsck', '--data', data]);
  assert.match(text.out, /needed by 000000000000\/us-east-1\/team\/app@sha256:\w{64} \(tagged one\)/);
  assert.match(
    text.out,
    /checked 2 images, 2 tags, 5 blobs \(1\.1 MB\), 0 uploads, 5 files, 0 in the trash: damage\n$/,
  );

  const backedUp = await run<Snapshot>(['backup', backups, '--data', data], 2);
  assert.deepEqual([backedUp.lost.map(({ digest }) => digest), backedUp.blobs.count], [[lost], 4]);
  await run(['restore', backups, '--data', other], 2);
  {
    await using served = await serve(data, key);
    const refused = await berth(['fsck', '--repair', '--data', data]);
    assert.equal(refused.code, 3);
    assert.match(refused.err, /in use by another Berth process/);
    // A flipped bit is never served: the connection breaks, or an error is answered.
    await assert.rejects(served.pull(`/v2/team/app/blobs/${lost}`));
  }
  await run(['fsck', '--repair', '--data', data], 2);
  for (const directory of [data, other]) {
    await using served = await serve(directory, key);
    assert.equal((await served.send('HEAD', `/v2/team/app/blobs/${lost}`)).status, 404);
    const [image] = images;
    assert.ok(image !== undefined);
    await pushImage(served, 'team/app', 'one', image.blobs.slice(1));
    await checkPulls(served, images);
  }
  await run(['fsck', '--data', other], 0);
});

const programs = await findPostgres();
if (programs === undefined) {
  process.stdout.write('SKIPPED backups of PostgreSQL: no initdb and pg_ctl found\n');
} else {
  test('from SQLite to PostgreSQL and back', async () => {
    await using place = await openPlace();
    const { data, backups, other } = place;
    const postgres = await startPostgres(programs);
    try {
      let key: Key;
      let images: Pushed[];
      {
        await using served = await serve(data);
        ({ key } = served);
        images = await pushSome(served, 'team/app');
        await run(['backup', backups, '--data', data], 0);
      }
      const env = { BERTH_DATABASE: postgres.url };
      await run(['restore', backups, '--data', other], 0, env);
      assert.deepEqual((await readdir(other)).sort(), ['blobs', 'keys']);
      const again = await berth(['restore', backups, '--data', join(place.other, '..', 'third')], env);
      assert.equal(again.code, 1);
      assert.match(again.err, /the database is not empty: table \w+ has rows/);
      await run(['fsck', '--data', other], 0, env);
      {
        await using served = await serve(other, key, postgres.url);
        await checkPulls(served, images);
        images.push(await pushImage(served, 'team/app', 'three', [randomBytes(5000)]));
        const there = join(place.backups, '..', 'there');
        const { blobs } = await run<Snapshot>(['backup', there, '--data', other], 0, env);
        assert.equal(blobs.count, 7);
        // Numbers of events go on where they were.
        assert.ok((await eventsOf(there)) > (await eventsOf(backups)));
        await rm(data, { recursive: true });
        await run(['restore', there, '--data', data], 0);
      }
      await run(['fsck', '--data', data], 0);
      await using served = await serve(data, key);
      await checkPulls(served, images);
    } finally {
      await postgres.stop();
    }
  });
}
