/**
 * Registry clients that are Go programs and not in Debian: taken from `PATH`, else built through the Go module proxy, once a
 * version, into the user's cache directory. `.ci/run` makes sure that there is a `go`.
 */
import { access, mkdir, rename } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { findProgram, run } from './harness.ts';

/** Packages with their versions. What is built is named after the last part of the package's path. */
const PACKAGES = {
  conformance: 'github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111',
  cosign: 'github.com/sigstore/cosign/v2/cmd/cosign@v2.0.0',
  crane: 'github.com/google/go-containerregistry/cmd/crane@v0.22.1',
  oras: 'oras.land/oras/cmd/oras@v1.3.6',
  helm: 'helm.sh/helm/v4/cmd/helm@v4.3.1',
  registry: 'github.com/distribution/distribution/v3/cmd/registry@v3.0.0',
  regctl: 'github.com/regclient/regclient/cmd/regctl@v0.11.7',
} as const;

export type GoTool = keyof typeof PACKAGES;

/** What tests need, the longest build first; `registry` is for the benchmark only. */
export const TESTED_GO_TOOLS: readonly GoTool[] = [
  'cosign',
  'helm',
  'oras',
  'regctl',
  'crane',
  'conformance',
];

const GO_MINOR_MIN = 24;
const BUILD_MS_MAX = 15 * 60_000;

/** A program to run, or why there is none: made for the `skip` option of a test. */
export type FoundTool = { readonly path: string; readonly skip: false } | { readonly skip: string };

/** Finds the program, or builds it: some tens of seconds the first time. Throws when the build fails. */
export async function goTool(name: GoTool): Promise<FoundTool> {
  // Some have too common a name to be taken from anywhere.
  const installed = name === 'conformance' || name === 'registry' ? undefined : findProgram(name);
  if (installed !== undefined) return { path: installed, skip: false };
  const version = PACKAGES[name].slice(PACKAGES[name].indexOf('@') + 1);
  const cache = process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache');
  const directory = join(cache, 'berth', 'go-tools', version);
  const path = join(directory, name);
  if (await exists(path)) return { path, skip: false };
  const why = await missingGo();
  if (why !== undefined) return { skip: `not installed: ${name}; ${why}` };
  await build(name, directory);
  return { path, skip: false };
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch {
    return false;
  }
}

function environment(): Record<string, string> {
  const inherited = Object.entries(process.env).flatMap(([key, value]) =>
    value === undefined || key === 'GOBIN' ? [] : [[key, value] as const],
  );
  return { ...Object.fromEntries(inherited), CGO_ENABLED: '0', GOFLAGS: '-trimpath' };
}

/** Why nothing can be built here. */
async function missingGo(): Promise<string | undefined> {
  const go = findProgram('go');
  if (go === undefined) return 'no go to build it with';
  const { stdout } = await run([go, 'env', 'GOVERSION'], { environment: environment() });
  const minor = Number(/^go1\.(\d+)/.exec(stdout)?.[1] ?? 0);
  return minor >= GO_MINOR_MIN ? undefined : `go is older than 1.${GO_MINOR_MIN}: ${stdout.trim()}`;
}

async function build(name: GoTool, directory: string): Promise<void> {
  // WHY elsewhere first: what is in place is whole, also when two test runs build at once.
  const fresh = join(directory, `building-${process.pid}`);
  await mkdir(fresh, { recursive: true });
  const { code, stderr } = await run(['go', 'install', PACKAGES[name]], {
    environment: { ...environment(), GOBIN: fresh },
    timeoutMs: BUILD_MS_MAX,
  });
  if (code !== 0) throw new Error(`${name} could not be built: ${code}\n${stderr}`);
  await rename(join(fresh, name), join(directory, name));
}
