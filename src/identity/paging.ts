/** Marker and MaxItems of IAM's listings (iam-sts.md §6.5). Markers are opaque to clients and survive changes. */
import { Fault } from '../domain/faults.ts';

export interface PageInput {
  readonly Marker?: string | undefined;
  readonly MaxItems?: number | undefined;
}

const ITEMS_DEFAULT = 100;

/** The members every listing answers beside its list. */
export interface PageOutput {
  IsTruncated: boolean;
  Marker?: string;
}

export function pageSize({ MaxItems }: PageInput): number {
  return MaxItems ?? ITEMS_DEFAULT;
}

/** What `Marker` points behind. @throws Fault ValidationError when this server did not make it */
export function readMarker({ Marker }: PageInput): string | undefined {
  if (Marker === undefined) return undefined;
  const last = Buffer.from(Marker, 'base64').toString();
  if (!last.startsWith('after:') || writeMarker(last.slice(6)) !== Marker) {
    throw new Fault('ValidationError', 'Invalid Marker.');
  }
  return last.slice(6);
}

function writeMarker(last: string): string {
  return Buffer.from(`after:${last}`).toString('base64');
}

/** Cuts a page from one row more than it may hold, read after `readMarker`. */
export function pageOf<Item>(
  rows: readonly Item[],
  input: PageInput,
  keyOf: (item: Item) => string,
): { items: Item[]; page: PageOutput } {
  const items = rows.slice(0, pageSize(input));
  const last = items.at(-1);
  return rows.length > items.length && last !== undefined
    ? { items, page: { IsTruncated: true, Marker: writeMarker(keyOf(last)) } }
    : { items, page: { IsTruncated: false } };
}

/**
 * A page of a list of at most some tens of items, all of which are at hand.
 *
 * WHY: by position, because a marker has at most 320 characters and the keys (tag keys, ARNs) may be longer.
 */
export function pageOfAll<Item>(all: readonly Item[], input: PageInput): { items: Item[]; page: PageOutput } {
  const start = Number(readMarker(input) ?? 0);
  if (!Number.isSafeInteger(start) || start < 0) throw new Fault('ValidationError', 'Invalid Marker.');
  const items = all.slice(start, start + pageSize(input));
  const end = start + items.length;
  return {
    items,
    page: end < all.length ? { IsTruncated: true, Marker: writeMarker(String(end)) } : { IsTruncated: false },
  };
}
