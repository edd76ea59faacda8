/** For the tests: identity over a real SQLite store in a directory of its own, its operations called as the doors call them. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Fault } from '../domain/faults.ts';
import { openKeyRing } from '../lib/keyring.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { Operation, OperationContext, OperationTable, Structure } from '../protocol/protocol.ts';
import { openSqliteStore } from '../store/store.ts';
import type { Store } from '../store/store.ts';
import { bootstrap, createIdentity, iamOperations, stsOperations } from './identity.ts';
import type { Credentials, Identity, Principal } from './identity.ts';

export const ACCOUNT = '123456789012';
export const NOW = Date.parse('2026-11-23T09:00:00Z');
export const ROOT: Credentials = {
  id: 'AKIAROOTROOTROOTROOT',
  secret: 'root-secret-root-secret-root-secret-root',
};

export interface Fixture {
  readonly store: Store;
  readonly keys: KeyRing;
  readonly identity: Identity;
  readonly admin: Credentials;
  /** access-key ids by the names tests give them */
  readonly table: OperationTable<Principal>;
  /** Calls an operation with the key `as` (the administrator's unless told), at {@link NOW} or `now`. */
  call(name: string, input?: Structure, options?: CallOptions): Promise<Structure>;
  /** A user with a key and, inline, these statements. */
  makeUser(name: string, statements?: readonly object[]): Promise<Credentials>;
  close(): Promise<void>;
}

export interface CallOptions {
  readonly as?: Credentials;
  readonly facts?: Partial<OperationContext<Principal>>;
}

export async function openFixture(): Promise<Fixture> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-identity-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  const store = await openSqliteStore({ file: join(directory, 'berth.db') });
  const made = await bootstrap({ store, keys, account: ACCOUNT, now: NOW, rootKey: ROOT });
  if (made === undefined) throw new Error('the store was not empty');
  const identity = createIdentity({ store, keys });
  const table = { ...iamOperations({ store, keys, identity }), ...stsOperations({ store }) };
  const admin = made.adminKey;

  async function call(name: string, input: Structure = {}, options: CallOptions = {}): Promise<Structure> {
    const entry = table[name];
    if (entry === undefined || 'notBuilt' in entry) throw new Error(`${name} is not built`);
    const key = await identity.findKey((options.as ?? admin).id, undefined);
    if (typeof key !== 'object') throw new Fault('UnrecognizedClientException', 'no such key');
    const operation: Operation<Principal> = entry as Operation<Principal>;
    const context = { ...factsOf(options.facts), caller: key.caller };
    const checks = operation.access(input, context);
    if (checks.length > 0) await identity.authorize(key.caller, checks, context);
    return (await operation.run(input, context)) ?? {};
  }

  return {
    store,
    keys,
    identity,
    admin,
    table,
    call,
    async makeUser(name, statements) {
      await call('CreateUser', { UserName: name });
      if (statements !== undefined) {
        await call('PutUserPolicy', {
          UserName: name,
          PolicyName: 'inline',
          PolicyDocument: policyText(statements),
        });
      }
      const { AccessKey } = await call('CreateAccessKey', { UserName: name });
      const { AccessKeyId: id, SecretAccessKey: secret } = AccessKey as Record<string, string>;
      if (id === undefined || secret === undefined) throw new Error('no key was made');
      return { id, secret };
    },
    async close() {
      await identity.flush();
      await store.close();
      await rm(directory, { recursive: true });
    },
  };
}

export function factsOf(
  overrides: Partial<OperationContext<Principal>> = {},
): Omit<OperationContext<Principal>, 'caller'> {
  return {
    requestId: '00000000-0000-4000-8000-000000000000',
    region: 'eu-west-1',
    now: NOW,
    sourceIp: '192.0.2.7',
    secure: true,
    userAgent: 'aws-cli/2',
    origin: 'https://localhost:7327',
    ...overrides,
  };
}

export function policyText(statements: readonly object[]): string {
  return JSON.stringify({ Version: '2012-10-17', Statement: statements });
}

export function allow(action: string | readonly string[], resource = '*', condition?: object): object {
  return { Effect: 'Allow', Action: action, Resource: resource, ...(condition && { Condition: condition }) };
}

export function deny(action: string | readonly string[], resource = '*', condition?: object): object {
  return { ...allow(action, resource, condition), Effect: 'Deny' };
}
