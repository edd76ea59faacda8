/** A private PostgreSQL for tests: its own directory and Unix socket, no TCP, gone after `stop`. */
import { execFile, spawn } from 'node:child_process';
import { chown, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

export interface Postgres {
  /** for `openPostgresStore`; superuser */
  readonly url: string;
  /** Ends the server and all connections as a crash would. */
  halt(): Promise<void>;
  /** Starts it again on the same data. */
  resume(): Promise<void>;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
}

/** Where the server's programs are: `PATH`, else Debian's directories, newest first; `undefined` when there are none. */
export async function findPostgres(): Promise<string | undefined> {
  const versions = await list('/usr/lib/postgresql');
  const debian = versions
    .sort((a, b) => Number(b) - Number(a))
    .map((version) => `/usr/lib/postgresql/${version}/bin`);
  for (const directory of [...debian, ...(process.env['PATH'] ?? '').split(delimiter)]) {
    const names = await list(directory);
    if (names.includes('initdb') && names.includes('pg_ctl')) return directory;
  }
  return undefined;
}

async function list(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch {
    return [];
  }
}

/** Makes a database cluster in a temporary directory and starts a server on it. Writes are not synced: it is for tests. */
export async function startPostgres(bin: string): Promise<Postgres> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-pg-'));
  const owner = await unprivileged();
  if (owner !== undefined) await chown(directory, owner.uid, owner.gid);
  const data = join(directory, 'data');
  const options = { ...owner, cwd: directory };
  const settings = `-c fsync=off -c listen_addresses='' -c unix_socket_directories='${directory}' -c max_connections=60`;
  const start = (): Promise<void> =>
    // WHY not execFile: the server inherits the pipes of pg_ctl and would hold them open.
    new Promise((resolve, reject) => {
      const child = spawn(
        join(bin, 'pg_ctl'),
        ['start', '-w', '-D', data, '-l', join(directory, 'log'), '-o', settings],
        { ...options, stdio: 'ignore' },
      );
      child.once('error', reject);
      child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`pg_ctl start: ${code}`))));
    });
  const halt = async (): Promise<void> => {
    await run(join(bin, 'pg_ctl'), ['stop', '-m', 'immediate', '-w', '-D', data], options);
  };
  try {
    // WHY a locale that does not order by bytes: keys must order by bytes whatever the locale. ICU needs none installed.
    const locale = ['--locale=C', '--locale-provider=icu', '--icu-locale=en-US'];
    await run(
      join(bin, 'initdb'),
      ['-D', data, '-U', 'berth', '-A', 'trust', '-E', 'UTF8', '-N', ...locale],
      options,
    );
    await start();
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
  return {
    url: `postgres://berth@${encodeURIComponent(directory)}/postgres`,
    halt,
    resume: start,
    stop: async () => {
      await halt().catch(() => undefined);
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** The account to run the server as when we are root, which it refuses. */
async function unprivileged(): Promise<{ uid: number; gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of ['postgres', 'nobody'])
    try {
      const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])]);
      return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
    } catch {
      continue;
    }
  throw new Error('no account but root to run PostgreSQL as');
}
