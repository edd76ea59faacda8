/**
 * Verification of everything that is kept (`berth fsck`): rows against rows, manifests against their digests, stored bytes
 * against the rows that name them. It may run beside servers: what looks wrong is looked at again before it is reported.
 * Repairs only what cannot lose anything; damaged content keeps every row about it and is set aside (store/damage.ts), so
 * that pushing it again heals it.
 */
import { createHash } from 'node:crypto';
import { Writable } from 'node:stream';
import { BlobCorruptError, BlobNotFoundError, type BlobStore } from '../blobs/blobs.ts';
import { readManifest, type ManifestReading } from '../domain/manifests.ts';
import { KeyUnavailableError } from '../lib/keyring.ts';
import { LIMITS } from '../lib/limits.ts';
import {
  checkSqliteFile,
  countRows,
  describeRepository,
  findContradictions,
  findLeaks,
  findNeedingImages,
  imageExists,
  isBound,
  type NeedingImage,
  pageStoredCopies,
  pageStoredImages,
  referencesOfImage,
  type Store,
  type StoredCopy,
  type StoredImage,
} from '../store/store.ts';
import { checkFiles } from './check-files.ts';

export interface Finding {
  /** `damage`: something that was kept cannot be served as it was. `warning`: something is left over, or soon would be wrong. */
  readonly severity: 'damage' | 'warning';
  /** one word for scripts; docs/operations/backup.md lists them */
  readonly code: string;
  readonly text: string;
  readonly storageKey?: string;
  readonly digest?: string;
  /** images that cannot be pulled because of it, at most {@link NEEDS_MAX} */
  readonly neededBy?: readonly NeedingImage[];
  /** what was done about it, or what `repair` would do; absent when nothing can be done here */
  readonly repair?: string;
  readonly repaired: boolean;
}

export interface CheckCounts {
  copies: number;
  bytes: number;
  images: number;
  tags: number;
  uploads: number;
  files: number;
  trash: number;
}

export interface CheckReport {
  readonly result: 'clean' | 'warnings' | 'damage';
  readonly counts: CheckCounts;
  /** in the order they were found; those beyond {@link FINDINGS_MAX} are only counted */
  readonly findings: readonly Finding[];
  readonly damage: number;
  readonly warnings: number;
}

export interface CheckOptions {
  readonly store: Store;
  /** just opened: a store that has served reads answers small blobs from memory */
  readonly blobs: BlobStore;
  readonly clock: () => number;
  readonly repair: boolean;
  readonly trashGraceMs?: number;
  readonly onFinding?: (finding: Finding) => void;
  /** called now and then with what was checked so far */
  readonly onProgress?: (counts: Readonly<CheckCounts>) => void;
}

export interface CheckContext extends CheckOptions {
  readonly counts: CheckCounts;
  readonly trashGraceMs: number;
  /** Reports a finding, after `mend` when there is one and repairs are wanted; `mend` says whether it did something. */
  report(finding: Omit<Finding, 'repaired'>, mend?: () => Promise<boolean>): Promise<void>;
  readonly progress: () => void;
}

export const NEEDS_MAX = 100;
export const FINDINGS_MAX = 10_000;
/** Lines of one kind of contradiction. */
const CONTRADICTIONS_MAX = 1000;
const COPIES_PAGE = 500;
/** Manifests have at most 4 MiB. */
const IMAGES_PAGE = 8;
const READS_AT_ONCE = 4;

/** Checks everything once. Rejects only when the database or the directory of the blobs cannot be read at all. */
export async function checkRegistry(options: CheckOptions): Promise<CheckReport> {
  const counts: CheckCounts = { copies: 0, bytes: 0, images: 0, tags: 0, uploads: 0, files: 0, trash: 0 };
  const findings: Finding[] = [];
  const totals = { damage: 0, warning: 0 };
  const context: CheckContext = {
    ...options,
    trashGraceMs: options.trashGraceMs ?? LIMITS.trashGraceMs,
    counts,
    report: async (found, mend) => {
      const repaired = options.repair && mend !== undefined && (await mend());
      const finding = { ...found, repaired };
      totals[finding.severity] += 1;
      if (findings.length < FINDINGS_MAX) findings.push(finding);
      options.onFinding?.(finding);
    },
    progress: () => options.onProgress?.(counts),
  };
  await checkRows(context);
  await checkImages(context);
  await checkCopies(context);
  await checkFiles(context);
  Object.assign(counts, await countRows(options.store.read));
  context.progress();
  return {
    result: totals.damage > 0 ? 'damage' : totals.warning > 0 ? 'warnings' : 'clean',
    counts,
    findings,
    damage: totals.damage,
    warnings: totals.warning,
  };
}

async function checkRows(context: CheckContext): Promise<void> {
  const { store, clock, trashGraceMs } = context;
  if (store.engine === 'sqlite') {
    const { integrity, foreignKeys } = await checkSqliteFile(store.read, CONTRADICTIONS_MAX);
    for (const text of integrity)
      await context.report({ severity: 'damage', code: 'database-damaged', text });
    for (const text of foreignKeys) await context.report({ severity: 'damage', code: 'foreign-key', text });
  }
  for (const { code, repositoryId, detail } of await findContradictions(store.read, CONTRADICTIONS_MAX)) {
    const text = `${await describeRepository(store.read, repositoryId)}: ${detail}`;
    await context.report({ severity: 'damage', code, text });
  }
  const { unlinked, trashedButBound, unreviewed } = await findLeaks(store.read, CONTRADICTIONS_MAX);
  for (const storageKey of trashedButBound) {
    const text = `${storageKey} is in the trash although a digest is bound to it`;
    await context.report(
      { severity: 'warning', code: 'bound-in-trash', text, storageKey, repair: 'taken out of the trash' },
      () => store.transact('check.untrashBound', { storageKey }),
    );
  }
  for (const storageKey of unlinked) {
    const text = `${storageKey} belongs to no repository`;
    const deleteAfter = clock() + trashGraceMs;
    await context.report(
      { severity: 'warning', code: 'copy-unlinked', text, storageKey, repair: 'moved to the trash' },
      () => store.transact('check.trashUnlinked', { storageKey, deleteAfter }),
    );
  }
  for (const { repositoryId, digest } of unreviewed) {
    const text = `${await describeRepository(store.read, repositoryId)}: nothing needs ${digest}, nor will it be collected`;
    await context.report(
      { severity: 'warning', code: 'link-forgotten', text, digest, repair: 'handed to the collector' },
      () => store.transact('check.reviewLink', { repositoryId, digest, reviewAfter: clock() }),
    );
  }
}

async function checkImages(context: CheckContext): Promise<void> {
  const { store, counts } = context;
  for (let after = ''; ;) {
    const page = await pageStoredImages(store.read, after, IMAGES_PAGE);
    for (const image of page) {
      const problem = await judgeImage(context, image);
      counts.images += 1;
      // Deleted since the page was read.
      if (problem === undefined || !(await imageExists(store.read, image.id))) continue;
      const text = `${image.account}/${image.region}/${image.repository}@${image.digest}: ${problem.text}`;
      const { code, repair, mend } = problem;
      const found = { severity: 'damage', code, text, digest: image.digest } as const;
      await context.report(repair === undefined ? found : { ...found, repair }, mend);
    }
    context.progress();
    const last = page.at(-1);
    if (last === undefined || page.length < IMAGES_PAGE) return;
    after = last.id;
  }
}

interface Problem {
  readonly code: string;
  readonly text: string;
}

interface ImageProblem extends Problem {
  readonly repair?: string;
  readonly mend?: () => Promise<boolean>;
}

async function judgeImage({ store }: CheckContext, image: StoredImage): Promise<ImageProblem | undefined> {
  for (const digest of [image.digest, ...image.aliases]) {
    const [algorithm = ''] = digest.split(':');
    const found = `${algorithm}:${createHash(algorithm).update(image.manifest).digest('hex')}`;
    if (found !== digest)
      return { code: 'manifest-damaged', text: `the manifest is not ${digest} but ${found}` };
  }
  const reading = readWhatWasAccepted(image);
  if (reading === undefined)
    return { code: 'manifest-unreadable', text: 'the manifest cannot be understood' };
  const recorded = await referencesOfImage(store.read, image);
  const needed = [...reading.blobs.filter(({ required }) => required), ...reading.children];
  const missing = needed.find(({ digest }) => !recorded.has(digest));
  if (missing !== undefined)
    return { code: 'reference-unrecorded', text: `it needs ${missing.digest}, which no row says` };
  return judgeDescription(store, image, reading);
}

/** What a row says of its manifest, so that nobody has to read it. */
function judgeDescription(
  store: Store,
  image: StoredImage,
  { kind, artifactType, subjectDigest, contentSize }: ManifestReading,
): ImageProblem | undefined {
  // The size of an index depends on its members.
  const size = kind === 'image' ? contentSize : undefined;
  const wrong = [
    image.artifactType !== artifactType && `artifact type ${image.artifactType}, not ${artifactType}`,
    image.subjectDigest !== subjectDigest && `subject ${image.subjectDigest}, not ${subjectDigest}`,
    size !== undefined && image.size !== size && `size ${image.size}, not ${size}`,
  ].filter((each) => each !== false);
  if (wrong.length === 0) return undefined;
  return {
    code: 'image-wrong',
    text: `the row says: ${wrong.join('; ')}`,
    repair: 'told anew by its manifest',
    mend: () => store.transact('check.describeImage', { id: image.id, artifactType, subjectDigest, size }),
  };
}

function readWhatWasAccepted(image: StoredImage): ManifestReading | undefined {
  try {
    return readManifest(image.manifest, image.mediaType, { detect: true });
  } catch {
    return undefined;
  }
}

async function checkCopies(context: CheckContext): Promise<void> {
  const { store } = context;
  for (let after = ''; ;) {
    const page = await pageStoredCopies(store.read, after, COPIES_PAGE);
    // WHY one iterator: each of the readers takes the next copy when it is done with one.
    const queue = page.values();
    const work = async (): Promise<void> => {
      for (const copy of queue) {
        const problem = await readCopy(context, copy);
        context.counts.copies += 1;
        context.progress();
        if (problem !== undefined || copy.setAside) await reportCopy(context, copy, problem);
      }
    };
    await Promise.all(Array.from({ length: READS_AT_ONCE }, work));
    const last = page.at(-1);
    if (last === undefined || page.length < COPIES_PAGE) return;
    after = last.storageKey;
  }
}

async function reportCopy(
  context: CheckContext,
  copy: StoredCopy,
  problem: (Problem & { readonly lost: boolean }) | undefined,
): Promise<void> {
  const { store, clock } = context;
  const { storageKey, digest } = copy;
  // Collected since the page was read, or replaced by a push.
  if (!(await isBound(store.read, storageKey))) return;
  if (problem === undefined) {
    const text = `${digest} was set aside, and its bytes are good again`;
    const found = { severity: 'warning', code: 'copy-recovered', text, storageKey, digest } as const;
    return context.report({ ...found, repair: 'offered again' }, () =>
      store.transact('damage.takeBack', { storageKey, now: clock() }),
    );
  }
  const found = {
    severity: 'damage',
    code: problem.code,
    text: `${digest} (${copy.size} bytes, stored as ${storageKey}): ${problem.text}`,
    storageKey,
    digest,
    neededBy: await findNeedingImages(store.read, storageKey, NEEDS_MAX),
  } as const;
  if (copy.setAside) return context.report({ ...found, repair: 'set aside before: push it again' });
  if (!problem.lost) return context.report(found);
  await context.report({ ...found, repair: 'set aside, so that pushing it again replaces it' }, () =>
    store.transact('damage.setAside', { storageKey }),
  );
}

/** Reads a copy through to its end. `lost` when what it held is gone for good, as far as this store knows. */
async function readCopy(
  { blobs, counts }: CheckContext,
  copy: StoredCopy,
): Promise<(Problem & { readonly lost: boolean }) | undefined> {
  const wanted = [copy.digest, ...copy.aliases];
  const hashes = wanted.map((digest) => createHash(digest.slice(0, digest.indexOf(':'))));
  const sink = new Writable({
    write: (bytes: Buffer, _, done) => {
      for (const hash of hashes) hash.update(bytes);
      counts.bytes += bytes.length;
      done();
    },
  });
  try {
    const reader = await blobs.open(copy.storageKey);
    if (reader.size !== copy.size) {
      await reader.close();
      return { code: 'copy-size', text: `${reader.size} bytes are stored`, lost: true };
    }
    await reader.sendTo(sink);
  } catch (error) {
    return problemOf(error);
  }
  const found = hashes.map((hash, index) => `${wanted[index]?.split(':')[0]}:${hash.digest('hex')}`);
  const wrong = found.findIndex((digest, index) => digest !== wanted[index]);
  if (wrong === -1) return undefined;
  return { code: 'copy-digest', text: `the stored bytes are ${found[wrong]}`, lost: true };
}

function problemOf(error: unknown): Problem & { readonly lost: boolean } {
  const { message } = error as Error;
  if (error instanceof BlobNotFoundError)
    return { code: 'copy-absent', text: 'there are no bytes', lost: true };
  if (error instanceof BlobCorruptError) return { code: 'copy-damaged', text: message, lost: true };
  // WHY not lost: the key may be brought back, and a disk may be read again.
  if (error instanceof KeyUnavailableError) return { code: 'key-unavailable', text: message, lost: false };
  return { code: 'copy-unreadable', text: message, lost: false };
}
