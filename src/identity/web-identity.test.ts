import assert from 'node:assert/strict';
import { createHmac, generateKeyPairSync, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import * as fc from 'fast-check';
import type { Structure } from '../protocol/protocol.ts';
import { ACCOUNT, allow, factsOf, NOW, openFixture, policyText } from '../../test/identity.ts';
import type { Fixture } from '../../test/identity.ts';
import { IssuerError } from './issuer-fetch.ts';
import { createIssuers } from './issuers.ts';
import { isSignedBy, keyFor, parseJwt, readIssuerKey } from './jwt.ts';

const GITHUB = 'token.actions.githubusercontent.com';
const CLUSTER = 'oidc.example.com:6443/id/ABC';
const NO_KEY =
  "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements";

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const weak = generateKeyPairSync('rsa', { modulusLength: 1024 });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const rotated = generateKeyPairSync('ec', { namedCurve: 'P-384' });

const jwkOf = (key: KeyObject, kid: string, more: object = {}) => ({
  ...key.export({ format: 'jwk' }),
  kid,
  use: 'sig',
  ...more,
});
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

interface Signer {
  readonly alg: string;
  readonly kid?: string;
  readonly key: KeyObject;
}
const RSA: Signer = { alg: 'RS256', kid: 'r1', key: rsa.privateKey };
const EC: Signer = { alg: 'ES256', kid: 'e1', key: ec.privateKey };

function makeToken(claims: object, { alg, kid, key }: Signer = RSA, header: object = {}): string {
  const signed = `${encode({ alg, typ: 'JWT', kid, ...header })}.${encode(claims)}`;
  const hash = `sha${alg.slice(2)}`;
  const signature = sign(hash, Buffer.from(signed), { key, dsaEncoding: 'ieee-p1363' });
  return `${signed}.${signature.toString('base64url')}`;
}

const seconds = Math.floor(NOW / 1000);
const githubClaims = (more: object = {}) => ({
  iss: `https://${GITHUB}`,
  sub: 'repo:octo/app:ref:refs/heads/main',
  aud: 'sts.amazonaws.com',
  repository: 'octo/app',
  ref: 'refs/heads/main',
  run_attempt: 1,
  iat: seconds - 10,
  nbf: seconds - 10,
  exp: seconds + 300,
  ...more,
});
const clusterClaims = (more: object = {}) => ({
  iss: `https://${CLUSTER}`,
  sub: 'system:serviceaccount:build:pusher',
  aud: ['sts.amazonaws.com'],
  'kubernetes.io': { namespace: 'build', serviceaccount: { name: 'pusher', uid: 'u-1' } },
  iat: seconds - 10,
  exp: seconds + 86_400,
  ...more,
});

/** The issuers of these tests: documents by URL, and what was asked. */
const issuers = {
  documents: new Map<string, unknown>(),
  asked: [] as string[],
  down: false,
};
function serve(issuer: string, keys: readonly object[]): void {
  issuers.documents.set(`https://${issuer}/.well-known/openid-configuration`, {
    issuer: `https://${issuer}`,
    jwks_uri: `https://${issuer}/jwks`,
  });
  issuers.documents.set(`https://${issuer}/jwks`, { keys });
}

describe('web identity', () => {
  let f: Fixture;
  const trust = (
    host: string,
    condition: object,
    action: string | string[] = 'sts:AssumeRoleWithWebIdentity',
  ) =>
    policyText([
      {
        Effect: 'Allow',
        Principal: { Federated: `arn:aws:iam::${ACCOUNT}:oidc-provider/${host}` },
        Action: action,
        Condition: condition,
      },
    ]);
  const arnOf = (role: string) => `arn:aws:iam::${ACCOUNT}:role/${role}`;
  const assume = (role: string, token: string, more: Structure = {}, now = NOW) =>
    f.call(
      'AssumeRoleWithWebIdentity',
      { RoleArn: arnOf(role), RoleSessionName: 'ci', WebIdentityToken: token, ...more },
      { facts: { now } },
    );
  const refuses = (promise: Promise<unknown>, code: string, message: string) =>
    assert.rejects(promise, { name: 'Fault', code, message });

  before(async () => {
    serve(GITHUB, [
      jwkOf(rsa.publicKey, 'r1'),
      jwkOf(ec.publicKey, 'e1', { alg: 'ES256' }),
      jwkOf(weak.publicKey, 'weak'),
      { kty: 'oct', kid: 'h1', k: 'c2VjcmV0' },
    ]);
    serve(CLUSTER, [jwkOf(rsa.publicKey, 'only')]);
    f = await openFixture(undefined, {
      fetchIssuer: async (url) => {
        issuers.asked.push(url);
        const document = issuers.documents.get(url);
        if (issuers.down || document === undefined) throw new IssuerError('unreachable', url);
        return document;
      },
    });
    for (const host of [GITHUB, CLUSTER]) {
      const made = await f.call('CreateOpenIDConnectProvider', {
        Url: `https://${host}`,
        ClientIDList: ['sts.amazonaws.com'],
      });
      assert.deepEqual(made, { OpenIDConnectProviderArn: `arn:aws:iam::${ACCOUNT}:oidc-provider/${host}` });
    }
    await f.call('CreateRole', {
      RoleName: 'github',
      AssumeRolePolicyDocument: trust(GITHUB, {
        StringEquals: { [`${GITHUB}:aud`]: 'sts.amazonaws.com', [`${GITHUB}:ref`]: 'refs/heads/main' },
        StringLike: { [`${GITHUB}:sub`]: 'repo:octo/app:*' },
      }),
    });
    await f.call('PutRolePolicy', {
      RoleName: 'github',
      PolicyName: 'push',
      PolicyDocument: policyText([allow('ecr:PutImage')]),
    });
    await f.call('CreateRole', {
      RoleName: 'cluster',
      AssumeRolePolicyDocument: trust(CLUSTER, {
        StringEquals: {
          [`${CLUSTER}:sub`]: 'system:serviceaccount:build:pusher',
          [`${CLUSTER}:aud`]: 'sts.amazonaws.com',
          [`${CLUSTER}:kubernetes.io/serviceaccount/name`]: 'pusher',
        },
      }),
    });
  });
  after(() => f.close());

  it('gives a session of the role for a good token', async () => {
    const answer = await assume('github', makeToken(githubClaims()));
    const provider = `arn:aws:iam::${ACCOUNT}:oidc-provider/${GITHUB}`;
    assert.equal(answer['Provider'], provider);
    assert.equal(answer['Audience'], 'sts.amazonaws.com');
    assert.equal(answer['SubjectFromWebIdentityToken'], 'repo:octo/app:ref:refs/heads/main');
    const { AccessKeyId, SessionToken } = answer['Credentials'] as Record<string, string>;
    const found = await f.identity.findKey(AccessKeyId ?? '', SessionToken, NOW);
    assert.ok(typeof found === 'object');
    assert.equal(found.caller.caller.arn, `arn:aws:sts::${ACCOUNT}:assumed-role/github/ci`);
    const { allowed } = await f.identity.decide(
      found.caller,
      { action: 'ecr:PutImage', resource: `arn:aws:ecr:eu-west-1:${ACCOUNT}:repository/x` },
      factsOf(),
    );
    assert.equal(allowed, true);
    await assume('github', makeToken(githubClaims(), EC));
    await assume('cluster', makeToken(clusterClaims(), { ...RSA, kid: 'only' }));
    // A set with a single key does without a key id.
    const { kid: _, ...unnamed } = RSA;
    await assume('cluster', makeToken(clusterClaims(), unnamed));
  });

  it('refuses what AWS refuses', async () => {
    const expired = seconds - 301;
    const cases: [string, string, string, string][] = [
      [
        'no token',
        'a.b.c',
        'InvalidIdentityToken',
        'The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)',
      ],
      [
        'another issuer',
        makeToken(githubClaims({ iss: 'https://evil.example.com' })),
        'InvalidIdentityToken',
        'No OpenIDConnect provider found in your account for https://evil.example.com',
      ],
      [
        'the issuer by http',
        makeToken(githubClaims({ iss: `http://${GITHUB}` })),
        'InvalidIdentityToken',
        `No OpenIDConnect provider found in your account for http://${GITHUB}`,
      ],
      [
        'a slash more',
        makeToken(githubClaims({ iss: `https://${GITHUB}/` })),
        'InvalidIdentityToken',
        `No OpenIDConnect provider found in your account for https://${GITHUB}/`,
      ],
      [
        'another audience',
        makeToken(githubClaims({ aud: 'https://github.com/octo' })),
        'InvalidIdentityToken',
        'Incorrect token audience',
      ],
      [
        'several audiences',
        makeToken(githubClaims({ aud: ['sts.amazonaws.com', 'other'] })),
        'InvalidIdentityToken',
        'Incorrect token audience',
      ],
      [
        'another party',
        makeToken(githubClaims({ azp: 'other' })),
        'InvalidIdentityToken',
        'Incorrect token audience',
      ],
      [
        'no subject',
        makeToken(githubClaims({ sub: undefined })),
        'InvalidIdentityToken',
        'Missing a required claim: sub.',
      ],
      [
        'no expiry',
        makeToken(githubClaims({ exp: undefined })),
        'InvalidIdentityToken',
        'Missing a required claim: exp.',
      ],
      [
        'expired',
        makeToken(githubClaims({ exp: expired })),
        'ExpiredIdentityToken',
        `Token expired: current date/time ${seconds} must be before the expiration date/time ${expired}`,
      ],
      [
        'not yet',
        makeToken(githubClaims({ nbf: seconds + 301 })),
        'InvalidIdentityToken',
        'Token is not yet valid.',
      ],
      [
        'another key',
        makeToken(githubClaims(), {
          ...RSA,
          key: generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey,
        }),
        'InvalidIdentityToken',
        NO_KEY,
      ],
      [
        'a weak key',
        makeToken(githubClaims(), { alg: 'RS256', kid: 'weak', key: weak.privateKey }),
        'InvalidIdentityToken',
        NO_KEY,
      ],
      [
        'another subject',
        makeToken(githubClaims({ sub: 'repo:evil/app:ref:x' })),
        'AccessDeniedException',
        'Not authorized to perform sts:AssumeRoleWithWebIdentity',
      ],
      [
        'another branch',
        makeToken(githubClaims({ ref: 'refs/heads/x' })),
        'AccessDeniedException',
        'Not authorized to perform sts:AssumeRoleWithWebIdentity',
      ],
      [
        'a claim that differs in case',
        makeToken(githubClaims({ sub: 'repo:evil/app:x', Sub: 'repo:octo/app:x' })),
        'AccessDeniedException',
        'Not authorized to perform sts:AssumeRoleWithWebIdentity',
      ],
      [
        'tags nobody allowed',
        makeToken(githubClaims({ 'https://aws.amazon.com/tags': { principal_tags: { team: ['blue'] } } })),
        'AccessDeniedException',
        'Not authorized to perform sts:TagSession',
      ],
    ];
    for (const [what, token, code, message] of cases) {
      await assert.rejects(assume('github', token), { name: 'Fault', code, message }, what);
    }
    await refuses(
      assume('absent', makeToken(githubClaims())),
      'AccessDeniedException',
      'Not authorized to perform sts:AssumeRoleWithWebIdentity',
    );
    await refuses(
      assume('github', makeToken(githubClaims()), { DurationSeconds: 3601 }),
      'ValidationError',
      'The requested DurationSeconds exceeds the MaxSessionDuration set for this role.',
    );
  });

  it('takes tags and source identity from the token where the trust allows it', async () => {
    await f.call('CreateRole', {
      RoleName: 'tagged',
      AssumeRolePolicyDocument: trust(
        CLUSTER,
        { StringEquals: { 'aws:RequestTag/team': 'blue', 'sts:SourceIdentity': 'ann' } },
        ['sts:AssumeRoleWithWebIdentity', 'sts:TagSession', 'sts:SetSourceIdentity'],
      ),
    });
    const token = (team: string) =>
      makeToken(
        clusterClaims({
          'https://aws.amazon.com/tags': { principal_tags: { team: [team] }, transitive_tag_keys: ['team'] },
          'https://aws.amazon.com/source_identity': 'ann',
        }),
        { ...RSA, kid: 'only' },
      );
    const answer = await assume('tagged', token('blue'));
    assert.equal(answer['SourceIdentity'], 'ann');
    const { AccessKeyId, SessionToken } = answer['Credentials'] as Record<string, string>;
    const found = await f.identity.findKey(AccessKeyId ?? '', SessionToken, NOW);
    assert.ok(typeof found === 'object');
    assert.deepEqual(found.caller.session?.tags, [{ key: 'team', value: 'blue' }]);
    assert.deepEqual(found.caller.session?.transitiveKeys, ['team']);
    await assert.rejects(assume('tagged', token('red')), { code: 'AccessDeniedException' });
  });

  it('remembers keys, follows their rotation and does not ask for every forgery', async () => {
    const asked = () => issuers.asked.filter((url) => url.includes(GITHUB)).length;
    await assume('github', makeToken(githubClaims()));
    const before = asked();
    await assume('github', makeToken(githubClaims()));
    assert.equal(asked(), before);
    const next: Signer = { alg: 'ES384', kid: 'e2', key: rotated.privateKey };
    // Not published yet: asked for once, then not again for half a minute.
    const later = NOW + 60_000;
    await refuses(
      assume('github', makeToken(githubClaims(), next), {}, later),
      'InvalidIdentityToken',
      NO_KEY,
    );
    assert.equal(asked(), before + 2);
    serve(GITHUB, [jwkOf(rsa.publicKey, 'r1'), jwkOf(rotated.publicKey, 'e2')]);
    await refuses(
      assume('github', makeToken(githubClaims(), next), {}, later + 29_999),
      'InvalidIdentityToken',
      NO_KEY,
    );
    assert.equal(asked(), before + 2);
    await assume('github', makeToken(githubClaims(), next), {}, later + 30_000);
    assert.equal(asked(), before + 4);
    // Known keys go on while the issuer is away, for an hour.
    issuers.down = true;
    const hour = later + 30_000 + 3_600_000;
    const fresh = githubClaims({ exp: seconds + 90_000 });
    await assume('github', makeToken(fresh, next), {}, hour - 1);
    await refuses(
      assume('github', makeToken(fresh, next), {}, hour),
      'IDPCommunicationError',
      `The identity provider https://${GITHUB} could not be reached.`,
    );
    issuers.down = false;
    await assume('github', makeToken(fresh, next), {}, hour + 30_000);
  });

  it('keeps what thumbprints of one account vouch for from others', async () => {
    const asked: string[] = [];
    const fetch = async (url: string, thumbprints: readonly string[]) => {
      asked.push(url);
      if (!url.endsWith('/jwks'))
        return { issuer: 'https://inside.test', jwks_uri: 'https://inside.test/jwks' };
      return { keys: [jwkOf(rsa.publicKey, thumbprints.join())] };
    };
    const remembered = createIssuers(fetch);
    const kept = async (...thumbprints: string[]) =>
      (await remembered.keysOf('https://inside.test', thumbprints, NOW, () => true)).map(
        ({ keyId }) => keyId,
      );
    assert.deepEqual([await kept('a'), await kept('b'), await kept('a')], [['a'], ['b'], ['a']]);
    assert.equal(asked.length, 4);
  });

  it('refuses an issuer that says it is another', async () => {
    await f.call('CreateOpenIDConnectProvider', { Url: 'https://liar.example.com', ClientIDList: ['x'] });
    issuers.documents.set('https://liar.example.com/.well-known/openid-configuration', {
      issuer: `https://${GITHUB}`,
      jwks_uri: `https://${GITHUB}/jwks`,
    });
    const token = makeToken(githubClaims({ iss: 'https://liar.example.com' }));
    await refuses(assume('github', token), 'InvalidIdentityToken', NO_KEY);
  });
});

describe('JSON Web Tokens', () => {
  const claims = githubClaims();
  const keys = [jwkOf(rsa.publicKey, 'r1'), jwkOf(ec.publicKey, 'e1')].flatMap(
    (jwk) => readIssuerKey(jwk) ?? [],
  );
  const accepts = (token: string): boolean => {
    const jwt = parseJwt(token);
    const key = jwt && keyFor(jwt, keys);
    return jwt !== undefined && key !== undefined && isSignedBy(jwt, key);
  };

  it('of both families are accepted', () => {
    assert.equal(accepts(makeToken(claims)), true);
    assert.equal(accepts(makeToken(claims, { ...RSA, alg: 'RS512' })), true);
    assert.equal(accepts(makeToken(claims, EC)), true);
  });

  it('with confused algorithms are not', () => {
    const [header = '', body = ''] = makeToken(claims).split('.');
    const publicPem = rsa.publicKey.export({ type: 'spki', format: 'pem' });
    const hmac = `${encode({ alg: 'HS256', kid: 'r1' })}.${body}`;
    const forged = [
      `${encode({ alg: 'none', kid: 'r1' })}.${body}.`,
      `${encode({ alg: 'none', kid: 'r1' })}.${body}.AA`,
      `${encode({ alg: 'None' })}.${body}.AA`,
      `${hmac}.${createHmac('sha256', publicPem).update(hmac).digest('base64url')}`,
      `${header}.${body}.`,
      `${header}.${body}`,
      // The key of one family under the name of the other.
      makeToken(claims, { ...RSA, kid: 'e1' }),
      makeToken(claims, { ...EC, kid: 'r1' }),
      makeToken(claims, { ...EC, alg: 'ES384' }),
      // Keys of the token's own choosing do not count.
      makeToken(
        claims,
        { alg: 'ES256', key: generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey, kid: 'e1' },
        { jwk: jwkOf(ec.publicKey, 'e1'), jku: 'https://evil.example.com' },
      ),
      makeToken(claims, RSA, { crit: ['exp'] }),
      `${makeToken(claims)}=`,
    ];
    for (const token of forged) assert.equal(accepts(token), false, token);
  });

  it('that changed in any place are not', () => {
    const token = makeToken(claims, EC);
    fc.assert(
      fc.property(fc.nat(token.length - 1), fc.constantFrom('A', 'B', 'z', '0', '-', '.'), (at, letter) => {
        fc.pre(token[at] !== letter);
        assert.equal(accepts(token.slice(0, at) + letter + token.slice(at + 1)), false);
      }),
      { numRuns: 300 },
    );
  });
});
