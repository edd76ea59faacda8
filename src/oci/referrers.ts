import type { Digest } from '../domain/names.ts';
import type { Image } from '../registry/registry.ts';
import { type Call, commonHeaders } from './call.ts';

const INDEX = 'application/vnd.oci.image.index.v1+json';

/** Bytes of descriptors on one page. containerd reads at most 4 MiB and does not follow links (§1.11), so pages are long. */
const PAGE_BYTES_MAX = 3_932_160;

/**
 * `GET /v2/<name>/referrers/<digest>?artifactType=`: an index of the images whose subject is the digest, which need not
 * exist (registry-protocol.md §1.11). Several `artifactType` parameters mean any of them.
 */
export async function listReferrers(call: Call, subject: Digest): Promise<void> {
  const { exchange, repository } = call;
  const query = exchange.rawQuery === '' ? undefined : exchange.query;
  const artifactTypes = query?.getAll('artifactType').filter((type) => type !== '') ?? [];
  const found = await call.services.registry.images.referrers(repository, subject, artifactTypes);
  const last = query?.get('last') ?? undefined;
  // A `last` that is gone starts over: twice is better than never.
  const images = found.slice(found.findIndex((image) => image.digest === last) + 1);

  const descriptors: string[] = [];
  let bytes = 0;
  for (const image of images) {
    const descriptor = JSON.stringify(describe(image));
    bytes += Buffer.byteLength(descriptor) + 1;
    if (bytes > PAGE_BYTES_MAX && descriptors.length > 0) break;
    descriptors.push(descriptor);
  }

  const headers = commonHeaders(exchange);
  headers.push('Content-Type', INDEX);
  if (artifactTypes.length > 0) headers.push('OCI-Filters-Applied', 'artifactType');
  const end = images[descriptors.length - 1];
  if (descriptors.length < images.length && end !== undefined) {
    const filter = artifactTypes.map((type) => `artifactType=${encodeURIComponent(type)}&`).join('');
    const next = `/v2/${repository.name}/referrers/${subject}?${filter}last=${end.digest}`;
    headers.push('Link', `<${next}>; rel="next"`);
  }
  const body = `{"schemaVersion":2,"mediaType":"${INDEX}","manifests":[${descriptors.join(',')}]}`;
  exchange.send(200, headers, body);
}

/** The descriptor of a referrer, with its manifest's annotations. */
function describe(image: Image): Record<string, unknown> {
  const manifest = JSON.parse(Buffer.from(image.manifest).toString()) as { annotations?: unknown };
  return {
    mediaType: image.mediaType,
    digest: image.digest,
    size: image.manifest.byteLength,
    artifactType: image.artifactType,
    annotations: manifest.annotations,
  };
}
