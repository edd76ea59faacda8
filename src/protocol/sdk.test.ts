import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import {
  CreateRepositoryCommand,
  DescribeImagesCommand,
  ECRClient,
  InvalidLayerPartException,
  ListImagesCommand,
  RepositoryNotFoundException,
  UploadLayerPartCommand,
} from '@aws-sdk/client-ecr';
import {
  CreateUserCommand,
  IAMClient,
  ListUsersCommand,
  NoSuchEntityException,
  TagUserCommand,
} from '@aws-sdk/client-iam';
import {
  AssumeRoleCommand,
  AssumeRoleWithWebIdentityCommand,
  GetCallerIdentityCommand,
  STSClient,
} from '@aws-sdk/client-sts';
import { Fault, repositoryNotFound } from '../domain/faults.ts';
import type { Structure } from './operation.ts';
import { answering, KEY, openEndpoint, SESSION, type Endpoint } from './test-endpoint.ts';

const PUSHED = new Date(1760000000123);
const WHOLE = new Date(1760000000000);

let endpoint: Endpoint;
let ecr: ECRClient;
let iam: IAMClient;
let sts: STSClient;
let received: Structure | undefined;
before(async () => {
  const keep = (output: Structure) => ({
    run: (input: Structure) => {
      received = input;
      return Promise.resolve(output);
    },
  });
  endpoint = await openEndpoint({
    ecr: {
      DescribeImages: keep({
        imageDetails: [{ imageDigest: 'sha256:0a', imageTags: [], imagePushedAt: PUSHED }],
      }),
      ListImages: { run: () => Promise.reject(repositoryNotFound('ab', '000000000000')) },
      CreateRepository: keep({ repository: { repositoryName: 'ä "quoted"\n' } }),
      UploadLayerPart: {
        run: (input: Structure) => {
          received = input;
          return Promise.reject(
            new Fault('InvalidLayerPartException', 'wrong', { lastValidByteReceived: 9 }),
          );
        },
      },
    },
    iam: {
      ListUsers: answering({
        Users: [{ Path: '/', UserName: ' a&b ', UserId: 'AIDA', Arn: 'arn', CreateDate: WHOLE }],
        IsTruncated: false,
      }),
      CreateUser: { run: () => Promise.reject(new Fault('NoSuchEntity', "it's gone")) },
      TagUser: keep({}),
    },
    sts: {
      GetCallerIdentity: answering({ Arn: 'arn:x', UserId: 'u', Account: '000000000000' }),
      AssumeRole: keep({
        Credentials: { AccessKeyId: 'A', SecretAccessKey: 'S', SessionToken: 'T/+==', Expiration: WHOLE },
      }),
      AssumeRoleWithWebIdentity: answering({ Provider: 'p' }),
    },
  });
  const { accessKeyId, secretAccessKey, sessionToken = '' } = SESSION;
  const settings = { endpoint: endpoint.url, region: 'eu-west-1', maxAttempts: 1 };
  const credentials = { accessKeyId: KEY.accessKeyId, secretAccessKey: KEY.secretAccessKey };
  ecr = new ECRClient({ ...settings, credentials });
  iam = new IAMClient({ ...settings, credentials });
  sts = new STSClient({ ...settings, credentials: { accessKeyId, secretAccessKey, sessionToken } });
});
after(async () => {
  ecr.destroy();
  iam.destroy();
  sts.destroy();
  await endpoint[Symbol.asyncDispose]();
});

test('the ECR client reads answers: dates, empty lists, text', async () => {
  const { imageDetails } = await ecr.send(new DescribeImagesCommand({ repositoryName: 'ab' }));
  assert.deepEqual(imageDetails, [{ imageDigest: 'sha256:0a', imageTags: [], imagePushedAt: PUSHED }]);
  const created = await ecr.send(
    new CreateRepositoryCommand({ repositoryName: 'ab', tags: [{ Key: 'k', Value: 'ü' }] }),
  );
  assert.equal(created.repository?.repositoryName, 'ä "quoted"\n');
  assert.deepEqual(received, { repositoryName: 'ab', tags: [{ Key: 'k', Value: 'ü' }] });
});

test('the ECR client sends blobs and reads errors with their members', async () => {
  const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i % 256);
  const command = new UploadLayerPartCommand({
    repositoryName: 'ab',
    uploadId: '84b47cd7-fc7b-442f-b75b-309b93d2b2ee',
    partFirstByte: 0,
    partLastByte: 999,
    layerPartBlob: bytes,
  });
  await assert.rejects(
    ecr.send(command),
    (error) =>
      error instanceof InvalidLayerPartException &&
      error.lastValidByteReceived === 9 &&
      error.message === 'wrong' &&
      error.$metadata.httpStatusCode === 400,
  );
  assert.deepEqual(Buffer.from(received?.['layerPartBlob'] as Uint8Array), Buffer.from(bytes));
  await assert.rejects(
    ecr.send(new ListImagesCommand({ repositoryName: 'ab' })),
    (error) =>
      error instanceof RepositoryNotFoundException &&
      error.message === "The repository with name 'ab' does not exist in the registry with id '000000000000'",
  );
  await assert.rejects(ecr.send(new ListImagesCommand({ repositoryName: 'A' })), {
    name: 'InvalidParameterException',
  });
});

test('the IAM client reads answers and errors', async () => {
  const { Users, IsTruncated } = await iam.send(new ListUsersCommand({ MaxItems: 10 }));
  assert.deepEqual(Users, [{ Path: '/', UserName: ' a&b ', UserId: 'AIDA', Arn: 'arn', CreateDate: WHOLE }]);
  assert.equal(IsTruncated, false);
  await assert.rejects(
    iam.send(new CreateUserCommand({ UserName: 'x' })),
    (error) => error instanceof NoSuchEntityException && error.message === "it's gone",
  );
  await assert.rejects(iam.send(new CreateUserCommand({ UserName: 'x y' })), {
    name: 'ValidationError',
    message:
      'The specified value for userName is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-',
  });
  await iam.send(new TagUserCommand({ UserName: 'x', Tags: [{ Key: 'a b', Value: '' }] }));
  assert.deepEqual(received, { UserName: 'x', Tags: [{ Key: 'a b', Value: '' }] });
});

test('the STS client, with a session and without any signature', async () => {
  const identity = await sts.send(new GetCallerIdentityCommand({}));
  assert.equal(identity.Account, '000000000000');
  const role = { RoleArn: 'arn:aws:iam::000000000000:role/a', RoleSessionName: 'me' };
  const PolicyArns = [{ arn: 'arn:aws:iam::aws:policy/ReadOnlyAccess' }];
  const assumed = await sts.send(new AssumeRoleCommand({ ...role, PolicyArns }));
  assert.deepEqual(assumed.Credentials, {
    AccessKeyId: 'A',
    SecretAccessKey: 'S',
    SessionToken: 'T/+==',
    Expiration: WHOLE,
  });
  assert.deepEqual(received, { ...role, PolicyArns });
  const web = await sts.send(new AssumeRoleWithWebIdentityCommand({ ...role, WebIdentityToken: 'abcd' }));
  assert.equal(web.Provider, 'p');
});
