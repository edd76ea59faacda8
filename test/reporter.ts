/**
 * Prints what `npm test` shows of a test run: one line per file, every failure in full, every skip with its reason. The
 * last line is for scripts/test.ts: the counts as JSON behind COUNTS_MARK.
 */
import { relative } from 'node:path';
import { inspect } from 'node:util';
import type { TestEvent } from 'node:test/reporters';

export const COUNTS_MARK = '#counts ';

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

interface FileResult extends Counts {
  durationMs: number;
}

async function* report(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  let result: FileResult = nothing();
  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  let current: string | undefined;
  for await (const event of events) {
    if (event.type === 'test:diagnostic' && event.data.level === 'error') yield `  ${event.data.message}\n`;
    if (event.type === 'test:stdout' || event.type === 'test:stderr') yield event.data.message;
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    const { data } = event;
    const file = relative(process.cwd(), data.file ?? '');
    if (current !== undefined && current !== file) {
      yield summarize(current, result);
      result = nothing();
    }
    current = file;
    if (data.nesting === 0) result.durationMs += data.details.duration_ms;
    const outcome = outcomeOf(event);
    if (data.details.type === 'suite' && outcome !== 'skipped' && !brokenByItself(event)) continue;
    result[outcome] += 1;
    total[outcome] += 1;
    if (outcome === 'skipped') {
      const why = typeof data.skip === 'string' && data.skip !== '' ? data.skip : 'no reason given';
      yield `  SKIPPED ${data.name}: ${why}\n`;
    }
    if (event.type === 'test:fail') {
      const at = data.line === undefined ? file : `${file}:${data.line}`;
      yield `  FAILED ${data.name} (${at})\n${indent(describe(event.data.details.error))}\n`;
    }
  }
  if (current !== undefined) yield summarize(current, result);
  yield `${COUNTS_MARK}${JSON.stringify(total)}\n`;
}

function outcomeOf(event: Extract<TestEvent, { type: 'test:pass' | 'test:fail' }>): keyof Counts {
  if (event.type === 'test:fail') return 'failed';
  return event.data.skip === undefined || event.data.skip === false ? 'passed' : 'skipped';
}

/** A suite whose hook failed is a failure of its own; one whose tests failed was counted with them. */
function brokenByItself(event: Extract<TestEvent, { type: 'test:pass' | 'test:fail' }>): boolean {
  if (event.type !== 'test:fail') return false;
  const error: unknown = event.data.details.error;
  return !(error instanceof Error && 'failureType' in error && error.failureType === 'subtestsFailed');
}

function nothing(): FileResult {
  return { passed: 0, failed: 0, skipped: 0, durationMs: 0 };
}

/** A file whose tests are in others has nothing of its own to tell. */
function summarize(file: string, { passed, failed, skipped, durationMs }: FileResult): string {
  if (passed + failed + skipped === 0) return '';
  const counts = [
    `${passed} passed`,
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(skipped > 0 ? [`${skipped} skipped`] : []),
  ];
  return `${failed > 0 ? '✗' : '✓'} ${file}: ${counts.join(', ')} (${Math.round(durationMs)} ms)\n`;
}

function describe(error: unknown): string {
  const cause = error instanceof Error && error.cause !== undefined ? error.cause : error;
  return cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause);
}

function indent(text: string): string {
  return text.replace(/^/gm, '    ');
}

// oxlint-disable-next-line import/no-default-export -- WHY: node:test takes the default export of a reporter module
export default report;
