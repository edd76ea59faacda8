/**
 * The AWS-managed policies that concern a registry, as AWS publishes them (ecr-api.md §24.3), newest version each. They
 * are data: every account sees them and nobody can change them, so they have no rows.
 */

export interface ManagedPolicy {
  readonly arn: string;
  readonly id: string;
  readonly name: string;
  readonly path: string;
  /** the number in `v3` */
  readonly version: number;
  readonly description: string | undefined;
  readonly createdAt: number;
  readonly updatedAt: number;
  readonly document: string;
  /** Policies of service-linked roles cannot be attached to anything else. */
  readonly attachable: boolean;
}

interface Entry {
  readonly name: string;
  readonly path?: string;
  readonly id: string;
  readonly version: number;
  readonly created: string;
  readonly updated: string;
  readonly description?: string;
  readonly statements: readonly object[];
}

// WHY: AWS does not publish the ids of the newer policies; theirs are made of a hash of the ARN, so they never change.
const ENTRIES: readonly Entry[] = [
  {
    name: 'AdministratorAccess',
    id: 'ANPAIWMBCKSKIEE64ZLYK',
    version: 1,
    created: '2015-02-06T18:39:46Z',
    updated: '2015-02-06T18:39:46Z',
    description: 'Provides full access to AWS services and resources.',
    statements: [{ Effect: 'Allow', Action: '*', Resource: '*' }],
  },
  {
    name: 'AmazonEC2ContainerRegistryFullAccess',
    id: 'ANPAIESRL7KD7IIVF6V4W',
    version: 3,
    created: '2015-12-21T17:06:48Z',
    updated: '2020-12-05T00:04:19Z',
    description: 'Provides administrative access to Amazon ECR resources',
    statements: [
      { Effect: 'Allow', Action: ['ecr:*', 'cloudtrail:LookupEvents'], Resource: '*' },
      {
        Effect: 'Allow',
        Action: ['iam:CreateServiceLinkedRole'],
        Resource: '*',
        Condition: { StringEquals: { 'iam:AWSServiceName': ['replication.ecr.amazonaws.com'] } },
      },
    ],
  },
  {
    name: 'AmazonEC2ContainerRegistryPowerUser',
    id: 'ANPAJDNE5PIHROIBGGDDW',
    version: 3,
    created: '2015-12-21T17:05:33Z',
    updated: '2019-12-10T20:48:08Z',
    description:
      'Provides full access to Amazon EC2 Container Registry repositories, but does not allow repository deletion or policy changes.',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
          'ecr:GetDownloadUrlForLayer',
          'ecr:GetRepositoryPolicy',
          'ecr:DescribeRepositories',
          'ecr:ListImages',
          'ecr:DescribeImages',
          'ecr:BatchGetImage',
          'ecr:GetLifecyclePolicy',
          'ecr:GetLifecyclePolicyPreview',
          'ecr:ListTagsForResource',
          'ecr:DescribeImageScanFindings',
          'ecr:InitiateLayerUpload',
          'ecr:UploadLayerPart',
          'ecr:CompleteLayerUpload',
          'ecr:PutImage',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AmazonEC2ContainerRegistryReadOnly',
    id: 'ANPAIFYZPA37OOHVIH7KQ',
    version: 3,
    created: '2015-12-21T17:04:15Z',
    updated: '2019-12-10T20:56:32Z',
    description: 'Provides read-only access to Amazon EC2 Container Registry repositories.',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
          'ecr:GetDownloadUrlForLayer',
          'ecr:GetRepositoryPolicy',
          'ecr:DescribeRepositories',
          'ecr:ListImages',
          'ecr:DescribeImages',
          'ecr:BatchGetImage',
          'ecr:GetLifecyclePolicy',
          'ecr:GetLifecyclePolicyPreview',
          'ecr:ListTagsForResource',
          'ecr:DescribeImageScanFindings',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AmazonEC2ContainerRegistryPullOnly',
    id: 'ANPAL6PP6SBONZWT2PTWZ',
    version: 1,
    created: '2024-10-04T16:58:49Z',
    updated: '2024-10-04T16:58:49Z',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ecr:GetAuthorizationToken',
          'ecr:BatchGetImage',
          'ecr:GetDownloadUrlForLayer',
          'ecr:BatchImportUpstreamImage',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AmazonECSTaskExecutionRolePolicy',
    path: '/service-role/',
    id: 'ANPAJG4T4G4PV56DE72PY',
    version: 1,
    created: '2017-11-16T18:48:22Z',
    updated: '2017-11-16T18:48:22Z',
    description: 'Provides access to other AWS service resources that are required to run Amazon ECS tasks',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
          'ecr:GetDownloadUrlForLayer',
          'ecr:BatchGetImage',
          'logs:CreateLogStream',
          'logs:PutLogEvents',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AmazonEC2ContainerServiceforEC2Role',
    path: '/service-role/',
    id: 'ANPAJLYJCVHC7TQHCSQDS',
    version: 10,
    created: '2015-03-19T18:45:18Z',
    updated: '2015-03-19T18:45:18Z',
    description: 'Default policy for the Amazon EC2 Role for Amazon EC2 Container Service.',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ec2:DescribeTags',
          'ecs:CreateCluster',
          'ecs:DeregisterContainerInstance',
          'ecs:DiscoverPollEndpoint',
          'ecs:Poll',
          'ecs:RegisterContainerInstance',
          'ecs:StartTelemetrySession',
          'ecs:UpdateContainerInstancesState',
          'ecs:Submit*',
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
          'ecr:GetDownloadUrlForLayer',
          'ecr:BatchGetImage',
          'logs:CreateLogStream',
          'logs:PutLogEvents',
        ],
        Resource: '*',
      },
      {
        Effect: 'Allow',
        Action: 'ecs:TagResource',
        Resource: '*',
        Condition: { StringEquals: { 'ecs:CreateAction': ['CreateCluster', 'RegisterContainerInstance'] } },
      },
      {
        Effect: 'Allow',
        Action: ['ecs:ListTagsForResource'],
        Resource: ['arn:aws:ecs:*:*:task/*/*', 'arn:aws:ecs:*:*:container-instance/*/*'],
      },
    ],
  },
  {
    name: 'AWSAppRunnerServicePolicyForECRAccess',
    path: '/service-role/',
    id: 'ANPAW4DWCBONGNCAWY7LO',
    version: 1,
    created: '2021-05-14T19:17:21Z',
    updated: '2021-05-14T19:17:21Z',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'ecr:GetDownloadUrlForLayer',
          'ecr:BatchGetImage',
          'ecr:DescribeImages',
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'EC2InstanceProfileForImageBuilderECRContainerBuilds',
    id: 'ANPAN62GD36BAVLEAPP7C',
    version: 1,
    created: '2020-12-11T19:48:15Z',
    updated: '2020-12-11T19:48:15Z',
    statements: [
      {
        Effect: 'Allow',
        Action: [
          'imagebuilder:GetComponent',
          'imagebuilder:GetContainerRecipe',
          'ecr:GetAuthorizationToken',
          'ecr:BatchGetImage',
          'ecr:InitiateLayerUpload',
          'ecr:UploadLayerPart',
          'ecr:CompleteLayerUpload',
          'ecr:BatchCheckLayerAvailability',
          'ecr:GetDownloadUrlForLayer',
          'ecr:PutImage',
        ],
        Resource: '*',
      },
      {
        Effect: 'Allow',
        Action: ['kms:Decrypt'],
        Resource: '*',
        Condition: {
          'ForAnyValue:StringEquals': {
            'kms:EncryptionContextKeys': 'aws:imagebuilder:arn',
            'aws:CalledVia': ['imagebuilder.amazonaws.com'],
          },
        },
      },
      { Effect: 'Allow', Action: ['s3:GetObject'], Resource: 'arn:aws:s3:::ec2imagebuilder*' },
      {
        Effect: 'Allow',
        Action: ['logs:CreateLogStream', 'logs:CreateLogGroup', 'logs:PutLogEvents'],
        Resource: 'arn:aws:logs:*:*:log-group:/aws/imagebuilder/*',
      },
    ],
  },
  {
    name: 'AmazonEKSWorkerNodePolicy',
    id: 'ANPALA2I2OGNPZDCGG4TQ',
    version: 3,
    created: '2018-05-27T21:09:01Z',
    updated: '2018-05-27T21:09:01Z',
    statements: [
      {
        Sid: 'WorkerNodePermissions',
        Effect: 'Allow',
        Action: [
          'ec2:DescribeInstances',
          'ec2:DescribeInstanceTypes',
          'ec2:DescribeRouteTables',
          'ec2:DescribeSecurityGroups',
          'ec2:DescribeSubnets',
          'ec2:DescribeVolumes',
          'ec2:DescribeVolumesModifications',
          'ec2:DescribeVpcs',
          'eks:DescribeCluster',
          'eks-auth:AssumeRoleForPodIdentity',
        ],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AmazonEKSWorkerNodeMinimalPolicy',
    id: 'ANPALT3DKWE3EDA3RED2F',
    version: 1,
    created: '2024-10-02T20:03:51Z',
    updated: '2024-10-02T20:03:51Z',
    statements: [
      {
        Sid: 'WorkerNodePermissions',
        Effect: 'Allow',
        Action: ['eks-auth:AssumeRoleForPodIdentity'],
        Resource: '*',
      },
    ],
  },
  {
    name: 'AWSECRPullThroughCache_ServiceRolePolicy',
    path: '/aws-service-role/',
    id: 'ANPA6GCKLAH456NDSWTU6',
    version: 4,
    created: '2021-11-26T21:51:09Z',
    updated: '2021-11-26T21:51:09Z',
    statements: [
      {
        Sid: 'ECR',
        Effect: 'Allow',
        Action: [
          'ecr:GetAuthorizationToken',
          'ecr:BatchCheckLayerAvailability',
          'ecr:InitiateLayerUpload',
          'ecr:UploadLayerPart',
          'ecr:CompleteLayerUpload',
          'ecr:PutImage',
          'ecr:BatchGetImage',
          'ecr:BatchImportUpstreamImage',
          'ecr:GetDownloadUrlForLayer',
          'ecr:GetImageCopyStatus',
        ],
        Resource: '*',
        Condition: { StringEquals: { 'aws:ResourceAccount': '${aws:PrincipalAccount}' } },
      },
      {
        Sid: 'SecretsManager',
        Effect: 'Allow',
        Action: ['secretsmanager:GetSecretValue'],
        Resource: 'arn:aws:secretsmanager:*:*:secret:ecr-pullthroughcache/*',
        Condition: { StringEquals: { 'aws:ResourceAccount': '${aws:PrincipalAccount}' } },
      },
    ],
  },
  {
    name: 'ECRReplicationServiceRolePolicy',
    path: '/aws-service-role/',
    id: 'ANPASI7JXZSNOO4PDDGRH',
    version: 1,
    created: '2020-12-04T22:11:28Z',
    updated: '2020-12-04T22:11:28Z',
    statements: [{ Effect: 'Allow', Action: ['ecr:CreateRepository', 'ecr:ReplicateImage'], Resource: '*' }],
  },
  {
    name: 'ECRTemplateServiceRolePolicy',
    path: '/aws-service-role/',
    id: 'ANPATMQTG4H3EF3RRXUEE',
    version: 1,
    created: '2024-06-19T23:11:37Z',
    updated: '2024-06-19T23:11:37Z',
    statements: [
      {
        Sid: 'CreateRepositoryWithTemplate',
        Effect: 'Allow',
        Action: ['ecr:CreateRepository'],
        Resource: '*',
      },
    ],
  },
];

function managed({
  name,
  path = '/',
  id,
  version,
  created,
  updated,
  description,
  statements,
}: Entry): ManagedPolicy {
  return {
    arn: `arn:aws:iam::aws:policy${path}${name}`,
    id,
    name,
    path,
    version,
    description,
    createdAt: Date.parse(created),
    updatedAt: Date.parse(updated),
    document: JSON.stringify({ Version: '2012-10-17', Statement: statements }, null, 2),
    attachable: !path.startsWith('/aws-service-role/'),
  };
}

/** By ARN, ordered by name. */
export const MANAGED_POLICIES: ReadonlyMap<string, ManagedPolicy> = new Map(
  ENTRIES.map(managed)
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .map((policy) => [policy.arn, policy]),
);

export const ADMINISTRATOR_ACCESS = 'arn:aws:iam::aws:policy/AdministratorAccess';
