import { randomBytes, randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Config } from '../config.ts';
import {
  createRoleCredentials,
  createTaskMetadata,
  listenHttp,
  type Listening,
  type RoleCredentials,
} from '../metadata/metadata.ts';
import {
  connectEngine,
  createTask,
  EngineError,
  isSameRegistry,
  readTaskDefinition,
  TaskDefinitionError,
  type RegistryLogin,
  type Task,
  type TaskDefinition,
  type TaskEvent,
  type TaskOutcome,
} from '../tasks/tasks.ts';
import { createClient } from './client.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readDuration, readRole, takeRole, type NamedRole } from './service-role.ts';

export interface RunTaskFlags {
  readonly file: string;
  readonly cluster: string;
  /** Docker's network mode, instead of the definition's */
  readonly network: string | undefined;
  readonly duration: string | undefined;
  readonly follow: boolean;
  readonly json: boolean;
}

interface Identity {
  readonly account: string;
  readonly region: string;
  readonly taskId: string;
}

/** Where ECS has its endpoint; SDKs take credentials over plain HTTP from here, whoever they are. */
const ECS_ADDRESS = '169.254.170.2';

/**
 * Starts the containers of an ECS task definition on this machine's Docker engine and waits for the task's end. Images of the
 * registry are pulled with the execution role, the containers find the task role at the endpoint in their environment.
 *
 * @throws CommandError with the exit code of the essential container that ended the task, unless that is 0
 */
export async function runTask(
  config: Config,
  surroundings: Surroundings,
  flags: RunTaskFlags,
): Promise<void> {
  const definition = await readDefinition(flags.file);
  const network = networkOf(definition, flags.network);
  const engine = engineOf(surroundings);
  if (!/^[A-Za-z0-9_-]{1,255}$/.test(flags.cluster))
    throw new CommandError(`${flags.cluster} is no cluster's name`);
  const client = await createClient(config, surroundings);
  const { account } = await client.whoAmI();
  const { region } = client;
  const identity = { account, region, taskId: randomBytes(16).toString('hex') };
  const durationSeconds = readDuration(flags.duration);
  const take = async (role: NamedRole) =>
    await takeRole(config, surroundings, {
      roleArn: role.arn,
      serviceName: 'ecs-tasks.amazonaws.com',
      sessionName: identity.taskId,
      // the value that AWS's documentation has trust policies ask for
      sourceArn: `arn:aws:ecs:${region}:${account}:*`,
      ...(durationSeconds !== undefined && { durationSeconds }),
    });
  const roleOf = (text: string | undefined) => (text === undefined ? undefined : readRole(text, account));
  const taskRole = roleOf(definition.taskRole);
  const executionRole = roleOf(definition.executionRole);
  const note = (text: string): void => void surroundings.stderr.write(`berth run-task: ${text}\n`);
  const credentials = createRoleCredentials({
    assume: async () => await take(taskRole ?? { arn: '', name: '' }),
    clock: Date.now,
    onTrouble: note,
  });
  // INVARIANT: a task whose role cannot be taken does not start.
  if (taskRole !== undefined) {
    const held = await credentials.read();
    if (held.kind !== 'granted') throw new CommandError(`the task role ${taskRole.arn} cannot be taken`);
  }
  const loginTo = createLogin(config, surroundings, client.endpoint, async () => {
    if (executionRole === undefined) return undefined;
    const assumption = await take(executionRole);
    if (assumption.kind === 'granted') return assumption.credentials;
    throw new CommandError(`the execution role ${executionRole.arn} cannot be taken: ${assumption.reason}`);
  });

  const roleId = randomUUID();
  const made: { task?: Task } = {};
  const started = (): Task => made.task ?? fail();
  const listening = await listenForTask(
    network,
    taskRole !== undefined,
    ({ isWellKnown }) => {
      const authorization = isWellKnown ? undefined : randomBytes(32).toString('base64url');
      const handler = createTaskMetadata({
        role: taskRole && { arn: taskRole.arn, id: roleId, authorization, credentials },
        container: async (id) => await started().describeContainer(id),
        task: async () => await started().describe(),
      });
      return { handler, authorization };
    },
    (error) => note(String(error)),
  );
  const task = createTask({
    definition,
    engine,
    id: identity.taskId,
    arn: `arn:aws:ecs:${region}:${account}:task/${flags.cluster}/${identity.taskId}`,
    cluster: flags.cluster,
    region,
    network,
    loginTo,
    endpoints: (metadataId) =>
      listening === undefined
        ? {}
        : {
            ECS_CONTAINER_METADATA_URI_V4: `${listening.at.endpoint}/v4/${metadataId}`,
            ...(taskRole !== undefined && credentialVariables(listening, roleId)),
          },
    onEvent: (event) => print(event, surroundings, flags),
    clock: Date.now,
  });
  made.task = task;
  try {
    const outcome = await task.run(stopSignal(surroundings));
    finish(outcome, identity, surroundings, flags);
  } finally {
    await listening?.at.close();
  }
}

function fail(): never {
  throw new Error('the endpoint was asked before the task was made');
}

async function readDefinition(file: string): Promise<TaskDefinition> {
  const text = await readFile(file === '-' ? '/dev/stdin' : file, 'utf8').catch((error: unknown) => {
    throw new CommandError(`cannot read the task definition: ${(error as Error).message}`);
  });
  try {
    return readTaskDefinition(text);
  } catch (error) {
    throw error instanceof TaskDefinitionError ? new CommandError(`${file}: ${error.message}`) : error;
  }
}

function networkOf({ networkMode }: TaskDefinition, network: string | undefined): string {
  if (network !== undefined) {
    if (/^[A-Za-z0-9][\w.-]*$/.test(network)) return network;
    throw new CommandError(`--network ${network} is no network`);
  }
  if (networkMode !== 'awsvpc') return networkMode;
  throw new CommandError(
    'networkMode awsvpc gives a task a network interface of its own, which a Docker engine does not have: choose with --network bridge or --network host',
  );
}

function engineOf({ env }: Surroundings): ReturnType<typeof connectEngine> {
  try {
    return connectEngine(env['DOCKER_HOST']);
  } catch (error) {
    throw error instanceof EngineError ? new CommandError(error.message) : error;
  }
}

interface TaskListening {
  readonly at: Listening;
  readonly authorization: string | undefined;
}

/**
 * Listens at ECS's own address when this machine has it: on port 80 the containers get the relative URI, on another port
 * (one task has that one already) the full one. Without the address only containers in the machine's own network can ask,
 * on its loopback.
 *
 * @throws CommandError when containers that have a task role could not reach it
 */
async function listenForTask(
  network: string,
  hasRole: boolean,
  handlerFor: (place: { readonly isWellKnown: boolean }) => {
    readonly handler: Parameters<typeof listenHttp>[1];
    readonly authorization: string | undefined;
  },
  onError: (error: unknown) => void,
): Promise<TaskListening | undefined> {
  const places = [
    { host: ECS_ADDRESS, port: 80, isWellKnown: true },
    { host: ECS_ADDRESS, port: 0, isWellKnown: false },
    ...(network === 'host' ? [{ host: '127.0.0.1', port: 0, isWellKnown: false }] : []),
  ];
  for (const place of places) {
    const { handler, authorization } = handlerFor(place);
    try {
      return { at: await listenHttp(place, handler, onError), authorization };
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EADDRNOTAVAIL' && code !== 'EADDRINUSE' && code !== 'EACCES') throw error;
    }
  }
  if (!hasRole || network === 'none') return undefined;
  throw new CommandError(
    `containers in network ${network} reach the task role's credentials at ${ECS_ADDRESS}, which this machine does not have: ip address add ${ECS_ADDRESS}/32 dev lo (or choose --network host)`,
  );
}

function credentialVariables({ at, authorization }: TaskListening, roleId: string): Record<string, string> {
  const path = `/v2/credentials/${roleId}`;
  return authorization === undefined
    ? { AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: path }
    : {
        AWS_CONTAINER_CREDENTIALS_FULL_URI: `${at.endpoint}${path}`,
        AWS_CONTAINER_AUTHORIZATION_TOKEN: authorization,
      };
}

/**
 * Logs in to Berth's own registry with a token of the execution role, got once a task, and to no other.
 *
 * @throws CommandError when an image is of that registry and there is no execution role
 */
function createLogin(
  config: Config,
  surroundings: Surroundings,
  endpoint: string,
  takeExecutionRole: () => Promise<RoleCredentials | undefined>,
): (registryHost: string) => Promise<RegistryLogin | undefined> {
  interface Token {
    readonly authorizationToken: string;
    readonly proxyEndpoint: string;
  }
  const getToken = async (): Promise<Token | undefined> => {
    const role = await takeExecutionRole();
    if (role === undefined) return undefined;
    const env = {
      ...surroundings.env,
      AWS_ACCESS_KEY_ID: role.accessKeyId,
      AWS_SECRET_ACCESS_KEY: role.secretAccessKey,
      AWS_SESSION_TOKEN: role.sessionToken,
    };
    const client = await createClient(config, { env });
    const answer = await client.call<{ authorizationData: readonly Token[] }>(
      'ecr',
      'GetAuthorizationToken',
      {},
    );
    return answer.authorizationData[0];
  };
  let token: Promise<Token | undefined> | undefined;
  return async (host) => {
    token ??= getToken();
    const found = await token;
    if (found === undefined && isSameRegistry(host, endpoint)) {
      throw new CommandError('images of this registry are pulled with executionRoleArn, which is not there');
    }
    if (found === undefined || !isSameRegistry(host, found.proxyEndpoint)) return undefined;
    const password = Buffer.from(found.authorizationToken, 'base64').toString().replace(/^AWS:/, '');
    return { username: 'AWS', password, serveraddress: host };
  };
}

function print(event: TaskEvent, { stdout, stderr }: Surroundings, { json, follow }: RunTaskFlags): void {
  if (event.type === 'log' && !follow) return;
  if (json) stdout.write(`${JSON.stringify(event)}\n`);
  else if (event.type === 'log') stdout.write(`${event.container} | ${event.line}\n`);
  else if (event.type === 'pull') stderr.write(`${event.container}: pulling ${event.image}\n`);
  else if (event.type === 'started') stderr.write(`${event.container}: running\n`);
  else stderr.write(`${event.container}: exited with ${event.exitCode}\n`);
}

function finish(
  outcome: TaskOutcome,
  { account, region, taskId }: Identity,
  { stdout }: Surroundings,
  { json, cluster }: RunTaskFlags,
): void {
  const { exitCode, stopCode, stoppedReason } = outcome;
  if (json) {
    const taskArn = `arn:aws:ecs:${region}:${account}:task/${cluster}/${taskId}`;
    stdout.write(`${JSON.stringify({ type: 'task', taskArn, ...outcome })}\n`);
  }
  if (exitCode !== 0) throw new CommandError(`${stopCode}: ${stoppedReason}`, exitCode);
}

function stopSignal(surroundings: Surroundings): AbortSignal {
  const stopping = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) surroundings.on(name, () => stopping.abort());
  return stopping.signal;
}
