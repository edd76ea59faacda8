import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Fault } from '../domain/faults.ts';
import { resolveScope, scopeOfHost } from './scope.ts';

const isRegion = (name: string): boolean => name === 'us-east-1' || name === 'eu-west-1';
const account = '123456789012';

function outcome(work: () => unknown): unknown {
  try {
    return work();
  } catch (error) {
    assert.ok(error instanceof Fault);
    return `${error.code}: ${error.message}`;
  }
}

describe('the registry of a host', () => {
  const hosts: [host: string, expected: unknown][] = [
    [`${account}.dkr.ecr.us-east-1.amazonaws.com`, { account, region: 'us-east-1' }],
    [`${account}.dkr.ecr.eu-west-1.localhost:7327`, { account, region: 'eu-west-1' }],
    [`${account}.DKR.ECR.us-east-1.Example.COM:80`, { account, region: 'us-east-1' }],
    [`${account}.dkr.ecr-fips.us-east-1.amazonaws.com`, { account, region: 'us-east-1' }],
    [`${account}.dkr-ecr.us-east-1.on.aws`, { account, region: 'us-east-1' }],
    [`${account}.dkr-ecr-fips.us-east-1.on.aws`, { account, region: 'us-east-1' }],
    ['localhost:7327', undefined],
    ['', undefined],
    ['[::1]:7327', undefined],
    ['registry.example.com', undefined],
    ['ecr.example.com', undefined],
    ['secret.example.com', undefined],
    [
      '12345.dkr.ecr.us-east-1.example.com:80',
      'RegistryNotResolved: Could not resolve registry id from host 12345.dkr.ecr.us-east-1.example.com',
    ],
    [
      'dkr.ecr.us-east-1.example.com',
      'RegistryNotResolved: Could not resolve registry id from host dkr.ecr.us-east-1.example.com',
    ],
    [
      `${account}.dkr.ecr.mars-1.example.com`,
      `RegistryNotResolved: Could not resolve registry id from host ${account}.dkr.ecr.mars-1.example.com`,
    ],
    [
      `${account}.dkr.ecr.us-east-1`,
      `RegistryNotResolved: Could not resolve registry id from host ${account}.dkr.ecr.us-east-1`,
    ],
    [
      `x.${account}.dkr.ecr.us-east-1.example.com`,
      `RegistryNotResolved: Could not resolve registry id from host x.${account}.dkr.ecr.us-east-1.example.com`,
    ],
  ];
  for (const [host, expected] of hosts) {
    it(host || '(none)', () =>
      assert.deepEqual(
        outcome(() => scopeOfHost(host, isRegion)),
        expected,
      ),
    );
  }
});

describe('the registry of a request', () => {
  const token = { account: '000000000000', region: 'us-east-1' };
  const west = `${account}.dkr.ecr.eu-west-1.example.com`;
  const east = `${account}.dkr.ecr.us-east-1.example.com`;
  const refusal =
    'AccessDeniedException: Your authorization token was issued for region us-east-1 and cannot be used in region eu-west-1.';
  const cases: [host: string, namespace: string | undefined, expected: unknown][] = [
    ['localhost', undefined, token],
    ['localhost', east, { account, region: 'us-east-1', namespace: east }],
    ['localhost', 'docker.io', token],
    [east, east, { account, region: 'us-east-1' }],
    ['localhost', '', token],
    [east, `999999999999.dkr.ecr.us-east-1.example.com`, { account, region: 'us-east-1' }],
    [west, undefined, refusal],
    ['localhost', west, refusal],
  ];
  for (const [host, namespace, expected] of cases) {
    it(`${host} ns=${namespace ?? ''}`, () => {
      assert.deepEqual(
        outcome(() => resolveScope(host, namespace, token, isRegion)),
        expected,
      );
    });
  }
});
