/**
 * Listeners, request ids, choosing a door, and draining. Knows HTTP and which door serves what, and nothing of what the
 * doors do.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import {
  createServer as createNetServer,
  type AddressInfo,
  type ListenOptions,
  type Server as NetServer,
  type Socket,
} from 'node:net';
import { createSecureContext, type SecureContextOptions, Server as TlsServer } from 'node:tls';
import { Fault } from './domain/faults.ts';
import { Admission, BodyMemory, Entrance, Exchange, type Kind, type Reason } from './http/http.ts';
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
  /** `/metrics`; absent when there are none */
  readonly metrics?: Door | undefined;
  /** Tells a client that it was not served, in the words of the door named by `exchange.door`. Plain text unless given. */
  readonly refuse?: ((exchange: Exchange, fault: Fault) => void) | undefined;
  /** the certificate of the private CA, PEM; `undefined` when there is none */
  readonly authority?: (() => Promise<string | undefined>) | undefined;
}

/** Certificate chain and private key, PEM. */
export interface TlsPair {
  readonly cert: Buffer;
  readonly key: Buffer;
}

export interface ServerOptions {
  readonly doors: Doors;
  readonly host: string;
  readonly port: number;
  /**
   * Several threads listen on the port, and the system spreads connections over them (not everywhere, see
   * {@link SHARES_PORTS}): whether this is the `first`, which makes sure that the port is free, or a `further` one.
   */
  readonly share?: 'first' | 'further' | undefined;
  readonly tls?: TlsPair | undefined;
  /** what differs from {@link SERVER_LIMITS} */
  readonly limits?: Partial<ServerLimits> | undefined;
  /** called for each request or connection that is not served, instead of `onDone` */
  readonly onShed?: ((reason: ShedReason) => void) | undefined;
  /** called once when an answer is complete or its connection is gone; `durationMs` since the request's headers */
  readonly onDone: (exchange: Exchange, durationMs: number) => void;
  /** called when a door throws: a defect, never a client's mistake */
  readonly onError: (error: unknown, exchange: Exchange) => void;
}

/** Why something was not served: a request ({@link Reason}), or its connection. */
export type ShedReason = Reason | 'connections' | 'idle_connection' | 'pipelining' | 'slow';

/** Bounds of one listener. */
export interface ServerLimits {
  readonly connectionsMax: number;
  readonly requestsInFlightMax: number;
  readonly transfersInFlightMax: number;
  readonly slowRequestsMax: number;
  readonly pipelinedMax: number;
  readonly headersMs: number;
  readonly queueMax: number;
  readonly queueMs: number;
  readonly targetMs: number;
  readonly calmMs: number;
  readonly bodyBytesMax: number;
  readonly bodyWaitMs: number;
  readonly bodyReceiveMs: number;
}

export const SERVER_LIMITS: ServerLimits = {
  connectionsMax: LIMITS.connectionsMax,
  requestsInFlightMax: LIMITS.requestsInFlightMax,
  transfersInFlightMax: LIMITS.transfersInFlightMax,
  slowRequestsMax: LIMITS.slowRequestsMax,
  pipelinedMax: LIMITS.pipelinedMax,
  headersMs: LIMITS.headersMs,
  queueMax: LIMITS.admissionQueueMax,
  queueMs: LIMITS.admissionQueueMs,
  targetMs: LIMITS.admissionTargetMs,
  calmMs: LIMITS.admissionCalmMs,
  bodyBytesMax: LIMITS.bodyMemoryBytesMax,
  bodyWaitMs: LIMITS.bodyWaitMs,
  bodyReceiveMs: LIMITS.bodyReceiveMs,
};

export interface RunningServer {
  readonly port: number;
  /** requests that were begun and not answered to their end */
  readonly inFlight: number;
  readonly connections: number;
  /**
   * New connections get this certificate; open ones are not touched.
   *
   * @throws Error, changing nothing, when the pair cannot be used or the listener speaks no TLS
   */
  reloadTls(pair: TlsPair): void;
  /**
   * Stops listening, lets requests in flight end (none is cut), closes connections that have none, and resolves. A
   * connection whose next request is only beginning to arrive is given {@link STRAGGLER_MS}.
   */
  drain(): Promise<void>;
}

/** Systems where several listeners of one port get connections in even shares. */
export const SHARES_PORTS: ReadonlySet<string> = new Set(['linux', 'freebsd', 'dragonfly', 'aix', 'sunos']);

export const DOWNLOAD_PREFIX = '/blob-download/';

/** How long a connection that is too many may take to send the request that is refused. */
const EXCESS_MS = 5000;

/** How long a connection without a request stays open while draining. */
const STRAGGLER_MS = 500;

/** What one listener keeps track of. */
interface Traffic {
  draining: boolean;
  /** answers under way */
  readonly answers: Set<ServerResponse>;
  /** connections with the number of their requests under way, oldest first */
  readonly sockets: Map<Socket, number>;
  /** connections whose TLS handshake is not over, by the peer's address and port */
  readonly handshakes: Map<string, Socket>;
  /** connections that are too many: their first request is refused */
  readonly excess: WeakSet<Socket>;
  readonly limits: ServerLimits;
  readonly entrance: Entrance;
  readonly bodies: BodyMemory;
}

export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const limits = { ...SERVER_LIMITS, ...options.limits };
  const traffic: Traffic = {
    draining: false,
    answers: new Set(),
    sockets: new Map(),
    handshakes: new Map(),
    excess: new WeakSet(),
    limits,
    entrance: openEntrance(limits, options),
    bodies: new BodyMemory({
      bytesMax: limits.bodyBytesMax,
      freeBytes: LIMITS.bodyFreeBytes,
      waitMs: limits.bodyWaitMs,
      receiveMs: limits.bodyReceiveMs,
      clock: () => performance.now(),
    }),
  };
  const serveWith =
    (expects: boolean) =>
    (request: IncomingMessage, response: ServerResponse): void => {
      // WHY: without this a client could keep its connection, and so the drain, alive for ever.
      if (traffic.draining) response.shouldKeepAlive = false;
      void serve(request, response, options, traffic, expects);
    };
  const listener = serveWith(false);
  const heads = {
    maxHeaderSize: LIMITS.headBytesMax,
    connectionsCheckingInterval: Math.min(5000, limits.headersMs),
  };
  const server =
    options.tls === undefined
      ? createServer(heads, listener)
      : createTlsServer(
          {
            ...secure(options.tls),
            ...heads,
            ALPNProtocols: ['http/1.1'],
            handshakeTimeout: limits.headersMs,
          },
          listener,
        );
  tune(server, limits);
  // A body that was announced with "Expect: 100-continue" is asked for when the request is admitted.
  server.on('checkContinue', serveWith(true));
  if (options.tls !== undefined) watchHandshakes(server, traffic);
  server.on('connection', () => makeRoom(traffic, options));
  server.on('drop', () => options.onShed?.('connections'));
  server.on(options.tls === undefined ? 'connection' : 'secureConnection', (socket: Socket) => {
    traffic.sockets.set(socket, 0);
    if (traffic.sockets.size > limits.connectionsMax) {
      traffic.excess.add(socket);
      socket.setTimeout(EXCESS_MS, () => socket.destroy());
    }
    socket.once('close', () => traffic.sockets.delete(socket));
  });
  const { port, host, share } = options;
  // WHY: another process that shares ports would not keep this one from listening; two servers would answer in turns.
  if (share === 'first' && port !== 0) await checkFree(port, host);
  await listen(server, { port, host, reusePort: share !== undefined });
  return {
    port: (server.address() as AddressInfo).port,
    get inFlight() {
      return traffic.answers.size;
    },
    get connections() {
      return traffic.sockets.size;
    },
    reloadTls: (pair) => reloadTls(server, pair),
    drain: () => drain(server, traffic),
  };
}

function listen(server: NetServer, options: ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(options, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** @throws when anything listens there */
async function checkFree(port: number, host: string): Promise<void> {
  const server = createNetServer();
  await listen(server, { port, host });
  await new Promise((resolve) => server.close(resolve));
}

function secure(pair: TlsPair): SecureContextOptions {
  return { ...pair, minVersion: 'TLSv1.2' };
}

function reloadTls(server: Server, pair: TlsPair): void {
  if (!(server instanceof TlsServer)) throw new Error('the listener speaks no TLS');
  // WHY first: setSecureContext has changed half of its state when it throws
  createSecureContext(secure(pair));
  server.setSecureContext(secure(pair));
}

/** WHY by address: a TLS socket does not tell which connection it is on. */
function watchHandshakes(server: Server, { handshakes }: Traffic): void {
  const peerOf = (socket: Socket): string => `${socket.remoteAddress} ${socket.remotePort}`;
  server.on('connection', (socket: Socket) => {
    const peer = peerOf(socket);
    handshakes.set(peer, socket);
    socket.once('close', () => {
      if (handshakes.get(peer) === socket) handshakes.delete(peer);
    });
  });
  server.on('secureConnection', (socket: Socket) => handshakes.delete(peerOf(socket)));
}

async function drain(server: Server, traffic: Traffic): Promise<void> {
  traffic.draining = true;
  for (const answer of traffic.answers) if (!answer.headersSent) answer.shouldKeepAlive = false;
  const closed = new Promise<void>((resolve) => void server.close(() => resolve()));
  server.closeIdleConnections();
  // WHY: node:http counts a connection that never sent a request as busy, and one whose answer had promised to keep it
  // alive stays open; either would hold up the drain for as long as its client likes.
  const waiting = new Set<Socket>();
  const timer = setInterval(() => {
    const busy = new Set([...traffic.answers].map((answer) => answer.req.socket));
    for (const socket of traffic.sockets.keys()) {
      if (busy.has(socket)) waiting.delete(socket);
      else if (waiting.has(socket)) socket.destroy();
      else waiting.add(socket);
    }
    for (const socket of traffic.handshakes.values()) socket.destroy();
  }, STRAGGLER_MS / 2);
  await closed.finally(() => clearInterval(timer));
}

/** Limits of the listener (registry-protocol.md §4.5): layers upload for longer than any whole-request timeout. */
function tune(server: Server, { connectionsMax, headersMs }: ServerLimits): void {
  server.requestTimeout = 0;
  server.headersTimeout = headersMs;
  // WHY more: idle ones make room for new ones (makeRoom), and a few too many are told so.
  server.maxConnections = connectionsMax + Math.ceil(connectionsMax / 16);
  server.keepAliveTimeout = LIMITS.keepAliveMs;
  server.on('clientError', (error: NodeJS.ErrnoException, socket: Socket) => {
    if (!socket.writable || error.code === 'ECONNRESET') {
      socket.destroy();
      return;
    }
    const status = HEAD_REFUSALS[error.code ?? ''] ?? '400 Bad Request';
    socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
  });
}

const HEAD_REFUSALS: Readonly<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: '431 Request Header Fields Too Large',
  ERR_HTTP_REQUEST_TIMEOUT: '408 Request Timeout',
};

async function serve(
  request: IncomingMessage,
  response: ServerResponse,
  options: ServerOptions,
  traffic: Traffic,
  expectsContinue: boolean,
): Promise<void> {
  const started = performance.now();
  const { socket } = request;
  const exchange = new Exchange(request, response, {
    requestId: randomUUID(),
    secure: options.tls !== undefined,
    bodies: traffic.bodies,
  });
  let shed = false;
  traffic.answers.add(response);
  count(traffic, socket, 1);
  response.once('close', () => {
    traffic.answers.delete(response);
    count(traffic, socket, -1);
    if (!shed) options.onDone(exchange, performance.now() - started);
  });
  // WHY: an 'error' on a request or answer without a listener would end the process; the doors see the close.
  request.on('error', () => {});
  response.on('error', () => {});
  try {
    const door = chooseDoor(exchange, options.doors, traffic);
    const kind = kindOf(exchange);
    if ((traffic.sockets.get(socket) ?? 0) > traffic.limits.pipelinedMax) {
      shed = true;
      options.onShed?.('pipelining');
      socket.destroy();
      return;
    }
    const refusal = kind === undefined ? undefined : await admit(traffic, exchange, kind);
    if (refusal === 'gone') return;
    if (refusal !== undefined) {
      shed = true;
      options.onShed?.(refusal);
      refuse(exchange, options.doors);
      return;
    }
    if (expectsContinue) response.writeContinue();
    await door(exchange);
  } catch (error) {
    options.onError(error, exchange);
    exchange.noteFault('ServerException', 'Internal error');
    exchange.send(
      500,
      { 'Content-Type': 'text/plain', 'x-amzn-RequestId': exchange.requestId },
      'Internal error\n',
    );
    if (response.headersSent && !response.writableEnded) response.destroy();
  }
}

function admit(
  { entrance, excess }: Traffic,
  exchange: Exchange,
  kind: Kind,
): ShedReason | 'gone' | undefined | Promise<ShedReason | 'gone' | undefined> {
  if (!excess.has(exchange.request.socket)) return entrance.enter(exchange, kind);
  exchange.response.shouldKeepAlive = false;
  return 'connections';
}

/** Clients of every kind try again after this one (registry-protocol.md §4.6). */
function refuse(exchange: Exchange, doors: Doors): void {
  const fault = new Fault('ServiceUnavailableException', 'The server is overloaded. Try again later.');
  exchange.response.shouldKeepAlive &&= !exchange.announcesBody;
  if (doors.refuse !== undefined && exchange.door !== 'none') doors.refuse(exchange, fault);
  else exchange.send(503, { 'Content-Type': 'text/plain', 'Retry-After': '1' }, `${fault.message}\n`);
}

function openEntrance(limits: ServerLimits, { onShed }: ServerOptions): Entrance {
  const { requestsInFlightMax, transfersInFlightMax, slowRequestsMax } = limits;
  const admission = new Admission({
    ...limits,
    clock: () => performance.now(),
    idleMs: () => performance.eventLoopUtilization().idle,
    inFlightMax: {
      request: requestsInFlightMax,
      transfer: transfersInFlightMax,
      waiting: LIMITS.eventFollowersMax,
      slow: slowRequestsMax,
    },
  });
  return new Entrance(admission, () => onShed?.('slow'));
}

function count({ sockets }: Traffic, socket: Socket, change: 1 | -1): void {
  const requests = sockets.get(socket);
  if (requests !== undefined) sockets.set(socket, requests + change);
}

/**
 * Called for a new connection. When there are too many, the oldest ones go that have no request: first those whose handshake
 * does not get done, if they are the most.
 */
function makeRoom({ sockets, handshakes, limits }: Traffic, { onShed }: ServerOptions): void {
  if (sockets.size + handshakes.size < limits.connectionsMax) return;
  const cut = (socket: Socket): void => {
    onShed?.('idle_connection');
    sockets.delete(socket);
    socket.destroy();
  };
  let left = Math.ceil(limits.connectionsMax / 32);
  if (handshakes.size > sockets.size) {
    for (const socket of handshakes.values()) {
      if (left-- > 0) cut(socket);
    }
  }
  for (const [socket, requests] of sockets) {
    if (left <= 0) return;
    if (requests > 0) continue;
    left -= 1;
    cut(socket);
  }
}

/** What a request will hold. `undefined`: answered whatever else there is to do. */
function kindOf({ door, path, method, request, announcesBody }: Exchange): Kind | undefined {
  switch (door) {
    case 'probe':
      return path === '/ca.pem' ? 'request' : undefined;
    case 'download':
      return 'transfer';
    case 'events':
      return 'waiting';
    case 'oci': {
      if (!path.includes('/blobs/')) return 'request';
      return method === 'GET' || announcesBody ? 'transfer' : 'request';
    }
    default:
      return String(request.headers['x-amz-target']).endsWith('.UploadLayerPart') ? 'transfer' : 'request';
  }
}

function chooseDoor(exchange: Exchange, doors: Doors, traffic: Traffic): Door {
  const { path, method } = exchange;
  if (!exchange.namesOneHost) return answerBadRequest;
  if (path.startsWith('/v2/') || path === '/v2') return enter(exchange, 'oci', doors.oci);
  if (path.startsWith(DOWNLOAD_PREFIX)) return enter(exchange, 'download', doors.download);
  if (path === '/events' || path.startsWith('/events/')) return enter(exchange, 'events', doors.events);
  if (isRead(method)) {
    if (path === '/healthz') return enter(exchange, 'probe', answerHealth);
    if (path === '/readyz') return enter(exchange, 'probe', (it) => answerReady(it, doors.ready, traffic));
    if (path === '/ca.pem') return enter(exchange, 'probe', (it) => answerAuthority(it, doors.authority));
    if (path === '/metrics' && doors.metrics !== undefined) return enter(exchange, 'probe', doors.metrics);
  }
  if (method === 'POST' || (method === 'GET' && isSignedOrAction(exchange)))
    return enter(exchange, 'aws', doors.aws);
  return answerUnknown;
}

function enter(exchange: Exchange, name: string, door: Door): Door {
  exchange.door = name;
  return door;
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

async function answerBadRequest(exchange: Exchange): Promise<void> {
  exchange.response.shouldKeepAlive = false;
  exchange.send(400, { 'Content-Type': 'text/plain' }, 'A request names one host.\n');
}

async function answerHealth(exchange: Exchange): Promise<void> {
  exchange.send(200, { 'Content-Type': 'text/plain' }, 'ok\n');
}

/** The certificate to trust; it is public. */
async function answerAuthority(exchange: Exchange, authority: Doors['authority']): Promise<void> {
  const certificate = await authority?.();
  if (certificate === undefined) {
    exchange.send(404, { 'Content-Type': 'text/plain' }, 'This server has no private CA.\n');
    return;
  }
  const headers = { 'Content-Type': 'application/x-pem-file', 'Cache-Control': 'no-cache' };
  exchange.send(200, headers, certificate);
}

async function answerReady(
  exchange: Exchange,
  ready: () => Promise<void>,
  { draining }: Traffic,
): Promise<void> {
  try {
    if (draining) throw new Error('draining');
    await ready();
    exchange.send(200, { 'Content-Type': 'text/plain' }, 'ok\n');
  } catch {
    exchange.send(
      503,
      { 'Content-Type': 'text/plain', 'Retry-After': '1' },
      draining ? 'the server is stopping\n' : 'the database or the storage does not take writes\n',
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
