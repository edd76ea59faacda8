/**
 * A write is a named transaction: plain data in, plain data out (structured-clone safe), no I/O but `tx`, no clock, no
 * randomness (both come in through the input). It runs whole or not at all, alone or retried, on the writer thread
 * (SQLite) or in process (PostgreSQL, SERIALIZABLE, retried on 40001 and 40P01). Decisions inside it call pure
 * `domain/` functions. It refuses by throwing a Fault, which crosses the thread intact.
 */
import type { Kysely } from 'kysely';
import type { Schema } from './schema.ts';

export type Tx = Kysely<Schema>;

export type Transaction<Input, Output> = (tx: Tx, input: Input) => Promise<Output>;

/** What a reader may do: Kysely's query builder on a connection that cannot write. */
export type Reader = Kysely<Schema>;
