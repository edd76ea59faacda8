/** Identity over a real store, its operations called as the doors call them. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe } from 'node:test';
import { Fault } from '../src/domain/faults.ts';
import { openKeyRing } from '../src/lib/keyring.ts';
import type { KeyRing } from '../src/lib/keyring.ts';
import type { Operation, OperationContext, OperationTable, Structure } from '../src/protocol/protocol.ts';
import { openPostgresStore, openSqliteStore } from '../src/store/store.ts';
import type { Store } from '../src/store/store.ts';
import { findPostgres, startPostgres } from './postgres.ts';
import type { Postgres } from './postgres.ts';
import {
  createIssuers,
  bootstrap,
  createIdentity,
  iamOperations,
  IssuerError,
  stsOperations,
} from '../src/identity/identity.ts';
import type { Credentials, Guardrails, Identity, IssuerFetch, Principal } from '../src/identity/identity.ts';

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
  readonly issuers: ReturnType<typeof createIssuers>;
  readonly admin: Credentials;
  /** IAM's and STS's operations */
  readonly table: OperationTable<Principal>;
  /** Calls an operation with the key `as` (the administrator's unless told), at {@link NOW} or `now`. */
  call(name: string, input?: Structure, options?: CallOptions): Promise<Structure>;
  /** A user with a key and, inline, these statements. */
  makeUser(name: string, statements?: readonly object[]): Promise<Credentials>;
  close(): Promise<void>;
}

/** Credentials, temporary ones with their token. */
export interface TestCredentials extends Credentials {
  readonly token?: string;
}

export interface CallOptions {
  readonly as?: TestCredentials;
  readonly facts?: Partial<OperationContext<Principal>>;
}

/** Settings of a fixture that few tests need. */
export interface FixtureOptions {
  readonly guardrails?: Guardrails;
  readonly fetchIssuer?: IssuerFetch;
}

const NO_ISSUERS: IssuerFetch = (asked) =>
  Promise.reject(new IssuerError('unreachable', `${asked} does not exist`));

/** On SQLite in a directory of its own, or on the empty PostgreSQL database `url`. */
export async function openFixture(
  url?: string,
  { guardrails, fetchIssuer = NO_ISSUERS }: FixtureOptions = {},
): Promise<Fixture> {
  const directory = await mkdtemp(join(tmpdir(), 'berth-identity-'));
  const keys = await openKeyRing(join(directory, 'keys'));
  const store = await (url === undefined
    ? openSqliteStore({ file: join(directory, 'berth.db') })
    : openPostgresStore({ url, poolMax: 4 }));
  const made = await bootstrap({ store, keys, account: ACCOUNT, now: NOW, rootKey: ROOT });
  if (made === undefined) throw new Error('the store was not empty');
  const identity = createIdentity({ store, keys, guardrails });
  const issuers = createIssuers(fetchIssuer);
  const services = { store, keys, identity, guardrails, issuers };
  const table = { ...iamOperations(services), ...stsOperations(services) };
  const admin = made.adminKey;

  async function call(name: string, input: Structure = {}, options: CallOptions = {}): Promise<Structure> {
    const entry = table[name];
    if (entry === undefined || 'notBuilt' in entry) throw new Error(`${name} is not built`);
    const { id, token }: TestCredentials = options.as ?? admin;
    const key = await identity.findKey(id, token, options.facts?.now ?? NOW);
    if (key === 'expired') throw new Fault('ExpiredTokenException', 'the session is over');
    if (typeof key !== 'object') throw new Fault('UnrecognizedClientException', 'no such key');
    const operation: Operation<Principal> = entry;
    const context = { ...factsOf(options.facts), caller: key.caller };
    const checks = operation.access(input, context);
    if (checks.length > 0) await identity.authorize(key.caller, checks, context);
    return (await operation.run(input, context)) ?? {};
  }

  return {
    store,
    keys,
    identity,
    issuers,
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

/** Defines the same tests on every database there is; `fixture` is open while they run. */
export async function onEveryStore(
  define: (fixture: () => Fixture) => void,
  options?: FixtureOptions,
): Promise<void> {
  const bin = await findPostgres();
  if (bin === undefined) process.stdout.write('SKIPPED identity on PostgreSQL: no initdb and pg_ctl found\n');
  for (const engine of bin === undefined ? ['sqlite'] : ['sqlite', 'postgres']) {
    describe(`identity on ${engine}`, () => {
      let server: Postgres | undefined;
      let fixture: Fixture | undefined;
      before(async () => {
        if (engine === 'postgres' && bin !== undefined) server = await startPostgres(bin);
        fixture = await openFixture(server?.url, options);
      });
      after(async () => {
        await fixture?.close();
        await server?.stop();
      });
      define(() => {
        if (fixture === undefined) throw new Error('the fixture is not open');
        return fixture;
      });
    });
  }
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
