/** A task: its containers from the pull to the removal, in the order and under the conditions of its definition. */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { containerSettings } from './container-settings.ts';
import type { Condition, ContainerDefinition, TaskDefinition } from './definition.ts';
import type { ContainerState, Engine, RegistryLogin } from './engine.ts';
import { registryHostOf, splitReference } from './image-name.ts';

export type TaskEvent =
  | { readonly type: 'pull'; readonly container: string; readonly image: string }
  | { readonly type: 'started'; readonly container: string }
  | { readonly type: 'stopped'; readonly container: string; readonly exitCode: number }
  | {
      readonly type: 'log';
      readonly container: string;
      readonly stream: 'stdout' | 'stderr';
      readonly line: string;
    };

export interface TaskOptions {
  readonly definition: TaskDefinition;
  readonly engine: Engine;
  /** 32 hexadecimal digits */
  readonly id: string;
  readonly arn: string;
  readonly cluster: string;
  readonly region: string;
  /** Docker's network mode */
  readonly network: string;
  /** How to pull from a registry; `undefined` for one that needs no login. */
  readonly loginTo: (registryHost: string) => Promise<RegistryLogin | undefined>;
  /** Environment that tells a container where its endpoints are. `metadataId` names it there. */
  readonly endpoints: (metadataId: string) => Readonly<Record<string, string>>;
  readonly onEvent: (event: TaskEvent) => void;
  readonly clock: () => number;
}

export interface TaskOutcome {
  readonly stopCode: 'EssentialContainerExited' | 'TaskFailedToStart' | 'UserInitiated';
  readonly stoppedReason: string;
  /** of the essential container whose end stopped the task; 1 when the task did not start; 130 when it was told to stop */
  readonly exitCode: number;
  readonly containers: readonly { readonly name: string; readonly exitCode: number | undefined }[];
}

export interface Task {
  /** Runs the task to its end, which `signal` may bring about, and removes what it made. Never rejects for a failing container. */
  run(signal: AbortSignal): Promise<TaskOutcome>;
  /** Task metadata version 4, of a container by its id there. */
  describeContainer(metadataId: string): Promise<object | undefined>;
  describe(): Promise<object>;
}

/** One container on its way. */
interface Part {
  readonly definition: ContainerDefinition;
  readonly metadataId: string;
  id: string | undefined;
  exitCode: number | undefined;
  readonly started: PromiseWithResolvers<void>;
  readonly ended: PromiseWithResolvers<number>;
  logs: Promise<void>;
}

interface Stop {
  readonly code: TaskOutcome['stopCode'];
  readonly reason: string;
  readonly exitCode: number;
}

const POLL_MS = 250;

export function createTask(options: TaskOptions): Task {
  const { definition, engine, onEvent, clock } = options;
  const parts: readonly Part[] = definition.containers.map((it) => ({
    definition: it,
    metadataId: randomUUID(),
    id: undefined,
    exitCode: undefined,
    started: Promise.withResolvers<void>(),
    ended: Promise.withResolvers<number>(),
    logs: Promise.resolve(),
  }));
  const byName = new Map(parts.map((part) => [part.definition.name, part]));
  const volumes = new Map([...definition.volumes.keys()].map((name) => [name, `ecs-${options.id}-${name}`]));
  const stopping = new AbortController();
  let stop: Stop | undefined;
  const times = { pullStarted: 0, pullStopped: 0 };

  const requestStop = (wanted: Stop): void => {
    stop ??= wanted;
    stopping.abort();
  };

  const pullImages = async (): Promise<void> => {
    times.pullStarted = clock();
    for (const { definition: it } of parts) {
      if (stopping.signal.aborted) return;
      onEvent({ type: 'pull', container: it.name, image: it.image });
      const { name, reference } = splitReference(it.image);
      await engine.pull(name, reference, await options.loginTo(registryHostOf(it.image)), stopping.signal);
    }
    times.pullStopped = clock();
  };

  const createContainers = async (): Promise<void> => {
    const labels = {
      'com.amazonaws.ecs.cluster': options.cluster,
      'com.amazonaws.ecs.task-arn': options.arn,
    };
    const sources = new Map<string, string>();
    for (const [name, directory] of definition.volumes) {
      const own = volumes.get(name) ?? '';
      sources.set(name, directory ?? own);
      if (directory === undefined) await engine.createVolume(own, labels);
    }
    for (const part of parts) {
      const { definition: it } = part;
      const settings = containerSettings(definition, it, {
        network: options.network,
        sources,
        environment: { AWS_REGION: options.region, AWS_DEFAULT_REGION: options.region },
        endpoints: { AWS_EXECUTION_ENV: 'AWS_ECS_EC2', ...options.endpoints(part.metadataId) },
        labels: {
          ...labels,
          'com.amazonaws.ecs.container-name': it.name,
          'com.amazonaws.ecs.task-definition-family': definition.family,
          'com.amazonaws.ecs.task-definition-version': String(definition.revision),
        },
      });
      const name = `ecs-${definition.family}-${definition.revision}-${it.name}-${options.id.slice(0, 20)}`;
      part.id = await engine.createContainer(name, settings);
    }
  };

  /** Starts the container when its conditions are met, and sees it to its end. */
  const launch = async (part: Part): Promise<void> => {
    const { definition: it, id = '' } = part;
    for (const { containerName, condition } of it.dependsOn) {
      const other = byName.get(containerName);
      if (other !== undefined) await meetCondition(engine, other, condition, stopping.signal);
    }
    if (stopping.signal.aborted) return;
    if (it.logs) {
      const output = await engine.attach(id, (stream, line) =>
        onEvent({ type: 'log', container: it.name, stream, line }),
      );
      // output that breaks off is no reason to end the task
      part.logs = output.ended.catch(() => undefined);
    }
    await engine.start(id);
    // it may have been told to stop before it ran
    if (stopping.signal.aborted) await engine.stop(id, it.stopTimeoutSeconds);
    onEvent({ type: 'started', container: it.name });
    part.started.resolve();
    const exitCode = await engine.wait(id);
    await part.logs;
    part.exitCode = exitCode;
    onEvent({ type: 'stopped', container: it.name, exitCode });
    part.ended.resolve(exitCode);
    if (it.essential) {
      const reason = `Essential container in task exited: ${it.name} with ${exitCode}`;
      requestStop({ code: 'EssentialContainerExited', reason, exitCode });
    }
  };

  /** Dependents first, each with its time to end. */
  const stopContainers = async (): Promise<void> => {
    for (const { id, exitCode, definition: it } of parts.toReversed()) {
      if (id !== undefined && exitCode === undefined) await engine.stop(id, it.stopTimeoutSeconds);
    }
  };

  const remove = async (): Promise<void> => {
    for (const { id } of parts.toReversed()) if (id !== undefined) await engine.removeContainer(id);
    for (const [name, own] of volumes) {
      if (definition.volumes.get(name) === undefined) await engine.removeVolume(own);
    }
  };

  const run = async (): Promise<void> => {
    await pullImages();
    if (stopping.signal.aborted) return;
    await createContainers();
    const fail = (error: unknown): void =>
      requestStop({ code: 'TaskFailedToStart', reason: (error as Error).message, exitCode: 1 });
    const launches = parts.map(async (part) => await launch(part).catch(fail));
    if (!stopping.signal.aborted) await once(stopping.signal, 'abort');
    await stopContainers();
    await Promise.all(launches);
  };

  const describePart = async (part: Part): Promise<object> => {
    const state = part.id === undefined ? undefined : await engine.inspect(part.id);
    return describeContainer(options, part, state);
  };

  return {
    async run(signal) {
      const interrupt = (): void =>
        requestStop({ code: 'UserInitiated', reason: 'Task stopped by user', exitCode: 130 });
      if (signal.aborted) interrupt();
      signal.addEventListener('abort', interrupt, { once: true });
      try {
        await run();
      } catch (error) {
        requestStop({ code: 'TaskFailedToStart', reason: (error as Error).message, exitCode: 1 });
      } finally {
        signal.removeEventListener('abort', interrupt);
        await remove();
      }
      const { code, reason, exitCode } = stop ?? { code: 'UserInitiated', reason: '', exitCode: 130 };
      const containers = parts.map((part) => ({ name: part.definition.name, exitCode: part.exitCode }));
      return { stopCode: code, stoppedReason: reason, exitCode, containers };
    },
    async describeContainer(metadataId) {
      const part = parts.find((it) => it.metadataId === metadataId);
      return part && (await describePart(part));
    },
    async describe() {
      const { cpu, memoryMiB } = definition;
      return {
        Cluster: options.cluster,
        TaskARN: options.arn,
        Family: definition.family,
        Revision: String(definition.revision),
        DesiredStatus: stopping.signal.aborted ? 'STOPPED' : 'RUNNING',
        KnownStatus: 'RUNNING',
        ...((cpu !== undefined || memoryMiB !== undefined) && {
          Limits: {
            ...(cpu !== undefined && { CPU: cpu / 1024 }),
            ...(memoryMiB !== undefined && { Memory: memoryMiB }),
          },
        }),
        PullStartedAt: new Date(times.pullStarted).toISOString(),
        PullStoppedAt: new Date(times.pullStopped).toISOString(),
        LaunchType: 'EXTERNAL',
        Containers: await Promise.all(parts.map(describePart)),
      };
    },
  };
}

/** @throws Error when the condition can no more be met, or is not within the other's `startTimeout` */
async function meetCondition(
  engine: Engine,
  other: Part,
  condition: Condition,
  stopping: AbortSignal,
): Promise<void> {
  const { name, startTimeoutSeconds } = other.definition;
  const patience = new AbortController();
  const given = AbortSignal.any([stopping, patience.signal]);
  const timer =
    startTimeoutSeconds === undefined
      ? undefined
      : setTimeout(() => patience.abort(), startTimeoutSeconds * 1000);
  const over = given.aborted ? Promise.resolve() : once(given, 'abort');
  try {
    await Promise.race([
      over,
      condition === 'HEALTHY' ? becomeHealthy(engine, other, given) : reach(other, condition),
    ]);
  } finally {
    clearTimeout(timer);
  }
  if (patience.signal.aborted && !stopping.aborted) {
    throw new Error(`${name} did not reach ${condition} within its startTimeout of ${startTimeoutSeconds} s`);
  }
}

async function reach(other: Part, condition: Condition): Promise<void> {
  if (condition === 'START') return await other.started.promise;
  const exitCode = await other.ended.promise;
  if (condition === 'SUCCESS' && exitCode !== 0) {
    throw new Error(`${other.definition.name} had to succeed and exited with ${exitCode}`);
  }
}

async function becomeHealthy(engine: Engine, other: Part, given: AbortSignal): Promise<void> {
  await other.started.promise;
  while (!given.aborted) {
    const { State } = await engine.inspect(other.id ?? '');
    if (State.Health?.Status === 'healthy') return;
    if (State.Health?.Status === 'unhealthy' || !State.Running) {
      throw new Error(`${other.definition.name} did not become healthy`);
    }
    await delay(POLL_MS);
  }
}

function describeContainer(options: TaskOptions, part: Part, state: ContainerState | undefined): object {
  const { definition: it } = part;
  const networks = Object.entries(state?.NetworkSettings?.Networks ?? {});
  const status =
    state === undefined
      ? 'NONE'
      : state.State.Running
        ? 'RUNNING'
        : part.exitCode === undefined
          ? 'CREATED'
          : 'STOPPED';
  return {
    DockerId: state?.Id ?? '',
    Name: it.name,
    DockerName: state?.Name.replace(/^\//, '') ?? '',
    Image: it.image,
    ImageID: state?.Image ?? '',
    Labels: {
      'com.amazonaws.ecs.cluster': options.cluster,
      'com.amazonaws.ecs.container-name': it.name,
      'com.amazonaws.ecs.task-arn': options.arn,
      'com.amazonaws.ecs.task-definition-family': options.definition.family,
      'com.amazonaws.ecs.task-definition-version': String(options.definition.revision),
    },
    DesiredStatus: 'RUNNING',
    KnownStatus: status,
    Limits: { CPU: it.cpu, ...(it.memoryMiB !== undefined && { Memory: it.memoryMiB }) },
    ...(state !== undefined && { CreatedAt: state.Created, StartedAt: state.State.StartedAt }),
    ...(part.exitCode !== undefined && { ExitCode: part.exitCode }),
    Type: 'NORMAL',
    ContainerARN: `${options.arn.replace(':task/', ':container/')}/${part.metadataId}`,
    Networks: networks.map(([name, { IPAddress }]) => ({
      NetworkMode: name,
      IPv4Addresses: IPAddress === '' ? [] : [IPAddress],
    })),
  };
}
