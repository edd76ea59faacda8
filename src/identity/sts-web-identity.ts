/** AssumeRoleWithWebIdentity: somebody else's token for a role's session (iam-sts.md §5.5). */
import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as sts from '../model/sts-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findProvider } from '../store/store.ts';
import type { ProviderRecord } from '../store/store.ts';
import { assumedRoleArn, providerArn } from './arns.ts';
import type { Principal, Subject } from './identity.ts';
import { IssuerError } from './issuer-fetch.ts';
import type { Issuers } from './issuers.ts';
import { isSignedBy, keyFor, parseJwt } from './jwt.ts';
import type { Jwt } from './jwt.ts';
import { newSession } from './sessions.ts';
import {
  findNamedRole,
  packedPercent,
  readRoleSeconds,
  readSessionPolicies,
  readSessionTags,
  sessionTagKeys,
  showCredentials,
  trustSide,
} from './sts-sessions.ts';
import type { StsServices } from './sts-sessions.ts';

const TAGS_CLAIM = 'https://aws.amazon.com/tags';
const SOURCE_IDENTITY_CLAIM = 'https://aws.amazon.com/source_identity';
const SOURCE_IDENTITY = /^[\w+=,.@-]{2,64}$/;

const invalid = (message: string): Fault => new Fault('InvalidIdentityToken', message);
// the two blanks are AWS's
const NO_KEY =
  "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements";

/** A token whose signature, times and audience are good. */
export interface Verified {
  readonly provider: ProviderRecord;
  /** the issuer without scheme: prefix of the condition keys */
  readonly issuer: string;
  readonly claims: Readonly<Record<string, unknown>>;
  readonly subject: string;
  readonly audience: string;
}

export function assumeRoleWithWebIdentity(
  services: StsServices,
): Operation<Principal, sts.AssumeRoleWithWebIdentityRequest, sts.AssumeRoleWithWebIdentityResponse> {
  const { store, keys, identity } = services;
  return {
    // Nobody is authenticated but by the token.
    access: () => [],
    async run(input, context) {
      if (input.ProviderId !== undefined) {
        throw new Fault(
          'ValidationError',
          'ProviderId names OAuth 2.0 providers, which are not part of Berth.',
        );
      }
      const role = await findNamedRole(store, input.RoleArn);
      const verified = await verifyIdentityToken(services, role.account, input.WebIdentityToken, context.now);
      const { provider, claims } = verified;
      const passed = readClaimedTags(claims);
      const sourceIdentity = readSourceIdentity(claims);

      const arn = provider.arn;
      const subject: Subject = {
        caller: {
          kind: 'web-identity',
          account: role.account,
          arn,
          id: verified.subject,
          federatedProvider: arn,
        },
        identityPolicies: [],
        boundary: undefined,
        sessionPolicies: undefined,
        conditionKeys: new Map<string, string | readonly string[]>([
          // INVARIANT: claims first, so that an issuer called `aws` or `sts` says nothing about the keys below.
          ...claimKeys(verified),
          ['aws:federatedprovider', arn],
          ['aws:principalisawsservice', 'false'],
          ['aws:viaawsservice', 'false'],
          ['sts:rolesessionname', input.RoleSessionName],
          ...sessionTagKeys(passed.tags),
          ...(passed.transitiveKeys.length > 0
            ? [['sts:transitivetagkeys', passed.transitiveKeys] as const]
            : []),
          ...(sourceIdentity === undefined ? [] : [['sts:sourceidentity', sourceIdentity] as const]),
        ]),
      };
      // As CloudTrail names them.
      const id = `${arn}:${verified.audience}:${verified.subject}`;
      const who = { caller: { ...subject.caller, id }, accessKeyId: '', userName: verified.subject };
      context.identify?.(who, input.RoleArn);
      const actions = ['sts:AssumeRoleWithWebIdentity'];
      if (passed.tags.length > 0) actions.push('sts:TagSession');
      if (sourceIdentity !== undefined) actions.push('sts:SetSourceIdentity');
      const side = await trustSide(store, role);
      const checks = actions.map((action) => ({ action, resource: input.RoleArn }));
      await identity.authorizeFor(
        subject,
        checks,
        context,
        side,
        ({ action }) => `Not authorized to perform ${action}`,
      );
      // INVARIANT: no trust policy, no access.
      if (role.record === undefined) throw new Error('a role that does not exist was granted');

      const { record } = role;
      const seconds = readRoleSeconds(input.DurationSeconds, record, false);
      const tags = readSessionTags(passed.tags.map(({ key, value }) => ({ Key: key, Value: value })));
      const policies = await readSessionPolicies(store, record.account, input);
      const session = newSession(
        {
          kind: 'role',
          account: record.account,
          ownerId: record.id,
          name: input.RoleSessionName,
          policies,
          tags,
          transitiveKeys: passed.transitiveKeys,
          sourceIdentity,
          provider: arn,
        },
        context.now,
        seconds,
      );
      return {
        Credentials: showCredentials(keys, session),
        SubjectFromWebIdentityToken: verified.subject,
        AssumedRoleUser: {
          AssumedRoleId: `${record.id}:${session.name}`,
          Arn: assumedRoleArn(record, session.name),
        },
        ...((policies !== undefined || tags.length > 0) && { PackedPolicySize: packedPercent(session) }),
        Provider: arn,
        Audience: verified.audience,
        ...(sourceIdentity !== undefined && { SourceIdentity: sourceIdentity }),
      };
    },
  };
}

/**
 * Verifies the token of an issuer that is a provider of the account.
 *
 * @throws Fault InvalidIdentityToken, ExpiredIdentityToken, IDPCommunicationError
 */
export async function verifyIdentityToken(
  { store, issuers }: Pick<StsServices, 'store' | 'issuers'>,
  account: string,
  token: string,
  now: number,
): Promise<Verified> {
  const jwt = parseJwt(token);
  if (jwt === undefined) {
    throw invalid(
      'The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)',
    );
  }
  const { iss } = jwt.claims;
  if (typeof iss !== 'string' || iss === '') throw invalid('Missing a required claim: iss.');
  const issuer = iss.replace(/^https?:\/\//, '');
  const provider = await findProvider(store.read, providerArn(account, issuer));
  // The scheme is part of who the issuer is.
  const expected = provider?.url.startsWith('http://') === true ? provider.url : `https://${provider?.url}`;
  if (provider === undefined || expected !== iss) {
    throw invalid(`No OpenIDConnect provider found in your account for ${iss}`);
  }
  await verifySignature(issuers, jwt, iss, provider, now);
  const subject = requireText(jwt, 'sub');
  verifyTimes(jwt, now);
  return {
    provider,
    issuer,
    claims: jwt.claims,
    subject,
    audience: readAudience(jwt, provider),
  };
}

async function verifySignature(
  issuers: Issuers,
  jwt: Jwt,
  issuer: string,
  { thumbprints }: ProviderRecord,
  now: number,
): Promise<void> {
  let key;
  try {
    const keys = await issuers.keysOf(issuer, thumbprints, now, (known) => keyFor(jwt, known) !== undefined);
    key = keyFor(jwt, keys);
  } catch (error) {
    if (!(error instanceof IssuerError)) throw error;
    if (error.problem === 'unreachable') {
      throw new Fault('IDPCommunicationError', `The identity provider ${issuer} could not be reached.`);
    }
    throw invalid(
      error.problem === 'certificate'
        ? "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint"
        : NO_KEY,
    );
  }
  if (key === undefined || !isSignedBy(jwt, key)) throw invalid(NO_KEY);
}

function requireText({ claims }: Jwt, claim: string): string {
  const value = claims[claim];
  if (typeof value !== 'string' || value === '') throw invalid(`Missing a required claim: ${claim}.`);
  return value;
}

/** `exp`, `iat` and `nbf`, with five minutes of leeway. */
function verifyTimes({ claims }: Jwt, now: number): void {
  const timeOf = (claim: string): number => {
    const seconds = claims[claim];
    if (typeof seconds !== 'number' || !Number.isFinite(seconds)) {
      throw invalid(`Missing a required claim: ${claim}.`);
    }
    return seconds * 1000;
  };
  const exp = timeOf('exp');
  const iat = timeOf('iat');
  if (now >= exp + LIMITS.identityTokenSkewMs) {
    throw new Fault(
      'ExpiredIdentityToken',
      `Token expired: current date/time ${Math.floor(now / 1000)} must be before the expiration date/time ${Math.floor(exp / 1000)}`,
    );
  }
  const nbf = claims['nbf'] === undefined ? iat : timeOf('nbf');
  if (Math.max(iat, nbf) > now + LIMITS.identityTokenSkewMs) throw invalid('Token is not yet valid.');
}

/** The audience the token is for, one of the provider's client ids; the authorised party where one is named. */
function readAudience({ claims }: Jwt, { clientIds }: ProviderRecord): string {
  const { aud, azp } = claims;
  const audiences = typeof aud === 'string' ? [aud] : Array.isArray(aud) ? aud : [];
  if (audiences.length === 0 || !audiences.every((each) => typeof each === 'string')) {
    throw invalid('Missing a required claim: aud.');
  }
  const party = typeof azp === 'string' ? azp : audiences.length === 1 ? audiences[0] : undefined;
  if (party === undefined || !clientIds.includes(party)) throw invalid('Incorrect token audience');
  return party;
}

/** How deep claims are looked into: Kubernetes has `kubernetes.io` → `serviceaccount` → `name`. */
const CLAIM_DEPTH_MAX = 3;

/** Every claim as a condition key `{issuer}:{claim}`, members of objects as `{claim}/{member}`. */
function claimKeys({ issuer, claims, subject, audience }: Verified): [string, string | readonly string[]][] {
  const keys: [string, string | readonly string[]][] = [];
  const add = (name: string, value: unknown, depth: number): void => {
    const key = `${issuer}:${name}`.toLowerCase();
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') {
      keys.push([key, String(value)]);
    } else if (Array.isArray(value)) {
      if (value.every((each) => typeof each === 'string')) keys.push([key, value]);
    } else if (typeof value === 'object' && value !== null && depth < CLAIM_DEPTH_MAX) {
      for (const [member, inner] of Object.entries(value)) add(`${name}/${member}`, inner, depth + 1);
    }
  };
  for (const [name, value] of Object.entries(claims)) if (name !== 'aud') add(name, value, 1);
  // Last, so that no claim that differs in case can stand in for them.
  add('sub', subject, 1);
  // With an authorised party, that is the audience and the other the original.
  add('aud', audience, 1);
  if (typeof claims['azp'] === 'string') add('oaud', claims['aud'], 1);
  return keys;
}

/** Session tags in the token. @throws Fault InvalidIdentityToken */
function readClaimedTags(claims: Verified['claims']): {
  readonly tags: readonly { readonly key: string; readonly value: string }[];
  readonly transitiveKeys: readonly string[];
} {
  const claim = claims[TAGS_CLAIM];
  if (claim === undefined) return { tags: [], transitiveKeys: [] };
  const malformed = invalid(`The claim ${TAGS_CLAIM} is not valid.`);
  if (typeof claim !== 'object' || claim === null) throw malformed;
  const { principal_tags: principal = {}, transitive_tag_keys: transitive = [] } = claim as Record<
    string,
    unknown
  >;
  if (typeof principal !== 'object' || principal === null || !Array.isArray(transitive)) throw malformed;
  const tags = Object.entries(principal).map(([key, values]: [string, unknown]) => {
    const value: unknown = Array.isArray(values) && values.length === 1 ? values[0] : values;
    if (typeof value !== 'string' || value.length > 256 || key.length > 128 || key === '') throw malformed;
    return { key, value };
  });
  const known = new Set(tags.map(({ key }) => key.toLowerCase()));
  if (!transitive.every((key) => typeof key === 'string' && known.has(key.toLowerCase()))) throw malformed;
  return { tags, transitiveKeys: transitive as string[] };
}

/** @throws Fault InvalidIdentityToken */
function readSourceIdentity(claims: Verified['claims']): string | undefined {
  const claim = claims[SOURCE_IDENTITY_CLAIM];
  if (claim === undefined) return undefined;
  if (typeof claim !== 'string' || !SOURCE_IDENTITY.test(claim)) {
    throw invalid(`The claim ${SOURCE_IDENTITY_CLAIM} is not valid.`);
  }
  return claim;
}
