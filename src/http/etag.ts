/**
 * Whether an `If-None-Match` (or `If-Match`) list names the strong tag of `value`. Weak and unquoted spellings match
 * too: some clients send the bare digest (registry-protocol.md §1.8).
 */
export function etagMatches(header: string | undefined, value: string): boolean {
  if (header === undefined) return false;
  if (header === `"${value}"`) return true;
  return header.split(',').some((part) => {
    const tag = part.trim().replace(/^W\//, '');
    return tag === '*' || tag === value || tag === `"${value}"`;
  });
}
