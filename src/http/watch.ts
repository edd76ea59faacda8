import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** Slowest client that still counts as alive, sending or reading: half a KiB per second. */
const BYTES_PER_SECOND_MIN = 512;

function bytesMinOf(idleMs: number): number {
  return Math.max(1, (BYTES_PER_SECOND_MIN * idleMs) / 1000);
}

/**
 * Judges again and again, until the returned function is called. WHY not in the timer: after a stop of this process timers
 * come before what has arrived meanwhile.
 */
function watch(judge: () => void, idleMs: number): () => void {
  let judging: NodeJS.Immediate | undefined;
  const timer = setInterval(() => (judging = setImmediate(judge)), idleMs);
  return () => {
    clearInterval(timer);
    clearImmediate(judging);
  };
}

/**
 * Watches a client that sends a body: cuts the connection when less than half a KiB per second arrived during a period
 * of `idleMs` although the server was ready to read. Whoever reads the request sees the error. Returns what ends the
 * watch; call it when the body is over.
 */
export function watchReceiving(request: IncomingMessage, idleMs: number): () => void {
  const { socket } = request;
  const bytesMin = bytesMinOf(idleMs);
  let seen = socket.bytesRead;
  const unwatch = watch(() => {
    const moved = socket.bytesRead - seen;
    seen += moved;
    // WHY: unread bytes in the buffer mean that the server is the slow side.
    if (moved >= bytesMin || request.complete || request.readableLength > 0) return;
    unwatch();
    request.destroy(new Error('The client stopped sending.'));
  }, idleMs);
  return unwatch;
}

/**
 * Watches a client that is to read an answer: cuts the connection when the system took less than half a KiB per second
 * during a period of `idleMs` although bytes were waiting all the time. Whoever writes the response sees it close. Returns
 * what ends the watch.
 */
export function watchSending(response: ServerResponse, idleMs: number): () => void {
  const { socket } = response;
  if (socket === null) return () => {};
  const bytesMin = bytesMinOf(idleMs);
  let seen = bytesTaken(socket);
  const unwatch = watch(() => {
    const moved = bytesTaken(socket) - seen;
    seen += moved;
    // WHY: with nothing waiting the server is the slow side.
    if (moved >= bytesMin || bytesWaiting(socket) === 0) return;
    unwatch();
    response.destroy();
  }, idleMs);
  return unwatch;
}

/** Bytes of a socket that the system has not taken yet. */
function bytesWaiting(socket: Socket): number {
  // WHY the handle: a write counts as one until all of it was taken, and one of a MiB takes a slow client minutes. Node's own
  // socket timeout looks there too.
  const { _handle: handle } = socket as { _handle?: { writeQueueSize?: number } | null };
  return Math.max(socket.writableLength, handle?.writeQueueSize ?? 0);
}

function bytesTaken(socket: Socket): number {
  const { _handle: handle } = socket as { _handle?: { writeQueueSize?: number } | null };
  return socket.bytesWritten - (handle?.writeQueueSize ?? 0);
}
