/** Bytes `start` (inclusive) to `end` (exclusive) of a resource. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * Reads a `Range` header against a resource of `size` bytes (RFC 9110 §14; registry-protocol.md §1.5).
 *
 * Returns `undefined` when the whole resource is to be sent (no header, another unit, several ranges, or a malformed
 * header, which HTTP lets a server ignore) and `'unsatisfiable'` for 416. WHY: `bytes=500-0` is malformed by the RFC, but
 * the OCI conformance suite wants 416, so a reversed range is unsatisfiable here.
 */
export function parseRange(
  header: string | undefined,
  size: number,
): ByteRange | 'unsatisfiable' | undefined {
  if (header === undefined) return undefined;
  const match = /^bytes=[ \t]*(\d*)-(\d*)[ \t]*$/i.exec(header);
  if (match === null || (match[1] === '' && match[2] === '')) return undefined;
  if (match[1] === '') {
    const suffix = Number(match[2]);
    if (suffix === 0 || size === 0) return 'unsatisfiable';
    return { start: Math.max(0, size - suffix), end: size };
  }
  const start = Number(match[1]);
  const last = match[2] === '' ? size - 1 : Math.min(Number(match[2]), size - 1);
  if (start >= size || last < start) return 'unsatisfiable';
  return { start, end: last + 1 };
}

/**
 * Reads the `Content-Range` of an upload: `<first>-<last>`, both inclusive (OCI distribution specification, "Pushing a
 * blob in chunks"). WHY: `bytes a-b/size` of RFC 9110 is understood too, because libraries write it by themselves.
 * Returns `undefined` for anything else, reversed ends and numbers past 2^53 included.
 */
export function parseContentRange(header: string): ByteRange | undefined {
  const match = /^(?:bytes )?(\d{1,16})-(\d{1,16})(?:\/(?:\d{1,16}|\*))?$/.exec(header);
  if (match === null) return undefined;
  const start = Number(match[1]);
  const end = Number(match[2]) + 1;
  return start < end && Number.isSafeInteger(end) ? { start, end } : undefined;
}
