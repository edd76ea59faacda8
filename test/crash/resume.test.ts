/**
 * kill -9 in the middle of a chunk: whoever comes back finds the upload where its last 202 left it and goes on at once, not
 * when the claim of the request that died would have run out.
 */
import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { request, type ClientRequest } from 'node:http';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  basic,
  createRepository,
  makePlace,
  readAdmin,
  registryPassword,
  startBerth,
  until,
  type BerthServer,
  type Environment,
  type Place,
} from '../clients/harness.ts';
import { digestOf, seededBytes } from '../clients/image.ts';
import { findPostgres, startPostgres, type Postgres } from '../postgres.ts';
import { connect, type Answer, type Connection } from './client.ts';

const MIB = 1_048_576;
const NAME = 'resume/app';
const BYTES = seededBytes('resume', 9 * MIB + 12_345);
/** Chunks end within frames and at the end of one. */
const CHUNKS = [
  [0, 1_500_000],
  [1_500_000, 3 * MIB],
] as const;
const BUSY = /Another request is writing to the upload/;

interface Half {
  readonly server: BerthServer;
  readonly connection: Connection;
  readonly location: string;
  /** the request that is not at its end */
  readonly sending: ClientRequest;
}

class Setting {
  readonly #place: Place;
  readonly #environment: Environment;
  #authorization = '';
  readonly #connections: Connection[] = [];

  private constructor(place: Place, extra: Environment) {
    this.#place = place;
    this.#environment = { ...place.environment, ...extra };
  }

  static async open(name: string, extra: Environment = {}): Promise<Setting> {
    return new Setting(await makePlace(`resume-${name}`), extra);
  }

  get data(): string {
    return join(this.#place.directory, 'data');
  }

  start(...flags: string[]): Promise<BerthServer> {
    return startBerth({
      data: this.data,
      environment: this.#environment,
      flags: ['--log-level', 'warn', ...flags],
    });
  }

  connect(server: BerthServer): Connection {
    const connection = connect(server.port, this.#authorization);
    this.#connections.push(connection);
    return connection;
  }

  /** A server with an upload of some chunks and half of another, whose bytes arrive. */
  async startHalf(...flags: string[]): Promise<Half> {
    const server = await this.start(...flags);
    if (this.#authorization === '') {
      const admin = await readAdmin(this.data);
      await createRepository(server, admin, NAME);
      this.#authorization = basic(await registryPassword(server, admin));
    }
    const connection = this.connect(server);
    const started = await connection.send('POST', `/v2/${NAME}/blobs/uploads/`);
    const { location = '' } = started.headers;
    for (const [start, end] of CHUNKS) {
      const answer = await connection.send('PATCH', location, { bytes: BYTES.subarray(start, end) });
      assert.equal(answer.headers.range, `0-${end - 1}`);
    }
    const before = await this.#stored();
    const sending = request({
      host: '127.0.0.1',
      port: server.port,
      method: 'PATCH',
      path: location,
      headers: { authorization: this.#authorization, 'content-length': BYTES.length - 3 * MIB },
    });
    sending.on('error', () => undefined);
    sending.write(BYTES.subarray(3 * MIB, 6 * MIB + 77));
    await until('bytes of the chunk are in the file', async () => (await this.#stored()) > before);
    return { server, connection, location, sending };
  }

  async #stored(): Promise<number> {
    const entries = await readdir(join(this.data, 'blobs'), { recursive: true, withFileTypes: true });
    const files = entries.filter((entry) => entry.isFile());
    const sizes = await Promise.all(
      files.map(async ({ parentPath, name }) => (await stat(join(parentPath, name))).size),
    );
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  async close(): Promise<void> {
    for (const connection of this.#connections) connection.close();
    await this.#place.remove();
  }
}

async function assertStatus(connection: Connection, location: string): Promise<void> {
  const { status, headers } = await connection.send('GET', location);
  assert.deepEqual([status, headers.range], [204, `0-${3 * MIB - 1}`]);
}

function sendRest(connection: Connection, location: string): Promise<Answer> {
  return connection.send('PATCH', location, { bytes: BYTES.subarray(3 * MIB) });
}

/** Ends the upload and compares what was stored. */
async function assertEnds(connection: Connection, location: string): Promise<void> {
  const digest = digestOf(BYTES);
  const closed = await connection.send('PUT', `${location}?digest=${digest}`);
  assert.equal(closed.status, 201, closed.bytes.toString());
  const blob = await connection.send('GET', `/v2/${NAME}/blobs/${digest}`);
  assert.ok(blob.bytes.equals(BYTES));
}

function assertTaken(answer: Answer): void {
  assert.equal(answer.status, 202, answer.bytes.toString());
  assert.equal(answer.headers.range, `0-${BYTES.length - 1}`);
}

const postgres = await findPostgres();

describe('an upload whose server was killed in mid-chunk', () => {
  for (const workers of ['1', '2'])
    test(`SQLite, ${workers} worker(s): goes on after the restart`, async () => {
      const setting = await Setting.open(`sqlite-${workers}`);
      try {
        const { server, location } = await setting.startHalf('--workers', workers);
        await server.stop('SIGKILL');
        const next = await setting.start('--workers', workers);
        try {
          const connection = setting.connect(next);
          await assertStatus(connection, location);
          assertTaken(await sendRest(connection, location));
          await assertEnds(connection, location);
        } finally {
          await next.stop('SIGKILL');
        }
      } finally {
        await setting.close();
      }
    });

  test('SQLite: a second server that is refused frees nothing', async () => {
    const setting = await Setting.open('second');
    try {
      const { server, connection, location, sending } = await setting.startHalf();
      try {
        await assert.rejects(setting.start(), /is in use by another Berth process/);
        const refused = await sendRest(connection, location);
        assert.equal(refused.status, 416);
        assert.match(refused.bytes.toString(), BUSY);
        const answered = new Promise<number>((resolve) => {
          sending.on('response', (response) => resolve(response.resume().statusCode ?? 0));
        });
        sending.end(BYTES.subarray(6 * MIB + 77));
        assert.equal(await answered, 202);
        await assertEnds(connection, location);
      } finally {
        await server.stop('SIGKILL');
      }
    } finally {
      await setting.close();
    }
  });

  describe('PostgreSQL', { skip: postgres === undefined && 'not installed: postgresql' }, () => {
    let database: Postgres;
    before(async () => {
      database = await startPostgres(postgres ?? '');
    });
    after(() => database.stop());

    test('goes on with another replica once its own is dead, not before', async () => {
      const setting = await Setting.open('postgres', { BERTH_DATABASE: database.url });
      try {
        const { server, location } = await setting.startHalf();
        const replica = await setting.start();
        try {
          const connection = setting.connect(replica);
          await assertStatus(connection, location);
          const refused = await sendRest(connection, location);
          assert.equal(refused.status, 416);
          assert.match(refused.bytes.toString(), BUSY);
          await server.stop('SIGKILL');
          let answer = refused;
          await until(
            'PostgreSQL noticed that the server is gone',
            async () => {
              answer = await sendRest(connection, location);
              return answer.status !== 416;
            },
            10_000,
          );
          assertTaken(answer);
          await assertEnds(connection, location);
        } finally {
          await server.stop('SIGKILL');
          await replica.stop('SIGKILL');
        }
      } finally {
        await setting.close();
      }
    });
  });
});
