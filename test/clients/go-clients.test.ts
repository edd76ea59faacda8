/** Registry clients that are Go programs: crane, oras, regctl and helm, against a server on the loopback. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { goTool, type FoundTool } from './go-tools.ts';
import {
  callEcr,
  createRepository,
  fails,
  makePlace,
  ok,
  readAdmin,
  registryPassword,
  startBerth,
  stopBerth,
  type BerthServer,
  type Place,
} from './harness.ts';
import { digestOf, makeImage, makeIndex, seededBytes, writeLayout } from './image.ts';

const tools = {
  crane: await goTool('crane'),
  helm: await goTool('helm'),
  oras: await goTool('oras'),
  regctl: await goTool('regctl'),
};

interface Setting {
  readonly place: Place;
  readonly server: BerthServer;
  readonly password: string;
  /** runs the program; its standard output */
  run(...args: readonly string[]): Promise<string>;
  /** runs it to fail; all its output */
  fail(...args: readonly string[]): Promise<string>;
  /** runs it with something on its standard input */
  feed(input: string, ...args: readonly string[]): Promise<string>;
  at(path: string): string;
  /** `localhost:port/repository…` */
  remote(path: string): string;
}

async function set(name: string, tool: FoundTool): Promise<Setting> {
  assert.ok(tool.skip === false);
  const { path } = tool;
  const place = await makePlace(name);
  const server = await startBerth({ data: join(place.directory, 'data') });
  const admin = await readAdmin(server.data);
  for (const repository of ['images', 'copies/here', 'charts/demo'])
    await createRepository(server, admin, repository);
  await callEcr(server, admin, 'PutAccountSetting', { name: 'BLOB_MOUNTING', value: 'ENABLED' });
  const { environment } = place;
  const options = { environment, cwd: place.directory };
  return {
    place,
    server,
    password: await registryPassword(server, admin),
    run: (...args) => ok([path, ...args], options),
    fail: (...args) => fails([path, ...args], options),
    feed: (input, ...args) => ok([path, ...args], { ...options, input }),
    at: (file) => join(place.directory, file),
    remote: (reference) => `${server.registry}/${reference}`,
  };
}

async function unset({ place, server }: Setting): Promise<void> {
  await stopBerth(server);
  await place.remove();
}

const ARCHITECTURES = ['amd64', 'arm64'];
const imageFor = (name: string) => makeImage(name, [10, 70_000, 3_000_000]);
const indexFor = (name: string) =>
  makeIndex(ARCHITECTURES.map((architecture) => makeImage(`${name} index`, [5000, 90_000], architecture)));

describe('crane', { skip: tools.crane.skip }, () => {
  let it: Setting;
  const image = imageFor('crane');
  /** the layout's own, around an index: what crane pushes of a layout */
  let index: { readonly digest: string; readonly bytes: Buffer };
  before(async () => {
    it = await set('crane', tools.crane);
    await writeLayout(it.at('one'), 'v1', image);
    await writeLayout(it.at('many'), 'v1', indexFor('crane'));
    const bytes = await readFile(join(it.at('many'), 'index.json'));
    index = { digest: digestOf(bytes), bytes };
  });
  after(() => unset(it));

  test('login, and refused without', async () => {
    assert.match(await it.fail('ls', it.remote('images')), /401 Unauthorized/);
    const login = ['auth', 'login', '-u', 'AWS', '--password-stdin', it.server.registry];
    await it.feed(it.password, ...login);
  });

  test('push and pull of an image and of an index, byte for byte', async () => {
    for (const [layout, root, tag, flags] of [
      ['one', image, 'v1', []],
      ['many', index, 'all', ['--index']],
    ] as const) {
      const pushed = await it.run('push', ...flags, it.at(layout), it.remote(`images:${tag}`));
      assert.match(pushed, new RegExp(root.digest));
      assert.equal((await it.run('digest', it.remote(`images:${tag}`))).trim(), root.digest);
      assert.equal(await it.run('manifest', it.remote(`images:${tag}`)), root.bytes.toString());
      await it.run('pull', '--format', 'oci', it.remote(`images:${tag}`), it.at(`${layout}-back`));
      const file = join(it.at(`${layout}-back`), 'blobs', 'sha256', root.digest.slice('sha256:'.length));
      assert.deepEqual(await readFile(file), root.bytes);
    }
    await it.run('validate', '--remote', it.remote('images:v1'));
  });

  test('copy to another repository, where blobs are mounted, and tag', async () => {
    await it.run('copy', it.remote('images:all'), it.remote('copies/here:all'));
    assert.equal((await it.run('digest', it.remote('copies/here:all'))).trim(), index.digest);
    await it.run('tag', it.remote('copies/here:all'), 'second');
  });

  test('list of tags and of repositories', async () => {
    assert.equal(await it.run('ls', it.remote('copies/here')), 'all\nsecond\n');
    assert.equal(await it.run('catalog', it.server.registry), 'charts/demo\ncopies/here\nimages\n');
  });

  test('delete', async () => {
    await it.run('delete', it.remote(`images@${image.digest}`));
    assert.match(await it.fail('manifest', it.remote('images:v1')), /MANIFEST_UNKNOWN/);
    assert.equal(await it.run('ls', it.remote('images')), 'all\n');
  });
});

describe('oras', { skip: tools.oras.skip }, () => {
  let it: Setting;
  before(async () => {
    it = await set('oras', tools.oras);
    await writeFile(it.at('notes.txt'), 'release notes');
    await writeFile(it.at('bill.json'), '{"bill":"of materials"}');
    await writeFile(it.at('large.bin'), seededBytes('oras', 3_000_000));
  });
  after(() => unset(it));

  test('login, and refused without', async () => {
    assert.match(await it.fail('repo', 'tags', it.remote('images')), /credential|401/);
    await it.feed(it.password, 'login', '-u', 'AWS', '--password-stdin', it.server.registry);
  });

  test('push and pull of an artifact', async () => {
    await it.run(
      'push',
      '--artifact-type=application/vnd.example.release',
      it.remote('images:v1,latest'),
      'notes.txt:text/plain',
      'large.bin:application/octet-stream',
    );
    await mkdir(it.at('back'));
    await it.run('pull', '-o', it.at('back'), it.remote('images:v1'));
    for (const file of ['notes.txt', 'large.bin'])
      assert.deepEqual(await readFile(join(it.at('back'), file)), await readFile(it.at(file)));
  });

  test('attach and discover', async () => {
    await it.run(
      'attach',
      '--artifact-type=application/vnd.example.sbom',
      it.remote('images:v1'),
      'bill.json:application/json',
    );
    const tree = JSON.parse(await it.run('discover', '--format', 'json', it.remote('images:v1'))) as {
      referrers: { artifactType: string; digest: string }[];
    };
    assert.deepEqual(
      tree.referrers.map(({ artifactType }) => artifactType),
      ['application/vnd.example.sbom'],
    );
    // The referrers API is there, so no fallback tag was made.
    assert.equal(await it.run('repo', 'tags', it.remote('images')), 'latest\nv1\n');
  });

  test('copy with what refers to it', async () => {
    await it.run('cp', '-r', it.remote('images:v1'), it.remote('copies/here:v1'));
    const found = await it.run('discover', '--format', 'json', it.remote('copies/here:v1'));
    assert.match(found, /application\/vnd\.example\.sbom/);
  });

  test('blobs and manifests by themselves, and lists', async () => {
    const digest = digestOf(await readFile(it.at('notes.txt')));
    assert.equal(await it.run('blob', 'fetch', '-o', '-', it.remote(`images@${digest}`)), 'release notes');
    assert.equal(await it.run('repo', 'ls', it.server.registry), 'charts/demo\ncopies/here\nimages\n');
    await it.run('tag', it.remote('images:v1'), 'stable');
    assert.equal(await it.run('repo', 'tags', it.remote('images')), 'latest\nstable\nv1\n');
  });

  test('delete', async () => {
    const digest = (await it.run('resolve', it.remote('images:v1'))).trim();
    await it.run('manifest', 'delete', '-f', it.remote(`images@${digest}`));
    assert.match(await it.fail('manifest', 'fetch', it.remote('images:stable')), /not found/);
  });
});

describe('regctl', { skip: tools.regctl.skip }, () => {
  let it: Setting;
  const image = imageFor('regctl');
  const index = indexFor('regctl');
  before(async () => {
    it = await set('regctl', tools.regctl);
    await writeLayout(it.at('one'), 'v1', image);
    await writeLayout(it.at('many'), 'v1', index);
    await it.run('registry', 'set', '--skip-check', '--tls', 'disabled', it.server.registry);
  });
  after(() => unset(it));

  test('login, and refused without', async () => {
    assert.match(await it.fail('tag', 'ls', it.remote('images')), /unauthorized/i);
    await it.feed(it.password, 'registry', 'login', '-u', 'AWS', '--pass-stdin', it.server.registry);
  });

  test('copies from a layout, between repositories and back', async () => {
    for (const [layout, root] of [
      ['one', image],
      ['many', index],
    ] as const) {
      await it.run('image', 'copy', `ocidir://${it.at(layout)}:v1`, it.remote(`images:${layout}`));
      await it.run('image', 'copy', it.remote(`images:${layout}`), it.remote(`copies/here:${layout}`));
      assert.equal((await it.run('image', 'digest', it.remote(`copies/here:${layout}`))).trim(), root.digest);
      await it.run(
        'image',
        'copy',
        it.remote(`copies/here:${layout}`),
        `ocidir://${it.at(`${layout}-back`)}:v1`,
      );
      const file = join(it.at(`${layout}-back`), 'blobs', 'sha256', root.digest.slice('sha256:'.length));
      assert.deepEqual(await readFile(file), root.bytes);
    }
  });

  test('a blob in chunks, and its head', async () => {
    const bytes = seededBytes('regctl', 2_500_000).toString('base64');
    await it.run(
      'registry',
      'set',
      '--skip-check',
      '--blob-chunk',
      '1000000',
      '--blob-max',
      '100',
      it.server.registry,
    );
    const digest = (await it.feed(bytes, 'blob', 'put', it.remote('images'))).trim();
    assert.equal(digest, digestOf(Buffer.from(bytes)));
    assert.equal(await it.run('blob', 'get', it.remote('images'), digest), bytes);
    await it.run(
      'registry',
      'set',
      '--skip-check',
      '--blob-chunk',
      '0',
      '--blob-max',
      '0',
      it.server.registry,
    );
  });

  test('an artifact attached, listed and read', async () => {
    const put = ['artifact', 'put', '--artifact-type', 'application/vnd.example.note'];
    await it.feed('attached', ...put, '--subject', it.remote('images:one'));
    const list = await it.run(
      'artifact',
      'list',
      '--format',
      '{{ len .Descriptors }}',
      it.remote('images:one'),
    );
    assert.equal(list.trim(), '1');
    assert.equal(await it.run('artifact', 'get', '--subject', it.remote('images:one')), 'attached');
  });

  test('lists and deletes', async () => {
    assert.equal(await it.run('repo', 'ls', it.server.registry), 'charts/demo\ncopies/here\nimages\n');
    assert.equal(await it.run('tag', 'ls', it.remote('copies/here')), 'many\none\n');
    await it.run('tag', 'delete', it.remote('copies/here:one'));
    assert.equal(await it.run('tag', 'ls', it.remote('copies/here')), 'many\n');
    await it.run('manifest', 'delete', it.remote(`copies/here@${index.digest}`));
    assert.equal(await it.run('tag', 'ls', it.remote('copies/here')), '');
  });
});

describe('helm', { skip: tools.helm.skip }, () => {
  let it: Setting;
  before(async () => {
    it = await set('helm', tools.helm);
    await mkdir(join(it.at('demo'), 'templates'), { recursive: true });
    await writeFile(
      join(it.at('demo'), 'Chart.yaml'),
      'apiVersion: v2\nname: demo\nversion: 1.2.3+build.4\ndescription: a chart of one thing\n',
    );
    await writeFile(
      join(it.at('demo'), 'templates', 'thing.yaml'),
      'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\n',
    );
    await it.run('package', 'demo');
  });
  after(() => unset(it));

  const chart = (): string => `oci://${it.remote('charts')}`;

  test('login, and refused without', async () => {
    const push = ['push', '--plain-http', 'demo-1.2.3+build.4.tgz', chart()];
    assert.match(await it.fail(...push), /401|unauthorized|credential/i);
    const login = ['registry', 'login', '--plain-http', '-u', 'AWS', '--password-stdin', it.server.registry];
    await it.feed(it.password, ...login);
  });

  test('push, show, template and pull of a chart', async () => {
    await it.run('push', '--plain-http', 'demo-1.2.3+build.4.tgz', chart());
    const at = ['--plain-http', `${chart()}/demo`, '--version', '1.2.3+build.4'];
    assert.match(await it.run('show', 'chart', ...at), /description: a chart of one thing/);
    assert.match(await it.run('template', 'release', ...at), /name: release/);
    await mkdir(it.at('back'));
    await it.run('pull', '-d', 'back', ...at);
    const name = 'demo-1.2.3+build.4.tgz';
    assert.deepEqual(await readFile(join(it.at('back'), name)), await readFile(it.at(name)));
  });

  test('the newest version of several', async () => {
    await it.run('package', 'demo', '--version', '1.10.0');
    await it.run('push', '--plain-http', 'demo-1.10.0.tgz', chart());
    assert.match(await it.run('show', 'chart', '--plain-http', `${chart()}/demo`), /version: 1\.10\.0/);
  });

  test('a repository that is not there', async () => {
    const push = ['push', '--plain-http', 'demo-1.10.0.tgz', `oci://${it.remote('absent')}`];
    assert.match(await it.fail(...push), /The repository with name 'absent\/demo' does not exist/);
  });
});
