import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readCredentials, readServerRecord } from './data-directory.ts';
import { readIssued, tlsFiles } from './tls-directory.ts';

/** `eval "$(berth env)"`: after it, the AWS documentation's own commands work against this server. */
export async function env(config: Config, { stdout }: Surroundings, json: boolean): Promise<void> {
  const server = await readServerRecord(config.data);
  const key = await readCredentials(config.data);
  if (key === undefined) {
    throw new CommandError(
      `${config.data} holds no bootstrap credentials: they were removed, or fixed root credentials are in use. ` +
        `The endpoint is ${server.endpoint}.`,
    );
  }
  const variables = {
    AWS_ENDPOINT_URL: server.endpoint,
    AWS_ACCESS_KEY_ID: key.accessKeyId,
    AWS_SECRET_ACCESS_KEY: key.secretAccessKey,
    AWS_REGION: server.region,
    AWS_DEFAULT_REGION: server.region,
    ...(await authorityVariables(server.endpoint, config.data)),
  };
  if (json) stdout.write(`${JSON.stringify(variables)}\n`);
  else {
    for (const [name, value] of Object.entries(variables)) stdout.write(`export ${name}='${value}'\n`);
    // WHY: a session token left over from real AWS would make every request fail with an invalid token.
    stdout.write('unset AWS_SESSION_TOKEN AWS_PROFILE\n');
  }
}

/** What makes AWS tools trust the private CA, when there is one. */
async function authorityVariables(endpoint: string, data: string): Promise<Record<string, string>> {
  const { certificate } = await readIssued(data, 'ca');
  return !endpoint.startsWith('https:') || certificate === undefined
    ? {}
    : { AWS_CA_BUNDLE: tlsFiles(data, 'ca').certificate };
}
