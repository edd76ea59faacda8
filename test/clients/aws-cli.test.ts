/** The machine's own AWS CLI: queries, output formats, paging over more than a page, waiters, recipes, exit codes. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Credentials } from '../../src/lib/sigv4.ts';
import {
  ACCOUNT,
  awsVariables,
  callEcr,
  createRepository,
  type Environment,
  makePlace,
  missing,
  ok,
  readAdmin,
  run,
  startBerth,
  stopBerth,
  type BerthServer,
  type Finished,
  type Place,
} from './harness.ts';
import { digestOf } from './image.ts';

const skip = missing('aws');

const app = 'team/app';
const REPOSITORIES = 205;
const IMAGES = 215;

/** With line ends and indentation: a client that reformats it changes its digest. */
function manifestOf(note: string): string {
  const content = {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    config: {
      mediaType: 'application/vnd.oci.image.config.v1+json',
      size: 2,
      digest: digestOf(Buffer.from('{}')),
    },
    layers: [],
    annotations: { note },
  };
  return JSON.stringify(content, null, 3);
}

const numbered = (prefix: string, length: number): string[] =>
  Array.from({ length }, (_, i) => `${prefix}${String(i).padStart(3, '0')}`);

const repositories = numbered('many/r', REPOSITORIES - 1)
  .concat(app)
  .sort();
const tags = numbered('v', IMAGES);

/** Eight at a time. */
async function forEach(items: readonly string[], act: (item: string) => Promise<unknown>): Promise<void> {
  const queue = [...items];
  const work = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await act(item);
  };
  await Promise.all(Array.from({ length: 8 }, work));
}

async function fill(server: BerthServer, key: Credentials): Promise<void> {
  const call = async (operation: string, input: object): Promise<Record<string, unknown>> => {
    const { status, text } = await callEcr(server, key, operation, { repositoryName: app, ...input });
    assert.equal(status, 200, text);
    return JSON.parse(text) as Record<string, unknown>;
  };
  await forEach(repositories, (name) => createRepository(server, key, name));
  const { uploadId } = await call('InitiateLayerUpload', {});
  const layerPartBlob = Buffer.from('{}').toString('base64');
  await call('UploadLayerPart', { uploadId, partFirstByte: 0, partLastByte: 1, layerPartBlob });
  await call('CompleteLayerUpload', { uploadId, layerDigests: [digestOf(Buffer.from('{}'))] });
  await forEach(tags, (imageTag) => call('PutImage', { imageTag, imageManifest: manifestOf(imageTag) }));
}

describe('the AWS CLI', { skip }, () => {
  let place: Place;
  let server: BerthServer;
  let environment: Environment;
  /** What version 2 says with 254, an error of the service, is 255 as any other in version 1. */
  let refused = 254;
  /** Version 2 prints times in ISO 8601, version 1 as they came. */
  let time = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d$/;

  /** `aws …`, as it ends. */
  const aws = (...args: readonly string[]): Promise<Finished> => run(['aws', ...args], { environment });

  /** The output of `aws ecr …`, which must succeed. */
  const ecr = (...args: readonly string[]): Promise<string> => ok(['aws', 'ecr', ...args], { environment });

  const json = async <T>(...args: readonly string[]): Promise<T> =>
    JSON.parse(await ecr(...args, '--output', 'json')) as T;

  before(async () => {
    place = await makePlace('aws-cli');
    server = await startBerth({ data: join(place.directory, 'data') });
    const key = await readAdmin(server.data);
    environment = { ...place.environment, ...awsVariables(server, key) };
    const { stdout, stderr } = await aws('--version');
    if (/aws-cli\/1\./.test(stdout + stderr)) {
      refused = 255;
      time = /^\d{10}(\.\d{1,3})?$/;
    }
    await fill(server, key);
  });

  after(async () => {
    if (!server.hasExited()) await stopBerth(server);
    await place.remove();
  });

  test('all pages of repositories and images, by themselves', async () => {
    const names = ['--query', 'repositories[].repositoryName'];
    assert.deepEqual(await json('describe-repositories', ...names), repositories);
    assert.deepEqual(await json('describe-repositories', '--page-size', '50', ...names), repositories);
    // text prints a line for each page
    const lines = (await ecr('describe-repositories', ...names, '--output', 'text')).trimEnd().split('\n');
    const pages = lines.map((line) => line.split('\t'));
    assert.deepEqual(
      pages.map((page) => page.length),
      [100, 100, 5],
    );
    assert.deepEqual(pages.flat(), repositories);

    const images = ['--repository-name', app];
    const listed = await json<string[]>('list-images', ...images, '--query', 'imageIds[].imageTag');
    assert.deepEqual(listed.sort(), tags);
    const query = 'imageDetails[].imageTags[]';
    const described = await json<string[]>('describe-images', ...images, '--query', query);
    assert.deepEqual(described.sort(), tags);
    const latest = ['--query', 'sort_by(imageDetails,& imagePushedAt)[*].imageDigest'];
    const sorted = await json<string[]>('describe-images', ...images, ...latest);
    assert.equal(new Set(sorted).size, IMAGES);
  });

  test('--max-items stops in the middle of a page, --starting-token goes on there', async () => {
    interface Page {
      readonly NextToken?: string;
      readonly repositories: readonly { readonly repositoryName: string }[];
    }
    const found: string[][] = [];
    let token: readonly string[] = [];
    for (;;) {
      const limits = ['--max-items', '90', '--page-size', '60'];
      const page = await json<Page>('describe-repositories', ...limits, ...token);
      found.push(page.repositories.map(({ repositoryName }) => repositoryName));
      if (page.NextToken === undefined) break;
      token = ['--starting-token', page.NextToken];
    }
    assert.deepEqual(
      found.map((page) => page.length),
      [90, 90, 25],
    );
    assert.deepEqual(found.flat(), repositories);
  });

  test('--no-paginate and --max-results give one page and its token', async () => {
    const one = ['list-images', '--repository-name', app, '--no-paginate', '--max-results', '200'];
    const first = await json<{ nextToken: string; imageIds: { imageTag: string }[] }>(...one);
    assert.equal(first.imageIds.length, 200);
    const rest = await json<typeof first>(...one, '--next-token', first.nextToken);
    assert.equal(rest.nextToken, undefined);
    const all = [...first.imageIds, ...rest.imageIds].map(({ imageTag }) => imageTag);
    assert.deepEqual(all.sort(), tags);
  });

  test('--output text, table and json of one repository', async () => {
    const one = ['describe-repositories', '--repository-names', app];
    const query = ['--query', 'repositories[0].[repositoryName,repositoryUri,imageTagMutability]'];
    const uri = `${server.registry}/${app}`;
    assert.equal(await ecr(...one, ...query, '--output', 'text'), `${app}\t${uri}\tMUTABLE\n`);
    const table = await ecr(...one, '--output', 'table');
    assert.match(table, /^-+\n\| +DescribeRepositories +\|\n/);
    assert.match(table, new RegExp(`\\| +repositoryUri +\\| +${uri} +\\|`));
    assert.match(table, /\| +imageScanningConfiguration +\|/);
    const [whole] = (await json<{ repositories: Record<string, unknown>[] }>(...one)).repositories;
    assert.equal(whole?.['repositoryArn'], `arn:aws:ecr:us-east-1:${ACCOUNT}:repository/${app}`);
    assert.match(String(whole?.['createdAt']), time);
    // an empty answer is an empty list, and nothing in text
    const none = ['list-images', '--repository-name', 'many/r000'];
    assert.deepEqual(await json(...none), { imageIds: [] });
    assert.equal(await ecr(...none, '--output', 'text'), '');
  });

  test('an image gets another tag by the recipe of the ECR user guide', async () => {
    const recipe = [
      'set -eo pipefail',
      `MANIFEST=$(aws ecr batch-get-image --repository-name ${app} --image-ids imageTag=v007 ` +
        `--output text --query 'images[].imageManifest')`,
      `aws ecr put-image --repository-name ${app} --image-tag stable --image-manifest "$MANIFEST"`,
      `aws ecr describe-images --repository-name ${app} --image-ids imageTag=stable ` +
        `--query 'imageDetails[0].[imageDigest,imageTags]' --output json`,
    ];
    const output = await ok(['bash', '-c', recipe.join('\n')], { environment });
    const described = output.slice(output.lastIndexOf('\n[') + 1);
    const [digest, found] = JSON.parse(described) as [string, string[]];
    assert.equal(digest, digestOf(Buffer.from(manifestOf('v007'))));
    assert.deepEqual(found.sort(), ['stable', 'v007']);
    // a second time it is there already
    const again = await run(['bash', '-c', recipe.slice(0, 3).join('\n')], { environment });
    assert.equal(again.code, refused);
    assert.match(again.stderr, /An error occurred \(ImageAlreadyExistsException\) when calling the PutImage/);
  });

  test('batch-delete-image: failures are part of a good answer', async () => {
    const ids = ['imageTag=v000', 'imageTag=none', `imageDigest=sha256:${'0'.repeat(64)}`];
    const answer = await json('batch-delete-image', '--repository-name', app, '--image-ids', ...ids);
    const failure = { failureCode: 'ImageNotFound', failureReason: 'Requested image not found' };
    assert.deepEqual(answer, {
      imageIds: [{ imageDigest: digestOf(Buffer.from(manifestOf('v000'))), imageTag: 'v000' }],
      failures: [
        { imageId: { imageTag: 'none' }, ...failure },
        { imageId: { imageDigest: `sha256:${'0'.repeat(64)}` }, ...failure },
      ],
    });
  });

  test('wait lifecycle-policy-preview-complete', async () => {
    const repository = ['--repository-name', app];
    const rule = {
      rulePriority: 1,
      selection: {
        tagStatus: 'tagged',
        tagPrefixList: ['v01'],
        countType: 'imageCountMoreThan',
        countNumber: 4,
      },
      action: { type: 'expire' },
    };
    const policy = ['--lifecycle-policy-text', JSON.stringify({ rules: [rule] })];
    const started = ['start-lifecycle-policy-preview', ...repository, ...policy];
    assert.equal(await ecr(...started, '--query', 'status', '--output', 'text'), 'IN_PROGRESS\n');
    assert.equal(await ecr('wait', 'lifecycle-policy-preview-complete', ...repository), '');
    const query = ['--query', '[status,summary.expiringImageTotalCount,length(previewResults)]'];
    assert.deepEqual(await json('get-lifecycle-policy-preview', ...repository, ...query), ['COMPLETE', 6, 6]);

    const none = await aws(
      'ecr',
      'wait',
      'lifecycle-policy-preview-complete',
      '--repository-name',
      'many/r000',
    );
    assert.equal(none.code, 255);
    assert.match(
      none.stderr,
      /Waiter LifecyclePolicyPreviewComplete failed: An error occurred \(LifecyclePolicyPreviewNotFoundException\)/,
    );
  });

  test('what is missing or refused has the exit code of an error of the service, and says why', async () => {
    await ok(['aws', 'iam', 'create-user', '--user-name', 'guest'], { environment });
    const query = ['--query', 'AccessKey.[AccessKeyId,SecretAccessKey]', '--output', 'text'];
    const made = await ok(['aws', 'iam', 'create-access-key', '--user-name', 'guest', ...query], {
      environment,
    });
    const [accessKeyId = '', secretAccessKey = ''] = made.trim().split('\t');
    const guest = { ...environment, ...awsVariables(server, { accessKeyId, secretAccessKey }) };
    const liar = { ...guest, AWS_SECRET_ACCESS_KEY: 'wrong' };
    const describe = ['describe-repositories', '--repository-names'];
    const cases: readonly (readonly [Environment, readonly string[], string])[] = [
      [
        environment,
        [...describe, 'no/body'],
        '(RepositoryNotFoundException) when calling the DescribeRepositories operation: ' +
          `The repository with name 'no/body' does not exist in the registry with id '${ACCOUNT}'`,
      ],
      [
        environment,
        ['delete-repository', '--repository-name', app],
        '(RepositoryNotEmptyException) when calling the DeleteRepository operation: The repository with name ' +
          `'${app}' in registry with id '${ACCOUNT}' cannot be deleted because it still contains images`,
      ],
      [
        environment,
        ['describe-pull-through-cache-rules'],
        '(OperationNotBuilt) when calling the DescribePullThroughCacheRules operation',
      ],
      [
        guest,
        [...describe, app],
        '(AccessDeniedException) when calling the DescribeRepositories operation: User: ' +
          `arn:aws:iam::${ACCOUNT}:user/guest is not authorized to perform: ecr:DescribeRepositories on resource: ` +
          `arn:aws:ecr:us-east-1:${ACCOUNT}:repository/${app} because no identity-based policy allows the ` +
          'ecr:DescribeRepositories action',
      ],
      // what exists is not told to who may not see it
      [guest, [...describe, 'no/body'], '(AccessDeniedException) when calling'],
      [
        liar,
        [...describe, app],
        '(InvalidSignatureException) when calling the DescribeRepositories operation: The request signature we ' +
          'calculated does not match the signature you provided.',
      ],
    ];
    for (const [as, args, says] of cases) {
      const { code, stdout, stderr } = await run(['aws', 'ecr', ...args], { environment: as });
      assert.deepEqual([code, stdout], [refused, ''], `${args.join(' ')}: ${stderr}`);
      // that a test's CLI does not try again is told by some versions
      const said = stderr.replace(' (reached max retries: 0)', '');
      assert.ok(said.includes(`An error occurred ${says}`), stderr);
    }
  });

  test('a server that is not there ends with 255', async () => {
    const nowhere = { ...environment, AWS_ENDPOINT_URL: 'http://127.0.0.1:1' };
    const { code, stderr } = await run(['aws', 'ecr', 'describe-registry'], { environment: nowhere });
    assert.equal(code, 255);
    assert.match(stderr, /Could not connect to the endpoint URL: "http:\/\/127\.0\.0\.1:1\/"/);
  });
});
