/** A place with names of its own: a network namespace with nothing but itself, and files that only those inside see. */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { startDaemon, until, type Environment, type Place } from './harness.ts';

/** Where Go, OpenSSL, curl and Debian's Python look for authorities. */
export const TRUST_STORE = '/etc/ssl/certs/ca-certificates.crt';

/**
 * The address of the names inside (RFC 5737). WHY not of 127.0.0.0/8: there dockerd takes any certificate, and plain HTTP.
 */
export const NAMESPACE_ADDRESS = '192.0.2.1';

export interface Namespace {
  /** what to put in front of a command to run it inside, in the same process */
  readonly inside: readonly string[];
  stop(): Promise<void>;
}

export interface NamespaceOptions {
  /** these names, and only these, are NAMESPACE_ADDRESS */
  readonly names: readonly string[];
  /** a file with the certificate that its trust store has besides the machine's */
  readonly authority: string;
}

/** Needs root, and `unshare`, `nsenter` and `ip`. The machine's own files are not touched: mounts of the namespace hide them. */
export async function startNamespace(
  place: Place,
  { names, authority }: NamespaceOptions,
): Promise<Namespace> {
  const hosts = join(place.directory, 'hosts');
  const store = join(place.directory, 'ca-certificates.crt');
  await writeFile(
    hosts,
    `127.0.0.1 localhost\n${names.map((name) => `${NAMESPACE_ADDRESS} ${name}\n`).join('')}`,
  );
  await copyFile(TRUST_STORE, store);
  await writeFile(store, await readFile(authority), { flag: 'a' });
  const script = [
    'set -eu',
    'ip link set lo up',
    `ip address add ${NAMESPACE_ADDRESS}/32 dev lo`,
    'mount --bind "$HOSTS" /etc/hosts',
    `mount --bind "$STORE" "$(readlink -f ${TRUST_STORE})"`,
    'echo namespace ready',
    'exec sleep infinity',
  ].join('\n');
  const environment: Environment = { ...place.environment, HOSTS: hosts, STORE: store };
  const keeper = startDaemon(['unshare', '--mount', '--net', '--', 'sh', '-c', script], environment);
  await until('the namespace is ready', () => {
    if (keeper.hasExited()) throw new Error(`no namespace:\n${keeper.output()}`);
    return keeper.output().includes('namespace ready');
  });
  return {
    inside: ['nsenter', `--target=${keeper.pid}`, '--mount', '--net', '--'],
    async stop() {
      await keeper.stop('SIGKILL');
    },
  };
}
