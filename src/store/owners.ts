/**
 * Whose a claim is. A claim in a row carries the name of its writer, and that the number of its owner: the process, or with
 * PostgreSQL the thread, that asked for it. So whoever meets the claim can ask what became of its owner, instead of waiting
 * until it runs out.
 */
import { randomBytes, randomInt } from 'node:crypto';

/**
 * `running`: it may go on, or nothing is known of it. `dead`: it has ended, and nothing it began goes on. `lost`: it has no
 * connection to the database any more; mostly it has ended, but it may have lost only the connection.
 */
export type Fate = 'running' | 'lost' | 'dead';

/** A number for one opening of a database: positive, fits 32 bits. WHY random: numbers of processes come back. */
export function drawOwner(): number {
  return randomInt(1, 2 ** 31);
}

/** A name for one append or one closing. */
export function nameWriter(owner: number): string {
  return `${owner}.${randomBytes(12).toString('hex')}`;
}

/** `undefined` for a name of another form: who gave it is not known. */
export function ownerOf(writer: string): number | undefined {
  const owner = /^(\d{1,10})\./.exec(writer)?.[1];
  return owner === undefined ? undefined : Number(owner);
}
