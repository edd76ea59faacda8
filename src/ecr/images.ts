/** Push, get and delete images (ecr-api.md §7.1, §7.2, §7.4). The rules are registry/'s, which the OCI door shares. */
import { Fault, invalidParameter } from '../domain/faults.ts';
import { parseImageTag } from '../domain/names.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  BatchDeleteImageRequest,
  BatchDeleteImageResponse,
  BatchGetImageRequest,
  BatchGetImageResponse,
  ImageFailure as ImageFailureShape,
  ImageIdentifier,
  PutImageRequest,
  PutImageResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { ImageFailure, ImageId } from '../registry/registry.ts';
import {
  checkRepository,
  keyUnavailable,
  requireReadable,
  requireRepository,
  type EcrServices,
} from './services.ts';

function identifier({ imageDigest, imageTag }: ImageId): ImageIdentifier {
  return {
    ...(imageDigest !== undefined && { imageDigest }),
    ...(imageTag !== undefined && { imageTag }),
  };
}

function failureShape({ imageId, failureCode, failureReason }: ImageFailure): ImageFailureShape {
  return {
    imageId: identifier(imageId),
    failureCode: failureCode as NonNullable<ImageFailureShape['failureCode']>,
    failureReason,
  };
}

/** What the OCI door calls an invalid manifest is an invalid parameter here. */
function manifestFault(error: unknown): unknown {
  return error instanceof Fault && (error.code === 'ManifestInvalid' || error.code === 'ManifestTooLarge')
    ? invalidParameter('ImageManifest', error.message)
    : error;
}

export function createImageOperations(services: EcrServices) {
  const { images } = services.registry;

  const putImage: Operation<Principal, PutImageRequest, PutImageResponse> = {
    notCovered:
      'Docker schema 1 and the artifact manifests before OCI 1.1 are refused, and tags of more than 128 characters. Nothing is scanned, signed or replicated.',
    access: checkRepository('PutImage'),
    async run(input, context) {
      const { imageManifest, imageTag } = input;
      if (imageTag !== undefined && parseImageTag(imageTag) === undefined) {
        throw invalidParameter(
          'imageTag',
          "must satisfy regular expression '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'",
        );
      }
      const repository = await requireReadable(services, input, context);
      const stored = await images
        .put(repository, {
          manifest: Buffer.from(imageManifest),
          mediaType: input.imageManifestMediaType,
          digest: input.imageDigest,
          tags: imageTag === undefined ? [] : [imageTag],
          existing: 'refuse',
        })
        .catch((error: unknown) => {
          throw manifestFault(error);
        });
      return {
        image: {
          registryId: repository.account,
          repositoryName: repository.name,
          imageId: identifier({ imageDigest: stored.digest, imageTag }),
          imageManifest,
          imageManifestMediaType: stored.mediaType,
        },
      };
    },
  };

  const batchGetImage: Operation<Principal, BatchGetImageRequest, BatchGetImageResponse> = {
    notCovered:
      '`acceptedMediaTypes` has no effect: what is stored is returned, never a converted manifest. Manifests of 32 MiB at most in one answer.',
    access: checkRepository('BatchGetImage'),
    async run(input, context) {
      const repository = await requireRepository(services, input, context);
      if (!services.ring.has(repository.contentKey)) {
        const { message } = keyUnavailable(repository);
        return {
          images: [],
          failures: input.imageIds.map((imageId) => ({
            imageId: identifier(imageId),
            failureCode: 'KmsError' as const,
            failureReason: message,
          })),
        };
      }
      const pull = await services.identity.recordsPulls(context.caller, repository);
      const { images: found, failures } = await images.batchGet(repository, input.imageIds, { pull });
      return {
        // WHY: acceptedMediaTypes changes nothing. What is stored is returned; a platform or format is never chosen for
        // the client (ecr-api.md §7.2, §7.3).
        images: found.map(({ imageId, image }) => ({
          registryId: repository.account,
          repositoryName: repository.name,
          imageId: identifier(imageId),
          imageManifest: Buffer.from(image.manifest).toString(),
          imageManifestMediaType: image.mediaType,
        })),
        failures: failures.map(failureShape),
      };
    },
  };

  const batchDeleteImage: Operation<Principal, BatchDeleteImageRequest, BatchDeleteImageResponse> = {
    access: checkRepository('BatchDeleteImage'),
    async run(input, context) {
      const repository = await requireRepository(services, input, context);
      const { imageIds, failures } = await images.batchDelete(repository, input.imageIds);
      return { imageIds: imageIds.map(identifier), failures: failures.map(failureShape) };
    },
  };

  return { PutImage: putImage, BatchGetImage: batchGetImage, BatchDeleteImage: batchDeleteImage };
}
