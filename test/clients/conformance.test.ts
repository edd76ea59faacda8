/**
 * The OCI distribution specification's own conformance suite, built from its Go module: every workflow and every kind of
 * data that it knows is on, by the released and by the coming version of the specification; for sparse manifests against a
 * server that was told to accept them (ADR 0006).
 * `docs/conformance.md` is what it says; `BERTH_WRITE_DOCS=1` has this test write the page.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse } from 'yaml';
import { goTool } from './go-tools.ts';
import {
  callEcr,
  createRepository,
  makePlace,
  readAdmin,
  registryPassword,
  ROOT,
  run,
  startBerth,
  stopBerth,
  type BerthServer,
  type Environment,
  type Place,
} from './harness.ts';

const tool = await goTool('conformance');
const PAGE = join(ROOT, 'docs', 'conformance.md');

const TOGGLES = {
  API: `PING PULL PUSH REFERRER BLOBS_ATOMIC BLOBS_DELETE BLOBS_DIGEST_HEADER BLOBS_MOUNT_ANONYMOUS BLOBS_UPLOAD_CANCEL
    MANIFESTS_ATOMIC MANIFESTS_DELETE MANIFESTS_DIGEST_HEADER MANIFESTS_TAG_PARAM TAGS_ATOMIC TAGS_DELETE TAGS_LIST`,
  DATA: `IMAGE INDEX INDEX_LIST ARTIFACT ARTIFACT_LIST SUBJECT SUBJECT_LIST SUBJECT_MISSING DATA_FIELD NONDISTRIBUTABLE
    CUSTOM_FIELDS NO_LAYERS EMPTY_BLOB SHA512`,
};

/**
 * Checks the suite passes over because of Berth's answer: the last tag of a member of an index is not deleted, since
 * the image would go with it (ADR 0006).
 */
const SKIPPED = [
  'OCI Conformance Test/tag-param-sha256/delete/tag-delete',
  'OCI Conformance Test/tag-param-sha512/delete/tag-delete',
];

/** Runs of the suite, each against a fresh server with this setting. */
const RUNS = [
  { title: '1.1', version: '1.1', sparse: 'refuse' },
  { title: 'dev', version: 'dev', sparse: 'refuse' },
  { title: '1.1, sparse', version: '1.1', sparse: 'all' },
] as const;

/** What the suite writes to results.yaml. */
interface Results {
  /** names of what was tried → Pass, Skip, Disabled, FAIL … */
  readonly apis: Readonly<Record<string, string>>;
  readonly data: Readonly<Record<string, string>>;
}

interface Run {
  readonly title: string;
  readonly results: Results;
  readonly code: number | string;
  readonly checks: number;
  readonly failed: readonly string[];
  readonly skipped: readonly string[];
}

describe('the OCI conformance suite', { skip: tool.skip }, () => {
  let place: Place;
  const runs: Run[] = [];

  before(async () => {
    place = await makePlace('conformance');
  });
  after(() => place.remove());

  for (const one of RUNS) {
    test(`of version ${one.title} fails nowhere`, async () => {
      const done = await runSuite(one);
      runs.push(done);
      assert.deepEqual(done.failed, []);
      assert.equal(done.code, 0);
      assert.ok(done.checks > 700, `${done.checks} checks`);
      for (const [kind, statuses] of [
        ['api', done.results.apis],
        ['data', done.results.data],
      ] as const) {
        const other = Object.entries(statuses).filter(([, status]) => status !== 'Pass');
        const off = kind === 'data' && one.sparse === 'refuse';
        assert.deepEqual(other, off ? [['Sparse Manifests', 'Disabled']] : []);
      }
      // The suite deletes in a random order, so they are met now and then.
      assert.deepEqual(
        done.skipped.filter((name) => !SKIPPED.includes(name)),
        [],
      );
    });
  }

  test('docs/conformance.md tells what it said', async () => {
    const page = render(runs);
    if (process.env['BERTH_WRITE_DOCS'] === '1') await writeFile(PAGE, page);
    assert.equal(await readFile(PAGE, 'utf8'), page);
  });

  async function runSuite({ title, version, sparse }: (typeof RUNS)[number]): Promise<Run> {
    assert.ok(tool.skip === false);
    const directory = join(place.directory, `${version}-${sparse}`);
    const server = await startBerth({
      data: join(directory, 'data'),
      flags: ['--sparse-manifests', sparse],
    });
    const login = await prepare(server);
    const toggles = Object.entries(TOGGLES).flatMap(([kind, names]) =>
      names.split(/\s+/).map((name) => [`OCI_${kind}_${name}`, 'true']),
    );
    const { code } = await run([tool.path], {
      cwd: place.directory,
      environment: {
        ...place.environment,
        ...login,
        ...Object.fromEntries(toggles),
        OCI_DATA_SPARSE: String(sparse === 'all'),
        OCI_REGISTRY: server.registry,
        OCI_TLS: 'disabled',
        OCI_REPO1: 'suite/one',
        OCI_REPO2: 'suite/two',
        OCI_VERSION: version,
        OCI_RESULTS_DIR: directory,
      },
      timeoutMs: 300_000,
    });
    await stopBerth(server);
    const results = parse(await readFile(join(directory, 'results.yaml'), 'utf8')) as Results;
    const junit = await readFile(join(directory, 'junit.xml'), 'utf8');
    const cases = [...junit.matchAll(/<testcase name="([^"]*)"[^>]*status="([^"]*)"/g)];
    const named = (...statuses: string[]): string[] =>
      cases.filter(([, , status = '']) => statuses.includes(status)).map(([, name = '']) => name);
    const skipped = named('skipped');
    const failed = cases
      .map(([, name = '']) => name)
      .filter((name) => !named('passed', 'skipped').includes(name));
    return { title, results, code, checks: cases.length, failed, skipped };
  }
});

/** Makes what the suite needs to be there. Returns what it logs in with. */
async function prepare(server: BerthServer): Promise<Environment> {
  const admin = await readAdmin(server.data);
  // As in ECR, mounts are an account's choice.
  const mounting = { name: 'BLOB_MOUNTING', value: 'ENABLED' };
  const { status, text } = await callEcr(server, admin, 'PutAccountSetting', mounting);
  assert.equal(status, 200, text);
  for (const name of ['one', 'two']) await createRepository(server, admin, `suite/${name}`);
  return { OCI_USERNAME: 'AWS', OCI_PASSWORD: await registryPassword(server, admin) };
}

function render(runs: readonly Run[]): string {
  const table = (title: string, of: (results: Results) => Readonly<Record<string, string>>): string[] => {
    const names = [...new Set(runs.flatMap(({ results }) => Object.keys(of(results))))].sort();
    return [
      `| ${title} |${runs.map((run) => ` ${run.title} |`).join('')}`,
      `|---|${runs.map(() => '---|').join('')}`,
      ...names.map(
        (name) => `| ${name} |${runs.map(({ results }) => ` ${of(results)[name] ?? '–'} |`).join('')}`,
      ),
      '',
    ];
  };
  return [
    '# OCI conformance',
    '',
    'What the conformance suite of the [OCI distribution specification](https://github.com/opencontainers/distribution-spec)',
    'says of Berth, by the released specification (1.1) and by the coming one (dev). `test/clients/conformance.test.ts` builds the',
    'suite from its Go module, runs it with every workflow and every kind of data on against fresh servers, and fails when',
    'anything fails, anything else is skipped, or what it says differs from this page.',
    '',
    'Amazon ECR refuses sparse manifests, which name members or layers that were not pushed, and so does Berth as it comes; the',
    'suite, too, has them off by default. The last run has them on, against a server with `sparse-manifests: all` (ADR 0006).',
    '',
    'Up to four checks are skipped: where the members of an index have one tag each, the suite may delete such a tag first. In ECR the last',
    'tag takes the image with it, and a member of an index cannot be deleted, so the answer is 405 (ADR 0006).',
    '',
    ...table('workflow', ({ apis }) => apis),
    ...table('data', ({ data }) => data),
  ].join('\n');
}
