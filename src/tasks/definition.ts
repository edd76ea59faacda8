/**
 * Reads a task definition, as `aws ecs register-task-definition --cli-input-json` takes it or `describe-task-definition`
 * prints it. What cannot be honoured is refused by name: a task that starts is the task that was described.
 */

export class TaskDefinitionError extends Error {
  override readonly name = 'TaskDefinitionError';
}

export type Condition = 'START' | 'COMPLETE' | 'SUCCESS' | 'HEALTHY';

export interface HealthCheck {
  readonly command: readonly string[];
  readonly intervalSeconds: number;
  readonly timeoutSeconds: number;
  readonly retries: number;
  readonly startPeriodSeconds: number;
}

export interface ContainerDefinition {
  readonly name: string;
  readonly image: string;
  readonly essential: boolean;
  readonly command: readonly string[] | undefined;
  readonly entryPoint: readonly string[] | undefined;
  readonly environment: readonly { readonly name: string; readonly value: string }[];
  readonly dependsOn: readonly { readonly containerName: string; readonly condition: Condition }[];
  /** 1024 are one processor */
  readonly cpu: number;
  readonly memoryMiB: number | undefined;
  readonly memoryReservationMiB: number | undefined;
  readonly portMappings: readonly {
    readonly containerPort: number;
    readonly hostPort: number;
    readonly protocol: string;
  }[];
  readonly mountPoints: readonly {
    readonly sourceVolume: string;
    readonly containerPath: string;
    readonly readOnly: boolean;
  }[];
  readonly user: string | undefined;
  readonly workingDirectory: string | undefined;
  readonly hostname: string | undefined;
  readonly privileged: boolean;
  readonly readonlyRootFilesystem: boolean;
  readonly disableNetworking: boolean;
  readonly initProcessEnabled: boolean;
  readonly capabilitiesAdded: readonly string[];
  readonly capabilitiesDropped: readonly string[];
  readonly sharedMemoryMiB: number | undefined;
  readonly dnsServers: readonly string[];
  readonly extraHosts: readonly { readonly hostname: string; readonly ipAddress: string }[];
  readonly dockerLabels: ReadonlyMap<string, string>;
  readonly healthCheck: HealthCheck | undefined;
  readonly startTimeoutSeconds: number | undefined;
  readonly stopTimeoutSeconds: number;
  readonly ulimits: readonly {
    readonly name: string;
    readonly softLimit: number;
    readonly hardLimit: number;
  }[];
  /** Whether its output is wanted at all (`logDriver: none`). */
  readonly logs: boolean;
}

export interface TaskDefinition {
  readonly family: string;
  readonly revision: number;
  readonly taskRole: string | undefined;
  readonly executionRole: string | undefined;
  readonly networkMode: 'bridge' | 'host' | 'none' | 'awsvpc';
  /** 1024 are one processor */
  readonly cpu: number | undefined;
  readonly memoryMiB: number | undefined;
  /** name → directory of the machine, or `undefined` for one that lives as long as the task */
  readonly volumes: ReadonlyMap<string, string | undefined>;
  /** in an order in which each comes after those it depends on */
  readonly containers: readonly ContainerDefinition[];
}

const STOP_SECONDS = 30;
const CONTAINERS_MAX = 10;
const NAME = /^[A-Za-z0-9_-]{1,255}$/;

/** Written by AWS or meaning nothing to a single engine. */
const TASK_IGNORED = new Set(
  `taskDefinitionArn status requiresAttributes compatibilities requiresCompatibilities registeredAt registeredBy
   deregisteredAt placementConstraints runtimePlatform tags ephemeralStorage enableFaultInjection`.split(
    /\s+/,
  ),
);
const CONTAINER_IGNORED = new Set(['versionConsistency']);

/** One object of the definition; every field that is read is noted, so that the rest can be refused. */
class Fields {
  readonly #value: Readonly<Record<string, unknown>>;
  readonly #where: string;
  readonly #read = new Set<string>();

  constructor(value: unknown, where: string) {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new TaskDefinitionError(`${where} is not an object`);
    }
    this.#value = value as Readonly<Record<string, unknown>>;
    this.#where = where;
  }

  /** The path of a field, for messages. */
  at(key: string): string {
    return this.#where === '' ? key : `${this.#where}.${key}`;
  }

  fail(key: string, problem: string): never {
    throw new TaskDefinitionError(`${this.at(key)} ${problem}`);
  }

  #take(key: string): unknown {
    this.#read.add(key);
    return Object.hasOwn(this.#value, key) ? (this.#value[key] ?? undefined) : undefined;
  }

  /** A field without reading it. */
  peek(key: string): unknown {
    return this.#value[key];
  }

  text(key: string): string | undefined {
    const value = this.#take(key);
    if (value !== undefined && typeof value !== 'string') this.fail(key, 'is not a string');
    return value === '' ? undefined : value;
  }

  required(key: string): string {
    return this.text(key) ?? this.fail(key, 'is missing');
  }

  flag(key: string): boolean | undefined {
    const value = this.#take(key);
    if (value !== undefined && typeof value !== 'boolean') this.fail(key, 'is not true or false');
    return value;
  }

  /** Whole, at least `least`; as text too, as task-level sizes are written. */
  number(key: string, least = 0): number | undefined {
    const value = this.#take(key);
    if (value === undefined || value === '') return undefined;
    const number = typeof value === 'string' && /^\d{1,9}$/.test(value) ? Number(value) : value;
    if (typeof number === 'number' && Number.isInteger(number) && number >= least) return number;
    return this.fail(key, `is not a whole number from ${least} on`);
  }

  list<T>(key: string, read: (value: unknown, where: string) => T): readonly T[] | undefined {
    const value = this.#take(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) return this.fail(key, 'is not a list');
    return value.map((it: unknown, i) => read(it, `${this.at(key)}[${i}]`));
  }

  objects<T>(key: string, read: (fields: Fields) => T): readonly T[] {
    const found = this.list(key, (value, where) => {
      const fields = new Fields(value, where);
      const it = read(fields);
      fields.end();
      return it;
    });
    return found ?? [];
  }

  texts(key: string): readonly string[] | undefined {
    return this.list(key, (value, where) => {
      if (typeof value !== 'string') throw new TaskDefinitionError(`${where} is not a string`);
      return value;
    });
  }

  object(key: string): Fields | undefined {
    const value = this.#take(key);
    return value === undefined ? undefined : new Fields(value, this.at(key));
  }

  map(key: string): ReadonlyMap<string, string> {
    const value = this.#take(key) ?? {};
    const entries = Object.entries(new Fields(value, this.at(key)).#value);
    for (const [name, it] of entries) {
      if (typeof it !== 'string') this.fail(`${key}.${name}`, 'is not a string');
    }
    return new Map(entries as [string, string][]);
  }

  choice<T extends string>(key: string, choices: readonly T[]): T | undefined {
    const value = this.text(key);
    if (value === undefined || (choices as readonly string[]).includes(value)) return value as T | undefined;
    return this.fail(key, `is ${value}, which is not supported here: ${choices.join(', ')}`);
  }

  /** Refuses every field that nobody read, unless it is empty or off. */
  end(ignored: ReadonlySet<string> = new Set()): void {
    for (const [key, value] of Object.entries(this.#value)) {
      if (this.#read.has(key) || ignored.has(key) || isNothing(value)) continue;
      this.fail(key, 'is not supported here');
    }
  }
}

function isNothing(value: unknown): boolean {
  if (value === null || value === false || value === '' || value === 0) return true;
  return typeof value === 'object' && Object.keys(value).length === 0;
}

/** @throws TaskDefinitionError naming the field that is wrong, missing or not supported */
export function readTaskDefinition(text: string): TaskDefinition {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new TaskDefinitionError(`no JSON: ${(error as Error).message}`);
  }
  const wrapped = (value as { taskDefinition?: unknown } | null)?.taskDefinition;
  const task = new Fields(typeof wrapped === 'object' ? wrapped : value, '');
  const volumes = new Map(task.objects('volumes', readVolume));
  const containers = task.list('containerDefinitions', readContainer) ?? [];
  if (containers.length === 0) task.fail('containerDefinitions', 'has no container');
  if (containers.length > CONTAINERS_MAX)
    task.fail('containerDefinitions', `has more than ${CONTAINERS_MAX}`);
  const definition: TaskDefinition = {
    family: task.required('family'),
    revision: task.number('revision') ?? 0,
    taskRole: task.text('taskRoleArn'),
    executionRole: task.text('executionRoleArn'),
    networkMode: task.choice('networkMode', ['bridge', 'host', 'none', 'awsvpc']) ?? 'bridge',
    cpu: readTaskCpu(task),
    memoryMiB: readTaskMemory(task),
    volumes,
    containers: inOrder(containers),
  };
  if (!NAME.test(definition.family)) task.fail('family', 'is no name: letters, digits, _ and -');
  task.end(TASK_IGNORED);
  checkTogether(definition);
  return definition;
}

/** `256`, `"256"`, `"1 vCPU"` */
function readTaskCpu(task: Fields): number | undefined {
  const text = typeof task.peek('cpu') === 'string' ? task.text('cpu') : undefined;
  const virtual = /^(\d+(?:\.\d+)?) ?vcpu$/i.exec(text ?? '')?.[1];
  return virtual === undefined ? task.number('cpu', 1) : Math.round(Number(virtual) * 1024);
}

/** `512`, `"512"`, `"1 GB"`, in MiB */
function readTaskMemory(task: Fields): number | undefined {
  const text = typeof task.peek('memory') === 'string' ? task.text('memory') : undefined;
  const gigabytes = /^(\d+(?:\.\d+)?) ?gb$/i.exec(text ?? '')?.[1];
  return gigabytes === undefined ? task.number('memory', 1) : Math.round(Number(gigabytes) * 1024);
}

function readVolume(volume: Fields): [string, string | undefined] {
  const name = volume.required('name');
  if (!NAME.test(name)) volume.fail('name', 'is no name: letters, digits, _ and -');
  const host = volume.object('host');
  const source = host?.text('sourcePath');
  host?.end();
  if (source !== undefined && !source.startsWith('/'))
    volume.fail('host.sourcePath', 'does not begin with /');
  if (source?.includes(':') === true) volume.fail('host.sourcePath', 'contains a colon');
  return [name, source];
}

function readContainer(value: unknown, where: string): ContainerDefinition {
  const it = new Fields(value, where);
  const linux = it.object('linuxParameters');
  const capabilities = linux?.object('capabilities');
  const log = it.object('logConfiguration');
  const driver = log?.choice('logDriver', ['awslogs', 'json-file', 'local', 'none']);
  // where awslogs would send it to; here it is printed
  log?.map('options');
  const container: ContainerDefinition = {
    name: it.required('name'),
    image: it.required('image'),
    essential: it.flag('essential') ?? true,
    command: it.texts('command'),
    entryPoint: it.texts('entryPoint'),
    environment: it.objects('environment', readVariable),
    dependsOn: it.objects('dependsOn', (dependency) => ({
      containerName: dependency.required('containerName'),
      condition:
        dependency.choice('condition', ['START', 'COMPLETE', 'SUCCESS', 'HEALTHY']) ??
        dependency.fail('condition', 'is missing'),
    })),
    cpu: it.number('cpu') ?? 0,
    memoryMiB: it.number('memory', 4),
    memoryReservationMiB: it.number('memoryReservation', 4),
    portMappings: it.objects('portMappings', readPortMapping),
    mountPoints: it.objects('mountPoints', (mount) => ({
      sourceVolume: mount.required('sourceVolume'),
      containerPath: readContainerPath(mount),
      readOnly: mount.flag('readOnly') ?? false,
    })),
    user: it.text('user'),
    workingDirectory: it.text('workingDirectory'),
    hostname: it.text('hostname'),
    privileged: it.flag('privileged') ?? false,
    readonlyRootFilesystem: it.flag('readonlyRootFilesystem') ?? false,
    disableNetworking: it.flag('disableNetworking') ?? false,
    initProcessEnabled: linux?.flag('initProcessEnabled') ?? false,
    capabilitiesAdded: capabilities?.texts('add') ?? [],
    capabilitiesDropped: capabilities?.texts('drop') ?? [],
    sharedMemoryMiB: linux?.number('sharedMemorySize', 1),
    dnsServers: it.texts('dnsServers') ?? [],
    extraHosts: it.objects('extraHosts', (host) => ({
      hostname: host.required('hostname'),
      ipAddress: host.required('ipAddress'),
    })),
    dockerLabels: it.map('dockerLabels'),
    healthCheck: readHealthCheck(it.object('healthCheck')),
    startTimeoutSeconds: it.number('startTimeout', 2),
    stopTimeoutSeconds: it.number('stopTimeout') ?? STOP_SECONDS,
    ulimits: it.objects('ulimits', (limit) => ({
      name: limit.required('name'),
      softLimit: limit.number('softLimit', -1) ?? limit.fail('softLimit', 'is missing'),
      hardLimit: limit.number('hardLimit', -1) ?? limit.fail('hardLimit', 'is missing'),
    })),
    logs: driver !== 'none',
  };
  if (!NAME.test(container.name)) it.fail('name', 'is no name: letters, digits, _ and -');
  if (!/^[\w][\w.:/@-]*$/.test(container.image)) it.fail('image', 'is no name of an image');
  capabilities?.end();
  linux?.end();
  log?.end();
  it.end(CONTAINER_IGNORED);
  return container;
}

function readContainerPath(mount: Fields): string {
  const path = mount.required('containerPath');
  if (!/^\/[^:]*$/.test(path)) mount.fail('containerPath', 'does not begin with /, or contains a colon');
  return path;
}

function readVariable(variable: Fields): { readonly name: string; readonly value: string } {
  const name = variable.required('name');
  if (/[=\0]/.test(name)) variable.fail('name', 'is no name of a variable');
  return { name, value: variable.text('value') ?? '' };
}

function readPortMapping(mapping: Fields): ContainerDefinition['portMappings'][number] {
  mapping.text('name');
  mapping.text('appProtocol');
  return {
    containerPort: mapping.number('containerPort', 1) ?? mapping.fail('containerPort', 'is missing'),
    hostPort: mapping.number('hostPort') ?? 0,
    protocol: mapping.choice('protocol', ['tcp', 'udp']) ?? 'tcp',
  };
}

/** AWS's defaults: every 30 s, 5 s, 3 tries. */
function readHealthCheck(check: Fields | undefined): HealthCheck | undefined {
  if (check === undefined) return undefined;
  const command = check.texts('command') ?? [];
  const [kind, ...rest] = command;
  if ((kind !== 'CMD' && kind !== 'CMD-SHELL') || rest.length === 0) {
    check.fail('command', 'does not begin with CMD or CMD-SHELL');
  }
  const read = {
    command,
    intervalSeconds: check.number('interval', 5) ?? 30,
    timeoutSeconds: check.number('timeout', 2) ?? 5,
    retries: check.number('retries', 1) ?? 3,
    startPeriodSeconds: check.number('startPeriod') ?? 0,
  };
  check.end();
  return read;
}

/** @throws TaskDefinitionError when containers wait for each other in a circle, or for one that is not there */
function inOrder(containers: readonly ContainerDefinition[]): readonly ContainerDefinition[] {
  const byName = new Map(containers.map((it) => [it.name, it]));
  if (byName.size < containers.length) throw new TaskDefinitionError('two containers have one name');
  const sorted = new Set<ContainerDefinition>();
  const visit = (container: ContainerDefinition, path: readonly string[]): void => {
    if (sorted.has(container)) return;
    if (path.includes(container.name)) {
      throw new TaskDefinitionError(`dependsOn goes in a circle: ${[...path, container.name].join(' → ')}`);
    }
    for (const { containerName, condition } of container.dependsOn) {
      const other = byName.get(containerName);
      const where = `dependsOn of ${container.name}`;
      if (other === undefined) {
        throw new TaskDefinitionError(`${where} names ${containerName}, which is no container`);
      }
      if (condition === 'HEALTHY' && other.healthCheck === undefined) {
        throw new TaskDefinitionError(
          `${where} waits for ${containerName} to be healthy, which has no healthCheck`,
        );
      }
      if (other.essential && (condition === 'COMPLETE' || condition === 'SUCCESS')) {
        throw new TaskDefinitionError(`${where} waits for the end of ${containerName}, which is essential`);
      }
      visit(other, [...path, container.name]);
    }
    sorted.add(container);
  };
  for (const container of containers) visit(container, []);
  return [...sorted];
}

function checkTogether({ containers, volumes }: TaskDefinition): void {
  if (!containers.some(({ essential }) => essential)) {
    throw new TaskDefinitionError('no container is essential');
  }
  for (const { name, mountPoints } of containers) {
    const unknown = mountPoints.find(({ sourceVolume }) => !volumes.has(sourceVolume));
    if (unknown !== undefined) {
      throw new TaskDefinitionError(`${name} mounts ${unknown.sourceVolume}, which is no volume`);
    }
  }
}
