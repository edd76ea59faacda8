import type { Exchange } from '../http/http.ts';
import { RecentMap } from '../lib/recent.ts';

const BASE64 = /^[A-Za-z0-9+/]+={0,2}$/;
const HEADER_CHARACTERS_MAX = 4096;
/** Headers that are kept with what was read from them: clients send the same one with every request. */
const HEADERS_MAX = 1000;

/** Makes a {@link readPassword} that remembers. WHY: reading costs ten times as much as finding. */
export function createPasswordReader(): typeof readPassword {
  const passwords = new RecentMap<string, string>(HEADERS_MAX);
  return (header) => {
    const known = header === undefined ? undefined : passwords.get(header);
    if (header === undefined || known !== undefined) return known;
    const password = readPassword(header);
    if (password !== undefined) passwords.set(header, password);
    return password;
  };
}

/**
 * The registry password of a Basic credential of user `AWS`; `undefined` for everything that is none and has to be
 * challenged. The result may still be a foreign or expired token.
 */
function readPassword(header: string | undefined): string | undefined {
  if (header === undefined || header.length > HEADER_CHARACTERS_MAX) return undefined;
  if (header.slice(0, 6).toLowerCase() !== 'basic ') return undefined;
  const encoded = header.slice(6).trim();
  if (!BASE64.test(encoded)) return undefined;
  const credential = Buffer.from(encoded, 'base64').toString('latin1');
  if (!credential.startsWith('AWS:') || credential.length === 4) return undefined;
  return credential.slice(4);
}

/** Asks for a credential exactly as ECR does, on every route alike (registry-protocol.md §1.4). */
export function challenge(exchange: Exchange, headers: string[]): void {
  // WHY: the host is the client's text; a quote in it would end the quoted string.
  const realm = exchange.origin.replace(/["\\]/g, '');
  headers.push(
    'Www-Authenticate',
    `Basic realm="${realm}/",service="ecr.amazonaws.com"`,
    'Content-Type',
    'text/plain; charset=utf-8',
  );
  exchange.send(401, headers, 'Not Authorized\n');
}
