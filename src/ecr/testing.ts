/** The ECR operations over a real store, registry and identity in a temporary directory, for the tests of this folder. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createFileBlobStore } from '../blobs/blobs.ts';
import { Fault } from '../domain/faults.ts';
import { bootstrap, createIdentity, type Identity, type Principal } from '../identity/identity.ts';
import { accessKeyId, secretAccessKey, uniqueId } from '../lib/ids.ts';
import { openKeyRing, type KeyRing } from '../lib/keyring.ts';
import { seal } from '../lib/seal.ts';
import type { Operation, OperationContext, OperationTable } from '../protocol/protocol.ts';
import { createRegistry, type Registry } from '../registry/registry.ts';
import type { Store } from '../store/store.ts';
import { createDownloads, createEcrOperations, type Downloads, type EcrOptions } from './ecr.ts';

export const ACCOUNT = '000000000000';
export const OTHER = '111111111111';
export const REGION = 'eu-west-1';
export const NOW = Date.UTC(2026, 10, 24, 12);

export interface User {
  readonly principal: Principal;
  readonly arn: string;
  readonly secret: string;
}

type Json = Record<string, unknown>;

export interface TestRegistry extends AsyncDisposable {
  readonly directory: string;
  /** Closes everything and opens it again, as a restart does. Dispose of the new one only. */
  reopen(): Promise<TestRegistry>;
  readonly store: Store;
  readonly registry: Registry;
  readonly identity: Identity;
  readonly ring: KeyRing;
  readonly downloads: Downloads;
  readonly table: OperationTable<Principal>;
  /** administrators of the two accounts */
  readonly admin: User;
  readonly other: User;
  /** the time of all services, in milliseconds */
  now: number;
  /** Makes a user with one inline policy of these statements. */
  addUser(name: string, statements: readonly Json[], account?: string): Promise<User>;
  /** Performs an operation as a door would: authentication, access, authorisation, run. */
  call<Output extends object = Json>(operation: string, input: Json, as?: User): Promise<Output>;
  /** `code: message` of the Fault the call ends with. */
  fault(operation: string, input: Json, as?: User): Promise<string>;
  /** The Fault itself. */
  refusal(operation: string, input: Json, as?: User): Promise<Fault>;
  /** Stores a layer and returns its digest. */
  addLayer(repositoryName: string, content: string | Uint8Array): Promise<string>;
  /** Pushes an image whose only layer has this content. Returns its digest and manifest. */
  addImage(
    repositoryName: string,
    content: string,
    tag?: string,
  ): Promise<{ digest: string; manifest: string; layer: string; config: string; size: number }>;
}

export function sha256(content: string | Uint8Array): string {
  return `sha256:${createHash('sha256').update(content).digest('hex')}`;
}

export const DOCKER_MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json';
export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json';

/** Opens the database of a directory, which it makes at the first time. */
export type OpenStore = (directory: string) => Promise<Store>;

export type OpenTestRegistry = (limits?: EcrOptions['limits']) => Promise<TestRegistry>;

/** The way to registries on one kind of database. */
export function createOpener(openStore: OpenStore): OpenTestRegistry {
  return async (limits = {}) => openIn(openStore, await mkdtemp(join(tmpdir(), 'berth-ecr-')), limits, []);
}

/** `users` are those made before: their keys are not shown twice. */
async function openIn(
  openStore: OpenStore,
  directory: string,
  limits: EcrOptions['limits'] & object,
  users: readonly User[],
): Promise<TestRegistry> {
  const store = await openStore(directory);
  const ring = await openKeyRing(join(directory, 'keys'));
  const blobs = await createFileBlobStore({ directory: join(directory, 'blobs'), keys: ring });
  const clock = (): number => test.now;
  const registry = createRegistry({ store, blobs, ring, clock, ...limits });
  const identity = createIdentity({ store, keys: ring });
  const downloads = createDownloads({ registry, key: ring.derive('layer download URLs'), clock });
  const uri: EcrOptions['uri'] = () => ({ host: 'localhost:7327', endpoint: 'http://localhost:7327' });
  const table = createEcrOperations({ store, registry, identity, ring, downloads, uri, limits });

  const userOf = async (keyId: string, secret: string): Promise<User> => {
    const found = await identity.findKey(keyId, undefined);
    if (typeof found !== 'object') throw new Error('no such key');
    return { principal: found.caller, arn: found.caller.caller.arn, secret };
  };
  const addAccount = async (account: string): Promise<User> => {
    const before = users.find(({ principal }) => principal.account === account);
    if (before !== undefined) return userOf(before.principal.accessKeyId, before.secret);
    const made = await bootstrap({ store, keys: ring, account, now: NOW });
    if (made === undefined) throw new Error('the account exists');
    return userOf(made.adminKey.id, made.adminKey.secret);
  };

  const close = async (): Promise<void> => {
    await registry.close();
    await identity.flush();
    await blobs.close();
    await store.close();
  };

  const test: TestRegistry = {
    directory,
    async reopen() {
      await close();
      return openIn(openStore, directory, limits, [test.admin, test.other]);
    },
    store,
    registry,
    identity,
    ring,
    downloads,
    table,
    admin: await addAccount(ACCOUNT),
    other: await addAccount(OTHER),
    now: NOW,
    async addUser(name, statements, account = ACCOUNT) {
      const user = { id: uniqueId('AIDA'), account, name, path: '/', boundaryArn: undefined, createdAt: NOW };
      await store.transact('user.create', { user, tags: [], boundaryManaged: false, usersMax: 100 });
      await store.transact('owner.putPolicy', {
        owner: { kind: 'user', account, name },
        policyName: 'inline',
        document: JSON.stringify({ Version: '2012-10-17', Statement: statements }),
        charactersMax: 10_000,
      });
      const id = accessKeyId('AKIA', account);
      const secret = secretAccessKey();
      const sealed = seal(ring.derive('access key secrets'), `access key ${id}`, Buffer.from(secret));
      await store.transact('accessKey.create', {
        account,
        userName: name,
        id,
        secret: sealed,
        now: NOW,
        keysMax: 2,
      });
      return userOf(id, secret);
    },
    async call<Output extends object = Json>(name: string, input: Json, as: User = test.admin) {
      const entry = table[name];
      if (entry === undefined || 'notBuilt' in entry) throw new Error(`${name} is not built`);
      const operation = entry as unknown as Operation<Principal, Json, Output>;
      const context: OperationContext<Principal> = {
        requestId: '84b47cd7-fc7b-442f-b75b-309b93d2b2ee',
        caller: as.principal,
        region: REGION,
        now: test.now,
        sourceIp: '127.0.0.1',
        secure: false,
        userAgent: undefined,
        origin: 'http://localhost:7327',
      };
      await identity.findKey(as.principal.accessKeyId, undefined);
      await identity.authorize(as.principal, operation.access(input, context), context);
      return operation.run(input, context);
    },
    async refusal(name, input, as) {
      try {
        await test.call(name, input, as);
      } catch (error) {
        if (error instanceof Fault) return error;
        throw error;
      }
      throw new Error(`${name} did not fail`);
    },
    async fault(name, input, as) {
      const { code, message } = await test.refusal(name, input, as);
      return `${code}: ${message}`;
    },
    async addLayer(repositoryName, content) {
      const bytes = Buffer.from(content);
      const digest = sha256(bytes);
      const { layers } = await test.call<{ layers: { layerAvailability: string }[] }>(
        'BatchCheckLayerAvailability',
        { repositoryName, layerDigests: [digest] },
      );
      if (layers[0]?.layerAvailability === 'AVAILABLE') return digest;
      const { uploadId } = await test.call<{ uploadId: string }>('InitiateLayerUpload', { repositoryName });
      const part = { partFirstByte: 0, partLastByte: bytes.length - 1, layerPartBlob: bytes };
      await test.call('UploadLayerPart', { repositoryName, uploadId, ...part });
      await test.call('CompleteLayerUpload', { repositoryName, uploadId, layerDigests: [digest] });
      return digest;
    },
    async addImage(repositoryName, content, imageTag) {
      const config = await test.addLayer(repositoryName, '{}');
      const layer = await test.addLayer(repositoryName, content);
      const layerType = 'application/vnd.docker.image.rootfs.diff.tar.gzip';
      const configType = 'application/vnd.docker.container.image.v1+json';
      const manifest = JSON.stringify({
        schemaVersion: 2,
        mediaType: DOCKER_MANIFEST,
        config: { mediaType: configType, size: 2, digest: config },
        layers: [{ mediaType: layerType, size: Buffer.byteLength(content), digest: layer }],
      });
      const tag = imageTag === undefined ? {} : { imageTag };
      await test.call('PutImage', { repositoryName, imageManifest: manifest, ...tag });
      return { digest: sha256(manifest), manifest, layer, config, size: 2 + Buffer.byteLength(content) };
    },
    async [Symbol.asyncDispose]() {
      await close();
      await rm(directory, { recursive: true, force: true });
    },
  };
  return test;
}
