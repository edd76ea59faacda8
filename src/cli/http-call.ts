/** One HTTP exchange of a command: bounded in time and size, never following a redirect. */
import { request as sendHttp } from 'node:http';
import { request as sendHttps } from 'node:https';
import { CommandError } from './cli.ts';

export interface HttpCall {
  readonly method: 'GET' | 'POST' | 'PUT';
  readonly url: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  /** what may sign the server's certificate; the usual authorities unless told */
  readonly ca?: readonly string[] | undefined;
  readonly timeoutMs?: number;
}

export interface HttpAnswer {
  readonly status: number;
  readonly text: string;
  readonly requestId: string | undefined;
}

const ANSWER_MS = 30_000;
const ANSWER_CHARACTERS_MAX = 16 * 1_048_576;

/** @throws CommandError when there is no answer; it names scheme and authority only, as paths may be secret */
export function callHttp(call: HttpCall): Promise<HttpAnswer> {
  const { method, url, headers = {}, body, ca, timeoutMs = ANSWER_MS } = call;
  const { origin, protocol } = new URL(url);
  return new Promise((resolve, reject) => {
    const fail = (reason: string): void => reject(new CommandError(`${origin} does not answer: ${reason}`));
    const signal = AbortSignal.timeout(timeoutMs);
    const options = { method, headers, signal, ...(ca && { ca: [...ca] }) };
    const explain = (error: Error): void =>
      fail(signal.aborted ? `not within ${timeoutMs / 1000} s` : error.message);
    const request = (protocol === 'https:' ? sendHttps : sendHttp)(url, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part: string) => {
        text += part;
        if (text.length > ANSWER_CHARACTERS_MAX) response.destroy(new Error('the answer is too long'));
      });
      response.on('error', explain);
      response.on('end', () => {
        const requestId = response.headers['x-amzn-requestid'];
        resolve({
          status: response.statusCode ?? 0,
          text,
          requestId: typeof requestId === 'string' ? requestId : undefined,
        });
      });
    });
    request.on('error', explain);
    request.end(body);
  });
}
