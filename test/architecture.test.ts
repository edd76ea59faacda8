/** The rules of the house that a compiler cannot check: who may import whom, and what stays out of the source. */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const SRC = fileURLToPath(new URL('../src', import.meta.url));

/** A part imports parts of its own level and below. Files at the root of src/ are parts by themselves. */
const LEVELS: Readonly<Record<string, number>> = {
  lib: 0,
  model: 0,
  domain: 1,
  policy: 1,
  http: 1,
  store: 2,
  blobs: 2,
  protocol: 2,
  jobs: 3,
  events: 3,
  registry: 4,
  identity: 4,
  metadata: 4,
  tasks: 4,
  ecr: 5,
  oci: 5,
  'server.ts': 6,
  'config.ts': 6,
  'observation.ts': 7,
  'serving.ts': 7,
  'worker.ts': 7,
  'workers.ts': 7,
  'compose.ts': 7,
  cli: 8,
  'main.ts': 9,
};

const NEVER: readonly (readonly [importer: string, imported: string])[] = [
  ['registry', 'identity'],
  ['identity', 'registry'],
  ['ecr', 'oci'],
  ['oci', 'ecr'],
  ['oci', 'store'],
  ['oci', 'blobs'],
  ['server.ts', 'config.ts'],
  ['config.ts', 'server.ts'],
];

/** Folders of files that stand by themselves; every other folder is entered through the file that bears its name. */
const OPEN_FOLDERS = new Set(['lib', 'model', 'domain']);

/** Third-party packages by the only places that may import them. */
const PACKAGES: Readonly<Record<string, readonly string[]>> = {
  kysely: ['store/'],
  pg: ['store/'],
  pino: ['lib/log.ts'],
  'prom-client': ['lib/metrics.ts'],
  commander: ['cli/'],
  yaml: ['config.ts'],
};

/** Where time, randomness and environment come from; everything else gets them as arguments. */
const OUTERMOST = ['main.ts', 'config.ts', 'compose.ts', 'worker.ts', 'cli/'];

const LINES_MAX = 600;

interface Source {
  /** below src/, with `/` */
  readonly path: string;
  /** the folder, or the file itself at the root */
  readonly part: string;
  readonly text: string;
  /** without comments and single-line strings */
  readonly code: string;
  readonly isTest: boolean;
}

const sources: readonly Source[] = globSync('**/*.ts', { cwd: SRC })
  .sort()
  .map((path) => {
    const text = readFileSync(join(SRC, path), 'utf8');
    return { path, part: partOf(path), text, code: bare(text), isTest: isTestFile(path) };
  });
const shipped = sources.filter(({ isTest }) => !isTest);

function partOf(path: string): string {
  return path.split('/')[0] ?? path;
}

/** Tests and what only tests use. */
function isTestFile(path: string): boolean {
  return /\.test\.ts$|(^|\/)(test-[\w-]+|testing)\.ts$/.test(path);
}

function bare(text: string): string {
  return text
    .replace(/'(?:[^'\\\n]|\\.)*'/g, "''")
    .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, ' '))
    .replace(/(^|\s)\/\/.*$/gm, '$1');
}

function specifiers(text: string): string[] {
  const statements = text.matchAll(/^(?:import|export)\b[^;'"]*?\bfrom\s+'([^']+)'|^import\s+'([^']+)'/gm);
  const calls = text.matchAll(/\b(?:import|require)\(\s*'([^']+)'\s*\)/g);
  const files = text.matchAll(/new URL\('(\.[^']+\.ts)',\s*import\.meta\.url\)/g);
  return [...statements, ...calls, ...files].map((match) => match[1] ?? match[2] ?? '');
}

interface Import {
  readonly from: Source;
  readonly specifier: string;
  /** path below src/ of what is imported, when it is ours */
  readonly target: string | undefined;
}

function importsOf(from: Source): Import[] {
  return specifiers(from.text).map((specifier) => ({
    from,
    specifier,
    target: specifier.startsWith('.')
      ? relative(SRC, join(SRC, dirname(from.path), specifier)).replaceAll('\\', '/')
      : undefined,
  }));
}

const imports = shipped.flatMap(importsOf);
/** Imports of another part of src/. */
const crossings = imports.flatMap(({ from, target }) =>
  target === undefined || target.startsWith('..') || partOf(target) === from.part
    ? []
    : [{ importer: from.path, from: from.part, target, to: partOf(target) }],
);

function violations(found: readonly string[]): void {
  assert.deepEqual(found, []);
}

test('the scan sees imports', () => {
  const found = specifiers(
    "import a from 'x';\nimport {\n  b,\n} from './b.ts';\nimport './c.ts';\n" +
      "export { d } from './d.ts';\nawait import('./e.ts');\nnew Worker(new URL('./f.ts', import.meta.url));\n",
  );
  assert.deepEqual(found.sort(), ['./b.ts', './c.ts', './d.ts', './e.ts', './f.ts', 'x']);
  assert.ok(imports.length > 200);
});

test('every part has a level', () => {
  violations(shipped.filter(({ part }) => LEVELS[part] === undefined).map(({ path }) => path));
});

test('lower levels do not import higher ones', () => {
  violations(
    crossings
      .filter(({ from, to }) => (LEVELS[from] ?? 0) < (LEVELS[to] ?? 0))
      .map(({ importer, target }) => `${importer} imports ${target}`),
  );
});

test('parts that must not know each other do not', () => {
  violations(
    crossings
      .filter(({ from, to }) => NEVER.some(([a, b]) => a === from && b === to))
      .map(({ importer, target }) => `${importer} imports ${target}`),
  );
});

test('a folder is entered through the file that bears its name', () => {
  violations(
    crossings
      .filter(({ to, target }) => {
        if (to.endsWith('.ts') || OPEN_FOLDERS.has(to)) return false;
        return target !== `${to}/${to}.ts`;
      })
      .map(({ importer, target }) => `${importer} imports ${target}`),
  );
});

test('nothing that ships imports a test, or leaves src/', () => {
  violations(
    imports
      .filter(({ target }) => target !== undefined && (target.startsWith('..') || isTestFile(target)))
      .map(({ from, specifier }) => `${from.path} imports ${specifier}`),
  );
});

test('third-party packages stay where a decision record put them', () => {
  const outside = imports.filter(({ from, specifier, target }) => {
    if (target !== undefined || specifier.startsWith('node:')) return false;
    const name = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
    return !(PACKAGES[name] ?? []).some((place) => from.path === place || from.path.startsWith(place));
  });
  violations(outside.map(({ from, specifier }) => `${from.path} imports ${specifier}`));
});

test('built-in modules are named node:x', () => {
  const names = new Set(builtinModules);
  violations(
    sources
      .flatMap(importsOf)
      .filter(({ specifier }) => !specifier.startsWith('node:') && names.has(specifier))
      .map(({ from, specifier }) => `${from.path} imports ${specifier}`),
  );
});

test('imports carry their extension', () => {
  violations(
    sources
      .flatMap(importsOf)
      .filter(({ specifier }) => specifier.startsWith('.') && !/\.(ts|json)$/.test(specifier))
      .map(({ from, specifier }) => `${from.path} imports ${specifier}`),
  );
});

const FORBIDDEN: readonly {
  readonly what: string;
  readonly pattern: RegExp;
  readonly where: readonly Source[];
}[] = [
  { what: 'export *', pattern: /^export\s+\*/gm, where: sources },
  { what: 'default exports', pattern: /^export\s+default\b|\bas\s+default\b/gm, where: sources },
  {
    what: 'enums',
    pattern: /^\s*(?:export\s+)?(?:declare\s+)?(?:const\s+)?enum\s+\w+\s*\{/gm,
    where: sources,
  },
  {
    what: 'time, randomness and environment below the composition root',
    pattern: /\bDate\.now\b|\bnew Date\(\s*\)|\bMath\.random\b|\bprocess\.env\b/g,
    where: shipped.filter(({ path }) => !OUTERMOST.some((place) => path === place || path.startsWith(place))),
  },
  {
    what: 'let at module level',
    pattern: /^(?:export\s+)?let\s/gm,
    where: shipped,
  },
];

for (const { what, pattern, where } of FORBIDDEN) {
  test(`no ${what}`, () => {
    violations(
      where.flatMap(({ path, code }) =>
        [...code.matchAll(pattern)].map((match) => {
          const line = code.slice(0, match.index).split('\n').length;
          return `${path}:${line}: ${match[0].trim()}`;
        }),
      ),
    );
  });
}

test('hooks around every test stay in a suite', () => {
  violations(
    globSync(['src/**/*.ts', 'test/**/*.ts'], { cwd: join(SRC, '..') })
      // WHY: all files are run in one process, and what stands at the top of one runs around the tests of all.
      .filter((path) => /^(?:beforeEach|afterEach)\(/m.test(readFileSync(join(SRC, '..', path), 'utf8'))),
  );
});

test(`no file is longer than ${LINES_MAX} lines`, () => {
  violations(
    globSync(['src/**/*.ts', 'test/**/*.ts', 'scripts/*.ts', 'bench/*.ts'], { cwd: join(SRC, '..') })
      // WHY: these are printed from the service models
      .filter((path) => !/^src\/model\/\w+-types\.ts$/.test(path))
      .map((path) => [path, readFileSync(join(SRC, '..', path), 'utf8').split('\n').length - 1] as const)
      .filter(([, lines]) => lines > LINES_MAX)
      .map(([path, lines]) => `${path}: ${lines} lines`),
  );
});
