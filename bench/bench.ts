/**
 * `npm run bench`: Berth beside Debian's docker-registry, in one run on one machine, with rounds that alternate between
 * the two. Prints a table with the ratios of the budget and writes all samples to `.bench/`. `--quick` is a short run
 * that shows whether everything works; `--rows text` runs only rows whose name contains it
 * (otherwise the decisions of the policy engine follow, bench/decisions.ts); `--peers` adds Distribution 3,
 * built by Go the first time.
 *
 * Berth authenticates and authorises every request and encrypts at rest; docker-registry does neither.
 */
import { createHash } from 'node:crypto';
import { mkdir, open, rm, writeFile } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { makePlace, missing, ok, readMemory, ROOT, run, type Environment } from '../test/clients/harness.ts';
import { digestOf, makeImage, OCI_MANIFEST, seededBytes } from '../test/clients/image.ts';
import { abHead, CONNECTIONS, curlGet, curlPut, measure, wrk, type Sample } from './load.ts';
import {
  headersOf,
  openBerth,
  openDistribution,
  openDockerRegistry,
  pushBlob,
  pushManifest,
  startUpload,
  type Target,
} from './targets.ts';

const DECISIONS = join(ROOT, 'bench', 'decisions.ts');
const MIB = 1024 * 1024;
const quick = process.argv.includes('--quick');
const peers = process.argv.includes('--peers');
const only = process.argv[process.argv.indexOf('--rows') + 1];
const wanted = process.argv.includes('--rows') ? only : undefined;
const ROUNDS = quick ? 1 : 3;
const SECONDS = quick ? 2 : 8;
const TRIES = quick ? 1 : 3;
const FOREIGN_MAX = 0.1;
const BIG_BYTES = (quick ? 64 : 512) * MIB;
const SMALL_BYTES = 64 * 1024;
const REPOSITORY = 'bench/small';
/** Connections that leave the machine room for something else. */
const FEW = 4;
/** Tags that manifest PUTs move from one manifest to another, for each thread of the load. */
const TAGS = 500;

interface Row {
  readonly name: string;
  readonly unit: 'req/s' | 'MB/s';
  /** how many times docker-registry's rate the budget asks for */
  readonly budget: number | undefined;
  readonly cpuBudgetUs?: number;
  /** for the slowest of a hundred requests */
  readonly p99BudgetMs?: number;
  run(target: Target, round: number): Promise<Sample>;
}

interface Content {
  readonly manifest: Buffer;
  readonly smallDigest: string;
  readonly bigFiles: readonly { readonly file: string; readonly digest: string }[];
  readonly script: string;
}

interface Result {
  readonly row: Row;
  readonly samples: Readonly<Record<Target['name'], Sample[]>>;
}

const reason = missing('wrk', 'ab', 'curl', 'docker-registry');
if (reason === false) await main();
else {
  process.stderr.write(`bench: ${reason}\n`);
  process.exitCode = 1;
}

async function main(): Promise<void> {
  const place = await makePlace('bench');
  const targets: Target[] = [];
  try {
    targets.push(await openBerth(place.directory, place.environment));
    targets.push(await openDockerRegistry(place.directory, place.environment));
    const third = peers ? await openDistribution(place.directory, place.environment) : undefined;
    if (third !== undefined) targets.push(third);
    const content = await makeContent(place.directory);
    for (const target of targets) await populate(target, content);
    const idle = await memoryOf(targets, 'VmRSS');
    const rows = makeRows(content, place.environment).filter(
      ({ name }) => wanted === undefined || name.includes(wanted),
    );
    const results: Result[] = [];
    for (const row of rows) {
      results.push(await runRow(row, targets));
      print(formatRow(results.at(-1) as Result));
    }
    const peak = await memoryOf(targets, 'VmHWM');
    await report(targets, results, { idle, peak });
    // WHY a process of its own: it measures the engine alone, with nothing else in the heap.
    if (wanted === undefined) print(`\n${await ok([process.execPath, DECISIONS], place)}`);
  } finally {
    for (const target of targets) await target.stop();
    await place.remove();
  }
}

async function makeContent(directory: string): Promise<Content> {
  const image = makeImage('bench', [4096, 1 << 20]);
  const bigFiles = [];
  for (let round = 0; round < ROUNDS * 2; round++) bigFiles.push(await makeBigFile(directory, round));
  const script = join(directory, 'manifests.lua');
  await writeFile(script, manifestScript(image.bytes));
  const smallDigest = digestOf(seededBytes('bench small', SMALL_BYTES));
  return { manifest: image.bytes, smallDigest, bigFiles, script };
}

async function makeBigFile(directory: string, round: number): Promise<{ file: string; digest: string }> {
  const file = join(directory, `big-${round}`);
  const block = seededBytes(`big ${round}`, 8 * MIB);
  const hash = createHash('sha256');
  const handle = await open(file, 'w');
  for (let at = 0; at < BIG_BYTES; at += block.length) {
    block.writeUInt32LE(at / MIB);
    hash.update(block);
    await handle.write(block);
  }
  await handle.close();
  return { file, digest: `sha256:${hash.digest('hex')}` };
}

/** Every request moves a tag to the other one of two manifests, so that none is a repetition. */
function manifestScript(manifest: Buffer): string {
  const bodies = ['a', 'b'].map((value) =>
    JSON.stringify({ ...(JSON.parse(manifest.toString()) as object), annotations: { bench: value } }),
  );
  return `local bodies = { [==[${bodies[0]}]==], [==[${bodies[1]}]==] }
local number, threads = 0, 0
function setup(thread) thread:set("id", threads); threads = threads + 1 end
function request()
  number = number + 1
  wrk.headers["Content-Type"] = "${OCI_MANIFEST}"
  local path = "/v2/${REPOSITORY}/manifests/t" .. id .. "-" .. number % ${TAGS}
  return wrk.format("PUT", path, nil, bodies[math.floor(number / ${TAGS}) % 2 + 1])
end
`;
}

async function populate(target: Target, content: Content): Promise<void> {
  await target.createRepository(REPOSITORY);
  const image = makeImage('bench', [4096, 1 << 20]);
  for (const piece of [...image.layers, image.config]) await pushBlob(target, REPOSITORY, piece);
  await pushManifest(target, REPOSITORY, 'latest', content.manifest);
  const bytes = seededBytes('bench small', SMALL_BYTES);
  const small = { mediaType: '', digest: content.smallDigest, size: SMALL_BYTES, bytes };
  await pushBlob(target, REPOSITORY, small);
  // WHY an image of it: ECR gives out only content that an image refers to
  const manifest = JSON.parse(content.manifest.toString()) as { layers: object[] };
  const layers = [...manifest.layers, { ...manifest.layers[0], digest: small.digest, size: small.size }];
  await pushManifest(target, REPOSITORY, 'with-small', Buffer.from(JSON.stringify({ ...manifest, layers })));
}

function makeRows(content: Content, environment: Environment): Row[] {
  const options = (target: Target, headers: Readonly<Record<string, string>> = {}) => ({
    environment,
    headers: { ...headersOf(target), ...headers },
    seconds: SECONDS,
  });
  const at = (target: Target, path: string): string => `${target.url}/v2/${REPOSITORY}/${path}`;
  const accept = { accept: OCI_MANIFEST };
  const put = async (target: Target, number: number, sync: boolean): Promise<Sample> => {
    const { file, digest } = content.bigFiles[number] ?? { file: '', digest: '' };
    const repository = `bench/big-${number}`;
    // a try after the first finds it there
    await target.createRepository(repository).catch(() => undefined);
    const url = await startUpload(target, repository);
    url.searchParams.set('digest', digest);
    // WHY before as well: what others left unwritten must not be counted
    await run(['sync', '--file-system', target.directory], { environment });
    return measure(target.pid, () =>
      curlPut(url.href, file, BIG_BYTES, options(target), sync ? target.directory : undefined),
    );
  };
  const mebibytes = `${BIG_BYTES / MIB} MiB`;
  return [
    {
      name: `manifest GET by tag, ${CONNECTIONS} connections`,
      unit: 'req/s',
      budget: 10,
      cpuBudgetUs: 60,
      run: (target) =>
        measure(target.pid, () => wrk(at(target, 'manifests/latest'), options(target, accept))),
    },
    {
      name: `manifest HEAD by tag, ${CONNECTIONS} connections`,
      unit: 'req/s',
      budget: 10,
      cpuBudgetUs: 60,
      run: (target) =>
        measure(target.pid, () => abHead(at(target, 'manifests/latest'), options(target, accept))),
    },
    {
      name: `64 KiB blob GET, ${CONNECTIONS} connections`,
      unit: 'req/s',
      budget: 5,
      run: (target) =>
        measure(target.pid, () => wrk(at(target, `blobs/${content.smallDigest}`), options(target))),
    },
    {
      name: `manifest PUT durable, ${CONNECTIONS} connections`,
      unit: 'req/s',
      budget: 3,
      run: (target) =>
        measure(target.pid, () => wrk(at(target, 'manifests/'), options(target), content.script)),
    },
    {
      name: `${mebibytes} blob PUT and sync`,
      unit: 'MB/s',
      budget: 2,
      run: (target, round) => put(target, round, true),
    },
    {
      name: `${mebibytes} blob PUT as answered`,
      unit: 'MB/s',
      budget: undefined,
      run: (target, round) => put(target, ROUNDS + round, false),
    },
    {
      name: `manifest GET by tag, ${FEW} connections, while four ${mebibytes} uploads run`,
      unit: 'req/s',
      budget: undefined,
      p99BudgetMs: 20,
      async run(target, round) {
        const uploads = content.bigFiles.slice(0, 4).map(async ({ file, digest }, i) => {
          const repository = `bench/beside-${round}-${i}`;
          await target.createRepository(repository).catch(() => undefined);
          const url = await startUpload(target, repository);
          url.searchParams.set('digest', digest);
          return curlPut(url.href, file, BIG_BYTES, options(target), undefined);
        });
        const load = { ...options(target, accept), connections: FEW, seconds: Math.min(SECONDS, 4) };
        const sample = await measure(target.pid, () => wrk(at(target, 'manifests/latest'), load));
        await Promise.all(uploads);
        return sample;
      },
    },
    {
      name: `${mebibytes} blob GET`,
      unit: 'MB/s',
      budget: 1,
      async run(target, round) {
        const { digest } = content.bigFiles[round] ?? { digest: '' };
        const url = `${target.url}/v2/bench/big-${round}/blobs/${digest}`;
        return measure(target.pid, () => curlGet(url, BIG_BYTES, options(target)));
      },
    },
  ];
}

async function runRow(row: Row, targets: readonly Target[]): Promise<Result> {
  const samples: Result['samples'] = { berth: [], 'docker-registry': [], distribution: [] };
  for (let round = 0; round < ROUNDS; round++) {
    for (const target of round % 2 === 0 ? targets : targets.toReversed())
      samples[target.name].push(await quietest(() => row.run(target, round)));
  }
  return { row, samples };
}

/** Tries again while other processes take the machine; the least disturbed try counts. */
async function quietest(take: () => Promise<Sample>): Promise<Sample> {
  let best = await take();
  for (let tries = 1; tries < TRIES && best.foreign > FOREIGN_MAX; tries++) {
    const next = await take();
    if (next.foreign < best.foreign) best = next;
  }
  return best;
}

/** The sample in the middle by rate. */
function median(samples: readonly Sample[]): Sample {
  const sorted = samples.toSorted((a, b) => a.rate - b.rate);
  return sorted[Math.floor(sorted.length / 2)] as Sample;
}

function formatRate(rate: number, unit: Row['unit']): string {
  return unit === 'MB/s' ? (rate / 1e6).toFixed(0) : rate.toFixed(0);
}

function formatRow({ row, samples }: Result): string {
  const berth = median(samples.berth);
  const other = median(samples['docker-registry']);
  const ratio = berth.rate / other.rate;
  const per = row.unit === 'MB/s' ? 'µs/MiB' : 'µs';
  const checks: string[] = [];
  if (row.budget !== undefined) checks.push(`≥ ${row.budget}× ${ratio >= row.budget ? 'met' : 'MISSED'}`);
  if (row.cpuBudgetUs !== undefined)
    checks.push(`≤ ${row.cpuBudgetUs} µs CPU ${berth.cpuUs <= row.cpuBudgetUs ? 'met' : 'MISSED'}`);
  if (row.p99BudgetMs !== undefined && berth.p99Ms !== undefined)
    checks.push(
      `p99 ${berth.p99Ms.toFixed(1)} ms (${other.p99Ms?.toFixed(1)}) ≤ ${row.p99BudgetMs} ms ${berth.p99Ms <= row.p99BudgetMs ? 'met' : 'MISSED'}`,
    );
  const third = samples.distribution.length === 0 ? undefined : median(samples.distribution);
  const cells = [
    row.name,
    `${formatRate(berth.rate, row.unit)} ${row.unit}`,
    `${berth.cpuUs.toFixed(0)} ${per}`,
    `${formatRate(other.rate, row.unit)} ${row.unit}`,
    `${other.cpuUs.toFixed(0)} ${per}`,
    `${ratio.toFixed(1)}×`,
    checks.join(', ') || '–',
    ...(third === undefined
      ? []
      : [`${formatRate(third.rate, row.unit)} ${row.unit}, ${third.cpuUs.toFixed(0)} ${per}`]),
  ];
  return `| ${cells.join(' | ')} |`;
}

async function memoryOf(
  targets: readonly Target[],
  field: 'VmRSS' | 'VmHWM',
): Promise<Record<string, number>> {
  const entries = targets.map(async ({ name, pid }) => [name, await readMemory(pid, field)] as const);
  return Object.fromEntries(await Promise.all(entries));
}

async function report(
  targets: readonly Target[],
  results: readonly Result[],
  memory: { readonly idle: Record<string, number>; readonly peak: Record<string, number> },
): Promise<void> {
  const mebibytes = (kib: number | undefined): string => `${Math.round((kib ?? 0) / 1024)} MiB`;
  const foreign = Math.max(
    ...results.flatMap(({ samples }) => Object.values(samples).flat()).map((sample) => sample.foreign),
  );
  const withThird = targets.some(({ name }) => name === 'distribution');
  const versions = targets.map(({ name, version }) => `${name} ${version}`).join(', ');
  const machine = `${cpus().length} × ${cpus()[0]?.model}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, Node.js ${process.versions.node}`;
  const table = [
    `${versions}; ${machine}; ${ROUNDS} alternating rounds, median; other processes used up to ${(foreign * 100).toFixed(0)} % of the CPUs`,
    '',
    `| work | berth | CPU | docker-registry | CPU | ratio | budget |${withThird ? ' distribution |' : ''}`,
    `| --- | --- | --- | --- | --- | --- | --- |${withThird ? ' --- |' : ''}`,
    ...results.map(formatRow),
    `| memory, idle with content | ${mebibytes(memory.idle['berth'])} | | ${mebibytes(memory.idle['docker-registry'])} | | | – |${withThird ? ` ${mebibytes(memory.idle['distribution'])} |` : ''}`,
    `| memory, peak of the whole run | ${mebibytes(memory.peak['berth'])} | | ${mebibytes(memory.peak['docker-registry'])} | | | – |${withThird ? ` ${mebibytes(memory.peak['distribution'])} |` : ''}`,
  ];
  print(`\n${table.join('\n')}`);
  const directory = join(ROOT, '.bench');
  await mkdir(directory, { recursive: true });
  const at = new Date();
  const file = join(directory, `${at.toISOString().replaceAll(':', '-').slice(0, 19)}.json`);
  const rows = results.map(({ row, samples }) => ({ ...row, samples }));
  await writeFile(
    file,
    `${JSON.stringify({ at, quick, versions, machine, rounds: ROUNDS, rows, memoryKib: memory }, undefined, 1)}\n`,
  );
  await rm(join(directory, 'latest.md'), { force: true });
  await writeFile(join(directory, 'latest.md'), `${table.join('\n')}\n`);
  print(`\nall samples: ${file}`);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
