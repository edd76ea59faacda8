import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { AuditedPrincipal } from '../lib/cloudtrail.ts';
import type { BodyMemory } from './body-memory.ts';
import { drain, DRAIN_LIMITS, type DrainLimits } from './drain.ts';

export interface ExchangeOptions {
  readonly requestId: string;
  readonly secure: boolean;
  /** Bounds what bodies hold; absent in tests. */
  readonly bodies?: BodyMemory | undefined;
  /** How much of an unread body is read away after an early answer; for tests. */
  readonly drainLimits?: DrainLimits;
}

/**
 * Bodies up to this size are joined with the head. WHY as text: node:http sends a head and a text in one write, a head
 * and bytes in two buffers (writev), which costs several microseconds more.
 */
const INLINE_BYTES_MAX = 16_384;

const ABSOLUTE_FORM = /^https?:\/\/([^/?#]+)(.*)$/i;

const NOTHING: readonly string[] = [];

function latin1Of(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

/**
 * One request and its answer. The target is split once; `path` is raw (still percent-encoded), `query` has every
 * parameter decoded in order of arrival. Answers always carry an exact Content-Length.
 */
export class Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly requestId: string;
  readonly secure: boolean;
  readonly method: string;
  readonly path: string;
  readonly rawQuery: string;
  // What follows is set by the server and the doors as they learn it, for logs, metrics and the audit log only.
  /** `oci`, `aws`, `download`, `probe` or `none` */
  door = 'none';
  /** `service:Operation` */
  action: string | undefined;
  principal: AuditedPrincipal | undefined;
  region: string | undefined;
  /** ARNs of what the action is on */
  resources: readonly string[] = NOTHING;
  /** in the words of the API, from which records leave out what is secret */
  parameters: object | undefined;
  /** what a change answered, in the words of the API */
  outcome: object | undefined;
  /** The request goes on with what its connection began, which there is a record of. */
  continues = false;
  faultCode: string | undefined;
  faultMessage: string | undefined;
  /** called when the answer is decided although the rest of the body is still to be read away */
  onEarlyAnswer: (() => void) | undefined;
  blobBytesIn = 0;
  blobBytesOut = 0;
  readonly bodies: BodyMemory | undefined;
  readonly #drainLimits: DrainLimits | undefined;
  #query: URLSearchParams | undefined;
  /** of a target in absolute form */
  #authority: string | undefined;

  constructor(request: IncomingMessage, response: ServerResponse, options: ExchangeOptions) {
    this.request = request;
    this.response = response;
    this.requestId = options.requestId;
    this.secure = options.secure;
    this.bodies = options.bodies;
    this.#drainLimits = options.drainLimits;
    this.method = request.method ?? 'GET';
    const target = this.#originForm(request.url ?? '/');
    const mark = target.indexOf('?');
    this.path = mark === -1 ? target : target.slice(0, mark);
    this.rawQuery = mark === -1 ? '' : target.slice(mark + 1);
  }

  /** A target as clients send it to servers; they send the absolute form to proxies, and every server has to take it (RFC 9112 §3.2.2). */
  #originForm(target: string): string {
    if (target.startsWith('/')) return target;
    const [, authority, rest = ''] = ABSOLUTE_FORM.exec(target) ?? [];
    if (authority === undefined) return target;
    this.#authority = authority;
    return rest.startsWith('/') ? rest : `/${rest}`;
  }

  /**
   * Whether the head names one host: no second Host header, and none that differs from that of the target. WHY: what stands before
   * this server may have gone by the other one (RFC 9112 §3.2).
   */
  get namesOneHost(): boolean {
    const { rawHeaders } = this.request;
    let hosts = 0;
    for (let i = 0; i < rawHeaders.length; i += 2) {
      const name = rawHeaders[i] as string;
      if (name.length === 4 && name.toLowerCase() === 'host') hosts += 1;
    }
    return (
      hosts <= 1 &&
      (this.#authority === undefined || this.#authority.toLowerCase() === this.host.toLowerCase())
    );
  }

  /** Notes what the request was refused with. */
  noteFault(code: string, message: string): void {
    this.faultCode = code;
    this.faultMessage = message;
  }

  get query(): URLSearchParams {
    return (this.#query ??= new URLSearchParams(this.rawQuery));
  }

  /** A request header, several lines joined as HTTP does. Name in lower case. */
  header(name: string): string | undefined {
    const value = this.request.headers[name];
    return Array.isArray(value) ? value.join(', ') : value;
  }

  /** The Host header as sent, with its port. */
  get host(): string {
    return this.request.headers.host ?? '';
  }

  /** Scheme and authority the client reached, e.g. `http://localhost:7327`. */
  get origin(): string {
    return `${this.secure ? 'https' : 'http'}://${this.host}`;
  }

  /** Peer address with IPv4-mapped IPv6 unmapped, so that `aws:SourceIp` conditions match. */
  get sourceIp(): string {
    const address = this.request.socket.remoteAddress ?? '';
    return address.startsWith('::ffff:') ? address.slice(7) : address;
  }

  /** Announced bytes of the body; `undefined` without a Content-Length (node:http lets only digits through). */
  get contentLength(): number | undefined {
    const length = this.request.headers['content-length'];
    return length === undefined ? undefined : Number(length);
  }

  /** Whether the request has a body: of announced length above zero, or chunked, which may turn out empty. */
  get announcesBody(): boolean {
    const { headers } = this.request;
    const length = headers['content-length'];
    return headers['transfer-encoding'] !== undefined || (length !== undefined && Number(length) > 0);
  }

  /** Whether a body of the request may still be on its way. */
  get bodyPending(): boolean {
    return !this.request.complete && this.announcesBody;
  }

  /**
   * Sends the whole answer. `headers` is an object, or names and values alternating in one array (cheaper); the latter
   * must not name Content-Length. `body` is text or bytes; for HEAD it is measured but not sent. Does nothing when an
   * answer was begun or the client is gone. An answer in mid-request reads a bounded part of the body away afterwards,
   * so that a client that is still sending sees it instead of a reset (registry-protocol.md §4.4 no. 19).
   */
  send(status: number, headers: OutgoingHttpHeaders | string[], body: string | Uint8Array = ''): void {
    const response = this.response;
    if (response.headersSent || response.destroyed) return;
    const bodiless = status === 204 || status === 304;
    const length = typeof body === 'string' ? Buffer.byteLength(body) : body.byteLength;
    if (Array.isArray(headers)) {
      if (!bodiless) headers.push('Content-Length', String(length));
    } else if (!bodiless) headers['Content-Length'] ??= length;
    this.#finish(status, headers, bodiless || this.method === 'HEAD' || length === 0 ? undefined : body);
  }

  /** Sends a head that is already complete, Content-Length included, and no body: the answer to a HEAD. */
  sendHead(status: number, headers: string[]): void {
    if (this.response.headersSent || this.response.destroyed) return;
    this.#finish(status, headers, undefined);
  }

  #finish(
    status: number,
    headers: OutgoingHttpHeaders | string[],
    body: string | Uint8Array | undefined,
  ): void {
    if (this.bodyPending) this.#finishEarly(status, headers, body);
    else {
      this.response.writeHead(status, headers);
      if (body === undefined) this.response.end();
      else if (typeof body === 'string' || body.byteLength > INLINE_BYTES_MAX) this.response.end(body);
      else this.response.end(latin1Of(body), 'latin1');
    }
  }

  /**
   * WHY: a socket closed with unread input is reset, and the reset may overtake the answer. So the answer goes out
   * whole, then the body is read away within limits, and only then the response ends (which lets node:http go on to the
   * next request or close). The connection is kept when the announced rest is small enough to be read away.
   */
  #finishEarly(
    status: number,
    headers: OutgoingHttpHeaders | string[],
    body: string | Uint8Array | undefined,
  ): void {
    const { request, response } = this;
    const limits = this.#drainLimits ?? DRAIN_LIMITS;
    this.onEarlyAnswer?.();
    if ((this.contentLength ?? Number.POSITIVE_INFINITY) > limits.keepBytesMax) {
      if (Array.isArray(headers)) headers.push('Connection', 'close');
      else headers['Connection'] = 'close';
    }
    response.writeHead(status, headers);
    if (body === undefined) response.flushHeaders();
    else response.write(body);
    drain(request, limits, (complete) => {
      response.end();
      if (!complete) request.socket.destroy();
    });
  }
}
