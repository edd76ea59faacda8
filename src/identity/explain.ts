/**
 * Answers to "why was I denied?", operations of Berth's own. Who may ask is a matter of policies like everything else; what
 * is answered is about the caller's own account: its principals, its resources, and its side of a decision that two accounts
 * make together. Whatever belongs to another account looks as if it did not exist.
 */
import { Fault } from '../domain/faults.ts';
import type * as berth from '../model/berth-types.ts';
import type { Operation } from '../protocol/protocol.ts';
import type { Store } from '../store/store.ts';
import { readNamedArn } from './arns.ts';
import type { StsServices } from './sts-sessions.ts';
import { readAction } from './actions.ts';
import { readDenial } from './denials.ts';
import { ownSideOf, recordDecision, showDecision, showMessage } from './explain-decisions.ts';
import { explainImage } from './explain-image.ts';
import type { ImageServices } from './explain-image.ts';
import { foreignSubject, loadSubject, readSubjectArn } from './explain-subjects.ts';
import { explainToken } from './explain-token.ts';
import type { Principal, ResourceSide } from './identity.ts';
import { findNamedRole, trustSide } from './sts-sessions.ts';

export type ExplainServices = Pick<StsServices, 'store' | 'keys' | 'identity'> & ImageServices;
type Op<Input, Output> = Operation<Principal, Input, Output>;

export function explainOperations(services: ExplainServices) {
  return {
    ExplainDenial: explainDenial(services),
    ExplainAccess: explainAccess(services),
    ExplainImage: explainImage(services),
    ExplainToken: explainToken(services),
  };
}

/**
 * A denial by request id, else the newest of the account. The owner of a resource sees what its policies said about a
 * stranger; the stranger's account sees what its own said.
 */
function explainDenial({
  identity: { denials },
}: ExplainServices): Op<berth.ExplainDenialRequest, berth.ExplainDenialResponse> {
  return {
    access: () => [{ action: 'berth:ExplainDenial', resource: '*' }],
    async run({ requestId, principalArn }, { caller: { account } }) {
      const found =
        requestId === undefined
          ? await denials.findNewest(account, principalArn)
          : await denials.find(requestId, account);
      if (found === undefined) {
        throw new Fault(
          'NoSuchEntity',
          requestId === undefined
            ? 'No denial is known.'
            : `No denial with request id ${requestId} is known. Denials by policy are kept for a day.`,
        );
      }
      const { sourceIp, region, message, decision } = readDenial(found);
      return {
        requestId: found.requestId,
        time: new Date(found.at),
        region,
        // Where a stranger is, is the business of their account.
        ...(found.account === account && { sourceIp }),
        principalArn: found.principal,
        action: found.action,
        resourceArn: decision.resource,
        message: showMessage(message, decision, account),
        explanation: showDecision(decision, account),
      };
    },
  };
}

function explainAccess({
  store,
  identity,
}: ExplainServices): Op<berth.ExplainAccessRequest, berth.ExplainAccessResponse> {
  return {
    access({ principalArn, resourceArn }, { caller: { account } }) {
      const foreign = isForeign(readSubjectArn(principalArn).account, resourceArn, account);
      return [{ action: 'berth:ExplainAccess', resource: foreign ? resourceArn : principalArn }];
    },
    async run(input, context) {
      const { principalArn, resourceArn } = input;
      const action = readAction(input.action);
      const { account } = context.caller;
      const named = readSubjectArn(principalArn);
      const foreignPrincipal = isForeign(named.account, resourceArn, account);
      // INVARIANT: nothing of another account's principals is read, whatever a policy of theirs should allow.
      if (!foreignPrincipal && named.account !== account) throw notYours();
      const subject = foreignPrincipal
        ? foreignSubject(principalArn, named.account)
        : await loadSubject(store, named, context.now);
      const check = { action, resource: resourceArn, keys: readContext(input) };
      const { request, decision } = await identity.judge(
        subject,
        check,
        context,
        await roleSide(store, action, resourceArn),
      );
      const recorded = recordDecision(request, decision);
      const record = foreignPrincipal ? ownSideOf(recorded) : recorded;
      return {
        principalArn,
        action,
        resourceArn,
        foreignPrincipal,
        explanation: showDecision(record, account),
      };
    },
  };
}

/** Who asks to become a role is judged by its trust policy as well, or there is no answer but a wrong one. */
async function roleSide(
  store: Store,
  action: string,
  resourceArn: string,
): Promise<ResourceSide | undefined> {
  const becomes = /^sts:(?:AssumeRole|TagSession|SetSourceIdentity)/.test(action);
  if (!becomes || readNamedArn(resourceArn)?.type !== 'role') return undefined;
  return await trustSide(store, await findNamedRole(store, resourceArn));
}

/** Somebody of another account at a resource of one's own: only the own side is explained. */
function isForeign(principalAccount: string, resourceArn: string, account: string): boolean {
  return principalAccount !== account && resourceArn.split(':', 5)[4] === account;
}

function notYours(): Fault {
  return new Fault('AccessDeniedException', 'Principals of other accounts are explained by their account.');
}

/** Keys of the imagined request, lower-cased; a single value is a single-valued key. */
function readContext({ context = {} }: berth.ExplainAccessRequest): ReadonlyMap<string, string | string[]> {
  return new Map(
    Object.entries(context).map(([key, values]) => {
      const [first, ...others] = values ?? [];
      return [key.toLowerCase(), first !== undefined && others.length === 0 ? first : (values ?? [])];
    }),
  );
}
