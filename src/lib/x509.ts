/**
 * Certificates of a private authority (RFC 5280): just the DER that a root and its server certificates need, with P-256
 * keys and ECDSA over SHA-256. WHY our own: node:crypto reads certificates but cannot sign them (docs/adr/0009).
 */
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from 'node:crypto';
import { isIP } from 'node:net';

/** A certificate with its key, both PEM. The key is secret. */
export interface Issued {
  readonly certificate: string;
  readonly key: string;
}

export interface Validity {
  /** epoch milliseconds, both ends included; certificates have whole seconds */
  readonly notBefore: number;
  readonly notAfter: number;
}

export interface AuthorityOptions extends Validity {
  readonly commonName: string;
  /**
   * The only names its certificates may have: DNS names stand for themselves and what is below them, addresses for
   * themselves (`127.0.0.1`) or a network (`127.0.0.0/8`). At least one of each kind, or that kind is not limited.
   */
  readonly permitted: readonly string[];
}

export interface ServerOptions extends Validity {
  readonly commonName: string;
  /** DNS names, with a wildcard as the first label or without, and addresses */
  readonly names: readonly string[];
}

/** Makes a root that signs server certificates only (path length 0, names limited). */
export function createAuthority(options: AuthorityOptions): Issued {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const name = distinguishedName(options.commonName);
  const id = keyIdentifier(publicKey);
  const certificate = signCertificate({
    ...options,
    subject: name,
    issuer: name,
    publicKey,
    signer: privateKey,
    extensions: [
      extension(OID.basicConstraints, true, sequence(TRUE, integer(Buffer.from([0])))),
      extension(OID.keyUsage, true, namedBits(KEY_CERT_SIGN, CRL_SIGN)),
      extension(OID.nameConstraints, true, sequence(tlv(0xa0, ...options.permitted.map(subtree)))),
      extension(OID.subjectKeyIdentifier, false, tlv(OCTET_STRING, id)),
    ],
  });
  return { certificate, key: exportKey(privateKey) };
}

/**
 * Makes a server certificate of the authority, with a key of its own.
 *
 * @throws Error when certificate and key of the authority do not belong together, or were not made here
 */
export function issueServerCertificate(authority: Issued, options: ServerOptions): Issued {
  const root = new X509Certificate(authority.certificate);
  const signer = createPrivateKey(authority.key);
  if (!root.checkPrivateKey(signer)) throw new Error('the key is not the one of the certificate');
  if (signer.asymmetricKeyDetails?.namedCurve !== 'prime256v1') throw new Error('the key is not of P-256');
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const issuerId = keyIdentifier(createPublicKey(signer));
  const certificate = signCertificate({
    ...options,
    subject: distinguishedName(options.commonName),
    issuer: subjectOf(root.raw),
    publicKey,
    signer,
    extensions: [
      extension(OID.basicConstraints, true, sequence()),
      extension(OID.keyUsage, true, namedBits(DIGITAL_SIGNATURE)),
      extension(OID.extendedKeyUsage, false, sequence(oid(OID.serverAuth))),
      extension(OID.subjectAltName, false, sequence(...options.names.map(alternativeName))),
      extension(OID.subjectKeyIdentifier, false, tlv(OCTET_STRING, keyIdentifier(publicKey))),
      extension(OID.authorityKeyIdentifier, false, sequence(tlv(0x80, issuerId))),
    ],
  });
  return { certificate, key: exportKey(privateKey) };
}

/** The names an authority is limited to, as they were given to {@link createAuthority}; none when it is not limited. */
export function permittedNames(certificate: string): string[] {
  // … subject, public key, [3] extensions
  const wrapped = contents(contents(new X509Certificate(certificate).raw)[0] ?? NOTHING)[7] ?? NOTHING;
  const type = oid(OID.nameConstraints);
  for (const element of contents(contents(wrapped)[0] ?? NOTHING)) {
    const parts = contents(element);
    if (parts[0]?.equals(type) !== true) continue;
    // OCTET STRING { SEQUENCE { [0] { SEQUENCE { name }… } } }
    const [constraints = NOTHING] = contents(parts.at(-1) ?? NOTHING);
    return contents(contents(constraints)[0] ?? NOTHING).map((it) =>
      permittedText(contents(it)[0] ?? NOTHING),
    );
  }
  return [];
}

/** Whether an authority limited to `permitted` may issue for the name (RFC 5280 §4.2.1.10). */
export function isPermitted(name: string, permitted: readonly string[]): boolean {
  if (isIP(name) === 0) {
    const plain = name.replace(/^\*\./, '');
    return permitted.some((it) => isIP(it.split('/')[0] ?? '') === 0 && `.${plain}`.endsWith(`.${it}`));
  }
  const address = addressBytes(name);
  return permitted.some((it) => {
    if (isIP(it.split('/')[0] ?? '') === 0) return false;
    const bytes = subtreeAddress(it);
    const length = bytes.length / 2;
    return (
      address.length === length &&
      address.every((byte, i) => (byte & (bytes[length + i] ?? 0)) === (bytes[i] ?? 0))
    );
  });
}

const DNS_NAME =
  /^(?=.{1,253}$)(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$/;

/** The form in which a certificate has a name (lower case, no final dot, shortest address); `undefined` when it is none. */
export function normalizeName(text: string): string | undefined {
  const name = text.toLowerCase().replace(/^\[(.*)\]$/, '$1');
  if (isIP(name) === 6) return URL.parse(`http://[${name}]`)?.hostname.slice(1, -1);
  if (isIP(name) === 4) return name;
  const dns = name.replace(/\.$/, '');
  // WHY the last label: "1.2.3" and "10.1" are half an address, and no top level domain is a number
  return DNS_NAME.test(dns) && !/(?:^|\.)\d+$/.test(dns) ? dns : undefined;
}

// ---- certificates

const OID = {
  commonName: '2.5.4.3',
  organization: '2.5.4.10',
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  nameConstraints: '2.5.29.30',
  authorityKeyIdentifier: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  ecdsaWithSha256: '1.2.840.10045.4.3.2',
} as const;

// bits of keyUsage
const DIGITAL_SIGNATURE = 0;
const KEY_CERT_SIGN = 5;
const CRL_SIGN = 6;

interface Unsigned extends Validity {
  readonly subject: Buffer;
  readonly issuer: Buffer;
  readonly publicKey: KeyObject;
  readonly signer: KeyObject;
  readonly extensions: readonly Buffer[];
}

function signCertificate(unsigned: Unsigned): string {
  const algorithm = sequence(oid(OID.ecdsaWithSha256));
  const body = sequence(
    tlv(0xa0, integer(Buffer.from([2]))), // version 3
    integer(serialNumber()),
    algorithm,
    unsigned.issuer,
    sequence(time(unsigned.notBefore), time(unsigned.notAfter)),
    unsigned.subject,
    unsigned.publicKey.export({ type: 'spki', format: 'der' }),
    tlv(0xa3, sequence(...unsigned.extensions)),
  );
  const der = sequence(body, algorithm, bitString(sign('sha256', body, unsigned.signer)));
  const lines = der.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

function exportKey(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' });
}

/** 126 random bits: positive, never zero, at most 20 octets, and of the same length always (RFC 5280 §4.1.2.2). */
function serialNumber(): Buffer {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes;
}

/** RFC 7093 §2, method 1: the first 160 bits of the SHA-256 of the public key's bit string. */
function keyIdentifier(publicKey: KeyObject): Buffer {
  const spki = publicKey.export({ type: 'spki', format: 'der' });
  // of a P-256 key the bit string is the last 65 bytes: 04, x, y
  return createHash('sha256').update(spki.subarray(-65)).digest().subarray(0, 20);
}

function distinguishedName(commonName: string): Buffer {
  const part = (type: string, text: string): Buffer =>
    tlv(SET, sequence(oid(type), tlv(UTF8_STRING, Buffer.from(text))));
  return sequence(part(OID.organization, 'Berth'), part(OID.commonName, commonName));
}

/** The subject of a certificate, byte for byte: an issuer's name must be the same octets for strict verifiers. */
function subjectOf(certificate: Buffer): Buffer {
  const body = contents(contents(certificate)[0] ?? NOTHING);
  // [0] version, serial, algorithm, issuer, validity, subject
  const subject = body[5];
  if (subject === undefined) throw new Error('not a certificate of version 3');
  return subject;
}

function extension(type: string, critical: boolean, value: Buffer): Buffer {
  return sequence(oid(type), ...(critical ? [TRUE] : []), tlv(OCTET_STRING, value));
}

function alternativeName(name: string): Buffer {
  return isIP(name) === 0 ? tlv(0x82, Buffer.from(name, 'latin1')) : tlv(0x87, addressBytes(name));
}

function subtree(permitted: string): Buffer {
  const isName = isIP(permitted.split('/')[0] ?? '') === 0;
  return sequence(
    isName ? tlv(0x82, Buffer.from(permitted, 'latin1')) : tlv(0x87, subtreeAddress(permitted)),
  );
}

function permittedText(name: Buffer): string {
  const value = name.subarray(...bounds(name, 0));
  if (name[0] === 0x82) return value.toString('latin1');
  const half = value.length / 2;
  const bits = value
    .subarray(half)
    .reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
  const bytes = [...value.subarray(0, half)];
  const groups = Array.from({ length: half / 2 }, (_, i) => value.readUInt16BE(i * 2).toString(16));
  const address = half === 4 ? bytes.join('.') : (normalizeName(groups.join(':')) ?? '');
  return bits === half * 8 ? address : `${address}/${bits}`;
}

/** Address and mask, one after the other. */
function subtreeAddress(network: string): Buffer {
  const [address = '', prefix] = network.split('/');
  const bytes = addressBytes(address);
  const bits = prefix === undefined ? bytes.length * 8 : Number(prefix);
  const mask = Buffer.from(
    bytes.map((_, i) => (0xff << (8 - Math.min(8, Math.max(0, bits - i * 8)))) & 0xff),
  );
  return Buffer.concat([bytes.map((byte, i) => byte & (mask[i] ?? 0)), mask]);
}

function addressBytes(address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split('.').map(Number));
  // the URL parser writes every address as groups of hexadecimal digits with at most one "::"
  const [head = '', tail] = (URL.parse(`http://[${address}]`)?.hostname.slice(1, -1) ?? '').split('::');
  const groups = (text: string): string[] => text.split(':').flatMap((group) => group || []);
  const [before, after] = [groups(head), groups(tail ?? '')];
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => '0');
  const bytes = Buffer.alloc(16);
  [...before, ...zeros, ...after].forEach((group, i) =>
    bytes.writeUInt16BE(Number.parseInt(group, 16), i * 2),
  );
  return bytes;
}

// ---- DER (X.690)

const NOTHING = Buffer.from([0x30, 0]);
const OCTET_STRING = 0x04;
const UTF8_STRING = 0x0c;
const SEQUENCE = 0x30;
const SET = 0x31;
const TRUE = Buffer.from([0x01, 0x01, 0xff]);

function tlv(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const value = Buffer.concat(parts);
  const { length } = value;
  const size =
    length < 0x80
      ? [length]
      : length < 0x100
        ? [0x81, length]
        : length < 0x1_0000
          ? [0x82, length >> 8, length & 0xff]
          : undefined;
  if (size === undefined) throw new RangeError('a certificate is not that long');
  return Buffer.concat([Buffer.from([tag, ...size]), value]);
}

function sequence(...parts: readonly Uint8Array[]): Buffer {
  return tlv(SEQUENCE, ...parts);
}

/** Of bytes whose first bit is 0 and that have no superfluous zero in front. */
function integer(bytes: Buffer): Buffer {
  return tlv(0x02, bytes);
}

function bitString(bytes: Uint8Array): Buffer {
  return tlv(0x03, Buffer.from([0]), bytes);
}

/** A BIT STRING of up to eight named bits, without trailing zeros (X.690 §11.2.2). */
function namedBits(...bits: readonly number[]): Buffer {
  const byte = bits.reduce((sum, bit) => sum | (0x80 >> bit), 0);
  return tlv(0x03, Buffer.from([7 - Math.max(...bits), byte]));
}

function oid(text: string): Buffer {
  const [first = 0, second = 0, ...rest] = text.split('.').map(Number);
  const bytes = [first * 40 + second, ...rest].flatMap((arc) => {
    const digits = [arc & 0x7f];
    for (let left = arc >>> 7; left > 0; left >>>= 7) digits.unshift((left & 0x7f) | 0x80);
    return digits;
  });
  return tlv(0x06, Buffer.from(bytes));
}

/** UTCTime until 2049, GeneralizedTime from 2050 on (RFC 5280 §4.1.2.5). */
function time(epochMs: number): Buffer {
  const digits = `${new Date(epochMs).toISOString().slice(0, 19).replace(/[-:T]/g, '')}Z`;
  return digits < '2050' ? tlv(0x17, Buffer.from(digits.slice(2))) : tlv(0x18, Buffer.from(digits));
}

/** The elements inside an element, each with its own header. */
function contents(element: Buffer): Buffer[] {
  const found: Buffer[] = [];
  const [from, to] = bounds(element, 0);
  for (let at = from; at < to;) {
    const [, end] = bounds(element, at);
    found.push(element.subarray(at, end));
    at = end;
  }
  return found;
}

/** Where the value of the element at `at` begins and ends. */
function bounds(bytes: Buffer, at: number): [from: number, to: number] {
  const first = bytes[at + 1] ?? 0;
  const octets = first < 0x80 ? 0 : first & 0x7f;
  const length = octets === 0 ? first : bytes.readUIntBE(at + 2, octets);
  const from = at + 2 + octets;
  if (from + length > bytes.length) throw new RangeError('the element is not whole');
  return [from, from + length];
}
