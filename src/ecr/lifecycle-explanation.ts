/**
 * ExplainLifecycle, an operation of Berth's own: what a lifecycle policy does to the images of a repository now, and why, image by
 * image and rule by rule. It is the very evaluation of runs and previews (ecr-api.md §12.4), with the words it has for its verdicts.
 */
import {
  imageIdFailure,
  imageNotFoundFailure,
  tagDigestFailure,
  type ImageIdName,
} from '../domain/image-ids.ts';
import { invalidParameter, lifecyclePolicyNotFound } from '../domain/faults.ts';
import type { LifecycleEvaluation } from '../domain/lifecycle-evaluation.ts';
import type { LifecycleKeeper } from '../domain/lifecycle-explanation.ts';
import { effectivePush, type LifecycleImage } from '../domain/lifecycle-images.ts';
import { formatLifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import { repositoryArn } from '../domain/names.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  ExplainedImageFailure,
  ExplainLifecycleRequest,
  ExplainLifecycleResponse,
  LifecycleVerdict,
} from '../model/berth-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { evaluateRepository } from '../registry/registry.ts';
import { digestsOfTags, findLifecyclePolicy } from '../store/store.ts';
import { createPageTokens, PAGE_DEFAULT } from './pages.ts';
import { addressOf, requireRepository, type EcrOptions } from './services.ts';

type Services = Pick<EcrOptions, 'store' | 'registry' | 'ring'>;

/** Part of the table of Berth's own operations (src/model/berth.json). */
export function createExplainLifecycle(services: Services): {
  readonly ExplainLifecycle: Operation<Principal, ExplainLifecycleRequest, ExplainLifecycleResponse>;
} {
  const { store, registry } = services;
  const pages = createPageTokens(services.ring.derive('lifecycle explanation page tokens'));
  const one = createTurnstile();

  return {
    ExplainLifecycle: {
      access: (input, context) => [
        { action: 'berth:ExplainLifecycle', resource: repositoryArn(addressOf(input, context)) },
      ],
      async run(input, context) {
        const { imageIds } = input;
        for (const member of ['nextToken', 'maxResults'] as const)
          if (imageIds !== undefined && input[member] !== undefined)
            throw invalidParameter(member, 'Member must not be specified together with imageIds');
        const { id, name, account } = await requireRepository(services, input, context);
        const text = input.lifecyclePolicyText ?? (await findLifecyclePolicy(store.read, id))?.policy;
        if (text === undefined) throw lifecyclePolicyNotFound(name, account);
        const policy = formatLifecyclePolicy(parseLifecyclePolicy(text));
        // All pages are about the same moment; images that came or went meanwhile are seen.
        const scope = ['ExplainLifecycle', id, policy];
        const position = pages.open(scope, input.nextToken);
        const now = position === undefined ? context.now : Number(position[0]);
        const options = { store, flush: registry.flush, clock: () => now };
        const evaluation = await one(() =>
          evaluateRepository(options, id, policy, new AbortController().signal),
        );
        const answer = {
          registryId: account,
          repositoryName: name,
          lifecyclePolicyText: policy,
          evaluatedAt: new Date(now),
          summary: summaryOf(evaluation),
        };
        if (imageIds !== undefined) {
          const tags = imageIds.flatMap(({ imageTag }) => imageTag ?? []);
          const tagged = await digestsOfTags(store.read, id, tags);
          return { ...answer, ...verdictsOf(evaluation, imageIds, tagged) };
        }
        const after = position?.slice(1) as Position | undefined;
        const { images, next } = pageOf(evaluation, after, input.maxResults ?? PAGE_DEFAULT);
        return {
          ...answer,
          images,
          failures: [],
          ...(next !== undefined && { nextToken: pages.seal(scope, [now, ...next]) }),
        };
      },
    },
  };
}

/** Lets in one at a time: an evaluation of a large repository takes a second of the thread, and memory. */
function createTurnstile(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (work) => {
    const mine = last.then(work, work);
    last = mine.catch(() => undefined);
    return mine;
  };
}

function summaryOf({ actions, size }: LifecycleEvaluation): ExplainLifecycleResponse['summary'] {
  let expiring = 0;
  for (const { action } of actions) if (action === 'EXPIRE') expiring++;
  return { expiring, transitioning: actions.length - expiring, kept: size - actions.length };
}

/** A page of images, youngest first, behind the one `after` names, which may be gone. */
function pageOf(
  evaluation: LifecycleEvaluation,
  after: Position | undefined,
  limit: number,
): { readonly images: LifecycleVerdict[]; readonly next: Position | undefined } {
  const { size, imageAt } = evaluation;
  let start = 0;
  if (after !== undefined)
    for (let end = size; start < end;) {
      const middle = (start + end) >>> 1;
      if (isBehind(positionOf(imageAt(middle)), after)) end = middle;
      else start = middle + 1;
    }
  const images: LifecycleVerdict[] = [];
  const end = Math.min(size, start + limit);
  for (let place = start; place < end; place++) images.push(verdictAt(evaluation, place));
  return { images, next: end < size && end > 0 ? positionOf(imageAt(end - 1)) : undefined };
}

/** The order of age: restored or pushed, pushed, digest. */
type Position = readonly [number, number, string];

function positionOf(image: LifecycleImage): Position {
  return [effectivePush(image), image.pushedAt, image.digest];
}

function isBehind(one: Position, other: Position): boolean {
  if (one[0] !== other[0]) return one[0] < other[0];
  return one[1] === other[1] ? one[2] < other[2] : one[1] < other[1];
}

function verdictsOf(
  evaluation: LifecycleEvaluation,
  ids: readonly ImageIdName[],
  tagged: ReadonlyMap<string, string>,
): { readonly images: LifecycleVerdict[]; readonly failures: ExplainedImageFailure[] } {
  const places = new Set<number>();
  const failures: ExplainedImageFailure[] = [];
  for (const id of ids) {
    const { imageDigest, imageTag } = id;
    const digest = imageTag === undefined ? imageDigest : tagged.get(imageTag);
    const place = digest === undefined ? undefined : evaluation.placeOf(digest);
    const failure =
      imageIdFailure(id) ??
      (place === undefined
        ? imageNotFoundFailure(id)
        : imageDigest === undefined || imageDigest === digest
          ? undefined
          : tagDigestFailure(id));
    if (failure !== undefined) failures.push({ ...failure, imageId: { ...id } });
    else if (place !== undefined) places.add(place);
  }
  return { images: [...places].map((place) => verdictAt(evaluation, place)), failures };
}

function verdictAt({ imageAt, explain }: LifecycleEvaluation, place: number): LifecycleVerdict {
  const { digest, tags, pushedAt, status } = imageAt(place);
  const explained = explain(digest);
  if (explained === undefined) throw new Error(`${digest} was evaluated and has no explanation`);
  const { verdict, owner, reason, keptBy, rules } = explained;
  return {
    imageDigest: digest,
    ...(tags.length > 0 && { imageTags: [...tags] }),
    imagePushedAt: new Date(pushedAt),
    imageStatus: status,
    verdict,
    ...(owner !== undefined && { ownedByRule: owner }),
    reason,
    ...(keptBy !== undefined && { keptBy: keeperOf(keptBy) }),
    rules: rules.map(({ why, dueAfter, ...rule }) => ({
      ...rule,
      reason: why,
      ...(dueAfter !== undefined && { dueAfter: new Date(dueAfter) }),
    })),
  };
}

function keeperOf(keeper: LifecycleKeeper): LifecycleVerdict['keptBy'] {
  switch (keeper.kind) {
    case 'RULE':
      return keeper;
    case 'INDEX':
      return { kind: 'INDEX', imageDigests: [...keeper.digests] };
    case 'SUBJECT':
      return { kind: 'SUBJECT', imageDigests: [keeper.digest] };
    default:
      return { kind: keeper.kind };
  }
}
