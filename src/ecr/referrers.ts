/** ListImageReferrers: the images of a repository whose subject is a digest (ecr-api.md §9.1). */
import { invalidParameter } from '../domain/faults.ts';
import { imageIdFailure } from '../domain/image-ids.ts';
import type { Principal } from '../identity/identity.ts';
import { LIMITS } from '../lib/limits.ts';
import type {
  ImageReferrer,
  ListImageReferrersRequest,
  ListImageReferrersResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findManifest, pageReferrers, type ReferrerSummary } from '../store/store.ts';
import { checkRepository, requireRepository, type EcrServices } from './services.ts';

/** Entries of a page unless the client says otherwise. */
const PAGE = 20;

export function createReferrerOperations(services: EcrServices) {
  const { store, pages } = services;

  const listImageReferrers: Operation<Principal, ListImageReferrersRequest, ListImageReferrersResponse> = {
    // It has no action of its own.
    access: checkRepository('BatchGetImage'),
    async run(input, context) {
      const failure = imageIdFailure(input.subjectId);
      if (failure !== undefined) {
        const reason = failure.failureReason.replace('Invalid request parameters: ', '');
        throw invalidParameter('subjectId', reason);
      }
      const repository = await requireRepository(services, input, context);
      const { artifactTypes = [], artifactStatus = 'ACTIVE' } = input.filter ?? {};
      const subject = input.subjectId.imageDigest;
      const scope = ['ListImageReferrers', repository.id, subject, artifactTypes, artifactStatus];
      const [after] = pages.open(scope, input.nextToken) ?? [];
      const limit = input.maxResults ?? PAGE;
      const found = await pageReferrers(store.read, repository.id, {
        subject,
        artifactTypes,
        status: artifactStatus === 'ANY' ? undefined : artifactStatus,
        after: after === undefined ? undefined : Number(after),
        limit: limit + 1,
      });
      const page = withinBytes(found.slice(0, limit));
      const referrers: ImageReferrer[] = [];
      for (const referrer of page) {
        const manifest = await findManifest(store.read, referrer.id);
        // Deleted since the page was read.
        if (manifest !== undefined) referrers.push(describe(referrer, manifest));
      }
      const last = page.at(-1);
      return {
        referrers,
        ...(page.length < found.length &&
          last !== undefined && { nextToken: pages.seal(scope, [last.pushedAt]) }),
      };
    },
  };

  return { ListImageReferrers: listImageReferrers };
}

/** As many of the first as fit in one answer, at least one. */
function withinBytes(referrers: readonly ReferrerSummary[]): readonly ReferrerSummary[] {
  let bytes = 0;
  const end = referrers.findIndex(({ size }, i) => (bytes += size) > LIMITS.manifestsAnswerBytesMax && i > 0);
  return end === -1 ? referrers : referrers.slice(0, end);
}

function describe(referrer: ReferrerSummary, manifest: Uint8Array): ImageReferrer {
  const { annotations } = JSON.parse(Buffer.from(manifest).toString()) as { annotations?: unknown };
  return {
    digest: referrer.digest,
    mediaType: referrer.mediaType,
    ...(referrer.artifactType !== undefined && { artifactType: referrer.artifactType }),
    size: referrer.size,
    annotations: readAnnotations(annotations),
    artifactStatus: referrer.status,
  };
}

/** Texts by name; whatever else a client wrote there is left out, because the API has no place for it. */
function readAnnotations(annotations: unknown): Record<string, string> {
  if (typeof annotations !== 'object' || annotations === null) return {};
  const texts = Object.entries(annotations).filter(
    (entry): entry is [string, string] => typeof entry[1] === 'string',
  );
  return Object.fromEntries(texts);
}
