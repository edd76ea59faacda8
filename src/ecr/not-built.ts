/** Operations of the API that this version refuses, by family, each with the reason its callers are told. */
import type { OperationNotBuilt } from '../protocol/protocol.ts';

const FAMILIES: readonly (readonly [reason: string, operations: readonly string[]])[] = [
  [
    'Replication is not built: nothing would copy images to other regions or accounts.',
    [
      'PutReplicationConfiguration',
      'DescribeImageReplicationStatus',
      'StartReplicationBackfill',
      'StopReplicationBackfill',
      'ListReplicationBackfills',
      'DescribeReplicationBackfillResults',
    ],
  ],
  [
    'Pull-through caches are not built.',
    [
      'CreatePullThroughCacheRule',
      'DescribePullThroughCacheRules',
      'UpdatePullThroughCacheRule',
      'DeletePullThroughCacheRule',
      'ValidatePullThroughCacheRule',
    ],
  ],
  [
    'Image scanning is not built: no setting of it would have an effect.',
    [
      'PutImageScanningConfiguration',
      'StartImageScan',
      'DescribeImageScanFindings',
      'BatchGetRepositoryScanningConfiguration',
      'GetRegistryScanningConfiguration',
      'PutRegistryScanningConfiguration',
    ],
  ],
  [
    'Managed signing is not built. Signatures pushed by clients are kept like any image.',
    [
      'PutSigningConfiguration',
      'GetSigningConfiguration',
      'DeleteSigningConfiguration',
      'DescribeImageSigningStatus',
    ],
  ],
];

export function notBuiltOperations(): Record<string, OperationNotBuilt> {
  return Object.fromEntries(
    FAMILIES.flatMap(([notBuilt, operations]) => operations.map((name) => [name, { notBuilt }])),
  );
}
