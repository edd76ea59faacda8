/** Many transfers at once, in bounded memory: the server as it ships. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  basic,
  createRepository,
  makePlace,
  readAdmin,
  readMemory,
  registryPassword,
  startBerth,
  stopBerth,
} from './harness.ts';
import { transferAtOnce } from './transfers.ts';

const MIB = 1_048_576;
const RSS_KIB_MAX = 300 * 1024;

describe('64 uploads and 64 downloads at once', () => {
  test('stay under 300 MiB', async () => {
    const place = await makePlace('transfers');
    const server = await startBerth({ data: `${place.directory}/data`, asShipped: true });
    try {
      const admin = await readAdmin(server.data);
      await createRepository(server, admin, 'many');
      const authorization = basic(await registryPassword(server, admin));
      const { endpoint } = server;
      await transferAtOnce({ endpoint, name: 'many', authorization }, 64, 16 * MIB);
      const peakKib = await readMemory(server.pid, 'VmHWM');

      assert.ok(peakKib < RSS_KIB_MAX, `${peakKib} KiB`);
      await stopBerth(server);
    } finally {
      await server.stop('SIGKILL');
      await place.remove();
    }
  });
});
