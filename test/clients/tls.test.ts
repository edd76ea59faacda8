/** Every client over TLS, with the private CA in its trust: push, pull, copy, attach, list and delete, as far as it can. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { startDocker } from './docker.ts';
import { goTool, type FoundTool } from './go-tools.ts';
import {
  authorityFile,
  callEcr,
  createRepository,
  fails,
  makePlace,
  missing,
  missingDaemon,
  ok,
  readAdmin,
  registryPassword,
  run,
  startBerth,
  startDaemon,
  stopBerth,
  until,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { digestOf, makeImage, makeIndex, writeLayout } from './image.ts';

const tools = {
  crane: await goTool('crane'),
  helm: await goTool('helm'),
  oras: await goTool('oras'),
  regctl: await goTool('regctl'),
};

const ACCOUNT = '123456789012';

describe('over TLS', () => {
  let place: Place;
  let server: BerthServer;
  let admin: Credentials;
  let password: string;
  /** trusts the CA */
  let environment: Environment;
  const image = makeImage('tls', [3000, 700_000]);

  before(async () => {
    place = await makePlace('tls-clients');
    server = await startBerth({ data: at('data'), tls: [], flags: ['--account', ACCOUNT] });
    admin = await readAdmin(server.data);
    password = await registryPassword(server, admin);
    environment = { ...place.environment, SSL_CERT_FILE: authorityFile(server.data) };
    for (const name of ['skopeo', 'podman', 'buildah', 'docker', 'containerd', 'crane', 'oras', 'regctl'])
      await createRepository(server, admin, `tls/${name}`);
    for (const name of ['indexes', 'oras-copy', 'charts/demo'])
      await createRepository(server, admin, `tls/${name}`);
    await writeLayout(at('layout'), 'v1', image);
    // buildah insists on a file of logins, even without any in it
    await writeFile(environment['REGISTRY_AUTH_FILE'] ?? '', '{}');
  });
  after(async () => {
    await stopBerth(server);
    await place.remove();
  });

  const at = (path: string): string => join(place.directory, path);
  const remote = (path: string): string => `${server.registry}/tls/${path}`;
  const type = (command: readonly string[], input = ''): Promise<string> =>
    ok(command, { environment, input, cwd: place.directory });
  const tool = (found: FoundTool): string => {
    assert.ok(found.skip === false);
    return found.path;
  };
  const loginArgs = ['--username', 'AWS', '--password-stdin'];

  async function tagsIn(name: string): Promise<string[]> {
    const { text } = await callEcr(server, admin, 'ListImages', { repositoryName: `tls/${name}` });
    const { imageIds } = JSON.parse(text) as { imageIds: { imageTag?: string }[] };
    return imageIds.flatMap(({ imageTag }) => imageTag ?? []).sort();
  }
  async function rootOf(layout: string): Promise<string | undefined> {
    const index = JSON.parse(await readFile(at(`${layout}/index.json`), 'utf8')) as {
      manifests: { digest: string }[];
    };
    return index.manifests[0]?.digest;
  }

  test('skopeo', { skip: missing('skopeo') }, async () => {
    const target = `docker://${remote('skopeo:v1')}`;
    const copy = ['skopeo', '--insecure-policy', 'copy'];
    const stranger = {
      environment: { ...environment, SSL_CERT_FILE: '/dev/null', SSL_CERT_DIR: place.directory },
    };
    await type(['skopeo', 'login', ...loginArgs, server.registry], password);
    assert.match(await fails([...copy, `oci:${at('layout')}:v1`, target], stranger), /x509: certificate/);
    await type([...copy, `oci:${at('layout')}:v1`, target]);
    await type([...copy, target, `oci:${at('skopeo-back')}:v1`]);
    assert.equal(await rootOf('skopeo-back'), image.digest);
    await type([...copy, '--all', target, `docker://${remote('skopeo:copy')}`]);
    const about = await type(['skopeo', 'inspect', `docker://${remote('skopeo:copy')}`]);
    assert.equal((JSON.parse(about) as { Digest: string }).Digest, image.digest);
    const listed = await type(['skopeo', 'list-tags', `docker://${remote('skopeo')}`]);
    assert.deepEqual((JSON.parse(listed) as { Tags: string[] }).Tags, ['copy', 'v1']);
    await type(['skopeo', 'delete', target]);
    assert.deepEqual(await tagsIn('skopeo'), []);
  });

  test('skopeo: an index with all its images, and layers in zstd', { skip: missing('skopeo') }, async () => {
    const images = ['amd64', 'arm64'].map((name) => makeImage('tls index', [4000, 90_000], name));
    const index = makeIndex(images);
    await writeLayout(at('index'), 'v1', index);
    const copy = ['skopeo', '--insecure-policy', 'copy'];
    await type(['skopeo', 'login', ...loginArgs, server.registry], password);
    await type([...copy, '--all', `oci:${at('index')}:v1`, `docker://${remote('indexes:v1')}`]);
    await type([...copy, '--all', `docker://${remote('indexes:v1')}`, `oci:${at('index-back')}:v1`]);
    assert.equal(await rootOf('index-back'), index.digest);
    for (const { digest, layers } of images) {
      for (const piece of [digest, ...layers.map((layer) => layer.digest)])
        await readFile(at(`index-back/blobs/${piece.replace(':', '/')}`));
    }
    const zstd = ['--dest-compress-format', 'zstd'];
    await type([...copy, ...zstd, `oci:${at('layout')}:v1`, `docker://${remote('indexes:zstd')}`]);
    const raw = await type(['skopeo', 'inspect', '--raw', `docker://${remote('indexes:zstd')}`]);
    const { layers } = JSON.parse(raw) as { layers: { mediaType: string }[] };
    assert.deepEqual(
      layers.map(({ mediaType }) => mediaType),
      image.layers.map(() => 'application/vnd.oci.image.layer.v1.tar+zstd'),
    );
    await type([...copy, `docker://${remote('indexes:zstd')}`, `dir:${at('zstd-back')}`]);
    assert.deepEqual(await tagsIn('indexes'), ['v1', 'zstd']);
  });

  for (const program of ['podman', 'buildah'] as const) {
    test(program, { skip: missingDaemon(program) }, async () => {
      const directories = program === 'podman' ? ['root', 'runroot', 'tmpdir'] : ['root', 'runroot'];
      const command = [
        program,
        ...directories.map((name) => `--${name}=${at(`${program}-${name}`)}`),
        '--storage-driver=vfs',
      ];
      await type([...command, 'login', ...loginArgs, server.registry], password);
      await type([...command, 'pull', 'oci:layout:v1']);
      const list = [...command, 'images', '--quiet', '--no-trunc'];
      const id = (await type(list)).trim();
      assert.equal(id, image.config.digest);
      await type([...command, 'push', id, `docker://${remote(`${program}:v1`)}`]);
      await type([...command, 'rmi', '--all', '--force']);
      await type([...command, 'pull', `docker://${remote(`${program}:v1`)}`]);
      assert.equal((await type(list)).trim(), image.config.digest);
      await type([...command, 'manifest', 'create', 'list']);
      await type([...command, 'manifest', 'add', 'list', `docker://${remote(`${program}:v1`)}`]);
      await type([...command, 'manifest', 'push', '--all', 'list', `docker://${remote(`${program}:list`)}`]);
      assert.deepEqual(await tagsIn(program), ['list', 'v1']);
    });
  }

  test('docker', { skip: missing('docker', 'skopeo') || missingDaemon('dockerd') }, async () => {
    const docker = await startDocker({ ...place, environment });
    try {
      const line = async (...args: readonly string[]): Promise<string> =>
        ok(['docker', ...args], { environment: docker.environment, input: password });
      const context = at('context');
      await mkdir(context);
      await writeFile(join(context, 'file'), 'content');
      await writeFile(join(context, 'Dockerfile'), 'FROM scratch\nCOPY file /file\n');
      await line('login', ...loginArgs, server.registry);
      await line('build', '-t', remote('docker:v1'), context);
      const inspect = ['inspect', '--format', '{{.Id}}', remote('docker:v1')];
      const id = await line(...inspect);
      await line('push', remote('docker:v1'));
      await line('rmi', remote('docker:v1'));
      await line('pull', remote('docker:v1'));
      assert.equal(await line(...inspect), id);
      assert.deepEqual(await tagsIn('docker'), ['v1']);
    } finally {
      await docker.stop();
    }
  });

  test(
    'containerd, also as a mirror of the name in AWS',
    { skip: missingDaemon('containerd', 'ctr', 'tar') },
    async () => {
      const address = at('containerd.sock');
      await writeFile(
        at('containerd.toml'),
        `version = 2\nroot = "${at('root')}"\nstate = "${at('state')}"\n` +
          `disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", ` +
          `"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]\n` +
          `[grpc]\naddress = "${address}"\n`,
      );
      const containerd = startDaemon(['containerd', '--config', at('containerd.toml')], environment);
      try {
        const ctr = (...args: readonly string[]): Promise<string> =>
          type(['ctr', '--address', address, '--namespace', 'berth', ...args]);
        await until('containerd answers', async () => {
          if (containerd.hasExited()) throw new Error(containerd.output());
          return (await run(['ctr', '--address', address, 'version'], { environment })).code === 0;
        });
        const inAws = `${ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com`;
        for (const host of [server.registry, inAws]) {
          await mkdir(at(`hosts.d/${host}`), { recursive: true });
          await writeFile(
            at(`hosts.d/${host}/hosts.toml`),
            `server = "https://${host}"\n\n[host."https://${server.registry}"]\n` +
              `  capabilities = ["pull", "resolve", "push"]\n  ca = "${authorityFile(server.data)}"\n`,
          );
        }
        const options = ['--hosts-dir', at('hosts.d'), '--user', `AWS:${password}`];
        await type(['tar', '-C', at('layout'), '-cf', at('layout.tar'), '.']);
        for (const host of [server.registry, inAws]) {
          const name = `${host}/tls/containerd`;
          await ctr('images', 'import', '--no-unpack', '--base-name', name, at('layout.tar'));
          await ctr('images', 'push', ...options, `${name}:v1`);
          await ctr('images', 'rm', '--sync', `${name}:v1`);
          await ctr('images', 'pull', ...options, '--snapshotter', 'native', `${name}:v1`);
          assert.match(await ctr('images', 'ls', `name==${name}:v1`), new RegExp(image.digest));
          await ctr('images', 'rm', '--sync', `${name}:v1`);
        }
        assert.deepEqual(await tagsIn('containerd'), ['v1']);
      } finally {
        await containerd.stop();
      }
    },
  );

  test('crane', { skip: tools.crane.skip }, async () => {
    const crane = (...args: readonly string[]): Promise<string> =>
      type([tool(tools.crane), ...args], password);
    await crane('auth', 'login', '-u', 'AWS', '--password-stdin', server.registry);
    await crane('push', at('layout'), remote('crane:v1'));
    assert.equal((await crane('digest', remote('crane:v1'))).trim(), image.digest);
    await crane('pull', '--format=oci', remote('crane:v1'), at('crane-back'));
    assert.equal(await rootOf('crane-back'), image.digest);
    await crane('copy', remote('crane:v1'), remote('crane:v2'));
    assert.equal(await crane('ls', remote('crane')), 'v1\nv2\n');
    assert.match(await crane('catalog', server.registry), /^tls\/crane$/m);
    await crane('delete', remote('crane:v1'));
    assert.deepEqual(await tagsIn('crane'), ['v2']);
  });

  test('oras', { skip: tools.oras.skip }, async () => {
    const oras = (...args: readonly string[]): Promise<string> =>
      type([tool(tools.oras), ...args, '--plain-http=false'], password);
    await writeFile(at('note.txt'), 'a note');
    await oras('login', ...loginArgs, server.registry);
    const kind = ['--artifact-type', 'application/vnd.example.note'];
    await oras('push', ...kind, remote('oras:v1'), 'note.txt:text/plain');
    await oras('attach', ...kind, remote('oras:v1'), 'note.txt:text/plain');
    assert.match(await oras('discover', '--format', 'json', remote('oras:v1')), /vnd\.example\.note/);
    await oras('pull', '-o', at('oras-back'), remote('oras:v1'));
    assert.equal(await readFile(at('oras-back/note.txt'), 'utf8'), 'a note');
    const plain = ['--from-plain-http=false', '--to-plain-http=false'];
    await type([tool(tools.oras), 'copy', '-r', ...plain, remote('oras:v1'), remote('oras-copy:v2')]);
    assert.match(await oras('discover', '--format', 'json', remote('oras-copy:v2')), /vnd\.example\.note/);
    assert.equal(await oras('repo', 'tags', remote('oras')), 'v1\n');
    await oras('manifest', 'delete', '--force', remote('oras:v1'));
    assert.deepEqual(await tagsIn('oras'), []);
  });

  test('regctl', { skip: tools.regctl.skip }, async () => {
    const regctl = (...args: readonly string[]): Promise<string> =>
      type([tool(tools.regctl), ...args], password);
    await regctl('registry', 'login', '-u', 'AWS', '--pass-stdin', server.registry);
    await regctl('image', 'copy', 'ocidir://layout:v1', remote('regctl:v1'));
    assert.equal((await regctl('image', 'digest', remote('regctl:v1'))).trim(), image.digest);
    assert.equal(await regctl('tag', 'ls', remote('regctl')), 'v1\n');
    const [layer] = image.layers;
    assert.ok(layer);
    const blob = await regctl('blob', 'get', remote('regctl'), image.config.digest);
    assert.equal(digestOf(Buffer.from(blob)), image.config.digest);
    const note = ['--artifact-type', 'application/vnd.example.note', '--subject', remote('regctl:v1')];
    await type([tool(tools.regctl), 'artifact', 'put', ...note], 'attached');
    assert.equal(await regctl('artifact', 'get', '--subject', remote('regctl:v1')), 'attached');
    const list = ['artifact', 'list', '--format', '{{ len .Descriptors }}', remote('regctl:v1')];
    assert.equal((await regctl(...list)).trim(), '1');
    await regctl('tag', 'delete', remote('regctl:v1'));
    assert.deepEqual(await tagsIn('regctl'), []);
  });

  test('helm', { skip: tools.helm.skip }, async () => {
    const helm = (...args: readonly string[]): Promise<string> => type([tool(tools.helm), ...args], password);
    await mkdir(at('demo'));
    await writeFile(at('demo/Chart.yaml'), 'apiVersion: v2\nname: demo\nversion: 1.2.3\n');
    await helm('package', 'demo');
    await helm('registry', 'login', '-u', 'AWS', '--password-stdin', server.registry);
    await helm('push', 'demo-1.2.3.tgz', `oci://${remote('charts')}`);
    assert.match(
      await helm('show', 'chart', `oci://${remote('charts/demo')}`, '--version', '1.2.3'),
      /^name: demo$/m,
    );
    await mkdir(at('chart-back'));
    await helm('pull', '-d', 'chart-back', `oci://${remote('charts/demo')}`, '--version', '1.2.3');
    assert.deepEqual(await readFile(at('chart-back/demo-1.2.3.tgz')), await readFile(at('demo-1.2.3.tgz')));
    assert.deepEqual(await tagsIn('charts/demo'), ['1.2.3']);
  });
});
