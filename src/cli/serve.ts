import { X509Certificate } from 'node:crypto';
import { start, type Berth } from '../compose.ts';
import { resolve } from 'node:path';
import { defaultDataDirectory, type Config } from '../config.ts';
import type { TlsPair } from '../server.ts';
import { createLog, type Logger } from '../lib/log.ts';
import { CommandError, type Surroundings } from './cli.ts';
import {
  makeDataDirectory,
  readCredentials,
  removeCredentials,
  removeServerRecord,
  writeCredentials,
  writeServerRecord,
} from './data-directory.ts';
import { readServerTls } from './tls-directory.ts';
import { packageVersion } from './version.ts';

/** Signals this soon after the first are the same wish, not another. */
const REPEATED_SIGNAL_MS = 1000;

const EXPIRES_SOON_MS = 30 * 86_400_000;

/**
 * Runs the server until SIGTERM or SIGINT, then lets the requests in flight end. A second signal exits at once (nothing
 * acknowledged is lost: every 2xx was durable).
 */
export async function serve(config: Config, surroundings: Surroundings): Promise<void> {
  const log = createLog(config.logLevel);
  await makeDataDirectory(config.data);
  const tls = await readServerTls(config);
  const berth = await start(config, {
    log,
    clock: Date.now,
    tls,
    credentialsFile: {
      write: ({ id, secret }) => writeCredentials(config.data, { accessKeyId: id, secretAccessKey: secret }),
      remove: () => removeCredentials(config.data),
    },
  }).catch((error: unknown) => {
    // WHY: a port in use, a locked directory or an unreachable database is the operator's to mend; a defect keeps its stack.
    if (error instanceof TypeError || error instanceof ReferenceError) throw error;
    throw new CommandError((error as Error).message);
  });
  // WHY before anybody is told that the server is ready: a signal right after that must drain it.
  const signalled = firstSignal(surroundings);
  if (tls !== undefined) {
    noteCertificate(log, tls);
    surroundings.on('SIGHUP', () => void reloadTls(config, berth, log));
  }
  await writeServerRecord(config.data, {
    endpoint: berth.endpoint,
    account: config.account,
    region: config.region,
    pid: surroundings.pid,
  });
  surroundings.stdout.write(
    config.json ? readyLine(config, berth, surroundings.pid) : await banner(config, berth, surroundings),
  );
  log.info({ endpoint: berth.endpoint, data: config.data, version: packageVersion() }, 'ready');

  const signal = await signalled;
  log.info({ signal }, 'draining');
  await removeServerRecord(config.data);
  await berth.stop();
  log.info('stopped');
  log.flush();
}

/**
 * The first SIGTERM or SIGINT. From a second later on, another one ends the process at once. WHY a second: Ctrl-C reaches
 * every process of the terminal, and npm and the launcher pass it on as well: one wish, several signals.
 */
function firstSignal(surroundings: Surroundings): Promise<string> {
  return new Promise((resolve) => {
    let first: number | undefined;
    for (const name of ['SIGTERM', 'SIGINT'] as const) {
      surroundings.on(name, () => {
        first ??= performance.now();
        if (performance.now() - first > REPEATED_SIGNAL_MS) surroundings.exit(1);
        resolve(name);
      });
    }
  });
}

/** Takes the certificate that is in the files now; a pair that cannot be used is logged and changes nothing. */
async function reloadTls(config: Config, berth: Berth, log: Logger): Promise<void> {
  try {
    const tls = await readServerTls(config);
    if (tls === undefined) return;
    berth.reloadTls(tls);
    noteCertificate(log, tls);
  } catch (error) {
    log.error({ err: error }, 'the certificate was not reloaded: the former one stays');
  }
}

/** Logs what is served, as a warning when it ends soon. */
function noteCertificate(log: Logger, { cert }: TlsPair): void {
  const { subjectAltName, validToDate, fingerprint256 } = new X509Certificate(cert);
  const facts = { names: subjectAltName, expires: validToDate.toISOString(), sha256: fingerprint256 };
  if (validToDate.getTime() - Date.now() < EXPIRES_SOON_MS) log.warn(facts, 'the certificate expires soon');
  else log.info(facts, 'certificate');
}

/** One line for scripts. Holds no secret: first-start credentials are in `bootstrap/credentials`. */
function readyLine(config: Config, berth: Berth, pid: number): string {
  const { endpoint, port, registryHost } = berth;
  const { account, region, data } = config;
  return `${JSON.stringify({ event: 'ready', endpoint, port, registryHost, account, region, data, pid })}\n`;
}

async function banner(config: Config, berth: Berth, { env, platform }: Surroundings): Promise<string> {
  const key = berth.firstCredentials;
  const elsewhere =
    config.data === resolve(defaultDataDirectory(env, platform)) ? '' : ` --data '${config.data}'`;
  const lines = [
    `Berth ${packageVersion()}`,
    '',
    `  endpoint   ${berth.endpoint}`,
    `  registry   ${berth.registryHost}`,
    `  account    ${config.account}`,
    `  region     ${config.region}`,
    `  data       ${config.data}`,
    '',
  ];
  if (key !== undefined) {
    lines.push(
      'First start: user admin with AdministratorAccess. The secret is shown once and kept in bootstrap/credentials.',
      '',
      `  access key id       ${key.id}`,
      `  secret access key   ${key.secret}`,
      '',
    );
  }
  if (key !== undefined || (await readCredentials(config.data)) !== undefined) {
    lines.push(
      'In another terminal:',
      '',
      `  eval "$(npx berth env${elsewhere})"`,
      '  aws ecr create-repository --repository-name hello',
      `  aws ecr get-login-password | docker login --username AWS --password-stdin ${berth.registryHost}`,
      '',
    );
  }
  return `${lines.join('\n')}\n`;
}
