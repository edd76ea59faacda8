import type { IncomingMessage, ServerResponse } from 'node:http';

/** Slowest client that still counts as alive while it sends a body: half a KiB per second. */
const RECEIVE_BYTES_PER_SECOND_MIN = 512;

/**
 * Watches a client that sends a body: cuts the connection when less than half a KiB per second arrived during a period
 * of `idleMs` although the server was ready to read. Whoever reads the request sees the error. Returns what ends the
 * watch; call it when the body is over.
 */
export function watchReceiving(request: IncomingMessage, idleMs: number): () => void {
  const { socket } = request;
  const bytesMin = Math.max(1, (RECEIVE_BYTES_PER_SECOND_MIN * idleMs) / 1000);
  let seen = socket.bytesRead;
  const timer = setInterval(() => {
    const moved = socket.bytesRead - seen;
    seen += moved;
    // WHY: unread bytes in the buffer mean that the server is the slow side.
    if (moved >= bytesMin || request.complete || request.readableLength > 0) return;
    clearInterval(timer);
    request.destroy(new Error('The client stopped sending.'));
  }, idleMs);
  return () => clearInterval(timer);
}

/**
 * Watches a client that is to read an answer: cuts the connection when the socket took no byte for `idleMs`. Whoever
 * writes the response sees it close. Returns what ends the watch.
 */
export function watchSending(response: ServerResponse, idleMs: number): () => void {
  const cut = (): void => void response.destroy();
  response.setTimeout(idleMs, cut);
  return () => void response.off('timeout', cut);
}
