/**
 * Calls of the commands to a running server: signed like any AWS client's, with the credentials and the endpoint such a
 * client would use, and the data directory's where there are none.
 */
import { readFile } from 'node:fs/promises';
import { request as sendHttp } from 'node:http';
import { request as sendHttps } from 'node:https';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { rootCertificates } from 'node:tls';
import type { Config } from '../config.ts';
import { signRequest, type Credentials } from '../lib/sigv4.ts';
import { ecrModel, berthModel } from '../model/service-model.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readCredentials, readServerRecord } from './data-directory.ts';

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

interface Answer {
  readonly status: number;
  readonly text: string;
  readonly requestId: string | undefined;
}

const MODELS = { ecr: ecrModel, berth: berthModel };
const ANSWER_MS = 30_000;
const ANSWER_CHARACTERS_MAX = 16 * 1_048_576;

/** @throws CommandError when no server or no credentials are known */
export async function createClient(
  config: Pick<Config, 'data'>,
  { env }: Pick<Surroundings, 'env'>,
): Promise<Client> {
  const { endpoint, region } = await findEndpoint(config.data, env);
  const found = await findCredentials(config.data, env);
  if (found === undefined) {
    throw new CommandError('no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY');
  }
  const { credentials, from } = found;
  const ca = endpoint.startsWith('https:') ? await readAuthorities(config.data, env) : undefined;
  const post = (
    service: string,
    headers: Readonly<Record<string, string>>,
    body: string,
  ): Promise<Answer> => {
    const request = { method: 'POST', url: `${endpoint}/`, headers, body };
    const signed = signRequest(request, credentials, { region, service, now: Date.now() });
    return send(endpoint, signed, body, ca);
  };
  return {
    endpoint,
    region,
    credentials,
    credentialsFrom: from,
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

/** `AWS_ENDPOINT_URL`, else the server of the data directory; the region likewise. */
async function findEndpoint(
  data: string,
  env: NodeJS.ProcessEnv,
): Promise<{ readonly endpoint: string; readonly region: string }> {
  const named = env['AWS_ENDPOINT_URL'];
  const region = env['AWS_REGION'] ?? env['AWS_DEFAULT_REGION'];
  if (named === undefined || named === '') {
    const server = await readServerRecord(data);
    return { endpoint: server.endpoint, region: region ?? server.region };
  }
  if (!URL.canParse(named) || !/^https?:$/.test(new URL(named).protocol)) {
    throw new CommandError(`AWS_ENDPOINT_URL is not an HTTP address: ${named}`);
  }
  return { endpoint: new URL(named).origin, region: region ?? 'us-east-1' };
}

/** As the AWS CLI finds them: environment, then the profile's file; then those of the first start. */
async function findCredentials(
  data: string,
  env: NodeJS.ProcessEnv,
): Promise<{ readonly credentials: Credentials; readonly from: string } | undefined> {
  const own = credentialsOf(env);
  if (own !== undefined) return { credentials: own, from: 'the environment' };
  const file = env['AWS_SHARED_CREDENTIALS_FILE'] ?? join(env['HOME'] ?? homedir(), '.aws', 'credentials');
  const profile = env['AWS_PROFILE'] ?? 'default';
  const kept = await readFile(file, 'utf8').then(
    (text) => readProfile(text, profile),
    () => undefined,
  );
  // WHY: a profile that is named wins; an unnamed default one is somebody's for AWS itself.
  if (env['AWS_PROFILE'] !== undefined || env['AWS_SHARED_CREDENTIALS_FILE'] !== undefined) {
    return kept && { credentials: kept, from: `profile ${profile} of ${file}` };
  }
  const first = await readCredentials(data);
  if (first !== undefined) return { credentials: first, from: join(data, 'bootstrap', 'credentials') };
  return kept && { credentials: kept, from: `profile ${profile} of ${file}` };
}

/** The credentials of AWS's environment variables. */
export function credentialsOf(env: NodeJS.ProcessEnv): Credentials | undefined {
  const accessKeyId = env['AWS_ACCESS_KEY_ID'];
  const secretAccessKey = env['AWS_SECRET_ACCESS_KEY'];
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: env['AWS_SESSION_TOKEN'] };
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

function send(
  endpoint: string,
  headers: Readonly<Record<string, string>>,
  body: string,
  ca: readonly string[] | undefined,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const fail = (reason: string): void => reject(new CommandError(`${endpoint} does not answer: ${reason}`));
    const options = { method: 'POST', headers, timeout: ANSWER_MS, ...(ca && { ca: [...ca] }) };
    const request = (endpoint.startsWith('https:') ? sendHttps : sendHttp)(endpoint, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part: string) => {
        text += part;
        if (text.length > ANSWER_CHARACTERS_MAX) response.destroy(new Error('the answer is too long'));
      });
      response.on('error', (error) => fail(error.message));
      response.on('end', () => {
        const requestId = response.headers['x-amzn-requestid'];
        resolve({
          status: response.statusCode ?? 0,
          text,
          requestId: typeof requestId === 'string' ? requestId : undefined,
        });
      });
    });
    request.on('timeout', () => request.destroy(new Error(`nothing came within ${ANSWER_MS / 1000} s`)));
    request.on('error', (error) => fail(error.message));
    request.end(body);
  });
}

function parse({ text, status }: Answer): object {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // told below
  }
  throw new CommandError(`HTTP ${status}, and the answer is no JSON: is this a Berth server?`);
}
