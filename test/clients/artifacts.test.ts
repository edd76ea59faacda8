/**
 * What signing and supply-chain tools put into a registry, in their own media types, by oras: cosign in both of its
 * schemes, notation, SBOMs, WebAssembly.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign, verify } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { goTool } from './go-tools.ts';
import {
  callEcr,
  createRepository,
  makePlace,
  ok,
  readAdmin,
  registryPassword,
  startBerth,
  stopBerth,
  type BerthServer,
  type Place,
} from './harness.ts';
import { makeImage, OCI_MANIFEST, writeLayout } from './image.ts';

const tool = await goTool('oras');
const REPOSITORY = 'signed';

describe('artifacts', { skip: tool.skip }, () => {
  let place: Place;
  let server: BerthServer;
  let admin: Credentials;
  let password: string;
  const image = makeImage('artifacts', [5000]);

  const at = (path: string): string => join(place.directory, path);
  const oras = (...args: readonly string[]): Promise<string> => {
    assert.ok(tool.skip === false);
    const options = { environment: place.environment, input: password, cwd: place.directory };
    return ok([tool.path, ...args], options);
  };
  const remote = (reference: string): string => `${server.registry}/${REPOSITORY}${reference}`;
  const put = (file: string, content: unknown): Promise<void> =>
    writeFile(at(file), typeof content === 'string' ? content : JSON.stringify(content));

  interface Manifest {
    readonly artifactType?: string;
    readonly config: { readonly mediaType: string };
    readonly layers: readonly {
      readonly mediaType: string;
      readonly digest: string;
      readonly annotations?: Readonly<Record<string, string>>;
    }[];
    readonly subject?: { readonly digest: string };
  }
  const manifestOf = async (reference: string): Promise<Manifest> =>
    JSON.parse(await oras('manifest', 'fetch', '--plain-http', remote(reference))) as Manifest;

  before(async () => {
    place = await makePlace('artifacts');
    server = await startBerth({ data: at('data') });
    admin = await readAdmin(server.data);
    password = await registryPassword(server, admin);
    await createRepository(server, admin, REPOSITORY);
    await writeLayout(at('layout'), 'v1', image);
    await oras('login', '--plain-http', '--username', 'AWS', '--password-stdin', server.registry);
    await oras('cp', '--from-oci-layout', '--to-plain-http', 'layout:v1', remote(':v1'));
  });
  after(async () => {
    await stopBerth(server);
    await place.remove();
  });

  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  /** what cosign signs: https://github.com/containers/image/blob/main/docs/containers-signature.5.md */
  const claim = (): string =>
    JSON.stringify({
      critical: {
        identity: { 'docker-reference': remote('') },
        image: { 'docker-manifest-digest': image.digest },
        type: 'cosign container image signature',
      },
      optional: null,
    });
  const SIGNATURE = 'dev.cosignproject.cosign/signature';
  const SIMPLE_SIGNING = 'application/vnd.dev.cosign.simplesigning.v1+json';

  async function writeClaim(): Promise<void> {
    await put('claim.json', claim());
    const signature = sign('sha256', Buffer.from(claim()), privateKey);
    await put('annotations.json', { 'claim.json': { [SIGNATURE]: signature.toString('base64') } });
  }

  /** as `cosign verify --key`, offline: from the registry's own bytes */
  async function verifyClaim(manifest: Manifest): Promise<void> {
    const [layer] = manifest.layers;
    assert.equal(layer?.mediaType, SIMPLE_SIGNING);
    await oras('blob', 'fetch', '--plain-http', '--output', at('fetched.json'), remote(`@${layer.digest}`));
    const bytes = await readFile(at('fetched.json'));
    const signature = Buffer.from(layer.annotations?.[SIGNATURE] ?? '', 'base64');
    assert.ok(verify('sha256', bytes, publicKey, signature));
    const signed = JSON.parse(bytes.toString()) as { critical: { image: Record<string, string> } };
    assert.equal(signed.critical.image['docker-manifest-digest'], image.digest);
  }

  test('a cosign signature at its tag', async () => {
    await writeClaim();
    await put('config.json', {
      architecture: '',
      os: '',
      rootfs: { type: 'layers', diff_ids: [] },
      config: {},
    });
    const tag = `:${image.digest.replace(':', '-')}.sig`;
    await oras(
      'push',
      '--plain-http',
      '--config=config.json:application/vnd.oci.image.config.v1+json',
      '--annotation-file=annotations.json',
      remote(tag),
      `claim.json:${SIMPLE_SIGNING}`,
    );
    await verifyClaim(await manifestOf(tag));
    assert.deepEqual(
      (await oras('repo', 'tags', '--plain-http', remote(''))).trim().split('\n').sort(),
      [tag.slice(1), 'v1'].sort(),
    );
  });

  test('a cosign signature as a referrer', async () => {
    await writeClaim();
    const type = 'application/vnd.dev.cosign.artifact.sig.v1+json';
    await oras(
      'attach',
      '--plain-http',
      `--artifact-type=${type}`,
      '--annotation-file=annotations.json',
      remote(':v1'),
      `claim.json:${SIMPLE_SIGNING}`,
    );
    const [found] = await referrers(type);
    assert.ok(found !== undefined);
    await verifyClaim(await manifestOf(`@${found}`));
  });

  const attached: readonly [what: string, artifactType: string, file: string, mediaType: string][] = [
    [
      'a sigstore bundle',
      'application/vnd.dev.sigstore.bundle.v0.3+json',
      'bundle.json',
      'application/vnd.dev.sigstore.bundle.v0.3+json',
    ],
    [
      'a notation signature',
      'application/vnd.cncf.notary.signature',
      'signature.jws',
      'application/jose+json',
    ],
    ['an SPDX document', 'application/spdx+json', 'sbom.spdx.json', 'application/spdx+json'],
    [
      'a CycloneDX document',
      'application/vnd.cyclonedx+json',
      'bom.cdx.json',
      'application/vnd.cyclonedx+json',
    ],
    [
      'an in-toto attestation',
      'application/vnd.in-toto+json',
      'provenance.json',
      'application/vnd.in-toto+json',
    ],
    ['a scan report', 'application/sarif+json', 'report.sarif', 'application/sarif+json'],
  ];
  async function referrers(artifactType: string): Promise<string[]> {
    const args = [
      'discover',
      '--plain-http',
      '--format=json',
      `--artifact-type=${artifactType}`,
      remote(':v1'),
    ];
    const { referrers: found } = JSON.parse(await oras(...args)) as { referrers: { digest: string }[] };
    return found.map(({ digest }) => digest);
  }
  for (const [what, artifactType, file, mediaType] of attached) {
    test(`${what} attached, found by its type, read back`, async () => {
      await put(file, { about: what });
      await oras(
        'attach',
        '--plain-http',
        `--artifact-type=${artifactType}`,
        remote(':v1'),
        `${file}:${mediaType}`,
      );
      const found = await referrers(artifactType);
      assert.equal(found.length, 1);
      const manifest = await manifestOf(`@${found[0]}`);
      assert.equal(manifest.artifactType, artifactType);
      assert.equal(manifest.subject?.digest, image.digest);
      await oras('pull', '--plain-http', '-o', at(`back-${file}`), remote(`@${found[0]}`));
      assert.deepEqual(JSON.parse(await readFile(at(`back-${file}/${file}`), 'utf8')), { about: what });
      const { text } = await callEcr(server, admin, 'ListImageReferrers', {
        repositoryName: REPOSITORY,
        subjectId: { imageDigest: image.digest },
        filter: { artifactTypes: [artifactType] },
      });
      const listed = JSON.parse(text) as { referrers: { digest: string; mediaType: string }[] };
      assert.deepEqual(
        listed.referrers.map(({ digest, mediaType }) => [digest, mediaType]),
        [[found[0], OCI_MANIFEST]],
        text,
      );
    });
  }

  test('a WebAssembly component', async () => {
    await writeFile(at('component.wasm'), Buffer.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]));
    await put('wasm.json', { architecture: 'wasm', os: 'wasip2', layerDigests: [] });
    const config = '--config=wasm.json:application/vnd.wasm.config.v0+json';
    await oras('push', '--plain-http', config, remote(':wasm'), 'component.wasm:application/wasm');
    const { config: stored, layers } = await manifestOf(':wasm');
    assert.equal(stored.mediaType, 'application/vnd.wasm.config.v0+json');
    assert.equal(layers[0]?.mediaType, 'application/wasm');
    const { text } = await callEcr(server, admin, 'DescribeImages', {
      repositoryName: REPOSITORY,
      imageIds: [{ imageTag: 'wasm' }],
    });
    const { imageDetails } = JSON.parse(text) as { imageDetails: { artifactMediaType: string }[] };
    assert.equal(imageDetails[0]?.artifactMediaType, 'application/vnd.wasm.config.v0+json');
  });
});
