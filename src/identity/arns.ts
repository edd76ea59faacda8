/** ARNs of IAM (iam-sts.md §6.1). */
import { Fault } from '../domain/faults.ts';

/** `path` starts and ends with a slash. */
export function userArn(user: {
  readonly account: string;
  readonly path: string;
  readonly name: string;
}): string {
  return `arn:aws:iam::${user.account}:user${user.path}${user.name}`;
}

export function rootArn(account: string): string {
  return `arn:aws:iam::${account}:root`;
}

export function policyArn(policy: {
  readonly account: string;
  readonly path: string;
  readonly name: string;
}): string {
  return `arn:aws:iam::${policy.account}:policy${policy.path}${policy.name}`;
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

/** @throws Fault ValidationError (no ARN at all), InvalidInput (of something else) */
export function parsePolicyArn(arn: string): PolicyArn {
  if (!/^arn:[^:]+:[^:]+:[^:]*:[^:]*:.+$/.test(arn)) {
    throw new Fault('ValidationError', 'Invalid ARN:  Could not be parsed!');
  }
  const parsed = readPolicyArn(arn);
  if (parsed === undefined) throw new Fault('InvalidInput', `ARN ${arn} is not valid.`);
  return parsed;
}
