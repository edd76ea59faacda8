import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { test } from 'node:test';
import { LIMITS } from '../lib/limits.ts';
import {
  ACCOUNT,
  DOCKER_MANIFEST,
  type OpenTestRegistry,
  OTHER,
  sha256,
  type TestRegistry,
} from './testing.ts';

export function layersTests(openTestRegistry: OpenTestRegistry): void {
  const app = { repositoryName: 'app' };
  const absent = `sha256:${'0'.repeat(64)}`;

  async function openWithApp() {
    const t = await openTestRegistry();
    await t.call('CreateRepository', app);
    return t;
  }

  async function start(t: TestRegistry): Promise<{ repositoryName: string; uploadId: string }> {
    const { uploadId } = await t.call<{ uploadId: string }>('InitiateLayerUpload', app);
    return { ...app, uploadId };
  }

  function part(first: number, bytes: Uint8Array, last = first + bytes.length - 1): object {
    return { partFirstByte: first, partLastByte: last, layerPartBlob: bytes };
  }

  test('a layer in parts', async () => {
    await using t = await openWithApp();
    const answer = await t.call<{ uploadId: string; partSize: number }>('InitiateLayerUpload', app);
    assert.match(answer.uploadId, /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
    assert.equal(answer.partSize, 10_485_760);
    const upload = { ...app, uploadId: answer.uploadId };
    const one = Buffer.alloc(LIMITS.layerPartBytesMin, 1);
    const two = Buffer.from('the end');
    const received = (lastByteReceived: number) => ({ registryId: ACCOUNT, ...upload, lastByteReceived });
    assert.deepEqual(
      await t.call('UploadLayerPart', { ...upload, ...part(0, one) }),
      received(one.length - 1),
    );
    const next = { ...upload, ...part(one.length, two) };
    assert.deepEqual(await t.call('UploadLayerPart', next), received(one.length + 6));
    // The answer was lost: the same part again changes nothing.
    assert.deepEqual(await t.call('UploadLayerPart', next), received(one.length + 6));
    const layerDigest = sha256(Buffer.concat([one, two]));
    assert.deepEqual(await t.call('CompleteLayerUpload', { ...upload, layerDigests: [layerDigest] }), {
      registryId: ACCOUNT,
      ...upload,
      layerDigest,
    });
    const { layers } = await t.call<{ layers: object[] }>('BatchCheckLayerAvailability', {
      ...app,
      layerDigests: [layerDigest],
    });
    assert.deepEqual(layers, [
      {
        layerDigest,
        layerAvailability: 'AVAILABLE',
        layerSize: one.length + two.length,
        mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
      },
    ]);
  });

  test('parts that do not fit', async () => {
    await using t = await openWithApp();
    const upload = await start(t);
    const detail = (lastValidByteReceived: number) => ({
      registryId: ACCOUNT,
      ...upload,
      lastValidByteReceived,
    });
    const refuse = async (input: object, last: number) => {
      const fault = await t.refusal('UploadLayerPart', { ...upload, ...input });
      assert.equal(fault.code, 'InvalidLayerPartException');
      assert.deepEqual(fault.detail, detail(last));
    };
    const bytes = Buffer.from('0123456789');
    await refuse(part(1, bytes), -1);
    await refuse(part(0, bytes, 8), -1);
    await refuse(part(0, bytes, 10), -1);
    await refuse(part(5, bytes, 2), -1);
    await refuse(part(0, Buffer.alloc(0)), -1);
    await t.call('UploadLayerPart', { ...upload, ...part(0, bytes) });
    await refuse(part(11, bytes), 9);
    await refuse(part(5, bytes), 9);
    await refuse(part(0, bytes.subarray(0, 9)), 9);
    await t.call('UploadLayerPart', { ...upload, ...part(10, bytes) });
    await refuse(part(0, bytes), 19);
  });

  test('unknown uploads', async () => {
    await using t = await openWithApp();
    await t.call('CreateRepository', { repositoryName: 'other' });
    const upload = await start(t);
    const unknown = { ...app, uploadId: '84b47cd7-fc7b-442f-b75b-309b93d2b2ee' };
    for (const input of [unknown, { ...upload, repositoryName: 'other' }]) {
      const message = `UploadNotFoundException: The upload with id '${input.uploadId}' does not exist in the repository with name '${input.repositoryName}' in the registry with id '${ACCOUNT}'`;
      assert.equal(await t.fault('UploadLayerPart', { ...input, ...part(0, Buffer.from('x')) }), message);
      assert.equal(await t.fault('CompleteLayerUpload', { ...input, layerDigests: [absent] }), message);
    }
  });

  test('completing', async () => {
    await using t = await openWithApp();
    const bytes = Buffer.from('layer');
    const complete = async (layerDigests: string[], ...parts: Uint8Array[]) => {
      const upload = await start(t);
      let first = 0;
      for (const each of parts) {
        await t.call('UploadLayerPart', { ...upload, ...part(first, each) });
        first += each.length;
      }
      return { ...upload, layerDigests };
    };
    const code = async (input: object) => (await t.refusal('CompleteLayerUpload', { ...input })).code;
    assert.equal(await code(await complete([absent])), 'EmptyUploadException');
    assert.equal(
      await code(await complete([sha256('layerlayer')], bytes, bytes)),
      'LayerPartTooSmallException',
    );
    assert.equal(await code(await complete([absent], bytes)), 'InvalidLayerException');
    assert.equal(await code(await complete([sha256(bytes), absent], bytes)), 'InvalidLayerException');
    assert.equal(await code(await complete([`sha512:${'0'.repeat(128)}`], bytes)), 'InvalidLayerException');
    const tarsum = await t.call('CompleteLayerUpload', await complete(['tarsum.v1:0123'], bytes));
    assert.equal(tarsum['layerDigest'], sha256(bytes));
    const known = await complete([sha256(bytes)], bytes);
    assert.equal(await code(known), 'LayerAlreadyExistsException');
    assert.equal(await code(known), 'UploadNotFoundException');
    // The digest is judged before whether the layer is known.
    assert.equal(await code(await complete([absent], bytes)), 'InvalidLayerException');
  });

  test('BatchCheckLayerAvailability', async () => {
    await using t = await openWithApp();
    await t.call('CreateRepository', { repositoryName: 'other' });
    const { config, layer } = await t.addImage('app', 'layer', 'v1');
    const layerDigests = [layer, config, absent, '', 'nonsense', layer];
    assert.deepEqual(await t.call('BatchCheckLayerAvailability', { ...app, layerDigests }), {
      layers: [
        {
          layerDigest: layer,
          layerAvailability: 'AVAILABLE',
          layerSize: 5,
          mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
        },
        {
          layerDigest: config,
          layerAvailability: 'AVAILABLE',
          layerSize: 2,
          mediaType: 'application/vnd.docker.container.image.v1+json',
        },
        { layerDigest: absent, layerAvailability: 'UNAVAILABLE' },
      ],
      failures: [
        {
          layerDigest: '',
          failureCode: 'MissingLayerDigest',
          failureReason: 'Invalid request parameters: layer digest cannot be null',
        },
        {
          layerDigest: 'nonsense',
          failureCode: 'InvalidLayerDigest',
          failureReason:
            "Invalid request parameters: layer digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'",
        },
      ],
    });
    assert.deepEqual(
      await t.call('BatchCheckLayerAvailability', { repositoryName: 'other', layerDigests: [layer] }),
      {
        layers: [{ layerDigest: layer, layerAvailability: 'UNAVAILABLE' }],
        failures: [],
      },
    );
  });

  test('a layer reported available stays until the image is put', async () => {
    await using t = await openWithApp();
    const layer = await t.addLayer('app', 'layer');
    t.now += LIMITS.blobLeaseMs - 1000;
    await t.call('BatchCheckLayerAvailability', { ...app, layerDigests: [layer] });
    t.now += LIMITS.blobLeaseMs - 1000;
    await t.registry.collectGarbage({ orphans: false });
    const { layers } = await t.call<{ layers: { layerAvailability: string }[] }>(
      'BatchCheckLayerAvailability',
      {
        ...app,
        layerDigests: [layer],
      },
    );
    assert.equal(layers[0]?.layerAvailability, 'AVAILABLE');
  });

  test('GetDownloadUrlForLayer refusals', async () => {
    await using t = await openWithApp();
    assert.equal(
      await t.fault('GetDownloadUrlForLayer', { ...app, layerDigest: absent }),
      `LayersNotFoundException: The layer with digest '${absent}' does not exist within the repository with name 'app' in the registry with id '${ACCOUNT}'`,
    );
    const layerDigest = await t.addLayer('app', 'layer');
    assert.match(
      await t.fault('GetDownloadUrlForLayer', { ...app, layerDigest }),
      /^LayerInaccessibleException: /,
    );
    await t.addImage('app', 'layer', 'v1');
    const answer = await t.call<{ downloadUrl: string }>('GetDownloadUrlForLayer', { ...app, layerDigest });
    assert.equal((answer as { layerDigest?: string }).layerDigest, layerDigest);
    assert.match(
      answer.downloadUrl,
      /^http:\/\/localhost:7327\/blob-download\/[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/,
    );
  });

  test('another account uploads where a repository policy lets it', async () => {
    await using t = await openWithApp();
    const there = { ...app, registryId: ACCOUNT };
    assert.match(await t.fault('InitiateLayerUpload', there, t.other), /^AccessDeniedException/);
    const Statement = [{ Effect: 'Allow', Principal: { AWS: OTHER }, Action: 'ecr:*Layer*' }];
    await t.call('SetRepositoryPolicy', {
      ...app,
      policyText: JSON.stringify({ Version: '2012-10-17', Statement }),
    });
    const { uploadId } = await t.call<{ uploadId: string }>('InitiateLayerUpload', there, t.other);
    const bytes = Buffer.from('layer');
    await t.call('UploadLayerPart', { ...there, uploadId, ...part(0, bytes) }, t.other);
    const done = { ...there, uploadId, layerDigests: [sha256(bytes)] };
    const answer = await t.call<{ registryId: string }>('CompleteLayerUpload', done, t.other);
    assert.equal(answer.registryId, ACCOUNT);
  });

  test('without its key a repository cannot be read or written', async () => {
    const t = await openTestRegistry();
    await t.call('CreateRepository', { ...app, encryptionConfiguration: { encryptionType: 'KMS' } });
    const { layer, manifest } = await t.addImage('app', 'layer', 'v1');
    const upload = await start(t);
    const repository = await t.registry.findRepository({
      account: ACCOUNT,
      region: 'eu-west-1',
      name: 'app',
    });
    assert.ok(repository !== undefined);
    await rm(`${t.directory}/keys/content-${repository.contentKey}.key`);
    await using again = await t.reopen();
    const cases: [string, object][] = [
      ['PutImage', { imageManifest: manifest, imageTag: 'v2' }],
      ['InitiateLayerUpload', {}],
      ['UploadLayerPart', { ...upload, ...part(0, Buffer.from('x')) }],
      ['CompleteLayerUpload', { ...upload, layerDigests: [absent] }],
      ['GetDownloadUrlForLayer', { layerDigest: layer }],
    ];
    for (const [operation, input] of cases) {
      const fault = await again.refusal(operation, { ...app, ...input });
      assert.equal(fault.code, 'KmsException', operation);
      assert.equal(fault.message, `Key '${repository.kmsKey}' is not available`);
      assert.deepEqual(fault.detail, { kmsError: 'NotFoundException' });
    }
    const imageIds = [{ imageTag: 'v1' }];
    assert.deepEqual(await again.call('BatchGetImage', { ...app, imageIds }), {
      images: [],
      failures: [
        {
          imageId: { imageTag: 'v1' },
          failureCode: 'KmsError',
          failureReason: `Key '${repository.kmsKey}' is not available`,
        },
      ],
    });
    const { imageDetails } = await again.call<{ imageDetails: Record<string, unknown>[] }>(
      'DescribeImages',
      app,
    );
    assert.equal(imageDetails[0]?.['imageManifestMediaType'], DOCKER_MANIFEST);
  });
}
