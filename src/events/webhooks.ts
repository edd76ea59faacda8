/** One event to one webhook. The URLs are the operator's own; nothing a client sends can name one. */
import { createHash, createHmac } from 'node:crypto';
import { toCloudEvent, type EventRecord } from '../domain/events.ts';

export type WebhookForm = 'eventbridge' | 'cloudevents';

export interface Webhook {
  /** stands for the URL in the database; does not reveal it */
  readonly sink: string;
  readonly url: string;
}

export interface WebhookOptions {
  readonly form: WebhookForm;
  /** signs every request; empty for none */
  readonly secret: string;
  readonly timeoutMs: number;
}

export function webhookOf(url: string): Webhook {
  return { sink: createHash('sha256').update(url).digest('hex').slice(0, 16), url };
}

/**
 * Posts an event. Resolves when the receiver accepted it with a 2xx; rejects with an error whose message says why not,
 * without the URL. Redirects are refusals: following one would send the event, and its secret, where nobody configured.
 */
export async function postEvent(
  { url }: Webhook,
  record: EventRecord,
  options: WebhookOptions & { readonly now: number },
): Promise<void> {
  const isCloudEvent = options.form === 'cloudevents';
  const body = JSON.stringify(isCloudEvent ? toCloudEvent(record) : record);
  const headers: Record<string, string> = {
    'Content-Type': isCloudEvent ? 'application/cloudevents+json' : 'application/json',
    'User-Agent': 'berth',
    'X-Berth-Event-Id': record.id,
  };
  if (options.secret !== '') {
    headers['X-Berth-Signature'] = signatureHeader(options.secret, body, options.now);
    // WHY: Argo CD Image Updater knows no signatures and compares this header (users-and-clients.md §4.1).
    if (isCloudEvent) headers['X-Webhook-Secret'] = options.secret;
  }
  const signal = AbortSignal.timeout(options.timeoutMs);
  const response = await fetch(url, { method: 'POST', headers, body, redirect: 'manual', signal }).catch(
    (error: unknown) => {
      throw new Error(reasonOf(error, options.timeoutMs));
    },
  );
  // The answer's body means nothing; not a byte of it is read.
  await response.body?.cancel().catch(() => undefined);
  if (!response.ok) throw new Error(`answered ${response.status}`);
}

/** `t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`: a receiver refuses old times and compares in constant time. */
export function signatureHeader(secret: string, body: string, now: number): string {
  const time = Math.floor(now / 1000);
  return `t=${time},v1=${createHmac('sha256', secret).update(`${time}.${body}`).digest('hex')}`;
}

function reasonOf(error: unknown, timeoutMs: number): string {
  if (!(error instanceof Error)) return 'failed';
  if (error.name === 'TimeoutError') return `no answer within ${timeoutMs} ms`;
  const code = (error.cause as { code?: unknown } | undefined)?.code;
  return typeof code === 'string' ? `cannot be reached: ${code}` : 'cannot be reached';
}
