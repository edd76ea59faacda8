import type { IncomingMessage } from 'node:http';
import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import { watchReceiving } from './watch.ts';

/**
 * Reads a whole request body of at most `bytesMax` bytes, of a client that keeps sending (watch.ts).
 *
 * @throws Fault RequestEntityTooLargeException as soon as the announced or received size is over the limit; the rest
 *   stays unread (the server drains or closes). Fault SerializationException when the client stops in mid-body.
 */
export function readBody(
  request: IncomingMessage,
  bytesMax: number,
  idleMs: number = LIMITS.idleSocketMs,
): Promise<Buffer> {
  const tooLarge = (): Fault =>
    new Fault('RequestEntityTooLargeException', `Request body is larger than ${bytesMax} bytes.`);
  if (Number(request.headers['content-length'] ?? 0) > bytesMax) return Promise.reject(tooLarge());
  const cut = (): Fault =>
    new Fault('SerializationException', 'The request body ended before it was complete.');
  if (request.destroyed) return Promise.reject(cut());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const unwatch = request.complete ? undefined : watchReceiving(request, idleMs);
    const settle = (): void => {
      unwatch?.();
      request.off('data', onData).off('end', onEnd).off('error', onCut).off('close', onCut);
    };
    const onData = (chunk: Buffer): void => {
      size += chunk.length;
      if (size > bytesMax) {
        settle();
        request.pause();
        reject(tooLarge());
      } else chunks.push(chunk);
    };
    const onEnd = (): void => {
      settle();
      resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, size));
    };
    const onCut = (): void => {
      settle();
      reject(cut());
    };
    request.on('data', onData).on('end', onEnd).on('error', onCut).on('close', onCut);
  });
}
