/** `sparse-manifests` on the whole server, through both doors: by the registry protocol and by the AWS SDK. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  BatchCheckLayerAvailabilityCommand,
  BatchDeleteImageCommand,
  BatchGetImageCommand,
  CreateRepositoryCommand,
  DescribeImagesCommand,
  ECRClient,
  GetAuthorizationTokenCommand,
  ListImagesCommand,
  PutImageCommand,
} from '@aws-sdk/client-ecr';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { WORKERS } from './server.ts';

const ACCOUNT = '000000000000';
const IMAGE = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const repositoryName = 'team/app';

const sha256 = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`;
const descriptor = (mediaType: string, text: string) => ({
  mediaType,
  digest: sha256(text),
  size: text.length,
});

/** An image of 7 bytes, another one for each note. */
const image = (note: string): string =>
  JSON.stringify({
    schemaVersion: 2,
    mediaType: IMAGE,
    config: descriptor('application/vnd.oci.image.config.v1+json', '{}'),
    layers: [descriptor('application/vnd.oci.image.layer.v1.tar', 'layer')],
    annotations: { note },
  });

const index = (...members: string[]): string =>
  JSON.stringify({
    schemaVersion: 2,
    mediaType: INDEX,
    manifests: members.map((member) => descriptor(IMAGE, member)),
  });

async function open(flags: Readonly<Record<string, string>>) {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-sparse-'));
  const berth = await start(
    readConfig({
      flags: { data, port: '0', workers: String(WORKERS), ...flags },
      env: {},
      platform: process.platform,
    }),
    {
      log: createLog('error'),
      clock: Date.now,
      tls: undefined,
      credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
    },
  );
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const client = new ECRClient({
    endpoint: berth.endpoint,
    region: 'us-east-1',
    credentials: { accessKeyId: id, secretAccessKey: secret },
    maxAttempts: 1,
  });
  await client.send(new CreateRepositoryCommand({ repositoryName }));
  const { authorizationData } = await client.send(new GetAuthorizationTokenCommand({}));
  const authorization = `Basic ${authorizationData?.[0]?.authorizationToken}`;
  const ask = async (method: string, path: string, body?: string, type = 'application/octet-stream') => {
    const response = await fetch(`${berth.endpoint}/v2/${repositoryName}/${path}`, {
      method,
      headers: { authorization, 'content-type': type },
      ...(body !== undefined && { body }),
    });
    return { status: response.status, headers: response.headers, text: await response.text() };
  };
  for (const blob of ['{}', 'layer']) {
    assert.equal((await ask('POST', `blobs/uploads/?digest=${sha256(blob)}`, blob)).status, 201);
  }
  return {
    client,
    ask,
    async [Symbol.asyncDispose]() {
      client.destroy();
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

type Server = Awaited<ReturnType<typeof open>>;

/** The answer's status, with the code of its error when it is one. */
async function said(answer: ReturnType<Server['ask']>): Promise<string> {
  const { status, text } = await answer;
  if (status < 400) return String(status);
  const { errors } = JSON.parse(text) as { errors: { code: string }[] };
  return `${status} ${errors[0]?.code}`;
}

const here = image('here');
const late = image('late');

test('told nothing, the server refuses an index with a missing member', async () => {
  await using server = await open({});
  const sparse = index(here, late);
  assert.equal(await said(server.ask('PUT', `manifests/${sha256(here)}`, here, IMAGE)), '201');
  assert.equal(await said(server.ask('PUT', 'manifests/v1', sparse, INDEX)), '400 MANIFEST_BLOB_UNKNOWN');
  await assert.rejects(
    server.client.send(new PutImageCommand({ repositoryName, imageManifest: sparse, imageTag: 'v1' })),
    {
      name: 'ReferencedImagesNotFoundException',
      message:
        `Images with digests '[${sha256(late)}]' required for pushing image into repository with name '${repositoryName}' ` +
        `in the registry with id '${ACCOUNT}' do not exist`,
    },
  );
});

test('an accepted index is served whole, its missing member is 404 and protected once it comes', async () => {
  await using server = await open({ 'sparse-manifests': 'indexes' });
  const { ask, client } = server;
  const sparse = index(here, late);
  assert.equal(await said(ask('PUT', `manifests/${sha256(here)}`, here, IMAGE)), '201');
  const put = await ask('PUT', 'manifests/v1', sparse, INDEX);
  assert.deepEqual([put.status, put.headers.get('docker-content-digest')], [201, sha256(sparse)]);
  for (const reference of ['v1', sha256(sparse)]) {
    const got = await ask('GET', `manifests/${reference}`);
    assert.deepEqual([got.status, got.headers.get('content-type'), got.text], [200, INDEX, sparse]);
  }
  const member = `manifests/${sha256(late)}`;
  assert.equal(await said(ask('GET', member)), '404 MANIFEST_UNKNOWN');
  assert.equal((await ask('HEAD', member)).status, 404);
  assert.equal(await said(ask('DELETE', member)), '404 MANIFEST_UNKNOWN');
  assert.equal(await said(ask('DELETE', `manifests/${sha256(here)}`)), '405 UNSUPPORTED');
  // A layer is no member: it must be here.
  const { layers: _, ...bare } = JSON.parse(here) as Record<string, unknown>;
  const gone = JSON.stringify({ ...bare, layers: [descriptor('application/x', 'never pushed')] });
  assert.equal(await said(ask('PUT', 'manifests/x', gone, IMAGE)), '400 MANIFEST_BLOB_UNKNOWN');
  const lying = sparse.replace(`"size":${here.length}`, '"size":1');
  assert.equal(await said(ask('PUT', 'manifests/x', lying, INDEX)), '400 MANIFEST_INVALID');

  assert.equal(await said(ask('PUT', 'manifests/late', late, IMAGE)), '201');
  assert.equal((await ask('GET', member)).text, late);
  for (const reference of ['late', sha256(late)])
    assert.equal(await said(ask('DELETE', `manifests/${reference}`)), '405 UNSUPPORTED');
  const imageIds = [{ imageDigest: sha256(late) }];
  const { failures } = await client.send(new BatchDeleteImageCommand({ repositoryName, imageIds }));
  assert.deepEqual(failures, [
    {
      imageId: imageIds[0],
      failureCode: 'ImageReferencedByManifestList',
      failureReason: `Requested image referenced by manifest list: [${sha256(sparse)}]`,
    },
  ]);
  assert.equal(await said(ask('DELETE', `manifests/${sha256(sparse)}`)), '202');
  assert.equal(await said(ask('DELETE', member)), '202');
});

test('an accepted image waits for its layers, on both doors', async () => {
  await using server = await open({ 'sparse-manifests': 'all' });
  const { ask, client } = server;
  const { layers, ...bare } = JSON.parse(here) as { layers: object[] };
  const awaited = 'late layer';
  const sparse = JSON.stringify({ ...bare, layers: [...layers, descriptor('application/x', awaited)] });
  const layer = `blobs/${sha256(awaited)}`;
  assert.equal(await said(ask('PUT', 'manifests/v1', sparse, IMAGE)), '201');
  assert.equal((await ask('GET', 'manifests/v1')).text, sparse);
  assert.equal(await said(ask('GET', layer)), '404 BLOB_UNKNOWN');
  const layerDigests = [sha256(awaited)];
  const check = new BatchCheckLayerAvailabilityCommand({ repositoryName, layerDigests });
  assert.equal((await client.send(check)).layers?.[0]?.layerAvailability, 'UNAVAILABLE');
  assert.equal((await ask('POST', `blobs/uploads/?digest=${sha256(awaited)}`, awaited)).status, 201);
  assert.equal((await ask('GET', layer)).text, awaited);
  assert.equal((await client.send(check)).layers?.[0]?.layerAvailability, 'AVAILABLE');
  assert.equal(await said(ask('DELETE', layer)), '405 UNSUPPORTED');
  assert.equal(await said(ask('DELETE', 'manifests/v1')), '202');
  assert.equal(await said(ask('DELETE', layer)), '202');
  const image = { repositoryName, imageManifest: sparse, imageTag: 'v2' };
  assert.equal((await client.send(new PutImageCommand(image))).image?.imageId?.imageDigest, sha256(sparse));
});

test('on the ECR API an index weighs what its members weighed when it was pushed', async () => {
  await using server = await open({ 'sparse-manifests': 'indexes' });
  const { client } = server;
  const put = async (imageManifest: string, imageTag?: string) =>
    (await client.send(new PutImageCommand({ repositoryName, imageManifest, imageTag }))).image?.imageId;
  const imageDigest = sha256(index(late));
  assert.deepEqual(await put(index(late), 'none'), { imageDigest, imageTag: 'none' });
  assert.deepEqual(await put(here), { imageDigest: sha256(here) });
  await put(index(here, late), 'one');
  await put(late);
  const { imageDetails = [] } = await client.send(new DescribeImagesCommand({ repositoryName }));
  const sizes = imageDetails.map(({ imageTags, imageSizeInBytes }) => [imageTags?.[0], imageSizeInBytes]);
  assert.deepEqual(
    sizes.filter(([tag]) => tag !== undefined),
    [
      ['one', 7],
      ['none', 0],
    ],
  );
  const imageIds = [{ imageTag: 'none' }, { imageDigest: sha256(image('never')) }];
  const got = await client.send(new BatchGetImageCommand({ repositoryName, imageIds }));
  assert.deepEqual(
    got.images?.map(({ imageManifest }) => imageManifest),
    [index(late)],
  );
  assert.deepEqual(
    got.failures?.map(({ failureCode }) => failureCode),
    ['ImageNotFound'],
  );
  const listed = await client.send(new ListImagesCommand({ repositoryName }));
  assert.equal(listed.imageIds?.length, 4);
});
