/** ARNs of IAM and STS (iam-sts.md §5.3, §6.1). */
import { Fault } from '../domain/faults.ts';

/** Something of an account with a name and a path, which starts and ends with a slash. */
interface Named {
  readonly account: string;
  readonly path: string;
  readonly name: string;
}

const namedArn =
  (type: string) =>
  ({ account, path, name }: Named): string =>
    `arn:aws:iam::${account}:${type}${path}${name}`;

export const userArn = namedArn('user');
export const groupArn = namedArn('group');
export const roleArn = namedArn('role');
export const policyArn = namedArn('policy');
export const instanceProfileArn = namedArn('instance-profile');

export function rootArn(account: string): string {
  return `arn:aws:iam::${account}:root`;
}

/** `url` without scheme. */
export function providerArn(account: string, url: string): string {
  return `arn:aws:iam::${account}:oidc-provider/${url}`;
}

/** The role's path is dropped. */
export function assumedRoleArn(
  role: { readonly account: string; readonly name: string },
  session: string,
): string {
  return `arn:aws:sts::${role.account}:assumed-role/${role.name}/${session}`;
}

export function federatedUserArn(account: string, name: string): string {
  return `arn:aws:sts::${account}:federated-user/${name}`;
}

export interface NamedArn extends Named {
  readonly arn: string;
  readonly type: 'user' | 'group' | 'role' | 'instance-profile';
}

const NAMED_ARN =
  /^arn:aws:iam::([0-9]{12}):(user|group|role|instance-profile)(\/(?:[^:/*?]+\/)*)([^:/*?]+)$/;

/** Takes the ARN of a user, group, role or instance profile apart. */
export function readNamedArn(arn: string): NamedArn | undefined {
  const [, account, type, path, name] = NAMED_ARN.exec(arn) ?? [];
  return account === undefined || type === undefined || path === undefined || name === undefined
    ? undefined
    : { arn, account, type: type as NamedArn['type'], path, name };
}

export interface PolicyArn {
  readonly arn: string;
  /** twelve digits, or `aws` */
  readonly account: string;
  readonly path: string;
  readonly name: string;
}

const POLICY_ARN = /^arn:aws:iam::(aws|[0-9]{12}):policy(\/(?:[^:/]+\/)*)([^:/]+)$/;

export function readPolicyArn(arn: string): PolicyArn | undefined {
  const [, account, path, name] = POLICY_ARN.exec(arn) ?? [];
  return account === undefined || path === undefined || name === undefined
    ? undefined
    : { arn, account, path, name };
}

/** @throws Fault ValidationError unless it has the six parts of an ARN */
export function requireArn(arn: string): void {
  if (!/^arn:[^:]+:[^:]+:[^:]*:[^:]*:.+$/.test(arn)) {
    throw new Fault('ValidationError', 'Invalid ARN:  Could not be parsed!');
  }
}

/** @throws Fault ValidationError (no ARN at all), InvalidInput (of something else) */
export function parsePolicyArn(arn: string): PolicyArn {
  requireArn(arn);
  const parsed = readPolicyArn(arn);
  if (parsed === undefined) throw new Fault('InvalidInput', `ARN ${arn} is not valid.`);
  return parsed;
}
