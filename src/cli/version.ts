import { readFileSync } from 'node:fs';
import type { Surroundings } from './cli.ts';

/** The version in package.json. */
export function packageVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

export function version({ stdout }: Surroundings, json: boolean): void {
  const versions = {
    berth: packageVersion(),
    node: process.versions.node,
    sqlite: process.versions['sqlite'],
  };
  stdout.write(json ? `${JSON.stringify(versions)}\n` : `berth ${versions.berth}\n`);
}
