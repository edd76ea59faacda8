/** UpdateImageStorageClass (ecr-api.md §11). */
import type { Principal } from '../identity/identity.ts';
import { imageIdFailure } from '../domain/image-ids.ts';
import { invalidParameter } from '../domain/faults.ts';
import type { UpdateImageStorageClassRequest, UpdateImageStorageClassResponse } from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { checkRepository, requireRepository, type EcrServices } from './services.ts';

export function createStorageClassOperations(services: EcrServices) {
  const { store } = services;

  const updateImageStorageClass: Operation<
    Principal,
    UpdateImageStorageClassRequest,
    UpdateImageStorageClassResponse
  > = {
    notCovered:
      'An archived image takes as much room as before, and there is no least time in the archive. A restore takes a minute, and is not refused when the repository is full.',
    access: checkRepository('UpdateImageStorageClass'),
    async run(input, context) {
      const { imageId, targetStorageClass } = input;
      const failure = imageIdFailure(imageId);
      if (failure !== undefined) {
        throw invalidParameter('imageId', failure.failureReason.replace('Invalid request parameters: ', ''));
      }
      const { id, name, account } = await requireRepository(services, input, context);
      const { digest, status } = await store.transact('image.setStorageClass', {
        repository: { id, name, account },
        imageId,
        target: targetStorageClass,
        now: context.now,
      });
      return {
        registryId: account,
        repositoryName: name,
        imageId: {
          imageDigest: digest,
          ...(imageId.imageTag !== undefined && { imageTag: imageId.imageTag }),
        },
        imageStatus: status,
      };
    },
  };

  return { UpdateImageStorageClass: updateImageStorageClass };
}
