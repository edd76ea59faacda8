#!/usr/bin/env node
// Runs a TypeScript entry point under the Node.js this repository pins (package.json, optionalDependencies),
// whatever Node.js started it. Plain JavaScript for Node >= 18, because it runs before the right version does.
// Usage: node bin/run.js [node options] file.ts [arguments]
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const MINIMUM = [26, 10];

function suits(version) {
  const [major, minor] = version.split('.').map(Number);
  return major > MINIMUM[0] || (major === MINIMUM[0] && minor >= MINIMUM[1]);
}

/** The path of a Node.js that is new enough: the pinned package for this platform, else the running one. */
function findNode() {
  const pinned = fileURLToPath(
    new URL(`../node_modules/node-${process.platform}-${process.arch}/bin/node`, import.meta.url),
  );
  if (existsSync(pinned)) return pinned;
  if (suits(process.versions.node)) return process.execPath;
  process.stderr.write(
    `berth needs Node.js ${MINIMUM.join('.')} or newer; this is ${process.versions.node}, and no packaged ` +
      `Node.js was found at ${pinned}. Run "npm ci" first, or install a newer Node.js.\n`,
  );
  return process.exit(1);
}

export function run(args) {
  // Flushes of files wait in libuv's pool; its default of 4 threads would let them hold up reads.
  // One arena per thread of the pool would keep memory that streams have freed; so would any arena with their large buffers.
  // Compiled sources are kept between starts: half the time until the server answers.
  const cache = fileURLToPath(new URL('../node_modules/.cache/node', import.meta.url));
  const env = {
    UV_THREADPOOL_SIZE: '16',
    MALLOC_ARENA_MAX: '2',
    MALLOC_MMAP_THRESHOLD_: '524288',
    NODE_COMPILE_CACHE: cache,
    ...process.env,
  };
  const child = spawn(findNode(), args, { stdio: 'inherit', env });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => child.kill(signal));
  }
  child.on('error', (error) => {
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  });
  child.on('exit', (code, signal) => {
    if (signal !== null) {
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    } else process.exit(code ?? 1);
  });
}

if (process.argv[1] !== undefined && fileURLToPath(import.meta.url) === process.argv[1])
  run(process.argv.slice(2));
