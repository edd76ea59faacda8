/** IAM operations on OpenID Connect providers (iam-sts.md §6.4, §6.5). */
import { Fault } from '../domain/faults.ts';
import { storageKey } from '../lib/ids.ts';
import { LIMITS } from '../lib/limits.ts';
import type * as iam from '../model/iam-types.ts';
import type { AccessCheck, Operation } from '../protocol/protocol.ts';
import { findProvider, listProviders, listTags, noSuchProvider, quotaExceeded } from '../store/store.ts';
import type { ProviderRecord } from '../store/store.ts';
import { providerArn } from './arns.ts';
import { providerCheck, readTags, showTags, tagConditionKeys } from './iam-access.ts';
import type { IamServices } from './iam-access.ts';
import type { Principal } from './identity.ts';

type Op<Input, Output = void> = Operation<Principal, Input, Output>;

export function providerOperations(services: IamServices) {
  return {
    CreateOpenIDConnectProvider: create(services),
    GetOpenIDConnectProvider: get(services),
    ListOpenIDConnectProviders: list(services),
    DeleteOpenIDConnectProvider: remove(services),
    AddClientIDToOpenIDConnectProvider: addClientId(services),
    RemoveClientIDFromOpenIDConnectProvider: removeClientId(services),
    UpdateOpenIDConnectProviderThumbprint: updateThumbprints(services),
  };
}

/**
 * The issuer as it is stored: without `https://`, as it stands in ARNs and condition keys, but with `http://`, which only
 * issuers that a setting names may have (issuer-fetch.ts). WHY a port is fine here, unlike in AWS: clusters on one's own
 * machines often serve their issuer on one.
 *
 * @throws Fault ValidationError
 */
function readUrl(text: string): string {
  const invalid = new Fault('ValidationError', 'Invalid Open ID Connect Provider URL');
  if (!/^https?:\/\/[^\s?#@\\*]+$/.test(text)) throw invalid;
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw invalid;
  }
  const rest = text.slice(text.indexOf('://') + 3);
  // The host as written must be the host as understood: one spelling, no surprises.
  if (rest !== url.host && !rest.startsWith(`${url.host}/`)) throw invalid;
  return url.protocol === 'http:' ? text : rest;
}

const withoutScheme = (url: string): string => url.replace(/^https?:\/\//, '');

/** @throws Fault InvalidInput, ValidationError */
function readThumbprints(thumbprints: readonly string[]): string[] {
  if (thumbprints.length > LIMITS.thumbprintsPerProviderMax) {
    throw new Fault('InvalidInput', 'Thumbprint list must contain fewer than 5 entries.');
  }
  if (!thumbprints.every((each) => /^[0-9A-Fa-f]{40}$/.test(each))) {
    throw new Fault('ValidationError', 'Thumbprints must be 40 hexadecimal digits.');
  }
  return thumbprints.map((each) => each.toLowerCase());
}

function create({
  store,
}: IamServices): Op<iam.CreateOpenIDConnectProviderRequest, iam.CreateOpenIDConnectProviderResponse> {
  return {
    access({ Url, Tags }, { caller: { account } }) {
      const resource = providerArn(account, withoutScheme(Url));
      const keys = tagConditionKeys(Tags);
      const check: AccessCheck = { action: 'iam:CreateOpenIDConnectProvider', resource, keys };
      if (Tags === undefined || Tags.length === 0) return [check];
      return [check, { action: 'iam:TagOpenIDConnectProvider', resource, keys }];
    },
    async run({ Url, ClientIDList = [], ThumbprintList = [], Tags }, { caller: { account }, now }) {
      const tags = readTags(Tags);
      const url = readUrl(Url);
      const clientIds = [...new Set(ClientIDList)];
      if (clientIds.length > LIMITS.clientIdsPerProviderMax) {
        throw quotaExceeded('ClientIdsPerOpenIdConnectProvider', LIMITS.clientIdsPerProviderMax);
      }
      const provider: ProviderRecord = {
        id: storageKey(now),
        account,
        arn: providerArn(account, withoutScheme(url)),
        url,
        clientIds,
        thumbprints: readThumbprints(ThumbprintList),
        createdAt: now,
      };
      await store.transact('provider.create', {
        provider,
        tags,
        providersMax: LIMITS.oidcProvidersPerAccountMax,
      });
      return {
        OpenIDConnectProviderArn: provider.arn,
        ...(tags.length > 0 && { Tags: showTags(tags) }),
      };
    },
  };
}

function get({
  store,
}: IamServices): Op<iam.GetOpenIDConnectProviderRequest, iam.GetOpenIDConnectProviderResponse> {
  return {
    access: ({ OpenIDConnectProviderArn: arn }) => [providerCheck('GetOpenIDConnectProvider', arn)],
    async run({ OpenIDConnectProviderArn: arn }) {
      const provider = await findProvider(store.read, arn);
      if (provider === undefined) throw noSuchProvider(arn);
      return {
        Url: withoutScheme(provider.url),
        ClientIDList: [...provider.clientIds],
        ThumbprintList: [...provider.thumbprints],
        CreateDate: new Date(provider.createdAt),
        Tags: showTags(await listTags(store.read, provider.id)),
      };
    },
  };
}

function list({
  store,
}: IamServices): Op<iam.ListOpenIDConnectProvidersRequest, iam.ListOpenIDConnectProvidersResponse> {
  return {
    access: (_input, { caller: { account } }) => [
      { action: 'iam:ListOpenIDConnectProviders', resource: `arn:aws:iam::${account}:oidc-provider/*` },
    ],
    async run(_input, { caller: { account } }) {
      const arns = await listProviders(store.read, account);
      return { OpenIDConnectProviderList: arns.map((Arn) => ({ Arn })) };
    },
  };
}

function remove({ store }: IamServices): Op<iam.DeleteOpenIDConnectProviderRequest> {
  return {
    access: ({ OpenIDConnectProviderArn: arn }) => [providerCheck('DeleteOpenIDConnectProvider', arn)],
    async run({ OpenIDConnectProviderArn: arn }) {
      await store.transact('provider.delete', { arn });
    },
  };
}

function addClientId({ store }: IamServices): Op<iam.AddClientIDToOpenIDConnectProviderRequest> {
  return {
    access: ({ OpenIDConnectProviderArn: arn }) => [providerCheck('AddClientIDToOpenIDConnectProvider', arn)],
    async run({ OpenIDConnectProviderArn: arn, ClientID: clientId }) {
      const clientIdsMax = LIMITS.clientIdsPerProviderMax;
      await store.transact('provider.addClientId', { arn, clientId, clientIdsMax });
    },
  };
}

function removeClientId({ store }: IamServices): Op<iam.RemoveClientIDFromOpenIDConnectProviderRequest> {
  return {
    access: ({ OpenIDConnectProviderArn: arn }) => [
      providerCheck('RemoveClientIDFromOpenIDConnectProvider', arn),
    ],
    async run({ OpenIDConnectProviderArn: arn, ClientID: clientId }) {
      await store.transact('provider.removeClientId', { arn, clientId });
    },
  };
}

function updateThumbprints({ store }: IamServices): Op<iam.UpdateOpenIDConnectProviderThumbprintRequest> {
  return {
    access: ({ OpenIDConnectProviderArn: arn }) => [
      providerCheck('UpdateOpenIDConnectProviderThumbprint', arn),
    ],
    async run({ OpenIDConnectProviderArn: arn, ThumbprintList }) {
      await store.transact('provider.setThumbprints', { arn, thumbprints: readThumbprints(ThumbprintList) });
    },
  };
}
