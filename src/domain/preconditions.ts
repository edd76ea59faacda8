/** What a client wants to be true of a thing before it is written or deleted (RFC 9110 §13.1). Pure. */
import { Fault } from './faults.ts';

/** Entity tags without their quotes; `*` stands for whatever is there. */
export type EntityTags = '*' | readonly string[];

export interface Precondition {
  /** the thing must be there, under one of these (If-Match) */
  readonly match: EntityTags | undefined;
  /** the thing must not be there under any of these (If-None-Match) */
  readonly noneMatch: EntityTags | undefined;
}

/** What is to be true of the image that a tag or a digest of any algorithm names. */
export interface ImageCondition {
  readonly reference: string;
  readonly precondition: Precondition;
}

/** The condition that is false of a thing with this entity tag, or of none when `current` is undefined. */
export function findFalse(
  { match, noneMatch }: Precondition,
  current: string | undefined,
): 'match' | 'noneMatch' | undefined {
  if (match !== undefined && !names(match, current)) return 'match';
  return noneMatch !== undefined && names(noneMatch, current) ? 'noneMatch' : undefined;
}

function names(tags: EntityTags, current: string | undefined): boolean {
  return current !== undefined && (tags === '*' || tags.includes(current));
}

const SENTENCES = {
  match: 'None of the entity tags in If-Match is that of the content.',
  noneMatch: 'If-None-Match has the entity tag of the content.',
};

export function preconditionFailed(which: 'match' | 'noneMatch'): Fault {
  return new Fault('PreconditionFailed', SENTENCES[which]);
}
