/** `berth explain`: why a request was denied, who may do what, where an image name leads, whose a token is. */
import type { Config } from '../config.ts';
import type * as berth from '../model/berth-types.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { CallError, createClient, type Client } from './client.ts';
import {
  accessLines,
  denialLines,
  imageLines,
  tokenLines,
  type DenialAnswer,
  type TokenAnswer,
} from './explain-text.ts';

export type Question =
  | { readonly kind: 'deny'; readonly requestId: string | undefined; readonly principal: string | undefined }
  | {
      readonly kind: 'access';
      readonly principal: string;
      readonly action: string;
      readonly resource: string;
      /** `key=value`, a key more than once for several values */
      readonly context: readonly string[];
    }
  | { readonly kind: 'image'; readonly reference: string }
  /** `-`: read from standard input */
  | { readonly kind: 'token'; readonly token: string };

/** 0: allowed, or nothing is wrong; 1: denied, or something is wrong. */
export type Severity = 0 | 1;

const CANNOT_TELL = 2;
/** Pages of principals an image is explained with. */
const PAGES_MAX = 100;
const TOKEN_CHARACTERS_MAX = 16_384;

/**
 * Asks the server and prints the answer, as prose or JSON; resolves to the exit code.
 *
 * @throws CommandError with exit code 2 when there is no answer
 */
export async function explain(
  config: Config,
  surroundings: Surroundings,
  { question, json }: { readonly question: Question; readonly json: boolean },
): Promise<Severity> {
  try {
    const token = question.kind === 'token' ? await readToken(question.token, surroundings) : '';
    const client = await createClient(config, surroundings);
    const { answer, lines, severity } = await ask(client, question, token);
    surroundings.stdout.write(json ? `${JSON.stringify(answer)}\n` : `${lines.join('\n')}\n`);
    return severity;
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const hint =
      error instanceof CallError && error.code === 'AccessDeniedException'
        ? `\nExplanations are for who may ask: the message names the missing permission.`
        : '';
    throw new CommandError(`${error.message}${hint}`, CANNOT_TELL);
  }
}

interface Outcome {
  readonly answer: object;
  readonly lines: readonly string[];
  readonly severity: Severity;
}

async function ask(client: Client, question: Question, password: string): Promise<Outcome> {
  switch (question.kind) {
    case 'deny': {
      const { requestId, principal: principalArn } = question;
      const answer = await client.call<DenialAnswer>('berth', 'ExplainDenial', { requestId, principalArn });
      return { answer, lines: denialLines(answer), severity: 1 };
    }
    case 'access': {
      const { principal: principalArn, action, resource: resourceArn } = question;
      const context = readContext(question.context);
      const answer = await client.call<berth.ExplainAccessResponse>('berth', 'ExplainAccess', {
        principalArn,
        action,
        resourceArn,
        context,
      });
      return { answer, lines: accessLines(answer), severity: answer.explanation.allowed ? 0 : 1 };
    }
    case 'image': {
      const answer = await explainImage(client, question.reference);
      const there = answer.resolved && answer.repositoryExists !== false && answer.imageExists !== false;
      return { answer, lines: imageLines(answer), severity: there ? 0 : 1 };
    }
    case 'token': {
      const answer = await client.call<TokenAnswer>('berth', 'ExplainToken', { password });
      const lines = tokenLines(answer, Date.now());
      return { answer, lines, severity: answer.state === 'active' ? 0 : 1 };
    }
  }
}

async function explainImage(client: Client, imageUri: string): Promise<berth.ExplainImageResponse> {
  const principals: berth.PullAccess[] = [];
  let first: berth.ExplainImageResponse | undefined;
  let nextToken: string | undefined;
  for (let page = 0; page < PAGES_MAX; page++) {
    const answer = await client.call<berth.ExplainImageResponse>('berth', 'ExplainImage', {
      imageUri,
      nextToken,
    });
    first ??= answer;
    principals.push(...answer.principals);
    nextToken = answer.nextToken;
    if (nextToken === undefined) break;
  }
  if (first === undefined) throw new Error('no page was asked for');
  return { ...first, principals, nextToken };
}

/** @throws CommandError */
function readContext(pairs: readonly string[]): Record<string, string[]> {
  const context: Record<string, string[]> = Object.create(null) as Record<string, string[]>;
  for (const pair of pairs) {
    const equals = pair.indexOf('=');
    if (equals < 1) throw new CommandError(`"${pair}" is no condition key and value: key=value`);
    (context[pair.slice(0, equals)] ??= []).push(pair.slice(equals + 1));
  }
  return context;
}

async function readToken(token: string, { stdin }: Surroundings): Promise<string> {
  if (token !== '-') return passwordOf(token);
  let text = '';
  stdin.setEncoding('utf8');
  for await (const part of stdin) {
    text += String(part);
    if (text.length > TOKEN_CHARACTERS_MAX) throw new CommandError('that is too long for a token');
  }
  return passwordOf(text);
}

/**
 * The password in what people have at hand: the password itself, `AWS:` before it, the base64 of that (what
 * GetAuthorizationToken and docker's `auths` hold), or a whole `Basic` header.
 *
 * @throws CommandError when there is nothing
 */
export function passwordOf(text: string): string {
  const bare = text.trim().replace(/^(?:authorization:\s*)?basic\s+/i, '');
  if (bare === '') throw new CommandError('there is no token');
  const decoded = Buffer.from(bare, 'base64').toString('latin1');
  return (decoded.startsWith('AWS:') ? decoded : bare).replace(/^AWS:/, '');
}
