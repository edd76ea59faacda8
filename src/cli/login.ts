import { spawn } from 'node:child_process';
import type { Config } from '../config.ts';
import { signRequest, type Credentials } from '../lib/sigv4.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readCredentials, readServerRecord } from './data-directory.ts';

interface Authorization {
  readonly authorizationToken: string;
  readonly proxyEndpoint: string;
}

/**
 * Logs docker (or podman) in to the server of the data directory: what `aws ecr get-login-password | docker login`
 * does, for machines without the AWS CLI. The password travels by standard input only.
 */
export async function login(
  config: Config,
  surroundings: Surroundings,
  client: 'docker' | 'podman' | undefined,
): Promise<void> {
  const { authorizationToken, proxyEndpoint } = await getAuthorization(config, surroundings.env);
  const password = Buffer.from(authorizationToken, 'base64').toString().replace(/^AWS:/, '');
  const insecure = proxyEndpoint.startsWith('http:');
  for (const program of client === undefined ? (['docker', 'podman'] as const) : [client]) {
    const tls = program === 'podman' && insecure ? ['--tls-verify=false'] : [];
    const host = proxyEndpoint.replace(/^https?:\/\//, '');
    const code = await runLogin(
      program,
      ['login', ...tls, '--username', 'AWS', '--password-stdin', host],
      password,
    );
    if (code === 0) return;
    if (code !== undefined) throw new CommandError(`${program} login failed`);
  }
  throw new CommandError(
    `${client ?? 'neither docker nor podman'} ${client === undefined ? 'is' : 'is not'} installed`,
  );
}

async function getAuthorization(config: Config, env: NodeJS.ProcessEnv): Promise<Authorization> {
  const server = await readServerRecord(config.data);
  const key = credentialsOf(env) ?? (await readCredentials(config.data));
  if (key === undefined)
    throw new CommandError('no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY');
  const region = env['AWS_REGION'] ?? env['AWS_DEFAULT_REGION'] ?? server.region;
  const body = '{}';
  const request = {
    method: 'POST',
    url: `${server.endpoint}/`,
    headers: {
      'content-type': 'application/x-amz-json-1.1',
      'x-amz-target': 'AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken',
    },
    body,
  };
  const headers = signRequest(request, key, { region, service: 'ecr', now: Date.now() });
  const response = await fetch(server.endpoint, { method: 'POST', headers, body }).catch((error: unknown) => {
    throw new CommandError(`${server.endpoint} does not answer: ${String((error as Error).cause ?? error)}`);
  });
  const answer = (await response.json()) as { message?: string; authorizationData?: Authorization[] };
  const [authorization] = answer.authorizationData ?? [];
  if (authorization === undefined) throw new CommandError(answer.message ?? `HTTP ${response.status}`);
  return authorization;
}

/** The credentials of AWS's environment variables. */
export function credentialsOf(env: NodeJS.ProcessEnv): Credentials | undefined {
  const accessKeyId = env['AWS_ACCESS_KEY_ID'];
  const secretAccessKey = env['AWS_SECRET_ACCESS_KEY'];
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: env['AWS_SESSION_TOKEN'] };
}

/** The program's exit code, or undefined when it is not installed. */
function runLogin(program: string, args: readonly string[], password: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['pipe', 'inherit', 'inherit'] });
    child.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') resolve(undefined);
      else reject(error);
    });
    child.on('exit', (code) => resolve(code ?? 1));
    child.stdin.on('error', () => {});
    child.stdin.end(password);
  });
}
