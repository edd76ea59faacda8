/** IAM operations on access keys. INVARIANT: a secret leaves in the answer of CreateAccessKey and nowhere else. */
import { Fault } from '../domain/faults.ts';
import { accessKeyId, secretAccessKey } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findAccessKey, listAccessKeys, listRootKeys, noSuchAccessKey } from '../store/store.ts';
import type { AccessKeyRecord } from '../store/store.ts';
import { requireUser, selfCheck, subjectOf, userCheck } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';
import { pageOfAll } from './paging.ts';
import { sealSecret } from './secrets.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function keyOperations(services: IamServices) {
  return {
    CreateAccessKey: createAccessKey(services),
    ListAccessKeys: listKeys(services),
    UpdateAccessKey: updateAccessKey(services),
    DeleteAccessKey: deleteAccessKey(services),
    GetAccessKeyLastUsed: getLastUsed(services),
  };
}

function createAccessKey({
  store,
  keys,
}: IamServices): Op<iam.CreateAccessKeyRequest, iam.CreateAccessKeyResponse> {
  return {
    access: (input, context) => [userCheck('CreateAccessKey', context, subjectOf(input, context))],
    async run(input, context) {
      const { account } = context.caller;
      const userName = subjectOf(input, context);
      const id = accessKeyId('AKIA', account);
      const secret = secretAccessKey();
      await store.transact('accessKey.create', {
        account,
        userName,
        id,
        secret: sealSecret(keys, id, secret),
        now: context.now,
        keysMax: LIMITS.accessKeysPerUserMax,
      });
      return {
        AccessKey: {
          UserName: userName,
          AccessKeyId: id,
          Status: 'Active',
          SecretAccessKey: secret,
          CreateDate: new Date(context.now),
        },
      };
    },
  };
}

function listKeys(services: IamServices): Op<iam.ListAccessKeysRequest, iam.ListAccessKeysResponse> {
  const { read } = services.store;
  return {
    access: (input, context) => [selfCheck('ListAccessKeys', context, input)],
    async run(input, context) {
      const { account, caller } = context.caller;
      const isRoot = input.UserName === undefined && caller.kind === 'root';
      const user = isRoot ? undefined : await requireUser(services, context, subjectOf(input, context));
      const all =
        user === undefined ? await listRootKeys(read, account) : await listAccessKeys(read, user.id);
      const { items, page } = pageOfAll(all, input);
      return { AccessKeyMetadata: items.map((key) => showKey(key, user?.name)), ...page };
    },
  };
}

function showKey(
  { id, status, createdAt }: AccessKeyRecord,
  userName: string | undefined,
): iam.AccessKeyMetadata {
  return { UserName: userName, AccessKeyId: id, Status: status, CreateDate: new Date(createdAt) };
}

function updateAccessKey({ store }: IamServices): Op<iam.UpdateAccessKeyRequest> {
  return {
    access: (input, context) => [userCheck('UpdateAccessKey', context, subjectOf(input, context))],
    async run(input, context) {
      const { Status: status, AccessKeyId: id } = input;
      if (status === 'Expired') {
        throw new Fault(
          'ValidationError',
          "1 validation error detected: Value at 'status' failed to satisfy constraint: Member must satisfy enum value set: [Active, Inactive]",
        );
      }
      const userName = subjectOf(input, context);
      await store.transact('accessKey.update', { account: context.caller.account, userName, id, status });
    },
  };
}

function deleteAccessKey({ store }: IamServices): Op<iam.DeleteAccessKeyRequest> {
  return {
    access: (input, context) => [userCheck('DeleteAccessKey', context, subjectOf(input, context))],
    async run(input, context) {
      const userName = subjectOf(input, context);
      const { account } = context.caller;
      await store.transact('accessKey.delete', { account, userName, id: input.AccessKeyId });
    },
  };
}

function getLastUsed(
  services: IamServices,
): Op<iam.GetAccessKeyLastUsedRequest, iam.GetAccessKeyLastUsedResponse> {
  return {
    // `authorize` puts the key's owner in place of the key.
    access: ({ AccessKeyId }, { caller: { account } }) => [
      {
        action: 'iam:GetAccessKeyLastUsed',
        resource: `arn:aws:iam::${account}:access-key/${AccessKeyId}`,
        shownAs: `access key ${AccessKeyId}`,
      },
    ],
    async run({ AccessKeyId }, { caller: { account } }) {
      // A use that is not written yet is a use.
      await services.identity.flush();
      const key = await findAccessKey(services.store.read, AccessKeyId);
      if (key?.account !== account) throw noSuchAccessKey(AccessKeyId);
      const { lastUsed, user } = key;
      return {
        UserName: user?.name,
        AccessKeyLastUsed:
          lastUsed === undefined
            ? { ServiceName: 'N/A', Region: 'N/A' }
            : { LastUsedDate: new Date(lastUsed.at), ServiceName: lastUsed.service, Region: lastUsed.region },
      };
    },
  };
}
