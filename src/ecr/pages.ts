/**
 * `nextToken`: where the following page starts, opaque and bound to the operation, the registry and the parameters of the
 * call that gave it (ecr-api.md §1.6). Authenticated, so that a position a client made up is refused.
 */
import { createHmac, timingSafeEqual, type KeyObject } from 'node:crypto';
import { invalidParameter } from '../domain/faults.ts';

export type Position = readonly (string | number | null)[];

export interface PageTokens {
  /** `scope` is everything the token is bound to, as plain data. */
  seal(scope: unknown, position: Position): string;
  /** The position in a token, `undefined` without one. @throws Fault InvalidParameterException */
  open(scope: unknown, token: string | undefined): Position | undefined;
}

const MAC_BYTES = 16;

export function createPageTokens(key: KeyObject): PageTokens {
  const mac = (scope: unknown, payload: Buffer): Buffer =>
    createHmac('sha256', key)
      .update(`${JSON.stringify(scope)}\0`)
      .update(payload)
      .digest()
      .subarray(0, MAC_BYTES);
  return {
    seal(scope, position) {
      const payload = Buffer.from(JSON.stringify(position));
      return Buffer.concat([mac(scope, payload), payload]).toString('base64url');
    },
    open(scope, token) {
      if (token === undefined) return undefined;
      const bytes = Buffer.from(token, 'base64url');
      const payload = bytes.subarray(MAC_BYTES);
      const genuine =
        bytes.length > MAC_BYTES &&
        bytes.toString('base64url') === token &&
        timingSafeEqual(bytes.subarray(0, MAC_BYTES), mac(scope, payload));
      if (!genuine) throw invalidParameter('nextToken', 'Member must satisfy constraint: [Invalid token]');
      return JSON.parse(payload.toString()) as Position;
    },
  };
}

/** `names` exclude paging (ecr-api.md §1.6). @throws Fault InvalidParameterException */
export function refusePaging(
  member: string,
  input: { readonly nextToken?: string | undefined; readonly maxResults?: number | undefined },
): void {
  for (const other of ['nextToken', 'maxResults'] as const) {
    if (input[other] !== undefined)
      throw invalidParameter(other, `Member must not be specified together with ${member}`);
  }
}

/** Entries of a page unless the client says otherwise. */
export const PAGE_DEFAULT = 100;
