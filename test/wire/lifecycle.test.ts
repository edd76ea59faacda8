/** Lifecycle policies, previews and storage classes, called by the AWS SDK over HTTP on the whole server, jobs included. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  BatchGetImageCommand,
  CompleteLayerUploadCommand,
  CreateRepositoryCommand,
  DeleteLifecyclePolicyCommand,
  DescribeImagesCommand,
  ECRClient,
  GetAuthorizationTokenCommand,
  GetLifecyclePolicyCommand,
  GetLifecyclePolicyPreviewCommand,
  ImageStorageClassUpdateNotSupportedException,
  InitiateLayerUploadCommand,
  LifecyclePolicyNotFoundException,
  LifecyclePolicyPreviewNotFoundException,
  ListImagesCommand,
  paginateGetLifecyclePolicyPreview,
  PutImageCommand,
  PutLifecyclePolicyCommand,
  StartLifecyclePolicyPreviewCommand,
  UpdateImageStorageClassCommand,
  UploadLayerPartCommand,
  waitUntilLifecyclePolicyPreviewComplete,
} from '@aws-sdk/client-ecr';
import { createMain, type Surroundings } from '../../src/cli/cli.ts';
import { createClient } from '../../src/cli/client.ts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';

const repositoryName = 'team/app';
const app = { repositoryName };
const sha256 = (content: string) => `sha256:${createHash('sha256').update(content).digest('hex')}`;

/** A server with a repository of images tagged v0, v1, …, oldest first. */
async function open(images: number) {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-lifecycle-'));
  const berth = await start(readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform }), {
    log: createLog('silent'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const client = new ECRClient({
    endpoint: berth.endpoint,
    region: 'us-east-1',
    credentials: { accessKeyId: id, secretAccessKey: secret },
    maxAttempts: 1,
  });
  await client.send(new CreateRepositoryCommand(app));
  const { uploadId } = await client.send(new InitiateLayerUploadCommand(app));
  const part = { partFirstByte: 0, partLastByte: 1, layerPartBlob: Buffer.from('{}') };
  await client.send(new UploadLayerPartCommand({ ...app, uploadId, ...part }));
  await client.send(new CompleteLayerUploadCommand({ ...app, uploadId, layerDigests: [sha256('{}')] }));
  const manifests = Array.from({ length: images }, (_, i) =>
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', size: 2, digest: sha256('{}') },
      layers: [],
      annotations: { i: `${i}` },
    }),
  );
  for (const [i, imageManifest] of manifests.entries())
    await client.send(new PutImageCommand({ ...app, imageManifest, imageTag: `v${i}` }));
  /** Runs `berth lifecycle explain` on the repository. */
  const explain = async (...args: string[]): Promise<{ code: number; out: string; err: string }> => {
    const text = { out: '', err: '' };
    const sink = (name: 'out' | 'err') => ({ write: (chunk: string) => void (text[name] += chunk) });
    const env = {
      AWS_ENDPOINT_URL: berth.endpoint,
      AWS_REGION: 'us-east-1',
      AWS_ACCESS_KEY_ID: id,
      AWS_SECRET_ACCESS_KEY: secret,
    };
    const surroundings = { env, platform: 'linux', stdout: sink('out'), stderr: sink('err') };
    const main = createMain(surroundings as unknown as Surroundings);
    const argv = ['node', 'berth', 'lifecycle', 'explain', '--data', data, repositoryName, ...args];
    return { code: await main.run(argv), ...text };
  };
  return {
    berth,
    client,
    manifests,
    data,
    explain,
    async [Symbol.asyncDispose]() {
      client.destroy();
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

const keep = (rulePriority: number, countNumber: number, action: object = { type: 'expire' }) => ({
  rulePriority,
  selection: { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber },
  action,
});

test('preview, waiter, policy and its effect', async () => {
  await using server = await open(5);
  const { client, manifests } = server;
  await assert.rejects(
    client.send(new GetLifecyclePolicyCommand(app)),
    (error) => error instanceof LifecyclePolicyNotFoundException,
  );
  await assert.rejects(
    client.send(new GetLifecyclePolicyPreviewCommand(app)),
    (error) => error instanceof LifecyclePolicyPreviewNotFoundException,
  );
  const short = await client
    .send(new PutLifecyclePolicyCommand({ ...app, lifecyclePolicyText: '{"rules":[]}' }))
    .catch((error: Error) => `${error.name}: ${error.message}`);
  assert.match(String(short), /^InvalidParameterException: Invalid parameter at 'lifecyclePolicyText' .*100/);

  const lifecyclePolicyText = JSON.stringify({ rules: [keep(1, 2)] });
  const started = await client.send(new StartLifecyclePolicyPreviewCommand({ ...app, lifecyclePolicyText }));
  assert.equal(started.status, 'IN_PROGRESS');
  const waited = await waitUntilLifecyclePolicyPreviewComplete(
    { client, maxWaitTime: 60, minDelay: 1, maxDelay: 1 },
    app,
  );
  assert.equal(waited.state, 'SUCCESS');
  const results = [];
  for await (const page of paginateGetLifecyclePolicyPreview({ client, pageSize: 2 }, { ...app })) {
    assert.equal(page.summary?.expiringImageTotalCount, 3);
    results.push(...(page.previewResults ?? []));
  }
  assert.deepEqual(
    results.map((each) => [
      each.imageTags,
      each.imageDigest,
      each.action?.type,
      each.appliedRulePriority,
      each.storageClass,
    ]),
    [0, 1, 2].map((i) => [[`v${i}`], sha256(manifests[i] ?? ''), 'EXPIRE', 1, 'STANDARD']),
  );

  const put = await client.send(new PutLifecyclePolicyCommand({ ...app, lifecyclePolicyText }));
  assert.equal(put.lifecyclePolicyText, lifecyclePolicyText);
  let evaluated: Date | undefined;
  while ((evaluated?.getTime() ?? 0) === 0)
    ({ lastEvaluatedAt: evaluated } = await client.send(new GetLifecyclePolicyCommand(app)));
  const { imageIds = [] } = await client.send(new ListImagesCommand(app));
  assert.deepEqual(
    imageIds.map(({ imageTag }) => imageTag),
    ['v4', 'v3'],
  );
  const removed = await client.send(new DeleteLifecyclePolicyCommand(app));
  assert.equal(removed.lifecyclePolicyText, lifecyclePolicyText);
  assert.deepEqual(removed.lastEvaluatedAt, evaluated);
});

interface ServiceRecord {
  readonly eventName: string;
  readonly eventTime: string;
  readonly eventID: string;
  readonly serviceEventDetails: {
    readonly lifecycleEventPolicy: { readonly policyId: string };
    readonly lifecycleEventImageActions: readonly { lifecycleEventImage: object; rulePriority: number }[];
    readonly lifecycleEventFailureDetails: readonly object[];
  };
}

/** The service events of a name in the audit log, once there are so many. */
async function serviceEvents(data: string, name: string, count: number): Promise<ServiceRecord[]> {
  for (;;) {
    const text = await readFile(join(data, 'audit', 'audit-00000001.jsonl'), 'utf8');
    const whole = text.split('\n').slice(0, -1);
    const records = whole.map((line) => JSON.parse(line) as ServiceRecord);
    const found = records.filter(({ eventName }) => eventName === name);
    if (found.length >= count) return found;
    await delay(20);
  }
}

test('the audit log has what a preview would do, what a run did, and what it could not', async () => {
  await using server = await open(13);
  const { client, data, manifests } = server;
  const [member = ''] = manifests;
  const index = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [
      {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        size: Buffer.byteLength(member),
        digest: sha256(member),
      },
    ],
  });
  await client.send(new PutImageCommand({ ...app, imageManifest: index, imageTag: 'list' }));
  const { imageDetails = [] } = await client.send(new DescribeImagesCommand(app));
  const images = manifests.map((manifest, i) => ({
    lifecycleEventImage: {
      digest: sha256(manifest),
      tagStatus: 'Tagged',
      tagList: [`v${i}`],
      pushedAt: imageDetails.find((each) => each.imageDigest === sha256(manifest))?.imagePushedAt?.getTime(),
    },
    rulePriority: 1,
  }));
  const text = JSON.stringify({ rules: [{ ...keep(1, 2), description: 'the newest two' }] });
  const policy = { ...app, lifecyclePolicyText: text };
  await client.send(new StartLifecyclePolicyPreviewCommand(policy));
  const previewed = await serviceEvents(data, 'DryRunEvent', 3);
  await client.send(new PutLifecyclePolicyCommand(policy));
  const events = await serviceEvents(data, 'PolicyExecutionEvent', 3);
  const acted = images.slice(1, 12);
  const failed = {
    ...images[0],
    failureCode: 'ImageReferencedByManifestList',
    failureReason: `Requested image referenced by manifest list: [${sha256(index)}]`,
  };
  for (const records of [previewed, events]) {
    assert.deepEqual(
      records.map(({ serviceEventDetails: details }) => [
        details.lifecycleEventImageActions,
        details.lifecycleEventFailureDetails,
      ]),
      [
        [acted.slice(0, 10), []],
        [acted.slice(10), []],
        [[], [failed]],
      ],
    );
    assert.equal(new Set(records.map(({ eventID }) => eventID)).size, 3);
  }
  const { eventTime, eventID, serviceEventDetails: details, ...last } = events[2] as ServiceRecord;
  assert.match(eventTime, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  assert.match(eventID, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  const { policyId } = details.lifecycleEventPolicy;
  assert.match(policyId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.deepEqual(details.lifecycleEventPolicy, {
    lifecycleEventRules: [
      {
        rulePriority: 1,
        description: 'the newest two',
        lifecycleEventSelection: {
          tagStatus: 'Any',
          tagPrefixList: [],
          tagPatternList: [],
          countType: 'Image count more than',
          countNumber: 2,
        },
        action: 'expire',
      },
    ],
    lastEvaluatedAt: 0,
    policyVersion: 1,
    policyId,
  });
  const service = 'ecr.amazonaws.com';
  assert.deepEqual(last, {
    eventVersion: '1.11',
    userIdentity: { accountId: '000000000000', invokedBy: service },
    eventSource: service,
    eventName: 'PolicyExecutionEvent',
    awsRegion: 'us-east-1',
    sourceIPAddress: service,
    userAgent: service,
    requestParameters: null,
    responseElements: null,
    readOnly: true,
    resources: [
      {
        accountId: '000000000000',
        type: 'AWS::ECR::Repository',
        ARN: `arn:aws:ecr:us-east-1:000000000000:repository/${repositoryName}`,
      },
    ],
    eventType: 'AwsServiceEvent',
    managementEvent: true,
    recipientAccountId: '000000000000',
    eventCategory: 'Management',
  });
});

test('an archived image is refused on both planes', async () => {
  await using server = await open(2);
  const { berth, client, manifests } = server;
  const imageId = { imageTag: 'v0' };
  const archive = new UpdateImageStorageClassCommand({ ...app, imageId, targetStorageClass: 'ARCHIVE' });
  assert.equal((await client.send(archive)).imageStatus, 'ARCHIVED');
  const got = await client.send(
    new BatchGetImageCommand({ ...app, imageIds: [imageId, { imageTag: 'v1' }] }),
  );
  assert.deepEqual(
    got.failures?.map(({ failureCode }) => failureCode),
    ['ImageNotFound'],
  );
  assert.equal(got.images?.length, 1);
  const { authorizationData = [] } = await client.send(new GetAuthorizationTokenCommand({}));
  const headers = { authorization: `Basic ${authorizationData[0]?.authorizationToken}` };
  const url = `${berth.endpoint}/v2/${repositoryName}`;
  const statuses = [];
  const config = `blobs/${sha256('{}')}`;
  const paths = ['manifests/v0', `manifests/${sha256(manifests[0] ?? '')}`, 'manifests/v1', config];
  for (const path of paths) statuses.push((await fetch(`${url}/${path}`, { headers })).status);
  assert.deepEqual(statuses, [404, 404, 200, 200]);
  assert.deepEqual(await (await fetch(`${url}/tags/list`, { headers })).json(), {
    name: repositoryName,
    tags: ['v1'],
  });
  const described = await client.send(
    new DescribeImagesCommand({ ...app, filter: { imageStatus: 'ARCHIVED' } }),
  );
  assert.deepEqual(
    described.imageDetails?.map(({ imageStatus, lastArchivedAt }) => [
      imageStatus,
      lastArchivedAt instanceof Date,
    ]),
    [['ARCHIVED', true]],
  );
  // Content that only archived images need is read no more than they; a push may still rely on it.
  const other = { ...app, imageId: { imageTag: 'v1' } };
  await client.send(new UpdateImageStorageClassCommand({ ...other, targetStorageClass: 'ARCHIVE' }));
  assert.equal((await fetch(`${url}/${config}`, { headers })).status, 404);
  assert.equal((await fetch(`${url}/${config}`, { headers, method: 'HEAD' })).status, 200);
  const restore = new UpdateImageStorageClassCommand({ ...app, imageId, targetStorageClass: 'STANDARD' });
  assert.equal((await client.send(restore)).imageStatus, 'ACTIVATING');
  await assert.rejects(
    client.send(archive),
    (error) => error instanceof ImageStorageClassUpdateNotSupportedException,
  );
  // docker push of the same image brings it back.
  const pushed = await fetch(`${url}/manifests/v0`, {
    method: 'PUT',
    headers: { ...headers, 'content-type': 'application/vnd.oci.image.manifest.v1+json' },
    body: manifests[0] ?? '',
  });
  assert.equal(pushed.status, 201);
  assert.equal((await fetch(`${url}/manifests/v0`, { headers })).status, 200);
});

test('berth lifecycle explain: the verdict on each image, and why', async () => {
  await using server = await open(3);
  const { client, data, explain, manifests } = server;
  const none = await explain();
  assert.equal(none.code, 1);
  assert.match(none.err, /LifecyclePolicyNotFoundException: Lifecycle policy does not exist/);

  const file = join(data, 'policy.json');
  const young = {
    rulePriority: 1,
    selection: {
      tagStatus: 'tagged',
      tagPatternList: ['v2'],
      countType: 'sinceImagePushed',
      countUnit: 'days',
      countNumber: 7,
    },
    action: { type: 'expire' },
  };
  await writeFile(file, JSON.stringify({ rules: [keep(2, 2), young] }));
  const shown = await explain('--policy', file);
  assert.equal(shown.code, 0, shown.err);
  const lines = shown.out.split('\n');
  assert.equal(lines.at(-2), '1 expire, 0 archived, 2 kept');
  assert.deepEqual(
    lines.filter((line) => !line.startsWith(' ')).map((line) => line.replace(/, pushed .*/, '')),
    [
      `KEEP ${sha256(manifests[2] ?? '')} (v2)`,
      `KEEP ${sha256(manifests[1] ?? '')} (v1)`,
      `EXPIRE ${sha256(manifests[0] ?? '')} (v0)`,
      '1 expire, 0 archived, 2 kept',
      '',
    ],
  );
  assert.equal(lines[1], '  Rule 1 owns it and keeps it; rules after it cannot act.');
  assert.match(lines[2] ?? '', /^ {2}rule 1 \(owner\): Tag 'v2' matches 'v2'\. It was pushed .* Due after /);
  assert.ok(
    lines.includes(
      '  rule 2 (owner): It selects all images. It selects 3 images and keeps the youngest 2; this is not among them.',
    ),
  );

  const one = await explain('--policy', file, '--json', '--image', 'v0');
  const verdict = JSON.parse(one.out) as Record<string, unknown>;
  assert.equal(verdict['verdict'], 'EXPIRE');
  assert.equal(verdict['ownedByRule'], 2);
  assert.equal(verdict['reason'], 'Rule 2 owns it and expires it.');
  assert.equal(
    (await explain('--policy', file, '--image', 'gone')).err,
    'berth: gone: Requested image not found\n',
  );
  assert.match((await explain('--policy', '/none')).err, /^berth: cannot read \/none: ENOENT/);

  // The repository's own policy, and pages.
  await client.send(
    new PutLifecyclePolicyCommand({ ...app, lifecyclePolicyText: JSON.stringify({ rules: [keep(1, 9)] }) }),
  );
  assert.match((await explain()).out, /\n0 expire, 0 archived, 3 kept\n$/);
  const pages = await pagesOf(server, 2);
  assert.deepEqual(pages, [
    [sha256(manifests[2] ?? ''), sha256(manifests[1] ?? '')],
    [sha256(manifests[0] ?? '')],
  ]);
});

/** The digests of each page of ExplainLifecycle. */
async function pagesOf(
  { client, berth }: Pick<Awaited<ReturnType<typeof open>>, 'client' | 'berth'>,
  maxResults: number,
): Promise<string[][]> {
  const { accessKeyId, secretAccessKey } = await client.config.credentials();
  const env = {
    AWS_ENDPOINT_URL: berth.endpoint,
    AWS_REGION: 'us-east-1',
    AWS_ACCESS_KEY_ID: accessKeyId,
    AWS_SECRET_ACCESS_KEY: secretAccessKey,
  };
  const caller = await createClient({ data: tmpdir() }, { env });
  const pages: string[][] = [];
  let nextToken: string | undefined;
  do {
    const page = await caller.call<{ images: { imageDigest: string }[]; nextToken?: string }>(
      'berth',
      'ExplainLifecycle',
      {
        ...app,
        maxResults,
        ...(nextToken !== undefined && { nextToken }),
      },
    );
    pages.push(page.images.map(({ imageDigest }) => imageDigest));
    ({ nextToken } = page);
  } while (nextToken !== undefined);
  return pages;
}
