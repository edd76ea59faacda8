/** `imageId` of the ECR API and what is answered about one that is no use (ecr-api.md §3.2). */

export interface ImageIdName {
  readonly imageDigest?: string | undefined;
  readonly imageTag?: string | undefined;
}

/** An entry of `failures`. `imageId` is exactly what was asked. */
export interface ImageIdFailure {
  readonly imageId: ImageIdName;
  readonly failureCode: string;
  readonly failureReason: string;
}

const DIGEST_SYNTAX = /^[a-zA-Z0-9\-_+.]+:[a-fA-F0-9]+$/;
const TAG_SYNTAX = /^[a-zA-Z0-9\-_.]+$/;

/** What is wrong with an image id itself, in ECR's words (ecr-api.md §3.2); `undefined` when it can be looked up. */
export function imageIdFailure(imageId: ImageIdName): ImageIdFailure | undefined {
  const { imageDigest, imageTag } = imageId;
  const fail = (failureCode: string, reason: string): ImageIdFailure => ({
    imageId,
    failureCode,
    failureReason: `Invalid request parameters: ${reason}`,
  });
  if (imageDigest === undefined && imageTag === undefined) {
    return fail('MissingDigestAndTag', 'both tag and digest cannot be null');
  }
  if (imageDigest !== undefined && !DIGEST_SYNTAX.test(imageDigest)) {
    return fail(
      'InvalidImageDigest',
      `image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'`,
    );
  }
  if (imageTag !== undefined && !TAG_SYNTAX.test(imageTag)) {
    return fail('InvalidImageTag', `image tag should satisfy the regex '[a-zA-Z0-9-_.]+'`);
  }
  return undefined;
}

/** Nothing has this tag or digest. */
export function imageNotFoundFailure(imageId: ImageIdName): ImageIdFailure {
  return { imageId, failureCode: 'ImageNotFound', failureReason: 'Requested image not found' };
}

/** The tag is there, on another image. */
export function tagDigestFailure(imageId: ImageIdName): ImageIdFailure {
  return {
    imageId,
    failureCode: 'ImageTagDoesNotMatchDigest',
    failureReason: 'Invalid request parameters: given tag does not map to the given digest',
  };
}

/** Image ids without repetitions, in order. */
export function distinctImageIds(ids: readonly ImageIdName[]): ImageIdName[] {
  const seen = new Map<string, ImageIdName>();
  for (const id of ids) {
    const key = JSON.stringify([id.imageDigest ?? null, id.imageTag ?? null]);
    if (!seen.has(key)) seen.set(key, id);
  }
  return [...seen.values()];
}
