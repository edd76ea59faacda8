import { setTimeout as delay } from 'node:timers/promises';
import type { Config } from '../config.ts';
import { signRequest, type Credentials } from '../lib/sigv4.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readCredentials, readServerRecord, type ServerRecord } from './data-directory.ts';
import { trustOwnAuthority } from './tls-directory.ts';
import { credentialsOf } from './client.ts';

export interface EventsFlags {
  readonly follow: boolean;
  /** id of the event to go on after */
  readonly from: string | undefined;
  readonly dead: boolean;
  /** id of an event, or `all` */
  readonly replay: string | undefined;
}

interface Page {
  readonly events: readonly object[];
  readonly next: number;
}

/** The server cannot be reached, or cannot answer now: worth another try. */
class Unreachable extends CommandError {}

/** Too many requests of the caller: worth another try. */
class Throttled extends CommandError {}

const WAIT_MS = 20_000;
const RETRY_MS = 1000;

/**
 * Events of the caller's account, one line of JSON each, from the oldest that is kept or after `--from`. With `--follow` it goes
 * on with what happens (and without `--from` begins there) until it is ended, through restarts of the server.
 */
export async function events(config: Config, surroundings: Surroundings, flags: EventsFlags): Promise<void> {
  const server = await readServerRecord(config.data);
  await trustOwnAuthority(config.data);
  const ask = createClient(config, surroundings.env, server);
  const reader = { gone: false };
  // WHY: a reader that has enough, as `head`, closes the pipe. That is an end and no failure.
  surroundings.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    reader.gone = true;
  });
  const print = (line: object): void => {
    if (!reader.gone) surroundings.stdout.write(`${JSON.stringify(line)}\n`);
  };
  if (flags.replay !== undefined) {
    const query = flags.replay === 'all' ? '' : `?id=${encodeURIComponent(flags.replay)}`;
    print(await ask('POST', `/events/replay${query}`));
  } else if (flags.dead) {
    const { deadLetters } = (await ask('GET', '/events/dead')) as { deadLetters: readonly object[] };
    for (const letter of deadLetters) print(letter);
  } else await printEvents(ask, print, reader, flags);
}

type Ask = (method: 'GET' | 'POST', path: string) => Promise<object>;

async function printEvents(
  ask: Ask,
  print: (line: object) => void,
  reader: { readonly gone: boolean },
  flags: EventsFlags,
): Promise<void> {
  let query = flags.from === undefined ? 'after=0' : `from=${encodeURIComponent(flags.from)}`;
  if (flags.follow && flags.from === undefined) query = '';
  let tries = 0;
  let position: number | undefined;
  while (!reader.gone) {
    let page: Page;
    try {
      page = (await ask(
        'GET',
        `/events?wait=${flags.follow ? WAIT_MS : 0}${query === '' ? '' : `&${query}`}`,
      )) as Page;
      tries += 1;
    } catch (error) {
      // WHY only after a first answer: a mistake in the call is told at once, a restart of the server is sat out.
      const isPassing = error instanceof Throttled || (flags.follow && error instanceof Unreachable);
      if (tries === 0 || !isPassing) throw error;
      await delay(RETRY_MS);
      continue;
    }
    for (const event of page.events) print(event);
    if (!flags.follow && page.events.length === 0 && page.next === position) return;
    position = page.next;
    query = `after=${page.next}`;
  }
}

function createClient(config: Config, env: NodeJS.ProcessEnv, first: ServerRecord): Ask {
  let server = first;
  return async (method, path) => {
    const key: Credentials | undefined = credentialsOf(env) ?? (await readCredentials(config.data));
    if (key === undefined)
      throw new CommandError('no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY');
    const url = `${server.endpoint}${path}`;
    const region = env['AWS_REGION'] ?? env['AWS_DEFAULT_REGION'] ?? server.region;
    const headers = signRequest({ method, url }, key, { region, service: 'berth', now: Date.now() });
    const response = await fetch(url, { method, headers }).catch(async (error: unknown) => {
      // The server may have come back on another port.
      server = await readServerRecord(config.data).catch(() => server);
      throw new Unreachable(`${server.endpoint} does not answer: ${String((error as Error).cause ?? error)}`);
    });
    const answer = (await response.json().catch(() => ({}))) as {
      readonly __type?: string;
      readonly message?: string;
    };
    if (response.ok) return answer;
    const message = answer.message ?? `HTTP ${response.status}`;
    if (answer.__type === 'ThrottlingException') throw new Throttled(message);
    throw response.status >= 500 ? new Unreachable(message) : new CommandError(message);
  };
}
