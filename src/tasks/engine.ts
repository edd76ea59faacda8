/** The few calls of Docker's Engine API (v1.41 and newer) that a task needs, over the engine's Unix socket. */
import { request as send, type IncomingMessage } from 'node:http';

/** An answer of the engine other than success. */
export class EngineError extends Error {
  override readonly name = 'EngineError';
  readonly status: number;
  constructor(message: string, status: number) {
    super(message);
    this.status = status;
  }
}

export interface RegistryLogin {
  readonly username: string;
  readonly password: string;
  readonly serveraddress: string;
}

export interface ContainerState {
  readonly Id: string;
  readonly Image: string;
  readonly Name: string;
  readonly Created: string;
  readonly State: {
    readonly Status: string;
    readonly Running: boolean;
    readonly ExitCode: number;
    readonly OOMKilled: boolean;
    readonly StartedAt: string;
    readonly Health?: { readonly Status: string };
  };
  readonly NetworkSettings?: { readonly Networks?: Readonly<Record<string, { readonly IPAddress: string }>> };
}

export interface Engine {
  /** @throws EngineError when it cannot be pulled */
  pull(name: string, reference: string, login: RegistryLogin | undefined, signal: AbortSignal): Promise<void>;
  /** Resolves to the id. `settings` is the body of the API's `POST /containers/create`. */
  createContainer(name: string, settings: object): Promise<string>;
  createVolume(name: string, labels: Readonly<Record<string, string>>): Promise<void>;
  start(id: string): Promise<void>;
  /** Sends SIGTERM, and SIGKILL after `seconds`. Resolves when it has ended; a container that is not running is fine. */
  stop(id: string, seconds: number): Promise<void>;
  inspect(id: string): Promise<ContainerState>;
  /** Resolves to the exit code when a started container has ended. */
  wait(id: string): Promise<number>;
  /**
   * Listens to a container that has not started: calls back for every line, the last one too when nothing ends it. `ended`
   * resolves when the container has. Bytes that are no UTF-8 are replaced.
   */
  attach(
    id: string,
    onLine: (stream: 'stdout' | 'stderr', line: string) => void,
  ): Promise<{ readonly ended: Promise<void> }>;
  /** Removes it whatever it does, with its anonymous volumes; one that is gone is fine. */
  removeContainer(id: string): Promise<void>;
  removeVolume(name: string): Promise<void>;
}

const DEFAULT_SOCKET = '/var/run/docker.sock';
const ANSWER_BYTES_MAX = 16 * 1_048_576;
const LINE_BYTES_MAX = 65_536;

/**
 * @param host what `DOCKER_HOST` says
 * @throws EngineError when it names anything but a Unix socket: a task's endpoint is on this machine only
 */
export function connectEngine(host: string | undefined): Engine {
  const address = host === undefined || host === '' ? `unix://${DEFAULT_SOCKET}` : host;
  if (!address.startsWith('unix://')) {
    throw new EngineError(
      `DOCKER_HOST is ${address}; only the engine of this machine can be used (unix://)`,
      0,
    );
  }
  const socketPath = address.slice('unix://'.length);
  const call = (method: string, path: string, options: CallOptions = {}): Promise<IncomingMessage> =>
    callEngine(socketPath, method, path, options);
  const callJson = async (method: string, path: string, options: CallOptions = {}): Promise<unknown> => {
    const text = await readText(await call(method, path, options));
    return text === '' ? {} : JSON.parse(text);
  };
  const fine = async (promise: Promise<unknown>, ...statuses: readonly number[]): Promise<void> => {
    try {
      await promise;
    } catch (error) {
      if (!(error instanceof EngineError && statuses.includes(error.status))) throw error;
    }
  };
  return {
    async pull(name, reference, login, signal) {
      const query = new URLSearchParams({ fromImage: name, tag: reference }).toString();
      // WHY in a header: the password is in no file, no argument list and no environment
      const headers = login && {
        'x-registry-auth': registryAuth(login),
      };
      const answer = await call('POST', `/images/create?${query}`, { signal, ...(headers && { headers }) });
      await forEachLine(answer, (line) => {
        const { error } = JSON.parse(line) as { error?: string };
        if (error !== undefined) throw new EngineError(error, 0);
      });
    },
    async createContainer(name, settings) {
      const body = JSON.stringify(settings);
      const made = await callJson('POST', `/containers/create?name=${encodeURIComponent(name)}`, { body });
      return (made as { Id: string }).Id;
    },
    async createVolume(name, labels) {
      await callJson('POST', '/volumes/create', { body: JSON.stringify({ Name: name, Labels: labels }) });
    },
    async start(id) {
      await callJson('POST', `/containers/${id}/start`);
    },
    async stop(id, seconds) {
      await fine(callJson('POST', `/containers/${id}/stop?t=${seconds}`), 304, 404);
    },
    async inspect(id) {
      return (await callJson('GET', `/containers/${id}/json`)) as ContainerState;
    },
    async wait(id) {
      const ended = (await callJson('POST', `/containers/${id}/wait?condition=not-running`)) as {
        StatusCode: number;
      };
      return ended.StatusCode;
    },
    async attach(id, onLine) {
      // WHY not the log: following it, Docker 20.10 leaves out a last line that nothing ends
      const answer = await call('POST', `/containers/${id}/attach?stream=1&stdout=1&stderr=1`);
      return { ended: readLogs(answer, onLine) };
    },
    async removeContainer(id) {
      await fine(callJson('DELETE', `/containers/${id}?force=1&v=1`), 404, 409);
    },
    async removeVolume(name) {
      await fine(callJson('DELETE', `/volumes/${encodeURIComponent(name)}`), 404);
    },
  };
}

/** base64url with its padding, which the engine insists on. */
function registryAuth(login: RegistryLogin): string {
  return Buffer.from(JSON.stringify(login)).toString('base64').replaceAll('+', '-').replaceAll('/', '_');
}

interface CallOptions {
  readonly headers?: Readonly<Record<string, string>>;
  /** JSON */
  readonly body?: string;
  readonly signal?: AbortSignal;
}

/** Resolves to an answer of success, with its body unread. */
function callEngine(
  socketPath: string,
  method: string,
  path: string,
  { headers, body, signal }: CallOptions,
): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const content = body === undefined ? {} : { 'content-type': 'application/json' };
    const options = {
      socketPath,
      method,
      path: `/v1.41${path}`,
      headers: { host: 'docker', ...content, ...headers },
      agent: false as const,
      ...(signal && { signal }),
    };
    const request = send(options, (answer) => {
      const status = answer.statusCode ?? 0;
      if (status >= 200 && status < 300) return resolve(answer);
      readText(answer).then((text) => reject(new EngineError(messageOf(text, status), status)), reject);
    });
    request.on('error', (error) =>
      reject(new EngineError(`no Docker engine on ${socketPath}: ${error.message}`, 0)),
    );
    request.end(body);
  });
}

function messageOf(text: string, status: number): string {
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    if (typeof message === 'string') return message;
  } catch {
    // told below
  }
  return `the engine answered with status ${status}`;
}

async function readText(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer) {
    const part = chunk as Buffer;
    bytes += part.length;
    if (bytes > ANSWER_BYTES_MAX) throw new EngineError("the engine's answer is too long", 0);
    chunks.push(part);
  }
  return Buffer.concat(chunks).toString();
}

async function forEachLine(answer: IncomingMessage, onLine: (line: string) => void): Promise<void> {
  const lines = createLineReader(onLine);
  for await (const chunk of answer) lines.push(chunk as Buffer);
  lines.end();
}

/** Cuts bytes into lines; a line longer than `LINE_BYTES_MAX` comes in pieces. */
export function createLineReader(onLine: (line: string) => void): {
  push(bytes: Buffer): void;
  end(): void;
} {
  let kept: Buffer[] = [];
  let length = 0;
  const flush = (): void => {
    if (length === 0) return;
    const line = Buffer.concat(kept, length).toString();
    kept = [];
    length = 0;
    onLine(line);
  };
  const keep = (bytes: Buffer): void => {
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + LINE_BYTES_MAX - length);
      kept.push(part);
      length += part.length;
      at += part.length;
      if (length === LINE_BYTES_MAX) flush();
    }
  };
  return {
    push(bytes) {
      let rest = bytes;
      for (let end = rest.indexOf(10); end !== -1; end = rest.indexOf(10)) {
        const isEmpty = end === 0 && length === 0;
        keep(rest.subarray(0, end));
        if (isEmpty) onLine('');
        else flush();
        rest = rest.subarray(end + 1);
      }
      keep(rest);
    },
    end: flush,
  };
}

/** The engine's frames: one byte of stream, three of nothing, four of length, content (Engine API, "ContainerAttach"). */
async function readLogs(
  answer: IncomingMessage,
  onLine: (stream: 'stdout' | 'stderr', line: string) => void,
): Promise<void> {
  const readers = {
    stdout: createLineReader((line) => onLine('stdout', line)),
    stderr: createLineReader((line) => onLine('stderr', line)),
  };
  let header = Buffer.alloc(0);
  let reader = readers.stdout;
  let left = 0;
  try {
    for await (const chunk of answer) {
      let bytes = chunk as Buffer;
      while (bytes.length > 0) {
        if (left > 0) {
          const part = bytes.subarray(0, left);
          reader.push(part);
          left -= part.length;
          bytes = bytes.subarray(part.length);
          continue;
        }
        const missing = 8 - header.length;
        header = Buffer.concat([header, bytes.subarray(0, missing)]);
        bytes = bytes.subarray(missing);
        if (header.length < 8) break;
        reader = header[0] === 2 ? readers.stderr : readers.stdout;
        left = header.readUInt32BE(4);
        header = Buffer.alloc(0);
      }
    }
  } finally {
    readers.stdout.end();
    readers.stderr.end();
  }
}
