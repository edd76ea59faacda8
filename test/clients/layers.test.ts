/** The layer operations of the ECR API, as the AWS CLI, the AWS SDK and an amazon-ecr-containerd-resolver use them. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  BatchCheckLayerAvailabilityCommand,
  BatchGetImageCommand,
  CompleteLayerUploadCommand,
  ECRClient,
  GetDownloadUrlForLayerCommand,
  InitiateLayerUploadCommand,
  PutImageCommand,
  UploadLayerPartCommand,
} from '@aws-sdk/client-ecr';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  awsVariables,
  basic,
  createRepository,
  makePlace,
  missing,
  ok,
  readAdmin,
  REGION,
  registryPassword,
  startBerth,
  stopBerth,
  type BerthServer,
  type Place,
} from './harness.ts';
import { makeImage, seededBytes, digestOf, type Piece } from './image.ts';

const repositoryName = 'layers';
const PART_BYTES = 5 * 1024 * 1024;

describe('layers through the ECR API', () => {
  let place: Place;
  let server: BerthServer;
  let admin: Credentials;
  let ecr: ECRClient;
  const image = makeImage('layers', [PART_BYTES * 2 + 12_345, 100]);

  before(async () => {
    place = await makePlace('layers');
    server = await startBerth({ data: join(place.directory, 'data') });
    admin = await readAdmin(server.data);
    const { accessKeyId, secretAccessKey } = admin;
    ecr = new ECRClient({
      endpoint: server.endpoint,
      region: REGION,
      credentials: { accessKeyId, secretAccessKey },
      maxAttempts: 1,
    });
    await createRepository(server, admin, repositoryName);
  });
  after(async () => {
    ecr.destroy();
    await stopBerth(server);
    await place.remove();
  });

  async function upload({ bytes, digest }: Piece): Promise<void> {
    const { uploadId, partSize = 0 } = await ecr.send(new InitiateLayerUploadCommand({ repositoryName }));
    for (let first = 0; first < bytes.length; first += partSize) {
      const layerPartBlob = bytes.subarray(first, first + partSize);
      const partLastByte = first + layerPartBlob.length - 1;
      const part = { repositoryName, uploadId, partFirstByte: first, partLastByte, layerPartBlob };
      const { lastByteReceived } = await ecr.send(new UploadLayerPartCommand(part));
      assert.equal(lastByteReceived, partLastByte);
    }
    const { layerDigest } = await ecr.send(
      new CompleteLayerUploadCommand({ repositoryName, uploadId, layerDigests: [digest] }),
    );
    assert.equal(layerDigest, digest);
  }

  test('the SDK uploads layers in parts, puts an image and downloads both', async () => {
    for (const piece of [...image.layers, image.config]) await upload(piece);
    const { layers } = await ecr.send(
      new BatchCheckLayerAvailabilityCommand({
        repositoryName,
        layerDigests: image.layers.map(({ digest }) => digest),
      }),
    );
    assert.deepEqual(
      layers?.map(({ layerAvailability, layerSize }) => ({ layerAvailability, layerSize })),
      image.layers.map(({ size }) => ({ layerAvailability: 'AVAILABLE', layerSize: size })),
    );
    const imageManifest = image.bytes.toString();
    const put = await ecr.send(new PutImageCommand({ repositoryName, imageManifest, imageTag: 'v1' }));
    assert.equal(put.image?.imageId?.imageDigest, image.digest);
    const got = await ecr.send(new BatchGetImageCommand({ repositoryName, imageIds: [{ imageTag: 'v1' }] }));
    assert.equal(got.images?.[0]?.imageManifest, imageManifest);
    for (const { digest } of [...image.layers, image.config]) {
      const { downloadUrl = '' } = await ecr.send(
        new GetDownloadUrlForLayerCommand({ repositoryName, layerDigest: digest }),
      );
      const bytes = Buffer.from(await (await fetch(downloadUrl)).arrayBuffer());
      assert.equal(digestOf(bytes), digest);
    }
  });

  test('what came through the ECR API is there for /v2/', async () => {
    const authorization = basic(await registryPassword(server, admin));
    const url = `${server.endpoint}/v2/${repositoryName}/blobs/${image.layers[0]?.digest}`;
    const answer = await fetch(url, { headers: { authorization } });
    assert.equal(answer.status, 200);
    assert.equal(digestOf(Buffer.from(await answer.arrayBuffer())), image.layers[0]?.digest);
  });

  test('the AWS CLI uploads a layer', { skip: missing('aws') }, async () => {
    const bytes = seededBytes('aws cli layer', 200_000);
    const file = join(place.directory, 'part');
    await writeFile(file, bytes);
    const environment = { ...place.environment, ...awsVariables(server, admin) };
    const aws = async (...args: readonly string[]): Promise<Record<string, unknown>> => {
      const command = ['aws', 'ecr', ...args, '--repository-name', repositoryName];
      return JSON.parse(await ok(command, { environment })) as Record<string, unknown>;
    };
    const { uploadId } = await aws('initiate-layer-upload');
    const range = ['--part-first-byte', '0', '--part-last-byte', String(bytes.length - 1)];
    await aws(
      'upload-layer-part',
      '--upload-id',
      String(uploadId),
      ...range,
      '--layer-part-blob',
      `fileb://${file}`,
    );
    const digest = digestOf(bytes);
    await aws('complete-layer-upload', '--upload-id', String(uploadId), '--layer-digests', digest);
    const { layers } = await aws('batch-check-layer-availability', '--layer-digests', digest);
    assert.deepEqual(
      (layers as { layerAvailability: string }[]).map(({ layerAvailability }) => layerAvailability),
      ['AVAILABLE'],
    );
    const layer = await aws('get-download-url-for-layer', '--layer-digest', image.config.digest);
    const downloaded = await fetch(String(layer['downloadUrl']));
    assert.equal(digestOf(Buffer.from(await downloaded.arrayBuffer())), image.config.digest);
  });
});
