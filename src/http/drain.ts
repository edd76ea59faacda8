import type { IncomingMessage } from 'node:http';

export interface DrainLimits {
  readonly bytesMax: number;
  readonly ms: number;
}

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
