import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';

export interface ExchangeOptions {
  readonly requestId: string;
  readonly secure: boolean;
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
  /** Set by a door once it knows: the action performed and who asked. For logs and metrics only. */
  action: string | undefined;
  principal: string | undefined;
  #query: URLSearchParams | undefined;

  constructor(request: IncomingMessage, response: ServerResponse, options: ExchangeOptions) {
    this.request = request;
    this.response = response;
    this.requestId = options.requestId;
    this.secure = options.secure;
    this.method = request.method ?? 'GET';
    const target = request.url ?? '/';
    const mark = target.indexOf('?');
    this.path = mark === -1 ? target : target.slice(0, mark);
    this.rawQuery = mark === -1 ? '' : target.slice(mark + 1);
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

  /** Whether a body of the request may still be on its way. */
  get bodyPending(): boolean {
    return !this.request.complete && this.#announcesBody;
  }

  get #announcesBody(): boolean {
    const length = this.request.headers['content-length'];
    return (
      this.request.headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0')
    );
  }

  /**
   * Sends the whole answer. `body` is text or bytes; for HEAD it is measured but not sent. Does nothing when an
   * answer was begun or the client is gone.
   */
  send(status: number, headers: OutgoingHttpHeaders, body: string | Uint8Array = ''): void {
    const response = this.response;
    if (response.headersSent || response.destroyed) return;
    const bytes = typeof body === 'string' ? Buffer.from(body) : body;
    if (status !== 204 && status !== 304 && headers['Content-Length'] === undefined) {
      headers['Content-Length'] = bytes.byteLength;
    }
    response.writeHead(status, headers);
    if (this.method === 'HEAD' || status === 204 || status === 304) response.end();
    else response.end(bytes);
  }
}
