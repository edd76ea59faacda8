import { Fault } from '../domain/faults.ts';
import { isAccountId } from '../domain/names.ts';

/** The registry a request speaks to. */
export interface Scope {
  readonly account: string;
  readonly region: string;
  /** What `?ns=` said, when that decided. */
  readonly namespace?: string;
}

/**
 * A reference to a path of the same registry, for Location and Link. WHY with `ns`: clients follow it as it is, so without it they
 * would come to the registry of their token.
 */
export function linkTo({ namespace }: Scope, path: string, query = ''): string {
  const parts = [query, namespace === undefined ? '' : `ns=${encodeURIComponent(namespace)}`];
  const all = parts.filter((part) => part !== '').join('&');
  return all === '' ? path : `${path}?${all}`;
}

/** `{account}.dkr.ecr.{region}.…`, also `dkr-ecr` and `-fips` (registry-protocol.md §3.1). */
const ECR_HOST = /^([^.]+)\.dkr[.-]ecr(?:-fips)?\.([^.]+)\.[^.]/;
const ECR_LIKE = /(?:^|\.)dkr[.-]ecr(?:-fips)?(?:\.|$)/;

/**
 * The scope a host name spells, with or without port; `undefined` when it is no registry host of ECR's form.
 *
 * @throws Fault RegistryNotResolved for one that tries to be and is not: wrong account number, unknown region.
 */
export function scopeOfHost(host: string, isRegion: (name: string) => boolean): Scope | undefined {
  if (!host.includes('ecr') && !host.includes('ECR')) return undefined;
  const name = host.replace(/:\d*$/, '').toLowerCase();
  if (!ECR_LIKE.test(name)) return undefined;
  const [, account = '', region = ''] = ECR_HOST.exec(name) ?? [];
  if (isAccountId(account) && isRegion(region)) return { account, region };
  throw new Fault('RegistryNotResolved', `Could not resolve registry id from host ${name}`);
}

/**
 * The registry of a request: of its host, else of containerd's `?ns=` (the host a mirror stands for), else the one bound
 * into the token.
 *
 * @throws Fault RegistryNotResolved; AccessDeniedException when host or `ns` name another region than the token's: a
 *   token is good for the registries of one region (registry-protocol.md §1.4)
 */
export function resolveScope(
  host: string,
  namespace: string | undefined,
  token: Scope,
  isRegion: (name: string) => boolean,
): Scope {
  const ofHost = scopeOfHost(host, isRegion);
  const named = ofHost ?? (namespace === undefined ? undefined : scopeOfHost(namespace, isRegion));
  if (named === undefined) return token;
  if (named.region !== token.region) {
    throw new Fault(
      'AccessDeniedException',
      `Your authorization token was issued for region ${token.region} and cannot be used in region ${named.region}.`,
    );
  }
  return ofHost === undefined && namespace !== undefined ? { ...named, namespace } : named;
}
