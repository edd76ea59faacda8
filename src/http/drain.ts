import type { IncomingMessage } from 'node:http';

/** How much of a body that nobody wants is read away. */
export interface DrainLimits {
  /** announced bodies up to this length keep their connection; after longer ones it is closed */
  readonly keepBytesMax: number;
  /** what a client may have under way before it sees the answer: bandwidth times delay */
  readonly bytesMax: number;
  /** as long as it may take to see it; as nginx lingers by default */
  readonly ms: number;
}

export const DRAIN_LIMITS: DrainLimits = { keepBytesMax: 262_144, bytesMax: 16_777_216, ms: 5000 };

/**
 * Reads the rest of a request body away, then calls `done`, once: with true when the body ended, with false when it did
 * not within the limits or the client is gone.
 */
export function drain(
  request: IncomingMessage,
  limits: DrainLimits,
  done: (complete: boolean) => void,
): void {
  if (request.readableEnded || request.destroyed) {
    done(request.readableEnded);
    return;
  }
  let left = limits.bytesMax;
  const settle = (complete: boolean): void => {
    clearTimeout(timer);
    request.off('data', onData).off('end', onEnd).off('close', onClose);
    done(complete);
  };
  const onData = (chunk: Buffer): void => {
    left -= chunk.length;
    if (left < 0) settle(false);
  };
  const onEnd = (): void => settle(true);
  const onClose = (): void => settle(false);
  const timer = setTimeout(onClose, limits.ms);
  request.on('data', onData).on('end', onEnd).on('close', onClose).resume();
}
