import { Fault, invalidParameter } from '../domain/faults.ts';
import {
  type Digest,
  type ImageTag,
  parseDigest,
  parseImageTag,
  parseRepositoryName,
  type RepositoryName,
} from '../domain/names.ts';

/** What a path under `/v2/` names. */
export type Target = { readonly kind: 'base' } | { readonly kind: 'catalog' } | RepositoryTarget;

/** What lies in a repository. */
export type RepositoryTarget =
  | { readonly kind: 'tags'; readonly name: RepositoryName }
  | { readonly kind: 'uploads'; readonly name: RepositoryName }
  | { readonly kind: 'upload'; readonly name: RepositoryName; readonly id: string }
  | { readonly kind: 'blob'; readonly name: RepositoryName; readonly digest: Digest }
  | { readonly kind: 'referrers'; readonly name: RepositoryName; readonly digest: Digest }
  | { readonly kind: 'manifest'; readonly name: RepositoryName; readonly reference: Reference };

export type Reference = { readonly digest: Digest } | { readonly tag: ImageTag };

const BASE: Target = { kind: 'base' };
const CATALOG: Target = { kind: 'catalog' };

/**
 * Reads a raw path from the right: repository names contain slashes and may contain the words `blobs`, `manifests`,
 * `uploads`, `tags` and `referrers`, so only the last fixed tail counts (registry-protocol.md §1.1). Takes linear time.
 * Segments are percent-decoded once, after the split, so that an encoded slash stays inside a name and makes it invalid.
 *
 * Returns `undefined` when the path is none of the registry's.
 *
 * @throws Fault NameInvalid, DigestInvalid, TagInvalid
 */
export function parsePath(path: string): Target | undefined {
  if (path === '/v2/' || path === '/v2') return BASE;
  if (path === '/v2/_catalog') return CATALOG;
  if (!path.startsWith('/v2/')) return undefined;
  const last = path.lastIndexOf('/');
  const before = path.lastIndexOf('/', last - 1);
  const tail = path.slice(last + 1);
  switch (path.slice(before + 1, last)) {
    case 'manifests':
      if (tail === '' || before < 4) return undefined;
      return { kind: 'manifest', name: readName(path, before), reference: readReference(tail) };
    case 'blobs':
      if (tail === '' || before < 4) return undefined;
      if (tail === 'uploads') return { kind: 'uploads', name: readName(path, before) };
      return { kind: 'blob', name: readName(path, before), digest: readDigest(tail) };
    case 'uploads': {
      const end = before - '/blobs'.length;
      if (end < 4 || !path.startsWith('/blobs', end)) return undefined;
      const name = readName(path, end);
      return tail === '' ? { kind: 'uploads', name } : { kind: 'upload', name, id: tail };
    }
    case 'tags':
      if (tail !== 'list' || before < 4) return undefined;
      return { kind: 'tags', name: readName(path, before) };
    case 'referrers':
      if (tail === '' || before < 4) return undefined;
      return { kind: 'referrers', name: readName(path, before), digest: readDigest(tail) };
    default:
      return undefined;
  }
}

function readName(path: string, end: number): RepositoryName {
  const name = decode(path.slice('/v2/'.length, end), '/');
  const parsed = name === undefined ? undefined : parseRepositoryName(name);
  if (parsed === undefined) throw new Fault('NameInvalid', 'invalid repository name');
  return parsed;
}

function readDigest(segment: string): Digest {
  const digest = decode(segment, '');
  const parsed = digest === undefined ? undefined : parseDigest(digest);
  if (parsed === undefined) throw digestInvalid();
  return parsed;
}

function readReference(segment: string): Reference {
  const text = decode(segment, '') ?? '';
  if (text.includes(':')) return { digest: readDigest(text) };
  return { tag: readTag(text) };
}

/** @throws Fault TagInvalid, with ECR's sentence (registry-protocol.md §3.4) */
export function readTag(text: string): ImageTag {
  const tag = parseImageTag(text);
  if (tag !== undefined) return tag;
  const { message } = invalidParameter('imageTag', "must satisfy regular expression '[a-zA-Z0-9-_.]+'");
  throw new Fault('TagInvalid', message);
}

export function digestInvalid(): Fault {
  return new Fault('DigestInvalid', 'The digest is missing or not a valid sha256 or sha512 digest.');
}

/** Decodes each segment; `undefined` for a bad escape or when decoding brings forth a further separator. */
function decode(text: string, separator: string): string | undefined {
  if (!text.includes('%')) return text;
  if (separator !== '' && /%2f/i.test(text)) return undefined;
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}
