/** What a registry password is: whose, for which registry, until when, and what its holder may do there. */
import { Fault } from '../domain/faults.ts';
import { repositoryArn } from '../domain/names.ts';
import { LIMITS } from '../lib/limits.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type * as berth from '../model/berth-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import { findAccessKey } from '../store/store.ts';
import type { Store } from '../store/store.ts';
import type { Identity, Principal, RequestFacts } from './identity.ts';
import { unsealToken } from './registry-token.ts';
import type { TokenContent } from './registry-token.ts';

interface TokenServices {
  readonly store: Store;
  readonly keys: KeyRing;
  readonly identity: Identity;
}

/** What docker does with a password, action by action: log in is done, then it pulls or pushes. */
const ACTIONS = [
  'ecr:BatchGetImage',
  'ecr:GetDownloadUrlForLayer',
  'ecr:BatchCheckLayerAvailability',
  'ecr:InitiateLayerUpload',
  'ecr:UploadLayerPart',
  'ecr:CompleteLayerUpload',
  'ecr:PutImage',
];

export function explainToken(
  services: TokenServices,
): Operation<Principal, berth.ExplainTokenRequest, berth.ExplainTokenResponse> {
  return {
    access: () => [{ action: 'berth:ExplainToken', resource: '*' }],
    async run({ password }, context) {
      const content = open(services.keys, password);
      // Another account's token is as unknown as one that was never made.
      if (content === undefined || content.account !== context.caller.account) {
        return {
          state: 'unknown',
          reason: 'Not a token that this server made for your account.',
          actions: [],
        };
      }
      const { account, region, expiresAt } = content;
      const issuedAt = expiresAt - LIMITS.registryTokenMs;
      const common = { account, region, issuedAt: new Date(issuedAt), expiresAt: new Date(expiresAt) };
      const principal = await holderOf(services, password, content);
      const isOver = context.now >= expiresAt;
      if (principal === undefined) {
        const reason = await whyRevoked(services, content);
        return { state: isOver ? 'expired' : 'revoked', reason, ...common, actions: [] };
      }
      const { accessKeyId, caller } = principal;
      return {
        state: isOver ? 'expired' : 'active',
        ...(isOver && { reason: 'Tokens are good for twelve hours. Log in again.' }),
        ...common,
        principalArn: caller.arn,
        accessKeyId,
        actions: await actionsOf(services, principal, { ...context, region }),
      };
    },
  };
}

function open(keys: KeyRing, password: string): TokenContent | undefined {
  try {
    return unsealToken(keys, password);
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

/** Who the token stands for, whether it is over or not; undefined when its key, user, role or session is gone. */
async function holderOf(
  { identity }: TokenServices,
  password: string,
  { expiresAt }: TokenContent,
): Promise<Principal | undefined> {
  try {
    return (await identity.openRegistryToken(password, expiresAt - 1)).principal;
  } catch (error) {
    if (error instanceof Fault && error.code === 'InvalidRegistryToken') return undefined;
    throw error;
  }
}

async function whyRevoked({ store }: TokenServices, { holder }: TokenContent): Promise<string> {
  if (holder.kind === 'session') {
    return 'The session it was made with is not kept any more, or its role or user is gone.';
  }
  const key = await findAccessKey(store.read, holder.id);
  return key === undefined
    ? `The access key ${holder.id} it was made with is deleted.`
    : `The access key ${holder.id} it was made with is ${key.status}.`;
}

/** The actions on every repository of the token's registry: repository policies may still say otherwise for one. */
async function actionsOf(
  { identity }: TokenServices,
  principal: Principal,
  facts: RequestFacts,
): Promise<berth.TokenAction[]> {
  const resourceArn = repositoryArn({ account: principal.account, region: facts.region, name: '*' });
  const actions: berth.TokenAction[] = [];
  for (const action of ACTIONS) {
    const decision = await identity.decide(principal, { action, resource: resourceArn }, facts);
    const { reason } = decision;
    actions.push({
      action,
      resourceArn,
      allowed: decision.allowed,
      policyType: reason.policyType,
      ...(reason.policy !== undefined && { policyName: reason.policy.name }),
      ...(reason.policy?.arn !== undefined && { policyArn: reason.policy.arn }),
    });
  }
  return actions;
}
