import type { Exchange } from '../http/http.ts';
import { deleteBlob, getBlob, headBlob } from './blobs.ts';
import type { Call } from './call.ts';
import { deleteManifest, getManifest, putManifest } from './manifests.ts';
import type { RepositoryTarget } from './path.ts';
import { listReferrers } from './referrers.ts';
import { listTags } from './tags.ts';
import { cancelUpload, finishUpload, getUpload, patchUpload, startUpload } from './uploads.ts';

export type Method = 'GET' | 'HEAD' | 'PUT' | 'POST' | 'PATCH' | 'DELETE';

/** A method of a route: what the caller must be allowed to do with the repository, and what then happens. */
export interface Route<T extends RepositoryTarget> {
  readonly actions: (exchange: Exchange) => readonly string[];
  readonly run: (call: Call, target: T) => Promise<void>;
}

type RouteTable = {
  readonly [Kind in RepositoryTarget['kind']]: {
    readonly [M in Method]?: Route<Extract<RepositoryTarget, { kind: Kind }>>;
  };
};

const pull = needs('ecr:BatchGetImage');
const remove = needs('ecr:BatchDeleteImage');
const append = needs('ecr:UploadLayerPart');
const initiate = needs('ecr:InitiateLayerUpload');
const atOnce = needs('ecr:InitiateLayerUpload', 'ecr:UploadLayerPart', 'ecr:CompleteLayerUpload');
const complete = needs('ecr:CompleteLayerUpload');
const appendAndComplete = needs('ecr:UploadLayerPart', 'ecr:CompleteLayerUpload');

/** Every route in a repository with its IAM actions (registry-protocol.md §3.2). */
export const ROUTES: RouteTable = {
  manifest: {
    GET: { actions: pull, run: (call, target) => getManifest(call, target.reference) },
    HEAD: { actions: pull, run: (call, target) => getManifest(call, target.reference) },
    PUT: { actions: needs('ecr:PutImage'), run: (call, target) => putManifest(call, target.reference) },
    DELETE: { actions: remove, run: (call, target) => deleteManifest(call, target.reference) },
  },
  blob: {
    GET: {
      actions: needs('ecr:GetDownloadUrlForLayer'),
      run: (call, target) => getBlob(call, target.digest),
    },
    HEAD: {
      actions: needs('ecr:BatchCheckLayerAvailability'),
      run: (call, target) => headBlob(call, target.digest),
    },
    DELETE: { actions: remove, run: (call, target) => deleteBlob(call, target.digest) },
  },
  uploads: {
    POST: {
      actions: (exchange) => (isUploadAtOnce(exchange) ? atOnce() : initiate()),
      run: (call) => startUpload(call),
    },
  },
  upload: {
    PATCH: { actions: append, run: (call, target) => patchUpload(call, target.id) },
    PUT: {
      actions: (exchange) => (exchange.announcesBody ? appendAndComplete() : complete()),
      run: (call, target) => finishUpload(call, target.id),
    },
    GET: { actions: append, run: (call, target) => getUpload(call, target.id) },
    HEAD: { actions: append, run: (call, target) => getUpload(call, target.id) },
    DELETE: { actions: initiate, run: (call, target) => cancelUpload(call, target.id) },
  },
  tags: {
    GET: { actions: needs('ecr:ListImages'), run: (call) => listTags(call) },
    HEAD: { actions: needs('ecr:ListImages'), run: (call) => listTags(call) },
  },
  referrers: {
    GET: { actions: pull, run: (call, target) => listReferrers(call, target.digest) },
    HEAD: { actions: pull, run: (call, target) => listReferrers(call, target.digest) },
  },
};

function needs(...actions: readonly string[]): () => readonly string[] {
  return () => actions;
}

function isUploadAtOnce(exchange: Exchange): boolean {
  return exchange.rawQuery !== '' && exchange.query.has('digest');
}
