/** Registries, exclusions and templates on every database. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { findPostgres, startPostgres } from '../../test/postgres.ts';
import { findRegistry, pageExclusions } from './registries.ts';
import { openPostgresStore, openSqliteStore, prepareIdentityRevision, type Store } from './store.ts';
import { findTemplates, matchTemplate, pageTemplates, type TemplateRecord } from './templates.ts';

const registry = { account: '000000000000', region: 'eu-west-1' };
const elsewhere = { ...registry, region: 'us-east-1' };
const DEFAULTS = { policy: undefined, policyScope: 'V2', blobMounting: false };
const NOW = Date.UTC(2026, 10, 24);

const template = (prefix: string, more: Partial<TemplateRecord> = {}): TemplateRecord => ({
  ...registry,
  prefix,
  description: undefined,
  encryptionType: 'AES256',
  kmsKey: undefined,
  mutability: 'MUTABLE',
  exclusionFilters: [],
  tags: [],
  repositoryPolicy: undefined,
  lifecyclePolicy: undefined,
  appliedFor: ['CREATE_ON_PUSH'],
  customRoleArn: undefined,
  createdAt: NOW,
  updatedAt: NOW,
  ...more,
});

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED registries on PostgreSQL: no initdb and pg_ctl found\n');
for (const engine of bin === undefined ? ['sqlite'] : ['sqlite', 'postgres'])
  describe(`registries on ${engine}`, () => {
    let store: Store;
    let close: () => Promise<unknown>;
    before(async () => {
      if (engine === 'postgres' && bin !== undefined) {
        const server = await startPostgres(bin);
        store = await openPostgresStore({ url: server.url, poolMax: 4 });
        close = server.stop;
      } else {
        const directory = await mkdtemp(join(tmpdir(), 'berth-registries-'));
        store = await openSqliteStore({ file: join(directory, 'berth.db') });
        close = () => rm(directory, { recursive: true });
      }
    });
    after(async () => {
      await store.close();
      await close();
    });

    test('members of a registry change one by one, and every change moves the revision', async () => {
      const read = () => findRegistry(store.read, registry);
      const revision = prepareIdentityRevision(store);
      let known = await revision();
      const moved = async (write: Promise<unknown>): Promise<void> => {
        await write;
        const now = await revision();
        assert.ok(now > known);
        known = now;
      };
      assert.deepEqual(await read(), DEFAULTS);
      await moved(store.transact('registry.configure', { registry, blobMounting: true }));
      await moved(store.transact('registry.setPolicy', { registry, policy: '{}' }));
      await moved(store.transact('registry.configure', { registry, policyScope: 'V1' }));
      assert.deepEqual(await read(), { policy: '{}', policyScope: 'V1', blobMounting: true });
      assert.deepEqual(await findRegistry(store.read, elsewhere), DEFAULTS);
      await moved(store.transact('registry.deletePolicy', { registry }));
      await assert.rejects(store.transact('registry.deletePolicy', { registry }), {
        code: 'RegistryPolicyNotFoundException',
      });
      await moved(store.transact('registry.configure', { registry, blobMounting: false }));
      assert.deepEqual(await read(), { ...DEFAULTS, policyScope: 'V1' });
      const exclusion = { registry, principalArn: 'arn:aws:iam::000000000000:role/a' };
      await moved(store.transact('registry.addExclusion', { ...exclusion, now: NOW, exclusionsMax: 2 }));
      await moved(store.transact('registry.removeExclusion', exclusion));
    });

    test('exclusions: once each, up to the quota, by name', async () => {
      const add = (principalArn: string, where = registry) =>
        store.transact('registry.addExclusion', {
          registry: where,
          principalArn,
          now: NOW,
          exclusionsMax: 2,
        });
      await add('b');
      await add('a');
      await add('c', elsewhere);
      await assert.rejects(add('a'), { code: 'ExclusionAlreadyExistsException' });
      await assert.rejects(add('c'), { code: 'LimitExceededException' });
      assert.deepEqual(await pageExclusions(store.read, registry, undefined, 10), ['a', 'b']);
      assert.deepEqual(await pageExclusions(store.read, registry, 'a', 10), ['b']);
      const remove = () => store.transact('registry.removeExclusion', { registry, principalArn: 'a' });
      await remove();
      await assert.rejects(remove(), { code: 'ExclusionNotFoundException' });
    });

    test('templates: kept whole, changed in part, matched by the longest prefix', async () => {
      const create = (one: TemplateRecord) =>
        store.transact('template.create', { template: one, templatesMax: 4 });
      const whole = template('team/', {
        description: '',
        encryptionType: 'KMS',
        kmsKey: 'arn',
        mutability: 'IMMUTABLE_WITH_EXCLUSION',
        exclusionFilters: [{ filterType: 'WILDCARD', filter: 'v*' }],
        tags: [{ key: 'a', value: '' }],
        repositoryPolicy: '{}',
        lifecyclePolicy: '{ }',
        appliedFor: ['REPLICATION', 'CREATE_ON_PUSH'],
        customRoleArn: 'role',
      });
      await create(whole);
      await create(template('team/deep', { appliedFor: ['REPLICATION'] }));
      await create(template('team/deep/er'));
      await create(template('ROOT', { appliedFor: ['CREATE_ON_PUSH'] }));
      await assert.rejects(create(template('team')), { code: 'TemplateAlreadyExistsException' });
      await assert.rejects(create(template('other')), { code: 'LimitExceededException' });
      assert.deepEqual(await findTemplates(store.read, registry, ['team', 'team/', 'none']), [whole]);
      assert.deepEqual(await findTemplates(store.read, elsewhere, ['team']), []);
      const prefixes = async (last?: string) =>
        (await pageTemplates(store.read, registry, last, 2)).map(({ prefix }) => prefix);
      assert.deepEqual(await prefixes(), ['ROOT', 'team/']);
      assert.deepEqual(await prefixes('team/'), ['team/deep', 'team/deep/er']);
      const matches: [
        name: string,
        scenario: 'CREATE_ON_PUSH' | 'REPLICATION',
        prefix: string | undefined,
      ][] = [
        ['team/app', 'CREATE_ON_PUSH', 'team/'],
        ['team/deep/app', 'CREATE_ON_PUSH', 'team/'],
        ['team/deep/app', 'REPLICATION', 'team/deep'],
        ['team/deep/er/app', 'CREATE_ON_PUSH', 'team/deep/er'],
        ['team', 'CREATE_ON_PUSH', 'ROOT'],
        ['team', 'REPLICATION', undefined],
        ['teams/app', 'CREATE_ON_PUSH', 'ROOT'],
      ];
      for (const [name, scenario, prefix] of matches)
        assert.equal((await matchTemplate(store.read, registry, name, scenario))?.prefix, prefix, name);
      const changed = await store.transact('template.update', {
        registry,
        prefix: 'team',
        change: { kmsKey: null, repositoryPolicy: null, tags: [], mutability: undefined },
        now: NOW + 1,
      });
      const expected = {
        ...whole,
        kmsKey: undefined,
        repositoryPolicy: undefined,
        tags: [],
        updatedAt: NOW + 1,
      };
      assert.deepEqual(changed, expected);
      assert.deepEqual(await store.transact('template.delete', { registry, prefix: 'team' }), expected);
      await assert.rejects(store.transact('template.delete', { registry, prefix: 'team' }), {
        code: 'TemplateNotFoundException',
      });
    });
  });
