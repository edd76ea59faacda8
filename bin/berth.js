#!/usr/bin/env node
import { fileURLToPath } from 'node:url';
import { run } from './run.js';

// WHY: garbage of requests dies young; a small nursery keeps the server's memory small (docs/performance.md).
run([
  '--max-semi-space-size=4',
  fileURLToPath(new URL('../src/main.ts', import.meta.url)),
  ...process.argv.slice(2),
]);
