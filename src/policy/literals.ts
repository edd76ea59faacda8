/** The typed values that condition operators compare: numbers, dates, addresses, bytes. */

const NUMBER = /^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$/;

/** A decimal number, or NaN. */
export const parseNumber = (text: string): number => (NUMBER.test(text) ? Number(text) : Number.NaN);

const DATE =
  /^(-?[0-9]{1,9})(?:-([0-9]{1,2})(?:-([0-9]{1,2}))?)?(?:T(?:([0-9]{1,2})(?::([0-9]{1,2})(?::([0-9]{1,2})(?:\.([0-9]+))?)?)?)?(Z|[+-][0-9]{2}:?(?:[0-9]{2})?)?)?$/i;
const EPOCH_SECONDS_MAX = 9_223_372_036_854_775_807n;
const YEAR_MIN = -292_275_054;
const YEAR_MAX = 292_278_993;

/** Days since 1970-01-01 in the proleptic Gregorian calendar; unlike Date it has no range and lets days overflow. */
function daysSinceEpoch(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era * 146_097 + dayOfEra - 719_468;
}

function offsetMinutes(zone: string | undefined): number {
  if (zone === undefined || zone.toUpperCase() === 'Z') return 0;
  const minutes = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3).replace(':', '') || 0);
  return zone.startsWith('-') ? -minutes : minutes;
}

/** Seconds since 1970 of a W3C ISO-8601 date (any precision, UTC without zone) or of epoch seconds; NaN if it is neither. */
export function parseDate(text: string): number {
  if (/^[0-9]{1,19}$/.test(text)) return BigInt(text) <= EPOCH_SECONDS_MAX ? Number(text) : Number.NaN;
  // A year alone would read as epoch seconds; a sign, dash or T makes it a date.
  const found = /[-Tt]/.test(text) ? DATE.exec(text) : null;
  if (found === null) return Number.NaN;
  const [, y, mo = '1', d = '1', h = '0', mi = '0', s = '0', fraction = '0', zone] = found;
  const [year, month, day, hour, minute, second] = [
    Number(y),
    Number(mo),
    Number(d),
    Number(h),
    Number(mi),
    Number(s),
  ];
  const inRange =
    year >= YEAR_MIN &&
    year <= YEAR_MAX &&
    month >= 1 &&
    month <= 12 &&
    day >= 1 &&
    day <= 31 &&
    hour <= 23 &&
    minute <= 59 &&
    second <= 59;
  if (!inRange) return Number.NaN;
  const clock = hour * 3600 + minute * 60 + second + Number(`0.${fraction}`);
  return daysSinceEpoch(year, month, day) * 86_400 + clock - offsetMinutes(zone) * 60;
}

/** Base64 as bytes in a binary string, undefined if it is none. */
export function parseBase64(text: string): string | undefined {
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined;
  return Buffer.from(text, 'base64').toString('latin1');
}

/** Address bytes, 4 or 16; an IPv4-mapped IPv6 address has already become its four bytes. */
export type Address = readonly number[];

export interface AddressRange {
  readonly address: Address;
  readonly prefixBits: number;
}

/** Four decimal octets. WHY by hand: every request with an address condition comes by, and splitting costs a microsecond. */
function parseIpv4(text: string): number[] | undefined {
  const bytes: number[] = [];
  let octet = -1;
  for (let i = 0; i <= text.length; i++) {
    const code = i < text.length ? text.charCodeAt(i) : 0x2e;
    if (code === 0x2e) {
      if (octet < 0 || bytes.push(octet) > 4) return undefined;
      octet = -1;
      continue;
    }
    // WHY: leading zeros are refused, some systems read them as octal.
    if (code < 0x30 || code > 0x39 || octet === 0) return undefined;
    octet = (octet < 0 ? 0 : octet * 10) + code - 0x30;
    if (octet > 255) return undefined;
  }
  return bytes.length === 4 ? bytes : undefined;
}

/** The bytes of colon-separated groups, the last of which may be a dotted quad. */
function parseGroups(text: string): number[] | undefined {
  if (text === '') return [];
  const bytes: number[] = [];
  const groups = text.split(':', 9);
  for (const [i, group] of groups.entries()) {
    if (i === groups.length - 1 && group.includes('.')) {
      const quad = parseIpv4(group);
      if (quad === undefined) return undefined;
      bytes.push(...quad);
    } else {
      if (!/^[0-9a-f]{1,4}$/i.test(group)) return undefined;
      const value = Number.parseInt(group, 16);
      bytes.push(value >> 8, value & 0xff);
    }
  }
  return bytes;
}

function parseIpv6(text: string): number[] | undefined {
  const [head = '', tail, extra] = text.split('::', 3);
  if (extra !== undefined) return undefined;
  const before = parseGroups(head);
  const after = parseGroups(tail ?? '');
  if (before === undefined || after === undefined || (tail !== undefined && head.includes('.')))
    return undefined;
  const missing = 16 - before.length - after.length;
  if (tail === undefined ? missing !== 0 : missing < 2) return undefined;
  return [...before, ...Array<number>(missing).fill(0), ...after];
}

const isMapped = (bytes: Address): boolean =>
  bytes.length === 16 && bytes[10] === 0xff && bytes[11] === 0xff && bytes.slice(0, 10).every((b) => b === 0);

const parseBytes = (text: string): number[] | undefined =>
  text.includes(':') ? parseIpv6(text) : parseIpv4(text);

/** An IPv4 or IPv6 address of a request (an IPv6 zone is dropped), undefined if it is none. */
export function parseAddress(text: string): Address | undefined {
  const zone = text.indexOf('%');
  const bytes = parseBytes(zone < 0 ? text : text.slice(0, zone));
  return bytes !== undefined && isMapped(bytes) ? bytes.slice(12) : bytes;
}

/** A CIDR block or a bare address (one host), undefined if it is none. */
export function parseRange(text: string): AddressRange | undefined {
  const [host = '', length, extra] = text.split('/', 3);
  const bytes = parseBytes(host);
  if (bytes === undefined || extra !== undefined) return undefined;
  if (length !== undefined && !/^[0-9]{1,3}$/.test(length)) return undefined;
  const prefixBits = length === undefined ? bytes.length * 8 : Number(length);
  if (prefixBits > bytes.length * 8) return undefined;
  if (isMapped(bytes) && prefixBits >= 96) return { address: bytes.slice(12), prefixBits: prefixBits - 96 };
  return { address: bytes, prefixBits };
}

/** Whether the address lies in the range; IPv4 and IPv6 never contain each other. */
export function contains(range: AddressRange, address: Address): boolean {
  if (range.address.length !== address.length) return false;
  const whole = range.prefixBits >> 3;
  for (let i = 0; i < whole; i++) if (range.address[i] !== address[i]) return false;
  const rest = range.prefixBits & 7;
  if (rest === 0) return true;
  return (((range.address[whole] ?? 0) ^ (address[whole] ?? 0)) & (0xff << (8 - rest)) & 0xff) === 0;
}
