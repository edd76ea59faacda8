/** What Terraform's provider does around its calls: a server to talk to, its waiters, its way of comparing policies. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ECR, type Repository } from '@aws-sdk/client-ecr';
import { IAM } from '@aws-sdk/client-iam';
import { STS } from '@aws-sdk/client-sts';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { createLog } from '../../src/lib/log.ts';

export const ACCOUNT = '000000000000';
export const REGION = 'us-east-1';
export const repositoryName = 'team/app';
export const app = { repositoryName };
export const sha256 = (content: string) => `sha256:${createHash('sha256').update(content).digest('hex')}`;
export const roleArn = (name: string) => `arn:aws:iam::${ACCOUNT}:role/${name}`;

export async function open() {
  const data = await mkdtemp(join(tmpdir(), 'berth-wire-terraform-'));
  const berth = await start(readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform }), {
    log: createLog('silent'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const common = {
    endpoint: berth.endpoint,
    region: REGION,
    credentials: { accessKeyId: id, secretAccessKey: secret },
    maxAttempts: 1,
  };
  const clients = { ecr: new ECR(common), iam: new IAM(common), sts: new STS(common) };
  return {
    ...clients,
    berth,
    /** The same credential in another region, as `region` of a resource makes it since version 6 of the provider. */
    ecrIn: (region: string) => new ECR({ ...common, region }),
    async [Symbol.asyncDispose]() {
      for (const client of Object.values(clients)) client.destroy();
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

/** The provider's finder: exactly one repository, or the error by its code. */
export async function findRepository(ecr: ECR, name: string = repositoryName): Promise<Repository> {
  const { repositories = [], nextToken } = await ecr.describeRepositories({ repositoryNames: [name] });
  assert.deepEqual([repositories.length, nextToken], [1, undefined]);
  return repositories[0] ?? assert.fail();
}

export const isGone = (code: string) => ({ name: code });

/** The provider's waiter after DeleteRepository: reads until the code says that it is gone. */
export async function waitRepositoryDeleted(ecr: ECR, name: string): Promise<number> {
  for (let reads = 1; reads < 20; reads++) {
    try {
      await findRepository(ecr, name);
    } catch (error) {
      assert.equal((error as Error).name, 'RepositoryNotFoundException');
      return reads;
    }
    await delay(50);
  }
  return assert.fail('still there');
}

/** The list of tags as the map that is kept in the state. */
export async function readTags(ecr: ECR, resourceArn: string | undefined): Promise<Record<string, string>> {
  const { tags = [] } = await ecr.listTagsForResource({ resourceArn });
  return Object.fromEntries(tags.map(({ Key = '', Value = '' }) => [Key, Value]));
}

/** One value and a list of it mean the same in a policy, and so do an account and its root (awspolicyequivalence). */
export function equivalent(policy: string | undefined): unknown {
  const settle = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.length === 1 ? settle(value[0]) : value.map(settle).sort();
    if (typeof value === 'string') return value.replace(/^([0-9]{12})$/, 'arn:aws:iam::$1:root');
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, settle(inner)]));
  };
  return settle(JSON.parse(policy ?? ''));
}

/** A lifecycle policy as the provider compares it: rules by priority, tag lists sorted. */
export function sortedRules(policy: string | undefined): unknown {
  const { rules } = JSON.parse(policy ?? '') as {
    rules: { rulePriority: number; selection: Record<string, unknown> }[];
  };
  const sorted = rules.map(({ selection, ...rule }) => {
    const lists = Object.entries(selection).map(([key, value]) => [
      key,
      Array.isArray(value) ? [...value].sort() : value,
    ]);
    return { ...rule, selection: Object.fromEntries(lists) as unknown };
  });
  return sorted.sort((a, b) => a.rulePriority - b.rulePriority);
}

/** Images of one repository, oldest first; each tagged with its own name. */
export async function pushImages(ecr: ECR, tags: readonly string[]): Promise<string[]> {
  const { uploadId } = await ecr.initiateLayerUpload(app);
  const part = { partFirstByte: 0, partLastByte: 1, layerPartBlob: Buffer.from('{}') };
  await ecr.uploadLayerPart({ ...app, uploadId, ...part });
  await ecr.completeLayerUpload({ ...app, uploadId, layerDigests: [sha256('{}')] });
  const digests: string[] = [];
  for (const imageTag of tags) {
    const imageManifest = JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', size: 2, digest: sha256('{}') },
      layers: [],
      annotations: { imageTag },
    });
    await ecr.putImage({ ...app, imageManifest, imageTag });
    digests.push(sha256(imageManifest));
  }
  return digests;
}
