/** The network as a machine sees it: name, port, certificate, clock, proxies. Facts first, then a diagnosis of each. */
import { request as sendHttp, type IncomingHttpHeaders, type RequestOptions } from 'node:http';
import { request as sendHttps } from 'node:https';
import { BlockList, connect as connectTcp, isIP, isIPv4 } from 'node:net';
import { checkServerIdentity, connect as connectTls, rootCertificates } from 'node:tls';
import type { PeerCertificate } from 'node:tls';
import { failure, ok, warning, type Finding, type Subject } from './doctor-finding.ts';

/** Resolves a name to addresses. Rejects with an error whose `code` says why not. */
export type Lookup = (name: string) => Promise<readonly string[]>;

export interface NetworkFacts {
  readonly addresses: readonly string[];
  /** why there are none */
  readonly lookupError?: string;
  /** of the first address that answers, else of the last tried; undefined when it accepts */
  readonly connectError?: string;
  readonly certificate?: CertificateFacts;
  /** the TLS handshake failed although TLS was asked for by name */
  readonly tlsError?: string;
  readonly scheme?: 'http' | 'https';
  /** of `GET /v2/` without credentials */
  readonly answer?: { readonly status: number; readonly headers: IncomingHttpHeaders; readonly at: number };
  readonly answerError?: string;
}

export interface CertificateFacts {
  /** epoch milliseconds */
  readonly validFrom: number;
  readonly validTo: number;
  readonly names: string;
  readonly issuer: string;
  /** why the name is not in it */
  readonly nameError?: string;
  /** whether one of the usual authorities, or one the machine was told of, signed it */
  readonly chain: 'public' | 'private' | { readonly error: string };
}

const CONNECT_MS = 5000;
const DAY_MS = 86_400_000;
const SKEW_REFUSED_MS = 15 * 60_000;
const SKEW_WARNED_MS = 5 * 60_000;

export async function probeNetwork(
  subject: Subject,
  options: {
    readonly lookup: Lookup;
    readonly clock: () => number;
    /** authorities the machine was told of, beside the usual ones */
    readonly authorities: readonly string[];
  },
): Promise<NetworkFacts> {
  const { name, port } = subject;
  let addresses: readonly string[];
  try {
    addresses = isIP(name) !== 0 ? [name] : await options.lookup(name);
  } catch (error) {
    return { addresses: [], lookupError: codeOf(error) };
  }
  let connectError = addresses.length === 0 ? 'ENOTFOUND' : undefined;
  let address: string | undefined;
  for (const each of addresses) {
    connectError = await tryConnect(each, port);
    if (connectError === undefined) {
      address = each;
      break;
    }
  }
  if (address === undefined) return { addresses, connectError: connectError ?? 'ENOTFOUND' };
  const tls =
    subject.scheme === 'http' ? { error: 'http' } : await probeTls(address, subject, options.authorities);
  const plain = !('certificate' in tls);
  const base = {
    addresses,
    ...('certificate' in tls && { certificate: tls.certificate }),
    ...(plain && subject.scheme === 'https' && { tlsError: tls.error }),
  };
  if (plain && subject.scheme === 'https') return base;
  const scheme = plain ? 'http' : 'https';
  try {
    return { ...base, scheme, answer: await askVersion(scheme, address, subject, options.clock) };
  } catch (error) {
    // What speaks neither has no scheme.
    const known = !plain || subject.scheme !== undefined;
    return { ...base, ...(known && { scheme }), answerError: codeOf(error) };
  }
}

function codeOf(error: unknown): string {
  const { code, message } = error as { readonly code?: unknown; readonly message: string };
  if (code === 'ABORT_ERR') return 'ETIMEDOUT';
  return typeof code === 'string' ? code : message;
}

function tryConnect(address: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connectTcp({ host: address, port });
    const end = (code: string | undefined): void => {
      socket.destroy();
      resolve(code);
    };
    socket.setTimeout(CONNECT_MS, () => end('ETIMEDOUT'));
    socket.on('connect', () => end(undefined));
    socket.on('error', (error) => end(codeOf(error)));
  });
}

function probeTls(
  address: string,
  { name, port }: Subject,
  authorities: readonly string[],
): Promise<{ certificate: CertificateFacts } | { error: string }> {
  return new Promise((resolve) => {
    const socket = connectTls({
      host: address,
      port,
      ...(isIP(name) === 0 && { servername: name }),
      ca: [...rootCertificates, ...authorities],
      // WHY: to look at what is wrong with it. Nothing is sent over this connection.
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
      checkServerIdentity: () => undefined,
    });
    const end = (result: { certificate: CertificateFacts } | { error: string }): void => {
      socket.destroy();
      resolve(result);
    };
    socket.setTimeout(CONNECT_MS, () => end({ error: 'ETIMEDOUT' }));
    socket.on('error', (error) => end({ error: codeOf(error) }));
    socket.on('secureConnect', () => {
      const peer = socket.getPeerCertificate(true);
      end({ certificate: describe(peer, name, String(socket.authorizationError ?? ''), authorities) });
    });
  });
}

/** Reasons that are told by their own findings. */
const TOLD = new Set(['', 'null', 'CERT_HAS_EXPIRED', 'CERT_NOT_YET_VALID', 'ERR_TLS_CERT_ALTNAME_INVALID']);

function describe(
  peer: PeerCertificate & { issuerCertificate?: PeerCertificate },
  name: string,
  error: string,
  authorities: readonly string[],
): CertificateFacts {
  const nameError = checkServerIdentity(name, peer);
  const top = lastOf(peer);
  const isOwn = authorities.some((pem) => pem.includes(pemOf(top.raw).slice(0, 256)));
  return {
    validFrom: Date.parse(peer.valid_from),
    validTo: Date.parse(peer.valid_to),
    names: peer.subjectaltname ?? '',
    issuer: String(peer.issuer?.CN ?? peer.issuer?.O ?? 'unknown'),
    ...(nameError !== undefined && { nameError: nameError.message }),
    chain: TOLD.has(error) ? (isOwn ? 'private' : 'public') : { error },
  };
}

function pemOf(raw: Buffer | undefined): string {
  return (raw ?? Buffer.alloc(0)).toString('base64').replace(/(.{64})/g, '$1\n');
}

/** The top of a chain: the certificate that signed itself, or the last one known. */
function lastOf(peer: PeerCertificate & { issuerCertificate?: PeerCertificate }): PeerCertificate {
  let top: PeerCertificate & { issuerCertificate?: PeerCertificate } = peer;
  for (let depth = 0; depth < 10; depth++) {
    const next = top.issuerCertificate;
    if (next === undefined || next.fingerprint256 === top.fingerprint256) return top;
    top = next;
  }
  return top;
}

function askVersion(
  scheme: 'http' | 'https',
  address: string,
  { host, name, port }: Subject,
  clock: () => number,
): Promise<NonNullable<NetworkFacts['answer']>> {
  const options: RequestOptions & { rejectUnauthorized: boolean; servername?: string } = {
    host: address,
    port,
    path: '/v2/',
    headers: { host },
    agent: false,
    signal: AbortSignal.timeout(CONNECT_MS),
    // The certificate is judged above; no credential is sent.
    rejectUnauthorized: false,
    ...(scheme === 'https' && isIP(name) === 0 && { servername: name }),
  };
  return new Promise((resolve, reject) => {
    const request = (scheme === 'https' ? sendHttps : sendHttp)(options, (response) => {
      const { statusCode: status = 0, headers } = response;
      response.destroy();
      resolve({ status, headers, at: clock() });
    });
    request.on('error', reject);
    request.end();
  });
}

/** Everything about reaching the registry. */
export function diagnoseNetwork(subject: Subject, facts: NetworkFacts, now: number): Finding[] {
  const { name, port, host } = subject;
  if (facts.lookupError !== undefined) {
    const localhost = name.endsWith('.localhost');
    return [
      failure(
        'network.dns',
        `${name} has no address (${facts.lookupError}).`,
        localhost
          ? 'Not every resolver knows that names under localhost are this machine.'
          : 'The name is misspelt, or the resolver of this machine does not know the zone it is in.',
        localhost
          ? `echo "127.0.0.1 ${name}" >> /etc/hosts`
          : `Check /etc/resolv.conf, or add the address to /etc/hosts: echo "<address> ${name}" >> /etc/hosts`,
      ),
    ];
  }
  const findings = [ok('network.dns', `${name} is ${facts.addresses.join(', ')}.`)];
  if (facts.connectError !== undefined) return [...findings, connectFinding(subject, facts)];
  findings.push(ok('network.tcp', `Port ${port} accepts connections.`));
  if (facts.certificate !== undefined) findings.push(...certificateFindings(subject, facts.certificate, now));
  if (facts.tlsError !== undefined) {
    findings.push(
      failure(
        'network.tls',
        `${host} does not speak TLS (${facts.tlsError}).`,
        'https was asked for, and what listens there answers something else.',
        `Name it http://${host}, or give the server a certificate: berth tls.`,
      ),
    );
  }
  if (facts.answer !== undefined) findings.push(...answerFindings(host, facts.answer));
  if (facts.answerError !== undefined) {
    findings.push(
      failure(
        'network.registry',
        `${host} accepts connections but answers no request (${facts.answerError}).`,
        'What listens there is no web server, or hangs.',
        'Look at what listens on the port, and at the log of the server.',
      ),
    );
  }
  return findings;
}

function connectFinding({ name, port }: Subject, { connectError = '', addresses }: NetworkFacts): Finding {
  const refused = connectError === 'ECONNREFUSED';
  return failure(
    'network.tcp',
    `${name} port ${port} cannot be reached (${connectError}; ${addresses.join(', ')}).`,
    refused
      ? 'The machine is there and nothing listens on that port.'
      : 'Packets do not arrive or do not come back: a firewall, a route, or the wrong address.',
    refused
      ? `Start the server, or name its port: host:port/repository. Berth listens on 7327 and on 127.0.0.1 unless told otherwise (--port, --host).`
      : `Open port ${port} from this machine to ${addresses[0] ?? name}.`,
  );
}

function certificateFindings({ name, host }: Subject, it: CertificateFacts, now: number): Finding[] {
  const findings: Finding[] = [];
  const day = (time: number): string => new Date(time).toISOString().slice(0, 10);
  if (typeof it.chain !== 'string') {
    findings.push(
      failure(
        'network.tls-chain',
        `Nobody this machine trusts signed the certificate of ${host} (${it.chain.error}).`,
        `Its issuer is "${it.issuer}".`,
        `Fetch the authority and compare its fingerprint with the server's: curl -k https://${host}/ca.pem -o ca.pem\n` +
          `AWS tools: export AWS_CA_BUNDLE=$PWD/ca.pem\nDocker: mkdir -p /etc/docker/certs.d/${host} && cp ca.pem /etc/docker/certs.d/${host}/ca.crt`,
      ),
    );
  } else findings.push(ok('network.tls-chain', `The certificate is signed by ${it.issuer}.`));
  if (it.nameError !== undefined) {
    findings.push(
      failure(
        'network.tls-name',
        `The certificate is not for ${name}.`,
        `It is for ${it.names === '' ? 'no name at all' : it.names}.`,
        `Use one of these names, or make a certificate that has ${name}: berth tls.`,
      ),
    );
  } else findings.push(ok('network.tls-name', `The certificate is for ${name}.`));
  const left = Math.floor((it.validTo - now) / DAY_MS);
  if (now > it.validTo || now < it.validFrom) {
    findings.push(
      failure(
        'network.tls-expiry',
        now > it.validTo
          ? `The certificate expired on ${day(it.validTo)}.`
          : `The certificate is good from ${day(it.validFrom)} on only.`,
        `It is valid from ${day(it.validFrom)} to ${day(it.validTo)}, and the clock of this machine says ${day(now)}.`,
        'Renew the certificate and send the server SIGHUP, which reloads it; or set the clock right.',
      ),
    );
  } else if (left < 14) {
    findings.push(
      warning(
        'network.tls-expiry',
        `The certificate expires in ${left} days.`,
        `It is valid to ${day(it.validTo)}.`,
        'Renew it and send the server SIGHUP, which reloads it.',
      ),
    );
  } else findings.push(ok('network.tls-expiry', `The certificate is valid to ${day(it.validTo)}.`));
  return findings;
}

function answerFindings(
  host: string,
  { status, headers, at }: NonNullable<NetworkFacts['answer']>,
): Finding[] {
  const version = headers['docker-distribution-api-version'];
  const challenge = headers['www-authenticate'] ?? '';
  const isRegistry = version === 'registry/2.0' && (status === 401 || status === 200);
  const findings = [
    isRegistry && challenge.includes('service="ecr.amazonaws.com"')
      ? ok('network.registry', `${host} is a registry of ECR's kind.`)
      : isRegistry
        ? warning(
            'network.registry',
            `${host} is a registry, but not of ECR's kind.`,
            `It asks for credentials with: ${challenge || 'nothing'}.`,
            'Check the name: logins with AWS credentials work at Berth and ECR only.',
          )
        : failure(
            'network.registry',
            `${host} is no registry: GET /v2/ answers ${status}.`,
            'Something else listens there, or a proxy in between answers in its place.',
            'Check host and port, and the proxy in front of the server.',
          ),
  ];
  const date = Date.parse(headers.date ?? '');
  if (!Number.isNaN(date)) findings.push(clockFinding(date - at));
  return findings;
}

function clockFinding(skewMs: number): Finding {
  const seconds = Math.round(Math.abs(skewMs) / 1000);
  const amount = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} minutes`;
  if (Math.abs(skewMs) <= SKEW_WARNED_MS) return ok('network.clock', `The clocks differ by ${amount}.`);
  const what = `The clock of this machine is ${amount} ${skewMs > 0 ? 'behind' : 'ahead of'} the server's.`;
  const fix = 'Set the clock right on the machine whose clock is wrong: timedatectl set-ntp true';
  return Math.abs(skewMs) > SKEW_REFUSED_MS
    ? failure('network.clock', what, 'Signatures that are off by more than 15 minutes are refused.', fix)
    : warning('network.clock', what, 'At 15 minutes signatures are refused.', fix);
}

/** Proxies by where they are set. */
export interface ProxySetting {
  /** `the environment`, a file */
  readonly from: string;
  readonly http: string | undefined;
  readonly https: string | undefined;
  readonly noProxy: string | undefined;
}

export function proxyOfEnvironment(env: NodeJS.ProcessEnv): ProxySetting {
  const of = (name: string): string | undefined => env[name.toLowerCase()] || env[name] || undefined;
  return {
    from: 'the environment',
    http: of('HTTP_PROXY'),
    https: of('HTTPS_PROXY') ?? of('ALL_PROXY'),
    noProxy: of('NO_PROXY'),
  };
}

/** A proxy that stands between this machine and the registry. */
export function diagnoseProxies(
  { name, port, host, scheme: said = 'https' }: Subject,
  { scheme = said, addresses }: NetworkFacts,
  settings: readonly ProxySetting[],
): Finding[] {
  const between = settings.filter((it) => {
    const proxy = scheme === 'http' ? it.http : it.https;
    return (
      proxy !== undefined &&
      !bypasses(it.noProxy ?? '', name, port) &&
      name !== 'localhost' &&
      !isLoopback(name)
    );
  });
  if (between.length === 0) return [ok('network.proxy', `No proxy is used for ${host}.`)];
  return between.map((it) => {
    const proxy = (scheme === 'http' ? it.http : it.https) ?? '';
    const near = addresses.length > 0 && addresses.every((address) => isPrivate(address));
    return warning(
      'network.proxy',
      `Requests to ${host} go through the proxy ${withoutPassword(proxy)} (set in ${it.from}).`,
      near
        ? `${name} is an address of your own network, which a proxy seldom reaches, and proxies often cut large layers.`
        : 'If the proxy does not let them through, pulls fail though the registry is well.',
      it.from === 'the environment'
        ? `export NO_PROXY="${[it.noProxy, name].filter(Boolean).join(',')}"`
        : `Add ${name} to "no-proxy" in ${it.from} and restart docker.`,
    );
  });
}

/** A proxy without its user and password, which may be written without a scheme and hold any character. */
function withoutPassword(url: string): string {
  return url.replace(/^([a-z][a-z0-9+.-]*:\/\/)?.*@/is, '$1');
}

/** Whether a NO_PROXY list covers a host: names with their subdomains, addresses, networks, `*`. */
export function bypasses(noProxy: string, name: string, port: number): boolean {
  return noProxy.split(/[\s,]+/).some((entry) => {
    if (entry === '*') return true;
    const [, rule = '', rulePort] = /^(.*?)(?::(\d+))?$/.exec(entry.toLowerCase()) ?? [];
    if (rule === '' || (rulePort !== undefined && Number(rulePort) !== port)) return false;
    const [network = '', bits] = rule.split('/');
    if (bits !== undefined) return isIPv4(name) && isIPv4(network) && within(name, network, Number(bits));
    const bare = rule.replace(/^\*?\./, '');
    return name === bare || name.endsWith(`.${bare}`);
  });
}

function within(address: string, network: string, bits: number): boolean {
  if (!(bits >= 0 && bits <= 32)) return false;
  const list = new BlockList();
  list.addSubnet(network, bits, 'ipv4');
  return list.check(address, 'ipv4');
}

export function isLoopback(address: string): boolean {
  return address === '::1' || (isIPv4(address) && within(address, '127.0.0.0', 8));
}

function isPrivate(address: string): boolean {
  const networks = [
    ['10.0.0.0', 8],
    ['172.16.0.0', 12],
    ['192.168.0.0', 16],
    ['127.0.0.0', 8],
  ] as const;
  return isIPv4(address)
    ? networks.some(([network, bits]) => within(address, network, bits))
    : /^(?:::1$|f[cd])/i.test(address);
}
