/**
 * What was refused, noted for explanations: in memory at the refusal, worked out and written a moment later, in batches. A
 * caller who is refused all the time costs a bounded number of rows and pushes out nobody else's.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { LIMITS } from '../lib/limits.ts';
import type { AccessRequest, Decision } from '../policy/policy.ts';
import { findDenial, findNewestDenial } from '../store/store.ts';
import type { DenialRecord, Store } from '../store/store.ts';
import { fitDecision, recordDecision, type DecisionRecord } from './explain-decisions.ts';

/** A refusal as it happened. */
export interface Denial {
  readonly requestId: string;
  readonly at: number;
  readonly sourceIp: string;
  readonly region: string;
  readonly request: AccessRequest;
  readonly decision: Decision;
  /** the sentence the client was told */
  readonly message: string;
}

export interface Denials {
  /** Never waits, never throws. */
  note(denial: Denial): void;
  flush(): Promise<void>;
  /**
   * A denial by its request id that concerns the account, as the caller's or the resource's; also one that another worker
   * noted just now.
   */
  find(requestId: string, account: string): Promise<DenialRecord | undefined>;
  /** The newest of an account's callers, or of one of them; denied explanations do not count. */
  findNewest(account: string, principal: string | undefined): Promise<DenialRecord | undefined>;
}

/** What other workers noted is written by then; looking again and again is cheap, the id is the primary key. */
const OTHERS_MS = 1000;
const LOOK_AGAIN_MS = 100;
const EXPLANATIONS = 'berth:Explain';
const MESSAGE_CHARACTERS_MAX = 4096;

export function createDenials(store: Store): Denials {
  /** by account of the caller */
  let noted = new Map<string, Denial[]>();
  let writing: Promise<void> = Promise.resolve();
  let timer: NodeJS.Timeout | undefined;

  async function write(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    if (noted.size === 0) return;
    const batch = noted;
    noted = new Map();
    const denials = [...batch.values()].flat().map(rowOf);
    const newest = denials.reduce((latest, { at }) => Math.max(latest, at), 0);
    await store.transact('denial.record', {
      denials,
      since: newest - LIMITS.denialAgeMs,
      perAccountMax: LIMITS.denialsPerAccountMax,
      max: LIMITS.denialsMax,
    });
  }

  function flush(): Promise<void> {
    const written = writing.then(write);
    // WHY: a batch that cannot be written is lost, an explanation only; keeping it would make memory grow with the outage.
    writing = written.catch(() => undefined);
    return written;
  }

  return {
    flush,
    note(denial) {
      const { account } = denial.request.caller;
      let own = noted.get(account);
      if (own === undefined) {
        if (noted.size >= LIMITS.denialBatchAccountsMax) return;
        noted.set(account, (own = []));
      }
      own.push(denial);
      if (own.length > LIMITS.denialBatchPerAccountMax) own.shift();
      timer ??= setTimeout(() => void flush().catch(() => undefined), LIMITS.denialBatchMs).unref();
    },
    async find(requestId, account) {
      await flush();
      // INVARIANT: what is another account's takes as long as what is not there.
      for (let waited = 0; ; waited += LOOK_AGAIN_MS) {
        const found = await findDenial(store.read, requestId, account);
        if (found !== undefined || waited >= OTHERS_MS) return found;
        await delay(LOOK_AGAIN_MS);
      }
    },
    async findNewest(account, principal) {
      await flush();
      return await findNewestDenial(store.read, { account, principal, except: EXPLANATIONS });
    },
  };
}

/** What the content of a row says. */
export interface DenialContent {
  readonly sourceIp: string;
  readonly region: string;
  readonly message: string;
  readonly decision: DecisionRecord;
}

function rowOf({ requestId, at, sourceIp, region, request, decision, message }: Denial): DenialRecord {
  const { caller, resourceAccount, action } = request;
  const content: DenialContent = {
    sourceIp,
    region,
    message: message.slice(0, MESSAGE_CHARACTERS_MAX),
    decision: fitDecision(recordDecision(request, decision)),
  };
  return {
    requestId,
    at,
    account: caller.account,
    resourceAccount,
    principal: caller.arn,
    owner: caller.roleArn ?? caller.arn,
    action,
    content: JSON.stringify(content),
  };
}

export function readDenial({ content }: DenialRecord): DenialContent {
  return JSON.parse(content) as DenialContent;
}
