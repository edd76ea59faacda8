/** A registry over a real database and real files, for the tests of this folder. */
import assert from 'node:assert/strict';
import { createHash, randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { type BlobStore, createFileBlobStore } from '../blobs/blobs.ts';
import { OCI_IMAGE, OCI_INDEX } from '../domain/manifests.ts';
import { type KeyRing, openKeyRing } from '../lib/keyring.ts';
import { findContradictions, type Store } from '../store/store.ts';
import {
  createRegistry,
  type PutImageInput,
  type Registry,
  type RegistryOptions,
  type Repository,
} from './registry.ts';

export interface TestRegistry {
  readonly registry: Registry;
  readonly store: Store;
  readonly blobs: BlobStore;
  readonly keys: KeyRing;
  /** what the registry's clock says, in epoch milliseconds */
  readonly time: { now: number };
  /** a second registry over the same store and blobs */
  another(options?: Partial<RegistryOptions>): Registry;
  /** a blob store of its own over the same files, as another process has; closed with the rest */
  anotherBlobs(): Promise<BlobStore>;
  createRepository(name: string, row?: Partial<Omit<Repository, 'tags'>>): Promise<Repository>;
  deleteRepository(repository: Repository): Promise<void>;
  /** uploads bytes and returns their digest */
  upload(repository: Repository, bytes: Uint8Array | string): Promise<string>;
  /** files in the blob store */
  files(): Promise<number>;
  /** no tag without image, no image without content, no content without bytes, sizes right */
  checkIntegrity(): Promise<void>;
  close(): Promise<void>;
}

/** Opens an empty database; it may keep its files in the directory. */
export type OpenStore = (directory: string) => Promise<Store>;

export type OpenTestRegistry = (options?: Partial<RegistryOptions>) => Promise<TestRegistry>;

export async function openTestRegistry(
  openStore: OpenStore,
  options: Partial<RegistryOptions> = {},
): Promise<TestRegistry> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-registry-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  const blobs = await createFileBlobStore({ directory: join(directory, 'blobs'), keys });
  const store = await openStore(directory);
  const time = { now: Date.UTC(2026, 0, 1) };
  const open = (more: Partial<RegistryOptions> = {}): Registry =>
    createRegistry({ store, blobs, ring: keys, clock: () => time.now, ...options, ...more });
  const registry = open();
  const others: BlobStore[] = [];
  return {
    registry,
    store,
    blobs,
    keys,
    time,
    another: open,
    anotherBlobs: async () => {
      const other = await createFileBlobStore({ directory: join(directory, 'blobs'), keys });
      others.push(other);
      return other;
    },
    createRepository: async (name, row = {}) => {
      const repository = {
        id: randomUUID(),
        account: '000000000000',
        region: 'us-east-1',
        name,
        createdAt: time.now,
        mutability: 'MUTABLE' as const,
        exclusionFilters: [],
        scanOnPush: false,
        encryptionType: 'AES256' as const,
        kmsKey: undefined,
        contentKey: 'default',
        policy: undefined,
        ...row,
      };
      await store.transact('repository.create', { repository, tags: [], repositoriesMax: 1000 });
      const found = await registry.findRepository(repository);
      assert.ok(found !== undefined);
      return found;
    },
    deleteRepository: async (repository) => {
      const { account, region, name } = repository;
      const { now } = time;
      const deleteAfter = now + registry.trashGraceMs;
      const input = { address: { account, region, name }, force: true, now, deleteAfter };
      await store.transact('repository.delete', input);
    },
    upload: (repository, bytes) => upload(registry, repository, bytes),
    files: async () => (await Array.fromAsync(blobs.list())).length,
    checkIntegrity: () => checkIntegrity(store, blobs),
    close: async () => {
      await registry.close();
      await store.close();
      for (const one of [blobs, ...others]) await one.close();
      await rm(directory, { recursive: true });
    },
  };
}

export function digestOf(bytes: Uint8Array | string, algorithm: 'sha256' | 'sha512' = 'sha256'): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
}

export function streamOf(...pieces: readonly (Uint8Array | string)[]): Readable {
  return Readable.from(pieces.map((piece) => Buffer.from(piece)));
}

async function upload(
  registry: Registry,
  repository: Repository,
  bytes: Uint8Array | string,
): Promise<string> {
  const { id } = await registry.uploads.start(repository);
  await registry.uploads.append(repository, id, streamOf(bytes), {});
  return (await registry.uploads.finish(repository, id, [digestOf(bytes)], { api: false })).digest;
}

/** An OCI image whose config and layers are the given texts, which the caller uploads. */
export function imageOf(config: string, layers: readonly string[], more: object = {}): Uint8Array {
  const descriptor = (mediaType: string, text: string) => ({
    mediaType,
    digest: digestOf(text),
    size: Buffer.byteLength(text),
  });
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_IMAGE,
      config: descriptor('application/vnd.oci.image.config.v1+json', config),
      layers: layers.map((layer) => descriptor('application/vnd.oci.image.layer.v1.tar+gzip', layer)),
      ...more,
    }),
  );
}

export function indexOf(children: readonly Uint8Array[], more: object = {}): Uint8Array {
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_INDEX,
      manifests: children.map((child) => ({
        mediaType: (JSON.parse(Buffer.from(child).toString()) as { mediaType: string }).mediaType,
        digest: digestOf(child),
        size: child.byteLength,
      })),
      ...more,
    }),
  );
}

/** What a door passes for a push of `manifest` under `tags`. */
export function push(
  manifest: Uint8Array,
  tags: readonly string[] = [],
  more: Partial<PutImageInput> = {},
): PutImageInput {
  return { manifest, mediaType: undefined, digest: undefined, tags, existing: 'accept', ...more };
}

async function checkIntegrity(store: Store, blobs: BlobStore): Promise<void> {
  assert.deepEqual(await findContradictions(store.read, 10), []);
  const strayTags = await store.read
    .selectFrom('tag')
    .leftJoin('image', (join) =>
      join
        .onRef('image.repository_id', '=', 'tag.repository_id')
        .onRef('image.digest', '=', 'tag.image_digest'),
    )
    .select('tag.name')
    .where('image.id', 'is', null)
    .execute();
  assert.deepEqual(strayTags, []);
  const strayReferences = await store.read
    .selectFrom('image_blob')
    .leftJoin('repository_blob', (join) =>
      join
        .onRef('repository_blob.repository_id', '=', 'image_blob.repository_id')
        .onRef('repository_blob.digest', '=', 'image_blob.blob_digest'),
    )
    .select('image_blob.blob_digest')
    .where('repository_blob.digest', 'is', null)
    .execute();
  assert.deepEqual(strayReferences, []);
  const contents = await store.read
    .selectFrom('repository_blob')
    .innerJoin('blob', 'blob.storage_key', 'repository_blob.storage_key')
    .select(['blob.storage_key', 'blob.digest', 'blob.size', 'repository_blob.size as linked_size'])
    .execute();
  for (const content of contents) {
    assert.equal(content.size, content.linked_size);
    const bytes = await (await blobs.open(content.storage_key)).bytes();
    assert.equal(digestOf(bytes), content.digest);
    assert.equal(bytes.byteLength, content.size);
  }
  const unlinked = await store.read
    .selectFrom('blob')
    .leftJoin('repository_blob', 'repository_blob.storage_key', 'blob.storage_key')
    .select('blob.storage_key')
    .where('repository_blob.storage_key', 'is', null)
    .execute();
  assert.deepEqual(unlinked, [], 'a copy no repository has');
}
