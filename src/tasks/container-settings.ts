/** A container of a task definition in the words of Docker's Engine API (`POST /containers/create`). */
import type { ContainerDefinition, TaskDefinition } from './definition.ts';

export interface ContainerPlace {
  /** Docker's network mode */
  readonly network: string;
  /** volume name → what Docker binds: a directory or a volume of its own */
  readonly sources: ReadonlyMap<string, string>;
  /** added to the container's environment, which wins over it */
  readonly environment: Readonly<Record<string, string>>;
  /** added to the container's environment whatever that says */
  readonly endpoints: Readonly<Record<string, string>>;
  readonly labels: Readonly<Record<string, string>>;
}

const MIB = 1_048_576;
const SECOND_NS = 1_000_000_000;
/** the least that the kernel takes */
const SHARES_MIN = 2;

export function containerSettings(
  task: Pick<TaskDefinition, 'cpu' | 'memoryMiB'>,
  it: ContainerDefinition,
  place: ContainerPlace,
): object {
  const variables = new Map([
    ...Object.entries(place.environment),
    ...it.environment.map(({ name, value }) => [name, value] as const),
    ...Object.entries(place.endpoints),
  ]);
  const network = it.disableNetworking ? 'none' : place.network;
  const mapsPorts = network !== 'host' && network !== 'none';
  const portOf = ({ containerPort, protocol }: ContainerDefinition['portMappings'][number]): string =>
    `${containerPort}/${protocol}`;
  return {
    Image: it.image,
    Env: [...variables].map(([name, value]) => `${name}=${value}`),
    ...(it.command !== undefined && { Cmd: it.command }),
    ...(it.entryPoint !== undefined && { Entrypoint: it.entryPoint }),
    ...(it.user !== undefined && { User: it.user }),
    ...(it.workingDirectory !== undefined && { WorkingDir: it.workingDirectory }),
    ...(it.hostname !== undefined && { Hostname: it.hostname }),
    ...(it.healthCheck && {
      Healthcheck: {
        Test: it.healthCheck.command,
        Interval: it.healthCheck.intervalSeconds * SECOND_NS,
        Timeout: it.healthCheck.timeoutSeconds * SECOND_NS,
        Retries: it.healthCheck.retries,
        StartPeriod: it.healthCheck.startPeriodSeconds * SECOND_NS,
      },
    }),
    ...(mapsPorts && {
      ExposedPorts: Object.fromEntries(it.portMappings.map((mapping) => [portOf(mapping), {}])),
    }),
    Labels: { ...Object.fromEntries(it.dockerLabels), ...place.labels },
    HostConfig: {
      NetworkMode: network,
      ...(mapsPorts && {
        PortBindings: Object.fromEntries(
          it.portMappings.map((mapping) => [
            portOf(mapping),
            [{ HostPort: mapping.hostPort === 0 ? '' : String(mapping.hostPort) }],
          ]),
        ),
      }),
      Binds: it.mountPoints.map(
        ({ sourceVolume, containerPath, readOnly }) =>
          `${place.sources.get(sourceVolume) ?? ''}:${containerPath}${readOnly ? ':ro' : ''}`,
      ),
      ...limits(task, it),
      Privileged: it.privileged,
      ReadonlyRootfs: it.readonlyRootFilesystem,
      ...(it.initProcessEnabled && { Init: true }),
      CapAdd: it.capabilitiesAdded,
      CapDrop: it.capabilitiesDropped,
      ...(it.sharedMemoryMiB !== undefined && { ShmSize: it.sharedMemoryMiB * MIB }),
      Dns: it.dnsServers,
      ExtraHosts: it.extraHosts.map(({ hostname, ipAddress }) => `${hostname}:${ipAddress}`),
      Ulimits: it.ulimits.map(({ name, softLimit, hardLimit }) => ({
        Name: name,
        Soft: softLimit,
        Hard: hardLimit,
      })),
      // `docker logs` of a running task, and what the command prints, come from this file
      LogConfig: { Type: 'json-file', Config: { 'max-size': '16m', 'max-file': '2' } },
      RestartPolicy: { Name: 'no' },
    },
  };
}

/** A task's limits are those of each container that has none of its own. */
function limits(task: Pick<TaskDefinition, 'cpu' | 'memoryMiB'>, it: ContainerDefinition): object {
  const memory = it.memoryMiB ?? task.memoryMiB;
  return {
    ...(it.cpu > 0 && { CpuShares: Math.max(SHARES_MIN, it.cpu) }),
    ...(task.cpu !== undefined && { NanoCpus: Math.round((task.cpu / 1024) * SECOND_NS) }),
    ...(memory !== undefined && { Memory: memory * MIB }),
    ...(it.memoryReservationMiB !== undefined && { MemoryReservation: it.memoryReservationMiB * MIB }),
  };
}
