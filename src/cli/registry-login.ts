/**
 * Passwords for the registries of Berth, by host name: what the kubelet's credential provider and Docker's credential helper
 * share. A password is only ever given for a host that the server of the endpoint says is its own, or that the operator named.
 */
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { connect, targetOf, type Target } from './client.ts';
import type { CredentialSource, TimedCredentials } from './credentials.ts';
import { readServerRecord, type ServerRecord } from './data-directory.ts';

export interface RegistryHost {
  /** in lower case, with its port if there is one */
  readonly host: string;
  /** of a host that has the form of ECR's */
  readonly account?: string;
  readonly region?: string;
}

export interface RegistryPassword {
  readonly password: string;
  /** epoch milliseconds */
  readonly expiresAt: number;
  /** the host as the server names it */
  readonly proxyHost: string;
}

const HOST = /^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?(:\d{1,5})?$|^\[[0-9a-f:.]+\](:\d{1,5})?$/;
const ECR_HOST = /^(\d{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9][a-z0-9_-]*)\./;

/** The registry of a server URL or an image name; undefined for what names none. */
export function readRegistryHost(text: string): RegistryHost | undefined {
  const [host = ''] = text.replace(/^https?:\/\//i, '').split('/');
  const lower = host.toLowerCase();
  if (!HOST.test(lower)) return undefined;
  const [, account, region] = ECR_HOST.exec(lower) ?? [];
  return { host: lower, ...(account !== undefined && { account }), ...(region !== undefined && { region }) };
}

/** The registry of an image; an image without one is Docker Hub's. */
export function readImageHost(image: string): RegistryHost | undefined {
  const [first = '', ...rest] = image.split('/');
  const named = rest.length > 0 && (/[.:]/.test(first) || first === 'localhost');
  return readRegistryHost(named ? first : 'docker.io');
}

/** The kubelet's globs: `*` within a label, as many labels, the same port. A path is left out of it. */
export function matchesHost(pattern: string, host: string): boolean {
  const split = (text: string): [string[], string] => {
    const [, name = '', port = ''] = /^(.*?)(?::(\d+))?$/.exec(text) ?? [];
    return [name.split('.'), port];
  };
  const [globs, globPort] = split((pattern.split('/')[0] ?? '').toLowerCase());
  const [labels, port] = split(host);
  return (
    globPort === port &&
    globs.length === labels.length &&
    globs.every((glob, i) => {
      const parts = glob.split('*').map((part) => part.replace(/[^a-z0-9_-]/g, '\\$&'));
      return new RegExp(`^${parts.join('[^.]*')}$`).test(labels[i] ?? '');
    })
  );
}

export interface RegistrySetting {
  readonly target: Target;
  /** Whether the operator's settings alone say that the host is Berth's. */
  readonly isNamed: boolean;
}

/**
 * Where passwords of a host may be asked for: `AWS_ENDPOINT_URL_ECR` or `AWS_ENDPOINT_URL`, else the host itself if one of
 * the patterns names it, else the server of the data directory. Undefined when nothing leads to a server.
 *
 * INVARIANT: a host that nobody named is never sent anything, neither a signature nor a token.
 */
export async function findSetting(
  { host, region: named }: RegistryHost,
  patterns: readonly string[],
  { data }: Pick<Config, 'data'>,
  { env }: Pick<Surroundings, 'env'>,
): Promise<RegistrySetting | undefined> {
  const isListed = patterns.some((pattern) => matchesHost(pattern, host));
  const region = named ?? (env['AWS_REGION'] || env['AWS_DEFAULT_REGION']);
  const set = env['AWS_ENDPOINT_URL_ECR'] || env['AWS_ENDPOINT_URL'];
  let server: ServerRecord | undefined;
  if (!set && !isListed) {
    server = await readServerRecord(data).catch(() => undefined);
    if (server === undefined) return undefined;
  }
  const endpoint = set || server?.endpoint || `https://${host}`;
  if (!URL.canParse(endpoint) || !/^https?:$/.test(new URL(endpoint).protocol)) {
    throw new CommandError('AWS_ENDPOINT_URL is not an HTTP address');
  }
  const { origin } = new URL(endpoint);
  const target = await targetOf(origin, region ?? server?.region ?? 'us-east-1', data, env);
  return { target, isNamed: isListed || new URL(origin).host === host };
}

/** STS of a server: itself, or `AWS_ENDPOINT_URL_STS`. */
export async function stsOf(
  target: Target,
  data: string,
  env: NodeJS.ProcessEnv,
): Promise<Pick<Target, 'endpoint' | 'ca'>> {
  const named = env['AWS_ENDPOINT_URL_STS'];
  if (!named) return target;
  if (!URL.canParse(named)) throw new CommandError('AWS_ENDPOINT_URL_STS is not an HTTP address');
  return targetOf(new URL(named).origin, target.region, data, env);
}

/**
 * A password for the host; undefined when the server has no registry of that name.
 *
 * @throws CommandError, CallError
 */
export async function readPassword(
  { host, account }: RegistryHost,
  { target, isNamed }: RegistrySetting,
  credentials: CredentialSource | TimedCredentials,
): Promise<RegistryPassword | undefined> {
  const source: CredentialSource =
    'load' in credentials ? credentials : { from: 'a token', load: () => Promise.resolve(credentials) };
  const client = await connect(target, source);
  const { authorizationData } = await client.call<{
    readonly authorizationData?: readonly {
      readonly authorizationToken: string;
      readonly expiresAt: number;
      readonly proxyEndpoint: string;
    }[];
  }>('ecr', 'GetAuthorizationToken', account === undefined ? {} : { registryIds: [account] });
  const [given] = authorizationData ?? [];
  if (given === undefined) throw new CommandError(`${target.endpoint} gave no authorization token`);
  const proxyHost = given.proxyEndpoint.replace(/^https?:\/\//, '').toLowerCase();
  if (!isNamed && plainName(proxyHost) !== plainName(host)) return undefined;
  const password = Buffer.from(given.authorizationToken, 'base64').toString().replace(/^AWS:/, '');
  return { password, expiresAt: given.expiresAt * 1000, proxyHost };
}

/** ECR's other spellings of one registry: dual-stack and FIPS. */
function plainName(host: string): string {
  return host.replace(/^(\d{12})\.dkr[.-]ecr(?:-fips)?\./, '$1.dkr.ecr.');
}
