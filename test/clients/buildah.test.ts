/** buildah: builds without a daemon, pushes in both formats, manifest lists, pulls. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  callEcr,
  createRepository,
  fails,
  makePlace,
  missingDaemon,
  ok,
  readAdmin,
  registryPassword,
  startBerth,
  stopBerth,
  type BerthServer,
  type Place,
} from './harness.ts';
import { seededBytes } from './image.ts';

describe('buildah', { skip: missingDaemon('buildah') }, () => {
  let place: Place;
  let server: BerthServer;
  let admin: Credentials;
  let password: string;

  const command = (args: readonly string[]): string[] => [
    'buildah',
    ...['root', 'runroot'].map((name) => `--${name}=${join(place.directory, `buildah-${name}`)}`),
    '--storage-driver=vfs',
    ...args,
  ];
  const buildah = (...args: readonly string[]): Promise<string> =>
    ok(command(args), { environment: place.environment, input: password, cwd: place.directory });
  const remote = (tag: string): string => `docker://${server.registry}/built:${tag}`;

  before(async () => {
    place = await makePlace('buildah');
    server = await startBerth({ data: join(place.directory, 'data') });
    admin = await readAdmin(server.data);
    password = await registryPassword(server, admin);
    await createRepository(server, admin, 'built');
    // buildah insists on a file of logins, even without any in it
    await writeFile(place.environment['REGISTRY_AUTH_FILE'] ?? '', '{}');
    const context = join(place.directory, 'context');
    await mkdir(context);
    await writeFile(join(context, 'content'), seededBytes('buildah', 500_000));
    await writeFile(join(context, 'Containerfile'), 'FROM scratch\nCOPY content /content\nLABEL a=b\n');
  });
  after(async () => {
    await stopBerth(server);
    await place.remove();
  });

  async function stored(
    imageTag: string,
  ): Promise<{ imageManifest: string; imageManifestMediaType: string }> {
    const { text } = await callEcr(server, admin, 'BatchGetImage', {
      repositoryName: 'built',
      imageIds: [{ imageTag }],
    });
    const { images } = JSON.parse(text) as {
      images: { imageManifest: string; imageManifestMediaType: string }[];
    };
    assert.ok(images[0], text);
    return images[0];
  }

  test('login, and a push refused without', async () => {
    await buildah('bud', '--isolation=chroot', '--tag=one', 'context');
    const push = command(['push', '--tls-verify=false', 'one', remote('v1')]);
    assert.match(
      await fails(push, { environment: place.environment, cwd: place.directory }),
      /authentication required|unauthorized|Not Authorized/i,
    );
    const login = ['login', '--tls-verify=false', '--username', 'AWS', '--password-stdin', server.registry];
    assert.match(await buildah(...login), /Login Succeeded/);
  });

  test('push in both formats', async () => {
    for (const [format, mediaType] of [
      ['oci', 'application/vnd.oci.image.manifest.v1+json'],
      ['v2s2', 'application/vnd.docker.distribution.manifest.v2+json'],
    ] as const) {
      await buildah('push', '--tls-verify=false', '--format', format, 'one', remote(format));
      assert.equal((await stored(format)).imageManifestMediaType, mediaType);
    }
  });

  test('pull what was pushed', async () => {
    const id = (await buildah('images', '--quiet', '--no-trunc', 'one')).trim();
    await buildah('rmi', '--all', '--force');
    assert.equal((await buildah('pull', '--quiet', '--tls-verify=false', remote('oci'))).trim(), id.slice(7));
  });

  test('a manifest list', async () => {
    await buildah('manifest', 'create', 'list');
    await buildah('manifest', 'add', '--tls-verify=false', 'list', remote('oci'));
    await buildah('manifest', 'push', '--all', '--tls-verify=false', 'list', remote('list'));
    const { manifests } = JSON.parse((await stored('list')).imageManifest) as { manifests: unknown[] };
    assert.equal(manifests.length, 1);
  });
});
