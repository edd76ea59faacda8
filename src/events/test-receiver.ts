/** A webhook's other end that does as it is told. */
import assert from 'node:assert/strict';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Received {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** A status, `hang` for no answer at all, `cut` for a broken connection, `redirect` to another path of the receiver. */
export type Behaviour = number | 'hang' | 'cut' | 'redirect';

export interface Receiver {
  readonly url: string;
  readonly received: readonly Received[];
  /** what it does next, decided for each request */
  behave: (request: Received) => Behaviour;
  /** Resolves when as many requests arrived that `counts` lets count: all of them unless told. */
  until(count: number, counts?: (request: Received) => boolean): Promise<void>;
  close(): Promise<void>;
}

export async function startReceiver(): Promise<Receiver> {
  const received: Received[] = [];
  let waiting: { enough: () => boolean; resolve: () => void }[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const { url: path = '', headers } = request;
      const it = { path, headers, body: Buffer.concat(chunks).toString() };
      received.push(it);
      const behaviour = receiver.behave(it);
      if (behaviour === 'cut') request.socket.destroy();
      else if (behaviour === 'redirect') response.writeHead(302, { Location: '/elsewhere' }).end();
      else if (behaviour !== 'hang') response.writeHead(behaviour).end('x'.repeat(100_000));
      for (const { enough, resolve } of waiting) if (enough()) resolve();
      waiting = waiting.filter(({ enough }) => !enough());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const receiver: Receiver = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook?key=hidden`,
    received,
    behave: () => 200,
    until: (count, counts = () => true) => {
      const enough = (): boolean => received.filter(counts).length >= count;
      return enough() ? Promise.resolve() : new Promise((resolve) => waiting.push({ enough, resolve }));
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return receiver;
}

/** What the events among the requests say, in order of arrival. */
export function summary(received: readonly Received[]): string[] {
  return received.map(({ body }) => {
    const { detail } = JSON.parse(body) as { detail?: Record<string, string> };
    assert.ok(detail);
    return `${detail['action-type']} ${detail['repository-name']}:${detail['image-tag']}`;
  });
}
