/** IAM operations on tags of users, roles, policies, instance profiles and identity providers. */
import { LIMITS } from '../lib/limits.ts';
import type { AccessCheck, Operation, Structure } from '../protocol/protocol.ts';
import {
  findInstanceProfile,
  findPolicy,
  findProvider,
  listTags,
  noSuchNamed,
  noSuchPolicy,
  noSuchProvider,
} from '../store/store.ts';
import type { TaggedReference } from '../store/store.ts';
import {
  namedCheck,
  policyCheck,
  providerCheck,
  readTags,
  requireOwner,
  showTags,
  tagConditionKeys,
} from './iam-access.ts';
import type { ConditionKeys, Context, IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { MANAGED_POLICIES } from './managed-policies.ts';
import { pageOfAll } from './paging.ts';
import type { PageInput } from './paging.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

interface Input {
  readonly UserName?: string;
  readonly RoleName?: string;
  readonly InstanceProfileName?: string;
  readonly PolicyArn?: string;
  readonly OpenIDConnectProviderArn?: string;
}
type Tags = readonly { readonly Key: string; readonly Value: string }[];

/** One kind of thing that has tags. */
interface Tagged {
  reference(input: Input, context: Context): TaggedReference;
  check(action: string, input: Input, context: Context, keys?: ConditionKeys): AccessCheck;
  /** The id the tags hang on; undefined for AWS's own policies, which have none. @throws Fault NoSuchEntity */
  find(services: IamServices, input: Input, context: Context): Promise<string | undefined>;
}

function named(kind: 'user' | 'role' | 'instance-profile', member: keyof Input): Tagged {
  const nameIn = (input: Input): string => input[member] ?? '';
  return {
    reference: (input, { caller: { account } }) => ({ kind, account, name: nameIn(input) }),
    check: (action, input, context, keys) => namedCheck(kind, action, context, nameIn(input), keys),
    async find(services, input, context) {
      const name = nameIn(input);
      if (kind !== 'instance-profile') return (await requireOwner(services, context, kind, name)).id;
      const profile = await findInstanceProfile(services.store.read, context.caller.account, name);
      if (profile === undefined) throw noSuchNamed(kind, name);
      return profile.id;
    },
  };
}

const USER = named('user', 'UserName');
const ROLE = named('role', 'RoleName');
const PROFILE = named('instance-profile', 'InstanceProfileName');

const POLICY: Tagged = {
  reference: ({ PolicyArn: arn = '' }) => ({ kind: 'policy', arn }),
  check: (action, { PolicyArn: arn = '' }, _context, keys) => policyCheck(action, arn, keys),
  async find({ store }, { PolicyArn: arn = '' }) {
    if (MANAGED_POLICIES.has(arn)) return undefined;
    const policy = await findPolicy(store.read, arn);
    if (policy === undefined) throw noSuchPolicy(arn);
    return policy.id;
  },
};

const PROVIDER: Tagged = {
  reference: ({ OpenIDConnectProviderArn: arn = '' }) => ({ kind: 'oidc-provider', arn }),
  check: (action, { OpenIDConnectProviderArn: arn = '' }, _context, keys) => providerCheck(action, arn, keys),
  async find({ store }, { OpenIDConnectProviderArn: arn = '' }) {
    const provider = await findProvider(store.read, arn);
    if (provider === undefined) throw noSuchProvider(arn);
    return provider.id;
  },
};

export function tagOperations(services: IamServices) {
  return {
    TagUser: tag('TagUser', USER, services),
    UntagUser: untag('UntagUser', USER, services),
    ListUserTags: list('ListUserTags', USER, services),
    TagRole: tag('TagRole', ROLE, services),
    UntagRole: untag('UntagRole', ROLE, services),
    ListRoleTags: list('ListRoleTags', ROLE, services),
    TagPolicy: tag('TagPolicy', POLICY, services),
    UntagPolicy: untag('UntagPolicy', POLICY, services),
    ListPolicyTags: list('ListPolicyTags', POLICY, services),
    TagInstanceProfile: tag('TagInstanceProfile', PROFILE, services),
    UntagInstanceProfile: untag('UntagInstanceProfile', PROFILE, services),
    ListInstanceProfileTags: list('ListInstanceProfileTags', PROFILE, services),
    TagOpenIDConnectProvider: tag('TagOpenIDConnectProvider', PROVIDER, services),
    UntagOpenIDConnectProvider: untag('UntagOpenIDConnectProvider', PROVIDER, services),
    ListOpenIDConnectProviderTags: list('ListOpenIDConnectProviderTags', PROVIDER, services),
  };
}

function tag(action: string, tagged: Tagged, { store }: IamServices): Op<Input & { readonly Tags: Tags }> {
  return {
    access: (input, context) => [tagged.check(action, input, context, tagConditionKeys(input.Tags))],
    async run(input, context) {
      const tags = readTags(input.Tags);
      const subject = tagged.reference(input, context);
      await store.transact('iam.tag', { subject, tags, tagsMax: LIMITS.resourceTagsMax });
    },
  };
}

function untag(
  action: string,
  tagged: Tagged,
  { store }: IamServices,
): Op<Input & { readonly TagKeys: readonly string[] }> {
  return {
    access: (input, context) => [
      tagged.check(action, input, context, new Map([['aws:tagkeys', input.TagKeys]])),
    ],
    async run(input, context) {
      await store.transact('iam.untag', {
        subject: tagged.reference(input, context),
        keys: input.TagKeys,
      });
    },
  };
}

function list(action: string, tagged: Tagged, services: IamServices): Op<Input & PageInput, Structure> {
  return {
    access: (input, context) => [tagged.check(action, input, context)],
    async run(input, context) {
      const id = await tagged.find(services, input, context);
      const tags = id === undefined ? [] : await listTags(services.store.read, id);
      const { items, page } = pageOfAll(tags, input);
      return { Tags: showTags(items), ...page };
    },
  };
}
