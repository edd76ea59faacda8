/**
 * What one life of a server is asked to do, step by step and one request at a time, and what must be true after its death:
 * whatever was acknowledged is so, whatever was under way is done wholly or not at all.
 */
import assert from 'node:assert/strict';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { callEcr, callQuery, until, type BerthServer } from '../clients/harness.ts';
import {
  digestOf,
  makeImage,
  makeIndex,
  OCI_MANIFEST,
  seededBytes,
  type Image,
  type Index,
  type Piece,
} from '../clients/image.ts';
import { Gone, type Answer, type Connection } from './client.ts';

export const IMAGES = 'crash/images';
export const KMS = 'crash/kms';
const EXPIRING = 'crash/expiring';
/** Acknowledged content that no image has yet is promised for its lease; the servers of these tests give ten seconds. */
export const LEASE_MS = 10_000;
/** Images and access keys are kept for so many lives. */
const KEPT_LIVES = 3;

interface Manifest {
  readonly repository: string;
  readonly piece: Piece;
  /** of manifest: configuration and layers; of an index: its images */
  readonly parts: readonly Piece[];
  /** `either`: its making or deletion was not acknowledged */
  state: 'there' | 'gone' | 'either';
  readonly life: number;
}

interface Blob {
  readonly repository: string;
  readonly bytes: Buffer;
  /** when it was acknowledged, by the clock of the test */
  storedAt: number | undefined;
  readonly life: number;
}

interface OpenUpload {
  readonly location: string;
  readonly bytes: Buffer;
  /** acknowledged */
  received: number;
  /** more may have arrived */
  sent: number;
}

export interface World {
  readonly manifests: Map<string, Manifest>;
  readonly blobs: Map<string, Blob>;
  /** what a tag of {@link IMAGES} may point to; `undefined` for no tag */
  readonly tags: Map<string, Set<string | undefined>>;
  upload: OpenUpload | undefined;
  keys: { readonly life: number; readonly key: Credentials; state: 'there' | 'either' }[];
  life: number;
}

export function createWorld(): World {
  return { manifests: new Map(), blobs: new Map(), tags: new Map(), upload: undefined, keys: [], life: 0 };
}

/** A server in its life. */
export interface Life {
  readonly server: BerthServer;
  readonly connection: Connection;
  readonly admin: Credentials;
  readonly world: World;
  /** how far its clock is ahead */
  readonly aheadMs: number;
}

/** The repositories, once. */
export async function settle(life: Life): Promise<void> {
  await ecr(life, 'CreateRepository', { repositoryName: IMAGES });
  await ecr(life, 'CreateRepository', { repositoryName: EXPIRING });
  await ecr(life, 'CreateRepository', {
    repositoryName: KMS,
    encryptionConfiguration: { encryptionType: 'KMS' },
  });
}

export async function ecr(life: Life, operation: string, input: unknown): Promise<Record<string, unknown>> {
  const answer = await callEcr(life.server, life.admin, operation, input, Date.now() + life.aheadMs).catch(
    (error: unknown) => {
      throw new Gone(String(error));
    },
  );
  assert.equal(answer.status, 200, `${operation}: ${answer.text}`);
  return JSON.parse(answer.text) as Record<string, unknown>;
}

async function query(
  life: Life,
  service: 'iam' | 'sts',
  key: Credentials,
  input: Readonly<Record<string, string>>,
): Promise<string> {
  const answer = await callQuery(life.server, key, service, input, Date.now() + life.aheadMs).catch(
    (error: unknown) => {
      throw new Gone(String(error));
    },
  );
  assert.equal(answer.status, 200, `${input['Action']}: ${answer.text}`);
  return answer.text;
}

function expect(answer: Answer, status: number): Answer {
  assert.equal(answer.status, status, answer.bytes.toString());
  return answer;
}

const MONOLITHIC: Upload = async ({ connection }, path, { bytes, digest }) => {
  expect(await connection.send('POST', `${path}/blobs/uploads/?digest=${digest}`, { bytes }), 201);
};

/** Chunks that end within frames, so that sealing must write the file anew. */
const CHUNKED: Upload = async ({ connection }, path, { bytes, digest }) => {
  let { location } = expect(await connection.send('POST', `${path}/blobs/uploads/`), 202).headers;
  const cuts = [0, Math.floor(bytes.length / 3), Math.floor(bytes.length / 2)];
  for (const [number, cut] of cuts.entries()) {
    const part = bytes.subarray(cut, cuts[number + 1]);
    ({ location } = expect(await connection.send('PATCH', location ?? '', { bytes: part }), 202).headers);
  }
  expect(await connection.send('PUT', `${location}?digest=${digest}`), 201);
};

const STREAMED: Upload = async ({ connection }, path, { bytes, digest }) => {
  const started = expect(await connection.send('POST', `${path}/blobs/uploads/`), 202);
  const { location } = expect(
    await connection.send('PATCH', started.headers.location ?? '', { bytes }),
    202,
  ).headers;
  expect(await connection.send('PUT', `${location}?digest=${digest}`), 201);
};

/** Closed with the whole content in the closing request. */
const CLOSING: Upload = async ({ connection }, path, { bytes, digest }) => {
  const { location } = expect(await connection.send('POST', `${path}/blobs/uploads/`), 202).headers;
  expect(await connection.send('PUT', `${location}?digest=${digest}`, { bytes }), 201);
};

const BY_API: Upload = async (life, path, { bytes, digest }) => {
  const repositoryName = path.replace('/v2/', '');
  const { uploadId } = await ecr(life, 'InitiateLayerUpload', { repositoryName });
  await ecr(life, 'UploadLayerPart', {
    repositoryName,
    uploadId,
    partFirstByte: 0,
    partLastByte: bytes.length - 1,
    layerPartBlob: bytes.toString('base64'),
  });
  await ecr(life, 'CompleteLayerUpload', { repositoryName, uploadId, layerDigests: [digest] });
};

type Upload = (life: Life, path: string, piece: Piece) => Promise<void>;
const UPLOADS: readonly Upload[] = [MONOLITHIC, CHUNKED, STREAMED, CLOSING, BY_API];

async function pushBlob(life: Life, repository: string, piece: Piece, upload: Upload): Promise<void> {
  const { world } = life;
  const key = `${repository}@${piece.digest}`;
  const blob: Blob = { repository, bytes: piece.bytes, storedAt: undefined, life: world.life };
  if (!world.blobs.has(key)) world.blobs.set(key, blob);
  await upload(life, `/v2/${repository}`, piece);
  (world.blobs.get(key) ?? blob).storedAt = Date.now();
}

async function pushManifest(
  life: Life,
  repository: string,
  manifest: Image | Index,
  tag: string,
): Promise<void> {
  const { world, connection } = life;
  const parts = 'images' in manifest ? manifest.images : [manifest.config, ...manifest.layers];
  const known = world.manifests.get(`${repository}@${manifest.digest}`);
  const entry: Manifest = known ?? { repository, piece: manifest, parts, state: 'either', life: world.life };
  if (entry.state === 'gone') entry.state = 'either';
  world.manifests.set(`${repository}@${manifest.digest}`, entry);
  if (repository === IMAGES) possible(world, tag).add(manifest.digest);
  const body = { bytes: manifest.bytes, type: manifest.mediaType };
  expect(await connection.send('PUT', `/v2/${repository}/manifests/${tag}`, body), 201);
  entry.state = 'there';
  if (repository === IMAGES) world.tags.set(tag, new Set([manifest.digest]));
}

function possible(world: World, tag: string): Set<string | undefined> {
  const set = world.tags.get(tag) ?? new Set([undefined]);
  world.tags.set(tag, set);
  return set;
}

/** Deletes a manifest of {@link IMAGES} and with it its tags. */
async function deleteManifest(life: Life, digest: string, byApi: boolean): Promise<void> {
  const { world, connection } = life;
  const entry = world.manifests.get(`${IMAGES}@${digest}`);
  if (entry === undefined || entry.state === 'gone') return;
  entry.state = 'either';
  const tagged = [...world.tags].filter(([, set]) => set.has(digest));
  for (const [, set] of tagged) set.add(undefined);
  if (byApi) {
    const input = { repositoryName: IMAGES, imageIds: [{ imageDigest: digest }] };
    const { failures } = await ecr(life, 'BatchDeleteImage', input);
    for (const { failureCode } of failures as { failureCode: string }[])
      assert.equal(failureCode, 'ImageNotFound');
  } else {
    const { status } = await connection.send('DELETE', `/v2/${IMAGES}/manifests/${digest}`);
    assert.ok([202, 404].includes(status), `${digest}: ${status}`);
  }
  entry.state = 'gone';
  for (const [, set] of tagged) set.delete(digest);
}

async function deleteTag(life: Life, tag: string): Promise<void> {
  possible(life.world, tag).add(undefined);
  expect(await life.connection.send('DELETE', `/v2/${IMAGES}/manifests/${tag}`), 202);
  life.world.tags.set(tag, new Set([undefined]));
}

/** Everything a life is to do. Throws {@link Gone} when the server dies. */
export async function live(life: Life): Promise<void> {
  const { world } = life;
  const name = `life ${world.life}`;
  await goOn(life);
  // now and then more than one frame
  const length = world.life % 4 === 0 ? 1_150_000 : 20_000 + (world.life % 7) * 997;
  const first = makeImage(`${name} first`, [length, 3000]);
  const second = { ...makeImage(`${name} second`, [700]), architecture: 'arm64' };
  const shared = makeImage('shared', [5000]);
  for (const [number, piece] of [...first.layers, first.config].entries())
    await pushBlob(life, IMAGES, piece, uploadOf(world.life + number));
  await pushManifest(life, IMAGES, first, 'first');
  for (const [number, piece] of [...second.layers, second.config].entries())
    await pushBlob(life, IMAGES, piece, uploadOf(world.life + number + 3));
  await pushManifest(life, IMAGES, second, 'second');
  const index = makeIndex([first, second]);
  await pushManifest(life, IMAGES, index, 'multi');
  // the same content again, so that the new copy is trashed; over the protocol, the API refuses it
  for (const piece of [...shared.layers, shared.config]) await pushBlob(life, IMAGES, piece, CHUNKED);
  await pushManifest(life, IMAGES, shared, 'shared');
  await pushManifest(life, IMAGES, first, 'second');
  await pushManifest(life, IMAGES, first, 'first');
  await deleteTag(life, 'second');
  await deleteManifest(life, index.digest, false);
  await deleteManifest(life, second.digest, world.life % 2 === 0);
  // the latest first: an index before its images
  for (const old of [...world.manifests.values()].toReversed()) {
    const kept = old.life > world.life - KEPT_LIVES || old.piece.digest === shared.digest;
    if (old.repository === IMAGES && !kept) await deleteManifest(life, old.piece.digest, true);
  }
  await expireImages(life, name);
  await moveHouse(life, name);
  await makeKeys(life);
  await leaveOpen(life, name);
}

function uploadOf(number: number): Upload {
  return UPLOADS[number % UPLOADS.length] ?? MONOLITHIC;
}

/** Goes on with the upload that an earlier life was given a part of. */
async function goOn({ world, connection }: Life): Promise<void> {
  const open = world.upload;
  if (open === undefined) return;
  world.upload = undefined;
  const status = await connection.send('GET', open.location);
  // WHY: an upload becomes durable with its first bytes
  if (status.status === 404 && open.received === 0) return;
  expect(status, 204);
  const end = /^0-(\d+)$/.exec(String(status.headers.range))?.[1];
  const size = open.received === 0 && end === '0' ? 0 : Number(end) + 1;
  assert.ok(size === open.received || size === open.sent, `${size} of ${open.received} to ${open.sent}`);
  const rest = open.bytes.subarray(size);
  let sent = await connection.send('PATCH', open.location, { bytes: rest });
  const isClaimed = (): boolean =>
    sent.status === 416 && /Another request is writing/.test(sent.bytes.toString());
  // the claim of a request that died with its server counts until PostgreSQL has noticed
  if (isClaimed())
    await until(
      'the upload goes on',
      async () => {
        sent = await connection.send('PATCH', open.location, { bytes: rest });
        return !isClaimed();
      },
      10_000,
    );
  if (sent.status === 404 && open.received === 0) return;
  expect(sent, 202);
  const closed = await connection.send('PUT', `${open.location}?digest=${digestOf(open.bytes)}`);
  expect(closed, 201);
}

async function leaveOpen({ world, connection }: Life, name: string): Promise<void> {
  const start = async (): Promise<string> =>
    expect(await connection.send('POST', `/v2/${IMAGES}/blobs/uploads/`), 202).headers.location ?? '';
  const cancelled = await start();
  expect(await connection.send('PATCH', cancelled, { bytes: seededBytes(`${name} cancelled`, 4000) }), 202);
  expect(await connection.send('DELETE', cancelled), 204);
  const bytes = seededBytes(`${name} open`, 9000);
  const open: OpenUpload = { location: await start(), bytes, received: 0, sent: 0 };
  world.upload = open;
  for (const end of [2500, 6000]) {
    open.sent = end;
    expect(await connection.send('PATCH', open.location, { bytes: bytes.subarray(open.received, end) }), 202);
    open.received = end;
  }
}

/** An image that a lifecycle rule takes away when the next one has come. */
async function expireImages(life: Life, name: string): Promise<void> {
  const image = makeImage(`${name} expiring`, [400]);
  for (const piece of [...image.layers, image.config]) await pushBlob(life, EXPIRING, piece, MONOLITHIC);
  await pushManifest(life, EXPIRING, image, `v${life.world.life}`);
  for (const old of life.world.manifests.values())
    if (old.repository === EXPIRING && old.state === 'there' && old.piece !== image) old.state = 'either';
  const rule = {
    rulePriority: 1,
    selection: { tagStatus: 'any', countType: 'imageCountMoreThan', countNumber: 1 },
    action: { type: 'expire' },
  };
  await ecr(life, 'PutLifecyclePolicy', {
    repositoryName: EXPIRING,
    lifecyclePolicyText: JSON.stringify({ rules: [rule] }),
  });
}

/** A repository that comes and goes, under a key of its own. */
async function moveHouse(life: Life, name: string): Promise<void> {
  const repositoryName = `crash/house-${life.world.life}`;
  await ecr(life, 'CreateRepository', {
    repositoryName,
    encryptionConfiguration: { encryptionType: 'KMS' },
  });
  const image = makeImage(`${name} house`, [900]);
  for (const piece of [...image.layers, image.config]) await pushBlob(life, repositoryName, piece, CLOSING);
  await pushManifest(life, repositoryName, image, 'latest');
  const entries = [...life.world.manifests.values()].filter((entry) => entry.repository === repositoryName);
  for (const entry of entries) entry.state = 'either';
  await ecr(life, 'DeleteRepository', { repositoryName, force: true });
  for (const entry of entries) entry.state = 'gone';
}

async function makeKeys(life: Life): Promise<void> {
  const { world, admin } = life;
  const user = `user-${world.life}`;
  await query(life, 'iam', admin, { Action: 'CreateUser', UserName: user });
  const text = await query(life, 'iam', admin, { Action: 'CreateAccessKey', UserName: user });
  const value = (tag: string): string => new RegExp(`<${tag}>([^<]+)</${tag}>`).exec(text)?.[1] ?? '';
  const key = { accessKeyId: value('AccessKeyId'), secretAccessKey: value('SecretAccessKey') };
  world.keys.push({ life: world.life, key, state: 'there' });
  for (const old of world.keys.filter((one) => one.life <= world.life - KEPT_LIVES)) {
    old.state = 'either';
    const UserName = `user-${old.life}`;
    const input = { Action: 'DeleteAccessKey', UserName, AccessKeyId: old.key.accessKeyId };
    await callQuery(life.server, admin, 'iam', input).catch((error: unknown) => {
      throw new Gone(String(error));
    });
    world.keys = world.keys.filter((one) => one !== old);
  }
}

/** What must be so when a server has come back. `everything`: not only what the last life touched. */
export async function verify(life: Life, everything: boolean): Promise<void> {
  const { world } = life;
  for (const [key, entry] of world.manifests) {
    const touched = entry.life === world.life || entry.state === 'either';
    if (everything || touched) await verifyManifest(life, entry);
    if (entry.state === 'gone' && entry.life < world.life - 2 * KEPT_LIVES) world.manifests.delete(key);
  }
  await verifyTags(life);
  for (const [key, blob] of world.blobs) {
    if (everything || blob.life === world.life) await verifyBlob(life, key, blob);
    if (blob.life < world.life - 2 * KEPT_LIVES) world.blobs.delete(key);
  }
  for (const { key, state, life: made } of world.keys)
    if (state === 'there' && (everything || made === world.life))
      await query(life, 'sts', key, { Action: 'GetCallerIdentity', Version: '2011-06-15' });
}

async function verifyManifest({ connection, world }: Life, entry: Manifest): Promise<void> {
  const { repository, piece, parts } = entry;
  const answer = await connection.send('GET', `/v2/${repository}/manifests/${piece.digest}`);
  const what = `${repository}@${piece.digest} of life ${entry.life}, ${entry.state}`;
  // a newer one may be why it was taken away, also one whose push had no answer
  const newest = [...world.manifests.values()].findLast((one) => one.repository === repository);
  const mayExpire = repository === EXPIRING && newest !== entry;
  if (answer.status === 404 && (entry.state !== 'there' || mayExpire)) {
    entry.state = 'gone';
    return;
  }
  assert.equal(answer.status, 200, `${what}: ${answer.bytes.toString()}`);
  assert.notEqual(entry.state, 'gone', what);
  assert.ok(answer.bytes.equals(piece.bytes), `${what} has other bytes`);
  entry.state = 'there';
  const kind = piece.mediaType === OCI_MANIFEST ? 'blobs' : 'manifests';
  for (const { digest, bytes } of parts) {
    const part = await connection.send('GET', `/v2/${repository}/${kind}/${digest}`);
    assert.equal(part.status, 200, `${what} lacks ${digest}`);
    assert.ok(part.bytes.equals(bytes), `${digest} has other bytes`);
  }
}

async function verifyTags({ connection, world }: Life): Promise<void> {
  const listed = await connection.send('GET', `/v2/${IMAGES}/tags/list`);
  const { tags } = JSON.parse(listed.bytes.toString()) as { tags?: string[] | null };
  const present = new Set(tags);
  for (const [tag, set] of world.tags) {
    const answer = await connection.send('GET', `/v2/${IMAGES}/manifests/${tag}`);
    const digest = answer.status === 200 ? digestOf(answer.bytes) : undefined;
    if (digest === undefined) assert.equal(answer.status, 404, `${tag}: ${answer.status}`);
    assert.equal(digest !== undefined, present.has(tag), `tags/list and the tag ${tag} differ`);
    assert.ok(set.has(digest), `${tag} is ${digest}, may be ${[...set].join(', ')}`);
    world.tags.set(tag, new Set([digest]));
  }
  for (const tag of present) assert.ok(world.tags.has(tag), `the tag ${tag} came from nowhere`);
}

async function verifyBlob({ connection }: Life, key: string, blob: Blob): Promise<void> {
  const { repository, storedAt } = blob;
  const answer = await connection.send('GET', `/v2/${repository}/blobs/${key.slice(repository.length + 1)}`);
  if (answer.status === 200) {
    assert.ok(answer.bytes.equals(blob.bytes), `${key} has other bytes`);
    return;
  }
  assert.equal(answer.status, 404, `${key}: ${answer.bytes.toString()}`);
  const promised = repository === IMAGES && storedAt !== undefined && Date.now() < storedAt + LEASE_MS / 2;
  assert.ok(!promised, `${key} was acknowledged and is not there`);
}
