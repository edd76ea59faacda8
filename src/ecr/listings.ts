/** ListImages and DescribeImages (ecr-api.md §6.3, §7.5, §7.6). */
import { imageNotFound, invalidParameter } from '../domain/faults.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  DescribeImagesRequest,
  DescribeImagesResponse,
  ImageDetail,
  ImageIdentifier,
  ImageStatus,
  ImageStatusFilter,
  ListImagesRequest,
  ListImagesResponse,
  TagStatus,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { Repository } from '../registry/registry.ts';
import {
  digestsOfTags,
  imagesByDigest,
  pageEntries,
  pageImages,
  pageTags,
  tagsOfImages,
  type ImageEntry,
  type ImagePosition,
  type ImageSummary,
  type Reader,
} from '../store/store.ts';
import { PAGE_DEFAULT, refusePaging, type Position } from './pages.ts';
import { checkRepository, requireRepository, type EcrServices } from './services.ts';

const IMAGE_DIGEST = /^[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+$/;

/** The status a listing is about: active unless the client says otherwise; `undefined` is any. */
function statusOf(filter: ImageStatusFilter | undefined): ImageStatus | undefined {
  return filter === 'ANY' ? undefined : (filter ?? 'ACTIVE');
}

/** Whether only images with tags are wanted, or only those without. */
export function isTagged(status: TagStatus | undefined): boolean | undefined {
  return status === 'TAGGED' ? true : status === 'UNTAGGED' ? false : undefined;
}

function imagePosition(position: Position | undefined): ImagePosition | undefined {
  return position === undefined ? undefined : { pushedAt: Number(position[0]), digest: String(position[1]) };
}

function detailOf(repository: Repository, image: ImageSummary, tags: string[] | undefined): ImageDetail {
  return {
    registryId: repository.account,
    repositoryName: repository.name,
    imageDigest: image.digest,
    ...(tags !== undefined && { imageTags: tags }),
    imageSizeInBytes: image.size,
    imagePushedAt: new Date(image.pushedAt),
    imageManifestMediaType: image.mediaType,
    ...(image.artifactType !== undefined && { artifactMediaType: image.artifactType }),
    ...(image.lastPulledAt !== undefined && { lastRecordedPullTime: new Date(image.lastPulledAt) }),
    ...(image.subjectDigest !== undefined && { subjectManifestDigest: image.subjectDigest }),
    imageStatus: image.status,
    ...(image.archivedAt !== undefined && { lastArchivedAt: new Date(image.archivedAt) }),
    ...(image.activatedAt !== undefined && { lastActivatedAt: new Date(image.activatedAt) }),
  };
}

async function detailsOf(
  read: Reader,
  repository: Repository,
  images: readonly ImageSummary[],
): Promise<ImageDetail[]> {
  const tags = await tagsOfImages(
    read,
    repository.id,
    images.map(({ digest }) => digest),
  );
  return images.map((image) => detailOf(repository, image, tags.get(image.digest)));
}

/**
 * The images of ids, each once, in the order first asked for.
 *
 * @throws Fault ImageNotFoundException for the first unknown one, InvalidParameterException
 */
async function findByIds(
  read: Reader,
  repository: Repository,
  ids: readonly ImageIdentifier[],
): Promise<ImageSummary[]> {
  for (const { imageDigest, imageTag } of ids) {
    if (imageDigest === undefined && imageTag === undefined)
      throw invalidParameter('imageIds', 'both tag and digest cannot be null');
    if (imageDigest !== undefined && !IMAGE_DIGEST.test(imageDigest))
      throw invalidParameter(
        'imageDigest',
        `must satisfy regular expression '${IMAGE_DIGEST.source.slice(1, -1)}'`,
      );
  }
  const tags = ids.flatMap(({ imageTag }) => (imageTag === undefined ? [] : [imageTag]));
  const tagged = await digestsOfTags(read, repository.id, tags);
  const wanted = ids.map(({ imageDigest, imageTag }) => {
    const digest = imageTag === undefined ? imageDigest : tagged.get(imageTag);
    // WHY: a tag that names another image is as unknown as one that names none.
    return imageDigest === undefined || imageDigest === digest ? digest : undefined;
  });
  const known = await imagesByDigest(read, repository.id, [
    ...new Set(wanted.filter((d) => d !== undefined)),
  ]);
  const found = new Map<string, ImageSummary>();
  for (const [i, { imageDigest, imageTag }] of ids.entries()) {
    const image = known.get(wanted[i] ?? '');
    if (image === undefined) {
      throw imageNotFound({ digest: imageDigest, tag: imageTag }, repository.name, repository.account);
    }
    found.set(image.digest, image);
  }
  return [...found.values()];
}

export function createListingOperations(services: EcrServices) {
  const { store, pages } = services;

  const describeImages: Operation<Principal, DescribeImagesRequest, DescribeImagesResponse> = {
    notCovered: '`imageScanStatus` and `imageScanFindingsSummary` are never there: nothing scans.',
    access: checkRepository('DescribeImages'),
    async run(input, context) {
      const { tagStatus, imageStatus } = input.filter ?? {};
      if (input.imageIds !== undefined) refusePaging('imageIds', input);
      const repository = await requireRepository(services, input, context);
      const scope = ['DescribeImages', repository.id, tagStatus ?? 'ANY', imageStatus ?? 'ACTIVE'];
      const after = imagePosition(pages.open(scope, input.nextToken));
      const tagged = isTagged(tagStatus);
      if (input.imageIds !== undefined) {
        const images = await findByIds(store.read, repository, input.imageIds);
        const details = await detailsOf(store.read, repository, images);
        // WHY no status unless it is asked for: whoever names an image wants to know of it, archived or not.
        const wanted = imageStatus === undefined ? undefined : statusOf(imageStatus);
        const selected = (detail: ImageDetail): boolean =>
          (wanted === undefined || wanted === detail.imageStatus) &&
          (tagged === undefined || tagged === (detail.imageTags !== undefined));
        return { imageDetails: details.filter(selected) };
      }
      const limit = input.maxResults ?? PAGE_DEFAULT;
      const options = { after, tagged, status: statusOf(imageStatus), limit };
      const { images, next } = await pageImages(store.read, repository.id, options);
      return {
        imageDetails: await detailsOf(store.read, repository, images),
        ...(next !== undefined && { nextToken: pages.seal(scope, [next.pushedAt, next.digest]) }),
      };
    },
  };

  const listImages: Operation<Principal, ListImagesRequest, ListImagesResponse> = {
    access: checkRepository('ListImages'),
    async run(input, context) {
      const { tagStatus, imageStatus } = input.filter ?? {};
      const repository = await requireRepository(services, input, context);
      const scope = ['ListImages', repository.id, tagStatus ?? 'ANY', imageStatus ?? 'ACTIVE'];
      const after = pages.open(scope, input.nextToken);
      const filter = { tagStatus, status: statusOf(imageStatus) };
      const page = await pageIds(store.read, repository.id, filter, after, input.maxResults ?? PAGE_DEFAULT);
      return {
        imageIds: page.ids,
        ...(page.next !== undefined && { nextToken: pages.seal(scope, page.next) }),
      };
    },
  };

  return { DescribeImages: describeImages, ListImages: listImages };
}

interface IdPage {
  readonly ids: ImageIdentifier[];
  readonly next: Position | undefined;
}

/** A page of ListImages: the tags by name, the untagged images, or both image by image. */
async function pageIds(
  read: Reader,
  repositoryId: string,
  { tagStatus, status }: { tagStatus: TagStatus | undefined; status: ImageStatus | undefined },
  after: Position | undefined,
  limit: number,
): Promise<IdPage> {
  if (tagStatus === 'TAGGED') {
    const last = after === undefined ? undefined : String(after[0]);
    const { tags, next } = await pageTags(read, repositoryId, last, limit, status);
    return {
      ids: tags.map(({ digest, name }) => ({ imageDigest: digest, imageTag: name })),
      next: next === undefined ? undefined : [next],
    };
  }
  if (tagStatus === 'UNTAGGED') {
    const options = { after: imagePosition(after), tagged: false, status, limit };
    const { images, next } = await pageImages(read, repositoryId, options);
    return {
      ids: images.map(({ digest }) => ({ imageDigest: digest })),
      next: next === undefined ? undefined : [next.pushedAt, next.digest],
    };
  }
  const { entries, next } = await pageEntries(read, repositoryId, entryPosition(after), limit, status);
  return {
    ids: entries.map(({ digest, tag }) => ({
      imageDigest: digest,
      ...(tag !== undefined && { imageTag: tag }),
    })),
    next: next === undefined ? undefined : [next.pushedAt, next.digest, next.tag ?? null],
  };
}

function entryPosition(position: Position | undefined): ImageEntry | undefined {
  const image = imagePosition(position);
  if (image === undefined) return undefined;
  const tag = position?.[2] ?? undefined;
  return { ...image, tag: tag === undefined ? undefined : String(tag) };
}
