/**
 * The whole server under attack: accounts, users with a policy, requests signed by hand and bytes sent as they are, so that
 * a test can send what no client would.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { start } from '../../src/compose.ts';
import { readConfig } from '../../src/config.ts';
import { bootstrap } from '../../src/identity/identity.ts';
import { openKeyRing } from '../../src/lib/keyring.ts';
import { createLog } from '../../src/lib/log.ts';
import { signRequest, type Credentials } from '../../src/lib/sigv4.ts';
import { openSqliteStore } from '../../src/store/store.ts';

export const ACCOUNT = '000000000000';
export const OTHER = '111111111111';
export const REGION = 'us-east-1';

export interface Answer {
  readonly status: number;
  readonly text: string;
  /** `__type`, `<Code>` or the OCI code */
  readonly code: string;
  readonly message: string;
}

export interface Call {
  readonly service: 'ecr' | 'iam' | 'sts';
  readonly operation: string;
  /** JSON input of ECR; parameters of IAM and STS, or all their pairs as they are sent */
  readonly input?: object;
}

export interface Target {
  readonly endpoint: string;
  readonly host: string;
  readonly admin: Credentials;
  readonly stranger: Credentials;
  /** what the server believes it is, epoch milliseconds */
  now(): number;
  pass(ms: number): void;
  /** the request as its client would send it, to be tampered with */
  prepare(call: Call, key: Credentials, now?: number): Prepared;
  call(call: Call, key: Credentials): Promise<Answer>;
  send(request: Prepared): Promise<Answer>;
  /** bytes on a connection of their own; everything that comes back until the server closes */
  raw(bytes: string): Promise<Answer>;
  /** a user of ACCOUNT with these statements and a key */
  addUser(name: string, statements: readonly object[]): Promise<Credentials>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Header lines in order; a name may occur twice. */
export interface Prepared {
  readonly method: string;
  readonly target: string;
  readonly headers: readonly (readonly [name: string, value: string])[];
  /** a character is a byte */
  readonly body: string;
}

export async function openTarget(): Promise<Target> {
  const data = await mkdtemp(join(tmpdir(), 'berth-attacks-'));
  const store = await openSqliteStore({ file: join(data, 'berth.db') });
  const keys = await openKeyRing(join(data, 'keys'));
  const made: Credentials[] = [];
  for (const account of [ACCOUNT, OTHER]) {
    const { adminKey } = (await bootstrap({ store, keys, account, now: Date.now() })) ?? assert.fail();
    made.push({ accessKeyId: adminKey.id, secretAccessKey: adminKey.secret });
  }
  await store.close();
  const [admin = assert.fail(), stranger = assert.fail()] = made;
  let shift = 0;
  const now = () => Date.now() + shift;
  const berth = await start(readConfig({ flags: { data, port: '0' }, env: {}, platform: process.platform }), {
    log: createLog('error'),
    clock: now,
    tls: undefined,
    credentialsFile: { write: () => Promise.resolve(), remove: () => Promise.resolve() },
  });
  const host = berth.endpoint.slice('http://'.length);

  const prepare = ({ service, operation, input = {} }: Call, key: Credentials, at = now()): Prepared => {
    const json = service === 'ecr';
    const version = service === 'iam' ? '2010-05-08' : '2011-06-15';
    const form = new URLSearchParams(
      Array.isArray(input)
        ? (input as string[][])
        : { Action: operation, Version: version, ...(input as Record<string, string>) },
    );
    const body = json ? JSON.stringify(input) : form.toString();
    const type = json ? 'application/x-amz-json-1.1' : 'application/x-www-form-urlencoded; charset=utf-8';
    const target = json ? { 'x-amz-target': `AmazonEC2ContainerRegistry_V20150921.${operation}` } : {};
    const headers = signRequest(
      { method: 'POST', url: `${berth.endpoint}/`, headers: { 'content-type': type, ...target }, body },
      key,
      { region: REGION, service, now: at },
    );
    return {
      method: 'POST',
      target: '/',
      headers: Object.entries(headers),
      body: Buffer.from(body).toString('latin1'),
    };
  };
  const raw = (bytes: string) => exchangeBytes(berth.port, bytes);
  const send = ({ method, target, headers, body }: Prepared): Promise<Answer> => {
    const framed = headers.some(([name]) => /^(content-length|transfer-encoding)$/i.test(name));
    const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('');
    const length = framed ? '' : `Content-Length: ${Buffer.byteLength(body, 'latin1')}\r\n`;
    return raw(`${method} ${target} HTTP/1.1\r\n${lines}${length}Connection: close\r\n\r\n${body}`);
  };
  const call = (it: Call, key: Credentials) => send(prepare(it, key));
  return {
    endpoint: berth.endpoint,
    host,
    admin,
    stranger,
    now,
    pass: (ms) => void (shift += ms),
    prepare,
    call,
    send,
    raw,
    async addUser(UserName, statements) {
      const iam = async (operation: string, input: object) => {
        const answer = await call({ service: 'iam', operation, input }, admin);
        assert.equal(answer.status, 200, answer.text);
        return answer.text;
      };
      await iam('CreateUser', { UserName });
      const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement: statements });
      if (statements.length > 0) await iam('PutUserPolicy', { UserName, PolicyName: 'p', PolicyDocument });
      const text = await iam('CreateAccessKey', { UserName });
      const [, accessKeyId = ''] = /<AccessKeyId>(.*)<\/AccessKeyId>/.exec(text) ?? [];
      const [, secretAccessKey = ''] = /<SecretAccessKey>(.*)<\/SecretAccessKey>/.exec(text) ?? [];
      return { accessKeyId, secretAccessKey };
    },
    async [Symbol.asyncDispose]() {
      await berth.stop();
      await rm(data, { recursive: true, force: true });
    },
  };
}

function exchangeBytes(port: number, bytes: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const socket = connect({ port, host: '127.0.0.1' }, () => socket.write(bytes, 'latin1'));
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.on('error', reject);
    socket.on('close', () => resolve(read(Buffer.concat(chunks).toString())));
  });
}

function read(text: string): Answer {
  const [, status = '0'] = /^HTTP\/1\.1 (\d+)/.exec(text) ?? [];
  const body = text.slice(text.indexOf('\r\n\r\n') + 4);
  const found = (pattern: RegExp) => pattern.exec(body)?.[1];
  return {
    status: Number(status),
    text: body,
    code: found(/"__type":"([^"]*)"/) ?? found(/<Code>(.*?)<\/Code>/s) ?? found(/"code":"([^"]*)"/) ?? '',
    message: (
      found(/"message":"((?:[^"\\]|\\.)*)"/i) ??
      found(/<Message>(.*?)<\/Message>/s) ??
      ''
    ).replaceAll('&#39;', "'"),
  };
}
