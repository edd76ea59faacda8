/** The registries that are compared, each with a fresh directory and the same content. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import {
  basic,
  createRepository,
  readAdmin,
  registryPassword,
  run,
  startBerth,
  startDaemon,
  until,
  type Environment,
} from '../test/clients/harness.ts';
import { goTool } from '../test/clients/go-tools.ts';
import { OCI_MANIFEST, type Piece } from '../test/clients/image.ts';

export interface Target {
  readonly name: 'berth' | 'docker-registry' | 'distribution';
  readonly version: string;
  readonly url: string;
  readonly pid: number;
  /** where it keeps its bytes */
  readonly directory: string;
  /** the request header that lets the load in */
  readonly authorization: string | undefined;
  createRepository(name: string): Promise<void>;
  stop(): Promise<void>;
}

/**
 * Berth as it comes: encryption at rest, every request authenticated and authorised. Only the log is quieter, and a worker
 * serves on each core: docker-registry uses them all as well.
 */
export async function openBerth(directory: string, environment: Environment): Promise<Target> {
  const data = join(directory, 'berth');
  const flags = ['--log-level', 'warn', '--workers', 'cores'];
  const server = await startBerth({ data, environment, asShipped: true, flags });
  const admin = await readAdmin(data);
  const { version } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  return {
    name: 'berth',
    version,
    url: `http://127.0.0.1:${server.port}`,
    pid: server.pid,
    directory: data,
    authorization: basic(await registryPassword(server, admin)),
    createRepository: (name) => createRepository(server, admin, name),
    stop: async () => {
      await server.stop();
    },
  };
}

/** Debian's docker-registry, Distribution 2.8. */
export function openDockerRegistry(directory: string, environment: Environment): Promise<Target> {
  return openRegistry('docker-registry', 'docker-registry', { directory, environment });
}

/** Distribution 3; `undefined` when there is none and no Go to build it with. */
export async function openDistribution(
  directory: string,
  environment: Environment,
): Promise<Target | undefined> {
  const tool = await goTool('registry');
  return tool.skip === false
    ? openRegistry('distribution', tool.path, { directory, environment })
    : undefined;
}

/** With its own defaults: files, descriptor cache in memory, no authentication. */
async function openRegistry(
  name: Target['name'],
  program: string,
  { directory, environment }: { readonly directory: string; readonly environment: Environment },
): Promise<Target> {
  const root = join(directory, name);
  await mkdir(root);
  const port = await findPort();
  const config = join(directory, `${name}.yml`);
  await writeFile(
    config,
    `version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: ${root}
  delete:
    enabled: true
http:
  addr: 127.0.0.1:${port}
`,
  );
  // WHY without them: it reads every REGISTRY_ variable as a setting
  const settings = Object.entries(environment).filter(([name]) => !name.startsWith('REGISTRY_'));
  const daemon = startDaemon([program, 'serve', config], {
    ...Object.fromEntries(settings),
    OTEL_TRACES_EXPORTER: 'none',
  });
  const url = `http://127.0.0.1:${port}`;
  await until(`${name} answers`, () => {
    if (daemon.hasExited()) throw new Error(daemon.output());
    return fetch(`${url}/v2/`).then(
      ({ status }) => status === 200,
      () => false,
    );
  });
  const { stdout } = await run([program, '--version'], { environment });
  return {
    name,
    version: /v?(\d+\.\d+\.\d+\S*)/.exec(stdout)?.[1] ?? 'unknown',
    url,
    pid: daemon.pid,
    directory: root,
    authorization: undefined,
    createRepository: () => Promise.resolve(),
    stop: async () => {
      await daemon.stop();
    },
  };
}

function findPort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

export function headersOf(target: Target): Record<string, string> {
  return target.authorization === undefined ? {} : { authorization: target.authorization };
}

/** Where an upload continues, absolute. */
export async function startUpload(target: Target, repository: string): Promise<URL> {
  const answer = await fetch(`${target.url}/v2/${repository}/blobs/uploads/`, {
    method: 'POST',
    headers: headersOf(target),
  });
  assert.equal(answer.status, 202, await answer.text());
  return new URL(answer.headers.get('location') ?? '', target.url);
}

export async function pushBlob(target: Target, repository: string, { bytes, digest }: Piece): Promise<void> {
  const url = await startUpload(target, repository);
  url.searchParams.set('digest', digest);
  const answer = await fetch(url, { method: 'PUT', headers: headersOf(target), body: new Uint8Array(bytes) });
  assert.equal(answer.status, 201, await answer.text());
}

export async function pushManifest(
  target: Target,
  repository: string,
  tag: string,
  bytes: Uint8Array,
): Promise<void> {
  const answer = await fetch(`${target.url}/v2/${repository}/manifests/${tag}`, {
    method: 'PUT',
    headers: { ...headersOf(target), 'content-type': OCI_MANIFEST },
    body: new Uint8Array(bytes),
  });
  assert.equal(answer.status, 201, await answer.text());
}
