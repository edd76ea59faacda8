import { setTimeout as delay } from 'node:timers/promises';
import type { Config } from '../config.ts';
import { signRequest } from '../lib/sigv4.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { findSource, findTarget, RENEWAL_MS } from './client.ts';
import { callHttp } from './http-call.ts';

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

interface DeadPage {
  readonly deadLetters: readonly object[];
  readonly next?: string;
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
  const ask = await createAsk(config, surroundings.env);
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
    let query = '';
    while (!reader.gone) {
      const page = (await ask('GET', `/events/dead${query}`)) as DeadPage;
      for (const letter of page.deadLetters) print(letter);
      if (page.next === undefined) break;
      query = `?after=${page.next}`;
    }
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
        // WHY no wait at first: from the answer on it is known where to go on after the server crashed.
        `/events?wait=${flags.follow && tries > 0 ? WAIT_MS : 0}${query === '' ? '' : `&${query}`}`,
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

/** Asks as any command does: the server of `AWS_ENDPOINT_URL` or the data directory, with credentials that are renewed. */
async function createAsk(config: Config, env: NodeJS.ProcessEnv): Promise<Ask> {
  let target = await findTarget(config.data, env);
  const source = await findSource(config.data, env, target);
  let key = await source.load();
  const renew = async (): Promise<void> => {
    if ((key.expiresAt ?? Infinity) - Date.now() < RENEWAL_MS) key = await source.load();
  };
  return async (method, path) => {
    const { endpoint, region, ca } = target;
    const url = `${endpoint}${path}`;
    const answer = await renew()
      .then(() => {
        const headers = signRequest({ method, url }, key, { region, service: 'berth', now: Date.now() });
        return callHttp({ method, url, headers, ca });
      })
      .catch(async (error: unknown) => {
        // The server may have come back on another port.
        target = await findTarget(config.data, env).catch(() => target);
        throw new Unreachable((error as Error).message);
      });
    const body = read(answer.text);
    if (answer.status === 200) return body;
    const message = body.message ?? `HTTP ${answer.status}`;
    if (body.__type === 'ThrottlingException') throw new Throttled(message);
    throw answer.status >= 500 ? new Unreachable(message) : new CommandError(message);
  };
}

function read(text: string): { readonly __type?: string; readonly message?: string } {
  try {
    return JSON.parse(text) as { readonly __type?: string; readonly message?: string };
  } catch {
    return {};
  }
}
