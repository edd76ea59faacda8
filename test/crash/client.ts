/** A registry client that pushes and deletes until the server dies under it, and remembers what it was promised. */
import assert from 'node:assert/strict';
import { Agent, request, type IncomingHttpHeaders } from 'node:http';
import { digestOf, makeImage, OCI_MANIFEST, type Image, type Piece } from '../clients/image.ts';

/** The server went away; what was asked may or may not have happened. */
export class Gone extends Error {
  override readonly name = 'Gone';
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly bytes: Buffer;
}

export interface Connection {
  send(
    method: string,
    path: string,
    body?: { readonly bytes: Uint8Array; readonly type?: string },
  ): Promise<Answer>;
  /** Resolves when that many answers have come, counted from now, or the time is over. */
  answers(count: number, timeoutMs: number): Promise<void>;
  close(): void;
}

/** Requests to one life of the server. */
export function connect(port: number, authorization: string): Connection {
  const agent = new Agent({ keepAlive: true });
  let awaited = Number.POSITIVE_INFINITY;
  let enough = (): void => undefined;
  const count = (): void => {
    awaited -= 1;
    if (awaited <= 0) enough();
  };
  return {
    close: () => agent.destroy(),
    answers: (number, timeoutMs) =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        awaited = number;
        enough = () => {
          clearTimeout(timer);
          resolve();
        };
      }),
    send: (method, path, body) =>
      new Promise((resolve, reject) => {
        const gone = (error: Error): void => reject(new Gone(error.message));
        const sent: Record<string, string | number> = { authorization };
        if (body !== undefined) sent['content-length'] = body.bytes.length;
        else if (method !== 'GET' && method !== 'HEAD') sent['content-length'] = 0;
        sent['content-type'] = body?.type ?? 'application/octet-stream';
        const sending = request({ host: '127.0.0.1', port, agent, method, path, headers: sent }, (answer) => {
          const chunks: Buffer[] = [];
          answer.on('data', (chunk: Buffer) => chunks.push(chunk));
          answer.on('error', gone);
          answer.on('end', () => {
            const { statusCode = 0, headers } = answer;
            resolve({ status: statusCode, headers, bytes: Buffer.concat(chunks) });
            count();
          });
        });
        sending.on('error', gone);
        sending.end(body?.bytes);
      }),
  };
}

/** A number in [0, 1) for each call; the same row of numbers for the same seed (mulberry32). */
export function createRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface Memory {
  /** pushed and answered with 201, and nobody asked for their deletion since */
  readonly promised: Map<string, Image>;
  /** everything ever sent, by digest */
  readonly sent: Map<string, Piece>;
  /** what a tag may point to: the last promised digest and what was tried since; `undefined` for no tag at all */
  readonly tags: Map<string, Set<string | undefined>>;
  refusals: number;
}

export function createMemory(): Memory {
  return { promised: new Map(), sent: new Map(), tags: new Map(), refusals: 0 };
}

const REPOSITORY = 'crash/images';
export const V2 = `/v2/${REPOSITORY}`;
export const REPOSITORY_NAME = REPOSITORY;
/** Layers that many images share, so that uploads of the same content meet. */
const SHARED = Array.from({ length: 12 }, (_, i) => makeImage(`shared ${i}`, [500 + i * 3000]).layers[0]);

/** One worker: images of its own on tags of its own, until the server is gone. */
export async function work(connection: Connection, memory: Memory, name: string, random: () => number) {
  for (let number = 0; ; number++) {
    const image = chooseImage(`${name} ${number}`, random);
    const tag = `${name.split(' ')[0]}-${Math.floor(random() * 5)}`;
    await push(connection, memory, image, tag, random);
    if (random() < 0.15) await remove(connection, memory, random);
  }
}

function chooseImage(seed: string, random: () => number): Image {
  const lengths = [Math.floor(random() * 30_000)];
  // now and then more than one frame of the blob format
  if (random() < 0.1) lengths.push(1_300_000);
  const own = makeImage(seed, lengths);
  const shared = SHARED[Math.floor(random() * SHARED.length)];
  if (shared === undefined) return own;
  const layers = [...own.layers, shared];
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: describe(own.config),
      layers: layers.map(describe),
    }),
  );
  return { ...own, layers, bytes, digest: digestOf(bytes), size: bytes.length };
}

function describe({ mediaType, digest, size }: Piece): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest, size };
}

async function push(
  connection: Connection,
  memory: Memory,
  image: Image,
  tag: string,
  random: () => number,
): Promise<void> {
  const pieces = [...image.layers, image.config];
  for (const piece of pieces) memory.sent.set(piece.digest, piece);
  const pushed = await Promise.all(pieces.map((piece) => pushBlob(connection, piece, random)));
  if (!pushed.every(Boolean)) {
    memory.refusals += 1;
    return;
  }
  const possible = memory.tags.get(tag) ?? new Set([undefined]);
  memory.tags.set(tag, possible);
  possible.add(image.digest);
  const path = `${V2}/manifests/${tag}`;
  const answer = await connection.send('PUT', path, { bytes: image.bytes, type: OCI_MANIFEST });
  if (answer.status === 201) {
    assert.equal(answer.headers['docker-content-digest'], image.digest);
    memory.promised.set(image.digest, image);
    memory.tags.set(tag, new Set([image.digest]));
  } else {
    // WHY this is no failure: with leases this short, content may be collected before its image arrives
    assert.equal(answer.status, 404, answer.bytes.toString());
    memory.refusals += 1;
  }
}

async function pushBlob(connection: Connection, piece: Piece, random: () => number): Promise<boolean> {
  const head = await connection.send('HEAD', `${V2}/blobs/${piece.digest}`);
  if (head.status === 200) return true;
  assert.equal(head.status, 404);
  const started = await connection.send('POST', `${V2}/blobs/uploads/`);
  assert.equal(started.status, 202, started.bytes.toString());
  let location = started.headers.location ?? '';
  let rest = piece.bytes;
  if (random() < 0.6) {
    const cut = random() < 0.5 ? rest.length : Math.floor(random() * rest.length);
    const patched = await connection.send('PATCH', location, { bytes: rest.subarray(0, cut) });
    if (patched.status !== 202) return false;
    location = patched.headers.location ?? '';
    rest = rest.subarray(cut);
  }
  const mark = location.includes('?') ? '&' : '?';
  const closed = await connection.send('PUT', `${location}${mark}digest=${piece.digest}`, { bytes: rest });
  if (closed.status === 201) return true;
  assert.equal(closed.status, 404, closed.bytes.toString());
  return false;
}

async function remove(connection: Connection, memory: Memory, random: () => number): Promise<void> {
  const digests = [...memory.promised.keys()];
  const digest = digests[Math.floor(random() * digests.length)];
  if (digest === undefined) return;
  memory.promised.delete(digest);
  for (const possible of memory.tags.values()) if (possible.has(digest)) possible.add(undefined);
  const answer = await connection.send('DELETE', `${V2}/manifests/${digest}`);
  assert.ok([202, 404].includes(answer.status), answer.bytes.toString());
}

/** Pulls a whole image and compares every byte; its manifest must be the one with this digest. */
export async function pull(connection: Connection, memory: Memory, digest: string): Promise<string[]> {
  const answer = await connection.send('GET', `${V2}/manifests/${digest}`);
  assert.equal(answer.status, 200, `${digest}: ${answer.bytes.toString()}`);
  assert.equal(digestOf(answer.bytes), digest);
  const manifest = JSON.parse(answer.bytes.toString()) as {
    config: { digest: string };
    layers: { digest: string }[];
  };
  const digests = [manifest.config, ...manifest.layers].map((one) => one.digest);
  for (const blob of digests) await pullBlob(connection, memory, blob);
  return digests;
}

/** Reads a blob that is there and compares it with what was sent. */
export async function pullBlob(connection: Connection, memory: Memory, digest: string): Promise<void> {
  const answer = await connection.send('GET', `${V2}/blobs/${digest}`);
  assert.equal(answer.status, 200, `${digest}: ${answer.status}`);
  assert.ok(memory.sent.get(digest)?.bytes.equals(answer.bytes), `${digest} has other bytes`);
}
