/**
 * The long soak (storm.ts). Exits with 1 on the first thing a client should not have seen.
 *
 *   npm run soak -- [--events 100000] [--seed N] [--database sqlite|postgres] [--workers 1] [--lease-ms 4000]
 */
import { parseArgs } from 'node:util';
import { soak } from './storm.ts';
import type { World } from './world.ts';

const { values } = parseArgs({
  options: {
    events: { type: 'string', default: '100000' },
    seed: { type: 'string', default: `${Math.floor(Math.random() * 1_000_000)}` },
    database: { type: 'string', default: 'sqlite' },
    workers: { type: 'string', default: '1' },
    'lease-ms': { type: 'string', default: '4000' },
  },
});
const { database } = values;
if (database !== 'sqlite' && database !== 'postgres') throw new Error(`there is no database ${database}`);

const describe = ({ stored, found, mounts, uploads, outlived }: World): string =>
  `${stored.size} images; of ${found + mounts + uploads} blobs ${found} were there, ${mounts} mounted, ${uploads} uploaded; ` +
  `${outlived} pushes outlived a lease`;

process.stdout.write(
  `${values.events} events on ${database}, workers ${values.workers}, seed ${values.seed}\n`,
);
const { seconds, world, images, blobs } = await soak({
  events: Number(values.events),
  seed: Number(values.seed),
  database,
  workers: Number(values.workers),
  leaseMs: Number(values['lease-ms']),
  onProgress: (events, progress) => process.stdout.write(`${events}: ${describe(progress)}\n`),
});
const steps = [...world.done].map(([name, count]) => `${name} ${count}`).join(', ');
process.stdout.write(
  `${steps}\n${describe(world)}\nin ${seconds.toFixed(0)} s without a failure; at the end ${images} images whole, ` +
    `${blobs} blobs and as many files, fsck clean\n`,
);
