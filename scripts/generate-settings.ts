/**
 * Writes docs/operations/settings.md from the table of settings.
 *
 *   node bin/run.js scripts/generate-settings.ts [--check]
 *
 * With `--check` nothing is written and the exit status is 1 when the committed page is not current.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { SETTINGS } from '../src/config.ts';

interface DocumentedSetting {
  readonly help: string;
  readonly value?: string;
  readonly fallback: string;
  readonly secret?: true;
}

const INTRODUCTION = `# Settings

Generated from \`SETTINGS\` in \`src/config.ts\` by \`scripts/generate-settings.ts\`. Do not edit.

A setting is taken from the first of these that has it:

1. the flag \`--key value\` of \`berth serve\` (a secret has no flag: command lines can be seen by others)
2. the environment variable \`BERTH_KEY\`, in capitals with underscores; for a secret also \`BERTH_KEY_FILE\`, the path of a file
   that holds it
3. the YAML file that \`--config\` or \`BERTH_CONFIG\` names, with lines \`key: value\`
4. its default

An unknown key or a bad value stops the start and is named. Times are milliseconds.

`;

/** The page: a table, and below it what each setting does. */
export function renderSettings(settings: Readonly<Record<string, DocumentedSetting>>): string {
  const rows = Object.entries(settings).map(([key, setting]) => {
    const cells = [
      `\`${key}\``,
      setting.value === undefined ? 'true, false' : escapeCell(setting.value),
      setting.fallback === '' ? '' : `\`${escapeCell(setting.fallback)}\``,
      setting.secret === true ? 'yes' : '',
      escapeCell(setting.help),
    ];
    return `| ${cells.join(' | ')} |\n`;
  });
  return `${INTRODUCTION}| setting | value | default | secret | what it is |\n|---|---|---|---|---|\n${rows.join('')}`;
}

function escapeCell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}

function main(): void {
  const path = join(import.meta.dirname, '../docs/operations/settings.md');
  const page = renderSettings(SETTINGS);
  if (!process.argv.includes('--check')) writeFileSync(path, page);
  else if (!existsSync(path) || readFileSync(path, 'utf8') !== page) {
    process.stderr.write('docs/operations/settings.md is not current: run npm run docs\n');
    process.exitCode = 1;
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();
