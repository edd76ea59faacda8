/**
 * `npm test`: format, lint, types, generated files, then every test; the last line is `N passed, N failed`, where each of
 * the steps counts as one. `npm test -- <text>...` runs only the test files whose path contains one of the texts (a glob
 * works too), and none of the steps. Exit code 1 when anything failed.
 */
import { spawn } from 'node:child_process';
import { existsSync, globSync } from 'node:fs';
import { delimiter, dirname, join, matchesGlob } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { COUNTS_MARK, type Counts } from '../test/reporter.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
/** Long suites, each in a process of its own, after everything else. */
const LONG = ['test/crash', 'test/clients'];
/** A suite that hangs must not hang the machine that runs it. */
const SUITE_MS = 30 * 60_000;

const STEPS: readonly {
  readonly name: string;
  readonly command: readonly string[];
  readonly needs?: string;
}[] = [
  { name: 'format', command: ['oxfmt', '--check'] },
  {
    name: 'lint',
    command: ['oxlint', '--type-aware', '--deny-warnings', 'src', 'test', 'scripts', 'bench'],
  },
  { name: 'types', command: ['tsc'] },
  {
    name: 'docs/compatibility.md is current',
    command: ['node', 'scripts/generate-compatibility.ts', '--check'],
    needs: 'scripts/generate-compatibility.ts',
  },
  {
    name: 'docs/operations/settings.md is current',
    command: ['node', 'scripts/generate-settings.ts', '--check'],
  },
];

// WHY: the steps' programs start with `env node`; they get the Node.js that runs this, not an older one of the machine
const env = {
  ...process.env,
  PATH: [dirname(process.execPath), join(ROOT, 'node_modules', '.bin'), process.env['PATH'] ?? ''].join(
    delimiter,
  ),
};

const totals: Counts = { passed: 0, failed: 0, skipped: 0 };
const patterns = process.argv.slice(2);
if (patterns.length === 0) for (const step of STEPS) add(await runStep(step));
const files = findTests(patterns);
const short = files.filter((file) => !LONG.some((folder) => file.startsWith(`${folder}/`)));
if (short.length > 0) add(await runTests(short));
for (const folder of LONG) {
  const long = files.filter((file) => file.startsWith(`${folder}/`));
  if (long.length > 0) add(await runTests(long));
}
if (files.length === 0) {
  print(`no test file matches ${patterns.join(' ')}`);
  totals.failed += 1;
}
const { passed, failed, skipped } = totals;
print(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
process.exitCode = failed > 0 ? 1 : 0;

function findTests(wanted: readonly string[]): string[] {
  const all = globSync(['src/**/*.test.ts', 'test/**/*.test.ts'], { cwd: ROOT }).sort();
  if (wanted.length === 0) return all;
  return all.filter((file) => wanted.some((text) => file.includes(text) || matchesGlob(file, text)));
}

async function runStep({ name, command, needs }: (typeof STEPS)[number]): Promise<Counts> {
  if (needs !== undefined && !existsSync(join(ROOT, needs))) return { passed: 0, failed: 0, skipped: 0 };
  const lines: string[] = [];
  const started = performance.now();
  const code = await runProgram(command, (line) => lines.push(line));
  const ok = code === 0;
  if (!ok) for (const line of lines) print(`    ${line}`);
  print(`${ok ? '✓' : '✗'} ${name} (${Math.round(performance.now() - started)} ms)`);
  return { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 };
}

async function runTests(paths: readonly string[]): Promise<Counts> {
  let counts: Counts | undefined;
  const options = ['--test', '--test-isolation=none', '--test-reporter=./test/reporter.ts'];
  const code = await runProgram(['node', ...options, ...paths], (line) => {
    if (line.startsWith(COUNTS_MARK)) counts = JSON.parse(line.slice(COUNTS_MARK.length)) as Counts;
    else print(line);
  });
  if (counts === undefined) {
    print(`  FAILED the test process ended early (${code}): ${paths.join(' ')}`);
    return { passed: 0, failed: 1, skipped: 0 };
  }
  if (code !== 0 && counts.failed === 0) {
    print(`  FAILED the test process ended with ${code}`);
    counts.failed = 1;
  }
  return counts;
}

/** The exit code, or the signal's name. Both outputs arrive line by line. */
async function runProgram(
  [program = '', ...args]: readonly string[],
  onLine: (line: string) => void,
): Promise<number | string> {
  const child = spawn(program, args, { cwd: ROOT, env, stdio: ['ignore', 'pipe', 'pipe'] });
  const end = (): void => void child.kill('SIGTERM');
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, end);
  const timer = setTimeout(() => {
    onLine(`    ${program} did not end within ${SUITE_MS / 60_000} minutes`);
    end();
  }, SUITE_MS);
  const read = (stream: NodeJS.ReadableStream): Promise<void> =>
    new Promise((resolve) => {
      createInterface({ input: stream }).on('line', onLine).on('close', resolve);
    });
  const outputs = [read(child.stdout), read(child.stderr)];
  const code = await new Promise<number | string>((resolve) => {
    child.on('error', (error) => {
      onLine(`    ${error.message}`);
      resolve(127);
    });
    child.on('exit', (exit, signal) => resolve(exit ?? signal ?? 1));
  });
  clearTimeout(timer);
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.off(signal, end);
  await Promise.all(outputs);
  return code;
}

function add(counts: Counts): void {
  totals.passed += counts.passed;
  totals.failed += counts.failed;
  totals.skipped += counts.skipped;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
