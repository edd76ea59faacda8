/**
 * What eight clients do to a registry at once, and what they know of it. Only its owner changes an image, so that everyone
 * knows at any time what must be there; layers are everyone's, and that is what the collector is to trip over.
 */
import assert from 'node:assert/strict';
import type { Credentials } from '../../src/lib/sigv4.ts';
import { callEcr, type BerthServer } from '../clients/harness.ts';
import { digestOf, makeImage, OCI_INDEX, OCI_MANIFEST, type Piece } from '../clients/image.ts';
import type { Answer, Connection } from '../crash/client.ts';

/** The last has a key of its own, so that nothing can be mounted into it or from it. */
export const REPOSITORIES = ['soak/one', 'soak/two', 'soak/three', 'soak/kms'] as const;
/** A lifecycle policy takes images from this one at any time. */
export const EXPIRING = 'soak/expiring';
const EXPIRING_KEPT = 5;
/** Images of one client at most, so that layers lose their last image again and again. */
const OWN_MAX = 20;
const TAGS = 4;
/** Layers of which every image has one or two. */
const SHARED_LAYERS = 30;
/** A push whose content expired while it went on, because the machine was busy, begins again so often. */
const TRIES_MAX = 20;

/** `leaving`: its deletion was asked for. `loose`: the server may delete it on its own. */
type State = 'there' | 'leaving' | 'gone' | 'loose';

export interface Stored {
  readonly repository: string;
  readonly piece: Piece;
  /** configuration and layers, or the images of an index */
  readonly parts: readonly Piece[];
  readonly tags: Set<string>;
  /** indexes that need it */
  readonly indexes: Set<Stored>;
  readonly subject: Stored | undefined;
  state: State;
}

export interface World {
  readonly leaseMs: number;
  readonly shared: readonly Piece[];
  /** all that may be there, in the order of their pushes */
  readonly stored: Set<Stored>;
  /** steps that were taken, by what they were */
  readonly done: Map<string, number>;
  /** pushes begun again because their content outlived its lease */
  outlived: number;
  mounts: number;
  uploads: number;
  found: number;
}

export function createWorld(leaseMs: number): World {
  const shared = Array.from({ length: SHARED_LAYERS }, (_, i) => {
    const [layer] = makeImage(`shared ${i}`, [i === 0 ? 1_300_000 : 300 + i * 700]).layers;
    assert.ok(layer);
    return layer;
  });
  return {
    leaseMs,
    shared,
    stored: new Set(),
    done: new Map(),
    outlived: 0,
    mounts: 0,
    uploads: 0,
    found: 0,
  };
}

export interface Client {
  readonly name: string;
  readonly world: World;
  readonly server: BerthServer;
  readonly admin: Credentials;
  readonly connection: Connection;
  readonly random: () => number;
  readonly own: Set<Stored>;
  pushes: number;
}

type Step = (client: Client) => Promise<unknown>;

const STEPS: readonly (readonly [weight: number, name: string, step: Step])[] = [
  [30, 'push', pushImage],
  [28, 'pull', pullAny],
  [8, 'attach', attach],
  [10, 'move a tag', moveTag],
  [5, 'push an index', pushIndex],
  [14, 'delete', deleteOwn],
  [4, 'push to expire', pushExpiring],
  [1, 'put the lifecycle policy', putLifecycle],
];
const WEIGHTS = STEPS.reduce((sum, [weight]) => sum + weight, 0);

/** One event. */
export async function takeStep(client: Client): Promise<void> {
  let at = client.random() * WEIGHTS;
  let chosen = STEPS.find(([weight]) => (at -= weight) < 0) ?? STEPS[0];
  if (client.own.size > OWN_MAX) chosen = STEPS.find(([, , step]) => step === deleteOwn);
  const [, name, step] = chosen ?? [0, '', pushImage];
  await step(client);
  const { done } = client.world;
  done.set(name, (done.get(name) ?? 0) + 1);
}

function pick<T>(client: Client, items: Iterable<T>): T | undefined {
  const list = [...items];
  return list[Math.floor(client.random() * list.length)];
}

function expect(what: string, answer: Answer, ...statuses: number[]): Answer {
  const text = answer.bytes.toString('utf8', 0, 2000);
  assert.ok(statuses.includes(answer.status), `${what}: ${answer.status} ${text}`);
  return answer;
}

function describe({ mediaType, digest, size }: Piece): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest, size };
}

function pieceOf(mediaType: string, value: unknown): Piece {
  const bytes = Buffer.from(JSON.stringify(value));
  return { mediaType, digest: digestOf(bytes), size: bytes.length, bytes };
}

/** Of content no other has, and of layers everyone has. */
function composeImage(client: Client, subject?: Piece): { piece: Piece; parts: Piece[] } {
  const { random, name, world } = client;
  const image = makeImage(`${name} ${client.pushes++}`, [Math.floor(random() * 9000)]);
  const shared = new Set<Piece>();
  for (let count = random() < 0.5 ? 1 : 2; count > 0; count--) {
    const layer = pick(client, world.shared);
    if (layer !== undefined) shared.add(layer);
  }
  const layers = [...image.layers, ...shared];
  const piece = pieceOf(OCI_MANIFEST, {
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    ...(subject === undefined
      ? {}
      : { artifactType: 'application/vnd.soak.signature', subject: describe(subject) }),
    config: describe(image.config),
    layers: layers.map(describe),
  });
  return { piece, parts: [image.config, ...layers] };
}

async function pushImage(client: Client): Promise<void> {
  const repository = pick(client, REPOSITORIES) ?? REPOSITORIES[0];
  await push(client, repository, composeImage(client), tagOf(client));
}

async function pushExpiring(client: Client): Promise<void> {
  const stored = await push(client, EXPIRING, composeImage(client), `any-${tagOf(client)}`, { loose: true });
  client.own.delete(stored);
}

function tagOf({ name, random }: Client): string {
  return `${name}-${Math.floor(random() * TAGS)}`;
}

/** Pushes as clients do: look, mount or upload what is missing, put the manifest. */
async function push(
  client: Client,
  repository: string,
  { piece, parts }: { piece: Piece; parts: readonly Piece[] },
  tag: string | undefined,
  { loose = false, subject }: { loose?: boolean; subject?: Stored } = {},
): Promise<Stored> {
  const { world, connection, own } = client;
  const path = `/v2/${repository}/manifests/${tag ?? piece.digest}`;
  for (let tries = 1; ; tries++) {
    const promises = await Promise.all(parts.map((part) => provide(client, repository, part)));
    const answer = await connection.send('PUT', path, { bytes: piece.bytes, type: piece.mediaType });
    if (answer.status === 201) break;
    // INVARIANT: nothing is gone that was promised until later than this answer.
    const isPromised = Date.now() < Math.min(...promises);
    expect(
      `PUT ${path}, ${isPromised ? 'within' : 'after'} the lease`,
      answer,
      ...(isPromised ? [201] : [404]),
    );
    assert.ok(tries < TRIES_MAX, `${path} did not fit into its lease ${tries} times`);
    world.outlived += 1;
  }
  const stored: Stored = {
    repository,
    piece,
    parts,
    tags: new Set(),
    indexes: new Set(),
    subject,
    state: loose ? 'loose' : 'there',
  };
  if (tag !== undefined && !loose) giveTag(client, stored, tag);
  world.stored.add(stored);
  own.add(stored);
  return stored;
}

function giveTag({ own }: Client, stored: Stored, tag: string): void {
  for (const other of own) if (other.repository === stored.repository) other.tags.delete(tag);
  stored.tags.add(tag);
}

/** Makes content be in a repository; until when, in epoch milliseconds, the server promises it without an image. */
async function provide(client: Client, repository: string, piece: Piece): Promise<number> {
  const { connection, random, world } = client;
  const path = `/v2/${repository}/blobs`;
  const asked = Date.now();
  const head = expect('HEAD', await connection.send('HEAD', `${path}/${piece.digest}`), 200, 404);
  if (head.status === 200) {
    world.found += 1;
    // A lease is renewed when half of it is over (src/registry/layers.ts).
    return asked + world.leaseMs / 2;
  }
  const from = random() < 0.5 ? pick(client, REPOSITORIES) : undefined;
  let sent = Date.now();
  const mounting = from === undefined ? '' : `?mount=${piece.digest}&from=${from}`;
  if (from === undefined && random() < 0.3) {
    const body = { bytes: piece.bytes };
    expect('POST', await connection.send('POST', `${path}/uploads/?digest=${piece.digest}`, body), 201);
    world.uploads += 1;
    return sent + world.leaseMs;
  }
  const started = await connection.send('POST', `${path}/uploads/${mounting}`);
  expect(`POST ${mounting}`, started, ...(from === undefined ? [202] : [201, 202]));
  if (started.status === 201) {
    world.mounts += 1;
    return sent + world.leaseMs;
  }
  let location = started.headers.location ?? '';
  let rest = piece.bytes;
  while (random() < 0.5) {
    const cut = Math.ceil(random() * rest.length);
    const patched = await connection.send('PATCH', location, { bytes: rest.subarray(0, cut) });
    location = expect('PATCH', patched, 202).headers.location ?? '';
    rest = rest.subarray(cut);
  }
  sent = Date.now();
  const mark = location.includes('?') ? '&' : '?';
  const closed = await connection.send('PUT', `${location}${mark}digest=${piece.digest}`, { bytes: rest });
  expect('PUT', closed, 201);
  world.uploads += 1;
  return sent + world.leaseMs;
}

/** A signature of an image, by its subject. It may be the server's to delete once the image is. */
async function attach(client: Client): Promise<void> {
  const { connection } = client;
  const subject = pick(client, ownThere(client));
  if (subject === undefined) return pushImage(client);
  const { repository, piece } = subject;
  const attached = await push(client, repository, composeImage(client, piece), undefined, { subject });
  const path = `/v2/${repository}/referrers/${piece.digest}`;
  const answer = expect(path, await connection.send('GET', path), 200);
  const { manifests } = JSON.parse(answer.bytes.toString()) as { manifests: { digest: string }[] };
  assert.ok(
    manifests.some(({ digest }) => digest === attached.piece.digest),
    `${path} lacks ${attached.piece.digest}`,
  );
}

function ownThere({ own }: Client): Stored[] {
  return [...own].filter(({ state, subject }) => state === 'there' && subject === undefined);
}

async function moveTag(client: Client): Promise<void> {
  const { connection } = client;
  const image = pick(client, ownThere(client));
  if (image === undefined) return pushImage(client);
  const tag = tagOf(client);
  const { repository, piece } = image;
  const path = `/v2/${repository}/manifests/${tag}`;
  expect(path, await connection.send('PUT', path, { bytes: piece.bytes, type: piece.mediaType }), 201);
  giveTag(client, image, tag);
  const answer = expect(path, await connection.send('GET', path), 200);
  assert.equal(digestOf(answer.bytes), piece.digest, `${path} is not where it was moved to`);
}

async function pushIndex(client: Client): Promise<void> {
  const images = ownThere(client).filter(({ piece }) => piece.mediaType === OCI_MANIFEST);
  const first = pick(client, images);
  if (first === undefined) return pushImage(client);
  const members = images.filter((image) => image.repository === first.repository).slice(0, 3);
  const manifests = members.map(({ piece }, i) => ({
    ...describe(piece),
    // what makes it differ from every other index
    annotations: { 'soak.push': `${client.name} ${client.pushes++} ${i}` },
  }));
  const piece = pieceOf(OCI_INDEX, { schemaVersion: 2, mediaType: OCI_INDEX, manifests });
  const path = `/v2/${first.repository}/manifests/${tagOf(client)}`;
  expect(path, await client.connection.send('PUT', path, { bytes: piece.bytes, type: OCI_INDEX }), 201);
  const index: Stored = {
    repository: first.repository,
    piece,
    parts: members.map((member) => member.piece),
    tags: new Set(),
    indexes: new Set(),
    subject: undefined,
    state: 'there',
  };
  giveTag(client, index, path.slice(path.lastIndexOf('/') + 1));
  for (const member of members) member.indexes.add(index);
  client.world.stored.add(index);
  client.own.add(index);
}

async function deleteOwn(client: Client): Promise<void> {
  const { world, own, random } = client;
  const target = pick(
    client,
    [...own].filter(({ indexes }) => indexes.size === 0),
  );
  if (target === undefined) return pushImage(client);
  const statuses = target.state === 'loose' ? [202, 404] : [202];
  target.state = 'leaving';
  for (const other of world.stored)
    if (other.subject === target && other.state === 'there') other.state = 'loose';
  const { repository, piece } = target;
  if (statuses.length === 1 && random() < 0.3) {
    const imageIds = [{ imageDigest: piece.digest }];
    const answer = await ecr(client, 'BatchDeleteImage', { repositoryName: repository, imageIds });
    assert.deepEqual(answer['failures'], []);
  } else {
    const path = `/v2/${repository}/manifests/${piece.digest}`;
    expect(path, await client.connection.send('DELETE', path), ...statuses);
  }
  target.state = 'gone';
  for (const other of own) other.indexes.delete(target);
  world.stored.delete(target);
  own.delete(target);
}

async function putLifecycle(client: Client): Promise<void> {
  await ecr(client, 'PutLifecyclePolicy', {
    repositoryName: EXPIRING,
    lifecyclePolicyText: JSON.stringify({
      rules: [
        {
          rulePriority: 1,
          selection: {
            tagStatus: 'any',
            countType: 'imageCountMoreThan',
            countNumber: EXPIRING_KEPT + Math.floor(client.random() * 3),
          },
          action: { type: 'expire' },
        },
      ],
    }),
  });
  // What was in the repository is no longer of interest to anyone but the last.
  const expiring = [...client.world.stored].filter(({ repository }) => repository === EXPIRING);
  for (const old of expiring.slice(0, -2 * EXPIRING_KEPT)) client.world.stored.delete(old);
}

export async function ecr(
  { server, admin }: Pick<Client, 'server' | 'admin'>,
  operation: string,
  input: unknown,
): Promise<Record<string, unknown>> {
  const { status, text } = await callEcr(server, admin, operation, input);
  assert.equal(status, 200, `${operation}: ${status} ${text}`);
  return JSON.parse(text) as Record<string, unknown>;
}

async function pullAny(client: Client): Promise<void> {
  const stored = pick(client, client.world.stored);
  if (stored === undefined) return pushImage(client);
  await pull(client, stored);
}

/** Pulls an image and compares every byte. What was there before and after each answer was there. */
export async function pull(
  { connection }: Pick<Client, 'connection'>,
  stored: Stored,
  reference = stored.piece.digest,
): Promise<void> {
  const { repository, piece, parts } = stored;
  const read = async (path: string, bytes: Buffer): Promise<boolean> => {
    const answer = await connection.send('GET', `/v2/${repository}/${path}`);
    expect(
      `${repository}/${path} (${stored.state})`,
      answer,
      ...(stored.state === 'there' ? [200] : [200, 404]),
    );
    if (answer.status === 404) return false;
    assert.ok(answer.bytes.equals(bytes), `${repository}/${path} has other bytes`);
    return true;
  };
  if (!(await read(`manifests/${reference}`, piece.bytes))) return;
  const kind = piece.mediaType === OCI_INDEX ? 'manifests' : 'blobs';
  await Promise.all(parts.map(({ digest, bytes }) => read(`${kind}/${digest}`, bytes)));
}
