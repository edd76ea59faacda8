/** What docker and podman are told about a registry: logins, credential helpers, insecure registries, authorities. */
import { access, constants, readFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { failure, ok, warning, type Finding, type Subject } from './doctor-finding.ts';
import { isLoopback, type NetworkFacts, type ProxySetting } from './doctor-network.ts';
import type { TokenAnswer } from './explain-text.ts';

/** A configuration file with logins. */
export interface LoginFile {
  readonly path: string;
  readonly program: 'docker' | 'podman';
  /** why it cannot be used */
  readonly error?: string;
  /** by key as it is written; the decoded `user:password`, undefined when the entry holds none */
  readonly auths: ReadonlyMap<string, string | undefined>;
  readonly credHelpers: ReadonlyMap<string, string>;
  readonly credsStore: string | undefined;
}

export interface DaemonFacts {
  readonly path: string;
  readonly error?: string;
  readonly insecureRegistries: readonly string[];
  readonly proxies: ProxySetting | undefined;
}

export interface DockerFacts {
  readonly files: readonly LoginFile[];
  /** `docker-credential-…` programs that were looked for: whether they are on PATH */
  readonly helpers: ReadonlyMap<string, boolean>;
  readonly daemon: DaemonFacts;
  /** where docker looks for the registry's authority */
  readonly authorityFile: string;
  readonly hasAuthority: boolean;
  /** the login docker would use, if it is one of Berth's tokens */
  readonly token?: TokenAnswer | undefined;
}

/** Places that tests put elsewhere. */
export interface Places {
  readonly env: NodeJS.ProcessEnv;
  readonly home: string;
  /** /etc/docker */
  readonly dockerDirectory: string;
}

export async function probeDocker({ host }: Subject, places: Places): Promise<DockerFacts> {
  const files = (await Promise.all(loginPaths(places).map(readLoginFile))).filter((it) => it !== undefined);
  const names = new Set(
    files.flatMap(({ credHelpers, credsStore }) => [credHelpers.get(host) ?? [], credsStore ?? []].flat()),
  );
  const helpers = new Map<string, boolean>();
  for (const name of names) helpers.set(name, await isOnPath(`docker-credential-${name}`, places.env));
  const authorityFile = join(places.dockerDirectory, 'certs.d', host, 'ca.crt');
  return {
    files,
    helpers,
    daemon: await readDaemon(join(places.dockerDirectory, 'daemon.json')),
    authorityFile,
    hasAuthority: await readFile(authorityFile).then(
      () => true,
      () => false,
    ),
  };
}

function loginPaths({ env, home }: Places): readonly (readonly [LoginFile['program'], string])[] {
  const podman =
    env['REGISTRY_AUTH_FILE'] ||
    join(env['XDG_RUNTIME_DIR'] || join(home, '.config'), 'containers', 'auth.json');
  return [
    ['docker', join(env['DOCKER_CONFIG'] || join(home, '.docker'), 'config.json')],
    ['podman', podman],
  ];
}

async function readLoginFile([program, path]: readonly [LoginFile['program'], string]): Promise<
  LoginFile | undefined
> {
  const nothing = { path, program, auths: new Map(), credHelpers: new Map(), credsStore: undefined };
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    return code === 'ENOENT' ? undefined : { ...nothing, error: code };
  }
  try {
    const { auths, credHelpers, credsStore } = objectOf(JSON.parse(text));
    return {
      path,
      program,
      auths: new Map(Object.entries(objectOf(auths)).map(([key, entry]) => [key, loginOf(entry)])),
      credHelpers: new Map(
        Object.entries(objectOf(credHelpers)).flatMap(([key, name]) =>
          typeof name === 'string' ? [[key, name] as const] : [],
        ),
      ),
      credsStore: typeof credsStore === 'string' && credsStore !== '' ? credsStore : undefined,
    };
  } catch {
    // WHY not the parser's words: they quote the file, which holds passwords.
    return { ...nothing, error: 'it is no JSON' };
  }
}

function objectOf(value: unknown): Record<string, unknown> {
  if (value === undefined || value === null) return {};
  if (typeof value !== 'object' || Array.isArray(value)) throw new TypeError('not an object');
  return value as Record<string, unknown>;
}

function loginOf(entry: unknown): string | undefined {
  const { auth } = objectOf(entry);
  return typeof auth === 'string' && auth !== '' ? Buffer.from(auth, 'base64').toString('latin1') : undefined;
}

async function isOnPath(program: string, env: NodeJS.ProcessEnv): Promise<boolean> {
  for (const directory of (env['PATH'] ?? '').split(delimiter)) {
    if (directory === '') continue;
    const found = await access(join(directory, program), constants.X_OK).then(
      () => true,
      () => false,
    );
    if (found) return true;
  }
  return false;
}

async function readDaemon(path: string): Promise<DaemonFacts> {
  const nothing = { path, insecureRegistries: [], proxies: undefined };
  const text = await readFile(path, 'utf8').catch(() => undefined);
  if (text === undefined) return nothing;
  try {
    const settings = objectOf(JSON.parse(text));
    const insecure = settings['insecure-registries'];
    const proxies = objectOf(settings['proxies']);
    const of = (key: string): string | undefined => {
      const value = proxies[key];
      return typeof value === 'string' && value !== '' ? value : undefined;
    };
    return {
      path,
      insecureRegistries: Array.isArray(insecure) ? insecure.map(String) : [],
      proxies: { from: path, http: of('http-proxy'), https: of('https-proxy'), noProxy: of('no-proxy') },
    };
  } catch {
    return { ...nothing, error: 'it is no JSON' };
  }
}

/** Keys of logins that mean this host although they are not spelt as docker looks them up. */
function plainKey(key: string): string {
  return (key.replace(/^[a-z]+:\/\//i, '').split('/')[0] ?? '').toLowerCase();
}

/** The password docker would send to the host: what a login kept in a file. */
export function keptLogin({ host }: Subject, { files }: Pick<DockerFacts, 'files'>): string | undefined {
  for (const { auths } of files) {
    for (const [key, login] of auths) if (plainKey(key) === host && login !== undefined) return login;
  }
  return undefined;
}

export function diagnoseDocker(
  subject: Subject,
  facts: DockerFacts,
  network: NetworkFacts,
  now: number,
): Finding[] {
  const findings = facts.files.flatMap((file) => fileFindings(subject, file, facts));
  if (!facts.files.some((file) => hasLogin(subject, file))) {
    findings.push(noLogin(subject, facts));
  }
  if (facts.token !== undefined) findings.push(tokenFinding(subject, facts.token, now));
  findings.push(...transportFindings(subject, facts, network));
  if (facts.daemon.error !== undefined) {
    findings.push(
      failure(
        'docker.daemon-config',
        `${facts.daemon.path} cannot be read: ${facts.daemon.error}.`,
        'dockerd does not start with it.',
        `Correct it: python3 -m json.tool ${facts.daemon.path}`,
      ),
    );
  }
  return findings;
}

const loginLine = ({ host }: Subject): string =>
  `aws ecr get-login-password | docker login --username AWS --password-stdin ${host}   (or: berth login)`;

function hasLogin({ host }: Subject, { auths, credHelpers, credsStore }: LoginFile): boolean {
  return (
    credHelpers.has(host) ||
    credsStore !== undefined ||
    [...auths].some(([key, login]) => plainKey(key) === host && login !== undefined)
  );
}

function fileFindings(subject: Subject, file: LoginFile, { helpers }: DockerFacts): Finding[] {
  const { host } = subject;
  const { path, error, auths, credHelpers, credsStore } = file;
  if (error !== undefined) {
    return [
      failure(
        'docker.config',
        `${path} cannot be used: ${error}.`,
        `${file.program} finds no login in it, and asks the registry without one.`,
        `Correct it (python3 -m json.tool ${path}), or move it away and log in again.`,
      ),
    ];
  }
  const findings: Finding[] = [];
  const helper = credHelpers.get(host) ?? credsStore;
  if (helper !== undefined && helpers.get(helper) === false) {
    const key = credHelpers.has(host) ? `credHelpers."${host}"` : 'credsStore';
    findings.push(
      failure(
        'docker.helper-missing',
        `The credential helper docker-credential-${helper} is not on PATH.`,
        `${path} names it in ${key}, so ${file.program} asks it for every login to ${host} and gets none.`,
        `Install docker-credential-${helper}, or take ${key} out of ${path}.`,
      ),
    );
  } else if (helper !== undefined) {
    findings.push(ok('docker.helper', `${path} leaves logins for ${host} to docker-credential-${helper}.`));
  }
  const kept = [...auths].filter(([key, login]) => plainKey(key) === host && login !== undefined);
  if (helper !== undefined && kept.length > 0) {
    findings.push(
      warning(
        'docker.stale-login',
        `${path} has a login for ${host} beside the credential helper ${helper}.`,
        'Some programs take the kept login, which is over after twelve hours, instead of asking the helper.',
        `docker logout ${host}`,
      ),
    );
  }
  const misspelt = [...credHelpers.keys()].filter((key) => key !== host && plainKey(key) === host);
  for (const key of misspelt) {
    findings.push(
      failure(
        'docker.key',
        `${path} names the helper under "${key}", which no program looks up.`,
        'Keys of credHelpers are host names with their port, without scheme and path.',
        `Rename the key to "${host}".`,
      ),
    );
  }
  for (const [key] of kept) {
    if (key === host) continue;
    findings.push(
      warning(
        'docker.key',
        `${path} has the login under "${key}" instead of "${host}".`,
        'That is the form of old versions; podman, buildkit and others look for the bare host name.',
        `docker logout ${key}\n${loginLine(subject)}`,
      ),
    );
  }
  return findings;
}

function noLogin(subject: Subject, { files }: DockerFacts): Finding {
  const { name, host } = subject;
  const near = files.flatMap(({ auths }) =>
    [...auths.keys()].map(plainKey).filter((key) => key !== host && key.replace(/:\d+$/, '') === name),
  );
  const similar =
    near.length > 0
      ? ` There is one for ${near.join(', ')}, and logins are for exactly one host and port.`
      : '';
  return warning(
    'docker.no-login',
    `Neither docker nor podman has a login for ${host}.`,
    `A pull ends with "no basic auth credentials".${similar}`,
    loginLine(subject),
  );
}

function tokenFinding(subject: Subject, token: TokenAnswer, now: number): Finding {
  const { state, reason = '', issuedAt, expiresAt, principalArn = 'somebody' } = token;
  const fix = `docker logout ${subject.host}\n${loginLine(subject)}`;
  if (state === 'unknown') {
    return failure(
      'docker.token',
      `The kept login for ${subject.host} is no token of this server for your account.`,
      "It is another registry's, another account's, or the keys of the server were replaced.",
      fix,
    );
  }
  const hours = (seconds: number): string =>
    `${Math.abs(seconds - now / 1000) / 3600 < 0.05 ? '0' : (Math.abs(seconds - now / 1000) / 3600).toFixed(1)} hours`;
  if (state === 'expired') {
    return failure(
      'docker.token',
      `The kept login for ${subject.host} expired ${hours(expiresAt ?? 0)} ago.`,
      'Registry tokens are good for twelve hours.',
      `${fix}\nTo be rid of it: a credential helper, "credHelpers": {"${subject.host}": "berth"}`,
    );
  }
  if (state === 'revoked') {
    return failure('docker.token', `The kept login for ${subject.host} does not work any more.`, reason, fix);
  }
  return ok(
    'docker.token',
    `The kept login is ${principalArn}'s, ${hours(issuedAt ?? 0)} old and good for ${hours(expiresAt ?? 0)} more.`,
  );
}

function transportFindings(
  { name, host }: Subject,
  { daemon, authorityFile, hasAuthority }: DockerFacts,
  { scheme, addresses, certificate }: NetworkFacts,
): Finding[] {
  if (scheme === 'http') {
    const listed = daemon.insecureRegistries.some((entry) => entry === host || entry === name);
    const local = name === 'localhost' || isLoopback(name);
    if (listed || local) return [ok('docker.insecure-registry', `docker speaks plain HTTP with ${host}.`)];
    const registries = JSON.stringify([...daemon.insecureRegistries, host]);
    const fix =
      `Put "insecure-registries": ${registries} into ${daemon.path} and restart docker.\n` +
      `podman: --tls-verify=false. Better: give the server a certificate (berth tls).`;
    const what = `${host} speaks plain HTTP, and docker is not told that it may.`;
    return addresses.length > 0 && addresses.every(isLoopback)
      ? [
          warning(
            'docker.insecure-registry',
            what,
            'The name is this machine, so docker login works; docker with the containerd image store still insists on TLS when it pushes and pulls.',
            fix,
          ),
        ]
      : [
          failure(
            'docker.insecure-registry',
            what,
            'For names other than localhost docker insists on TLS: "http: server gave HTTP response to HTTPS client".',
            fix,
          ),
        ];
  }
  if (certificate?.chain !== 'private' || hasAuthority) return [];
  return [
    warning(
      'docker.authority',
      `docker is not told of the private authority that signed the certificate of ${host}.`,
      `AWS_CA_BUNDLE is for AWS tools; docker reads ${authorityFile} or the authorities of the system.`,
      `mkdir -p ${authorityFile.replace(/\/ca\.crt$/, '')} && cp "$AWS_CA_BUNDLE" ${authorityFile}`,
    ),
  ];
}
