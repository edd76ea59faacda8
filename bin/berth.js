#!/usr/bin/env node
import { fileURLToPath } from 'node:url';
import { run } from './run.js';

// WHY: garbage of requests dies young; a nursery of this size collects it cheaply and keeps the memory small (docs/adr/0003).
run([
  '--max-semi-space-size=4',
  fileURLToPath(new URL('../src/main.ts', import.meta.url)),
  ...process.argv.slice(2),
]);
