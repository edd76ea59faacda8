/**
 * What tests with real programs need: a real server on a free port over a fresh data directory, programs run with an
 * environment of their own, and signed calls for what no program sends.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, rmSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { signRequest, type Credentials } from '../../src/lib/sigv4.ts';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
export const ACCOUNT = '000000000000';
export const REGION = 'us-east-1';

export type Environment = Readonly<Record<string, string>>;

/** Where a program is, from `PATH`. */
export function findProgram(name: string): string | undefined {
  for (const directory of (process.env['PATH'] ?? '').split(delimiter)) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  return undefined;
}

/** Why a test of these programs cannot run here, or `false`: made for the `skip` option of a test. */
export function missing(...names: readonly string[]): string | false {
  const absent = names.filter((name) => findProgram(name) === undefined);
  return absent.length === 0 ? false : `not installed: ${absent.join(', ')}`;
}

/** dockerd and containerd run as root only. */
export function missingDaemon(...names: readonly string[]): string | false {
  const absent = missing(...names);
  if (absent !== false) return absent;
  return process.getuid?.() === 0 ? false : `${names[0]} has to be started by root`;
}

export interface Place {
  readonly directory: string;
  /** The environment of programs: home and logins of their own, nothing of the machine's AWS or Docker settings. */
  readonly environment: Environment;
  remove(): Promise<void>;
}

export async function makePlace(name: string): Promise<Place> {
  const directory = await mkdtemp(join(tmpdir(), `berth-${name}-`));
  places.add(directory);
  const home = join(directory, 'home');
  const bin = join(directory, 'bin');
  for (const path of [home, bin, join(directory, 'run')]) await mkdir(path, { mode: 0o700 });
  const environment: Record<string, string> = {};
  for (const [key, value] of Object.entries(process.env)) {
    if (value !== undefined && !/^(AWS|BERTH|DOCKER|CONTAINERD|NODE_TEST)_|_proxy$/i.test(key))
      environment[key] = value;
  }
  Object.assign(environment, {
    HOME: home,
    PATH: [bin, process.env['PATH'] ?? ''].join(delimiter),
    XDG_RUNTIME_DIR: join(directory, 'run'),
    DOCKER_CONFIG: join(home, '.docker'),
    DOCKER_BUILDKIT: '0',
    REGISTRY_AUTH_FILE: join(home, 'auth.json'),
    AWS_PAGER: '',
    AWS_EC2_METADATA_DISABLED: 'true',
    AWS_MAX_ATTEMPTS: '1',
  });
  await installAws(bin, environment);
  return {
    directory,
    environment,
    async remove() {
      await rm(directory, { recursive: true, force: true });
      places.delete(directory);
    },
  };
}

/**
 * Puts the machine's `aws` first on the path. The one of Debian 12 (2.9) is older than `AWS_ENDPOINT_URL`; it gets the
 * same value as `--endpoint-url`.
 */
async function installAws(bin: string, environment: Environment): Promise<void> {
  const aws = findProgram('aws');
  if (aws === undefined) return;
  const { stdout, stderr } = await run([aws, '--version'], { environment });
  const [major = 0, minor = 0] = (/aws-cli\/(\d+)\.(\d+)/.exec(stdout + stderr) ?? []).slice(1).map(Number);
  const knowsVariable = major === 1 ? minor >= 29 : minor >= 13;
  const endpoint = knowsVariable ? '' : ' --endpoint-url "$AWS_ENDPOINT_URL"';
  await writeFile(join(bin, 'aws'), `#!/bin/sh\nexec '${aws}'${endpoint} "$@"\n`, { mode: 0o755 });
}

export interface Finished {
  readonly code: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly environment: Environment;
  readonly input?: string;
  readonly cwd?: string;
  readonly timeoutMs?: number;
}

/** Runs a program to its end, whatever that is. Killed after `timeoutMs`, two minutes by default. */
export async function run(command: readonly string[], options: RunOptions): Promise<Finished> {
  const [program = '', ...args] = command;
  const { environment, input, cwd, timeoutMs = 120_000 } = options;
  const child = spawn(program, args, {
    env: environment,
    stdio: ['pipe', 'pipe', 'pipe'],
    timeout: timeoutMs,
    ...(cwd === undefined ? {} : { cwd }),
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => void (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => void (stderr += text));
  // a program that does not read its input is no error
  child.stdin.on('error', () => undefined);
  child.stdin.end(input ?? '');
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  return { code: code ?? signal ?? 'unknown', stdout, stderr };
}

/** Runs a program that must succeed; its standard output. */
export async function ok(command: readonly string[], options: RunOptions): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  assert.equal(code, 0, `${command.join(' ')}: ${code}\n${stdout}\n${stderr}`);
  return stdout;
}

/** Runs a program that must fail; all it printed. */
export async function fails(command: readonly string[], options: RunOptions): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  assert.notEqual(code, 0, `${command.join(' ')} succeeded:\n${stdout}\n${stderr}`);
  return stdout + stderr;
}

/** Asks until the answer is true, four times a second. The only place that waits by the clock. */
export async function until(
  what: string,
  isSo: () => Promise<boolean> | boolean,
  timeoutMs = 30_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await isSo())) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await delay(Math.min(250, timeoutMs / 20));
  }
}

const running = new Set<() => void>();
const places = new Set<string>();
// WHY: a test run that is interrupted must not leave servers or files behind
process.on('exit', () => {
  for (const kill of running) kill();
  for (const directory of places) rmSync(directory, { recursive: true, force: true });
});
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => process.exit(1));

export interface Daemon {
  readonly pid: number;
  /** what it has printed so far */
  output(): string;
  /** Ends it and waits; its exit code or signal. */
  stop(signal?: NodeJS.Signals): Promise<number | string>;
  readonly exited: Promise<number | string>;
  readonly hasExited: () => boolean;
}

interface DaemonOptions {
  readonly cwd?: string;
  /** sees its standard output as it comes */
  readonly onStdout?: (text: string) => void;
  /** Signals go to the program and all it started, as Ctrl-C in a terminal does. */
  readonly group?: boolean;
}

/** Starts a program that stays. */
export function startDaemon(
  command: readonly string[],
  environment: Environment,
  options: DaemonOptions = {},
): Daemon {
  const [program = '', ...args] = command;
  const child = spawn(program, args, {
    env: environment,
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: options.cwd ?? ROOT,
    detached: options.group ?? false,
  });
  const signalIt = (signal: NodeJS.Signals): void => {
    if (child.pid === undefined) return;
    if (options.group !== true) child.kill(signal);
    else process.kill(-child.pid, signal);
  };
  const kill = (): void => signalIt('SIGKILL');
  running.add(kill);
  let text = '';
  const keep = (part: string): void => void (text = (text + part).slice(-100_000));
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    keep(part);
    options.onStdout?.(part);
  });
  child.stderr.setEncoding('utf8').on('data', keep);
  let over = false;
  const exited = new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once(options.group === true ? 'close' : 'exit', (code, signal) => {
      over = true;
      running.delete(kill);
      resolve(code ?? signal ?? 'unknown');
    });
  });
  return {
    pid: child.pid ?? 0,
    output: () => text,
    exited,
    hasExited: () => over,
    async stop(signal = 'SIGTERM') {
      signalIt(signal);
      return exited;
    },
  };
}

export interface BerthServer extends Daemon {
  readonly endpoint: string;
  readonly port: number;
  /** `localhost:port` */
  readonly registry: string;
  readonly data: string;
}

export interface BerthOptions {
  readonly data: string;
  readonly flags?: readonly string[];
  readonly environment?: Environment;
  /** How far the server's clock is ahead of the machine's. */
  readonly aheadMs?: number;
  /** Serves HTTPS with a certificate that `berth tls init` makes with these arguments; this process trusts its CA. */
  readonly tls?: readonly string[];
  /** What to start it with: a program that runs another, as `nsenter` does. */
  readonly inside?: readonly string[];
  /** Starts it by bin/berth.js, with whatever options of Node.js that gives it: for measurements. */
  readonly asShipped?: boolean;
}

/** Starts `berth serve` under the Node.js that runs the tests, and resolves when it is ready. */
export async function startBerth({
  data,
  flags = [],
  environment,
  aheadMs = 0,
  asShipped = false,
  tls,
  inside = [],
}: BerthOptions): Promise<BerthServer> {
  const main = asShipped ? join(ROOT, 'bin', 'berth.js') : join(ROOT, 'src', 'main.ts');
  const shift = `const now = Date.now; Date.now = () => now() + ${aheadMs};`;
  const clock = aheadMs === 0 ? [] : ['--import', `data:text/javascript,${encodeURIComponent(shift)}`];
  if (tls !== undefined) await initTls(data, tls);
  const secure = tls === undefined ? [] : ['--tls'];
  const serve = ['serve', '--port', '0', '--data', data, '--json', ...secure, ...flags];
  const command = [...inside, process.execPath, ...clock, main, ...serve];
  let printed = '';
  let announce: (line: string) => void;
  const ready = new Promise<string>((resolve) => (announce = resolve));
  const daemon = startDaemon(
    command,
    { ...LAUNCHER, ...(environment ?? plainEnvironment()) },
    {
      onStdout(text) {
        printed += text;
        const end = printed.indexOf('\n');
        if (end !== -1) announce(printed.slice(0, end));
      },
    },
  );
  const line = await Promise.race([
    ready,
    daemon.exited.then((code) => {
      throw new Error(`the server ended with ${code}:\n${daemon.output()}`);
    }),
  ]);
  const { endpoint, port, registryHost, pid } = JSON.parse(line) as {
    endpoint: string;
    port: number;
    registryHost: string;
    pid: number;
  };
  return {
    ...daemon,
    pid,
    async stop(signal) {
      // WHY: the launcher cannot pass this one on
      if (signal === 'SIGKILL' && pid !== daemon.pid && !daemon.hasExited()) process.kill(pid, signal);
      return daemon.stop(signal);
    },
    endpoint,
    port,
    registry: registryHost,
    data,
  };
}

/** Makes CA and certificate, or renews it; requests of this process trust the CA from then on. */
export async function initTls(data: string, args: readonly string[] = []): Promise<void> {
  const main = join(ROOT, 'src', 'main.ts');
  const init = [process.execPath, main, 'tls', 'init', '--data', data, ...args];
  await ok(init, { environment: { ...LAUNCHER, ...plainEnvironment() } });
  setDefaultCACertificates([...getCACertificates('default'), await readFile(authorityFile(data), 'utf8')]);
}

/** The certificate of the CA that `berth tls init` made. */
export function authorityFile(data: string): string {
  return join(data, 'tls', 'ca.pem');
}

function plainEnvironment(): Environment {
  return { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '/' };
}

/** What bin/run.js gives the server; tests start it without that launcher, to have its process id. */
const LAUNCHER: Environment = {
  UV_THREADPOOL_SIZE: '16',
  NODE_COMPILE_CACHE: join(ROOT, 'node_modules', '.cache', 'node'),
};

/** Ends a server the polite way; it must end by itself and without a defect in its log. */
export async function stopBerth(server: BerthServer): Promise<void> {
  const code = await server.stop();
  assertClean(server);
  assert.equal(code, 0);
}

/** The log of a server that has ended: it drained to the end and nothing in it was a defect. */
export function assertClean(server: Daemon): void {
  const lines = server.output().split('\n');
  assert.deepEqual(
    lines.filter((line) => /"level":[56]0|"msg":"(defect|maintenance failed)"/.test(line)),
    [],
  );
  assert.ok(
    lines.some((line) => line.includes('"msg":"stopped"')),
    `it did not drain:\n${lines.slice(-10).join('\n')}`,
  );
}

/** What the first start wrote for the administrator. */
export async function readAdmin(data: string): Promise<Credentials> {
  const text = await readFile(join(data, 'bootstrap', 'credentials'), 'utf8');
  const accessKeyId = /^aws_access_key_id\s*=\s*(\S+)$/m.exec(text)?.[1];
  const secretAccessKey = /^aws_secret_access_key\s*=\s*(\S+)$/m.exec(text)?.[1];
  assert.ok(accessKeyId !== undefined && secretAccessKey !== undefined, 'no bootstrap credentials');
  return { accessKeyId, secretAccessKey };
}

/** The variables `berth env` exports. */
export function awsVariables(server: { readonly endpoint: string }, key: Credentials): Environment {
  return {
    AWS_ENDPOINT_URL: server.endpoint,
    AWS_ACCESS_KEY_ID: key.accessKeyId,
    AWS_SECRET_ACCESS_KEY: key.secretAccessKey,
    AWS_REGION: REGION,
    AWS_DEFAULT_REGION: REGION,
  };
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
}

/** One request of the ECR API, signed at `now`. */
export async function callEcr(
  server: { readonly endpoint: string },
  key: Credentials,
  operation: string,
  input: unknown = {},
  now = Date.now(),
): Promise<Answer> {
  const body = JSON.stringify(input);
  const url = `${server.endpoint}/`;
  const headers = {
    'content-type': 'application/x-amz-json-1.1',
    'x-amz-target': `AmazonEC2ContainerRegistry_V20150921.${operation}`,
  };
  const signed = signRequest({ method: 'POST', url, headers, body }, key, {
    region: REGION,
    service: 'ecr',
    now,
  });
  return answerOf(await fetch(url, { method: 'POST', headers: signed, body }));
}

/** One request of the IAM or STS API, signed at `now`. */
export async function callQuery(
  server: { readonly endpoint: string },
  key: Credentials,
  service: 'iam' | 'sts',
  input: Readonly<Record<string, string>>,
  now = Date.now(),
): Promise<Answer> {
  const version = service === 'iam' ? '2010-05-08' : '2011-06-15';
  const body = new URLSearchParams({ Version: version, ...input }).toString();
  const url = `${server.endpoint}/`;
  const headers = { 'content-type': 'application/x-www-form-urlencoded; charset=utf-8' };
  const signed = signRequest({ method: 'POST', url, headers, body }, key, { region: REGION, service, now });
  return answerOf(await fetch(url, { method: 'POST', headers: signed, body }));
}

export async function answerOf(response: Response): Promise<Answer> {
  return { status: response.status, headers: response.headers, text: await response.text() };
}

/** The password that `docker login` takes, for the principal of the key. */
export async function registryPassword(
  server: { readonly endpoint: string },
  key: Credentials,
): Promise<string> {
  const { status, text } = await callEcr(server, key, 'GetAuthorizationToken');
  assert.equal(status, 200, text);
  const answer = JSON.parse(text) as { authorizationData: { authorizationToken: string }[] };
  const token = answer.authorizationData[0]?.authorizationToken ?? '';
  return Buffer.from(token, 'base64').toString().replace(/^AWS:/, '');
}

export function basic(password: string): string {
  return `Basic ${Buffer.from(`AWS:${password}`).toString('base64')}`;
}

export async function createRepository(
  server: { readonly endpoint: string },
  key: Credentials,
  repositoryName: string,
): Promise<void> {
  const { status, text } = await callEcr(server, key, 'CreateRepository', { repositoryName });
  assert.equal(status, 200, text);
}

/** Kibibytes of memory of a process: `VmHWM` is the most it ever had, `VmRSS` what it has. */
export async function readMemory(pid: number, field: 'VmHWM' | 'VmRSS'): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]);
}
