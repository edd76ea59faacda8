/**
 * EKS Pod Identity's agent on a node: pods ask it for the credentials of the role that their service account is associated
 * with. It proves nothing itself: the server verifies each token, and what this process may pass on is its own IAM policy.
 */
import { readFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Config } from '../config.ts';
import type { AssumeRoleForPodIdentityRequest } from '../model/berth-types.ts';
import { isMachineLocal, listenHttp, readListenAddress } from '../metadata/metadata.ts';
import { CallError, createClient } from './client.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { fingerprint } from './credentials.ts';

export interface AgentFlags {
  readonly cluster: string;
  /** a JSON file: what `aws eks list-pod-identity-associations` would tell */
  readonly associations: string;
  readonly listen: string;
  readonly json: boolean;
}

interface Association {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly roleArn: string;
}

interface Issued {
  readonly credentials: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken: string;
    /** epoch seconds */
    readonly expiration: number;
  };
}

/** What the agent answers a pod. */
interface Reply {
  readonly status: number;
  readonly body: object | string;
}

const TOKEN_CHARACTERS_MAX = 20_000;
const SESSIONS_MAX = 1000;
/** A session that ends within this time is not given out again: SDKs renew five to fifteen minutes before. */
const RENEWAL_MS = 20 * 60_000;

/** Serves `GET /v1/credentials` until SIGTERM or SIGINT. */
export async function podIdentityAgent(
  config: Config,
  surroundings: Surroundings,
  flags: AgentFlags,
): Promise<void> {
  const address = readListenAddress(flags.listen);
  if (address === undefined) {
    throw new CommandError(`--listen ${flags.listen} is not an IP address with a port`);
  }
  if (!isMachineLocal(address.host)) {
    throw new CommandError(`${address.host} is not this machine's alone: pods ask a link-local address`);
  }
  await readAssociations(flags.associations);
  const client = await createClient(config, surroundings);
  const { account } = await client.whoAmI();
  const note = (text: string): void => void surroundings.stderr.write(`berth pod-identity-agent: ${text}\n`);
  const answer = createAnswers(account, flags, async (input) => {
    // WHY anew each time: a server that came back elsewhere and a rotated key are found
    const caller = await createClient(config, surroundings);
    return caller.call<Issued>('berth', 'AssumeRoleForPodIdentity', input);
  });
  const hosts = hostsOf(address.host);
  const handler = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { status, body } = await reply(request, hosts, answer, note);
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    const type = typeof body === 'string' ? 'text/plain; charset=utf-8' : 'application/json';
    response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(text) }).end(text);
  };
  const listening = await listenHttp(address, handler, (error) => note(String(error))).catch(
    (error: unknown) => {
      throw new CommandError(`cannot listen: ${(error as Error).message}`);
    },
  );
  const uri = `${listening.endpoint}/v1/credentials`;
  surroundings.stdout.write(
    flags.json
      ? `${JSON.stringify({ uri, cluster: flags.cluster, pid: surroundings.pid })}\n`
      : `Pod Identity of cluster ${flags.cluster}: pods find it with AWS_CONTAINER_CREDENTIALS_FULL_URI=${uri}\n`,
  );
  await new Promise<void>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) surroundings.on(name, () => resolve());
  });
  await listening.close();
}

/** WHY: a page in a browser on the node may be led here by a name of its own (DNS rebinding). */
function hostsOf(host: string): ReadonlySet<string> {
  return new Set([host, `[${host}]`, '169.254.170.23', '[fd00:ec2::23]', 'localhost']);
}

async function reply(
  request: IncomingMessage,
  hosts: ReadonlySet<string>,
  answer: (token: string) => Promise<Reply>,
  note: (text: string) => void,
): Promise<Reply> {
  const [path] = (request.url ?? '').split('?');
  if (path === '/healthz') return { status: 200, body: 'ok' };
  if (path !== '/v1/credentials') return { status: 404, body: 'Not Found' };
  if (request.method !== 'GET') return { status: 405, body: 'Method Not Allowed' };
  const host = (request.headers.host ?? '').replace(/:\d+$/, '').toLowerCase();
  if (!hosts.has(host)) {
    return { status: 403, body: 'Access Denied. Called agent through invalid address' };
  }
  const token = request.headers.authorization ?? '';
  if (token === '') return { status: 400, body: 'Service account token cannot be empty' };
  try {
    return await answer(token);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    note(error.message);
    if (!(error instanceof CallError)) return { status: 503, body: 'Service Unavailable' };
    return { status: error.status >= 400 && error.status < 500 ? error.status : 502, body: error.message };
  }
}

/** Credentials for tokens, remembered for as long as they are good. */
function createAnswers(
  account: string,
  { cluster, associations: file }: AgentFlags,
  assume: (input: AssumeRoleForPodIdentityRequest) => Promise<Issued>,
): (token: string) => Promise<Reply> {
  const sessions = new Map<string, { readonly reply: Reply; readonly expiresAt: number }>();
  return async (token) => {
    const subject = readSubject(token);
    if (subject === undefined) return { status: 400, body: 'Service account token cannot be parsed' };
    // WHY read each time: an association that is gone is gone at once
    const association = (await readAssociations(file)).find(
      ({ namespace, serviceAccount }) =>
        namespace === subject.namespace && serviceAccount === subject.serviceAccount,
    );
    if (association === undefined) {
      return {
        status: 404,
        body: `(ResourceNotFoundException): No association found for service account ${subject.namespace}/${subject.serviceAccount} in cluster ${cluster}`,
      };
    }
    const { roleArn } = association;
    const key = fingerprint(roleArn, token);
    const now = Date.now();
    const known = sessions.get(key);
    if (known !== undefined && known.expiresAt - now > RENEWAL_MS && subject.expiresAt > now)
      return known.reply;
    sessions.delete(key);
    const { credentials } = await assume({ clusterName: cluster, token, roleArn });
    const expiresAt = credentials.expiration * 1000;
    const body = {
      AccessKeyId: credentials.accessKeyId,
      SecretAccessKey: credentials.secretAccessKey,
      Token: credentials.sessionToken,
      AccountId: account,
      Expiration: new Date(expiresAt).toISOString().replace(/\.\d+Z$/, 'Z'),
    };
    const [oldest] = sessions.keys();
    if (sessions.size >= SESSIONS_MAX && oldest !== undefined) sessions.delete(oldest);
    const given: Reply = { status: 200, body };
    sessions.set(key, { reply: given, expiresAt });
    return given;
  };
}

/** Whose token it says to be; only the server knows whether that is so. */
function readSubject(
  token: string,
): { readonly namespace: string; readonly serviceAccount: string; readonly expiresAt: number } | undefined {
  const parts = token.split('.');
  if (parts.length !== 3 || token.length > TOKEN_CHARACTERS_MAX) return undefined;
  try {
    const claims = JSON.parse(Buffer.from(parts[1] ?? '', 'base64url').toString()) as Record<string, unknown>;
    const { sub, exp } = claims;
    const [, namespace, serviceAccount] =
      /^system:serviceaccount:([^:]+):([^:]+)$/.exec(typeof sub === 'string' ? sub : '') ?? [];
    if (namespace === undefined || serviceAccount === undefined || typeof exp !== 'number') return undefined;
    return { namespace, serviceAccount, expiresAt: exp * 1000 };
  } catch {
    return undefined;
  }
}

/** @throws CommandError */
async function readAssociations(file: string): Promise<readonly Association[]> {
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw new CommandError(`cannot read the associations: ${(error as Error).message}`);
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CommandError(`${file} is no JSON: ${(error as Error).message}`);
  }
  const list = Array.isArray(value) ? value : (value as { associations?: unknown } | null)?.associations;
  const isAssociation = (each: unknown): each is Association => {
    const { namespace, serviceAccount, roleArn } = (each ?? {}) as Record<string, unknown>;
    return [namespace, serviceAccount, roleArn].every((text) => typeof text === 'string' && text !== '');
  };
  if (!Array.isArray(list) || !list.every(isAssociation)) {
    throw new CommandError(
      `${file} has to be {"associations": [{"namespace": "...", "serviceAccount": "...", "roleArn": "..."}]}`,
    );
  }
  return list;
}
