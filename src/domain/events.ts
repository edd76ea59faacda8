/**
 * What happened, in the words of EventBridge (ecr-api.md §25.1) and, as a second form, of CloudEvents 1.0
 * (users-and-clients.md §4.1). Pure: ids and times come in.
 */
import { repositoryArn, type RepositoryAddress } from './names.ts';

/** A record exactly as EventBridge hands it to a rule's target. */
export interface EventRecord {
  readonly version: '0';
  readonly id: string;
  readonly 'detail-type': string;
  readonly source: 'aws.ecr';
  readonly account: string;
  /** ISO 8601, to the second */
  readonly time: string;
  readonly region: string;
  readonly resources: readonly string[];
  readonly detail: EventDetail;
}

type DetailValue = string | number | readonly DetailValue[] | { readonly [name: string]: DetailValue };
/** Members with the exact names of ECR; absent ones are left out. */
export type EventDetail = { readonly [name: string]: DetailValue | undefined };

/** An event before it has an id. */
export interface NewEvent {
  readonly account: string;
  readonly region: string;
  /** the repository whose order it keeps; empty when it is about none */
  readonly repository: string;
  /** epoch milliseconds */
  readonly at: number;
  readonly detailType: string;
  readonly resources: readonly string[];
  readonly detail: EventDetail;
}

/** What an image event says of the image. */
export interface EventImage {
  readonly digest: string;
  readonly tag?: string | undefined;
  readonly mediaType?: string | undefined;
  readonly artifactType?: string | null | undefined;
}

/** PUSH and DELETE as ECR sends them; PULL is Berth's own, sent only when `pull-events` is on. */
export function imageAction(
  repository: RepositoryAddress,
  at: number,
  action: 'PUSH' | 'DELETE' | 'PULL',
  image: EventImage,
): NewEvent {
  return about(repository, at, 'ECR Image Action', [], {
    result: 'SUCCESS',
    'repository-name': repository.name,
    'image-digest': image.digest,
    'action-type': action,
    'image-tag': image.tag,
    'manifest-media-type': image.mediaType,
    'artifact-media-type': image.artifactType ?? undefined,
  });
}

/** A change of storage class; `referrer` when the image refers to another one. `activatedAt` after a restore. */
export function storageClassAction(
  repository: RepositoryAddress,
  at: number,
  image: EventImage & {
    readonly target: 'ARCHIVE' | 'STANDARD';
    readonly referrer: boolean;
    readonly activatedAt?: number | undefined;
  },
): NewEvent {
  return about(repository, at, image.referrer ? 'ECR Referrer Action' : 'ECR Image Action', [], {
    result: 'SUCCESS',
    'repository-name': repository.name,
    'image-digest': image.digest,
    'action-type': 'UPDATE_STORAGE_CLASS',
    'target-storage-class': image.target,
    'manifest-media-type': image.mediaType,
    'artifact-media-type': image.artifactType ?? undefined,
    'last-activated-at': image.activatedAt === undefined ? undefined : eventTime(image.activatedAt),
  });
}

/** A scan that ended. Severities that were not found are left out. */
export function imageScan(
  repository: RepositoryAddress,
  at: number,
  scan: {
    readonly status: 'COMPLETE' | 'FAILED';
    readonly digest: string;
    readonly tags: readonly string[];
    readonly severityCounts: Readonly<Record<string, number>>;
  },
): NewEvent {
  const found = Object.entries(scan.severityCounts).filter(([, count]) => count > 0);
  return about(repository, at, 'ECR Image Scan', [repositoryArn(repository)], {
    'scan-status': scan.status,
    'repository-name': repository.name,
    'finding-severity-counts': Object.fromEntries(found),
    'image-digest': scan.digest,
    'image-tags': scan.tags,
  });
}

export function pullThroughCacheAction(
  repository: RepositoryAddress,
  at: number,
  sync: {
    readonly status: 'SUCCESS' | 'FAILED';
    readonly prefix: string;
    readonly upstream: string;
    readonly tag?: string | undefined;
    readonly digest: string;
  },
): NewEvent {
  return about(repository, at, 'ECR Pull Through Cache Action', [repositoryArn(repository)], {
    'rule-version': '1',
    'sync-status': sync.status,
    'ecr-repository-prefix': sync.prefix,
    'repository-name': repository.name,
    'upstream-registry-url': sync.upstream,
    'image-tag': sync.tag,
    'image-digest': sync.digest,
  });
}

/** Sent where the copy arrived: `repository` is the destination. */
export function replicationAction(
  repository: RepositoryAddress,
  at: number,
  copy: {
    readonly result: 'SUCCESS' | 'FAILED';
    readonly sourceAccount: string;
    readonly sourceRegion: string;
    readonly digest: string;
    readonly tag?: string | undefined;
  },
): NewEvent {
  return about(repository, at, 'ECR Replication Action', [repositoryArn(repository)], {
    result: copy.result,
    'repository-name': repository.name,
    'image-digest': copy.digest,
    'source-account': copy.sourceAccount,
    'action-type': 'REPLICATE',
    'source-region': copy.sourceRegion,
    'image-tag': copy.tag,
  });
}

function about(
  { account, region, name }: RepositoryAddress,
  at: number,
  detailType: string,
  resources: readonly string[],
  detail: EventDetail,
): NewEvent {
  return { account, region, repository: name, at, detailType, resources, detail };
}

function eventTime(at: number): string {
  return `${new Date(at).toISOString().slice(0, 19)}Z`;
}

/** The record of an event, all but its id. */
export function recordOf(event: NewEvent): Omit<EventRecord, 'id'> {
  return {
    version: '0',
    'detail-type': event.detailType,
    source: 'aws.ecr',
    account: event.account,
    time: eventTime(event.at),
    region: event.region,
    resources: event.resources,
    detail: event.detail,
  };
}

/** A UUID that holds when the event was written and its number in the database, so that one finds the row again. */
export function eventId(at: number, number: number): string {
  const time = at.toString(16).padStart(12, '0').slice(-12);
  const digits = number.toString(16).padStart(15, '0');
  return `${time.slice(0, 8)}-${time.slice(8)}-8${digits.slice(0, 3)}-8000-${digits.slice(3)}`;
}

/** The number inside an event's id; `undefined` when the text is no such id. */
export function eventNumber(id: string): number | undefined {
  const match = /^[0-9a-f]{8}-[0-9a-f]{4}-8([0-9a-f]{3})-8000-([0-9a-f]{12})$/.exec(id);
  if (match === null) return undefined;
  const number = Number.parseInt(`${match[1]}${match[2]}`, 16);
  return Number.isSafeInteger(number) ? number : undefined;
}

export interface CloudEvent {
  readonly specversion: '1.0';
  readonly id: string;
  /** e.g. `com.amazon.ecr.image.push` */
  readonly type: string;
  readonly source: string;
  readonly subject?: string;
  readonly time: string;
  readonly datacontenttype: 'application/json';
  readonly data: { readonly [name: string]: DetailValue | undefined };
}

/** The same event as CloudEvents 1.0, structured form: what Argo CD Image Updater takes for a push. */
export function toCloudEvent(record: EventRecord): CloudEvent {
  const { detail, account, region } = record;
  const name = textOf(detail['repository-name']) ?? '';
  const tag = textOf(detail['image-tag']);
  const digest = textOf(detail['image-digest']);
  const reference = tag === undefined ? digest && `@${digest}` : `:${tag}`;
  return {
    specversion: '1.0',
    id: record.id,
    type: typeOf(record),
    source: `urn:aws:ecr:${region}:${account}:repository/${name}`,
    ...(reference !== undefined && { subject: `${name}${reference}` }),
    time: record.time,
    datacontenttype: 'application/json',
    data: { ...camelCased(detail), registryId: account },
  };
}

function textOf(value: DetailValue | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

/** `ECR Image Action` PUSH → `com.amazon.ecr.image.push`; `ECR Image Scan` → `com.amazon.ecr.image.scan`. */
function typeOf(record: EventRecord): string {
  const words = record['detail-type'].toLowerCase().split(' ').slice(1);
  const last = words.pop() ?? '';
  const action = record.detail['action-type'];
  const verb =
    last === 'action' && typeof action === 'string' ? action.toLowerCase().replaceAll('_', '-') : last;
  return `com.amazon.ecr.${[words.join('-'), verb].filter((part) => part !== '').join('.')}`;
}

function camelCased(detail: EventDetail): Record<string, DetailValue> {
  const out: Record<string, DetailValue> = {};
  for (const [name, value] of Object.entries(detail)) {
    if (value !== undefined)
      out[name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())] = value;
  }
  return out;
}
