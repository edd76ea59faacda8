/** A token issuer on loopback, shaped like a Kubernetes API server's or GitHub's: discovery, keys, RS256 tokens. */
import { generateKeyPairSync, sign } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Issuer {
  /** with `http://` */
  readonly url: string;
  /** host and port: prefix of condition keys, value of the setting `issuer-hosts` */
  readonly host: string;
  token(claims: Readonly<Record<string, unknown>>): string;
  close(): Promise<void>;
}

export async function startIssuer(): Promise<Issuer> {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'RS256', use: 'sig' };
  let url = '';
  const server = createServer((request, response) => {
    const discovery = { issuer: url, jwks_uri: `${url}/keys` };
    response.end(JSON.stringify(request.url === '/keys' ? { keys: [jwk] } : discovery));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  url = `http://${host}`;
  const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  return {
    url,
    host,
    token(claims) {
      const iat = Math.floor(Date.now() / 1000);
      const signed = `${encode({ alg: 'RS256', kid: 'k1', typ: 'JWT' })}.${encode({ iss: url, iat, nbf: iat, exp: iat + 600, ...claims })}`;
      return `${signed}.${sign('sha256', Buffer.from(signed), privateKey).toString('base64url')}`;
    },
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The claims of a projected service-account token. */
export function podClaims(
  namespace: string,
  serviceAccount: string,
  audience: string,
): Record<string, unknown> {
  return {
    aud: [audience],
    sub: `system:serviceaccount:${namespace}:${serviceAccount}`,
    jti: `${namespace}-${serviceAccount}`,
    'kubernetes.io': {
      namespace,
      node: { name: 'node-1', uid: '11111111-0000-4000-8000-000000000001' },
      pod: { name: `${serviceAccount}-7d9f`, uid: '22222222-0000-4000-8000-000000000002' },
      serviceaccount: { name: serviceAccount, uid: '33333333-0000-4000-8000-000000000003' },
    },
  };
}
