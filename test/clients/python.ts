import { spawnSync } from 'node:child_process';
import { findProgram } from './harness.ts';

/** The first interpreter that has boto3: the one on the path, or the system's own, for which Debian packages it. */
export function findPython(): string | undefined {
  const candidates = [findProgram('python3'), '/usr/bin/python3'].filter((path) => path !== undefined);
  return candidates.find((path) => spawnSync(path, ['-c', 'import boto3'], { stdio: 'ignore' }).status === 0);
}
