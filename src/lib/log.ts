import { destination, pino, stdTimeFunctions, symbols, type DestinationStream, type Logger } from 'pino';

export type { Logger };

/** Levels an operator may choose, quietest first. */
export const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/**
 * Structured JSON lines on standard error, buffered (at most 4 KiB or one second) so that a log line costs no system
 * call of its own; or to `sink`. Callers must not pass secrets: headers, queries and bodies are never logged.
 */
export function createLog(
  level: LogLevel,
  sink: DestinationStream = destination({ dest: 2, sync: false, minLength: 4096, periodicFlush: 1000 }),
): Logger {
  return pino({ level, base: null, timestamp: stdTimeFunctions.isoTime }, sink);
}

/** Writes a line that another thread's log made, as it is: where `log` writes. */
export function writeLine(log: Logger, line: string): void {
  (log as unknown as Record<symbol, DestinationStream>)[symbols.streamSym]?.write(line);
}
