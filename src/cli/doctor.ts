/**
 * `berth doctor`: why docker cannot log in, pull or push from this machine. Probes gather facts, diagnoses are functions of
 * them. Nothing is changed, and nothing secret is sent anywhere but to the server the machine is set up for.
 */
import { lookup as lookUp } from 'node:dns/promises';
import { homedir } from 'node:os';
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { findSource, findTarget, targetOf, type Client, type Target } from './client.ts';
import { diagnoseDocker, keptLogin, probeDocker, type DockerFacts } from './doctor-docker.ts';
import { failure, readSubject, type Finding, type Severity, type Subject } from './doctor-finding.ts';
import { diagnoseIam, diagnoseRegion, probeIam } from './doctor-iam.ts';
import {
  diagnoseNetwork,
  diagnoseProxies,
  probeNetwork,
  proxyOfEnvironment,
  type Lookup,
  type NetworkFacts,
} from './doctor-network.ts';
import { passwordOf } from './explain.ts';
import type { TokenAnswer } from './explain-text.ts';

/** What a diagnosis needs of the machine beside the process; tests put it elsewhere. */
export interface Machine {
  readonly lookup: Lookup;
  /** epoch milliseconds */
  readonly clock: () => number;
  readonly dockerDirectory: string;
}

export const THIS_MACHINE: Machine = {
  lookup: async (name) => (await lookUp(name, { all: true })).map(({ address }) => address),
  clock: Date.now,
  dockerDirectory: '/etc/docker',
};

export interface Report {
  readonly subject: string;
  readonly severity: Severity;
  readonly findings: readonly Finding[];
}

const CODES = { ok: 0, warning: 1, error: 2 } as const;
const AREAS = { iam: 'IAM', network: 'Network', region: 'Region and account', docker: 'Docker' } as const;
const OUR_PASSWORD = /^ey[\w-]{20,298}$/;

/**
 * Diagnoses, prints, and resolves to the exit code: 0 nothing wrong, 1 warnings, 2 errors.
 *
 * @throws CommandError when there is nothing to diagnose
 */
export async function doctor(
  config: Config,
  surroundings: Surroundings,
  { reference, json }: { readonly reference: string | undefined; readonly json: boolean },
  machine: Machine = THIS_MACHINE,
): Promise<0 | 1 | 2> {
  const report = await examine(config, surroundings, reference, machine);
  surroundings.stdout.write(json ? `${JSON.stringify(report)}\n` : `${show(report)}\n`);
  return CODES[report.severity];
}

async function examine(
  { data }: Config,
  { env }: Surroundings,
  reference: string | undefined,
  machine: Machine,
): Promise<Report> {
  const found = await findTarget(data, env).catch((error: unknown) => {
    if (error instanceof CommandError) return error;
    throw error;
  });
  const text = reference ?? (found instanceof CommandError ? undefined : found.endpoint);
  if (text === undefined) {
    throw new CommandError(`name a registry or an image: ${(found as CommandError).message}`, 2);
  }
  const subject = readSubject(text);
  if (subject === undefined) throw new CommandError(`"${text}" is no registry and no image`, 2);
  const authorities = await authoritiesOf(data, env);
  const { lookup, clock, dockerDirectory } = machine;
  const network = await probeNetwork(subject, { lookup, clock, authorities });
  const target =
    found instanceof CommandError
      ? await targetOf(`${network.scheme ?? 'https'}://${subject.host}`, regionOf(env), data, env)
      : found;
  const unset = found instanceof CommandError ? [endpointUnset(subject, network)] : [];
  const { findings: identity, client, tokenHost } = await examineIam({ data, env }, subject, target);
  const home = env['HOME'] || homedir();
  const docker = await probeDocker(subject, { env, home, dockerDirectory });
  const token = await explainKept(subject, docker, { client, target, tokenHost });
  const { proxies: daemonProxies } = docker.daemon;
  const proxies = [proxyOfEnvironment(env), ...(daemonProxies === undefined ? [] : [daemonProxies])];
  const now = clock();
  const findings = [
    ...unset,
    ...identity,
    ...diagnoseNetwork(subject, network, now),
    ...diagnoseProxies(subject, network, proxies),
    ...diagnoseDocker(subject, { ...docker, token }, network, now),
  ];
  const worst = (['error', 'warning'] as const).find((severity) =>
    findings.some((finding) => finding.severity === severity),
  );
  return { subject: text, severity: worst ?? 'ok', findings };
}

const regionOf = (env: NodeJS.ProcessEnv): string =>
  env['AWS_REGION'] || env['AWS_DEFAULT_REGION'] || 'us-east-1';

/** Authorities beside the usual ones: those a client of this machine would take. */
async function authoritiesOf(data: string, env: NodeJS.ProcessEnv): Promise<readonly string[]> {
  try {
    return (await targetOf('https://localhost', 'us-east-1', data, env)).ca ?? [];
  } catch (error) {
    if (error instanceof CommandError) return [];
    throw error;
  }
}

function endpointUnset({ host }: Subject, { scheme = 'https' }: NetworkFacts): Finding {
  return failure(
    'iam.endpoint-unset',
    'AWS tools on this machine are not pointed at a Berth server.',
    'AWS_ENDPOINT_URL is not set and no server runs here, so they would ask AWS itself.',
    `export AWS_ENDPOINT_URL=${scheme}://${host}`,
  );
}

async function examineIam(
  { data, env }: { readonly data: string; readonly env: NodeJS.ProcessEnv },
  subject: Subject,
  target: Target,
): Promise<{ findings: Finding[]; client: Client | undefined; tokenHost: string | undefined }> {
  const source = await findSource(data, env, target).catch((error: unknown) => {
    if (error instanceof CommandError) return error;
    throw error;
  });
  const { facts, client } = await probeIam(subject, target, source);
  return {
    findings: [...diagnoseIam(subject, facts), ...diagnoseRegion(subject, facts, env)],
    client,
    tokenHost: facts.tokenHost,
  };
}

/**
 * What the kept login of the registry is. INVARIANT: it is shown to the server only if it is a login for that server: its own
 * address, or the registry that it says its tokens are for.
 */
async function explainKept(
  subject: Subject,
  docker: DockerFacts,
  {
    client,
    target,
    tokenHost,
  }: {
    readonly client: Client | undefined;
    readonly target: Target;
    readonly tokenHost: string | undefined;
  },
): Promise<TokenAnswer | undefined> {
  const login = keptLogin(subject, docker);
  const isOurs = [new URL(target.endpoint).host, tokenHost].includes(subject.host);
  if (client === undefined || login === undefined || !isOurs || !login.startsWith('AWS:')) return undefined;
  const password = passwordOf(login);
  if (!OUR_PASSWORD.test(password)) return undefined;
  // Who may not ask does without.
  return await client.call<TokenAnswer>('berth', 'ExplainToken', { password }).catch((error: unknown) => {
    if (error instanceof CommandError) return undefined;
    throw error;
  });
}

const MARKS = { ok: 'ok     ', warning: 'WARNING', error: 'ERROR  ' } as const;

function show({ subject, severity, findings }: Report): string {
  const lines = [`berth doctor: ${subject}`];
  for (const [area, title] of Object.entries(AREAS)) {
    const own = findings.filter(({ id }) => id.startsWith(`${area}.`));
    if (own.length === 0) continue;
    lines.push('', title);
    for (const { severity: each, what, why, fix } of own) {
      lines.push(`  ${MARKS[each]}  ${what}`);
      if (why !== undefined) lines.push(...indent(why));
      if (fix !== undefined)
        lines.push(
          ...indent(fix).map((line, i) => (i === 0 ? line.replace(/^ {11}/, '           → ') : `  ${line}`)),
        );
    }
  }
  const count = (wanted: 'error' | 'warning'): string => {
    const many = findings.filter((each) => each.severity === wanted).length;
    return `${many} ${wanted}${many === 1 ? '' : 's'}`;
  };
  lines.push('', severity === 'ok' ? 'Nothing is wrong.' : `${count('error')}, ${count('warning')}.`);
  return lines.join('\n');
}

const indent = (text: string): string[] => text.split('\n').map((line) => `           ${line}`);
