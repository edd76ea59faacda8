/** Names of the field, parsed once at the door into branded types. Grammar: ecr-api.md §2, registry-protocol.md §1.2. */

declare const brand: unique symbol;
type Branded<Name extends string> = string & { readonly [brand]: Name };

/** `algorithm:hex`, verified: sha256 with 64 or sha512 with 128 lower-case hex digits. */
export type Digest = Branded<'Digest'>;
export type RepositoryName = Branded<'RepositoryName'>;
export type ImageTag = Branded<'ImageTag'>;
export type Arn = Branded<'Arn'>;

const REPOSITORY_NAME = /^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$/;
const IMAGE_TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const DIGEST = /^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$/;
const ACCOUNT = /^[0-9]{12}$/;
const REGION = /^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$/;

export function parseRepositoryName(text: string): RepositoryName | undefined {
  return text.length >= 2 && text.length <= 256 && REPOSITORY_NAME.test(text)
    ? (text as RepositoryName)
    : undefined;
}

export function parseImageTag(text: string): ImageTag | undefined {
  return IMAGE_TAG.test(text) ? (text as ImageTag) : undefined;
}

export function parseDigest(text: string): Digest | undefined {
  return DIGEST.test(text) ? (text as Digest) : undefined;
}

/** Content is known by its sha256; a digest of another algorithm is an alias of that (ADR 0008). */
export function isSha256(digest: string): boolean {
  return digest.startsWith('sha256:');
}

export function isAccountId(text: string): boolean {
  return ACCOUNT.test(text);
}

export function isRegionName(text: string): boolean {
  return REGION.test(text);
}

/** A repository of one account and region: what every question about access and every look-up starts from. */
export interface RepositoryAddress {
  readonly account: string;
  readonly region: string;
  readonly name: string;
}

export function repositoryArn(repository: RepositoryAddress): Arn {
  return `arn:aws:ecr:${repository.region}:${repository.account}:repository/${repository.name}` as Arn;
}

/** Reads a repository ARN; `undefined` when it is not one. */
export function parseRepositoryArn(arn: string): RepositoryAddress | undefined {
  const parts = arn.split(':');
  if (parts.length !== 6 || parts[0] !== 'arn' || parts[1] !== 'aws' || parts[2] !== 'ecr') return undefined;
  const [, , , region = '', account = '', resource = ''] = parts;
  if (!resource.startsWith('repository/') || !isAccountId(account) || !isRegionName(region)) return undefined;
  const name = parseRepositoryName(resource.slice('repository/'.length));
  return name === undefined ? undefined : { account, region, name };
}
