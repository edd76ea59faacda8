/**
 * Calls of the commands to a running server: signed like any AWS client's, with the credentials and the endpoint such a
 * client would use, and the data directory's where there are none.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { rootCertificates } from 'node:tls';
import type { Config } from '../config.ts';
import { signRequest, type Credentials } from '../lib/sigv4.ts';
import { ecrModel, berthModel } from '../model/service-model.ts';
import { CommandError, type Surroundings } from './cli.ts';
import {
  credentialsOf,
  findContainer,
  findInstance,
  findProfile,
  findWebIdentity,
  given,
  type CredentialSource,
  type StsTarget,
} from './credentials.ts';
import { readCredentials, readServerRecord } from './data-directory.ts';
import { callHttp, type HttpAnswer } from './http-call.ts';

export { credentialsOf } from './credentials.ts';

export interface Client {
  /** scheme and authority */
  readonly endpoint: string;
  readonly region: string;
  readonly credentials: Credentials;
  /** where the credentials were found, in words */
  readonly credentialsFrom: string;
  /**
   * Calls an operation of a JSON service and resolves to its output. Timestamps are epoch seconds.
   *
   * @throws CallError with the server's code and message; CommandError when there is no answer
   */
  call<Output>(service: 'ecr' | 'berth', operation: string, input: object): Promise<Output>;
  /** `sts:GetCallerIdentity` */
  whoAmI(): Promise<{ readonly account: string; readonly arn: string; readonly userId: string }>;
}

/** A refusal of the server. */
export class CallError extends CommandError {
  readonly code: string;
  readonly status: number;
  readonly requestId: string | undefined;
  constructor(code: string, message: string, status: number, requestId: string | undefined) {
    super(`${code}: ${message}`);
    this.code = code;
    this.status = status;
    this.requestId = requestId;
  }
}

const MODELS = { ecr: ecrModel, berth: berthModel };
/** Credentials that end within this time are asked for again. */
export const RENEWAL_MS = 5 * 60_000;

/** A server, and how it is called. */
export interface Target extends StsTarget {
  /** scheme and authority */
  readonly endpoint: string;
  readonly region: string;
}

/** @throws CommandError when no server or no credentials are known */
export async function createClient(
  config: Pick<Config, 'data'>,
  { env }: Pick<Surroundings, 'env'>,
): Promise<Client> {
  const target = await findTarget(config.data, env);
  return connect(target, await findSource(config.data, env, target));
}

/**
 * A client with the credentials of a source, which is asked again when they are about to expire.
 *
 * @throws CommandError when the source gives none
 */
export async function connect(target: Target, source: CredentialSource): Promise<Client> {
  const { endpoint, region, ca } = target;
  const credentials = await source.load();
  let newest = credentials;
  const post = async (
    service: string,
    headers: Readonly<Record<string, string>>,
    body: string,
  ): Promise<HttpAnswer> => {
    const now = Date.now();
    if ((newest.expiresAt ?? Infinity) - now < RENEWAL_MS) newest = await source.load();
    const url = `${endpoint}/`;
    const signed = signRequest({ method: 'POST', url, headers, body }, newest, { region, service, now });
    return callHttp({ method: 'POST', url, headers: signed, body, ca });
  };
  return {
    endpoint,
    region,
    credentials,
    credentialsFrom: source.from,
    async call<Output>(service: 'ecr' | 'berth', operation: string, input: object) {
      const target = `${MODELS[service].metadata.targetPrefix}.${operation}`;
      const headers = { 'content-type': 'application/x-amz-json-1.1', 'x-amz-target': target };
      const answer = await post(service, headers, JSON.stringify(input));
      const body = parse(answer);
      if (answer.status === 200) return body as Output;
      const { __type: code, message } = body as { __type?: string; message?: string };
      throw new CallError(code ?? `HTTP ${answer.status}`, message ?? '', answer.status, answer.requestId);
    },
    async whoAmI() {
      const headers = { 'content-type': 'application/x-www-form-urlencoded; charset=utf-8' };
      const answer = await post('sts', headers, 'Action=GetCallerIdentity&Version=2011-06-15');
      const element = (name: string): string =>
        new RegExp(`<${name}>([^<]*)</${name}>`).exec(answer.text)?.[1] ?? '';
      if (answer.status === 200) {
        return { account: element('Account'), arn: element('Arn'), userId: element('UserId') };
      }
      throw new CallError(element('Code'), element('Message'), answer.status, answer.requestId);
    },
  };
}

/**
 * `AWS_ENDPOINT_URL`, else the server of the data directory; the region likewise.
 *
 * @throws CommandError when neither is there
 */
export async function findTarget(data: string, env: NodeJS.ProcessEnv): Promise<Target> {
  const named = env['AWS_ENDPOINT_URL'];
  const region = env['AWS_REGION'] || env['AWS_DEFAULT_REGION'];
  if (named === undefined || named === '') {
    const server = await readServerRecord(data);
    return targetOf(server.endpoint, region ?? server.region, data, env);
  }
  if (!URL.canParse(named) || !/^https?:$/.test(new URL(named).protocol)) {
    throw new CommandError(`AWS_ENDPOINT_URL is not an HTTP address: ${named}`);
  }
  return targetOf(new URL(named).origin, region ?? 'us-east-1', data, env);
}

/** @throws CommandError when `AWS_CA_BUNDLE` cannot be read */
export async function targetOf(
  endpoint: string,
  region: string,
  data: string,
  env: NodeJS.ProcessEnv,
): Promise<Target> {
  return {
    endpoint,
    region,
    ca: endpoint.startsWith('https:') ? await readAuthorities(data, env) : undefined,
  };
}

/**
 * As the AWS CLI finds them: environment, named profile, web identity, container; then those of the first start, the
 * default profile, the machine's role.
 *
 * @throws CommandError when there are none
 */
export async function findSource(
  data: string,
  env: NodeJS.ProcessEnv,
  target: StsTarget,
): Promise<CredentialSource> {
  const own = credentialsOf(env);
  if (own !== undefined) return given(own, 'the environment');
  const none = new CommandError('no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY');
  // WHY: a profile that is named wins; an unnamed default one is somebody's for AWS itself.
  if (env['AWS_PROFILE'] !== undefined || env['AWS_SHARED_CREDENTIALS_FILE'] !== undefined) {
    const profile = await findProfile(env);
    if (profile === undefined) throw none;
    return profile;
  }
  const machine = findWebIdentity(env, target) ?? findContainer(env);
  if (machine !== undefined) return machine;
  const first = await readCredentials(data);
  if (first !== undefined) return given(first, join(data, 'bootstrap', 'credentials'));
  const source = (await findProfile(env)) ?? (await findInstance(env));
  if (source === undefined) throw none;
  return source;
}

/** What may sign the server's certificate: `AWS_CA_BUNDLE` alone, or the usual authorities and the data directory's own. */
async function readAuthorities(data: string, env: NodeJS.ProcessEnv): Promise<readonly string[] | undefined> {
  const bundle = env['AWS_CA_BUNDLE'];
  if (bundle !== undefined && bundle !== '') {
    const text = await readFile(bundle, 'utf8').catch((error: unknown) => {
      throw new CommandError(`cannot read AWS_CA_BUNDLE: ${(error as Error).message}`);
    });
    return [text];
  }
  const own = await readFile(join(data, 'tls', 'ca.pem'), 'utf8').catch(() => undefined);
  return own === undefined ? undefined : [...rootCertificates, own];
}

function parse({ text, status }: HttpAnswer): object {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // told below
  }
  throw new CommandError(`HTTP ${status}, and the answer is no JSON: is this a Berth server?`);
}
