/** AssumeRole (iam-sts.md §3.5, §5.4). */
import { Fault } from '../domain/faults.ts';
import type * as sts from '../model/sts-types.ts';
import type { AccessCheck, Operation, OperationContext } from '../protocol/protocol.ts';
import type { TagRecord } from '../store/store.ts';
import { assumedRoleArn } from './arns.ts';
import type { Principal } from './identity.ts';
import { newSession } from './sessions.ts';
import type { Session } from './sessions.ts';
import {
  findNamedRole,
  packedPercent,
  readRoleSeconds,
  readSessionPolicies,
  readSessionTags,
  sessionTagKeys,
  showCredentials,
  trustSide,
} from './sts-sessions.ts';
import type { StsServices } from './sts-sessions.ts';

type Input = sts.AssumeRoleRequest;
type Context = OperationContext<Principal>;

/** Tags of the calling session that go along whether asked for or not. */
function inheritedTags(session: Session | undefined): TagRecord[] {
  const transitive = new Set(session?.transitiveKeys.map((key) => key.toLowerCase()));
  return session?.tags.filter(({ key }) => transitive.has(key.toLowerCase())) ?? [];
}

export function assumeRole(
  services: StsServices,
): Operation<Principal, sts.AssumeRoleRequest, sts.AssumeRoleResponse> {
  const { store, keys } = services;
  return {
    // WHY: the role decides by its trust policy, which must be read first; `run` authorises before it reveals anything.
    access: () => [],
    async run(input, context) {
      const { session: caller } = context.caller;
      const role = await findNamedRole(store, input.RoleArn);
      refuseForms(input, context);
      await authorize(services, role, input, context);
      // INVARIANT: no trust policy, no access.
      if (role.record === undefined) throw new Error('a role that does not exist was granted');

      const { record } = role;
      const seconds = readRoleSeconds(input.DurationSeconds, record, caller?.kind === 'role');
      const inherited = inheritedTags(caller);
      const tags = readSessionTags(input.Tags, inherited);
      const transitiveKeys = readTransitive(input, inherited);
      const policies = await readSessionPolicies(store, record.account, input);
      const sourceIdentity = input.SourceIdentity ?? caller?.sourceIdentity;
      const session = newSession(
        {
          kind: 'role',
          account: record.account,
          ownerId: record.id,
          name: input.RoleSessionName,
          policies,
          tags,
          transitiveKeys,
          sourceIdentity,
        },
        context.now,
        seconds,
      );
      return {
        Credentials: showCredentials(keys, session),
        AssumedRoleUser: {
          AssumedRoleId: `${record.id}:${session.name}`,
          Arn: assumedRoleArn(record, session.name),
        },
        ...((policies !== undefined || tags.length > 0) && { PackedPolicySize: packedPercent(session) }),
        ...(sourceIdentity !== undefined && { SourceIdentity: sourceIdentity }),
      };
    },
  };
}

/** What no policy can allow. */
function refuseForms(input: Input, { caller: { caller } }: Context): void {
  if (caller.kind === 'root') {
    throw new Fault('AccessDeniedException', 'Roles may not be assumed by root accounts.');
  }
  if (input.SerialNumber !== undefined || input.TokenCode !== undefined) {
    throw new Fault(
      'AccessDeniedException',
      'MultiFactorAuthentication failed with invalid MFA one time pass code. ',
    );
  }
  if (input.ProvidedContexts !== undefined && input.ProvidedContexts.length > 0) {
    throw new Fault(
      'ValidationError',
      'ProvidedContexts are assertions of IAM Identity Center and not known here.',
    );
  }
}

/** @throws Fault AccessDeniedException, the same for roles that refuse and roles that do not exist */
async function authorize(
  { store, identity }: StsServices,
  role: Awaited<ReturnType<typeof findNamedRole>>,
  input: Input,
  context: Context,
): Promise<void> {
  const { session } = context.caller;
  const passed = (input.Tags ?? []).map(({ Key, Value }) => ({ key: Key, value: Value }));
  const tags = [...inheritedTags(session), ...passed];
  const sourceIdentity = input.SourceIdentity ?? session?.sourceIdentity;
  const transitive = [...(session?.transitiveKeys ?? []), ...(input.TransitiveTagKeys ?? [])];
  const conditionKeys = new Map<string, string | readonly string[]>([
    ['sts:rolesessionname', input.RoleSessionName],
    ...sessionTagKeys(tags),
  ]);
  if (input.ExternalId !== undefined) conditionKeys.set('sts:externalid', input.ExternalId);
  if (sourceIdentity !== undefined) conditionKeys.set('sts:sourceidentity', sourceIdentity);
  if (transitive.length > 0) conditionKeys.set('sts:transitivetagkeys', transitive);
  const actions = ['sts:AssumeRole'];
  if (tags.length > 0) actions.push('sts:TagSession');
  if (sourceIdentity !== undefined) actions.push('sts:SetSourceIdentity');
  const checks = actions.map((action): AccessCheck => ({
    action,
    resource: input.RoleArn,
    keys: conditionKeys,
  }));
  await identity.authorize(context.caller, checks, context, await trustSide(store, role));
  // Once set, a source identity stays what it is.
  if (session?.sourceIdentity !== undefined && sourceIdentity !== session.sourceIdentity) {
    throw new Fault(
      'AccessDeniedException',
      `User: ${context.caller.caller.arn} is not authorized to perform: sts:SetSourceIdentity on resource: ${input.RoleArn}`,
    );
  }
}

/** @throws Fault InvalidParameterValue */
function readTransitive(
  { Tags = [], TransitiveTagKeys = [] }: Input,
  inherited: readonly TagRecord[],
): string[] {
  const passed = new Set(Tags.map(({ Key }) => Key.toLowerCase()));
  if (!TransitiveTagKeys.every((key) => passed.has(key.toLowerCase()))) {
    throw new Fault(
      'InvalidParameterValue',
      'The specified transitive tag key must be included in the requested tags.',
    );
  }
  return [...inherited.map(({ key }) => key), ...TransitiveTagKeys];
}
