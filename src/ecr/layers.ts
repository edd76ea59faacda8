/** Layer operations (ecr-api.md §8): the ECR API's way to upload and download blobs. */
import { Readable } from 'node:stream';
import { Fault } from '../domain/faults.ts';
import type { Principal } from '../identity/identity.ts';
import { LIMITS } from '../lib/limits.ts';
import type {
  BatchCheckLayerAvailabilityRequest,
  BatchCheckLayerAvailabilityResponse,
  CompleteLayerUploadRequest,
  CompleteLayerUploadResponse,
  GetDownloadUrlForLayerRequest,
  GetDownloadUrlForLayerResponse,
  InitiateLayerUploadRequest,
  InitiateLayerUploadResponse,
  Layer,
  LayerFailure,
  UploadLayerPartRequest,
  UploadLayerPartResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { Repository } from '../registry/registry.ts';
import { archivedLayers } from '../store/store.ts';
import { checkRepository, requireReadable, requireRepository, type EcrServices } from './services.ts';

const LAYER_DIGEST = /^[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+$/;
/** Shown for content no image refers to yet, whose media type nobody has said. */
const LAYER_MEDIA_TYPE = 'application/vnd.docker.image.rootfs.diff.tar.gzip';

/** What is wrong with a digest itself; `undefined` when it can be looked up. */
function layerFailure(layerDigest: string): LayerFailure | undefined {
  if (layerDigest === '') {
    const failureReason = 'Invalid request parameters: layer digest cannot be null';
    return { layerDigest, failureCode: 'MissingLayerDigest', failureReason };
  }
  if (LAYER_DIGEST.test(layerDigest)) return undefined;
  const failureReason = `Invalid request parameters: layer digest should satisfy the regex '${LAYER_DIGEST.source.slice(1, -1)}'`;
  return { layerDigest, failureCode: 'InvalidLayerDigest', failureReason };
}

/** A part that does not go on where the last one ended; -1 was received while there is none. */
function invalidPart(repository: Repository, uploadId: string, received: number, why: string): Fault {
  return new Fault('InvalidLayerPartException', why, {
    registryId: repository.account,
    repositoryName: repository.name,
    uploadId,
    lastValidByteReceived: received,
  });
}

/** Content is known by sha256 alone; another digest cannot be confirmed, which this API calls an invalid layer. */
function layerFault(error: unknown): unknown {
  return error instanceof Fault && error.code === 'DigestInvalid'
    ? new Fault('InvalidLayerException', error.message)
    : error;
}

export function createLayerOperations(services: EcrServices) {
  const { downloads } = services;
  const { layers, uploads } = services.registry;

  const batchCheckLayerAvailability: Operation<
    Principal,
    BatchCheckLayerAvailabilityRequest,
    BatchCheckLayerAvailabilityResponse
  > = {
    access: checkRepository('BatchCheckLayerAvailability'),
    async run(input, context) {
      const repository = await requireRepository(services, input, context);
      const failures: LayerFailure[] = [];
      const wanted: string[] = [];
      for (const digest of new Set(input.layerDigests)) {
        const failure = layerFailure(digest);
        if (failure === undefined) wanted.push(digest);
        else failures.push(failure);
      }
      const known = await layers.availability(repository, wanted);
      const archived = await archivedLayers(services.store.read, repository.id, wanted);
      const answer: Layer[] = [];
      for (const layerDigest of wanted) {
        const layer = known.get(layerDigest);
        // WHY: a client that hears AVAILABLE does not upload, so the content must stay until its PutImage.
        const held = layer !== undefined && (await layers.stat(repository, layerDigest)) !== undefined;
        if (layer === undefined || !held) answer.push({ layerDigest, layerAvailability: 'UNAVAILABLE' });
        else {
          answer.push({
            layerDigest,
            layerAvailability: archived.has(layerDigest) ? 'ARCHIVED' : 'AVAILABLE',
            layerSize: layer.size,
            mediaType: layer.mediaType ?? LAYER_MEDIA_TYPE,
          });
        }
      }
      return { layers: answer, failures };
    },
  };

  const initiateLayerUpload: Operation<Principal, InitiateLayerUploadRequest, InitiateLayerUploadResponse> = {
    access: checkRepository('InitiateLayerUpload'),
    async run(input, context) {
      const { id } = await uploads.start(await requireReadable(services, input, context));
      return { uploadId: id, partSize: LIMITS.layerPartBytes };
    },
  };

  const uploadLayerPart: Operation<Principal, UploadLayerPartRequest, UploadLayerPartResponse> = {
    access: checkRepository('UploadLayerPart'),
    bodyBytesMax: LIMITS.layerPartBodyBytesMax,
    async run(input, context) {
      const repository = await requireReadable(services, input, context);
      const { uploadId, partFirstByte, partLastByte, layerPartBlob } = input;
      const { size } = await uploads.status(repository, uploadId);
      const length = partLastByte - partFirstByte + 1;
      if (length < 1 || layerPartBlob.byteLength !== length) {
        const why = `The part has ${layerPartBlob.byteLength} bytes but names the bytes ${partFirstByte} to ${partLastByte}`;
        throw invalidPart(repository, uploadId, size - 1, why);
      }
      try {
        // The newest part sent again after a lost answer is accepted there, too.
        const source = Readable.from([Buffer.from(layerPartBlob)]);
        await uploads.append(repository, uploadId, source, { offset: partFirstByte, length, part: true });
      } catch (error) {
        if (!(error instanceof Fault) || error.code !== 'InvalidLayerPartException') throw error;
        const received = Number(error.detail?.['lastValidByteReceived'] ?? size - 1);
        throw invalidPart(repository, uploadId, received, error.message);
      }
      return {
        registryId: repository.account,
        repositoryName: repository.name,
        uploadId,
        lastByteReceived: partLastByte,
      };
    },
  };

  const completeLayerUpload: Operation<Principal, CompleteLayerUploadRequest, CompleteLayerUploadResponse> = {
    notCovered: 'Only `sha256` digests are compared with the content.',
    access: checkRepository('CompleteLayerUpload'),
    async run(input, context) {
      const repository = await requireReadable(services, input, context);
      const { uploadId } = input;
      const { digest } = await uploads
        .finish(repository, uploadId, input.layerDigests, { api: true })
        .catch((error: unknown) => {
          throw layerFault(error);
        });
      return {
        registryId: repository.account,
        repositoryName: repository.name,
        uploadId,
        layerDigest: digest,
      };
    },
  };

  const getDownloadUrlForLayer: Operation<
    Principal,
    GetDownloadUrlForLayerRequest,
    GetDownloadUrlForLayerResponse
  > = {
    access: checkRepository('GetDownloadUrlForLayer'),
    async run(input, context) {
      const repository = await requireReadable(services, input, context);
      const { layerDigest } = input;
      const layer = (await layers.availability(repository, [layerDigest])).get(layerDigest);
      const where = `the repository with name '${repository.name}' in the registry with id '${repository.account}'`;
      const absent = `The layer with digest '${layerDigest}' does not exist within ${where}`;
      if (layer === undefined) throw new Fault('LayersNotFoundException', absent);
      const archived = await archivedLayers(services.store.read, repository.id, [layerDigest]);
      if (archived.has(layerDigest)) {
        throw new Fault(
          'LayerInaccessibleException',
          `The layer with digest '${layerDigest}' is not available because only archived images in ${where} refer to it`,
        );
      }
      if (!layer.referenced) {
        throw new Fault(
          'LayerInaccessibleException',
          `The layer with digest '${layerDigest}' is not available because no image in ${where} refers to it`,
        );
      }
      // So that the layer stays as long as the URL is good, whatever becomes of the image.
      const kept = await layers.stat(repository, layerDigest);
      if (kept === undefined) throw new Fault('LayersNotFoundException', absent);
      const downloadUrl = downloads.url(repository, layerDigest, {
        origin: context.origin,
        now: context.now,
      });
      return { downloadUrl, layerDigest };
    },
  };

  return {
    BatchCheckLayerAvailability: batchCheckLayerAvailability,
    InitiateLayerUpload: initiateLayerUpload,
    UploadLayerPart: uploadLayerPart,
    CompleteLayerUpload: completeLayerUpload,
    GetDownloadUrlForLayer: getDownloadUrlForLayer,
  };
}
