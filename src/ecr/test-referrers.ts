import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACCOUNT, OCI_MANIFEST, type OpenTestRegistry, sha256, type TestRegistry } from './testing.ts';

export function referrersTests(openTestRegistry: OpenTestRegistry): void {
  const app = { repositoryName: 'app' };

  async function attach(
    t: TestRegistry,
    subject: string,
    more: object,
  ): Promise<{ digest: string; size: number }> {
    const config = await t.addLayer('app', '{}');
    const imageManifest = JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: { mediaType: 'application/vnd.oci.empty.v1+json', size: 2, digest: config },
      layers: [],
      subject: { mediaType: OCI_MANIFEST, size: 1, digest: subject },
      ...more,
    });
    await t.call('PutImage', { ...app, imageManifest });
    return { digest: sha256(imageManifest), size: imageManifest.length };
  }

  interface Page {
    readonly referrers: { digest: string }[];
    readonly nextToken?: string;
  }

  test('referrers with their annotations, filtered and paged', async () => {
    await using t = await openTestRegistry();
    await t.call('CreateRepository', app);
    const { digest: subject } = await t.addImage('app', 'layer', 'v1');
    const sbom = 'application/spdx+json';
    const signature = 'application/vnd.dev.cosign.artifact.sig.v1+json';
    const made = [];
    for (let i = 0; i < 5; i++) {
      const artifactType = i % 2 === 0 ? sbom : signature;
      made.push(await attach(t, subject, { artifactType, annotations: { number: String(i) } }));
    }
    await attach(t, sha256('another'), { artifactType: sbom });
    const list = (more: object = {}) =>
      t.call<Page>('ListImageReferrers', { ...app, subjectId: { imageDigest: subject }, ...more });
    const digests = async (more: object) => (await list(more)).referrers.map(({ digest }) => digest);

    const all = await list();
    assert.deepEqual(
      all.referrers,
      made.map(({ digest, size }, i) => ({
        digest,
        mediaType: OCI_MANIFEST,
        artifactType: i % 2 === 0 ? sbom : signature,
        size,
        annotations: { number: String(i) },
        artifactStatus: 'ACTIVE',
      })),
    );
    assert.equal(all.nextToken, undefined);
    const ofType = (...artifactTypes: string[]) => digests({ filter: { artifactTypes } });
    assert.deepEqual(await ofType(signature), [made[1]?.digest, made[3]?.digest]);
    assert.equal((await ofType(signature, sbom)).length, 5);
    assert.deepEqual(await ofType('none'), []);
    for (const [artifactStatus, count] of [
      ['ACTIVE', 5],
      ['ANY', 5],
      ['ARCHIVED', 0],
    ] as const)
      assert.equal((await digests({ filter: { artifactStatus } })).length, count, artifactStatus);

    for (const maxResults of [1, 2, 5]) {
      const found: string[] = [];
      let nextToken: string | undefined;
      do {
        const page = await list({ maxResults, ...(nextToken !== undefined && { nextToken }) });
        assert.ok(page.referrers.length <= maxResults);
        found.push(...page.referrers.map(({ digest }) => digest));
        ({ nextToken } = page);
      } while (nextToken !== undefined);
      assert.deepEqual(
        found,
        made.map(({ digest }) => digest),
      );
    }
    const other = await t.call<Page>('ListImageReferrers', {
      ...app,
      subjectId: { imageDigest: sha256('none') },
    });
    assert.deepEqual(other, { referrers: [] });
  });

  test('what is refused', async () => {
    await using t = await openTestRegistry();
    const input = { ...app, subjectId: { imageDigest: sha256('x') } };
    assert.equal(
      await t.fault('ListImageReferrers', input),
      `RepositoryNotFoundException: The repository with name 'app' does not exist in the registry with id '${ACCOUNT}'`,
    );
    assert.equal(
      await t.fault('ListImageReferrers', { ...app, subjectId: { imageDigest: 'latest' } }),
      "InvalidParameterException: Invalid parameter at 'subjectId' failed to satisfy constraint: 'image digest should satisfy " +
        "the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+''",
    );
    const user = await t.addUser('lister', [{ Effect: 'Allow', Action: 'ecr:List*', Resource: '*' }]);
    assert.match(
      await t.fault('ListImageReferrers', input, user),
      /not authorized to perform: ecr:BatchGetImage/,
    );
  });
}
