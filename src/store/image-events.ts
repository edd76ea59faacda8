/** What is told of images: events in the transactions that change them, and pulls, which are noted in batches. */
import { imageAction } from '../domain/events.ts';
import type { RepositoryAddress } from '../domain/names.ts';
import { recordEvent, recordEvents } from './events.ts';
import type { PutImageRow } from './images.ts';
import type { Tx } from './transaction.ts';

/** One event for each tag that was set, or one for an image that came without. A repeated push is no news. */
export async function recordPush(
  tx: Tx,
  { repository, now, digest, mediaType, artifactType }: PutImageRow,
  region: string,
  added: boolean,
  tagged: readonly string[],
): Promise<void> {
  const tags = tagged.length === 0 && added ? [undefined] : tagged;
  const address = { ...repository, region };
  await recordEvents(
    tx,
    tags.map((tag) => imageAction(address, now, 'PUSH', { digest, tag, mediaType, artifactType })),
  );
}

/** What one of the ids asked for came to. */
export interface Deletion {
  readonly ids: readonly { readonly imageDigest: string; readonly imageTag?: string }[];
  readonly mediaType: string;
  readonly artifactType: string | null;
}

/** One event for each id the answer names. */
export async function recordDeletion(
  tx: Tx,
  repository: RepositoryAddress,
  now: number,
  { ids, mediaType, artifactType }: Deletion,
): Promise<void> {
  await recordEvents(
    tx,
    ids.map(({ imageDigest: digest, imageTag: tag }) =>
      imageAction(repository, now, 'DELETE', { digest, tag, mediaType, artifactType }),
    ),
  );
}

export interface RecordPullsInput {
  readonly pulls: readonly PullRow[];
  /** an event for each pull as well */
  readonly events: boolean;
}

interface PullRow {
  readonly repositoryId: string;
  readonly digest: string;
  readonly at: number;
}

/** Moves pull times forward; images that are gone are passed over. */
export async function recordPulls(tx: Tx, { pulls, events }: RecordPullsInput): Promise<void> {
  for (const pull of pulls) {
    const { repositoryId, digest, at } = pull;
    if (events) await recordPullEvent(tx, pull);
    await tx
      .updateTable('image')
      .set({ last_pulled_at: at })
      .where('repository_id', '=', repositoryId)
      .where('digest', '=', digest)
      .where((q) => q.or([q('last_pulled_at', 'is', null), q('last_pulled_at', '<', at)]))
      .execute();
  }
}

async function recordPullEvent(tx: Tx, { repositoryId, digest, at }: PullRow): Promise<void> {
  const image = await tx
    .selectFrom('image as i')
    .innerJoin('repository as r', 'r.id', 'i.repository_id')
    .select(['r.account', 'r.region', 'r.name', 'i.media_type', 'i.artifact_type'])
    .where('i.repository_id', '=', repositoryId)
    .where('i.digest', '=', digest)
    .executeTakeFirst();
  if (image === undefined) return;
  const { media_type: mediaType, artifact_type: artifactType } = image;
  await recordEvent(tx, imageAction(image, at, 'PULL', { digest, mediaType, artifactType }));
}
