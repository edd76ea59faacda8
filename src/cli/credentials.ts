/**
 * Where AWS clients find credentials (AWS SDKs and Tools reference guide, "Standardized credential providers"): the
 * environment, a profile, a web identity token, the container endpoint of ECS and EKS Pod Identity, the instance metadata
 * service. A source is found without being asked; loading it may call a server.
 */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { sha256Hex, type Credentials } from '../lib/sigv4.ts';
import { CommandError } from './cli.ts';
import { callHttp } from './http-call.ts';

export interface TimedCredentials extends Credentials {
  /** epoch milliseconds; absent for what does not expire */
  readonly expiresAt?: number;
}

export interface CredentialSource {
  /** in words */
  readonly from: string;
  /**
   * Who that is, for caches: no secret, the same at the next call as long as the principal is. Absent when only the loaded
   * access key tells.
   */
  readonly principal?: string;
  /** Every load makes another session: nothing can be kept under its access key. */
  readonly isNewEachTime?: boolean;
  /** @throws CommandError */
  load(): Promise<TimedCredentials>;
}

/** Where STS is asked, which needs no credentials for web identities. */
export interface StsTarget {
  readonly endpoint: string;
  readonly ca: readonly string[] | undefined;
}

const LOCAL_MS = 2000;
const METADATA_MS = 1000;
const METADATA_TOKEN_SECONDS = 21_600;

/** The credentials of AWS's environment variables. */
export function credentialsOf(env: NodeJS.ProcessEnv): Credentials | undefined {
  const accessKeyId = env['AWS_ACCESS_KEY_ID'];
  const secretAccessKey = env['AWS_SECRET_ACCESS_KEY'];
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: env['AWS_SESSION_TOKEN'] || undefined };
}

/** A source of credentials that are there already. */
export function given(credentials: Credentials, from: string): CredentialSource {
  return { from, principal: credentials.accessKeyId, load: () => Promise.resolve(credentials) };
}

/** The profile of the shared credentials file, `AWS_PROFILE` or `default`. */
export async function findProfile(env: NodeJS.ProcessEnv): Promise<CredentialSource | undefined> {
  const file = env['AWS_SHARED_CREDENTIALS_FILE'] || join(env['HOME'] || homedir(), '.aws', 'credentials');
  const profile = env['AWS_PROFILE'] || 'default';
  const text = await readFile(file, 'utf8').catch(() => undefined);
  const kept = text === undefined ? undefined : readProfile(text, profile);
  return kept && given(kept, `profile ${profile} of ${file}`);
}

function readProfile(text: string, profile: string): Credentials | undefined {
  const values = new Map<string, string>();
  let here = false;
  for (const line of text.split(/\r?\n/)) {
    const section = /^\s*\[\s*([^\]]+?)\s*\]\s*$/.exec(line)?.[1];
    if (section !== undefined) here = section === profile;
    const [, key, value] = /^\s*([\w]+)\s*=\s*(\S+)\s*$/.exec(line) ?? [];
    if (here && key !== undefined && value !== undefined) values.set(key, value);
  }
  const accessKeyId = values.get('aws_access_key_id');
  const secretAccessKey = values.get('aws_secret_access_key');
  if (accessKeyId === undefined || secretAccessKey === undefined) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: values.get('aws_session_token') };
}

/** `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`: what EKS gives the pods of a service account with a role (IRSA). */
export function findWebIdentity(env: NodeJS.ProcessEnv, sts: StsTarget): CredentialSource | undefined {
  const file = env['AWS_WEB_IDENTITY_TOKEN_FILE'];
  const roleArn = env['AWS_ROLE_ARN'];
  if (!file || !roleArn) return undefined;
  const sessionName = env['AWS_ROLE_SESSION_NAME'] || 'berth';
  const from = `role ${roleArn} by the token in ${file}`;
  return {
    from,
    isNewEachTime: true,
    // WHY read at every load: the file is renewed in place
    load: async () =>
      assumeByToken(
        { roleArn, sessionName, token: await readSecret(file, 'AWS_WEB_IDENTITY_TOKEN_FILE') },
        sts,
      ),
  };
}

export interface WebIdentity {
  readonly roleArn: string;
  readonly sessionName: string;
  readonly token: string;
}

/** AssumeRoleWithWebIdentity, unsigned. @throws CommandError with the server's message */
export async function assumeByToken(
  { roleArn, sessionName, token }: WebIdentity,
  { endpoint, ca }: StsTarget,
): Promise<TimedCredentials> {
  const body = new URLSearchParams({
    Action: 'AssumeRoleWithWebIdentity',
    Version: '2011-06-15',
    RoleArn: roleArn,
    RoleSessionName: sessionName,
    WebIdentityToken: token,
  }).toString();
  const headers = { 'content-type': 'application/x-www-form-urlencoded; charset=utf-8' };
  const { status, text } = await callHttp({ method: 'POST', url: `${endpoint}/`, headers, body, ca });
  const element = (name: string): string => new RegExp(`<${name}>([^<]*)</${name}>`).exec(text)?.[1] ?? '';
  if (status !== 200) {
    throw new CommandError(
      `${roleArn} by web identity: ${element('Code') || `HTTP ${status}`}: ${element('Message')}`,
    );
  }
  return readTemporary(
    {
      AccessKeyId: element('AccessKeyId'),
      SecretAccessKey: element('SecretAccessKey'),
      Token: element('SessionToken'),
      Expiration: element('Expiration'),
    },
    endpoint,
  );
}

/** The container endpoint: `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` (ECS) or `…_FULL_URI` (ECS, EKS Pod Identity). */
export function findContainer(env: NodeJS.ProcessEnv): CredentialSource | undefined {
  const relative = env['AWS_CONTAINER_CREDENTIALS_RELATIVE_URI'];
  const full = env['AWS_CONTAINER_CREDENTIALS_FULL_URI'];
  if (!relative && !full) return undefined;
  const text = relative ? `http://169.254.170.2${relative}` : (full ?? '');
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !isContainerHost(url)) {
    throw new CommandError(
      'AWS_CONTAINER_CREDENTIALS_FULL_URI has to be https, or http to this machine, 169.254.170.2, 169.254.170.23 or [fd00:ec2::23]',
    );
  }
  return {
    from: `the container endpoint ${url.origin}`,
    async load() {
      const file = env['AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE'];
      const authorization = file
        ? await readSecret(file, 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE')
        : env['AWS_CONTAINER_AUTHORIZATION_TOKEN'];
      if (authorization !== undefined && /[\r\n]/.test(authorization)) {
        throw new CommandError('the container authorization token has a line break in it');
      }
      const { status, text: body } = await callHttp({
        method: 'GET',
        url: url.href,
        ...(authorization && { headers: { authorization } }),
        timeoutMs: LOCAL_MS,
      });
      if (status !== 200) throw new CommandError(`${url.origin} gives no credentials: HTTP ${status}`);
      return readTemporary(readJson(body, url.origin), url.origin);
    },
  };
}

/** INVARIANT: a token never goes in the clear to another machine. */
function isContainerHost({ protocol, hostname }: URL): boolean {
  if (protocol === 'https:') return true;
  return (
    protocol === 'http:' &&
    (/^127\.\d+\.\d+\.\d+$/.test(hostname) ||
      ['localhost', '[::1]', '169.254.170.2', '169.254.170.23', '[fd00:ec2::23]'].includes(hostname))
  );
}

/**
 * The role of the machine, by version 2 of the instance metadata service; undefined where there is none.
 *
 * @throws CommandError when there is one and it gives no credentials
 */
export async function findInstance(env: NodeJS.ProcessEnv): Promise<CredentialSource | undefined> {
  if (env['AWS_EC2_METADATA_DISABLED']?.toLowerCase() === 'true') return undefined;
  const sixth = env['AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE']?.toLowerCase() === 'ipv6';
  const named = env['AWS_EC2_METADATA_SERVICE_ENDPOINT'];
  const base = (named || (sixth ? 'http://[fd00:ec2::254]' : 'http://169.254.169.254')).replace(/\/+$/, '');
  if (!URL.canParse(base)) throw new CommandError('AWS_EC2_METADATA_SERVICE_ENDPOINT is not an address');
  const session = await callHttp({
    method: 'PUT',
    url: `${base}/latest/api/token`,
    headers: { 'x-aws-ec2-metadata-token-ttl-seconds': String(METADATA_TOKEN_SECONDS) },
    timeoutMs: METADATA_MS,
  }).catch(() => undefined);
  if (session?.status !== 200 || !/^[\x21-\x7e]+$/.test(session.text)) return undefined;
  const headers = { 'x-aws-ec2-metadata-token': session.text };
  const read = (path: string) =>
    callHttp({
      method: 'GET',
      url: `${base}/latest/meta-data/iam/security-credentials/${path}`,
      headers,
      timeoutMs: LOCAL_MS,
    });
  const roles = await read('');
  const role = roles.status === 200 ? roles.text.split('\n')[0]?.trim() : '';
  if (!role) return undefined;
  return {
    from: `the role ${role} of this machine (${base})`,
    async load() {
      const { status, text } = await read(encodeURIComponent(role));
      if (status !== 200) throw new CommandError(`${base} gives no credentials: HTTP ${status}`);
      return readTemporary(readJson(text, base), base);
    },
  };
}

/** The machine's own chain: what a node has and a person has not. @throws CommandError */
export async function findMachineSource(
  env: NodeJS.ProcessEnv,
  sts: StsTarget,
): Promise<CredentialSource | undefined> {
  const own = credentialsOf(env);
  if (own !== undefined) return given(own, 'the environment');
  return (
    findWebIdentity(env, sts) ?? (await findProfile(env)) ?? findContainer(env) ?? (await findInstance(env))
  );
}

/** A cache key's worth of a secret. */
export function fingerprint(...parts: readonly string[]): string {
  return sha256Hex(parts.join('\n'));
}

async function readSecret(file: string, variable: string): Promise<string> {
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw new CommandError(`cannot read the file of ${variable}: ${(error as Error).message}`);
  });
  return text.trim();
}

function readJson(text: string, origin: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  } catch {
    // told below
  }
  throw new CommandError(`${origin} gives no credentials: its answer is no JSON`);
}

/** The JSON of the container endpoint and of the instance metadata service. */
function readTemporary(answer: Readonly<Record<string, unknown>>, origin: string): TimedCredentials {
  const { AccessKeyId, SecretAccessKey, Token, Expiration, Code, Message } = answer;
  if (
    typeof AccessKeyId !== 'string' ||
    typeof SecretAccessKey !== 'string' ||
    AccessKeyId === '' ||
    SecretAccessKey === ''
  ) {
    const reason = [Code, Message].filter((each) => typeof each === 'string').join(': ');
    throw new CommandError(`${origin} gives no credentials${reason && `: ${reason}`}`);
  }
  const expiresAt = typeof Expiration === 'string' ? Date.parse(Expiration) : Number.NaN;
  return {
    accessKeyId: AccessKeyId,
    secretAccessKey: SecretAccessKey,
    sessionToken: typeof Token === 'string' ? Token : undefined,
    ...(Number.isFinite(expiresAt) && { expiresAt }),
  };
}
