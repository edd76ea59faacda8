/** Every built ECR operation, called by the AWS SDK over HTTP on the whole server. */
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
  CompleteLayerUploadCommand,
  CreateRepositoryCommand,
  DeleteRepositoryCommand,
  DeleteRepositoryPolicyCommand,
  DescribeImagesCommand,
  DescribeRepositoriesCommand,
  ECRClient,
  GetAuthorizationTokenCommand,
  GetDownloadUrlForLayerCommand,
  GetRepositoryPolicyCommand,
  GetSigningConfigurationCommand,
  InitiateLayerUploadCommand,
  InvalidLayerPartException,
  KmsException,
  ListImagesCommand,
  ListTagsForResourceCommand,
  paginateDescribeImages,
  paginateDescribeRepositories,
  paginateListImages,
  PutImageCommand,
  PutImageTagMutabilityCommand,
  SetRepositoryPolicyCommand,
  TagResourceCommand,
  UntagResourceCommand,
  UploadLayerPartCommand,
} from '@aws-sdk/client-ecr';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';
import { WORKERS } from './server.ts';

const ACCOUNT = '000000000000';
const repositoryName = 'team/app';
const sha256 = (content: string | Uint8Array) =>
  `sha256:${createHash('sha256').update(content).digest('hex')}`;

async function open() {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-ecr-'));
  const berth = await start(
    readConfig({ flags: { data, port: '0', workers: String(WORKERS) }, env: {}, platform: process.platform }),
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
  return {
    berth,
    client,
    async [Symbol.asyncDispose]() {
      client.destroy();
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

async function upload(client: ECRClient, bytes: Uint8Array): Promise<string> {
  const { uploadId, partSize } = await client.send(new InitiateLayerUploadCommand({ repositoryName }));
  assert.equal(partSize, 10_485_760);
  for (let at = 0; at < bytes.length; at += 10_485_760) {
    const layerPartBlob = bytes.subarray(at, at + 10_485_760);
    const partLastByte = at + layerPartBlob.length - 1;
    const part = { repositoryName, uploadId, partFirstByte: at, partLastByte, layerPartBlob };
    const { lastByteReceived } = await client.send(new UploadLayerPartCommand(part));
    assert.equal(lastByteReceived, partLastByte);
  }
  const done = { repositoryName, uploadId, layerDigests: [sha256(bytes)] };
  const { layerDigest } = await client.send(new CompleteLayerUploadCommand(done));
  assert.equal(layerDigest, sha256(bytes));
  return sha256(bytes);
}

function manifestOf(config: string, layer: string, size: number, note: string): string {
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  return JSON.stringify({
    schemaVersion: 2,
    mediaType,
    config: { mediaType: 'application/vnd.oci.image.config.v1+json', size: 2, digest: config },
    layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', size, digest: layer }],
    annotations: { note },
  });
}

test('repositories, tags and policies', async () => {
  await using server = await open();
  const { client, berth } = server;
  const before = Date.now();
  const { repository } = await client.send(
    new CreateRepositoryCommand({ repositoryName, tags: [{ Key: 'team', Value: 'blue' }] }),
  );
  assert.equal(repository?.repositoryArn, `arn:aws:ecr:us-east-1:${ACCOUNT}:repository/${repositoryName}`);
  assert.equal(repository?.repositoryUri, `localhost:${berth.port}/${repositoryName}`);
  assert.deepEqual(repository?.encryptionConfiguration, { encryptionType: 'AES256' });
  assert.ok(repository?.createdAt instanceof Date && repository.createdAt.getTime() >= before - 1000);
  await assert.rejects(client.send(new CreateRepositoryCommand({ repositoryName })), {
    name: 'RepositoryAlreadyExistsException',
    message: `The repository with name '${repositoryName}' already exists in the registry with id '${ACCOUNT}'`,
  });
  await assert.rejects(client.send(new CreateRepositoryCommand({ repositoryName: 'UP' })), {
    name: 'InvalidParameterException',
    message:
      "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must satisfy regular expression '[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*''",
  });
  const kms = { encryptionType: 'KMS' as const, kmsKey: 'nope' };
  await assert.rejects(
    client.send(new CreateRepositoryCommand({ repositoryName: 'kms', encryptionConfiguration: kms })),
    (error) => error instanceof KmsException && error.kmsError === 'NotFoundException',
  );
  const described = await client.send(new DescribeRepositoriesCommand({ repositoryNames: [repositoryName] }));
  assert.deepEqual(described.repositories, [repository]);

  const resourceArn = repository?.repositoryArn;
  await client.send(new TagResourceCommand({ resourceArn, tags: [{ Key: 'env', Value: '' }] }));
  await client.send(new UntagResourceCommand({ resourceArn, tagKeys: ['team'] }));
  const { tags } = await client.send(new ListTagsForResourceCommand({ resourceArn }));
  assert.deepEqual(tags, [{ Key: 'env', Value: '' }]);

  const statement = { Effect: 'Allow', Principal: '*', Action: 'ecr:BatchGetImage' };
  const policyText = JSON.stringify({ Version: '2012-10-17', Statement: [statement] });
  await client.send(new SetRepositoryPolicyCommand({ repositoryName, policyText }));
  const policy = await client.send(new GetRepositoryPolicyCommand({ repositoryName }));
  assert.deepEqual(JSON.parse(policy.policyText ?? ''), JSON.parse(policyText));
  const removed = await client.send(new DeleteRepositoryPolicyCommand({ repositoryName }));
  assert.equal(removed.policyText, policy.policyText);

  const mutability = await client.send(
    new PutImageTagMutabilityCommand({ repositoryName, imageTagMutability: 'IMMUTABLE' }),
  );
  assert.equal(mutability.imageTagMutability, 'IMMUTABLE');
  await client.send(new CreateRepositoryCommand({ repositoryName: 'ab' }));
  const names: (string | undefined)[] = [];
  for await (const page of paginateDescribeRepositories({ client, pageSize: 1 }, {}))
    names.push(...(page.repositories ?? []).map((one) => one.repositoryName));
  assert.deepEqual(names, ['ab', repositoryName]);
  const gone = await client.send(new DeleteRepositoryCommand({ repositoryName }));
  assert.equal(gone.repository?.imageTagMutability, 'IMMUTABLE');
});

test('layers, images and downloads', async () => {
  await using server = await open();
  const { client } = server;
  await client.send(new CreateRepositoryCommand({ repositoryName }));
  const config = await upload(client, Buffer.from('{}'));
  // Two parts, the first of the size that is advertised: its JSON body is about 14 MB.
  const bytes = Buffer.alloc(10_485_760 + 100, 7);
  const layer = await upload(client, bytes);
  const { uploadId } = await client.send(new InitiateLayerUploadCommand({ repositoryName }));
  const astray = {
    repositoryName,
    uploadId,
    partFirstByte: 3,
    partLastByte: 4,
    layerPartBlob: Buffer.from('ab'),
  };
  await assert.rejects(
    client.send(new UploadLayerPartCommand(astray)),
    (error) =>
      error instanceof InvalidLayerPartException &&
      error.lastValidByteReceived === -1 &&
      error.uploadId === uploadId &&
      error.registryId === ACCOUNT &&
      error.repositoryName === repositoryName,
  );
  const available = await client.send(
    new BatchCheckLayerAvailabilityCommand({ repositoryName, layerDigests: [layer, ''] }),
  );
  assert.equal(available.layers?.[0]?.layerSize, bytes.length);
  assert.equal(available.failures?.[0]?.failureCode, 'MissingLayerDigest');

  const digests: string[] = [];
  for (const note of ['one', 'two', 'three']) {
    const imageManifest = manifestOf(config, layer, bytes.length, note);
    const put = await client.send(new PutImageCommand({ repositoryName, imageManifest, imageTag: note }));
    assert.equal(put.image?.imageId?.imageDigest, sha256(imageManifest));
    digests.unshift(sha256(imageManifest));
    await assert.rejects(
      client.send(new PutImageCommand({ repositoryName, imageManifest, imageTag: note })),
      {
        name: 'ImageAlreadyExistsException',
      },
    );
  }
  const got = await client.send(
    new BatchGetImageCommand({ repositoryName, imageIds: [{ imageTag: 'one' }, {}] }),
  );
  assert.equal(got.images?.[0]?.imageManifest, manifestOf(config, layer, bytes.length, 'one'));
  assert.equal(got.failures?.[0]?.failureCode, 'MissingDigestAndTag');

  const listed: (string | undefined)[] = [];
  for await (const page of paginateListImages({ client, pageSize: 2 }, { repositoryName }))
    listed.push(...(page.imageIds ?? []).map(({ imageTag }) => imageTag));
  assert.deepEqual([...listed].sort(), ['one', 'three', 'two']);
  const details = [];
  for await (const page of paginateDescribeImages({ client, pageSize: 2 }, { repositoryName }))
    details.push(...(page.imageDetails ?? []));
  assert.deepEqual(details.map(({ imageDigest }) => imageDigest).sort(), [...digests].sort());
  const one = details.find(({ imageTags }) => imageTags?.includes('one'));
  assert.equal(one?.imageSizeInBytes, bytes.length + 2);
  assert.equal(one?.artifactMediaType, 'application/vnd.oci.image.config.v1+json');
  assert.equal(one?.imageStatus, 'ACTIVE');
  assert.ok(one?.imagePushedAt instanceof Date);
  await assert.rejects(
    client.send(new DescribeImagesCommand({ repositoryName, imageIds: [{ imageTag: 'none' }] })),
    { name: 'ImageNotFoundException' },
  );

  const { downloadUrl = '' } = await client.send(
    new GetDownloadUrlForLayerCommand({ repositoryName, layerDigest: layer }),
  );
  const download = await fetch(downloadUrl, { headers: { authorization: 'Bearer nothing' } });
  assert.equal(download.status, 200);
  assert.equal(sha256(await download.bytes()), layer);
  const range = await fetch(downloadUrl, { headers: { range: 'bytes=10485759-10485761' } });
  assert.deepEqual([range.status, await range.bytes()], [206, new Uint8Array([7, 7, 7])]);
  const conditions: [headers: Record<string, string>, status: number][] = [
    [{ 'if-match': `"${layer}"` }, 200],
    [{ 'if-match': '"x"', range: 'bytes=0-1' }, 412],
    [{ 'if-none-match': `"${layer}"` }, 304],
    [{ 'if-range': '"x"', range: 'bytes=0-1' }, 200],
    [{ 'if-range': `"${layer}"`, range: 'bytes=0-1' }, 206],
  ];
  for (const [headers, status] of conditions) {
    const answer = await fetch(downloadUrl, { headers });
    assert.equal(answer.status, status, JSON.stringify(headers));
    const text = await answer.text();
    if (status === 412) assert.match(text, /<Code>PreconditionFailed<\/Code>/);
    else assert.equal(answer.headers.get('etag'), `"${layer}"`);
  }
  assert.equal((await fetch(`${downloadUrl}x`)).status, 403);

  const deleted = await client.send(
    new BatchDeleteImageCommand({ repositoryName, imageIds: [{ imageTag: 'one' }, { imageTag: 'none' }] }),
  );
  assert.equal(deleted.imageIds?.length, 1);
  assert.equal(deleted.failures?.[0]?.failureCode, 'ImageNotFound');
  await assert.rejects(client.send(new DeleteRepositoryCommand({ repositoryName })), {
    name: 'RepositoryNotEmptyException',
  });
  await client.send(new DeleteRepositoryCommand({ repositoryName, force: true }));
  await assert.rejects(client.send(new ListImagesCommand({ repositoryName })), {
    name: 'RepositoryNotFoundException',
  });
});

test('tokens, and what is not built', async () => {
  await using server = await open();
  const { client, berth } = server;
  const { authorizationData = [] } = await client.send(new GetAuthorizationTokenCommand({}));
  assert.equal(authorizationData[0]?.proxyEndpoint, `http://localhost:${berth.port}`);
  const authorization = `Basic ${authorizationData[0]?.authorizationToken}`;
  const base = await fetch(`${authorizationData[0]?.proxyEndpoint}/v2/`, { headers: { authorization } });
  assert.equal(base.status, 200);
  await assert.rejects(client.send(new GetAuthorizationTokenCommand({ registryIds: ['1'] })), {
    name: 'InvalidParameterException',
    message:
      "Invalid parameter at 'registryIds' failed to satisfy constraint: 'Member must satisfy constraint: [Member must satisfy regular expression pattern: [0-9]{12}]'",
  });
  await assert.rejects(client.send(new GetSigningConfigurationCommand({})), {
    name: 'OperationNotBuilt',
    message: /Managed signing is not built/,
  });
});
