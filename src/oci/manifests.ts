import { Fault } from '../domain/faults.ts';
import type { ImageTag } from '../domain/names.ts';
import { type ImageCondition, preconditionFailed } from '../domain/preconditions.ts';
import { evaluateConditions, readBody, readPrecondition } from '../http/http.ts';
import { LIMITS } from '../lib/limits.ts';
import type { ImageId } from '../registry/registry.ts';
import { type Call, commonHeaders } from './call.ts';
import { manifestUnknown } from './errors.ts';
import { readTag, type Reference } from './path.ts';
import { linkTo } from './scope.ts';

/** Longer manifests are not in the audit log, so nobody makes a text of them. */
const AUDITED_BYTES_MAX = 16_384;

/** `GET` and `HEAD`: the stored bytes under their stored type. `Accept` is not looked at (registry-protocol.md §1.8). */
export async function getManifest(call: Call, reference: Reference): Promise<void> {
  const { exchange } = call;
  const pull =
    exchange.method === 'GET' && (await call.services.identity.recordsPulls(call.principal, call.scope));
  const image = await call.services.registry.images.find(call.repository, textOf(reference), { pull });
  if (image === undefined) throw manifestUnknown();
  const digest = image.namedDigest;
  const outcome = evaluateConditions(exchange, digest);
  if (outcome === 'failed') throw preconditionFailed('match');
  const headers = commonHeaders(exchange);
  headers.push('Content-Type', image.mediaType, 'Docker-Content-Digest', digest, 'ETag', `"${digest}"`);
  if (outcome === 'unmodified') exchange.send(304, headers);
  else exchange.send(200, headers, image.manifest);
}

function textOf(reference: Reference): string {
  return 'tag' in reference ? reference.tag : reference.digest;
}

/** What If-Match and If-None-Match of a PUT or DELETE ask of what is there: `If-None-Match: *` is to create only. */
function readCondition({ exchange }: Call, reference: Reference): ImageCondition | undefined {
  const precondition = readPrecondition(exchange);
  return precondition && { reference: textOf(reference), precondition };
}

/** `PUT`: by tag, or by digest with any number of `?tag=` to set at the same time. */
export async function putManifest(call: Call, reference: Reference): Promise<void> {
  const { exchange, repository } = call;
  const extraTags = 'tag' in reference ? [] : readTags(call);
  const manifest = await readManifest(call);
  const mediaType = exchange.header('content-type')?.split(';', 1)[0]?.trim().toLowerCase() || undefined;
  exchange.parameters = {
    ...exchange.parameters,
    ...(extraTags.length > 0 && { imageTags: extraTags }),
    imageManifestMediaType: mediaType,
    imageManifest: manifest.length > AUDITED_BYTES_MAX ? manifest : manifest.toString(),
  };
  const result = await call.services.registry.images.put(repository, {
    manifest,
    mediaType,
    digest: 'tag' in reference ? undefined : reference.digest,
    tags: 'tag' in reference ? [reference.tag] : extraTags,
    existing: 'accept',
    condition: readCondition(call, reference),
  });
  const digest = 'tag' in reference ? result.digest : reference.digest;
  exchange.outcome = {
    image: {
      registryId: repository.account,
      repositoryName: repository.name,
      imageId: { imageDigest: digest, ...('tag' in reference && { imageTag: reference.tag }) },
      imageManifestMediaType: result.mediaType,
    },
  };
  const headers = commonHeaders(exchange);
  const location = linkTo(call.scope, `/v2/${repository.name}/manifests/${digest}`);
  headers.push('Location', location, 'Docker-Content-Digest', digest);
  if (result.subjectDigest !== undefined) headers.push('OCI-Subject', result.subjectDigest);
  if (extraTags.length > 0) headers.push('OCI-Tag', extraTags.join(', '));
  exchange.send(201, headers);
}

function readTags(call: Call): ImageTag[] {
  if (call.exchange.rawQuery === '') return [];
  return [...new Set(call.exchange.query.getAll('tag'))].map((text) => readTag(text));
}

async function readManifest(call: Call): Promise<Buffer> {
  try {
    return await readBody(call.exchange, LIMITS.manifestBytesMax, { idleMs: call.services.idleMs });
  } catch (error) {
    if (!(error instanceof Fault) || error.code !== 'RequestEntityTooLargeException') throw error;
    const text = `The manifest is larger than ${LIMITS.manifestBytesMax} bytes.`;
    throw new Fault('ManifestTooLarge', text);
  }
}

/** `DELETE`: BatchDeleteImage's rules, so the last tag takes the image with it. */
export async function deleteManifest(call: Call, reference: Reference): Promise<void> {
  const { exchange, repository } = call;
  const { images } = call.services.registry;
  let id: ImageId;
  if ('tag' in reference) id = { imageTag: reference.tag };
  else {
    const imageDigest = await images.resolve(repository, reference.digest);
    if (imageDigest === undefined) throw manifestUnknown();
    id = { imageDigest };
  }
  const { imageIds, failures } = await images.batchDelete(repository, [id], readCondition(call, reference));
  exchange.outcome = { imageIds, failures };
  const failure = failures[0];
  if (failure?.failureCode === 'ImageNotFound') throw manifestUnknown();
  if (failure?.failureCode === 'ImageReferencedByManifestList') {
    throw new Fault('ImageReferencedByManifestList', failure.failureReason);
  }
  if (failure !== undefined) throw new Fault('InvalidParameterException', failure.failureReason);
  exchange.send(202, commonHeaders(exchange));
}
