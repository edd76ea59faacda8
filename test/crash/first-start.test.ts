/**
 * kill -9 and loss of power at every step of the first start, when directories, keys, database, account and credentials come
 * to be: whatever was lost, the next start makes a server whose administrator can log in, and which keeps what it acknowledged.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import {
  basic,
  callEcr,
  makePlace,
  readAdmin,
  registryPassword,
  startBerth,
  type BerthServer,
  type Environment,
} from '../clients/harness.ts';
import { makeImage, OCI_MANIFEST } from '../clients/image.ts';
import { findPostgres, startPostgres } from '../postgres.ts';
import { connect, createRandom, Gone } from './client.ts';
import { layFaults, missingCompiler, type FaultLayer } from './faults.ts';
import { losePower } from './power.ts';

const CRASHES = Math.ceil(Number(process.env['CRASHES'] ?? 1000) * 0.04);
const SEED = Number(process.env['CRASH_SEED'] ?? 20_261_124);
const REPOSITORY = 'first/images';
const IMAGE = makeImage('first', [6000]);
const FLAGS = ['--log-level', 'warn'];

/** What the first life was told. */
interface Acknowledged {
  repository: boolean;
  image: boolean;
}

/** The first steps of an administrator: a repository under a key of its own, an image. */
async function begin(server: BerthServer, data: string, acknowledged: Acknowledged): Promise<void> {
  const admin = await readAdmin(data);
  const gone = (error: unknown): never => {
    throw new Gone(String(error));
  };
  const made = await callEcr(server, admin, 'CreateRepository', {
    repositoryName: REPOSITORY,
    encryptionConfiguration: { encryptionType: 'KMS' },
  }).catch(gone);
  if (made.status === 200) acknowledged.repository = true;
  else assert.match(made.text, /RepositoryAlreadyExistsException/);
  const password = await registryPassword(server, admin).catch(gone);
  const connection = connect(server.port, basic(password));
  try {
    for (const { digest, bytes } of [...IMAGE.layers, IMAGE.config]) {
      const path = `/v2/${REPOSITORY}/blobs/uploads/?digest=${digest}`;
      assert.equal((await connection.send('POST', path, { bytes })).status, 201);
    }
    const body = { bytes: IMAGE.bytes, type: OCI_MANIFEST };
    const put = await connection.send('PUT', `/v2/${REPOSITORY}/manifests/latest`, body);
    assert.equal(put.status, 201);
    acknowledged.image = true;
  } finally {
    connection.close();
  }
}

async function verify(server: BerthServer, data: string, acknowledged: Acknowledged): Promise<void> {
  const admin = await readAdmin(data);
  const connection = connect(server.port, basic(await registryPassword(server, admin)));
  try {
    const { status, text } = await callEcr(server, admin, 'DescribeRepositories', {});
    assert.equal(status, 200, text);
    if (acknowledged.repository) assert.match(text, new RegExp(REPOSITORY));
    const answer = await connection.send('GET', `/v2/${REPOSITORY}/manifests/latest`);
    if (acknowledged.image) assert.ok(answer.bytes.equals(IMAGE.bytes), answer.bytes.toString());
    if (answer.status !== 200) return;
    for (const { digest, bytes } of [...IMAGE.layers, IMAGE.config]) {
      const blob = await connection.send('GET', `/v2/${REPOSITORY}/blobs/${digest}`);
      assert.ok(blob.bytes.equals(bytes), digest);
    }
  } finally {
    connection.close();
  }
}

interface Attempt {
  readonly data: string;
  readonly environment: Environment;
  readonly layer: FaultLayer;
  readonly random: () => number;
}

/** One first start that dies at the step, and the one after it. Whether it died. */
async function dieAndComeBack({ data, environment, layer, random }: Attempt, step: number): Promise<boolean> {
  const acknowledged: Acknowledged = { repository: false, image: false };
  layer.arm(step, step % 2 === 0 ? 'before' : 'after');
  const first = await startBerth({ data, environment, flags: FLAGS }).catch((error: unknown) => {
    assert.match(String(error), /ended with SIGKILL/);
  });
  if (first !== undefined) {
    await begin(first, data, acknowledged).catch((error: unknown) => {
      if (!(error instanceof Gone)) throw error;
    });
    await first.stop('SIGKILL');
  }
  const died = layer.steps() >= step;
  layer.arm(undefined);
  // the whole area: the data directory is only a part of it
  losePower(environment['FAULT_ROOT'] ?? '', layer.area, step % 3 === 0 ? 'something' : 'everything', random);
  const second = await startBerth({ data, environment, flags: FLAGS });
  try {
    await verify(second, data, acknowledged);
    await begin(second, data, acknowledged);
    await verify(second, data, acknowledged);
    assert.doesNotMatch(second.output(), /"level":[56]0/);
  } catch (error) {
    throw new Error(`step ${step}: ${String(error)}\n${second.output()}`, { cause: error });
  } finally {
    await second.stop('SIGKILL');
  }
  return died;
}

async function dieEverywhere(
  name: string,
  crashes: number,
  extra: (number: number) => Promise<Environment>,
): Promise<void> {
  const place = await makePlace(`first-${name}`);
  const root = join(place.directory, 'root');
  const layer = await layFaults(root);
  const environment = { ...place.environment, ...layer.environment };
  const random = createRandom(SEED);
  try {
    const attempt = async (number: number): Promise<Attempt> => ({
      data: join(root, `data-${number}`),
      environment: { ...environment, ...(await extra(number)) },
      layer,
      random,
    });
    assert.equal(await dieAndComeBack(await attempt(0), 1_000_000), false);
    // how many there are: those of a start and what follows, on a fresh directory
    const probe = await attempt(1);
    layer.arm(undefined);
    const server = await startBerth({ ...probe, flags: FLAGS });
    await begin(server, probe.data, { repository: false, image: false });
    const steps = layer.steps();
    await server.stop('SIGKILL');
    let died = 0;
    for (let number = 0; number < crashes; number++) {
      const step = 1 + Math.floor((number * steps) / crashes);
      if (await dieAndComeBack(await attempt(number + 2), step)) died += 1;
    }
    assert.ok(died >= crashes * 0.9, `${died} of ${crashes} died, ${steps} steps`);
  } finally {
    await layer.remove();
    await place.remove();
  }
}

const postgres = await findPostgres();

describe('first start', { skip: missingCompiler }, () => {
  test('SQLite', () => dieEverywhere('sqlite', CRASHES, async () => ({})));

  test('PostgreSQL', { skip: postgres === undefined && 'not installed: postgresql' }, async () => {
    const database = await startPostgres(postgres ?? '');
    try {
      const url = new URL(database.url);
      await dieEverywhere('postgres', Math.ceil(CRASHES / 2), async (number) => {
        const name = `first_${number}`;
        const arguments_ = ['-h', decodeURIComponent(url.host), '-U', url.username, name];
        await promisify(execFile)(join(postgres ?? '', 'createdb'), arguments_);
        return { BERTH_DATABASE: database.url.replace(/[^/]*$/, name) };
      });
    } finally {
      await database.stop();
    }
  });
});
