/** Small images made of seeded bytes: real tar layers, real configurations, as an OCI layout or piece by piece. */
import { createCipheriv, createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';

export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json';
const OCI_CONFIG = 'application/vnd.oci.image.config.v1+json';
const OCI_LAYER = 'application/vnd.oci.image.layer.v1.tar+gzip';

export interface Piece {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly bytes: Buffer;
}

export interface Image extends Piece {
  readonly config: Piece;
  readonly layers: readonly Piece[];
  readonly architecture: string;
}

export interface Index extends Piece {
  readonly images: readonly Image[];
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

/** Bytes that do not compress, the same for the same seed. */
export function seededBytes(seed: string, length: number): Buffer {
  const key = createHash('sha256').update(seed).digest();
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

function piece(mediaType: string, bytes: Buffer): Piece {
  return { mediaType, digest: digestOf(bytes), size: bytes.length, bytes };
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

function descriptor({ mediaType, digest, size }: Piece): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest, size };
}

/** One file in a ustar archive, owned by root, of the year 1970. */
export function tarOf(name: string, content: Buffer, mode = 0o755): Buffer {
  const header = Buffer.alloc(512);
  const octal = (value: number, at: number, length: number): void => {
    header.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, 'latin1');
  };
  header.write(name, 0, 'latin1');
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(content.length, 124, 12);
  octal(0, 136, 12);
  header.write('        0', 148, 'latin1');
  header.write('ustar\x0000', 257, 'latin1');
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  const padding = Buffer.alloc((512 - (content.length % 512)) % 512);
  return Buffer.concat([header, content, padding, Buffer.alloc(1024)]);
}

/** An image with one layer per length. Same seed, lengths and architecture: same bytes. */
export function makeImage(seed: string, lengths: readonly number[], architecture = 'amd64'): Image {
  const archives = lengths.map((length, i) =>
    tarOf(`${seed.replaceAll('/', '-')}-${i}`, seededBytes(`${seed} ${architecture} ${i}`, length)),
  );
  // WHY level 1: the content does not compress anyway
  const layers = archives.map((archive) => piece(OCI_LAYER, gzipSync(archive, { level: 1 })));
  const config = piece(
    OCI_CONFIG,
    json({
      architecture,
      os: 'linux',
      config: { Cmd: ['/none'] },
      rootfs: { type: 'layers', diff_ids: archives.map(digestOf) },
    }),
  );
  const manifest = json({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: descriptor(config),
    layers: layers.map(descriptor),
  });
  return { ...piece(OCI_MANIFEST, manifest), config, layers, architecture };
}

export function makeIndex(images: readonly Image[]): Index {
  const manifests = images.map((image) => ({
    ...descriptor(image),
    platform: { architecture: image.architecture, os: 'linux' },
  }));
  const bytes = json({ schemaVersion: 2, mediaType: OCI_INDEX, manifests });
  return { ...piece(OCI_INDEX, bytes), images };
}

/** Writes an OCI image layout with one tag. */
export async function writeLayout(directory: string, tag: string, root: Image | Index): Promise<void> {
  const blobs = join(directory, 'blobs', 'sha256');
  await mkdir(blobs, { recursive: true });
  const images = 'images' in root ? root.images : [root];
  const pieces = [root, ...images.flatMap((image) => [image, image.config, ...image.layers])];
  for (const { digest, bytes } of pieces) await writeFile(join(blobs, digest.replace('sha256:', '')), bytes);
  const entry = { ...descriptor(root), annotations: { 'org.opencontainers.image.ref.name': tag } };
  await writeFile(
    join(directory, 'index.json'),
    json({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [entry] }),
  );
  await writeFile(join(directory, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
}
