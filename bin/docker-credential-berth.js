#!/usr/bin/env node
// Docker's credential helper: `{"credHelpers": {"<registry host>": "berth"}}` in ~/.docker/config.json.
import { fileURLToPath } from 'node:url';
import { run } from './run.js';

const main = fileURLToPath(new URL('../src/main.ts', import.meta.url));
run([main, 'docker-credential', ...process.argv.slice(2)]);
