/** A Docker daemon of the test's own: its root, its socket, no network, no cgroup of anybody else. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run, startDaemon, until, type Environment, type Place } from './harness.ts';

export interface Docker {
  /** the place's environment, pointing `docker` at the daemon */
  readonly environment: Environment;
  stop(): Promise<void>;
}

/** `inside`: a program that starts it elsewhere, as `nsenter` does. */
export async function startDocker(place: Place, inside: readonly string[] = []): Promise<Docker> {
  const root = join(place.directory, 'dockerd');
  const socket = `unix://${join(place.directory, 'docker.sock')}`;
  const environment = { ...place.environment, DOCKER_HOST: socket };
  // WHY a file of its own: without one, dockerd reads the machine's
  const settings = join(place.directory, 'docker.json');
  await writeFile(settings, '{}');
  const options = {
    'data-root': join(root, 'data'),
    'exec-root': join(root, 'exec'),
    host: socket,
    pidfile: join(place.directory, 'docker.pid'),
    'config-file': settings,
    iptables: 'false',
    ip6tables: 'false',
    bridge: 'none',
    'storage-driver': 'vfs',
  };
  const daemon = startDaemon(
    [...inside, 'dockerd', ...Object.entries(options).map(([name, value]) => `--${name}=${value}`)],
    place.environment,
  );
  const answers = async (): Promise<boolean> => {
    if (daemon.hasExited()) throw new Error(`dockerd ended:\n${daemon.output()}`);
    return (await run(['docker', 'version'], { environment })).code === 0;
  };
  await until('dockerd answers', answers, 60_000);
  return {
    environment,
    async stop() {
      const containerd = await readPid(join(root, 'exec', 'containerd', 'containerd.pid'));
      await daemon.stop();
      if (containerd !== undefined) await until('its containerd ended', () => !isAlive(containerd));
    },
  };
}

async function readPid(file: string): Promise<number | undefined> {
  return Number(await readFile(file, 'utf8').catch(() => '')) || undefined;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
