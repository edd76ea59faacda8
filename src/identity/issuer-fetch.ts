/**
 * Asking token issuers for their keys. A provider's URL comes from whoever may create providers, so this is where a request
 * into somebody's network would start: https only, public addresses only, no redirects, bounded time and size. Hosts that a
 * setting names may have private addresses and speak plain HTTP.
 */
import { lookup as resolve } from 'node:dns';
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { BlockList, isIP, isIPv4 } from 'node:net';
import type { LookupFunction } from 'node:net';
import { connect } from 'node:tls';
import type { DetailedPeerCertificate } from 'node:tls';
import { LIMITS } from '../lib/limits.ts';

/** Reads the JSON document at a URL; `thumbprints` (SHA-1, lower-case hex) may vouch for a certificate no public CA does. */
export type IssuerFetch = (url: string, thumbprints: readonly string[]) => Promise<unknown>;

/** Why an issuer gave no answer that can be used. */
export class IssuerError extends Error {
  override readonly name = 'IssuerError';
  /** `unreachable`: it may work later. `refused`: not until something is changed. `certificate`: nobody vouches for it. */
  readonly problem: 'unreachable' | 'refused' | 'certificate';
  constructor(problem: IssuerError['problem'], message: string) {
    super(message);
    this.problem = problem;
  }
}

/** Addresses that are not on the public internet (IANA special-purpose registries). */
const NOT_PUBLIC = new BlockList();
for (const [network, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
] as const) {
  NOT_PUBLIC.addSubnet(network, prefix, 'ipv4');
}
/** WHY: only 2000::/3 is handed out; the rest (loopback, link-local, unique local, mapped, NAT64, multicast) is not public. */
const PUBLIC_V6 = new BlockList();
PUBLIC_V6.addSubnet('2000::', 3, 'ipv6');
for (const [network, prefix] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20],
] as const) {
  NOT_PUBLIC.addSubnet(network, prefix, 'ipv6');
}

export function isPublicAddress(address: string): boolean {
  if (isIPv4(address)) return !NOT_PUBLIC.check(address, 'ipv4');
  return isIP(address) === 6 && PUBLIC_V6.check(address, 'ipv6') && !NOT_PUBLIC.check(address, 'ipv6');
}

/** Certificate errors that a thumbprint can settle: the chain ends in something nobody knows. */
const UNKNOWN_ISSUER = new Set([
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
]);
const CERTIFICATE_PROBLEM = /^(?:CERT_|ERR_TLS_CERT|UNABLE_TO_|DEPTH_ZERO|SELF_SIGNED|HOSTNAME_MISMATCH)/;

/** `trustedHosts`: `host` or `host:port`, which may have private addresses and speak plain HTTP. */
export function createIssuerFetch(trustedHosts: readonly string[]): IssuerFetch {
  const trusted = new Set(trustedHosts.map((host) => host.toLowerCase()));
  return async (text, thumbprints) => {
    const url = new URL(text);
    const isTrusted = trusted.has(url.host) || trusted.has(url.hostname);
    if (url.protocol !== 'https:' && !(isTrusted && url.protocol === 'http:')) {
      throw new IssuerError('refused', `${text} is not https`);
    }
    const target: Target = { url, lookup: isTrusted ? undefined : publicLookup };
    const literal = url.hostname.replace(/^\[|\]$/g, '');
    if (!isTrusted && isIP(literal) !== 0 && !isPublicAddress(literal)) throw notPublic(url.hostname);
    try {
      return await getJson(target, undefined);
    } catch (error) {
      const code = codeOf(error);
      if (thumbprints.length > 0 && UNKNOWN_ISSUER.has(code)) {
        const anchor = await findPinned(target, thumbprints);
        return await getJson(target, anchor).catch((again: unknown) => {
          throw problemOf(again, text);
        });
      }
      throw problemOf(error, text);
    }
  };
}

interface Target {
  readonly url: URL;
  readonly lookup: LookupFunction | undefined;
}

function notPublic(host: string): IssuerError {
  return new IssuerError('refused', `${host} has no public address; the setting issuer-hosts may name it`);
}

function codeOf(error: unknown): string {
  return (error as { code?: string }).code ?? '';
}

function problemOf(error: unknown, url: string): IssuerError {
  if (error instanceof IssuerError) return error;
  const problem = CERTIFICATE_PROBLEM.test(codeOf(error)) ? 'certificate' : 'unreachable';
  return new IssuerError(problem, `${url}: ${(error as Error).message}`);
}

/**
 * Resolves names to public addresses only. WHY here and not before the request: the address that was checked is the one that
 * is connected to, so a name cannot change its mind in between.
 */
const publicLookup: LookupFunction = (hostname, options, callback) => {
  resolve(hostname, { ...options, all: true }, (error, addresses) => {
    const [first] = addresses ?? [];
    if (error !== null || first === undefined) callback(error ?? new Error('no address'), '', 4);
    else if (!addresses.every(({ address }) => isPublicAddress(address)))
      callback(notPublic(hostname), '', 4);
    else if (options.all === true) callback(null, addresses);
    else callback(null, first.address, first.family);
  });
};

/** `anchor`: a certificate (PEM) that is trusted in place of the public CAs. */
function getJson({ url, lookup }: Target, anchor: string | undefined): Promise<unknown> {
  return new Promise((fulfil, reject) => {
    const options = {
      agent: false as const,
      headers: { accept: 'application/json', 'user-agent': 'berth' },
      signal: AbortSignal.timeout(LIMITS.issuerMs),
      ...(lookup && { lookup }),
      // WHY partial: what is pinned may be any certificate of the chain, not only its root.
      ...(anchor !== undefined && { ca: anchor, allowPartialTrustChain: true }),
    };
    const request = url.protocol === 'http:' ? httpRequest(url, options) : httpsRequest(url, options);
    request.on('error', reject);
    request.on('response', (response) => {
      const fail = (message: string): void => {
        request.destroy(new IssuerError('refused', `${url.href} ${message}`));
      };
      if (response.statusCode !== 200) {
        const problem = (response.statusCode ?? 0) >= 500 ? 'unreachable' : 'refused';
        request.destroy(new IssuerError(problem, `${url.href} answered ${response.statusCode}`));
        return;
      }
      const chunks: Buffer[] = [];
      let size = 0;
      response.on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size > LIMITS.issuerBytesMax) fail('answered too much');
        else chunks.push(chunk);
      });
      response.on('error', reject);
      response.on('end', () => {
        try {
          fulfil(JSON.parse(Buffer.concat(chunks).toString()));
        } catch {
          reject(new IssuerError('refused', `${url.href} did not answer JSON`));
        }
      });
    });
    request.end();
  });
}

/** The certificate of the server's chain that a thumbprint names, as PEM. Nothing is sent over this connection. */
function findPinned({ url, lookup }: Target, thumbprints: readonly string[]): Promise<string> {
  return new Promise((fulfil, reject) => {
    const host = url.hostname.replace(/^\[|\]$/g, '');
    const socket = connect({
      host,
      port: Number(url.port || 443),
      ...(isIP(host) === 0 && { servername: host }),
      rejectUnauthorized: false,
      timeout: LIMITS.issuerMs,
      ...(lookup && { lookup }),
    });
    socket.on('timeout', () => socket.destroy(new IssuerError('unreachable', `${url.href} is silent`)));
    socket.on('error', reject);
    socket.on('secureConnect', () => {
      const pinned = chainOf(socket.getPeerCertificate(true)).find(({ fingerprint }) =>
        thumbprints.includes(fingerprint.replaceAll(':', '').toLowerCase()),
      );
      socket.destroy();
      if (pinned === undefined) {
        reject(new IssuerError('certificate', `${url.href}: no certificate has a known thumbprint`));
      } else {
        const base64 = pinned.raw.toString('base64');
        fulfil(
          `-----BEGIN CERTIFICATE-----\n${base64.replace(/.{64}/g, '$&\n')}\n-----END CERTIFICATE-----\n`,
        );
      }
    });
  });
}

function chainOf(leaf: DetailedPeerCertificate): DetailedPeerCertificate[] {
  const chain: DetailedPeerCertificate[] = [];
  for (let each: DetailedPeerCertificate | undefined = leaf; each?.raw; each = each.issuerCertificate) {
    if (chain.includes(each)) break;
    chain.push(each);
  }
  return chain;
}
