/** `berth tls init` and `berth tls show`: a private CA, and a server certificate for the names this server is to have. */
import { X509Certificate } from 'node:crypto';
import { hostname } from 'node:os';
import type { Config } from '../config.ts';
import {
  createAuthority,
  isPermitted,
  issueServerCertificate,
  normalizeName,
  permittedNames,
  type Issued,
} from '../lib/x509.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readIssued, tlsFiles, writeIssued } from './tls-directory.ts';

const DAY_MS = 86_400_000;
/** clocks of clients may be behind */
const BACKDATED_MS = 3_600_000;
const AUTHORITY_DAYS = 3650;
/** Some platforms refuse server certificates that are valid for longer than 825 days, also of private CAs. */
const SERVER_DAYS_MAX = 825;
export const SERVER_DAYS = 397;

export interface InitOptions {
  /** names besides the ones that follow from the settings */
  readonly names: readonly string[];
  /** names that the CA may certify later, made known to it now */
  readonly permit: readonly string[];
  readonly awsNames: boolean;
  readonly newCa: boolean;
  readonly days: string;
  readonly json: boolean;
}

/**
 * Makes CA and server certificate, or renews the latter under the CA that is there; names of the former certificate are
 * kept then.
 */
export async function tlsInit(
  config: Config,
  { stdout }: Pick<Surroundings, 'stdout'>,
  options: InitOptions,
): Promise<void> {
  const now = Date.now();
  const days = Number(options.days);
  if (!/^\d{1,4}$/.test(options.days) || days < 1 || days > SERVER_DAYS_MAX)
    throw new CommandError(`--days is a number from 1 to ${SERVER_DAYS_MAX}`);
  const { data } = config;
  const wanted = namesGiven([...options.names, ...namesOf(config, options.awsNames)]);
  const besides = [...localNames(), ...fipsNames(config, options.awsNames)];
  const [kept, former] = options.newCa
    ? [undefined, []]
    : [await readAuthority(data), await formerNames(data)];
  const authority =
    kept ?? createRoot(now, [...wanted, ...besides, ...namesGiven(options.permit)].map(withoutWildcard));
  const permitted = permittedNames(authority.certificate);
  const isFine = (name: string): boolean => permitted.length === 0 || isPermitted(name, permitted);
  const refused = wanted.filter((name) => !isFine(name));
  if (refused.length > 0) {
    throw new CommandError(
      `the CA was made for other names than ${refused.join(', ')}. It certifies ${permitted.join(', ')} and what is ` +
        'below them. Make a new CA with --new-ca, and give it to the clients.',
    );
  }
  // what the machine happens to be called may change, and is no reason to fail; nor is a CA that knows no FIPS names
  const names = [...new Set([...besides, ...wanted, ...former])].filter(isFine);
  const notAfter = Math.min(
    now + days * DAY_MS,
    new X509Certificate(authority.certificate).validToDate.getTime(),
  );
  if (notAfter <= now) throw new CommandError('the CA has expired: make a new one with --new-ca');
  const server = issue(authority, names, { notBefore: now - BACKDATED_MS, notAfter });
  if (kept === undefined) await writeIssued(data, 'ca', authority);
  await writeIssued(data, 'server', { ...server, certificate: server.certificate + authority.certificate });
  const did =
    kept === undefined ? 'made a private CA and a server certificate' : 'renewed the server certificate';
  await print(config, stdout, options.json, did);
}

/** Prints what is there. @throws CommandError when nothing is */
export async function tlsShow(
  config: Config,
  { stdout }: Pick<Surroundings, 'stdout'>,
  json: boolean,
): Promise<void> {
  await print(config, stdout, json, undefined);
}

function issue(
  authority: Issued,
  names: readonly string[],
  validity: { notBefore: number; notAfter: number },
): Issued {
  try {
    return issueServerCertificate(authority, { ...validity, names, commonName: 'Berth server' });
  } catch (error) {
    throw new CommandError(`the CA cannot be used: ${(error as Error).message}`);
  }
}

function createRoot(now: number, names: readonly string[]): Issued {
  const notBefore = now - BACKDATED_MS;
  return createAuthority({
    // WHY the time: certificates of several CAs of one name are taken for one another
    commonName: `Berth CA of ${new Date(now).toISOString()}`,
    notBefore,
    notAfter: now + AUTHORITY_DAYS * DAY_MS,
    permitted: [...new Set(['127.0.0.0/8', ...names])],
  });
}

/**
 * The CA that is to be kept; `undefined` when there is none.
 *
 * @throws CommandError when its key is not there: a new CA would have to be given to every client, which is not done silently
 */
async function readAuthority(data: string): Promise<Issued | undefined> {
  const { certificate, key } = await readIssued(data, 'ca');
  if (certificate === undefined) return undefined;
  if (key === undefined) {
    throw new CommandError(
      `the key of the CA is not there: put ${tlsFiles(data, 'ca').key} back, or make a new CA with --new-ca`,
    );
  }
  return { certificate, key };
}

async function formerNames(data: string): Promise<string[]> {
  const { certificate } = await readIssued(data, 'server');
  return certificate === undefined ? [] : namesIn(parse(certificate, tlsFiles(data, 'server').certificate));
}

function localNames(): string[] {
  return ['localhost', '127.0.0.1', '::1', hostname()].flatMap((name) => normalizeName(name) ?? []);
}

/** Names that follow from the settings: the address bound, the template of registry hosts, AWS's own names. */
function namesOf(config: Config, awsNames: boolean): string[] {
  const regions = regionsOf(config);
  const template = templateOf(config);
  const hosts = regions.map((region) =>
    template
      .replaceAll('{region}', region)
      // a wildcard is a whole label, the first one
      .replace(/^\{account\}\./, '*.')
      .replaceAll('{account}', config.account),
  );
  return [
    ...(['0.0.0.0', '::'].includes(config.host) ? [] : [config.host]),
    ...hosts,
    ...(awsNames || isAws(config)
      ? ['sts.amazonaws.com', 'iam.amazonaws.com', ...regions.flatMap(awsNamesOf)]
      : []),
  ];
}

function regionsOf({ region, regions }: Config): string[] {
  return [...new Set([region, ...regions])];
}

function templateOf({ registryHost }: Config): string {
  return registryHost.replace(/:(\d+|\{port\})$/, '');
}

/** Whether repository URIs have AWS's own form. */
function isAws(config: Config): boolean {
  return /\.amazonaws\.com(\.cn)?$/.test(templateOf(config));
}

/** What clients with AWS_USE_FIPS_ENDPOINT go to. China has none. */
function fipsNames(config: Config, awsNames: boolean): string[] {
  if (!awsNames && !isAws(config)) return [];
  const regions = regionsOf(config).filter((region) => !region.startsWith('cn-'));
  return regions.flatMap((region) => [
    `*.dkr.ecr-fips.${region}.amazonaws.com`,
    `ecr-fips.${region}.amazonaws.com`,
    `sts-fips.${region}.amazonaws.com`,
    `*.dkr-ecr-fips.${region}.on.aws`,
    `ecr-fips.${region}.api.aws`,
  ]);
}

/** The endpoints of ECR and STS in a region (AWS General Reference), with registries of any account. */
function awsNamesOf(region: string): string[] {
  const suffix = region.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com';
  return [
    `*.dkr.ecr.${region}.${suffix}`,
    `api.ecr.${region}.${suffix}`,
    `ecr.${region}.${suffix}`,
    `sts.${region}.${suffix}`,
    ...(suffix === 'amazonaws.com' ? [`*.dkr-ecr.${region}.on.aws`, `ecr.${region}.api.aws`] : []),
  ];
}

function namesGiven(texts: readonly string[]): string[] {
  return texts.map((text) => {
    const name = normalizeName(text);
    if (name === undefined) throw new CommandError(`"${text}" is neither a host name nor an address`);
    return name;
  });
}

function withoutWildcard(name: string): string {
  return name.replace(/^\*\./, '');
}

function parse(certificate: string, path: string): X509Certificate {
  try {
    return new X509Certificate(certificate);
  } catch {
    throw new CommandError(`${path} holds no certificate`);
  }
}

function namesIn(certificate: X509Certificate): string[] {
  const entries = (certificate.subjectAltName ?? '').split(', ');
  return entries.flatMap((entry) => normalizeName(entry.replace(/^(DNS|IP Address):/, '')) ?? []);
}

async function print(
  config: Config,
  stdout: Surroundings['stdout'],
  json: boolean,
  did: string | undefined,
): Promise<void> {
  const found = await Promise.all(
    (['ca', 'server'] as const).map(async (owner) => {
      const file = tlsFiles(config.data, owner).certificate;
      const { certificate } = await readIssued(config.data, owner);
      if (certificate === undefined)
        throw new CommandError(`${file} is not there: make it with "berth tls init"`);
      const read = parse(certificate, file);
      return { file, read, expires: read.validToDate.toISOString() };
    }),
  );
  const [ca, server] = found;
  if (ca === undefined || server === undefined) return;
  const permitted = permittedNames(ca.read.toString());
  const names = namesIn(server.read);
  if (json) {
    const about = ({ file, read, expires }: typeof ca) => ({ file, expires, sha256: read.fingerprint256 });
    const shown = { ca: { ...about(ca), permitted }, server: { ...about(server), names } };
    stdout.write(`${JSON.stringify(shown)}\n`);
    return;
  }
  const lines = [
    ...(did === undefined ? [] : [did, '']),
    `  CA            ${ca.file}`,
    `                until ${ca.expires}, SHA-256 ${ca.read.fingerprint256}`,
    `                may certify ${permitted.join(', ')}`,
    `  certificate   ${server.file}`,
    `                until ${server.expires}`,
    ...names.map((name, i) => `  ${(i === 0 ? 'names' : '').padEnd(13)} ${name}`),
    '',
  ];
  if (did !== undefined) {
    lines.push(
      'Serve with --tls (a running server takes the new certificate on SIGHUP). Clients have to trust the CA: the file',
      'above, also at /ca.pem of the server.',
      '',
    );
  }
  stdout.write(`${lines.join('\n')}\n`);
}
