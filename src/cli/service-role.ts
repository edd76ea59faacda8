/** Roles for machines and tasks, taken from the server by whoever may pass them. */
import type { Config } from '../config.ts';
import type { Assumption } from '../metadata/metadata.ts';
import type { AssumeServiceRoleRequest } from '../model/berth-types.ts';
import { CallError, createClient } from './client.ts';
import { CommandError, type Surroundings } from './cli.ts';

interface Answer {
  readonly credentials: {
    readonly accessKeyId: string;
    readonly secretAccessKey: string;
    readonly sessionToken: string;
    /** seconds since 1970 */
    readonly expiration: number;
  };
}

const ROLE_ARN = /^arn:aws[\w-]*:iam::\d{12}:role\/(?:[\x21-\x7e]+\/)?([\w+=,.@-]{1,64})$/;

export interface NamedRole {
  readonly arn: string;
  /** without its path */
  readonly name: string;
}

/** @throws CommandError when it is neither a role's name nor its ARN */
export function readRole(text: string, account: string): NamedRole {
  const name = /^[\w+=,.@-]{1,64}$/.test(text) ? text : ROLE_ARN.exec(text)?.[1];
  if (name === undefined) throw new CommandError(`${text} is neither the name nor the ARN of a role`);
  return { name, arn: text === name ? `arn:aws:iam::${account}:role/${name}` : text };
}

/**
 * Takes the role. Looks up server and key each time, so that a server that came back elsewhere and a rotated key are found.
 *
 * @throws CommandError when no server answers
 */
export async function takeRole(
  config: Pick<Config, 'data'>,
  surroundings: Pick<Surroundings, 'env'>,
  input: AssumeServiceRoleRequest,
): Promise<Assumption> {
  const client = await createClient(config, surroundings);
  try {
    const { credentials } = await client.call<Answer>('berth', 'AssumeServiceRole', input);
    const { accessKeyId, secretAccessKey, sessionToken, expiration } = credentials;
    return {
      kind: 'granted',
      credentials: { accessKeyId, secretAccessKey, sessionToken, expiresAt: expiration * 1000 },
    };
  } catch (error) {
    if (!(error instanceof CallError) || error.status >= 500 || error.status === 429) throw error;
    return { kind: 'refused', reason: error.message };
  }
}

/** `--duration`: whole seconds, as STS takes them. @throws CommandError for anything else */
export function readDuration(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (seconds >= 900 && seconds <= 43_200) return seconds;
  throw new CommandError(`--duration ${text} is not 900 to 43200 seconds`);
}
