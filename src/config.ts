/**
 * All settings: flags over environment over one YAML file over defaults, read once, validated and frozen. An unknown key
 * or a bad value stops the start and is named. This table is also the documentation (docs/operations/settings.md).
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { parse } from 'yaml';
import { SPARSE_MANIFESTS, type SparseManifests } from './domain/manifests.ts';
import { isAccountId, isRegionName } from './domain/names.ts';
import { LIMITS } from './lib/limits.ts';
import { LOG_LEVELS, type LogLevel } from './lib/log.ts';
import { readRateLimits, type RateLimit } from './lib/rate-limits.ts';

/** A setting that cannot be used. The message names the key and where it came from. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

interface Setting<Value> {
  readonly help: string;
  /** placeholder of the value in help texts; absent for switches */
  readonly value?: string;
  readonly fallback: string;
  /** the value is secret: `BERTH_<KEY>_FILE` may name a file that holds it, and there is no flag */
  readonly secret?: true;
  /** returns undefined when the text is no good */
  read(text: string): Value | undefined;
}

const text = (value: string): string => value;
const optional = (value: string): string | null => (value === '' ? null : value);
const flag = (value: string): boolean | undefined =>
  value === 'true' || value === '1' || value === ''
    ? true
    : value === 'false' || value === '0'
      ? false
      : undefined;
const whole =
  (least: number, most: number) =>
  (value: string): number | undefined =>
    /^\d{1,15}$/.test(value) && Number(value) >= least && Number(value) <= most ? Number(value) : undefined;

const duration = (fallback: number, help: string): Setting<number> => ({
  help,
  value: 'ms',
  fallback: String(fallback),
  read: whole(0, Number.MAX_SAFE_INTEGER),
});

const quota = (fallback: number, help: string): Setting<number> => ({
  help,
  value: 'count',
  fallback: String(fallback),
  read: whole(1, Number.MAX_SAFE_INTEGER),
});

/** http and https URLs; credentials in them would end in no request, and fragments mean nothing. */
function readWebhooks(value: string): readonly string[] | undefined {
  const urls = value.split(',').flatMap((url) => url.trim() || []);
  const isGood = (text: string): boolean => {
    const url = URL.parse(text);
    return url !== null && /^https?:$/.test(url.protocol) && url.username === '' && url.password === '';
  };
  return urls.every(isGood) ? [...new Set(urls)] : undefined;
}

/** Keys as in the YAML file; the flag is `--key`, the environment variable `BERTH_KEY` with underscores. */
export const SETTINGS = {
  data: { help: 'directory of database, blobs and keys', value: 'directory', fallback: '', read: text },
  port: {
    help: 'port of everything; 0 takes a free one',
    value: 'port',
    fallback: '7327',
    read: whole(0, 65_535),
  },
  workers: {
    help: 'threads that serve requests, or "cores" for one on each core',
    value: 'count',
    fallback: '1',
    read: (value) => (value === 'cores' ? availableParallelism() : whole(1, 64)(value)),
  },
  host: { help: 'address to bind', value: 'address', fallback: '127.0.0.1', read: text },
  account: {
    help: 'account made at first start, and the default of requests that name none',
    value: 'id',
    fallback: '000000000000',
    read: (value) => (isAccountId(value) ? value : undefined),
  } satisfies Setting<string>,
  region: {
    help: 'region of requests that name none',
    value: 'name',
    fallback: 'us-east-1',
    read: (value) => (isRegionName(value) ? value : undefined),
  } satisfies Setting<string>,
  regions: {
    help: 'regions requests may be signed for, separated by commas; empty accepts every region name',
    value: 'names',
    fallback: '',
    read: (value) => {
      const names = value.split(',').flatMap((name) => name.trim() || []);
      return names.every(isRegionName) ? names : undefined;
    },
  } satisfies Setting<readonly string[]>,
  database: {
    help: 'postgres:// URL; empty keeps the metadata in the data directory (SQLite)',
    value: 'url',
    fallback: '',
    secret: true,
    read: (value) => (value === '' || /^postgres(ql)?:\/\//.test(value) ? value : undefined),
  } satisfies Setting<string>,
  'registry-host': {
    help: 'host in repository URIs; may contain {account}, {region} and {port}',
    value: 'template',
    fallback: 'localhost:{port}',
    read: (value) => (/^[A-Za-z0-9.:{}-]+$/.test(value) ? value : undefined),
  } satisfies Setting<string>,
  guardrails: {
    help: 'YAML or JSON file of service control and resource control policies by account',
    value: 'file',
    fallback: '',
    read: optional,
  },
  'issuer-hosts': {
    help: 'hosts (or host:port) of token issuers that may have private addresses and plain HTTP, separated by commas',
    value: 'hosts',
    fallback: '',
    read: (value) => {
      const hosts = value.split(',').flatMap((host) => host.trim() || []);
      return hosts.every((host) => /^[A-Za-z0-9.[\]:-]+$/.test(host)) ? hosts : undefined;
    },
  } satisfies Setting<readonly string[]>,
  tls: { help: 'serve HTTPS with the certificate that "berth tls init" made', fallback: 'false', read: flag },
  'tls-cert': { help: 'PEM certificate chain; serves HTTPS', value: 'file', fallback: '', read: optional },
  'tls-key': { help: 'PEM private key of tls-cert', value: 'file', fallback: '', read: optional },
  'insecure-http': {
    help: 'allow plain HTTP on an address that is not loopback',
    fallback: 'false',
    read: flag,
  },
  'log-level': {
    help: LOG_LEVELS.join(', '),
    value: 'level',
    fallback: 'info',
    read: (value) => LOG_LEVELS.find((level) => level === value),
  } satisfies Setting<LogLevel>,
  json: { help: 'print one JSON line instead of the banner', fallback: 'false', read: flag },
  'root-access-key-id': {
    help: 'fixed root credentials of the account: key id',
    value: 'id',
    fallback: '',
    secret: true,
    read: (value) => (value === '' || /^\w{16,128}$/.test(value) ? value : undefined),
  } satisfies Setting<string>,
  'root-secret-access-key': {
    help: 'fixed root credentials of the account: secret',
    value: 'secret',
    fallback: '',
    secret: true,
    read: (value) => (value === '' || value.length >= 16 ? value : undefined),
  } satisfies Setting<string>,
  webhooks: {
    help: 'URLs that events are posted to, separated by commas',
    value: 'urls',
    fallback: '',
    read: readWebhooks,
  } satisfies Setting<readonly string[]>,
  'webhook-form': {
    help: 'eventbridge or cloudevents',
    value: 'form',
    fallback: 'eventbridge',
    read: (value) => (['eventbridge', 'cloudevents'] as const).find((form) => form === value),
  } satisfies Setting<'eventbridge' | 'cloudevents'>,
  'webhook-secret': {
    help: 'key of the signatures of events, at least 16 characters',
    value: 'secret',
    fallback: '',
    secret: true,
    read: (value) => (value === '' || value.length >= 16 ? value : undefined),
  } satisfies Setting<string>,
  'pull-events': { help: 'send events of pulls as well, which ECR does not', fallback: 'false', read: flag },
  'event-retention-ms': duration(LIMITS.eventRetentionMs, 'how long events and dead letters are kept'),
  'audit-log': {
    help: 'directory of the audit log; empty for audit/ in the data directory, "off" for none',
    value: 'directory',
    fallback: '',
    read: text,
  },
  'audit-file-bytes-max': {
    help: 'size at which a file of the audit log is followed by the next',
    value: 'bytes',
    fallback: String(LIMITS.auditFileBytesMax),
    read: whole(65_536, Number.MAX_SAFE_INTEGER),
  },
  'audit-files-max': {
    help: 'files of the audit log that are kept',
    value: 'count',
    fallback: String(LIMITS.auditFilesMax),
    read: whole(1, 1_000_000),
  },
  metrics: {
    help: 'on or off: whether /metrics is served',
    value: 'on|off',
    fallback: 'on',
    read: (value) => (value === 'on' ? true : value === 'off' ? false : undefined),
  } satisfies Setting<boolean>,
  'metrics-token': {
    help: 'bearer token of /metrics; without it only a server on a loopback address serves metrics',
    value: 'token',
    fallback: '',
    secret: true,
    read: (value) => (value === '' || /^[\w.~+/=-]{16,512}$/.test(value) ? value : undefined),
  } satisfies Setting<string>,
  'organization-id': {
    help: 'organisation of all accounts, o- and 10 to 32 small letters and digits, for aws:PrincipalOrgID in policies',
    value: 'o-id',
    fallback: '',
    read: (value) => (/^(o-[a-z0-9]{10,32})?$/.test(value) ? value : undefined),
  } satisfies Setting<string>,
  'repositories-max': {
    help: 'repositories an account may have in a region',
    value: 'count',
    fallback: String(LIMITS.repositoriesMax),
    read: whole(1, 1_000_000_000),
  },
  'images-per-repository-max': {
    help: 'images a repository may have',
    value: 'count',
    fallback: String(LIMITS.imagesPerRepositoryMax),
    read: whole(1, 1_000_000_000),
  },
  'uploads-per-repository-max': quota(
    LIMITS.uploadsPerRepositoryMax,
    'unfinished layer uploads a repository may have',
  ),
  'tags-per-image-max': quota(LIMITS.tagsPerImageMax, 'tags an image may have'),
  'layer-bytes-max': quota(LIMITS.layerBytesMax, 'bytes a layer may have'),
  'layer-parts-max': quota(LIMITS.layerPartsMax, 'parts a layer may be uploaded in by UploadLayerPart'),
  'creation-templates-max': quota(
    LIMITS.creationTemplatesMax,
    'repository creation templates a registry may have',
  ),
  'pull-time-exclusions-max': quota(
    LIMITS.pullTimeExclusionsMax,
    'principals a registry may exclude from pull times',
  ),
  'connections-max': quota(
    LIMITS.connectionsMax,
    'open connections; the oldest idle ones make room for new ones',
  ),
  'requests-in-flight-max': quota(
    LIMITS.requestsInFlightMax,
    'requests under way, transfers of blobs not counted; others wait briefly, then get 503',
  ),
  'transfers-in-flight-max': quota(
    LIMITS.transfersInFlightMax,
    'uploads and downloads of blobs under way, each of up to 1 MiB of memory',
  ),
  'rate-limits': {
    help: 'requests per second of each principal: "ecr" for the quotas of Amazon ECR, or action=rate/burst, separated by commas',
    value: 'limits',
    fallback: '',
    read: readRateLimits,
  } satisfies Setting<readonly RateLimit[]>,
  'sparse-manifests': {
    help: 'what a pushed manifest may name that the repository does not have: "refuse" for nothing, as in ECR, "indexes" for members of an index, "all" for layers as well',
    value: SPARSE_MANIFESTS.join('|'),
    fallback: 'refuse',
    read: (value) => SPARSE_MANIFESTS.find((choice) => choice === value),
  } satisfies Setting<SparseManifests>,
  'gc-interval-ms': duration(60_000, 'time between rounds of garbage collection'),
  'upload-idle-ms': duration(LIMITS.uploadIdleMs, 'an unfinished upload expires after this silence'),
  'blob-lease-ms': duration(LIMITS.blobLeaseMs, 'how long content stays that no image refers to'),
  'trash-grace-ms': duration(
    LIMITS.trashGraceMs,
    'time between the removal of the last row and of the bytes',
  ),
  'orphan-age-ms': duration(LIMITS.orphanAgeMs, 'age at which a stored file without a row is removed'),
} as const satisfies Record<string, Setting<unknown>>;

export type SettingKey = keyof typeof SETTINGS;
type CamelCase<Key extends string> = Key extends `${infer Head}-${infer Tail}`
  ? `${Head}${Capitalize<CamelCase<Tail>>}`
  : Key;
export type Config = {
  readonly [Key in SettingKey as CamelCase<Key>]: Exclude<
    ReturnType<(typeof SETTINGS)[Key]['read']>,
    undefined
  >;
};

const SETTING_KEYS = Object.keys(SETTINGS) as SettingKey[];

/** The platform's user data directory + `/berth`. */
export function defaultDataDirectory(env: NodeJS.ProcessEnv, platform: NodeJS.Platform): string {
  if (platform === 'darwin') return join(homedir(), 'Library', 'Application Support', 'berth');
  if (platform === 'win32') return join(env['LOCALAPPDATA'] ?? join(homedir(), 'AppData', 'Local'), 'berth');
  return join(env['XDG_DATA_HOME'] || join(homedir(), '.local', 'share'), 'berth');
}

export interface ConfigSources {
  /** texts by setting key, as given on the command line */
  readonly flags: Readonly<Record<string, string | undefined>>;
  readonly env: NodeJS.ProcessEnv;
  /** the YAML file, when one is named (`--config`, `BERTH_CONFIG`) */
  readonly file?: string | undefined;
  readonly platform: NodeJS.Platform;
}

/** @throws ConfigError naming the first key that is unknown or has a bad value */
export function readConfig(sources: ConfigSources): Config {
  const file = readConfigFile(sources.file ?? sources.env['BERTH_CONFIG']);
  checkEnvironment(sources.env);
  const config: Record<string, unknown> = {};
  for (const key of SETTING_KEYS) {
    const setting: Setting<unknown> = SETTINGS[key];
    const [value, origin] = findText(key, setting, sources, file);
    const parsed = setting.read(value);
    if (parsed === undefined) {
      const shown = setting.secret === true ? '' : ` "${value}"`;
      throw new ConfigError(`Bad value${shown} for ${key} (${origin}): ${setting.help}`);
    }
    config[key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())] = parsed;
  }
  config['data'] = resolve((config['data'] as string) || defaultDataDirectory(sources.env, sources.platform));
  return checkTogether(Object.freeze(config) as Config);
}

function variableOf(key: string): string {
  return `BERTH_${key.toUpperCase().replaceAll('-', '_')}`;
}

function findText(
  key: SettingKey,
  setting: Setting<unknown>,
  { flags, env }: ConfigSources,
  file: ReadonlyMap<string, string>,
): [value: string, origin: string] {
  const given = flags[key];
  if (given !== undefined) return [given, `--${key}`];
  const variable = variableOf(key);
  const path = env[`${variable}_FILE`];
  if (setting.secret === true && path !== undefined) {
    return [readNamedFile(path, `${variable}_FILE`).trim(), `${variable}_FILE`];
  }
  const value = env[variable];
  if (value !== undefined) return [value, variable];
  const fromFile = file.get(key);
  return fromFile === undefined ? [setting.fallback, 'default'] : [fromFile, 'configuration file'];
}

function checkEnvironment(env: NodeJS.ProcessEnv): void {
  const known = new Set(['BERTH_CONFIG']);
  for (const key of SETTING_KEYS) {
    known.add(variableOf(key));
    if ('secret' in SETTINGS[key]) known.add(`${variableOf(key)}_FILE`);
  }
  for (const name of Object.keys(env)) {
    if (name.startsWith('BERTH_') && !known.has(name))
      throw new ConfigError(`Unknown setting ${name} (environment)`);
  }
}

function readNamedFile(path: string, origin: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new ConfigError(`Cannot read ${path} (${origin}): ${(error as Error).message}`);
  }
}

function readConfigFile(path: string | undefined): Map<string, string> {
  const values = new Map<string, string>();
  if (path === undefined) return values;
  let document: unknown;
  try {
    document = parse(readNamedFile(path, 'configuration file'));
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`${path} is not YAML: ${(error as Error).message}`);
  }
  if (document === null) return values;
  if (typeof document !== 'object' || Array.isArray(document)) {
    throw new ConfigError(`${path} must hold settings as "key: value" lines`);
  }
  for (const [key, value] of Object.entries(document)) {
    if (!Object.hasOwn(SETTINGS, key)) throw new ConfigError(`Unknown setting ${key} (${path})`);
    if (!['string', 'number', 'boolean'].includes(typeof value)) {
      throw new ConfigError(`Bad value for ${key} (${path}): one text, number or boolean is expected`);
    }
    values.set(key, String(value));
  }
  return values;
}

/** The content of the file that the setting `guardrails` names. @throws ConfigError */
export function readGuardrailsFile(path: string): unknown {
  try {
    return parse(readNamedFile(path, 'guardrails'));
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`${path} (guardrails) is neither YAML nor JSON: ${(error as Error).message}`);
  }
}

function checkTogether(config: Config): Config {
  if ((config.tlsCert === null) !== (config.tlsKey === null)) {
    throw new ConfigError('tls-cert and tls-key go together: only one of them is set');
  }
  if ((config.rootAccessKeyId === '') !== (config.rootSecretAccessKey === '')) {
    throw new ConfigError(
      'root-access-key-id and root-secret-access-key go together: only one of them is set',
    );
  }
  if (config.tls && config.tlsCert !== null) {
    throw new ConfigError(
      'tls and tls-cert exclude each other: tls takes the certificate of the data directory',
    );
  }
  if (!speaksTls(config) && !config.insecureHttp && !isLoopback(config.host)) {
    throw new ConfigError(
      `host ${config.host} is not loopback: passwords would cross the network in clear. ` +
        'Set tls, or tls-cert and tls-key, or insecure-http if something in front speaks TLS.',
    );
  }
  if (config.regions.length > 0 && !config.regions.includes(config.region)) {
    throw new ConfigError(`region ${config.region} is not among regions (${config.regions.join(', ')})`);
  }
  return config;
}

/** Whether the listener speaks HTTPS. */
export function speaksTls(config: Pick<Config, 'tls' | 'tlsCert'>): boolean {
  return config.tls || config.tlsCert !== null;
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}
