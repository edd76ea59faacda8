/** Lifecycle policies and their previews (ecr-api.md §12.1). */
import { randomUUID } from 'node:crypto';
import { invalidParameter, lifecyclePolicyNotFound, lifecyclePreviewNotFound } from '../domain/faults.ts';
import { imageIdFailure } from '../domain/image-ids.ts';
import { formatLifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  DeleteLifecyclePolicyRequest,
  DeleteLifecyclePolicyResponse,
  GetLifecyclePolicyPreviewRequest,
  GetLifecyclePolicyPreviewResponse,
  GetLifecyclePolicyRequest,
  GetLifecyclePolicyResponse,
  ImageIdentifier,
  LifecyclePolicyPreviewResult,
  PutLifecyclePolicyRequest,
  PutLifecyclePolicyResponse,
  StartLifecyclePolicyPreviewRequest,
  StartLifecyclePolicyPreviewResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import {
  digestsOfTags,
  findLifecyclePolicy,
  findPreview,
  type LifecyclePreview,
  pagePreview,
  type PreviewImage,
  previewOfImages,
  type Reader,
} from '../store/store.ts';
import { isTagged } from './listings.ts';
import { PAGE_DEFAULT, refusePaging } from './pages.ts';
import { addressOf, checkRepository, requireRepository, type EcrServices } from './services.ts';

/** A policy that was never evaluated says so with the beginning of time. */
function evaluatedAt(at: number | undefined): Date {
  return new Date(at ?? 0);
}

function resultOf(image: PreviewImage): LifecyclePolicyPreviewResult {
  return {
    ...(image.tags.length > 0 && { imageTags: [...image.tags] }),
    imageDigest: image.digest,
    imagePushedAt: new Date(image.pushedAt),
    action:
      image.action === 'EXPIRE' ? { type: 'EXPIRE' } : { type: 'TRANSITION', targetStorageClass: 'ARCHIVE' },
    appliedRulePriority: image.rulePriority,
    storageClass: image.storageClass,
  };
}

function summaryOf({ expiring, transitioning }: LifecyclePreview) {
  const archived = { targetStorageClass: 'ARCHIVE', imageTotalCount: transitioning } as const;
  return {
    expiringImageTotalCount: expiring,
    ...(transitioning > 0 && { transitioningImageTotalCounts: [archived] }),
  };
}

/** The results about images by id, each once, in the order of a run. @throws Fault InvalidParameterException */
async function resultsOfIds(
  read: Reader,
  name: { readonly repositoryId: string; readonly preview: string },
  ids: readonly ImageIdentifier[],
): Promise<PreviewImage[]> {
  for (const id of ids) {
    const failure = imageIdFailure(id);
    if (failure !== undefined) {
      throw invalidParameter('imageIds', failure.failureReason.replace('Invalid request parameters: ', ''));
    }
  }
  const tags = ids.flatMap(({ imageTag }) => (imageTag === undefined ? [] : [imageTag]));
  const tagged = await digestsOfTags(read, name.repositoryId, tags);
  const digests = ids.map(({ imageDigest, imageTag }) => {
    const digest = imageTag === undefined ? imageDigest : tagged.get(imageTag);
    return imageDigest === undefined || imageDigest === digest ? digest : undefined;
  });
  const wanted = [...new Set(digests.filter((digest) => digest !== undefined))];
  return (await previewOfImages(read, name, wanted)).sort((a, b) => a.place - b.place);
}

export function createLifecycleOperations(services: EcrServices) {
  const { store, pages } = services;

  const putLifecyclePolicy: Operation<Principal, PutLifecyclePolicyRequest, PutLifecyclePolicyResponse> = {
    access: checkRepository('PutLifecyclePolicy'),
    async run(input, context) {
      const address = addressOf(input, context);
      const policy = formatLifecyclePolicy(parseLifecyclePolicy(input.lifecyclePolicyText));
      await store.transact('lifecycle.put', { address, policy, now: context.now });
      return { registryId: address.account, repositoryName: address.name, lifecyclePolicyText: policy };
    },
  };

  const getLifecyclePolicy: Operation<Principal, GetLifecyclePolicyRequest, GetLifecyclePolicyResponse> = {
    access: checkRepository('GetLifecyclePolicy'),
    async run(input, context) {
      const { id, name, account } = await requireRepository(services, input, context);
      const stored = await findLifecyclePolicy(store.read, id);
      if (stored === undefined) throw lifecyclePolicyNotFound(name, account);
      return {
        registryId: account,
        repositoryName: name,
        lifecyclePolicyText: stored.policy,
        lastEvaluatedAt: evaluatedAt(stored.evaluatedAt),
      };
    },
  };

  const deleteLifecyclePolicy: Operation<
    Principal,
    DeleteLifecyclePolicyRequest,
    DeleteLifecyclePolicyResponse
  > = {
    access: checkRepository('DeleteLifecyclePolicy'),
    async run(input, context) {
      const address = addressOf(input, context);
      const removed = await store.transact('lifecycle.delete', { address });
      return {
        registryId: address.account,
        repositoryName: address.name,
        lifecyclePolicyText: removed.policy,
        lastEvaluatedAt: evaluatedAt(removed.evaluatedAt),
      };
    },
  };

  const startLifecyclePolicyPreview: Operation<
    Principal,
    StartLifecyclePolicyPreviewRequest,
    StartLifecyclePolicyPreviewResponse
  > = {
    access: checkRepository('StartLifecyclePolicyPreview'),
    async run(input, context) {
      const address = addressOf(input, context);
      const text = input.lifecyclePolicyText;
      if (text !== undefined) parseLifecyclePolicy(text);
      const preview = { address, policy: text, preview: randomUUID(), now: context.now };
      return {
        registryId: address.account,
        repositoryName: address.name,
        lifecyclePolicyText: await store.transact('lifecycle.startPreview', preview),
        status: 'IN_PROGRESS',
      };
    },
  };

  const getLifecyclePolicyPreview: Operation<
    Principal,
    GetLifecyclePolicyPreviewRequest,
    GetLifecyclePolicyPreviewResponse
  > = {
    access: checkRepository('GetLifecyclePolicyPreview'),
    async run(input, context) {
      const { imageIds, filter } = input;
      if (imageIds !== undefined) refusePaging('imageIds', input);
      const { id, name, account } = await requireRepository(services, input, context);
      const found = await findPreview(store.read, id, context.now);
      if (found === undefined) throw lifecyclePreviewNotFound(name, account);
      const answer = {
        registryId: account,
        repositoryName: name,
        lifecyclePolicyText: found.policy,
        status: found.status,
      };
      const tagged = isTagged(filter?.tagStatus);
      const scope = ['GetLifecyclePolicyPreview', id, found.preview, filter?.tagStatus ?? 'ANY'];
      const position = pages.open(scope, input.nextToken);
      if (found.status !== 'COMPLETE') return { ...answer, previewResults: [] };
      const summary = summaryOf(found);
      const preview = { repositoryId: id, preview: found.preview };
      if (imageIds !== undefined) {
        const images = (await resultsOfIds(store.read, preview, imageIds)).filter(
          ({ tags }) => tagged === undefined || tagged === tags.length > 0,
        );
        return { ...answer, previewResults: images.map(resultOf), summary };
      }
      const after = position === undefined ? undefined : Number(position[0]);
      const options = { after, tagged, limit: input.maxResults ?? PAGE_DEFAULT };
      const { images, next } = await pagePreview(store.read, preview, options);
      return {
        ...answer,
        previewResults: images.map(resultOf),
        summary,
        ...(next !== undefined && { nextToken: pages.seal(scope, [next]) }),
      };
    },
  };

  return {
    PutLifecyclePolicy: putLifecyclePolicy,
    GetLifecyclePolicy: getLifecyclePolicy,
    DeleteLifecyclePolicy: deleteLifecyclePolicy,
    StartLifecyclePolicyPreview: startLifecyclePolicyPreview,
    GetLifecyclePolicyPreview: getLifecyclePolicyPreview,
  };
}
