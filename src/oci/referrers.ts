import { Fault } from '../domain/faults.ts';
import type { Digest } from '../domain/names.ts';
import type { Referrer } from '../registry/registry.ts';
import { type Call, commonHeaders } from './call.ts';
import { linkTo } from './scope.ts';

const INDEX = 'application/vnd.oci.image.index.v1+json';

/** Bytes of descriptors on one page. containerd reads at most 4 MiB and does not follow links (§1.11), so pages are long. */
const PAGE_BYTES_MAX = 3_932_160;

/**
 * `GET /v2/<name>/referrers/<digest>?artifactType=`: an index of the images whose subject is the digest, which need not
 * exist (registry-protocol.md §1.11). Several `artifactType` parameters mean any of them. What does not fit on a page is
 * behind a link, whose `last` is the push time of the last entry.
 */
export async function listReferrers(call: Call, subject: Digest): Promise<void> {
  const { exchange, repository } = call;
  const query = exchange.rawQuery === '' ? undefined : exchange.query;
  const artifactTypes = query?.getAll('artifactType').filter((type) => type !== '') ?? [];
  const after = readPosition(query?.get('last') ?? undefined);

  const descriptors: string[] = [];
  let bytes = 0;
  let last: Referrer | undefined;
  let more = false;
  for await (const referrer of select(call, subject, artifactTypes, after)) {
    const descriptor = JSON.stringify(describe(referrer));
    bytes += Buffer.byteLength(descriptor) + 1;
    more = bytes > PAGE_BYTES_MAX && descriptors.length > 0;
    if (more) break;
    descriptors.push(descriptor);
    last = referrer;
  }

  const headers = commonHeaders(exchange);
  headers.push('Content-Type', INDEX);
  if (artifactTypes.length > 0) headers.push('OCI-Filters-Applied', 'artifactType');
  if (more && last !== undefined) {
    const filter = artifactTypes.map((type) => `artifactType=${encodeURIComponent(type)}&`).join('');
    const path = `/v2/${repository.name}/referrers/${subject}`;
    const next = linkTo(call.scope, path, `${filter}last=${last.pushedAt}`);
    headers.push('Link', `<${next}>; rel="next"`);
  }
  const body = `{"schemaVersion":2,"mediaType":"${INDEX}","manifests":[${descriptors.join(',')}]}`;
  exchange.send(200, headers, body);
}

function select(
  { repository, services }: Call,
  subject: Digest,
  wanted: readonly string[],
  after: number | undefined,
): AsyncIterable<Referrer> | readonly Referrer[] {
  // WHY: PostgreSQL takes no NUL, and no artifact type has one.
  const artifactTypes = wanted.filter((type) => !type.includes('\0'));
  if (wanted.length > 0 && artifactTypes.length === 0) return [];
  return services.registry.images.referrers(repository, subject, { artifactTypes, after });
}

function readPosition(last: string | undefined): number | undefined {
  if (last === undefined) return undefined;
  if (/^\d{1,15}$/.test(last)) return Number(last);
  throw new Fault('PaginationNumberInvalid', 'invalid last entry of the page before');
}

/** The descriptor of a referrer, with its manifest's annotations. */
function describe(referrer: Referrer): Record<string, unknown> {
  const manifest = JSON.parse(Buffer.from(referrer.manifest).toString()) as { annotations?: unknown };
  return {
    mediaType: referrer.mediaType,
    digest: referrer.digest,
    size: referrer.manifest.byteLength,
    artifactType: referrer.artifactType,
    annotations: manifest.annotations ?? undefined,
  };
}
