/** The test's side of fault-layer.c: builds it, arms it, and takes back what was not synced when the process died. */
import { execFile } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { mkdir, mkdtemp, realpath, rm } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { missing, type Environment } from '../clients/harness.ts';

export const missingCompiler = missing('cc');

const SOURCES = ['fault-layer.c', 'fault-refused.c'].map((name) =>
  fileURLToPath(new URL(name, import.meta.url)),
);

/** Offsets in `control`, as in fault-layer.c. */
const STEPS_AT = 0;
const KILL_AT = 8;
const RULES_AT = 64;
const RULE_BYTES = 128;
const RULES = 4;
const CONTROL_BYTES = RULES_AT + RULES * RULE_BYTES;

const OPERATIONS = { open: 1, write: 2, sync: 4, truncate: 8, entry: 16, read: 32 } as const;

/** Calls that are to fail: these operations on paths with `path` in them, `times` times or until the rules are lifted. */
export interface FaultRule {
  readonly operations: readonly (keyof typeof OPERATIONS)[];
  readonly error: 'EIO' | 'ENOSPC' | 'EROFS' | 'EACCES';
  readonly path?: string;
  readonly times?: number;
}

export interface FaultLayer {
  /** What the process below the layer needs in its environment. */
  readonly environment: Environment;
  /** Where records of what is not synced lie. */
  readonly area: string;
  /** Steps since {@link arm}. */
  steps(): number;
  /** Counts from 0 again; the process dies before or after that step, or never. */
  arm(step: number | undefined, side?: 'before' | 'after'): void;
  /** Replaces the rules. */
  impose(...rules: readonly FaultRule[]): void;
  /** How often calls failed by the rule of this number. */
  hits(rule: number): number;
  remove(): Promise<void>;
}

/** A layer over the files below `root`, on the same file system as the temporary directory. */
export async function layFaults(root: string): Promise<FaultLayer> {
  const area = await mkdtemp(join(tmpdir(), 'berth-faults-'));
  await mkdir(join(area, 'saved'));
  const library = join(area, 'fault-layer.so');
  const flags = ['-O2', '-shared', '-fPIC', '-fvisibility=hidden'];
  await promisify(execFile)('cc', [...flags, '-o', library, ...SOURCES, '-ldl', '-lpthread']);
  await mkdir(root, { recursive: true, mode: 0o700 });
  const fd = openSync(join(area, 'control'), 'wx+', 0o600);
  ftruncateSync(fd, CONTROL_BYTES);
  const put = (bytes: Buffer, at: number): void => void writeSync(fd, bytes, 0, bytes.length, at);
  const get = (at: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    readSync(fd, bytes, 0, length, at);
    return bytes;
  };
  return {
    area,
    environment: {
      LD_PRELOAD: library,
      FAULT_ROOT: await realpath(root),
      FAULT_AREA: area,
      // WHY: a ring of requests would pass by the calls of libc
      UV_USE_IO_URING: '0',
    },
    steps: () => Number(get(STEPS_AT, 8).readBigUInt64LE()),
    arm(step, side = 'before') {
      const bytes = Buffer.alloc(12);
      bytes.writeUInt32LE(side === 'after' ? 1 : 0, 8);
      put(bytes, KILL_AT);
      put(Buffer.alloc(8), STEPS_AT);
      bytes.writeBigUInt64LE(BigInt(step ?? 0));
      put(bytes, KILL_AT);
    },
    impose(...rules) {
      for (let number = 0; number < RULES; number++) {
        const rule = rules[number];
        const bytes = Buffer.alloc(RULE_BYTES);
        if (rule !== undefined) {
          bytes.writeUInt32LE(rule.operations.reduce((all, name) => all | OPERATIONS[name], 0));
          bytes.writeInt32LE(constants.errno[rule.error], 4);
          bytes.writeInt32LE(rule.times ?? -1, 8);
          bytes.write(rule.path ?? '', 16);
        }
        put(bytes, RULES_AT + number * RULE_BYTES);
      }
    },
    hits: (rule) => get(RULES_AT + rule * RULE_BYTES + 12, 4).readUInt32LE(),
    async remove() {
      closeSync(fd);
      await rm(area, { recursive: true, force: true });
    },
  };
}
