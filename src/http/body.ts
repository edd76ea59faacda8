import { Fault } from '../domain/faults.ts';
import { LIMITS } from '../lib/limits.ts';
import type { Exchange } from './exchange.ts';
import { watchReceiving } from './watch.ts';

export interface ReadOptions {
  /** how long the client may send nothing */
  readonly idleMs?: number;
  /** Called before a large body is waited for or read. What it throws is thrown, and the body stays unread. */
  readonly vet?: () => Promise<void>;
}

/**
 * Reads a whole request body of at most `bytesMax` bytes, of a client that keeps sending (watch.ts), once there is memory
 * for it (body-memory.ts).
 *
 * @throws Fault RequestEntityTooLargeException as soon as the announced or received size is over the limit; the rest
 *   stays unread (the server drains or closes). Fault SerializationException when the client stops in mid-body,
 *   ServiceUnavailableException when there is no memory.
 */
export async function readBody(
  exchange: Exchange,
  bytesMax: number,
  { idleMs = LIMITS.idleSocketMs, vet }: ReadOptions = {},
): Promise<Buffer> {
  const { contentLength, announcesBody, request } = exchange;
  if ((contentLength ?? 0) > bytesMax) throw tooLarge(bytesMax);
  const bytes = announcesBody ? (contentLength ?? bytesMax) : 0;
  if (vet !== undefined && bytes > LIMITS.bodyFreeBytes) await vet();
  const room = exchange.bodies?.hold(exchange, bytes);
  if (room !== undefined) await room;
  if (request.destroyed) throw cut();
  try {
    return await collect(exchange, bytesMax, idleMs);
  } catch (error) {
    // WHY: the answer may take a while, for the rest of the body is read away.
    exchange.bodies?.release(exchange);
    throw error;
  }
}

function tooLarge(bytesMax: number): Fault {
  return new Fault('RequestEntityTooLargeException', `Request body is larger than ${bytesMax} bytes.`);
}

function cut(): Fault {
  return new Fault('SerializationException', 'The request body ended before it was complete.');
}

function collect({ request, contentLength }: Exchange, bytesMax: number, idleMs: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    // WHY: chunks joined at the end are there twice. The system gives the pages when they are written to.
    const whole =
      contentLength !== undefined && contentLength > JOINED_BYTES_MAX
        ? Buffer.allocUnsafeSlow(contentLength)
        : undefined;
    const chunks: Buffer[] = [];
    let size = 0;
    const unwatch = request.complete ? undefined : watchReceiving(request, idleMs);
    const settle = (): void => {
      unwatch?.();
      request.off('data', onData).off('end', onEnd).off('error', onCut).off('close', onCut);
    };
    const onData = (chunk: Buffer): void => {
      if (size + chunk.length > bytesMax) {
        settle();
        request.pause();
        chunks.length = 0;
        reject(tooLarge(bytesMax));
        return;
      }
      if (whole === undefined) chunks.push(chunk);
      else chunk.copy(whole, size);
      size += chunk.length;
    };
    const onEnd = (): void => {
      settle();
      resolve(whole ?? (chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, size)));
    };
    const onCut = (): void => {
      settle();
      reject(cut());
    };
    request.on('data', onData).on('end', onEnd).on('error', onCut).on('close', onCut);
  });
}

/** Longer bodies of announced length are put together as they come. */
const JOINED_BYTES_MAX = 65_536;
