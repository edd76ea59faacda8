/** Many uploads and downloads at the same time, each by a client of its own connection. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { Agent, get, request, type IncomingMessage } from 'node:http';

const BLOCK_BYTES = 262_144;

export interface Repository {
  readonly endpoint: string;
  readonly name: string;
  readonly authorization: string;
}

/** Uploads a blob of `bytes` that no other `seed` gives, as docker does, and returns its digest. */
export async function uploadBlob(repository: Repository, seed: number, bytes: number): Promise<string> {
  const { endpoint, name, authorization } = repository;
  const agent = new Agent({ keepAlive: false });
  const headers = { authorization };
  const started = await answerTo(
    request(`${endpoint}/v2/${name}/blobs/uploads/`, { method: 'POST', headers, agent }).end(),
    202,
  );
  const upload = new URL(started.headers.location ?? '', endpoint);
  const hash = createHash('sha256');
  const sending = request(upload, { method: 'PATCH', headers, agent });
  const answered = answerTo(sending, 202);
  answered.catch(() => undefined);
  for (let at = 0; at < bytes; at += BLOCK_BYTES) {
    const block = Buffer.alloc(BLOCK_BYTES);
    block.writeDoubleLE(seed, 0);
    block.writeDoubleLE(at, 8);
    hash.update(block);
    if (!sending.write(block)) await Promise.race([once(sending, 'drain'), answered]);
  }
  sending.end();
  const closing = new URL((await answered).headers.location ?? '', endpoint);
  const digest = `sha256:${hash.digest('hex')}`;
  closing.searchParams.set('digest', digest);
  await answerTo(request(closing, { method: 'PUT', headers, agent }).end(), 201);
  return digest;
}

/** Downloads a blob and returns how many bytes came. */
export async function downloadBlob(repository: Repository, digest: string): Promise<number> {
  const { endpoint, name, authorization } = repository;
  const answer = await answerTo(
    get(`${endpoint}/v2/${name}/blobs/${digest}`, { headers: { authorization }, agent: false }),
    200,
    false,
  );
  let bytes = 0;
  answer.on('data', (chunk: Buffer) => (bytes += chunk.length));
  await once(answer, 'end');
  return bytes;
}

async function answerTo(
  sent: ReturnType<typeof request>,
  status: number,
  resume = true,
): Promise<IncomingMessage> {
  const [answer] = (await once(sent, 'response')) as [IncomingMessage];
  if (resume) answer.resume();
  assert.equal(answer.statusCode, status);
  return answer;
}

/** `count` uploads and `count` downloads of `bytes` each, all begun at once. */
export async function transferAtOnce(repository: Repository, count: number, bytes: number): Promise<void> {
  const stored = await uploadBlob(repository, -1, bytes);
  const numbers = Array.from({ length: count }, (_, i) => i);
  const sizes = await Promise.all(
    numbers.flatMap((i) => [
      uploadBlob(repository, i, bytes).then(() => bytes),
      downloadBlob(repository, stored),
    ]),
  );
  assert.deepEqual(new Set(sizes), new Set([bytes]));
}
