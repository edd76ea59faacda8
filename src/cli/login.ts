import { spawn } from 'node:child_process';
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { createClient } from './client.ts';

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
  const registry = await createClient(config, surroundings);
  const { authorizationData } = await registry.call<{ authorizationData: [Authorization] }>(
    'ecr',
    'GetAuthorizationToken',
    {},
  );
  const [{ authorizationToken, proxyEndpoint }] = authorizationData;
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
