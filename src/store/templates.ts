/** Repository creation templates: what repositories are made of that a push, a pull or replication creates (ecr-api.md §17). */
import { Fault } from '../domain/faults.ts';
import { setLifecyclePolicy } from './lifecycle.ts';
import type { RegistryAddress } from './registries.ts';
import { createRepository, type CreateRepositoryInput, type ExclusionFilter } from './repositories.ts';
import type { Schema } from './schema.ts';
import type { Reader, Transaction, Tx } from './transaction.ts';

export type Scenario = 'REPLICATION' | 'PULL_THROUGH_CACHE' | 'CREATE_ON_PUSH';

/** A template as stored. Times in milliseconds since the epoch. */
export interface TemplateRecord extends RegistryAddress {
  /** as it was given: `team`, `team/` or `ROOT` */
  readonly prefix: string;
  readonly description: string | undefined;
  readonly encryptionType: Schema['repository']['encryption_type'];
  /** as it was given, KMS only */
  readonly kmsKey: string | undefined;
  readonly mutability: Schema['repository']['mutability'];
  readonly exclusionFilters: readonly ExclusionFilter[];
  readonly tags: readonly { readonly key: string; readonly value: string }[];
  /** as formatted for return */
  readonly repositoryPolicy: string | undefined;
  readonly lifecyclePolicy: string | undefined;
  readonly appliedFor: readonly Scenario[];
  readonly customRoleArn: string | undefined;
  readonly createdAt: number;
  readonly updatedAt: number;
}

type Row = Schema['creation_template'];

/** Beyond these all templates of the registry are read. */
const PREFIXES_SOUGHT_MAX = 500;

/** What a template is known by: a closing slash is implied, so it makes no difference. */
function keyOf(prefix: string): string {
  return prefix.endsWith('/') ? prefix.slice(0, -1) : prefix;
}

function rowOf(template: TemplateRecord): Row {
  return {
    account: template.account,
    region: template.region,
    key: keyOf(template.prefix),
    prefix: template.prefix,
    description: template.description ?? null,
    encryption_type: template.encryptionType,
    kms_key: template.kmsKey ?? null,
    mutability: template.mutability,
    exclusion_filters: JSON.stringify(template.exclusionFilters),
    tags: JSON.stringify(template.tags),
    repository_policy: template.repositoryPolicy ?? null,
    lifecycle_policy: template.lifecyclePolicy ?? null,
    applied_for: JSON.stringify(template.appliedFor),
    custom_role_arn: template.customRoleArn ?? null,
    created_at: template.createdAt,
    updated_at: template.updatedAt,
  };
}

function recordOf(row: Row): TemplateRecord {
  return {
    account: row.account,
    region: row.region,
    prefix: row.prefix,
    description: row.description ?? undefined,
    encryptionType: row.encryption_type,
    kmsKey: row.kms_key ?? undefined,
    mutability: row.mutability,
    exclusionFilters: JSON.parse(row.exclusion_filters) as TemplateRecord['exclusionFilters'],
    tags: JSON.parse(row.tags) as TemplateRecord['tags'],
    repositoryPolicy: row.repository_policy ?? undefined,
    lifecyclePolicy: row.lifecycle_policy ?? undefined,
    appliedFor: JSON.parse(row.applied_for) as TemplateRecord['appliedFor'],
    customRoleArn: row.custom_role_arn ?? undefined,
    createdAt: row.created_at,
    updatedAt: row.updated_at,
  };
}

function selectTemplates(read: Reader, { account, region }: RegistryAddress) {
  return read
    .selectFrom('creation_template')
    .selectAll()
    .where('account', '=', account)
    .where('region', '=', region);
}

/** Templates of a registry by prefix, after the prefix `last`, at most `limit`. */
export async function pageTemplates(
  read: Reader,
  registry: RegistryAddress,
  last: string | undefined,
  limit: number,
): Promise<TemplateRecord[]> {
  let query = selectTemplates(read, registry).orderBy('key').limit(limit);
  if (last !== undefined) query = query.where('key', '>', keyOf(last));
  return (await query.execute()).map(recordOf);
}

/** The templates of prefixes by prefix; unknown ones are absent. */
export async function findTemplates(
  read: Reader,
  registry: RegistryAddress,
  prefixes: readonly string[],
): Promise<TemplateRecord[]> {
  if (prefixes.length === 0) return [];
  const keys = new Set(prefixes.map(keyOf));
  let query = selectTemplates(read, registry).orderBy('key');
  // WHY: the API sets no limit to the prefixes of a request, a database does. A registry has few templates.
  if (keys.size <= PREFIXES_SOUGHT_MAX) query = query.where('key', 'in', [...keys]);
  return (await query.execute()).filter(({ key }) => keys.has(key)).map(recordOf);
}

/**
 * The template a new repository is made by: among those for the scenario the one with the longest prefix, else `ROOT`.
 * `team` is a prefix of `team/app` and not of `team` or `teams/app`.
 */
export async function matchTemplate(
  read: Reader,
  registry: RegistryAddress,
  name: string,
  scenario: Scenario,
): Promise<TemplateRecord | undefined> {
  const parts = name.split('/');
  // Longest first.
  const prefixes = parts.map((_, i) => parts.slice(0, parts.length - i).join('/')).slice(1);
  const found = await findTemplates(read, registry, [...prefixes, 'ROOT']);
  const usable = new Map(
    found
      .filter(({ appliedFor }) => appliedFor.includes(scenario))
      .map((template) => [keyOf(template.prefix), template]),
  );
  for (const prefix of [...prefixes, 'ROOT']) {
    const template = usable.get(prefix);
    if (template !== undefined) return template;
  }
  return undefined;
}

export function templateNotFound(prefix: string, account: string): Fault {
  return new Fault(
    'TemplateNotFoundException',
    `The repository creation template with prefix '${prefix}' does not exist in the registry with id '${account}'`,
  );
}

/** @throws Fault TemplateAlreadyExistsException, LimitExceededException */
async function createTemplate(
  tx: Tx,
  input: { readonly template: TemplateRecord; readonly templatesMax: number },
): Promise<void> {
  const { template, templatesMax } = input;
  const { prefix, account } = template;
  if ((await findTemplates(tx, template, [prefix])).length > 0) {
    throw new Fault(
      'TemplateAlreadyExistsException',
      `The repository creation template with prefix '${prefix}' already exists in the registry with id '${account}'`,
    );
  }
  if ((await pageTemplates(tx, template, undefined, templatesMax)).length >= templatesMax) {
    throw new Fault(
      'LimitExceededException',
      `The registry with id '${account}' already has the maximum allowed number of repository creation templates which is '${templatesMax}'`,
    );
  }
  await tx.insertInto('creation_template').values(rowOf(template)).execute();
}

/** The members that change; absent ones stay, `null` clears. */
export interface TemplateChange {
  readonly description?: string | undefined;
  readonly encryptionType?: TemplateRecord['encryptionType'] | undefined;
  readonly kmsKey?: string | null | undefined;
  readonly mutability?: TemplateRecord['mutability'] | undefined;
  readonly exclusionFilters?: readonly ExclusionFilter[] | undefined;
  readonly tags?: TemplateRecord['tags'] | undefined;
  readonly repositoryPolicy?: string | null | undefined;
  readonly lifecyclePolicy?: string | null | undefined;
  readonly appliedFor?: readonly Scenario[] | undefined;
  readonly customRoleArn?: string | null | undefined;
}

/** Returns the template as it is then. @throws Fault TemplateNotFoundException */
async function updateTemplate(
  tx: Tx,
  input: {
    readonly registry: RegistryAddress;
    readonly prefix: string;
    readonly change: TemplateChange;
    readonly now: number;
  },
): Promise<TemplateRecord> {
  const { change, registry, prefix } = input;
  const present = await requireTemplate(tx, registry, prefix);
  const given = Object.entries(change).filter(([, value]) => value !== undefined);
  const values = Object.fromEntries(given.map(([member, value]) => [member, value ?? undefined]));
  const template: TemplateRecord = { ...present, ...values, updatedAt: input.now };
  await tx
    .updateTable('creation_template')
    .set(rowOf(template))
    .where('account', '=', registry.account)
    .where('region', '=', registry.region)
    .where('key', '=', keyOf(prefix))
    .execute();
  return template;
}

/** Returns what it was. @throws Fault TemplateNotFoundException */
async function deleteTemplate(
  tx: Tx,
  input: { readonly registry: RegistryAddress; readonly prefix: string },
): Promise<TemplateRecord> {
  const { registry, prefix } = input;
  const template = await requireTemplate(tx, registry, prefix);
  await tx
    .deleteFrom('creation_template')
    .where('account', '=', registry.account)
    .where('region', '=', registry.region)
    .where('key', '=', keyOf(prefix))
    .execute();
  return template;
}

async function requireTemplate(tx: Tx, registry: RegistryAddress, prefix: string): Promise<TemplateRecord> {
  const [template] = await findTemplates(tx, registry, [prefix]);
  if (template === undefined) throw templateNotFound(prefix, registry.account);
  return template;
}

/** A repository made by a template. @throws as `repository.create` */
async function createByTemplate(
  tx: Tx,
  input: CreateRepositoryInput & { readonly lifecyclePolicy: string | undefined; readonly now: number },
): Promise<void> {
  await createRepository(tx, input);
  if (input.lifecyclePolicy !== undefined)
    await setLifecyclePolicy(tx, input.repository.id, input.lifecyclePolicy, input.now);
}

export const templateTransactions = {
  'template.createRepository': createByTemplate,
  'template.create': createTemplate,
  'template.update': updateTemplate,
  'template.delete': deleteTemplate,
} as const satisfies Record<string, Transaction<never, unknown>>;
