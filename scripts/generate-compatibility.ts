/**
 * Writes docs/compatibility.md from the operation tables: one line per operation.
 *
 *   node bin/run.js scripts/generate-compatibility.ts [--check]
 *
 * With `--check` nothing is written and the exit status is 1 when the committed page is not current.
 */
import { createSecretKey } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { createEcrOperations, createExplainLifecycle } from '../src/ecr/ecr.ts';
import { berthOperations, iamOperations, stsOperations } from '../src/identity/identity.ts';
import { berthModel, ecrModel, iamModel, stsModel, type ServiceModel } from '../src/model/service-model.ts';

export interface CompatibilityService {
  /** as users call it, e.g. `Amazon ECR` */
  readonly name: string;
  readonly model: ServiceModel;
  /** an operation table; only whether an entry is built, and what it lacks, matters here */
  readonly table: Readonly<Record<string, object>>;
}

/** The page: for every service its operations by name, built or refused with the reason, and what those that are built lack. */
export function renderCompatibility(services: readonly CompatibilityService[]): string {
  const parts = [
    '# Compatibility\n\nGenerated from the operation tables by `scripts/generate-compatibility.ts`. Do not edit.\n\n' +
      'A refused operation answers HTTP 501 with the code `OperationNotBuilt` (ECR) or `NotImplemented` (IAM, STS) and ' +
      "its reason, to authenticated callers only. Where AWS's behaviour is not documented, `docs/adr/0006-where-the-sources-disagree.md` " +
      'says what was chosen.\n',
  ];
  for (const { name, model, table } of services) {
    const names = Object.keys(model.operations).toSorted();
    const built = names.filter((operation) => reasonOf(table[operation]) === undefined);
    const { package: source, version, overlay } = model.source;
    const described =
      source === 'berth'
        ? 'written by hand in `src/model/berth.json`'
        : `as described by ${source} ${version}`;
    const rows = names.map((operation) => {
      const reason = reasonOf(table[operation]);
      const missing = reason ?? notCoveredBy(table[operation]) ?? '';
      return `| \`${operation}\` | ${reason === undefined ? 'yes' : 'no'} | ${escapeCell(missing)} |\n`;
    });
    parts.push(
      `\n## ${name}\n\nAPI version ${model.metadata.apiVersion} ${described}` +
        `${overlay === undefined ? '' : ` and \`src/model/${overlay}\``}. ${built.length} of ${names.length} ` +
        `operations.\n\n| operation | built | what is not covered |\n|---|---|---|\n${rows.join('')}`,
    );
  }
  return parts.join('');
}

/** An operation without an entry cannot be: `checkTable` refuses such a table. */
function reasonOf(entry: object | undefined): string | undefined {
  if (entry === undefined) return 'not in the operation table';
  return 'notBuilt' in entry ? String(entry.notBuilt) : undefined;
}

function notCoveredBy(entry: object | undefined): string | undefined {
  return entry !== undefined && 'notCovered' in entry ? String(entry.notCovered) : undefined;
}

function escapeCell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}

/**
 * WIRING: the only place that knows where the tables are. WHY: the services are empty: making a table does not use
 * them, only running an operation does; the key is for page tokens nobody will read.
 */
function loadServices(): readonly CompatibilityService[] {
  const ring = { derive: () => createSecretKey(Buffer.alloc(32)) };
  const store = { prepare: () => undefined };
  const services = { ring, registry: {}, store, identity: {}, blobs: {} } as never;
  return [
    { name: 'Amazon ECR', model: ecrModel, table: createEcrOperations(services) },
    { name: 'IAM', model: iamModel, table: iamOperations(services) },
    { name: 'STS', model: stsModel, table: stsOperations(services) },
    {
      name: "Berth's own",
      model: berthModel,
      table: { ...berthOperations(services), ...createExplainLifecycle(services) },
    },
  ];
}

function main(): void {
  const path = join(import.meta.dirname, '../docs/compatibility.md');
  const page = renderCompatibility(loadServices());
  if (!process.argv.includes('--check')) writeFileSync(path, page);
  else if (!existsSync(path) || readFileSync(path, 'utf8') !== page) {
    process.stderr.write('docs/compatibility.md is not current: run npm run docs\n');
    process.exitCode = 1;
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();
