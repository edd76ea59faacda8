import { destination, pino, type Logger } from 'pino';

export type { Logger };

/** Levels an operator may choose, quietest first. */
export const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/**
 * Structured JSON lines on standard error, buffered (at most 4 KiB or one second) so that a log line costs no system
 * call of its own. Callers must not pass secrets: headers and bodies are never logged.
 */
export function createLog(level: LogLevel): Logger {
  return pino(
    { level, base: null, timestamp: () => `,"time":"${new Date().toISOString()}"` },
    destination({ dest: 2, sync: false, minLength: 4096, periodicFlush: 1000 }),
  );
}
