/** What tests of the metadata endpoints share: a clock to set, a role that answers what it is told, raw requests. */
import { request as send, type IncomingHttpHeaders } from 'node:http';
import { createRoleCredentials, type Assumption } from './role-credentials.ts';

export const NOW = Date.UTC(2026, 10, 24, 8, 0, 0);

/** Credentials number `n`, valid for `seconds` from `at`. */
export function grant(n: number, at: number, seconds = 3600): Assumption {
  const credentials = {
    accessKeyId: `ASIA${n}`,
    secretAccessKey: `secret ${n}`,
    sessionToken: `token ${n}`,
    expiresAt: at + seconds * 1000,
  };
  return { kind: 'granted', credentials };
}

export interface FakeRole {
  now: number;
  /** what the next call of the server brings; a text is an outage */
  next: (calls: number) => Assumption | string | Promise<Assumption>;
  calls: number;
  readonly troubles: string[];
  readonly credentials: ReturnType<typeof createRoleCredentials>;
}

export function fakeRole(): FakeRole {
  const role: FakeRole = {
    now: NOW,
    next: (calls) => grant(calls, role.now),
    calls: 0,
    troubles: [],
    credentials: createRoleCredentials({
      async assume() {
        role.calls += 1;
        const answer = await role.next(role.calls);
        if (typeof answer === 'string') throw new Error(answer);
        return answer;
      },
      clock: () => role.now,
      onTrouble: (reason) => role.troubles.push(reason),
    }),
  };
  return role;
}

export interface RawAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

/** One request; rejects when the connection ends without an answer. */
export function ask(
  { host, port }: { readonly host: string; readonly port: number },
  method: string,
  path: string,
  headers: Readonly<Record<string, string>> = {},
): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    const request = send({ host, port, method, path, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => void (text += part));
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text }),
      );
    });
    request.on('error', reject);
    request.end();
  });
}
