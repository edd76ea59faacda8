/** Load from wrk, ab and curl, and what it cost the server: CPU time and memory from /proc. */
import { readdir, readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { ok, run, type Environment } from '../test/clients/harness.ts';

/** What one run of a load showed. */
export interface Sample {
  /** requests per second, or bytes per second */
  readonly rate: number;
  /** server CPU microseconds per request, or per mebibyte */
  readonly cpuUs: number;
  readonly p99Ms: number | undefined;
  /** share of the machine's CPUs that neither the server nor the load used */
  readonly foreign: number;
}

interface Load {
  /** requests, or mebibytes */
  readonly count: number;
  readonly rate: number;
  readonly p99Ms?: number;
}

export const CONNECTIONS = 32;
const THREADS = 2;
/** clock ticks per second in /proc; the same on every Linux that Node.js runs on */
const TICKS = 100;

/** Runs a load and reads the server's and the machine's CPU clocks around it. */
export async function measure(pid: number, load: () => Promise<Load>): Promise<Sample> {
  const before = await readClocks(pid);
  const { count, rate, p99Ms } = await load();
  const after = await readClocks(pid);
  const server = after.server - before.server;
  const own = after.own - before.own;
  const elapsed = (after.at - before.at) / 1000;
  const foreign = (after.machine - before.machine - server - own) / (elapsed * availableParallelism());
  return { rate, cpuUs: (server * 1e6) / count, p99Ms, foreign: Math.max(0, foreign) };
}

interface Clocks {
  /** CPU seconds */
  readonly server: number;
  /** CPU seconds of this process and of the programs it ran to their end */
  readonly own: number;
  readonly machine: number;
  readonly at: number;
}

async function readClocks(pid: number): Promise<Clocks> {
  const [server, self, machine] = await Promise.all([
    cpuOfTree(pid),
    readStat(process.pid),
    readFile('/proc/stat', 'utf8'),
  ]);
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = (/^cpu +(.*)$/m.exec(machine)?.[1] ?? '')
    .split(' ')
    .map(Number);
  return {
    server,
    own: self.own + self.children,
    machine: (user + nice + system + irq + softirq) / TICKS,
    at: performance.now(),
  };
}

/** CPU seconds of a process with its threads, and of those it started. */
async function cpuOfTree(pid: number): Promise<number> {
  const { own, children } = await readStat(pid);
  let seconds = own + children;
  for (const task of await readdir(`/proc/${pid}/task`)) {
    const text = await readFile(`/proc/${pid}/task/${task}/children`, 'utf8').catch(() => '');
    for (const child of text.trim().split(/\s+/).filter(Boolean)) seconds += await cpuOfTree(Number(child));
  }
  return seconds;
}

async function readStat(pid: number): Promise<{ own: number; children: number }> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15);
  return { own: (utime + stime) / TICKS, children: (cutime + cstime) / TICKS };
}

export interface Requests {
  /** 32 unless told */
  readonly connections?: number;
  readonly environment: Environment;
  readonly headers: Readonly<Record<string, string>>;
  readonly seconds: number;
}

function headerFlags(headers: Readonly<Record<string, string>>): string[] {
  return Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]);
}

function numberIn(text: string, pattern: RegExp): number {
  return Number(pattern.exec(text)?.[1] ?? Number.NaN);
}

/** GETs (or what the script makes) from many connections. Any answer that is not 2xx fails the benchmark. */
export async function wrk(
  url: string,
  { environment, headers, seconds, connections = CONNECTIONS }: Requests,
  script?: string,
): Promise<Load> {
  const output = await ok(
    [
      'wrk',
      `-t${THREADS}`,
      `-c${connections}`,
      `-d${seconds}s`,
      '--latency',
      ...(script === undefined ? [] : ['-s', script]),
      ...headerFlags(headers),
      url,
    ],
    { environment },
  );
  if (/Non-2xx|Socket errors/.test(output)) throw new Error(`wrk ${url}:\n${output}`);
  const [, p99, unit] = /^\s+99%\s+([\d.]+)(us|ms|s)$/m.exec(output) ?? [];
  const scale = { us: 0.001, ms: 1, s: 1000 }[unit ?? 'ms'] ?? 1;
  return {
    count: numberIn(output, /(\d+) requests in/),
    rate: numberIn(output, /Requests\/sec:\s+([\d.]+)/),
    p99Ms: Number(p99) * scale,
  };
}

/** HEADs from 32 connections. WHY ab: wrk waits for the body that a HEAD's Content-Length announces. */
export async function abHead(url: string, { environment, headers, seconds }: Requests): Promise<Load> {
  const output = await ok(
    [
      'ab',
      '-q',
      '-i',
      '-k',
      '-c',
      String(CONNECTIONS),
      '-t',
      String(seconds),
      '-n',
      '100000000',
      ...headerFlags(headers),
      url,
    ],
    { environment },
  );
  if (/Non-2xx responses/.test(output) || !/Failed requests:\s+0$/m.test(output))
    throw new Error(`ab ${url}:\n${output}`);
  return {
    count: numberIn(output, /Complete requests:\s+(\d+)/),
    rate: numberIn(output, /Requests per second:\s+([\d.]+)/),
    p99Ms: numberIn(output, / 99%\s+(\d+)/),
  };
}

const MIB = 1024 * 1024;

/** Downloads a blob once. */
export async function curlGet(
  url: string,
  bytes: number,
  { environment, headers }: Omit<Requests, 'seconds'>,
): Promise<Load> {
  const output = await ok(
    [
      'curl',
      '-sS',
      '-o',
      '/dev/null',
      '-w',
      '%{http_code} %{time_total} %{size_download}',
      ...headerFlags(headers),
      url,
    ],
    { environment },
  );
  const [status, seconds, size] = output.split(' ').map(Number);
  if (status !== 200 || size !== bytes) throw new Error(`curl ${url}: ${output}`);
  return { count: bytes / MIB, rate: bytes / (seconds ?? Number.NaN) };
}

/** Uploads a file in one PUT; with `sync`, the time until the storage directory's file system has it counts too. */
export async function curlPut(
  url: string,
  file: string,
  bytes: number,
  { environment, headers }: Omit<Requests, 'seconds'>,
  sync: string | undefined,
): Promise<Load> {
  const started = performance.now();
  const output = await ok(
    [
      'curl',
      '-sS',
      '-o',
      '/dev/null',
      '-w',
      '%{http_code} %{time_total}',
      '-X',
      'PUT',
      ...headerFlags({ ...headers, 'content-type': 'application/octet-stream', expect: '' }),
      '-T',
      file,
      url,
    ],
    { environment },
  );
  const [status, seconds = Number.NaN] = output.split(' ').map(Number);
  if (status !== 201) throw new Error(`curl -T ${url}: ${output}`);
  if (sync === undefined) return { count: bytes / MIB, rate: bytes / seconds };
  const { code } = await run(['sync', '--file-system', sync], { environment });
  if (code !== 0) throw new Error(`sync ${sync}: ${code}`);
  return { count: bytes / MIB, rate: bytes / ((performance.now() - started) / 1000) };
}
