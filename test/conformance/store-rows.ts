/** Rows for tests of the store, as table and columns; what is left out has a plain default. */
import type { Row, Table } from './transactions.ts';

export const NOW = 1_700_000_000_000;

export function account(id: string, createdAt = 1): [Table, Row] {
  return ['account', { id, created_at: createdAt }];
}

export function repository(id: string, name: string): [Table, Row] {
  return [
    'repository',
    {
      id,
      account: '111111111111',
      region: 'us-east-1',
      name,
      created_at: NOW,
      mutability: 'MUTABLE',
      scan_on_push: 0,
      encryption_type: 'AES256',
      content_key: 'default',
    },
  ];
}

export function blob(digest: string, storageKey: string, contentKey = 'default'): [Table, Row] {
  return ['blob', { storage_key: storageKey, digest, content_key: contentKey, size: 3, created_at: NOW }];
}

export function link(
  repositoryId: string,
  digest: string,
  storageKey: string,
  leasedUntil: number,
): [Table, Row] {
  return [
    'repository_blob',
    { repository_id: repositoryId, digest, storage_key: storageKey, size: 3, leased_until: leasedUntil },
  ];
}

/** A repository with one blob in it. */
export function content(
  repositoryId: string,
  digest: string,
  storageKey: string,
  leasedUntil: number,
): [Table, Row][] {
  return [
    repository(repositoryId, repositoryId),
    blob(digest, storageKey),
    link(repositoryId, digest, storageKey, leasedUntil),
  ];
}

export function image(repositoryId: string, digest: string, more: Row = {}): [Table, Row] {
  const row = { media_type: 't', manifest: new Uint8Array([123, 125]), size: 2, pushed_at: NOW };
  return ['image', { id: `${repositoryId}-${digest}`, repository_id: repositoryId, digest, ...row, ...more }];
}

export function tag(repositoryId: string, name: string, digest: string): [Table, Row] {
  return ['tag', { repository_id: repositoryId, name, image_digest: digest, tagged_at: NOW }];
}

export function upload(id: string, storageKey: string, more: Row = {}): [Table, Row] {
  const row = { content_key: 'default', size: 0, sha256: '', created_at: NOW - 5000, updated_at: NOW };
  return ['upload', { id, repository_id: 'r1', storage_key: storageKey, ...row, ...more }];
}
