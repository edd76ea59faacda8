/** Resource tags of repositories (ecr-api.md §5). */
import { Fault, invalidParameter, repositoryNotFound } from '../domain/faults.ts';
import { parseRepositoryArn, repositoryArn, type RepositoryAddress } from '../domain/names.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  ListTagsForResourceRequest,
  ListTagsForResourceResponse,
  Tag,
  TagResourceRequest,
  TagResourceResponse,
  UntagResourceRequest,
  UntagResourceResponse,
} from '../model/ecr-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { tooManyTags } from '../store/store.ts';
import type { Context, EcrServices } from './services.ts';

/** Letters, spaces and digits of any script, and `_ . : / = + - @`: the general rule of AWS tags. */
const TAG_TEXT = /^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$/u;
const KEY_LENGTH_MAX = 128;
const VALUE_LENGTH_MAX = 256;

/**
 * Tags as the store takes them.
 *
 * @throws Fault InvalidTagParameterException, TooManyTagsException
 */
export function readTags(tags: readonly Tag[], tagsMax: number): { key: string; value: string }[] {
  const keys = new Set<string>();
  for (const { Key: key, Value: value } of tags) {
    if (key === '' || !isWithin(key, KEY_LENGTH_MAX) || !isWithin(value, VALUE_LENGTH_MAX)) {
      throw invalidTag(
        `Tag keys can have a maximum character length of ${KEY_LENGTH_MAX} characters, ` +
          `and tag values can have a maximum length of ${VALUE_LENGTH_MAX} characters.`,
      );
    }
    if (!TAG_TEXT.test(key) || !TAG_TEXT.test(value)) {
      throw invalidTag('Tags can have letters, spaces and digits, and the characters _ . : / = + - @');
    }
    if (/^aws:/i.test(key)) throw invalidTag('Tag keys that start with aws: are reserved for system use.');
    if (keys.has(key)) throw invalidTag(`The tag key '${key}' is specified more than once.`);
    keys.add(key);
  }
  if (tags.length > tagsMax) throw tooManyTags(tagsMax);
  return tags.map(({ Key, Value }) => ({ key: Key, value: Value }));
}

/** Whether a text has so many characters at most. A letter beyond the basic plane is one, in two units of UTF-16. */
function isWithin(text: string, max: number): boolean {
  return text.length <= max || (text.length <= 2 * max && Array.from(text).length <= max);
}

function invalidTag(why: string): Fault {
  return new Fault('InvalidTagParameterException', `An invalid parameter has been specified. ${why}`);
}

/** Condition keys of supplied tags: `aws:RequestTag/{key}` and `aws:TagKeys`. `undefined` when there are none. */
export function tagConditionKeys(
  tags: readonly Tag[] | undefined,
): ReadonlyMap<string, string | readonly string[]> {
  const keys = new Map<string, string | readonly string[]>();
  if (tags === undefined || tags.length === 0) return keys;
  for (const { Key, Value } of tags) keys.set(`aws:requesttag/${Key.toLowerCase()}`, Value);
  return keys.set(
    'aws:tagkeys',
    tags.map(({ Key }) => Key),
  );
}

/** The repository an ARN names, in this region. @throws Fault InvalidParameterException */
function readArn(arn: string, context: Context): RepositoryAddress {
  const address = parseRepositoryArn(arn);
  if (address === undefined || address.region !== context.region)
    throw invalidParameter('resourceArn', 'Invalid ARN');
  return address;
}

export function createTagOperations(services: EcrServices) {
  const { store, registry } = services;

  const tagResource: Operation<Principal, TagResourceRequest, TagResourceResponse> = {
    access: (input, context) => [
      {
        action: 'ecr:TagResource',
        resource: repositoryArn(readArn(input.resourceArn, context)),
        keys: tagConditionKeys(input.tags),
      },
    ],
    async run(input, context) {
      const { resourceTagsMax } = services.limits;
      await store.transact('repository.tag', {
        address: readArn(input.resourceArn, context),
        tags: readTags(input.tags, resourceTagsMax),
        tagsMax: resourceTagsMax,
      });
      return {};
    },
  };

  const untagResource: Operation<Principal, UntagResourceRequest, UntagResourceResponse> = {
    access: (input, context) => [
      {
        action: 'ecr:UntagResource',
        resource: repositoryArn(readArn(input.resourceArn, context)),
        keys: new Map([['aws:tagkeys', input.tagKeys]]),
      },
    ],
    async run(input, context) {
      await store.transact('repository.untag', {
        address: readArn(input.resourceArn, context),
        keys: input.tagKeys,
      });
      return {};
    },
  };

  const listTagsForResource: Operation<Principal, ListTagsForResourceRequest, ListTagsForResourceResponse> = {
    access: (input, context) => [
      { action: 'ecr:ListTagsForResource', resource: repositoryArn(readArn(input.resourceArn, context)) },
    ],
    async run(input, context) {
      const address = readArn(input.resourceArn, context);
      const repository = await registry.findRepository(address);
      if (repository === undefined) throw repositoryNotFound(address.name, address.account);
      return { tags: Array.from(repository.tags, ([Key, Value]) => ({ Key, Value })) };
    },
  };

  return {
    TagResource: tagResource,
    UntagResource: untagResource,
    ListTagsForResource: listTagsForResource,
  };
}
