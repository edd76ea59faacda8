import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backupTransactions } from './backup.ts';
import { checkTransactions } from './check.ts';
import { damageTransactions } from './damage.ts';
import { denialTransactions } from './denials.ts';
import { eventTransactions } from './events.ts';
import { garbageTransactions } from './garbage.ts';
import { identityTransactions } from './identities.ts';
import { imageTransactions } from './images.ts';
import { jobTransactions } from './jobs.ts';
import { lifecycleTransactions } from './lifecycle.ts';
import { previewTransactions } from './previews.ts';
import { registryTransactions } from './registries.ts';
import { repositoryTransactions } from './repositories.ts';
import { storageClassTransactions } from './storage-class.ts';
import { templateTransactions } from './templates.ts';
import { TRANSACTIONS } from './transactions.ts';
import { uploadTransactions } from './uploads.ts';

test('no two subjects have a transaction of the same name', () => {
  const subjects = [
    identityTransactions,
    denialTransactions,
    registryTransactions,
    repositoryTransactions,
    templateTransactions,
    imageTransactions,
    storageClassTransactions,
    lifecycleTransactions,
    previewTransactions,
    uploadTransactions,
    garbageTransactions,
    jobTransactions,
    eventTransactions,
    damageTransactions,
    checkTransactions,
    backupTransactions,
  ];
  const names = [...subjects.flatMap((transactions) => Object.keys(transactions)), 'store.probe'];
  assert.deepEqual(names.sort(), Object.keys(TRANSACTIONS).sort());
});
