/** Repository creation templates: what repositories are like that a push creates (ecr-api.md §17). */
import { invalidParameter, type Fault } from '../domain/faults.ts';
import { formatLifecyclePolicy, parseLifecyclePolicy } from '../domain/lifecycle.ts';
import type { Principal } from '../identity/identity.ts';
import type {
  CreateRepositoryCreationTemplateRequest,
  CreateRepositoryCreationTemplateResponse,
  DeleteRepositoryCreationTemplateRequest,
  DeleteRepositoryCreationTemplateResponse,
  DescribeRepositoryCreationTemplatesRequest,
  DescribeRepositoryCreationTemplatesResponse,
  EncryptionConfigurationForRepositoryCreationTemplate,
  RepositoryCreationTemplate,
  UpdateRepositoryCreationTemplateRequest,
  UpdateRepositoryCreationTemplateResponse,
} from '../model/ecr-types.ts';
import {
  compilePolicy,
  formatPolicyDocument,
  principalsNamed,
  validateRepositoryPolicy,
} from '../policy/policy.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import {
  findTemplates,
  pageTemplates,
  principalsExist,
  type TemplateChange,
  type TemplateRecord,
} from '../store/store.ts';
import { PAGE_DEFAULT, refusePaging } from './pages.ts';
import { readExclusionFilters } from './repositories.ts';
import { checkRegistry, ownRegistry, type Context, type EcrServices } from './services.ts';
import { readTags } from './tags.ts';

type TemplateInput = CreateRepositoryCreationTemplateRequest | UpdateRepositoryCreationTemplateRequest;

const ROLE_ARN = /^arn:aws[-a-z0-9]*:iam::([0-9]{12}):role\/[\w+=,.@/-]+$/;

const TEMPLATES_NOT_COVERED =
  '`REPLICATION` and `PULL_THROUGH_CACHE` in `appliedFor` are kept and returned, and nothing replicates or caches. `KMS_DSSE` is refused.';

/** The `RepositoryCreationTemplate` of answers. */
function describe(template: TemplateRecord): RepositoryCreationTemplate {
  const { encryptionType, kmsKey, exclusionFilters, description, customRoleArn } = template;
  const { repositoryPolicy, lifecyclePolicy } = template;
  return {
    prefix: template.prefix,
    ...(description !== undefined && { description }),
    encryptionConfiguration: { encryptionType, ...(kmsKey !== undefined && { kmsKey }) },
    resourceTags: template.tags.map(({ key, value }) => ({ Key: key, Value: value })),
    imageTagMutability: template.mutability,
    ...(exclusionFilters.length > 0 && {
      imageTagMutabilityExclusionFilters: exclusionFilters.map((filter) => ({ ...filter })),
    }),
    ...(repositoryPolicy !== undefined && { repositoryPolicy }),
    ...(lifecyclePolicy !== undefined && { lifecyclePolicy }),
    appliedFor: [...template.appliedFor],
    ...(customRoleArn !== undefined && { customRoleArn }),
    createdAt: new Date(template.createdAt),
    updatedAt: new Date(template.updatedAt),
  };
}

/**
 * A template acts for its author later, so what it will do is checked now: passing the role, and policies on the
 * repositories it is for.
 */
function checkTemplate(action: string) {
  return (input: TemplateInput, context: Context): readonly AccessCheck[] => {
    const { account, region } = ownRegistry(context);
    const under = input.prefix === 'ROOT' ? '*' : `${input.prefix.replace(/\/$/, '')}/*`;
    const resource = `arn:aws:ecr:${region}:${account}:repository/${under}`;
    const checks: AccessCheck[] = [{ action: `ecr:${action}`, resource: '*' }];
    if (input.customRoleArn)
      checks.push({
        action: 'iam:PassRole',
        resource: input.customRoleArn,
        keys: new Map([['iam:passedtoservice', 'ecr.amazonaws.com']]),
      });
    if (input.repositoryPolicy) checks.push({ action: 'ecr:SetRepositoryPolicy', resource });
    if (input.lifecyclePolicy) checks.push({ action: 'ecr:PutLifecyclePolicy', resource });
    return checks;
  };
}

/** @throws Fault InvalidParameterException */
function readEncryption(
  wanted: EncryptionConfigurationForRepositoryCreationTemplate | undefined,
  region: string,
): Pick<TemplateRecord, 'encryptionType' | 'kmsKey'> {
  const { encryptionType, kmsKey = '' } = wanted ?? { encryptionType: 'AES256' as const };
  const refuse = (why: string): Fault => invalidParameter('encryptionConfiguration', why);
  if (encryptionType === 'KMS_DSSE') throw refuse(`KMS_DSSE is not supported in region ${region}`);
  if (encryptionType === 'AES256' && kmsKey !== '')
    throw refuse('kmsKey is not allowed when encryptionType is set to AES256');
  return { encryptionType, kmsKey: kmsKey === '' ? undefined : kmsKey };
}

/** The policy as stored; `null` for an empty one. @throws Fault InvalidParameterException */
async function readPolicy({ store }: EcrServices, text: string): Promise<string | null> {
  if (text === '') return null;
  // WHY no ARN: the repositories are not there yet, so only `*` can name them.
  const mistake = validateRepositoryPolicy(text, '');
  if (mistake !== undefined) throw invalidParameter('PolicyText', mistake);
  if (!(await principalsExist(store.read, principalsNamed(compilePolicy(text)))))
    throw invalidParameter('PolicyText', 'Principal not found');
  return formatPolicyDocument(text);
}

/** @throws Fault InvalidParameterException */
function readLifecycle(text: string): string | null {
  return text === '' ? null : formatLifecyclePolicy(parseLifecyclePolicy(text));
}

/** @throws Fault InvalidParameterException */
function readRole(arn: string, account: string): string | null {
  if (arn === '') return null;
  const [, owner] = ROLE_ARN.exec(arn) ?? [];
  if (owner === undefined) throw invalidParameter('customRoleArn', 'Invalid ARN');
  if (owner !== account)
    throw invalidParameter('customRoleArn', 'The role must belong to the account of the registry');
  return arn;
}

/** The members an input gives, in the form they are stored. */
async function readChange(
  services: EcrServices,
  input: TemplateInput,
  context: Context,
  present: TemplateRecord | undefined,
): Promise<TemplateChange> {
  const { account, region } = ownRegistry(context);
  const { encryptionConfiguration, imageTagMutability, imageTagMutabilityExclusionFilters: filters } = input;
  const { resourceTags, repositoryPolicy, lifecyclePolicy, customRoleArn } = input;
  const mutability = imageTagMutability ?? (filters && (present?.mutability ?? 'MUTABLE'));
  const encryption = encryptionConfiguration && readEncryption(encryptionConfiguration, region);
  return {
    description: input.description,
    ...(encryption && { ...encryption, kmsKey: encryption.kmsKey ?? null }),
    ...(mutability && { mutability, exclusionFilters: readExclusionFilters(mutability, filters) }),
    tags: resourceTags && readTags(resourceTags, services.limits.resourceTagsMax),
    repositoryPolicy:
      repositoryPolicy === undefined ? undefined : await readPolicy(services, repositoryPolicy),
    lifecyclePolicy: lifecyclePolicy === undefined ? undefined : readLifecycle(lifecyclePolicy),
    appliedFor: input.appliedFor && [...new Set(input.appliedFor)],
    customRoleArn: customRoleArn === undefined ? undefined : readRole(customRoleArn, account),
  };
}

export function createTemplateOperations(services: EcrServices) {
  const { store, pages } = services;

  const create: Operation<
    Principal,
    CreateRepositoryCreationTemplateRequest,
    CreateRepositoryCreationTemplateResponse
  > = {
    notCovered: TEMPLATES_NOT_COVERED,
    access: checkTemplate('CreateRepositoryCreationTemplate'),
    async run(input, context) {
      const registry = ownRegistry(context);
      const given = await readChange(services, input, context, undefined);
      const template: TemplateRecord = {
        ...registry,
        prefix: input.prefix,
        description: given.description,
        encryptionType: given.encryptionType ?? 'AES256',
        kmsKey: given.kmsKey ?? undefined,
        mutability: given.mutability ?? 'MUTABLE',
        exclusionFilters: given.exclusionFilters ?? [],
        tags: given.tags ?? [],
        repositoryPolicy: given.repositoryPolicy ?? undefined,
        lifecyclePolicy: given.lifecyclePolicy ?? undefined,
        appliedFor: given.appliedFor ?? [],
        customRoleArn: given.customRoleArn ?? undefined,
        createdAt: context.now,
        updatedAt: context.now,
      };
      const templatesMax = services.limits.creationTemplatesMax;
      await store.transact('template.create', { template, templatesMax });
      return { registryId: registry.account, repositoryCreationTemplate: describe(template) };
    },
  };

  const update: Operation<
    Principal,
    UpdateRepositoryCreationTemplateRequest,
    UpdateRepositoryCreationTemplateResponse
  > = {
    notCovered: TEMPLATES_NOT_COVERED,
    access: checkTemplate('UpdateRepositoryCreationTemplate'),
    async run(input, context) {
      const registry = ownRegistry(context);
      const { prefix } = input;
      const [present] = await findTemplates(store.read, registry, [prefix]);
      const change = await readChange(services, input, context, present);
      const template = await store.transact('template.update', {
        registry,
        prefix,
        change,
        now: context.now,
      });
      return { registryId: registry.account, repositoryCreationTemplate: describe(template) };
    },
  };

  const remove: Operation<
    Principal,
    DeleteRepositoryCreationTemplateRequest,
    DeleteRepositoryCreationTemplateResponse
  > = {
    access: checkRegistry('DeleteRepositoryCreationTemplate'),
    async run({ prefix }, context) {
      const registry = ownRegistry(context);
      const template = await store.transact('template.delete', { registry, prefix });
      return { registryId: registry.account, repositoryCreationTemplate: describe(template) };
    },
  };

  const list: Operation<
    Principal,
    DescribeRepositoryCreationTemplatesRequest,
    DescribeRepositoryCreationTemplatesResponse
  > = {
    access: checkRegistry('DescribeRepositoryCreationTemplates'),
    async run(input, context) {
      const registry = ownRegistry(context);
      const registryId = registry.account;
      if (input.prefixes !== undefined) {
        refusePaging('prefixes', input);
        const found = await findTemplates(store.read, registry, input.prefixes);
        return { registryId, repositoryCreationTemplates: found.map(describe) };
      }
      const scope = ['DescribeRepositoryCreationTemplates', registry.account, registry.region];
      const [after] = pages.open(scope, input.nextToken) ?? [];
      const limit = input.maxResults ?? PAGE_DEFAULT;
      const last = after === undefined ? undefined : String(after);
      const found = await pageTemplates(store.read, registry, last, limit + 1);
      const page = found.slice(0, limit);
      const prefix = page.at(-1)?.prefix;
      return {
        registryId,
        repositoryCreationTemplates: page.map(describe),
        ...(found.length > limit && prefix !== undefined && { nextToken: pages.seal(scope, [prefix]) }),
      };
    },
  };

  return {
    CreateRepositoryCreationTemplate: create,
    UpdateRepositoryCreationTemplate: update,
    DeleteRepositoryCreationTemplate: remove,
    DescribeRepositoryCreationTemplates: list,
  };
}
