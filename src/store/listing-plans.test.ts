/** The plans of the paged queries on PostgreSQL, over enough rows that the planner chooses as it does in earnest. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { CompiledQuery } from 'kysely';
import { BIG, digestOf, fillPostgres, PUSHED_AT, REGISTRY, repositoryOf, tagOf } from '../../test/fill.ts';
import { findPostgres, startPostgres, type Postgres } from '../../test/postgres.ts';
import { selectEntries, selectImages, selectTags } from './listings.ts';
import { selectReferrers } from './referrers.ts';
import { selectRepositories } from './repositories.ts';
import { openPostgresStore, type Reader, type Store } from './store.ts';

const SIZE = { repositories: 20_000, images: 30_000 };
const PAGE = 100;

interface Plan {
  readonly 'Node Type': string;
  readonly 'Plan Rows': number;
  readonly 'Index Cond'?: string;
  readonly Plans?: readonly Plan[];
}

async function planOf(read: Reader, query: { compile(): CompiledQuery }): Promise<Plan[]> {
  const { sql, parameters } = query.compile();
  const { rows } = await read.executeQuery<{ 'QUERY PLAN': { Plan: Plan }[] }>(
    CompiledQuery.raw(`explain (format json) ${sql}`, [...parameters]),
  );
  const flat = (plan: Plan): Plan[] => [plan, ...(plan.Plans ?? []).flatMap(flat)];
  return rows[0]?.['QUERY PLAN'].flatMap(({ Plan: plan }) => flat(plan)) ?? [];
}

const bin = await findPostgres();
if (bin === undefined) process.stdout.write('SKIPPED plans on PostgreSQL: no initdb and pg_ctl found\n');
else
  describe('pages on PostgreSQL', () => {
    let server: Postgres;
    let store: Store;
    before(async () => {
      server = await startPostgres(bin);
      store = await openPostgresStore({ url: server.url, poolMax: 4 });
      await fillPostgres(server.url, SIZE);
    });
    after(async () => {
      await store.close();
      await server.stop();
    });

    test('every page is a range of an index, wherever it lies', async () => {
      const { read } = store;
      const image = { pushedAt: PUSHED_AT + 15_000, digest: digestOf(15_000) };
      const page = { tagged: undefined, limit: PAGE };
      const referrers = { subject: digestOf(1), artifactTypes: [], status: undefined, limit: PAGE };
      const queries = {
        repositories: selectRepositories(read, REGISTRY, undefined, PAGE),
        repositoriesAfter: selectRepositories(read, REGISTRY, repositoryOf(10_000), PAGE),
        images: selectImages(read, BIG, { ...page, after: undefined }),
        imagesAfter: selectImages(read, BIG, { ...page, after: image }),
        activeAfter: selectImages(read, BIG, { ...page, after: image, status: 'ACTIVE' }),
        entries: selectEntries(read, BIG, undefined, PAGE),
        entriesAfter: selectEntries(read, BIG, { ...image, tag: tagOf(15_000) }, PAGE),
        tags: selectTags(read, BIG, undefined, PAGE),
        tagsAfter: selectTags(read, BIG, tagOf(15_000), PAGE),
        referrers: selectReferrers(read, BIG, { ...referrers, after: undefined }),
        referrersAfter: selectReferrers(read, BIG, { ...referrers, after: PUSHED_AT }),
      };
      for (const [name, query] of Object.entries(queries)) {
        const plan = await planOf(read, query);
        const shown = `${name}: ${JSON.stringify(plan)}`;
        assert.ok(
          plan.every((node) => node['Node Type'] !== 'Seq Scan'),
          shown,
        );
        // Sorting the tags of one image is fine, sorting the rows of a listing is not.
        assert.ok(
          plan.every((node) => node['Node Type'] !== 'Sort' || node['Plan Rows'] <= PAGE),
          shown,
        );
        if (name.endsWith('After'))
          assert.ok(
            plan.some((node) => /(pushed_at|name)\S* [<>]/.test(node['Index Cond'] ?? '')),
            shown,
          );
      }
    });
  });
