/**
 * What overload does to a server as it ships.
 *
 *   node bin/run.js bench/overload.ts [seconds] [MiB of a transfer, 0 for none] [workers]
 *
 * First lists of tags from 8 connections, then from many more than it can serve (wrk; answers refused are not counted), then
 * 64 uploads and 64 downloads at once and the most memory the server ever had.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  basic,
  createRepository,
  makePlace,
  ok,
  readAdmin,
  readMemory,
  registryPassword,
  startBerth,
  stopBerth,
} from '../test/clients/harness.ts';
import { transferAtOnce } from '../test/clients/transfers.ts';

const UNLOADED = 8;
/** many times the connections that keep every thread busy, which are 8 already when none waits for anything but the answer */
const OVERLOADED = [128, 512];

const [seconds = '10', mebibytes = '1024', workers = '1'] = process.argv.slice(2);

/**
 * Refusals are told after a second at the least, and wrk leaves answers that took longer than its timeout out of its latencies:
 * what it says is about the accepted ones. Of those that took longer too there is a count.
 */
const SCRIPT = `
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) accepted = 0; refused = 0 end
function response(status) if status == 200 then accepted = accepted + 1 else refused = refused + 1 end end
function done(summary, latency)
  local a, r = 0, 0
  for _, t in ipairs(threads) do a = a + t:get("accepted"); r = r + t:get("refused") end
  io.write(string.format("RESULT %d %d %d %.3f %.3f\\n", a, r, summary.errors.timeout - r,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end`;

const place = await makePlace('overload');
const server = await startBerth({
  data: join(place.directory, 'data'),
  asShipped: true,
  flags: ['--workers', workers],
});
try {
  const admin = await readAdmin(server.data);
  await createRepository(server, admin, 'many');
  const authorization = basic(await registryPassword(server, admin));
  const script = join(place.directory, 'overload.lua');
  await writeFile(script, SCRIPT);
  const load = async (connections: number): Promise<number> => {
    const url = `${server.endpoint}/v2/many/tags/list`;
    const flags = ['-t2', `-c${connections}`, `-d${seconds}s`, '--timeout', '1s', '--latency', '-s', script];
    const output = await ok(['wrk', ...flags, '-H', `Authorization: ${authorization}`, url], {
      environment: place.environment,
    });
    const [, accepted, refused, late, p50, p99] = /RESULT (\d+) (\d+) (\S+) (\S+) (\S+)/.exec(output) ?? [];
    process.stdout.write(
      `${connections} connections: ${accepted} accepted, ${late} of them after a second, ${refused} refused, ` +
        `accepted p50 ${p50} ms, p99 ${p99} ms\n`,
    );
    return Number(p99);
  };
  await load(UNLOADED);
  const unloaded = await load(UNLOADED);
  for (const connections of OVERLOADED) {
    const overloaded = await load(connections);
    process.stdout.write(`p99 overloaded to unloaded: ${(overloaded / unloaded).toFixed(2)}\n`);
  }
  if (mebibytes !== '0') {
    await transferAtOnce(
      { endpoint: server.endpoint, name: 'many', authorization },
      64,
      Number(mebibytes) << 20,
    );
    const peak = (await readMemory(server.pid, 'VmHWM')) / 1024;
    process.stdout.write(`64 uploads and 64 downloads of ${mebibytes} MiB at once: ${peak.toFixed(0)} MiB\n`);
  }
  await stopBerth(server);
} finally {
  await server.stop('SIGKILL');
  await place.remove();
}
