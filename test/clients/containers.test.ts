/** podman, skopeo and containerd: logins, pushes, pulls and copies, also of images for several platforms. */
import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  callEcr,
  createRepository,
  fails,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  registryPassword,
  ROOT,
  run,
  startBerth,
  startDaemon,
  stopBerth,
  until,
  type BerthServer,
  type Daemon,
  type Place,
} from './harness.ts';
import { makeImage, makeIndex, OCI_INDEX, writeLayout } from './image.ts';

interface Setting {
  readonly place: Place;
  readonly server: BerthServer;
  readonly admin: Credentials;
  readonly password: string;
}

async function set(name: string): Promise<Setting> {
  const place = await makePlace(name);
  const server = await startBerth({ data: join(place.directory, 'data') });
  const admin = await readAdmin(server.data);
  await createRepository(server, admin, 'images');
  return { place, server, admin, password: await registryPassword(server, admin) };
}

async function unset({ place, server }: Setting): Promise<void> {
  await stopBerth(server);
  await place.remove();
}

/** The blobs of an OCI layout by name; their content is their name. */
async function blobsOf(layout: string): Promise<string[]> {
  return (await readdir(join(layout, 'blobs', 'sha256'))).sort();
}

async function rootOf(layout: string): Promise<string> {
  const index = JSON.parse(await readFile(join(layout, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[];
  };
  return index.manifests[0]?.digest ?? '';
}

const ARCHITECTURES = ['amd64', 'arm64', 's390x'];

describe('skopeo', { skip: missing('skopeo') }, () => {
  let it: Setting;
  const image = makeImage('skopeo', [10, 70_000, 3_000_000]);
  const index = makeIndex(ARCHITECTURES.map((name) => makeImage('skopeo index', [5000, 90_000], name)));

  const skopeo = (command: string, ...args: readonly string[]): Promise<string> =>
    ok(['skopeo', '--insecure-policy', command, ...args], { environment: it.place.environment });
  const at = (path: string): string => join(it.place.directory, path);
  const remote = (reference: string): string => `docker://${it.server.registry}/images${reference}`;

  before(async () => {
    it = await set('skopeo');
    await writeLayout(at('one'), 'v1', image);
    await writeLayout(at('many'), 'v1', index);
  });
  after(() => unset(it));

  test('login', async () => {
    const login = ['skopeo', 'login', '--tls-verify=false', '--username', 'AWS', '--password-stdin'];
    const options = { environment: it.place.environment, input: it.password };
    assert.match(await ok([...login, it.server.registry], options), /Login Succeeded/);
    assert.match(
      await fails([...login, it.server.registry], { ...options, input: 'wrong' }),
      /Your Authorization Token is invalid|invalid username\/password|400/,
    );
    await ok([...login, it.server.registry], options);
  });

  test('copies an image in and out, byte for byte', async () => {
    await skopeo('copy', '--dest-tls-verify=false', `oci:${at('one')}:v1`, remote(':v1'));
    await skopeo('copy', '--src-tls-verify=false', remote(':v1'), `oci:${at('one-back')}:v1`);
    assert.equal(await rootOf(at('one-back')), image.digest);
    assert.deepEqual(await blobsOf(at('one-back')), await blobsOf(at('one')));
  });

  test('copies an index with all its images in and out, byte for byte', async () => {
    const tls = ['--src-tls-verify=false', '--dest-tls-verify=false'];
    await skopeo('copy', '--all', ...tls, `oci:${at('many')}:v1`, remote(':many'));
    await skopeo('copy', '--all', ...tls, remote(':many'), `oci:${at('many-back')}:v1`);
    assert.equal(await rootOf(at('many-back')), index.digest);
    assert.deepEqual(await blobsOf(at('many-back')), await blobsOf(at('many')));
    const answer = await callEcr(it.server, it.admin, 'DescribeImages', {
      repositoryName: 'images',
      imageIds: [{ imageTag: 'many' }],
    });
    const { imageDetails } = JSON.parse(answer.text) as { imageDetails: Record<string, unknown>[] };
    assert.equal(imageDetails[0]?.['imageDigest'], index.digest);
    assert.equal(imageDetails[0]?.['imageManifestMediaType'], OCI_INDEX);
  });

  test('picks one platform of an index', async () => {
    await ok(
      [
        'skopeo',
        '--insecure-policy',
        '--override-arch',
        'arm64',
        'copy',
        '--src-tls-verify=false',
        remote(':many'),
        `oci:${at('arm')}:v1`,
      ],
      { environment: it.place.environment },
    );
    assert.equal(await rootOf(at('arm')), index.images[1]?.digest);
  });

  test('copies between repositories of the registry, all formats', async () => {
    await createRepository(it.server, it.admin, 'team/copies');
    const other = `docker://${it.server.registry}/team/copies`;
    const tls = ['--src-tls-verify=false', '--dest-tls-verify=false'];
    await skopeo('copy', '--all', ...tls, remote(':many'), `${other}:many`);
    await skopeo('copy', ...tls, '--format', 'v2s2', remote(':v1'), `${other}:v2s2`);
    const inspected = await skopeo('inspect', '--raw', '--tls-verify=false', `${other}:v2s2`);
    assert.equal(
      (JSON.parse(inspected) as { mediaType: string }).mediaType,
      'application/vnd.docker.distribution.manifest.v2+json',
    );
    assert.equal(
      await skopeo('inspect', '--raw', '--tls-verify=false', `${other}:many`),
      index.bytes.toString(),
    );
  });

  test('compresses layers with zstd on the way in, and takes them back', async () => {
    await createRepository(it.server, it.admin, 'team/zstd');
    const target = `docker://${it.server.registry}/team/zstd:v1`;
    const zstd = ['--dest-tls-verify=false', '--dest-compress-format', 'zstd'];
    await skopeo('copy', ...zstd, `oci:${at('one')}:v1`, target);
    const raw = await skopeo('inspect', '--raw', '--tls-verify=false', target);
    const { layers } = JSON.parse(raw) as { layers: { mediaType: string; digest: string }[] };
    assert.deepEqual(
      layers.map(({ mediaType }) => mediaType),
      image.layers.map(() => 'application/vnd.oci.image.layer.v1.tar+zstd'),
    );
    await skopeo('copy', '--src-tls-verify=false', target, `oci:${at('zstd-back')}:v1`);
    const back = await blobsOf(at('zstd-back'));
    for (const { digest } of layers) assert.ok(back.includes(digest.slice('sha256:'.length)), digest);
  });

  test('list-tags, inspect', async () => {
    const listed = JSON.parse(await skopeo('list-tags', '--tls-verify=false', remote(''))) as {
      Tags: string[];
    };
    assert.deepEqual(listed.Tags.sort(), ['many', 'v1']);
    const inspected = JSON.parse(await skopeo('inspect', '--tls-verify=false', remote(':v1'))) as {
      Digest: string;
      Layers: string[];
      RepoTags: string[];
      Architecture: string;
    };
    assert.equal(inspected.Digest, image.digest);
    assert.equal(inspected.Architecture, 'amd64');
    assert.deepEqual(
      inspected.Layers,
      image.layers.map(({ digest }) => digest),
    );
  });

  test('delete', async () => {
    await skopeo('delete', '--tls-verify=false', remote(':v1'));
    const output = await fails(['skopeo', 'inspect', '--tls-verify=false', remote(':v1')], {
      environment: it.place.environment,
    });
    assert.match(output, /manifest unknown|Requested image not found/);
    const listed = JSON.parse(await skopeo('list-tags', '--tls-verify=false', remote(''))) as {
      Tags: string[];
    };
    assert.deepEqual(listed.Tags, ['many']);
  });

  test('a repository that is not there is an error that says so', async () => {
    const target = `docker://${it.server.registry}/absent:v1`;
    const output = await fails(
      ['skopeo', '--insecure-policy', 'copy', '--dest-tls-verify=false', `oci:${at('one')}:v1`, target],
      { environment: it.place.environment },
    );
    assert.match(
      output,
      /The repository with name 'absent' does not exist in the registry with id '000000000000'/,
    );
  });
});

describe('podman', { skip: missingDaemon('podman') }, () => {
  let it: Setting;
  const image = makeImage('podman', [2000, 400_000]);

  const podman = async (...args: readonly string[]): Promise<string> => {
    const store = ['root', 'runroot', 'tmpdir'].map(
      (name) => `--${name}=${join(it.place.directory, `podman-${name}`)}`,
    );
    return ok(['podman', ...store, '--storage-driver=vfs', '--events-backend=none', ...args], {
      environment: it.place.environment,
      input: it.password,
      cwd: it.place.directory,
    });
  };
  const remote = (reference: string): string => `${it.server.registry}/images${reference}`;

  before(async () => {
    it = await set('podman');
    await writeLayout(join(it.place.directory, 'one'), 'v1', image);
  });
  after(() => unset(it));

  test('login', async () => {
    const login = ['login', '--tls-verify=false', '--username', 'AWS', '--password-stdin'];
    assert.match(await podman(...login, it.server.registry), /Login Succeeded/);
  });

  test('push and pull keep the image', async () => {
    // WHY relative: podman makes an image name of the path, and names have no capitals
    await podman('pull', 'oci:one:v1');
    const id = (await podman('images', '--quiet', '--no-trunc')).trim();
    assert.equal(id, image.config.digest);
    await podman('tag', id, remote(':v1'));
    await podman('push', '--tls-verify=false', remote(':v1'));
    await podman('rmi', '--all', '--force');
    await podman('pull', '--tls-verify=false', remote(':v1'));
    assert.equal((await podman('images', '--quiet', '--no-trunc')).trim(), image.config.digest);
  });

  test('a manifest list of podman', async () => {
    await podman('manifest', 'create', 'list');
    await podman('manifest', 'add', '--tls-verify=false', 'list', `docker://${remote(':v1')}`);
    await podman('manifest', 'push', '--all', '--tls-verify=false', 'list', `docker://${remote(':list')}`);
    const answer = await callEcr(it.server, it.admin, 'BatchGetImage', {
      repositoryName: 'images',
      imageIds: [{ imageTag: 'list' }],
    });
    const { images } = JSON.parse(answer.text) as { images: { imageManifest: string }[] };
    const list = JSON.parse(images[0]?.imageManifest ?? '') as { manifests: { digest: string }[] };
    assert.equal(list.manifests.length, 1);
  });

  test('berth login logs podman in', async () => {
    await podman('logout', it.server.registry);
    const output = await ok(
      [
        process.execPath,
        join(ROOT, 'src', 'main.ts'),
        'login',
        '--client',
        'podman',
        '--data',
        it.server.data,
      ],
      { environment: it.place.environment },
    );
    assert.match(output, /Login Succeeded/);
    await podman('pull', '--tls-verify=false', remote(':v1'));
  });
});

describe('containerd', { skip: missingDaemon('containerd', 'ctr', 'tar') }, () => {
  let it: Setting;
  let containerd: Daemon;
  let address = '';
  const image = makeImage('containerd', [700, 250_000]);
  const index = makeIndex(ARCHITECTURES.map((name) => makeImage('containerd index', [4000], name)));

  const ctr = (...args: readonly string[]): Promise<string> =>
    ok(['ctr', '--address', address, '--namespace', 'berth', ...args], {
      environment: it.place.environment,
    });
  const remote = (reference: string): string => `${it.server.registry}/images${reference}`;
  const login = (): string[] => ['--plain-http', '--user', `AWS:${it.password}`];

  async function importLayout(name: string, tag: string, root: typeof image | typeof index): Promise<void> {
    const layout = join(it.place.directory, name);
    await writeLayout(layout, tag, root);
    await ok(['tar', '-C', layout, '-cf', `${layout}.tar`, '.'], { environment: it.place.environment });
    await ctr(
      'images',
      'import',
      '--no-unpack',
      '--all-platforms',
      '--base-name',
      remote(''),
      `${layout}.tar`,
    );
  }

  before(async () => {
    it = await set('containerd');
    address = join(it.place.directory, 'containerd.sock');
    const config = join(it.place.directory, 'containerd.toml');
    await writeFile(
      config,
      `version = 2\nroot = "${it.place.directory}/root"\nstate = "${it.place.directory}/state"\n` +
        `disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", ` +
        `"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]\n` +
        `[grpc]\naddress = "${address}"\n`,
    );
    containerd = startDaemon(['containerd', '--config', config], it.place.environment);
    await until('containerd answers', async () => {
      if (containerd.hasExited()) throw new Error(containerd.output());
      const { code } = await run(['ctr', '--address', address, 'version'], {
        environment: it.place.environment,
      });
      return code === 0;
    });
  });
  after(async () => {
    await containerd.stop();
    await unset(it);
  });

  test('push and pull an image', async () => {
    await importLayout('one', 'v1', image);
    await ctr('images', 'push', ...login(), remote(':v1'));
    await ctr('images', 'rm', '--sync', remote(':v1'));
    await ctr('images', 'pull', ...login(), '--snapshotter', 'native', remote(':v1'));
    assert.match(await ctr('images', 'ls'), new RegExp(image.digest));
    await ctr('images', 'rm', '--sync', remote(':v1'));
  });

  test('push and pull an index with all its images', async () => {
    await importLayout('many', 'many', index);
    await ctr('images', 'push', ...login(), remote(':many'));
    await ctr('images', 'rm', '--sync', remote(':many'));
    await ctr('content', 'fetch', ...login(), '--all-platforms', remote(':many'));
    const content = await ctr('content', 'ls', '--quiet');
    const pieces = [index, ...index.images.flatMap((one) => [one, one.config, ...one.layers])];
    for (const { digest } of pieces) assert.ok(content.includes(digest), digest);
  });

  test('a wrong password is refused', async () => {
    const pull = ['images', 'pull', '--plain-http', '--user', 'AWS:wrong', remote(':many')];
    await fails(['ctr', '--address', address, '--namespace', 'berth', ...pull], {
      environment: it.place.environment,
    });
  });
});
