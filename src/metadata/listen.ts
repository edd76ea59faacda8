/** Listeners of the metadata endpoints: small, patient with nobody, on addresses that only this machine reaches. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { BlockList, isIP, type AddressInfo } from 'node:net';

export interface Listening {
  readonly host: string;
  readonly port: number;
  /** scheme and authority */
  readonly endpoint: string;
  close(): Promise<void>;
}

export type Handler = (request: IncomingMessage, response: ServerResponse) => Promise<void>;

const REQUEST_MS = 10_000;
const HEADER_BYTES_MAX = 8192;
const CONNECTIONS_MAX = 256;

const LOCAL = new BlockList();
LOCAL.addSubnet('127.0.0.0', 8, 'ipv4');
LOCAL.addSubnet('169.254.0.0', 16, 'ipv4');
LOCAL.addAddress('::1', 'ipv6');
LOCAL.addSubnet('fe80::', 10, 'ipv6');
// where EC2 and EKS have their IPv6 endpoints
LOCAL.addSubnet('fd00:ec2::', 32, 'ipv6');

/** Whether an address is a loopback or a link-local one, or of AWS's IPv6 counterpart: no other machine routes to it. */
export function isMachineLocal(address: string): boolean {
  const family = isIP(address);
  return family !== 0 && LOCAL.check(address, family === 6 ? 'ipv6' : 'ipv4');
}

/** Reads `127.0.0.1:1338` or `[fd00:ec2::254]:80`; `undefined` for anything but an IP address with a port. */
export function readListenAddress(
  text: string,
): { readonly host: string; readonly port: number } | undefined {
  const [, six, four, digits = ''] = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d{1,5})$/i.exec(text) ?? [];
  const host = six ?? four ?? '';
  const port = Number(digits);
  if (isIP(host) !== (six === undefined ? 4 : 6) || port > 65_535) return undefined;
  return { host, port };
}

/** @throws the system's error (`EADDRNOTAVAIL`, `EADDRINUSE`, `EACCES`) when the address cannot be had */
export async function listenHttp(
  { host, port }: { readonly host: string; readonly port: number },
  handler: Handler,
  onError: (error: unknown) => void,
): Promise<Listening> {
  const options = {
    requestTimeout: REQUEST_MS,
    headersTimeout: REQUEST_MS,
    connectionsCheckingInterval: 2000,
    maxHeaderSize: HEADER_BYTES_MAX,
  };
  const server = createServer(options, (request, response) => {
    handler(request, response).catch((error: unknown) => {
      onError(error);
      response.destroy();
    });
  });
  server.maxConnections = CONNECTIONS_MAX;
  server.listen(port, host);
  await once(server, 'listening');
  const bound = (server.address() as AddressInfo).port;
  return {
    host,
    port: bound,
    endpoint: `http://${host.includes(':') ? `[${host}]` : host}${bound === 80 ? '' : `:${bound}`}`,
    async close() {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}
