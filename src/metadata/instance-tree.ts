/** What the instance metadata service tells, as a tree of lists and texts. */
import { createHash } from 'node:crypto';
import type { createRoleCredentials } from './role-credentials.ts';

export interface InstanceFacts {
  readonly account: string;
  readonly region: string;
  readonly availabilityZone: string;
  readonly instanceId: string;
  readonly instanceType: string;
  readonly imageId: string;
  readonly hostname: string;
  readonly privateIp: string;
  readonly mac: string;
  /** Node's name: `x64`, `arm64` */
  readonly architecture: string;
  /** name of the role, without its path */
  readonly roleName: string;
  /** when the machine came up, milliseconds since 1970 */
  readonly pendingAt: number;
}

/** A text, or one that has to be fetched: `undefined` when that cannot be done now. */
export type Leaf = string | (() => Promise<string | undefined>);
export interface Tree {
  readonly [name: string]: Tree | Leaf;
}

const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'arm64' };

export function instanceTree(
  facts: InstanceFacts,
  credentials: ReturnType<typeof createRoleCredentials>,
): Tree {
  const { mac, privateIp, hostname } = facts;
  return {
    dynamic: { 'instance-identity': { document: identityDocument(facts) } },
    'meta-data': {
      'ami-id': facts.imageId,
      'ami-launch-index': '0',
      hostname,
      iam: {
        info: () => iamInfo(facts, credentials),
        'security-credentials': { [facts.roleName]: () => securityCredentials(facts.roleName, credentials) },
      },
      'instance-action': 'none',
      'instance-id': facts.instanceId,
      'instance-life-cycle': 'on-demand',
      'instance-type': facts.instanceType,
      'local-hostname': hostname,
      'local-ipv4': privateIp,
      mac,
      network: {
        interfaces: {
          macs: {
            [mac]: {
              'device-number': '0',
              'local-hostname': hostname,
              'local-ipv4s': privateIp,
              mac,
              'owner-id': facts.account,
            },
          },
        },
      },
      placement: { 'availability-zone': facts.availabilityZone, region: facts.region },
      services: { domain: 'amazonaws.com', partition: 'aws' },
    },
  };
}

/** The instance identity document, keys in AWS's order. */
function identityDocument(facts: InstanceFacts): string {
  return show({
    accountId: facts.account,
    architecture: ARCHITECTURES[facts.architecture] ?? facts.architecture,
    availabilityZone: facts.availabilityZone,
    billingProducts: null,
    devpayProductCodes: null,
    marketplaceProductCodes: null,
    imageId: facts.imageId,
    instanceId: facts.instanceId,
    instanceType: facts.instanceType,
    kernelId: null,
    pendingTime: instant(facts.pendingAt),
    privateIp: facts.privateIp,
    ramdiskId: null,
    region: facts.region,
    version: '2017-09-30',
  });
}

/**
 * The instance profile bears the role's name, as the console names those it makes; its id is derived from that.
 * Refusals: IAM user guide, "Troubleshoot IAM and Amazon EC2".
 */
async function iamInfo(
  { account, roleName }: InstanceFacts,
  credentials: ReturnType<typeof createRoleCredentials>,
): Promise<string | undefined> {
  const held = await credentials.read();
  if (held.kind === 'unavailable') return undefined;
  if (held.kind === 'refused') return refusal(roleName, held.updatedAt);
  const arn = `arn:aws:iam::${account}:instance-profile/${roleName}`;
  return show({
    Code: 'Success',
    LastUpdated: instant(held.updatedAt),
    InstanceProfileArn: arn,
    InstanceProfileId: profileId(arn),
  });
}

/** Of IAM's form, and the same for the same profile. */
function profileId(arn: string): string {
  const digest = createHash('sha256').update(arn).digest().subarray(0, 17);
  return `AIPA${[...digest].map((byte) => 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'[byte & 31]).join('')}`;
}

async function securityCredentials(
  roleName: string,
  credentials: ReturnType<typeof createRoleCredentials>,
): Promise<string | undefined> {
  const held = await credentials.read();
  if (held.kind === 'unavailable') return undefined;
  if (held.kind === 'refused') return refusal(roleName, held.updatedAt);
  return show({
    Code: 'Success',
    LastUpdated: instant(held.updatedAt),
    Type: 'AWS-HMAC',
    AccessKeyId: held.credentials.accessKeyId,
    SecretAccessKey: held.credentials.secretAccessKey,
    Token: held.credentials.sessionToken,
    Expiration: instant(held.credentials.expiresAt),
  });
}

/** AWS's words; the true reason is for who runs the service, not for every process of the machine. */
function refusal(roleName: string, at: number): string {
  return show({
    Code: 'AssumeRoleUnauthorizedAccess',
    Message: `EC2 cannot assume the role ${roleName}. Please see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.`,
    LastUpdated: instant(at),
  });
}

function show(value: object): string {
  const lines = Object.entries(value).map(([key, it]) => `  ${JSON.stringify(key)} : ${JSON.stringify(it)}`);
  return `{\n${lines.join(',\n')}\n}`;
}

/** Whole seconds, as AWS writes them. */
function instant(milliseconds: number): string {
  return new Date(milliseconds).toISOString().replace(/\.\d+Z$/, 'Z');
}
