/**
 * Reading a manifest: which type it is, what it needs, what it says about itself. Pure: bytes in, reading or Fault out.
 * Sources: ecr-api.md §6.2, §6.3, §7.1; registry-protocol.md §2; OCI image specification 1.1 (manifest, image-index,
 * descriptor); CVE-2021-41190 for ambiguous documents.
 */
import { createHash } from 'node:crypto';
import { LIMITS } from '../lib/limits.ts';
import { Fault, invalidParameter } from './faults.ts';
import { type Digest, parseDigest } from './names.ts';

export const OCI_IMAGE = 'application/vnd.oci.image.manifest.v1+json';
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json';
export const DOCKER_IMAGE = 'application/vnd.docker.distribution.manifest.v2+json';
export const DOCKER_LIST = 'application/vnd.docker.distribution.manifest.list.v2+json';

type Kind = 'image' | 'index';

const KINDS: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  [OCI_IMAGE, 'image'],
  [OCI_INDEX, 'index'],
  [DOCKER_IMAGE, 'image'],
  [DOCKER_LIST, 'index'],
]);

/** Layers whose content belongs elsewhere: a manifest may name them without their having been pushed. */
const FOREIGN =
  /^application\/vnd\.(docker\.image\.rootfs\.foreign\.diff\.tar|oci\.image\.layer\.nondistributable\.v1\.tar)([.+][a-z0-9]+)?$/;

/** What one manifest may name; real images stay under 130 layers, BuildKit caches and model artifacts under a few thousand. */
export const MANIFEST_REFERENCES_MAX = 10_000;
/** Nesting of the document; the types known here need 4 levels. */
export const MANIFEST_DEPTH_MAX = 64;

/** Content the manifest names: its config, layers and, in an index, entries that are no manifests (BuildKit caches). */
export interface BlobReference {
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
  /** false for foreign layers: kept when the repository has them, not missed when it does not */
  readonly required: boolean;
}

/** What a manifest may name that is not there: nothing, as in ECR; members of an index; these and content. */
export const SPARSE_MANIFESTS = ['refuse', 'indexes', 'all'] as const;
export type SparseManifests = (typeof SPARSE_MANIFESTS)[number];

export interface ChildReference {
  readonly digest: Digest;
  readonly size: number;
}

export interface ManifestReading {
  readonly mediaType: string;
  readonly kind: Kind;
  /** `artifactType` of the document, else the config's media type; `undefined` for an index without one */
  readonly artifactType: string | undefined;
  /** only OCI types have a subject; it need not exist */
  readonly subjectDigest: Digest | undefined;
  /** each digest once */
  readonly blobs: readonly BlobReference[];
  /** each digest once */
  readonly children: readonly ChildReference[];
  /** bytes of config and layers as declared, repeated ones counted each time (imageSizeInBytes of an image) */
  readonly contentSize: number;
}

export interface ReadingOptions {
  /** recognise a document that neither says its type nor came with one (OCI door); else it is refused (ECR API) */
  readonly detect: boolean;
}

/**
 * Reads and checks a manifest. `mediaType` is what the client called it, without parameters.
 *
 * @throws Fault InvalidParameterException, with ECR's frame at `ImageManifest`
 */
export function readManifest(
  bytes: Uint8Array,
  mediaType: string | undefined,
  options: ReadingOptions,
): ManifestReading {
  const document = parseDocument(bytes);
  const type = typeOf(document, mediaType, options);
  const kind = KINDS.get(type);
  if (kind === undefined) throw invalid(`Invalid manifest media type '${type.slice(0, 255)}'`);
  if (document['schemaVersion'] !== 2) throw invalid('Invalid manifest: schemaVersion must be 2');
  checkAnnotations(document['annotations']);
  const artifactType = optionalText(document['artifactType'], 'artifactType');
  const oci = type === OCI_IMAGE || type === OCI_INDEX;
  const subject =
    oci && isPresent(document['subject']) ? descriptor(document['subject'], 'subject') : undefined;
  const references =
    kind === 'image' ? imageReferences(document, type === DOCKER_IMAGE) : indexReferences(document);
  return {
    mediaType: type,
    kind,
    artifactType: (oci ? artifactType : undefined) ?? references.configType,
    subjectDigest: subject?.digest,
    blobs: references.blobs,
    children: references.children,
    contentSize: references.contentSize,
  };
}

/** imageSizeInBytes: an image weighs its content, an index its heaviest member and the blobs it names itself. */
export function imageSize(contentSize: number, childSizes: readonly number[]): number {
  return contentSize + childSizes.reduce((largest, size) => Math.max(largest, size), 0);
}

function invalid(reason: string): Fault {
  return invalidParameter('ImageManifest', reason);
}

type Document = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Document {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Go writes empty lists and objects as null, so null means absent. */
function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function parseDocument(bytes: Uint8Array): Document {
  if (bytes.length === 0) throw invalid('Member must have length greater than or equal to 1');
  if (bytes.length > LIMITS.manifestBytesMax) {
    throw invalid(`Member must have length less than or equal to ${LIMITS.manifestBytesMax}`);
  }
  let document: unknown;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    document = JSON.parse(text);
  } catch {
    throw invalid('Invalid JSON syntax');
  }
  if (!isObject(document)) throw invalid('Invalid JSON syntax');
  checkUnambiguous(text);
  for (const key of Object.keys(document)) {
    const meant = FIELDS.get(key.toLowerCase());
    if (meant !== undefined && meant !== key) throw invalid(`Invalid manifest: member '${key}' is ambiguous`);
  }
  return document;
}

/** WHY: Go's JSON reader, inside most clients, ignores the case of member names, so `Layers` would be `layers` to them. */
const FIELDS: ReadonlyMap<string, string> = new Map(
  [
    'schemaVersion',
    'mediaType',
    'artifactType',
    'config',
    'layers',
    'manifests',
    'subject',
    'annotations',
  ].map((name) => [name.toLowerCase(), name]),
);

/**
 * Refuses repeated member names, which readers resolve differently, and deep nesting. `text` is valid JSON.
 *
 * @throws Fault InvalidParameterException
 */
function checkUnambiguous(text: string): void {
  // WHY: a loop over characters, not a regular expression: the text is up to 4 MiB of whatever a client likes.
  const open: (Set<string> | undefined)[] = [];
  let literal = '';
  for (let at = 0; at < text.length; at++) {
    switch (text[at]) {
      case '"': {
        const end = endOfString(text, at);
        literal = text.slice(at, end);
        at = end - 1;
        break;
      }
      case '{':
      case '[':
        if (open.push(text[at] === '{' ? new Set() : undefined) > MANIFEST_DEPTH_MAX) {
          throw invalid('Invalid manifest: nested too deeply');
        }
        break;
      case '}':
      case ']':
        open.pop();
        break;
      case ':': {
        const names = open.at(-1);
        const name = literal.includes('\\') ? (JSON.parse(literal) as string) : literal.slice(1, -1);
        if (names?.has(name)) throw invalid(`Invalid manifest: member '${name.slice(0, 64)}' is repeated`);
        names?.add(name);
        break;
      }
    }
  }
}

/** Index just after the closing quote of the JSON string that begins at `start`. */
function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at + 1;
}

function typeOf(document: Document, given: string | undefined, options: ReadingOptions): string {
  const own = optionalText(document['mediaType'], 'mediaType');
  if (own !== undefined && given !== undefined && own !== given) {
    throw invalid(`Invalid manifest: its mediaType '${own.slice(0, 255)}' is not '${given.slice(0, 255)}'`);
  }
  const type = own ?? given;
  if (type !== undefined) return type;
  if (options.detect) {
    if (isPresent(document['manifests'])) return OCI_INDEX;
    if (isPresent(document['layers']) || isPresent(document['config'])) return OCI_IMAGE;
  }
  throw new Fault(
    'InvalidParameterException',
    'image manifest mediatype not provided in manifest or parameter',
  );
}

interface References {
  readonly blobs: BlobReference[];
  readonly children: ChildReference[];
  readonly contentSize: number;
  readonly configType: string | undefined;
}

function imageReferences(document: Document, configRequired: boolean): References {
  // INVARIANT: a document is an image or an index, never readable as both (CVE-2021-41190).
  if ('manifests' in document || 'fsLayers' in document) throw invalid('Invalid manifest: it is ambiguous');
  const hasConfig = isPresent(document['config']);
  if (!hasConfig && (configRequired || !('layers' in document)))
    throw invalid('Invalid manifest: config is missing');
  const config = hasConfig ? descriptor(document['config'], 'config') : undefined;
  const layers = descriptors(document['layers'], 'layers');
  const all = config === undefined ? layers : [config, ...layers];
  return { blobs: distinct(all), children: [], contentSize: sum(all), configType: config?.mediaType };
}

function indexReferences(document: Document): References {
  if ('layers' in document || 'config' in document || 'fsLayers' in document) {
    throw invalid('Invalid manifest: it is ambiguous');
  }
  if (!('manifests' in document)) throw invalid('Invalid manifest: manifests is missing');
  const entries = descriptors(document['manifests'], 'manifests');
  const blobs = entries.filter(({ mediaType }) => !KINDS.has(mediaType));
  const children = distinct(entries.filter(({ mediaType }) => KINDS.has(mediaType)));
  return {
    blobs: distinct(blobs),
    children: children.map(({ digest, size }) => ({ digest, size })),
    contentSize: sum(blobs),
    configType: undefined,
  };
}

/** Each digest once; one that is required anywhere is required. */
function distinct(references: readonly BlobReference[]): BlobReference[] {
  const byDigest = new Map<string, BlobReference>();
  for (const reference of references) {
    const known = byDigest.get(reference.digest);
    if (known !== undefined && known.size !== reference.size) {
      throw invalid(`Invalid manifest: ${reference.digest} has two sizes`);
    }
    if (known === undefined || (reference.required && !known.required))
      byDigest.set(reference.digest, reference);
  }
  return [...byDigest.values()];
}

function sum(references: readonly BlobReference[]): number {
  const total = references.reduce((bytes, { size }) => bytes + size, 0);
  if (!Number.isSafeInteger(total)) throw invalid('Invalid manifest: its sizes are too large');
  return total;
}

function descriptors(value: unknown, where: string): BlobReference[] {
  if (!isPresent(value)) return [];
  if (!Array.isArray(value)) throw invalid(`Invalid manifest: ${where} must be a list`);
  if (value.length > MANIFEST_REFERENCES_MAX)
    throw invalid(`Invalid manifest: ${where} has too many members`);
  return value.map((entry: unknown, index) => descriptor(entry, `${where}[${index}]`));
}

/** Checks one descriptor: media type, digest, size, `urls` and embedded `data` (OCI descriptor.md). */
function descriptor(value: unknown, where: string): BlobReference {
  if (!isObject(value)) throw invalid(`Invalid manifest: ${where} must be a descriptor`);
  const mediaType = optionalText(value['mediaType'], `${where}.mediaType`);
  if (mediaType === undefined) throw invalid(`Invalid manifest: ${where}.mediaType is missing`);
  const digest = typeof value['digest'] === 'string' ? parseDigest(value['digest']) : undefined;
  if (digest === undefined) throw invalid(`Invalid manifest: ${where}.digest is no digest`);
  const size = value['size'];
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    throw invalid(`Invalid manifest: ${where}.size must be a number of bytes`);
  }
  checkUrls(value['urls'], where);
  checkData(value['data'], digest, size, where);
  return { digest, size, mediaType, required: !FOREIGN.test(mediaType) };
}

function checkUrls(urls: unknown, where: string): void {
  if (!isPresent(urls)) return;
  const good =
    Array.isArray(urls) && urls.every((url) => typeof url === 'string' && /^https?:\/\//i.test(url));
  if (!good) throw invalid(`Invalid manifest: ${where}.urls must be http or https URLs`);
}

function checkData(data: unknown, digest: Digest, size: number, where: string): void {
  if (!isPresent(data)) return;
  if (typeof data !== 'string' || !/^[A-Za-z0-9+/]*={0,2}$/.test(data) || data.length % 4 !== 0) {
    throw invalid(`Invalid manifest: ${where}.data is no base64`);
  }
  const bytes = Buffer.from(data, 'base64');
  const [algorithm = '', hex] = digest.split(':');
  if (bytes.length !== size || createHash(algorithm).update(bytes).digest('hex') !== hex) {
    throw invalid(`Invalid manifest: ${where}.data does not match its digest and size`);
  }
}

function checkAnnotations(annotations: unknown): void {
  if (!isPresent(annotations)) return;
  if (!isObject(annotations) || Object.values(annotations).some((value) => typeof value !== 'string')) {
    throw invalid('Invalid manifest: annotations must be texts');
  }
}

/** Media types and artifact types are short texts; absent, null and empty are the same. */
function optionalText(value: unknown, where: string): string | undefined {
  if (!isPresent(value) || value === '') return undefined;
  // WHY no control characters: RFC 6838 knows none, and PostgreSQL keeps no text with a NUL.
  if (typeof value !== 'string' || value.length > 255 || /\p{Cc}/u.test(value))
    throw invalid(`Invalid manifest: ${where} must be a short text`);
  return value;
}
