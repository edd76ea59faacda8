/**
 * Listeners, request ids, choosing a door, and draining. Knows HTTP and which door serves what, and nothing of what the
 * doors do.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { Exchange } from './http/http.ts';
import { LIMITS } from './lib/limits.ts';

export type Door = (exchange: Exchange) => Promise<void>;

export interface Doors {
  /** `/v2` and everything under it */
  readonly oci: Door;
  /** AWS APIs: every other POST, and signed or Action-carrying GETs */
  readonly aws: Door;
  /** presigned layer downloads, below {@link DOWNLOAD_PREFIX} */
  readonly download: Door;
  /** `/events` and everything under it */
  readonly events: Door;
  /** resolves when the server can work (database reachable), rejects when not */
  readonly ready: () => Promise<void>;
}

export interface ServerOptions {
  readonly doors: Doors;
  readonly host: string;
  readonly port: number;
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  /** called once when an answer is complete or its connection is gone; `durationMs` since the request's headers */
  readonly onDone: (exchange: Exchange, durationMs: number) => void;
  /** called when a door throws: a defect, never a client's mistake */
  readonly onError: (error: unknown, exchange: Exchange) => void;
}

export interface RunningServer {
  readonly port: number;
  /** Stops listening, lets requests in flight end (none is cut), closes idle connections, and resolves. */
  drain(): Promise<void>;
}

export const DOWNLOAD_PREFIX = '/blob-download/';

export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const state = { draining: false };
  const listener = (request: IncomingMessage, response: ServerResponse): void => {
    // WHY: without this a client could keep its connection, and so the drain, alive for ever.
    if (state.draining) response.shouldKeepAlive = false;
    void serve(request, response, options);
  };
  const server =
    options.tls === undefined
      ? createServer(listener)
      : createTlsServer({ ...options.tls, minVersion: 'TLSv1.2', ALPNProtocols: ['http/1.1'] }, listener);
  tune(server);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  return {
    port: (server.address() as AddressInfo).port,
    drain: () =>
      new Promise((resolve) => {
        state.draining = true;
        server.close(() => resolve());
        server.closeIdleConnections();
      }),
  };
}

/** Limits of the listener (registry-protocol.md §4.5): layers upload for longer than any whole-request timeout. */
function tune(server: Server): void {
  server.requestTimeout = 0;
  server.headersTimeout = LIMITS.headersMs;
  server.keepAliveTimeout = LIMITS.keepAliveMs;
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Socket) => {
    if (!socket.writable || error.code === 'ECONNRESET') {
      socket.destroy();
      return;
    }
    const status =
      error.code === 'HPE_HEADER_OVERFLOW' ? '431 Request Header Fields Too Large' : '400 Bad Request';
    socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
  });
}

async function serve(
  request: IncomingMessage,
  response: ServerResponse,
  options: ServerOptions,
): Promise<void> {
  const started = performance.now();
  const exchange = new Exchange(request, response, {
    requestId: randomUUID(),
    secure: options.tls !== undefined,
  });
  response.once('close', () => options.onDone(exchange, performance.now() - started));
  // WHY: an 'error' on a request or answer without a listener would end the process; the doors see the close.
  request.on('error', () => {});
  response.on('error', () => {});
  try {
    await chooseDoor(exchange, options.doors)(exchange);
  } catch (error) {
    options.onError(error, exchange);
    exchange.send(
      500,
      { 'Content-Type': 'text/plain', 'x-amzn-RequestId': exchange.requestId },
      'Internal error\n',
    );
    if (response.headersSent && !response.writableEnded) response.destroy();
  }
}

function chooseDoor(exchange: Exchange, doors: Doors): Door {
  const { path, method } = exchange;
  if (path.startsWith('/v2/') || path === '/v2') return doors.oci;
  if (path.startsWith(DOWNLOAD_PREFIX)) return doors.download;
  if (path === '/events' || path.startsWith('/events/')) return doors.events;
  if (path === '/healthz' && isRead(method)) return answerHealth;
  if (path === '/readyz' && isRead(method)) return (it) => answerReady(it, doors.ready);
  if (method === 'POST' || (method === 'GET' && isSignedOrAction(exchange))) return doors.aws;
  return answerUnknown;
}

function isRead(method: string): boolean {
  return method === 'GET' || method === 'HEAD';
}

function isSignedOrAction(exchange: Exchange): boolean {
  return (
    /(^|&)(X-Amz-Algorithm|Action)=/.test(exchange.rawQuery) ||
    exchange.header('authorization')?.startsWith('AWS4-') === true
  );
}

async function answerHealth(exchange: Exchange): Promise<void> {
  exchange.send(200, { 'Content-Type': 'text/plain' }, 'ok\n');
}

async function answerReady(exchange: Exchange, ready: () => Promise<void>): Promise<void> {
  try {
    await ready();
    exchange.send(200, { 'Content-Type': 'text/plain' }, 'ok\n');
  } catch {
    exchange.send(
      503,
      { 'Content-Type': 'text/plain', 'Retry-After': '1' },
      'the database does not answer\n',
    );
  }
}

async function answerUnknown(exchange: Exchange): Promise<void> {
  exchange.send(
    404,
    { 'Content-Type': 'text/plain' },
    'Berth serves AWS APIs on POST /, and the registry on /v2/\n',
  );
}
