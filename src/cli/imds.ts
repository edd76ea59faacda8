import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { arch, hostname, networkInterfaces, uptime } from 'node:os';
import type { Config } from '../config.ts';
import {
  createInstanceMetadata,
  createRoleCredentials,
  isMachineLocal,
  listenHttp,
  readListenAddress,
  type InstanceFacts,
  type Listening,
} from '../metadata/metadata.ts';
import { createClient } from './client.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readDuration, readRole, takeRole } from './service-role.ts';

export interface ImdsFlags {
  readonly role: string;
  /** addresses with port */
  readonly listen: readonly string[];
  readonly allowRemote: boolean;
  readonly instanceId: string | undefined;
  readonly v1: boolean;
  readonly hopLimit: string;
  readonly duration: string | undefined;
  readonly json: boolean;
}

/**
 * Serves EC2's instance metadata with the credentials of a role until SIGTERM or SIGINT. Needs `iam:PassRole` for the role;
 * the role has to trust `ec2.amazonaws.com`.
 */
export async function imds(config: Config, surroundings: Surroundings, flags: ImdsFlags): Promise<void> {
  const addresses = flags.listen.map((text) => readAddress(text, flags.allowRemote));
  const hopLimit = /^\d{1,2}$/.test(flags.hopLimit) ? Number(flags.hopLimit) : 0;
  if (hopLimit < 1 || hopLimit > 64) throw new CommandError(`--hop-limit ${flags.hopLimit} is not 1 to 64`);
  const durationSeconds = readDuration(flags.duration);
  const instanceId = flags.instanceId ?? (await instanceIdOfMachine());
  if (!/^i-([0-9a-f]{8}|[0-9a-f]{17})$/.test(instanceId)) {
    throw new CommandError(`--instance-id ${instanceId} is not i- and 8 or 17 hexadecimal digits`);
  }
  const client = await createClient(config, surroundings);
  const { account } = await client.whoAmI();
  const { region } = client;
  const role = readRole(flags.role, account);
  const note = (text: string): void => void surroundings.stderr.write(`berth imds: ${text}\n`);
  const assume = () =>
    takeRole(config, surroundings, {
      roleArn: role.arn,
      serviceName: 'ec2.amazonaws.com',
      sessionName: instanceId,
      sourceArn: `arn:aws:ec2:${region}:${account}:instance/${instanceId}`,
      ...(durationSeconds !== undefined && { durationSeconds }),
    });
  const credentials = createRoleCredentials({ assume, clock: Date.now, onTrouble: note });
  const handler = createInstanceMetadata({
    facts: {
      ...factsOfMachine(),
      account,
      region,
      availabilityZone: `${region}a`,
      instanceId,
      roleName: role.name,
    },
    credentials,
    v1: flags.v1,
    hopLimit,
    ownAddresses,
    clock: Date.now,
  });
  const listening: Listening[] = [];
  try {
    for (const address of addresses) {
      listening.push(await listenHttp(address, handler, (error) => note(String(error))));
    }
  } catch (error) {
    await Promise.all(listening.map(async (it) => await it.close()));
    throw new CommandError(`cannot listen: ${(error as Error).message}`);
  }
  // A role that cannot be taken is told now, not by the first client; one that is lost later is told to clients, as EC2 does.
  const first = await assume();
  if (first.kind === 'refused') {
    await Promise.all(listening.map(async (it) => await it.close()));
    throw new CommandError(first.reason);
  }
  surroundings.stdout.write(
    flags.json
      ? `${JSON.stringify({ endpoints: listening.map(({ endpoint }) => endpoint), instanceId, roleArn: role.arn, pid: surroundings.pid })}\n`
      : banner(listening, instanceId, role.arn),
  );
  await ended(surroundings);
  await Promise.all(listening.map(async (it) => await it.close()));
}

function readAddress(text: string, allowRemote: boolean): { readonly host: string; readonly port: number } {
  const address = readListenAddress(text);
  if (address === undefined) {
    throw new CommandError(`--listen ${text} is not an IP address with a port, as 127.0.0.1:1338`);
  }
  if (!allowRemote && !isMachineLocal(address.host)) {
    throw new CommandError(
      `whoever reaches ${address.host} would get the role's credentials: listen on a loopback or link-local address, or say --allow-remote`,
    );
  }
  return address;
}

function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((of) => (of ?? []).map(({ address }) => address));
}

function factsOfMachine(): Omit<
  InstanceFacts,
  'account' | 'region' | 'availabilityZone' | 'instanceId' | 'roleName'
> {
  const outward = Object.values(networkInterfaces())
    .flatMap((of) => of ?? [])
    .find(({ family, internal, address }) => family === 'IPv4' && !internal && !isMachineLocal(address));
  return {
    instanceType: 'berth.host',
    imageId: 'ami-00000000000000000',
    hostname: hostname(),
    privateIp: outward?.address ?? '127.0.0.1',
    mac: outward?.mac ?? '00:00:00:00:00:00',
    architecture: arch(),
    pendingAt: Date.now() - uptime() * 1000,
  };
}

/** The same as long as the machine is the same. */
async function instanceIdOfMachine(): Promise<string> {
  const machine = await readFile('/etc/machine-id', 'utf8').catch(() => '');
  return `i-${createHash('sha256').update(`${machine.trim()} ${hostname()}`).digest('hex').slice(0, 17)}`;
}

function banner(listening: readonly Listening[], instanceId: string, roleArn: string): string {
  const [first] = listening;
  const mapped = listening.some(({ host, port }) => host === '169.254.169.254' && port === 80);
  const lines = [
    `Instance metadata of ${instanceId} with ${roleArn}`,
    ...listening.map(({ endpoint }) => `  ${endpoint}`),
    '',
    ...(mapped
      ? ['Clients find it by themselves.']
      : [
          'AWS clients find it with',
          `  export AWS_EC2_METADATA_SERVICE_ENDPOINT=${first?.endpoint ?? ''}/`,
          'or, without any setting, at the address EC2 uses:',
          '  ip address add 169.254.169.254/32 dev lo && berth imds --listen 169.254.169.254:80 ...',
          'or by sending that address here:',
          `  iptables -t nat -A OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to-destination ${first?.host ?? ''}:${first?.port ?? ''}`,
        ]),
  ];
  return `${lines.join('\n')}\n`;
}

function ended(surroundings: Surroundings): Promise<void> {
  return new Promise((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) surroundings.on(name, () => resolve());
  });
}
