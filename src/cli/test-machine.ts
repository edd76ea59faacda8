/** A server and a machine to diagnose: for the tests of `berth doctor`, which break one thing each. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer, request as sendHttp } from 'node:http';
import type { AddressInfo, Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { start } from '../compose.ts';
import { readConfig } from '../config.ts';
import { createLog } from '../lib/log.ts';
import { createClient, type Client } from './client.ts';
import type { Surroundings } from './cli.ts';
import { doctor, type Machine, type Report } from './doctor.ts';

export const ACCOUNT = '000000000000';
export const REGION = 'us-east-1';

export interface TestMachine {
  readonly port: number;
  readonly host: string;
  readonly endpoint: string;
  /** environment of a machine that works */
  readonly env: NodeJS.ProcessEnv;
  /** of the server */
  readonly data: string;
  readonly home: string;
  readonly dockerDirectory: string;
  readonly admin: Client;
  clientOf(env: NodeJS.ProcessEnv): Promise<Client>;
  /** Writes a file below the home directory. */
  write(path: string, value: object | string): Promise<void>;
  /** A docker configuration with a login of these credentials for the host. */
  logIn(client?: Client, host?: string): Promise<string>;
  diagnose(reference: string, changes?: Changes): Promise<Diagnosis>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface Changes {
  readonly env?: NodeJS.ProcessEnv;
  readonly lookup?: Machine['lookup'];
  readonly clock?: () => number;
}

export interface Diagnosis {
  readonly code: number;
  readonly report: Report;
  /** ids of what is wrong, sorted */
  readonly wrong: readonly string[];
  /** as text, for a finding that is there */
  textOf(id: string): string;
}

export async function openMachine(): Promise<TestMachine> {
  const root = await mkdtemp(join(tmpdir(), 'berth-doctor-'));
  const data = join(root, 'data');
  const home = join(root, 'home');
  const dockerDirectory = join(root, 'etc-docker');
  await mkdir(home);
  const config = readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform });
  const berth = await start(config, {
    log: createLog('error'),
    clock: Date.now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const { id = '', secret = '' } = berth.firstCredentials ?? {};
  const env = {
    HOME: home,
    PATH: join(root, 'bin'),
    AWS_ENDPOINT_URL: berth.endpoint,
    AWS_REGION: REGION,
    AWS_ACCESS_KEY_ID: id,
    AWS_SECRET_ACCESS_KEY: secret,
  };
  const elsewhere = { data: join(root, 'no-server') };
  const clientOf = (changed: NodeJS.ProcessEnv): Promise<Client> =>
    createClient(elsewhere, { env: { ...env, ...changed } });
  const admin = await clientOf({});
  await admin.call('ecr', 'CreateRepository', { repositoryName: 'app' });
  const write = async (path: string, value: object | string): Promise<void> => {
    const file = join(root, path);
    await mkdir(dirname(file), { recursive: true });
    const mode = path.startsWith('bin/') ? 0o755 : 0o600;
    await writeFile(file, typeof value === 'string' ? value : JSON.stringify(value), { mode });
  };
  const host = `localhost:${berth.port}`;
  return {
    port: berth.port,
    host,
    endpoint: berth.endpoint,
    env,
    data,
    home,
    dockerDirectory,
    admin,
    clientOf,
    write,
    async logIn(client = admin, at = host) {
      const { authorizationData } = await client.call<{
        authorizationData: [{ authorizationToken: string }];
      }>('ecr', 'GetAuthorizationToken', {});
      const { authorizationToken: auth } = authorizationData[0];
      await write('home/.docker/config.json', { auths: { [at]: { auth } } });
      return auth;
    },
    async diagnose(reference, changes = {}) {
      let text = '';
      const stdout = { write: (part: string) => void (text += part) };
      const surroundings = { env: { ...env, ...changes.env }, stdout } as unknown as Surroundings;
      const machine: Machine = {
        lookup: changes.lookup ?? (() => Promise.resolve(['127.0.0.1'])),
        clock: changes.clock ?? Date.now,
        dockerDirectory,
      };
      const settings = readConfig({
        flags: elsewhere,
        env: {},
        platform: process.platform,
      });
      const code = await doctor(settings, surroundings, { reference, json: true }, machine);
      const report = JSON.parse(text) as Report;
      const wrong = report.findings.filter(({ severity }) => severity !== 'ok').map((each) => each.id);
      return {
        code,
        report,
        wrong: wrong.sort(),
        textOf(id) {
          const found = report.findings.find((each) => each.id === id);
          if (found === undefined) throw new Error(`no finding ${id}: ${JSON.stringify(report)}`);
          return [found.what, found.why, found.fix].filter((each) => each !== undefined).join('\n');
        },
      };
    },
    async [Symbol.asyncDispose]() {
      await berth.stop();
      await rm(root, { recursive: true, force: true });
    },
  };
}

/** Listens on a free port of 127.0.0.1. */
export async function listen(server: Server): Promise<{ readonly port: number } & AsyncDisposable> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => void server.close(() => resolve()));
    },
  };
}

/** A proxy in front of a server that shifts the Date of its answers. */
export function skewing(port: number, skewMs: number): Server {
  return createHttpServer((request, response) => {
    const { method, url, headers } = request;
    const onward = sendHttp({ port, host: '127.0.0.1', method, path: url, headers }, (answer) => {
      const date = new Date(Date.now() + skewMs).toUTCString();
      response.writeHead(answer.statusCode ?? 500, { ...answer.headers, date });
      answer.pipe(response);
    });
    request.pipe(onward);
  });
}
