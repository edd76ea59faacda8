/** What a failed statement says about a broken constraint, on both databases. */

interface DatabaseError {
  /** PostgreSQL: SQLSTATE. SQLite: `ERR_SQLITE_ERROR`. */
  readonly code?: unknown;
  /** SQLite: the extended result code. */
  readonly errcode?: unknown;
}

function breaks(error: unknown, sqlite: readonly number[], postgres: readonly string[]): boolean {
  if (!(error instanceof Error)) return false;
  const { code, errcode } = error as DatabaseError;
  if (typeof errcode === 'number') return sqlite.includes(errcode);
  return typeof code === 'string' && postgres.includes(code);
}

/**
 * True when the statement would have made a second row with the same unique or primary key.
 *
 * WHY: inside a transaction only good for turning it into a Fault: PostgreSQL refuses every further statement of a
 * transaction in which one failed. To carry on, use `on conflict do nothing`.
 */
export function isUniqueViolation(error: unknown): boolean {
  // SQLITE_CONSTRAINT_UNIQUE, _PRIMARYKEY, _ROWID; unique_violation
  return breaks(error, [2067, 1555, 2579], ['23505']);
}

/** True when a row names another that is not there, or would have lost one that is still named (RESTRICT). */
export function isForeignKeyViolation(error: unknown): boolean {
  // SQLITE_CONSTRAINT_FOREIGNKEY, and _TRIGGER because RESTRICT is a trigger inside; foreign_key_, restrict_violation
  return breaks(error, [787, 1811], ['23503', '23001']);
}
