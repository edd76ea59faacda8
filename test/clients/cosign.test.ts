/** cosign with a key of its own, offline: signs, attests, attaches and verifies what lies in Berth, on both listeners. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { goTool } from './go-tools.ts';
import {
  authorityFile,
  callEcr,
  createRepository,
  makePlace,
  ok,
  readAdmin,
  registryPassword,
  run,
  startBerth,
  stopBerth,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';
import { makeImage, OCI_MANIFEST, type Image } from './image.ts';

const tool = await goTool('cosign');
const REPOSITORY = 'team/signed';

for (const listener of ['plain', 'tls'] as const) {
  describe(`cosign, ${listener} listener`, { skip: tool.skip }, () => {
    let place: Place;
    let server: BerthServer;
    let admin: Credentials;
    let environment: Environment;
    let password: string;
    const image = makeImage(`cosign ${listener}`, [5000]);

    const at = (path: string): string => join(place.directory, path);
    const reference = (): string => `${server.registry}/${REPOSITORY}@${image.digest}`;
    const cosign = (...args: readonly string[]) =>
      run([tool.skip === false ? tool.path : '', ...args], { environment, cwd: place.directory });
    const mustRun = async (...args: readonly string[]): Promise<string> => {
      const { code, stdout, stderr } = await cosign(...args);
      assert.equal(code, 0, stderr);
      return stdout;
    };

    before(async () => {
      place = await makePlace(`cosign-${listener}`);
      const tls = listener === 'tls';
      server = await startBerth({ data: at('data'), ...(tls && { tls: [] }) });
      admin = await readAdmin(server.data);
      password = await registryPassword(server, admin);
      await createRepository(server, admin, REPOSITORY);
      await mkdir(at('docker'));
      const auth = Buffer.from(`AWS:${password}`).toString('base64');
      await writeFile(at('docker/config.json'), JSON.stringify({ auths: { [server.registry]: { auth } } }));
      environment = {
        ...place.environment,
        DOCKER_CONFIG: at('docker'),
        COSIGN_PASSWORD: 'a password',
        // WHY: it would ask the Internet for the logs' keys, which a signature by a key of one's own does not need
        SIGSTORE_CT_LOG_PUBLIC_KEY_FILE: at('cosign.pub'),
        SIGSTORE_REKOR_PUBLIC_KEY: at('cosign.pub'),
        ...(tls && { SSL_CERT_FILE: authorityFile(at('data')) }),
      };
      await pushImage(image);
      await mustRun('generate-key-pair');
    });
    after(async () => {
      await stopBerth(server);
      await place.remove();
    });

    async function pushImage({ layers, config, bytes, digest }: Image): Promise<void> {
      const headers = ['-H', `Authorization: Basic ${Buffer.from(`AWS:${password}`).toString('base64')}`];
      const trust = listener === 'tls' ? ['--cacert', authorityFile(at('data'))] : [];
      const curl = (...args: readonly string[]) =>
        ok(['curl', '-sSf', ...trust, ...headers, ...args], {
          environment: place.environment,
        });
      const url = `${server.endpoint}/v2/${REPOSITORY}`;
      for (const piece of [...layers, config]) {
        await writeFile(at('piece'), piece.bytes);
        const query = `digest=${encodeURIComponent(piece.digest)}`;
        await curl('-X', 'POST', '--data-binary', `@${at('piece')}`, `${url}/blobs/uploads/?${query}`);
      }
      await writeFile(at('manifest'), bytes);
      const type = ['-H', `Content-Type: ${OCI_MANIFEST}`];
      await curl('-X', 'PUT', ...type, '--data-binary', `@${at('manifest')}`, `${url}/manifests/${digest}`);
    }

    test('signs and verifies', async () => {
      const unsigned = await cosign('verify', '--key', 'cosign.pub', '--insecure-ignore-tlog', reference());
      assert.notEqual(unsigned.code, 0);
      assert.match(unsigned.stderr, /no matching signatures|no signatures found/);
      await mustRun('sign', '--yes', '--key', 'cosign.key', '--tlog-upload=false', reference());
      const said = await mustRun('verify', '--key', 'cosign.pub', '--insecure-ignore-tlog', reference());
      const [{ critical }] = JSON.parse(said) as [{ critical: { image: Record<string, string> } }];
      assert.equal(critical.image['docker-manifest-digest'], image.digest);
    });

    test('attests and verifies the attestation', async () => {
      await writeFile(at('predicate.json'), JSON.stringify({ builder: 'test' }));
      const about = ['--key', 'cosign.key', '--type', 'custom', '--predicate', 'predicate.json'];
      await mustRun('attest', '--yes', '--tlog-upload=false', ...about, reference());
      const key = ['--key', 'cosign.pub', '--insecure-ignore-tlog', '--type', 'custom'];
      const { payload } = JSON.parse(await mustRun('verify-attestation', ...key, reference())) as {
        payload: string;
      };
      const statement = JSON.parse(Buffer.from(payload, 'base64').toString()) as {
        subject: [{ digest: { sha256: string } }];
      };
      assert.equal(`sha256:${statement.subject[0].digest.sha256}`, image.digest);
    });

    test('attaches and downloads an SBOM, and shows the tree', async () => {
      const sbom = JSON.stringify({ spdxVersion: 'SPDX-2.3', name: 'test' });
      await writeFile(at('sbom.spdx.json'), sbom);
      await mustRun('attach', 'sbom', '--type', 'spdx', '--sbom', 'sbom.spdx.json', reference());
      assert.equal((await mustRun('download', 'sbom', reference())).trim(), sbom);
      const tree = await mustRun('tree', reference());
      for (const kind of ['.sig', '.att', '.sbom']) assert.ok(tree.includes(kind), tree);
    });

    test('copies an image with what belongs to it, and cleans', async () => {
      await createRepository(server, admin, 'team/copy');
      const copy = `${server.registry}/team/copy:v1`;
      await mustRun('copy', reference(), copy);
      await mustRun('verify', '--key', 'cosign.pub', '--insecure-ignore-tlog', copy);
      await mustRun('clean', '--force', '--type', 'all', copy);
      const gone = await cosign('verify', '--key', 'cosign.pub', '--insecure-ignore-tlog', copy);
      assert.notEqual(gone.code, 0);
      const { status, text } = await callEcr(server, admin, 'ListImages', { repositoryName: 'team/copy' });
      assert.equal(status, 200);
      const { imageIds } = JSON.parse(text) as { imageIds: { imageTag?: string }[] };
      assert.deepEqual(
        imageIds.flatMap(({ imageTag }) => imageTag ?? []),
        ['v1'],
      );
    });
  });
}
